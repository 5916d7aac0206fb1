"""Per-sample reductions whose order depends on the size of one sample alone (see `sdekit.sde.rows`)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sdekit.sde.rows import fold

__all__ = ["finite_rows", "rms"]


def rms(x: Tensor) -> Tensor:
    """Root mean square of each sample, (B, *event) -> (B,) float64."""
    size = math.prod(x.shape[1:])
    return (fold((x * x).reshape(x.shape[0], size)).to(torch.float64) / size).sqrt()


def finite_rows(x: Tensor) -> Tensor:
    """Which samples hold neither NaN nor infinity, (B, *event) -> (B,) bool."""
    return torch.isfinite(x).reshape(x.shape[0], math.prod(x.shape[1:])).all(dim=1)
