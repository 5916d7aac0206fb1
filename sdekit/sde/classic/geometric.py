"""Geometric Brownian motion."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sdekit._typing import Number
from sdekit.sde.base import SDE
from sdekit.sde.coefficients import as_tensor, check_forward
from sdekit.sde.laws import LogNormal
from sdekit.sde.rows import constant, over_event, parameter

__all__ = ["GeometricBrownian"]


class GeometricBrownian(SDE):
    """dX = mu X dt + sigma X dW (Ito), elementwise.

    mu (1/time), sigma >= 0 (1/sqrt(time)): numbers, or tensors that broadcast to the event. Pathwise,
    X_t = x0 exp((mu - sigma^2/2) t + sigma W_t), so that log X is a Brownian motion with drift.
    Kloeden and Platen 1992, Numerical solution of SDEs, equation 4.4.6. The test equation of mean-square
    stability: E X^2 tends to 0 if and only if `mean_square_rate` = 2 mu + sigma^2 < 0 (Saito and Mitsui
    1996, SIAM Journal on Numerical Analysis 33, 2254).

    Raises ValueError for sigma < 0, NonFiniteError for NaN.
    """

    noise_type: str = "diagonal"
    _claims_checked: bool = True

    def __init__(self, mu: Any = 0.0, sigma: Any = 1.0) -> None:
        self.mu, self.sigma = constant(mu, "mu"), constant(sigma, "sigma")
        if bool((self.sigma.detach() < 0).any()):
            raise ValueError(f"sigma must be >= 0, got {sigma}. Next: check the argument order (mu, sigma).")
        super().__init__()

    def _like(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(mu, sigma) in x's dtype and device."""
        return parameter(self.mu, x), parameter(self.sigma, x)

    def drift(self, x: Tensor, t: Number) -> Tensor:
        """mu x, (B, *event)."""
        return self._like(x)[0] * x

    def diffusion(self, x: Tensor, t: Number) -> Tensor:
        """sigma x, (B, *event)."""
        return self._like(x)[1] * x

    def divergence_ggt(self, x: Tensor, t: Number) -> Tensor:
        """2 sigma^2 x, (B, *event)."""
        sigma = self._like(x)[1]
        return 2.0 * sigma * sigma * x

    def correction(self, x: Tensor, t: Number) -> Tensor:
        """sigma^2 x / 2, (B, *event)."""
        sigma = self._like(x)[1]
        return 0.5 * sigma * sigma * x

    def solution(self, x0: Tensor, t: Number, w: Tensor) -> Tensor:
        """X_t on the path with X_0 = x0 and W_t = w, (B, *event); t: () or (B,)."""
        mu, sigma = self._like(x0)
        elapsed = over_event(as_tensor(t, "t").to(x0.device), x0)
        return x0 * torch.exp((mu - 0.5 * sigma * sigma) * elapsed + sigma * w)

    def transition(self, x: Tensor, s: Number, t: Number) -> LogNormal:
        """Law of X_t given X_s = x > 0, s <= t: shape () or (B,).

        Raises DirectionError for s > t, ValueError for x <= 0 (take `solution` there).
        """
        start, end = as_tensor(s, "s").to(torch.float64), as_tensor(t, "t").to(torch.float64)
        check_forward(start, end)
        if x.device.type == "cpu" and bool((x <= 0).any()):
            raise ValueError(
                f"the transition law is log-normal, so x must be > 0, got {float(x.min()):g}. Next: use "
                f"solution(x0, t, w), which holds for any sign."
            )
        mu, sigma = self._like(x)
        h = over_event(end.to(x.device) - start.to(x.device), x)
        return LogNormal(torch.log(x) + (mu - 0.5 * sigma * sigma) * h, sigma * torch.sqrt(h))

    def moment(self, x0: Tensor, t: Number, p: float) -> Tensor:
        """E X_t^p = x0^p exp(p mu t + p (p - 1) sigma^2 t/2), elementwise, (B, *event)."""
        mu, sigma = self._like(x0)
        elapsed = over_event(as_tensor(t, "t").to(x0.device), x0)
        return x0**p * torch.exp((p * mu + 0.5 * p * (p - 1.0) * sigma * sigma) * elapsed)

    @property
    def mean_square_rate(self) -> Tensor:
        """2 mu + sigma^2, the rate at which E X^2 grows."""
        return 2.0 * self.mu + self.sigma * self.sigma

    def marginal_score(
        self, log_mean: float = 0.0, log_std: float = 0.0
    ) -> Callable[[Tensor, Tensor], Tensor]:
        """The score (x, t) -> d log p_t / dx, (B, *event), for log X_0 ~ N(log_mean, log_std^2).

        log_std = 0 starts from the point exp(log_mean), where the score is infinite at t = 0.
        """

        def score(x: Tensor, t: Tensor) -> Tensor:
            mu, sigma = self._like(x)
            elapsed = over_event(as_tensor(t, "t").to(x.device), x)
            variance = log_std**2 + sigma * sigma * elapsed
            centred = torch.log(x) - log_mean - (mu - 0.5 * sigma * sigma) * elapsed
            return -(1.0 + centred / variance) / x

        return score

    def __repr__(self) -> str:
        return f"GeometricBrownian(mu={self.mu.tolist()}, sigma={self.sigma.tolist()})"
