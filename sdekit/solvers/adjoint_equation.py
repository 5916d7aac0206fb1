"""The adjoint equation: state, adjoint and the integrand of the parameters' gradient, solved backwards.

The augmented state of a sample is y = (x, a, q), with one number q beside the 2 D of x and a:

    dx = F,    da = -a dF/dx,    dq = -a . F(x; theta),    F = f dt + G o dW.

Inside each stage x and a are detached from the graph, so that q depends on theta alone and dq/dtheta is
-a . dF/dtheta, the integrand wanted. A solver adds its stages up with its own weights, q among them; the
gradient of the sum is then the quadrature of that solver, and the parameters need no state.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sdekit.errors import SolveError
from sdekit.sde.base import SDE
from sdekit.sde.rows import flat, fold
from sdekit.solvers import adaptive, fixed
from sdekit.solvers.base import Attempt, Carry, EmbeddedSolver, Interval, Solver
from sdekit.solvers.leaves import Gradients
from sdekit.solvers.problem import Counted, Problem

__all__ = ["backwards", "pull"]

CHUNK = 16
"""Steps whose noise is drawn at a time."""


class _Augmented:
    """The system of y = (x, a, q), (B, 2 D + 1), in the part of `Counted` that solvers see."""

    def __init__(self, counted: Counted, like: Tensor, grads: Gradients) -> None:
        self.counted, self.like, self.grads = counted, like, grads
        self.system: Any = self
        system = counted.system
        self.field = system.stratonovich_drift if isinstance(system, SDE) else system.drift

    def pack(self, x: Tensor, a: Tensor) -> Tensor:
        return torch.cat([flat(x), flat(a), x.new_zeros(len(x), 1)], 1)

    def unpack(self, y: Tensor) -> tuple[Tensor, Tensor]:
        x, a = y.detach()[:, :-1].chunk(2, 1)
        return x.reshape(len(y), *self.like.shape[1:]), a.reshape(len(y), *self.like.shape[1:])

    def _rates(self, y: Tensor, field: Callable[[Tensor], Tensor]) -> Tensor:
        """(F, -a dF/dx, -a . F), the last one a function of theta."""
        x, a = self.unpack(y)
        with torch.enable_grad():  # drivers look at the first slope without
            x = x.clone().requires_grad_()
            value = field(x)
        self.grads.check([value], [x])
        slope = torch.zeros_like(x)
        if value.requires_grad:
            (found,) = torch.autograd.grad(value, x, a, retain_graph=True, allow_unused=True)
            slope = slope if found is None else found
        q = -fold(flat(a * value))[:, None]
        return torch.cat([flat(value.detach()), -flat(slope), q], 1)

    def drift(self, y: Tensor, t: Tensor) -> Tensor:
        return self._rates(y, lambda x: self.field(x, t))

    def diffusion(self, y: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Where it is taken: a matrix of all elements of y is never needed, only its products."""
        return y, t

    def apply_noise(self, g: tuple[Tensor, Tensor], dw: Tensor) -> Tensor:
        (y, t), counted = g, self.counted
        return self._rates(y, lambda x: counted.apply_noise(counted.diffusion(x, t), dw))

    def collect(self, y: Tensor, weight: Tensor | float = 1.0) -> None:
        """Add dq/dtheta of all samples to the gradients."""
        if y.requires_grad and self.grads.parameters:
            total = (y[:, -1] * weight).sum()
            self.grads.add(
                torch.autograd.grad(total, self.grads.parameters, retain_graph=True, allow_unused=True)
            )


def pull(
    p: Problem,
    method: Solver,
    states: tuple[Tensor, Tensor | None],
    slopes: tuple[Tensor, Tensor | None],
    grads: Gradients,
) -> Tensor:
    """dL/dx0, (B, *event), from the final and saved states of the run and dL/d of them; fills ``grads``."""
    system = _Augmented(p.system, p.x0, grads)
    run = _adaptive if p.grid is None else _fixed
    with torch.enable_grad():  # for q, the only part of y with a graph
        return run(p, method, system, states, slopes).detach()


def _jump(
    x: Tensor, a: Tensor, rows: list[int], xs: Tensor | None, axs: Tensor | None
) -> tuple[Tensor, Tensor]:
    """At a saved time: x as it was saved, a with the gradients that enter there."""
    for i in rows:
        x = x if xs is None else xs[i]
        a = a if axs is None else a + axs[i]
    return x, a


def _fixed(p: Problem, method: Solver, system: _Augmented, states: Any, slopes: Any) -> Tensor:
    assert p.grid is not None
    walk, at_node = fixed._Walk(p), fixed._at_node(p.grid, p.save)
    table = fixed._Walk(replace(p, grid=p.grid[::-1].copy(), solver=method)).table
    (x, xs), (a, axs), steps = states, slopes, len(walk)
    y, carry = system.pack(x, a), None
    for k, noise in backwards(walk):
        if k + 1 in at_node:
            y, carry = system.pack(*_jump(*system.unpack(y), at_node[k + 1], xs, axs)), None
        times = tuple(row[steps - 1 - k] for row in table)
        if carry is None:
            carry = method.init(system, y, times[0])
        areas = [sign * v for sign, v in zip((-1, 1, -1), noise[2:], strict=True) if v is not None]
        y, carry = method.step(system, y, Interval(times, -noise.h, *areas[: method.normals]), carry)
        system.collect(y)
        y = y.detach()
    return _jump(*system.unpack(y), at_node.get(0, []), xs, axs)[1]


def backwards(walk: fixed._Walk) -> Iterator[tuple[int, Interval]]:
    """The steps of a run and their noise, last to first."""
    for last in range(len(walk), 0, -CHUNK):
        yield from reversed(list(walk.intervals(max(last - CHUNK, 0), last)))


class _Collecting(EmbeddedSolver):
    """A solver on y that collects dq/dtheta of the steps that were accepted, before it tries the next one.

    The driver keeps q of accepted samples, graph and all. What has been collected is cut off in place, since
    the driver holds the same tensor and goes on from it where the next step is rejected.
    """

    compact = False

    def __init__(self, solver: EmbeddedSolver, weight: Tensor) -> None:
        self.solver, self.weight = solver, weight
        for name in ("name", "kind", "nodes", "normals", "error_order", "controller"):
            setattr(self, name, getattr(solver, name))

    def init(self, system: Any, x: Tensor, t: Tensor) -> Carry:
        return self.solver.init(system, x, t)

    def norm(self, x: Tensor, h: Any, attempt: Attempt, rtol: float, atol: float) -> Tensor:
        return self.solver.norm(x, h, attempt, rtol, atol)

    def attempt(self, system: Any, x: Tensor, interval: Interval, carry: Carry) -> Attempt:
        system.collect(x, self.weight)
        return self.solver.attempt(system, x.detach_(), interval, carry)


def _adaptive(p: Problem, method: Solver, system: _Augmented, states: Any, slopes: Any) -> Tensor:
    """From saved time to saved time; a is solved in units of its largest element, so that tolerances hold
    for gradients of any size."""
    assert isinstance(method, EmbeddedSolver)
    (x, xs), (a, axs) = states, slopes
    saved = {float(t): [i] for i, t in enumerate(p.save)}
    times = sorted({p.t0, p.t1, *saved}, reverse=p.t1 > p.t0)
    for start, end in pairwise(times):
        x, a = _jump(x, a, saved.get(start, []), xs, axs)
        size = flat(a).abs().amax(1)
        size = torch.where(size > 0, size, torch.ones_like(size))
        unit = size.reshape(-1, *(1,) * (a.ndim - 1))
        section = replace(
            p,
            system=system,  # type: ignore[arg-type]
            solver=_Collecting(method, size),
            x0=system.pack(x, a / unit),
            t0=start,
            t1=end,
            save=np.empty(0),
            report=None,
        )
        outcome = adaptive.integrate(section)
        if outcome.status.any():
            raise SolveError(
                f"the adjoint equation of {np.count_nonzero(outcome.status)} of {len(x)} samples could not "
                f"be solved from t = {start:g} back to {end:g} under {method.name!r}. Likely cause: "
                f"{outcome.cause}; the run cannot be traced back, or it had failed already. Next: more saved "
                f"times, from which it restarts, or gradient='checkpoint'."
            )
        system.collect(outcome.x, size)
        x, a = system.unpack(outcome.x)
        a = a * unit
    return _jump(x, a, saved.get(times[-1], []), xs, axs)[1]
