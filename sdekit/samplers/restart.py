"""Restart: forward jumps in noise between deterministic passes over the same interval."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count, pairwise
from typing import ClassVar

from sdekit._math import value
from sdekit.errors import check_count
from sdekit.samplers.base import Path, Sampler
from sdekit.samplers.grids import Grid
from sdekit.samplers.plan import Instruction, state
from sdekit.samplers.stages import heun, rise
from sdekit.score.predictions import Node

__all__ = ["Restart"]


@dataclass(frozen=True)
class Restart(Sampler):
    """Heun in rho; at rho_low, K times: z <- z + sqrt(rho_high^2 - rho_low^2) xi, then Heun back to rho_low.

    intervals: (low, high, K, steps) each, low and high in units of data_std, low taken at the nearest node
    of the grid below high. steps: Heun steps of one pass, spaced as the Karras grid; None takes the grid's
    own nodes in the interval, and then each pass is as fine as the grid and the weak order is Heun's. With a
    number it is not: the error of a pass stays. Published, in these units: ((0.12, 0.6, 2, 2),), on CIFAR-10,
    where 18 steps with the clean one make 43 evaluations.
    """

    name: ClassVar[str] = "restart"
    order: ClassVar[float] = 2
    evaluations: ClassVar[int] = 2
    reference: ClassVar[str] = "Xu et al. 2023 (Restart sampling), section 3.1 and table 3"
    stochastic: ClassVar[bool] = True
    uses_data: ClassVar[bool] = True
    default_grid: ClassVar[Grid] = Grid("karras")
    exact_for: ClassVar[frozenset[str]] = frozenset({"point"})

    intervals: tuple[tuple[float, float, int, int | None], ...] = ((0.12, 0.6, 2, None),)

    def __post_init__(self) -> None:
        object.__setattr__(self, "intervals", tuple(tuple(interval) for interval in self.intervals))
        for interval in self.intervals:
            if len(interval) != 4 or not 0 < interval[0] < interval[1] < math.inf:
                raise ValueError(
                    f"a restart interval is (low, high, repeats, steps) with 0 < low < high in units of "
                    f"data_std, got {interval!r}. Next: ((0.12, 0.6, 2, None),)."
                )
            check_count(interval[2], "repeats")
            if interval[3] is not None:
                check_count(interval[3], "steps")

    def passes(self, path: Path) -> dict[int, list[list[Node]]]:
        """For each node with restarts, the nodes of each pass from rho_high down to it, once a pass."""
        assert path.process is not None, "restarts need the process"
        last = path.process.domain[1]
        top = float(path.process.rho(last)) if math.isfinite(last) else math.inf
        usable = [i for i in range(1, path.steps + 1) if math.isfinite(value(path.lam[i]))]
        found: dict[int, list[list[Node]]] = {}
        for low, high, repeats, steps in self.intervals:
            aim, start = -math.log(low * path.data_std), min(high * path.data_std, top)
            below = [i for i in usable if path.rho[i] < start * (1 - 1e-9)]
            if not below:
                continue
            end = min(below, key=lambda i: abs(value(path.lam[i]) - aim))
            bottom = path.rho[end]
            if steps is None:
                inside = [i for i in below if path.rho[i] > bottom]
                nodes = [*path.at([start]), *(path[i] for i in inside)]
            else:
                a, b = start ** (1 / 7), bottom ** (1 / 7)
                nodes = path.at([(a + (b - a) * k / steps) ** 7 for k in range(steps)])
            found.setdefault(end, []).extend([[*nodes, path[end]]] * repeats)
        return found

    def recipe(self, path: Path) -> Iterator[Instruction]:
        passes, draws = self.passes(path), count()
        for i in range(path.steps):
            end = i + 1
            loops = passes.get(end, [])
            x = f"r[{end},0]" if loops else state(end)
            yield from heun(path, path[i], path[end], state(i), f"[{i}]", x)
            for k, nodes in enumerate(loops, 1):
                tag = f"{end},{k}"
                yield rise(path[end], nodes[0], x, f"y[{tag},0]", next(draws))
                for m, (here, ahead) in enumerate(pairwise(nodes), 1):
                    x = f"y[{tag},{m}]"
                    if m + 1 == len(nodes):
                        x = state(end) if k == len(loops) else f"r[{tag}]"
                    yield from heun(path, here, ahead, f"y[{tag},{m - 1}]", f"[{tag},{m}]", x)
