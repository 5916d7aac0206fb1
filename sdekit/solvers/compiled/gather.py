"""The run behind `ensemble`: pieces of paths, their states at the saved times handed to the statistics."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from sdekit.solvers.base import Solver
from sdekit.solvers.compiled.run import PIECE, Prepared, each_piece, node_of
from sdekit.solvers.compiled.statistics import Moments, Sketch
from sdekit.solvers.compiled.system import CompiledSDE

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

__all__ = ["gather"]

ROOM = 2**22
"""Numbers that a thread keeps of its piece."""


def gather(
    system: CompiledSDE,
    solver: Solver,
    x: Tensor,
    count: int,
    grid: Floats,
    save: Floats,
    first_id: int,
    seed: int,
    quantiles: bool,
    passage: Callable[[Any, Any], Any] | None,
    done: Callable[[float], None] | None,
) -> tuple[Moments, Sketch | None, Tensor | None, NDArray[np.int64], int]:
    """(moments, sketch, times of passage, ids of failed paths, the step at which the first failed)."""
    dim = system.dim
    start = x.reshape(len(x), dim).contiguous()
    prepared = Prepared.make(system, solver, grid, seed, x.dtype, passage)
    places = node_of(grid, save)
    nodes = torch.from_numpy(places[places > 0])
    hits = None if passage is None else torch.full((count,), -1, dtype=torch.int32)
    moments, failed, lock = Moments(), [], threading.Lock()

    def states(a: int, b: int, note: bool) -> Floats:
        """Rows a to b that stay finite, at the saved times: (rows, S, dim) float64."""
        rows = start[a:b] if len(start) == count else start.expand(b - a, dim).contiguous()
        ids = torch.arange(first_id + a, first_id + b)
        saved = rows.new_empty(len(nodes), *rows.shape) if len(nodes) else None
        end = torch.empty_like(rows)
        prepared.advance(rows, end, ids, saved, nodes, None if hits is None else hits[a:b])
        good = torch.isfinite(end).all(dim=1)
        parts = [rows[None]] * int((places == 0).sum()) + ([] if saved is None else [saved])
        kept = torch.cat(parts).to(torch.float64).movedim(1, 0)
        if not bool(good.all()):
            if note:
                with lock:
                    failed.extend(ids[~good].tolist())
            kept = kept[good]
        return np.ascontiguousarray(kept.numpy())

    pilot = states(0, min(count, PIECE), False) if quantiles else None
    sketch = None if pilot is None or not len(pilot) else Sketch(pilot)
    size = max(64, min(PIECE, ROOM // (len(save) * dim) // 64 * 64))

    def work(a: int, b: int) -> None:
        found = states(a, b, True)
        moments.add(a // size, found)
        if sketch is not None:
            sketch.add(found)

    each_piece(count, size, work, done)
    passed = None
    if hits is not None:
        passed = torch.from_numpy(np.append(grid, np.inf)[hits.numpy()])
    lost = np.array(sorted(failed), dtype=np.int64)
    step = -1
    if lost.size:
        row = int(lost[0]) - first_id
        one = start[row : row + 1] if len(start) == count else start
        step = int(prepared.replay(one, torch.tensor([int(lost[0])]))[1][0])
    return moments, sketch, passed, lost, step
