"""The two kinds of system: SDE (drift and diffusion) and ODE (drift only)."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from sdekit._typing import Field, Number
from sdekit.errors import ShapeError, check_count, check_output
from sdekit.sde import calculus
from sdekit.sde.contract import (
    NOISE_TYPES,
    SDE_TYPES,
    check_callable,
    check_claims,
    check_methods,
    check_name,
    check_span,
)
from sdekit.sde.rows import as_time, flat, fold

__all__ = ["ODE", "SDE"]


class SDE:
    """dX = drift(X, t) dt + diffusion(X, t) dW.

    Give both as callables, or subclass and define ``drift(x, t)`` and ``diffusion(x, t)``; the class
    attributes below are then the defaults. x: (B, *event), floating; t: tensor () or (B,) of x's dtype
    and device. The drift returns the shape of x. The diffusion and its Brownian increment dW, by
    ``noise_type``, with D the number of elements of an event:

        additive     G independent of x;  x's shape, or what broadcasts to it    dW: x's shape
        diagonal     G_i a function of x_i;  the same shapes                     dW: x's shape
        scalar       one Brownian motion drives all elements;  the same shapes   dW: (B, 1)
        commutative  (B, *event, m) with sum_j G_jk d_j G_il symmetric in k, l   dW: (B, m)
        general      (B, *event, m)                                              dW: (B, m)

    ``sde_type`` is "ito" or "stratonovich"; ``noise_dim`` is m, needed by the last two noise types;
    ``t_min``, ``t_max`` bound the times at which the equation holds. ``runs_backward`` is True for an
    equation that is solved with decreasing t (see `reverse`).

    Raises ArgumentOrderError for callables that take (t, x), UnknownNameError for other types of noise
    or calculus, ValueError for a missing noise_dim or an empty span, TypeError for a missing part.
    """

    noise_type: str = "diagonal"
    sde_type: str = "ito"
    noise_dim: int | None = None
    t_min: float = 0.0
    t_max: float = math.inf
    runs_backward: bool = False
    _claims_checked: bool = False

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        check_methods(cls, ("drift", "diffusion", "divergence_ggt"))
        for kind, known in (("noise_type", NOISE_TYPES), ("sde_type", SDE_TYPES)):
            if isinstance(value := cls.__dict__.get(kind), str):
                check_name(kind, value, known)

    def __init__(
        self,
        drift: Field | None = None,
        diffusion: Field | None = None,
        *,
        noise_type: str | None = None,
        sde_type: str | None = None,
        noise_dim: int | None = None,
        t_min: float | None = None,
        t_max: float | None = None,
    ) -> None:
        for role, fn in (("drift", drift), ("diffusion", diffusion)):
            if fn is not None:
                check_callable(fn, role)
            elif getattr(type(self), role) is getattr(SDE, role):
                raise TypeError(
                    f"an SDE needs a drift and a diffusion, and {role} is missing. Next: "
                    f"SDE(drift, diffusion), or a subclass that defines {role}(x, t)."
                )
        self._drift, self._diffusion = drift, diffusion
        given = {
            "noise_type": noise_type,
            "sde_type": sde_type,
            "noise_dim": noise_dim,
            "t_min": t_min,
            "t_max": t_max,
        }
        for name, value in given.items():
            if value is not None:
                setattr(self, name, value)
        check_name("noise_type", self.noise_type, NOISE_TYPES)
        check_name("sde_type", self.sde_type, SDE_TYPES)
        check_span(self.t_min, self.t_max)
        if self._is_matrix and self.noise_dim is None:
            raise ValueError(
                f"noise_type {self.noise_type!r} needs noise_dim, the number m of Brownian motions (the last "
                f"axis of the diffusion). Next: SDE(..., noise_type={self.noise_type!r}, noise_dim=m)."
            )
        if self.noise_dim is not None:
            check_count(self.noise_dim, "noise_dim")

    # The equation.

    def drift(self, x: Tensor, t: Number) -> Tensor:
        """Drift at (x, t), (B, *event)."""
        if getattr(self, "_drift", None) is None:
            raise NotImplementedError(f"{type(self).__name__} defines no drift(x, t).")
        assert self._drift is not None
        return self._drift(x, as_time(t, x))

    def diffusion(self, x: Tensor, t: Number) -> Tensor:
        """Diffusion at (x, t); the shape depends on the noise type."""
        if getattr(self, "_diffusion", None) is None:
            raise NotImplementedError(f"{type(self).__name__} defines no diffusion(x, t).")
        assert self._diffusion is not None
        return self._diffusion(x, as_time(t, x))

    @property
    def _is_matrix(self) -> bool:
        return self.noise_type in ("commutative", "general")

    def noise_field(self, x: Tensor, t: Number) -> Tensor:
        """The diffusion in full: (B, *event), or (B, *event, m) for matrix noise.

        Raises ShapeError when `diffusion` returns anything that is not, and does not broadcast to, that.
        """
        g = torch.as_tensor(self.diffusion(x, t), dtype=x.dtype, device=x.device)
        shape = (*x.shape, self.noise_dim) if self._is_matrix else tuple(x.shape)
        fits = g.shape == shape if self._is_matrix else g.ndim <= x.ndim
        if fits and g.shape != shape:
            try:
                g = g.expand(shape)
            except RuntimeError:
                fits = False
        if not fits:
            also = "" if self._is_matrix else " or what broadcasts to it"
            raise ShapeError(
                f"diffusion must return shape {shape}{also}, the rule for noise_type "
                f"{self.noise_type!r}, got {tuple(g.shape)} for x of shape {tuple(x.shape)}. Likely cause: "
                f"another noise type is meant (a matrix (B, *event, m) is 'general'), or noise_dim is wrong."
            )
        return g

    def noise_shape(self, x: Tensor) -> tuple[int, ...]:
        """Shape of the Brownian increment of x: x's shape, (B, 1) for scalar, (B, m) for matrix noise."""
        if self.noise_type == "scalar":
            return (x.shape[0], 1)
        if self._is_matrix:
            return (x.shape[0], check_count(self.noise_dim, f"{type(self).__name__}.noise_dim"))
        return tuple(x.shape)

    def apply_noise(self, g: Tensor, dw: Tensor) -> Tensor:
        """G dW, (B, *event), from ``g`` = diffusion(x, t) and ``dw`` of `noise_shape`.

        Row by row the same bits whatever the batch.
        """
        if self.noise_type == "scalar":
            return g * dw.reshape(-1, *(1,) * (max(g.ndim, 1) - 1))
        if self._is_matrix:
            return fold(g * dw.reshape(dw.shape[0], *(1,) * (g.ndim - 2), dw.shape[1]))
        return g * dw

    def apply_ggt(self, g: Tensor, v: Tensor) -> Tensor:
        """G G^T v, (B, *event), from ``g`` = noise_field(x, t) and ``v`` of x's shape."""
        if self.noise_type == "scalar":
            return self.apply_noise(g, fold(flat(g * v))[:, None])
        if self._is_matrix:
            product = (g * v[..., None]).movedim(-1, 1)
            return self.apply_noise(g, fold(product.flatten(2) if v.ndim > 1 else product[..., None]))
        return g * g * v

    # Its derivatives.

    def _matrix_field(self, x: Tensor, t: Number) -> Tensor:
        g = self.noise_field(x, t)
        return g.reshape(x.shape[0], math.prod(x.shape[1:]), g.shape[-1] if self._is_matrix else 1)

    def divergence_ggt(self, x: Tensor, t: Number) -> Tensor:
        """(div G G^T)_i = sum_j d_j (G G^T)_ij, (B, *event).

        The default is zero for additive noise and uses torch.func otherwise: one forward product for
        diagonal noise, D for the other types. Override it where a closed form exists.

        Raises ValueError when the diffusion does not keep what its noise type promises.
        """
        check_claims(self, x, t)
        if self.noise_type == "additive":
            return torch.zeros_like(x)
        if self.noise_type == "diagonal":
            return calculus.divergence_elementwise(lambda y: self.noise_field(y, t), x)
        return calculus.divergence_matrix(lambda y: self._matrix_field(y, t), x)

    def correction(self, x: Tensor, t: Number) -> Tensor:
        """c_i = 1/2 sum_jk G_jk d_j G_ik, the Ito drift minus the Stratonovich drift, (B, *event)."""
        check_claims(self, x, t)
        if self.noise_type == "additive":
            return torch.zeros_like(x)
        if self.noise_type == "diagonal":
            return calculus.correction_elementwise(lambda y: self.noise_field(y, t), x)
        return calculus.correction_matrix(lambda y: self._matrix_field(y, t), x)

    def ito_drift(self, x: Tensor, t: Number) -> Tensor:
        """Drift of the Ito form, (B, *event): what Euler-Maruyama needs, whatever the ``sde_type``."""
        if self.sde_type == "ito" or self.noise_type == "additive":
            return self.drift(x, t)
        c = self.correction(x, t)
        return self.drift(x, t) - c if self.runs_backward else self.drift(x, t) + c

    def stratonovich_drift(self, x: Tensor, t: Number) -> Tensor:
        """Drift of the Stratonovich form, (B, *event), whatever the ``sde_type``."""
        if self.sde_type == "stratonovich" or self.noise_type == "additive":
            return self.drift(x, t)
        c = self.correction(x, t)
        return self.drift(x, t) + c if self.runs_backward else self.drift(x, t) - c

    # Checks at the door.

    def validate(self, x: Tensor, t: Number) -> None:
        """Evaluate both fields once at (x, t) and hold them to the contract of the noise type.

        Raises ShapeError for a wrong shape, ValueError for "additive" noise that depends on the state,
        "diagonal" noise whose elements mix and "commutative" noise that does not commute.
        """
        check_output(self.drift(x, t), x, "drift")
        self.noise_field(x, t)
        check_claims(self, x, t)

    def __repr__(self) -> str:
        m = "" if self.noise_dim is None else f", noise_dim={self.noise_dim}"
        return f"{type(self).__name__}(noise_type={self.noise_type!r}, sde_type={self.sde_type!r}{m})"


class ODE:
    """dx/dt = velocity(x, t).

    Give the velocity as a callable, or subclass and define ``drift(x, t)``. Shapes as for `SDE`.
    Runs in either direction of time.

    Raises ArgumentOrderError for a callable that takes (t, x), TypeError when there is none.
    """

    t_min: float = 0.0
    t_max: float = math.inf

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        check_methods(cls, ("drift",))

    def __init__(
        self, velocity: Field | None = None, *, t_min: float | None = None, t_max: float | None = None
    ) -> None:
        if velocity is not None:
            check_callable(velocity, "velocity")
        elif type(self).drift is ODE.drift:
            raise TypeError(
                "an ODE needs its velocity. Next: ODE(velocity), or a subclass that defines drift(x, t)."
            )
        self._velocity = velocity
        self.t_min = self.t_min if t_min is None else t_min
        self.t_max = self.t_max if t_max is None else t_max
        check_span(self.t_min, self.t_max)

    def drift(self, x: Tensor, t: Number) -> Tensor:
        """dx/dt at (x, t), (B, *event)."""
        if getattr(self, "_velocity", None) is None:
            raise NotImplementedError(f"{type(self).__name__} defines no drift(x, t).")
        assert self._velocity is not None
        return self._velocity(x, as_time(t, x))

    def validate(self, x: Tensor, t: Number) -> None:
        """Evaluate the velocity once at (x, t). Raises ShapeError for a wrong shape."""
        check_output(self.drift(x, t), x, "velocity")

    def __repr__(self) -> str:
        return f"{type(self).__name__}(t_min={self.t_min:g}, t_max={self.t_max:g})"
