"""Exponential Euler: the linear part of the drift exactly, the rest and the noise frozen over a step."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sdekit.errors import CapabilityError, ShapeError
from sdekit.sde.linear import LinearSDE, OrnsteinUhlenbeck
from sdekit.sde.regression import joint_system, ratios, regress
from sdekit.sde.rows import constant, matvec, parameter
from sdekit.solvers.base import NOISE_TYPES, Carry, Interval, Solver, register

__all__ = ["ExponentialEuler"]


@register
@dataclass(frozen=True, eq=False)
class ExponentialEuler(Solver):
    r"""dX = (A X + n(X, t)) dt + G dW with n and G frozen at the start of the step, solved exactly:

        x' = e^(A h) x + phi_1(A h) n(x, t) h + int_0^h e^(A (h - s)) G(x, t) dW_s,    phi_1(z) = (e^z - 1)/z,

    n = f - A x. Stable at any step however stiff A is. Ito, any noise; weak order 1, strong order 1/2, and 1
    for additive noise; exact in law for additive noise and constant n.

    linear: A, a number or a tensor that broadcasts to the event, acting elementwise; or a matrix (D, D) for
    states (B, D). None: that of the system, which `LinearSDE` and `OrnsteinUhlenbeck` know.

    The integral, given W and the space-time Levy area H, is normal with mean k_W G W + k_H G H. Where A acts
    elementwise this mean, scaled to the variance h phi_1(2 A h) of the integral, stands for it. Where A is a
    matrix and the noise constant (additive, or that of a `LinearSDE`), with D <= 2 m for m Brownian motions,
    it is the linear map of (W, H) with exactly the covariance of the integral that is nearest to the mean;
    elsewhere it is the mean, whose covariance is short by O(h^5). phi_1 and the covariances come from series
    and doublings without cancellation. Without noise: Hochbruck and Ostermann 2010, Acta Numerica 19, 209;
    with additive noise: Jentzen and Kloeden 2009, Proceedings of the Royal Society A 465, 649.

    Raises CapabilityError where no linear part is known, ShapeError for one that does not fit.
    """

    linear: Any = None
    _memo: dict[Any, Any] = field(default_factory=dict, init=False, repr=False)

    name = "exponential-euler"
    kind = "sde"
    noise_types = NOISE_TYPES
    sde_types = ("ito",)
    weak_order = 1.0
    strong_order = 0.5
    normals = 2
    reference = "Jentzen and Kloeden 2009"

    def __post_init__(self) -> None:
        if self.linear is not None:
            object.__setattr__(self, "linear", constant(self.linear, "linear"))

    def init(self, system: Any, x: Tensor, t: Tensor) -> Carry:
        a = self._part(system)
        if _is_matrix(a, x):
            if x.ndim != 2 or a.shape != (x.shape[1], x.shape[1]):
                raise ShapeError(
                    f"a linear part of shape {tuple(a.shape)} is a matrix, and needs states "
                    f"(B, {a.shape[-1]}), got {tuple(x.shape)}. Next: x.flatten(1), or one number an element."
                )
        else:
            parameter(a, x)
        return ()

    def step(self, system: Any, x: Tensor, interval: Interval, carry: Carry) -> tuple[Tensor, Carry]:
        a = self._part(system)
        take = self._matrix_step if _is_matrix(a, x) else self._elementwise_step
        return take(system, a, x, interval), ()

    def _part(self, system: Any) -> Tensor:
        if self.linear is not None:
            out: Tensor = self.linear
            return out
        known = system.system
        if isinstance(known, LinearSDE):
            return known.A
        if isinstance(known, OrnsteinUhlenbeck):
            return -known.theta
        raise CapabilityError(
            f"solver {self.name!r} needs the linear part of the drift, and {type(known).__name__} does not "
            f"tell it. Next: solver=sdekit.solvers.ExponentialEuler(linear=A), A a number, a tensor that "
            f"broadcasts to the event, or a (D, D) matrix."
        )

    def _elementwise_step(self, system: Any, a: Tensor, x: Tensor, interval: Interval) -> Tensor:
        (t,), h = interval.times, interval.h
        assert interval.W is not None
        assert interval.H is not None
        z = parameter(a, x.double()) * h
        k_w, k_h = ratios(-z)  # k_w is phi_1(z)
        full = ratios(-2.0 * z)[0]
        scale = torch.sqrt(full / (k_w * k_w + k_h * k_h / 12.0))
        rest = system.drift(x, t) - parameter(a, x) * x
        g = system.diffusion(x, t)
        w, area = system.apply_noise(g, interval.W), system.apply_noise(g, interval.H)
        k_w, k_h, decay, phi = (c.to(x.dtype) for c in (scale * k_w, scale * k_h, torch.exp(z), k_w))
        out: Tensor = decay * x + phi * rest * h + k_w * w + k_h * area
        return out

    def _matrix_step(self, system: Any, a: Tensor, x: Tensor, interval: Interval) -> Tensor:
        (t,), h = interval.times, float(interval.h)
        assert interval.W is not None
        assert interval.H is not None
        rest = system.drift(x, t) - matvec(a, x)
        noise = _constant_noise(system, x, t)
        flow = self._flow(a, h, noise)
        out = matvec(flow.decay, x) + matvec(flow.phi, rest) * h
        if noise is not None:
            return out + matvec(flow.k_w, interval.W) + matvec(flow.k_h, interval.H)
        g = system.diffusion(x, t)
        w, area = system.apply_noise(g, interval.W), system.apply_noise(g, interval.H)
        return out + matvec(flow.k_w, w) + matvec(flow.k_h, area)

    def _flow(self, a: Tensor, h: float, noise: Tensor | None) -> _Flow:
        """`_flow_of`, kept for the last few steps of constant coefficients."""
        if a.requires_grad or (noise is not None and noise.requires_grad):
            return _flow_of(a, h, noise)
        version = -1 if a.is_inference() else a._version
        key = (id(a), version, h, None if noise is None else noise.numpy(force=True).tobytes())
        if key not in self._memo:
            if len(self._memo) > 8:
                self._memo.clear()
            self._memo[key] = (a, _flow_of(a, h, noise))  # a is held, so that its id stays its own
        found: _Flow = self._memo[key][1]
        return found


class _Flow(NamedTuple):
    """e^(A h), phi_1(A h), (D, D); the maps of W and H, (D, m) with the noise in them, (D, D) without."""

    decay: Tensor
    phi: Tensor
    k_w: Tensor
    k_h: Tensor


def _is_matrix(a: Tensor, x: Tensor) -> bool:
    return a.ndim == 2 and x.ndim == 2


def _constant_noise(system: Any, x: Tensor, t: Tensor) -> Tensor | None:
    """G (D, m) float64 where it does not depend on the state."""
    known = system.system
    if isinstance(known, LinearSDE):
        return known.L
    if known.noise_type == "additive":
        return torch.diag(known.noise_field(x[:1], t)[0].double())
    return None


def _flow_of(a: Tensor, h: float, noise: Tensor | None) -> _Flow:
    """The step's maps over |h|, in a clock that runs down where h < 0."""
    a, length = (a if h > 0 else -a).double(), abs(h)
    eye = torch.eye(a.shape[0], dtype=a.dtype, device=a.device)
    wide, driven = joint_system(a, eye, length)
    joint = LinearSDE(wide, None, driven).flow(length)[2]
    phi, k_h, _ = regress(joint, a.shape[0], length, True)
    if noise is None:
        return _Flow(LinearSDE(a, None, eye).flow(length)[0], phi, phi, k_h)
    g = noise.to(a)
    decay, _, cov = LinearSDE(a, None, g).flow(length)
    spread = math.sqrt(length), math.sqrt(length / 12.0)
    mean = torch.cat([phi @ g * spread[0], k_h @ g * spread[1]], dim=1)
    if a.shape[0] <= mean.shape[1]:
        mean = _nearest(cov, mean)
    k_w, k_h = torch.chunk(mean, 2, dim=1)
    return _Flow(decay, phi, k_w / spread[0], k_h / spread[1])


def _nearest(cov: Tensor, m: Tensor) -> Tensor:
    """F (D, r) with F F^T = cov, r >= D, nearest to M in the Frobenius norm: cov^(1/2) Q, Q polar factor of
    cov^(1/2) M."""
    values, vectors = torch.linalg.eigh(cov)
    root = (vectors * values.clamp_min(0.0).sqrt()) @ vectors.T
    u, _, vt = torch.linalg.svd(root @ m, full_matrices=False)
    out: Tensor = root @ (u @ vt)
    return out
