"""One Brownian path on two grids, and the functional on both."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from sdekit._typing import State
from sdekit.errors import NonFiniteError, ShapeError
from sdekit.noise.brownian import Increments
from sdekit.noise.source import Noise
from sdekit.solvers.base import Solver
from sdekit.solvers.solve import solve

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

__all__ = ["Experiment", "Merged", "refine"]

STREAM = 2**40
"""Sample ids of one stream: levels and replicates take streams of their own."""


@dataclass(frozen=True)
class Merged(Noise):
    r"""Noise of a grid from that of the grid with every step halved, by Chen's relation: one path, two grids.

    With W and H over the halves [s, m] and [m, t] (`Increments.then`, with p = q = 1/2)

        W = W1 + W2,    H = (H1 + H2)/2 + (W1 - W2)/4,

    and K likewise; each in units of its standard deviation, of which the steps of a solver are made.
    normals: how many a step takes (`Solver.normals`), 1 to 3. Draw k n + j is number j of step k.
    """

    fine: Noise
    normals: int = 1

    def normal(self, draw: int, like: State, ids: Int64[Tensor, " B"]) -> State:
        """Draw ``draw`` from the draws of its two halves. Raises as the fine noise does."""
        n = self.normals
        step, kind = divmod(draw, n)
        if kind == 0:  # W alone
            first, second = (self.fine.normal((2 * step + half) * n, like, ids) for half in (0, 1))
            return (first + second) * math.sqrt(0.5)
        halves = [self._areas(2 * step + half, like, ids) for half in (0, 1)]
        return halves[0].then(halves[1])[1 + kind] * math.sqrt((1, 12, 720)[kind])

    def _areas(self, step: int, like: Tensor, ids: Tensor) -> Increments:
        """W, H, K over one of two steps of length 1/2; what the solver does not take is 0."""
        drawn = [self.fine.normal(step * self.normals + j, like, ids) for j in range(self.normals)]
        scales = [math.sqrt(0.5 / v) for v in (1, 12, 720)]
        known = [z * s for z, s in zip(drawn, scales, strict=False)]
        return Increments(like.new_tensor(0.5), *known, *[torch.zeros_like(like)] * (3 - len(known)))


def refine(nodes: Floats, level: int) -> Floats:
    """The grid with every step halved ``level`` times."""
    for _ in range(level):
        finer = np.empty(2 * nodes.size - 1)
        finer[::2], finer[1::2] = nodes, 0.5 * (nodes[:-1] + nodes[1:])
        nodes = finer
    return nodes


@dataclass
class Experiment:
    """The functional of a run, as numbers: sample i of a stream is a pure function of (seed, stream, i).

    nodes: the coarsest grid. noise: (grid, stream) -> Noise. cost: calls of the drift so far, by sample.
    """

    functional: Callable[[Any], Tensor]
    system: Any
    x0: Tensor | Callable[[Tensor], Tensor]
    nodes: Floats
    solver: Solver
    save_at: Any
    batch_size: int
    noise: Callable[[Floats, int], Noise]
    cost: int = 0
    scalar: bool = True

    def values(
        self, level: int, stream: int, first: int, count: int, *, pairs: bool
    ) -> tuple[Floats, Floats]:
        """f on the grid refined ``level`` times, and on the next coarser one, both (count, k) float64.

        Without ``pairs`` the second is 0. Raises NonFiniteError and ShapeError, see `estimate`.
        """
        grid = refine(self.nodes, level)
        noise = self.noise(grid, stream)
        fine, coarse = [], []
        for start in range(first, first + count, self.batch_size):
            size = min(self.batch_size, first + count - start)
            begin = STREAM * stream + start
            fine.append(self._run(grid, noise, begin, size))
            if pairs:
                merged = Merged(noise, max(self.solver.normals, 1))
                coarse.append(self._run(refine(self.nodes, level - 1), merged, begin, size))
        joined = np.concatenate(fine)
        return joined, np.concatenate(coarse) if pairs else np.zeros_like(joined)

    @torch.no_grad()
    def _run(self, grid: Floats, noise: Noise, first: int, count: int) -> Floats:
        ids = first + torch.arange(count)
        x0 = self.x0.expand(count, *self.x0.shape[1:]) if isinstance(self.x0, Tensor) else self.x0(ids)
        found = solve(
            self.system,
            x0,
            torch.from_numpy(grid),
            solver=self.solver,
            noise=noise,
            first_id=first,
            save_at=self.save_at,
        )
        self.cost += found.stats.nfe * count
        out = self.functional(found.x if self.save_at is None else found)
        if not isinstance(out, Tensor) or out.ndim not in (1, 2) or out.shape[0] != count:
            got = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
            given = "x (B, *event)" if self.save_at is None else "a Solution"
            raise ShapeError(
                f"functional must map {given} to (B,) or (B, k), one row for each of B = {count} samples, "
                f"got {got}. Likely cause: it averages over the batch, or returns no tensor. Next: one value "
                f"for each sample, as torch.as_tensor(...) where it is written in numpy."
            )
        self.scalar = out.ndim == 1
        values = out.detach().reshape(count, -1).to("cpu", torch.float64).numpy()
        bad = np.flatnonzero(~np.isfinite(values).all(axis=1))
        if bad.size:
            raise NonFiniteError(
                f"the functional is NaN or infinite for {bad.size} of {count} samples at {grid.size - 1} "
                f"steps (first: sample {first % STREAM + int(bad[0])}). Likely cause: a state outside its "
                f"domain, as the log of one that a long step made negative. Next: more steps, or another "
                f"functional; means that leave samples out are biased."
            )
        return values
