"""Expectations of a scheme over discrete noise, by enumeration: no random numbers. And a step by hand."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sdekit.solvers.base import Interval, Solver
from sdekit.solvers.problem import Counted

LAWS = {
    "three-point": ((-math.sqrt(3.0), 0.0, math.sqrt(3.0)), (1 / 6, 2 / 3, 1 / 6)),
    "two-point": ((-1.0, 1.0), (0.5, 0.5)),
    "zero": ((0.0,), (1.0,)),
}


def one_step(
    solver: Solver, system: Any, x: Tensor, t: float, h: float, W: Tensor, H: Tensor | None = None
) -> Tensor:
    """The solver's step from (x, t), its carry made anew."""
    counted = Counted(system)
    times = tuple(torch.tensor(t + c * h, dtype=x.dtype) for c in solver.nodes)
    carry = solver.init(counted, x, times[0])
    return solver.step(counted, x, Interval(times, h, W, H), carry)[0]


def expectation(
    solver: Solver,
    system: Any,
    x0: Tensor,
    end: float,
    steps: int,
    value: Callable[[Tensor], Tensor],
    laws: tuple[str, str],
) -> Tensor:
    """E[value(X)] after ``steps`` steps over [0, end], W and H of these laws in units of their deviations."""
    m = system.noise_shape(x0)[1]
    axes = [LAWS[law] for law in laws for _ in range(m)]
    nodes = torch.tensor(list(itertools.product(*(values for values, _ in axes))), dtype=x0.dtype)
    weights = torch.tensor(list(itertools.product(*(p for _, p in axes))), dtype=x0.dtype).prod(1)
    h, x, p = end / steps, x0, torch.ones(len(x0), dtype=x0.dtype)
    for k in range(steps):
        rows = nodes.repeat(len(x), 1)
        noise = rows[:, :m] * math.sqrt(h), rows[:, m:] * math.sqrt(h / 12)
        x = one_step(solver, system, x.repeat_interleave(len(nodes), 0), k * h, h, *noise)
        p = (p[:, None] * weights).reshape(-1)
    return (p.reshape(-1, *(1,) * (value(x).ndim - 1)) * value(x)).sum(0)
