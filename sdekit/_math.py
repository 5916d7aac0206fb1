"""Elementary functions of a float or of a float64 tensor.

Coefficients of a plan are floats by default (fast) and 0-d tensors when a gradient through the grid is
wanted; the recipes are written once, with these.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sdekit._typing import Number

__all__ = ["atan2", "exp", "expm1", "log", "log1p", "sqrt", "table", "value"]


def sqrt(a: Number) -> Number:
    """Square root."""
    return torch.sqrt(a) if isinstance(a, Tensor) else math.sqrt(a)


def exp(a: Number) -> Number:
    """Exponential."""
    return torch.exp(a) if isinstance(a, Tensor) else math.exp(a)


def expm1(a: Number) -> Number:
    """exp(a) - 1, accurate near 0."""
    return torch.expm1(a) if isinstance(a, Tensor) else math.expm1(a)


def log(a: Number) -> Number:
    """Natural logarithm, -inf at 0."""
    if isinstance(a, Tensor):
        return torch.log(a)
    return math.log(a) if a > 0 else -math.inf


def log1p(a: Number) -> Number:
    """log(1 + a), accurate near 0."""
    return torch.log1p(a) if isinstance(a, Tensor) else math.log1p(a)


def atan2(a: Number, b: Number) -> Number:
    """The angle of the point (b, a)."""
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        return torch.atan2(torch.as_tensor(a, dtype=torch.float64), torch.as_tensor(b, dtype=torch.float64))
    return math.atan2(a, b)


def value(a: Number) -> float:
    """The number itself, without its gradient."""
    return float(a.detach()) if isinstance(a, Tensor) else a


def table(values: Sequence[Any]) -> Tensor:
    """Nested sequences of floats or 0-d tensors as one float64 tensor, differentiable in the latter."""
    if all(isinstance(value, int | float) for value in values):
        return torch.tensor(values, dtype=torch.float64)
    if all(isinstance(value, int | float | Tensor) for value in values):
        return torch.stack([torch.as_tensor(value, dtype=torch.float64) for value in values])
    return torch.stack([table(row) for row in values])
