"""Operations that are not affine: registered functions that `Apply` names.

Each takes its input registers (B, *event), the parameters of the instruction, and ``normal``, which maps a
draw to a standard normal of the state's shape; it returns a new (B, *event). Rows do not mix, but for
"langevin-batch".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

from sdekit.errors import unknown_name
from sdekit.sde.rows import fold

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


def row_squares(x: Tensor) -> Tensor:
    """|x|^2 of each sample, (B, 1, ..., 1), float32 at least; the same bits in any batch."""
    wide = x if x.dtype in (torch.float32, torch.float64) else x.float()
    squares = (wide * wide).reshape(x.shape[0], -1)
    return fold(squares).reshape(-1, *(1,) * (x.ndim - 1))


@register("langevin-norm")
def langevin_norm(
    inputs: Sequence[Tensor], params: Mapping[str, Any], normal: Callable[[int], Tensor]
) -> Tensor:
    """x + e s + sqrt(2 e) z, e = 2 a (snr |z| / |s|)^2 with the norms of each sample.

    inputs: x, its score s. params: snr, a ("scale"), draw. Song et al. 2021, algorithms 4 and 5, whose
    code averages the norms over the batch (`langevin_batch`); here a sample does not depend on its
    neighbours. A zero score leaves x where it is.
    """
    x, score = inputs
    z = normal(params["draw"])
    size = row_squares(score)
    e = torch.where(size > 0, (2 * params["scale"] * params["snr"] ** 2) * row_squares(z) / size, 0.0)
    return _langevin(x, score, z, e)


@register("langevin-batch")
def langevin_batch(
    inputs: Sequence[Tensor], params: Mapping[str, Any], normal: Callable[[int], Tensor]
) -> Tensor:
    """x + e s + sqrt(2 e) z, e = 2 a (snr mean|z| / mean|s|)^2, norms averaged over the batch.

    As the published score-SDE code has it. Every sample then depends on all those it is computed with: the
    result is that of one batch, and changes with its size.
    """
    x, score = inputs
    z = normal(params["draw"])
    noise, size = row_squares(z).sqrt().mean(), row_squares(score).sqrt().mean()
    ratio = torch.where(size > 0, noise / size, 0.0)
    return _langevin(x, score, z, (2 * params["scale"] * params["snr"] ** 2) * ratio * ratio)


@register("metropolis")
def metropolis(
    inputs: Sequence[Tensor], params: Mapping[str, Any], normal: Callable[[int], Tensor]
) -> Tensor:
    """y where log u <= log r, else x, for a Langevin proposal y = x + e s(x) + sqrt(2 e) z of each sample,

        log r = (y - x) . (s(x) + 4 s(m) + s(y))/6 + (|y - x - e s(x)|^2 - |x - y - e s(y)|^2)/(4 e),

    the first term log p(y) - log p(x) by Simpson's rule along the line, m its middle. inputs: x, y, s(x),
    s(m), s(y). params: step e, draw; u is Phi of the first element of the draw. A ratio that is not a number
    refuses. Sjoberg et al. 2023 (arXiv:2307.14012).
    """
    x, y, at_x, middle, at_y = inputs
    e, dtype = params["step"], torch.float64
    gap = y.to(dtype) - x.to(dtype)
    line = gap * (at_x.to(dtype) + 4 * middle.to(dtype) + at_y.to(dtype)) / 6
    there, back = gap - e * at_x.to(dtype), gap + e * at_y.to(dtype)
    log_r = fold((line + (there * there - back * back) / (4 * e)).reshape(len(x), -1))
    z = normal(params["draw"]).reshape(len(x), -1)[:, 0].to(dtype)
    accept = torch.special.log_ndtr(z) <= log_r
    return torch.where(accept.reshape(-1, *(1,) * (x.ndim - 1)), y, x)


def _langevin(x: Tensor, score: Tensor, z: Tensor, e: Tensor) -> Tensor:
    out: Tensor = x + e.to(x.dtype) * score + (2 * e).sqrt().to(x.dtype) * z
    return out
