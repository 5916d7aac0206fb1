"""How a scheduler of diffusers runs: its own `step` on the noise levels of the problem.

`set_timesteps` chooses among the entries of a training table. After it, the public attributes of the
scheduler (``sigmas``, ``timesteps``; for the table-driven ones ``alphas_cumprod``) are set to the problem's
own levels in float64, so that every scheduler starts at rho_max, ends at rho_min and never rounds a time.
Some cast the state to float32 inside `step` (DPM-Solver multistep, Euler, flow matching): their error has a
floor near 1e-6.

Coordinates of the state: "vp" x = z / sqrt(1 + rho^2), "edm" x = z, "flow" x = z / (1 + rho).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from benchmarks.peers.base import Missing, Problem

__all__ = [
    "DATA_STD",
    "Scheduler",
    "at_angles",
    "at_down",
    "at_flow",
    "at_flow_pairs",
    "at_full_table",
    "at_half_table",
    "at_levels",
    "at_log_pairs",
    "at_middle",
    "at_pairs",
    "at_table",
]

SCALE: dict[str, Callable[[Tensor], Tensor]] = {
    "vp": lambda rho: 1 / torch.sqrt(1 + rho * rho),
    "edm": torch.ones_like,
    "flow": lambda rho: 1 / (1 + rho),
}
DATA_STD = 0.5
"""sigma_data of EDM's preconditioning: it changes what the network returns, not the trajectory."""


@cache
def _library() -> Any:
    if find_spec("diffusers") is None:
        raise Missing("diffusers")
    import diffusers

    diffusers.utils.logging.set_verbosity_error()
    return diffusers


def _output(predicts: str, z: Tensor, rho: Tensor, x0: Tensor) -> Tensor:
    """What a network of that kind would return where D(z, rho) = x0."""
    eps = (z - x0) / rho
    match predicts:
        case "sample":
            return x0
        case "epsilon":
            return eps
        case "v":  # alpha eps - sigma x0
            return (eps - rho * x0) * SCALE["vp"](rho)
        case "flow":  # d/ds of (1 - s) x0 + s eps
            return eps - x0
        case "edm":  # F with x0 = c_skip z + c_out F
            total = rho**2 + DATA_STD**2
            return (x0 - DATA_STD**2 / total * z) * torch.sqrt(total) / (rho * DATA_STD)
        case _:
            raise ValueError(predicts)


# Layouts: set the scheduler's levels and return the noise level of each evaluation.


def at_levels(scheduler: Any, problem: Problem) -> Tensor:
    scheduler.set_timesteps(problem.n)
    scheduler.sigmas = problem.rho.clone()
    scheduler.timesteps = torch.arange(problem.n, 0, -1, dtype=torch.float64)
    return problem.rho[:-1]


def at_flow(scheduler: Any, problem: Problem) -> Tensor:
    levels = at_levels(scheduler, problem)
    scheduler.sigmas = problem.rho / (1 + problem.rho)
    return levels


def at_pairs(scheduler: Any, problem: Problem) -> Tensor:
    """Two evaluations an interval, at its two ends."""
    scheduler.set_timesteps(problem.n)
    ends = torch.cat([problem.rho[:1], problem.rho[1:].repeat_interleave(2)])
    scheduler.sigmas = ends
    scheduler.timesteps = torch.arange(2 * problem.n, 0, -1, dtype=torch.float64)
    return ends[:-1]


def at_flow_pairs(scheduler: Any, problem: Problem) -> Tensor:
    levels = at_pairs(scheduler, problem)
    scheduler.sigmas = scheduler.sigmas / (1 + scheduler.sigmas)
    return levels


def at_middle(scheduler: Any, problem: Problem) -> Tensor:
    """Two evaluations an interval, the second half-way in ln rho."""
    at_pairs(scheduler, problem)
    middle = torch.sqrt(problem.rho[:-1] * problem.rho[1:])
    scheduler.sigmas_interpol = torch.cat([middle[:1], middle.repeat_interleave(2)])
    return torch.stack([problem.rho[:-1], middle], dim=1).flatten()


def at_down(scheduler: Any, problem: Problem) -> Tensor:
    """As `at_middle`, with the middle on the way to the ancestral step's level sigma_down."""
    at_pairs(scheduler, problem)
    here, ahead = problem.rho[:-1], problem.rho[1:]
    up = ahead * torch.sqrt(1 - (ahead / here) ** 2)
    down = torch.sqrt(ahead**2 - up**2)
    middle = torch.sqrt(here * down)

    def twice(level: Tensor) -> Tensor:
        return torch.cat([level[:1], level[1:].repeat_interleave(2)])

    scheduler.sigmas_interpol = twice(middle)
    scheduler.sigmas_down, scheduler.sigmas_up = twice(down), twice(up)
    return torch.stack([here, middle], dim=1).flatten()


def at_table(scheduler: Any, problem: Problem) -> Tensor:
    """A training table of the levels above rho_min, with rho_min as its value at "-1"."""
    square = 1 / (1 + problem.rho**2)
    scheduler.alphas_cumprod = square[:-1].flip(0)
    scheduler.final_alpha_cumprod = square[-1]
    scheduler.set_timesteps(problem.n)
    return problem.rho[:-1].flip(0)[scheduler.timesteps]


def at_full_table(scheduler: Any, problem: Problem) -> Tensor:
    """A training table of all levels; the step from the last to "-1", clean data, is not taken."""
    scheduler.alphas_cumprod = (1 / (1 + problem.rho**2)).flip(0)
    scheduler.set_timesteps(problem.n + 1)
    return problem.rho[:-1]


def at_half_table(scheduler: Any, problem: Problem) -> Tensor:
    """`at_table` with a level in the middle of each interval, for PNDM's Runge-Kutta start."""
    levels = torch.stack([problem.rho[:-1], problem.halves], dim=1).flatten()
    # Entry 2 j is node j from the end, entry 2 j + 1 the middle of the interval before it.
    entries = torch.cat([levels[:-1].flip(0), levels[:1]])
    scheduler.alphas_cumprod = 1 / (1 + entries**2)
    scheduler.final_alpha_cumprod = 1 / (1 + problem.rho[-1] ** 2)
    scheduler.set_timesteps(problem.n)
    return entries[scheduler.timesteps]


def at_angles(scheduler: Any, problem: Problem) -> Tensor:
    """iPNDM's own pair (alphas, betas), cosine and sine of arctan rho."""
    scheduler.set_timesteps(problem.n)
    scheduler.alphas = 1 / torch.sqrt(1 + problem.rho**2)
    scheduler.betas = problem.rho * scheduler.alphas
    scheduler.timesteps = torch.arange(problem.n, 0, -1, dtype=torch.float64)
    return problem.rho[:-1]


def at_log_pairs(scheduler: Any, problem: Problem) -> Tensor:
    """Two evaluations an interval, the second where DPM-Solver SDE takes it: half-way in ln rho."""
    at_pairs(scheduler, problem)
    middle = torch.sqrt(problem.rho[:-1] * problem.rho[1:])
    return torch.stack([problem.rho[:-1], middle], dim=1).flatten()


@dataclass(frozen=True)
class Scheduler:
    """One scheduler class with its options, run by its own `step`.

    table: entries of the training table as a function of intervals, for the schedulers that read one.
    """

    cls: str
    options: dict[str, Any] = field(default_factory=dict)
    layout: Callable[[Any, Problem], Tensor] = at_levels
    coordinates: str = "vp"
    predicts: str = "sample"
    table: Callable[[int], int] | None = None
    brownian: bool = False
    step: dict[str, Any] = field(default_factory=dict)

    def __call__(self, problem: Problem, z: Tensor) -> Tensor:
        options = dict(self.options)
        if self.table is not None:
            options |= {"num_train_timesteps": self.table(problem.n)}
        scheduler = getattr(_library(), self.cls)(**options)
        levels = self.layout(scheduler, problem)
        if hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(0)
        if self.brownian:
            from benchmarks.peers.k_diffusion_samplers import Increments

            scheduler.noise_sampler = Increments(z)
        scale = SCALE[self.coordinates]
        x = scale(problem.rho[0]) * z
        for rho, t in zip(levels, scheduler.timesteps, strict=False):
            if hasattr(scheduler, "scale_model_input"):  # some check that it was called
                scheduler.scale_model_input(x, t)
            z = x / scale(rho)
            out = _output(self.predicts, z, rho, problem.x0(z, rho))
            x = scheduler.step(out, t, x, **self.step).prev_sample
        return x / scale(problem.rho[-1])
