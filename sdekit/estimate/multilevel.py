"""Multilevel Monte Carlo (Giles 2008): most samples on coarse steps, a few differences on fine ones."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from sdekit.errors import SolveError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from sdekit.estimate.coupled import Experiment

    Floats = NDArray[np.float64]

__all__ = ["BIAS_SHARE", "Stage", "multilevel"]

BIAS_SHARE = 0.25
"""Of the squared tolerance; the rest is for the variance (Giles 2015)."""
MOST = 2**32
"""Values that are kept, 16 bytes each: beyond any memory, and beyond any time."""
START = 3
"""Levels at the beginning: two differences, to see the bias fall."""


class Stage:
    """One level while it grows: samples of P_l - P_(l-1), (N, k), where P_-1 = 0."""

    def __init__(self, run: Experiment, level: int) -> None:
        self.run, self.level, self.cost = run, level, 0
        self.found: list[Floats] = []

    def extend(self, count: int) -> None:
        """``count`` samples more, with the next ids of the level's own stream."""
        before = self.run.cost
        fine, coarse = self.run.values(self.level, self.level, self.size, count, pairs=self.level > 0)
        self.found.append(fine - coarse)
        self.cost += self.run.cost - before

    @property
    def steps(self) -> int:
        """Of the finer run."""
        return int((self.run.nodes.size - 1) * 2**self.level)

    @property
    def size(self) -> int:
        return sum(len(d) for d in self.found)

    @property
    def differences(self) -> Floats:
        self.found = [np.concatenate(self.found)]
        return self.found[0]

    def mean(self) -> Floats:
        """(k,)."""
        return np.asarray(self.differences.mean(axis=0))

    def variance(self) -> Floats:
        """Of one difference, (k,)."""
        return np.asarray(self.differences.var(axis=0, ddof=1))


def multilevel(
    run: Experiment, tolerance: float, samples: int, weak: float, strong: float | None, max_levels: int
) -> list[Stage]:
    """Levels whose sum has a root mean square error of about ``tolerance``, for every component of f.

    With variance V_l and cost C_l of a sample of level l, the least cost at a variance of 3/4 tolerance^2 has

        N_l = (3/4 tolerance^2)^-1 sqrt(V_l/C_l) sum_k sqrt(V_k C_k)

    (Giles 2008, equation 12, from Lagrange multipliers). The bias of level L is |E P_L - E P_(L-1)| /
    (2^weak - 1); levels are added until it is below tolerance/2, by the last two levels.

    samples: of each of the first levels, before anything is known. Raises SolveError after ``max_levels``.
    """
    rate = 2.0 ** (2.0 * strong if strong is not None else 1.0)
    stages = [Stage(run, level) for level in range(START)]
    for stage in stages:
        stage.extend(samples)
    while True:
        _allocate(stages, (1.0 - BIAS_SHARE) * tolerance**2, rate)
        bias = _bias(stages, weak)
        if bias <= math.sqrt(BIAS_SHARE) * tolerance:
            return stages
        if len(stages) == max_levels:
            raise SolveError(
                f"tolerance {tolerance:g} was not reached with {max_levels} levels: at {stages[-1].steps} "
                f"steps the bias is still about {bias:.2g}. Likely cause: a tolerance out of reach, or a "
                f"coarsest step so long that the first levels are unstable. Next: a larger tolerance, more "
                f"steps, a solver of higher weak order, or a larger max_levels."
            )
        stages.append(_next(stages, (1.0 - BIAS_SHARE) * tolerance**2, rate))


def _variances(stages: list[Stage], rate: float) -> Floats:
    """V_l, the largest over the components; a few equal samples must not pass for variance 0."""
    v = np.array([stage.variance().max() for stage in stages])
    for level in range(2, len(v)):
        v[level] = max(v[level], 0.5 * v[level - 1] / rate)
    return v


def _allocate(stages: list[Stage], variance: float, rate: float) -> None:
    """Draw until every level has the number of samples that its variance asks for."""
    while True:
        v = _variances(stages, rate)
        c = np.array([stage.cost / stage.size for stage in stages])
        wanted = np.ceil(np.sqrt(v / c) * np.sqrt(v * c).sum() / variance)
        if wanted.sum() > MOST:
            raise SolveError(
                f"this tolerance asks for {wanted.sum():.2g} samples, and at most {MOST:.2g} are drawn. "
                f"Likely cause: a tolerance in other units than the functional. Next: a larger tolerance: "
                f"ten times larger needs a hundredth of the samples; or method='qmc'."
            )
        missing = [max(int(n) - stage.size, 0) for n, stage in zip(wanted, stages, strict=True)]
        if all(count <= 0.01 * stage.size for count, stage in zip(missing, stages, strict=True)):
            return
        for stage, count in zip(stages, missing, strict=True):
            if count:
                stage.extend(count)


def _next(stages: list[Stage], variance: float, rate: float) -> Stage:
    """One level more, with as many samples as the extrapolated variance asks for."""
    v = [*_variances(stages, rate), _variances(stages, rate)[-1] / rate]
    costs = [stage.cost / stage.size for stage in stages]
    c = [*costs, 2 * costs[-1]]
    wanted = math.sqrt(v[-1] / c[-1]) * sum(math.sqrt(a * b) for a, b in zip(v, c, strict=True)) / variance
    stage = Stage(stages[0].run, len(stages))
    stage.extend(max(math.ceil(wanted), 64))
    return stage


def _bias(stages: list[Stage], weak: float) -> float:
    """|E P_L - E P|, the larger of what the last two levels say."""
    last = [float(np.abs(stage.mean()).max()) for stage in stages[-2:]]
    return float(max(last[1], last[0] / 2.0**weak) / (2.0**weak - 1.0))
