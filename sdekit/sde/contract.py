"""What a system promises, checked at the door: names, callables, spans, and what its noise type claims."""

from __future__ import annotations

import functools
import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sdekit._typing import Number
from sdekit.errors import check_argument_order, unknown_name
from sdekit.sde import calculus

if TYPE_CHECKING:
    from sdekit.sde.base import SDE

__all__ = [
    "NOISE_TYPES",
    "SDE_TYPES",
    "check_callable",
    "check_claims",
    "check_methods",
    "check_name",
    "check_span",
]

NOISE_TYPES = ("additive", "scalar", "diagonal", "commutative", "general")
SDE_TYPES = ("ito", "stratonovich")


def check_name(kind: str, name: str, known: tuple[str, ...]) -> None:
    if name not in known:
        raise unknown_name(kind, name, known)


def check_methods(cls: type, names: tuple[str, ...]) -> None:
    """The argument order of methods that a subclass defines, self aside. Raises ArgumentOrderError."""
    for name in names:
        method = cls.__dict__.get(name)
        if callable(method) and not isinstance(method, (staticmethod, classmethod)):
            check_argument_order(functools.partial(method, None), f"{cls.__name__}.{name}")


def check_callable(fn: object, role: str) -> None:
    if not callable(fn):
        raise TypeError(
            f"{role} must be a callable (x, t), got {type(fn).__name__}. Next: for a constant, "
            f"lambda x, t: torch.full_like(x, value)."
        )
    check_argument_order(fn, role)


def check_span(t_min: float, t_max: float) -> None:
    if not (math.isfinite(t_min) and t_min < t_max):
        raise ValueError(
            f"times must satisfy t_min < t_max with t_min finite, got t_min={t_min}, t_max={t_max}."
        )


def check_claims(sde: SDE, x: Tensor, t: Number) -> None:
    """Hold "additive" and "diagonal" noise to its promise, once for each system, by two pullbacks at x.

    Raises ValueError. Commutativity is taken on trust. Nothing is looked at while tracing or mapping.
    """
    if sde._claims_checked or sde.noise_type not in ("additive", "diagonal"):
        return
    if torch.compiler.is_compiling() or torch._C._functorch.is_functorch_wrapped_tensor(x):
        return
    if sde.noise_type == "additive":
        if calculus.depends_on_state(lambda y: sde.noise_field(y, t), x.detach()):
            raise ValueError(
                "noise_type 'additive' promises a diffusion independent of the state, but its derivative in "
                "x is not zero. Next: noise_type='diagonal' if G_i depends on x_i alone, else 'general'."
            )
    elif calculus.mixes_elements(lambda y: sde.noise_field(y, t), x.detach()):
        raise ValueError(
            "noise_type 'diagonal' promises that G_i depends on x_i alone, but an element of the diffusion "
            "depends on other elements. Next: noise_type='general', noise_dim=D and torch.diag_embed(G)."
        )
    object.__setattr__(sde, "_claims_checked", True)
