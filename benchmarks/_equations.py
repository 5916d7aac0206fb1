"""Four equations of which ensembles are run.

ou       dX = -X dt + 0.5 dW                       gbm      dX = 0.1 X dt + 0.5 X dW
lorenz   Lorenz 1963 at (10, 28, 8/3), noise 1     heston   mu 0.05, kappa 2, theta 0.04, xi 0.2, rho -0.7

"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import sdekit as sk

__all__ = ["PROBLEMS", "ZERO", "End", "Parts", "Problem", "sde", "start"]

Parts = tuple[Any, ...]
End = Callable[[], Any]
"""Runs an ensemble and returns its end states."""


@dataclass(frozen=True)
class Problem:
    """An equation by components: drift(xp, x) and diffusion(xp, x) of tuples of arrays of the module `xp`.

    `diffusion` returns as many values as x has, or rows where the noise is "general".
    """

    name: str
    x0: tuple[float, ...]
    drift: Callable[[Any, Parts], Parts]
    diffusion: Callable[[Any, Parts], Parts]
    noise_type: str = "diagonal"

    @property
    def dim(self) -> int:
        return len(self.x0)

    def kick(self, xp: Any, x: Parts, z: Parts) -> Parts:
        """G z."""
        g = self.diffusion(xp, x)
        if self.noise_type != "general":
            return tuple(a * b for a, b in zip(g, z, strict=True))
        return tuple(sum(a * b for a, b in zip(row, z, strict=True) if a is not ZERO) for row in g)


ZERO = 0.0
"""An entry of a matrix that is none."""


def _lorenz(xp: Any, x: Parts) -> Parts:
    a, b, c = x
    return 10.0 * (b - a), a * (28.0 - c) - b, a * b - (8.0 / 3.0) * c


def _heston(xp: Any, x: Parts) -> Parts:
    s, v = x
    root = xp.sqrt(xp.maximum(v, 0.0))
    return (root * s, ZERO), (-0.14 * root, (0.2 * math.sqrt(0.51)) * root)


PROBLEMS = {
    p.name: p
    for p in (
        Problem("ou", (1.0,), lambda xp, x: (-x[0],), lambda xp, x: (0.5,), "additive"),
        Problem("gbm", (1.0,), lambda xp, x: (0.1 * x[0],), lambda xp, x: (0.5 * x[0],)),
        Problem("lorenz", (1.0, 1.0, 1.0), _lorenz, lambda xp, x: (1.0, 1.0, 1.0), "additive"),
        Problem(
            "heston",
            (1.0, 0.04),
            lambda xp, x: (0.05 * x[0], 2.0 * (0.04 - x[1])),
            _heston,
            "general",
        ),
    )
}


def sde(problem: Problem) -> sk.SDE:
    """The same equation for sdekit's torch back end."""
    if problem.name == "lorenz":
        return sk.Lorenz63()
    if problem.name == "heston":
        return sk.Heston(mu=0.05, xi=0.2)
    if problem.name == "ou":
        half = torch.tensor(0.5)
        return sk.SDE(lambda x, t: -x, lambda x, t: half, noise_type="additive")
    return sk.SDE(lambda x, t: 0.1 * x, lambda x, t: 0.5 * x, noise_type="diagonal")


def start(problem: Problem, paths: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.tensor(problem.x0, dtype=dtype).expand(paths, -1).contiguous()
