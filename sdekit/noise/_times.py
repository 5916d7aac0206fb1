"""The times that a path is asked for: read, and checked against what it resolves."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from sdekit.errors import ShapeError
from sdekit.noise import _tree

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from sdekit._typing import Array
    from sdekit.noise._tree import Floats, Ints

    Times = float | Sequence[float] | Array | Tensor

__all__ = ["falling", "inside", "on_host", "per_row", "resolved"]

FARTHEST = 2.0**64
NEAR = 0.01
"""How far the length of an interval may be off, as a part of it, once its ends are rounded to ticks."""


def on_host(t: Any) -> Floats:
    """Times as float64."""
    return np.asarray(t.detach().cpu() if isinstance(t, Tensor) else t, dtype=np.float64)


def per_row(t: Floats, rows: int) -> Floats:
    """One time, or one for each row. Raises ShapeError."""
    if t.shape not in ((), (rows,)):
        raise ShapeError(
            f"a time must be a number, or have shape ({rows},), one for each row of like, got {t.shape}. "
            f"Next: steps(ts, like, ids) for several intervals."
        )
    return t


def inside(t: Floats) -> Floats:
    """Finite times, not too far. Raises ValueError."""
    if not (np.abs(t) <= FARTHEST).all():  # NaN too
        raise ValueError(
            f"times must be finite and within [-2^64, 2^64], got {t[~(np.abs(t) <= FARTHEST)][0]}. Likely "
            f"cause: a step that overflowed, or a time in far too small units. Next: look at what made it."
        )
    return t


def falling(n: Ints) -> NDArray[np.bool_]:
    """Which rows of ticks (k + 1, B) run backwards. Raises ValueError for those that turn."""
    forth = np.diff(n, axis=0)
    falls: NDArray[np.bool_] = np.all(forth <= 0, axis=0) & np.any(forth < 0, axis=0)
    if not (falls | np.all(forth >= 0, axis=0)).all():
        raise ValueError(
            "the times of steps must rise, or fall, from first to last in every row. "
            "Next: sort them, or increments(s, t, like, ids) for intervals in any order."
        )
    return falls


def resolved(asked: Floats, h: Floats, bits: int) -> None:
    """Refuse intervals ``asked`` that the ticks are too coarse for, h what is left. Raises ValueError."""
    wrong = np.abs(h - asked) > NEAR * np.abs(asked)
    if wrong.any():
        remedy = "bits=52" if bits < _tree.BITS else "measure time so that steps are longer than 1e-13"
        raise ValueError(
            f"an interval of {np.abs(asked[wrong][0]):.3g} is too short for a path resolved to 2^-{bits}: "
            f"its variance would be wrong by more than a hundredth. Likely cause: steps that collapsed, or "
            f"time in too large a unit. Next: {remedy}."
        )
