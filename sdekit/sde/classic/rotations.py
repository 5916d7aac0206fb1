"""Noise that does not commute: the Levy area, and Brownian motion on a sphere."""

from __future__ import annotations

import torch
from torch import Tensor

from sdekit._typing import Number
from sdekit.errors import ShapeError, check_positive
from sdekit.sde.base import SDE
from sdekit.sde.classic._door import elapsed
from sdekit.sde.classic.laws import HyperbolicSecant
from sdekit.sde.rows import matvec

__all__ = ["LevyArea", "SphericalBrownian"]


class LevyArea(SDE):
    """dX_1 = dW_1, dX_2 = dW_2, dX_3 = (1/2)(X_1 dW_2 - X_2 dW_1) (Ito and Stratonovich alike).

    States are (B, 3), m = 2. The area over [s, t], X_3(t) - X_3(s) - (1/2)(X_1(s) X_2(t) - X_2(s) X_1(t)),
    does not depend on the past and has density sech(pi a/h)/h with h = t - s (`area_law`). Given the
    increment w it has variance h^2/12 + h |w|^2/12 (`area_variance`). A scheme that knows W alone cannot do
    better than strong order 1/2 here.

    Levy 1951, Proceedings of the Second Berkeley Symposium, 171.
    """

    noise_type: str = "general"

    def __init__(self) -> None:
        super().__init__(noise_dim=2)

    def _split(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if x.ndim != 2 or x.shape[1] != 3:
            raise ShapeError(f"x must have shape (B, 3), got {tuple(x.shape)}.")
        a, b, c = x.unbind(1)
        return a, b, c

    def drift(self, x: Tensor, t: Number) -> Tensor:
        """0, (B, 3)."""
        self._split(x)
        return torch.zeros_like(x)

    def diffusion(self, x: Tensor, t: Number) -> Tensor:
        """[[1, 0], [0, 1], [-x_2/2, x_1/2]], (B, 3, 2)."""
        a, b, _ = self._split(x)
        one, zero = torch.ones_like(a), torch.zeros_like(a)
        rows = ((one, zero), (zero, one), (-0.5 * b, 0.5 * a))
        return torch.stack([torch.stack(row, dim=1) for row in rows], dim=1)

    def divergence_ggt(self, x: Tensor, t: Number) -> Tensor:
        """0, (B, 3)."""
        return torch.zeros_like(x)

    def correction(self, x: Tensor, t: Number) -> Tensor:
        """0, (B, 3)."""
        return torch.zeros_like(x)

    def solution(self, x0: Tensor, t: Number, w: Tensor, area: Tensor) -> Tensor:
        """X_t on the path with X_0 = x0, W_t = w, (B, 2), and Levy area ``area``, (B,) over [0, t]."""
        a, b, c = self._split(x0)
        third = c + 0.5 * (a * w[:, 1] - b * w[:, 0]) + area
        return torch.stack([a + w[:, 0], b + w[:, 1], third], dim=1)

    def area(self, x: Tensor, y: Tensor) -> Tensor:
        """The area over the time from state x to state y of a path, (B,)."""
        (a, b, c), (a1, b1, c1) = self._split(x), self._split(y)
        return c1 - c - 0.5 * (a * b1 - b * a1)

    def area_law(self, x: Tensor, s: Number, t: Number) -> HyperbolicSecant:
        """The law of the area over [s, t], the same from every state, for the rows of x."""
        return HyperbolicSecant(elapsed(x[:, 0], s, t).expand(x.shape[0]).to(x.dtype))

    @staticmethod
    def area_variance(h: Number, w: Tensor) -> Tensor:
        """Variance of the area over a time h given the increment w, (B, 2): h^2/12 + h |w|^2/12, (B,)."""
        return (h * h + h * (w[:, 0] ** 2 + w[:, 1] ** 2)) / 12.0

    def __repr__(self) -> str:
        return "LevyArea()"


GENERATORS = torch.tensor(
    [
        [[0.0, 0.0, 0.0], [0.0, 0.0, -1.0], [0.0, 1.0, 0.0]],
        [[0.0, 0.0, 1.0], [0.0, 0.0, 0.0], [-1.0, 0.0, 0.0]],
        [[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 0.0]],
    ],
    dtype=torch.float64,
)
"""E_k of so(3): E_k x = e_k x x."""


class SphericalBrownian(SDE):
    """dX = sigma sum_k E_k X o dW_k (Stratonovich), E_k the generators of so(3): X stays on its sphere.

    sigma > 0 (1/sqrt(time)). States are (B, 3), m = 3; the E_k do not commute. With r = |x0|,

        E X = e^(-sigma^2 t) x0,   E XX^T = r^2 I/3 + e^(-3 sigma^2 t) (x0 x0^T - r^2 I/3),

    the decay l (l + 1)/2 of spherical harmonics of degree l = 1, 2; the stationary law is uniform.
    Perrin 1928, Annales scientifiques de l'ENS 45, 1. Raises ValueError for sigma <= 0.
    """

    noise_type: str = "general"
    sde_type: str = "stratonovich"

    def __init__(self, sigma: float = 1.0) -> None:
        self.sigma = check_positive(sigma, "sigma")
        super().__init__(noise_dim=3)

    def _check_rows(self, x: Tensor) -> None:
        if x.ndim != 2 or x.shape[1] != 3:
            raise ShapeError(f"x must have shape (B, 3), got {tuple(x.shape)}.")

    def drift(self, x: Tensor, t: Number) -> Tensor:
        """0, (B, 3)."""
        self._check_rows(x)
        return torch.zeros_like(x)

    def diffusion(self, x: Tensor, t: Number) -> Tensor:
        """The columns sigma e_k x x, (B, 3, 3)."""
        self._check_rows(x)
        return torch.stack([self.sigma * matvec(e, x) for e in GENERATORS], dim=2)

    def divergence_ggt(self, x: Tensor, t: Number) -> Tensor:
        """-2 sigma^2 x, (B, 3)."""
        return -2.0 * self.sigma**2 * x

    def correction(self, x: Tensor, t: Number) -> Tensor:
        """-sigma^2 x, (B, 3): the Ito drift."""
        return -(self.sigma**2) * x

    def mean(self, x0: Tensor, t: float) -> Tensor:
        """E X_t, (B, 3)."""
        self._check_rows(x0)
        return x0 * torch.exp(torch.as_tensor(-(self.sigma**2) * float(t), dtype=x0.dtype))

    def second_moment(self, x0: Tensor, t: float) -> Tensor:
        """E X_t X_t^T, (B, 3, 3)."""
        self._check_rows(x0)
        even = (x0 * x0).sum(1)[:, None, None] * torch.eye(3, dtype=x0.dtype, device=x0.device) / 3.0
        decay = torch.exp(torch.as_tensor(-3.0 * self.sigma**2 * float(t), dtype=x0.dtype))
        return even + decay * (x0[:, :, None] * x0[:, None, :] - even)

    def __repr__(self) -> str:
        return f"SphericalBrownian(sigma={self.sigma:g})"
