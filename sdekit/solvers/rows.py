"""Per-sample reductions whose order depends on the size of one sample alone (see `sdekit.sde.rows`)."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sdekit.sde.rows import fold

__all__ = ["finite_rows", "known_finite", "length", "rms"]


def rms(x: Tensor) -> Tensor:
    """Root mean square of each sample, (B, *event) -> (B,) float64."""
    size = math.prod(x.shape[1:])
    return (fold((x * x).reshape(x.shape[0], size)).to(torch.float64) / size).sqrt()


def finite_rows(x: Tensor) -> Tensor:
    """Which samples hold neither NaN nor infinity, (B, *event) -> (B,) bool."""
    return torch.isfinite(x).reshape(x.shape[0], math.prod(x.shape[1:])).all(dim=1)


def known_finite(x: Tensor) -> NDArray[np.bool_]:
    """`finite_rows` on the host; all True inside torch.func transforms, where no number can be read."""
    if torch._C._functorch.is_functorch_wrapped_tensor(x):
        return np.ones(x.shape[0], dtype=np.bool_)
    return finite_rows(x.detach()).cpu().numpy()


def length(h: Any, like: Tensor) -> Any:
    """|h|, the variance of W: a float, or (B, 1, ..., 1) with the axes of ``like`` (B, ...), kept above 0."""
    if not isinstance(h, Tensor):
        return abs(h)
    return h.abs().clamp_min(torch.finfo(h.dtype).tiny).reshape(-1, *(1,) * (like.ndim - 1))
