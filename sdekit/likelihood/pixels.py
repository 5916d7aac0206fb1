r"""Between densities and probabilities of levels: dequantisation, and bits per dimension.

Data k in {0, ..., L - 1} become x = a + w (k + u), w = (b - a)/L, u uniform on (0, 1): bin k of [a, b]. By
Jensen's inequality

    log P(k) = log w^D E[p(x)] >= E[log p(x)] + D log w,

so -(log p(x)/D + log w)/log 2 bits per dimension bound the code length of the levels from above, on average.
Uria, Murray and Larochelle 2013; Theis, van den Oord and Bethge 2016, equation 4.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from sdekit.errors import ShapeError, check_count, check_first_id
from sdekit.noise import Philox, Purpose

__all__ = ["bits_per_dimension", "dequantize"]


def _width(levels: int, low: float, high: float) -> float:
    levels = check_count(levels, "levels")
    for name, end in (("low", low), ("high", high)):
        if not isinstance(end, int | float):
            raise TypeError(f"{name} must be a number, got {type(end).__name__}. Next: the value of an end.")
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ValueError(f"low and high must be finite with low < high, got {low} and {high}.")
    return (high - low) / levels


def dequantize(
    k: Any,
    *,
    levels: int = 256,
    low: float = 0.0,
    high: float = 1.0,
    seed: int = 0,
    draw: int = 0,
    first_id: int = 0,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """x = low + (high - low)/levels (k + u), u uniform on (0, 1), in [low, high] up to rounding.

    k: (B, *event), whole numbers in [0, levels), of any dtype (uint8 images). u is a function of (seed,
    draw, first_id + row, element): another ``draw`` gives independent noise. A model scaled as
    2 k/255 - 1 has bins of width 2/255 about its levels: low = -1 - 1/255, high = 1 + 1/255.

    Raises ShapeError for values that are no levels, TypeError for what is no array of numbers, ValueError for
    other arguments.
    """
    width = _width(levels, low, high)
    try:
        k = torch.as_tensor(k)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(
            f"k must be levels, whole numbers of shape (B, *event), got {type(k).__name__}: {error}. Next: a "
            f"tensor or array of integers, such as uint8 images."
        ) from error
    if k.ndim == 0 or k.is_complex():
        raise ShapeError(f"k must be levels of shape (B, *event), got {k.dtype} of shape {tuple(k.shape)}.")
    whole = k.to(torch.float64)
    if bool(((whole != whole.floor()) | (whole < 0) | (whole >= levels)).any()):
        raise ShapeError(
            f"k must hold whole numbers from 0 to {levels - 1}, got values from {float(whole.min()):g} to "
            f"{float(whole.max()):g}. Likely cause: data already scaled, or another number of levels. Next: "
            f"pass the raw levels, and levels=."
        )
    ids = check_first_id(first_id, len(k)) + torch.arange(len(k), dtype=torch.int64, device=k.device)
    like = whole.reshape(len(k), -1) if k.numel() else whole.reshape(len(k), 0)
    z = Philox(seed).normal(draw, like, ids, Purpose.DATA) if k.numel() else like
    u = (0.5 * torch.erfc(-z / math.sqrt(2.0))).reshape(k.shape)
    x: Tensor = low + width * (whole + u)
    return x.to(dtype)


def bits_per_dimension(
    log_prob: Any, dimension: int, *, levels: int = 256, low: float = 0.0, high: float = 1.0
) -> Tensor:
    """-(log_prob/D + log((high - low)/levels))/log 2, the shape of log_prob (nats).

    levels=1 on [0, 1] is the continuous density in bits. Raises ValueError, TypeError.
    """
    width = _width(levels, low, high)
    if isinstance(log_prob, list | tuple):
        log_prob = torch.tensor(log_prob, dtype=torch.float64)
    if not isinstance(log_prob, Tensor | float | int) and not hasattr(log_prob, "__array__"):
        raise TypeError(
            f"log_prob must be log-densities in nats, got {type(log_prob).__name__}. Next: .value, for what "
            f"sdekit.log_prob returned."
        )
    bits: Tensor = -(log_prob / check_count(dimension, "dimension") + math.log(width)) / math.log(2.0)
    return bits
