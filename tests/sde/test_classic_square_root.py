"""The square-root diffusion and Heston's model: densities, moments, prices."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import special, stats
from scipy.integrate import solve_ivp

import sdekit as sk
from sdekit.errors import DirectionError, ShapeError
from sdekit.sde import CIR, SDE, Heston
from sdekit.sde.classic.chi_square import log_bessel

from .exact import (
    F64,
    KOLMOGOROV,
    cdf_is_integral,
    fokker_planck,
    kolmogorov,
    moments_are_integrals,
    solved,
    within,
)


def column(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=F64)[:, None]


@given(st.floats(0.1, 5), st.floats(0.05, 3), st.floats(0.05, 2), st.floats(0, 5), st.floats(0.01, 4))
def test_moments(kappa, theta, sigma, x, h):
    """The moment equations m' = kappa (theta - m), v' = -2 kappa v + sigma^2 m, solved."""
    law = CIR(kappa, theta, sigma).transition(column(x), 0.3, 0.3 + h)
    decay = math.exp(-kappa * h)
    mean = theta + (x - theta) * decay
    variance = sigma**2 / kappa * (x * decay * (1 - decay) + 0.5 * theta * (1 - decay) ** 2)
    assert float(law.mean) == pytest.approx(mean, rel=1e-10)
    assert float(law.variance) == pytest.approx(variance, rel=1e-10)
    assert float(law.std) == pytest.approx(math.sqrt(variance), rel=1e-10)


@pytest.mark.parametrize("sigma", [0.5, 1.5, 0.15], ids=["Feller", "touches zero", "many degrees"])
def test_the_density_solves_the_fokker_planck_equation(sigma):
    p = CIR(1.3, 0.6, sigma)
    scale = min(sigma, 0.6)

    def log_density(x, t):
        return p.transition(torch.full_like(x, 0.7), 0.0, t).log_prob(x)

    x = 0.65 + scale * torch.tensor([-0.4, -0.1, 0.3], dtype=F64)
    assert fokker_planck(p, log_density, x, 0.5) < 1e-6

    def law(n):
        return p.transition(torch.full((n, 1), 0.7, dtype=F64), 0.0, 0.5)

    cdf_is_integral(law(3), x[:, None], rtol=1e-6)
    if p.feller:
        moments_are_integrals(law, 1e-12, 8.0, panels=800, rtol=1e-6)
    exact = stats.ncx2(float(law(1).nu), float(law(1).nonc), scale=float(law(1).scale))
    np.testing.assert_allclose(law(3).log_prob(x[:, None]).numpy(), exact.logpdf(x.numpy()), rtol=1e-7)


@given(st.floats(-0.9, 3000), st.floats(1e-3, 5000))
def test_bessel_functions_of_every_order(order, z):
    """Against the recurrence I_(v-1) - I_(v+1) = (2 v/z) I_v, in logarithms."""
    v = torch.tensor([order, order + 1, order + 2], dtype=F64)
    low, middle, high = log_bessel(v, torch.full_like(v, z)).tolist()
    left = 1.0 - math.exp(high - low)
    assert left == pytest.approx(2 * (order + 1) / z * math.exp(middle - low), rel=1e-7, abs=1e-8)


def test_debyes_expansion_meets_the_function():
    for z in (3.0, 20.0, 900.0):
        v = torch.tensor([30.0, 40.0, 120.0], dtype=F64)
        exact = np.log(special.ive(v.numpy(), z)) + z
        np.testing.assert_allclose(log_bessel(v, torch.full_like(v, z)).numpy(), exact, rtol=0, atol=5e-10)


@pytest.mark.parametrize("sigma", [0.5, 1.5])
def test_samples_have_the_law(sigma):
    p = CIR(1.3, 0.6, sigma)
    law = p.transition(torch.full((20_000, 1), 0.7, dtype=F64), 0.0, 0.5)
    x = law.sample(seed=4)
    assert kolmogorov(x[:, 0], lambda y: law.cdf(y[:, None])[:, 0]) < KOLMOGOROV
    within(x, law.mean[0])
    assert torch.equal(
        law._replace(scale=law.scale[:7], nonc=law.nonc[:7], nu=law.nu[:7]).sample(seed=4), x[:7]
    )
    late = p.stationary(torch.empty(20_000, 1, dtype=F64))
    y = late.sample(seed=5)
    assert kolmogorov(y[:, 0], lambda z: late.cdf(z[:, None])[:, 0]) < KOLMOGOROV


def test_the_law_tends_to_the_stationary_one():
    p, x = CIR(1.3, 0.6, 0.5), column(0.3, 0.6, 1.1)
    late, far = p.stationary(x), p.transition(column(2.0, 2.0, 2.0), 0.0, 25.0)
    torch.testing.assert_close(far.log_prob(x), late.log_prob(x), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(far.cdf(x), late.cdf(x))
    torch.testing.assert_close(far.mean, late.mean)
    torch.testing.assert_close(far.variance, late.variance)
    np.testing.assert_allclose(
        late.log_prob(x).numpy(), stats.gamma(2 * 1.3 * 0.6 / 0.25, scale=0.25 / 2.6).logpdf(x[:, 0].numpy())
    )
    # It is stationary: zero flux, kappa (theta - x) p = (sigma^2 x p)'/2.
    y = x.clone().requires_grad_()
    (slope,) = torch.autograd.grad(late.log_prob(y).sum(), y)
    torch.testing.assert_close(p.drift(x, 0.0), 0.125 * (1 + x * slope))


def test_solvers_find_the_moments():
    """Euler-Maruyama, 400 steps: means within 5 standard errors (6e-7), the bias of order h below them."""
    p = CIR(1.3, 0.6, 0.5)
    x0 = torch.full((20_000, 1), 0.9, dtype=F64)
    x = solved(p, x0, 0.8, 400, seed=8)
    law = p.transition(x0[:1], 0.0, 0.8)
    within(x, law.mean[0])
    within((x - law.mean[0]) ** 2, law.variance[0], sigmas=6)


def test_fields(device, dtype):
    p = CIR([1.0, 2.0], 0.5, 0.4)
    x = torch.tensor([[0.3, 0.0], [-0.2, 2.0]], dtype=dtype, device=device)
    assert p.diffusion(x, 0.0)[1, 0] == p.diffusion(x, 0.0)[0, 1] == 0
    torch.testing.assert_close(p.diffusion(x, 0.0)[1, 1], 0.4 * x[1, 1].sqrt())
    inside = x.abs() + 0.1
    torch.testing.assert_close(p.divergence_ggt(inside, 0.0), SDE.divergence_ggt(p, inside, 0.0))
    torch.testing.assert_close(p.correction(inside, 0.0), SDE.correction(p, inside, 0.0))
    below = (x - 5.0).requires_grad_()
    (slope,) = torch.autograd.grad(p.diffusion(below, 0.0).sum(), below)
    assert torch.equal(slope, torch.zeros_like(x))
    law = p.transition(inside, 0.0, 0.4)
    assert law.mean.dtype == law.sample(1).dtype == law.log_prob(inside).dtype == dtype
    assert CIR(1.0, 1.0, 1.4).feller
    assert not CIR(1.0, 1.0, 1.5).feller


# -- Heston ---------------------------------------------------------------------------------------------

MODEL = Heston(mu=0.05, kappa=1.7, theta=0.05, xi=0.4, rho=-0.6)
START = torch.tensor([[100.0, 0.03], [90.0, 0.09]], dtype=F64)


def test_a_published_price():
    """Broadie and Kaya 2006, Operations Research 54, 217, table 1: 6.8061."""
    p = Heston(mu=0.0319, kappa=6.21, theta=0.019, xi=0.61, rho=-0.7)
    x = torch.tensor([[100.0, 0.010201]], dtype=F64)
    assert float(p.call_price(x, 0.0, 1.0, 100.0)) == pytest.approx(6.8061, abs=5e-5)


@pytest.mark.parametrize("u", [0.7, 3.0 - 0.5j, -1j, 12.0 - 0.3j])
def test_the_characteristic_function_solves_its_riccati_equations(u):
    """D' = xi^2 D^2/2 - (kappa - rho xi i u) D - (i u + u^2)/2, A' = i u mu + kappa theta D."""
    m, w = MODEL, complex(u)

    def equations(_, y):
        d = y[0]
        slope = 0.5 * m.xi**2 * d**2 - (m.kappa - m.rho * m.xi * 1j * w) * d - 0.5 * (1j * w + w * w)
        return [slope, 1j * w * m.mu + m.kappa * m.theta * d]

    d, a = solve_ivp(equations, (0, 1.4), [0j, 0j], rtol=1e-11, atol=1e-13).y[:, -1]
    exact = np.exp(1j * w * np.log(START[:, 0].numpy()) + a + d * START[:, 1].numpy())
    found = m.characteristic(torch.tensor([w], dtype=torch.complex128), START, 0.2, 1.6)[:, 0]
    np.testing.assert_allclose(found.numpy(), exact, rtol=1e-8)


def test_moments_of_the_logarithm():
    """Against derivatives of log phi at 0; and E S = S e^(mu h) = phi(-i)."""
    step = 1e-3
    u = step * torch.arange(-3, 4).to(torch.complex128)
    logs = torch.log(MODEL.characteristic(u, START, 0.0, 1.4) * torch.exp(-1j * u * torch.log(START[:, :1])))
    first = sum(c * logs[:, k] for k, c in enumerate((-1 / 60, 3 / 20, -3 / 4, 0, 3 / 4, -3 / 20, 1 / 60)))
    second = sum(c * logs[:, k] for k, c in enumerate((1 / 90, -0.15, 1.5, -49 / 18, 1.5, -0.15, 1 / 90)))
    mean, variance = MODEL.log_moments(START, 0.0, 1.4)
    torch.testing.assert_close(mean - torch.log(START[:, 0]), first.imag / step, rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(variance, -second.real / step**2, rtol=1e-7, atol=0)
    growth = MODEL.characteristic(torch.tensor([-1j]), START, 0.0, 1.4)[:, 0]
    torch.testing.assert_close(growth.real, START[:, 0] * math.exp(0.05 * 1.4), rtol=1e-11, atol=0)
    torch.testing.assert_close(MODEL.mean(START, 0.0, 1.4)[:, 0], growth.real, rtol=1e-11, atol=0)


def test_little_volatility_of_variance_is_black_and_scholes():
    p = Heston(mu=0.03, kappa=1.0, theta=0.04, xi=1e-3, rho=0.0)
    x = torch.tensor([[100.0, 0.04]], dtype=F64)
    for strike, t in ((80.0, 0.5), (100.0, 1.0), (130.0, 2.0)):
        deviation = 0.2 * math.sqrt(t)
        d1 = (math.log(100 / strike) + 0.03 * t) / deviation + 0.5 * deviation
        exact = 100 * special.ndtr(d1) - strike * math.exp(-0.03 * t) * special.ndtr(d1 - deviation)
        assert float(p.call_price(x, 0.0, t, strike)) == pytest.approx(exact, abs=1e-5)


def test_prices_obey_arbitrage():
    """Convex and falling in the strike, between (S - K e^(-mu t))^+ and S."""
    strikes = [40.0, 60.0, 80.0, 100.0, 120.0, 160.0, 240.0]
    prices = [float(MODEL.call_price(START[:1], 0.0, 0.7, k)) for k in strikes]
    for k, price in zip(strikes, prices, strict=True):
        assert max(0.0, 100.0 - k * math.exp(-0.035)) <= price + 1e-9 <= 100.0
    slopes = np.diff(prices) / np.diff(strikes)
    assert bool((slopes < 0).all())
    assert bool((np.diff(slopes) > 0).all())


def test_simulated_moments_and_price():
    """Euler-Maruyama, 200 steps, 20,000 paths: within 5 standard errors (6e-7), as the bias is smaller."""
    x0, t = START[:1].expand(20_000, 2).contiguous(), 0.7
    x = sk.solve(MODEL, x0, (0.0, t), steps=200, seed=3).x
    mean, variance = MODEL.log_moments(START[:1], 0.0, t)
    logs = torch.log(x[:, 0])
    within(logs, mean)
    within((logs - mean) ** 2, variance, sigmas=6)
    within(x, MODEL.mean(START[:1], 0.0, t)[0])
    payoff = math.exp(-0.05 * t) * (x[:, 0] - 105.0).clamp(min=0)
    within(payoff, MODEL.call_price(START[:1], 0.0, t, 105.0))
    law = MODEL.variance_process.transition(x0[:, 1:], 0.0, t)
    within((x[:, 1:] - law.mean[0]) ** 2, law.variance[0], sigmas=6)


def test_closed_derivatives_of_heston():
    x = START / 10
    torch.testing.assert_close(MODEL.divergence_ggt(x, 0.0), SDE.divergence_ggt(MODEL, x, 0.0))
    torch.testing.assert_close(MODEL.correction(x, 0.0), SDE.correction(MODEL, x, 0.0))
    g = MODEL.diffusion(x, 0.0)
    cov = g @ g.transpose(1, 2)
    s, v = x.T
    exact = torch.stack([v * s * s, MODEL.rho * MODEL.xi * v * s, MODEL.xi**2 * v])
    torch.testing.assert_close(torch.stack([cov[:, 0, 0], cov[:, 0, 1], cov[:, 1, 1]]), exact)
    empty = torch.tensor([[1.0, -0.1]], dtype=F64)
    for field in (MODEL.diffusion, MODEL.divergence_ggt, MODEL.correction):
        assert not field(empty, 0.0).any()


def test_messages():
    x = column(0.5)
    cases = [
        (lambda: CIR(0.0), ValueError, r"kappa must be > 0.*argument order \(kappa, theta, sigma\)"),
        (lambda: CIR(1.0, -1.0), ValueError, "theta must be > 0, got -1"),
        (lambda: CIR().transition(-x, 0.0, 1.0), ValueError, r"state must lie in \[0, inf\), got -0.5.*Next"),
        (lambda: CIR().transition(x, 1.0, 0.0), DirectionError, "goes forward"),
        (lambda: Heston(rho=1.0), ValueError, r"rho must lie in \(-1, 1\), got 1.0.*Next"),
        (lambda: Heston(xi=0.0), ValueError, "xi must be finite and > 0"),
        (lambda: MODEL.drift(x, 0.0), ShapeError, r"x must have shape \(B, 2\), price and variance"),
        (lambda: MODEL.log_moments(-START, 0.0, 1.0), ValueError, "the price, got -100"),
        (lambda: MODEL.call_price(START, 0.0, 1.0, 0.0), ValueError, "strike must be finite and > 0"),
    ]
    for call, kind, message in cases:
        with pytest.raises(kind, match=message):
            call()
    assert repr(CIR(1.0, 2.0, 0.5)) == "CIR(kappa=1.0, theta=2.0, sigma=0.5)"
    assert repr(MODEL) == "Heston(mu=0.05, kappa=1.7, theta=0.05, xi=0.4, rho=-0.6)"
