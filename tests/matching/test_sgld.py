"""Stochastic gradient Langevin dynamics: exact laws on Gaussian models, purity, conditions on schedules."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import sdekit as sk
from sdekit.errors import NonFiniteError, ShapeError
from sdekit.matching.schedules import PolynomialDecay, RobbinsMonro, robbins_monro
from sdekit.matching.sgld import Chains, sgld

DECAY = PolynomialDecay(1e-3)


def normal(n, *event, seed=0):
    return torch.randn(n, *event, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def likelihood(x, y):
    """log N(y; x, I) of y (B, n, D)."""
    return -0.5 * (y - x[:, None]).square().sum(-1)


def test_all_the_data_in_every_batch_is_ula():
    """The chain of `solve` with steps eps/2, bit for bit up to the order of two products."""
    data, x0 = normal(20, 3), normal(5, 3, seed=1)
    prior = sk.Gaussian(torch.zeros(3), variance=2.0)
    found = sgld(likelihood, data, x0, log_prior=prior.log_prob, schedule=0.02, steps=7, biased=True, seed=3)
    posterior = sk.Langevin(lambda x: -x / 2 + (data.sum(0) - 20 * x))
    run = sk.solve(
        posterior, x0, (0.0, 0.07), steps=7, solver="ula", seed=3, save_at=[0.01 * k for k in range(1, 8)]
    )
    torch.testing.assert_close(found.xs, run.xs, rtol=1e-12, atol=1e-12)
    assert torch.equal(found.x, found.xs[-1])


def test_a_centre_changes_nothing_where_the_batch_is_all_data_nor_for_linear_gradients():
    """The prior counts once, at the state. Linear gradients: any batch gives that of all the data."""
    data, x0 = normal(20, 3), normal(5, 3, seed=1)
    options = {"schedule": 0.02, "steps": 4, "biased": True, "seed": 3}
    options["log_prior"] = lambda x: -((x - 2.0).pow(4)).sum(1)
    centre = torch.tensor([0.5, -1.0, 2.5], dtype=torch.float64)
    plain = sgld(likelihood, data, x0, **options)
    for size in (None, 4):
        found = sgld(likelihood, data, x0, centre=centre, batch_size=size, **options)
        torch.testing.assert_close(found.xs, plain.xs, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("centred", [False, True])
def test_the_law_of_a_constant_step_is_the_exact_one(centred):
    """On N data y ~ N(x, 1) the step is linear: x' = (1 - eps N/2) x + (eps N/2) mean(batch) + sqrt(eps) xi,

        v = (eps + (eps N/2)^2 S/n)/(1 - (1 - eps N/2)^2),     S the variance of the data;

    with a centre the batch cancels, S = 0. 40,000 chains; the variance and the mean within 5 of their
    standard errors, false alarms 1e-6 each.
    """
    size, batch, eps, chains = 50, 5, 0.01, 40_000
    data = 3 * normal(size, 1)
    mean, spread = float(data.mean()), float(data.var(correction=0))
    q = 1 - eps * size / 2
    v = (eps + (0 if centred else (1 - q) ** 2 * spread / batch)) / (1 - q**2)
    x = sgld(
        likelihood,
        data,
        torch.full((chains, 1), mean, dtype=torch.float64),
        schedule=eps,
        biased=True,
        steps=60,
        batch_size=batch,
        centre=torch.tensor([mean + 0.3], dtype=torch.float64) if centred else None,
        burn_in=59,
    ).x
    assert abs(float(x.mean()) - mean) < 5 * math.sqrt(v / chains)
    assert abs(float(x.var()) / v - 1) < 5 * math.sqrt(2 / chains)


@pytest.mark.parametrize("kind", ["number", "diagonal", "matrix"])
def test_a_preconditioner_leaves_the_posterior(kind):
    """One step from x: N(x + (eps/2) M g, eps M). 5 standard errors: false alarms 1e-6 each."""
    matrix = torch.tensor([[2.0, -0.6], [-0.6, 0.5]], dtype=torch.float64)
    given, matrix = {
        "number": (0.7, 0.7 * torch.eye(2, dtype=torch.float64)),
        "diagonal": (matrix.diagonal(), torch.diag(matrix.diagonal())),
        "matrix": (matrix, matrix),
    }[kind]
    data, x0, n, eps = normal(4, 2), torch.tensor([[0.5, -1.0]], dtype=torch.float64), 100_000, 0.1
    x = sgld(likelihood, data, x0.expand(n, 2), schedule=eps, biased=True, steps=1, preconditioner=given).x
    mean = x0[0] + 0.5 * eps * matrix @ (data.sum(0) - 4 * x0[0])
    cov = eps * matrix
    error = (x.mean(0) - mean) / (cov.diagonal() / n).sqrt()
    assert float(error.abs().max()) < 5
    scale = ((cov.diagonal()[:, None] * cov.diagonal() + cov**2) / n).sqrt()
    assert float(((x.T.cov() - cov) / scale).abs().max()) < 5


def test_a_chain_is_the_same_alone_and_in_a_batch():
    data, x0 = normal(30, 2), normal(4, 2, seed=1)
    options = {"schedule": DECAY, "steps": 5, "batch_size": 7, "seed": 2}
    matrix = torch.tensor([[1.0, 0.3], [0.3, 2.0]])
    together = sgld(likelihood, data, x0, preconditioner=matrix, **options)
    for i in range(4):
        alone = sgld(likelihood, data, x0[i : i + 1], preconditioner=matrix, first_id=i, **options)
        assert torch.equal(alone.xs[:, 0], together.xs[:, i])
    other = sgld(likelihood, data, x0, preconditioner=matrix, **{**options, "seed": 3})
    assert not torch.equal(other.x, together.x)


def test_batches_are_uniform_and_differ_between_chains_and_steps():
    """1,000 x 4 draws of 3 of 10 rows: chi-square below its 1 - 1e-6 quantile, 45.1 at 9 degrees."""
    seen = []

    def record(x, y):
        seen.append(y[..., 0].long())
        return 0 * x.sum(-1, keepdim=True) * y[..., 0]

    rows = torch.arange(10, dtype=torch.float64)[:, None]
    sgld(record, rows, torch.zeros(1000, 1, dtype=torch.float64), schedule=DECAY, steps=4, batch_size=3)
    drawn = torch.stack(seen)
    assert drawn.shape == (4, 1000, 3)
    counts = torch.bincount(drawn.flatten(), minlength=10)
    assert float(((counts - 1200.0) ** 2 / 1200).sum()) < 45.1
    assert not torch.equal(drawn[0], drawn[1])
    assert len(torch.unique(drawn[0], dim=0)) > 500


def test_states_are_kept_with_their_steps():
    data, x0 = normal(6, 1), normal(3, 1, seed=1)
    every = sgld(likelihood, data, x0, schedule=DECAY, steps=11)
    some = sgld(likelihood, data, x0, schedule=DECAY, steps=11, burn_in=3, save_every=2)
    assert torch.equal(some.xs, every.xs[[4, 6, 8, 10]])
    assert some.weights.tolist() == [DECAY(k) for k in (4, 6, 8, 10)]


def test_averages_weigh_states_by_their_steps():
    xs = torch.tensor([[[1.0], [3.0]], [[5.0], [5.0]]])
    chains = Chains(xs, torch.tensor([3.0, 1.0], dtype=torch.float64))
    assert chains.average(xs).tolist() == [[2.0], [3.5]]
    assert chains.mean.tolist() == [2.75]
    expected = (3 * (1.75**2 + 0.25**2) + 2 * 2.25**2) / 8
    assert float(chains.std) ** 2 == pytest.approx(expected)
    assert float(chains.stderr) == pytest.approx(0.75)  # half the difference of the chains
    assert float(chains.ess) == pytest.approx(expected / 0.75**2)
    assert math.isnan(float(Chains(xs[:, :1], chains.weights).stderr))


def test_shrinking_steps_reach_the_posterior():
    """Bayes by conjugacy: N data with a N(0, 4) prior. Mean within 5 standard errors of the chains, deviation
    within 3 %: the bias at the last steps is a part eps (N + N^2 S/n)/4 = 1.2 % of the variance, and the
    statistical error of the deviation 0.4 %."""
    data = normal(40, 1) + 1.5
    precision = 40 + 0.25
    found = sgld(
        likelihood,
        data,
        torch.zeros(400, 1, dtype=torch.float64),
        log_prior=lambda x: -x[:, 0].square() / 8,
        schedule=PolynomialDecay.between(5e-3, 2e-4, 1500),
        steps=1500,
        batch_size=10,
        burn_in=500,
        save_every=5,
    )
    assert abs(float(found.mean - data.sum() / precision)) < 5 * float(found.stderr)
    assert float(found.std) * math.sqrt(precision) == pytest.approx(1, abs=0.03)


# -- schedules ------------------------------------------------------------------------------------------


@settings(max_examples=50, deadline=None)
@given(st.floats(0.51, 1.0), st.floats(1e-4, 1e3), st.floats(0.1, 1e3))
def test_polynomial_decay_is_its_formula_and_measured_as_such(gamma, a, b):
    schedule = PolynomialDecay(a, b, gamma)
    assert schedule(9) == pytest.approx(a / (b + 9) ** gamma)
    assert robbins_monro(schedule) == RobbinsMonro(gamma)
    assert robbins_monro(lambda k: schedule(k)).decay == pytest.approx(gamma, abs=1e-3)
    between = PolynomialDecay.between(a, a / 7, 100, gamma)
    assert between(0) == pytest.approx(a)
    assert between(100) == pytest.approx(a / 7)


@pytest.mark.parametrize("gamma", [1.01, 2.0])
def test_the_first_condition_is_named(gamma):
    with pytest.raises(ValueError, match="first Robbins-Monro condition, sum eps_k = infinity"):
        PolynomialDecay(1.0, 1.0, gamma)
    for schedule in (lambda k: (1 + k) ** -gamma, lambda k: 0.9**k):
        with pytest.raises(ValueError, match="first Robbins-Monro condition"):
            sgld(likelihood, normal(3, 1), normal(2, 1), schedule=schedule, steps=2, biased=True)


@pytest.mark.parametrize("gamma", [0.1, 0.5])
def test_the_second_condition_is_named(gamma):
    with pytest.raises(ValueError, match=r"second Robbins-Monro condition, sum eps_k\^2 < infinity"):
        PolynomialDecay(1.0, 1.0, gamma)
    data, x0 = normal(3, 1), normal(2, 1)
    for schedule in (0.01, lambda k: 0.01 * (1 + k) ** -gamma):
        with pytest.raises(ValueError, match="second Robbins-Monro condition.*biased=True"):
            sgld(likelihood, data, x0, schedule=schedule, steps=2)
        assert sgld(likelihood, data, x0, schedule=schedule, steps=2, biased=True).xs.shape == (2, 2, 1)


def test_boundaries_of_the_conditions():
    assert RobbinsMonro(1.0).sum_diverges
    assert not RobbinsMonro(1.001).sum_diverges
    assert not RobbinsMonro(0.5).squares_converge
    assert RobbinsMonro(0.501).squares_converge


@pytest.mark.parametrize("schedule", [0.0, -0.1, math.nan, lambda k: -1.0])
def test_steps_that_are_not_positive_are_refused(schedule):
    with pytest.raises(ValueError, match="must be finite and > 0"):
        sgld(likelihood, normal(3, 1), normal(2, 1), schedule=schedule, steps=2, biased=True)


def test_between_needs_steps_that_fall():
    with pytest.raises(ValueError, match="last must be less than first"):
        PolynomialDecay.between(0.1, 0.1, 10)


# -- bad input ------------------------------------------------------------------------------------------


def run(fn=likelihood, data=None, x0=None, **options):
    data = normal(6, 2) if data is None else data
    return sgld(fn, data, normal(2, 2) if x0 is None else x0, **({"schedule": DECAY, "steps": 2} | options))


def test_functions_of_the_wrong_shape_are_named():
    with pytest.raises(ShapeError, match=r"log_likelihood must return shape \(2, 6\)"):
        run(lambda x, y: likelihood(x, y).sum(1))
    with pytest.raises(ShapeError, match=r"log_likelihood must return shape \(2, 3\)"):
        run(lambda x, y: y, batch_size=3)
    with pytest.raises(ShapeError, match=r"log_prior must return shape \(2,\), \(B,\), one a chain"):
        run(log_prior=lambda x: x)


def test_bad_data_are_refused():
    with pytest.raises(ShapeError, match="one and the same number"):
        run(data=(normal(6, 2), normal(5, 1)))
    with pytest.raises(ShapeError, match="one and the same number"):
        run(data=[])
    with pytest.raises(NonFiniteError, match="data 0 holds NaN"):
        run(data=torch.tensor([[math.nan, 0.0]]))
    with pytest.raises(ShapeError, match="floating"):
        run(x0=torch.zeros(2, 2, dtype=torch.long))


def test_bad_preconditioners_are_refused():
    with pytest.raises(ValueError, match="> 0 in every element"):
        run(preconditioner=torch.tensor([1.0, 0.0]))
    with pytest.raises(ShapeError, match=r"the diagonal \(2,\) or a matrix \(2, 2\)"):
        run(preconditioner=torch.ones(3))
    for matrix in ([[1.0, 2.0], [2.0, 1.0]], [[1.0, 0.5], [0.0, 1.0]]):
        with pytest.raises(ValueError, match="symmetric and positive definite"):
            run(preconditioner=matrix)


def test_other_bad_numbers_are_refused():
    with pytest.raises(ValueError, match="none is kept"):
        run(burn_in=2)
    with pytest.raises(ValueError, match="batch_size"):
        run(batch_size=0)
    with pytest.raises(ShapeError, match=r"centre must have shape \(2,\)"):
        run(centre=torch.zeros(3))


def test_a_chain_that_diverges_is_named():
    with pytest.raises(NonFiniteError, match="first: chain 1.*4/L"):
        run(
            x0=torch.tensor([[0.0, 0.0], [1e300, 0.0]], dtype=torch.float64),
            schedule=1e10,
            biased=True,
            steps=9,
        )


def test_labels_keep_their_dtype():
    """Integer labels reach the likelihood as integers, features in the dtype of the state."""
    seen = []

    def fn(x, features, labels):
        seen.append((features.dtype, labels.dtype))
        return torch.nn.functional.logsigmoid((2 * labels - 1) * (features * x[:, None]).sum(-1))

    run(fn, data=(normal(6, 2), torch.arange(6) % 2), x0=torch.zeros(2, 2), batch_size=4)
    assert seen[0] == (torch.float32, torch.int64)


# -- real data ------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("centred", [False, True])
def test_logistic_regression_on_the_breast_cancer_data_agrees_with_mala(centred):
    """569 cases, 30 standardised features and an intercept, prior N(0, I); MALA on all the data is exact.

    Means: the difference of two averages, each with the standard error of its 64 independent chains, below
    5.5 of them (Student, 63 degrees; 31 weights: false alarms below 1e-4 together) plus 0.02 deviations for
    the bias of the steps. Deviations within 8 %.
    """
    datasets = pytest.importorskip("sklearn.datasets")
    raw = datasets.load_breast_cancer()
    x = torch.as_tensor(raw.data)
    x = torch.cat([(x - x.mean(0)) / x.std(0), torch.ones(len(x), 1, dtype=torch.float64)], dim=1)
    sign = 2.0 * torch.as_tensor(raw.target, dtype=torch.float64) - 1
    mode = torch.zeros(31, dtype=torch.float64)
    for _ in range(20):
        p = torch.sigmoid(-sign * (x @ mode))
        curvature = x.T @ ((p * (1 - p))[:, None] * x) + torch.eye(31, dtype=torch.float64)
        mode = mode + torch.linalg.solve(curvature, x.T @ (sign * p) - mode)
    cov = torch.linalg.inv(curvature)
    root, start = torch.linalg.cholesky(cov), normal(64, 31)

    def log_posterior(w):
        return torch.nn.functional.logsigmoid(sign * (w @ x.T)).sum(1) - w.square().sum(1) / 2

    law = sk.Langevin(log_prob=lambda z: log_posterior(mode + z @ root.T))
    save = [0.25 * k for k in range(100, 1501, 4)]
    run = sk.solve(law, start, (0.0, 375.0), steps=1500, solver="mala", seed=1, save_at=save)
    exact = Chains(mode + run.xs @ root.T, torch.ones(len(run.xs), dtype=torch.float64))
    found = sgld(
        lambda w, rows, s: torch.nn.functional.logsigmoid(s * (rows * w[:, None]).sum(-1)),
        (x, sign),
        mode + start @ root.T,
        log_prior=lambda w: -w.square().sum(1) / 2,
        schedule=PolynomialDecay.between(0.1, 0.01, 3000),
        steps=3000,
        batch_size=64,
        preconditioner=cov,
        centre=mode if centred else None,
        burn_in=200,
        save_every=4,
        seed=2,
    )
    assert float(exact.ess.min()) > 3000
    assert float(found.ess.min()) > 300
    error = (found.mean - exact.mean).abs()
    allowed = 5.5 * (found.stderr**2 + exact.stderr**2).sqrt() + 0.02 * exact.std
    assert bool((error < allowed).all())
    assert float((found.std / exact.std - 1).abs().max()) < 0.08
    # the mode alone would not do: the test sees the skewness of the posterior
    assert float(((mode - exact.mean).abs() / exact.std).max()) > 0.25
