"""Position and velocity as one state (B, 2, *event)."""

from __future__ import annotations

import torch
from torch import Tensor

from sdekit.errors import ShapeError

__all__ = ["join", "split", "velocity_noise"]


def join(q: Tensor, v: Tensor) -> Tensor:
    """The state (B, 2, *event) of positions ``q`` and velocities ``v``, (B, *event) each."""
    if q.shape != v.shape:
        raise ShapeError(
            f"positions and velocities must have one shape (B, *event), got {tuple(q.shape)} and "
            f"{tuple(v.shape)}. Next: torch.zeros_like(q) for a start at rest."
        )
    return torch.stack([q, v], dim=1)


def split(x: Tensor) -> tuple[Tensor, Tensor]:
    """(positions, velocities) of a state, (B, *event) each. Raises ShapeError for another shape."""
    if x.ndim < 2 or x.shape[1] != 2:
        raise ShapeError(
            f"x must have shape (B, 2, *event), positions in x[:, 0] and velocities in x[:, 1], got "
            f"{tuple(x.shape)}. Likely cause: positions alone. Next: join(q, torch.zeros_like(q))."
        )
    q, v = x.unbind(1)
    return q, v


def velocity_noise(scale: float, x: Tensor) -> Tensor:
    """(0, scale), (2, 1, ..., 1), in x's dtype and device: noise in the velocities only."""
    split(x)
    return torch.tensor([0.0, scale], dtype=x.dtype, device=x.device).reshape(2, *(1,) * (x.ndim - 2))
