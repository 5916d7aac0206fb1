"""EDM's stochastic sampler: a little forward noise before each Heun step."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import count
from typing import ClassVar

from sdekit.errors import check_positive
from sdekit.samplers.base import Path, Sampler
from sdekit.samplers.grids import Grid
from sdekit.samplers.plan import Instruction, state
from sdekit.samplers.stages import heun, rise
from sdekit.score.predictions import Node

__all__ = ["EDMStochastic"]


@dataclass(frozen=True)
class EDMStochastic(Sampler):
    """rho_hat = (1 + gamma) rho,  z_hat = z + s_noise sqrt(rho_hat^2 - rho^2) xi,  Heun from rho_hat to rho'.

    gamma = min(s_churn/N, sqrt(2) - 1) where s_tmin <= rho <= s_tmax, else 0 and nothing is drawn; N counts
    every interval, the clean one included. rho_hat is at most the process's largest. On EDM's process and
    grid it is the published algorithm, whose last step to sigma = 0 is ``end="clean"`` (without churn) or
    an explicit grid that ends at 0.

    s_churn: 40 unless given, ImageNet-64's; 30 for CIFAR-10 (VP), 80 for its VE. s_tmin, s_tmax: in units of
    rho, published 0.01 to 1 and 0.05 to 50 at data_std 0.5. s_noise: published 1.003 and 1.007, against a
    network's loss of detail; 1 unless given, because any other value leaves a bias that no number of steps
    removes. The noise keeps marginals exactly, so the weak order is Heun's, once s_churn/N is small.
    """

    name: ClassVar[str] = "edm-stochastic"
    order: ClassVar[float] = 2
    evaluations: ClassVar[int] = 2
    reference: ClassVar[str] = "Karras et al. 2022, algorithm 2 and table 5"
    stochastic: ClassVar[bool] = True
    default_grid: ClassVar[Grid] = Grid("karras")
    exact_for: ClassVar[frozenset[str]] = frozenset({"point"})

    s_churn: float = 40.0
    s_tmin: float = 0.0
    s_tmax: float = math.inf
    s_noise: float = 1.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.s_churn) and self.s_churn >= 0):
            raise ValueError(f"s_churn must be finite and >= 0, got {self.s_churn}.")
        if not 0 <= self.s_tmin < self.s_tmax:
            raise ValueError(
                f"expected 0 <= s_tmin < s_tmax, got {self.s_tmin} and {self.s_tmax}. Next: leave both out "
                f"to churn at every noise level."
            )
        check_positive(self.s_noise, "s_noise")

    def with_eta(self, eta: float | None) -> Sampler:
        """eta = 0 is s_churn = 0. Raises ValueError for any other eta: the noise is ``s_churn``."""
        if eta is None:
            return self
        if eta == 0:
            return replace(self, s_churn=0.0)
        raise ValueError(
            f"{self.name!r} has no eta but 0, got eta = {eta}. Next: EDMStochastic(s_churn=...), the amount "
            f"of noise in its own units."
        )

    def raised(self, path: Path) -> dict[int, Node]:
        """The node at rho_hat of each step with churn."""
        assert path.process is not None, "churn needs the process"
        gamma = min(self.s_churn / (path.steps + path.clean), math.sqrt(2.0) - 1.0)
        last = path.process.domain[1]
        top = float(path.process.rho(last)) if math.isfinite(last) else math.inf
        levels = {
            i: (1 + gamma) * rho
            for i, rho in enumerate(path.rho[:-1])
            if gamma > 0 and self.s_tmin <= rho <= self.s_tmax and rho < top * (1 - 1e-12)
        }
        rho = [level if level < top else top for level in levels.values()]
        return dict(zip(levels, path.at(rho), strict=True))

    def recipe(self, path: Path) -> Iterator[Instruction]:
        raised, draws = self.raised(path), count()
        for i in range(path.steps):
            x, here = state(i), path[i]
            if i in raised:
                yield rise(here, raised[i], x, f"y[{i}]", next(draws), self.s_noise)
                x, here = f"y[{i}]", raised[i]
            yield from heun(path, here, path[i + 1], x, f"[{i}]", state(i + 1))
