"""What a system promises, checked at the door: names, callables, spans, and what its noise type claims."""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Iterator
from contextvars import ContextVar
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sdekit._typing import Number
from sdekit.errors import check_argument_order, unknown_name
from sdekit.sde.probes import Finding, commutator, dependence, mixing, perturbed

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
    "more_structure",
    "unprobed",
]

NOISE_TYPES = ("additive", "scalar", "diagonal", "commutative", "general")
SDE_TYPES = ("ito", "stratonovich")

_PROBING: ContextVar[bool] = ContextVar("probing", default=True)

_PROMISES = {
    "additive": (
        "a diffusion independent of the state",
        "noise_type='diagonal' if G_i depends on x_i alone, else 'general'",
    ),
    "diagonal": (
        "that G_i depends on x_i alone",
        "noise_type='general', noise_dim=D and torch.diag_embed(G)",
    ),
    "commutative": ("that the columns of G commute", "noise_type='general', and a solver that takes it"),
}


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
    """Hold "additive", "diagonal" and "commutative" noise to its promise, once for each system, at x and at a
    second point near it (`sdekit.sde.probes`).

    Raises ValueError, which names the largest entry that should be zero. Nothing is looked at while tracing,
    mapping or under `unprobed`, nor, at the second point, where the diffusion fails or is not finite.
    """
    if sde._claims_checked or torch.compiler.is_compiling() or x.numel() == 0 or not _PROBING.get():
        return
    promise = getattr(sde, "promise", sde.noise_type)
    if promise in ("scalar", "general") or torch._C._functorch.is_functorch_wrapped_tensor(x):
        return
    with torch.no_grad():
        found = _broken(sde, promise, x.detach(), t)
        if found is None:
            try:
                found = _broken(sde, promise, perturbed(x.detach()), t)
            except Exception:  # outside the domain of the equation: the point is ours, not the user's
                found = None
    if found is not None:
        raise ValueError(
            f"noise_type {promise!r} promises {_PROMISES[promise][0]}, but {found.where}. Next: "
            f"{_PROMISES[promise][1]}."
        )
    object.__setattr__(sde, "_claims_checked", True)


def _broken(sde: SDE, promise: str, x: Tensor, t: Number) -> Finding | None:
    if promise == "additive":
        return dependence(lambda y: sde.noise_field(y, t), x)
    if promise == "diagonal":
        return mixing(lambda y: sde.noise_field(y, t), x)
    return commutator(lambda y: sde._matrix_field(y, t), x)


@contextlib.contextmanager
def unprobed() -> Iterator[None]:
    """Within it, claims about noise are taken on trust."""
    token = _PROBING.set(False)
    try:
        yield
    finally:
        _PROBING.reset(token)


def more_structure(sde: SDE, x: Tensor, t: Number) -> tuple[str, str] | None:
    """A noise type narrower than the declared one that the diffusion has at x and near it, with what to
    declare in words; None where there is none, or where torch.func cannot differentiate it.
    """
    try:
        with torch.no_grad():
            return _more_structure(sde, (x.detach(), perturbed(x.detach())), t)
    except Exception:
        return None


def _more_structure(sde: SDE, points: tuple[Tensor, ...], t: Number) -> tuple[str, str] | None:
    def field(y: Tensor) -> Tensor:
        return sde.noise_field(y, t)

    if sde.noise_type == "diagonal":
        if any(dependence(field, x) is not None for x in points):
            return None
        return "additive", "noise_type='additive'"
    if sde.noise_type not in ("commutative", "general"):
        return None
    if any(commutator(lambda y: sde._matrix_field(y, t), x) is not None for x in points):
        return None
    matrices = [sde._matrix_field(x, t) for x in points]
    if all(
        g.shape[1] == g.shape[2] and torch.equal(g, torch.diag_embed(_diagonal(g))) for g in matrices
    ) and not any(mixing(lambda y: _diagonal(sde._matrix_field(y, t)).reshape(y.shape), x) for x in points):
        return "diagonal", "noise_type='diagonal' with the diagonal of G, the shape of x"
    return None if sde.noise_type == "commutative" else ("commutative", "noise_type='commutative'")


def _diagonal(g: Tensor) -> Tensor:
    return torch.diagonal(g, dim1=-2, dim2=-1)
