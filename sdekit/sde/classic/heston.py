"""Heston's stochastic volatility: a price and its variance."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sdekit._typing import Number
from sdekit.errors import ShapeError, check_positive
from sdekit.sde.base import SDE
from sdekit.sde.classic._door import check_domain, elapsed
from sdekit.sde.classic.square_root import CIR, root
from sdekit.sde.rows import constant

__all__ = ["Heston"]


class Heston(SDE):
    """dS = mu S dt + sqrt(v) S dW_1, dv = kappa (theta - v) dt + xi sqrt(v) (rho dW_1 + sqrt(1-rho^2) dW_2).

    mu, kappa (1/time), theta (1/time), xi (1/time): numbers, the last three > 0; -1 < rho < 1. States are
    (B, 2), S > 0 in [:, 0] and v >= 0 in [:, 1]. The coefficients are those of the equation; where a
    solver's step has taken v below 0, sqrt(v) is 0. v alone is `CIR` (kappa, theta, xi).

    Heston 1993, Review of Financial Studies 6, 327. Raises ValueError for parameters outside these ranges.
    """

    noise_type: str = "general"

    def __init__(
        self,
        mu: float = 0.0,
        kappa: float = 2.0,
        theta: float = 0.04,
        xi: float = 0.3,
        rho: float = -0.7,
    ) -> None:
        self.mu, self.rho = float(constant(mu, "mu")), float(constant(rho, "rho"))
        values = (("kappa", kappa), ("theta", theta), ("xi", xi))
        self.kappa, self.theta, self.xi = (check_positive(v, n) for n, v in values)
        if not -1.0 < self.rho < 1.0:
            raise ValueError(
                f"rho must lie in (-1, 1), got {rho}. Next: check the order (mu, kappa, theta, xi, rho)."
            )
        super().__init__(noise_dim=2)

    @property
    def variance_process(self) -> CIR:
        """The equation of v alone."""
        return CIR(self.kappa, self.theta, self.xi)

    def _split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if x.ndim != 2 or x.shape[1] != 2:
            raise ShapeError(f"x must have shape (B, 2), price and variance, got {tuple(x.shape)}.")
        price, v = x.unbind(1)
        return price, v

    def drift(self, x: Tensor, t: Number) -> Tensor:
        """(mu S, kappa (theta - v)), (B, 2)."""
        price, v = self._split(x)
        return torch.stack([self.mu * price, self.kappa * (self.theta - v)], dim=1)

    def diffusion(self, x: Tensor, t: Number) -> Tensor:
        """sqrt(v) [[S, 0], [xi rho, xi sqrt(1 - rho^2)]], (B, 2, 2)."""
        price, v = self._split(x)
        one = torch.ones_like(v)
        second = torch.stack([self.xi * self.rho * one, self.xi * math.sqrt(1.0 - self.rho**2) * one], dim=1)
        matrix = torch.stack([torch.stack([price, 0.0 * one], dim=1), second], dim=1)
        return root(v)[:, None, None] * matrix

    def divergence_ggt(self, x: Tensor, t: Number) -> Tensor:
        """(2 v S + rho xi S, rho xi v + xi^2), (B, 2); 0 for v <= 0."""
        price, v = self._split(x)
        a = self.rho * self.xi
        out = torch.stack([(2.0 * v + a) * price, a * v + self.xi**2], dim=1)
        return torch.where((v > 0)[:, None], out, 0.0)

    def correction(self, x: Tensor, t: Number) -> Tensor:
        """(v S/2 + rho xi S/4, xi^2/4), (B, 2); 0 for v <= 0."""
        price, v = self._split(x)
        first = (0.5 * v + 0.25 * self.rho * self.xi) * price
        out = torch.stack([first, torch.full_like(v, 0.25 * self.xi**2)], dim=1)
        return torch.where((v > 0)[:, None], out, 0.0)

    def _start(self, x: Tensor, s: Number, t: Number) -> tuple[Tensor, Tensor, Tensor]:
        """(log S, v, h), float64 (B,), within the domain."""
        price, v = (c.to(torch.float64) for c in self._split(x))
        check_domain(price, price > 0, "(0, inf), the price")
        check_domain(v, v >= 0, "[0, inf), the variance")
        return torch.log(price), v, elapsed(price, s, t).expand(price.shape)

    def log_moments(self, x: Tensor, s: Number, t: Number) -> tuple[Tensor, Tensor]:
        """Mean and variance of log S_t given the state x at s, float64 (B,).

        log S_t - log S_s = mu h - (1/2) int v dt + int sqrt(v) dW_1, and the martingale part of int v dt
        is xi int b sqrt(v) dW with b(u) = (1 - e^(-kappa (t - u)))/kappa, so that the variance is
        int E v (1 - rho xi b + xi^2 b^2/4) du: four exponential integrals.
        """
        log_price, v, h = self._start(x, s, t)
        k, r1, r2 = self.kappa, self.rho * self.xi / self.kappa, 0.25 * (self.xi / self.kappa) ** 2

        def fall(n: int) -> Tensor:
            """int_0^h e^(-n k w) dw."""
            return -torch.expm1(-n * k * h) / (n * k) if n else h

        gap, decay = v - self.theta, torch.exp(-k * h)
        # In w = t - u: E v = theta + gap e^(-k h) e^(k w), and 1 - rho xi b + xi^2 b^2/4 is a quadratic in
        # y = e^(-k w) with these coefficients.
        c0, c1, c2 = 1.0 - r1 + r2, r1 - 2.0 * r2, r2
        level = c0 * fall(0) + c1 * fall(1) + c2 * fall(2)
        slope = c0 * fall(1) + decay * (c1 * fall(0) + c2 * fall(1))
        integrated = self.theta * h + gap * fall(1)
        return log_price + self.mu * h - 0.5 * integrated, self.theta * level + gap * slope

    def mean(self, x: Tensor, s: Number, t: Number) -> Tensor:
        """E (S_t, v_t) given the state x at s, (B, 2)."""
        price, v = self._split(x)
        h = elapsed(price, s, t).to(x.dtype)
        growth = price * torch.exp(self.mu * h)
        return torch.stack([growth, self.theta + (v - self.theta) * torch.exp(-self.kappa * h)], dim=1)

    def characteristic(self, u: Tensor, x: Tensor, s: Number, t: Number) -> Tensor:
        """E exp(i u log S_t) given the state x at s, complex128 (B, len(u)); u: complex (n,), in the strip
        where the moment S^(-Im u) is finite.

        exp(i u (log S + mu h) + A + D v) in the form whose logarithm keeps to one branch (Albrecher, Mayer,
        Schoutens and Tistaert 2007, The little Heston trap, Wilmott Magazine).
        """
        log_price, v, h = (c[:, None] for c in self._start(x, s, t))
        w = torch.as_tensor(u).to(device=x.device, dtype=torch.complex128)[None, :]
        xi2 = self.xi**2
        b = self.kappa - self.rho * self.xi * 1j * w
        d = torch.sqrt(b * b + xi2 * (1j * w + w * w))
        g = (b - d) / (b + d)
        fall = torch.exp(-d * h)
        log_ratio = torch.log((1.0 - g * fall) / (1.0 - g))
        a = (self.kappa * self.theta / xi2) * ((b - d) * h - 2.0 * log_ratio)
        slope = (b - d) / xi2 * (1.0 - fall) / (1.0 - g * fall)
        return torch.exp(1j * w * (log_price + self.mu * h) + a + slope * v)

    def call_price(self, x: Tensor, s: Number, t: Number, strike: float) -> Tensor:
        """e^(-mu h) E (S_t - K)^+ given the state x at s, float64 (B,): a call, when mu is the interest rate.

        S - (sqrt(S K) e^(-mu h/2)/pi) int_0^inf Re(e^(iuk) phi(u - i/2))/(u^2 + 1/4) du with
        k = log(S/K) + mu h and phi the characteristic function of log(S_t/S) - mu h (Lewis 2001), by
        Gauss-Legendre panels up to where phi is below 1e-16. s < t. Raises ValueError for strike <= 0.
        """
        strike = check_positive(strike, "strike")
        log_price, v, h = self._start(x, s, t)
        nodes, weights = (c.to(x.device) for c in _panels())
        # Heston's phi falls as exp(-u (v + kappa theta h) sqrt(1 - rho^2)/xi), or like a Gaussian of the
        # variance of log S where that is slower to set in.
        rate = (v + self.kappa * self.theta * h) * (math.sqrt(1.0 - self.rho**2) / self.xi)
        top = 8.0 + 60.0 / rate + 10.0 / torch.sqrt(self.log_moments(x, s, t)[1])
        out = torch.empty_like(log_price)
        for row in range(x.shape[0]):
            u = nodes * top[row]
            start = torch.stack([torch.exp(-self.mu * h[row]), v[row]])[None]
            phi = self.characteristic(u - 0.5j, start, 0.0, h[row])[0]
            k = log_price[row] - math.log(strike) + self.mu * h[row]
            values = (torch.exp(1j * u * k) * phi).real / (u * u + 0.25)
            integral = (weights * values).sum() * top[row]
            out[row] = torch.exp(log_price[row]) - integral / math.pi * torch.exp(
                0.5 * (log_price[row] + math.log(strike) - self.mu * h[row])
            )
        return out

    def __repr__(self) -> str:
        names = ("mu", "kappa", "theta", "xi", "rho")
        return f"Heston({', '.join(f'{name}={getattr(self, name):g}' for name in names)})"


def _panels(panels: int = 64, order: int = 16) -> tuple[Tensor, Tensor]:
    """Nodes and weights on [0, 1]: Gauss-Legendre on panels that widen away from 0."""
    import numpy as np

    x, w = np.polynomial.legendre.leggauss(order)
    edges = np.linspace(0.0, 1.0, panels + 1) ** 2
    left, width = edges[:-1, None], np.diff(edges)[:, None]
    nodes, weights = left + 0.5 * width * (1.0 + x), 0.5 * width * w
    return torch.from_numpy(nodes.ravel()), torch.from_numpy(weights.ravel())
