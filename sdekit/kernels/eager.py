"""The reference back end of `combine`, in plain torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

__all__ = ["combine"]

_HALF = (torch.bfloat16, torch.float16)


def combine(
    weights: Sequence[float | Tensor],
    registers: Sequence[Tensor],
    draws: Sequence[int] = (),
    normal: Callable[[int], Tensor] | None = None,
) -> Tensor:
    """out = sum_i w_i register_i + sum_j c_j normal(draw_j); see the contract in `sdekit.kernels`.

    weights: w then c, floats or 0-d tensors of the arithmetic dtype; registers: tensors of one shape
    (B, *event), at least one; normal: draw -> that shape.
    """
    if registers[0].dtype in _HALF:
        wide = [register.float() for register in registers]
        noise = [normal(draw).float() for draw in draws] if normal is not None else []
        return _sum(weights, [*wide, *noise]).to(registers[0].dtype)
    if not draws:
        return _sum(weights, registers)
    assert normal is not None
    return _sum(weights, [*registers, *(normal(draw) for draw in draws)])


def _sum(weights: Sequence[float | Tensor], terms: Sequence[Tensor]) -> Tensor:
    # add_(term, alpha=w) would round differently in vector bodies and tails (fused multiply-add).
    pairs = zip(weights, terms, strict=True)
    weight, term = next(pairs)
    total = term * weight
    for weight, term in pairs:
        total += term * weight
    return total
