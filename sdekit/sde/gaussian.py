"""GaussianDiffusion: an SDE given by alpha(t) and sigma(t), and the contract of its coefficients."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sdekit._typing import Number
from sdekit.errors import EndpointError, ShapeError, check_count, check_state_time
from sdekit.noise import Noise, as_noise
from sdekit.sde.base import SDE
from sdekit.sde.coefficients import (
    as_tensor,
    can_read,
    check_forward,
    coefficient,
    derivative,
    extremes,
    inverse,
    show,
)
from sdekit.sde.laws import Normal
from sdekit.sde.rows import over_event
from sdekit.sde.spec import describe, register, spec

if TYPE_CHECKING:
    from collections.abc import Sequence


__all__ = ["GaussianDiffusion"]

SLACK = 1e-6
"""Rounding allowed at the ends of a range, in units of the range."""

COEFFICIENTS = (
    *("alpha", "sigma", "log_alpha", "dalpha", "dsigma", "rho", "half_log_snr"),
    *("drift_coefficient", "diffusion_squared"),
)
INVERSES = ("t_of_rho", "t_of_half_log_snr")


class GaussianDiffusion(SDE):
    """x_t = alpha(t) x0 + sigma(t) eps, eps ~ N(0, I); as an SDE

        dx = f(t) x dt + g(t) dw,   f = d log alpha / dt,   g^2 = d sigma^2 / dt - 2 f sigma^2.

    A subclass defines ``alpha(t)`` and ``sigma(t)`` of a float64 tensor t, with sigma / alpha increasing;
    derivatives and inverses then come from torch.func and bisection, unless it gives closed forms too.
    Every coefficient takes a number (and returns a 0-d float64 tensor) or a tensor (and returns its
    shape, dtype and device), computes in float64 and is differentiable in t. Data is at ``t_min``, noise at
    ``t_max``; `domain` is where the coefficients exist.

    Kingma et al. 2021, Variational diffusion models (arXiv:2107.00630), section 3;
    Song et al. 2021, Score-based generative modeling through SDEs (arXiv:2011.13456).
    """

    noise_type: str = "additive"
    sde_type: str = "ito"
    t_min: float = 1e-3
    t_max: float = 1.0
    _claims_checked: bool = True

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for names, contract in ((COEFFICIENTS, coefficient), (INVERSES, inverse)):
            for name in names:
                method = cls.__dict__.get(name)
                if callable(method) and not hasattr(method, "_is_contract"):
                    setattr(cls, name, contract(method))
        register(cls)

    # Times.

    @property
    def domain(self) -> tuple[float, float]:
        """(first, last) time at which the coefficients exist."""
        return 0.0, self.t_max

    @property
    def finite_t_max(self) -> float:
        """``t_max``, or where alpha(t_max) = 0 (infinite drift) the time with alpha = 1e-3."""
        if float(self.alpha(self.t_max)) > 0:
            return self.t_max
        low, high = self.t_min, self.t_max
        while low < (middle := 0.5 * (low + high)) < high:
            low, high = (middle, high) if float(self.alpha(middle)) > 1e-3 else (low, middle)
        return low

    def _inside(self, t: Tensor) -> Tensor:
        """t within `domain`, rounding at the ends removed."""
        first, last = self.domain
        slack = SLACK * (last if math.isfinite(last) else 1.0)
        if not can_read(t):
            inside = (t >= first - slack) & (t <= last + slack) & torch.isfinite(t)
            return torch.where(inside, t.clamp(first, last), torch.full_like(t, math.nan))
        low, high = extremes(t)
        if first <= low and high <= last and math.isfinite(high):
            return t
        if t.numel() and not (first - slack <= low and high <= last + slack and math.isfinite(high)):
            cause = "a step index where a time is meant" if high >= 2 * last else "a grid that overshoots"
            raise ValueError(
                f"{self!r}: t must lie in [{first:g}, {last:g}], got {show(t)}. Time runs from data "
                f"(t_min = {self.t_min:g}) to noise (t_max = {self.t_max:g}). Likely cause: {cause}."
            )
        return t.clamp(first, last)

    # Coefficients.

    @coefficient
    def alpha(self, t: Tensor) -> Tensor:
        """Scale of the data."""
        raise NotImplementedError(f"{type(self).__name__} must define alpha(t) and sigma(t).")

    @coefficient
    def sigma(self, t: Tensor) -> Tensor:
        """Standard deviation of the noise."""
        raise NotImplementedError(f"{type(self).__name__} must define alpha(t) and sigma(t).")

    @coefficient
    def log_alpha(self, t: Tensor) -> Tensor:
        """log alpha; -inf where alpha = 0."""
        return torch.log(self.alpha(t))

    @coefficient
    def dalpha(self, t: Tensor) -> Tensor:
        """d alpha / dt."""
        return derivative(self.alpha, t)

    @coefficient
    def dsigma(self, t: Tensor) -> Tensor:
        """d sigma / dt."""
        return derivative(self.sigma, t)

    @coefficient
    def rho(self, t: Tensor) -> Tensor:
        """sigma / alpha; inf where alpha = 0."""
        return self.sigma(t) / self.alpha(t)

    @coefficient
    def half_log_snr(self, t: Tensor) -> Tensor:
        """lambda = log(alpha / sigma), decreasing; inf where sigma = 0, -inf where alpha = 0."""
        return self.log_alpha(t) - torch.log(self.sigma(t))

    @coefficient
    def drift_coefficient(self, t: Tensor) -> Tensor:
        """f = d log alpha / dt; -inf where alpha = 0."""
        return self.dalpha(t) / self.alpha(t)

    @coefficient
    def diffusion_squared(self, t: Tensor) -> Tensor:
        """g^2 = d sigma^2 / dt - 2 f sigma^2; inf where alpha = 0."""
        sigma = self.sigma(t)
        return 2.0 * sigma * (self.dsigma(t) - self.drift_coefficient(t) * sigma)

    @inverse
    def t_of_rho(self, rho: Tensor) -> Tensor:
        """The time with sigma / alpha = rho; inf is accepted where alpha reaches 0.

        Raises ValueError for values that the process does not reach.
        """
        return self.t_of_half_log_snr(-torch.log(rho))

    @inverse
    def t_of_half_log_snr(self, lam: Tensor) -> Tensor:
        """The time with log(alpha / sigma) = lam, by bisection unless a subclass knows better.

        Differentiable in lam. Raises ValueError for values that the process does not reach.
        """
        first, last = (torch.full_like(lam, end) for end in (self.domain[0], self.t_max))
        target = lam.detach()
        with torch.no_grad():
            top, bottom = self.half_log_snr(first), self.half_log_snr(last)
            low, high = first, last
            for _ in range(110):
                middle = 0.5 * (low + high)
                above = self.half_log_snr(middle) > target
                low, high = torch.where(above, middle, low), torch.where(above, high, middle)
            t = torch.where(target >= top, first, torch.where(target <= bottom, last, 0.5 * (low + high)))
            missed = (target > top + SLACK * (1 + top.abs())) | (target < bottom - SLACK * (1 + bottom.abs()))
            t = torch.where(missed | torch.isnan(target), torch.full_like(t, math.nan), t)
        if not lam.requires_grad:
            return t
        return t + (lam - target) / derivative(self.half_log_snr, t)

    # The SDE.

    def _finite(self, value: Tensor, t: Number, what: str) -> Tensor:
        if can_read(value) and math.isinf(extremes(value.abs())[1]):
            raise EndpointError(
                f"{self!r}: the {what} is infinite at t = {show(as_tensor(t, 't'))}, where alpha = 0. "
                f"Next: start at t = {self.finite_t_max:.6g} (`finite_t_max`), where alpha = 1e-3, from "
                f"N(0, sigma^2 I), or use a probability flow with a model that has a velocity."
            )
        return value

    def drift(self, x: Tensor, t: Number) -> Tensor:
        """f(t) x, (B, *event); t: () or (B,). Raises EndpointError where alpha = 0."""
        x = check_state_time(x, t, "drift")
        return over_event(self._finite(self.drift_coefficient(t), t, "drift"), x) * x

    def diffusion(self, x: Tensor, t: Number) -> Tensor:
        """g(t), expanded to x's shape; t: () or (B,). Raises EndpointError where alpha = 0."""
        x = check_state_time(x, t, "diffusion")
        square = self._finite(self.diffusion_squared(t), t, "diffusion")
        return over_event(torch.sqrt(square), x).to(x.device).expand(x.shape)

    def divergence_ggt(self, x: Tensor, t: Number) -> Tensor:
        """0: the diffusion does not depend on x."""
        return torch.zeros_like(x)

    # Laws.

    def marginal(self, x0: Tensor, t: Number) -> Normal:
        """Law of x_t given clean data, N(alpha x0, sigma^2 I). x0: (B, *event); t: () or (B,)."""
        x0 = check_state_time(x0, t, "marginal")
        time = as_tensor(t, "t").to(torch.float64)
        mean = over_event(self.alpha(time), x0) * x0
        return Normal(mean, over_event(self.sigma(time), x0).to(x0.device))

    def transition(self, x: Tensor, s: Number, t: Number) -> Normal:
        """Law of x_t given x_s = x, s <= t,

            N(r x, (sigma_t^2 - r^2 sigma_s^2) I),   r = alpha_t / alpha_s.

        x: (B, *event); s, t: () or (B,). For VE it differs from `marginal` even at s = 0.
        Raises DirectionError for s > t.
        """
        x = check_state_time(x, t, "transition")
        start, end = (as_tensor(u, name).to(torch.float64) for u, name in ((s, "s"), (t, "t")))
        check_forward(start, end)
        same = start == end
        ratio = torch.where(same, 1.0, self.alpha(end) / self.alpha(start))
        gap = torch.where(same, 0.0, self.half_log_snr(end) - self.half_log_snr(start))
        std = self.sigma(end) * torch.sqrt(-torch.expm1(2.0 * gap))
        return Normal(over_event(ratio, x) * x, over_event(std, x).to(x.device))

    def prior_std(self, t: float | None = None) -> float:
        """Standard deviation of the law that sampling starts from at ``t`` (default t_max)."""
        return float(self.sigma(self.t_max if t is None else t))

    def prior(
        self,
        shape: Sequence[int],
        seed: int = 0,
        *,
        noise: Noise | None = None,
        first_id: int = 0,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
    ) -> Tensor:
        """Samples of N(0, prior_std^2 I) at t_max, of shape ``shape`` = (B, *event).

        Row i is sample ``first_id + i`` of the noise, the same alone and in any batch.
        """
        if isinstance(shape, int) or len(shape) == 0:
            raise ShapeError(
                f"shape must be (B, *event), got {shape!r}. Next: (16, 2) for 16 points in the plane."
            )
        sizes = tuple(check_count(n, f"shape[{i}]") for i, n in enumerate(shape))
        like = torch.empty(sizes, dtype=dtype, device=device)
        first = check_count(first_id, "first_id", minimum=0)
        ids = torch.arange(first, first + sizes[0], dtype=torch.int64, device=like.device)
        return self.prior_std() * as_noise(seed, noise).initial(like, ids)

    # Representation.

    def spec(self) -> dict[str, Any]:
        """The process as JSON-able data; `from_spec` rebuilds it.

        Raises TypeError for a subclass with its own constructor: make it a frozen dataclass.
        """
        return spec(self)

    def __repr__(self) -> str:
        return describe(self)
