"""Problems with known answers, shared by the solver tests."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sdekit.sde import ODE, SDE, VP


def nonlinear() -> tuple[ODE, Callable[[float], Tensor]]:
    """A non-autonomous nonlinear ODE in two dimensions and its solution u(t) = (sin t, exp(-t) + t/2).

    f = u' + g(x, t) - g(u, t) with g = (x0 x1 sin t + x0^2, x1 cos t - x0 x1^2): all elementary
    differentials up to order 6 are at work along u.
    """

    def u(t: Tensor) -> Tensor:
        return torch.stack([torch.sin(t), torch.exp(-t) + t / 2], dim=-1)

    def du(t: Tensor) -> Tensor:
        return torch.stack([torch.cos(t), -torch.exp(-t) + 0.5 + 0 * t], dim=-1)

    def g(x: Tensor, t: Tensor) -> Tensor:
        a, b = x[..., 0], x[..., 1]
        return torch.stack([a * b * torch.sin(t) + a * a, b * torch.cos(t) - a * b * b], dim=-1)

    ode = ODE(lambda x, t: du(t) + g(x, t) - g(u(t).expand_as(x), t))
    return ode, lambda t: u(torch.tensor([t], dtype=torch.float64))


MEAN, VARIANCE = (0.3, -0.5, 1.0), (0.2, 1.0, 3.0)


class GaussianFlow:
    """The law N(m, diag(S)) under VP: score, marginal, and the probability-flow map, in closed form."""

    def __init__(self, device: torch.device, dtype: torch.dtype = torch.float64) -> None:
        self.process = VP()
        self.mean = torch.tensor(MEAN, dtype=dtype, device=device)
        self.variance = torch.tensor(VARIANCE, dtype=dtype, device=device)

    def marginal(self, t: Tensor | float) -> tuple[Tensor, Tensor]:
        """Mean and variance at t: () or (B,)."""
        a, s = (
            torch.as_tensor(c(t)).to(self.mean)[..., None] for c in (self.process.alpha, self.process.sigma)
        )
        return a * self.mean, a * a * self.variance + s * s

    def score(self, x: Tensor, t: Tensor) -> Tensor:
        m, v = self.marginal(t)
        return -(x - m.to(x.dtype)) / v.to(x.dtype)

    def flow(self, x: Tensor, start: float, end: float) -> Tensor:
        """Where the probability flow carries x from ``start`` to ``end``."""
        (m, v), (m1, v1) = self.marginal(start), self.marginal(end)
        return m1 + (v1 / v).sqrt() * (x - m)


def euler_moments(sde: SDE, ts: Any, mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance after Euler-Maruyama over the nodes, for an affine diagonal drift, exactly."""
    probe = torch.stack([torch.zeros_like(mean), torch.ones_like(mean)])
    for t, h in zip(ts[:-1].tolist(), (ts[1:] - ts[:-1]).tolist(), strict=True):
        at = mean.new_tensor(t)
        shift, one = sde.drift(probe, at)
        grow = 1 + h * (one - shift)
        mean = grow * mean + h * shift
        variance = grow**2 * variance + abs(h) * sde.diffusion(probe, at)[0] ** 2
    return mean, variance


def close_moments(x: Tensor, mean: Tensor, variance: Tensor) -> None:
    """Sample mean and variance of Gaussian rows within 5 standard errors: false alarm 6e-7 each."""
    rows = len(x)
    assert bool(((x.mean(0) - mean).abs() < 5 * (variance / rows).sqrt()).all())
    assert bool(((x.var(0) - variance).abs() < 5 * variance * math.sqrt(2 / rows)).all())


def geometric(mu: float = 0.3, sigma: float = 0.5) -> SDE:
    """dX = mu X dt + sigma X dW."""
    return SDE(lambda x, t: mu * x, lambda x, t: sigma * x, noise_type="diagonal")


def slope(errors: list[float]) -> float:
    """Observed order between the last two errors, the step halved."""
    return math.log2(errors[-2] / errors[-1])
