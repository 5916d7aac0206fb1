"""Arithmetic whose result for one sample does not depend on the other samples, bit for bit.

Products and sums of elements are the same whatever the vectorisation; BLAS products and library
reductions are not. So sums run here as chains of elementwise additions in a fixed order.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sdekit._typing import Number
from sdekit.errors import NonFiniteError, ShapeError

__all__ = ["as_time", "constant", "flat", "fold", "matvec", "over_event", "parameter"]


def as_time(t: Number, x: Tensor) -> Tensor:
    """``t`` as user code receives it: a tensor of x's dtype and device, shape () or (B,)."""
    return torch.as_tensor(t, dtype=x.dtype, device=x.device)


def over_event(c: Tensor, x: Tensor, name: str = "t") -> Tensor:
    """``c``, one number () or one per sample (B,), in x's dtype, shaped to broadcast over events of x.

    Raises ShapeError for any other shape.
    """
    if c.ndim == 0:
        return c.to(x.dtype)
    if c.ndim == 1 and x.ndim >= 1 and c.shape[0] == x.shape[0]:
        return c.to(x.dtype).reshape(-1, *(1,) * (x.ndim - 1))
    raise ShapeError(
        f"{name} must have shape () or (B,) with B = {x.shape[0] if x.ndim else 1} samples, got "
        f"{tuple(c.shape)} for x of shape {tuple(x.shape)}. Next: {name}.flatten(), one time per sample."
    )


def flat(x: Tensor) -> Tensor:
    """(B, *event) -> (B, D), also for B = 0."""
    return x[:, None] if x.ndim == 1 else x.flatten(1)


def fold(p: Tensor) -> Tensor:
    """Sum over the last axis, (..., n) -> (...), by halves: log2(n) elementwise additions."""
    if p.shape[-1] == 0:
        return p.new_zeros(p.shape[:-1])
    while (n := p.shape[-1]) > 1:
        half = n // 2
        head = p[..., :half] + p[..., half : 2 * half]
        p = torch.cat([head, p[..., 2 * half :]], dim=-1) if n % 2 else head
    return p[..., 0]


def matvec(m: Tensor, x: Tensor) -> Tensor:
    """M x for each row, (D', D), (B, D) -> (B, D'), columns added left to right."""
    m = m.to(dtype=x.dtype, device=x.device)
    out = x[:, 0:1] * m[:, 0]
    for j in range(1, m.shape[1]):
        out = out + x[:, j : j + 1] * m[:, j]
    return out


def constant(value: Any, name: str) -> Tensor:
    """A finite float64 tensor."""
    try:
        tensor = torch.as_tensor(value, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ShapeError(f"{name} must be numbers or a tensor, got {type(value).__name__}.") from error
    if not bool(torch.isfinite(tensor.detach()).all()):
        raise NonFiniteError(f"{name} holds NaN or infinity: {value!r}.")
    return tensor


def parameter(c: Tensor, x: Tensor) -> Tensor:
    """A parameter, one number or a tensor that broadcasts to the event, in x's dtype and device.

    Raises ShapeError for a shape that does not fit.
    """
    event = x.shape[1:]
    tail = event[len(event) - c.ndim :] if c.ndim <= len(event) else None
    if tail is None or any(n not in (1, m) for n, m in zip(c.shape, tail, strict=True)):
        raise ShapeError(
            f"a parameter must be a number or broadcast to the event {tuple(event)} of x, got shape "
            f"{tuple(c.shape)} for x of shape {tuple(x.shape)}."
        )
    return c.to(dtype=x.dtype, device=x.device)
