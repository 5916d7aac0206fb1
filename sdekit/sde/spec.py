"""Processes as data: their parameters, JSON specs, representation, and the checks of constructors."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from sdekit.errors import check_positive, unknown_name
from sdekit.sde.base import SDE

if TYPE_CHECKING:
    from sdekit.sde.gaussian import GaussianDiffusion

__all__ = [
    "check_ordered",
    "check_t_min",
    "describe",
    "freeze",
    "from_spec",
    "parameters",
    "register",
    "spec",
]

_REGISTRY: dict[str, type[GaussianDiffusion]] = {}


def register(cls: type[GaussianDiffusion]) -> None:
    """Make a class known to `from_spec`. A later class may replace a user's, never one of sdekit."""
    known = _REGISTRY.get(cls.__name__)
    if not cls.__name__.startswith("_") and (known is None or not known.__module__.startswith("sdekit.")):
        _REGISTRY[cls.__name__] = cls


def parameters(process: Any) -> list[dataclasses.Field[Any]]:
    """The dataclass fields that the constructor takes."""
    fields = dataclasses.fields(process) if dataclasses.is_dataclass(process) else ()
    return [f for f in fields if f.init]


def spec(process: GaussianDiffusion) -> dict[str, Any]:
    """{"name": class, parameter: value, ...}, JSON-able. Raises TypeError when that cannot be known."""
    cls = type(process)
    maker = next(c for c in cls.__mro__ if "__init__" in c.__dict__)
    if maker is not SDE and "__dataclass_fields__" not in maker.__dict__:
        raise TypeError(
            f"{cls.__name__} has a constructor of its own, so its parameters are not known. Next: make it a "
            f"frozen dataclass whose fields are its parameters."
        )
    if _REGISTRY.get(cls.__name__) is not cls:
        raise TypeError(f"another process is named {cls.__name__!r}. Next: rename this one.")
    names = ["t_min", "t_max"] if maker is SDE else [f.name for f in parameters(process)]
    values = {name: getattr(process, name) for name in names}
    return {"name": cls.__name__} | {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}


def from_spec(spec: Mapping[str, Any]) -> GaussianDiffusion:
    """The process that `GaussianDiffusion.spec` describes.

    Raises UnknownNameError for a name no class has, ValueError for parameters it does not take.
    """
    arguments = dict(spec)
    name = arguments.pop("name", None)
    if name not in _REGISTRY:
        raise unknown_name("process", name, _REGISTRY)
    try:
        return _REGISTRY[name](**arguments)
    except TypeError as error:
        raise ValueError(f"the spec of {name!r} does not fit its class: {error}.") from error


def describe(process: GaussianDiffusion) -> str:
    """The constructor call; keyword-only parameters only where they are not the default."""
    parts = [
        f"{f.name}={getattr(process, f.name)!r}"
        for f in parameters(process)
        if f.repr and not (f.kw_only and getattr(process, f.name) == f.default)
    ]
    return f"{type(process).__name__}({', '.join(parts)})"


def freeze(process: GaussianDiffusion, **values: Any) -> None:
    """Set attributes of a frozen dataclass while it is made."""
    for name, value in values.items():
        object.__setattr__(process, name, value)


def check_t_min(process: GaussianDiffusion) -> None:
    """0 <= t_min < t_max. Raises ValueError."""
    t_min = float(process.t_min)
    if not 0 <= t_min < process.t_max:
        raise ValueError(f"t_min must lie in [0, t_max = {process.t_max:g}), got {process.t_min}.")
    freeze(process, t_min=t_min)


def check_ordered(process: GaussianDiffusion, low: str, high: str, default: str) -> None:
    """Two parameters, finite, 0 < low < high. Raises ValueError."""
    a, b = (check_positive(getattr(process, name), name) for name in (low, high))
    if not a < b:
        raise ValueError(
            f"{low} must be smaller than {high}, got {low}={a:g}, {high}={b:g}. Likely cause: swapped "
            f"arguments. Next: {type(process).__name__}({default})."
        )
    freeze(process, **{low: a, high: b})
