"""What per-sample steps of an SDE read from a path: increments of each sample over its own interval.

Every interval is asked of one `sdekit.noise.BrownianTree`: after a rejected step the shorter one is part of
the same path, so that rejection does not change its law.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from sdekit.noise.brownian import BrownianTree
from sdekit.sde.base import SDE
from sdekit.sde.rows import over_event
from sdekit.solvers.base import Interval
from sdekit.solvers.problem import Problem

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Bools = NDArray[np.bool_]
    Floats = NDArray[np.float64]
    Ints = NDArray[np.int64]

__all__ = ["Visits", "coarse", "increments", "interval", "resolution"]

GRAIN = 2.0**-5


def coarse(t: Floats, h: Floats) -> Floats:
    """t + h, moved towards t to a number of few bits: by less than |h|/32.

    A path finds such a time in few levels of its tree; steps from one to the next have exact lengths.
    """
    with np.errstate(divide="ignore"):
        quantum = np.exp2(np.floor(np.log2(np.maximum(np.abs(h), 1e-300)))) * GRAIN
    sign = np.sign(h)
    end: Floats = sign * np.floor(sign * (t + h) / quantum) * quantum
    return end


def resolution(p: Problem) -> float:
    """The shortest step that the path resolves, about a hundred of its ticks."""
    assert isinstance(p.noise, BrownianTree)
    size = max(abs(p.t0), abs(p.t1), 1.0)
    return 2.0 ** (8 + math.floor(math.log2(size)) - p.noise.bits)


def increments(p: Problem, x: Tensor, rows: Ints, t: Floats, end: Floats) -> tuple[Tensor, ...]:
    """W, and H and K where the solver wants them, from t to end (n,) of samples ``rows`` (n,).

    Zero where t = end.
    """
    system = p.system.system
    assert isinstance(p.noise, BrownianTree)
    assert isinstance(system, SDE)
    like, moves = x.new_zeros(system.noise_shape(x)), np.flatnonzero(t != end)
    at = torch.from_numpy(moves).to(x.device)
    ids = p.ids[torch.from_numpy(rows[moves]).to(x.device)]
    found = p.noise.increments(t[moves], end[moves], like[at], ids)[1 : 1 + p.solver.normals]
    return tuple(found) if len(moves) == len(t) else tuple(like.index_copy(0, at, v) for v in found)


def interval(
    p: Problem, solver: Any, x: Tensor, rows: Ints, t: Floats, step: Floats, end: Floats
) -> Interval:
    """The step of every row at work, from t to end, with its part of the path.

    Rows that stand still get times t and a length that is not zero, to be divided by.
    """
    idle = 1e-3 * (p.t1 - p.t0)
    table = np.stack(
        [*(end if c == 1.0 else t + c * step for c in solver.nodes), np.where(step == 0, idle, step)]
    )
    *times, h = torch.from_numpy(table).to(x.dtype).to(x.device).unbind()
    return Interval(tuple(times), over_event(h, x), *increments(p, x, rows, t, end))


class Visits:
    """The ends of rejected steps, of every sample: times that no later step may step over.

    Steps that are chosen by what the path does beyond them may tend to another limit where noise does not
    commute; they do not if every time that has been looked at is visited (Gaines and Lyons 1997; Foster and
    Jelincic 2023).
    """

    def __init__(self, rows: int, t1: float) -> None:
        self.times, self.depth = np.full((2, rows), t1), np.zeros(rows, dtype=np.int64)

    def next(self) -> Floats:
        """The nearest of them, or t1, (B,)."""
        nearest: Floats = self.times[self.depth, np.arange(len(self.depth))]
        return nearest

    def update(self, end: Floats, good: Bools, bad: Bools) -> None:
        """Good steps have arrived at ``end``; bad ones have looked at it."""
        here = end == self.next()
        self.depth -= good & here & (self.depth > 0)
        new = bad & ~here
        self.depth += new
        if self.depth.max(initial=0) == len(self.times):
            self.times = np.concatenate([self.times, self.times])
        self.times[self.depth[new], np.flatnonzero(new)] = end[new]
