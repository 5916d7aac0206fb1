"""Means of functionals: value, interval and bias against closed forms; coupling; Sobol points.

Statistical tests have fixed seeds; each says how often a right code would fail under another seed.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import sdekit as sk
from sdekit.errors import CapabilityError, NonFiniteError, ShapeError, UnknownNameError
from sdekit.estimate import Merged, QuasiNoise
from sdekit.estimate.quasi import bridge
from sdekit.noise import Noise

MU = 0.5
GBM = sk.GeometricBrownian(MU, 0.5)
ONE = torch.ones(1, 1, dtype=torch.float64)
SPAN = (0.0, 1.0)


def first(x):
    return x[:, 0]


def all_of(x):
    return x


def euler_mean(steps):
    """E X_1 of Euler-Maruyama on dX = MU X dt + ... from 1."""
    return (1.0 + MU / steps) ** steps


# -- coupling ---------------------------------------------------------------------------------------------


class OnGrid(Noise):
    """The draws of a path over a grid, in units of their standard deviations."""

    def __init__(self, nodes, normals):
        self.nodes, self.normals = nodes, normals

    def normal(self, draw, like, ids):
        step, kind = divmod(draw, self.normals)
        s, t = self.nodes[step : step + 2]
        areas = sk.BrownianTree(3).increments(s, t, like, ids)
        return areas[1 + kind] / math.sqrt((t - s) / (1, 12, 720)[kind])


@pytest.mark.parametrize("normals", [1, 2, 3])
def test_merged_noise_is_that_of_the_same_path_on_the_coarser_grid(normals):
    fine, coarse = np.linspace(0, 1, 9), np.linspace(0, 1, 5)
    like, ids = torch.zeros(6, 2, dtype=torch.float64), torch.arange(6)
    merged, wanted = Merged(OnGrid(fine, normals), normals), OnGrid(coarse, normals)
    for draw in range(4 * normals):
        torch.testing.assert_close(
            merged.normal(draw, like, ids), wanted.normal(draw, like, ids), rtol=0, atol=1e-12
        )


@pytest.mark.parametrize("method", ["mc", "qmc"])
def test_both_grids_see_one_path(method):
    found = sk.estimate(first, sk.BrownianMotion(), 0 * ONE, SPAN, steps=12, samples=256, method=method)
    assert abs(float(found.bias)) < 1e-14
    assert float(found.bias_stderr) < 1e-14


def test_value_is_the_mean_of_solve():
    found = sk.estimate(first, GBM, ONE, SPAN, steps=10, samples=300, seed=5)
    x = sk.solve(GBM, ONE.expand(300, 1), SPAN, steps=10, seed=5).x
    assert float(found.value) == float(x[:, 0].numpy().mean())
    assert float(found.stderr) == pytest.approx(float(x.std()) / math.sqrt(300), rel=1e-12)
    assert found.cost == 300 * (10 + 5)
    assert (found.samples, found.steps) == (300, 10)


# -- bias and interval ------------------------------------------------------------------------------------


def test_bias_is_the_weak_error_of_euler():
    """4.5 standard errors: fails for one seed in 10^5."""
    found = sk.estimate(first, GBM, ONE, SPAN, steps=16, samples=40_000)
    assert abs(float(found.bias) - (euler_mean(8) - euler_mean(16))) < 4.5 * float(found.bias_stderr)
    assert float(found.bias_stderr) < 0.05 * abs(float(found.bias))
    exact = euler_mean(16) - math.exp(MU)
    assert euler_mean(8) - euler_mean(16) == pytest.approx(exact, rel=0.1)
    assert float(found.bias) == pytest.approx(exact, rel=0.2)
    assert abs(float(found.value) - euler_mean(16)) < 4.5 * float(found.stderr)
    assert abs(float(found.corrected) - math.exp(MU)) < 4.5 * float(found.corrected_stderr) + 1e-3
    assert float(found.corrected) == pytest.approx(float(found.value - found.bias), abs=1e-12)


def test_the_order_of_the_solver_sets_the_factor_of_the_bias():
    """Heun's method, order 2, on dx/dt = x from random states: bias (x_2h - x_h)/3, all of it exact."""
    states = torch.linspace(1.0, 2.0, 7, dtype=torch.float64)[:, None]
    system = sk.ODE(lambda x, t: x)
    start = lambda ids: states[ids % 7]  # noqa: E731
    found = sk.estimate(first, system, start, SPAN, solver="heun", steps=8, samples=70)
    growth = [(1 + h + h * h / 2) ** round(1 / h) for h in (1 / 8, 1 / 4)]
    assert float(found.value) == pytest.approx(1.5 * growth[0], rel=1e-12)
    assert float(found.bias) == pytest.approx(1.5 * (growth[1] - growth[0]) / 3, rel=1e-10)


def coverage(truth, **options):
    """The share of intervals that hold the truth: 50 components of 40 estimates, 2,000 in all."""
    x0 = torch.ones(1, 50, dtype=torch.float64)
    process, held = sk.OrnsteinUhlenbeck(1.0, 0.0, 1.0), 0
    for seed in range(40):
        found = sk.estimate(all_of, process, x0, SPAN, seed=seed, **options)
        low, high = found.interval
        held += int(((low < truth(found)) & (truth(found) < high)).sum())
    return held / 2000


def test_intervals_cover_what_they_promise():
    """10 samples, so that Student's quantile matters (the normal one covers 92 %). Binomial with p = .95:
    outside 93 to 97 % for one seed in 25,000."""
    share = coverage(lambda found: (1 - 1 / 4) ** 4, steps=4, samples=10)
    assert 0.93 < share < 0.97


def test_the_interval_is_by_students_quantile():
    """Of 4 samples: 3.1824463 standard errors to either side, where the normal law has 1.96."""
    found = sk.estimate(first, GBM, ONE, SPAN, steps=4, samples=4)
    low, high = found.interval
    assert float(found.value - low) == pytest.approx(3.182446305284263 * float(found.stderr), rel=1e-10)
    assert float(high - found.value) == pytest.approx(3.182446305284263 * float(found.stderr), rel=1e-10)


def test_multilevel_intervals_cover_the_mean_at_the_finest_level():
    """As above; the number of samples is chosen by looking at them, which costs some coverage."""
    share = coverage(
        lambda found: (1 - 1 / found.steps) ** found.steps, method="mlmc", tolerance=0.1, samples=50
    )
    assert 0.93 < share < 0.97


# -- properties -------------------------------------------------------------------------------------------


@given(st.floats(-5, 5), st.floats(-5, 5), st.integers(0, 2**32))
def test_estimates_are_linear_in_the_functional(a, b, seed):
    plain = sk.estimate(first, GBM, ONE, SPAN, steps=4, samples=50, seed=seed)
    other = sk.estimate(lambda x: a * x[:, 0] + b, GBM, ONE, SPAN, steps=4, samples=50, seed=seed)
    close = {"rtol": 1e-10, "atol": 1e-10}
    torch.testing.assert_close(other.value, a * plain.value + b, **close)
    torch.testing.assert_close(other.stderr, abs(a) * plain.stderr, **close)
    torch.testing.assert_close(other.bias, a * plain.bias, **close)


@pytest.mark.parametrize(
    "options",
    [
        {"method": "mc", "samples": 500},
        {"method": "qmc", "samples": 256, "replicates": 4},
        {"method": "mlmc", "tolerance": 0.1, "samples": 60},
    ],
    ids=lambda o: o["method"],
)
@given(batch=st.integers(1, 600))
def test_batches_change_no_bit(options, batch):
    whole = sk.estimate(first, GBM, ONE, SPAN, steps=4, **options)
    batch = max(batch, 20)
    parts = sk.estimate(first, GBM, ONE, SPAN, steps=4, batch_size=batch, **options)
    assert repr(parts) == repr(whole)
    for name in ("value", "stderr", "bias", "bias_stderr", "corrected", "corrected_stderr"):
        assert torch.equal(getattr(parts, name), getattr(whole, name))
    other = sk.estimate(first, GBM, ONE, SPAN, steps=4, seed=1, **options)
    assert not torch.equal(other.value, whole.value)


def test_functionals_of_the_path_and_several_at_once():
    """The mean of X at 1/4, ..., 1 (sum of geometric means) and X_1, to 4.5 standard errors (1e-5)."""
    times = [0.25, 0.5, 0.75, 1.0]

    def functional(solution):
        return torch.stack([solution.xs.mean(0)[:, 0], solution.x[:, 0]], dim=1)

    found = sk.estimate(functional, GBM, ONE, SPAN, steps=16, samples=4000, save_at=times)
    assert found.value.shape == (2,)
    growth = (1 + MU / 16) ** 4
    exact = torch.tensor([sum(growth**k for k in (1, 2, 3, 4)) / 4, growth**4], dtype=torch.float64)
    assert bool(((found.value - exact).abs() < 4.5 * found.stderr).all())
    assert "f[1]" in repr(found)


def test_reversed_equations():
    process, target = sk.VP(), sk.Gaussian([1.0], variance=[0.25])
    system = sk.reverse(process, target.denoiser(process).score)
    start = torch.zeros(1, 1, dtype=torch.float64)
    found = sk.estimate(first, system, start, (1.0, 0.01), steps=20, samples=64, seed=2)
    x = sk.solve(system, start.expand(64, 1), (1.0, 0.01), steps=20, seed=2).x
    assert float(found.value) == float(x[:, 0].numpy().mean())
    assert float(found.bias_stderr) < 0.5 * float(found.stderr)


# -- quasi-Monte Carlo ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "times", [[0.0, 1.0], np.linspace(0, 2, 8), [0.0, 0.1, 0.5, 0.6, 2.0], [1.0, 0.7, 0.1]]
)
def test_the_bridge_is_orthogonal_and_coarse_first(times):
    times = np.asarray(times)
    n = len(times) - 1
    matrix = bridge(times, np.eye(n)[:, :, None])[:, :, 0]  # row k: the increments of z_k = 1
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(n), rtol=0, atol=1e-12)
    lengths = np.abs(np.diff(times))
    total = matrix @ np.sqrt(lengths)  # W at the end
    np.testing.assert_allclose(total[0], math.sqrt(lengths.sum()))
    np.testing.assert_allclose(total[1:], 0, atol=1e-12)
    shares = (np.cumsum(matrix * np.sqrt(lengths), axis=1) ** 2).sum(axis=1)
    assert n == 1 or shares[0] > shares[1:].sum()


def test_quasi_noise_is_a_function_of_the_id():
    noise = QuasiNoise(tuple(np.linspace(0, 1, 6)), seed=4, normals=2)
    like = torch.zeros(64, 3, dtype=torch.float64)
    whole = torch.stack([noise.normal(k, like, torch.arange(64)) for k in range(10)])
    for ids in (torch.arange(8, 16), torch.tensor([5, 60, 0, 5]), torch.arange(3) + 2**40):
        rows = torch.stack([noise.normal(k, like[: len(ids)], ids) for k in range(10)])
        assert torch.equal(rows, whole[:, ids % 2**40])
    again = QuasiNoise(noise.times, seed=4, replicate=1, normals=2)
    assert not torch.equal(again.normal(0, like, torch.arange(64)), whole[0])


def test_quasi_noise_has_the_moments_of_normals():
    """4,096 points: means to 0.005, squares to 2 %, products to 5 %, where random ones err by 1.6 % (sd)."""
    noise = QuasiNoise(tuple(np.linspace(0, 1, 5)), normals=2)
    like = torch.zeros(4096, 2, dtype=torch.float64)
    z = torch.cat([noise.normal(k, like, torch.arange(4096)) for k in range(8)], dim=1)
    moments = z.T @ z / 4096
    assert float(z.mean(0).abs().max()) < 0.005
    assert float((moments - torch.eye(16)).abs().max()) < 0.05
    assert float((moments.diagonal() - 1).abs().max()) < 0.02


def asian(solution):
    return torch.clamp(solution.xs.mean(0)[:, 0] - 1.2, min=0)


@pytest.mark.parametrize(
    ("functional", "save_at", "gain"),
    [
        (lambda x: torch.clamp(x[:, 0] - 1.2, min=0), None, 10.0),
        (asian, np.linspace(0.125, 1, 8).tolist(), 7.0),
    ],
    ids=["European", "Asian"],
)
def test_sobol_points_beat_random_ones_at_equal_samples(functional, save_at, gain):
    """Standard deviations over 12 seeds each. Over 40 their ratios are 28 and 18; that of 12 falls below 0.39
    of the true one for one seed in 500 (F distribution, 11 and 11 degrees of freedom)."""
    spread = {}
    for method in ("mc", "qmc"):
        values = [
            sk.estimate(
                functional,
                GBM,
                ONE,
                SPAN,
                method=method,
                steps=8,
                samples=2048,
                replicates=4,
                seed=seed,
                save_at=save_at,
            ).value
            for seed in range(12)
        ]
        spread[method] = float(torch.stack(values).std())
    assert spread["mc"] > gain * spread["qmc"]


def test_scramblings_give_an_honest_standard_error():
    """Mean over 30 seeds of error^2/stderr^2 is that of F(1, 15), mean 15/13, sd about 1.9: within 4.5 sd
    of the mean of 30, and not far below."""
    ratios = []
    for seed in range(30):
        found = sk.estimate(
            first, GBM, ONE, SPAN, method="qmc", steps=4, samples=512, replicates=16, seed=seed
        )
        ratios.append(float((found.value - euler_mean(4)) / found.stderr) ** 2)
    assert 0.25 < np.mean(ratios) < 15 / 13 + 4.5 * 1.9 / math.sqrt(30)


# -- errors -----------------------------------------------------------------------------------------------


def test_non_finite_functionals_are_counted():
    with pytest.raises(NonFiniteError, match=r"for \d+ of 200 samples at 4 steps"):
        sk.estimate(lambda x: torch.log(x[:, 0] - 1), GBM, ONE, SPAN, steps=4, samples=200)


@pytest.mark.parametrize("functional", [lambda x: x.mean(), lambda x: x[:, :, None], lambda x: 1.0])
def test_functionals_that_average_are_refused(functional):
    with pytest.raises(ShapeError, match="one row for each of B = 50 samples"):
        sk.estimate(functional, GBM, ONE, SPAN, steps=4, samples=50)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"method": "mlcm"}, UnknownNameError, "mlmc"),
        ({"method": "mlmc"}, ValueError, "needs a tolerance"),
        ({"tolerance": 0.1}, ValueError, "method='mlmc'"),
        ({"method": "mlmc", "tolerance": -1.0}, ValueError, "tolerance must be finite and > 0"),
        ({"steps": 5}, ValueError, "steps must be even"),
        ({"samples": 1}, ValueError, "samples must be a whole number >= 2"),
        ({"confidence": 1.0}, ValueError, "between 0 and 1"),
        ({"batch_size": 0}, ValueError, "batch_size"),
        ({"method": "qmc", "steps": 30_000, "samples": 32}, ValueError, "at most 21201 dimensions"),
        ({"solver": "scipy:RK45"}, CapabilityError, "solves ODEs only"),
    ],
    ids=str,
)
def test_arguments_that_make_no_sense(options, error, words):
    with pytest.raises(error, match=words):
        sk.estimate(first, GBM, ONE, SPAN, **options)


def test_arguments_in_another_order():
    with pytest.raises(TypeError, match="functional must be callable"):
        sk.estimate(GBM, first, ONE, SPAN)
    with pytest.raises(ValueError, match="x0 must be one initial state"):
        sk.estimate(first, GBM, ONE.expand(3, 1), SPAN)
    with pytest.raises(ValueError, match="span must be a pair"):
        sk.estimate(first, GBM, ONE, [0.0, 0.5, 1.0])
    with pytest.raises(ValueError, match="noise of step 4"):
        QuasiNoise((0.0, 0.5, 1.0)).normal(4, ONE, torch.arange(1))
