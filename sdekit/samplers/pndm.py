"""PNDM: pseudo Runge-Kutta for the first three steps, then Adams-Bashforth on eps."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from sdekit._math import table
from sdekit.samplers.adams import check_compat, constant_weights, lambda_weights
from sdekit.samplers.base import Path, Sampler, nodes_at
from sdekit.samplers.multistep import newest
from sdekit.samplers.plan import Instruction, state
from sdekit.samplers.stages import first_order, rk4, transfer
from sdekit.score.predictions import Node

__all__ = ["PNDM"]


@dataclass(frozen=True)
class PNDM(Sampler):
    r"""First steps: e' = (e1 + 2 e2 + 2 e3 + e4)/6,  z' = z + (rho' - rho) e', four evaluations each;
    then z' = z + sum_j w_j eps_j with the four newest nodes, one evaluation a step.

    By default the two inner evaluations lie at (rho + rho')/2, which makes the start the classical
    Runge-Kutta method in rho, and the weights are the exact integrals of polynomials in lambda, as in
    `IPNDM`: order 4 on any grid. compat="published" has the inner evaluations half-way in t and the constant
    weights (55, -59, 37, -9)/24 times rho' - rho: of order 2.
    """

    name: ClassVar[str] = "pndm"
    order: ClassVar[float] = 4
    reference: ClassVar[str] = "Liu et al. 2022 (PNDM), equations 11 to 13"
    exact_for: ClassVar[frozenset[str]] = frozenset({"point"})

    compat: str | None = None

    def __post_init__(self) -> None:
        check_compat(self.compat)
        object.__setattr__(self, "order", 2 if self.compat else 4)

    def middles(self, path: Path, steps: list[int]) -> list[Node]:
        """The node of the inner stages of each step."""
        if not self.compat:
            return path.at([(path.rho[i] + path.rho[i + 1]) / 2 for i in steps])
        if not steps:
            return []
        assert path.process is not None, "stages between the nodes need the process"
        return nodes_at(path.process, table([(path[i].t + path[i + 1].t) / 2 for i in steps]))

    def recipe(self, path: Path) -> Iterator[Instruction]:
        rules = [(i, newest(path, i, 4)) for i in range(path.steps)]
        start = [i for i, nodes in rules if 0 < len(nodes) < 4]
        middle = dict(zip(start, self.middles(path, start), strict=True))
        weights = (constant_weights if self.compat else lambda_weights)(path, rules)
        for (i, nodes), w in zip(rules, weights, strict=True):
            x, here, ahead, out = state(i), path[i], path[i + 1], state(i + 1)
            if not nodes:
                yield from first_order(path, here, ahead, x, f"[{i}]", out)
            elif i in middle:
                yield from rk4(path, here, middle[i], ahead, x, f"[{i}]", f"e[{i}]", out)
            else:
                yield path.evaluate(f"e[{i}]", x, here, "eps")
                history = [(c, f"e[{j}]") for c, j in zip(w, nodes, strict=True)]
                yield transfer(here, ahead, x, history, out)
