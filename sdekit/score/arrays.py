"""Scores written in numpy."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sdekit._typing import Field
from sdekit.errors import ShapeError, check_argument_order

if TYPE_CHECKING:
    from sdekit._typing import Array

__all__ = ["numpy_score"]


def numpy_score(fn: Callable[[Array, Array], Array]) -> Field:
    """``fn(x, t)`` of numpy arrays as a score (or network) of tensors.

    x: (B, *event) and t: () or (B,) arrays of the state's dtype (float32 for bfloat16 states); fn returns
    the shape of x. The result has x's dtype and device. Not differentiable: raises TypeError when a
    gradient through it is asked for.

    Raises ArgumentOrderError for ``fn(t, x)``, ShapeError when fn does not return the shape of x.
    """
    check_argument_order(fn, "the numpy score")

    def score(x: Tensor, t: Tensor) -> Tensor:
        if x.requires_grad and torch.is_grad_enabled():
            raise TypeError(
                "a numpy score has no gradient. Next: write it in torch, or run without requires_grad."
            )
        wide = x.detach().cpu()
        wide = wide.float() if wide.dtype in (torch.bfloat16, torch.float16) else wide
        time = torch.as_tensor(t).detach().cpu().to(wide.dtype)
        out = torch.as_tensor(fn(wide.numpy(), time.numpy()))
        if out.shape != x.shape:
            raise ShapeError(
                f"the numpy score must return shape {tuple(x.shape)}, the shape of x, got {tuple(out.shape)}."
            )
        return out.to(dtype=x.dtype, device=x.device)

    return score
