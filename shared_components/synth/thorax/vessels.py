"""Vessel trees: branching lines in a mask, where branching points are landmarks."""

from __future__ import annotations

from collections import deque

import numpy as np

_MAX_BRANCHES = 260


def grow_tree(
    mask: np.ndarray,
    starts: np.ndarray,
    headings: np.ndarray,
    length: float,
    radius: float,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """Grow a tree within a mask.

    Args:
        mask: (n, m) bool; no branch leaves it.
        starts: (K, 2) pixels where the first branches begin; may lie outside.
        headings: (K,) their directions, radians: 0 to higher columns, pi / 2 to higher rows.
        length: of the first branches, pixels.
        radius: of the first branches, pixels.
        rng: the only source of randomness.

    Returns:
        segments (S, 6): row and column of both ends, radius, brightness in (0, 1]; and the points (P, 2) where a branch
        divides in two.
    """
    queue = deque((s, float(h), length, radius * rng.uniform(0.6, 1), 0) for s, h in zip(starts, headings, strict=True))
    free = mask.copy()  # no branch crosses another one
    segments, nodes = [], []
    while queue and len(segments) < _MAX_BRANCHES:
        begin, heading, reach, width, depth = queue.popleft()
        found = _step(free, begin, heading, reach, rng, depth)
        if found is None:
            continue
        end, heading = found
        _occupy(free, begin, end, 0.14 * length)
        middle = (begin + end) / 2 + rng.normal(0, 0.06 * reach, 2)
        bright = rng.uniform(0.55, 1.0) * 0.9**depth
        segments += [[*begin, *middle, width, bright], [*middle, *end, 0.85 * width, bright]]
        if depth >= 5:
            continue
        nodes.append(end)
        turn = np.deg2rad(rng.uniform(15, 50, 2))
        smaller = rng.uniform((0.6, 0.45), (0.85, 0.7))
        side = rng.choice([-1, 1])
        for sign, angle, shrink in zip((side, -side), turn, smaller, strict=True):
            queue.append((end, heading + sign * angle, reach * rng.uniform(0.65, 0.95), width * shrink, depth + 1))
    return np.array(segments).reshape(-1, 6), np.array(nodes).reshape(-1, 2)


def _step(
    free: np.ndarray, begin: np.ndarray, heading: float, reach: float, rng: np.random.Generator, depth: int
) -> tuple[np.ndarray, float] | None:
    """Find where a branch may end; where something is in the way try other directions and shorter branches."""
    for spread in (0.0, 0.25, 0.5):
        angle = heading + spread * rng.standard_normal()
        end = begin + reach * (1 - 0.5 * spread) * np.array([np.sin(angle), np.cos(angle)])
        along = begin + (end - begin) * np.linspace(0.5 if depth == 0 else 0.4, 1.0, 8)[:, None]
        index = np.rint(along).astype(int)
        if (index < 0).any() or (index >= free.shape).any():
            continue
        if free[tuple(index.T)].all():
            return end, angle
    return None


def _occupy(free: np.ndarray, begin: np.ndarray, end: np.ndarray, width: float) -> None:
    """Take the surroundings of a branch out of the free pixels."""
    half = max(1, round(width))
    for y, x in np.rint(begin + (end - begin) * np.linspace(0.35, 1, 6)[:, None]).astype(int):
        free[max(y - half, 0) : y + half + 1, max(x - half, 0) : x + half + 1] = False


def draw_tubes(shape: tuple[int, int], segments: np.ndarray) -> np.ndarray:
    """Return the coverage (n, m) float32 in [0, 1] of lines with round ends; thin ones cover less than a pixel."""
    cover = np.zeros(shape, np.float32)
    for y0, x0, y1, x1, radius, bright in segments:
        reach = radius + 1.5
        low = np.floor([min(y0, y1) - reach, min(x0, x1) - reach]).astype(int).clip(0)
        high = np.ceil([max(y0, y1) + reach, max(x0, x1) + reach]).astype(int) + 1
        part = cover[low[0] : high[0], low[1] : high[1]]
        if part.size == 0:
            continue
        y = np.arange(low[0], low[0] + part.shape[0], dtype=np.float32)[:, None] - y0
        x = np.arange(low[1], low[1] + part.shape[1], dtype=np.float32)[None, :] - x0
        dy, dx = y1 - y0, x1 - x0
        t = ((y * dy + x * dx) / max(dy * dy + dx * dx, 1e-9)).clip(0, 1)
        distance = np.hypot(y - t * dy, x - t * dx)
        value = (radius + 0.5 - distance).clip(0, 1) * min(1.0, 2 * radius) * bright
        np.maximum(part, value, out=part)
    return cover


def scatter_spots(mask: np.ndarray, count: int, radius: float, rng: np.random.Generator) -> np.ndarray:
    """Return segments (S, 6) of no length: vessels that cross the slice, in a mask."""
    where = np.argwhere(mask)
    if len(where) == 0:
        return np.zeros((0, 6))
    at = where[rng.integers(len(where), size=count)].astype(float)
    size = radius * rng.uniform(0.4, 1.0, (count, 1))
    return np.concatenate([at, at, size, rng.uniform(0.4, 1.0, (count, 1))], 1)


def apart(points: np.ndarray, distance: float, count: int) -> np.ndarray:
    """Return the indices of at most ``count`` points that keep ``distance``, taking the first ones first."""
    chosen: list[int] = []
    for k, point in enumerate(points):
        if len(chosen) == count:
            break
        if all(np.hypot(*(point - points[j])) >= distance for j in chosen):
            chosen.append(k)
    return np.array(chosen, dtype=int)
