"""Linear SDEs with constant coefficients, and their exact transition laws."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from sdekit._typing import Number
from sdekit.errors import ShapeError, check_count
from sdekit.sde import regression
from sdekit.sde.base import SDE
from sdekit.sde.coefficients import as_tensor, check_forward
from sdekit.sde.laws import MultivariateNormal, Normal
from sdekit.sde.rows import constant, matvec, over_event, parameter

__all__ = ["BrownianMotion", "LinearSDE", "OrnsteinUhlenbeck"]

TERMS = 18
"""Of the Taylor series: the first one left out is below 1/19! = 8e-18."""


class LinearSDE(SDE):
    """dX = (A X + b) dt + L dW.

    A: (D, D); b: (D,), default 0; L: (D, m). States are (B, D). The noise does not depend on the state,
    so its type is "commutative" with noise_dim m. Parameters are kept in float64; gradients flow to them.

    Raises ShapeError for shapes that do not fit, NonFiniteError for NaN.
    """

    noise_type: str = "commutative"
    _claims_checked: bool = True

    def __init__(self, A: Any, b: Any = None, L: Any = None) -> None:
        a = constant(A, "A")
        if a.ndim != 2 or a.shape[0] != a.shape[1]:
            raise ShapeError(f"A must have shape (D, D), got {tuple(a.shape)}.")
        if L is None:
            raise ShapeError(
                "L, the (D, m) noise matrix, is missing. Next: LinearSDE(A, b, L), or ODE for none."
            )
        size = a.shape[0]
        shift = a.new_zeros(size) if b is None else constant(b, "b").to(a.device)
        noise = constant(L, "L").to(a.device)
        if shift.shape != (size,):
            raise ShapeError(f"b must have shape ({size},), the size of A, got {tuple(shift.shape)}.")
        if noise.ndim != 2 or noise.shape[0] != size or noise.shape[1] == 0:
            raise ShapeError(
                f"L must have shape ({size}, m) with the rows of A, got {tuple(noise.shape)}. Next: for "
                f"independent noise in every coordinate, torch.diag(...)."
            )
        self.A, self.b, self.L = a, shift, noise
        super().__init__(noise_dim=noise.shape[1])

    @property
    def dimension(self) -> int:
        """D."""
        return self.A.shape[0]

    def _check_rows(self, x: Tensor) -> None:
        if x.ndim != 2 or x.shape[1] != self.dimension:
            raise ShapeError(f"x must have shape (B, {self.dimension}), got {tuple(x.shape)}.")

    def drift(self, x: Tensor, t: Number) -> Tensor:
        """A x + b, (B, D)."""
        self._check_rows(x)
        return matvec(self.A, x) + self.b.to(dtype=x.dtype, device=x.device)

    def diffusion(self, x: Tensor, t: Number) -> Tensor:
        """L for every row, (B, D, m)."""
        self._check_rows(x)
        return self.L.to(dtype=x.dtype, device=x.device).expand(x.shape[0], *self.L.shape)

    def divergence_ggt(self, x: Tensor, t: Number) -> Tensor:
        """0: L does not depend on x."""
        return torch.zeros_like(x)

    def correction(self, x: Tensor, t: Number) -> Tensor:
        """0: the Ito and Stratonovich forms are the same."""
        return torch.zeros_like(x)

    def flow(self, h: float) -> tuple[Tensor, Tensor, Tensor]:
        """(Phi, offset, cov) of X_{t+h} = Phi X_t + offset + N(0, cov), float64 (D, D), (D,), (D, D).

        Phi = exp(A h), offset = int_0^h exp(A u) b du, cov = int_0^h exp(A u) L L^T exp(A u)^T du, the three
        integrals of Van Loan 1978, IEEE TAC 23(3), theorem 1: Taylor series over r = h / 2^k with
        |A| r <= 1/2, then k doublings of Phi - I, offset and cov, so that offset and cov of stiff, unstable
        and singular A lose no digits and the size of b and L does not matter. Phi holds absolute precision:
        a decay below 1e-16 is 0.
        """
        if not (h >= 0 and math.isfinite(h)):
            raise ValueError(f"the elapsed time must be finite and >= 0, got {h}.")
        size = float(torch.linalg.matrix_norm(self.A.detach(), 1)) * h
        doublings = max(0, math.ceil(math.log2(2.0 * size))) if size > 0 else 0
        r = h / 2.0**doublings
        a = self.A * r
        identity = torch.eye(self.dimension, dtype=a.dtype, device=a.device)
        grow, drift, noise = a, self.b * r, (self.L @ self.L.T) * r  # terms n = 1 of the series
        change, offset, cov = grow, drift, noise
        for n in range(2, TERMS + 1):
            product = a @ noise
            grow, drift, noise = a @ grow / n, a @ drift / n, (product + product.T) / n
            change, offset, cov = change + grow, offset + drift, cov + noise
        for _ in range(doublings):
            product = change @ cov
            cov = 2.0 * cov + (product + product.T) + product @ change.T
            offset = 2.0 * offset + change @ offset
            change = 2.0 * change + change @ change
        return identity + change, offset, 0.5 * (cov + cov.T)

    def transition(self, x: Tensor, s: Number, t: Number) -> MultivariateNormal:
        """Law of X_t given X_s = x: mean (B, D), cov (D, D). s <= t: numbers or tensors of shape ().

        Raises DirectionError for s > t, ShapeError for other shapes.
        """
        self._check_rows(x)
        start, end = as_tensor(s, "s"), as_tensor(t, "t")
        if start.ndim or end.ndim:
            raise ShapeError(
                f"s and t must be single times (the rows share one covariance), got shapes "
                f"{tuple(start.shape)} and {tuple(end.shape)}."
            )
        check_forward(start, end)
        phi, offset, cov = self.flow(float(end) - float(start))
        mean = matvec(phi, x) + offset.to(dtype=x.dtype, device=x.device)
        return MultivariateNormal(mean, cov.to(dtype=x.dtype, device=x.device))

    def given(
        self, x: Tensor, s: Number, t: Number, W: Tensor, H: Tensor | None = None
    ) -> MultivariateNormal:
        """Law of X_t given X_s = x and the noise: its increment W over [s, t], (B, m), and the space-time
        Levy area H, (B, m), if known. mean (B, D), cov (D, D); see `sdekit.sde.regression`. Raises as
        `transition`, and ShapeError for W or H of another shape.
        """
        law = self.transition(x, s, t)
        shape = (x.shape[0], self.L.shape[1])
        for name, value in (("W", W), ("H", H)):
            if value is not None and value.shape != shape:
                raise ShapeError(f"{name} must have shape (B, m) = {shape}, got {tuple(value.shape)}.")
        h = float(as_tensor(t, "t")) - float(as_tensor(s, "s"))
        if h == 0.0:
            return law
        a, noise = regression.joint_system(self.A, self.L, h)
        joint = LinearSDE(a, None, noise).flow(h)[2]
        k_w, k_h, left = regression.regress(joint, self.dimension, h, H is not None)
        mean = law.mean + matvec(k_w, W)
        if H is not None:
            mean = mean + matvec(k_h, H)
        return MultivariateNormal(mean, left.to(law.cov))

    def stationary(self, n: int = 1) -> MultivariateNormal:
        """The law N(-A^-1 b, S) with A S + S A^T + L L^T = 0, float64, for ``n`` rows.

        The Lyapunov equation is solved as a linear system in the D^2 entries of S. Raises ValueError when an
        eigenvalue of A has real part >= 0: there is no stationary law.
        """
        rows, size = check_count(n, "n"), self.dimension
        growth = float(torch.linalg.eigvals(self.A.detach()).real.max())
        if growth >= 0:
            raise ValueError(
                f"there is no stationary law: A has an eigenvalue with real part {growth:g} >= 0, so the "
                f"process does not forget its start. Next: use transition(x, s, t), or check the sign of A."
            )
        identity = torch.eye(size, dtype=torch.float64, device=self.A.device)
        lyapunov = torch.kron(self.A, identity) + torch.kron(identity, self.A)
        cov = torch.linalg.solve(lyapunov, -(self.L @ self.L.T).reshape(-1)).reshape(size, size)
        mean = -torch.linalg.solve(self.A, self.b)
        return MultivariateNormal(mean.expand(rows, size), 0.5 * (cov + cov.T))

    def __repr__(self) -> str:
        return f"LinearSDE(D={self.dimension}, m={self.noise_dim})"


class OrnsteinUhlenbeck(SDE):
    """dX = theta (mu - X) dt + sigma dW, elementwise.

    theta (1/time), mu, sigma >= 0: numbers, or tensors that broadcast to the event. theta = 0 is Brownian
    motion, theta < 0 grows. X_{t+h} given X_t = x is N(mu + (x - mu) e^(-theta h), sigma^2 h phi(-2 theta h))
    with phi(z) = (e^z - 1)/z. Gillespie 1996, Physical Review E 54, 2084.

    Raises ValueError for sigma < 0, NonFiniteError for NaN.
    """

    noise_type: str = "additive"
    _claims_checked: bool = True

    def __init__(self, theta: Any = 1.0, mu: Any = 0.0, sigma: Any = 1.0) -> None:
        self.theta, self.mu = constant(theta, "theta"), constant(mu, "mu")
        self.sigma = constant(sigma, "sigma")
        if bool((self.sigma.detach() < 0).any()):
            raise ValueError(
                f"sigma must be >= 0, got {sigma}. Next: check the argument order (theta, mu, sigma)."
            )
        super().__init__()

    def drift(self, x: Tensor, t: Number) -> Tensor:
        """theta (mu - x), (B, *event)."""
        return parameter(self.theta, x) * (parameter(self.mu, x) - x)

    def diffusion(self, x: Tensor, t: Number) -> Tensor:
        """sigma, expanded to x's shape."""
        return parameter(self.sigma, x).expand(x.shape)

    def transition(self, x: Tensor, s: Number, t: Number) -> Normal:
        """Law of X_t given X_s = x, (B, *event). s <= t: () or (B,). Raises DirectionError for s > t."""
        start, end = as_tensor(s, "s").to(torch.float64), as_tensor(t, "t").to(torch.float64)
        check_forward(start, end)
        wide = x.to(torch.float64)
        h = over_event(end.to(x.device) - start.to(x.device), wide)
        theta, mu, sigma = (parameter(c, wide) for c in (self.theta, self.mu, self.sigma))
        decay = torch.exp(-theta * h)
        variance = sigma * sigma * h * _expm1_ratio(-2.0 * theta * h)
        mean = x * decay.to(x.dtype) - (mu * torch.expm1(-theta * h)).to(x.dtype)
        return Normal(mean, torch.sqrt(variance).to(x.dtype))

    def given(self, x: Tensor, s: Number, t: Number, W: Tensor, H: Tensor | None = None) -> Normal:
        """Law of X_t given X_s = x and the noise: its increment W over [s, t], and the space-time Levy area
        H if known, (B, *event). s <= t: () or (B,); see `sdekit.sde.regression`. The spread that is left is
        sigma theta h^(3/2)/sqrt(12) with W, sigma theta^2 h^(5/2)/sqrt(720) with both, to leading order.
        """
        law = self.transition(x, s, t)
        wide = x.to(torch.float64)
        start, end = as_tensor(s, "s").to(torch.float64), as_tensor(t, "t").to(torch.float64)
        h = over_event(end.to(x.device) - start.to(x.device), wide)
        theta, sigma = parameter(self.theta, wide), parameter(self.sigma, wide)
        a, b = regression.ratios(theta * h)
        path = a * W.to(torch.float64) + (0.0 if H is None else b * H.to(torch.float64))
        left = sigma * torch.sqrt(h * regression.residual(theta * h, H is not None))
        return Normal(law.mean + (sigma * path).to(x.dtype), left.to(x.dtype))

    def stationary(self, x: Tensor) -> Normal:
        """The law N(mu, sigma^2 / (2 theta)) in the shape of ``x``. Raises ValueError unless theta > 0."""
        if bool((self.theta.detach() <= 0).any()):
            raise ValueError(
                f"there is no stationary law unless theta > 0, got theta = {self.theta.tolist()}. Next: use "
                f"transition(x, s, t)."
            )
        std = parameter(self.sigma, x) / torch.sqrt(2.0 * parameter(self.theta, x))
        return Normal(parameter(self.mu, x).expand(x.shape), std.expand(x.shape))

    def __repr__(self) -> str:
        values = (f"{name}={getattr(self, name).tolist()}" for name in ("theta", "mu", "sigma"))
        return f"{type(self).__name__}({', '.join(values)})"


class BrownianMotion(OrnsteinUhlenbeck):
    """dX = sigma dW, elementwise. sigma >= 0: a number, or a tensor that broadcasts to the event."""

    def __init__(self, sigma: Any = 1.0) -> None:
        super().__init__(0.0, 0.0, sigma)

    def __repr__(self) -> str:
        return f"BrownianMotion(sigma={self.sigma.tolist()})"


def _expm1_ratio(z: Tensor) -> Tensor:
    """(e^z - 1)/z, 1 at z = 0, with the right derivative there."""
    small = z.abs() < 1e-8
    safe = torch.where(small, torch.ones_like(z), z)
    return torch.where(small, 1.0 + 0.5 * z, torch.expm1(safe) / safe)
