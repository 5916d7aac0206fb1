"""Weights in float32, so that what rounding does to them adds up as little as it can.

A multistep method with the network's own prediction folded in has weights such as 1 + c and -c of x[i] and
x[i-1]. Rounded one by one they err by d x[i], with the same d at every step of a grid of equal ratios: after
n steps the state is off by n d. Where the smaller weight takes over what the larger one loses, their sum is
right to the last bit of the smaller, and the error is d (x[i] - x[i-1]).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence

import numpy as np

from sdekit.samplers.plan import Plan, state

__all__ = ["balanced", "sizes"]


def balanced(names: Sequence[str], weights: Sequence[float], size: Mapping[str, float]) -> tuple[float, ...]:
    """``weights`` in float32, what that of a state loses passed on to the state of the next smaller weight.

    names: of the registers that the first weights are for. size: of the states; one takes over only where it
    is at most twice as large. Other weights are rounded: scores and velocities may grow from node to node.
    """
    found = [float(np.float32(w)) for w in weights]
    places = sorted((i for i, name in enumerate(names) if name in size), key=lambda i: -abs(weights[i]))
    lost = 0.0
    for i, j in itertools.pairwise(places):
        lost += weights[i] - found[i]
        if size[names[j]] > 2 * size[names[i]]:
            break
        found[j] = float(np.float32(weights[j] + lost))
    return tuple(found)


def sizes(plan: Plan) -> dict[str, float]:
    """Root mean squares to expect of the states at the nodes: (alpha^2 data_std^2 + sigma^2)^(1/2)."""
    s = float(plan.data_std)
    return {state(i): math.hypot(float(n.alpha) * s, float(n.sigma)) for i, n in enumerate(plan.nodes)}
