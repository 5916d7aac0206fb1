r"""What an increment of Brownian motion tells about a linear SDE driven by it.

Over a step of length h let W be the increment and H = (1/h) int_0^h (B_u - B_0) du - W/2 the space-time
Levy area: independent, W ~ N(0, h), H ~ N(0, h/12). The noise part of a linear SDE with constant
coefficients is jointly Gaussian with them (Foster, Lyons and Oberhauser 2020, arXiv:1904.06998),

    int_0^h exp(A (h - u)) L dB_u = K_W W + K_H H + N(0, R).

A solver that is given the same W (and H) can thus be compared with the law of the exact solution on its
own path; R is what W and H leave open, of order h^3 with W alone and h^5 with both.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["joint_system", "ratios", "regress", "residual"]


def joint_system(a: Tensor, noise: Tensor, h: float) -> tuple[Tensor, Tensor]:
    """(A, L) of the linear SDE for (X, B, (1/h) int B du), from those of X: (D, D), (D, m)."""
    d, m = noise.shape
    identity = torch.eye(m, dtype=a.dtype, device=a.device)
    wide = a.new_zeros(d + 2 * m, d + 2 * m)
    wide[:d, :d] = a
    wide[d + m :, d : d + m] = identity / h
    return wide, torch.cat([noise, identity, torch.zeros_like(identity)])


def regress(cov: Tensor, size: int, h: float, with_area: bool) -> tuple[Tensor, Tensor, Tensor]:
    """(K_W, K_H, R), (D, m), (D, m), (D, D), from the covariance of the joint system at h > 0, D = ``size``.

    K_H is 0, and R larger, when H is not known (``with_area`` False).
    """
    end = (size + cov.shape[0]) // 2
    with_w = cov[:size, size:end]
    k_w = with_w / h
    left = cov[:size, :size] - (k_w @ k_w.T) * h
    k_h = torch.zeros_like(k_w)
    if with_area:
        k_h = (cov[:size, end:] - 0.5 * with_w) * (12.0 / h)
        left = left - (k_h @ k_h.T) * (h / 12.0)
    return k_w, k_h, 0.5 * (left + left.T)


def ratios(z: Tensor) -> tuple[Tensor, Tensor]:
    """(a, b) with e^(-z u) = a + b (u - 1/2) + what is orthogonal to lines on [0, 1], elementwise.

    a = e^(-z/2) i_0(z/2), b = -6 e^(-z/2) i_1(z/2), i_n the modified spherical Bessel functions.
    """
    return _scaled(0, 0.5 * z), -6.0 * _scaled(1, 0.5 * z)


def residual(z: Tensor, with_area: bool) -> Tensor:
    """The variance of e^(-z u), u uniform on [0, 1], that a + b (u - 1/2) leaves, elementwise; b = 0
    unless ``with_area``.

    sum_n (2 n + 1) (e^(-z/2) i_n(z/2))^2 over n >= 2, or n >= 1 without b: positive terms, which are
    summed as they are where |z| < 4, so that nothing cancels as z -> 0.
    """
    x = 0.5 * z
    small = x.abs() < 2.0
    near = torch.where(small, x, torch.zeros_like(x))
    series = torch.zeros_like(x)
    for n in range(2 if with_area else 1, 16):
        series = series + (2 * n + 1) * _series(n, near) ** 2
    far = torch.where(small, torch.ones_like(x), x)
    closed = -torch.expm1(-4.0 * far) / (4.0 * far) - _scaled(0, far) ** 2
    if with_area:
        closed = closed - 3.0 * _scaled(1, far) ** 2
    return torch.where(small, series * torch.exp(-2.0 * near), closed)


def _scaled(n: int, x: Tensor) -> Tensor:
    """e^(-x) i_n(x): (1 - e^(-2x))/(2x) for n = 0, (x (1 + e^(-2x)) - (1 - e^(-2x)))/(2 x^2) for n = 1."""
    small = x.abs() < 1.0
    near, y = torch.where(small, x, torch.zeros_like(x)), torch.where(small, torch.ones_like(x), x)
    fall = -torch.expm1(-2.0 * y)
    closed = 0.5 * fall / y if n == 0 else (y * (2.0 - fall) - fall) / (2.0 * y * y)
    return torch.where(small, torch.exp(-near) * _series(n, near), closed)


def _series(n: int, x: Tensor) -> Tensor:
    """i_n(x) = x^n/(2n+1)!! (1 + (x^2/2)/(2n+3) + (x^2/2)^2/(2 (2n+3)(2n+5)) + ...), |x| <= 2."""
    term = x**n / math.prod(range(1, 2 * n + 2, 2))
    total = term
    for k in range(1, 18):
        term = term * (0.5 * x * x) / (k * (2 * n + 2 * k + 1))
        total = total + term
    return total
