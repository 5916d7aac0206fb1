r"""Newton's method for one small system of equations per sample.

    y <- y - (d r/d y)^-1 r(y),        r(y) = 0,   y (B, *event), n = the size of one event.

Everything is elementwise over the batch (no BLAS, no LAPACK), so that a sample has the same bits alone and
in any batch, on every device; the cost of `inverse` is n^3 per sample, for n up to some hundreds.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from sdekit.errors import CapabilityError
from sdekit.sde.calculus import pushforward
from sdekit.sde.rows import fold

__all__ = ["Root", "apply", "find_root", "inverse", "jacobian"]


class Root(NamedTuple):
    """y (B, *event), and which samples failed to converge (B,) bool."""

    y: Tensor
    failed: Tensor


def jacobian(field: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """d field_i/d x_j of each sample, (B, n, n), by n forward-mode products of the whole batch.

    Rows of the field must not depend on other rows. Raises CapabilityError where torch.func cannot follow.
    """
    n = math.prod(x.shape[1:])
    columns = []
    for j in range(n):
        direction = torch.zeros(n, dtype=x.dtype, device=x.device)
        direction[j] = 1.0
        try:
            column = pushforward(field, x, direction.reshape(1, *x.shape[1:]).expand_as(x))
        except RuntimeError as error:
            raise CapabilityError(
                f"an implicit step needs the derivative of the drift, and torch.func.jvp failed: {error}. "
                f"Likely cause: numpy, a custom autograd.Function without jvp, or in-place operations inside "
                f"the drift. Next: write it in plain torch, or use an explicit solver ('tsit5')."
            ) from error
        columns.append(column.reshape(x.shape[0], n))
    return torch.stack(columns, dim=2) if n else x.new_zeros(x.shape[0], 0, 0)


def inverse(m: Tensor) -> Tensor:
    """m^-1 of each sample, (B, n, n), by Gauss and Jordan with row pivots; not finite where m is singular."""
    n = m.shape[-1]
    eye = torch.eye(n, dtype=m.dtype, device=m.device)
    a = torch.cat([m, eye.expand_as(m)], dim=2)
    rows = torch.arange(n, device=m.device)
    for j in range(n):
        pivot = a[:, j:, j].abs().argmax(dim=1, keepdim=True) + j
        order = torch.where(rows == j, pivot, torch.where(rows == pivot, j, rows))
        a = a.gather(1, order[:, :, None].expand_as(a))
        row = a[:, j : j + 1] / a[:, j : j + 1, j : j + 1]
        a = torch.where((rows == j)[:, None], row, a - a[:, :, j : j + 1] * row)
    return a[:, :, n:]


def apply(m: Tensor, x: Tensor) -> Tensor:
    """M x of each sample, (B, n, n) and (B, *event) -> (B, *event)."""
    return fold(m * x.reshape(x.shape[0], 1, m.shape[-1])).reshape(x.shape)


def find_root(
    correction: Callable[[Tensor], Tensor],
    guess: Tensor,
    norm: Callable[[Tensor, Tensor], Tensor],
    most: int = 10,
    skip: Tensor | None = None,
) -> Root:
    """Iterate y <- y + correction(y), each sample until its own error estimate is below 1.

    ``norm(correction, y)`` (B,) is the size of a correction in units of the wanted accuracy. With rate the
    ratio of two successive sizes, rate/(1 - rate) size estimates what is left; a first correction of 0.01 or
    less is enough by itself. A sample fails that diverges (rate >= 2), that is no longer finite, or
    that is not there after ``most`` corrections; those in ``skip`` (B,) have failed before. Hairer and
    Wanner 1996, IV.8.
    """
    y = guess
    done = torch.zeros(y.shape[0], dtype=torch.bool, device=y.device)
    failed = done if skip is None else skip
    before = torch.full(done.shape, math.inf, dtype=torch.float64, device=y.device)
    shape = (-1, *(1,) * (y.ndim - 1))
    for _ in range(most):
        step = correction(y)
        size = norm(step, y)
        y = torch.where((done | failed).reshape(shape), y, y + step)
        rate = size / before
        left = torch.where(torch.isinf(before), 100 * size, size * rate / (1 - rate).clamp_min(1e-3))
        failed = failed | (~done & (~torch.isfinite(size) | (rate >= 2) & (size > 1)))
        done = done | (~failed & ((left <= 1) | (size == 0)))
        before = size
        if bool((done | failed).all()):
            break
    return Root(y, ~done)
