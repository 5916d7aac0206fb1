"""Multilevel Monte Carlo: the error asked for, the levels it takes, and what they cost.

Statistical tests have fixed seeds; each says how often a right code would fail under another seed.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats

import sdekit as sk
from sdekit.errors import SolveError

MU = 0.5
GBM = sk.GeometricBrownian(MU, 0.5)
SPAN = (0.0, 1.0)


def all_of(x):
    return x


def run(tolerance, *, width=1, **options):
    x0 = torch.ones(1, width, dtype=torch.float64)
    return sk.estimate(all_of, GBM, x0, SPAN, method="mlmc", tolerance=tolerance, **options)


def euler_mean(steps):
    return (1.0 + MU / steps) ** steps


@pytest.mark.parametrize("solver", ["euler-maruyama", "milstein"])
def test_the_error_is_what_was_asked_for(solver):
    """4 seeds of 50 independent components; the expected RMS is 0.7 tolerance, with an sd of 5 % of it."""
    errors = torch.cat(
        [run(0.05, width=50, samples=100, seed=seed, solver=solver).value - math.exp(MU) for seed in range(4)]
    )
    rms = float(errors.square().mean().sqrt())
    assert 0.4 * 0.05 < rms < 0.05


@pytest.mark.parametrize("solver", ["euler-maruyama", "milstein"])
def test_levels_are_differences_along_one_path(solver):
    """Means against E P_l - E P_(l-1), at 4.5 standard errors (one seed in 10^5 for each of 4 levels).
    Variances fall by 2 (strong order 1/2) and 4 (strong order 1) a level, here within 15 and 30 %."""
    found = run(0.01, solver=solver, steps=8, samples=4000)
    for level in found.levels[1:4]:
        exact = euler_mean(level.steps) - euler_mean(level.steps // 2)
        error = math.sqrt(float(level.variance) / level.samples)
        assert abs(float(level.mean) - exact) < 4.5 * error
        assert level.cost == 1.5 * level.steps
    assert abs(float(found.levels[0].mean) - euler_mean(8)) < 4.5 * math.sqrt(
        float(found.levels[0].variance) / found.levels[0].samples
    )
    ratio = float(found.levels[1].variance / found.levels[2].variance)
    assert ratio == pytest.approx(2 if solver == "euler-maruyama" else 4, rel=0.3)


def test_errors_are_those_of_the_sum_over_levels():
    """Variances add up; Welch and Satterthwaite's degrees of freedom; and the corrected value, with bias
    -m_L for a weak order of 1, holds the last mean twice: its variance four times."""
    found = run(0.2, samples=20)
    parts = np.array([float(level.variance) / level.samples for level in found.levels])
    free = np.array([level.samples - 1 for level in found.levels])
    assert len(parts) > 1
    assert float(found.stderr) == pytest.approx(math.sqrt(parts.sum()), rel=1e-12)
    reach = stats.t.ppf(0.975, parts.sum() ** 2 / (parts**2 / free).sum()) * math.sqrt(parts.sum())
    assert float(found.interval[1] - found.value) == pytest.approx(reach, rel=1e-9)
    assert float(found.corrected - found.value) == pytest.approx(float(found.levels[-1].mean), rel=1e-9)
    assert float(found.corrected_stderr) == pytest.approx(
        math.sqrt(parts[:-1].sum() + 4 * parts[-1]), rel=1e-12
    )


def test_samples_are_shared_out_at_least_cost():
    """N_l proportional to sqrt(V_l/C_l), and sum V_l/N_l = 3/4 tolerance^2, by the table itself."""
    tolerance = 0.01
    found = run(tolerance, samples=100)
    n, v, c = (
        np.array([float(getattr(level, name)) for level in found.levels])
        for name in ("samples", "variance", "cost")
    )
    total = float((v / n).sum())
    assert total <= 0.75 * tolerance**2 * 1.03
    assert float(found.stderr) == pytest.approx(math.sqrt(total))
    wanted = np.sqrt(v / c) * np.sqrt(v * c).sum() / (0.75 * tolerance**2)
    plenty = wanted > 200  # above the least numbers of the first levels
    assert plenty.sum() >= 3
    assert (n[plenty] >= 0.95 * wanted[plenty]).all()
    assert n[0] == pytest.approx(wanted[0], rel=0.15)
    assert found.samples == n.sum()
    assert found.cost == pytest.approx(float((n * c).sum()))
    assert abs(float(found.bias)) <= tolerance / 2
    assert float(found.value) == pytest.approx(sum(float(level.mean) for level in found.levels))
    assert "level   steps" in repr(found)


def test_levels_do_not_share_their_noise():
    """Level 0 of one seed is the plain mean of its own samples; level 1 starts with other draws."""
    found = run(0.1, samples=64, steps=4)
    count = found.levels[0].samples
    x = sk.solve(GBM, torch.ones(count, 1, dtype=torch.float64), SPAN, steps=4).x
    assert float(found.levels[0].mean) == pytest.approx(float(x.mean()), rel=1e-12)
    fine = sk.solve(GBM, torch.ones(64, 1, dtype=torch.float64), SPAN, steps=8).x
    other = sk.solve(GBM, torch.ones(64, 1, dtype=torch.float64), SPAN, steps=8, first_id=2**40).x
    assert not torch.equal(fine, other)


def test_constants_cost_the_first_levels_only():
    found = sk.estimate(
        lambda x: torch.ones(len(x)), GBM, torch.ones(1, 1), SPAN, method="mlmc", tolerance=1e-6, samples=10
    )
    assert float(found.value) == 1.0
    assert float(found.stderr) == 0.0
    assert [level.samples for level in found.levels] == [10, 10, 10]


def test_a_tolerance_out_of_reach_is_told():
    with pytest.raises(SolveError, match="not reached with 3 levels: at 16 steps the bias"):
        run(0.002, samples=20, max_levels=3)


@pytest.mark.slow
def test_cost_grows_as_the_tolerance_squared():
    """Over a factor 16 in tolerance, 6 seeds: Milstein, strong order 1, has slope 2; Euler-Maruyama, strong
    order 1/2, has eps^-2 log^2 eps, a slope of 2.2 to 2.4 here; plain Monte Carlo would have 3. Three other
    sets of seeds gave 1.94 each time, and 2.24, 2.28 and 2.33."""
    slope = {}
    for solver in ("milstein", "euler-maruyama"):
        costs = [
            np.mean([run(tolerance, samples=200, seed=seed, solver=solver).cost for seed in range(6)])
            for tolerance in (0.02, 0.00125)
        ]
        slope[solver] = math.log(costs[1] / costs[0]) / math.log(16)
    assert 1.85 < slope["milstein"] < 2.1
    assert slope["milstein"] + 0.1 < slope["euler-maruyama"] < 2.7


def test_a_tolerance_beyond_any_memory_is_refused():
    with pytest.raises(SolveError, match=r"asks for .*e\+1\d samples.*larger tolerance"):
        run(1e-9, samples=100)
