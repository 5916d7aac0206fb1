"""What the losses share: scores as functions of the state alone, probes, and sums over events."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor

from sdekit._typing import Number
from sdekit.errors import (
    ShapeError,
    check_argument_order,
    check_call,
    check_output,
    out_of_place,
    unknown_name,
)
from sdekit.noise import Noise, Philox, Purpose, as_noise
from sdekit.score.model import Denoiser
from sdekit.sde.rows import flat, over_event

__all__ = ["Score", "at_time", "normals", "probe", "rows", "squared", "summed"]

Score: TypeAlias = "Denoiser | Callable[..., Tensor]"

PROBES = ("normal", "rademacher", "sphere")


def at_time(score: Score, x: Tensor, t: Number | None, kind: str = "score") -> Callable[[Tensor], Tensor]:
    """y -> score(y, t), or score(y) where t is None; of a `Denoiser` its prediction ``kind``.

    Raises ValueError for a Denoiser without t, ArgumentOrderError for ``score(t, x)``, ShapeError for a t
    that is not (), (B,), or an output that has not the shape of x or is not floating; ValueError for a score
    that changes its input in place.
    """
    if isinstance(score, Denoiser):
        if t is None:
            raise ValueError("a Denoiser has a score at each time, and none was given. Next: pass t.")
        model, when = score, t
        return lambda y: model.predict(kind, y, when)
    if not callable(score):
        raise TypeError(f"{kind} must be a callable (x, t) or (x), got {type(score).__name__}.")
    if t is None:
        return lambda y: _checked(out_of_place(lambda z: _called(score, (z,), kind), y, kind), y, kind)
    check_argument_order(score, kind)
    time = torch.as_tensor(t, dtype=x.dtype, device=x.device)
    if time.ndim and time.shape != x.shape[:1]:
        raise ShapeError(f"t must be a number or have shape ({x.shape[0]},), got {tuple(time.shape)}.")
    return lambda y: _checked(
        out_of_place(lambda z: _called(score, (z, time.expand(len(z))), kind), y, kind), y, kind
    )


def _called(score: Callable[..., Tensor], given: tuple[Tensor, ...], kind: str) -> Tensor:
    """score(*given). Raises TypeError where it does not take them."""
    try:
        return score(*given)
    except TypeError:
        cause, action = "a network without a time", "lambda x, t: net(x)"
        if len(given) == 1:
            cause = "a network with a time, at data without one"
            action = "t=..., the time it is meant for, or a network of x alone"
        check_call(score, ("x", "t")[: len(given)], kind, cause, action)
        raise


def _checked(out: object, x: Tensor, kind: str) -> Tensor:
    value = check_output(out, x, kind)
    if not value.is_floating_point():
        raise ShapeError(
            f"{kind} must return a floating tensor, got dtype {value.dtype}. Likely cause: labels or indices "
            f"in place of a prediction. Next: one real number for each element of x."
        )
    return value


def normals(x: Tensor, seed: int, draw: int, noise: Noise | None, purpose: Purpose) -> Tensor:
    """N(0, I) of the shape of x: row i is sample i of ``noise``, or of Philox(seed) for ``purpose``."""
    ids = torch.arange(x.shape[0], dtype=torch.int64, device=x.device)
    if noise is None:
        return Philox(seed).normal(draw, x.detach(), ids, purpose)
    return as_noise(seed, noise).normal(draw, x.detach(), ids)


def probe(law: str, x: Tensor, seed: int, draw: int) -> Tensor:
    """Directions v (B, *event) with E v v^T = I. Raises UnknownNameError."""
    if law not in PROBES:
        raise unknown_name("law of probes", law, PROBES)
    z = normals(x, seed, draw, None, Purpose.PROBES)
    if law == "normal":
        return z
    if law == "rademacher":
        return torch.where(z < 0, -torch.ones_like(z), torch.ones_like(z))
    return z * over_event((x[:1].numel() / flat(z).square().sum(dim=1)).sqrt(), x)


def summed(a: Tensor, b: Tensor) -> Tensor:
    """<a, b> of each sample, (B,), at least float32."""
    product = a * b
    return flat(product).to(torch.promote_types(product.dtype, torch.float32)).sum(dim=1)


def squared(a: Tensor) -> Tensor:
    """||a||^2 of each sample, (B,), at least float32."""
    return flat(a).to(torch.promote_types(a.dtype, torch.float32)).square().sum(dim=1)


def rows(coefficient: object, x: Tensor) -> Tensor:
    """A number, () or (B,) as a factor of x (B, *event), in x's dtype."""
    return over_event(torch.as_tensor(coefficient).to(dtype=x.dtype, device=x.device), x)
