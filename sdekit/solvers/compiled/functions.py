"""Elementary functions for drifts and diffusions, the same in both back ends.

Each takes a tensor, a float or what a compiled function is given, and may be called from functions that
numba compiles.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from sdekit.solvers.compiled.symbols import Symbol, apply

__all__ = ["cos", "exp", "log", "maximum", "minimum", "sin", "sqrt", "tanh", "where"]


def exp(x: Any) -> Any:
    """e^x. Compiled: within 1 ulp; inf above the largest number, 0 below the smallest."""
    if isinstance(x, Tensor):
        return torch.exp(x)
    return apply("exp", x) if isinstance(x, Symbol) else math.exp(x)


def log(x: Any) -> Any:
    """Natural logarithm. Compiled: within 1 ulp; -inf at 0, NaN below."""
    if isinstance(x, Tensor):
        return torch.log(x)
    return apply("log", x) if isinstance(x, Symbol) else math.log(x)


def sin(x: Any) -> Any:
    """Sine of radians. Compiled: see `cos`."""
    if isinstance(x, Tensor):
        return torch.sin(x)
    return apply("sin", x) if isinstance(x, Symbol) else math.sin(x)


def cos(x: Any) -> Any:
    """Cosine of radians. Compiled: within 1.5e-7 (float32) or 2.5e-16 (float64) for \\|x\\| <= 1e6,
    within the rounding of x beyond, NaN from 2^50 on."""
    if isinstance(x, Tensor):
        return torch.cos(x)
    return apply("cos", x) if isinstance(x, Symbol) else math.cos(x)


def sqrt(x: Any) -> Any:
    """Square root, correctly rounded; NaN below 0."""
    if isinstance(x, Tensor):
        return torch.sqrt(x)
    return apply("sqrt", x) if isinstance(x, Symbol) else math.sqrt(x)


def tanh(x: Any) -> Any:
    """Hyperbolic tangent. Compiled: that of the C library, one number at a time, and so slower."""
    if isinstance(x, Tensor):
        return torch.tanh(x)
    return apply("tanh", x) if isinstance(x, Symbol) else math.tanh(x)


def _two(name: str, x: Any, y: Any) -> Any:
    """A tensor or symbol where there is one, else None."""
    if isinstance(x, Symbol) or isinstance(y, Symbol):
        return apply(name, x, y)
    if isinstance(x, Tensor) or isinstance(y, Tensor):
        like = x if isinstance(x, Tensor) else y
        pair = [torch.as_tensor(v, dtype=like.dtype, device=like.device) for v in (x, y)]
        return getattr(torch, name)(*pair)
    return None


def maximum(x: Any, y: Any) -> Any:
    """The larger of two; NaN where one is."""
    found = _two("maximum", x, y)
    return max(x, y) if found is None else found


def minimum(x: Any, y: Any) -> Any:
    """The smaller of two; NaN where one is."""
    found = _two("minimum", x, y)
    return min(x, y) if found is None else found


def where(condition: Any, x: Any, y: Any) -> Any:
    """x where the condition holds, y elsewhere; both are computed. Conditions combine with & and |."""
    if isinstance(condition, Symbol):
        return apply("where", condition, x, y)
    return torch.where(condition, x, y) if isinstance(condition, Tensor) else (x if condition else y)
