"""The reference back end of `combine`, in plain torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from sdekit.kernels.contract import Draws

__all__ = ["combine", "serves"]

_HALF = (torch.bfloat16, torch.float16)


def serves(x: Tensor) -> None:
    """Every state is served: no reason against it."""


def combine(
    out: Tensor | None,
    registers: Sequence[Tensor],
    weights: Sequence[float | Tensor] | Tensor,
    draws: Draws | None = None,
    scale: float | Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """out = sum_i w_i register_i + sum_j c_j xi_j, and scale out; see the contract in `sdekit.kernels`.

    registers: tensors of one shape (B, *event), at least one; weights: w then c, floats, 0-d tensors of the
    arithmetic dtype or a tensor of those. Gradients flow through registers and weights where out is None.
    """
    dtype = registers[0].dtype
    half = dtype in _HALF
    terms = _terms(registers, draws, half)
    # add_(term, alpha=w) would round differently in vector bodies and tails (fused multiply-add).
    pairs = zip(weights, terms, strict=True)
    weight, term = next(pairs)
    total = term * weight
    for weight, term in pairs:
        total += term * weight
    if half:
        total = total.to(dtype)
    if out is not None:
        total = out.copy_(total)
    if scale is None:
        return total, None
    return total, total * torch.as_tensor(scale, dtype=dtype)


def _terms(registers: Sequence[Tensor], draws: Draws | None, half: bool) -> Iterator[Tensor]:
    for register in registers:
        yield register.float() if half else register
    if draws is not None:
        for number in draws.numbers:
            noise = draws.normal(number)
            yield noise.float() if half else noise
