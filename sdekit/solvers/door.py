"""The checks at the door of `solve`: each argument once, before anything runs."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from sdekit.errors import CapabilityError
from sdekit.noise.brownian import BrownianTree
from sdekit.noise.source import Noise, as_noise
from sdekit.sde.base import ODE, SDE
from sdekit.sde.contract import check_claims, more_structure
from sdekit.solvers.base import Solver, named, names_for
from sdekit.solvers.runge_kutta import Euler

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

__all__ = [
    "as_source",
    "check_event",
    "check_noise",
    "check_order",
    "check_system",
    "check_tolerances",
    "match_solver",
]

DEFAULT_TOLERANCE = {"ode": 1e-5, "sde": 1e-3}


def check_system(system: object) -> None:
    """An SDE (forward or reverse) or an ODE. Raises TypeError, saying how to make one."""
    if isinstance(system, (SDE, ODE)):
        return
    if isinstance(system, type):
        hint = f"the class itself was passed. Next: call it, {system.__name__}(...)"
    elif hasattr(system, "process") and hasattr(system, "score"):
        hint = (
            "a model was passed. Next: reverse(model.process, model) for its SDE, or "
            "probability_flow(model.process, model) for its ODE"
        )
    elif callable(system):
        hint = "a plain function was passed. Next: ODE(fn) for dx/dt = fn(x, t), or SDE(drift, diffusion)"
    else:
        hint = "the arguments are in another order. Next: solve(system, x0, span)"
    raise TypeError(f"system must be an SDE or an ODE, got {type(system).__name__}. Likely cause: {hint}.")


def check_order(x0: object, span: object) -> None:
    """Refuse solve(system, span, x0). Raises ValueError."""
    if isinstance(x0, (tuple, list)) and isinstance(span, (Tensor, np.ndarray)) and span.ndim > 1:
        raise ValueError(
            f"x0 must be a tensor (B, *event) and span a pair (t0, t1), got x0={x0!r} and a span of shape "
            f"{tuple(span.shape)}. Likely cause: they are swapped. Next: solve(system, x0, span)."
        )


def check_noise(system: SDE, x: Tensor, t0: float) -> None:
    """One diffusion at (x, t0), of the right shape, and as its noise type promises.

    Raises ShapeError; ValueError for "additive" noise that depends on the state, "diagonal" noise whose
    elements mix and "commutative" noise that does not commute. A diffusion that torch.func cannot
    differentiate is taken on trust.
    """
    t = torch.as_tensor(t0, dtype=x.dtype, device=x.device)
    system.noise_field(x, t)
    try:
        check_claims(system, x, t)
    except RuntimeError:  # written in numpy, compiled, ...
        return


def _undeclared(solver: Solver, system: SDE, at: tuple[Tensor, float] | None) -> str:
    """What the noise could be declared as for this solver, in words, "" if nothing."""
    if at is None:
        return ""
    x, t0 = at
    found = more_structure(system, x, torch.as_tensor(t0, dtype=x.dtype, device=x.device))
    if found is None or found[0] not in solver.noise_types:
        return ""
    return f"; or, since near x0 the noise is in fact {found[0]}, declare {found[1]}"


def match_solver(solver: Solver, system: Any, at: tuple[Tensor, float] | None = None) -> Solver:
    """The solver, if it can do this system; of two that share a name the one for its kind, and
    "euler-maruyama" on an ODE is Euler.

    Raises CapabilityError with the solvers that can; where the noise has the structure that the solver needs
    at ``at`` = (x0, t0), without declaring it, the message says so.
    """
    name = solver.name
    if isinstance(system, ODE):
        if solver.kind == "ode":
            return solver
        if name == "euler-maruyama":
            return Euler()
        if (twin := named(name, "ode")) is not None:
            return twin
        raise CapabilityError(
            f"solver {name!r} is for SDEs, and this system is an ODE. Next: one of {names_for(None)}."
        )
    if solver.kind == "ode" and (twin := named(name, "sde")) is not None:
        solver = twin
    if solver.kind == "ode":
        raise CapabilityError(
            f"solver {name!r} solves ODEs only, and {type(system).__name__} has noise. Next: one of "
            f"{names_for(system)}, or probability_flow(process, score) for the ODE with the same marginals."
        )
    both = system.noise_type == "additive"  # Ito and Stratonovich forms are the same
    if system.sde_type not in solver.sde_types and not both:
        form = solver.sde_types[0]
        raise CapabilityError(
            f"solver {name!r} is for {' and '.join(solver.sde_types)} equations, got sde_type="
            f"{system.sde_type!r}: it would converge to another process. Next: one of "
            f"{names_for(system)}, or its {form.capitalize()} form: SDE(p.{form}_drift, p.diffusion, "
            f"noise_type=p.noise_type, noise_dim=p.noise_dim, sde_type={form!r})."
        )
    if system.noise_type not in solver.noise_types:
        raise CapabilityError(
            f"solver {name!r} is for {', '.join(solver.noise_types)} noise, got noise_type="
            f"{system.noise_type!r}: it would lose its order. Next: one of {names_for(system)}"
            f"{_undeclared(solver, system, at)}."
        )
    return solver


def as_source(system: Any, stepping: bool, seed: int, noise: Any) -> Noise:
    """The noise of a run: Philox(seed) by default, BrownianTree(seed) where the steps of an SDE adapt.

    Raises TypeError for what is no `Noise`, ValueError for adaptive steps without a path.
    """
    if not stepping or not isinstance(system, SDE):
        return as_noise(seed, noise)
    source = BrownianTree(seed) if noise is None else as_noise(seed, noise)
    if isinstance(source, BrownianTree):
        return source
    raise ValueError(
        f"adaptive steps of an SDE need a path that can be read again after a rejected step, got "
        f"noise={type(source).__name__}(...): drawing anew would change the law. Next: noise="
        f"BrownianTree(seed) or seed=, or steps= for fixed ones."
    )


def check_event(solver: Solver, gradient: Any) -> None:
    """Events need the loops of this package. Raises ValueError."""
    if ":" in solver.name:
        raise ValueError(
            f"solver {solver.name!r} runs outside, and takes no event. Next: solver='rk45', or any name "
            f"without a prefix."
        )
    if gradient not in (None, "backprop", "checkpoint"):
        raise ValueError(
            "gradient='adjoint' solves back from t1, and cannot from an event. Next: gradient='checkpoint'."
        )


def check_tolerances(
    solver: Solver,
    stepping: bool,
    rtol: float | None,
    atol: float | None,
    dtype: torch.dtype,
    system: Any = None,
) -> tuple[float, float]:
    """(rtol, atol), with their defaults. Raises ValueError, also for an rtol that the dtype cannot reach."""
    if not stepping:
        if rtol is None and atol is None:
            return 0.0, 0.0
        able = names_for(system if isinstance(system, SDE) else None, adaptive=True)
        why = "runs at fixed steps " + ("here" if solver.adaptive else "and has no error estimate")
        raise ValueError(
            f"rtol={rtol} and atol={atol} have no effect: {solver.name!r} {why}. Next: drop them; or "
            f"solver={able}, without steps, dt and grid."
        )
    default = DEFAULT_TOLERANCE[solver.kind]
    relative = default if rtol is None else float(rtol)
    absolute = default if atol is None else float(atol)
    if not (0 <= relative < math.inf and 0 <= absolute < math.inf and relative + absolute > 0):
        raise ValueError(f"rtol and atol must be >= 0, finite and not both 0, got {rtol} and {atol}.")
    floor = 4 * torch.finfo(dtype).eps
    if 0 < relative < floor:
        raise ValueError(
            f"rtol={relative:g} is below the rounding of {dtype}, {floor:.1g}: no step would pass. Next: "
            f"x0.{'double' if dtype == torch.float32 else 'float'}(), or a larger rtol."
        )
    return relative, absolute
