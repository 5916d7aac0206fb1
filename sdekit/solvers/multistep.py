r"""Adams-Bashforth-Moulton: predict with past slopes, evaluate, correct with the new slope, evaluate.

x_p = x + h sum_{j<4} b_j f_{n-j},    x' = x + h (c_0 f(x_p, t + h) + sum_{j<3} c_{j+1} f_{n-j})
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sdekit.solvers.base import Carry, Interval, Solver, register
from sdekit.solvers.runge_kutta import RK4, weighted

__all__ = ["AdamsBashforthMoulton", "adams_weights"]

LONGEST = 4.0
"""A past step shorter than this fraction, 1/LONGEST, of the present one is not extrapolated from."""


def adams_weights(nodes: Sequence[float]) -> list[float]:
    """w_j = int_0^1 l_j(s) ds with l_j the Lagrange polynomials of the nodes: exact below degree n.

    Nodes are times from the start of the step in units of its length.
    """
    powers = np.vander(np.asarray(nodes, dtype=np.float64), increasing=True).T
    weights: list[float] = np.linalg.solve(powers, 1.0 / np.arange(1, len(nodes) + 1)).tolist()
    return weights


@register
@dataclass(frozen=True)
class AdamsBashforthMoulton(Solver):
    """Four-step predictor, three-step corrector, PECE: order 4, 2 evaluations a step, on any grid.

    The weights are those of the steps as they are: they integrate the cubic through the slopes. The first
    three steps are `RK4`, and so is a step with one shorter than a quarter of it among the last
    three (a saved time close to a node). Between the steps it keeps slopes f_n, f_{n-1}, ... (B, *event) and,
    last, the lengths of the past steps, float64 on the host. For drifts that cost much and are smooth.
    Hairer, Norsett and Wanner 1993, III.1 and III.5.
    """

    name = "abm4"
    kind = "ode"
    order = 4
    nodes = (0.0, 0.5, 1.0)
    reference = "Hairer, Norsett and Wanner 1993, III.1 and III.5"

    def init(self, system: Any, x: Tensor, t: Tensor) -> Carry:
        return (system.drift(x, t), torch.empty(0, dtype=torch.float64))

    def step(self, system: Any, x: Tensor, interval: Interval, carry: Carry) -> tuple[Tensor, Carry]:
        *slopes, lengths = carry
        h, past = float(interval.h), lengths.tolist()
        if len(past) < 3 or min(map(abs, past)) * LONGEST < abs(h):
            x1 = _start(system, x, interval, slopes[0])
        else:
            nodes = (-np.cumsum([0.0, *past]) / h).tolist()
            predicted = x + weighted(adams_weights(nodes), slopes) * h
            ahead = system.drift(predicted, interval.times[-1])
            x1 = x + weighted(adams_weights([1.0, *nodes[:3]]), [ahead, *slopes[:3]]) * h
        slopes = [system.drift(x1, interval.times[-1]), *slopes[:3]]
        return x1, (*slopes, torch.tensor([h, *past[:2]], dtype=torch.float64))


def _start(system: Any, x: Tensor, interval: Interval, slope: Tensor) -> Tensor:
    """One Runge-Kutta step, whose first slope is known."""
    t, middle, end = interval.times
    inner = Interval((t, middle, middle, end), interval.h)
    return RK4().step(system, x, inner, (slope,))[0]
