"""`ensemble`: statistics of many paths of a compiled equation, none of which is kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from sdekit.errors import (
    CapabilityError,
    NonFiniteError,
    ShapeError,
    check_count,
    check_first_id,
    check_state,
)
from sdekit.noise.source import Noise
from sdekit.solvers.base import Solver, get
from sdekit.solvers.compiled.door import check_compiled_noise, check_start, obstacle
from sdekit.solvers.compiled.statistics import Sketch
from sdekit.solvers.compiled.system import CompiledSDE
from sdekit.solvers.door import as_source, check_system, match_solver
from sdekit.solvers.report import Report
from sdekit.solvers.times import check_span, fixed_grid, save_times

if TYPE_CHECKING:
    from sdekit._typing import Array

__all__ = ["Ensemble", "ensemble"]


@dataclass(frozen=True)
class Ensemble:
    """The result of `ensemble`. event: the shape of a state.

    ts: (S,) float64, the saved times, or the end alone. count: the paths that went in. mean, variance:
    (S, *event) float64, the variance with count - 1, 0 for one path; NaN where no path is left. passage:
    (paths,) float64, the time of first passage, inf for none, or None. failed: the ids of the paths that did
    not stay finite, which are left out.
    """

    ts: Tensor
    count: int
    mean: Tensor
    variance: Tensor
    passage: Tensor | None = None
    failed: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))
    _sketch: Sketch | None = None

    @property
    def standard_error(self) -> Tensor:
        """Of the mean: sqrt(variance / count), (S, *event)."""
        return (self.variance / self.count).sqrt()

    def quantile(self, q: float | Sequence[float]) -> Tensor:
        r"""x with P(X <= x) = q, at every saved time: (S, *event), or (len(q), S, *event) for several q.

        Within 2^-7 \|x - m\| + 2^-16 s of the order statistic ceil(q count), m the median and s the distance
        between the quartiles of the first 4096 paths, as long as \|x - m\| < 2^24 s.
        Raises ValueError outside [0, 1], and where no quantiles were kept.
        """
        if not self.count:
            raise ValueError(
                f"no path is left: all {len(self.failed)} failed. Next: more steps; throw=True tells when."
            )
        if self._sketch is None:
            raise ValueError("no quantiles were kept. Next: ensemble(..., quantiles=True).")
        try:
            given = np.asarray(q, dtype=np.float64)
        except (TypeError, ValueError):
            given = np.full(0, np.nan)
        one, parts = given.ndim == 0, given.reshape(-1).tolist()
        if not parts or given.ndim > 1 or not all(0.0 <= p <= 1.0 for p in parts):
            raise ValueError(
                f"q must be a number in [0, 1] or a sequence of such, got {q!r}. Next: 0.05 for the lowest "
                f"5 %."
            )
        found = torch.from_numpy(np.stack([self._sketch.quantile(p) for p in parts]))
        found = found.reshape(len(parts), *self.mean.shape)
        return found[0] if one else found

    def __repr__(self) -> str:
        bad = f", {len(self.failed)} failed" if len(self.failed) else ""
        return f"Ensemble(count={self.count}, ts={self.ts.tolist()}, mean: {tuple(self.mean.shape)}{bad})"


def ensemble(
    system: CompiledSDE,
    x0: Tensor | Array | Sequence[float] | float,
    span: tuple[float, float] | Sequence[float] | Tensor,
    *,
    paths: int | None = None,
    solver: str | Solver = "euler-maruyama",
    steps: int | None = None,
    dt: float | None = None,
    save_at: Sequence[float] | Tensor | Array | None = None,
    quantiles: bool = False,
    passage: Callable[[Any, Any], Any] | None = None,
    seed: int = 0,
    noise: Noise | None = None,
    first_id: int = 0,
    progress: bool = False,
    throw: bool = True,
) -> Ensemble:
    r"""E X_t, Var X_t, quantiles and first passage times from many paths of dX = f dt + G dW, none kept.

    The paths are those of ``solve(..., backend="numba")`` with the same seed and ids. Memory does not grow
    with their number, ``passage`` apart. The result has the same bits whatever the threads.

    Parameters
    ----------
    system
        A `compiled` equation.
    x0, paths
        One state, (d,) or a number, from which ``paths`` paths start; or (B, d), a start for each.
    span, solver, steps, dt, seed, noise, first_id, progress
        As for `solve`.
    save_at
        The times of the statistics, within the span; the end by default.
    quantiles
        Whether to keep a sketch for `Ensemble.quantile`: 80 kB for each time and element.
    passage
        A formula (x, t) -> number, as a drift is one. Of each path the first node t_k, the start included,
        at which it is >= 0: ``lambda x, t: x - 2.0`` is the passage to 2 from below. A condition, such as
        ``x >= 2.0``, counts where it holds. The path goes on.
        Passages between the nodes are not seen, so that times are late by O(sqrt(h)).
    throw
        True raises where a path does not stay finite; False leaves it out.

    Raises
    ------
    CapabilityError: the system, solver or noise cannot be compiled. NonFiniteError: a path did not stay
    finite. ShapeError: x0 does not fit dim or paths. TypeError, ValueError, DirectionError,
    UnknownNameError as `solve`.
    """
    check_system(system)
    x = _start(system, x0, paths)
    grid_span = check_span(system, span)
    t0, t1 = float(grid_span[0]), float(grid_span[-1])
    method = match_solver(get(solver), system)
    source = as_source(system, False, seed, noise)
    if (why_not := obstacle(system, x[:1], method, False, source, x.requires_grad, {})) is not None:
        raise CapabilityError(f"ensemble cannot run this: {why_not}.")
    check_compiled_noise(system, x.detach(), t0)
    save, slack = save_times(save_at if save_at is not None else [t1], t0, t1)
    grid = fixed_grid(grid_span, steps, dt, save, slack)
    count = len(x) if paths is None else check_count(paths, "paths")
    check_first_id(first_id, count)
    from sdekit.solvers.compiled.gather import gather

    with Report(progress, None, t0, t1) as report:
        moments, sketch, passed, failed, step = gather(
            system,
            method,
            x.detach(),
            count,
            grid,
            save,
            first_id,
            getattr(source, "seed", seed),
            quantiles,
            passage,
            (lambda part: report(0, t0 + part * (t1 - t0), x)) if progress else None,
        )
    if throw and failed.size:
        raise NonFiniteError(
            f"{failed.size} of {count} paths failed under {method.name!r}. First: path {failed[0]} became "
            f"NaN or infinite at step {step} of {grid.size - 1}, t = {grid[step + 1]:.6g}. Likely cause: a "
            f"step too long for the drift there. Next: more steps, solve(..., first_id={failed[0]}) for that "
            f"path, or throw=False."
        )
    event = x.shape[1:]
    shape = (len(save), *event)
    divisor = max(moments.count - 1, 1)
    mean, variance = (
        torch.from_numpy(found if moments.count else np.full(found.shape, np.nan)).reshape(shape)
        for found in (moments.mean, moments.squares / divisor)
    )
    return Ensemble(
        ts=torch.from_numpy(save),
        count=moments.count,
        mean=mean,
        variance=variance,
        passage=passed,
        failed=torch.from_numpy(failed),
        _sketch=sketch,
    )


def _start(system: CompiledSDE, x0: Any, paths: int | None) -> Tensor:
    """(B, *event); with ``paths`` one row."""
    if not isinstance(system, CompiledSDE):
        raise CapabilityError(
            f"ensemble takes equations made by sdekit.compiled, got {type(system).__name__}. Next: "
            f"sdekit.compiled(drift, diffusion, dim=...), or solve and the mean of its samples."
        )
    try:
        x = torch.as_tensor(x0)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(
            f"x0 must be a number, a sequence of {system.dim} or a tensor, got {x0!r}. Next: one state with "
            f"paths=, or (B, {system.dim}) starts."
        ) from error
    if not isinstance(x0, (Tensor, np.ndarray, np.generic)) and x.dtype is torch.int64:
        x = x.to(torch.get_default_dtype())  # 1 is 1.0
    one = (system.dim,)
    if paths is not None and x.shape != one and not (system.dim == 1 and x.ndim == 0):
        raise ShapeError(
            f"with paths= x0 is one state of shape {one}{' or ()' if system.dim == 1 else ''}, got "
            f"{tuple(x.shape)}, for dim={system.dim}. Next: drop paths= where x0 holds a start for each path."
        )
    if paths is None and (x.ndim == 0 or (system.dim > 1 and x.shape == one)):
        raise ShapeError(
            f"x0 is one state, a {x.ndim}-d tensor, and the number of paths was not given. Next: "
            f"paths=, or a start for each path, (B, {system.dim})."
        )
    if paths is not None:
        x = x[None]
    x = check_state(x)
    check_start(system, x)
    if not len(x):
        raise ValueError("x0 holds no state. Next: at least one row.")
    return x
