r"""UniPC: unified predictor-corrector of Zhao et al. 2023, multistep, in x0 or eps form.

    x0:   x' = (sigma'/sigma) x + alpha' sum_j w_j D_j,    w_j = \int_0^h e^{-(h - u)} L_j(u) du,
    eps:  x' = (alpha'/alpha) x - sigma' sum_j w_j eps_j,  w_j = \int_0^h e^{h - u} L_j(u) du.

UniP-p uses p nodes and UniC-p the new one beside them, with the prediction at the predicted state. The
paper's B(h) cancels wherever its linear system is solved, which leaves exponential Adams; it remains in
the two published shortcuts (a coefficient 1/2 in place of the solution), for the predictor of order 2 and
the corrector of order 1:

    x' = ... + b/2 (difference of the two predictions, divided by their distance in units of h),
    b = h for "bh1", 1 - e^{-h} (eps: e^h - 1) for "bh2".
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, TypeAlias

from sdekit._math import expm1
from sdekit._typing import Number
from sdekit.errors import check_count, unknown_name
from sdekit.samplers.base import Path, Sampler
from sdekit.samplers.multistep import exponential_weights, newest
from sdekit.samplers.plan import Combine, Instruction, combine, state

__all__ = ["UniPC", "UniPC2", "UniPC3"]

Rule: TypeAlias = "tuple[int, tuple[int, ...]]"


@dataclass(frozen=True)
class UniPC(Sampler):
    """UniPC-p with p = ``nodes``, 1 to 4; the corrector makes it of order p + 1.

    variant: "bh1" or "bh2". predicts: "x0" or "eps". lower_order_final: order p - 1, ..., 1 in the last
    steps, as published. The order rises 1, 2, ... with the history; the last step is not corrected.
    """

    name: ClassVar[str] = "unipc"
    order: ClassVar[float] = 3
    reference: ClassVar[str] = "Zhao et al. 2023 (UniPC), algorithms 1 and 2"
    exact_for: ClassVar[frozenset[str]] = frozenset({"point"})

    nodes: int = 2
    variant: str = "bh2"
    predicts: str = "x0"
    lower_order_final: bool = True

    def __post_init__(self) -> None:
        if check_count(self.nodes, "nodes") > 4:
            raise ValueError(f"nodes must be at most 4, got {self.nodes}.")
        if self.variant not in ("bh1", "bh2"):
            raise unknown_name("variant", self.variant, ("bh1", "bh2"))
        if self.predicts not in ("x0", "eps"):
            raise unknown_name("predicts", self.predicts, ("x0", "eps"))
        object.__setattr__(self, "order", self.nodes + 1)

    def recipe(self, path: Path) -> Iterator[Instruction]:
        n = path.steps
        orders = [min(self.nodes, n - i) if self.lower_order_final else self.nodes for i in range(n)]
        predictors = [(i, newest(path, i, orders[i])) for i in range(n)]
        correctors = [(i, (i + 1, *nodes) if nodes else ()) for i, nodes in predictors[:-1]]
        rules: list[Rule] = [*predictors, *correctors]
        weights = exponential_weights(path, rules, 1.0 if self.predicts == "x0" else -1.0)
        weights = [
            self._shortcut(path, rule) if len(rule[1]) == 2 else w
            for rule, w in zip(rules, weights, strict=True)
        ]
        yield self._evaluate(path, 0, state(0))
        for i in range(n):
            corrected = i + 1 < n and bool(correctors[i][1])
            guess = f"p[{i + 1}]" if corrected else state(i + 1)
            yield self._advance(path, guess, predictors[i], weights[i])
            if i + 1 < n:
                yield self._evaluate(path, i + 1, guess)
            if corrected:
                yield self._advance(path, state(i + 1), correctors[i], weights[n + i])

    def _evaluate(self, path: Path, i: int, x: str) -> Instruction:
        """The prediction at node i; x0 at alpha = 0, where eps says nothing of the data."""
        return path.evaluate(f"m[{i}]", x, i, "x0" if path[i].alpha == 0 else self.predicts)

    def _advance(self, path: Path, out: str, rule: Rule, weights: Sequence[Number]) -> Combine:
        i, nodes = rule
        (_, alpha, sigma, *_), (_, ahead, clean, *_) = path[i], path[i + 1]
        if self.predicts == "x0" or alpha == 0:
            keep, factor = clean / sigma, ahead
            first = ahead - alpha * keep
        else:
            keep, factor = ahead / alpha, -clean
            first = clean - sigma * keep
        terms = [(factor * w, f"m[{j}]") for w, j in zip(weights, nodes, strict=True)]
        return combine(out, [(keep, state(i)), *(terms or [(first, f"m[{i}]")])])

    def _shortcut(self, path: Path, rule: Rule) -> Sequence[Number]:
        """Weights of total m_i + b/2 (m_first - m_second) / r, r their distance over h."""
        i, (first, second) = rule
        h = path.lam[i + 1] - path.lam[i]
        total = -expm1(-h) if self.predicts == "x0" else expm1(h)
        slope = (h if self.variant == "bh1" else total) / 2 * h / (path.lam[first] - path.lam[second])
        return [slope, total - slope] if first > i else [total + slope, -slope]


@dataclass(frozen=True)
class UniPC2(UniPC):
    """UniPC-2 (see `UniPC`)."""

    name: ClassVar[str] = "unipc-2"


@dataclass(frozen=True)
class UniPC3(UniPC):
    """UniPC-3 (see `UniPC`)."""

    name: ClassVar[str] = "unipc-3"
    order: ClassVar[float] = 4

    nodes: int = 3
