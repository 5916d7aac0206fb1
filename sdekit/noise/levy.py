"""The Levy area of several Brownian motions, from what is known of their path over an interval."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from sdekit.noise.brownian import Increments

__all__ = ["chain_areas", "levy_area", "normals_of_area"]


def _wedge(a: Tensor, b: Tensor) -> Tensor:
    """a_i b_j - b_i a_j, (..., m) -> (..., m, m)."""
    product = a[..., :, None] * b[..., None, :]
    return product - product.transpose(-1, -2)


def normals_of_area(m: int) -> int:
    """How many normals the remainder of `levy_area` takes for m Brownian motions: m + m (m - 1)/2."""
    return m + m * (m - 1) // 2


def levy_area(known: Increments, z: Tensor | None = None) -> Tensor:
    r"""A_ij = 1/2 int (W_i dW_j - W_j dW_i) over an interval of length h, given its W, H and K:

        A = H ^ W + 12 K ^ H + 6 K ^ c_3 + R,    (a ^ b)_ij = a_i b_j - b_i a_j,

    with c_3 ~ N(0, h/7) and R_ij = -R_ji ~ N(0, h^2/28).

    In Legendre coefficients the area is 1/2 sum_n c_n ^ c_{n+1} (Foster and Habermann 2023), of variance
    h^2/4 (Levy 1951). The first two terms are E[A | W, H, K]; they leave h^2/20. The third is exact too; R
    stands for the sum from n = 3 on, which has this variance. So mean and covariance of A given (W, H, K),
    and those given less, are exact: Var[A_ij | W, H] = h^2/20 + h/5 (H_i^2 + H_j^2), Var A_ij = h^2/4. The
    fourth moment is 0.3110 h^4, that of the area 5/16 h^4.

    known: W, H, K of shape (..., m). z: normals (..., m + m (m - 1)/2), or None for the conditional mean.
    Returns (..., m, m).
    """
    _, W, H, K = known
    area = _wedge(H, W) + 12 * _wedge(K, H)
    if z is None:
        return area
    m, h = W.shape[-1], known.h.abs()
    third = z[..., :m] * (h / 7).sqrt()
    row, column = torch.triu_indices(m, m, 1, device=W.device).unbind()
    rest = torch.zeros_like(area)
    rest[..., row, column] = z[..., m:] * (h / 28**0.5)
    return area + 6 * _wedge(K, third) + (rest - rest.transpose(-1, -2))


def chain_areas(areas: Tensor, W: Tensor) -> Tensor:
    """Chen's relation: A = sum_k A_k + 1/2 sum_{j<k} W_j ^ W_k over adjacent intervals k.

    areas: (k, ..., m, m). W: (k, ..., m). Returns (..., m, m).
    """
    before = torch.zeros_like(W[0])
    total = torch.zeros_like(areas[0])
    for area, w in zip(areas, W, strict=True):
        total = total + area + _wedge(before, w) / 2
        before = before + w
    return total
