"""Quasi-Monte Carlo: Brownian paths from scrambled Sobol points, by a Brownian bridge."""

from __future__ import annotations

import warnings
from collections import deque
from dataclasses import dataclass, field
from operator import index
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from sdekit._typing import State
from sdekit.noise.source import Noise, Philox, _check

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

__all__ = ["QuasiNoise", "bridge"]

STREAM = 2**40
BITS = 30


def bridge(times: Floats, z: Floats) -> Floats:
    """Increments of W over each step, in units of their standard deviation, from normals z (N, steps, E).

    z_0 makes W at the last time, z_1 at the middle node given the ends, then the quarters, and so on:

        W_m = W_l + (t_m - t_l)/(t_r - t_l) (W_r - W_l) + sqrt((t_m - t_l)(t_r - t_m)/(t_r - t_l)) z.

    The map is orthogonal; its first inputs carry most of the variance of the path. Caflisch and Moskowitz
    1995.
    """
    t = np.abs(times - times[0])
    w = np.zeros((z.shape[0], z.shape[1] + 1, z.shape[2]))
    w[:, -1] = np.sqrt(t[-1]) * z[:, 0]
    spans, k = deque([(0, len(t) - 1)]), 1
    while spans:
        left, right = spans.popleft()
        if right - left < 2:
            continue
        middle = (left + right) // 2
        before, after = t[middle] - t[left], t[right] - t[middle]
        share = before / (before + after)
        mean = w[:, left] + share * (w[:, right] - w[:, left])
        w[:, middle] = mean + np.sqrt(share * after) * z[:, k]
        k += 1
        spans.extend(((left, middle), (middle, right)))
    return np.asarray(np.diff(w, axis=1) / np.sqrt(np.diff(t))[None, :, None])


@dataclass(frozen=True)
class QuasiNoise(Noise):
    """Normals of Brownian paths on a grid from scrambled Sobol points: sample id i is point i mod 2^40.

    Dimension e of point i makes W of element e at the last time, the next E dimensions W at the middle, and
    so on by `bridge`; H and K of the steps, where a solver takes them, come after. Owen's linear matrix
    scrambling with a digital shift (Matousek 1998), as in scipy: each scrambling alone is unbiased, several
    give a standard error. Points 0 to 2^m - 1 belong together.

    times: the nodes of the grid. seed: of the scrambling. replicate: which scrambling of that seed.
    normals: how many a step takes (`Solver.normals`).
    """

    times: tuple[float, ...]
    seed: int = 0
    replicate: int = 0
    normals: int = 1
    _last: dict[tuple[object, ...], Floats] = field(
        default_factory=dict, init=False, repr=False, compare=False, hash=False
    )

    def normal(self, draw: int, like: State, ids: Int64[Tensor, " B"]) -> State:
        """Number draw mod normals of step draw div normals of samples ``ids``.

        Raises ValueError for a draw beyond the grid, for more dimensions than Sobol points have, and for
        points beyond 2^30.
        """
        rows = _check(index(draw), like, ids)
        steps, (step, kind) = len(self.times) - 1, divmod(draw, self.normals)
        if step >= steps:
            raise ValueError(f"the grid has {steps} steps, and noise of step {step} was asked for.")
        event = like.numel() // max(rows, 1)
        points = ids.cpu().numpy() % STREAM
        key = (event, points.tobytes())
        if key not in self._last:
            self._last.clear()
            self._last[key] = self._table(points, event)
        return torch.from_numpy(self._last[key][kind, step]).reshape(like.shape).to(like)

    def _table(self, points: NDArray[np.int64], event: int) -> Floats:
        """(normals, steps, N, event) for the points (N,)."""
        from scipy.special import ndtri
        from scipy.stats import qmc

        steps = len(self.times) - 1
        size = steps * event * self.normals
        if size > qmc.Sobol.MAXDIM:
            raise ValueError(
                f"Sobol points have at most {qmc.Sobol.MAXDIM} dimensions, and {steps} steps x {event} noise "
                f"elements x {self.normals} normals need {size}. Next: fewer steps, or method='mc'."
            )
        if points.size and points.max() >= 2**BITS:
            raise ValueError(f"there are 2^{BITS} Sobol points, and point {points.max()} was asked for.")
        low = int(points.min(initial=2**BITS)) if points.size else 0
        count = int(points.max(initial=0)) + 1 - low if points.size else 0
        rng = np.random.default_rng([Philox(self.seed).seed, self.replicate])
        engine = qmc.Sobol(size, scramble=True, bits=BITS, seed=rng)
        with warnings.catch_warnings():  # batches need not be powers of two, the whole is
            warnings.simplefilter("ignore", UserWarning)
            engine = engine.fast_forward(low) if low else engine
            u = engine.random(count)[points - low]
        z = ndtri(u + 0.5 ** (BITS + 1)).reshape(len(points), self.normals, steps, event)
        z[:, 0] = bridge(np.array(self.times), z[:, 0])
        return np.ascontiguousarray(z.transpose(1, 2, 0, 3))
