"""Runge-Kutta on the probability flow in t: Euler and Heun."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from sdekit.samplers.base import Path, Sampler, step
from sdekit.samplers.grids import Grid
from sdekit.samplers.plan import Instruction, combine, state

__all__ = ["Euler", "Heun"]


@dataclass(frozen=True)
class Euler(Sampler):
    """x' = x + h v(x, t), v the probability flow's velocity, h = t' - t."""

    name: ClassVar[str] = "euler"
    order: ClassVar[float] = 1
    reference: ClassVar[str] = "Song et al. 2021 (score SDE), equation 13"
    default_grid: ClassVar[Grid] = Grid("karras")
    exact_for: ClassVar[frozenset[str]] = frozenset({"normal"})

    def recipe(self, path: Path) -> Iterator[Instruction]:
        for i in range(path.steps):
            h = path[i + 1].t - path[i].t
            yield path.evaluate(f"v[{i}]", state(i), i, "velocity")
            yield step(i, [(1.0, state(i)), (h, f"v[{i}]")])


@dataclass(frozen=True)
class Heun(Sampler):
    """p = x + h v(x, t),  x' = x + h/2 (v(x, t) + v(p, t')); two evaluations a step.

    A step to sigma' = 0 is Euler's, as published.

    On EDM's process and grid this is Karras et al. 2022, algorithm 1; their last step to sigma = 0 is
    ``end="clean"``.
    """

    name: ClassVar[str] = "heun"
    order: ClassVar[float] = 2
    evaluations: ClassVar[int] = 2
    reference: ClassVar[str] = "Karras et al. 2022, algorithm 1"
    default_grid: ClassVar[Grid] = Grid("karras")
    exact_for: ClassVar[frozenset[str]] = frozenset({"normal"})

    def recipe(self, path: Path) -> Iterator[Instruction]:
        for i in range(path.steps):
            h = path[i + 1].t - path[i].t
            yield path.evaluate(f"v[{i}]", state(i), i, "velocity")
            if path[i + 1].sigma == 0:
                yield step(i, [(1.0, state(i)), (h, f"v[{i}]")])
                return
            yield combine(f"p[{i + 1}]", [(1.0, state(i)), (h, f"v[{i}]")])
            yield path.evaluate(f"w[{i + 1}]", f"p[{i + 1}]", i + 1, "velocity")
            yield step(i, [(1.0, state(i)), (h / 2, f"v[{i}]"), (h / 2, f"w[{i + 1}]")])
