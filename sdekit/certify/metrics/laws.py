r"""One-dimensional mixtures of Gaussians: projections of a target, in closed form.

The projection theta.X of a mixture sum_k w_k N(m_k, C_k) is sum_k w_k N(theta.m_k, theta^T C_k theta).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sdekit.targets import Empirical, Gaussian, GaussianMixture, Target

__all__ = ["Line", "directions", "has_projections", "moments", "project"]


@dataclass(frozen=True)
class Line:
    """sum_k w_k N(mean_k, std_k^2) on the line; all (K,) float64."""

    weights: Tensor
    mean: Tensor
    std: Tensor

    @property
    def second_moment(self) -> float:
        """E[Y^2]."""
        return float((self.weights * (self.mean**2 + self.std**2)).sum())

    def cdf(self, y: Tensor) -> Tensor:
        """P(Y <= y), any shape."""
        z = (y[..., None] - self.mean) / self.std
        out: Tensor = (self.weights * torch.special.ndtr(z)).sum(-1).clamp(0, 1)
        return out

    def cdf_of_array(self, y: Any) -> NDArray[np.float64]:
        """The cdf, of arrays."""
        return np.asarray(self.cdf(torch.as_tensor(y, dtype=torch.float64)))

    def density(self, y: Tensor) -> Tensor:
        """p(y), any shape."""
        z = (y[..., None] - self.mean) / self.std
        out: Tensor = (self.weights / self.std * torch.exp(-0.5 * z * z)).sum(-1) / math.sqrt(2 * math.pi)
        return out

    def quantile(self, u: Tensor) -> Tensor:
        """Inverse of the cdf for u (n,) in (0, 1): a table that resolves every component, then Newton."""
        if len(self.weights) == 1:
            normal: Tensor = torch.special.ndtri(u)
            return self.mean + self.std * normal
        reach = torch.linspace(-9, 9, 1025, dtype=torch.float64)
        nodes = (self.mean[:, None] + self.std[:, None] * reach).flatten().sort().values
        table = self.cdf(nodes).cummax(0).values
        k = torch.searchsorted(table, u).clamp(1, len(nodes) - 1)
        low, high = nodes[k - 1], nodes[k]
        y = low + (high - low) * (u - table[k - 1]) / (table[k] - table[k - 1]).clamp_min(1e-300)
        y = torch.minimum(torch.maximum(y, low), high)
        for _ in range(5):
            step = (self.cdf(y) - u) / self.density(y).clamp_min(1e-300)
            y = torch.minimum(torch.maximum(y - step, low), high)
        return y

    def cell_means(self, n: int) -> Tensor:
        """Integrals of the quantile function over ((i - 1)/n, i/n), i = 1..n: (n,), summing to E[Y].

        int_a^b y p(y) dy = sum_k w_k [m_k (Phi(b_k) - Phi(a_k)) - s_k (phi(b_k) - phi(a_k))].
        """
        inner = self.quantile(torch.arange(1, n, dtype=torch.float64) / n)
        z = (inner[:, None] - self.mean) / self.std
        peak = torch.exp(-0.5 * z * z) / math.sqrt(2 * math.pi)
        up_to = (self.weights * (self.mean * torch.special.ndtr(z) - self.std * peak)).sum(-1)
        whole = (self.weights * self.mean).sum()[None]
        return torch.diff(torch.cat([torch.zeros(1, dtype=torch.float64), up_to, whole]))


def has_projections(target: Target) -> bool:
    """Whether `project` knows the target."""
    return isinstance(target, Gaussian | GaussianMixture)


def project(target: Target, theta: Tensor) -> list[Line]:
    """The laws of theta.X for each row of theta (P, D)."""
    if isinstance(target, Gaussian):
        weights, parts = torch.ones(1, dtype=torch.float64), [target]
    else:
        assert isinstance(target, GaussianMixture)
        weights, parts = target.weights, target.components
    means, stds = [], []
    for part in parts:
        c = part.to_basis(theta.reshape(-1, *part.event_shape))
        means.append(theta @ part.mean.reshape(-1))
        stds.append((c * c * part.eigenvalues).sum(1).sqrt())
    mean, std = torch.stack(means, 1), torch.stack(stds, 1)
    return [Line(weights, m, s) for m, s in zip(mean, std, strict=True)]


def directions(count: int, dimension: int, seed: int) -> Tensor:
    """(count, D) unit vectors, uniform on the sphere, every run of D of them orthonormal."""
    generator = torch.Generator().manual_seed(seed)
    frames = []
    for start in range(0, count, dimension):
        wanted = min(dimension, count - start)
        q, r = torch.linalg.qr(torch.randn(dimension, wanted, generator=generator, dtype=torch.float64))
        frames.append((q * torch.sign(r.diagonal())).T)
    return torch.cat(frames)


def moments(target: Target) -> tuple[Tensor, Tensor]:
    """Mean (D,) and covariance (D, D) of a target, in closed form."""
    if isinstance(target, Gaussian):
        return target.mean.reshape(-1), target.cov
    cov: Tensor | float
    if isinstance(target, GaussianMixture):
        weights, means = target.weights, target.means.reshape(len(target), -1)
        cov = sum(w * part.cov for w, part in zip(weights, target.components, strict=True))
    else:
        assert isinstance(target, Empirical)
        means = target.data.reshape(len(target), -1).double().cpu()
        weights = target._probabilities()
        cov = target.bandwidth**2 * torch.eye(target.dimension, dtype=torch.float64)
    mean = weights @ means
    centred = means - mean
    return mean, cov + (centred.T * weights) @ centred
