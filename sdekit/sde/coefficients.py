"""What times and coefficients may be: the contract of every function of t, in one place."""

from __future__ import annotations

import functools
import math
import numbers
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import torch
from torch import Tensor

from sdekit._typing import Number
from sdekit.errors import DirectionError, ShapeError

if TYPE_CHECKING:
    from sdekit.sde.gaussian import GaussianDiffusion

__all__ = [
    "as_tensor",
    "can_read",
    "check_forward",
    "coefficient",
    "derivative",
    "extremes",
    "inverse",
    "show",
]

P = TypeVar("P", bound="GaussianDiffusion")


def as_tensor(value: object, name: str) -> Tensor:
    """A number as a 0-d float64 tensor; a floating tensor or array as it is."""
    if isinstance(value, Tensor):
        tensor = value
    elif isinstance(value, (numbers.Real, np.generic)):
        return torch.tensor(float(value), dtype=torch.float64)
    elif isinstance(value, np.ndarray):
        tensor = torch.as_tensor(value)
    else:
        raise TypeError(f"{name} must be a number or a floating tensor, got {type(value).__name__}.")
    if not tensor.is_floating_point():
        raise ShapeError(
            f"{name} must be floating, got dtype {tensor.dtype}. Likely cause: integer step indices. "
            f"Next: {name.split()[-1]}.double()."
        )
    return tensor


def can_read(t: Tensor) -> bool:
    """Whether the values of ``t`` may be looked at: not on an accelerator, not while tracing or mapping."""
    return (
        t.device.type == "cpu"
        and not torch.compiler.is_compiling()
        and not torch._C._functorch.is_functorch_wrapped_tensor(t)
    )


def extremes(t: Tensor) -> tuple[float, float]:
    if t.ndim == 0:
        value = float(t.detach())
        return value, value
    if t.numel() == 0:
        return math.inf, -math.inf
    low, high = torch.aminmax(t.detach())
    return float(low), float(high)


def derivative(fn: Callable[[Tensor], Tensor], t: Tensor) -> Tensor:
    """d fn / dt of an elementwise function, the shape of t; differentiable in t."""
    out: Tensor = torch.func.grad(lambda u: fn(u).sum())(t)
    return out


def coefficient(fn: Callable[[P, Tensor], Tensor]) -> Callable[[P, Number], Tensor]:
    """Give a function of a float64 tensor t the contract of a coefficient.

    A number gives a 0-d float64 tensor; a tensor its own shape, dtype and device, computed in float64.
    Times outside `domain` raise ValueError on the CPU and give NaN elsewhere (no synchronisation).
    """

    @functools.wraps(fn)
    def wrapped(self: P, t: Number) -> Tensor:
        given = as_tensor(t, "t")
        time = self._inside(given.to(torch.float64))
        out = fn(self, time)
        if not isinstance(out, Tensor) or out.shape != time.shape:
            out = out + 0.0 * time
        return out.to(given.dtype)

    wrapped._is_contract = True  # type: ignore[attr-defined]
    return wrapped


def inverse(fn: Callable[[P, Tensor], Tensor]) -> Callable[[P, Number], Tensor]:
    """The same contract for a function that returns a time: values that no time reaches are refused."""

    @functools.wraps(fn)
    def wrapped(self: P, value: Number) -> Tensor:
        given = as_tensor(value, "the argument")
        try:
            time = self._inside(fn(self, given.to(torch.float64)))
        except ValueError:
            quantity = fn.__name__.removeprefix("t_of_")
            ends = [float(getattr(self, quantity)(end)) for end in (0.0, self.t_max)]
            raise ValueError(
                f"{self!r}: {quantity} must lie in [{min(ends):g}, {max(ends):g}], got "
                f"{show(given)}. No time of the process has that value. Next: clip it, or use a process "
                f"that reaches it."
            ) from None
        return time.to(given.dtype)

    wrapped._is_contract = True  # type: ignore[attr-defined]
    return wrapped


def show(t: Tensor) -> str:
    low, high = extremes(t)
    return f"{low:g}" if low == high or t.ndim == 0 else f"values from {low:g} to {high:g}"


def check_forward(s: Tensor, t: Tensor) -> None:
    """Refuse a transition that runs against time, negative times and NaN.

    Raises DirectionError, ValueError. Values on an accelerator are not looked at.
    """
    if not (can_read(s) and can_read(t)):
        return
    if bool((s > t).any()):
        raise DirectionError(
            f"a transition goes forward in time, from s to t >= s, got s = {show(s)}, t = {show(t)}. Likely "
            f"cause: swapped times. Next: transition(x, s, t) with s <= t, or reverse(process, score)."
        )
    if not bool(((s >= 0) & torch.isfinite(t)).all()):
        raise ValueError(f"times must be finite and >= 0, got s = {show(s)}, t = {show(t)}.")
