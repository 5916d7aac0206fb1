r"""A law on the line as points, density and distribution function; its distances; its image under a map.

Between points the distribution function is the cubic that has its values and densities at both ends, error
O(dx^4); distances are taken on that.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from sdekit.certify.density.lattice import Line
from sdekit.targets.gaussian import Gaussian
from sdekit.targets.mixture import GaussianMixture

__all__ = ["Curve", "distribution", "pushforward"]

PARTS = 8
"""Of each interval, where |F - G| is looked at."""


def _parts(target: GaussianMixture | Gaussian) -> tuple[Tensor, Tensor, Tensor]:
    """(weights, means, standard deviations) of a one-dimensional target, (K,) each."""
    stds = target.eigenvalues.reshape(-1).sqrt()
    if isinstance(target, Gaussian):
        return torch.ones_like(stds), target.mean.reshape(1), stds
    return target.weights, target.means.reshape(-1), stds


def distribution(target: GaussianMixture | Gaussian, x: Tensor) -> tuple[Tensor, Tensor]:
    """(G, log g) of a one-dimensional target at x (n,)."""
    weights, means, stds = _parts(target)
    u = (x[:, None] - means) / stds
    log = torch.log(weights) - 0.5 * u * u - torch.log(stds) - 0.5 * math.log(2 * math.pi)
    return torch.special.ndtr(u) @ weights, torch.logsumexp(log, dim=1)


def _tails(target: GaussianMixture | Gaussian, low: float, high: float) -> float:
    """int G below ``low`` plus int (1 - G) above ``high``."""
    weights, means, stds = _parts(target)
    total = 0.0
    for u in ((means - low) / stds, (high - means) / stds):
        density = torch.exp(-0.5 * u * u) / math.sqrt(2 * math.pi)
        total += float((weights * stds * (density - u * torch.special.ndtr(-u))).sum())
    return total


def _cubic(ends: tuple[Tensor, ...], parts: int) -> Tensor:
    """Hermite cubics at 0, 1/parts, ..., 1 from (value, value, slope, slope) at the ends, (n, parts + 1)."""
    a, b, da, db = (end[:, None] for end in ends)
    v = torch.linspace(0, 1, parts + 1, dtype=torch.float64)
    w = 1 - v
    return (1 + 2 * v) * w * w * a + v * w * w * da + v * v * (3 - 2 * v) * b - v * v * w * db


@dataclass(frozen=True)
class Curve:
    """x (n,) increasing, density and distribution function there, mean and standard deviation.

    quadrature: for the image of a law, (images, masses, log densities at the images) of its points, over
    which E[log p - log q] is a smooth sum; None: the trapezoid over x.
    """

    x: Tensor
    pdf: Tensor
    cdf: Tensor
    mean: float
    std: float
    quadrature: tuple[Tensor, Tensor, Tensor] | None = None

    def measure(self, target: GaussianMixture | Gaussian) -> tuple[float, float, float, float, float]:
        """(mean, std, KS, W1, KL) against the target."""
        exact, log_q = distribution(target, self.x)
        rate = torch.nan_to_num(self.pdf - torch.exp(log_q), posinf=0.0, neginf=0.0)
        gap, dx = self.cdf - exact, torch.diff(self.x)
        ends = (gap[:-1], gap[1:], rate[:-1] * dx, rate[1:] * dx)
        inside = _cubic(ends, PARTS)
        crossing = (inside.amin(1) < 0) & (inside.amax(1) > 0)
        area = (dx * (0.5 * (ends[0] + ends[1]) + (ends[2] - ends[3]) / 12)).abs()
        fine = _cubic(tuple(end[crossing] for end in ends), 16 * PARTS).abs()
        area[crossing] = dx[crossing] * torch.trapezoid(fine, dx=1 / (16 * PARTS), dim=1)
        worst = inside.abs().amax(1).topk(min(3, len(dx))).indices
        ks = float(_cubic(tuple(end[worst] for end in ends), 256).abs().max())
        w1 = float(area.sum()) + _tails(target, float(self.x[0]), float(self.x[-1]))
        return self.mean, self.std, ks, w1, self._kl(target, log_q)

    def _kl(self, target: GaussianMixture | Gaussian, log_q: Tensor) -> float:
        if self.quadrature is not None:
            at, mass, log_p = self.quadrature
            seen = mass > 0
            _, log_q = distribution(target, at[seen])
            return float((mass[seen] * (log_p[seen] - log_q)).sum())
        seen = self.pdf > 0
        log_p = torch.log(torch.where(seen, self.pdf, 1.0))
        return float(torch.trapezoid(torch.where(seen, self.pdf * (log_p - log_q), 0.0), self.x))


def pushforward(line: Line, image: Tensor, slope: Tensor) -> Curve:
    """The law of f(z), z ~ line, from f and f' at the line's points.

    Increasing f: F(f(z)) = F_z(z), p(f(z)) = p_z(z)/f'(z). Otherwise branch by branch, with linear
    interpolation in between.
    """
    density = line.mass / line.spacing
    mean = float((line.mass * image).sum())
    std = math.sqrt(max(float((line.mass * (image - mean) ** 2).sum()), 0.0))
    heavy = line.mass > 1e-18
    first, last = int(heavy.nonzero()[0]), int(heavy.nonzero()[-1]) + 1
    y, p, c, d = (v[first:last] for v in (image, density, line.cdf, slope))
    if bool((d > 0).all()) and bool((torch.diff(y) > 0).all()):
        pdf = p / d
        log_p = torch.log(p) - torch.log(d)
        return Curve(y, pdf, c, mean, std, (y, line.mass[first:last], log_p))
    x = torch.unique(y)
    cdf, pdf = torch.zeros_like(x), torch.zeros_like(x)
    for low, high in _pieces(y):
        rising = bool(y[high] > y[low])
        part = slice(low, high + 1)
        ys, cs = (v[part] if rising else v[part].flip(0) for v in (y, c))
        ratio = p[part] / d[part].abs().clamp(min=1e-300)
        ps = ratio if rising else ratio.flip(0)
        level = _interpolate(x, ys, cs)
        cdf += (level - cs[0]).abs()
        inside = (x >= ys[0]) & (x <= ys[-1])
        pdf += torch.where(inside, _interpolate(x, ys, ps), 0.0)
    log_p = torch.log(_interpolate(y, x, pdf).clamp(min=1e-300))
    return Curve(x, pdf, cdf, mean, std, (y, line.mass[first:last], log_p))


def _pieces(y: Tensor) -> list[tuple[int, int]]:
    """Index ranges (low, high) on which y is monotone."""
    signs = torch.sign(torch.diff(y))
    turns = (signs[1:] != signs[:-1]).nonzero().reshape(-1) + 1
    edges = [0, *turns.tolist(), len(y) - 1]
    return list(itertools.pairwise(edges))


def _interpolate(x: Tensor, xs: Tensor, values: Tensor) -> Tensor:
    """Linear, constant beyond the ends; xs increasing."""
    right = torch.searchsorted(xs, x).clamp(1, len(xs) - 1)
    left = right - 1
    width = (xs[right] - xs[left]).clamp(min=1e-300)
    share = ((x - xs[left]) / width).clamp(0, 1)
    return values[left] + share * (values[right] - values[left])
