"""The loop in which every sample has its own time and step: embedded solvers on ODEs, and SDEs on a path."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from sdekit.sde.base import SDE
from sdekit.sde.rows import over_event
from sdekit.solution import Status
from sdekit.solvers import paths
from sdekit.solvers.base import Attempt, Carry, EmbeddedSolver, Interval
from sdekit.solvers.control import first_noisy_step, first_step
from sdekit.solvers.events import Seen, Watch
from sdekit.solvers.output import Inside, Output
from sdekit.solvers.problem import Outcome, Problem

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]
    Bools = NDArray[np.bool_]
    Ints = NDArray[np.int64]

__all__ = ["integrate"]


class _Clocks:
    """Time, step, history and status of every sample: float64 arrays (B,) on the host.

    goals: where each may step at most, t1 by default. resolution: of the path, on an SDE: steps end at times
    of few bits, and none is shorter. visits: times not to be stepped over.
    """

    def __init__(self, p: Problem, solver: EmbeddedSolver, h: Floats, resolution: float = 0.0) -> None:
        self.p, self.control, self.order = p, solver.controller, solver.error_order
        self.t, self.h, self.before = np.full_like(h, p.t0), h, np.ones_like(h)
        self.rejected = np.zeros(h.shape, dtype=bool)
        self.live = np.ones(h.shape, dtype=bool)
        self.status = np.full(h.shape, Status.OK.value)
        self.tried, self.accepted = np.zeros(h.shape, dtype=np.int64), np.zeros(h.shape, dtype=np.int64)
        self.eps, self.least = 4 * torch.finfo(p.x0.dtype).eps, 1e-14 * abs(p.t1 - p.t0)
        self.resolution, self.goals = resolution, np.full_like(h, p.t1)
        self.visits: paths.Visits | None = None

    def propose(self) -> tuple[Floats, Floats]:
        """The step to try and where it ends; finished samples stay where they are, with step 0."""
        sign, goals = np.sign(self.p.t1 - self.p.t0), self.goals
        if self.visits is not None:
            goals = sign * np.minimum(sign * goals, sign * self.visits.next())
        left = goals - self.t
        last = np.maximum(1.01 * np.abs(self.h), np.abs(self.h) + self.resolution) >= np.abs(left)
        h = self.h
        if self.resolution:
            h = np.copysign(np.maximum(np.abs(h), self.resolution), left)
            h = paths.coarse(self.t, h) - self.t
        step = np.where(self.live, np.where(last, left, h), 0.0)
        return step, np.where(last, goals, self.t + step)

    def stop(self, there: Bools, at: Floats) -> None:
        """Samples that end well before t1, at times ``at``."""
        self.t, self.live = np.where(there, at, self.t), self.live & ~there
        self.status[there] = Status.OK

    def judge(self, step: Floats, end: Floats, error: Floats) -> Bools:
        """Which steps are good; move those samples, and choose every sample's next step."""
        live = self.live
        good = live & (error <= 1)
        factor = self.control.factor(error, self.before, self.rejected, self.order)
        self.t = np.where(good, end, self.t)
        self.h = np.where(live, step * factor, self.h)
        self.before = np.where(good, error, self.before)
        self.rejected = live & ~good
        if self.visits is not None:
            self.visits.update(end, good, self.rejected)
        self.tried += live
        self.accepted += good
        arrived = good & (end == self.p.t1)
        least = np.maximum(self.eps * np.abs(self.t), max(self.least, self.resolution))
        tiny = self.rejected & (np.abs(self.h) < least)
        late = live & ~arrived & ~tiny & (self.tried >= self.p.max_steps)
        self.status[tiny] = np.where(np.isinf(error[tiny]), Status.NON_FINITE, Status.STEP_UNDERFLOW)
        self.status[late] = Status.MAX_STEPS
        self.live = live & ~(arrived | tiny | late)
        return good

    def cause(self) -> str:
        """Why the first failed sample failed, and what to do."""
        status = self.status[np.argmax(self.status != Status.OK)]
        if status == Status.MAX_STEPS:
            stiff = "" if self.resolution else ", or the implicit 'kvaerno5'"
            return (
                f"max_steps={self.p.max_steps} steps were not enough: a stiff problem, or tolerances too "
                f"tight. Next: larger rtol and atol or max_steps{stiff}"
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


def integrate(p: Problem) -> Outcome:
    """Run every sample with its own steps to the end; saved times by dense output, or on the path.

    All samples go through the drift together, one call a stage; finished ones stand still with step 0, or
    leave if the solver says ``compact``. One synchronisation a step: the errors (B,) come to the host.
    """
    assert isinstance(p.solver, EmbeddedSolver)
    solver, x, rows = p.solver.bound(p.rtol, p.atol), p.x0, np.arange(len(p.x0))
    carry = solver.init(p.system, x, _times(np.full((1, len(x)), p.t0), x)[0])
    out, output = x, Output(p)
    system, noisy = p.system.system, isinstance(p.system.system, SDE)
    clocks = _Clocks(p, solver, _first_steps(p, solver, carry), paths.resolution(p) if noisy else 0.0)
    if isinstance(system, SDE) and system.noise_type == "general":
        clocks.visits = paths.Visits(len(x), p.t1)
    watch = None if p.event is None else Watch(p, p.event)
    seen = None if watch is None else watch.start(x, torch.from_numpy(clocks.t).to(x.device))
    event_at = None if watch is None else np.full(len(x), np.nan)
    while clocks.live.any():
        if noisy and watch is not None:  # what is saved must be what the event has seen: nodes
            clocks.goals = output.upcoming(p.t1)
        if solver.compact and not (stay := clocks.live[rows]).all():
            out = out.index_copy(0, torch.from_numpy(rows).to(x.device), x)
            x, carry, rows = x[stay], tuple(c[stay] for c in carry), rows[stay]
            seen = None if seen is None else Seen(*(s[stay] for s in seen))
        t, step, end = clocks.t, *clocks.propose()
        attempt, interval = _attempt(p, solver, x, carry, rows, t[rows], step[rows], end[rows])
        error = np.full(t.shape, np.inf)
        with torch.no_grad():
            error[rows] = solver.norm(x, interval.h, attempt, p.rtol, p.atol).cpu().numpy()
        good = clocks.judge(step, end, error)
        inside = Inside(p, solver, x, carry, rows, t[rows], end[rows], interval, attempt)
        reached, limit = attempt.x, None
        if watch is not None and seen is not None and event_at is not None:
            reached, seen, there = _watched(watch, seen, clocks, good, rows, x, attempt.x, t, step, inside)
            event_at[rows[there[rows]]] = seen.at.cpu().numpy()[there[rows]]
            limit = np.where(there, event_at, end) if watch.event.terminal else None
            output.fill(rows, t, step, end, good, inside, limit)
            if watch.event.terminal and there.any():
                output.hold(there, reached, rows)
                clocks.stop(there, event_at)
        else:
            output.fill(rows, t, step, end, good, inside)
        if good[rows].all():
            x, carry = reached, attempt.carry
        elif good.any():
            mask = over_event(torch.from_numpy(good[rows]).to(x.device), x).bool()
            x = torch.where(mask, reached, x)
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
        event_at,
    )


def _times(table: Floats, x: Tensor) -> tuple[Tensor, ...]:
    """(n, B) float64 on the host -> n tensors (B,) of x's dtype and device, one transfer."""
    return torch.from_numpy(table).to(x.dtype).to(x.device).unbind()


def _first_steps(p: Problem, solver: EmbeddedSolver, carry: Carry) -> Floats:
    x = p.x0.detach()
    if (own := solver.first(x, p.t1 - p.t0)) is not None:
        return own.cpu().numpy()
    with torch.no_grad():
        start = _times(np.full((1, len(x)), p.t0), x)[0]
        if isinstance(p.system.system, SDE):
            return first_noisy_step(p.system, x, start, p.t1 - p.t0, solver.error_order, p.rtol, p.atol)
        slope = carry[0].detach() if carry else p.system.drift(x, start)
        return first_step(p.system, x, slope, start, p.t1 - p.t0, solver.error_order, p.rtol, p.atol)


def _attempt(
    p: Problem,
    solver: EmbeddedSolver,
    x: Tensor,
    carry: Carry,
    rows: Ints,
    t: Floats,
    step: Floats,
    end: Floats,
) -> tuple[Attempt, Interval]:
    """One step of every row at work, from t to end."""
    if isinstance(p.system.system, SDE):
        interval = paths.interval(p, solver, x, rows, t, step, end)
    else:
        table = np.stack([*(end if c == 1.0 else t + c * step for c in solver.nodes), step])
        *times, h = _times(table, x)
        interval = Interval(tuple(times), over_event(h, x))
    if p.gradient == "checkpoint":
        return checkpoint(solver.attempt, p.system, x, interval, carry, use_reentrant=False), interval
    return solver.attempt(p.system, x, interval, carry), interval


def _watched(
    watch: Watch,
    seen: Seen,
    clocks: _Clocks,
    good: Bools,
    rows: Ints,
    x0: Tensor,
    x1: Tensor,
    t: Floats,
    step: Floats,
    inside: Inside,
) -> tuple[Tensor, Seen, Bools]:
    """The good steps with their events, and in which rows of the run there are some."""
    at, h = (torch.from_numpy(v[rows]).to(x0.device) for v in (t, step))
    moved, where = torch.from_numpy(good[rows]).to(x0.device), torch.from_numpy(rows).to(x0.device)
    draw = int(clocks.tried.max()) - 1  # of every sample at work, since each tries in every round
    dense = None if watch.sde is not None else inside.dense
    reached, seen, hit = watch.after(draw, seen, x0, x1, at, h, dense, moved, where)
    there = np.zeros(good.shape, dtype=bool)
    there[rows] = hit.cpu().numpy()
    return reached, seen, there
