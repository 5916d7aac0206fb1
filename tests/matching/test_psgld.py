"""Langevin dynamics with RMSprop's preconditioner: exact laws, its own drift, limits, bad input."""

from __future__ import annotations

import math

import pytest
import torch

from sdekit.errors import ShapeError
from sdekit.matching import PolynomialDecay, psgld, sgld

ORIGIN = torch.zeros(1, 1, dtype=torch.float64)


def normal(n, *event, seed=0):
    return torch.randn(n, *event, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def likelihood(x, y):
    """log N(y; x, I) of y (B, n, D)."""
    return -0.5 * (y - x[:, None]).square().sum(-1)


def logistic(x, features):
    return torch.nn.functional.logsigmoid((features * x[:, None]).sum(-1))


def prior(x):
    return -x.square().sum(1)


def test_a_preconditioner_that_stands_still_is_sgld_bit_for_bit():
    """G = 1/lambda = 4: the preconditioner 4, and steps 4 times as long."""
    data, x0 = normal(20, 3), normal(5, 3, seed=1)
    options = {"steps": 9, "batch_size": 6, "seed": 3, "log_prior": prior, "centre": data.mean(0)}
    found = psgld(likelihood, data, x0, schedule=PolynomialDecay(0.01), damping=0.25, adapt=0, **options)
    same = sgld(likelihood, data, x0, schedule=PolynomialDecay(0.01), preconditioner=4.0, **options)
    longer = sgld(likelihood, data, x0, schedule=PolynomialDecay(0.04), **options)
    assert torch.equal(found.xs, same.xs)
    assert torch.equal(found.xs, longer.xs)


def scales(data, x0, xs, steps, alpha, damping):
    """G of each chain after ``steps`` steps, from the states, for `likelihood` of all data."""
    v = torch.zeros_like(x0)
    for x in (x0, *xs)[:steps]:
        v = alpha * v + (1 - alpha) * (data.mean(0) - x).square()
    return 1 / (damping + v.sqrt())


def test_after_its_adaptation_the_chain_is_sgld_on_a_gaussian():
    """From step 5 on a linear recursion of constant G: each chain's x - mode is N(0, 1/(N (1 - eps G N/4)))
    at last. 20,000 chains, 2 elements: mean and variance within 5 standard errors, 6e-7 each."""
    data, eps, chains = normal(4, 2), 0.4, 20_000
    mode, x0 = data.mean(0), 2.0 * normal(chains, 2, seed=1)
    options = {"schedule": eps, "biased": True, "alpha": 0.8, "damping": 0.5, "seed": 5}
    early = psgld(likelihood, data, x0, steps=5, **options).xs
    g = scales(data, x0, early, 5, 0.8, 0.5)
    assert float(g.max() / g.min()) > 2
    x = psgld(likelihood, data, x0, steps=60, adapt=5, burn_in=59, **options).x
    assert float((1 - eps * g * 2).abs().max() ** 55) < 1e-3  # the start is forgotten
    z = (x - mode) * (4 * (1 - eps * g)).sqrt()
    assert float((z.mean(0) * math.sqrt(chains)).abs().max()) < 5
    assert float((z.var(0) - 1).abs().max()) < 5 * math.sqrt(2 / chains)


@pytest.mark.parametrize("alpha", [0.0, 0.7])
def test_a_step_is_the_formula(alpha):
    """Noise of a seed from `sgld` on flat data; the rest by finite differences of G in x, of four steps."""
    features, x0 = normal(12, 3), normal(3, 3, seed=1)
    options = {"steps": 4, "schedule": 0.05, "biased": True, "seed": 4}
    flat = sgld(lambda x, y: 0.0 * likelihood(x, y), features, torch.zeros_like(x0), **options)
    xi = torch.diff(flat.xs, dim=0, prepend=torch.zeros_like(flat.xs[:1])) / math.sqrt(0.05)
    found = psgld(
        logistic, features, x0, log_prior=prior, alpha=alpha, damping=0.3, correction=True, **options
    )
    plain = psgld(logistic, features, x0, log_prior=prior, alpha=alpha, damping=0.3, **options)
    assert float((found.xs - plain.xs).abs().max()) > 1e-4

    def mean_gradient(x):
        return (torch.sigmoid(-(x @ features.T))[:, :, None] * features).mean(1)

    def scale(x, before):
        return 1 / (0.3 + (alpha * before + (1 - alpha) * mean_gradient(x).square()).sqrt())

    for chains, share in ((found, 1.0), (plain, 0.0)):
        x, v = x0, torch.zeros_like(x0)
        for k, after in enumerate(chains.xs):
            gamma, h = torch.zeros_like(x), 1e-5
            for i in range(3):
                shift = h * torch.eye(3, dtype=torch.float64)[i]
                gamma[:, i] = (scale(x + shift, v) - scale(x - shift, v))[:, i] / (2 * h)
            g, own = scale(x, v), 12 * mean_gradient(x) - 2 * x
            expected = x + 0.025 * (g * own + share * gamma) + (0.05 * g).sqrt() * xi[k]
            torch.testing.assert_close(after, expected, rtol=0, atol=1e-8)
            v = alpha * v + (1 - alpha) * mean_gradient(x).square()
            x = after


def chain_law(eps, share):
    """(points, probabilities): the stationary law of x' = x + (eps/2)(-G x + share G') + sqrt(eps G) xi with
    G = 1/(1 + |x|), from its transition density on a grid."""
    x = torch.linspace(-8, 8, 641, dtype=torch.float64)
    g = 1 / (1 + x.abs())
    mean, sd = x + eps / 2 * (-g * x - share * g**2 * x.sign()), (eps * g).sqrt()
    step = torch.exp(-0.5 * ((x[:, None] - mean) / sd) ** 2) / sd
    step, p = step / step.sum(0), torch.full_like(x, 1 / len(x))
    for _ in range(12):
        step = step @ step
    return x, step @ p


@pytest.mark.parametrize("correction", [True, False])
def test_the_law_of_a_preconditioner_that_follows_the_state(correction):
    """alpha = 0, one datum at 0: p = N(0, 1). With Gamma small steps have p, without p(x) (1 + |x|), of
    variance (1 + 2 m)/(1 + m) = 1.444, m = E|z|; this step's own law is exact from the grid. 20,000 chains:
    5 standard errors, 6e-7."""
    chains, eps = 20_000, 0.25
    x = psgld(
        likelihood,
        ORIGIN,
        normal(chains, 1),
        schedule=eps,
        steps=100,
        alpha=0.0,
        damping=1.0,
        correction=correction,
        biased=True,
        burn_in=99,
    ).x
    points, p = chain_law(eps, float(correction))
    v, fourth = (float((p * points**k).sum()) for k in (2, 4))
    assert abs(float(x.square().mean()) - v) < 5 * math.sqrt((fourth - v**2) / chains)
    small, p = chain_law(0.02, float(correction))
    m = math.sqrt(2 / math.pi)
    limit = 1.0 if correction else (1 + 2 * m) / (1 + m)
    assert float((p * small**2).sum()) == pytest.approx(limit, abs=0.02)


@pytest.mark.parametrize("correction", [True, False])
def test_memory_corrects_a_part(correction):
    """alpha = 1/2: the law p(x) (1 + |x|)^(1 - c), c = 1/2 with Gamma, 0 without. The variance within 5
    standard errors (6e-7) and 0.02 for the step."""
    chains = 20_000
    x = psgld(
        likelihood, ORIGIN, normal(chains, 1), schedule=0.03, steps=500, alpha=0.5, damping=1.0,
        correction=correction, biased=True, burn_in=499,
    ).x  # fmt: skip
    grid = torch.linspace(-8, 8, 4001, dtype=torch.float64)
    p = torch.exp(-(grid**2) / 2) * (1 + grid.abs()) ** (1 - 0.5 * correction)
    v, fourth = (float((p * grid**k).sum() / p.sum()) for k in (2, 4))
    assert abs(float(x.square().mean()) - v) < 5 * math.sqrt((fourth - v**2) / chains) + 0.02


@pytest.mark.parametrize("correction", [True, False])
def test_a_chain_is_the_same_alone_and_in_a_batch(correction):
    data, x0 = normal(30, 4).reshape(30, 2, 2), normal(3, 4, seed=1).reshape(3, 2, 2)
    options = {"schedule": 0.01, "steps": 5, "batch_size": 7, "seed": 2, "biased": True}
    options["correction"] = correction

    def fn(x, y):
        return -(y - x[:, None]).pow(4).sum((-1, -2))

    together = psgld(fn, data, x0, **options)
    for i in range(3):
        alone = psgld(fn, data, x0[i : i + 1], first_id=i, **options)
        assert torch.equal(alone.xs[:, 0], together.xs[:, i])


def test_a_gradient_of_zero_has_no_drift_of_its_own():
    """m = 0 and V = 0: Gamma is 0, not NaN; so is that of a likelihood without a second derivative."""
    options = {"schedule": 0.01, "steps": 1, "biased": True, "damping": 0.1}
    start = torch.zeros(2, 1, dtype=torch.float64)
    for fn in (likelihood, lambda x, y: (x[:, None] * y).sum(-1)):
        plain = psgld(fn, ORIGIN, start, **options)
        assert torch.equal(psgld(fn, ORIGIN, start, correction=True, **options).xs, plain.xs)


def run(**options):
    given = {"schedule": 0.01, "steps": 3, "biased": True} | options
    return psgld(given.pop("fn", likelihood), normal(6, 2), normal(2, 2), **given)


def test_bad_input_is_refused():
    for alpha in (1.0, -0.1, math.nan):
        with pytest.raises(ValueError, match=r"alpha must lie in \[0, 1\)"):
            run(alpha=alpha)
    for damping in (0.0, -1.0, math.inf):
        with pytest.raises(ValueError, match="damping must be finite and > 0"):
            run(damping=damping)
    with pytest.raises(ValueError, match=r"adapt must be at most burn_in = 1, got 2"):
        run(adapt=2, burn_in=1)
    assert run(adapt=1, burn_in=1).xs.shape == (2, 2, 2)
    with pytest.raises(ShapeError, match=r"log_likelihood must return shape \(2, 6\)"):
        run(fn=lambda x, y: x)
    with pytest.raises(TypeError, match=r"log_likelihood must be a function \(x, \*rows\).*got NoneType"):
        run(fn=None)
    with pytest.raises(TypeError, match=r"log_prior must be a function \(x\).*got float"):
        run(log_prior=1.0)


def test_batches_of_equal_rows_are_all_the_data():
    """m is a mean over the batch, so that V does not know its size; corrections neither."""
    data, x0 = normal(1, 3).expand(12, 3), normal(4, 3, seed=1)
    options = {"schedule": 0.01, "steps": 5, "biased": True, "seed": 2, "correction": True}
    every = psgld(likelihood, data, x0, **options)
    for size in (2, 5):
        found = psgld(likelihood, data, x0, batch_size=size, **options)
        torch.testing.assert_close(found.xs, every.xs, rtol=1e-9, atol=1e-9)
