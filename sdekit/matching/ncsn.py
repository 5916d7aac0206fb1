r"""Noise conditional score networks: levels and steps of annealed Langevin dynamics, by calculation.

Song and Ermon 2020, Improved techniques for training score-based generative models (arXiv:2006.09011), name
five. (1) sigma_1 is about the largest distance between two data: `max_distance`. (2) A geometric sequence
whose neighbours overlap on the sphere that N(0, sigma^2 I) fills in D dimensions: `levels`, `overlap`.
(3) A network without noise as input, s(x)/sigma: `Unconditional`. (4) T steps a level by budget, eps so that
the variance left at each level is least: `steps`, `exit_variance`. (5) Averaged weights, rate 0.999:
``sdekit.fit(..., ema=0.999)``, its default.

    levels = sk.ncsn.levels(sk.ncsn.max_distance(data), 0.01, dimension=data[0].numel())
    sampler = sk.ncsn.steps(levels, nfe=1000).sampler()
    process = sk.EDM(float(levels[-1]), float(levels[0]))     # alpha = 1, t = sigma
    sk.sample(model, shape, sampler=sampler, grid=levels, end="clean")

`sdekit.scales_of` takes the last level from the data too: ``sk.scales_of(data).levels()``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import torch
from torch import Tensor, nn

from sdekit.errors import ShapeError, check_count, check_positive, check_state
from sdekit.samplers.annealed import AnnealedLangevin, carried_variance, minimise
from sdekit.samplers.annealed import exit_variance as _exit_variance
from sdekit.sde.rows import over_event

__all__ = [
    "NCSN",
    "SHIPPED",
    "Configuration",
    "Steps",
    "Unconditional",
    "exit_variance",
    "levels",
    "max_distance",
    "overlap",
    "steps",
]


def max_distance(data: Any, block: int = 1024) -> float:
    """Technique 1: the largest Euclidean distance between two data (N, *event), float64, in their units.

    N^2/2 distances, ``block`` rows at a time. Raises ShapeError for fewer than two data or what is no
    array, NonFiniteError for NaN or infinity.
    """
    try:
        x = torch.as_tensor(data)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ShapeError(
            f"data must be a tensor or array of shape (N, *event), got {type(data).__name__}."
        ) from error
    if x.ndim < 1 or x.shape[0] < 2:
        raise ShapeError(f"data must be (N, *event) with N >= 2, got shape {tuple(x.shape)}.")
    x = check_state(x.to(torch.float64), "data")
    flat = x.reshape(x.shape[0], -1)
    parts = torch.split(flat, check_count(block, "block"))
    return max(float(torch.cdist(a, b).max()) for i, a in enumerate(parts) for b in parts[i:])


def _overlap(ratio: float, dimension: int) -> float:
    shift, phi = math.sqrt(2 * dimension) * (ratio - 1), NormalDist().cdf
    return phi(shift + 3 * ratio) - phi(shift - 3 * ratio)


def levels(
    sigma_max: float,
    sigma_min: float = 0.01,
    *,
    dimension: int | None = None,
    overlap: float = 0.5,
    count: int | None = None,
) -> Tensor:
    """Technique 2: (L,) float64, geometric from sigma_max down to sigma_min, with the ratio g that solves

        Phi(sqrt(2 D) (g - 1) + 3 g) - Phi(sqrt(2 D) (g - 1) - 3 g) = overlap,

    the share of samples of one level whose radius lies within three deviations of that of the level above;
    D = ``dimension``. L is rounded up, so that neighbours overlap at least as asked (the shipped
    configurations have 0.567). ``count`` gives L instead. Song and Ermon 2020, proposition 2.

    Raises ValueError for levels that do not fall, an overlap outside (0, 0.99], or not one of dimension and
    count.
    """
    high, low = check_positive(sigma_max, "sigma_max"), check_positive(sigma_min, "sigma_min")
    if high <= low:
        raise ValueError(f"sigma_max must exceed sigma_min, got {sigma_max} and {sigma_min}.")
    if (dimension is None) == (count is None):
        raise ValueError(
            "pass dimension (the number of elements of a datum) or count (of levels), one of them."
        )
    if count is None:
        d = check_count(dimension, "dimension")
        if not 0 < overlap <= 0.99:
            raise ValueError(f"overlap must lie in (0, 0.99], got {overlap}. Next: 0.5.")
        a, b = 1.0, 2.0  # the overlap falls from 0.997 at g = 1; for g - 1 >> 3/sqrt(2 D) it is 0
        while _overlap(b, d) > overlap:
            b *= 2
            if b > 1e6:
                raise ValueError(
                    f"in {d} dimensions neighbouring levels overlap by more than {overlap} at any ratio. "
                    f"Next: pass count."
                )
        for _ in range(80):
            middle = 0.5 * (a + b)
            a, b = (middle, b) if _overlap(middle, d) > overlap else (a, middle)
        count = 1 + math.ceil(math.log(high / low) / math.log(a) - 1e-9)
    u = torch.linspace(0.0, 1.0, check_count(count, "count", minimum=2), dtype=torch.float64)
    out = torch.exp(math.log(high) + u * (math.log(low) - math.log(high)))
    out[0], out[-1] = high, low
    return out


def _ratio(sigmas: Any) -> tuple[float, float, int]:
    """(ratio, last level, L) of a falling sequence; the mean ratio where it is not geometric."""
    try:
        s = torch.as_tensor(sigmas, dtype=torch.float64).flatten()
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"levels must be a tensor or list of numbers, got {type(sigmas).__name__}. Next: sk.ncsn.levels."
        ) from error
    falling = s.numel() > 1 and bool(((s > 0) & torch.isfinite(s)).all()) and bool((s.diff() < 0).all())
    if not falling:
        raise ValueError(
            f"levels must be two or more finite numbers above 0 that fall strictly, got "
            f"{s[:4].tolist()}{'...' if s.numel() > 4 else ''}. Next: levels.flip(0) if they rise."
        )
    return float(s[0] / s[-1]) ** (1 / (s.numel() - 1)), float(s[-1]), s.numel()


def overlap(sigmas: Any, dimension: int) -> float:
    """The overlap of neighbouring levels (L,) in D dimensions: see `levels`."""
    return _overlap(_ratio(sigmas)[0], check_count(dimension, "dimension"))


def exit_variance(sigmas: Any, steps_per_level: int, eps: float, *, carried: bool = False) -> float:
    """Technique 4's figure: the variance left at a level in units of its sigma^2, 1 being exact,

        q^{2T} (g^2 - F) + F,   q = 1 - eps/sigma_L^2,   F = 2 eps/(sigma_L^2 (1 - q^2)),   g the ratio.

    It assumes that the level before was left exactly; ``carried=True`` gives the fixed point over levels.
    Raises ValueError for eps >= 2 sigma_L^2, where the steps are unstable.
    """
    ratio, last, _ = _ratio(sigmas)
    figure, u = carried_variance if carried else _exit_variance, check_positive(eps, "eps") / last**2
    if u >= 2:
        raise ValueError(
            f"eps = {eps:g} is {u:.3g} times the square of the last level {last:.4g}; Langevin steps are "
            f"unstable from 2. Next: sk.ncsn.steps(levels, {steps_per_level}).eps."
        )
    return figure(u, ratio, check_count(steps_per_level, "steps_per_level"))


@dataclass(frozen=True)
class Steps:
    """T steps a level, their eps, and the variance they leave (`exit_variance`)."""

    steps_per_level: int
    eps: float
    variance: float

    def sampler(self) -> AnnealedLangevin:
        """Annealed Langevin dynamics with these, burnt in at the first level as NCSN is."""
        return AnnealedLangevin(self.steps_per_level, self.eps, burn_in=self.steps_per_level)


def steps(
    sigmas: Any, steps_per_level: int | None = None, *, nfe: int | None = None, carried: bool = False
) -> Steps:
    """Technique 4: the eps that leaves the least variance, for T steps a level or the T that ``nfe`` allows.

    Gives the eps of the shipped configurations to their printed digits (church's is larger). The rule takes
    the level before as left exactly; with many close levels the excess adds up, to twice the variance at
    T = 1. ``carried=True`` minimises the fixed point over many levels instead.
    """
    ratio, last, count = _ratio(sigmas)
    if (steps_per_level is None) == (nfe is None):
        raise ValueError("pass steps_per_level or nfe, one of them.")
    if nfe is not None:
        steps_per_level = check_count(nfe, "nfe") // count
        if steps_per_level == 0:
            raise ValueError(f"{count} levels need at least {count} evaluations, got nfe = {nfe}.")
    t = check_count(steps_per_level, "steps_per_level")
    figure = carried_variance if carried else _exit_variance
    u = minimise(lambda u: figure(u, ratio, t))
    return Steps(t, u * last**2, figure(u, ratio, t))


@dataclass(frozen=True)
class Configuration:
    """A published choice: levels from sigma_max to sigma_min, T steps a level and eps, D elements a datum.

    eps is that of x + a score + sqrt(2 a) xi.
    """

    sigma_max: float
    count: int
    steps_per_level: int
    eps: float
    dimension: int
    sigma_min: float = 0.01

    @property
    def levels(self) -> Tensor:
        """(L,) float64."""
        return levels(self.sigma_max, self.sigma_min, count=self.count)

    def sampler(self) -> AnnealedLangevin:
        """Its annealed Langevin dynamics; run it on ``grid=configuration.levels`` of an `EDM` process."""
        return AnnealedLangevin(self.steps_per_level, self.eps, burn_in=self.steps_per_level)


#: NCSN (Song and Ermon 2019, section 5): eps = 2e-5 in x + (a/2) score + sqrt(a) xi, half of it here.
NCSN = Configuration(1.0, 10, 100, 1e-5, 3 * 32**2)

#: NCSNv2's shipped configurations, by data set.
SHIPPED = {
    "cifar10": Configuration(50.0, 232, 5, 6.2e-6, 3 * 32**2),
    "celeba": Configuration(90.0, 500, 5, 3.3e-6, 3 * 64**2),
    "church": Configuration(140.0, 788, 4, 4.9e-6, 3 * 96**2),
    "bedroom": Configuration(190.0, 1086, 3, 1.8e-6, 3 * 128**2),
    "ffhq": Configuration(348.0, 2311, 3, 9e-7, 3 * 256**2),
}


class Unconditional(nn.Module):
    """Technique 3: s(x, sigma) = s(x)/sigma, one network for every level.

    net: (B, *event) -> (B, *event), without time. Use it as
    ``Denoiser(Unconditional(net), process, predicts="score", time="sigma")``; it then learns
    sigma score = -eps, the target of denoising score matching at every level being -eps/sigma.
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        """x: (B, *event); sigma: (B,), in the units of x."""
        out: Tensor = self.net(x) / over_event(sigma, x, "sigma")
        return out
