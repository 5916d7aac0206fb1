"""The problems on which orders are measured: linear SDEs of every noise type, and ODEs with known flows."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from sdekit.certify.order.linear import LinearProblem
from sdekit.sde.base import ODE

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

__all__ = ["FlowProblem", "flow_problems", "linear_problems"]

PLANE = ((-0.9, 0.7), (-0.4, -0.6))
"""A drift that is not normal and commutes with none of the noise below."""


def _extend(matrix: Any, shift: Any = None) -> Floats:
    """[[matrix, shift], [0, 0]], (d + 1, d + 1)."""
    m = np.atleast_2d(np.asarray(matrix, dtype=np.float64))
    out = np.zeros((len(m) + 1, len(m) + 1))
    out[:-1, :-1] = m
    if shift is not None:
        out[:-1, -1] = shift
    return out


def _rows(gains: Any, shifts: Any) -> Floats:
    """Channel k drives element k alone: B_k x + b_k = (gains_k x_k + shifts_k) e_k."""
    d = len(gains)
    out = np.zeros((d, d + 1, d + 1))
    for k in range(d):
        out[k, k, k], out[k, k, -1] = gains[k], shifts[k]
    return out


def _problem(
    name: str, noise_type: str, sde_type: str, a: Floats, a1: Floats | None, b: Any, b1: Any, **more: Any
) -> LinearProblem:
    b = np.stack(b)
    drift = np.stack([a, np.zeros_like(a) if a1 is None else a1])
    noise = np.stack([b, np.zeros_like(b) if b1 is None else np.stack(b1)])
    x0 = (1.1,) if len(a) == 2 else (1.1, -0.6)
    return LinearProblem(name, noise_type, sde_type, drift, noise, x0, **more)


@cache
def linear_problems() -> tuple[LinearProblem, ...]:
    """Two problems at least of every noise type, in Ito and in Stratonovich form: one of them depends on
    time, d = 1 or 2, and drift and noise do not commute; "general" noise does not commute with itself."""
    line, plane = _extend(-1.2, 0.5), _extend(PLANE, (0.3, -0.2))
    line1, plane1 = _extend(0.6, -0.4), _extend(((0.3, -0.2), (0.5, 0.1)), (0.2, 0.4))
    mix = _extend(((0.3, -0.4), (0.5, 0.2)), (0.2, -0.1))
    other = _extend(((-0.2, 0.5), (0.1, 0.4)), (-0.3, 0.2))
    diagonal = [_extend(np.diag((0.7, -0.5))), _extend(np.diag((-0.4, 0.6)))]
    full = [_extend(np.zeros((2, 2)), shift) for shift in ((0.6, 0.2), (-0.3, 0.5))]
    turned = [0.5 * diagonal[1], diagonal[0]]
    still = _rows([0, 0], [0.7, 0.4]), _rows([0, 0], [0.3, -0.2])
    alone = _rows([0.5], [0.2]), _rows([0.3], [-0.2])
    found = []
    for kind in ("ito", "stratonovich"):
        found += [
            _problem("Ornstein-Uhlenbeck", "additive", kind, line, None, _rows([0.0], [0.7]), None),
            _problem("additive", "additive", kind, plane, plane1, *still),
            _problem("geometric", "diagonal", kind, _extend(-0.8), None, _rows([0.6], [0.0]), None),
            _problem("diagonal", "diagonal", kind, plane, None, _rows([0.5, 0.3], [0.2, -0.4]), None),
            _problem("diagonal in time", "diagonal", kind, line, line1, *alone),
            _problem("scalar", "scalar", kind, plane, None, [mix], None),
            _problem("scalar in time", "scalar", kind, plane, plane1, [mix], [0.6 * mix]),
            _problem("matrix, additive", "commutative", kind, plane, plane1, full, full[::-1]),
            _problem("commutative", "commutative", kind, plane, None, diagonal, None),
            _problem("commutative in time", "commutative", kind, plane, plane1, diagonal, turned),
            _problem("non-commuting", "general", kind, plane, None, [mix, other], None),
            _problem("non-commuting in time", "general", kind, plane, plane1, [mix, other], [other, -mix]),
        ]  # fmt: skip
    return tuple(found)


@cache
def langevin_problems() -> tuple[LinearProblem, ...]:
    """dX = -P (X - m) dt + sqrt(2) dW, whose law tends to N(m, P^-1); and the underdamped one for a position
    and a velocity, dQ = V dt, dV = (b - k Q - gamma V) dt + sqrt(2 gamma T) dW."""
    precision, mean = np.array(((1.4, 0.5), (0.5, 0.8))), np.array((0.4, -0.7))
    noise = _rows([0, 0], [math.sqrt(2.0)] * 2)
    drift = _extend(-precision, precision @ mean)
    friction, heat = 0.8, 0.6
    pair = _extend(((0.0, 1.0), (-1.7, -friction)), (0.0, 0.5))
    heated = _rows([0, 0], [0.0, math.sqrt(2.0 * friction * heat)])
    return (
        _problem("Langevin", "additive", "ito", drift, None, noise, None, form="langevin"),
        _problem("underdamped", "additive", "ito", pair, None, heated, None, form="underdamped"),
    )


@dataclass(frozen=True, eq=False)
class FlowProblem:
    """dx/dt = velocity(x, t) from x0 at t = 0, with x(1) = end in closed form."""

    name: str
    velocity: Callable[[Tensor, Any], Tensor]
    x0: tuple[float, ...]
    end: tuple[float, ...]

    @property
    def system(self) -> ODE:
        """The problem as solvers are given it."""
        return ODE(self.velocity)


@cache
def flow_problems() -> tuple[FlowProblem, ...]:
    """Linear and forced; linear with a turning, non-commuting matrix; nonlinear in three dimensions.

    The last is the free rigid body in a time s(t) = t + sin(2 t)/4: Jacobi's elliptic functions.
    """
    return (_forced(), _turning(), _rigid_body())


def _forced() -> FlowProblem:
    """x' = 2 cos(t) (1 - x), x = 1 + (x0 - 1) exp(-2 sin t)."""
    end = 1.0 + 0.7 * math.exp(-2.0 * math.sin(1.0))
    return FlowProblem("forced", lambda x, t: 2.0 * torch.cos(_time(t, x)) * (1.0 - x), (1.7,), (end,))


def _turning() -> FlowProblem:
    """x = R(w t) exp(K t) x0: x' = (w J + R K R^T) x, whose matrices at two times do not commute."""
    from scipy.linalg import expm

    w, k, x0 = 1.5, np.array(PLANE), np.array((1.1, -0.6))
    c, s = math.cos(w), math.sin(w)
    end = np.array(((c, -s), (s, c))) @ expm(k) @ x0

    def velocity(x: Tensor, t: Any) -> Tensor:
        c, s = torch.cos(w * _time(t, x)), torch.sin(w * _time(t, x))
        u, v = c * x[:, :1] + s * x[:, 1:], c * x[:, 1:] - s * x[:, :1]
        du, dv = k[0, 0] * u + k[0, 1] * v, k[1, 0] * u + k[1, 1] * v
        return torch.cat([c * du - s * dv - w * x[:, 1:], s * du + c * dv + w * x[:, :1]], dim=1)

    return FlowProblem("turning", velocity, tuple(x0.tolist()), tuple(end.tolist()))


def _rigid_body() -> FlowProblem:
    """x' = s'(t) (x2 x3, -x1 x3, -m x1 x2), from (0, 1, 1): sn, cn and dn of parameter m at s(t)."""
    from scipy.special import ellipj

    m = 0.51

    def velocity(x: Tensor, t: Any) -> Tensor:
        a, b, c = x.unbind(1)
        pace = 1.0 + 0.5 * torch.cos(2.0 * _time(t, x))
        return pace * torch.stack([b * c, -a * c, -m * a * b], dim=1)

    end = ellipj(1.0 + 0.25 * math.sin(2.0), m)[:3]
    return FlowProblem("rigid body", velocity, (0.0, 1.0, 1.0), tuple(float(v) for v in end))


def _time(t: Any, x: Tensor) -> Tensor:
    return torch.as_tensor(t, dtype=x.dtype).reshape(-1, 1)
