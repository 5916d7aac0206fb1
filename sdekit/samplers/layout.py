"""What plans of either direction share: the times of a grid, jumps to an end, and finite coefficients."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from sdekit.samplers.base import Path, Sampler
from sdekit.samplers.grids import Grid
from sdekit.samplers.plan import Combine, Instruction, combine, state
from sdekit.sde.gaussian import GaussianDiffusion

__all__ = ["Known", "check_finite", "first_time", "grid_times", "jump"]


class Known(NamedTuple):
    """What is known of data and network: s, s2, and what the network predicts (None: not known)."""

    data_std: float = 1.0
    data_spread: float = 1.0
    predicts: str | None = None


def first_time(process: GaussianDiffusion, finite: bool) -> float:
    """t_max, or with ``finite`` the time at alpha = 1e-3 where alpha(t_max) = 0."""
    return float(process.finite_t_max if finite else process.t_max)


def grid_times(process: GaussianDiffusion, layout: Grid, n: int, known: Known, start: float) -> Tensor:
    """The n intervals of a grid, inside the process; for n = 0 its first node alone."""
    if n == 0 and layout.intervals is None:
        return torch.tensor([start], dtype=torch.float64)
    times = layout.times(process, n, known.data_std, known.data_spread, start, known.predicts)
    first = float(times[0])
    if first > float(process.t_max) * (1 + 1e-12):
        raise ValueError(
            f"the grid starts at t = {first:g}, beyond t_max = {float(process.t_max):g} of {process!r}."
        )
    return times


def check_finite(method: Sampler, path: Path, instructions: list[Instruction]) -> None:
    """Refuse infinite coefficients, as of a grid that runs into sigma = 0. Raises ValueError."""
    for ins in instructions:
        if isinstance(ins, Combine) and not all(
            isinstance(w, Tensor) or math.isfinite(w) for w, _ in (*ins.terms, *ins.noise)
        ):
            cause = (
                f"the grid ends at t = {min(float(node.t) for node in path.nodes):g}, where sigma = 0"
                if any(node.sigma == 0 for node in (path[0], path[-1]))
                else "two nodes of the grid coincide to rounding"
            )
            raise ValueError(
                f"{method.name!r} has no finite coefficients for {ins.out} on this grid. Likely cause: "
                f"{cause}. Next: end the grid at t_min, and pass end='clean' for the clean node."
            )


def jump(path: Path, i: int, out: str, predicts: str, scale: float) -> list[Instruction]:
    """x[i + 1] = scale times the prediction at (x[i], t_i): clean data or pure noise."""
    return [path.evaluate(out, state(i), i, predicts), combine(state(i + 1), [(scale, out)])]
