"""Calls of the network for log p(x), `sdekit.log_prob` against Runge-Kutta 4(5) in the time of the process.

Laws and processes with an exact log p at t_min and an exact prior at t_max; exact traces; float64. The
others solve the probability flow with its log-determinant,

    d(x, l)/dt = (v(x, t), tr dv/dx),   v = alpha' E[x0|x] + sigma' E[eps|x]   (finite up to alpha = 0),

from t_min to t_max at rtol = atol, one sample at a time (scipy RK45 and, where it is installed,
torchdiffeq dopri5) or all samples as one vector (scipy, "stacked", as published codes do). Every method runs
a ladder of tolerances; error is the 95 % quantile over samples of |log p - exact|, calls are the mean over
samples of the evaluations made for each (a rejected step counts, and all that a method spends on its first
step). Calls at a given error come from the ladder, log against log; none where it does not reach that error.

The method's constants were chosen on the laws "three", "tight" and "ring", the last of them on Cosine alone.
"unequal" was not looked at for any choice. It alone is solved by torchdiffeq too.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

import sdekit as sk
from sdekit.score.model import ExactDenoiser
from sdekit.sde.gaussian import GaussianDiffusion

Floats: TypeAlias = "NDArray[np.float64]"
Solve: TypeAlias = "Callable[[float], tuple[Floats, Floats]]"
"""A tolerance -> log p (n,) and calls (n,)."""

PROCESSES: dict[str, GaussianDiffusion] = {
    "VP": sk.VP(),
    "SubVP": sk.SubVP(),
    "VE": sk.VE(),
    "Cosine": sk.Cosine(),
    "EDM": sk.EDM(),
    "RectifiedFlow": sk.RectifiedFlow(),
}
ERRORS = (1e-3, 1e-4, 1e-5, 1e-6)
LADDER = tuple(10.0**-k for k in range(2, 9))
SAMPLES = 8
WANTED = 0.5
"""Calls over those of scipy RK45, one sample at a time."""


def three(d: int) -> sk.GaussianMixture:
    """Three components with means N(0, I) and variances between 0.02 and 0.22."""
    g = torch.Generator().manual_seed(d)
    means = torch.randn(3, d, generator=g, dtype=torch.float64)
    return sk.GaussianMixture(
        [0.2, 0.3, 0.5], means, torch.rand(3, d, generator=g, dtype=torch.float64) * 0.2 + 0.02
    )


def tight() -> sk.GaussianMixture:
    """d = 8, four components with variances from 1e-3 to 0.1."""
    g = torch.Generator().manual_seed(100)
    means = torch.randn(4, 8, generator=g, dtype=torch.float64)
    return sk.GaussianMixture(
        [0.4, 0.3, 0.2, 0.1], means, 10 ** (torch.rand(4, 8, generator=g, dtype=torch.float64) * 2 - 3)
    )


def ring() -> sk.GaussianMixture:
    """d = 2, eight components of variance 0.04 on a circle of radius 2."""
    angle = torch.arange(8, dtype=torch.float64) * (math.pi / 4)
    return sk.GaussianMixture(torch.ones(8), 2 * torch.stack([angle.cos(), angle.sin()], 1), 0.04)


def unequal() -> sk.GaussianMixture:
    """d = 4, five components of weights 0.05 to 0.4, their axes turned, variances along them 0.01 to 0.5."""
    g = torch.Generator().manual_seed(2718)
    means = 1.5 * torch.randn(5, 4, generator=g, dtype=torch.float64)
    variances = 0.01 * 50 ** torch.rand(5, 4, generator=g, dtype=torch.float64)
    axes = torch.linalg.qr(torch.randn(5, 4, 4, generator=g, dtype=torch.float64)).Q
    covs = (axes * variances[:, None]) @ axes.mT
    return sk.GaussianMixture([0.4, 0.3, 0.15, 0.1, 0.05], means, (covs + covs.mT) / 2)


UNSEEN = "unequal, d=4"
LAWS: dict[str, Callable[[], sk.GaussianMixture]] = {
    "three, d=2": lambda: three(2),
    "three, d=8": lambda: three(8),
    "three, d=64": lambda: three(64),
    "tight, d=8": tight,
    "ring, d=2": ring,
    UNSEEN: unequal,
}


def first_time(process: GaussianDiffusion) -> float:
    return process.t_min if isinstance(process, sk.EDM) else 1e-5


@dataclass(frozen=True)
class Case:
    """x (n, d) float64 at t_min and what log p is there."""

    target: sk.GaussianMixture
    process: GaussianDiffusion
    x: torch.Tensor
    exact: Floats

    @classmethod
    def of(cls, law: str, process: str, samples: int = SAMPLES) -> Case:
        target, p = LAWS[law](), PROCESSES[process]
        start = target.marginal(p, first_time(p))
        x = start.sample(samples, seed=1, dtype=torch.float64)
        return cls(target, p, x, start.log_prob(x).numpy())


class _Counting(ExactDenoiser):
    """Counts the rows that it is asked about."""

    rows = 0

    def native(self, x: torch.Tensor, node: Any, t: torch.Tensor | None = None) -> torch.Tensor:
        self.rows += len(x)
        return super().native(x, node, t)

    def evaluate(self, kind: str, x: torch.Tensor, *rest: Any, **options: Any) -> torch.Tensor:
        raise AssertionError("counted at native")


def ours(case: Case, compact: bool = True) -> Solve:
    """`sdekit.log_prob`: rows given to the network over samples."""
    exact = case.target.denoiser(case.process)
    prior = case.target.marginal(case.process, case.process.t_max)

    def run(tolerance: float) -> tuple[Floats, Floats]:
        model = _Counting(
            exact.fn, exact.process, data_std=exact.data_std or 1.0, data_spread=exact.data_spread
        )
        found = sk.log_prob(
            model, case.x, prior=prior, trace="exact", rtol=tolerance, atol=tolerance, compact=compact
        )
        return found.value.numpy(), np.full(len(case.x), model.rows / len(case.x))

    return run


class Field:
    """(v, tr dv/dx) of a mixture of Gaussians in closed form, numpy: (n, d) -> (n, d), (n,)."""

    def __init__(self, case: Case) -> None:
        self.process, target = case.process, case.target
        self.weights, self.means = target.weights.numpy(), target.means.numpy()
        self.variances = target.eigenvalues.numpy()
        self.axes = None if target.basis is None else target.basis.numpy()

    def __call__(self, x: Floats, t: float) -> tuple[Floats, Floats]:
        p = self.process
        alpha, sigma, dalpha, dsigma = (float(c(t)) for c in (p.alpha, p.sigma, p.dalpha, p.dsigma))
        spread = alpha**2 * self.variances + sigma**2
        away = self._turned(x[:, None] - alpha * self.means, "kij,nki->nkj")
        gap = away / spread
        joint = np.log(self.weights) - 0.5 * (gap * away + np.log(spread)).sum(-1)
        r = np.exp(joint - joint.max(1, keepdims=True))
        r /= r.sum(1, keepdims=True)
        moved = self._turned((dalpha * alpha * self.variances + dsigma * sigma) * gap, "kij,nkj->nki")
        each, gap = dalpha * self.means + moved, self._turned(gap, "kij,nkj->nki")  # (n, K, d)
        within = ((dalpha * alpha * self.variances + dsigma * sigma) / spread).sum(-1)
        mean_gap = np.einsum("nk,nkd->nd", r, gap)
        between = ((mean_gap[:, None] - gap) * each).sum(-1)
        return np.einsum("nk,nkd->nd", r, each), (r * (within + between)).sum(1)

    def _turned(self, v: Floats, how: str) -> Floats:
        """(n, K, d) to or from the axes of the components."""
        return v if self.axes is None else np.einsum(how, self.axes, v)


def scipy_rk45(case: Case, together: bool = False) -> Solve:
    from scipy.integrate import solve_ivp

    def solve(f: Any, span: tuple[float, float], y: Floats, tolerance: float) -> Floats:
        found = solve_ivp(f, span, y, method="RK45", rtol=tolerance, atol=tolerance)
        end: Floats = found.y[:, -1]
        return end

    return _in_t(case, solve, together)


def torchdiffeq_dopri5(case: Case) -> Solve:
    from torchdiffeq import odeint

    def solve(f: Any, span: tuple[float, float], y: Floats, tolerance: float) -> Floats:
        def g(t: torch.Tensor, state: torch.Tensor) -> torch.Tensor:
            return torch.from_numpy(f(float(t), state.numpy()))

        ends = torch.tensor(span, dtype=torch.float64)
        end: Floats = odeint(g, torch.from_numpy(y), ends, rtol=tolerance, atol=tolerance, method="dopri5")[
            -1
        ].numpy()
        return end

    return _in_t(case, solve, False)


def _in_t(case: Case, solve: Callable[..., Floats], together: bool) -> Solve:
    field, d = Field(case), case.x.shape[1]
    p = case.process
    law = case.target.marginal(p, p.t_max)
    groups = [case.x] if together else [case.x[i : i + 1] for i in range(len(case.x))]

    def run(tolerance: float) -> tuple[Floats, Floats]:
        values, calls = [], []
        for x in groups:
            count, n = [0], len(x)

            def f(t: float, y: Floats, count: list[int] = count, n: int = n) -> Floats:
                count[0] += 1
                v, trace = field(y[: n * d].reshape(n, d), min(float(t), p.t_max))
                return np.concatenate([v.ravel(), trace])

            start = np.concatenate([x.numpy().ravel(), np.zeros(n)])
            end = solve(f, (first_time(p), float(p.t_max)), start, tolerance)
            state = torch.from_numpy(end[: n * d].reshape(n, d).copy())
            values.append(law.log_prob(state).numpy() + end[n * d :])
            calls += [float(count[0])] * n
        return np.concatenate(values), np.array(calls)

    return run


def curve(solve: Solve, exact: Floats, ladder: tuple[float, ...] = LADDER) -> Floats:
    """(error, calls) at each tolerance."""
    points = [(np.quantile(np.abs(value - exact), 0.95), calls.mean()) for value, calls in map(solve, ladder)]
    return np.array(points)


def calls_at(points: Floats, error: float) -> float:
    """Mean calls at an error: log against log between points of increasing cost and least error so far."""
    points = points[np.argsort(points[:, 1])]
    least, calls = np.minimum.accumulate(points[:, 0]), points[:, 1]
    if not least[-1] <= error <= least[0]:
        return math.nan
    return float(np.exp(np.interp(-math.log(error), -np.log(least), np.log(calls))))


def methods(case: Case, every: bool) -> dict[str, Solve]:
    found = {
        "sdekit": ours(case),
        "scipy RK45": scipy_rk45(case),
        "scipy RK45, stacked": scipy_rk45(case, together=True),
    }
    if every and importlib.util.find_spec("torchdiffeq") is not None:
        found["torchdiffeq dopri5"] = torchdiffeq_dopri5(case)
    return found


def compared(law: str, process: str, every: bool = True) -> list[dict[str, Any]]:
    """Rows of the table: calls of every method at each error, None where it does not reach it."""
    case, rows = Case.of(law, process), []
    found = methods(case, every and law == UNSEEN)
    curves = {key: curve(solve, case.exact) for key, solve in found.items()}
    for error in ERRORS:
        calls = {key: calls_at(points, error) for key, points in curves.items()}
        figures = calls | {"ratio": calls["sdekit"] / calls["scipy RK45"]}
        rounded = {key: None if math.isnan(c) else float(f"{c:.3g}") for key, c in figures.items()}
        rows.append({"law": law, "process": process, "error": f"{error:.0e}", **rounded})
    return rows


def figure(ratios: list[float], wanted: float | None) -> dict[str, Any]:
    """Median and quartiles of ratios of which less is better."""
    low, median, high = (float(f"{q:.3g}") for q in np.quantile(ratios, (0.25, 0.5, 0.75)))
    return {"median": median, "low": low, "high": high, "better": "lower", "wanted": wanted}


def unseen(rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The ratios of the law that was not looked at, one for each process and error."""
    return {
        f"{UNSEEN}, {row['process']}, error {row['error']}": figure([row["ratio"]], WANTED)
        for row in rows
        if row["law"] == UNSEEN and row["ratio"] is not None
    }


def run() -> dict[str, Any]:
    """{"table": calls of every method at each error, "ratios": over scipy RK45 by sample, "compaction"}.

    Ratios at an error: median and quartiles over laws and processes, the worst of them, and the law that was
    not looked at, by process. "compaction": rows given to the network with it over those without.
    """
    rows: list[dict[str, Any]] = []
    saved = []
    for law in LAWS:
        for process in PROCESSES:
            rows += compared(law, process)
            case = Case.of(law, process)
            (_, some), (_, every) = (ours(case, compact)(1e-5) for compact in (True, False))
            saved.append(float(some.mean() / every.mean()))
            print(law, process, *(row["ratio"] for row in rows[-len(ERRORS) :]), flush=True)
    ratios = {}
    for error in (f"{e:.0e}" for e in ERRORS):
        found = [row["ratio"] for row in rows if row["error"] == error and row["ratio"] is not None]
        ratios[f"{len(found)} cases, error {error}"] = figure(found, WANTED)
        ratios[f"worst case, error {error}"] = figure([max(found)], WANTED)
        ratios[f"part of the cases above {WANTED:g}, error {error}"] = figure(
            [float(np.mean(np.array(found) > WANTED))], None
        )
    return {"table": rows, "ratios": ratios | unseen(rows), "compaction": figure(saved, None)}


QUICK = (UNSEEN,)


def quick() -> dict[str, Any]:
    """The law that was not looked at: {"ratios"} as in `run`."""
    rows = [row for process in PROCESSES for row in compared(UNSEEN, process, every=False)]
    return {"ratios": unseen(rows)}
