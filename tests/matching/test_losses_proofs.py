"""What score matching promises: minimisers, variances, importance of times, and where reviews go wrong."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import integrate

import sdekit as sk
from sdekit.matching import losses
from sdekit.matching.losses.fields import probe
from sdekit.matching.losses.times import uniform
from tests.matching.test_losses_direct import data, gauss_newton

DOUBLE = torch.float64


def draws(*shape, seed=0):
    return torch.randn(*shape, dtype=DOUBLE, generator=torch.Generator().manual_seed(seed))


# -- closed-form minimisers -----------------------------------------------------------------------------


def test_explicit_matching_of_a_gaussian_returns_it():
    x, mean = data(), torch.tensor([1.0, -2.0, 0.5], dtype=DOUBLE)
    precision = torch.linalg.inv(torch.cov(data(seed=3).T))
    matrix, shift = gauss_newton(
        lambda a, b: losses.explicit(lambda y: y @ a.T + b, x, lambda y: (mean - y) @ precision).mean(),
        [(3, 3), (3,)],
    )
    torch.testing.assert_close(-matrix, precision, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(shift, precision @ mean, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("sigma", [0.3, 1.5])
def test_denoising_of_a_gaussian_gives_mean_and_inverse_covariance_of_the_noised_data(sigma):
    """s = -M (x - mu): M = (C + sigma^2 I)^{-1}, C of the sample with 1/N, mu its mean.

    The noise by 3-point Gauss-Hermite nodes in each of two elements, exact for squares.
    """
    x = data(40, 2)
    nodes = math.sqrt(3) * torch.tensor([-1.0, 0.0, 1.0], dtype=DOUBLE)
    weights = torch.tensor([1.0, 4.0, 1.0], dtype=DOUBLE) / 6
    eps = torch.cartesian_prod(nodes, nodes).repeat(len(x), 1)
    weight = torch.cartesian_prod(weights, weights).prod(1).repeat(len(x)) / len(x)
    points, covariance = x.repeat_interleave(9, 0), torch.cov(x.T, correction=0)
    expected = torch.linalg.inv(covariance + sigma**2 * torch.eye(2, dtype=DOUBLE))

    def one(a, b):
        noise = sk.Recorded([eps])
        return weight @ losses.one_noise(lambda y: y @ a.T + b, points, sigma, noise=noise)

    def many(a, b):
        noise = sk.Recorded([eps])
        return weight @ losses.multi_noise(lambda y, _: y @ a.T + b, points, [sigma], noise=noise)

    for loss in (one, many):
        matrix, shift = gauss_newton(loss, [(2, 2), (2,)])
        torch.testing.assert_close(-matrix, expected, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(-torch.linalg.solve(matrix, shift), x.mean(0), rtol=1e-9, atol=1e-9)


def test_finite_differences_of_linear_scores_are_the_slices():
    """Differences of affine functions are exact: the minimiser is that of sliced matching."""
    x = data()
    v = probe("normal", x, 5, 0)
    matrix, _ = gauss_newton(
        lambda a, b: losses.finite_difference(
            lambda y: y @ a.T + b, x, eps=1e-2, law="normal", seed=5
        ).mean(),
        [(3, 3), (3,)],
    )
    expected = -(v.T @ v / len(x)) @ torch.linalg.inv(torch.cov(x.T, correction=0))
    torch.testing.assert_close(matrix, expected, rtol=1e-7, atol=1e-7)


def test_denoising_learns_the_score_of_a_mixture():
    """24 random features on 20,000 data at noise 0.5: the score's squared error below 2 % of its square."""
    target = sk.GaussianMixture([0.4, 0.6], [[-1.0, 0.0], [1.0, 0.5]], 0.05)
    x, sigma = target.sample(20_000, seed=1, dtype=DOUBLE), 0.5
    w, b = 1.5 * draws(24, 2), draws(24, seed=1)

    def features(y):
        return torch.cat([torch.tanh(y @ w.T + b), y, torch.ones_like(y[:, :1])], 1)

    (c,) = gauss_newton(
        lambda c: losses.one_noise(lambda y: features(y) @ c, x, sigma, seed=3).mean(), [(27, 2)]
    )
    new = target.sample(4000, seed=2, dtype=DOUBLE) + sigma * draws(4000, 2, seed=4)
    exact = target.score(sk.EDM())(new, torch.tensor(sigma, dtype=DOUBLE))
    error = losses.explicit(lambda y: features(y) @ c, new, exact).mean()
    share = float(error / (0.5 * exact.square().sum(1).mean()))
    assert 1e-5 < share < 0.02


def test_steps_of_finite_differences_balance_truncation_and_rounding():
    """Errors e^2 + u/e of scores, least at u^{1/3}, and e^2 + u/e^2 of energies, least at u^{1/4}."""
    x = data(6) / 3
    energy = lambda y: 0.25 * y.pow(4).sum(1) + torch.sin(y[:, 0] * y[:, 1])  # noqa: E731
    model = sk.Energy(energy)
    with torch.no_grad():
        exact = losses.sliced(model, x, law="normal")
        of_score = losses.finite_difference(lambda y: model(y), x, law="normal")
        assert float((of_score - exact).abs().max()) < 2e-9  # at u^{1/4} it would be 1e-7
        exact = losses.sliced(model, x, law="normal", variance_reduced=False)
        of_energy = losses.finite_difference(model, x, law="normal")
        assert float((of_energy - exact).abs().max()) < 1e-6  # at u^{1/3} it would be 1e-5


def test_probes_are_no_noise_of_training_and_sums_are_in_float32():
    x = data(200, 64)
    noise = sk.losses.one_noise(torch.zeros_like, x, 1.0, seed=3)
    assert not torch.isclose(noise, 0.5 * probe("normal", x, 3, 0).square().sum(1)).any()
    half = x.bfloat16() / 64
    found = losses.sliced(lambda y: y, half, law="normal", variance_reduced=False, seed=3)
    v = probe("normal", half, 3, 0)
    expected = (v * v).float().sum(1) + 0.5 * (half * v).float().sum(1).square()
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.detach(), expected, rtol=1e-6, atol=1e-6)


# -- variances ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("law", ["normal", "rademacher"])
@pytest.mark.parametrize("size", [0.3, 3.0])
def test_the_variance_that_the_reduced_form_saves(law, size):
    """Of v^T J v + (v.s)^2/2 against v^T J v + |s|^2/2, at one point, J symmetric:

        normal      |s|^4/2 + 2 s.J s,
        rademacher  (|s|^4 - sum s_i^4)/2 + 2 (s.J s - sum J_ii s_i^2),

    negative where the score is small beside its slope. 40,000 probes, 5 standard errors: false alarms 6e-7.
    """
    root = draws(3, 3)
    jacobian = -(root @ root.T)
    x = (size * torch.tensor([1.0, -0.5, 0.8], dtype=DOUBLE)).expand(40_000, 3)
    field = lambda y: (y - x[0]) @ jacobian + x[0]  # noqa: E731  at x: the score is x, its slope jacobian
    s = x[0]
    plain, reduced = (
        losses.sliced(field, x, law=law, variance_reduced=r, seed=2).detach() for r in (False, True)
    )
    saved = (plain - plain.mean()).square() - (reduced - reduced.mean()).square()
    quartic, mixed = s.square().sum() ** 2, s @ jacobian @ s
    if law == "rademacher":
        quartic, mixed = quartic - s.pow(4).sum(), mixed - (jacobian.diag() * s * s).sum()
    expected = 0.5 * quartic + 2 * mixed
    assert abs(float(saved.mean() - expected)) < 5 * float(saved.std()) / math.sqrt(40_000)
    if law == "normal":
        assert (float(expected) > 0) == (size > 1)


@pytest.mark.parametrize("d", [1, 2, 8])
def test_at_the_exact_score_the_reduced_form_has_less_variance_above_two_dimensions(d):
    """Of N(0, I), normal probes, on average over the data: D (D/2 - 1) is saved; 5 standard errors."""
    x, n = draws(40_000, d, seed=d), 40_000
    variances = []
    for reduced in (False, True):
        a, b = (
            losses.sliced(lambda y: -y, x, law="normal", variance_reduced=reduced, seed=4, draw=k).detach()
            for k in (0, 1)
        )
        variances.append((a - b).square() / 2)
    saved = variances[0] - variances[1]
    assert abs(float(saved.mean()) - d * (d / 2 - 1)) < 5 * float(saved.std()) / math.sqrt(n)
    if d == 8:
        assert float(variances[1].mean()) < 0.5 * float(variances[0].mean())


@pytest.mark.parametrize(
    "process", [sk.VP(t_min=0.02), sk.EDM(sigma_min=0.05, sigma_max=3.0)], ids=lambda p: type(p).__name__
)
def test_importance_sampling_of_times_is_unbiased_and_has_less_variance(process):
    """Half the integral of (g^2/sigma^2) (1 - sin(lambda)/10)^2 dt, of a network that is wrong by that much.

    Independent times from the law proportional to g^2/sigma^2 and from the uniform one, 20,000 each: means
    within 5 standard errors of quadrature in lambda (false alarms 6e-7), and less than half the variance.
    """
    n = 20_000
    model = sk.Denoiser(lambda x, t: torch.sin(process.half_log_snr(t))[:, None] / 10 + 0 * x, process)
    first, last = losses.first_training_time(process), process.t_max
    high, low = (float(process.half_log_snr(t)) for t in (first, last))
    exact = integrate.quad(lambda u: (1 - math.sin(u) / 10) ** 2, low, high)[0]
    variance = {}
    for times in ("log-snr", "uniform"):
        value = losses.likelihood_weighted(
            model,
            torch.zeros(n, 1, dtype=DOUBLE),
            times=times,
            stratified=False,
            seed=5,
            noise=sk.Recorded([torch.ones(n, 1, dtype=DOUBLE)]),
        )
        variance[times] = float(value.var())
        assert abs(float(value.mean()) - exact) < 5 * math.sqrt(variance[times] / n)
    assert variance["log-snr"] < 0.5 * variance["uniform"]


# -- without a transition density -----------------------------------------------------------------------


def test_sliced_matching_of_a_state_dependent_noise_finds_its_log_normal_law():
    """dX = 0.1 X dt + 0.4 X dW from 1: ln X ~ N(0.02 t, 0.16 t), score -1/x - (ln x - m)/(v x).

    Fitted in the functions 1/x and ln x/x, 40,000 Euler paths of 200 steps at one time, which the score is
    told: v within 4 %, m within 0.01 (standard errors of 40,000: 0.7 % and 0.002; Euler's bias the rest).
    """
    sde, c = sk.GeometricBrownian(0.1, 0.4), torch.zeros(2, dtype=DOUBLE, requires_grad=True)
    seen = []

    def score(x, t):
        seen.append(t)
        return (c[0] + c[1] * torch.log(x)) / x

    x0 = torch.ones(40_000, 1, dtype=DOUBLE)
    value = losses.sliced_sde(score, sde, x0, (0.0, 1.0), times=1, steps=200, seed=1).mean()
    gradient = torch.autograd.grad(value, c, create_graph=True)[0]
    hessian = torch.stack([torch.autograd.grad(g, c, retain_graph=True)[0] for g in gradient])
    a, b = (-torch.linalg.solve(hessian, gradient.detach())).tolist()
    (time,) = seen[0].unique().tolist()
    assert 0 < time <= 1
    assert -1 / b == pytest.approx(0.16 * time, rel=0.04)
    assert (a + 1) * -1 / b == pytest.approx(0.02 * time, abs=0.01)


# -- where reviews go wrong -----------------------------------------------------------------------------


def test_the_noising_of_ddpm_is_an_exact_transition_and_no_langevin_step():
    """x' = sqrt(1 - b) x + sqrt(b) z is the Ornstein-Uhlenbeck transition over -ln(1 - b), N(0, 1) its law
    for every b; Langevin's step x' = (1 - h) x + sqrt(2 h) z on N(0, 1) has the variance 1/(1 - h/2)."""
    b, x = 0.3, torch.tensor([[0.7]], dtype=DOUBLE)
    law = sk.OrnsteinUhlenbeck(theta=0.5, mu=0.0, sigma=1.0).transition(x, 0.0, -math.log(1 - b))
    assert float(law.mean) == pytest.approx(math.sqrt(1 - b) * 0.7)
    assert float(law.std) ** 2 == pytest.approx(b)
    h, n = 0.15, 40_000
    run = sk.solve(sk.Langevin(lambda y, t=None: -y), draws(n, 1), (0.0, 60 * h), steps=60, solver="ula").x
    assert float(run.var()) == pytest.approx(1 / (1 - h / 2), abs=5 * math.sqrt(2 / n) * 1.1)
    assert abs(float(run.var()) - 1) > 0.04


def test_the_noise_of_sgld_has_variance_eps_and_its_gradient_half_of_it():
    """theta' = theta + (eps/2) g + sqrt(eps) xi: one step with and without a slope, the same noise."""
    start, eps = torch.zeros(5, 2, dtype=DOUBLE), 0.04
    rows = torch.ones(7, 1, dtype=DOUBLE)

    def step(slope):
        like = lambda w, y: slope * w.sum(1, keepdim=True).expand(len(w), y.shape[1])  # noqa: E731
        return sk.sgld(like, rows, start, schedule=eps, biased=True, steps=1).x

    noise = sk.Philox(0).normal(0, start, torch.arange(5))
    torch.testing.assert_close(step(0.0), math.sqrt(eps) * noise, rtol=1e-12, atol=0)
    torch.testing.assert_close(step(3.0) - step(0.0), torch.full((5, 2), eps / 2 * 7 * 3, dtype=DOUBLE))


def test_the_target_points_to_the_data_the_trace_has_no_half_and_the_energy_of_samples_rises():
    """Three signs and factors at once, on N(0, 1), where each is a number."""
    nodes, weights = (torch.from_numpy(v) for v in np.polynomial.hermite_e.hermegauss(20))
    weights, x = weights / weights.sum(), nodes[:, None]
    a = torch.tensor(1.7, dtype=DOUBLE, requires_grad=True)
    # implicit: E[-a + a^2 x^2/2], least at a = 1; with half the trace it would be at 1/2
    (slope,) = torch.autograd.grad(weights @ losses.implicit(lambda y: -a * y, x), a)
    assert float(slope) == pytest.approx(0.7, abs=1e-12)
    # one level: a datum at 0, so that the best score at sigma is -x/sigma^2, slope (a - 1/sigma^2) sigma^2
    zero, noise = torch.zeros_like(x), sk.Recorded([x])
    value = losses.one_noise(lambda y: -a * y, zero, 0.5, noise=noise)
    (slope,) = torch.autograd.grad(weights @ value, a)
    assert float(slope) == pytest.approx((1.7 - 4) * 0.25, abs=1e-12)
    # energy a x^2/2 of the law N(0, 1/a): -grad log-likelihood is E_data x^2/2 - E_model x^2/2
    model = x / math.sqrt(1.7)
    value = losses.contrastive_divergence(lambda y: a * y[:, 0].square() / 2, x, model)
    (slope,) = torch.autograd.grad(weights @ value, a)
    assert float(slope) == pytest.approx(0.5 - 0.5 / 1.7, abs=1e-12)


# -- the parts of the loss on simulated paths, and what ends and defaults are ------------------------------


@pytest.mark.parametrize("reduced", [True, False])
@pytest.mark.parametrize("draw", [0, 3])
def test_the_loss_along_an_sde_is_the_sliced_one_at_its_states_and_times(draw, reduced):
    """Times t0 + (k + U)/K (t1 - t0), each for as many rows; states those of `solve` with ids draw B + i."""
    sde, x0, seen = sk.OrnsteinUhlenbeck(theta=1.0, mu=0.5, sigma=1.0), draws(12, 2), []

    def score(x, t):
        seen.append((x.detach(), t))
        return torch.tanh(x) * t[:, None]

    options = {"probes": 2, "law": "normal", "variance_reduced": reduced, "seed": 7, "draw": draw}
    value = losses.sliced_sde(score, sde, x0, (0.5, 2.5), times=4, steps=16, **options)
    x, t = seen[0]
    times, counts = t.unique(return_counts=True)
    assert counts.tolist() == [3, 3, 3, 3]
    torch.testing.assert_close(times.diff(), torch.full((3,), 0.5, dtype=DOUBLE))
    offset = 2 * (float(times[0]) - 0.5)
    assert 0 < offset < 1
    assert offset != pytest.approx(float(uniform(1, seed=7, draw=2 * draw)), abs=1e-9)
    paths = sk.solve(sde, x0, (0.5, 2.5), steps=16, save_at=times, seed=7, first_id=12 * draw).xs
    torch.testing.assert_close(x, paths[torch.searchsorted(times, t), torch.arange(12)])
    torch.testing.assert_close(value, losses.sliced(score, x, t=t, **options))


def test_another_draw_moves_the_times():
    seen = []

    def score(x, t):
        seen.append(float(t.min()))
        return -x

    for draw in (0, 1):
        losses.sliced_sde(score, sk.BrownianMotion(), draws(8, 1), (0.0, 1.0), steps=8, draw=draw)
    assert seen[0] != pytest.approx(seen[1], abs=1e-9)


def test_the_paths_of_interpolants_are_those_of_the_paper():
    """Half-way through its first half, encoding-decoding has a = cos^2(pi/4), c = sin^2(pi/4)."""
    t = torch.tensor([0.25, 0.75, 1 / 6], dtype=DOUBLE)
    path = losses.INTERPOLANTS["encoding-decoding"]
    torch.testing.assert_close(path.a(t), torch.tensor([0.5, 0.0, 0.75], dtype=DOUBLE))
    torch.testing.assert_close(path.b(t), torch.tensor([0.0, 0.5, 0.0], dtype=DOUBLE))
    torch.testing.assert_close(path.c(t), torch.tensor([0.5, 0.5, 0.25], dtype=DOUBLE))


def test_times_of_interpolants_keep_from_the_ends_and_those_of_flows_do_not():
    seen = []

    def net(x, t):
        seen.append(t)
        return x

    x = draws(4000, 1)
    losses.interpolant(net, x, x)
    losses.flow_matching(net, x, x)
    inner, whole = seen
    assert 0.001 <= float(inner.min()) < 0.0013
    assert 0.9987 < float(inner.max()) <= 0.999
    assert float(whole.min()) < 0.00025
    assert float(whole.max()) > 0.99974


def test_contrastive_divergence_with_weight_one_and_with_energies_that_are_no_real_numbers():
    x, negative = draws(3, 2), draws(3, 2, seed=1)
    energy = lambda y: y.square().sum(1)  # noqa: E731
    e, f = energy(x), energy(negative)
    found = losses.contrastive_divergence(energy, x, negative, regularisation=1.0)
    torch.testing.assert_close(found, e - f + e**2 + f**2)
    with pytest.raises(sk.errors.ShapeError, match="one floating number a sample"):
        losses.contrastive_divergence(lambda y: y.argmax(dim=1), x, negative)


def test_the_time_of_edm_is_a_noise_level_so_that_its_own_law_is_uniform_in_its_logarithm():
    process = sk.EDM()
    t = losses.training_times(process, 1000, seed=2)
    assert torch.equal(t, losses.training_times(process, 1000, law="log-snr", seed=2))
    torch.testing.assert_close(losses.time_density(process, t), 1 / (t * math.log(80.0 / 0.002)))
