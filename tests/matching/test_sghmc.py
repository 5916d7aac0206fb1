"""Stochastic gradient Hamiltonian Monte Carlo: exact laws of linear recursions, friction, bad input."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.linalg import solve_discrete_lyapunov

from sdekit.errors import NonFiniteError, ShapeError
from sdekit.matching import PolynomialDecay, sghmc, sgld

P = torch.tensor([[1.0, 0.4], [0.4, 0.5]], dtype=torch.float64)
"""Precision of one datum."""
FULL = torch.tensor([[0.4, -0.2], [-0.2, 0.3]], dtype=torch.float64)
MASSES = {"none": None, "number": 0.6, "diagonal": FULL.diagonal(), "matrix": FULL}


def normal(n, *event, seed=0):
    return torch.randn(n, *event, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def likelihood(x, y):
    """log N(y; x, P^-1) of y (B, n, 2)."""
    r = y - x[:, None]
    return -0.5 * torch.einsum("bni,ij,bnj->bn", r, P, r)


def one(x, y):
    """log N(y; x, I)."""
    return -0.5 * (y - x[:, None]).square().sum(-1)


def as_matrix(m):
    m = torch.as_tensor(1.0 if m is None else m, dtype=torch.float64)
    return m if m.ndim == 2 else torch.diag(m.expand(2))


def recursion(precision, mass, a, eta):
    """(A, Q): z' = A z + w, w ~ N(0, Q), for z = (x - mode, v)."""
    eye, d = torch.eye(len(precision), dtype=torch.float64), len(precision)
    pull = -eta * mass @ precision
    step = torch.cat([torch.cat([eye + pull, (1 - a) * eye], 1), torch.cat([pull, (1 - a) * eye], 1)])
    return step, (2 * a * eta * mass).repeat(2, 2).reshape(2 * d, 2 * d)


def within(x, mean, cov):
    """Mean and covariance of the rows of x, each entry within 5 of its standard errors (6e-7 each)."""
    n, var = len(x), cov.diagonal()
    assert float(((x.mean(0) - mean) / (var / n).sqrt()).abs().max()) < 5
    assert float(((x.T.cov() - cov) / ((torch.outer(var, var) + cov**2) / n).sqrt()).abs().max()) < 5


@pytest.mark.parametrize("kind", MASSES)
@pytest.mark.parametrize("steps", [1, 3, 60])
def test_on_a_gaussian_every_step_has_the_law_of_the_recursion(kind, steps):
    """4 data of precision P each; 20,000 chains from one point. 60 steps have reached the stationary law."""
    data, a, eps = normal(4, 2), 0.3, 0.2
    mode, start = data.mean(0), torch.tensor([1.0, -0.5], dtype=torch.float64)
    found = sghmc(
        likelihood,
        data,
        start.expand(20_000, 2),
        schedule=eps,
        steps=steps,
        friction=a,
        preconditioner=MASSES[kind],
        biased=True,
        burn_in=steps - 1,
    ).x
    step, noise = recursion(4 * P, as_matrix(MASSES[kind]), a, eps / 2)
    z, cov = torch.cat([start - mode, torch.zeros(2, dtype=torch.float64)]), torch.zeros_like(noise)
    for _ in range(steps):
        z, cov = step @ z, step @ cov @ step.T + noise
    within(found, mode + z[:2], cov[:2, :2])
    if steps == 60:
        still = torch.as_tensor(solve_discrete_lyapunov(step.numpy(), noise.numpy()))
        torch.testing.assert_close(cov, still, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("a", [0.05, 0.3, 1.0])
def test_the_variance_of_the_stationary_law_is_the_documented_one(a):
    """1/(L (1 - eta L/(4 - 2a))), the solution of the Lyapunov equation."""
    eye = torch.eye(1, dtype=torch.float64)
    for stiffness, eta in ((3.0, 0.1), (10.0, 0.15)):
        step, noise = recursion(stiffness * eye, eye, a, eta)
        still = solve_discrete_lyapunov(step.numpy(), noise.numpy())
        assert still[0, 0] == pytest.approx(1 / (stiffness * (1 - eta * stiffness / (4 - 2 * a))))


@pytest.mark.parametrize("corrected", [True, False])
def test_the_noise_of_the_batches_is_left_out_of_what_is_added(corrected):
    """B = N^2 S/n, S the variance of the data. Without b the variance is 1 + eta B/(2a) times, here 1.75
    times, as large. 30,000 chains: 5 standard errors, 6e-7."""
    size, batch, eps, a, chains = 50, 5, 0.004, 0.5, 30_000
    data = normal(size, 1)
    data = math.sqrt(0.75) * (data - data.mean()) / data.std(correction=0)
    spread = size**2 * 0.75 / batch
    x = sghmc(
        one,
        data,
        torch.zeros(chains, 1, dtype=torch.float64),
        schedule=eps,
        steps=120,
        friction=a,
        gradient_noise=spread if corrected else None,
        batch_size=batch,
        biased=True,
        burn_in=119,
    ).x
    eta = eps / 2
    v = (1 if corrected else 1 + eta * spread / (2 * a)) / (size * (1 - eta * size / (4 - 2 * a)))
    assert 1 + eta * spread / (2 * a) > 1.7
    assert abs(float(x.var()) / v - 1) < 5 * math.sqrt(2 / chains)
    assert abs(float(x.mean())) < 5 * math.sqrt(v / chains)


def test_full_friction_is_sgld():
    data, x0 = normal(20, 2), normal(5, 2, seed=1)
    options = {
        "schedule": PolynomialDecay(0.02),
        "steps": 9,
        "batch_size": 6,
        "seed": 3,
        "preconditioner": FULL,
    }
    options["log_prior"] = lambda x: -x.square().sum(1)
    options["centre"] = data.mean(0)
    found = sghmc(likelihood, data, x0, friction=1.0, **options)
    torch.testing.assert_close(found.xs, sgld(likelihood, data, x0, **options).xs, rtol=1e-12, atol=1e-12)
    assert found.weights.tolist() == [options["schedule"](k) for k in range(9)]


def test_gradient_noise_of_each_element_counts_with_the_preconditioner():
    """One step from rest: variance 2 eta M (a - eta M B/2) of each element. 5 standard errors, 6e-7."""
    m, b = torch.tensor([0.5, 2.0], dtype=torch.float64), torch.tensor([3.0, 1.5], dtype=torch.float64)
    n, eps, a = 50_000, 0.2, 0.4
    options = {"schedule": eps, "steps": 1, "friction": a, "biased": True, "gradient_noise": b}
    x = sghmc(one, normal(1, 2), torch.zeros(n, 2, dtype=torch.float64), preconditioner=m, **options).x
    expected = eps * m * (a - eps / 4 * m * b)
    assert float((x.var(0) / expected - 1).abs().max()) < 5 * math.sqrt(2 / n)


def test_a_chain_is_the_same_alone_and_in_a_batch():
    data, x0 = normal(30, 2), normal(4, 2, seed=1)
    options = {"schedule": 0.01, "steps": 6, "batch_size": 7, "seed": 2, "biased": True, "friction": 0.2}
    options["gradient_noise"] = torch.tensor([0.1, 0.2])
    together = sghmc(one, data, x0, **options)
    for i in range(4):
        alone = sghmc(one, data, x0[i : i + 1], first_id=i, **options)
        assert torch.equal(alone.xs[:, 0], together.xs[:, i])


def run(**options):
    start = normal(2, 2)
    return sghmc(one, normal(6, 2), start, **({"schedule": 0.01, "steps": 3, "biased": True} | options))


def test_bad_input_is_refused():
    for friction in (0.0, -0.1, 1.5, math.nan):
        with pytest.raises(ValueError, match=r"friction must lie in \(0, 1\]"):
            run(friction=friction)
    with pytest.raises(ValueError, match=r"friction = 0.1 is less than b = 1.25.*steps below 0.0008"):
        run(gradient_noise=500.0)
    assert run(gradient_noise=39.9).xs.isfinite().all()
    for noise in (-1.0, math.inf):
        with pytest.raises(ValueError, match="gradient_noise must be finite"):
            run(gradient_noise=noise)
    with pytest.raises(ShapeError, match=r"gradient_noise must be a number or \(2,\)"):
        run(gradient_noise=torch.ones(3))
    with pytest.raises(ShapeError, match=r"preconditioner beside gradient_noise"):
        run(gradient_noise=1.0, preconditioner=FULL)
    with pytest.raises(ValueError, match="second Robbins-Monro"):
        run(biased=False)
    with pytest.raises(NonFiniteError, match=r"stability, 7.6/L"):
        run(schedule=1e200, steps=5)
