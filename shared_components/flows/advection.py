r"""Advection of maps by stationary velocities, as a fourth-order Runge-Kutta scheme with an exact, frugal gradient.

With phi = id + u the equation phi_t = -D phi v (AVSM eq. 7) reads u_t = L u - v, L u = -sum_k v_k du/dx_k. Derivatives
are central differences; beyond the border maps go on linearly, which makes the differences there one-sided and keeps
affine maps exact. As v does not change with time the equation is linear, and a Runge-Kutta step of size h is the
Taylor polynomial of exp(h L), evaluated from the inside out:

    w = u;  for j = 4, 3, 2, 1:  w <- u + (h / j) (L w - v).

The same four right-hand sides, two buffers, and a transpose that is just as simple.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..warp import compose, resize

_STAGES = (1 / 4, 1 / 3, 1 / 2, 1.0)


def cfl_limit(steps: int, ndim: int, safety: float = 0.75) -> float:
    """Return the largest |v_d|, in voxels, for which ``steps`` steps of unit time in all are stable on a D-D grid.

    Central differences have imaginary eigenvalues up to sum_d |v_d|, and the scheme is stable up to 2 sqrt(2) / h on
    that axis; ``safety`` = 0.75 and three axes give the 0.7071 / h of the paper's code.
    """
    return safety * 2 * math.sqrt(2) / ndim * steps


def clamp_velocity(dvf: Tensor, steps: int, safety: float = 0.75) -> Tensor:
    """Clamp each component of a velocity to ``cfl_limit``; no gradient reaches what was cut off."""
    limit = cfl_limit(steps, dvf.ndim - 2, safety)
    return dvf.clamp(-limit, limit)


def advect(ddf: Tensor, dvf: Tensor, steps: int = 10, cfl: float | None = 0.75, recompute: bool = True) -> Tensor:
    """Return the ddf of phi o exp(-v), phi = id + ``ddf``: the map after advection by v for unit time.

    Unlike a composition nothing is interpolated, so maps that leave the grid, such as affine ones, stay exact.

    Args:
        ddf: (B, D, *spatial) voxels, the map at time 0.
        dvf: (B, D, *spatial) voxels per unit of time, on the same grid.
        steps: of the scheme, 10 in the paper. The error in time falls with steps**-4.
        cfl: safety factor of ``clamp_velocity``, None for no clamp (large velocities may then blow up).
        recompute: hold only the two inputs for the gradient and integrate again on the way back, instead of all that
            the right-hand sides need. First derivatives only; without it autograd runs through the steps.

    Returns:
        (B, D, *spatial) voxels, differentiable in both.

    Raises:
        ValueError: for fewer than one step or shapes that differ.
    """
    if steps < 1 or ddf.shape != dvf.shape:
        raise ValueError(f"advection needs steps >= 1 and equal shapes, got {steps}, {ddf.shape} and {dvf.shape}")
    work = torch.promote_types(torch.promote_types(ddf.dtype, dvf.dtype), torch.float32)
    with torch.autocast(ddf.device.type, enabled=False):
        state, speed = ddf.to(work), dvf.to(work)
        speed = speed if cfl is None else clamp_velocity(speed, steps, cfl)
        moved = _Advection.apply(state, speed, steps) if recompute else _plain(state, speed, steps)
    return moved.to(ddf.dtype)


def inverse_map(
    dvf: Tensor, inverse_ddf: Tensor | None = None, steps: int = 10, cfl: float | None = 0.75, recompute: bool = True
) -> Tensor:
    """Return the ddf of exp(v) o psi, the inverse of phi o exp(-v), where psi = id + ``inverse_ddf`` inverts phi.

    Args:
        dvf: (B, D, *spatial) voxels per unit of time; as handed to ``advect``, and ``steps`` and ``cfl`` likewise.
        inverse_ddf: (B, D, *spatial of any size over the same extent) voxels of its own grid, None for the identity.
        steps: see ``advect``.
        cfl: see ``advect``.
        recompute: see ``advect``.

    Returns:
        the shape of ``inverse_ddf`` or, without one, of ``dvf``. Outside the grid exp(v) goes on with its border value.
    """
    outer = advect(torch.zeros_like(dvf), -dvf, steps, cfl, recompute)
    if inverse_ddf is None:
        return outer
    return compose(resize(outer, inverse_ddf.shape[2:]), inverse_ddf)


def _plain(ddf: Tensor, dvf: Tensor, steps: int) -> Tensor:
    """The scheme for autograd and tracers to walk through: what ``_Scheme`` does, bit for bit, in new tensors."""
    scheme = _Scheme(dvf, steps)

    def stage(base: Tensor, state: Tensor, factor: float) -> Tensor:
        out = torch.add(base, scheme.source, alpha=factor)
        for axis, speed in enumerate(scheme.speeds):
            out = torch.addcmul(out, _plain_difference(state, axis + 2), speed, value=factor)
        return out

    for _ in range(steps):
        state = ddf
        for factor in _STAGES:
            state = stage(ddf, state, factor)
        ddf = state
    return ddf


def _plain_difference(x: Tensor, axis: int) -> Tensor:
    last = x.shape[axis] - 1
    if last == 0:
        return torch.zeros_like(x)
    inner = x.narrow(axis, 2, last - 1) - x.narrow(axis, 0, last - 1)
    ends = [x.narrow(axis, i + 1, 1) - x.narrow(axis, i, 1) for i in (0, last - 1)]
    return torch.cat([ends[0], inner, ends[1]], axis)


def _difference(x: Tensor, axis: int, out: Tensor) -> Tensor:
    """Write x[i + 1] - x[i - 1]; at both ends, where the weight is doubled, the difference to the neighbour."""
    last = x.shape[axis] - 1
    if last == 0:
        return out.zero_()
    torch.sub(x.narrow(axis, 2, last - 1), x.narrow(axis, 0, last - 1), out=out.narrow(axis, 1, last - 1))
    for here, left in ((0, 0), (last, last - 1)):
        torch.sub(x.narrow(axis, left + 1, 1), x.narrow(axis, left, 1), out=out.narrow(axis, here, 1))
    return out


def _transposed_difference(x: Tensor, axis: int, out: Tensor) -> Tensor:
    """Write the transpose of ``_difference``: x[i - 1] - x[i + 1], at the ends -(x[0] + x[1]) and x[-2] + x[-1]."""
    last = x.shape[axis] - 1
    if last == 0:
        return out.zero_()
    torch.sub(x.narrow(axis, 0, last - 1), x.narrow(axis, 2, last - 1), out=out.narrow(axis, 1, last - 1))
    torch.add(x.narrow(axis, 0, 1), x.narrow(axis, 1, 1), out=out.narrow(axis, 0, 1)).neg_()
    torch.add(x.narrow(axis, last - 1, 1), x.narrow(axis, last, 1), out=out.narrow(axis, last, 1))
    return out


class _Scheme:
    """The steps of one velocity, forwards and transposed, in buffers that stay from step to step."""

    def __init__(self, dvf: Tensor, steps: int) -> None:
        self.steps = steps
        self.source = dvf * (-1 / steps)
        self.weights, self.speeds = [], []
        for axis, n in enumerate(dvf.shape[2:]):  # -h / 2 for the central difference, -h where it is one-sided
            weight = torch.full((n,), -0.5 / steps, dtype=dvf.dtype, device=dvf.device)
            weight[0] = weight[-1] = -1 / steps
            self.weights.append(weight.view(n, *(1,) * (dvf.ndim - 3 - axis)))
            self.speeds.append(dvf[:, axis : axis + 1] * self.weights[-1])
        self.scratch = torch.empty_like(dvf)
        self.buffers = [torch.empty_like(dvf) for _ in range(3)]

    def _stage(self, base: Tensor, state: Tensor, factor: float, out: Tensor) -> Tensor:
        """Write base + factor h (L state - v); ``out`` may be ``base``."""
        torch.add(base, self.source, alpha=factor, out=out)
        for axis, speed in enumerate(self.speeds):
            out.addcmul_(_difference(state, axis + 2, self.scratch), speed, value=factor)
        return out

    def stages(self, u: Tensor) -> list[Tensor]:
        """Return what the four right-hand sides of a step are taken of: ``u`` and three buffers."""
        states = [u]
        for factor, buffer in zip(_STAGES[:-1], self.buffers, strict=True):
            states.append(self._stage(u, states[-1], factor, buffer))
        return states

    def step(self, u: Tensor) -> Tensor:
        """Move ``u`` on by one step, in place."""
        return self._stage(u, self.stages(u)[-1], _STAGES[-1], u)


class _Transposed(_Scheme):
    """Gradients of a scheme, gathered step by step from the last to the first."""

    def __init__(self, dvf: Tensor, steps: int) -> None:
        super().__init__(dvf, steps)
        self.other = torch.empty_like(dvf)
        self.grad_source = torch.zeros_like(dvf)
        self.grad_speeds = [torch.zeros_like(speed) for speed in self.speeds]

    def step_back(self, u: Tensor, grad: Tensor) -> Tensor:
        """Return the gradient with respect to ``u`` before a step; ``grad`` is the one after it, and is overwritten."""
        total, spare = grad.clone(), torch.empty_like(grad)
        for factor, state in zip(reversed(_STAGES), reversed(self.stages(u)), strict=True):
            self.grad_source.add_(grad, alpha=factor)
            spare.zero_()
            for axis, speed in enumerate(self.speeds):
                product = _difference(state, axis + 2, self.scratch).mul_(grad)
                self.grad_speeds[axis].add_(product.sum(1, keepdim=True), alpha=factor)
                torch.mul(grad, speed, out=self.scratch)
                spare.add_(_transposed_difference(self.scratch, axis + 2, self.other), alpha=factor)
            grad, spare = spare, grad
            total.add_(grad)
        return total

    def grad_dvf(self) -> Tensor:
        """Return the gradient with respect to the velocity."""
        columns = [g * w for g, w in zip(self.grad_speeds, self.weights, strict=True)]
        return torch.cat(columns, 1).add_(self.grad_source, alpha=-1 / self.steps)


class _Advection(torch.autograd.Function):
    """``_plain`` without a graph: only its inputs wait for the gradient."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, ddf: Tensor, dvf: Tensor, steps: int) -> Tensor:
        ctx.save_for_backward(ddf, dvf)
        ctx.steps = steps
        scheme, u = _Scheme(dvf, steps), ddf.clone(memory_format=torch.contiguous_format)
        for _ in range(steps):
            scheme.step(u)
        return u

    @staticmethod
    @once_differentiable
    def backward(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        ddf, dvf = ctx.saved_tensors
        scheme = _Transposed(dvf, ctx.steps)
        states = [ddf]
        for _ in range(ctx.steps - 1):
            states.append(scheme.step(states[-1].clone()))
        grad = grad.clone(memory_format=torch.contiguous_format)
        while states:
            grad = scheme.step_back(states.pop(), grad)
        return grad, scheme.grad_dvf(), None
