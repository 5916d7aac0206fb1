r"""SEEDS: single-step exponential integrators of the reverse SDE in eps-form.

With z = x/alpha and rho = sigma/alpha the reverse SDE of stochasticity eta is, on a step from rho to rho',

    z' = z + (1 + eta^2) \int eps drho + eta sqrt(rho^2 - rho'^2) xi.

SEEDS-1, 2 and 3 take 1, 2 and 3 evaluations a step: DPM-Solver's stages (at 1/2; at 1/3 and 2/3 of h in
lambda), each with the noise that one Brownian path has gathered until there.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from sdekit._math import exp, expm1, log, sqrt, table
from sdekit._typing import Number
from sdekit.errors import check_count
from sdekit.samplers.base import Path, Sampler, move
from sdekit.samplers.plan import Instruction, combine, state
from sdekit.samplers.weights import exponential

__all__ = ["Seeds"]

#: Fractions of h at which the stages lie, by their number.
_STAGES: dict[int, tuple[float, ...]] = {1: (), 2: (1 / 2,), 3: (1 / 3, 2 / 3)}


@dataclass(frozen=True)
class Seeds(Sampler):
    """SEEDS-k with k = ``stages``; eta = 1 is published, eta = 0 is single-step DPM-Solver.

        stages 1:  x' = (alpha'/alpha) x - (1 + eta^2) sigma' (e^h - 1) eps + noise
        stages 2:  the same with eps at the stage u_1
        stages 3:  u_2 with the slope of u_1, x' with the slope of u_2: (1 + eta^2) sigma' times
                   (psi(r_2 h) r_2/r_1) (eps_1 - eps) and (psi(h)/r_2) (eps_2 - eps), psi(h) = (e^h - 1)/h - 1

    A step with lambda infinite at either end is one of DDIM, without noise. Weak order 1; 2 with two or
    three stages, which pay off only where h is small: at eta = 1 they diverge for h above about 1.
    """

    name: ClassVar[str] = "seeds"
    order: ClassVar[float] = 1
    reference: ClassVar[str] = "Gonzalez et al. 2023 (SEEDS-1, 2, 3)"
    stochastic: ClassVar[bool] = True

    eta: float = 1.0
    stages: int = 1

    def __post_init__(self) -> None:
        if check_count(self.stages, "stages") > 3:
            raise ValueError(f"stages must be at most 3, got {self.stages}.")
        object.__setattr__(self, "order", min(self.stages, 2) if self.eta else self.stages)

    @property
    def cost(self) -> int:
        return self.stages

    def recipe(self, path: Path) -> Iterator[Instruction]:
        fractions = _STAGES[self.stages]
        stages, slopes = path.between(fractions), self._slopes(path, fractions)
        for i in range(path.steps):
            if not path.finite(i):
                yield path.evaluate(f"D[{i}]", state(i), i)
                yield move(path[i], path[i + 1], state(i), f"D[{i}]", state(i + 1))
                continue
            here, nodes = path[i], [*stages[i], path[i + 1]]
            lam = [path.lam[i], *(log(n.alpha) - log(n.sigma) for n in stages[i]), path.lam[i + 1]]
            yield path.evaluate(f"e[{i},0]", state(i), i, "eps")
            for k, node in enumerate(nodes):
                last = k == len(fractions)
                # The midpoint rule has the stage's eps alone, the others eps and a slope.
                base = 1 if last and self.stages == 2 else 0
                move_on = -(1 + self.eta**2) * node.sigma * expm1(lam[k + 1] - lam[0])
                terms: list[tuple[Number, str]] = [
                    (node.alpha / here.alpha, state(i)),
                    (move_on, f"e[{i},{base}]"),
                ]
                if k > 0 and self.stages == 3:
                    slope = -(1 + self.eta**2) * node.sigma * slopes[k - 1][i]
                    terms += [(slope, f"e[{i},{k}]"), (-slope, f"e[{i},0]")]
                noise = [
                    (self.eta * node.sigma * exp(lam[k + 1] - b) * sqrt(expm1(2 * (b - a))), 3 * i + j)
                    for j, (a, b) in enumerate(itertools.pairwise(lam[: k + 2]))
                ]
                out = state(i + 1) if last else f"u[{i},{k + 1}]"
                yield combine(out, terms, noise)
                if not last:
                    yield path.evaluate(f"e[{i},{k + 1}]", out, node, "eps")

    def _slopes(self, path: Path, fractions: tuple[float, ...]) -> list[dict[int, Number]]:
        """psi(r_2 h) r_2/r_1 and psi(h)/r_2 by step, psi(h) the integral of e^{h - u} u/h over [0, h]."""
        steps = [i for i in range(path.steps) if path.finite(i)]
        if len(fractions) < 2 or not steps:
            return []
        first, second = fractions
        found = []
        for reach, factor in ((second, second / first), (1.0, 1 / second)):
            h = table([reach * (path.lam[i + 1] - path.lam[i]) for i in steps])
            psi = factor * exponential(h[:, None] * table([0.0, 1.0]), h, -1.0)[:, 1]
            found.append(dict(zip(steps, psi.unbind() if psi.requires_grad else psi.tolist(), strict=True)))
        return found
