"""Interpolation between the latents from which a deterministic sampler starts."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sdekit.errors import ShapeError, check_state, unknown_name
from sdekit.sde.rows import fold, over_event

if TYPE_CHECKING:
    from sdekit._typing import Array

__all__ = ["interpolate"]


def interpolate(
    z0: Tensor | Array, z1: Tensor | Array, weights: float | Tensor | Array, method: str = "spherical"
) -> Tensor:
    r"""Latents between z0 (weight 0) and z1 (weight 1), sample by sample.

        spherical:  r (sin((1 - w) theta) u0 + sin(w theta) u1) / sin theta,   r = (1 - w)|z0| + w |z1|,
        linear:     (1 - w) z0 + w z1,

    with u = z/|z| and theta the angle between u0 and u1. A Gaussian latent of dimension D lies near the
    sphere of radius sqrt(D); "spherical" stays there, a chord of two independent latents passes at
    sqrt(D/2). Where a latent is zero it has no direction, and the other one's is kept.

    Parameters
    ----------
    z0, z1
        (B, *event), floating, of one shape.
    weights
        A number in [0, 1], or K of them.
    method
        "spherical" (Shoemake 1985, of the directions) or "linear".

    Returns
    -------
    (B, *event) for a number, (K, B, *event) for K; z0 and z1 themselves at weights 0 and 1.

    Raises
    ------
    ValueError: weights outside [0, 1]; opposite latents, between which every direction is as good.
    ShapeError, NonFiniteError: z0 or z1 is no state, or the shapes differ. UnknownNameError: method.
    """
    if method not in ("spherical", "linear"):
        raise unknown_name("method", method, ("spherical", "linear"))
    a, b = check_state(z0, "z0"), check_state(z1, "z1")
    if a.shape != b.shape:
        raise ShapeError(f"z0 and z1 must have one shape, got {tuple(a.shape)} and {tuple(b.shape)}.")
    dtype = torch.promote_types(a.dtype, b.dtype)
    a, b = a.to(dtype), b.to(device=a.device, dtype=dtype)
    try:
        w = torch.as_tensor(weights, dtype=torch.float64).to(a.device)
    except (TypeError, ValueError, RuntimeError):
        w = torch.tensor(math.nan)
    if w.ndim > 1 or not bool(((w >= 0) & (w <= 1)).all()):
        raise ValueError(
            f"weights must be a number or a 1-D tensor of numbers in [0, 1], got {weights!r}. Next: "
            f"torch.linspace(0, 1, 9)."
        )
    between = _spherical if method == "spherical" else _linear
    path = (
        torch.stack([_between(a, b, float(value), between) for value in w.reshape(-1)]) if w.numel() else None
    )
    if path is None:
        return a.new_empty(0, *a.shape)
    return path if w.ndim else path[0]


def _between(a: Tensor, b: Tensor, w: float, method: Callable[[Tensor, Tensor, float], Tensor]) -> Tensor:
    """The ends as they are, and what lies between in float64."""
    if w in (0.0, 1.0):
        return a if w == 0.0 else b
    return method(a.double(), b.double(), w).to(a.dtype)


def _linear(a: Tensor, b: Tensor, w: float) -> Tensor:
    return (1 - w) * a + w * b


def _spherical(a: Tensor, b: Tensor, w: float) -> Tensor:
    na, nb = _norm(a), _norm(b)
    u = a / torch.where(na > 0, na, 1.0)
    v = b / torch.where(nb > 0, nb, 1.0)
    # Kahan: 2 atan2(|u - v|, |u + v|) is accurate at every angle.
    angle = 2 * torch.atan2(_norm(u - v), _norm(u + v))
    one = (na > 0) & (nb > 0)
    opposite = (one & (angle > math.pi - 1e-6)).reshape(-1)
    if bool(opposite.any()):
        raise ValueError(
            f"z0 and z1 are opposite in sample {int(opposite.nonzero()[0])}: every direction between them is "
            f"as good. Likely cause: z1 = -z0, or events of one element. Next: method='linear', or another "
            f"latent."
        )
    # sin(k a)/sin(a) = k sinc(k a)/sinc(a), finite as a -> 0.
    whole = torch.sinc(angle / math.pi)
    mixed = sum(
        k * torch.sinc(k * angle / math.pi) / whole * direction for k, direction in ((1 - w, u), (w, v))
    )
    length = (1 - w) * na + w * nb
    return length * torch.where(one, mixed, u + v)


def _norm(z: Tensor) -> Tensor:
    """Euclidean norm of each sample, (B, 1, ..., 1)."""
    return over_event(fold((z * z).reshape(len(z), math.prod(z.shape[1:]))).sqrt(), z)
