"""Explicit Runge-Kutta methods on ODEs: one engine, the methods are data (`sdekit.solvers.tableaus`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from sdekit.solvers.base import Attempt, Carry, EmbeddedSolver, Interval, Solver, register
from sdekit.solvers.control import Controller
from sdekit.solvers.tableaus import DORMAND_PRINCE, EULER, HEUN, Tableau

__all__ = ["DormandPrince", "EmbeddedRungeKutta", "Euler", "Heun", "RungeKutta"]


def _weighted(weights: Sequence[float], stages: Sequence[Tensor]) -> Tensor:
    """sum_i w_i k_i, left to right, zeros skipped; multiplied, then added, so that rows keep their bits."""
    terms = [k if w == 1.0 else k * w for w, k in zip(weights, stages, strict=False) if w != 0.0]
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return total


class RungeKutta(Solver):
    """k_i = f(x + h sum_j a_ij k_j, t + c_i h), x' = x + h sum_i b_i k_i, for the subclass's tableau."""

    kind = "ode"
    tableau: Tableau

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if hasattr(cls, "tableau"):
            cls.nodes = cls.tableau.c

    def init(self, system: Any, x: Tensor, t: Tensor) -> Carry:
        """The first slope, for methods whose last stage is the next step's first; else ()."""
        return (system.drift(x, t),) if self.tableau.fsal else ()

    def slopes(self, system: Any, x: Tensor, interval: Interval, carry: Carry) -> tuple[Tensor, ...]:
        """The stages k_i, each (B, *event)."""
        ks = list(carry) or [system.drift(x, interval.times[0])]
        for row, t in zip(self.tableau.a[1:], interval.times[1:], strict=True):
            ks.append(system.drift(x + _weighted(row, ks) * interval.h, t))
        return tuple(ks)

    def step(self, system: Any, x: Tensor, interval: Interval, carry: Carry) -> tuple[Tensor, Carry]:
        ks = self.slopes(system, x, interval, carry)
        return x + _weighted(self.tableau.b, ks) * interval.h, ks[-1:] if self.tableau.fsal else ()


class EmbeddedRungeKutta(RungeKutta, EmbeddedSolver):
    r"""With the error estimate h sum_i e_i k_i and a quartic interpolant, for methods with "fsal".

        x(t + theta h) = x0 + theta (r1 + (1 - theta) (r2 + theta (r3 + (1 - theta) r4))),
        r1 = x1 - x0, r2 = h k_first - r1, r3 = r1 - h k_last - r2, r4 = h sum_i d_i k_i:

    values and slopes at both ends and one more weight, order 4. Shampine 1986; Hairer, Norsett and
    Wanner 1993, II.6.
    """

    def attempt(self, system: Any, x: Tensor, interval: Interval, carry: Carry) -> Attempt:
        ks = self.slopes(system, x, interval, carry)
        h = interval.h
        x1 = x + _weighted(self.tableau.b, ks) * h
        return Attempt(x1, ks[-1:], _weighted(self.tableau.e, ks) * h, ks)

    def interpolate(self, x: Tensor, h: Any, attempt: Attempt, theta: Any) -> Tensor:
        ks = attempt.stages
        r1 = attempt.x - x
        r2 = ks[0] * h - r1
        r3 = r1 - ks[-1] * h - r2
        r4 = _weighted(self.tableau.dense, ks) * h
        rest = 1 - theta
        inner: Tensor = r1 + (r2 + (r3 + r4 * rest) * theta) * rest
        return x + inner * theta  # type: ignore[no-any-return]


@register
@dataclass(frozen=True)
class Euler(RungeKutta):
    """x' = x + h f(x, t). Order 1."""

    name = "euler"
    order = 1
    tableau = EULER
    reference = "Euler 1768"


@register
@dataclass(frozen=True)
class Heun(RungeKutta):
    """k1 = f(x, t), k2 = f(x + h k1, t + h), x' = x + h (k1 + k2)/2. Order 2."""

    name = "heun"
    order = 2
    tableau = HEUN
    reference = "Heun 1900"


@register
@dataclass(frozen=True)
class DormandPrince(EmbeddedRungeKutta):
    """Order 5 with an embedded order 4; 6 evaluations a step, since the last slope is used again.

    Every sample has its own t and h, so the drift is given t of shape (B,). ``compact``: True runs only
    the samples that are not finished yet, for drifts whose rows do not influence each other's bits
    (closed-form scores; not matrix products).
    """

    controller: Controller = field(default_factory=Controller)
    compact: bool = False

    name = "rk45"
    order = 5
    error_order = 5
    tableau = DORMAND_PRINCE
    reference = "Dormand and Prince 1980"
