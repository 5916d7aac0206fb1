"""Operations that are not affine: registered functions that `Apply` names.

Each takes its input registers (B, *event), the parameters of the instruction, and ``normal``, which maps a
draw to a standard normal of the state's shape; it returns a new (B, *event). Rows do not mix.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

from sdekit.errors import unknown_name
from sdekit.sde.rows import fold, over_event

__all__ = ["operation", "register"]

Operation: TypeAlias = Callable[[Sequence[Tensor], Mapping[str, Any], Callable[[int], Tensor]], Tensor]

_OPERATIONS: dict[str, Operation] = {}


def register(name: str) -> Callable[[Operation], Operation]:
    """Register an operation under the name that plans and JSON use."""

    def add(fn: Operation) -> Operation:
        if name in _OPERATIONS:
            raise ValueError(f"operation {name!r} is registered already.")
        _OPERATIONS[name] = fn
        return fn

    return add


def operation(name: str) -> Operation:
    """The operation of that name. Raises UnknownNameError."""
    if name not in _OPERATIONS:
        raise unknown_name("operation", name, _OPERATIONS)
    return _OPERATIONS[name]


def row_norm(x: Tensor) -> Tensor:
    """Euclidean norm of each sample, (B, 1, ..., 1), float32 at least; the same bits in any batch."""
    wide = x if x.dtype in (torch.float32, torch.float64) else x.float()
    squares = (wide * wide).reshape(x.shape[0], -1)
    return over_event(fold(squares).sqrt(), wide)


@register("langevin-norm")
def langevin_norm(
    inputs: Sequence[Tensor], params: Mapping[str, Any], normal: Callable[[int], Tensor]
) -> Tensor:
    """x + e s + sqrt(2 e) z, e = 2 a (snr |z| / |s|)^2 with the norms of each sample.

    inputs: x, its score s. params: snr, a ("scale"), draw. Song et al. 2021, algorithms 4 and 5, whose
    code averages the norms over the batch; here a sample does not depend on its neighbours. A zero score
    leaves x where it is.
    """
    x, score = inputs
    z = normal(params["draw"])
    size = row_norm(score)
    ratio = torch.where(size > 0, row_norm(z) / torch.where(size > 0, size, 1.0), 0.0)
    e = (2 * params["scale"] * params["snr"] ** 2) * (ratio * ratio)
    out: Tensor = x + e.to(x.dtype) * score + (2 * e).sqrt().to(x.dtype) * z
    return out
