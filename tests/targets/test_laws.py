"""Densities, scores and denoisers against `torch.distributions`, autograd, Tweedie and Stein."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import sdekit as sk
from sdekit.targets import Empirical, Gaussian, GaussianMixture
from tests.targets.laws import KINDS, PROCESSES, law, middle, states

kinds = st.sampled_from(KINDS)
events = st.sampled_from([(1,), (2,), (5,), (2, 3), (1, 4, 2)])
processes = st.sampled_from(PROCESSES)
fractions = st.floats(0.0, 1.0)
TIGHT = {"rtol": 1e-9, "atol": 1e-10}


def name(process: object) -> str:
    return type(process).__name__


def test_a_time_keeps_its_53_bits() -> None:
    """A Python number for t must not pass through float32."""
    target, process, x = Gaussian(0.0, 1.0), sk.VE(), torch.ones(1, 1, dtype=torch.float64)
    t = 0.123456789012345
    exact = -1 / (1 + float(process.sigma(torch.tensor(t, dtype=torch.float64))) ** 2)
    assert float(target.score(process)(x, t)) == pytest.approx(exact, rel=1e-14)
    assert float(target.denoiser(process).score(x, t)) == pytest.approx(exact, rel=1e-12)


@given(kind=kinds, event=events, seed=st.integers(0, 99))
def test_log_prob_is_that_of_torch(kind: str, event: tuple[int, ...], seed: int) -> None:
    case = law(kind, event, seed=seed)
    x = states(case.target, 6, seed)
    expected = case.at(1.0, 0.0).log_prob(x.flatten(1))
    torch.testing.assert_close(case.target.log_prob(x), expected, **TIGHT)
    single = case.target.log_prob(x.float())
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), expected, rtol=1e-5, atol=1e-4)
    if not isinstance(case.target, Empirical):
        own = case.target.to_torch()
        torch.testing.assert_close(own.log_prob(x.reshape(6, *own.event_shape)), expected, **TIGHT)


@given(kind=kinds, event=events, process=processes, u=fractions, seed=st.integers(0, 99))
def test_score_is_the_gradient_of_the_noised_density(
    kind: str, event: tuple[int, ...], process: sk.GaussianDiffusion, u: float, seed: int
) -> None:
    """Against autograd through torch.distributions, and through our own log_prob of the marginal."""
    case, t = law(kind, event, seed=seed), middle(process, u)
    alpha, sigma = float(process.alpha(t)), float(process.sigma(t))
    x = (alpha * states(case.target, 4, seed) + sigma * states(case.target, 4, seed + 1)).requires_grad_()
    (expected,) = torch.autograd.grad(case.at(alpha, sigma).log_prob(x.flatten(1)).sum(), x)
    got = case.target.score(process)(x, t)
    scale = float(expected.abs().max())
    torch.testing.assert_close(got, expected, rtol=1e-8, atol=1e-8 * scale)
    (own,) = torch.autograd.grad(case.target.marginal(process, t).log_prob(x).sum(), x)
    torch.testing.assert_close(own, expected, rtol=1e-8, atol=1e-8 * scale)


@given(kind=kinds, event=events, process=processes, u=fractions, seed=st.integers(0, 99))
def test_tweedie(
    kind: str, event: tuple[int, ...], process: sk.GaussianDiffusion, u: float, seed: int
) -> None:
    """alpha E[x0 | x] = x + sigma^2 score; with one number for t or one for each row."""
    target, t = law(kind, event, seed=seed).target, middle(process, u)
    x, model = states(target, 4, seed), target.denoiser(process)
    alpha, sigma = float(process.alpha(t)), float(process.sigma(t))
    score, mean = target.score(process)(x, t), model.x0(x, t)
    torch.testing.assert_close(alpha * mean, x + sigma**2 * score, rtol=1e-8, atol=1e-8)
    times = torch.full((4,), t, dtype=torch.float64)
    torch.testing.assert_close(target.score(process)(x, times), score, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(model.x0(x, times), mean, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_times_by_row_reach_their_rows(kind: str) -> None:
    process, target = sk.VP(), law(kind, (2, 3)).target
    x, times = states(target, 5), torch.linspace(0.05, 0.95, 5, dtype=torch.float64)
    model = target.denoiser(process)
    for row in range(5):
        alone = x[row : row + 1], float(times[row])
        torch.testing.assert_close(target.score(process)(x, times)[row], target.score(process)(*alone)[0])
        torch.testing.assert_close(model.x0(x, times)[row], model.x0(*alone)[0])


@pytest.mark.parametrize("process", PROCESSES, ids=name)
@pytest.mark.parametrize("kind", KINDS)
def test_marginal_is_the_law_of_alpha_x_plus_sigma_eps(kind: str, process: sk.GaussianDiffusion) -> None:
    case, t = law(kind, (3,)), middle(process)
    alpha, sigma = float(process.alpha(t)), float(process.sigma(t))
    target = case.target.marginal(process, t)
    assert type(target) is type(case.target)
    assert target.event_shape == case.target.event_shape
    mean, cov = case.moments()
    cov = alpha**2 * cov + sigma**2 * torch.eye(3, dtype=torch.float64)
    n = 40_000
    x = target.sample(n, seed=3, dtype=torch.float64)
    # 3 + 9 tests at 5.5 standard errors on correlated entries: rate below 1e-6
    error = (x.mean(0) - alpha * mean) / (cov.diagonal() / n).sqrt()
    assert float(error.abs().max()) < 5.5
    centred = x - alpha * mean
    outer = centred[:, :, None] * centred[:, None, :]
    assert float(((outer.mean(0) - cov).abs() / (outer.std(0) / math.sqrt(n))).max()) < 5.5
    y = states(target, 5)
    torch.testing.assert_close(target.log_prob(y), case.at(alpha, sigma).log_prob(y), **TIGHT)
    again = target.marginal(process, t)  # of the marginal: the formulas hold for scaled laws too
    torch.testing.assert_close(
        again.log_prob(y), case.at(alpha**2, math.hypot(alpha * sigma, sigma)).log_prob(y), **TIGHT
    )
    torch.testing.assert_close(
        target.denoiser(process).x0(y, t) * alpha, y + sigma**2 * target.score(process)(y, t), **TIGHT
    )


@pytest.mark.parametrize("kind", KINDS)
def test_stein_and_regression_identities(kind: str) -> None:
    """On x_t = alpha x0 + sigma eps, simulated: E score = 0, E x.score = -D, E (x0 - E[x0|x_t]) x_t^T = 0.

    25 tests of 40,000 samples at 5.5 standard errors: rate 1e-6."""
    process, t, n = sk.VP(), 0.3, 40_000
    target = law(kind, (3,)).target
    alpha, sigma = float(process.alpha(t)), float(process.sigma(t))
    x0 = target.sample(n, seed=1, dtype=torch.float64)
    x = alpha * x0 + sigma * sk.Philox(2).normal(0, x0, torch.arange(n))
    score, residual = target.score(process)(x, t), x0 - target.denoiser(process).x0(x, t)
    columns = torch.cat(
        [
            score,
            (x * score).sum(1, keepdim=True) + 3,
            residual,
            (residual[:, :, None] * x[:, None]).flatten(1),
        ],
        dim=1,
    )
    assert float((columns.mean(0) / (columns.std(0) / math.sqrt(n))).abs().max()) < 5.5


# Exact limits.


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", KINDS)
def test_all_noise_gives_the_mean(kind: str, dtype: torch.dtype) -> None:
    """alpha = 0 of rectified flow at t = 1: E[x0 | x] = E x0, score = -x / sigma^2."""
    case, process = law(kind, (2, 3)), sk.RectifiedFlow()
    assert float(process.alpha(1.0)) == 0
    x = states(case.target, 4, dtype=dtype)
    mean = case.moments()[0].reshape(2, 3)
    tolerance = 1e-6 if dtype == torch.float32 else 1e-13
    got = case.target.denoiser(process).x0(x, 1.0)
    torch.testing.assert_close(got.double(), mean.expand(4, 2, 3), rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(case.target.score(process)(x, 1.0), -x)
    standard = case.target.marginal(process, 1.0).log_prob(x).double()
    expected = torch.distributions.Normal(0.0, 1.0).log_prob(x.double()).flatten(1).sum(1)
    torch.testing.assert_close(standard, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", KINDS)
def test_no_noise_gives_the_state(kind: str, dtype: torch.dtype) -> None:
    """sigma = 0 of rectified flow at t = 0: E[x0 | x] = x, bit for bit; score that of the data."""
    case, process = law(kind, (2, 3)), sk.RectifiedFlow()
    x = states(case.target, 4, dtype=dtype)
    fn = case.target.denoiser(process).fn
    assert torch.equal(fn(x, 1.0, 0.0), x)
    assert torch.equal(fn(2 * x, 2.0, torch.tensor(0.0, dtype=torch.float64)), x)
    rows = torch.tensor([0.0, 0.5, 0.0, 0.5], dtype=torch.float64)
    mixed = fn(x, torch.ones(4, dtype=torch.float64), rows)
    assert torch.equal(mixed[::2], x[::2])
    torch.testing.assert_close(mixed[1::2], fn(x[1::2], 1.0, 0.5))
    assert not torch.allclose(mixed[1::2], x[1::2])
    y = x.double().requires_grad_()
    (expected,) = torch.autograd.grad(case.at(1.0, 0.0).log_prob(y.flatten(1)).sum(), y)
    got = case.target.score(process)(x, 0.0).double()
    torch.testing.assert_close(got, expected, rtol=1e-3 if dtype == torch.float32 else 1e-8, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_far_away_nothing_under_or_overflows(kind: str) -> None:
    process, target = sk.VP(), law(kind, (3,)).target
    x = 1e4 * states(target, 4)
    for t in (1e-3, 0.5, 1.0):
        alpha, sigma = float(process.alpha(t)), float(process.sigma(t))
        score, mean = target.score(process)(x, t), target.denoiser(process).x0(x, t)
        assert bool(torch.isfinite(score).all())
        torch.testing.assert_close(alpha * mean, x + sigma**2 * score, rtol=1e-6, atol=1e-4)
    assert bool(torch.isfinite(target.log_prob(x)).all())


# Derivatives.


@pytest.mark.filterwarnings("ignore:.torch.jit.script")  # torch's own, in forward mode
@pytest.mark.parametrize("kind", KINDS)
def test_scores_are_differentiable_twice_and_by_torch_func(kind: str) -> None:
    process, target, t = sk.VP(), law(kind, (2,)).target, 0.4
    x = states(target, 3)
    score = target.score(process)
    assert torch.autograd.gradcheck(lambda x: score(x, t), x.clone().requires_grad_(), atol=1e-5)
    assert torch.autograd.gradcheck(
        lambda x: target.denoiser(process).x0(x, t), x.clone().requires_grad_(), atol=1e-5
    )
    one = torch.func.vmap(torch.func.jacrev(lambda row: score(row[None], t)[0]))(x)
    two = torch.func.vmap(torch.func.jacfwd(lambda row: score(row[None], t)[0]))(x)
    torch.testing.assert_close(one, two)
    torch.testing.assert_close(one, one.mT)  # the Hessian of log p_t


# Data scales.


@given(kind=kinds, event=events, seed=st.integers(0, 99), shift=st.sampled_from([0.0, 50.0]))
def test_data_std_and_spread(kind: str, event: tuple[int, ...], seed: int, shift: float) -> None:
    """sqrt(tr C / D) and sqrt(tr C^2 / tr C); C about zero where the mean is more than 2 deviations off."""
    case = law(kind, event, seed=seed)
    if shift:
        d, m = case.m.shape[1], (case.m + shift).reshape(-1, *event)
        if kind.startswith("gaussian"):
            target: sk.Target = Gaussian(m[0], case.c[0])
        elif kind.startswith("mixture"):
            target = GaussianMixture(case.w, m, case.c)
        else:
            target = Empirical(m, 0.4, weights=case.w)
        case = case._replace(target=target, m=m.reshape(-1, d))
    mean, cov = case.moments()
    if float(mean @ mean) > 4 * float(cov.trace()):
        cov = cov + torch.outer(mean, mean)
    else:
        assert not shift
    target = case.target
    assert target.data_std == pytest.approx(math.sqrt(cov.trace() / len(mean)), rel=1e-9)
    assert target.data_spread == pytest.approx(math.sqrt((cov @ cov).trace() / cov.trace()), rel=1e-9)
    model = target.denoiser(sk.VP())
    assert (model.data_std, model.data_spread) == (target.data_std, target.data_spread)


@pytest.mark.parametrize("kind", ["mixture dense", "empirical"])
def test_data_scales_of_a_marginal_are_its_own(kind: str) -> None:
    case, process, t = law(kind, (3,)), sk.VP(), 0.5
    before, marginal = case.target.data_std, case.target.marginal(process, t)
    a, s = float(process.alpha(t)), float(process.sigma(t))
    cov = a**2 * case.moments()[1] + s**2 * torch.eye(3, dtype=torch.float64)
    assert marginal.data_std == pytest.approx(math.sqrt(cov.trace() / 3), rel=1e-9)
    assert marginal.data_spread == pytest.approx(math.sqrt((cov @ cov).trace() / cov.trace()), rel=1e-9)
    assert case.target.data_std == before
