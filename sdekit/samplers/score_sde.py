r"""The predictor-corrector loop of the published score-SDE code, step by step.

It differs from `PredictorCorrector` in these points. N is the number of iterations, the intervals of the
grid. Iteration i corrects at t_i and then predicts from t_i, so the last state is never corrected; the last
predictor step adds no noise. Coefficients are not those of the grid's steps: they come from tables of N
entries, at the index k = floor(t_i (N - 1)), and Euler-Maruyama steps have dt = 1/N whatever the grid,

    VP  beta_k = (beta_min + k (beta_max - beta_min)/(N - 1))/N,
    VE  sigma_k = sigma_min (sigma_max/sigma_min)^(k/(N - 1)),
        Delta_k = sigma_k^2 - sigma_{k-1}^2,   sigma_{-1} = 0.

The norms of the Langevin step are averaged over the batch. The published run of N iterations has the grid
(linspace(1, eps, N), 0): N nodes that are visited, and an end that is only named. For sub-VP the published
corrector asks for a table that its code does not have; VP's is used here, as meant.

Song et al. 2021, Score-based generative modeling through SDEs (arXiv:2011.13456), appendices D, E and G.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from sdekit._math import sqrt
from sdekit._typing import Number
from sdekit.samplers.base import Path
from sdekit.samplers.plan import Apply, Combine, Instruction, combine, state
from sdekit.sde.diffusion import VE
from sdekit.sde.preserving import VP, SubVP

__all__ = ["score_sde"]


@dataclass(frozen=True)
class Tables:
    """The published tables of a process, N entries each."""

    process: VP | SubVP | VE
    n: int

    def index(self, t: float) -> int:
        """k = floor(t (N - 1))."""
        return math.floor(t * (self.n - 1))

    def beta(self, k: int) -> float:
        """beta_k, of VP and sub-VP."""
        p = self.process
        assert not isinstance(p, VE)
        return (p.beta_min + k * (p.beta_max - p.beta_min) / max(self.n - 1, 1)) / self.n

    def sigmas(self, k: int) -> tuple[float, float]:
        """(sigma_k, sigma_{k-1}), of VE."""
        p = self.process
        assert isinstance(p, VE)
        ratio = p.sigma_max / p.sigma_min
        high, low = (p.sigma_min * ratio ** (j / max(self.n - 1, 1)) for j in (k, k - 1))
        return high, (low if k else 0.0)

    def predictor(self, name: str, path: Path, i: int) -> tuple[Number, Number, Number]:
        """(weight of x, weight of the score, noise) of the predictor at node i."""
        t, alpha, sigma, dalpha, dsigma = path[i]
        k, dt = self.index(float(t)), 1 / self.n
        if name == "none":
            return 1.0, 0.0, 0.0
        if name == "euler-maruyama" or (name == "reverse-diffusion" and isinstance(self.process, SubVP)):
            f = dalpha / alpha
            g2 = 2 * sigma * (dsigma - f * sigma)
            return 1 - f * dt, g2 * dt, sqrt(g2 * dt)
        if isinstance(self.process, VE):
            high, low = self.sigmas(k)
            gap = high**2 - low**2
            return 1.0, gap, sqrt(gap) * (low / high if name == "ancestral" else 1.0)
        beta = self.beta(k)
        if name == "ancestral":
            return 1 / sqrt(1 - beta), beta / sqrt(1 - beta), sqrt(beta)
        return 2 - sqrt(1 - beta), beta, sqrt(beta)


def score_sde(
    path: Path, predictor: str, corrector: str, snr: float, corrections: int
) -> Iterator[Instruction]:
    """The published loop on the grid of ``path``; predictor and corrector named as in `PredictorCorrector`.

    Raises ValueError for a process or a combination that the published code does not have, or too few steps
    for its tables.
    """
    process = path.process
    if not isinstance(process, VP | SubVP | VE):
        raise ValueError(
            f"compat='score_sde' knows VP, SubVP and VE, got {process!r}. Next: leave compat out; pc runs "
            f"on every process."
        )
    if predictor == "ancestral" and isinstance(process, SubVP):
        raise ValueError("the published ancestral predictor has no sub-VP. Next: 'reverse-diffusion'.")
    tables, draw = Tables(process, path.steps), 0
    if not isinstance(process, VE) and tables.beta(tables.n - 1) >= 1:
        raise ValueError(
            f"compat='score_sde' with {tables.n} steps has beta = {tables.beta(tables.n - 1):.3g} >= 1 in "
            f"its table. Next: more than {math.ceil(process.beta_max)} steps, or leave compat out."
        )
    for i in range(path.steps):
        x = state(i)
        k = tables.index(float(path[i].t))
        b = 1.0 if isinstance(process, VE) else 1 - tables.beta(k)
        for j in range(corrections):
            score, out = f"c[{i},{j}]", f"q[{i},{j + 1}]"
            yield path.evaluate(score, x, i, "score")
            if corrector == "langevin-norm":
                yield Apply(out, (x, score), "langevin-batch", {"snr": snr, "scale": b, "draw": draw})
            else:
                yield _ald(out, x, score, 2 * b * (snr * path[i].sigma) ** 2, draw)
            x, draw = out, draw + 1
        keep, gain, noise = tables.predictor(predictor, path, i)
        terms: list[tuple[Number, str]] = [(keep, x)]
        if predictor != "none":
            yield path.evaluate(f"s[{i}]", x, i, "score")
            terms.append((gain, f"s[{i}]"))
        last = i + 1 == path.steps
        yield combine(state(i + 1), terms, [] if last else [(noise, draw)])
        draw += predictor != "none"


def _ald(out: str, x: str, score: str, e: Number, draw: int) -> Combine:
    return combine(out, [(1.0, x), (e, score)], [(sqrt(2 * e), draw)])
