"""Explicit Runge-Kutta methods on ODEs: one engine, the methods are data (`sdekit.solvers.tableaus`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from sdekit.solvers.base import Attempt, Carry, EmbeddedSolver, Interval, Solver, register
from sdekit.solvers.control import Controller, error_norm
from sdekit.solvers.tableaus import (
    BOGACKI_SHAMPINE,
    DORMAND_PRINCE,
    EULER,
    HEUN,
    KUTTA,
    MIDPOINT,
    TSITOURAS,
    Tableau,
)
from sdekit.solvers.tableaus_high import DOP853, THIRD

__all__ = [
    "RK4",
    "BogackiShampine",
    "DormandPrince",
    "DormandPrince8",
    "EmbeddedRungeKutta",
    "Euler",
    "Heun",
    "Midpoint",
    "RungeKutta",
    "Tsitouras",
]


def weighted(weights: Sequence[float], stages: Sequence[Tensor]) -> Tensor:
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
            cls.nodes = cls.tableau.c + cls.tableau.c_more

    def init(self, system: Any, x: Tensor, t: Tensor) -> Carry:
        """The first slope, for methods whose last stage is the next step's first; else ()."""
        return (system.drift(x, t),) if self.tableau.fsal else ()

    def slopes(self, system: Any, x: Tensor, interval: Interval, carry: Carry) -> tuple[Tensor, ...]:
        """The stages k_i, each (B, *event)."""
        ks = list(carry) or [system.drift(x, interval.times[0])]
        for row, t in zip(self.tableau.a[1:], interval.times[1:], strict=False):
            ks.append(system.drift(x + weighted(row, ks) * interval.h, t))
        return tuple(ks)

    def step(self, system: Any, x: Tensor, interval: Interval, carry: Carry) -> tuple[Tensor, Carry]:
        ks = self.slopes(system, x, interval, carry)
        return x + weighted(self.tableau.b, ks) * interval.h, ks[-1:] if self.tableau.fsal else ()


class EmbeddedRungeKutta(RungeKutta, EmbeddedSolver):
    r"""With the error estimate h sum_i e_i k_i and an interpolant, for methods with "fsal".

        x(t + theta h) = x0 + theta (r1 + (1 - theta) (r2 + theta (r3 + (1 - theta) (r4 + theta (...))))),
        r1 = x1 - x0, r2 = h k_first - r1, r3 = r1 - h k_last - r2, r4, r5, ... = h sum_i d_i k_i:

    values and slopes at both ends (cubic, order 3) and a further degree with each row d of the tableau.
    Shampine 1986; Hairer, Norsett and Wanner 1993, II.6.
    """

    def attempt(self, system: Any, x: Tensor, interval: Interval, carry: Carry) -> Attempt:
        ks = self.slopes(system, x, interval, carry)
        h = interval.h
        x1 = x + weighted(self.tableau.b, ks) * h
        return Attempt(x1, ks[-1:], weighted(self.tableau.e, ks) * h, ks)

    def complete(self, system: Any, x: Tensor, interval: Interval, attempt: Attempt) -> Attempt:
        ks, times = list(attempt.stages), interval.times[len(self.tableau.c) :]
        for row, t in zip(self.tableau.a_more, times, strict=True):
            ks.append(system.drift(x + weighted(row, ks) * interval.h, t))
        return attempt._replace(stages=tuple(ks))

    def interpolate(self, x: Tensor, h: Any, attempt: Attempt, theta: Any) -> Tensor:
        ks, last = attempt.stages, len(self.tableau.c) - 1
        r1 = attempt.x - x
        r2 = ks[0] * h - r1
        terms = [r1, r2, r1 - ks[last] * h - r2]
        terms += [weighted(row, ks) * h for row in self.tableau.dense]
        inner = terms[-1]
        for i in reversed(range(len(terms) - 1)):
            inner = terms[i] + inner * (theta if i % 2 else 1 - theta)
        state: Tensor = x + inner * theta
        return state


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
class Midpoint(RungeKutta):
    """x' = x + h f(x + h/2 f(x, t), t + h/2). Order 2."""

    name = "midpoint"
    order = 2
    tableau = MIDPOINT
    reference = "Runge 1895"


@register
@dataclass(frozen=True)
class RK4(RungeKutta):
    """x' = x + h (k1 + 2 k2 + 2 k3 + k4)/6, slopes at the start, twice in the middle, at the end. Order 4."""

    name = "rk4"
    order = 4
    tableau = KUTTA
    reference = "Kutta 1901"


@register
@dataclass(frozen=True)
class BogackiShampine(EmbeddedRungeKutta):
    """Order 3 with an embedded order 2; 3 evaluations a step; cubic dense output of order 3.

    For loose tolerances and drifts that are not smooth. t and ``compact`` as in `DormandPrince`.
    """

    controller: Controller = field(default_factory=Controller)
    compact: bool = False

    name = "rk23"
    order = 3
    error_order = 3
    tableau = BOGACKI_SHAMPINE
    reference = "Bogacki and Shampine 1989"


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


@register
@dataclass(frozen=True)
class Tsitouras(EmbeddedRungeKutta):
    """Order 5 with an embedded order 4; 6 evaluations a step; its own dense output of order 4.

    Smaller error constants than `DormandPrince`, since fewer simplifying assumptions are imposed. t and
    ``compact`` as there.
    """

    controller: Controller = field(default_factory=Controller)
    compact: bool = False

    name = "tsit5"
    order = 5
    error_order = 5
    tableau = TSITOURAS
    reference = "Tsitouras 2011"


@register
@dataclass(frozen=True)
class DormandPrince8(EmbeddedRungeKutta):
    """Order 8, 12 evaluations a step; dense output of order 7, 3 more where output falls inside a step.

    Two estimates, e5 of size h^6 and e3 of size h^4, make one of size h^8: the step is good when

        n5^2/sqrt(n5^2 + 0.01 n3^2) <= 1,   n = norm of e over atol + rtol |x|.

    For smooth drifts and tolerances below about 1e-6, in float64. t and ``compact`` as in `DormandPrince`.
    Hairer, Norsett and Wanner 1993, II.5 and II.10.
    """

    controller: Controller = field(default_factory=Controller)
    compact: bool = False

    name = "dop853"
    order = 8
    error_order = 8
    tableau = DOP853
    reference = "Hairer, Norsett and Wanner 1993, II.5 and II.10 (DOP853)"

    def norm(self, x: Tensor, h: Any, attempt: Attempt, rtol: float, atol: float) -> Tensor:
        third = weighted(THIRD, attempt.stages) * h
        n5, n3 = (error_norm(e, x, attempt.x, rtol, atol) for e in (attempt.error, third))
        both = n5 * (n5 / torch.hypot(n5, 0.1 * n3))
        return torch.where(n5 == 0, n5, both.nan_to_num(torch.inf))
