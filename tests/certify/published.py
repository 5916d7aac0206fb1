"""The schemes of Pierret and Galerne 2025 that the library does not have, as recipes of their own.

In the paper dy = -beta y dt + sqrt(2 beta) dw with beta from 0.05 to 10, which is `sdekit.VP()`; N - 1 steps
of equal length in t from 1 to epsilon.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch

from sdekit.samplers import Combine, Sampler
from sdekit.samplers.base import nodes_at
from sdekit.samplers.plan import combine

REFERENCE = "Pierret and Galerne 2025 (arXiv:2405.14250)"


@dataclass(frozen=True)
class ExponentialIntegrator(Sampler):
    """y' = y + (r - 1)(y + 2 score) + sqrt(r^2 - 1) xi, r = alpha'/alpha."""

    name: ClassVar[str] = "exponential-integrator"
    order: ClassVar[float] = 1
    reference: ClassVar[str] = REFERENCE

    def recipe(self, path) -> Iterator:
        for i in range(path.steps):
            r = path[i + 1].alpha / path[i].alpha
            yield path.evaluate(f"s[{i}]", f"x[{i}]", i, "score")
            noise = (((r * r - 1) ** 0.5, i),)
            yield Combine(f"x[{i + 1}]", ((r, f"x[{i}]"), (2 * (r - 1), f"s[{i}]")), noise)


@dataclass(frozen=True)
class DiscreteDDPM(Sampler):
    """y' = (y + b score)/sqrt(1 - b) + sqrt(b) xi, b = g(t)^2 |h| in the place of a table's entry."""

    name: ClassVar[str] = "discrete-ddpm"
    order: ClassVar[float] = 1
    reference: ClassVar[str] = REFERENCE

    def recipe(self, path) -> Iterator:
        for i in range(path.steps):
            t, alpha, _, dalpha, _ = path[i]
            b = -2 * dalpha / alpha * (t - path[i + 1].t)  # g^2 = -2 d log alpha/dt under VP
            yield path.evaluate(f"s[{i}]", f"x[{i}]", i, "score")
            root = (1 - b) ** 0.5
            terms = ((1 / root, f"x[{i}]"), (b / root, f"s[{i}]"))
            yield Combine(f"x[{i + 1}]", terms, ((b**0.5, i),))


@dataclass(frozen=True)
class RK4(Sampler):
    """The classical Runge-Kutta method on the probability flow in t."""

    name: ClassVar[str] = "rk4"
    order: ClassVar[float] = 4
    evaluations: ClassVar[int] = 4
    reference: ClassVar[str] = REFERENCE

    def recipe(self, path) -> Iterator:
        times = [node.t for node in path.nodes]
        halves = [(a + b) / 2 for a, b in itertools.pairwise(times)]
        middle = nodes_at(path.process, torch.tensor(halves, dtype=torch.float64))
        for i in range(path.steps):
            x, h = f"x[{i}]", times[i + 1] - times[i]
            yield path.evaluate(f"a[{i}]", x, i, "velocity")
            yield combine(f"p[{i}]", [(1.0, x), (h / 2, f"a[{i}]")])
            yield path.evaluate(f"b[{i}]", f"p[{i}]", middle[i], "velocity")
            yield combine(f"q[{i}]", [(1.0, x), (h / 2, f"b[{i}]")])
            yield path.evaluate(f"c[{i}]", f"q[{i}]", middle[i], "velocity")
            yield combine(f"r[{i}]", [(1.0, x), (h, f"c[{i}]")])
            yield path.evaluate(f"d[{i}]", f"r[{i}]", i + 1, "velocity")
            slopes = [(h / 6, f"a[{i}]"), (h / 3, f"b[{i}]"), (h / 3, f"c[{i}]"), (h / 6, f"d[{i}]")]
            yield combine(f"x[{i + 1}]", [(1.0, x), *slopes])


SCHEMES = {
    "EM": "euler-maruyama",
    "EI": ExponentialIntegrator(),
    "DDPM": DiscreteDDPM(),
    "Euler": "euler",
    "Heun": "heun",
    "RK4": RK4(),
}
COST = {"Heun": 2, "RK4": 4}
