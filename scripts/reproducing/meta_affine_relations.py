"""What must show in the numbers of the learned affine optimiser, and whether it does.

Results come as ``{cases: {method: {"mse": [one a case], "cpu_seconds": ...}}}``; cases are "hands", or "hands_full" for
the full affine maps, methods "plain" or "comb@hands/single": *comb* with the network trained on Hands, single level.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from statistics import fmean, median
from typing import Any

from . import meta_affine_paper as paper
from .meta_affine_sets import SETS

OUTLIER = 0.05  # an MSE above it is one: an error of 7 pixels of 128 in the mean over the image
Results = Mapping[str, Mapping[str, Mapping[str, Any]]]


@dataclass(frozen=True)
class Judged:
    """A claim and what was found.

    Attributes:
        claim: in words.
        wanted: how much of it.
        found: in numbers, as text.
        shows: whether it does.
        paper: the paper's numbers for the same, as text.
        required: one of the relations that must show; the others are told as well.
    """

    claim: str
    wanted: str
    found: str
    shows: bool
    paper: str = "–"
    required: bool = True


def outliers(mse: Sequence[float]) -> int:
    """Return how many cases are wrong."""
    return sum(not value <= OUTLIER for value in mse)


def judge(results: Results, identity: Mapping[str, float]) -> list[dict[str, Any]]:
    """Return all that can be judged, as plain dictionaries."""
    parts = (_start(identity), _against_plain(results), _levels(results), _against_elastix(results))
    more = (_full_affine(results), _transfer(results), _ours(results), _speed(results))
    return [asdict(one) for part in (*parts, *more) for one in part]


def _mse(results: Results, cases: str, method: str) -> Sequence[float] | None:
    found = results.get(cases, {}).get(method)
    return None if found is None else found["mse"]


def _own(name: str, kind: str = "single") -> str:
    return f"comb@{name}/{kind}"


def _start(identity: Mapping[str, float]) -> Iterator[Judged]:
    shows = abs(identity["mean"] - 1.59) <= 0.02
    claim = "identity: mean MSE of as many maps as Table 1 draws from"
    yield Judged(claim, "1.59 ± 0.02", f"{identity['mean']:.3f}", shows)


def _against_plain(results: Results) -> Iterator[Judged]:
    for name, least_mean, least_max in (("hands", 20, 20), ("brain", 3, None), ("oasis", None, None)):
        plain, comb = _mse(results, name, "plain"), _mse(results, name, _own(name))
        if plain is None or comb is None:
            continue
        title, theirs = SETS[name].title, paper.MSE[SETS[name].paper]
        for word, which, index, least in (("mean", fmean, 0, least_mean), ("max", max, 2, least_max)):
            a, b = which(plain), which(comb)
            wanted = 1 if least is None else least
            yield Judged(
                f"{title}: comb << plain, {word}",
                f"{wanted}× lower",
                f"{_times(a, b)} ({a:.3f}, {b:.4f})",
                a >= wanted * b and a > b,
                _times(theirs["plain"][index], theirs["comb"][index]),
                least is not None,
            )
        middle = median(comb)
        told = f"{theirs['comb'][1]:.2f}"
        yield Judged(f"{title}: median of comb → 0", "< 0.005", f"{middle:.5f}", middle < 0.005, told, name != "oasis")


def _times(a: float, b: float) -> str:
    ratio = a / b if b > 0 else math.inf
    return f"{ratio:.{0 if ratio >= 10 else 1}f}×" if math.isfinite(ratio) else "∞"


def _levels(results: Results) -> Iterator[Judged]:
    for name, one in SETS.items():
        single, levels = (_mse(results, name, _own(name, kind)) for kind in ("single", "levels"))
        if single is None or levels is None:
            continue
        a, b = fmean(levels), fmean(single)
        theirs = "–"
        if one.paper:
            theirs = f"{paper.LEVELS[one.paper]['comb'][0]:.2f} < {paper.MSE[one.paper]['comb'][0]:.2f}"
        claim = f"{one.title}: levels better than single, mean of comb"
        yield Judged(claim, "lower", f"{a:.5f}, {b:.5f}", a < b, theirs, one.paper is not None)


def _against_elastix(results: Results) -> Iterator[Judged]:
    for name, one in SETS.items():
        comb, elastix = _mse(results, name, _own(name)), _mse(results, name, "elastix")
        if comb is None or elastix is None:
            continue
        ours, theirs = outliers(comb[: len(elastix)]), outliers(elastix)
        found = f"{ours}, {theirs} of {len(elastix)}"
        claim = f"{one.title}: comb has fewer outliers than elastix"
        told = {"hands": "fewer", "brain": "fewer", "oasis": "more"}.get(name, "–")
        yield Judged(claim, "fewer", found, ours < theirs, told, name in ("hands", "brain"))


def _full_affine(results: Results) -> Iterator[Judged]:
    for name, one in SETS.items():
        cases = f"{name}_full"
        comb, plain = _mse(results, cases, _own(name, "affine")), _mse(results, cases, "plain")
        if comb is None or plain is None:
            continue
        a, b = outliers(comb), outliers(plain)
        told = f"means {paper.FULL_AFFINE[one.paper]['comb'][0]:g}, {paper.FULL_AFFINE[one.paper]['plain'][0]:g}"
        claim = f"{one.title}, full affine: comb has fewer outliers than plain"
        yield Judged(claim, "fewer", f"{a}, {b} of {len(comb)}", a < b, told)


def _transfer(results: Results) -> Iterator[Judged]:
    names = [name for name, one in SETS.items() if one.paper]
    found = {pair: _mse(results, pair[1], _own(pair[0])) for pair in product(names, names)}
    same = [fmean(mse) for (train, test), mse in found.items() if mse is not None and train == test]
    other = [fmean(mse) for (train, test), mse in found.items() if mse is not None and train != test]
    if not same or not other:
        return
    told = fmean(p["comb"][0] for p in paper.MSE.values()), fmean(p[0] for p in paper.TRANSFER.values())
    numbers = f"{fmean(same):.4f}, {fmean(other):.4f}"
    claim = "training on the same set better than transfer, mean of the means of comb"
    yield Judged(claim, "lower", numbers, fmean(same) < fmean(other), f"{told[0]:.2f} < {told[1]:.2f}")


def _ours(results: Results) -> Iterator[Judged]:
    for name, one in SETS.items():
        mse = _mse(results, name, "ours")
        if mse is not None:
            found = f"{outliers(mse)} of {len(mse)}, worst {max(mse):.4f}"
            yield Judged(f"{one.title}: ours leaves no outlier", "0", found, outliers(mse) == 0)


def _speed(results: Results) -> Iterator[Judged]:
    for than, title in (("multistart", "multistart"), ("ants_initialiser", "ANTs' initialiser")):
        both = [found for name, found in results.items() if name in SETS and {"ours", than} <= found.keys()]
        if both:
            a, b = (fmean(found[method]["cpu_seconds"] for found in both) for method in (than, "ours"))
            numbers = f"{_times(a, b)} ({1000 * a:.1f}, {1000 * b:.1f} ms)"
            yield Judged(f"ours faster than {title}, CPU time a case", "10×", numbers, a >= 10 * b)
