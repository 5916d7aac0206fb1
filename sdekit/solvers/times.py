"""The times of a run, checked: its span, the nodes of its grid, and the times asked for."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from sdekit.errors import DirectionError, check_count
from sdekit.sde.base import ODE, SDE

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

__all__ = ["between", "check_span", "fixed_grid", "save_times"]

DEFAULT_STEPS = 1000


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
