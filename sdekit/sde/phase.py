"""Position and velocity as one state (B, 2, *event)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from sdekit.errors import ShapeError, check_argument_order, check_output

__all__ = ["join", "split", "velocity_noise", "velocity_score"]


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


def velocity_score(score: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    """(0, score(x, t)), (B, 2, *event), from the part of the score along the velocities, (B, *event).

    It is all that a reversal needs where noise acts on velocities only: G G^T score is that part. score: a
    callable of the whole state x (B, 2, *event) and t. Raises ArgumentOrderError for (t, x).
    """
    check_argument_order(score, "score")

    def whole(x: Tensor, t: Tensor) -> Tensor:
        v = check_output(score(x, t), split(x)[1], "score")
        return join(torch.zeros_like(v), v)

    return whole
