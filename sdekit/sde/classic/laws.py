"""The laws of the classic equations that are not Gaussian.

Samples are quantiles of the noise's normals, so that row i is a function of its id alone. Special functions
come from scipy, on the host in float64: `cdf` and `sample` carry no gradient.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sdekit.noise import Noise
from sdekit.sde.laws import LOG_2PI, Normal, draw
from sdekit.sde.rows import fold

__all__ = ["Binomial", "HyperbolicSecant", "Transformed", "discrete_quantile", "host", "poisson", "total"]


def host(function: Callable[..., Any], *arguments: Tensor) -> Tensor:
    """An elementwise function of numpy arrays, on tensors, in float64."""
    arrays = (a.detach().to(device="cpu", dtype=torch.float64).numpy() for a in arguments)
    return torch.as_tensor(function(*arrays), dtype=torch.float64, device=arguments[0].device)


def total(terms: Tensor) -> Tensor:
    """Sum over the event, (B, *event) -> (B,)."""
    return fold(terms.reshape(terms.shape[0], -1))


def discrete_quantile(
    inverse: Callable[..., Any], cdf: Callable[[Tensor], Tensor], u: Tensor, *rest: Tensor
) -> Tensor:
    """The least k >= 0 with cdf(k) >= u, from scipy's real-valued inverse of the cdf in k."""
    near = torch.nan_to_num(host(lambda p, *r: inverse(p, *r), u, *rest), nan=0.0).clamp(min=0.0).ceil()
    near = torch.where((near > 0) & (cdf((near - 1).clamp(min=0.0)) >= u), near - 1, near)
    return torch.where(cdf(near) < u, near + 1, near)


def poisson(mean: Tensor, u: Tensor) -> Tensor:
    """The Poisson quantile of u, elementwise, float64."""
    from scipy.special import pdtr, pdtrik

    return discrete_quantile(pdtrik, lambda k: host(pdtr, k, mean), u, mean)


class HyperbolicSecant(NamedTuple):
    """Density sech(pi x/t)/t, elementwise: mean 0, variance t^2/4, characteristic function sech(u t/2).

    t: (B, *event), > 0.
    """

    t: Tensor

    @property
    def mean(self) -> Tensor:
        """0, the shape of t."""
        return torch.zeros_like(self.t)

    @property
    def variance(self) -> Tensor:
        """t^2/4."""
        return 0.25 * self.t**2

    @property
    def std(self) -> Tensor:
        """t/2."""
        return 0.5 * self.t

    def characteristic(self, u: Tensor) -> Tensor:
        """E e^(iuX) = sech(u t/2), real."""
        return 1.0 / torch.cosh(0.5 * u * self.t)

    def log_prob(self, x: Tensor) -> Tensor:
        """Log density in nats, (B,), summed over the event."""
        y = (math.pi * x / self.t).abs()
        return total(math.log(2.0) - y - torch.log1p(torch.exp(-2.0 * y)) - torch.log(self.t))

    def cdf(self, x: Tensor) -> Tensor:
        """(2/pi) arctan(e^(pi x/t)), elementwise."""
        return (2.0 / math.pi) * torch.atan(torch.exp(math.pi * x / self.t))

    def sample(self, seed: int = 0, *, noise: Noise | None = None, first_id: int = 0) -> Tensor:
        """Quantiles of the noise, (B, *event)."""
        xi = draw(self.t, seed, noise, first_id)
        tail = torch.special.ndtr(-xi.abs().to(torch.float64))
        size = -(self.t / math.pi) * torch.log(torch.tan(0.5 * math.pi * tail)).to(self.t.dtype)
        return torch.copysign(size, xi)


class Binomial(NamedTuple):
    """Binomial(n, p), elementwise. n: (B, *event) whole numbers, floating; p: broadcasts to it."""

    n: Tensor
    p: Tensor

    @property
    def mean(self) -> Tensor:
        """n p."""
        return self.n * self.p

    @property
    def variance(self) -> Tensor:
        """n p (1 - p)."""
        return self.n * self.p * (1.0 - self.p)

    @property
    def std(self) -> Tensor:
        """Square root of the variance."""
        return torch.sqrt(self.variance)

    def log_prob(self, k: Tensor) -> Tensor:
        """log P(X = k) in nats, (B,), summed over the event."""
        n, p = self.n, self.p
        ways = torch.lgamma(n + 1.0) - torch.lgamma(k + 1.0) - torch.lgamma(n - k + 1.0)
        return total(ways + torch.xlogy(k, p) + torch.special.xlog1py(n - k, -p))

    def cdf(self, k: Tensor) -> Tensor:
        """P(X <= k) = I_(1-p)(n - k, k + 1), elementwise."""
        from scipy.special import betainc

        k = torch.floor(k)
        n, p = self.n + 0.0 * k, self.p + 0.0 * k
        inside = (k >= 0) & (k < n)
        j = torch.where(inside, k, 0.0 * k)
        left = torch.where(inside, n - j, torch.ones_like(k))
        found = host(betainc, left, j + 1.0, 1.0 - p)
        return torch.where(inside, found, (k >= n).to(torch.float64)).to(self.n.dtype)

    def sample(self, seed: int = 0, *, noise: Noise | None = None, first_id: int = 0) -> Tensor:
        """Quantiles of the noise, (B, *event)."""
        from scipy.special import bdtrik

        n, p = self.n.to(torch.float64), self.p.expand(self.n.shape).to(torch.float64)
        u = torch.special.ndtr(draw(n, seed, noise, first_id))
        found = discrete_quantile(bdtrik, Binomial(n, p).cdf, u, n, p)
        return torch.minimum(found, n).to(self.n.dtype)


class Transformed(NamedTuple):
    """X = F(Y) with Y ~ N(loc, scale^2), F increasing, elementwise. loc: (B, *event); scale broadcasts to it.

    forward: F; inverse: its inverse; slope: x -> F'(F^-1(x)).
    """

    loc: Tensor
    scale: Tensor
    forward: Callable[[Tensor], Tensor]
    inverse: Callable[[Tensor], Tensor]
    slope: Callable[[Tensor], Tensor]

    def expectation(self, function: Callable[[Tensor], Tensor]) -> Tensor:
        """E function(X), elementwise, by the trapezoidal rule on 641 nodes, |z| <= 16: exact to rounding
        where F is analytic within scale |Im z| < 1/2.
        """
        step = 0.05
        out = torch.zeros_like(self.loc)
        for k in range(-320, 321):
            weight = step * math.exp(-0.5 * (k * step) ** 2 - 0.5 * LOG_2PI)
            out = out + weight * function(self.forward(self.loc + (k * step) * self.scale))
        return out

    @property
    def mean(self) -> Tensor:
        """E X, (B, *event)."""
        return self.expectation(lambda x: x)

    @property
    def variance(self) -> Tensor:
        """E (X - E X)^2, (B, *event)."""
        mean = self.mean
        return self.expectation(lambda x: (x - mean) ** 2)

    @property
    def std(self) -> Tensor:
        """Square root of the variance, (B, *event)."""
        return torch.sqrt(self.variance)

    def log_prob(self, x: Tensor) -> Tensor:
        """Log density in nats, (B,), summed over the event."""
        y = self.inverse(x)
        return Normal(self.loc, self.scale).log_prob(y) - total(torch.log(self.slope(x)))

    def cdf(self, x: Tensor) -> Tensor:
        """P(X <= x), elementwise, (B, *event)."""
        return Normal(self.loc, self.scale).cdf(self.inverse(x))

    def sample(self, seed: int = 0, *, noise: Noise | None = None, first_id: int = 0) -> Tensor:
        """F(loc + scale xi), (B, *event)."""
        return self.forward(Normal(self.loc, self.scale).sample(seed, noise=noise, first_id=first_id))
