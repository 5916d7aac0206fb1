"""`ensemble`: the statistics of the stored paths, and the moments of laws in closed form.

Statistical tests compare one figure with its exact value at 4 standard errors: a false alarm in 6e-5 of all
seeds; the seeds are fixed.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import sdekit as sk
from sdekit.errors import CapabilityError, NonFiniteError, ShapeError
from sdekit.solvers.compiled.statistics import ERROR, Moments, Sketch

COUNT = 9001  # three pieces, the last of them not full
OU = sk.compiled(lambda x, t: -1.5 * x, lambda x, t: 0.4, noise_type="additive")
GBM = sk.compiled(lambda x, t: 0.3 * x, lambda x, t: 0.5 * x)
PAIR = sk.compiled(
    lambda x, t: (x[1], -x[0] - 0.5 * x[1]), lambda x, t: (0.1, 0.3), dim=2, noise_type="additive"
)
SAVE = [0.0, 0.5, 1.0]


def stored(seed=3, start=None, **options):
    x0 = torch.tensor([1.0, 0.0], dtype=torch.float64).expand(COUNT, 2) if start is None else start
    return sk.solve(PAIR, x0, (0.0, 1.0), steps=20, seed=seed, backend="numba", save_at=SAVE, **options)


def passing(x, t):
    return 0.7 - x[0] - 0.1 * t


@pytest.fixture(scope="module")
def gathered():
    start = torch.tensor([1.0, 0.0], dtype=torch.float64)
    return sk.ensemble(
        PAIR, start, (0.0, 1.0), paths=COUNT, steps=20, seed=3, save_at=SAVE, quantiles=True, passage=passing
    )


def test_moments_are_those_of_the_stored_paths(gathered):
    xs = stored().xs
    assert gathered.count == COUNT
    assert gathered.ts.tolist() == SAVE
    torch.testing.assert_close(gathered.mean, xs.mean(dim=1), rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(gathered.variance, xs.var(dim=1), rtol=1e-12, atol=1e-15)
    torch.testing.assert_close(gathered.standard_error, xs.var(dim=1).sqrt() / math.sqrt(COUNT))


def test_quantiles_are_those_of_the_stored_paths_within_the_stated_error(gathered):
    xs = stored().xs.numpy()
    q = [0.0, 0.001, 0.05, 0.5, 0.9, 1.0]
    exact = np.quantile(xs, q, axis=1, method="inverted_cdf")
    middle = np.median(xs[:, :4096], axis=1)
    low, high = np.quantile(xs[:, :4096], [0.25, 0.75], axis=1)
    bound = ERROR[0] * np.abs(exact - middle) + ERROR[1] * np.where(high > low, high - low, 1.0)
    found = gathered.quantile(q)
    assert found.shape == (6, 3, 2)
    assert (np.abs(found.numpy() - exact) <= bound).all()
    assert torch.equal(gathered.quantile(0.05), found[2])


def test_passages_are_those_of_the_stored_paths(gathered):
    grid = np.linspace(0.0, 1.0, 21)
    x0 = torch.tensor([1.0, 0.0], dtype=torch.float64).expand(COUNT, 2)
    xs = sk.solve(PAIR, x0, (0.0, 1.0), steps=20, seed=3, backend="numba", save_at=grid).xs
    beyond = np.stack([passing((x[:, 0], x[:, 1]), t).numpy() >= 0 for x, t in zip(xs, grid, strict=True)])
    times = np.where(beyond.any(axis=0), grid[beyond.argmax(axis=0)], np.inf)
    assert 0.05 < np.isfinite(times).mean() < 0.95
    assert np.array_equal(gathered.passage.numpy(), times)


def test_a_path_that_starts_beyond_has_passed():
    run = sk.ensemble(OU, [[1.0], [3.0], [2.0]], (0.0, 1.0), steps=2, passage=lambda x, t: x - 2.0)
    assert run.passage[1] == run.passage[2] == 0.0


def test_starts_for_each_path_and_ids(gathered):
    start = torch.from_numpy(np.random.default_rng(0).normal(size=(COUNT, 2)))
    run = sk.ensemble(PAIR, start, (0.0, 1.0), steps=20, seed=3, save_at=SAVE, first_id=7)
    xs = stored(start=start, first_id=7).xs
    torch.testing.assert_close(run.mean, xs.mean(dim=1), rtol=1e-12, atol=1e-13)
    assert run.passage is None


def test_the_result_does_not_depend_on_threads(gathered):
    torch.set_num_threads(2)
    try:
        start = torch.tensor([1.0, 0.0], dtype=torch.float64)
        again = sk.ensemble(
            PAIR, start, (0.0, 1.0), paths=COUNT, steps=20, seed=3, save_at=SAVE, quantiles=True
        )
    finally:
        torch.set_num_threads(1)
    assert torch.equal(again.mean, gathered.mean)
    assert torch.equal(again.variance, gathered.variance)
    assert torch.equal(again.quantile(0.3), gathered.quantile(0.3))


def test_the_end_alone_and_one_number():
    run = sk.ensemble(OU, 1.0, (0.0, 1.0), paths=500, steps=4)
    assert run.ts.tolist() == [1.0]
    assert run.mean.shape == (1,)
    x = sk.solve(OU, torch.ones(500), (0.0, 1.0), steps=4, backend="numba").x.double()
    torch.testing.assert_close(run.mean[0], x.mean())


# -- laws --------------------------------------------------------------------------------------------------

PATHS, STEPS, T = 100_000, 25, 1.0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_moments_of_ornstein_uhlenbeck(dtype):
    """Euler-Maruyama's chain x' = (1 - 1.5 h) x + 0.4 W is Gaussian, with these moments."""
    h = T / STEPS
    a = 1.0 - 1.5 * h
    mean = a**STEPS
    variance = 0.16 * h * (1 - a ** (2 * STEPS)) / (1 - a * a)
    run = sk.ensemble(
        OU, torch.ones(1, dtype=dtype), (0.0, T), paths=PATHS, steps=STEPS, seed=1, quantiles=True
    )
    assert abs(float(run.mean[0, 0]) - mean) < 4 * math.sqrt(variance / PATHS)
    assert abs(float(run.variance[0, 0]) - variance) < 4 * variance * math.sqrt(2 / PATHS)
    for q, z, density in ((0.05, -1.6448536269514722, 0.10313564), (0.9, 1.2815515655446004, 0.17549833)):
        error = math.sqrt(q * (1 - q) / PATHS) / density + 2.0**-7 * abs(z) / 4
        assert abs((float(run.quantile(q)[0, 0]) - mean) / math.sqrt(variance) - z) < 4 * error


def test_moments_of_geometric_brownian_motion():
    """Of the chain x' = x (1 + 0.3 h + 0.5 W): E x^p is the n-th power of that of one step; of x^4 too."""
    h = T / STEPS
    b, v = 1 + 0.3 * h, 0.25 * h
    first = b**STEPS
    second = (b * b + v) ** STEPS
    third = (b**3 + 3 * b * v) ** STEPS
    fourth = (b**4 + 6 * b * b * v + 3 * v * v) ** STEPS
    variance = second - first**2
    central = fourth - 4 * first * third + 6 * first**2 * second - 3 * first**4
    run = sk.ensemble(GBM, 1.0, (0.0, T), paths=PATHS, steps=STEPS, seed=2)
    assert abs(float(run.mean[0]) - first) < 4 * math.sqrt(variance / PATHS)
    assert abs(float(run.variance[0]) - variance) < 4 * math.sqrt((central - variance**2) / PATHS)


# -- the parts ---------------------------------------------------------------------------------------------


@given(
    sizes=st.lists(st.integers(0, 40), min_size=1, max_size=8),
    shift=st.sampled_from([0.0, 1e6]),
    order=st.randoms(use_true_random=False),
)
def test_moments_merge(sizes, shift, order):
    pieces = [np.random.default_rng(i).normal(size=(n, 2)) + shift for i, n in enumerate(sizes)]
    whole = np.concatenate(pieces)
    results = []
    for shuffled in (False, True):
        numbered = list(enumerate(pieces))
        if shuffled:
            order.shuffle(numbered)
        moments = Moments()
        for number, piece in numbered:
            moments.add(number, piece)
        results.append(moments)
    a, b = results
    assert a.count == b.count == len(whole)
    if len(whole):
        assert np.array_equal(a.mean, b.mean)
        assert np.array_equal(a.squares, b.squares)
        np.testing.assert_allclose(a.mean, whole.mean(axis=0), rtol=1e-13, atol=1e-14)
        np.testing.assert_allclose(a.squares, whole.var(axis=0) * len(whole), rtol=1e-9, atol=1e-9)


@given(
    n=st.integers(1, 300),
    power=st.sampled_from([1, 3, 5]),
    shift=st.sampled_from([0.0, -7.0, 1e5]),
    scale=st.sampled_from([1e-3, 1.0, 1e4]),
    q=st.floats(0.0, 1.0),
    seed=st.integers(0, 1000),
)
def test_the_sketch_keeps_its_error(n, power, shift, scale, q, seed):
    x = shift + scale * np.random.default_rng(seed).normal(size=(n, 3)) ** power
    sketch = Sketch(x[: max(n // 3, 1)])
    sketch.add(x[: n // 2])
    sketch.add(x[n // 2 :])
    exact = np.quantile(x, q, axis=0, method="inverted_cdf")
    bound = ERROR[0] * np.abs(exact - sketch.centre) + ERROR[1] * sketch.scale
    assert (np.abs(sketch.quantile(q) - exact) <= bound * (1 + 1e-9) + 1e-12 * abs(shift)).all()


# -- what is refused, and what fails -----------------------------------------------------------------------


def test_failures_are_raised_or_left_out():
    sde = sk.compiled(lambda x, t: x**3, lambda x, t: 0.1 * x)
    x0 = torch.full((5000, 1), 0.1, dtype=torch.float64)
    x0[4321] = 40.0
    with pytest.raises(NonFiniteError, match=r"1 of 5000 paths.*path 5321 .*step \d of 40.*first_id=5321"):
        sk.ensemble(sde, x0, (0.0, 1.0), steps=40, first_id=1000)
    run = sk.ensemble(sde, x0, (0.0, 1.0), steps=40, first_id=1000, throw=False, quantiles=True)
    assert run.failed.tolist() == [5321]
    assert run.count == 4999
    kept = sk.solve(sde, x0, (0.0, 1.0), steps=40, first_id=1000, throw=False, backend="numba").x
    torch.testing.assert_close(run.mean[0], kept[kept.isfinite()].mean()[None])
    assert "1 failed" in repr(run)


def test_arguments():
    cases = [
        (CapabilityError, "sdekit.compiled", (sk.GeometricBrownian(), 1.0), {"paths": 5}),
        (CapabilityError, "no solver", (OU, 1.0), {"paths": 5, "solver": "tamed-euler"}),
        (CapabilityError, "TorchNoise", (OU, 1.0), {"paths": 5, "noise": sk.TorchNoise()}),
        (ShapeError, "dim=2", (PAIR, [1.0, 2.0, 3.0]), {"paths": 5}),
        (ShapeError, "0-d", (OU, 1.0), {}),
        (ValueError, "paths", (OU, 1.0), {"paths": 0}),
        (ValueError, "no state", (OU, torch.zeros(0, 1)), {}),
        (ValueError, "save_at", (OU, 1.0), {"paths": 5, "save_at": [2.0]}),
    ]
    for error, message, args, options in cases:
        with pytest.raises(error, match=message):
            sk.ensemble(*args, (0.0, 1.0), steps=3, **options)
    run = sk.ensemble(OU, 1.0, (0.0, 1.0), paths=5, steps=3)
    with pytest.raises(ValueError, match="quantiles=True"):
        run.quantile(0.5)
    run = sk.ensemble(OU, 1.0, (0.0, 1.0), paths=5, steps=3, quantiles=True)
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        run.quantile([0.5, 1.5])


def test_progress(capsys):
    sk.ensemble(OU, 1.0, (0.0, 1.0), paths=9000, steps=3, progress=True)
    assert "100%" in capsys.readouterr().err
