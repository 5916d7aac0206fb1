"""Derivatives of diffusion fields by torch.func, for every noise type.

    (div G G^T)_i = sum_j d_j (G G^T)_ij          the term of the reverse drift
    c_i           = 1/2 sum_k sum_j G_jk d_j G_ik  Ito drift - Stratonovich drift

Fields are functions x -> G: (B, *event) for elementwise noise, (B, D, m) for matrices. Matrix fields
cost D (divergence) or m (correction) forward-mode products, so that user code is never vectorised.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable

import torch
from torch import Tensor

from sdekit.sde.rows import fold

__all__ = [
    "correction_elementwise",
    "correction_matrix",
    "divergence_elementwise",
    "divergence_matrix",
    "pullback",
    "pushforward",
]

FieldOfState = Callable[[Tensor], Tensor]


def pullback(field: FieldOfState, x: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """The field at x, and v -> sum_i v_i d_j field_i, the shape of x."""
    value, pull = torch.func.vjp(field, x)[:2]
    return value, lambda v: pull(v)[0]


@functools.cache
def _load_forward_mode() -> None:
    """torch loads its forward mode at first use, with a deprecation warning about its own inside."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.func.jvp(torch.neg, (torch.zeros(()),), (torch.zeros(()),))


def pushforward(field: FieldOfState, x: Tensor, v: Tensor) -> Tensor:
    """sum_j v_j d_j field at x, the shape of the field, for x and v (B, *event): one forward product.

    Of y -> G(y) W along v = G(x) W it is sum_kl L_k G_l W_k W_l, with L_k = sum_j G_jk d_j.
    """
    _load_forward_mode()
    # Forward mode refuses expanded tensors, whose elements share memory.
    out: Tensor = torch.func.jvp(field, (x.contiguous(),), (v.reshape(x.shape).contiguous(),))[1]
    return out


def divergence_elementwise(field: FieldOfState, x: Tensor) -> Tensor:
    """d_i g_i^2, (B, *event), for g_i a function of x_i."""
    return pushforward(lambda y: field(y) ** 2, x, torch.ones_like(x))


def correction_elementwise(field: FieldOfState, x: Tensor) -> Tensor:
    """1/2 g_i d_i g_i, (B, *event)."""
    return 0.25 * divergence_elementwise(field, x)


def divergence_matrix(field: FieldOfState, x: Tensor) -> Tensor:
    """sum_jk d_j (G_ik G_jk), (B, D, m) -> (B, *event)."""
    g = field(x)
    total = torch.zeros_like(g[..., 0])
    for j in range(g.shape[1]):
        direction = torch.zeros_like(g[..., 0])
        direction[:, j] = 1.0
        dg = pushforward(field, x, direction)
        total = total + fold(dg * g[:, j : j + 1] + g * dg[:, j : j + 1])
    return total.reshape(x.shape)


def correction_matrix(field: FieldOfState, x: Tensor) -> Tensor:
    """1/2 sum_jk G_jk d_j G_ik, (B, D, m) -> (B, *event)."""
    g = field(x)
    total = torch.zeros_like(g[..., 0])
    for k in range(g.shape[2]):
        total = total + pushforward(field, x, g[..., k])[..., k]
    return 0.5 * total.reshape(x.shape)
