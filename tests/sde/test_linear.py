"""Linear SDEs: Van Loan's transitions against closed forms, stationary laws, limits."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.linalg import expm

from sdekit.errors import DirectionError, NonFiniteError, NotPositiveDefiniteError, ShapeError
from sdekit.noise import Philox
from sdekit.sde import BrownianMotion, LinearSDE, OrnsteinUhlenbeck

from .processes import F64


def full(*values):
    return torch.tensor([values], dtype=F64)


def random_system(seed: int, d: int, m: int, scale: float) -> LinearSDE:
    g = torch.Generator().manual_seed(seed)
    a, b, noise = (torch.randn(*s, generator=g, dtype=F64) for s in ((d, d), (d,), (d, m)))
    return LinearSDE(scale * a, b, noise)


@given(st.floats(0.01, 5), st.floats(-2, 2), st.floats(0.1, 3), st.floats(1e-3, 20), st.floats(-3, 3))
def test_van_loan_is_ornstein_uhlenbeck(theta, mu, sigma, h, start):
    """N(mu + (x - mu) e^(-theta h), sigma^2 (1 - e^(-2 theta h))/(2 theta)), by matrices and elementwise."""
    mean = mu + (start - mu) * math.exp(-theta * h)
    variance = sigma**2 * -math.expm1(-2 * theta * h) / (2 * theta)
    matrices = LinearSDE([[-theta]], [theta * mu], [[sigma]]).transition(full(start), 0.0, h)
    elements = OrnsteinUhlenbeck(theta, mu, sigma).transition(full(start), 1.0, 1.0 + h)
    assert float(matrices.mean) == pytest.approx(mean, rel=1e-11, abs=1e-12)
    assert float(matrices.cov) == pytest.approx(variance, rel=1e-11)
    assert float(elements.mean) == pytest.approx(mean, rel=1e-11, abs=1e-12)
    assert float(elements.variance) == pytest.approx(variance, rel=1e-11)


@given(st.floats(1e-6, 1e4), st.floats(0.1, 3))
def test_integrated_brownian_motion(h, q):
    """dX = V dt, dV = q dW: cov = q^2 [[h^3/3, h^2/2], [h^2/2, h]]. A is nilpotent, so nothing decays."""
    law = LinearSDE([[0.0, 1.0], [0.0, 0.0]], L=[[0.0], [q]]).transition(full(1.0, -2.0), 0.0, h)
    exact = q**2 * np.array([[h**3 / 3, h**2 / 2], [h**2 / 2, h]])
    np.testing.assert_allclose(law.cov.numpy(), exact, rtol=1e-12)
    np.testing.assert_allclose(law.mean[0].numpy(), [1.0 - 2.0 * h, -2.0], rtol=1e-12, atol=1e-12)


@given(st.floats(0.0, 50), st.floats(0.1, 3))
def test_brownian_motion(h, sigma):
    x = full(0.3, -1.0)
    for law in (
        BrownianMotion(sigma).transition(x, 0.0, h),
        LinearSDE(np.zeros((2, 2)), L=sigma * np.eye(2)).transition(x, 0.0, h),
    ):
        assert torch.equal(law.mean, x)
        torch.testing.assert_close(
            law.variance.expand(1, 2), torch.full((1, 2), sigma**2 * h, dtype=F64), rtol=1e-12, atol=0
        )


def test_underdamped_langevin_free_particle():
    """dx = v dt, dv = -gamma v dt + sqrt(2 gamma T) dW: Var x = (T/gamma^2)(2 g - 3 + 4 e^-g - e^-2g)."""
    gamma, temperature, t = 1.7, 0.6, 2.3
    system = LinearSDE([[0, 1.0], [0, -gamma]], L=[[0], [math.sqrt(2 * gamma * temperature)]])
    law = system.transition(full(0.0, 0.0), 0.0, t)
    g = gamma * t
    exact = temperature / gamma**2 * (2 * g - 3 + 4 * math.exp(-g) - math.exp(-2 * g))
    assert float(law.cov[0, 0]) == pytest.approx(exact, rel=1e-13)
    assert float(law.cov[1, 1]) == pytest.approx(temperature * (1 - math.exp(-2 * g)), rel=1e-13)


def test_stationary_underdamped_langevin():
    """N(0, T/omega^2) x N(0, T), and the transition leaves it as it is."""
    gamma, omega, temperature = 0.8, 1.5, 0.6
    a = [[0, 1.0], [-(omega**2), -gamma]]
    system = LinearSDE(a, L=[[0], [math.sqrt(2 * gamma * temperature)]])
    law = system.stationary(3)
    assert law.mean.shape == (3, 2)
    exact = torch.diag(torch.tensor([temperature / omega**2, temperature], dtype=F64))
    torch.testing.assert_close(law.cov, exact, rtol=1e-12, atol=1e-13)
    phi, offset, cov = system.flow(1.9)
    torch.testing.assert_close(phi @ law.cov @ phi.T + cov, law.cov, rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(phi @ law.mean[0] + offset, law.mean[0])


@given(st.integers(0, 10**6), st.integers(1, 4), st.integers(1, 3), st.floats(0.05, 2.0))
def test_flow_is_its_integral(seed, d, m, h):
    """Phi = expm(A h); offset and cov by 20 Gauss-Legendre nodes, and cov by Van Loan's block."""
    system = random_system(seed, d, m, 0.7)
    a, b, q = system.A.numpy(), system.b.numpy(), (system.L @ system.L.T).numpy()
    phi, offset, cov = (v.numpy() for v in system.flow(h))
    np.testing.assert_allclose(phi, expm(a * h), rtol=1e-11, atol=1e-12)
    nodes, weights = np.polynomial.legendre.leggauss(20)
    flows = [(0.5 * h * w, expm(a * 0.5 * h * (1 + u))) for u, w in zip(nodes, weights, strict=True)]
    np.testing.assert_allclose(offset, sum(w * f @ b for w, f in flows), rtol=1e-10, atol=1e-11)
    np.testing.assert_allclose(cov, sum(w * f @ q @ f.T for w, f in flows), rtol=1e-10, atol=1e-11)
    block = expm(h * np.block([[-a, q], [np.zeros((d, d)), a.T]]))
    np.testing.assert_allclose(cov, block[d:, d:].T @ block[:d, d:], rtol=1e-8, atol=1e-9)


@given(st.integers(0, 10**6), st.integers(1, 4), st.floats(0.01, 3.0), st.floats(0.01, 3.0))
def test_chapman_kolmogorov(seed, d, h1, h2):
    system = random_system(seed, d, 2, 0.5)
    (p1, o1, c1), (p2, o2, c2), (p, o, c) = (system.flow(h) for h in (h1, h2, h1 + h2))
    torch.testing.assert_close(p2 @ p1, p, rtol=1e-10, atol=1e-11)
    torch.testing.assert_close(p2 @ o1 + o2, o, rtol=1e-10, atol=1e-11)
    torch.testing.assert_close(p2 @ c1 @ p2.T + c2, c, rtol=1e-10, atol=1e-11)


def test_stiff_systems_lose_no_digits():
    """Rates 1e-3 and 1e6 at once, 24 doublings: Van Loan's block exponential overflows."""
    rates = np.array([1e-3, 1e6])
    law = LinearSDE(-np.diag(rates), L=np.eye(2)).transition(full(1.0, 1.0), 0.0, 10.0)
    exact = -np.expm1(-20 * rates) / (2 * rates)
    np.testing.assert_allclose(law.variance.numpy(), exact, rtol=1e-13)
    np.testing.assert_allclose(law.mean[0].numpy(), np.exp(-10 * rates), rtol=1e-13, atol=1e-15)


def test_theta_to_zero_is_brownian_motion():
    """Continuous in theta, and its slope: mean x + theta (mu - x) h, variance sigma^2 h (1 - theta h)."""
    x, h = full(2.0), 0.7
    limit = BrownianMotion(1.3).transition(x, 0.0, h)
    for theta in (0.0, 1e-300, 1e-12, -1e-12, 1e-9, 1e-7):
        law = OrnsteinUhlenbeck(theta, 0.4, 1.3).transition(x, 0.0, h)
        first = torch.tensor(1 - theta * h, dtype=F64)
        torch.testing.assert_close(law.variance, limit.variance * first, rtol=1e-13, atol=0)
        torch.testing.assert_close(law.mean, x + theta * (0.4 - x) * h, rtol=1e-13, atol=0)
    theta = torch.zeros((), dtype=F64, requires_grad=True)
    law = OrnsteinUhlenbeck(theta, 0.4, 1.3).transition(x, 0.0, h)
    (slope,) = torch.autograd.grad(law.variance.sum(), theta)
    assert float(slope) == pytest.approx(-(1.3**2) * h**2, rel=1e-12)
    growing = OrnsteinUhlenbeck(-0.5, 0.0, 1.0).transition(x, 0.0, h)
    assert float(growing.variance) == pytest.approx(math.expm1(0.7), rel=1e-13)


def test_fields(device, dtype):
    """Drift and diffusion are those of the equation; parameters broadcast over the event."""
    x = torch.linspace(-1, 1, 12, dtype=dtype, device=device).reshape(2, 2, 3)
    theta = torch.tensor([[0.5], [2.0]])
    p = OrnsteinUhlenbeck(theta, 0.4, [0.1, 0.2, 0.3])
    torch.testing.assert_close(p.drift(x, 0.0), theta.to(x) * (0.4 - x))
    sigma = torch.tensor([0.1, 0.2, 0.3], dtype=F64).to(x).expand(2, 2, 3)
    assert torch.equal(p.diffusion(x, 0.0), sigma)
    law = p.stationary(x)
    assert law.mean.shape == law.std.shape == x.shape
    torch.testing.assert_close(law.variance, sigma**2 / (2 * theta.to(x)))
    times = torch.tensor([0.1, 3.0], dtype=dtype, device=device)
    both = p.transition(x, 0.0 * times, times)
    torch.testing.assert_close(both.mean[1:], p.transition(x[1:], 0.0, 3.0).mean)
    system = random_system(1, 3, 2, 1.0)
    rows = x.reshape(4, 3)
    torch.testing.assert_close(system.drift(rows, 0.0), rows @ system.A.T.to(x) + system.b.to(x))
    assert system.diffusion(rows, 0.0).shape == (4, 3, 2)
    assert torch.equal(system.drift(rows, 0.0)[2:3], system.drift(rows[2:3], 0.0))


def test_multivariate_normal():
    """Samples have the law (5 standard errors, false alarm 6e-7 each); density as torch.distributions."""
    cov = torch.tensor([[2.0, 0.6, 0.0], [0.6, 0.5, 0.1], [0.0, 0.1, 0.05]], dtype=F64)
    law = LinearSDE(torch.zeros(3, 3), L=torch.linalg.cholesky(cov)).transition(
        torch.zeros(20_000, 3, dtype=F64), 0.0, 1.0
    )
    torch.testing.assert_close(law.factor() @ law.factor().T, cov, rtol=1e-10, atol=1e-12)
    x = law.sample(seed=5)
    assert torch.equal(law._replace(mean=law.mean[7:8]).sample(noise=Philox(5), first_id=7), x[7:8])
    assert bool((x.mean(0).abs() < 5 * law.std / math.sqrt(20_000)).all())
    gap = (torch.cov(x.T) - cov).abs()
    error = torch.sqrt((cov**2 + torch.outer(law.variance, law.variance)) / 20_000)
    assert bool((gap < 5 * error).all())
    same = torch.distributions.MultivariateNormal(law.mean[:9], cov).log_prob(x[:9])
    torch.testing.assert_close(law.log_prob(x)[:9], same)


def test_gradients_reach_the_parameters():
    a = torch.tensor([[-1.0, 0.3], [0.0, -0.5]], dtype=F64)
    noise = torch.eye(2, dtype=F64)
    assert torch.autograd.gradcheck(
        lambda a, noise: LinearSDE(a, None, noise).flow(0.8), (a.requires_grad_(), noise.requires_grad_())
    )


def test_messages():
    x, eye = full(1.0, 2.0), np.eye(2)
    system = LinearSDE(-eye, L=eye)
    cases = [
        (lambda: LinearSDE(np.ones((2, 3)), L=eye), ShapeError, r"A must have shape \(D, D\), got \(2, 3\)"),
        (lambda: LinearSDE(eye), ShapeError, r"L, the \(D, m\) noise matrix, is missing.*ODE for none"),
        (lambda: LinearSDE(eye, np.ones(3), eye), ShapeError, r"b must have shape \(2,\).*got \(3,\)"),
        (lambda: LinearSDE(eye, L=np.ones(2)), ShapeError, r"L must have shape \(2, m\).*torch.diag"),
        (lambda: LinearSDE([[math.nan]], L=[[1.0]]), NonFiniteError, "A holds NaN or infinity"),
        (lambda: LinearSDE("a", L=eye), ShapeError, "A must be numbers or a tensor, got str"),
        (lambda: system.drift(torch.ones(1, 3), 0.0), ShapeError, r"x must have shape \(B, 2\)"),
        (lambda: system.transition(x, 1.0, 0.5), DirectionError, "goes forward in time.*swapped times"),
        (lambda: system.transition(x, torch.zeros(1), 1.0), ShapeError, "must be single times"),
        (lambda: system.flow(-1.0), ValueError, "elapsed time must be finite and >= 0, got -1"),
        (lambda: LinearSDE(eye, L=eye).stationary(), ValueError, "no stationary law.*real part 1 >= 0"),
        (
            lambda: system.transition(x, 1.0, 1.0).log_prob(x),
            NotPositiveDefiniteError,
            "covariance is singular.*zero elapsed time",
        ),
        (lambda: OrnsteinUhlenbeck(1.0, 0.0, -1.0), ValueError, r"sigma must be >= 0.*\(theta, mu, sigma\)"),
        (lambda: OrnsteinUhlenbeck(math.inf), NonFiniteError, "theta holds NaN or infinity"),
        (lambda: OrnsteinUhlenbeck(0.0).stationary(x), ValueError, "no stationary law unless theta > 0"),
        (lambda: OrnsteinUhlenbeck().transition(x, 1.0, 0.0), DirectionError, "s to t >= s"),
        (lambda: OrnsteinUhlenbeck().transition(x, -1.0, 0.0), ValueError, "finite and >= 0, got s = -1"),
        (lambda: OrnsteinUhlenbeck([1.0] * 3).drift(x, 0.0), ShapeError, "broadcast to the event"),
    ]
    for call, kind, message in cases:
        with pytest.raises(kind, match=message):
            call()
    assert repr(system) == "LinearSDE(D=2, m=2)"
    assert repr(OrnsteinUhlenbeck(1, 2, 3)) == "OrnsteinUhlenbeck(theta=1.0, mu=2.0, sigma=3.0)"
    assert repr(BrownianMotion()) == "BrownianMotion(sigma=1.0)"
