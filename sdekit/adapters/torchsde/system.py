"""Equations between torchsde and here: `from_torchsde`, `to_torchsde`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from sdekit._typing import Number
from sdekit.errors import CapabilityError, ShapeError, unknown_name
from sdekit.sde.base import SDE
from sdekit.sde.contract import SDE_TYPES
from sdekit.sde.rows import as_time

__all__ = ["TorchSDE", "from_torchsde", "to_torchsde"]

OURS = {"diagonal": "diagonal", "scalar": "scalar", "additive": "commutative", "general": "general"}
"""torchsde's noise types -> those of `SDE`: additive noise through a matrix commutes."""

ROLES = {
    "drift": "f",
    "diffusion": "g",
    "diffusion_prod": "g_prod",
    "drift_and_diffusion": "f_and_g",
    "drift_and_diffusion_prod": "f_and_g_prod",
}


class TorchSDE(SDE):
    """dY = f(t, Y) dt + g(t, Y) dW of a torchsde object, as an `SDE`; made by `from_torchsde`.

    Where each sample has its own time, as with adaptive steps, f and g see one row at a time, through
    torch.vmap.
    """

    def __init__(
        self, sde: Any, noise_dim: int | None = None, names: Mapping[str, str] | None = None
    ) -> None:
        for attribute, known in (("noise_type", tuple(OURS)), ("sde_type", SDE_TYPES)):
            value = getattr(sde, attribute, None)
            if value not in known:
                raise unknown_name(f"{type(sde).__name__}.{attribute}", value, known)
        self.sde = sde
        self.promise = str(sde.noise_type)
        given = names or {}
        if unknown := set(given) - set(ROLES):
            raise unknown_name("role in names", min(unknown), tuple(ROLES))
        self._methods: dict[str, Callable[..., Any]] = {}
        for role, default in ROLES.items():
            if callable(method := getattr(sde, given.get(role, default), None)):
                self._methods[default] = method
        if not self._methods.keys() & {"f", "f_and_g", "f_and_g_prod"}:
            raise TypeError(
                f"{type(sde).__name__} has no drift. Next: a method f(t, y), or names={{'drift': ...}}."
            )
        if not self._methods.keys() & {"g", "f_and_g", "g_prod", "f_and_g_prod"}:
            raise TypeError(
                f"{type(sde).__name__} has no diffusion. Next: a method g(t, y), or "
                f"names={{'diffusion': ...}}."
            )
        super().__init__(noise_type=OURS[self.promise], sde_type=sde.sde_type, noise_dim=noise_dim)

    def drift(self, x: Tensor, t: Number) -> Tensor:
        """f(t, x), (B, d)."""
        return self._rows(self._f, x, as_time(t, x))

    def diffusion(self, x: Tensor, t: Number) -> Tensor:
        """g(t, x): (B, d) for diagonal and scalar noise, (B, d, m) otherwise."""
        return self._rows(self._g, x, as_time(t, x))

    def divergence_ggt(self, x: Tensor, t: Number) -> Tensor:
        """As `SDE.divergence_ggt`; 0 for additive noise."""
        return torch.zeros_like(x) if self.promise == "additive" else super().divergence_ggt(x, t)

    def correction(self, x: Tensor, t: Number) -> Tensor:
        """As `SDE.correction`; 0 for additive noise."""
        return torch.zeros_like(x) if self.promise == "additive" else super().correction(x, t)

    @staticmethod
    def _rows(fn: Callable[[Tensor, Tensor], Tensor], x: Tensor, t: Tensor) -> Tensor:
        if t.ndim == 0:
            return fn(t, x)
        out: Tensor = torch.vmap(lambda t, y: fn(t, y[None])[0])(t, x)
        return out

    def _f(self, t: Tensor, y: Tensor) -> Tensor:
        has = self._methods
        if "f" in has:
            out: Tensor = has["f"](t, y)
            return out
        pair = has["f_and_g"](t, y) if "f_and_g" in has else has["f_and_g_prod"](t, y, self._unit(y, 0))
        first: Tensor = pair[0]
        return first

    def _g(self, t: Tensor, y: Tensor) -> Tensor:
        has = self._methods
        if "g" in has or "f_and_g" in has:
            g: Tensor = has["g"](t, y) if "g" in has else has["f_and_g"](t, y)[1]
            if self.promise == "scalar" and g.ndim == y.ndim + 1:
                if g.shape[-1] != 1:
                    raise ShapeError(
                        f"scalar noise has one Brownian motion: g must return (B, d, 1), got "
                        f"{tuple(g.shape)}. Next: noise_type='general'."
                    )
                return g[..., 0]
            return g

        def product(v: Tensor) -> Tensor:
            out: Tensor = has["g_prod"](t, y, v) if "g_prod" in has else has["f_and_g_prod"](t, y, v)[1]
            return out

        if self.promise == "diagonal":
            return product(torch.ones_like(y))
        if self.promise == "scalar":
            return product(torch.ones_like(y[:, :1]))
        return torch.stack([product(self._unit(y, k)) for k in range(self.noise_shape(y)[1])], dim=-1)

    def _unit(self, y: Tensor, k: int) -> Tensor:
        unit = torch.zeros(self.noise_shape(y), dtype=y.dtype, device=y.device)
        unit[:, k] = 1.0
        return unit

    def __repr__(self) -> str:
        return f"TorchSDE({type(self.sde).__name__}, {self.promise!r} noise, {self.sde_type!r})"


def from_torchsde(
    sde: Any,
    y0: Tensor | None = None,
    *,
    noise_dim: int | None = None,
    names: Mapping[str, str] | None = None,
    t0: float = 0.0,
) -> TorchSDE:
    """The `SDE` of an object that torchsde solves: dY = f(t, Y) dt + g(t, Y) dW.

    y0: a state (B, d), from which the number m of Brownian motions is read, at t0, for additive and general
    noise; or give it as ``noise_dim``, as where the object has only products g_prod. names: other names of
    the methods, {"drift": ..., "diffusion": ...}, as in torchsde. torchsde's "additive", a matrix that does
    not depend on the state, becomes "commutative", and is held to it; other noise types keep their names.

    Raises UnknownNameError for other noise or equation types, TypeError for missing methods, ValueError where
    m cannot be known.
    """
    m = noise_dim
    if m is None and getattr(sde, "noise_type", None) in ("additive", "general"):
        whole = TorchSDE(sde, 1, names)
        if y0 is None or not whole._methods.keys() & {"g", "f_and_g"}:
            raise ValueError(
                f"the number of Brownian motions of {type(sde).__name__} is not known. Next: "
                f"from_torchsde(sde, y0), which reads it from g(t0, y0), or noise_dim=m."
            )
        with torch.no_grad():
            g = whole._g(as_time(t0, y0), y0)
        if g.ndim != 3:
            raise ShapeError(
                f"g must return (B, d, m) for {sde.noise_type!r} noise, got {tuple(g.shape)}. Likely cause: "
                f"noise_type='diagonal' is meant."
            )
        m = g.shape[-1]
    return TorchSDE(sde, m, names)


class _Exported(torch.nn.Module):
    """What `to_torchsde` returns."""

    def __init__(self, sde: SDE) -> None:
        super().__init__()
        self._sde = sde
        self.sde_type = sde.sde_type
        kinds = {"additive": "diagonal", "diagonal": "diagonal", "scalar": "scalar"}
        self.noise_type = kinds.get(sde.noise_type, "general")

    def f(self, t: Tensor, y: Tensor) -> Tensor:
        return self._sde.drift(y, t)

    def g(self, t: Tensor, y: Tensor) -> Tensor:
        g = self._sde.noise_field(y, t)
        return g[..., None] if self.noise_type == "scalar" else g


def to_torchsde(sde: SDE) -> torch.nn.Module:
    """An object that torchsde.sdeint takes: f(t, y), g(t, y), noise_type, sde_type; states (B, d).

    Additive and diagonal noise become "diagonal", commutative noise "general". Raises CapabilityError for an
    equation that runs backward, since torchsde's time rises: solve it in s = t_max - t.
    """
    if sde.runs_backward:
        raise CapabilityError(
            "torchsde runs with increasing time, and this equation with decreasing. Next: sdekit.solve."
        )
    return _Exported(sde)
