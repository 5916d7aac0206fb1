"""Linear equations for a position and a velocity, with their exact laws."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from sdekit._typing import Number
from sdekit.errors import ShapeError, check_not_negative, check_positive
from sdekit.noise import Noise
from sdekit.sde import regression
from sdekit.sde.base import SDE
from sdekit.sde.coefficients import as_tensor, check_forward
from sdekit.sde.langevin import UnderdampedLangevin
from sdekit.sde.laws import PairNormal
from sdekit.sde.linear import LinearSDE
from sdekit.sde.phase import join, split, velocity_noise
from sdekit.sde.rows import over_event

__all__ = ["CriticallyDampedLangevin", "HarmonicLangevin"]


class HarmonicLangevin(UnderdampedLangevin):
    """dQ = V dt, dV = -(gamma V + omega^2 Q) dt + sqrt(2 gamma T) dW, elementwise.

    omega >= 0 (1/time), friction gamma > 0 (1/time), temperature T > 0. Stationary law
    N(0, T/omega^2) x N(0, T). omega = 0 is the free particle, with
    Var Q = (T/gamma^2)(2 gamma t - 3 + 4 e^(-gamma t) - e^(-2 gamma t)) from a known start and no stationary
    law. States are (B, 2, *event). Uhlenbeck and Ornstein 1930, Physical Review 36, 823.

    Raises ValueError for parameters outside these ranges.
    """

    def __init__(self, omega: float = 1.0, friction: float = 1.0, temperature: float = 1.0) -> None:
        self.omega = check_not_negative(omega, "omega")
        super().__init__(self._force, log_prob=self._log_law, friction=friction, temperature=temperature)
        scale = math.sqrt(2.0 * self.friction * self.temperature)
        self._pair = LinearSDE([[0.0, 1.0], [-(self.omega**2), -self.friction]], L=[[0.0], [scale]])

    def _force(self, q: Tensor) -> Tensor:
        return (-(self.omega**2) / self.temperature) * q

    def _log_law(self, q: Tensor) -> Tensor:
        return (0.5 * q * self._force(q)).reshape(q.shape[0], -1).sum(1)

    def transition(self, x: Tensor, s: Number, t: Number) -> PairNormal:
        """Law of the state at t given x at s, (B, 2, *event). s <= t: numbers or tensors of shape ().

        Raises DirectionError for s > t, ShapeError for other shapes.
        """
        q, v = split(x)
        start, end = as_tensor(s, "s"), as_tensor(t, "t")
        if start.ndim or end.ndim:
            raise ShapeError(
                f"s and t must be single times, got shapes {tuple(start.shape)} and {tuple(end.shape)}."
            )
        check_forward(start, end)
        phi, _, cov = self._pair.flow(float(end) - float(start))
        (a, b), (c, d) = phi.to(x).unbind(0)[0], phi.to(x).unbind(0)[1]
        cov = cov.to(x)
        return PairNormal(join(a * q + b * v, c * q + d * v), cov[0, 0], cov[0, 1], cov[1, 1])

    def given(self, x: Tensor, s: Number, t: Number, W: Tensor, H: Tensor | None = None) -> PairNormal:
        """Law of the state at t given x at s and the noise over [s, t]: W and, if known, H, of the shape of
        x or of the velocities; see `LinearSDE.given`. Raises as `transition`.
        """
        law = self.transition(x, s, t)
        h = float(as_tensor(t, "t")) - float(as_tensor(s, "s"))
        if h == 0.0:
            return law
        a, noise = regression.joint_system(self._pair.A, self._pair.L, h)
        joint = LinearSDE(a, None, noise).flow(h)[2]
        k_w, k_h, left = (m.to(x) for m in regression.regress(joint, 2, h, H is not None))
        mean = law.mean
        for k, value in ((k_w, W), (k_h, H)):
            if value is not None:
                w = value[:, 1] if value.shape == x.shape else value
                mean = mean + join(k[0, 0] * w, k[1, 0] * w)
        return PairNormal(mean, left[0, 0], left[0, 1], left[1, 1])

    def stationary(self, x: Tensor) -> PairNormal:
        """N(0, T/omega^2) x N(0, T) in the shape of ``x``. Raises ValueError for omega = 0."""
        split(x)
        if self.omega == 0:
            raise ValueError(
                "a free particle, omega = 0, has no stationary law. Next: use transition(x, s, t)."
            )
        heat = torch.tensor(self.temperature, dtype=x.dtype, device=x.device)
        return PairNormal(torch.zeros_like(x), heat / self.omega**2, torch.zeros_like(heat), heat)

    def __repr__(self) -> str:
        rest = f"friction={self.friction:g}, temperature={self.temperature:g}"
        return f"HarmonicLangevin(omega={self.omega:g}, {rest})"


class CriticallyDampedLangevin(SDE):
    """dQ = (beta/M) V dt, dV = -beta (Q + (Gamma/M) V) dt + sqrt(2 Gamma beta) dW, Gamma = 2 sqrt(M).

    The diffusion of score-based modelling that noises data through a velocity: Q_0 is the data, V_0 is
    N(0, gamma M), and both tend to N(0, 1) x N(0, M), the law of `prior`. beta (1/time), mass M > 0,
    0 <= gamma; times in [0, 1]. States are (B, 2, *event); see `UnderdampedLangevin`. With
    tau = beta t/sqrt(M) and z = 2 tau, in units of v/sqrt(M),

        mean: e^(-tau) ((1 + tau) q + tau v, (1 - tau) v - tau q)
        qq = P(3, z),  qv = z^2 e^(-z)/2,  vv = P(3, z) + 2 z e^(-z),  P the incomplete gamma function.

    Dockhorn, Vahdat and Kreis 2022 (arXiv:2112.07068), section 3; the covariance in this form is derived
    from Phi Phi^T + cov = I. Raises ValueError for parameters outside these ranges.
    """

    noise_type: str = "additive"
    _claims_checked: bool = True
    t_min: float = 1e-3
    t_max: float = 1.0

    def __init__(self, beta: float = 4.0, mass: float = 0.25, gamma: float = 0.04) -> None:
        self.beta, self.mass = check_positive(beta, "beta"), check_positive(mass, "mass")
        self.gamma = check_not_negative(gamma, "gamma")
        self.friction = 2.0 * math.sqrt(self.mass)
        super().__init__()

    def drift(self, x: Tensor, t: Number) -> Tensor:
        """(beta/M) (V, -M Q - Gamma V), (B, 2, *event). Raises ShapeError for a state of another shape."""
        q, v = split(x)
        rate = self.beta / self.mass
        return join(rate * v, -self.beta * q - (rate * self.friction) * v)

    def diffusion(self, x: Tensor, t: Number) -> Tensor:
        """(0, sqrt(2 Gamma beta)), (2, 1, ..., 1)."""
        return velocity_noise(math.sqrt(2.0 * self.friction * self.beta), x)

    def _flow(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(mean (B, 2, *event), e^(-tau), tau) after the time h, () or (B,) float64."""
        q, v = split(x)
        root = math.sqrt(self.mass)
        tau = (self.beta / root) * h
        wide, decay = (over_event(c, q).to(x.dtype) for c in (tau, torch.exp(-tau)))
        u = v / root
        mean = join(decay * ((1.0 + wide) * q + wide * u), (root * decay) * ((1.0 - wide) * u - wide * q))
        return mean, torch.exp(-tau), tau

    def transition(self, x: Tensor, s: Number, t: Number) -> PairNormal:
        """Law of the state at t given x at s, (B, 2, *event). s <= t: () or (B,).

        Raises DirectionError for s > t.
        """
        start, end = as_tensor(s, "s").to(torch.float64), as_tensor(t, "t").to(torch.float64)
        check_forward(start, end)
        mean, _, tau = self._flow(x, end.to(x.device) - start.to(x.device))
        z = 2.0 * tau
        fall = torch.exp(-z)
        gamma = torch.special.gammainc(torch.full_like(z, 3.0), z)
        cross = 0.5 * math.sqrt(self.mass) * z * z * fall
        return PairNormal(
            mean, gamma.to(x.dtype), cross.to(x.dtype), (self.mass * (gamma + 2.0 * z * fall)).to(x.dtype)
        )

    def marginal(self, x0: Tensor, t: Number) -> PairNormal:
        """Law of the state at t given clean data x0, (B, *event), with V_0 ~ N(0, gamma M). t: () or (B,)."""
        law = self.transition(join(x0, torch.zeros_like(x0)), 0.0 * as_tensor(t, "t"), t)
        tau = (self.beta / math.sqrt(self.mass)) * as_tensor(t, "t").to(torch.float64).to(x0.device)
        fall = self.gamma * torch.exp(-2.0 * tau)
        qq, qv, vv = tau * tau, tau * (1.0 - tau), (1.0 - tau) ** 2
        return PairNormal(
            law.mean,
            law.qq + (fall * qq).to(x0.dtype),
            law.qv + (math.sqrt(self.mass) * fall * qv).to(x0.dtype),
            law.vv + (self.mass * fall * vv).to(x0.dtype),
        )

    def stationary(self, x: Tensor) -> PairNormal:
        """N(0, 1) x N(0, M) in the shape of ``x``, (B, 2, *event)."""
        split(x)
        one = torch.ones((), dtype=x.dtype, device=x.device)
        return PairNormal(torch.zeros_like(x), one, torch.zeros_like(one), self.mass * one)

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
        """Samples of N(0, 1) x N(0, M), ``shape`` = (B, 2, *event): the law at t_max up to e^(-tau)."""
        like = torch.empty(tuple(shape), dtype=dtype, device=device)
        return self.stationary(like).sample(seed, noise=noise, first_id=first_id)

    def __repr__(self) -> str:
        return f"CriticallyDampedLangevin(beta={self.beta:g}, mass={self.mass:g}, gamma={self.gamma:g})"
