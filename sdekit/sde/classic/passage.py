"""Brownian motion with drift and its first passage; the Brownian bridge."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sdekit._typing import Number
from sdekit.errors import EndpointError, check_positive
from sdekit.noise import Noise
from sdekit.sde.base import SDE
from sdekit.sde.classic._door import check_domain, elapsed, positive
from sdekit.sde.classic.laws import total
from sdekit.sde.coefficients import as_tensor, can_read
from sdekit.sde.laws import LOG_2PI, Normal, draw
from sdekit.sde.rows import constant, over_event, parameter

__all__ = ["BrownianBridge", "DriftedBrownian", "FirstPassage"]


class FirstPassage(NamedTuple):
    """The first time tau at which mu t + sigma W_t reaches ``distance`` > 0, elementwise.

        P(tau <= t) = Phi((mu t - a)/(sigma sqrt t)) + e^(2 mu a/sigma^2) Phi(-(mu t + a)/(sigma sqrt t))

    For mu > 0 the inverse Gaussian law of mean a/mu and shape a^2/sigma^2; for mu = 0 Levy's; for mu < 0 the
    level is never reached, tau = inf, with probability 1 - e^(2 mu a/sigma^2).
    distance: (B, *event); mu, sigma: broadcast to it. Borodin and Salminen 2002, Handbook of Brownian
    motion, formulas 2.2.0.1 and 2.2.0.2.
    """

    distance: Tensor
    mu: Tensor
    sigma: Tensor

    @property
    def mass(self) -> Tensor:
        """P(tau < inf) = min(1, e^(2 mu a/sigma^2))."""
        return torch.exp((2.0 * self.mu * self.distance / self.sigma**2).clamp(max=0.0))

    @property
    def mean(self) -> Tensor:
        """a/mu for mu > 0, else inf."""
        return torch.where(self.mu > 0, self.distance / self.mu, math.inf)

    @property
    def variance(self) -> Tensor:
        """a sigma^2/mu^3 for mu > 0, else inf."""
        return torch.where(self.mu > 0, self.distance * self.sigma**2 / self.mu**3, math.inf)

    @property
    def std(self) -> Tensor:
        """Square root of the variance."""
        return torch.sqrt(self.variance)

    def cdf(self, t: Tensor) -> Tensor:
        """P(tau <= t), elementwise; 0 for t <= 0."""
        a, mu, sigma = self
        later = t > 0
        root = sigma * torch.sqrt(torch.where(later, t, torch.ones_like(t)))
        reflected = 2.0 * mu * a / sigma**2 + torch.special.log_ndtr(-(mu * t + a) / root)
        return torch.where(later, torch.special.ndtr((mu * t - a) / root) + torch.exp(reflected), 0.0)

    def log_prob(self, t: Tensor) -> Tensor:
        """Log density in nats at t > 0, (B,), summed over the event."""
        a, mu, sigma = self
        spread = sigma**2 * t
        gap = (a - mu * t) ** 2 / (2.0 * spread)
        return total(torch.log(a) - 0.5 * (LOG_2PI + torch.log(spread)) - torch.log(t) - gap)

    def sample(self, seed: int = 0, *, noise: Noise | None = None, first_id: int = 0) -> Tensor:
        """Passage times, inf where the level is never reached, (B, *event); three draws.

        A root of (|mu| t - a)^2 = sigma^2 xi^2 t, one or the other (Michael, Schucany and Haas 1976, The
        American Statistician 30, 88).
        """
        a, size = self.distance, self.mu.abs()
        xi, level, fate = (draw(a, seed, noise, first_id, k) for k in range(3))
        y = self.sigma**2 * xi**2
        first = 2.0 * a * a / (2.0 * a * size + y + torch.sqrt(y * (4.0 * a * size + y)))
        take = torch.special.ndtr(level) * (a + size * first) <= a
        second = a * a / torch.where(take, torch.ones_like(first), size * size * first)
        out = torch.where(take, first, second)
        return torch.where(torch.special.ndtr(fate) <= self.mass, out, math.inf)


class DriftedBrownian(SDE):
    """dX = mu dt + sigma dW, elementwise, with X_t = x0 + mu t + sigma W_t.

    mu, sigma > 0: numbers, or tensors that broadcast to the event. The time at which a path first meets a
    level has a known law (`first_passage`), which a scheme misses at order sqrt(h) unless it accounts for
    crossings within its steps. Raises ValueError for sigma <= 0, NonFiniteError for NaN.
    """

    noise_type: str = "additive"
    _claims_checked: bool = True

    def __init__(self, mu: Any = 0.0, sigma: Any = 1.0) -> None:
        self.mu, self.sigma = constant(mu, "mu"), positive(sigma, "sigma", "mu, sigma")
        super().__init__()

    def drift(self, x: Tensor, t: Number) -> Tensor:
        """mu, expanded to x's shape."""
        return parameter(self.mu, x).expand(x.shape)

    def diffusion(self, x: Tensor, t: Number) -> Tensor:
        """sigma, expanded to x's shape."""
        return parameter(self.sigma, x).expand(x.shape)

    def solution(self, x0: Tensor, t: Number, w: Tensor) -> Tensor:
        """X_t on the path with X_0 = x0 and W_t = w, (B, *event); t: () or (B,)."""
        h = elapsed(x0, 0.0, t).to(x0.dtype)
        return x0 + parameter(self.mu, x0) * h + parameter(self.sigma, x0) * w

    def transition(self, x: Tensor, s: Number, t: Number) -> Normal:
        """Law of X_t given X_s = x, (B, *event). s <= t: () or (B,). Raises DirectionError for s > t."""
        h = elapsed(x, s, t).to(x.dtype)
        return Normal(x + parameter(self.mu, x) * h, parameter(self.sigma, x) * torch.sqrt(h))

    def first_passage(self, x: Tensor, level: Any) -> FirstPassage:
        """The time from x until the level is met, elementwise, (B, *event).

        level: a number, or a tensor that broadcasts to the event, above or below x. Raises ValueError where
        x is on the level.
        """
        gap = parameter(constant(level, "level"), x) - x
        check_domain(x, gap != 0, "the line without the level (the passage from it takes no time)")
        mu = parameter(self.mu, x) * torch.sign(gap)
        return FirstPassage(gap.abs(), mu, parameter(self.sigma, x).expand(x.shape))

    def crossing(self, x: Tensor, y: Tensor, h: Number, level: Any) -> Tensor:
        """P(a path from x to y in time h meets the level), elementwise, whatever mu, (B, *event).

        exp(-2 (b - x)(b - y)/(sigma^2 h)) with x and y on one side of the level b, else 1.
        """
        b = parameter(constant(level, "level"), x)
        sigma = parameter(self.sigma, x)
        product = ((b - x) * (b - y)).clamp(min=0.0)
        return torch.exp(-2.0 * product / (sigma * sigma * over_event(as_tensor(h, "h").to(x.device), x)))

    def __repr__(self) -> str:
        return f"DriftedBrownian(mu={self.mu.tolist()}, sigma={self.sigma.tolist()})"


class BrownianBridge(SDE):
    """dX = (end - X)/(T - t) dt + dW, elementwise, 0 <= t <= T, with X_T = end.

    end: a number, or a tensor that broadcasts to the event; duration T > 0. X_t given X_s = x is
    N(x + (end - x)(t - s)/(T - s), (t - s)(T - t)/(T - s)): at t = T the point ``end``, without 0/0. The
    drift has no value at T, and a method that asks for it there is told so. Karatzas and Shreve 1991,
    section 5.6.B. Raises ValueError for T <= 0, NonFiniteError for NaN.
    """

    noise_type: str = "additive"
    _claims_checked: bool = True

    def __init__(self, end: Any = 0.0, duration: float = 1.0) -> None:
        self.end, self.duration = constant(end, "end"), check_positive(duration, "duration")
        super().__init__(t_max=self.duration)

    def drift(self, x: Tensor, t: Number) -> Tensor:
        """(end - x)/(T - t), (B, *event). Raises EndpointError for t >= T."""
        time = as_tensor(t, "t")
        if can_read(time) and bool((time >= self.duration).any()):
            raise EndpointError(
                f"the drift (end - x)/(T - t) has no value at t >= T = {self.duration:g}. Likely cause: a "
                f"method with a stage at the end of its step. Next: 'euler-maruyama', or stop before T and "
                f"take transition(x, s, {self.duration:g})."
            )
        return (parameter(self.end, x) - x) / over_event(self.duration - time.to(x.device), x)

    def diffusion(self, x: Tensor, t: Number) -> Tensor:
        """1."""
        return torch.ones_like(x)

    def _times(self, x: Tensor, s: Number, t: Number) -> tuple[Tensor, Tensor]:
        """(t - s, T - s), float64 over the event. Raises ValueError for t > T."""
        h = elapsed(x, s, t)
        end = as_tensor(t, "t")
        if can_read(end) and bool((end.to(torch.float64) > self.duration).any()):
            raise ValueError(f"the bridge ends at T = {self.duration:g}, got t = {float(end.max()):g}.")
        left = over_event(
            self.duration - as_tensor(s, "s").to(torch.float64).to(x.device), x.to(torch.float64)
        )
        return h, left

    def transition(self, x: Tensor, s: Number, t: Number) -> Normal:
        """Law of X_t given X_s = x, (B, *event). s <= t <= T, s < T: () or (B,).

        Raises DirectionError for s > t, ValueError for t > T.
        """
        h, left = self._times(x, s, t)
        share = h / left
        mean = torch.lerp(x.to(torch.float64), parameter(self.end, x).to(torch.float64), share)
        return Normal(mean.to(x.dtype), torch.sqrt(share * (left - h)).to(x.dtype))

    def given(self, x: Tensor, s: Number, t: Number, W: Tensor, H: Tensor | None = None) -> Normal:
        """Law of X_t given X_s = x and the noise over [s, t]: W and, if known, H, (B, *event).

        With r = (T - t)/(T - s) and L = -ln r the noise part of X_t, int (T - t)/(T - u) dW_u, has slope
        k = r L/(1 - r) on W and 12 r (1 - (1 + r) L/(2 (1 - r)))/(1 - r) on H. See `sdekit.sde.regression`.
        """
        h, left = self._times(x, s, t)
        law = self.transition(x, s, t)
        r = 1.0 - h / left
        safe = torch.where((r > 0) & (r < 1), r, 0.5)
        fall = -torch.log(safe) / (1.0 - safe)
        k = safe * fall
        slope = 12.0 * safe / (1.0 - safe) * (1.0 - 0.5 * (1.0 + safe) * fall)
        inside = (r > 0) & (r < 1)
        k, slope = (torch.where(inside, c, (r >= 1).to(c)) for c in (k, slope))
        slope = torch.where(r >= 1, torch.zeros_like(slope), slope)
        variance = h * (r - k * k)
        path = k * W.to(torch.float64)
        if H is not None:
            path = path + slope * H.to(torch.float64)
            variance = variance - slope * slope * h / 12.0
        std = torch.sqrt(variance.clamp(min=0.0))
        return Normal(law.mean + path.to(x.dtype), std.to(x.dtype))

    def __repr__(self) -> str:
        return f"BrownianBridge(end={self.end.tolist()}, duration={self.duration:g})"
