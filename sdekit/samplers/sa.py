r"""SA-Solver: stochastic Adams, predictor, one evaluation, free corrector.

The SDE of `sdekit.samplers.dpmpp` with a stochasticity tau that may change from step to step:

    x' = (sigma'/sigma) e^{-tau^2 h} x + alpha' (1 + tau^2) sum_j w_j D_j
         + sigma' sqrt(1 - e^{-2 tau^2 h}) xi,
    w_j = \int_0^h e^{-(1 + tau^2)(h - u)} L_j(u) du,

L_j the Lagrange basis in lambda. The predictor uses the newest nodes up to i, the corrector node i + 1
among them, with D_{i+1} taken at the predicted state and the same xi. The last step is not corrected.
tau = 0 is the exponential Adams predictor-corrector of the probability flow.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, TypeAlias

from sdekit._math import value
from sdekit._typing import Number
from sdekit.errors import check_count, unknown_name
from sdekit.samplers.base import Path, Sampler
from sdekit.samplers.dpmpp import transfer
from sdekit.samplers.multistep import exponential_weights, newest
from sdekit.samplers.plan import Combine, Instruction, combine, state

__all__ = ["SASolver", "adams"]

Rule: TypeAlias = "tuple[int, tuple[int, ...]]"
Where: TypeAlias = "tuple[float, float] | Callable[[float], float] | None"


def with_new(path: Path, i: int, order: int) -> tuple[int, ...]:
    """Nodes of a corrector of the step from i: i + 1 and the newest ``order`` - 1; empty where none is."""
    old = newest(path, i, order - 1) if order > 1 else ()
    return (i + 1, *old) if path.finite(i) else ()


def adams(
    path: Path,
    predictors: Sequence[Rule],
    correctors: Sequence[Rule],
    weights: Sequence[Sequence[Number]],
    taus: Sequence[Number],
) -> Iterator[Instruction]:
    """Predict, evaluate, correct; weights of the predictors first, then of the correctors (see module).

    An empty rule is a first-order step as a predictor, and no correction as a corrector.
    """

    def advance(out: str, rule: Rule, w: Sequence[Number]) -> Combine:
        i, nodes = rule
        keep, gain, noise = transfer(path, i, taus[i])
        factor = path[i + 1].alpha * (1 + taus[i] * taus[i])
        terms = [(factor * v, f"D[{j}]") for v, j in zip(w, nodes, strict=True)]
        return combine(out, [(keep, state(i)), *(terms or [(gain, f"D[{i}]")])], [(noise, i)])

    yield path.evaluate("D[0]", state(0), 0)
    for i in range(path.steps):
        last = i + 1 == path.steps
        corrected = not last and bool(correctors[i][1])
        guess = f"p[{i + 1}]" if corrected else state(i + 1)
        yield advance(guess, predictors[i], weights[i])
        if not last:
            yield path.evaluate(f"D[{i + 1}]", guess, i + 1)
        if corrected:
            yield advance(state(i + 1), correctors[i], weights[path.steps + i])


@dataclass(frozen=True)
class SASolver(Sampler):
    """The scheme of the module with tau = eta where ``where`` allows it, and 0 elsewhere.

    eta: 1 by default. where: None, everywhere; (low, high), in that range of rho = sigma/alpha (on EDM's
    process of sigma); or a function of rho that multiplies eta. predictor, corrector: how many nodes each
    uses (the paper's s_p and s_c + 1); corrector 0 for none. compat = "published" integrates the slope of
    a line as (1 + tau^2) h / 2, as the published code does where a predictor or corrector has two nodes.

    Weak order 2; 1 where the corrector has one node, or there is none and the predictor has one. At eta = 0
    the order of the exponential Adams pair.
    """

    name: ClassVar[str] = "sa-solver"
    order: ClassVar[float] = 2
    reference: ClassVar[str] = "Xue et al. 2023 (SA-Solver), algorithm 1"
    stochastic: ClassVar[bool] = True
    exact_for: ClassVar[frozenset[str]] = frozenset({"point"})

    eta: float = 1.0
    where: Where = None
    predictor: int = 3
    corrector: int = 4
    compat: str | None = None

    def __post_init__(self) -> None:
        for name, least in (("predictor", 1), ("corrector", 0)):
            if check_count(getattr(self, name), name, minimum=least) > 6:
                raise ValueError(f"{name} must be at most 6, got {getattr(self, name)}.")
        if self.compat not in (None, "published"):
            raise unknown_name("compat", self.compat, ("published",))
        exact = min(self.predictor + 1, self.corrector) if self.corrector else self.predictor
        object.__setattr__(self, "order", min(exact, 2) if self.eta else exact)

    def taus(self, path: Path) -> list[float]:
        """tau of each step, from rho at its start."""
        if callable(self.where):
            found = [self.eta * float(self.where(value(rho))) for rho in path.rho[:-1]]
            if not all(tau >= 0 and math.isfinite(tau) for tau in found):
                raise ValueError(f"where(rho) must be finite and >= 0, got {found}.")
            return found
        low, high = (0.0, math.inf) if self.where is None else self.where
        return [self.eta if low <= value(rho) <= high else 0.0 for rho in path.rho[:-1]]

    def recipe(self, path: Path) -> Iterator[Instruction]:
        taus, n = self.taus(path), path.steps
        predictors: list[Rule] = [(i, newest(path, i, self.predictor)) for i in range(n)]
        correctors: list[Rule] = [
            (i, with_new(path, i, self.corrector) if self.corrector else ()) for i in range(n - 1)
        ]
        rules = [*predictors, *correctors]
        weights = exponential_weights(path, rules, [1 + taus[i] ** 2 for i, _ in rules])
        if self.compat == "published":
            weights = [
                self._line(path, rule, taus[rule[0]]) if len(rule[1]) == 2 else w
                for rule, w in zip(rules, weights, strict=True)
            ]
        return adams(path, predictors, correctors, weights, taus)

    @staticmethod
    def _line(path: Path, rule: Rule, tau: float) -> Sequence[Number]:
        """Weights of D_i + (slope) u with int e^{-rate (h - u)} u du replaced by h^2/2."""
        i, (first, second) = rule
        h = path.lam[i + 1] - path.lam[i]
        _, gain, _ = transfer(path, i, tau)
        total = gain / (path[i + 1].alpha * (1 + tau * tau))
        slope = h * h / 2 / (path.lam[first] - path.lam[second])
        return [slope, total - slope] if first > i else [total + slope, -slope]
