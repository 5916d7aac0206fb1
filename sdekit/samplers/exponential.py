"""Exponential Adams: predictor-corrector of the probability flow in half log-SNR."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from sdekit.errors import check_count
from sdekit.samplers.base import Path, Sampler
from sdekit.samplers.multistep import exponential_weights, newest
from sdekit.samplers.plan import Instruction
from sdekit.samplers.sa import adams, with_new

__all__ = ["ExponentialAdams"]


@dataclass(frozen=True)
class ExponentialAdams(Sampler):
    r"""x' = (sigma'/sigma) x + alpha' sum_j w_j D_j,  w_j = \int_0^h e^{-(h - u)} L_j(u) du.

    Predictor and free corrector, L_j the Lagrange basis in lambda on ``nodes`` nodes each (1 to 6):
    order ``nodes``, rising with the history. `sa-solver` at tau = 0; the predictor of three nodes
    alone is `dpmpp-3m`.
    """

    name: ClassVar[str] = "exponential-adams"
    order: ClassVar[float] = 3
    reference: ClassVar[str] = "Hochbruck and Ostermann 2010; x0 form of Lu et al. 2022 (DPM-Solver++)"
    exact_for: ClassVar[frozenset[str]] = frozenset({"point"})

    nodes: int = 3

    def __post_init__(self) -> None:
        if check_count(self.nodes, "nodes") > 6:
            raise ValueError(f"nodes must be at most 6, got {self.nodes}.")
        object.__setattr__(self, "order", self.nodes)

    def recipe(self, path: Path) -> Iterator[Instruction]:
        n = path.steps
        predictors = [(i, newest(path, i, self.nodes)) for i in range(n)]
        correctors = [(i, with_new(path, i, self.nodes)) for i in range(n - 1)]
        weights = exponential_weights(path, [*predictors, *correctors], 1.0)
        return adams(path, predictors, correctors, weights, [0.0] * n)
