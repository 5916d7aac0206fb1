"""From a sampler, a process and a grid to a plan."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import TypeAlias

import torch
from torch import Tensor

from sdekit.errors import ShapeError, UnknownNameError, check_count, check_positive
from sdekit.samplers.base import Path, Sampler, nodes_at
from sdekit.samplers.grids import Grid
from sdekit.samplers.plan import Combine, Evaluate, Instruction, Plan, combine, state
from sdekit.samplers.registry import as_sampler
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


def _start(process: GaussianDiffusion, finite: bool) -> float:
    return float(process.finite_t_max if finite else process.t_max)


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
        x0 = D(x, t_min), counted as one interval and one evaluation.
    data_std, data_spread
        What is known of the data, for samplers that use it (see `Denoiser`).
    eta
        Stochasticity, for samplers that have it: 0 probability flow, 1 reverse SDE.
    finite
        Start where alpha = 1e-3 if alpha(t_max) = 0, as eps and score networks need.

    Raises
    ------
    UnknownNameError, ValueError: a name or a number that does not fit, with what would.
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
    if end not in ("t_min", "clean"):
        raise ValueError(f"end must be 't_min' or 'clean', got {end!r}.")
    data_std = check_positive(data_std, "data_std")
    data_spread = data_std if data_spread is None else check_positive(data_spread, "data_spread")
    tail = 1 if end == "clean" else 0

    # Processes and samplers of this package are numbers, and cannot change under the cache. Those of the
    # user may hold lists, or tensors that are trained.
    ours = all(type(part).__module__.startswith("sdekit.") for part in (process, method))
    make = _cached_build if ours else _build

    def build(n: int) -> Plan:
        return make(method, process, layout, n, end, data_std, data_spread, finite)

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
        n = max((nfe - tail) // method.cost, 0) + tail
        if n < 1:
            raise ValueError(
                f"{method.name!r} needs {method.cost} evaluations a step, so nfe = {nfe} allows no "
                f"step. Next: nfe >= {method.cost}."
            )
        return build(n)
    if layout.intervals is not None:
        own = layout.intervals + tail
        if steps is not None and steps != own:
            raise ValueError(
                f"steps = {steps} does not match the explicit grid, which has {own} intervals"
                f"{' (the clean node included)' if tail else ''}. Next: leave steps out."
            )
        return build(own)
    return build(DEFAULT_STEPS if steps is None else check_count(steps, "steps"))


def _build(
    method: Sampler,
    process: GaussianDiffusion,
    layout: Grid,
    n: int,
    end: str,
    data_std: float,
    data_spread: float,
    finite: bool,
) -> Plan:
    start = _start(process, finite or method.needs_finite_drift)
    run = n - 1 if end == "clean" else n
    if run == 0 and layout.intervals is None:
        times = torch.tensor([start], dtype=torch.float64)
    else:
        times = layout.times(process, run, data_std, data_spread, start)
    first = float(times[0])
    if first > float(process.t_max) * (1 + 1e-12):
        raise ValueError(
            f"the grid starts at t = {first:g}, beyond t_max = {float(process.t_max):g} of {process!r}."
        )
    nodes = nodes_at(process, times)
    if nodes[0].alpha == 0 and method.needs_finite_drift:
        raise ValueError(
            f"{method.name!r} needs finite drift and diffusion, but the grid starts at t = {first:g} where "
            f"alpha = 0. Next: start at t = {process.finite_t_max:.6g} (alpha = 1e-3) or leave grid out."
        )
    path = Path(tuple(nodes), data_std, data_spread, process)
    instructions: list[Instruction] = list(method.recipe(path)) if len(nodes) > 1 else []
    _check_finite(method, path, instructions)
    if end == "clean":
        i = len(nodes) - 1
        instructions += _tweedie(path, i, instructions)
        nodes.append(Node(0.0, 1.0, 0.0, 0.0, 0.0))
    return Plan(
        instructions=tuple(instructions),
        nodes=tuple(nodes),
        prior_std=float(process.prior_std(first)),
        sampler=method.name,
        process=repr(process),
        end=end,
        data_std=data_std,
        data_spread=data_spread,
    )


_cached_build = lru_cache(maxsize=64)(_build)


def _check_finite(method: Sampler, path: Path, instructions: list[Instruction]) -> None:
    """Refuse infinite coefficients, as of a grid that runs into sigma = 0. Raises ValueError."""
    for ins in instructions:
        if isinstance(ins, Combine) and not all(
            isinstance(w, Tensor) or math.isfinite(w) for w, _ in (*ins.terms, *ins.noise)
        ):
            cause = (
                f"the grid ends at t = {float(path.nodes[-1].t):g}, where sigma = 0"
                if path.nodes[-1].sigma == 0
                else "two nodes of the grid coincide to rounding"
            )
            raise ValueError(
                f"{method.name!r} has no finite coefficients for {ins.out} on this grid. Likely cause: "
                f"{cause}. Next: end the grid at t_min, and pass end='clean' for the clean node."
            )


def _tweedie(path: Path, i: int, done: list[Instruction]) -> list[Instruction]:
    """x[i + 1] = D(x[i], t_i): the clean node."""
    out = f"clean[{i}]"
    evaluate = Evaluate(out, state(i), path[i].t, "x0", path[i])
    return [evaluate, combine(state(i + 1), [(1.0, out)])]


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
