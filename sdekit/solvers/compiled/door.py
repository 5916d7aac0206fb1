"""Which back end runs a `solve`, without importing numba."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any, TypeAlias

import torch
from torch import Tensor

from sdekit.errors import CapabilityError, ShapeError, unknown_name
from sdekit.noise.source import Noise, Philox
from sdekit.solvers.base import Solver
from sdekit.solvers.compiled.system import CompiledSDE
from sdekit.solvers.compiled.trace import METHODS, claims_hold
from sdekit.solvers.door import check_noise
from sdekit.solvers.problem import Outcome, Problem

__all__ = ["BACKENDS", "Run", "check_compiled_noise", "check_start", "choose", "either", "obstacle"]

BACKENDS = ("auto", "eager", "numba")
Run: TypeAlias = Callable[[Problem], Outcome]


def choose(backend: str, system: Any, why_not: str | None) -> bool:
    """Whether numba runs it. Raises UnknownNameError; CapabilityError where it is asked for and cannot."""
    if backend not in BACKENDS:
        raise unknown_name("backend", backend, BACKENDS)
    if backend == "numba" and why_not is not None:
        raise CapabilityError(f"backend 'numba' cannot run this: {why_not}, or backend='eager'.")
    return backend != "eager" and why_not is None


def obstacle(
    system: Any,
    x: Tensor,
    solver: Solver,
    stepping: bool,
    source: Noise,
    gradient: bool,
    others: dict[str, Any],
) -> str | None:
    """What stands against a compiled run, and what to do, in words; None for nothing."""
    if not isinstance(system, CompiledSDE):
        return (
            f"{type(system).__name__} was not made by sdekit.compiled. Next: sdekit.compiled(drift, "
            f"diffusion, dim=...) with functions of numbers"
        )
    if solver.name not in METHODS:
        return f"it has no solver {solver.name!r}. Next: one of {', '.join(map(repr, METHODS))}"
    if stepping:
        return "it runs at fixed steps, and none were given. Next: steps= or dt="
    if type(source) is not Philox:
        name = type(source).__name__
        return f"its normals are Philox's, got noise={name}(...). Next: seed= or noise=Philox(seed)"
    if gradient:
        return "it keeps no graph for gradients. Next: x0.detach() and gradient=None"
    for name, value in others.items():
        if value is not None:
            return (
                f"whole paths run one after the other, so that {name}= cannot be served. Next: drop {name}="
            )
    if x.device.type != "cpu" or x.dtype not in (torch.float32, torch.float64):
        return f"it takes float32 and float64 on CPU, got {x.dtype} on {x.device}. Next: x0.cpu().float()"
    check_start(system, x)
    return None


def either(first: Run, second: Run) -> Run:
    """``first``, and ``second`` for functions that cannot be compiled.

    Raises what ``first`` does where neither can.
    """

    def run(problem: Problem) -> Outcome:
        try:
            return first(problem)
        except CapabilityError as refusal:
            try:
                return second(problem)
            except CapabilityError:
                raise refusal from None

    return run


def check_start(system: CompiledSDE, x: Tensor) -> None:
    """States are (B, dim), or (B,) with dim 1. Raises ShapeError."""
    if x.shape[1:] != (system.dim,) and not (system.dim == 1 and x.ndim == 1):
        raise ShapeError(
            f"x0 must have shape (B, {system.dim}){' or (B,)' if system.dim == 1 else ''} for an equation "
            f"with dim={system.dim}, got {tuple(x.shape)}. Next: reshape it, or compiled(..., "
            f"dim={prod(x.shape[1:])})."
        )


def check_compiled_noise(system: SDE, x: Tensor, t0: float) -> None:
    """`check_noise` at the first sample, where the functions take tensors. Raises as it does."""
    if len(x) == 0 or system._claims_checked:
        return
    if isinstance(system, CompiledSDE) and (system.noise_type == "general" or claims_hold(system)):
        system._claims_checked = True
    try:
        check_noise(system, x[:1], t0)
    except (CapabilityError, TypeError, RuntimeError):  # functions of numbers alone
        return
