r"""Single-step exponential integrators: DPM-Solver-2 and 3, DPM-Solver++(2S), and Karras's DPM2.

lambda = log(alpha/sigma), h = lambda' - lambda > 0, rho = e^{-lambda}. Stages lie at lambda + r h, between
the nodes of the grid. A step where lambda is infinite at either end is of first order, one evaluation.

Ancestral steps go down below the next node, to rho_down, and back up to it by a forward transition:

    rho_up^2 = min(1, eta^2 (1 - rho'^2/rho^2)) rho'^2,   rho_down^2 = rho'^2 - rho_up^2,

with noise alpha' rho_up xi, after Karras et al.'s and Crowson's ``get_ancestral_step``. Marginals are kept
exactly by the noise, so the weak order is that of the step down; eta = 1 has the noise of the reverse SDE.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

from sdekit._math import exp, log, sqrt, table
from sdekit._typing import Number
from sdekit.samplers.base import Path, Sampler, step
from sdekit.samplers.grids import Grid
from sdekit.samplers.plan import Instruction, combine, state
from sdekit.samplers.stages import first_order, midpoint, regular, transfer, width
from sdekit.samplers.weights import exponential
from sdekit.score.predictions import Node

__all__ = ["DPM2", "DPM3", "KDPM2", "DPMpp2S", "KDPM2Ancestral"]

POINT = frozenset({"point"})


def check_fraction(r: float, name: str, below: float = 1.0) -> None:
    """A stage at lambda + r h lies inside the step. Raises ValueError."""
    if not (isinstance(r, int | float) and math.isfinite(r) and 0 < r < below):
        raise ValueError(
            f"{name} must lie strictly between 0 and {below:.6g}, as a fraction of the step in half "
            f"log-SNR, got {r!r}. Next: the published value."
        )


def split(here: Node, ahead: Node, eta: float) -> tuple[Node, Number]:
    """(the node to go down to, the standard deviation alpha' rho_up of the noise that leads back up)."""
    q = (ahead.sigma * here.alpha) / (ahead.alpha * here.sigma)
    up2 = eta * eta * (1 - q) * (1 + q)
    if eta == 0:
        return ahead, 0.0
    if up2 >= 1:
        return ahead._replace(sigma=0.0), ahead.sigma
    down = sqrt((1 - eta * eta) + (eta * q) ** 2)
    return ahead._replace(sigma=ahead.sigma * down), ahead.sigma * sqrt(up2)


def targets(path: Path, r: float, eta: float) -> list[tuple[Node, Node | None, Number]]:
    """For each step (the node to go down to, the stage at lambda + r h or None, the noise's scale)."""
    goals = [split(path[i], path[i + 1], eta) for i in range(path.steps)]
    inner = [i for i, (down, _) in enumerate(goals) if regular(path[i], down)]
    rho = []
    for i in inner:
        top, down = path[i], goals[i][0]
        gap = log(down.sigma) - log(down.alpha) - log(top.sigma) + log(top.alpha)
        rho.append(top.sigma / top.alpha * exp(r * gap))
    stages: dict[int, Node] = dict(zip(inner, path.at(rho), strict=True))
    return [(down, stages.get(i), up) for i, (down, up) in enumerate(goals)]


@dataclass(frozen=True)
class DPM2(Sampler):
    """u = (alpha_r/alpha) x - sigma_r (e^{r h} - 1) eps,

    x' = (alpha'/alpha) x - sigma' (e^h - 1) (eps + (eps(u) - eps)/(2r)),  u at lambda + r h, r = r1 = 1/2.
    """

    name: ClassVar[str] = "dpm-2"
    order: ClassVar[float] = 2
    evaluations: ClassVar[int] = 2
    reference: ClassVar[str] = "Lu et al. 2022 (DPM-Solver), algorithms 1 and 4"
    exact_for: ClassVar[frozenset[str]] = POINT

    r1: float = 0.5

    def __post_init__(self) -> None:
        check_fraction(self.r1, "r1")

    def recipe(self, path: Path) -> Iterator[Instruction]:
        return midpoint_steps(path, self.r1, 0.0)


def midpoint_steps(path: Path, r: float, eta: float) -> Iterator[Instruction]:
    """DPM-Solver-2 down to each target, then the noise back up."""
    for i, (down, between, up) in enumerate(targets(path, r, eta)):
        x, tag, out = state(i), f"[{i}]", state(i + 1)
        if between is None:
            yield from first_order(path, path[i], down, x, tag, out, [(up, i)])
        else:
            yield from midpoint(path, path[i], between, down, r, x, tag, out, [(up, i)])


@dataclass(frozen=True)
class KDPM2(Sampler):
    """z_m = z + (rho_m - rho) eps(z),  z' = z + (rho' - rho) eps(z_m),  rho_m = sqrt(rho rho').

    Euler's midpoint rule in rho with the middle taken in ln rho: DPM-Solver-2 at r1 = 1/2 on every process,
    on the grid of Karras et al.
    """

    name: ClassVar[str] = "kdpm2"
    order: ClassVar[float] = 2
    evaluations: ClassVar[int] = 2
    reference: ClassVar[str] = "Lu et al. 2022 (DPM-Solver), algorithm 1, on the grid of Karras et al. 2022"
    default_grid: ClassVar[Grid] = Grid("karras")
    exact_for: ClassVar[frozenset[str]] = POINT

    def recipe(self, path: Path) -> Iterator[Instruction]:
        return midpoint_steps(path, 0.5, 0.0)


@dataclass(frozen=True)
class KDPM2Ancestral(Sampler):
    """z' = z + (rho_down - rho) eps(z_m) + rho_up xi: `KDPM2` to rho_down, then back up to rho'.

    rho_m = sqrt(rho rho_down). eta: 0 is kdpm2, 1 the reverse SDE; above 1 all of rho' may be noise.
    """

    name: ClassVar[str] = "kdpm2-ancestral"
    order: ClassVar[float] = 2
    evaluations: ClassVar[int] = 2
    reference: ClassVar[str] = "Karras et al. 2022; ancestral step of Song et al. 2021 (DDIM), equation 16"
    stochastic: ClassVar[bool] = True
    default_grid: ClassVar[Grid] = Grid("karras")
    exact_for: ClassVar[frozenset[str]] = POINT

    eta: float = 1.0

    def recipe(self, path: Path) -> Iterator[Instruction]:
        return midpoint_steps(path, 0.5, self.eta)


@dataclass(frozen=True)
class DPMpp2S(Sampler):
    """u = (sigma_r/sigma) x - alpha_r (e^{-r h} - 1) D,

    x' = (sigma'/sigma) x - alpha' (e^{-h} - 1) ((1 - 1/(2r)) D + D(u)/(2r)),  u at lambda + r h, r = r1.

    eta > 0: the ancestral variant, down to rho_down in place of rho', then the noise alpha' rho_up xi.
    """

    name: ClassVar[str] = "dpmpp-2s"
    order: ClassVar[float] = 2
    evaluations: ClassVar[int] = 2
    reference: ClassVar[str] = "Lu et al. 2022 (DPM-Solver++), algorithm 1"
    exact_for: ClassVar[frozenset[str]] = POINT

    r1: float = 0.5
    eta: float = 0.0

    def __post_init__(self) -> None:
        check_fraction(self.r1, "r1")

    def recipe(self, path: Path) -> Iterator[Instruction]:
        w = 1 / (2 * self.r1)
        for i, (down, between, up) in enumerate(targets(path, self.r1, self.eta)):
            x, here = state(i), path[i]
            if between is None:
                yield from first_order(path, here, down, x, f"[{i}]", state(i + 1), [(up, i)])
                continue
            yield from first_order(path, here, between, x, f"[{i}]", f"p[{i}]")
            yield path.evaluate(f"E[{i}]", f"p[{i}]", between)
            shrink = down.sigma / here.sigma
            gain = down.alpha - here.alpha * shrink
            terms = [(shrink, x), (gain * (1 - w), f"D[{i}]"), (gain * w, f"E[{i}]")]
            yield step(i, terms, [(up, i)])


@dataclass(frozen=True)
class DPM3(Sampler):
    r"""Three stages at lambda, lambda + r1 h and lambda + r2 h, r2 = 2/3:

        u1 = (alpha_1/alpha) x - sigma_1 (e^{r1 h} - 1) eps
        u2 = (alpha_2/alpha) x - sigma_2 \int_0^{r2 h} e^{r2 h - u} [eps, eps(u1)] du
        x' = (alpha'/alpha) x - sigma' \int_0^h e^{h - u} [eps, eps(u2)] du,

    [a, b] the line through its two values at the nodes of their evaluation. Written with phi-functions it
    is the published form; the integrals keep their digits as h -> 0. Order 3 holds for any r1 and r2 = 2/3.
    """

    name: ClassVar[str] = "dpm-3"
    order: ClassVar[float] = 3
    evaluations: ClassVar[int] = 3
    reference: ClassVar[str] = "Lu et al. 2022 (DPM-Solver), algorithms 2 and 5"
    exact_for: ClassVar[frozenset[str]] = POINT

    r1: float = 1 / 3

    def __post_init__(self) -> None:
        check_fraction(self.r1, "r1", 2 / 3)

    def recipe(self, path: Path) -> Iterator[Instruction]:
        r1, r2 = self.r1, 2 / 3
        between = path.between((r1, r2))
        first, last = _line_weights(path, r1, r2), _line_weights(path, r2, 1.0)
        for i in range(path.steps):
            x, here, ahead = state(i), path[i], path[i + 1]
            if not between[i]:
                yield from first_order(path, here, ahead, x, f"[{i}]", state(i + 1))
                continue
            one, two = between[i]
            yield path.evaluate(f"e[{i}]", x, here, "eps")
            yield transfer(here, one, x, [(width(here, one), f"e[{i}]")], f"p[{i}]")
            yield path.evaluate(f"f[{i}]", f"p[{i}]", one, "eps")
            yield _integral(here, two, x, first[i], (f"e[{i}]", f"f[{i}]"), f"q[{i}]")
            yield path.evaluate(f"g[{i}]", f"q[{i}]", two, "eps")
            yield _integral(here, ahead, x, last[i], (f"e[{i}]", f"g[{i}]"), state(i + 1))


def _line_weights(path: Path, r: float, reach: float) -> dict[int, Sequence[Number]]:
    r"""For each finite step: \int_0^{reach h} e^{reach h - u} [1 - u/(r h), u/(r h)] du."""
    steps = [i for i in range(path.steps) if path.finite(i)]
    if not steps:
        return {}
    h = table([path.lam[i + 1] - path.lam[i] for i in steps])
    w = exponential(h[:, None] * table([0.0, r]), reach * h, -1.0)
    return dict(zip(steps, w.unbind() if w.requires_grad else w.tolist(), strict=True))


def _integral(
    here: Node, ahead: Node, x: str, weights: Sequence[Number], values: tuple[str, str], out: str
) -> Instruction:
    """out = (alpha'/alpha) x - sigma' sum_j w_j eps_j."""
    terms = [(-ahead.sigma * w, name) for w, name in zip(weights, values, strict=True)]
    return combine(out, [(ahead.alpha / here.alpha, x), *terms])
