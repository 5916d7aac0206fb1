"""First-order schemes for the reverse SDE: Euler-Maruyama, reverse diffusion, ancestral, DDPM.

One step goes from node (alpha, sigma) to the less noisy (alpha', sigma'). The forward transition back is
x = a x' + sqrt(v) xi with a = alpha / alpha', v = sigma^2 - a^2 sigma'^2; on DDPM's table a = sqrt(1 - beta),
v = beta, and for VE a = 1, v = sigma^2 - sigma'^2.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from sdekit._math import sqrt, value
from sdekit.errors import unknown_name
from sdekit.samplers.base import Path, Sampler, step
from sdekit.samplers.grids import Grid
from sdekit.samplers.plan import Instruction, state

__all__ = ["DDPM", "Ancestral", "EulerMaruyama", "ReverseDiffusion"]


@dataclass(frozen=True)
class EulerMaruyama(Sampler):
    """x' = x + h (f - (1 + eta^2)/2 g^2 score) + eta g sqrt(|h|) xi, h = t' - t < 0.

    f = (d log alpha/dt) x and g^2 = d sigma^2/dt - 2 (d log alpha/dt) sigma^2.
    """

    name: ClassVar[str] = "euler-maruyama"
    order: ClassVar[float] = 1
    reference: ClassVar[str] = "Song et al. 2021 (score SDE), appendix E; Anderson 1982"
    stochastic: ClassVar[bool] = True
    needs_finite_drift: ClassVar[bool] = True
    default_grid: ClassVar[Grid] = Grid("standard")

    eta: float = 1.0

    def recipe(self, path: Path) -> Iterator[Instruction]:
        for i in range(path.steps):
            t, alpha, sigma, dalpha, dsigma = path[i]
            h = path[i + 1].t - t
            f = dalpha / alpha
            g2 = 2 * sigma * (dsigma - f * sigma)
            yield path.evaluate(f"s[{i}]", state(i), i, "score")
            yield step(
                i,
                [(1 + h * f, state(i)), (-h * (1 + self.eta**2) / 2 * g2, f"s[{i}]")],
                [(self.eta * sqrt(g2 * -h), i)],
            )


@dataclass(frozen=True)
class ReverseDiffusion(Sampler):
    """x' = (2 - a) x + v score + sqrt(v) xi: the forward step's own discretisation, reversed.

    eta = 0: x' = (2 - a) x + v/2 score, its probability flow.
    """

    name: ClassVar[str] = "reverse-diffusion"
    order: ClassVar[float] = 1
    reference: ClassVar[str] = "Song et al. 2021 (score SDE), equation 46 and appendix E"
    stochastic: ClassVar[bool] = True
    needs_finite_drift: ClassVar[bool] = True
    default_grid: ClassVar[Grid] = Grid("standard")

    eta: float = 1.0

    def recipe(self, path: Path) -> Iterator[Instruction]:
        for i in range(path.steps):
            a, v = path.back(i, i + 1)
            yield path.evaluate(f"s[{i}]", state(i), i, "score")
            yield step(
                i,
                [(2 - a, state(i)), ((1 + self.eta**2) / 2 * v, f"s[{i}]")],
                [(self.eta * sqrt(v), i)],
            )


@dataclass(frozen=True)
class Ancestral(Sampler):
    """x' = E[x' | x, x0 = D(x)] + c xi, from the forward chain's posterior.

        E[x' | x, x0] = (a sigma'^2 / sigma^2) x + (alpha' v / sigma^2) x0 = (x + v score) / a.

    variance "posterior": c^2 = v sigma'^2 / sigma^2 (DDPM's small variance, exact for a point mass);
    "forward": c^2 = v (its large one, exact for N(0, I) data; on a coarse grid the last step then leaves
    more noise than the marginal holds). The default "published" is forward where alpha^2 + sigma^2 = 1
    (VP, DDPM's table) and posterior elsewhere (VE), as in the score-SDE paper; `ddpm` is always posterior.
    """

    name: ClassVar[str] = "ancestral"
    order: ClassVar[float] = 1
    reference: ClassVar[str] = "Song et al. 2021 (score SDE), equations 4 and 47; Ho et al. 2020"
    stochastic: ClassVar[bool] = True
    default_grid: ClassVar[Grid] = Grid("standard")

    variance: str = "published"

    def __post_init__(self) -> None:
        if self.variance not in ("published", "posterior", "forward"):
            raise unknown_name("variance", self.variance, ("published", "posterior", "forward"))

    def recipe(self, path: Path) -> Iterator[Instruction]:
        squares = [(value(node.alpha) ** 2, value(node.sigma) ** 2) for node in path.nodes]
        preserving = all(a > 0 and abs(a + s - 1) < 1e-6 for a, s in squares)
        forward = self.variance == "forward" or (self.variance == "published" and preserving)
        for i in range(path.steps):
            a, v = path.back(i, i + 1)
            sigma, (_, ahead, clean, *_) = path[i].sigma, path[i + 1]
            yield path.evaluate(f"D[{i}]", state(i), i)
            yield step(
                i,
                [(a * clean**2 / sigma**2, state(i)), (ahead * v / sigma**2, f"D[{i}]")],
                [(sqrt(v) if forward else clean * sqrt(v) / sigma, i)],
            )


@dataclass(frozen=True)
class DDPM(Ancestral):
    """x' = E[x' | x, x0 = D(x)] + (sigma' / sigma) sqrt(v) xi: the exact posterior of the forward chain.

    variance "posterior" (beta-tilde, the default) or "forward" (beta).
    """

    name: ClassVar[str] = "ddpm"
    reference: ClassVar[str] = "Ho, Jain and Abbeel 2020, algorithm 2 and equation 7"
    exact_for: ClassVar[frozenset[str]] = frozenset({"point"})

    variance: str = "posterior"
