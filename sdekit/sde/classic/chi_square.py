"""The laws of the square-root diffusion: noncentral chi-square, and Gamma in the long run."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from sdekit.noise import Noise
from sdekit.sde.classic.laws import host, poisson, total
from sdekit.sde.laws import LOG_2PI, draw

__all__ = ["Gamma", "NoncentralChiSquare"]

STEEP = 30.0
"""Bessel functions of this order and above by Debye's expansion, whose error is below 1e-9 there."""


def log_bessel(order: Tensor, z: Tensor) -> Tensor:
    """log I_order(z), order > -1, z > 0, float64: scipy's, or Debye's uniform expansion (DLMF 10.41.3)."""
    from scipy.special import ive

    low = order.clamp(max=STEEP)
    direct = torch.log(host(ive, low, z)) + z
    v = order.clamp(min=STEEP)
    s = z / v
    root = torch.sqrt(1.0 + s * s)
    p = 1.0 / root
    q = p * p
    u1 = p * (3.0 - 5.0 * q) / 24.0
    u2 = q * (81.0 + q * (-462.0 + 385.0 * q)) / 1152.0
    u3 = p * q * (30375.0 + q * (-369603.0 + q * (765765.0 - 425425.0 * q))) / 414720.0
    u4 = (
        q * q * (4465125.0 + q * (-94121676.0 + q * (349922430.0 + q * (-446185740.0 + 185910725.0 * q))))
    ) / 39813120.0
    bracket = 1.0 + u1 / v + u2 / v**2 + u3 / v**3 + u4 / v**4
    debye = v * (root + torch.log(s / (1.0 + root))) + 0.5 * (torch.log(p) - LOG_2PI - torch.log(v))
    return torch.where(order < STEEP, direct, debye + torch.log(bracket))


class NoncentralChiSquare(NamedTuple):
    """scale chi'^2_nu(nonc), elementwise. scale, nonc: (B, *event); nu > 0 broadcasts to them."""

    scale: Tensor
    nu: Tensor
    nonc: Tensor

    @property
    def mean(self) -> Tensor:
        """scale (nu + nonc), (B, *event)."""
        return self.scale * (self.nu + self.nonc)

    @property
    def variance(self) -> Tensor:
        """2 scale^2 (nu + 2 nonc), (B, *event)."""
        return 2.0 * self.scale**2 * (self.nu + 2.0 * self.nonc)

    @property
    def std(self) -> Tensor:
        """Square root of the variance, (B, *event)."""
        return torch.sqrt(self.variance)

    def _wide(self) -> tuple[Tensor, Tensor, Tensor]:
        scale, nu, nonc = (c.to(torch.float64) for c in self)
        zero = 0.0 * (scale + nonc)
        return scale + zero, nu + zero, nonc + zero

    def log_prob(self, x: Tensor) -> Tensor:
        """Log density in nats at x > 0, (B,), summed over the event; nonc > 0. No gradient through nu."""
        scale, nu, nonc = self._wide()
        y = x.to(torch.float64) / scale
        order = 0.5 * nu - 1.0
        bessel = log_bessel(order, torch.sqrt(nonc * y))
        terms = bessel - 0.5 * (y + nonc) + 0.5 * order * torch.log(y / nonc) - torch.log(2.0 * scale)
        return total(terms).to(x.dtype)

    def score(self, x: Tensor) -> Tensor:
        """The gradient of `log_prob` at x > 0, (B, *event): with y = x/scale, n = nu/2 - 1, z = sqrt(nonc y),

            (-1/2 + n/y + z I_(n+1)(z)/(2 y I_n(z)))/scale.

        It carries no gradient itself.
        """
        scale, nu, nonc = self._wide()
        y = x.to(torch.float64) / scale
        n, z = 0.5 * nu - 1.0, torch.sqrt(nonc * y)
        small = z < 1e-4
        inside = torch.where(small, torch.ones_like(z), z)
        ratio = torch.exp(log_bessel(n + 1.0, inside) - log_bessel(n, inside))
        q = 0.25 * z * z
        series = 0.5 * z * (1.0 + q / (n + 2.0)) / (n + 1.0 + q)
        bessel = torch.where(small, series, ratio)
        return ((-0.5 + (n + 0.5 * z * bessel) / y) / scale).to(x.dtype)

    def cdf(self, x: Tensor) -> Tensor:
        """P(X <= x), elementwise, (B, *event)."""
        from scipy.special import chndtr

        scale, nu, nonc = self._wide()
        return host(chndtr, (x.to(torch.float64) / scale).clamp(min=0.0), nu, nonc).to(x.dtype)

    def sample(self, seed: int = 0, *, noise: Noise | None = None, first_id: int = 0) -> Tensor:
        """scale chi^2_(nu + 2 N) with N ~ Poisson(nonc/2), two draws, (B, *event)."""
        scale, nu, nonc = self._wide()
        counts = poisson(0.5 * nonc, torch.special.ndtr(draw(scale, seed, noise, first_id)))
        gamma = gamma_quantile(0.5 * nu + counts, draw(scale, seed, noise, first_id, 1))
        return (2.0 * scale * gamma).to(self.scale.dtype)


def gamma_quantile(shape: Tensor, xi: Tensor) -> Tensor:
    """The Gamma(shape, 1) variable with the same level as the normal xi, elementwise, float64."""
    from scipy.special import gammainccinv, gammaincinv

    below, above = torch.special.ndtr(xi), torch.special.ndtr(-xi)
    return torch.where(xi < 0, host(gammaincinv, shape, below), host(gammainccinv, shape, above))


class Gamma(NamedTuple):
    """Gamma(shape, scale), elementwise: density x^(shape - 1) e^(-x/scale), up to a constant. (B, *event)."""

    shape: Tensor
    scale: Tensor

    @property
    def mean(self) -> Tensor:
        """shape scale."""
        return self.shape * self.scale

    @property
    def variance(self) -> Tensor:
        """shape scale^2."""
        return self.shape * self.scale**2

    @property
    def std(self) -> Tensor:
        """Square root of the variance."""
        return torch.sqrt(self.variance)

    def log_prob(self, x: Tensor) -> Tensor:
        """Log density in nats at x > 0, (B,), summed over the event."""
        y = x / self.scale
        return total((self.shape - 1.0) * torch.log(y) - y - torch.lgamma(self.shape) - torch.log(self.scale))

    def score(self, x: Tensor) -> Tensor:
        """The gradient of `log_prob`, (shape - 1)/x - 1/scale, (B, *event)."""
        return (self.shape - 1.0) / x - 1.0 / self.scale

    def cdf(self, x: Tensor) -> Tensor:
        """P(X <= x), elementwise."""
        out: Tensor = torch.special.gammainc(self.shape, (x / self.scale).clamp(min=0.0))
        return out

    def sample(self, seed: int = 0, *, noise: Noise | None = None, first_id: int = 0) -> Tensor:
        """Quantiles of the noise, (B, *event)."""
        xi = draw(self.shape.to(torch.float64), seed, noise, first_id)
        return (self.scale * gamma_quantile(self.shape, xi)).to(self.shape.dtype)
