"""Noise inside torch.func transforms: a constant of the mapped or differentiated function.

A transform (vmap, grad, jvp, ...) wraps tensors, and compiled code needs plain memory. The noise of sample i
is a function of its id alone, so it is made outside of the transform, from the plain ids, and is the same for
every function value that is mapped over.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack

__all__ = ["made_outside", "transformed"]


def transformed() -> bool:
    """Whether the caller runs inside a torch.func transform."""
    return torch._C._functorch.peek_interpreter_stack() is not None


def made_outside(make: Callable[[Tensor, Tensor], Tensor], like: Tensor, ids: Tensor) -> Tensor:
    """make(like, ids) on plain tensors: an empty one of like's shape, and the ids without their wrapping.

    Raises ValueError for ids that are mapped over.
    """
    shape, dtype, device = like.shape, like.dtype, like.device
    while torch._C._functorch.is_functorch_wrapped_tensor(ids):
        if torch._C._functorch.is_batchedtensor(ids):
            raise ValueError(
                "the ids of the samples are mapped over, and noise inside torch.func.vmap is the same for "
                "every function value. Next: give each its own samples by a longer batch instead of vmap."
            )
        ids = torch._C._functorch.get_unwrapped(ids)
    with temporarily_clear_interpreter_stack(), torch.no_grad():
        return make(torch.empty(shape, dtype=dtype, device=device), ids)
