"""Runs of a compiled step: pieces of the ensemble, shared out among threads."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from sdekit.noise import philox
from sdekit.noise.cpu import _share
from sdekit.noise.source import Philox, Purpose
from sdekit.solution import Status
from sdekit.solvers.base import Interval, Solver
from sdekit.solvers.compiled.build import callbacks, kernel
from sdekit.solvers.compiled.generate import source
from sdekit.solvers.compiled.system import CompiledSDE
from sdekit.solvers.compiled.trace import signature, trace, watched
from sdekit.solvers.fixed import _at_node, _diagnose
from sdekit.solvers.problem import Outcome, Problem
from sdekit.solvers.rows import finite_rows

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

__all__ = ["PIECE", "Prepared", "each_piece", "integrate", "node_of"]

PIECE = 4096
"""Paths that a thread takes at a time, or a 64th of them where that is more."""
KEPT = 64
"""Kernels, each with its numbers, that a system remembers."""
NO_NODES = torch.empty(0, dtype=torch.int64)
REPLAY = 2**22
"""Numbers kept at a time while the step of a failure is looked for."""


@dataclass(frozen=True)
class Prepared:
    """A step compiled for a grid and a seed.

    table: (steps + 1, width) in the dtype of the state. drifts: calls of the drift in a step.
    """

    kernel: Any
    table: Tensor
    numbers: Tensor
    key: philox.Key
    drifts: int
    dim: int

    @classmethod
    def make(
        cls,
        system: CompiledSDE,
        solver: Solver,
        grid: Floats,
        seed: int,
        dtype: torch.dtype,
        watch: Callable[[Any, Any], Any] | None = None,
    ) -> Prepared:
        """Raises CapabilityError for a step or a function that cannot be compiled."""
        bits = 32 if dtype is torch.float32 else 64
        key = (solver, bits, signature(system, watch))
        found = None if key[2] is None else system.kept.get(key)
        if found is None:
            found = _compile(system, solver, bits, watch)
            if key[2] is not None:
                if len(system.kept) >= KEPT:
                    system.kept.clear()
                system.kept[key] = found
        compiled, numbers, drifts = found
        table = torch.from_numpy(_table(grid, solver, np.float32 if bits == 32 else np.float64))
        words = philox.derive_key(seed, Purpose.INJECTED)
        return cls(compiled, table, numbers, words, drifts, system.dim)

    def advance(
        self,
        start: Tensor,
        end: Tensor,
        ids: Tensor,
        saved: Tensor | None,
        nodes: Tensor,
        hits: Tensor | None,
    ) -> None:
        """Run rows of start (R, dim) to end, contiguous; saved (S, R, dim), its rows contiguous."""
        stride = 0 if saved is None else saved.stride(0) // self.dim
        self.kernel(
            start.data_ptr(),
            end.data_ptr(),
            0 if saved is None else saved.data_ptr(),
            nodes.data_ptr(),
            0 if saved is None else nodes.numel(),
            0 if hits is None else hits.data_ptr(),
            ids.data_ptr(),
            len(start),
            stride,
            len(self.table) - 1,
            self.table.data_ptr(),
            self.numbers.data_ptr(),
            *self.key,
        )

    def replay(self, start: Tensor, ids: Tensor) -> tuple[Tensor, NDArray[np.int64]]:
        """All states (steps, R, dim) of rows that fail, and the step at which each did."""
        nodes = torch.arange(1, len(self.table))
        states = start.new_empty(len(nodes), *start.shape)
        self.advance(start, torch.empty_like(start), ids, states, nodes, None)
        lost: NDArray[np.int64] = (~torch.isfinite(states).all(dim=2)).numpy().argmax(axis=0)
        return states, lost


def node_of(grid: Floats, save: Floats) -> NDArray[np.int64]:
    """Which node of the grid each saved time is."""
    found = np.zeros(save.size, dtype=np.int64)
    for node, places in (_at_node(grid, save) if save.size else {}).items():
        found[places] = node
    return found


def _compile(
    system: CompiledSDE, solver: Solver, bits: int, watch: Callable[[Any, Any], Any] | None
) -> tuple[Any, Tensor, int]:
    """(kernel, its numbers, calls of the drift in a step)."""
    step = trace(system, solver)
    made = source(
        step.new,
        noise=step.noise,
        normals=solver.normals,
        nodes=len(solver.nodes),
        bits=bits,
        watch=None if watch is None else watched(system, watch),
    )
    calls = callbacks(system, step.calls, np.float32 if bits == 32 else np.float64)
    numbers = torch.tensor(made.numbers or (0.0,), dtype=torch.float32 if bits == 32 else torch.float64)
    return kernel(made.text, calls), numbers, step.drifts


def _table(grid: Floats, solver: Solver, real: type) -> NDArray[Any]:
    """A row for each step: times at the nodes, length, standard deviations of W, H, K."""
    left, right = grid[:-1], grid[1:]
    h = right - left
    count = len(solver.nodes)
    table: NDArray[Any] = np.zeros((grid.size, count + 1 + solver.normals), dtype=real)
    rows = table[:-1]
    for i, c in enumerate(solver.nodes):
        rows[:, i] = left if c == 0.0 else right if c == 1.0 else left + c * h
    rows[:, count] = h
    for j, v in enumerate((1, 12, 720)[: solver.normals]):
        rows[:, count + 1 + j] = np.sqrt(h / v)
    table[-1, 0] = grid[-1]
    return table


def each_piece(
    rows: int, size: int, work: Callable[[int, int], None], done: Callable[[float], None] | None
) -> None:
    """work(first, last) for every piece of the rows, on up to torch.get_num_threads() threads.

    done: called with the part of the rows that is through, from one thread at a time.
    """
    lock, through = threading.Lock(), 0

    def run(first: int) -> None:
        nonlocal through
        last = min(first + size, rows)
        work(first, last)
        if done is not None:
            with lock:
                through += last - first
                done(through / rows)

    if rows <= size:
        if rows:
            run(0)
        return
    _share(run, deque(range(0, rows, size)), torch.get_num_threads())


def integrate(p: Problem) -> Outcome:
    """The run of a problem whose system is a `CompiledSDE`, at fixed steps, with Philox's normals."""
    system, grid = p.system.system, p.grid
    assert isinstance(system, CompiledSDE)
    assert grid is not None
    assert isinstance(p.noise, Philox)
    if type(p.solver).init is not Solver.init:  # it may refuse the system
        p.solver.init(p.system, p.x0, torch.as_tensor(p.t0, dtype=p.x0.dtype))
    prepared = Prepared.make(system, p.solver, grid, p.noise.seed, p.x0.dtype)
    start = p.x0.detach().reshape(len(p.x0), system.dim).contiguous()
    end = torch.empty_like(start)
    saved, first, nodes = None, 0, NO_NODES
    if p.save.size:
        places = node_of(grid, p.save)
        nodes = torch.from_numpy(places[places > 0])
        first = len(places) - len(nodes)
        saved = start.new_empty(p.save.size, *start.shape)
        saved[:first] = start

    def work(a: int, b: int) -> None:
        part = None if saved is None else saved[first:, a:b]
        prepared.advance(start[a:b], end[a:b], p.ids[a:b], part, nodes, None)

    report = p.report
    bar = None if report is None else (lambda part: report(0, p.t0 + part * (p.t1 - p.t0), p.x0))
    each_piece(len(start), max(PIECE, len(start) // PIECE * 64), work, bar)
    steps = grid.size - 1
    p.system.calls += steps * prepared.drifts
    status = np.full(len(end), int(Status.OK))
    failed, failed_at, cause = np.full(len(end), -1), np.full(len(end), np.nan), ""
    if end.numel() and not torch.isfinite(torch.stack(end.aminmax())).all():  # both are NaN where one is
        good = finite_rows(end).numpy()
        failed, cause = _locate(p, prepared, start, good)
        status[~good], failed_at[~good] = Status.NON_FINITE, grid[failed[~good] + 1]
    xs = None if saved is None else saved.reshape(p.save.size, *p.x0.shape)
    return Outcome(end.reshape(p.x0.shape), xs, status, failed_at, failed, steps, cause=cause)


def _locate(
    p: Problem, prepared: Prepared, start: Tensor, good: NDArray[np.bool_]
) -> tuple[NDArray[np.int64], str]:
    """The step at which each failed row left the finite numbers: they run again, every state kept."""
    found, cause = np.full(good.shape, -1), ""
    bad = np.flatnonzero(~good)
    size = max(1, REPLAY // (len(prepared.table) * prepared.dim))
    for a in range(0, len(bad), size):
        rows = torch.from_numpy(bad[a : a + size])
        x = start[rows].contiguous()
        states, lost = prepared.replay(x, p.ids[rows].contiguous())
        found[bad[a : a + size]] = lost
        if a == 0:
            k = int(lost[0])
            before = (states[k - 1] if k else x)[:1].reshape(1, *p.x0.shape[1:])
            cause = _cause(p, before, k, int(bad[0]))
    return found, cause


def _cause(p: Problem, before: Tensor, k: int, row: int) -> str:
    """Why that row failed in step k from ``before`` (1, *event), in words."""
    assert p.grid is not None
    start, h = float(p.grid[k]), float(p.grid[k + 1] - p.grid[k])
    times = tuple(torch.as_tensor(start + c * h, dtype=before.dtype) for c in p.solver.nodes)
    try:
        return _diagnose(replace(p, x0=p.x0.detach()[row : row + 1]), before, Interval(times, h), 0)
    except Exception:  # functions of numbers alone
        return "not known: the functions take no tensors. Next: more steps, or a look at drift and diffusion"
