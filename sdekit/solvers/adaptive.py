"""The loop in which every sample has its own time and step: embedded solvers on ODEs."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from sdekit.sde.rows import over_event
from sdekit.solution import Status
from sdekit.solvers.base import Attempt, Carry, EmbeddedSolver, Interval
from sdekit.solvers.control import error_norm, first_step
from sdekit.solvers.problem import Outcome, Problem

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]
    Bools = NDArray[np.bool_]
    Ints = NDArray[np.int64]

__all__ = ["integrate"]


class _Clocks:
    """Time, step, history and status of every sample: float64 arrays (B,) on the host."""

    def __init__(self, p: Problem, solver: EmbeddedSolver, h: Floats) -> None:
        self.p, self.control, self.order = p, solver.controller, solver.error_order
        self.t, self.h, self.before = np.full_like(h, p.t0), h, np.ones_like(h)
        self.rejected = np.zeros(h.shape, dtype=bool)
        self.live = np.ones(h.shape, dtype=bool)
        self.status = np.full(h.shape, Status.OK.value)
        self.tried, self.accepted = np.zeros(h.shape, dtype=np.int64), np.zeros(h.shape, dtype=np.int64)
        self.eps, self.least = 4 * torch.finfo(p.x0.dtype).eps, 1e-14 * abs(p.t1 - p.t0)

    def propose(self) -> tuple[Floats, Floats]:
        """The step to try and where it ends; finished samples stay where they are, with step 0."""
        left = self.p.t1 - self.t
        last = 1.01 * np.abs(self.h) >= np.abs(left)
        step = np.where(self.live, np.where(last, left, self.h), 0.0)
        return step, np.where(last, self.p.t1, self.t + step)

    def judge(self, step: Floats, end: Floats, error: Floats) -> Bools:
        """Which steps are good; move those samples, and choose every sample's next step."""
        live = self.live
        good = live & (error <= 1)
        factor = self.control.factor(error, self.before, self.rejected, self.order)
        self.t = np.where(good, end, self.t)
        self.h = np.where(live, step * factor, self.h)
        self.before = np.where(good, error, self.before)
        self.rejected = live & ~good
        self.tried += live
        self.accepted += good
        arrived = good & (end == self.p.t1)
        tiny = self.rejected & (np.abs(self.h) < np.maximum(self.eps * np.abs(self.t), self.least))
        late = live & ~arrived & ~tiny & (self.tried >= self.p.max_steps)
        self.status[tiny] = np.where(np.isinf(error[tiny]), Status.NON_FINITE, Status.STEP_UNDERFLOW)
        self.status[late] = Status.MAX_STEPS
        self.live = live & ~(arrived | tiny | late)
        return good

    def cause(self) -> str:
        """Why the first failed sample failed, and what to do."""
        status = self.status[np.argmax(self.status != Status.OK)]
        if status == Status.MAX_STEPS:
            return (
                f"max_steps={self.p.max_steps} steps were not enough: a stiff problem, or tolerances too "
                f"tight. Next: larger rtol and atol or max_steps, or the implicit 'scipy:Radau'"
            )
        if status == Status.NON_FINITE:
            return (
                "the drift is not finite there, or the solution blows up: a singular score or coefficient, "
                "or a network that fails. Next: look at drift(x, t) there, or end the span before it"
            )
        return (
            "the step fell to the rounding of t: a discontinuity or singularity of the drift, or tolerances "
            "below the rounding of the state's dtype. Next: end the span before it, larger rtol and atol, "
            "or float64"
        )


class _Output:
    """The saved times of every sample, filled from the interpolant of each good step."""

    def __init__(self, p: Problem) -> None:
        self.times, self.sign = p.save, np.sign(p.t1 - p.t0)
        self.xs = p.x0.new_full((p.save.size, *p.x0.shape), torch.nan) if p.save.size else None
        self.next = np.zeros(len(p.x0), dtype=np.int64)
        if self.xs is not None and p.save[0] == p.t0:
            self.xs[0] = p.x0
            self.next += 1

    def fill(
        self, rows: Ints, t: Floats, step: Floats, end: Floats, good: Bools, value: Callable[[Tensor], Tensor]
    ) -> None:
        """Saved times within (t, end] of the good steps, ``value``: theta (rows,) -> states."""
        if self.xs is None:
            return
        while True:
            slot = np.minimum(self.next, self.times.size - 1)
            at = self.times[slot]
            due = good & (self.next < self.times.size) & (self.sign * at <= self.sign * end)
            if not due.any():
                return
            theta = np.divide(at - t, step, out=np.ones_like(t), where=due & (at != end))
            device = self.xs.device
            mask, to = due[rows], rows[due[rows]]
            where = (torch.from_numpy(slot[to]).to(device), torch.from_numpy(to).to(device))
            self.xs[where] = value(torch.from_numpy(theta[rows]).to(self.xs))[
                torch.from_numpy(mask).to(device)
            ]
            self.next[due] += 1


def integrate(p: Problem) -> Outcome:
    """Run every sample with its own steps to the end; saved times by dense output.

    All samples go through the drift together, one call a stage; finished ones stand still with step 0, or
    leave if the solver says ``compact``. One synchronisation a step: the errors (B,) come to the host.
    """
    solver, x, rows = p.solver, p.x0, np.arange(len(p.x0))
    assert isinstance(solver, EmbeddedSolver)
    carry = solver.init(p.system, x, _times(np.full((1, len(x)), p.t0), x)[0])
    out, output = x, _Output(p)
    clocks = _Clocks(p, solver, _first_steps(p, solver, carry))
    while clocks.live.any():
        if solver.compact and not (stay := clocks.live[rows]).all():
            out = out.index_copy(0, torch.from_numpy(rows).to(x.device), x)
            x, carry, rows = x[stay], tuple(c[stay] for c in carry), rows[stay]
        t, step, end = clocks.t, *clocks.propose()
        attempt, interval = _attempt(p, solver, x, carry, t[rows], step[rows], end[rows])
        error = np.full(t.shape, np.inf)
        with torch.no_grad():
            error[rows] = error_norm(attempt.error, x, attempt.x, p.rtol, p.atol).cpu().numpy()
        good = clocks.judge(step, end, error)
        output.fill(rows, t, step, end, good, partial(_dense, solver, x, interval.h, attempt))
        if good[rows].all():
            x, carry = attempt.x, attempt.carry
        elif good.any():
            mask = over_event(torch.from_numpy(good[rows]).to(x.device), x).bool()
            x = torch.where(mask, attempt.x, x)
            carry = tuple(torch.where(mask, new, old) for new, old in zip(attempt.carry, carry, strict=True))
        if p.report is not None:
            p.report(int(clocks.tried.max()), torch.from_numpy(clocks.t[rows]), x)
    out = x if len(rows) == len(out) else out.index_copy(0, torch.from_numpy(rows).to(x.device), x)
    ok = clocks.status == Status.OK
    slowest = int(np.argmax(clocks.tried)) if ok.size else None
    tried, accepted = (
        (0, 0) if slowest is None else (int(clocks.tried[slowest]), int(clocks.accepted[slowest]))
    )
    return Outcome(
        out,
        output.xs,
        clocks.status,
        np.where(ok, np.nan, clocks.t),
        np.where(ok, -1, clocks.tried - 1),
        accepted,
        tried - accepted,
        "" if ok.all() else clocks.cause(),
    )


def _times(table: Floats, x: Tensor) -> tuple[Tensor, ...]:
    """(n, B) float64 on the host -> n tensors (B,) of x's dtype and device, one transfer."""
    return torch.from_numpy(table).to(x.dtype).to(x.device).unbind()


def _first_steps(p: Problem, solver: EmbeddedSolver, carry: Carry) -> Floats:
    x = p.x0.detach()
    with torch.no_grad():
        start = _times(np.full((1, len(x)), p.t0), x)[0]
        slope = carry[0].detach() if carry else p.system.drift(x, start)
        return first_step(p.system, x, slope, start, p.t1 - p.t0, solver.error_order, p.rtol, p.atol)


def _attempt(
    p: Problem, solver: EmbeddedSolver, x: Tensor, carry: Carry, t: Floats, step: Floats, end: Floats
) -> tuple[Attempt, Interval]:
    """One step of every row at work, from t to end."""
    table = np.stack([*(end if c == 1.0 else t + c * step for c in solver.nodes), step])
    *times, h = _times(table, x)
    interval = Interval(tuple(times), over_event(h, x))
    if p.gradient == "checkpoint":
        return checkpoint(solver.attempt, p.system, x, interval, carry, use_reentrant=False), interval
    return solver.attempt(p.system, x, interval, carry), interval


def _dense(solver: EmbeddedSolver, x: Tensor, h: Tensor, attempt: Attempt, theta: Tensor) -> Tensor:
    """The state at t + theta h; at theta = 1 the state that the step reached, bit for bit."""
    inside = solver.interpolate(x, h, attempt, over_event(theta, x))
    return torch.where(over_event(theta == 1, x).bool(), attempt.x, inside)
