"""From a sampler, a process and a grid to a plan."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import TypeAlias

import torch
from torch import Tensor

from sdekit.errors import ShapeError, UnknownNameError, check_count, check_positive, unknown_name
from sdekit.samplers.base import Path, Sampler, nodes_at
from sdekit.samplers.encoder import encoder
from sdekit.samplers.grids import Grid
from sdekit.samplers.layout import Known, check_finite, first_time, grid_times, jump
from sdekit.samplers.plan import Instruction, Plan
from sdekit.samplers.registry import as_sampler
from sdekit.score.model import PREDICTS
from sdekit.score.predictions import Node
from sdekit.sde.gaussian import GaussianDiffusion

__all__ = ["GridLike", "as_grid", "plan"]

GridLike: TypeAlias = "str | Grid | Tensor | Sequence[float] | None"

DEFAULT_STEPS = 20


def as_grid(grid: GridLike, sampler: Sampler) -> Grid:
    """The sampler's own grid for None; a name, a `Grid`, or times from start to end."""
    if grid is None:
        return sampler.default_grid
    if isinstance(grid, Grid):
        return grid
    if isinstance(grid, str):
        return Grid(grid)
    return Grid.explicit(grid)


def plan(
    sampler: str | Sampler,
    process: GaussianDiffusion,
    *,
    steps: int | None = None,
    nfe: int | None = None,
    grid: GridLike = None,
    end: str = "t_min",
    data_std: float = 1.0,
    data_spread: float | None = None,
    eta: float | None = None,
    predicts: str | None = None,
    finite: bool = False,
) -> Plan:
    """The instructions of ``sampler`` on ``process``: every coefficient, before any network call.

    Parameters
    ----------
    sampler
        A name from `sdekit.samplers()`, or a sampler object.
    steps
        Intervals of the grid, 20 unless given; with an explicit grid, none or its own number.
    nfe
        Instead of steps: the most intervals whose plan needs at most this many evaluations.
    grid
        None (the sampler's default), a name, a `Grid`, or a 1-D tensor of times from start to end.
    end
        "t_min": stop at t_min, noise of the last step included. "clean": one more node, the clean data
        x0 = D(x, t_min), counted as one interval and one evaluation. "t_max": the grid backwards, from
        t_min to noise, as `sdekit.encode` runs it; deterministic samplers only. Where alpha(t_max) = 0 the
        sampler goes to alpha = 1e-3, and x = sigma eps there, exact to O(alpha^2), is one interval and one
        evaluation more.
    data_std, data_spread
        What is known of the data, for samplers that use it (see `Denoiser`).
    eta
        Stochasticity, for samplers that have it: 0 probability flow, 1 reverse SDE.
    predicts
        What the network returns (see `Denoiser`), None where that is not known. The error of eps and score
        networks enters the denoiser multiplied by sigma/alpha: the default sampler and its grid expect more
        of it then.
    finite
        Start where alpha = 1e-3 if alpha(t_max) = 0, as eps and score networks need.

    Raises
    ------
    UnknownNameError, ValueError: a name or a number that does not fit, with what would.
    CapabilityError: end = "t_max" with a sampler that injects noise or is no formula in both directions.
    """
    if not isinstance(process, GaussianDiffusion):
        raise TypeError(
            f"process must be a GaussianDiffusion (VP, VE, EDM, RectifiedFlow, ...), got "
            f"{type(process).__name__}. Next: other SDEs run through sdekit.solve(sdekit.reverse(...))."
        )
    if sampler == "rk45":
        raise UnknownNameError(
            "'rk45' is adaptive: its steps depend on the data, so it has no plan. Next: "
            "sdekit.sample(..., sampler='rk45'), or sdekit.solve(sdekit.probability_flow(...))."
        )
    method = as_sampler(sampler).with_eta(eta)
    layout = as_grid(grid, method)
    if end not in ("t_min", "clean", "t_max"):
        raise ValueError(f"end must be 't_min', 'clean' or 't_max', got {end!r}.")
    data_std = check_positive(data_std, "data_std")
    data_spread = data_std if data_spread is None else check_positive(data_spread, "data_spread")
    if predicts is not None and predicts not in PREDICTS:
        raise unknown_name("prediction", predicts, PREDICTS)
    known = Known(data_std, data_spread, predicts)
    limit = (
        end == "t_max" and float(process.alpha(first_time(process, finite or method.needs_finite_drift))) == 0
    )
    tail = 1 if end == "clean" or (limit and layout.intervals is None) else 0

    # Processes and samplers of this package are numbers, and cannot change under the cache. Those of the
    # user may hold lists, or tensors that are trained.
    ours = all(type(part).__module__.startswith("sdekit.") for part in (process, method))
    make = _cached_build if ours else _build

    def build(n: int) -> Plan:
        return make(method, process, layout, n, end, known, finite)

    if nfe is not None:
        if steps is not None:
            raise ValueError("pass steps or nfe, not both.")
        nfe = check_count(nfe, "nfe")
        if layout.intervals is not None:
            built = build(layout.intervals + tail)
            if built.nfe != nfe:
                raise ValueError(
                    f"the explicit grid costs {built.nfe} evaluations, but nfe = {nfe} was asked."
                )
            return built
        return _within(nfe, build, method, max(nfe - tail, 0) // method.cost + tail)
    if layout.intervals is not None:
        own = layout.intervals + tail
        if steps is not None and steps != own:
            raise ValueError(
                f"steps = {steps} does not match the explicit grid, which has {own} intervals"
                f"{' (the clean node included)' if tail else ''}. Next: leave steps out."
            )
        return build(own)
    return build(DEFAULT_STEPS if steps is None else check_count(steps, "steps"))


def _within(nfe: int, build: Callable[[int], Plan], method: Sampler, guess: int) -> Plan:
    """The plan of the most intervals with at most ``nfe`` evaluations, searched from ``guess`` intervals.

    An interval costs at least one evaluation; first and last ones may cost more or less than the others.
    """
    best = build(max(guess, 1))
    while best.nfe > nfe:
        if best.steps == 1:
            raise ValueError(
                f"{method.name!r} needs {best.nfe} evaluations for one interval of this plan, so nfe = {nfe} "
                f"allows no step. Next: nfe >= {best.nfe}."
            )
        excess = (best.nfe - nfe) / best.nfe
        best = build(best.steps - max(1, int(excess * best.steps / 2)))
    while best.nfe < nfe and (longer := build(best.steps + 1)).nfe <= nfe:
        best = longer
    return best


def _build(
    method: Sampler,
    process: GaussianDiffusion,
    layout: Grid,
    n: int,
    end: str,
    known: Known,
    finite: bool,
) -> Plan:
    if end == "t_max":
        there = _build(method, process, layout, n, "t_min", known, finite)
        return encoder(method, process, layout, n, known, there, finite)
    start = first_time(process, finite or method.needs_finite_drift)
    times = grid_times(process, layout, n - 1 if end == "clean" else n, known, start)
    nodes = nodes_at(process, times)
    if nodes[0].alpha == 0 and method.needs_finite_drift:
        raise ValueError(
            f"{method.name!r} needs finite drift and diffusion, but the grid starts at t = {nodes[0].t:g} "
            f"where alpha = 0. Next: start at t = {process.finite_t_max:.6g} (alpha = 1e-3), or leave grid "
            f"out."
        )
    path = Path(tuple(nodes), *known[:2], process, end == "clean", known.predicts)
    instructions: list[Instruction] = list(method.recipe(path)) if len(nodes) > 1 else []
    check_finite(method, path, instructions)
    if end == "clean":
        i = len(nodes) - 1
        instructions += jump(path, i, f"clean[{i}]", "x0", 1.0)
        nodes.append(Node(0.0, 1.0, 0.0, 0.0, 0.0))
    return Plan(
        instructions=tuple(instructions),
        nodes=tuple(nodes),
        prior_std=float(process.prior_std(float(nodes[0].t))),
        sampler=method.name,
        process=repr(process),
        end=end,
        data_std=known.data_std,
        data_spread=known.data_spread,
    )


_cached_build = lru_cache(maxsize=64)(_build)


def check_initial(x: Tensor, shape: tuple[int, ...]) -> Tensor:
    """x_init must have the shape asked for. Raises ShapeError."""
    if tuple(x.shape) != shape:
        raise ShapeError(f"x_init must have shape {shape}, the shape asked for, got {tuple(x.shape)}.")
    return x


def same_schedule(plan: Plan, process: GaussianDiffusion) -> None:
    """Refuse a plan made for another process than the model's. Raises ValueError."""
    nodes = plan.nodes[:-1] if plan.end == "clean" else plan.nodes
    planned = torch.tensor([[float(value) for value in node[:3]] for node in nodes], dtype=torch.float64)
    last = float(process.domain[1])
    inside = planned[:, 0].clamp(max=last)
    actual = torch.stack([planned[:, 0], process.alpha(inside), process.sigma(inside)], dim=1)
    wrong = ~torch.isclose(planned, actual, rtol=1e-9, atol=1e-12).all(dim=1) | (planned[:, 0] > last)
    if bool(wrong.any()):
        i = int(wrong.nonzero()[0])
        t, alpha, sigma = planned[i].tolist()
        raise ValueError(
            f"the plan was made for {plan.process}, with alpha = {alpha:.6g}, sigma = {sigma:.6g} at t = "
            f"{t:g}; the model's process {process!r} has {float(actual[i, 1]):.6g} and "
            f"{float(actual[i, 2]):.6g} there. Next: sdekit.plan(name, model.process)."
        )
