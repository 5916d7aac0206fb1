"""What parameters, states and times of the classic equations may be."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sdekit._typing import Number
from sdekit.sde.coefficients import as_tensor, can_read, check_forward
from sdekit.sde.rows import constant, over_event

__all__ = ["check_domain", "elapsed", "positive"]


def positive(value: Any, name: str, order: str, zero: bool = False) -> Tensor:
    """A float64 parameter > 0 (>= 0 with ``zero``). Raises ValueError, which names the argument order."""
    c = constant(value, name)
    low = c.detach()
    if bool(((low < 0) if zero else (low <= 0)).any()):
        bound = ">= 0" if zero else "> 0"
        raise ValueError(f"{name} must be {bound}, got {value}. Next: check the argument order ({order}).")
    return c


def elapsed(x: Tensor, s: Number, t: Number) -> Tensor:
    """t - s, float64, shaped to broadcast over events of x. s <= t: () or (B,). Raises DirectionError."""
    start, end = as_tensor(s, "s").to(torch.float64), as_tensor(t, "t").to(torch.float64)
    check_forward(start, end)
    return over_event(end.to(x.device) - start.to(x.device), x.to(torch.float64))


def check_domain(x: Tensor, inside: Tensor, where: str) -> None:
    """Refuse states outside the domain of the equation (looked at on the CPU only). Raises ValueError."""
    if can_read(x) and not bool(inside.all()):
        bad = x.detach()[~inside.detach()].flatten()[0]
        raise ValueError(
            f"the state must lie in {where}, got {float(bad):g}. Likely cause: a start outside, or a "
            f"solver's step that left it. Next: move the start, or take smaller steps."
        )
