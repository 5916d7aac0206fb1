"""The loop over a grid that is known beforehand: any solver, SDE or ODE, no host synchronisation."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from sdekit.errors import ShapeError
from sdekit.noise.brownian import BrownianTree
from sdekit.noise.source import Philox, TorchNoise
from sdekit.sde.base import SDE
from sdekit.sde.rows import over_event
from sdekit.solution import Status
from sdekit.solvers.base import Carry, Interval
from sdekit.solvers.events import Seen, Watch
from sdekit.solvers.problem import Counted, Outcome, Problem
from sdekit.solvers.rows import finite_rows, known_finite

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

__all__ = ["integrate"]

Kept: TypeAlias = tuple[Carry, Seen | None]
CHUNK = 1024
QUERY = 2**15
"""Increments asked of a path at a time."""
AHEAD = 2**17
"""Normals drawn at a time, where steps share the work of drawing them."""


UNSOLVED = (
    "the step is too long for the drift there, or the drift has kinks. Next: more steps, or more iterations "
    "in the solver"
)


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
        path: Iterator[Sequence[Tensor]] | None = None
        noise, n = self.p.noise, self.p.solver.normals
        if n and isinstance(noise, BrownianTree):
            path = self.path(first, last)
        elif n and type(noise) is Philox and noise.cheaper_together(self.like):
            path = self.ahead(first, last)
        if path is None:
            path = (self.brownian(k, h) for k, h in enumerate(lengths, start=first))
        found = (Interval(times, h, *areas) for times, h, areas in zip(columns, lengths, path, strict=True))
        yield from enumerate(found, start=first)

    def brownian(self, k: int, h: float) -> list[Tensor]:
        """W, and H and K where they are wanted, over step k: draw k n + j of the noise, n draws a step."""
        n = self.p.solver.normals
        scales = (abs(h), abs(h) / 12, abs(h) / 720)[:n]
        draw = self.p.noise.normal
        return [draw(k * n + j, self.like, self.p.ids) * math.sqrt(v) for j, v in enumerate(scales)]

    def ahead(self, first: int, last: int) -> Iterator[tuple[Tensor, ...]]:
        """The same, bit for bit, for several steps at a time."""
        noise, n = self.p.noise, self.p.solver.normals
        assert isinstance(noise, Philox)
        length = max(AHEAD // (n * self.like.numel()), 4)
        for k in range(first, last, length):
            count = min(length, last - k)
            h = np.abs(np.diff(self.grid[k : k + count + 1]))
            deviations = np.sqrt(np.stack((h, h / 12, h / 720)[:n], axis=1))
            scales = self.like.new_tensor(deviations).view(count * n, *(1,) * self.like.ndim)
            z = noise.normals(k * n, count * n, self.like, self.p.ids).mul_(scales).unbind()
            yield from zip(*(z[j::n] for j in range(n)), strict=True)

    def path(self, first: int, last: int) -> Iterator[tuple[Tensor, ...]]:
        """The same from a path, a function of the times alone; several steps a query where they are small."""
        noise = self.p.noise
        assert isinstance(noise, BrownianTree)
        length = min(max(QUERY // max(self.like.numel(), 1), 1), 64)
        for k in range(first, last, length):
            found = noise.steps(self.grid[k : min(k + length, last) + 1], self.like, self.p.ids)
            yield from zip(*found[1 : 1 + self.p.solver.normals], strict=True)

    def part(self, k: int, t: float) -> Interval:
        """Step k up to a time within it, with what the path does until then."""
        start, noise = float(self.grid[k]), self.p.noise
        assert isinstance(noise, BrownianTree)
        nodes = [t if c == 1.0 else start + c * (t - start) for c in self.p.solver.nodes]
        times = torch.tensor(nodes, dtype=torch.float64).to(self.p.x0.dtype).to(self.p.x0.device).unbind()
        found = noise.increments(start, t, self.like, self.p.ids)[1 : 1 + self.p.solver.normals]
        return Interval(times, t - start, *found)


def integrate(p: Problem) -> Outcome:
    """Run the solver over the grid; saved times are nodes of it, or, on a path, ends of a part of a step.

    Nothing waits for the device on the way. Failed samples are looked for once, at the end.
    """
    walk, solver, x = _Walk(p), p.solver, p.x0
    steps, at_node = len(walk), _at_node(walk.grid, p.save, p.within)
    within = _in_step(walk.grid, p.save, p.within)
    watch = None if p.event is None else Watch(p, p.event)
    graph = torch.is_grad_enabled()
    room = None if graph or not p.save.size else x.new_empty(p.save.size, *x.shape)
    done = 0

    def keep(places: list[int], x: Tensor) -> list[Tensor]:
        for i in places:
            if room is not None:
                room[i].copy_(x)
        return [x] * len(places) if graph else []

    def segment(x: Tensor, kept: Kept, first: int, last: int) -> tuple[Tensor, Kept, list[Tensor]]:
        nonlocal done
        saved, (carry, seen) = [], kept
        for k, interval in walk.intervals(first, last):
            before = x
            for i in within.get(k, ()):
                saved += keep([i], solver.step(p.system, x, walk.part(k, float(p.save[i])), carry)[0])
            x, carry = solver.step(p.system, x, interval, carry)
            if watch is not None and seen is not None:
                x, seen = _watched(p, watch, k, seen, before, x)
            if k + 1 in at_node:
                saved += keep(at_node[k + 1], x)
            if k < done:  # a checkpointed segment, run again for its gradient
                continue
            done = k + 1
            if k == 0:
                _check_first(x, p.x0)
            if p.report is not None:
                p.report(done, float(walk.grid[done]), x)
        return x, (carry, seen), saved

    saved = keep(at_node.get(0, []), x)
    seen = None if watch is None else watch.start(x, _float64(walk.grid[0], x))
    kept: Kept = solver.init(p.system, x, walk.table[0, 0]), seen
    length = math.isqrt(steps - 1) + 1 if p.gradient == "checkpoint" else CHUNK
    for first in range(0, steps, length):
        section = (x, kept, first, min(first + length, steps))
        if p.gradient == "checkpoint":
            x, kept, new = checkpoint(segment, *section, use_reentrant=False)
        else:
            x, kept, new = segment(*section)
        saved += new
    xs = torch.stack(saved) if saved else room
    good = known_finite(x)
    status = np.where(good, Status.OK, Status.NON_FINITE).astype(np.int64)
    failed_step, cause = (np.full(good.shape, -1), "") if good.all() else _locate(p, walk, status)
    failed_at = np.where(failed_step < 0, np.nan, walk.grid[failed_step + 1])
    event_at = None if kept[1] is None else kept[1].at.cpu().numpy()
    return Outcome(x, xs, status, failed_at, failed_step, steps, cause=cause, event_at=event_at)


def _float64(value: float, x: Tensor) -> Tensor:
    return torch.as_tensor(float(value), dtype=torch.float64, device=x.device)


def _watched(p: Problem, watch: Watch, k: int, seen: Seen, x0: Tensor, x1: Tensor) -> tuple[Tensor, Seen]:
    """Step k from x0 to x1 with its events. Within a step of an ODE the state is the cubic of the two ends
    and their slopes (Hairer, Norsett and Wanner 1993, II.6, equation 6.7)."""
    assert p.grid is not None
    t, h = (_float64(value, x0) for value in (p.grid[k], p.grid[k + 1] - p.grid[k]))
    slopes: list[Tensor] = []

    def cubic(theta: Tensor) -> Tensor:
        if not slopes:
            slopes.extend(p.system.drift(x, s.to(x.dtype)) * h.to(x.dtype) for x, s in ((x0, t), (x1, t + h)))
        u, gap = over_event(theta, x0), x1 - x0
        bend = (slopes[0] - gap) * (1 - u) - (slopes[1] - gap) * u
        return x0 + u * (gap + (1 - u) * bend)

    ode = not isinstance(p.system.system, SDE)
    x, seen, _ = watch.after(k, seen, x0, x1, t, h, cubic if ode else None)
    return x, seen


def _at_node(grid: Floats, save: Floats, within: NDArray[np.bool_] | None = None) -> dict[int, list[int]]:
    """Node of the grid -> which saved times it is; those ``within`` steps are left out."""
    sign = np.sign(grid[-1] - grid[0])
    right = np.clip(np.searchsorted(grid * sign, save * sign), 1, grid.size - 1)
    nearest = np.where(np.abs(grid[right] - save) < np.abs(save - grid[right - 1]), right, right - 1)
    found: dict[int, list[int]] = {}
    for i, node in enumerate(nearest.tolist()):
        if within is None or not within[i]:
            found.setdefault(node, []).append(i)
    return found


def _in_step(grid: Floats, save: Floats, within: NDArray[np.bool_] | None) -> dict[int, list[int]]:
    """Step -> which saved times are ``within`` it."""
    sign = np.sign(grid[-1] - grid[0])
    found: dict[int, list[int]] = {}
    for i in () if within is None else np.flatnonzero(within).tolist():
        found.setdefault(int(np.searchsorted(grid * sign, save[i] * sign)) - 1, []).append(i)
    return found


def _check_first(x: Tensor, x0: Tensor) -> None:
    if x.shape != x0.shape or x.dtype != x0.dtype:
        raise ShapeError(
            f"the first step led from {x0.dtype} {tuple(x0.shape)} to {x.dtype} {tuple(x.shape)}. Likely "
            f"cause: the diffusion returns another dtype, or does not match its noise_type. Next: check "
            f"system.noise_field(x, t)."
        )


@torch.no_grad()
def _locate(p: Problem, walk: _Walk, status: NDArray[np.int64]) -> tuple[NDArray[np.int64], str]:
    """The step (B,) at which each failed sample left the finite numbers, -1 if not known, and the cause.

    Runs again from the start, the whole batch, so that every bit repeats: noise is a pure function of its
    draw. (Generators in call order do not repeat, and then the step is not known.) Marks in ``status`` the
    samples whose implicit step was not solved.
    """
    failed = status != Status.OK
    step = np.full(failed.shape, -1)
    if isinstance(p.noise, TorchNoise):
        return step, "not known: this noise cannot be drawn again"
    cause = "not known: the run did not fail again (is the drift random?)"
    system, x = Counted(p.system.system), p.x0.detach()  # the run's count of calls stays as it is
    carry = p.solver.init(system, x, walk.table[0, 0])
    for k, interval in walk.intervals(0, len(walk)):
        before, kept = x, carry
        x, carry = p.solver.step(system, x, interval, carry)
        new = failed & ~finite_rows(x).cpu().numpy() & (step < 0)
        if new.any():
            unsolved = p.solver.unsolved(system, before, interval, kept)
            given_up = np.zeros_like(new) if unsolved is None else new & unsolved.cpu().numpy()
            status[given_up] = Status.NOT_CONVERGED
            if (step < 0).all():
                row = int(np.argmax(new))
                cause = _diagnose(p, before, interval, row, solved=not given_up[row])
            step[new] = k
        if (step[failed] >= 0).all():
            break
    return step, cause


def _diagnose(p: Problem, x: Tensor, interval: Interval, row: int, solved: bool = True) -> str:
    """Why the row left the finite numbers in the step that began at x, and what to do.

    Fields are looked at where the step began, at the times of all its stages.
    """
    system, size = p.system.system, float(x[row].abs().max())
    fields = {"drift": system.drift, "diffusion": getattr(system, "noise_field", None)}
    sizes = {
        role: [float(field(x, t)[row].abs().max()) for t in interval.times]
        for role, field in fields.items()
        if field
    }
    largest = {
        role: next((v for v in found if not math.isfinite(v)), found[0]) for role, found in sizes.items()
    }
    grown = size > 1e6 * (1 + float(p.x0[row].abs().max()))
    for role, value in largest.items():
        if not grown and not math.isfinite(value):
            return (
                f"the {role} is not finite there, though the state is (|x| <= {size:.3g}): a singular score "
                f"or coefficient, or a network that fails. Next: look at {role}(x, t) there, or end the "
                f"span before it"
            )
    if not grown and isinstance(system, SDE) and p.solver.name in ("milstein", "implicit-milstein"):
        slope = system.correction(x, interval.times[0])[row]
        if not bool(torch.isfinite(slope).all()):
            return (
                f"the derivative of the diffusion is not finite there, |x| <= {size:.3g}, as that of a "
                f"square root at 0. Next: a method without derivatives, such as 'milstein-free'"
            )
    if not solved:
        return UNSOLVED
    return (
        f"a step of {abs(interval.h):.3g} is too long for the drift (|drift| = {largest['drift']:.3g} at "
        f"|x| = {size:.3g}): the run is unstable. Next: more steps"
    )
