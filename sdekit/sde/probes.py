"""What a diffusion field is in fact, found by a few products with its derivative at a point.

    additive     dG_i/dx_j = 0                                           one pullback
    diagonal     dG_i/dx_j = 0 for i != j                                two pullbacks
    commutative  sum_j (Gv)_j d_j (Gu)_i = sum_j (Gu)_j d_j (Gv)_i       two forward products

for all i, j and all vectors u, v. The pullbacks take fixed weights, different for every element, in units of
1/|G_i|; u and v are fixed too. A field without the structure passes at a point only where the sum over its
derivatives cancels in these numbers. What is below 1e3 roundings of its terms counts as zero.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from sdekit.sde.calculus import FieldOfState, pullback, pushforward
from sdekit.sde.rows import fold

__all__ = ["Finding", "commutator", "dependence", "depends_on_state", "mixing", "perturbed"]


class Finding(NamedTuple):
    """The largest entry that a promise says is zero: its size, and where, in words."""

    size: float
    where: str


def _numbers(x: Tensor, rate: float) -> Tensor:
    """Fixed numbers in [1/2, 3/2], different for every element."""
    index = torch.arange(x.numel(), dtype=torch.float64, device=x.device)
    return (1.0 + 0.5 * torch.cos(index * rate)).to(x.dtype).reshape(x.shape)


def perturbed(x: Tensor) -> Tensor:
    """A second point, 5 to 15 % away from x and off zero: one point can hide a dependence (x^2 at 0)."""
    return x * (1.0 + 0.1 * _numbers(x, 2.399)) + 0.05 * _numbers(x, 0.755)


def _tolerance(x: Tensor) -> float:
    return min(0.1, 1e3 * torch.finfo(x.dtype).eps)


def _place(index: int, shape: torch.Size) -> str:
    """The flat index of an element as it is written, [i, j]."""
    return str([int(i) for i in torch.unravel_index(torch.tensor(index), shape or (1,))])


def _largest(found: Tensor, scale: Tensor) -> int | None:
    """The flat index of the entry that is largest in units of its scale, None if none is beyond rounding."""
    beyond = found.abs() > _tolerance(found) * scale
    if not bool(beyond.any()):
        return None
    ratio = torch.where(beyond, found.abs() / scale, 0.0)
    return int(torch.nan_to_num(ratio, nan=0.0).argmax())


def _derivative(field: FieldOfState, x: Tensor, at: int, same: bool) -> Finding:
    """The largest |dG_i/dx_j|, j the element of the batch at flat index ``at``; i = j only if ``same``."""
    elements = max(x[0].numel(), 1)
    row, j = divmod(at, elements)
    state = f"x{_place(j, x.shape[1:])}"
    point = f"at {state} = {float(x.reshape(-1)[at]):.4g} (row {row})"
    direction = torch.zeros(x.numel(), dtype=x.dtype, device=x.device)
    direction[at] = 1.0
    try:
        column = pushforward(field, x, direction)[row]
    except RuntimeError:  # no forward mode: the pullback has found it, but not which element
        return Finding(math.nan, f"some dG_i/d{state} is not zero {point}")
    sizes = column.abs().reshape(-1).clone()
    if not same:
        sizes[j] = 0.0
    i = int(sizes.argmax())
    value = float(column.reshape(-1)[i])
    return Finding(abs(value), f"dG{_place(i, column.shape)}/d{state} = {value:.4g} {point}")


def _relative(field: FieldOfState, x: Tensor) -> tuple[Callable[[Tensor], Tensor], Tensor]:
    """(pullback of the field, 1/|G_i|, 1 where G_i = 0)."""
    value, pull = pullback(field, x)
    size = value.detach().abs()
    return pull, 1.0 / torch.where(size > 0, size, 1.0)


def dependence(field: FieldOfState, x: Tensor) -> Finding | None:
    """Where the field (B, ...) depends on the state x (B, *event); None where it does not."""
    pull, unit = _relative(field, x)
    found = pull(_numbers(unit, 1.618) * unit)
    at = _largest(found, 1.0 / (1.0 + x.abs()))
    return None if at is None else _derivative(field, x, at, same=True)


def depends_on_state(field: FieldOfState, x: Tensor) -> bool:
    """Whether the derivative of the field (B, ...) at x (B, *event) is not zero (one pullback)."""
    return dependence(field, x) is not None


def mixing(field: FieldOfState, x: Tensor) -> Finding | None:
    """Where element i of the field (B, *event) depends on another element of x; None where none does."""
    pull, unit = _relative(field, x)
    weights = _numbers(unit, 1.618)
    plain, weighted = pull(unit), pull(weights * unit)
    scale = plain.abs() + weighted.abs() + 1.0 / (1.0 + x.abs())
    at = _largest(weighted - weights * plain, scale)
    return None if at is None else _derivative(field, x, at, same=False)


def commutator(field: FieldOfState, x: Tensor) -> Finding | None:
    """Where the columns of the field (B, D, m) do not commute: (Gv . d)(Gu) - (Gu . d)(Gv), for one u and v.

    None where they do, and for m = 1.
    """
    g = field(x)
    m = g.shape[-1]
    if m < 2:
        return None
    like = g.new_empty(m)
    u, v = _numbers(like, 1.618), _numbers(like, 2.399) * (1.0 - 2.0 * (torch.arange(m, device=g.device) % 2))
    gu, gv = fold(g * u), fold(g * v)
    forth = fold(pushforward(field, x, gv) * u)
    back = fold(pushforward(field, x, gu) * v)
    size = fold(g.abs() * (u.abs() + v.abs()))
    rate = (size / (1.0 + x.abs().reshape(size.shape))).amax(-1, keepdim=True)
    at = _largest(forth - back, forth.abs() + back.abs() + size * rate)
    if at is None:
        return None
    row, i = divmod(at, size.shape[1])
    value = float((forth - back).reshape(-1)[at])
    terms = f"{float(forth.reshape(-1)[at]):.4g} - {float(back.reshape(-1)[at]):.4g}"
    place = _place(i, x.shape[1:])
    return Finding(abs(value), f"element {place} of (Gv.d)(Gu) - (Gu.d)(Gv) is {terms} (row {row})")
