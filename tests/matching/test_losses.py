"""Denoising score matching: targets, minimisers, weightings and times against closed forms."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import kstest

import sdekit as sk
from sdekit.errors import NonFiniteError, ShapeError, UnknownNameError
from sdekit.matching import losses
from sdekit.score import Denoiser

BETAS = np.linspace(1e-4, 0.02, 50)
PROCESSES = {
    "VP": sk.VP(),
    "SubVP": sk.SubVP(),
    "VE": sk.VE(),
    "Cosine": sk.Cosine(),
    "EDM": sk.EDM(),
    "RectifiedFlow": sk.RectifiedFlow(),
    "DiscreteVP": sk.DiscreteVP(np.cumprod(1 - BETAS)),
}
KINDS = ("eps", "x0", "v", "score", "flow", "edm")
S = 0.7  # data_std of the edm networks


def middle(process, u):
    """A time a fraction u into the process."""
    return process.t_min + u * (process.t_max - process.t_min)


def expected(kind, process, x0, eps, t):
    """What a network must predict, from the definitions; the velocity by differentiating alpha and sigma."""
    alpha, sigma = process.alpha(t)[:, None], process.sigma(t)[:, None]
    if kind == "eps":
        return eps
    if kind == "x0":
        return x0
    if kind == "v":
        return alpha * eps - sigma * x0
    if kind == "score":
        return -eps / sigma
    if kind == "flow":
        u = t.clone().requires_grad_()
        slopes = [torch.autograd.grad(f(u).sum(), u)[0][:, None] for f in (process.alpha, process.sigma)]
        return slopes[0] * x0 + slopes[1] * eps
    rho = sigma / alpha  # Karras et al. 2022, table 1: D = c_skip z + c_out F
    z = x0 + rho * eps
    c_skip, c_out = S**2 / (rho**2 + S**2), rho * S / torch.sqrt(rho**2 + S**2)
    return (x0 - c_skip * z) / c_out


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", PROCESSES)
def test_the_target_is_the_definition(name, kind, device):
    process = PROCESSES[name]
    generator = torch.Generator(device=device).manual_seed(1)
    x0, eps = torch.randn(2, 6, 3, dtype=torch.float64, device=device, generator=generator)
    t = middle(process, torch.linspace(0.05, 0.95, 6, dtype=torch.float64, device=device))
    alpha, sigma = process.alpha(t)[:, None], process.sigma(t)[:, None]
    target = expected(kind, process, x0, eps, t)
    seen = []

    def net(x, level):
        seen.append((x, level))
        return target + offset

    model = Denoiser(net, process, predicts=kind, data_std=S)
    scale = sigma[:, 0] ** 2 if kind == "score" else torch.ones_like(t)
    for offset in (0.0, 1.0):
        value = losses.denoising(model, x0, t=t, noise=sk.Recorded([eps]))
        assert value.shape == (6,)
        torch.testing.assert_close(value, 3 * offset**2 * scale, rtol=1e-9, atol=1e-18)
    state, level = seen[0]
    if kind == "edm":
        c_in = 1 / torch.sqrt((alpha * S) ** 2 + sigma**2)
        torch.testing.assert_close(state, c_in * (alpha * x0 + sigma * eps))
        torch.testing.assert_close(level, torch.log(sigma / alpha)[:, 0] / 4)
    else:
        torch.testing.assert_close(state, alpha * x0 + sigma * eps)
        torch.testing.assert_close(level, t)


def quadrature(mean, std):
    """Nodes of (x0, eps) and weights that integrate polynomials up to degree 7 exactly against N x N."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(4)
    a, b = np.meshgrid(nodes, nodes, indexing="ij")
    w = np.outer(weights, weights) / weights.sum() ** 2
    x0, eps, w = (torch.from_numpy(v.reshape(-1)) for v in (mean + std * a, b, w))
    return x0[:, None], eps[:, None], w


@pytest.mark.parametrize("kind", KINDS)
@given(
    mean=st.floats(-2, 2),
    std=st.floats(0.3, 2),
    u=st.floats(0.05, 0.95),
    name=st.sampled_from(sorted(PROCESSES)),
)
def test_the_minimiser_over_linear_networks_is_the_gaussian_s_own(kind, mean, std, u, name):
    """For N(m, s^2) every prediction is affine in x: there the gradient of the expected loss vanishes."""
    process = PROCESSES[name]
    t = float(middle(process, u))
    m, v = torch.tensor([[mean], [std**2]], dtype=torch.float64)
    exact = sk.Gaussian(m, variance=v).denoiser(process)
    x0, eps, w = quadrature(mean, std)
    points = torch.tensor([[0.0], [1.0]], dtype=torch.float64)
    if kind == "edm":  # the network sees c_in x
        c_in = float(1 / torch.sqrt((process.alpha(t) * S) ** 2 + process.sigma(t) ** 2))
        model = Denoiser(lambda x, t: x, process, predicts="edm", data_std=S)
        at = exact.evaluate("F", points / c_in, model.node(t), data_std=S)
    else:
        at = exact.predict({"flow": "velocity"}.get(kind, kind), points, t)
    optimum = torch.stack([at[1, 0] - at[0, 0], at[0, 0]])

    def gradient(values):
        theta = values.clone().requires_grad_()
        model = Denoiser(lambda x, _: theta[0] * x + theta[1], process, predicts=kind, data_std=S)
        times = torch.full((len(x0),), t, dtype=torch.float64)
        loss = (w * losses.denoising(model, x0, t=times, noise=sk.Recorded([eps]))).sum()
        return torch.autograd.grad(loss, theta)[0], loss.detach()

    here, least = gradient(optimum)
    size = float(gradient(torch.zeros(2, dtype=torch.float64))[1]) + 1e-6
    scale = 1 + float(optimum.abs().max())
    assert float(here.abs().max()) < 1e-8 * size * scale
    for change in (torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])):  # and only there
        _, other = gradient(optimum + 0.1 * change.double())
        assert float(other) > float(least)


@pytest.mark.parametrize("name", PROCESSES)
def test_noise_weighting_does_not_depend_on_what_is_predicted(name, device):
    process = PROCESSES[name]
    wrong = sk.Gaussian(torch.zeros(4, dtype=torch.float64), variance=0.3).denoiser(process)
    generator = torch.Generator(device=device).manual_seed(2)
    x0, eps = torch.randn(2, 5, 4, dtype=torch.float64, device=device, generator=generator)
    t = middle(process, torch.linspace(0.1, 0.9, 5, dtype=torch.float64, device=device))
    x = process.alpha(t)[:, None] * x0 + process.sigma(t)[:, None] * eps
    reference = (wrong.predict("eps", x, t) - eps).square().sum(1)
    for kind in KINDS[:-1]:
        model = Denoiser(
            lambda x, s, k=kind: wrong.predict({"flow": "velocity"}.get(k, k), x, s), process, predicts=kind
        )
        value = losses.denoising(model, x0, t=t, weighting="noise", noise=sk.Recorded([eps]))
        torch.testing.assert_close(value, reference, rtol=1e-6, atol=1e-12)


def test_a_weighting_of_one_s_own_multiplies_the_native_loss():
    process = sk.VP()
    model = Denoiser(lambda x, t: torch.zeros_like(x), process)
    x0 = torch.ones(4, 2)
    plain = losses.denoising(model, x0, seed=3)
    times = losses.training_times(process, 4, seed=3)
    weighted = losses.denoising(model, x0, seed=3, weighting=process.diffusion_squared)
    torch.testing.assert_close(weighted, plain * process.diffusion_squared(times).float())


@pytest.mark.parametrize("name", PROCESSES)
def test_times_lie_in_the_training_interval_and_are_evenly_spread(name, device):
    process = PROCESSES[name]
    first = losses.first_training_time(process)
    assert first == (process.t_min if name in ("EDM", "DiscreteVP") else 1e-5)
    for law in ("uniform", "log-snr"):
        t = losses.training_times(process, 64, law=law, seed=5, device=device).cpu().sort().values
        assert float(t[0]) >= first * (1 - 1e-12)
        assert float(t[-1]) <= process.t_max
        u = (t - first) / (process.t_max - first)
        if law == "log-snr":
            high, low = process.half_log_snr(first), process.half_log_snr(process.finite_t_max)
            u = (high - process.half_log_snr(t)) / (high - low)
        torch.testing.assert_close(u.diff(), torch.full_like(u[1:], 1 / 64), rtol=0, atol=1e-9)


@pytest.mark.parametrize("stratified", [True, False])
def test_every_row_s_time_is_uniform(stratified):
    """Row 3 of 8 over 2,000 draws against U(0, 1): Kolmogorov-Smirnov, fixed seed, false alarms 1e-4."""
    t = [
        losses.training_times(sk.RectifiedFlow(), 8, stratified=stratified, seed=7, draw=k)[3]
        for k in range(2000)
    ]
    assert kstest(torch.stack(t).numpy(), "uniform").pvalue > 1e-4


def test_a_law_of_times_of_one_s_own():
    t = losses.training_times(sk.VP(), 5, law=lambda u: 0 * u + 0.25)
    assert t.tolist() == [0.25] * 5


def test_rows_keep_their_noise_in_any_batch_and_sampling_never_repeats_it():
    seen = []

    def net(x, t):
        seen.append(x.clone())
        return x

    model = Denoiser(net, sk.VE())
    t = torch.ones(6, dtype=torch.float64)
    losses.denoising(model, torch.zeros(6, 5), t=t, seed=4, draw=2)
    losses.denoising(model, torch.zeros(3, 5), t=t[:3], seed=4, draw=2)
    losses.denoising(model, torch.zeros(3, 5), t=t[:3], seed=4, draw=3)
    assert torch.equal(seen[0][:3], seen[1])
    assert not torch.isclose(seen[1], seen[2]).any()
    injected = 50.0 * sk.Philox(4).normal(2, torch.zeros(3, 5), torch.arange(3))
    assert not torch.isclose(seen[1], injected).any()


def test_gradients_reach_the_network_and_bfloat16_sums_in_float32():
    layer = torch.nn.Linear(3, 3)
    model = Denoiser(lambda x, t: layer(x), sk.VP())
    losses.denoising(model, torch.randn(4, 3)).mean().backward()
    assert all(p.grad is not None and float(p.grad.abs().sum()) > 0 for p in layer.parameters())
    half = Denoiser(lambda x, t: x, sk.VP())
    assert losses.denoising(half, torch.ones(2, 3, dtype=torch.bfloat16)).dtype == torch.float32


def test_bad_input_is_named():
    model = Denoiser(lambda x, t: x, sk.VP())
    with pytest.raises(ShapeError, match=r"x0 must be floating.*8-bit"):
        losses.denoising(model, torch.ones(2, 3, dtype=torch.uint8))
    with pytest.raises(NonFiniteError, match="first: sample 1"):
        losses.denoising(model, torch.tensor([[0.0], [float("nan")]]))
    with pytest.raises(ShapeError, match=r"t must have shape \(2,\)"):
        losses.denoising(model, torch.ones(2, 3), t=torch.ones(()))
    with pytest.raises(UnknownNameError, match=r"unknown weighting 'nois'.*'noise'"):
        losses.denoising(model, torch.ones(2, 3), weighting="nois")
    with pytest.raises(UnknownNameError, match="unknown law of times"):
        losses.denoising(model, torch.ones(2, 3), times="unifrom")
    wide = Denoiser(lambda x, t: torch.cat([x, x], 1), sk.VP())
    with pytest.raises(ShapeError, match="net must return shape"):
        losses.denoising(wide, torch.ones(2, 3))
