"""What a chain over a plan holds: registers as functions of its coordinates, and the scales of its grids."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from sdekit.certify.density.lattice import Line
from sdekit.samplers.plan import Combine, Plan, state

__all__ = ["Ending", "Needs", "Reads", "Register", "last_reads", "widen", "xi_rule"]

XI_STEP, XI_END = 0.4, 8.4
"""Trapezoid for a draw that is kept as a coordinate: exact to 1e-12 for e^(i w xi), |w| <= 7.4."""


@dataclass(frozen=True)
class Register:
    """Values, and slopes along the coordinates that they depend on (by number, or "xi:draw").

    Arrays broadcast over (y, band, kept draws); ``table``: they are over z instead, (nz,).
    """

    value: Tensor
    slopes: dict[Any, Tensor]
    table: bool = False


@dataclass(frozen=True)
class Ending:
    """The output as points mean_j of mass mass_j plus N(0, std^2); with std = 0 over a Line, its map."""

    mean: Tensor
    mass: Tensor
    std: float
    smooth: float
    line: Line | None
    slope: Tensor | None


@dataclass
class Needs:
    """What the grids must resolve: own scale and finest later scale of each coordinate, and of each step."""

    scale: dict[int, float] = field(default_factory=dict)
    later: dict[int, float] = field(default_factory=dict)
    smooth: dict[int, float] = field(default_factory=dict)

    def joined(self, other: Needs) -> Needs:
        """The stricter of both."""
        return Needs(
            *(
                {key: min(a.get(key, math.inf), b.get(key, math.inf)) for key in {**a, **b}}
                for a, b in (
                    (self.scale, other.scale),
                    (self.later, other.later),
                    (self.smooth, other.smooth),
                )
            )
        )

    def spacing(self, axis: int) -> float:
        return min(self.scale[axis], self.later.get(axis, math.inf))


@dataclass(frozen=True)
class Reads:
    registers: dict[str, int]
    draws: dict[int, int]
    position: dict[str, int]


def last_reads(plan: Plan) -> Reads:
    """The last instruction that reads each register and draw, and the one that writes each register."""
    registers: dict[str, int] = {}
    draws: dict[int, int] = {}
    position: dict[str, int] = {state(0): -1}
    for k, ins in enumerate(plan.instructions):
        position[ins.out] = k
        registers.update((name, k) for name in ins.inputs)
        if isinstance(ins, Combine):
            draws.update((draw, k) for _, draw in ins.noise)
    return Reads(registers, draws, position)


def xi_rule() -> tuple[Tensor, Tensor]:
    xi = torch.arange(-XI_END, XI_END + XI_STEP / 2, XI_STEP, dtype=torch.float64)
    return xi, torch.exp(-0.5 * xi * xi) * (XI_STEP / math.sqrt(2 * math.pi))


def widen(x: Tensor, dims: int) -> Tensor:
    """Trailing axes of size 1."""
    return x.reshape(*x.shape, *(1,) * (dims - x.ndim))
