"""Laws that processes return: a mean and a spread, with samples and densities."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from sdekit.errors import NotPositiveDefiniteError, check_count
from sdekit.noise import Noise, as_noise
from sdekit.sde.rows import fold, matvec

__all__ = ["LogNormal", "MultivariateNormal", "Normal"]

LOG_2PI = math.log(2.0 * math.pi)


def draw(like: Tensor, seed: int, noise: Noise | None, first_id: int) -> Tensor:
    """Standard normals (B, *event) for the samples first_id, ..., first_id + B - 1."""
    first = check_count(first_id, "first_id", minimum=0)
    ids = torch.arange(first, first + like.shape[0], dtype=torch.int64, device=like.device)
    return as_noise(seed, noise).normal(0, like, ids)


class Normal(NamedTuple):
    """N(mean, std^2), elementwise. mean: (B, *event); std: broadcasts to it."""

    mean: Tensor
    std: Tensor

    @property
    def variance(self) -> Tensor:
        """std^2, the shape of std."""
        return self.std * self.std

    def sample(self, seed: int = 0, *, noise: Noise | None = None, first_id: int = 0) -> Tensor:
        """mean + std xi, (B, *event). Row i is sample ``first_id + i`` of the noise."""
        return self.mean + self.std * draw(self.mean, seed, noise, first_id)

    def log_prob(self, x: Tensor) -> Tensor:
        """Log density in nats, (B,), summed over the event. Where std = 0 it is +inf or NaN."""
        z = (x - self.mean) / self.std
        terms = -0.5 * (z * z) - torch.log(self.std) - 0.5 * LOG_2PI
        return fold(terms.reshape(terms.shape[0], -1))


class LogNormal(NamedTuple):
    """exp(N(loc, scale^2)), elementwise. loc: (B, *event); scale: broadcasts to it."""

    loc: Tensor
    scale: Tensor

    @property
    def mean(self) -> Tensor:
        """exp(loc + scale^2 / 2), (B, *event)."""
        return torch.exp(self.loc + 0.5 * (self.scale * self.scale))

    @property
    def variance(self) -> Tensor:
        """(exp(scale^2) - 1) mean^2, (B, *event)."""
        return torch.expm1(self.scale * self.scale) * self.mean**2

    @property
    def std(self) -> Tensor:
        """Square root of the variance, (B, *event)."""
        return torch.sqrt(self.variance)

    def sample(self, seed: int = 0, *, noise: Noise | None = None, first_id: int = 0) -> Tensor:
        """exp(loc + scale xi), (B, *event)."""
        return torch.exp(self.loc + self.scale * draw(self.loc, seed, noise, first_id))

    def log_prob(self, x: Tensor) -> Tensor:
        """Log density in nats at x > 0, (B,), summed over the event."""
        y = torch.log(x)
        return Normal(self.loc, self.scale).log_prob(y) - fold(y.reshape(y.shape[0], -1))


class MultivariateNormal(NamedTuple):
    """N(mean, cov). mean: (B, D); cov: (D, D), shared by the rows, positive semi-definite."""

    mean: Tensor
    cov: Tensor

    @property
    def variance(self) -> Tensor:
        """diag(cov), (D,)."""
        return torch.diagonal(self.cov)

    @property
    def std(self) -> Tensor:
        """Square root of the variance, (D,)."""
        return torch.sqrt(self.variance)

    def _correlation(self) -> tuple[Tensor, Tensor]:
        """(scale, correlation): small and large variances keep their own relative accuracy."""
        cov = self.cov.to(torch.float64)
        scale = torch.sqrt(torch.diagonal(cov).clamp(min=0.0))
        safe = torch.where(scale > 0, scale, torch.ones_like(scale))
        return scale, cov / safe[:, None] / safe[None, :]

    def factor(self) -> Tensor:
        """(D, D) float64 F with F F^T = cov; cov may be singular."""
        scale, correlation = self._correlation()
        values, vectors = torch.linalg.eigh(correlation)
        out: Tensor = (scale[:, None] * torch.sqrt(values.clamp(min=0.0))[None, :]) * vectors
        return out

    def sample(self, seed: int = 0, *, noise: Noise | None = None, first_id: int = 0) -> Tensor:
        """mean + F xi, (B, D)."""
        return self.mean + matvec(self.factor(), draw(self.mean, seed, noise, first_id))

    def log_prob(self, x: Tensor) -> Tensor:
        """Log density in nats, (B,). Raises NotPositiveDefiniteError for a singular covariance."""
        scale, correlation = self._correlation()
        lower, failed = torch.linalg.cholesky_ex(correlation)
        if bool(failed) or bool((scale <= 0).any()):
            raise NotPositiveDefiniteError(
                "the covariance is singular, so the law has no density. Likely cause: zero elapsed time, "
                "or directions that the noise never reaches. Next: take the density of the other "
                "coordinates, or `.mean`, `.cov` and `.sample`."
            )
        z = ((x - self.mean).to(torch.float64) / scale).T
        white = torch.linalg.solve_triangular(lower, z, upper=False).T
        half_log_det = torch.log(scale).sum() + torch.log(torch.diagonal(lower)).sum()
        dimension = self.mean.shape[-1]
        out = -0.5 * fold(white * white) - half_log_det - 0.5 * dimension * LOG_2PI
        return out.to(self.mean.dtype)
