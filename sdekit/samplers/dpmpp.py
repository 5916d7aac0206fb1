r"""DPM-Solver++: multistep exponential integrators for the x0-prediction in half log-SNR, with any noise.

With h = lambda' - lambda and rate = 1 + eta^2 the reverse SDE of stochasticity eta is solved by

    x' = (sigma'/sigma) e^{-eta^2 h} x + alpha' rate \int_0^h e^{-rate (h - u)} D(u) du
         + sigma' sqrt(1 - e^{-2 eta^2 h}) xi,

exactly but for D(u), the x0-prediction along the way. `dpmpp-2m` and `dpmpp-3m` are eta = 0,
`sde-dpmpp-2m` and `sde-dpmpp-3m` any eta, 1 by default (k-diffusion's eta is eta^2 here). A polynomial
through the newest nodes, integrated exactly, is exponential Adams-Bashforth; the published formulas are

    2M "heun"       exactly that, with 2 nodes;
    2M "midpoint"   the slope of the same line, with half the weight of the constant: (1 - e^{-rate h})/2;
    3M "published"  the same parabola, with half of its quadratic term: of order 2, not 3.

A step with lambda infinite at either end is of first order, and infinite nodes are no history.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from sdekit._math import exp, expm1, sqrt, table
from sdekit._typing import Number
from sdekit.errors import unknown_name
from sdekit.samplers.base import Path, Sampler, step
from sdekit.samplers.multistep import exponential_weights, grouped, newest
from sdekit.samplers.plan import Instruction, state
from sdekit.samplers.weights import exponential

__all__ = ["DPMpp2M", "DPMpp3M", "SDEDPMpp2M", "SDEDPMpp3M", "transfer"]

Rules = list[tuple[int, tuple[int, ...]]]


def transfer(path: Path, i: int, eta: Number = 0.0) -> tuple[Number, Number, Number]:
    """(keep, gain, noise) of x' = keep x + gain D + noise xi, exact where D is constant over the step.

    keep = (sigma'/sigma) e^{-eta^2 h}, gain = alpha' - alpha keep, noise = sigma' sqrt(1 - e^{-2 eta^2 h}):
    exact limits at alpha = 0 and at sigma' = 0.
    """
    (_, alpha, sigma, *_), (_, ahead, clean, *_) = path[i], path[i + 1]
    if clean == 0:
        return 0.0, ahead, 0.0
    keep: Number = 0.0
    noise: Number = clean
    if eta == 0:
        keep, noise = clean / sigma, 0.0
    elif alpha != 0:
        d = -eta * eta * (path.lam[i + 1] - path.lam[i])
        keep, noise = clean / sigma * exp(d), clean * sqrt(-expm1(2 * d))
    return keep, ahead - alpha * keep, noise


def _multistep(
    path: Path, rules: Rules, weights: Sequence[Sequence[Number]], eta: float
) -> Iterator[Instruction]:
    """The module's step with ``weights`` of the integral, 1 in all for a constant without decay."""
    for i, nodes in rules:
        keep, gain, noise = transfer(path, i, eta)
        factor = path[i + 1].alpha * (1 + eta * eta)
        terms = [(gain, f"D[{i}]")]
        if len(nodes) > 1:
            terms = [(factor * w, f"D[{j}]") for w, j in zip(weights[i], nodes, strict=True)]
        yield path.evaluate(f"D[{i}]", state(i), i)
        yield step(i, [(keep, state(i)), *terms], [(noise, i)])


def _rules(path: Path, order: int) -> Rules:
    return [(i, newest(path, i, order)) for i in range(path.steps)]


def _published_parabola(path: Path, rules: Rules, rate: float) -> list[Sequence[Number]]:
    r"""Weights of D_i + f_1 u + f_2 u^2 / 2, with f_1, f_2 of the parabola D_i + f_1 u + f_2 u^2."""
    lam, exact = path.lam, exponential_weights(path, rules, rate)

    def weights(ks: list[int]) -> Tensor:
        width = table([lam[rules[k][0] + 1] - lam[rules[k][0]] for k in ks])
        own = table([exact[k] for k in ks])
        if own.shape[1] < 3:
            return own
        u = table([[lam[j] - lam[rules[k][0]] for j in rules[k][1]] for k in ks])
        unit = table([0.0, 0.5, 1.0]) * width[:, None]
        # \int e^{-rate (h - u)} u^2 du, u^2 = h^2 (L_{1/2} / 4 + L_1) on the nodes 0, h/2, h.
        square = (exponential(unit, width, rate) @ table([0.0, 0.25, 1.0])) * width * width
        a, b, d = u.unbind(1)
        second = 1 / table([[1.0] * 3] * len(ks))
        second[:, 0] = 1 / ((a - b) * (a - d))
        second[:, 1] = 1 / ((b - a) * (b - d))
        second[:, 2] = 1 / ((d - a) * (d - b))
        return own - 0.5 * square[:, None] * second

    return grouped(rules, weights)


@dataclass(frozen=True)
class DPMpp2M(Sampler):
    """x' = (sigma'/sigma) x + (alpha' - alpha sigma'/sigma) [(1 + r) D_i - r D_{i-1}].

    r = h_i / (2 h_{i-1}), h_i = lambda_{i+1} - lambda_i, and alpha' - alpha sigma'/sigma is
    -alpha' expm1(-h_i). D_i is the x0-prediction at node i. The first step, and any step whose history
    reaches alpha = 0 (h infinite, r = 0), is of first order, and so is a step to sigma' = 0: x' = alpha' D.
    """

    name: ClassVar[str] = "dpmpp-2m"
    order: ClassVar[float] = 2
    reference: ClassVar[str] = "Lu et al. 2022 (DPM-Solver++), algorithm 2"
    exact_for: ClassVar[frozenset[str]] = frozenset({"point"})

    def recipe(self, path: Path) -> Iterator[Instruction]:
        rules = _rules(path, 2)
        yield from _multistep(path, rules, _midpoint(path, rules, 0.0), 0.0)


def _midpoint(path: Path, rules: Rules, eta: float) -> list[Sequence[Number]]:
    """((1 + r), -r) (1 - e^{-rate h}) / rate, r = h_i / (2 h_{i-1})."""
    lam, rate = path.lam, 1 + eta * eta
    found: list[Sequence[Number]] = []
    for i, nodes in rules:
        h = lam[i + 1] - lam[i]
        total = -expm1(-rate * h) / rate
        r = h / (2 * (lam[i] - lam[nodes[1]])) if len(nodes) == 2 else 0.0
        found.append([(1 + r) * total, -r * total][: len(nodes)])
    return found


@dataclass(frozen=True)
class DPMpp3M(Sampler):
    r"""x' = (sigma'/sigma) x + alpha' \int_0^h e^{-(h - u)} (parabola through D_i, D_{i-1}, D_{i-2}) du.

    The order rises 1, 2, 3 with the history. compat = "published" takes half of the quadratic term, as the
    published third-order multistep formula does; it is then of order 2.
    """

    name: ClassVar[str] = "dpmpp-3m"
    order: ClassVar[float] = 3
    reference: ClassVar[str] = "Lu et al. 2022 (DPM-Solver++), third-order multistep; exact integral"
    exact_for: ClassVar[frozenset[str]] = frozenset({"point"})

    compat: str | None = None

    def __post_init__(self) -> None:
        _check_compat(self.compat)
        object.__setattr__(self, "order", 2 if self.compat else 3)

    def recipe(self, path: Path) -> Iterator[Instruction]:
        yield from _third(path, 0.0, self.compat)


@dataclass(frozen=True)
class SDEDPMpp2M(Sampler):
    """The module's step with the line through D_i and D_{i-1}; weak order 2.

    solver_type "midpoint" (the default, the paper's) or "heun", the exact integral. eta = 0 with
    "midpoint" is `dpmpp-2m`.
    """

    name: ClassVar[str] = "sde-dpmpp-2m"
    order: ClassVar[float] = 2
    reference: ClassVar[str] = "Lu et al. 2022 (DPM-Solver++), SDE-DPM-Solver++(2M)"
    stochastic: ClassVar[bool] = True
    exact_for: ClassVar[frozenset[str]] = frozenset({"point"})

    eta: float = 1.0
    solver_type: str = "midpoint"

    def __post_init__(self) -> None:
        if self.solver_type not in ("midpoint", "heun"):
            raise unknown_name("solver_type", self.solver_type, ("midpoint", "heun"))

    def recipe(self, path: Path) -> Iterator[Instruction]:
        rules = _rules(path, 2)
        exact = self.solver_type == "heun"
        weights = (
            exponential_weights(path, rules, 1 + self.eta**2) if exact else _midpoint(path, rules, self.eta)
        )
        yield from _multistep(path, rules, weights, self.eta)


@dataclass(frozen=True)
class SDEDPMpp3M(Sampler):
    """The module's step with the parabola through the three newest D; weak order 2, at eta = 0 `dpmpp-3m`.

    compat = "published" takes half of the quadratic term, as k-diffusion's sampler does.
    """

    name: ClassVar[str] = "sde-dpmpp-3m"
    order: ClassVar[float] = 2
    reference: ClassVar[str] = "Lu et al. 2022 (DPM-Solver++); Crowson 2023 (k-diffusion); exact integral"
    stochastic: ClassVar[bool] = True
    exact_for: ClassVar[frozenset[str]] = frozenset({"point"})

    eta: float = 1.0
    compat: str | None = None

    def __post_init__(self) -> None:
        _check_compat(self.compat)
        object.__setattr__(self, "order", 2 if self.eta or self.compat else 3)

    def recipe(self, path: Path) -> Iterator[Instruction]:
        yield from _third(path, self.eta, self.compat)


def _third(path: Path, eta: float, compat: str | None) -> Iterator[Instruction]:
    rules = _rules(path, 3)
    integral = exponential_weights if compat is None else _published_parabola
    return _multistep(path, rules, integral(path, rules, 1 + eta * eta), eta)


def _check_compat(compat: str | None) -> None:
    if compat not in (None, "published"):
        raise unknown_name("compat", compat, ("published",))
