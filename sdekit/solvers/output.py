"""Saved times of runs in which every sample has its own steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from sdekit.sde.base import SDE
from sdekit.sde.rows import over_event
from sdekit.solvers import paths
from sdekit.solvers.base import Attempt, Carry, EmbeddedSolver, Interval
from sdekit.solvers.problem import Problem

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]
    Bools = NDArray[np.bool_]
    Ints = NDArray[np.int64]

__all__ = ["Inside", "Output"]


class Output:
    """The saved times of every sample, filled from the interpolant of each good step."""

    def __init__(self, p: Problem) -> None:
        self.times, self.sign = p.save, np.sign(p.t1 - p.t0)
        self.xs = p.x0.new_full((p.save.size, *p.x0.shape), torch.nan) if p.save.size else None
        self.next = np.zeros(len(p.x0), dtype=np.int64)
        if self.xs is not None and p.save[0] == p.t0:
            self.xs[0] = p.x0
            self.next += 1

    def upcoming(self, t1: float) -> Floats:
        """The next saved time of every sample, or t1."""
        return np.append(self.times, t1)[self.next]

    def hold(self, there: Bools, x: Tensor, rows: Ints) -> None:
        """The state of the samples ``there`` at all later saved times."""
        if self.xs is None:
            return
        for k in np.flatnonzero(there[rows]):
            self.xs[self.next[rows[k]] :, rows[k]] = x[k]

    def fill(
        self,
        rows: Ints,
        t: Floats,
        step: Floats,
        end: Floats,
        good: Bools,
        value: Callable[[Floats, Floats], Tensor],
        limit: Floats | None = None,
    ) -> None:
        """Saved times within (t, limit] of the good steps, limit = end by default. ``value``: theta (rows,)
        and t + theta h, NaN where none is due -> states."""
        if self.xs is None:
            return
        while True:
            slot = np.minimum(self.next, self.times.size - 1)
            at = self.times[slot]
            latest = self.sign * (end if limit is None else limit)
            due = good & (self.next < self.times.size) & (self.sign * at <= latest)
            if not due.any():
                return
            theta = np.divide(at - t, step, out=np.ones_like(t), where=due & (at != end))
            device = self.xs.device
            mask, to = due[rows], rows[due[rows]]
            where = (torch.from_numpy(slot[to]).to(device), torch.from_numpy(to).to(device))
            states = value(theta[rows], np.where(due, at, np.nan)[rows])
            self.xs[where] = states[torch.from_numpy(mask).to(device)]
            self.next[due] += 1


class Inside:
    """The state of rows within a step; at its end the state that it reached, bit for bit.

    By the interpolant of the method on an ODE. On an SDE by a step of the same method, from the start of the
    step to the time asked for, with what the path does over it: the run itself does not notice.
    """

    def __init__(
        self,
        p: Problem,
        solver: EmbeddedSolver,
        x: Tensor,
        carry: Carry,
        rows: Ints,
        t: Floats,
        end: Floats,
        interval: Interval,
        attempt: Attempt,
    ) -> None:
        self.p, self.solver, self.x, self.carry, self.rows = p, solver, x, carry, rows
        self.t, self.end, self.interval, self.attempt = t, end, interval, attempt
        self.whole = False

    def __call__(self, theta: Floats, at: Floats) -> Tensor:
        """theta (n,); at = t + theta h, NaN for rows that are not asked for."""
        if isinstance(self.p.system.system, SDE):
            return self.path(at)
        return self.dense(torch.from_numpy(theta).to(self.x.device, self.x.dtype))

    def dense(self, theta: Tensor) -> Tensor:
        theta = theta.to(self.x.dtype)
        end = theta == 1
        if bool(end.all()):
            return self.attempt.x
        if not self.whole:
            self.attempt = self.solver.complete(self.p.system, self.x, self.interval, self.attempt)
            self.whole = True
        inside = self.solver.interpolate(self.x, self.interval.h, self.attempt, over_event(theta, self.x))
        return torch.where(over_event(end, self.x).bool(), self.attempt.x, inside)

    def path(self, at: Floats) -> Tensor:
        asked = ~np.isnan(at) & (at != self.end)
        if not asked.any():
            return self.attempt.x
        apart = asked & (np.abs(at - self.t) >= paths.resolution(self.p))
        stop = np.where(apart, at, self.t)
        step = paths.interval(self.p, self.solver, self.x, self.rows, self.t, stop - self.t, stop)
        reached, _ = self.solver.step(self.p.system, self.x, step, self.carry)
        a, b = (over_event(torch.from_numpy(m).to(self.x.device), self.x).bool() for m in (asked, apart))
        return torch.where(a, torch.where(b, reached, self.x), self.attempt.x)
