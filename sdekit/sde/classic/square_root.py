"""The square-root diffusion (CIR)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sdekit._typing import Number
from sdekit.sde.base import SDE
from sdekit.sde.classic._door import check_domain, elapsed, positive
from sdekit.sde.classic.chi_square import Gamma, NoncentralChiSquare
from sdekit.sde.rows import parameter

__all__ = ["CIR"]


def root(x: Tensor) -> Tensor:
    """sqrt(max(x, 0)), with derivative 0 for x <= 0."""
    inside = x > 0
    return torch.where(inside, torch.sqrt(torch.where(inside, x, torch.ones_like(x))), torch.zeros_like(x))


class CIR(SDE):
    """dX = kappa (theta - X) dt + sigma sqrt(X) dW, elementwise, X >= 0.

    kappa (1/time), theta, sigma > 0: numbers, or tensors that broadcast to the event. With
    c = sigma^2 (1 - e^(-kappa h))/(4 kappa), X_(t+h) given X_t = x is c times a noncentral chi-square
    variable of nu = 4 kappa theta/sigma^2 degrees of freedom and noncentrality x e^(-kappa h)/c. 0 is never
    reached if and only if 2 kappa theta >= sigma^2 (`feller`); otherwise it is reached and left at once.
    Where a solver's step has gone below 0, the diffusion is 0 and the drift as it stands.

    Cox, Ingersoll and Ross 1985, Econometrica 53, 385, equations 17 to 20; Feller 1951, Annals of
    Mathematics 54, 173. Raises ValueError for parameters <= 0, NonFiniteError for NaN.
    """

    noise_type: str = "diagonal"
    _claims_checked: bool = True

    def __init__(self, kappa: Any = 1.0, theta: Any = 1.0, sigma: Any = 1.0) -> None:
        values = (("kappa", kappa), ("theta", theta), ("sigma", sigma))
        self.kappa, self.theta, self.sigma = (positive(v, n, "kappa, theta, sigma") for n, v in values)
        super().__init__()

    @property
    def feller(self) -> bool:
        """Whether 2 kappa theta >= sigma^2 everywhere, so that no path touches 0."""
        return bool((2.0 * self.kappa * self.theta >= self.sigma**2).all())

    def _like(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return parameter(self.kappa, x), parameter(self.theta, x), parameter(self.sigma, x)

    def drift(self, x: Tensor, t: Number) -> Tensor:
        """kappa (theta - x), (B, *event)."""
        kappa, theta, _ = self._like(x)
        return kappa * (theta - x)

    def diffusion(self, x: Tensor, t: Number) -> Tensor:
        """sigma sqrt(max(x, 0)), (B, *event)."""
        return parameter(self.sigma, x) * root(x)

    def divergence_ggt(self, x: Tensor, t: Number) -> Tensor:
        """sigma^2 for x > 0, else 0, (B, *event)."""
        sigma = parameter(self.sigma, x)
        return torch.where(x > 0, sigma * sigma, 0.0).to(x.dtype)

    def correction(self, x: Tensor, t: Number) -> Tensor:
        """sigma^2/4 for x > 0, else 0, (B, *event)."""
        return 0.25 * self.divergence_ggt(x, t)

    def transition(self, x: Tensor, s: Number, t: Number) -> NoncentralChiSquare:
        """Law of X_t given X_s = x >= 0, s < t: () or (B,). Its mean is theta + (x - theta) e^(-kappa h).

        Raises DirectionError for s > t, ValueError for x < 0.
        """
        check_domain(x, x >= 0, "[0, inf)")
        h = elapsed(x, s, t)
        kappa, theta, sigma = self._like(x.to(torch.float64))
        c = sigma * sigma * -torch.expm1(-kappa * h) / (4.0 * kappa)
        nonc = x * torch.exp(-kappa * h) / c
        nu = 4.0 * kappa * theta / (sigma * sigma)
        return NoncentralChiSquare(*((v + 0.0 * nonc).to(x.dtype) for v in (c, nu, nonc)))

    def stationary(self, x: Tensor) -> Gamma:
        """Gamma(2 kappa theta/sigma^2, scale sigma^2/(2 kappa)) in the shape of ``x``."""
        kappa, theta, sigma = self._like(x)
        shape, scale = 2.0 * kappa * theta / sigma**2, sigma**2 / (2.0 * kappa)
        return Gamma(shape.expand(x.shape), scale.expand(x.shape))

    def __repr__(self) -> str:
        values = (f"{name}={getattr(self, name).tolist()}" for name in ("kappa", "theta", "sigma"))
        return f"CIR({', '.join(values)})"
