"""The checks at the door of `solve`: each argument once, before anything runs."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from sdekit.errors import CapabilityError, DirectionError, check_count
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
    "between",
    "check_event",
    "check_noise",
    "check_order",
    "check_span",
    "check_system",
    "check_tolerances",
    "fixed_grid",
    "match_solver",
    "save_times",
]

DEFAULT_STEPS = 1000
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


def check_span(system: Any, span: Any) -> Floats:
    """(t0, t1), or all nodes of a grid, as float64. Raises ValueError or DirectionError."""
    if isinstance(span, (str, bytes)) or not hasattr(span, "__len__"):
        raise ValueError(
            f"span must be a pair (t0, t1), or a 1-D sequence of all the nodes, got {span!r}. "
            f"Next: span=(0.0, {span if isinstance(span, (int, float)) else 1.0})."
        )
    if isinstance(span, Tensor):
        span = span.detach().cpu()
    try:
        ts = np.asarray(
            [float(t) for t in span] if isinstance(span, (list, tuple)) else span, dtype=np.float64
        )
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"span must be a pair of times (t0, t1), got {type(span).__name__} {span!r}."
        ) from error
    if ts.ndim != 1 or ts.size < 2:
        raise ValueError(
            f"span must be a pair (t0, t1), or a 1-D sequence of all the nodes, got shape {ts.shape}. "
            f"Likely cause: x0 and span swapped. Next: solve(system, x0, span)."
        )
    if not np.isfinite(ts).all():
        raise ValueError(f"span must be finite, got {ts.tolist()}.")
    t0, t1 = ts[0], ts[-1]
    if t0 == t1:
        raise ValueError(f"span ({t0:g}, {t1:g}) is empty: t0 and t1 must differ.")
    if not (np.diff(ts) * np.sign(t1 - t0) > 0).all():
        raise ValueError("the nodes in span must be strictly monotone from t0 to t1.")
    backwards = bool(getattr(system, "runs_backward", False))
    if isinstance(system, SDE) and not backwards and t1 < t0:
        raise DirectionError(
            f"{type(system).__name__} is a forward SDE and cannot be solved from t = {t0:g} down to "
            f"{t1:g}: its noise does not run backwards. Next: reverse(process, score) for the SDE with the "
            f"same marginals in decreasing t, probability_flow(process, score) for the ODE, or "
            f"span=({t1:g}, {t0:g})."
        )
    if backwards and t1 > t0:
        raise DirectionError(
            f"reverse(...) runs from noise to data, t decreasing, got span ({t0:g}, {t1:g}). "
            f"Next: span=({t1:g}, {t0:g}), or the process itself for forward."
        )
    process = getattr(system, "process", system)
    low, high = getattr(process, "domain", (min(0.0, system.t_min), system.t_max))
    slack = 1e-6 * (high if math.isfinite(high) else 1.0)
    plain = isinstance(system, ODE) and process is system  # dx/dt = f(x, t) may use any times
    if not plain and (ts.min() < low - slack or ts.max() > high + slack):
        other = f", or SDE(..., t_min={ts.min():g})" if type(process) is SDE and ts.min() < low else ""
        raise ValueError(
            f"span ({t0:g}, {t1:g}) leaves the times at which {process!r} holds, [{low:g}, {high:g}]. Likely "
            f"cause: a negative or overshooting end, or a step index where a time is meant. Next: a span "
            f"within them{other}."
        )
    return ts


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
    able = names_for(system)
    if solver.kind == "ode" and (twin := named(name, "sde")) is not None:
        solver = twin
    if solver.kind == "ode":
        raise CapabilityError(
            f"solver {name!r} solves ODEs only, and {type(system).__name__} has noise. Next: one of {able}, "
            f"or probability_flow(process, score) for the ODE with the same marginals."
        )
    both = system.noise_type == "additive"  # Ito and Stratonovich forms are the same
    if system.sde_type not in solver.sde_types and not both:
        form = solver.sde_types[0]
        raise CapabilityError(
            f"solver {name!r} is for {' and '.join(solver.sde_types)} equations, got sde_type="
            f"{system.sde_type!r}: it would converge to another process. Next: one of {able or 'none yet'}, "
            f"or its {form.capitalize()} form: SDE(p.{form}_drift, p.diffusion, noise_type=p.noise_type, "
            f"noise_dim=p.noise_dim, sde_type={form!r})."
        )
    if system.noise_type not in solver.noise_types:
        raise CapabilityError(
            f"solver {name!r} is for {', '.join(solver.noise_types)} noise, got noise_type="
            f"{system.noise_type!r}: it would lose its order. Next: one of {able}"
            f"{_undeclared(solver, system, at)}."
        )
    return solver


def save_times(save_at: Any, t0: float, t1: float) -> tuple[Floats, float]:
    """The times asked for, float64, and the rounding with which they are known. Raises ValueError."""
    if save_at is None:
        return np.empty(0), 0.0
    if isinstance(save_at, Tensor):
        save_at = save_at.detach().cpu().numpy()
    try:
        given = np.asarray(save_at)
        ts = given.astype(np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"save_at must be a 1-D sequence of times, got {save_at!r}. Next: save_at=[{t1:g}]."
        ) from error
    if ts.ndim != 1 or ts.size == 0 or not np.isfinite(ts).all():
        raise ValueError(f"save_at must be a 1-D sequence of finite times, got {save_at!r}.")
    eps = float(np.finfo(given.dtype).eps) if given.dtype.kind == "f" else 2.2e-16
    slack = 4 * eps * max(abs(t0), abs(t1))
    low, high = min(t0, t1), max(t0, t1)
    if ts.min() < low - slack or ts.max() > high + slack:
        raise ValueError(
            f"save_at must lie within the span ({t0:g}, {t1:g}), got times from {ts.min():g} to {ts.max():g}."
        )
    if ts.size > 1 and not (np.diff(ts) * math.copysign(1.0, t1 - t0) > 0).all():
        raise ValueError(f"save_at must be strictly monotone in the direction of the run, {t0:g} to {t1:g}.")
    return np.clip(ts, low, high), slack


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


def fixed_grid(span: Floats, steps: Any, dt: Any, save: Floats, slack: float) -> Floats:
    """The nodes of a fixed-step run: the span cut into steps, and the saved times among them.

    A saved time within rounding of a node is that node. Raises ValueError.
    """
    t0, t1, nodes = float(span[0]), float(span[-1]), span
    if steps is not None and dt is not None:
        raise ValueError(f"steps={steps} and dt={dt} were both given. Next: pass one of them.")
    if span.size > 2:
        if steps is not None or dt is not None:
            raise ValueError(
                f"span holds {span.size} nodes already. Next: drop steps and dt, or pass (t0, t1)."
            )
    elif dt is not None:
        length = float(dt)
        if not (length > 0 and math.isfinite(length)):
            raise ValueError(f"dt must be finite and > 0 in either direction of time, got {dt}.")
        exact = abs(t1 - t0) / length
        if exact > 1e9:
            raise ValueError(
                f"dt = {dt} cuts the span into {exact:.3g} steps, more than 1e9. Likely cause: dt in other "
                f"units than the span. Next: a larger dt, or an adaptive solver."
            )
        count = max(round(exact) if abs(exact - round(exact)) < 1e-9 * exact else math.ceil(exact), 1)
        nodes = t0 + math.copysign(length, t1 - t0) * np.arange(count + 1, dtype=np.float64)
        nodes[-1] = t1
    else:
        count = DEFAULT_STEPS if steps is None else check_count(steps, "steps")
        nodes = np.linspace(t0, t1, count + 1)
    if save.size:
        sign = math.copysign(1.0, t1 - t0)
        nodes = sign * np.sort(np.concatenate([nodes, save[between(nodes, save, slack)]]) * sign)
    return nodes.astype(np.float64)


def between(nodes: Floats, save: Floats, slack: float) -> NDArray[np.bool_]:
    """Which saved times are none of the nodes: farther from them than rounding."""
    sign = math.copysign(1.0, nodes[-1] - nodes[0])
    at = np.clip(np.searchsorted(nodes * sign, save * sign), 1, nodes.size - 1)
    width = np.abs(nodes[at] - nodes[at - 1])
    gap = np.minimum(np.abs(save - nodes[at]), np.abs(save - nodes[at - 1]))
    apart: NDArray[np.bool_] = gap > np.minimum(np.maximum(1e-9 * width, slack), 0.01 * width)
    return apart
