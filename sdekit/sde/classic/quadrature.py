"""A law on the line that is known up to its constant."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from sdekit.noise import Noise
from sdekit.sde.classic.laws import total
from sdekit.sde.laws import draw

__all__ = ["QuadratureLaw"]

NODES, WEIGHTS = (torch.from_numpy(v) for v in np.polynomial.legendre.leggauss(12))
NEWTON = 8


class QuadratureLaw:
    """Density e^(log_density)/Z on [low, high], the same for every element of an event.

    Z, moments and distribution function by 12-point Gauss-Legendre rules on equal panels, which must be
    narrow against the features of the density. like: (B, *event), gives `sample` and `mean` their shape.
    float64 on the host inside.
    """

    def __init__(
        self, log_density: Callable[[Tensor], Tensor], low: float, high: float, panels: int, like: Tensor
    ) -> None:
        self._log_density, self._like = log_density, like
        self._edges = torch.linspace(low, high, panels + 1, dtype=torch.float64)
        middle, half = 0.5 * (self._edges[1:] + self._edges[:-1]), 0.5 * (high - low) / panels
        nodes = middle[:, None] + half * NODES
        logs = log_density(nodes)
        self._shift = logs.max()
        mass = half * WEIGHTS * torch.exp(logs - self._shift)
        total = mass.sum()
        self.log_normaliser = float(self._shift + torch.log(total))
        self._nodes, self._mass = nodes, mass / total
        self._cdf = torch.cat([torch.zeros(1, dtype=torch.float64), self._mass.sum(1).cumsum(0)])

    def expectation(self, function: Callable[[Tensor], Tensor]) -> float:
        """E function(X) of one element."""
        return float((self._mass * function(self._nodes)).sum())

    @property
    def mean(self) -> Tensor:
        """E X, the shape of ``like``."""
        return torch.full_like(self._like, self.expectation(lambda x: x))

    @property
    def variance(self) -> Tensor:
        """Var X, the shape of ``like``."""
        centre = self.expectation(lambda x: x)
        return torch.full_like(self._like, self.expectation(lambda x: (x - centre) ** 2))

    @property
    def std(self) -> Tensor:
        """Square root of the variance, the shape of ``like``."""
        return torch.sqrt(self.variance)

    def _density(self, x: Tensor) -> Tensor:
        return torch.exp(self._log_density(x) - self.log_normaliser)

    def log_prob(self, x: Tensor) -> Tensor:
        """Log density in nats, (B,), summed over the event."""
        return total(self._log_density(x) - self.log_normaliser)

    def _panel_cdf(self, x: Tensor, k: Tensor) -> Tensor:
        """The distribution function at x in panel k."""
        left = self._edges[k]
        half = 0.5 * (x - left)
        density = self._density(left[..., None] + half[..., None] * (1.0 + NODES))
        out: Tensor = self._cdf[k] + half * (WEIGHTS * density).sum(-1)
        return out

    def cdf(self, x: Tensor) -> Tensor:
        """P(X <= x), elementwise."""
        y = (
            x.detach()
            .to(device="cpu", dtype=torch.float64)
            .clamp(float(self._edges[0]), float(self._edges[-1]))
        )
        k = (torch.searchsorted(self._edges, y, right=True) - 1).clamp(0, len(self._edges) - 2)
        return self._panel_cdf(y, k).to(x)

    def sample(self, seed: int = 0, *, noise: Noise | None = None, first_id: int = 0) -> Tensor:
        """Quantiles of the noise by Newton's method within the panel, the shape of ``like``."""
        u = torch.special.ndtr(draw(self._like.to(torch.float64), seed, noise, first_id)).cpu()
        k = (torch.searchsorted(self._cdf, u, right=True) - 1).clamp(0, len(self._edges) - 2)
        low, high = self._edges[k], self._edges[k + 1]
        x = low + (high - low) * ((u - self._cdf[k]) / (self._cdf[k + 1] - self._cdf[k])).clamp(0.0, 1.0)
        for _ in range(NEWTON):
            step = (self._panel_cdf(x, k) - u) / self._density(x).clamp(min=1e-300)
            x = torch.minimum(torch.maximum(x - step, low), high)
        out: Tensor = x.to(self._like)
        return out
