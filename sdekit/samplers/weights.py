r"""Quadrature weights of the trigonometric multistep samplers.

A step advances y by -\int F dphi over [phi_i, phi_{i+1}], with F known at a few nodes. The weights w
integrate an interpolant of F exactly:

- `lagrange`: the polynomial in phi through the nodes (variable-step Adams);
- `exponential`: the same polynomial in lambda under an exponential weight (exponential Adams);
- `kernel`: the posterior mean of a Gaussian process with the covariance of `features`, a Bayesian
  quadrature (O'Hagan 1991).

Angles are measured from the start of the step, where they are small and exact.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

__all__ = ["exponential", "kernel", "lagrange", "lagrange_basis"]

_GAUSS = {n: np.polynomial.legendre.leggauss(n) for n in (4, 10, 16)}


def _gauss(n: int) -> tuple[Tensor, Tensor]:
    """Gauss-Legendre nodes and weights on [0, 1]."""
    x, w = _GAUSS[n]
    return torch.from_numpy((x + 1) / 2), torch.from_numpy(w / 2)


def lagrange(node_phi: Tensor, width: Tensor) -> Tensor:
    r"""w_j = \int_0^width L_j(u) du of each step, L_j the Lagrange basis on its nodes; (m, k), k <= 8.

    node_phi: (m, k) angles from the start of each step, distinct; width: (m,) the step, signed.
    """
    u, weight = _gauss(4)
    basis = lagrange_basis(node_phi, width[:, None] * u)
    return (weight[:, None] * basis).sum(1) * width[:, None]


def exponential(nodes: Tensor, width: Tensor, rate: float | Tensor) -> Tensor:
    r"""w_j = \int_0^h e^{-rate (h - u)} L_j(u) du of each step, h its width; (m, k).

    nodes: (m, k) half log-SNR from the start of each step, distinct, at most 8; width: (m,), signed;
    rate: a number or (m,). 16-point Gauss-Legendre on panels with |rate h| <= 4: exact to rounding, for
    h -> 0 too, where the formulas in phi-functions cancel. With rate = 1 the x0-form,
    x' = (sigma'/sigma) x + alpha' sum_j w_j D_j; with rate = -1 the eps-form,
    x' = (alpha'/alpha) x - sigma' sum_j w_j eps_j; with rate = 1 + tau^2 the SDE's x0-form.
    """
    u, weight = _gauss(16)
    rates = torch.as_tensor(rate, dtype=torch.float64).expand(width.shape)
    panels = max(1, math.ceil(float((rates * width).detach().abs().max()) / 4))
    u = ((torch.arange(panels)[:, None] + u) / panels).reshape(-1)
    weight = (weight / panels).repeat(panels)
    points = width[:, None] * u
    decay = torch.exp(-rates[:, None] * (width[:, None] - points))
    basis = lagrange_basis(nodes, points)
    return ((weight * decay)[:, :, None] * basis).sum(1) * width[:, None]


def lagrange_basis(nodes: Tensor, points: Tensor) -> Tensor:
    """(m, q, k): the Lagrange basis on nodes (m, k) at points (m, q)."""
    numerator = points[:, :, None] - nodes[:, None, :]
    denominator = nodes[:, :, None] - nodes[:, None, :]
    same = torch.eye(nodes.shape[-1], dtype=torch.bool)
    ratio = numerator[:, :, None, :] / torch.where(same, 1.0, denominator)[:, None]
    return torch.where(same, 1.0, ratio).prod(-1)


def features(phi: Tensor, log_rho: Tensor, c: float, noise: float, data: Tensor | None) -> Tensor:
    r"""Phi (..., n, P) with k(r, r') = sum_p Phi_p(r) Phi_p(r'), the covariance of F along a trajectory.

        k = 30                                                                a constant, all but unknown
          + exp(-(phi - phi')^2 / 2)                                          the smooth signal
          + noise^2 sqrt((1 + r^2/c^2)(1 + r'^2/c^2)) exp(-ln(r/r')^2 / 18)   network error, smooth in ln r
          + mean_l h_l(r) h_l(r')                                             Gaussian data of variance l,
        h_l(r) = (l/(l + r^2) - c^2/(c^2 + r^2)) sqrt(c^2 + r^2) sqrt(l + r^2) / (c r).

    Both Gaussian kernels are expanded as exp(-(a - b)^2/2) = e^{-a^2/2} e^{-b^2/2} sum_n (a b)^n / n!,
    about the middle of the points, so that the weights follow by least squares in the features and keep
    their accuracy where the kernel matrix itself is singular to rounding (fine grids).

    phi: (..., n) angles; log_rho: (..., n) ln rho; c: the coordinate's scale; data: (..., n, L) values
    h_l / sqrt(L), or None.
    """
    columns = [
        math.sqrt(30.0) * torch.ones_like(phi)[..., None],
        _gaussian_features(phi, 24),
        noise
        * torch.sqrt(1 + (torch.exp(log_rho) / c) ** 2)[..., None]
        * _gaussian_features(log_rho / 3, 40),
    ]
    if data is not None:
        columns.append(data)
    return torch.cat(columns, dim=-1)


def _gaussian_features(x: Tensor, terms: int) -> Tensor:
    """psi_n = a^n e^{-a^2/2} / sqrt(n!), n < terms, a = x - its middle; truncation a^(2 terms) / terms!."""
    a = (x - (x.amax(-1, keepdim=True) + x.amin(-1, keepdim=True)) / 2)[..., None]
    n = torch.arange(terms, dtype=torch.float64)
    return torch.exp(-a * a / 2) * a**n * torch.exp(-0.5 * torch.lgamma(n + 1))


def gaussian_data(rho: Tensor, c: float, s: float, s2: float) -> Tensor:
    """h_l(rho) / sqrt(12) for 12 variances l, log-spaced in [0.04 s^2, 1.2 s2^2]; (..., n, 12)."""
    low, high = math.log(0.04 * s * s), math.log(1.2 * s2 * s2)
    variances = torch.exp(torch.linspace(low, high, 12, dtype=torch.float64))
    r2 = (rho * rho)[..., None]
    # l/(l + r^2) - c^2/(c^2 + r^2) = r^2 (l - c^2) / ((l + r^2)(c^2 + r^2)), free of cancellation.
    h = rho[..., None] * (variances - c * c) / (c * torch.sqrt((variances + r2) * (c * c + r2)))
    return h / math.sqrt(12.0)


def kernel(
    node_phi: Tensor,
    node_rho: Tensor,
    width: Tensor,
    rho_a: Tensor,
    rho_b: Tensor,
    *,
    c: float,
    s: float,
    s2: float,
    noise: float = 0.003,
    kappa: float = 1.0,
) -> Tensor:
    r"""w = K^{-1} \int k(nodes, r) dphi over each step, scaled so that sum w = width; (m, k).

    With K = Phi Phi^T and v = \int Phi dphi this is the least-squares solution of Phi^T w = v. The
    integral is 10-point Gauss-Legendre in ln rho. Many steps at once:

    node_phi: (m, k) angles from the start of each step; node_rho: (m, k) their rho, finite (an infinite
    rho has infinite noise, hence weight zero: drop that node before the call). width, rho_a, rho_b: (m,)
    angle, first and last rho of the step.
    """
    k = node_phi.shape[-1]
    x, weight = _gauss(10)
    step = torch.log(rho_b / rho_a)[:, None]
    start = rho_a[:, None]
    points_rho = start * torch.exp(x * step)
    points_phi = torch.atan2(c * (points_rho - start), c * c + points_rho * start)
    jacobian = step * c * points_rho / (c * c + points_rho * points_rho)
    rho = torch.cat([node_rho, points_rho], dim=-1)
    phi = torch.cat([node_phi, points_phi], dim=-1)
    data = gaussian_data(rho, c, s, s2) * math.sqrt(kappa) if kappa > 0 else None
    table = features(phi, torch.log(rho), c, noise, data)
    at_nodes, at_points = table[..., :k, :], table[..., k:, :]
    moments = ((weight * jacobian)[..., None] * at_points).sum(-2)
    q, r = torch.linalg.qr(at_nodes.mT)
    w: Tensor = torch.linalg.solve_triangular(r, q.mT @ moments[..., None], upper=True)[..., 0]
    return w * (width / w.sum(-1))[:, None]
