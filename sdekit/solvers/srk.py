"""Stochastic Runge-Kutta methods of strong order 1.5: two engines, the methods are data.

The iterated integrals of a step, in what a path gives (W, H), with I_1 = W and |h| its variance:

    I_10 / h = W/2 + H,   I_11 / sqrt|h| = (W^2 - |h|)/(2 sqrt|h|),   I_111 / |h| = (W^3 - 3 |h| W)/(6 |h|).
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from sdekit.errors import CapabilityError
from sdekit.sde.probes import dependence, perturbed
from sdekit.solvers import srk_tableaus as tableaus
from sdekit.solvers.base import Attempt, Carry, EmbeddedSolver, Interval, register
from sdekit.solvers.control import Controller
from sdekit.solvers.rows import length
from sdekit.solvers.srk_tableaus import AdditiveTableau, DiagonalTableau

__all__ = ["SOSRA", "SOSRI", "SRA1", "SRA3", "SRIW1", "SRK"]

DRIFT_SHARE = 1 / 6
"""Of the drift's part in the error estimate (Rackauckas and Nie 2017)."""


def weigh(weights: Sequence[float], parts: Sequence[Tensor | None]) -> Tensor | None:
    """sum_i w_i p_i, left to right, zeros skipped; None where nothing is left."""
    total: Tensor | None = None
    for w, part in zip(weights, parts, strict=False):
        if w != 0.0 and part is not None:
            term = part if w == 1.0 else part * w
            total = term if total is None else total + term
    return total


def plus(x: Tensor, *terms: Tensor | None) -> Tensor:
    """x and the terms there are, added left to right."""
    for term in terms:
        x = x if term is None else x + term
    return x


def times(part: Tensor | None, factor: Any) -> Tensor | None:
    """part factor, None for None."""
    return None if part is None else part * factor


def check_additive(system: Any, x: Tensor, t: Tensor) -> None:
    """Refuse a matrix diffusion that depends on the state. Raises CapabilityError."""
    sde = system.system
    if sde.noise_type == "additive":
        return
    found, at = None, x.detach()
    with suppress(Exception):  # torch.func cannot differentiate it, or not near x: on trust
        found = dependence(lambda y: sde.noise_field(y, t), at)
        found = found or dependence(lambda y: sde.noise_field(y, t), perturbed(at))
    if found is not None:
        raise CapabilityError(
            f"this method is for noise that does not depend on the state, and that of {type(sde).__name__} "
            f"(noise_type {sde.noise_type!r}) does, {found.where}: it would lose its order. Next: "
            f"solver='milstein', or 'slowrk' on the Stratonovich form."
        )


def _drift_error(ks: Sequence[Tensor | None], h: Any) -> Tensor:
    """|h (k_1 - k_2)|/6, of size |h|^(3/2)."""
    first, second = ks[0], ks[1]
    assert first is not None
    assert second is not None
    change: Tensor = (first - second) * h
    return change.abs() * DRIFT_SHARE


def additive_attempt(
    tab: AdditiveTableau, at: dict[float, Tensor], system: Any, x: Tensor, i: Interval
) -> Attempt:
    """The step of `SRA1`; ``at``: node -> time."""
    assert i.W is not None
    assert i.H is not None
    area = 0.5 * i.W + i.H
    noise = {c: system.diffusion(x, at[c]) for c in dict.fromkeys(tab.c1)}
    shifts = [system.apply_noise(noise[c], area) for c in tab.c1]
    ks: list[Tensor | None] = []
    for a, b, c in zip(tab.a0, tab.b0, tab.c0, strict=True):
        ks.append(system.drift(plus(x, times(weigh(a, ks), i.h), weigh(b, shifts)), at[c]))
    whole = weigh(tab.beta1, [noise[c] for c in tab.c1])
    change = weigh(tab.beta2, shifts)
    assert whole is not None
    assert change is not None
    new = plus(x, times(weigh(tab.alpha, ks), i.h), system.apply_noise(whole, i.W), change)
    return Attempt(new, (), _drift_error(ks, i.h) + change.abs(), ())


def diagonal_attempt(
    tab: DiagonalTableau, at: dict[float, Tensor], system: Any, x: Tensor, i: Interval
) -> Attempt:
    """The step of `SRIW1`; ``at``: node -> time."""
    assert i.W is not None
    assert i.H is not None
    W, variance = i.W, length(i.h, i.W)
    area = 0.5 * W + i.H
    double = (W * W - variance) / (2.0 * variance**0.5)
    triple = W * (W * W - 3.0 * variance) / (6.0 * variance)
    root = abs(i.h) ** 0.5
    ks: list[Tensor | None] = []
    gs: list[Tensor] = []
    for stage in range(len(tab.c0)):
        ahead = times(weigh(tab.a0[stage], ks), i.h)
        pushed = weigh(tab.b0[stage], gs)
        shift = None if pushed is None else system.apply_noise(pushed, area)
        used = tab.alpha[stage] or any(row[stage] for a in (tab.a0, tab.a1) for row in a[stage + 1 :])
        aside = plus(x, times(weigh(tab.a1[stage], ks), i.h), times(weigh(tab.b1[stage], gs), root))
        gs.append(system.diffusion(aside, at[tab.c1[stage]]))
        ks.append(system.drift(plus(x, ahead, shift), at[tab.c0[stage]]) if used else None)

    def term(weights: Sequence[float], integral: Tensor) -> Tensor:
        whole = weigh(weights, gs)
        assert whole is not None
        out: Tensor = system.apply_noise(whole, integral)
        return out

    last = term(tab.beta3, area) + term(tab.beta4, triple)
    new = plus(x, times(weigh(tab.alpha, ks), i.h), term(tab.beta1, W), term(tab.beta2, double), last)
    return Attempt(new, (), _drift_error(ks, i.h) + last.abs(), ())


@dataclass(frozen=True)
class StrongRungeKutta(EmbeddedSolver):
    """What the methods share: W and H, and an error estimate of size |h|^(3/2)."""

    controller: Controller = field(default_factory=Controller)
    compact: bool = False

    kind = "sde"
    strong_order = 1.5
    normals = 2
    error_order = 1.5

    def _at(self, interval: Interval) -> dict[float, Tensor]:
        return dict(zip(self.nodes, interval.times, strict=True))


class AdditiveRungeKutta(StrongRungeKutta):
    """The scheme of `SRA1` for the subclass's tableau."""

    noise_types = ("additive", "commutative")
    sde_types = ("ito", "stratonovich")
    weak_order = 2.0
    tableau: AdditiveTableau

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.nodes = cls.tableau.nodes

    def init(self, system: Any, x: Tensor, t: Tensor) -> Carry:
        """Nothing to keep. Raises CapabilityError for a matrix diffusion that depends on the state."""
        check_additive(system, x, t)
        return ()

    def attempt(self, system: Any, x: Tensor, interval: Interval, carry: Carry) -> Attempt:
        return additive_attempt(self.tableau, self._at(interval), system, x, interval)


class DiagonalRungeKutta(StrongRungeKutta):
    """The scheme of `SRIW1` for the subclass's tableau."""

    noise_types = ("additive", "scalar", "diagonal")
    sde_types = ("ito",)
    weak_order = 1.5
    tableau: DiagonalTableau

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.nodes = cls.tableau.nodes

    def attempt(self, system: Any, x: Tensor, interval: Interval, carry: Carry) -> Attempt:
        return diagonal_attempt(self.tableau, self._at(interval), system, x, interval)


@register
@dataclass(frozen=True)
class SRA1(AdditiveRungeKutta):
    """Noise that does not depend on the state: stages of the drift alone, two here,

        H_i = x + h sum_j a_ij f(H_j, t + c_j h) + sum_j b_ij G(t + c'_j h) (W/2 + H),
        x'  = x + h sum_i alpha_i f(H_i, t + c_i h) + sum_i G(t + c'_i h) (beta_i W + beta'_i (W/2 + H)).

    Strong order 1.5, 2 where the drift is linear; weak order 2. "additive" noise, and "commutative" noise
    whose matrix does not depend on the state (CapabilityError where it does). The error estimate is
    |h (f_1 - f_2)|/6 + |sum_i beta'_i G_i (W/2 + H)| (Rackauckas and Nie 2017).
    Roessler 2010, SIAM Journal on Numerical Analysis 48, 922.
    """

    name = "sra1"
    tableau = tableaus.SRA1
    reference = "Roessler 2010"


@register
@dataclass(frozen=True)
class SRA3(AdditiveRungeKutta):
    """The scheme of `SRA1` with three stages: order 3 where there is no noise, the weak order is 2 with it.

    Roessler 2010, SIAM Journal on Numerical Analysis 48, 922.
    """

    name = "sra3"
    tableau = tableaus.SRA3
    reference = "Roessler 2010"


@register
@dataclass(frozen=True)
class SOSRA(AdditiveRungeKutta):
    """The scheme of `SRA1` with three stages, chosen for stability and long steps.

    Its weights of the noise reach 17.5, so float32 loses one digit of the noise where the others lose none.
    Rackauckas and Nie 2018 (arXiv:1804.04344).
    """

    name = "sosra"
    tableau = tableaus.SOSRA
    reference = "Rackauckas and Nie 2018"


@register
@dataclass(frozen=True)
class SRIW1(DiagonalRungeKutta):
    """Diagonal and scalar noise, four stages: with I_10/h = W/2 + H and the integrals of this module,

        H_i  = x + h sum_j a_ij f(H_j) + (I_10/h) sum_j b_ij g(H'_j),
        H'_i = x + h sum_j a'_ij f(H_j) + sqrt|h| sum_j b'_ij g(H'_j),
        x'   = x + h sum_i alpha_i f(H_i) + sum_i (beta1_i I_1 + beta2_i I_11/sqrt|h| + beta3_i I_10/h
                   + beta4_i I_111/|h|) g(H'_i),

    f at t + c0_i h and g at t + c1_i h. Ito, strong and weak order 1.5; two evaluations of the drift and four
    of the diffusion. The error estimate is |h (f_1 - f_2)|/6 and the size of the terms of beta3 and beta4
    (Rackauckas and Nie 2017). Roessler 2010, SIAM Journal on Numerical Analysis 48, 922.
    """

    name = "sriw1"
    tableau = tableaus.SRIW1
    reference = "Roessler 2010"


@register
@dataclass(frozen=True)
class SOSRI(DiagonalRungeKutta):
    """The scheme of `SRIW1` with coefficients chosen for stability, four evaluations of drift and diffusion.

    Its stages look at the drift from t - 0.042 h to t + 3.75 h: an equation that ends at a time needs another
    method for its last steps. Rackauckas and Nie 2018 (arXiv:1804.04344).
    """

    name = "sosri"
    tableau = tableaus.SOSRI
    reference = "Rackauckas and Nie 2018"


@register
@dataclass(frozen=True)
class SRK(StrongRungeKutta):
    """One name for elementwise noise: `SRA1` where it is additive, Roessler's SRID2 (the scheme of `SRIW1`,
    order 3 where there is no noise) where it is diagonal or scalar.

    Ito, strong and weak order 1.5. Roessler 2010.
    """

    name = "srk"
    noise_types = ("additive", "scalar", "diagonal")
    sde_types = ("ito",)
    weak_order = 1.5
    nodes = tuple(sorted({*tableaus.SRA1.nodes, *tableaus.SRID2.nodes}))
    reference = "Roessler 2010"

    def attempt(self, system: Any, x: Tensor, interval: Interval, carry: Carry) -> Attempt:
        at = self._at(interval)
        if system.system.noise_type == "additive":
            return additive_attempt(tableaus.SRA1, at, system, x, interval)
        return diagonal_attempt(tableaus.SRID2, at, system, x, interval)
