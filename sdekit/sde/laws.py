"""Laws that processes return: a mean and a spread, with samples and densities."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from sdekit.errors import NotPositiveDefiniteError, check_count
from sdekit.noise import Noise, as_noise
from sdekit.sde.rows import flat, fold, matvec, over_event

__all__ = ["LogNormal", "MultivariateNormal", "Normal", "PairNormal"]

LOG_2PI = math.log(2.0 * math.pi)


def draw(like: Tensor, seed: int, noise: Noise | None, first_id: int, number: int = 0) -> Tensor:
    """Standard normals (B, *event), draw ``number`` of the samples first_id, ..., first_id + B - 1."""
    first = check_count(first_id, "first_id", minimum=0)
    ids = torch.arange(first, first + like.shape[0], dtype=torch.int64, device=like.device)
    return as_noise(seed, noise).normal(number, like, ids)


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
        return fold(flat(terms))

    def score(self, x: Tensor) -> Tensor:
        """The gradient of `log_prob`, -(x - mean)/std^2, (B, *event)."""
        return (self.mean - x) / (self.std * self.std)

    def cdf(self, x: Tensor) -> Tensor:
        """P(X <= x), elementwise, (B, *event). Where std = 0 it is 0, 1, or NaN at the mean."""
        out: Tensor = torch.special.ndtr((x - self.mean) / self.std)
        return out


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
        return Normal(self.loc, self.scale).log_prob(y) - fold(flat(y))

    def score(self, x: Tensor) -> Tensor:
        """The gradient of `log_prob`, -(1 + (log x - loc)/scale^2)/x, (B, *event), at x > 0."""
        return -(1.0 + (torch.log(x) - self.loc) / (self.scale * self.scale)) / x

    def cdf(self, x: Tensor) -> Tensor:
        """P(X <= x), elementwise, (B, *event); 0 for x <= 0."""
        return Normal(self.loc, self.scale).cdf(torch.log(x.clamp(min=0.0)))


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

    def _cholesky(self) -> tuple[Tensor, Tensor]:
        """(scale, lower triangle of the correlation). Raises NotPositiveDefiniteError."""
        scale, correlation = self._correlation()
        lower, failed = torch.linalg.cholesky_ex(correlation)
        if bool(failed) or bool((scale <= 0).any()):
            raise NotPositiveDefiniteError(
                "the covariance is singular, so the law has no density. Likely cause: zero elapsed time, "
                "or directions that the noise never reaches. Next: take the density of the other "
                "coordinates, or `.mean`, `.cov` and `.sample`."
            )
        return scale, lower

    def score(self, x: Tensor) -> Tensor:
        """The gradient of `log_prob`, -cov^-1 (x - mean), (B, D). Raises as `log_prob`."""
        scale, lower = self._cholesky()
        pull = matvec(torch.cholesky_inverse(lower), (self.mean - x).to(torch.float64) / scale)
        return (pull / scale).to(self.mean.dtype)

    def log_prob(self, x: Tensor) -> Tensor:
        """Log density in nats, (B,). Raises NotPositiveDefiniteError for a singular covariance."""
        scale, lower = self._cholesky()
        z = ((x - self.mean).to(torch.float64) / scale).T
        white = torch.linalg.solve_triangular(lower, z, upper=False).T
        half_log_det = torch.log(scale).sum() + torch.log(torch.diagonal(lower)).sum()
        dimension = self.mean.shape[-1]
        out = -0.5 * fold(white * white) - half_log_det - 0.5 * dimension * LOG_2PI
        return out.to(self.mean.dtype)


class PairNormal(NamedTuple):
    """A position and a velocity (q, v) for each element, jointly Gaussian, elements independent.

    mean: (B, 2, *event), positions in [:, 0], velocities in [:, 1]; qq, qv, vv: the entries of the
    covariance that the elements share, () or (B,).
    """

    mean: Tensor
    qq: Tensor
    qv: Tensor
    vv: Tensor

    def _entries(self) -> tuple[Tensor, Tensor, Tensor]:
        """(qq, qv, vv), shaped to broadcast over (B, *event)."""
        like = self.mean[:, 0]
        return over_event(self.qq, like), over_event(self.qv, like), over_event(self.vv, like)

    @property
    def variance(self) -> Tensor:
        """qq and vv, the shape of the mean."""
        qq, _, vv = self._entries()
        like = self.mean[:, 0]
        return torch.stack([qq.expand(like.shape), vv.expand(like.shape)], dim=1)

    @property
    def std(self) -> Tensor:
        """Square root of the variance, the shape of the mean."""
        return torch.sqrt(self.variance)

    def _white(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """(sd of q, slope of v on q, sd of v given q, and the two residuals of x in their units)."""
        qq, qv, vv = self._entries()
        slope = torch.where(qq > 0, qv / torch.where(qq > 0, qq, 1.0), 0.0)
        sq, sv = torch.sqrt(qq), torch.sqrt((vv - slope * qv).clamp(min=0.0))
        q, v = (x - self.mean).unbind(1)
        return sq, slope, sv, q / sq, (v - slope * q) / sv

    def sample(self, seed: int = 0, *, noise: Noise | None = None, first_id: int = 0) -> Tensor:
        """Samples (B, 2, *event). Row i is sample ``first_id + i`` of the noise."""
        xi = draw(self.mean, seed, noise, first_id)
        sq, slope, sv, _, _ = self._white(self.mean)
        q = sq * xi[:, 0]
        return self.mean + torch.stack([q, slope * q + sv * xi[:, 1]], dim=1)

    def log_prob(self, x: Tensor) -> Tensor:
        """Log density in nats, (B,), summed over elements. Where a variance is 0 it is +inf or NaN."""
        sq, _, sv, a, b = self._white(x)
        terms = -0.5 * (a * a + b * b) - torch.log(sq * sv) - LOG_2PI
        return fold(flat(terms))

    def score(self, x: Tensor) -> Tensor:
        """The gradient of `log_prob`, -cov^-1 (x - mean), (B, 2, *event)."""
        sq, slope, sv, a, b = self._white(x)
        return torch.stack([slope * b / sv - a / sq, -b / sv], dim=1)
