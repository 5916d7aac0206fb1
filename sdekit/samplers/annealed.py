r"""Annealed Langevin dynamics: Langevin steps at noise levels that fall, from NCSN."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from sdekit._math import sqrt
from sdekit._typing import Number
from sdekit.errors import EndpointError, check_count, check_positive
from sdekit.samplers.base import Path, Sampler
from sdekit.samplers.plan import Instruction, combine, state

__all__ = ["AnnealedLangevin", "carried_variance", "exit_variance", "minimise"]


def exit_variance(u: float, ratio: float, steps: int) -> float:
    """Variance after T Langevin steps at level sigma', in units of sigma'^2, from that of ratio sigma'.

        q^{2T} (ratio^2 - F) + F,   q = 1 - u,   F = 2 u/(1 - q^2) = 1/(1 - u/2),

    for a point of data and steps of length u sigma'^2. ratio = sigma/sigma' >= 1. Above 1 at every u in
    (0, 1): F is the stationary variance of the steps themselves. Song and Ermon 2020, proposition 3.
    """
    kept, stationary = math.pow(1 - u, 2 * steps), 1 / (1 - u / 2)
    return kept * (ratio * ratio - stationary) + stationary


def carried_variance(u: float, ratio: float, steps: int) -> float:
    """`exit_variance` when each level starts from what the level before it left: the fixed point

        V = F (1 - q^{2T})/(1 - q^{2T} ratio^2),

    inf where the levels fall faster than the steps follow. For fine levels, h = ln ratio, it is least at
    u = sqrt(2 h/T), and V - 1 there is sqrt(2 h/T): the error falls as the square root of the work.
    """
    kept = math.pow(1 - u, 2 * steps)
    rest = 1 - kept * ratio * ratio
    return (1 - kept) / ((1 - u / 2) * rest) if rest > 0 else math.inf


def minimise(f: Callable[[float], float], low: float = 1e-8, high: float = 1.0) -> float:
    """The u in [low, high] with the least f(u): 400 points in log u, then golden sections."""
    grid = [low * math.pow(high / low, k / 400) for k in range(401)]
    best = min(range(401), key=lambda k: f(grid[k]))
    a, b = grid[max(best - 1, 0)], grid[min(best + 1, 400)]
    golden = 0.5 * (math.sqrt(5) - 1)
    for _ in range(60):
        c, d = b - golden * (b - a), a + golden * (b - a)
        a, b = (a, d) if f(c) < f(d) else (c, b)
    return 0.5 * (a + b)


def _plain(value: Number) -> Number:
    return value.detach() if isinstance(value, Tensor) else value


@dataclass(frozen=True)
class AnnealedLangevin(Sampler):
    """T Langevin steps at each noise level rho_i = sigma_i/alpha_i, in z = x/alpha,

        z <- z + a_i score_z(z, rho_i) + sqrt(2 a_i) xi,   a_i = eps (rho_i/rho_L)^2,

    the levels being the nodes of the grid, L the last. In x, with score_z = alpha score_x, the steps are
    u sigma_i^2 long, u = eps/rho_L^2, and between levels x is multiplied by alpha_{i+1}/alpha_i. A level
    starts from the state that the one before it left, no noise taken out. For VE and EDM z is x, and this is
    NCSN.

    steps_per_level: T. eps: None minimises the variance left on a point of data (`carried_variance`, at the
    mean ratio of the levels; technique 4 of NCSNv2 carried from level to level); or a number in the units of
    rho^2: NCSNv2's own (see `sdekit.ncsn`). NCSN (2019) writes x + (a/2) score + sqrt(a) xi: half of its eps
    is the eps here. burn_in: steps at the first level before the levels fall, beside what ``nfe=`` counts;
    NCSN takes T, as it starts from U[0, 1] (pass ``x_init``). Its final denoising, x + sigma_L^2 score, is
    ``end="clean"``.

    The law is biased at fixed eps (variance too large by about u/2 + h/(T u), h = ln ratio); with
    eps=None that falls as the square root of the work: order 1/2. Data much wider than the noise want more
    steps or a larger eps.
    Raises ValueError for eps >= 2 rho_L^2, where the steps are unstable, EndpointError for rho_L = 0.
    """

    name: ClassVar[str] = "annealed-langevin"
    order: ClassVar[float] = 0.5
    evaluations: ClassVar[int] = 5
    reference: ClassVar[str] = "Song and Ermon 2019, algorithm 1; Song and Ermon 2020 (NCSNv2), algorithm 1"
    stochastic: ClassVar[bool] = True
    needs_finite_drift: ClassVar[bool] = True

    steps_per_level: int = 5
    eps: float | None = None
    burn_in: int = 0

    def __post_init__(self) -> None:
        check_count(self.steps_per_level, "steps_per_level")
        check_count(self.burn_in, "burn_in", minimum=0)
        if self.eps is not None:
            check_positive(self.eps, "eps")

    @property
    def cost(self) -> int:
        return self.steps_per_level

    def relative_step(self, path: Path) -> Number:
        """u = a_i/rho_i^2, the same at every level."""
        first, last = (float(_plain(rho)) for rho in (path.rho[0], path.rho[-1]))
        if last == 0:
            raise EndpointError(
                "the score is infinite where sigma = 0 (clean data), where the grid of 'annealed-langevin' "
                "ends. Next: stop at t_min; end='clean' denoises after the last level."
            )
        if self.eps is None:
            ratio = (first / last) ** (1 / path.steps)
            return minimise(lambda u: carried_variance(u, ratio, self.steps_per_level))
        if self.eps >= 2 * last**2:
            raise ValueError(
                f"eps = {self.eps:g} is {self.eps / last**2:.3g} times the square of the last noise level "
                f"{last:.4g}; Langevin steps are unstable from 2. Likely cause: an eps made for other "
                f"levels. Next: eps=None, or sdekit.ncsn.steps(levels, ...).eps."
            )
        return self.eps / (path.rho[-1] * path.rho[-1])

    def recipe(self, path: Path) -> Iterator[Instruction]:
        u, x, draw = self.relative_step(path), state(0), 0
        for i in range(path.steps + 1):
            sigma = path[i].sigma
            if i and path[i].alpha != path[i - 1].alpha:
                yield combine(f"y[{i},0]", [(path[i].alpha / path[i - 1].alpha, x)])
                x = f"y[{i},0]"
            count = self.steps_per_level if i else self.burn_in
            for k in range(count):
                out = state(i) if i and k + 1 == count else f"y[{i},{k + 1}]"
                yield path.evaluate(f"s[{i},{k}]", x, i, "score")
                yield combine(out, [(1.0, x), (u * sigma**2, f"s[{i},{k}]")], [(sqrt(2 * u) * sigma, draw)])
                x, draw = out, draw + 1
