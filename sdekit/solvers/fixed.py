"""The loop over a grid that is known beforehand: any solver, SDE or ODE, no host synchronisation."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from sdekit.errors import ShapeError
from sdekit.noise.brownian import BrownianTree
from sdekit.noise.source import TorchNoise
from sdekit.sde.base import SDE
from sdekit.solution import Status
from sdekit.solvers.base import Carry, Interval
from sdekit.solvers.problem import Outcome, Problem
from sdekit.solvers.rows import finite_rows

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

__all__ = ["integrate"]

CHUNK = 1024
QUERY = 2**15
"""Increments asked of a path at a time."""


class _Walk:
    """Step k of the grid as an `Interval`. Times are tabulated in float64 and sent to the device once."""

    def __init__(self, p: Problem) -> None:
        assert p.grid is not None
        self.p, self.grid = p, p.grid
        left, right = self.grid[:-1], self.grid[1:]
        at = {0.0: left, 1.0: right}
        table = np.stack([at.get(c, left + c * (right - left)) for c in p.solver.nodes])
        self.table = torch.from_numpy(table).to(p.x0.dtype).to(p.x0.device)
        shape = p.system.system.noise_shape(p.x0) if isinstance(p.system.system, SDE) else p.x0.shape
        self.like = p.x0.detach() if shape == p.x0.shape else p.x0.new_empty(shape)

    def __len__(self) -> int:
        return len(self.grid) - 1

    def intervals(self, first: int, last: int) -> Iterator[tuple[int, Interval]]:
        """Steps first <= k < last."""
        lengths = np.diff(self.grid[first : last + 1]).tolist()
        columns = zip(*(row[first:last].unbind() for row in self.table), strict=True)
        tree = isinstance(self.p.noise, BrownianTree) and self.p.solver.normals > 0
        path = self.path(first, last) if tree else None
        for k, (h, times) in enumerate(zip(lengths, columns, strict=True), start=first):
            yield k, Interval(times, h, *(next(path) if path else self.brownian(k, h)))

    def brownian(self, k: int, h: float) -> list[Tensor]:
        """W, and H and K where they are wanted, over step k: draw k n + j of the noise, n draws a step."""
        n = self.p.solver.normals
        scales = (abs(h), abs(h) / 12, abs(h) / 720)[:n]
        draw = self.p.noise.normal
        return [draw(k * n + j, self.like, self.p.ids) * math.sqrt(v) for j, v in enumerate(scales)]

    def path(self, first: int, last: int) -> Iterator[tuple[Tensor, ...]]:
        """The same from a path, a function of the times alone; several steps a query where they are small."""
        noise = self.p.noise
        assert isinstance(noise, BrownianTree)
        length = min(max(QUERY // max(self.like.numel(), 1), 1), 64)
        for k in range(first, last, length):
            found = noise.steps(self.grid[k : min(k + length, last) + 1], self.like, self.p.ids)
            yield from zip(*found[1 : 1 + self.p.solver.normals], strict=True)


def integrate(p: Problem) -> Outcome:
    """Run the solver over the grid; saved times are nodes of it.

    Nothing waits for the device on the way. Failed samples are looked for once, at the end.
    """
    walk, solver, x = _Walk(p), p.solver, p.x0
    steps, at_node = len(walk), _at_node(walk.grid, p.save)
    graph = torch.is_grad_enabled()
    xs = None if graph or not p.save.size else x.new_empty(p.save.size, *x.shape)
    done = 0

    def keep(node: int, x: Tensor) -> list[Tensor]:
        for i in at_node.get(node, ()):
            if xs is not None:
                xs[i].copy_(x)
        return [x] * len(at_node.get(node, ())) if graph else []

    def segment(x: Tensor, carry: Carry, first: int, last: int) -> tuple[Tensor, Carry, list[Tensor]]:
        nonlocal done
        saved = []
        for k, interval in walk.intervals(first, last):
            x, carry = solver.step(p.system, x, interval, carry)
            saved += keep(k + 1, x)
            if k < done:  # a checkpointed segment, run again for its gradient
                continue
            done = k + 1
            if k == 0:
                _check_first(x, p.x0)
            if p.report is not None:
                p.report(done, float(walk.grid[done]), x)
        return x, carry, saved

    saved = keep(0, x)
    carry = solver.init(p.system, x, walk.table[0, 0])
    length = math.isqrt(steps - 1) + 1 if p.gradient == "checkpoint" else CHUNK
    for first in range(0, steps, length):
        section = (x, carry, first, min(first + length, steps))
        if p.gradient == "checkpoint":
            x, carry, new = checkpoint(segment, *section, use_reentrant=False)
        else:
            x, carry, new = segment(*section)
        saved += new
    if saved:
        xs = torch.stack(saved)
    good = finite_rows(x.detach()).cpu().numpy()
    failed_step, cause = (np.full(good.shape, -1), "") if good.all() else _locate(p, walk, ~good)
    failed_at = np.where(failed_step < 0, np.nan, walk.grid[failed_step + 1])
    status = np.where(good, Status.OK, Status.NON_FINITE).astype(np.int64)
    return Outcome(x, xs, status, failed_at, failed_step, accepted=steps, cause=cause)


def _at_node(grid: Floats, save: Floats) -> dict[int, list[int]]:
    """Node of the grid -> which saved times it is."""
    sign = np.sign(grid[-1] - grid[0])
    right = np.clip(np.searchsorted(grid * sign, save * sign), 1, grid.size - 1)
    nearest = np.where(np.abs(grid[right] - save) < np.abs(save - grid[right - 1]), right, right - 1)
    found: dict[int, list[int]] = {}
    for i, node in enumerate(nearest.tolist()):
        found.setdefault(node, []).append(i)
    return found


def _check_first(x: Tensor, x0: Tensor) -> None:
    if x.shape != x0.shape or x.dtype != x0.dtype:
        raise ShapeError(
            f"the first step led from {x0.dtype} {tuple(x0.shape)} to {x.dtype} {tuple(x.shape)}. Likely "
            f"cause: the diffusion returns another dtype, or does not match its noise_type. Next: check "
            f"system.noise_field(x, t)."
        )


@torch.no_grad()
def _locate(p: Problem, walk: _Walk, failed: NDArray[np.bool_]) -> tuple[NDArray[np.int64], str]:
    """The step (B,) at which each failed sample left the finite numbers, -1 if not known, and the cause.

    Runs again from the start, the whole batch, so that every bit repeats: noise is a pure function of its
    draw. (Generators in call order do not repeat, and then the step is not known.)
    """
    step = np.full(failed.shape, -1)
    if isinstance(p.noise, TorchNoise):
        return step, "not known: this noise cannot be drawn again"
    cause = "not known: the run did not fail again (is the drift random?)"
    system, x = p.system.system, p.x0.detach()
    carry = p.solver.init(system, x, walk.table[0, 0])
    for k, interval in walk.intervals(0, len(walk)):
        before = x
        x, carry = p.solver.step(system, x, interval, carry)
        new = ~finite_rows(x).cpu().numpy() & (step < 0)
        if new.any():
            if (step < 0).all():
                cause = _diagnose(p, before, interval, int(np.argmax(new)))
            step[new] = k
        if (step[failed] >= 0).all():
            break
    return step, cause


def _diagnose(p: Problem, x: Tensor, interval: Interval, row: int) -> str:
    """Why the row left the finite numbers in the step that began at x, and what to do."""
    system, t, size = p.system.system, interval.times[0], float(x[row].abs().max())
    fields = {"drift": system.drift, "diffusion": getattr(system, "noise_field", None)}
    largest = {role: float(field(x, t)[row].abs().max()) for role, field in fields.items() if field}
    grown = size > 1e6 * (1 + float(p.x0[row].abs().max()))
    for role, value in largest.items():
        if not grown and not math.isfinite(value):
            return (
                f"the {role} is not finite there, though the state is (|x| <= {size:.3g}): a singular score "
                f"or coefficient, or a network that fails. Next: look at {role}(x, t) there, or end the "
                f"span before it"
            )
    return (
        f"a step of {abs(interval.h):.3g} is too long for the drift (|drift| = {largest['drift']:.3g} at "
        f"|x| = {size:.3g}): the run is unstable. Next: more steps"
    )
