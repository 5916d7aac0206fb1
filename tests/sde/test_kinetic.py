"""Position and velocity: underdamped Langevin dynamics, harmonic and critically damped cases."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import sdekit as sk
from sdekit.errors import CapabilityError, DirectionError, ShapeError
from sdekit.sde import (
    SDE,
    CriticallyDampedLangevin,
    HarmonicLangevin,
    LinearSDE,
    MultivariateNormal,
    PairNormal,
    UnderdampedLangevin,
    reverse,
)
from sdekit.sde.phase import join

from .exact import F64, within


def pair(q: float, v: float) -> torch.Tensor:
    return torch.tensor([[[q], [v]]], dtype=F64)


def flat(law: PairNormal) -> tuple[torch.Tensor, torch.Tensor]:
    """(mean (2,), cov (2, 2)) of one row of one element."""
    cov = torch.stack([law.qq, law.qv, law.qv, law.vv]).reshape(2, 2)
    return law.mean.reshape(2), cov


def matrices(p) -> LinearSDE:
    """The equation as matrices, read off its own drift and diffusion."""
    columns = [p.drift(pair(*e), 0.0).reshape(2) for e in ((1.0, 0.0), (0.0, 1.0))]
    return LinearSDE(
        torch.stack(columns, 1), L=p.noise_field(pair(0.0, 0.0), 0.0).reshape(2, 1) * torch.eye(2)
    )


@given(st.floats(0.0, 4.0), st.floats(0.1, 5.0), st.floats(0.1, 3.0), st.floats(0.01, 5.0))
def test_harmonic_transitions(omega, friction, temperature, h):
    p = HarmonicLangevin(omega, friction, temperature)
    mean, cov = flat(p.transition(pair(0.7, -0.4), 0.5, 0.5 + h))
    exact = matrices(p).transition(torch.tensor([[0.7, -0.4]], dtype=F64), 0.0, h)
    torch.testing.assert_close(mean, exact.mean[0])
    torch.testing.assert_close(cov, exact.cov)
    if omega == 0:
        g = friction * h
        free = temperature / friction**2 * (2 * g - 3 + 4 * math.exp(-g) - math.exp(-2 * g))
        assert float(cov[0, 0]) == pytest.approx(free, rel=1e-7)


def test_the_free_particle():
    g, heat, t = 1.7, 0.6, 2.3
    law = HarmonicLangevin(0.0, g, heat).transition(pair(0.0, 0.0), 0.0, t)
    exact = heat / g**2 * (2 * g * t - 3 + 4 * math.exp(-g * t) - math.exp(-2 * g * t))
    assert float(law.qq) == pytest.approx(exact, rel=1e-12)


def test_harmonic_laws_are_stationary():
    p = HarmonicLangevin(1.4, 0.7, 0.6)
    law = p.stationary(pair(0.0, 0.0))
    torch.testing.assert_close(flat(law)[1], torch.diag(torch.tensor([0.6 / 1.96, 0.6], dtype=F64)))
    phi, _, cov = matrices(p).flow(1.3)
    torch.testing.assert_close(phi @ flat(law)[1] @ phi.T + cov, flat(law)[1])
    x = torch.tensor([[0.3], [-0.8]], dtype=F64)
    torch.testing.assert_close(p.score(x), -1.96 / 0.6 * x)
    torch.testing.assert_close(p.log_prob(x), -0.5 * 1.96 / 0.6 * x[:, 0] ** 2)


@pytest.mark.parametrize("known", [False, True])
def test_harmonic_laws_given_the_noise(known):
    """As of the matrices; and full-shape noise is that of its velocities."""
    p, h = HarmonicLangevin(1.4, 0.7, 0.6), 0.8
    w, area = torch.tensor([[0.5]], dtype=F64), torch.tensor([[-0.2]], dtype=F64)
    x = pair(0.7, -0.4)
    law = p.given(x, 0.0, h, w, area if known else None)
    scale = math.sqrt(2 * 0.7 * 0.6)
    system = LinearSDE([[0.0, 1.0], [-1.96, -0.7]], L=[[0.0], [scale]])
    exact = system.given(x.reshape(1, 2), 0.0, h, w, area if known else None)
    torch.testing.assert_close(flat(law)[0], exact.mean[0])
    torch.testing.assert_close(flat(law)[1], exact.cov)
    wide = p.given(x, 0.0, h, join(9 * w, w), join(9 * w, area) if known else None)
    torch.testing.assert_close(wide.mean, law.mean)


def test_pairs_have_their_law(dtype):
    """Against the multivariate normal: density, score, samples (5 standard errors, 6e-7 each)."""
    cov = torch.tensor([[0.8, -0.3], [-0.3, 0.5]], dtype=dtype)
    law = PairNormal(
        torch.tensor([[[0.3], [-1.0]]], dtype=dtype).expand(20_000, 2, 1), cov[0, 0], cov[0, 1], cov[1, 1]
    )
    x = law.sample(seed=2)
    exact = MultivariateNormal(law.mean[:50, :, 0], cov)
    torch.testing.assert_close(
        law._replace(mean=law.mean[:50]).log_prob(x[:50]), exact.log_prob(x[:50, :, 0])
    )
    y = x[:9].clone().requires_grad_()
    (slope,) = torch.autograd.grad(law._replace(mean=law.mean[:9]).log_prob(y).sum(), y)
    torch.testing.assert_close(law._replace(mean=law.mean[:9]).score(x[:9]), slope)
    within(x[:, :, 0], law.mean[0, :, 0])
    centred = x[:, :, 0] - law.mean[:, :, 0]
    products = torch.stack([centred[:, 0] ** 2, centred[:, 0] * centred[:, 1], centred[:, 1] ** 2], 1)
    within(products, [0.8, -0.3, 0.5])
    torch.testing.assert_close(law.std[0, :, 0], cov.diagonal().sqrt())


@given(st.floats(1e-6, 3.0), st.floats(0.5, 8.0), st.floats(0.05, 2.0))
def test_critical_damping_is_its_matrices(h, beta, mass):
    p = CriticallyDampedLangevin(beta, mass)
    mean, cov = flat(p.transition(pair(0.7, -0.4), 0.2, 0.2 + h))
    exact = matrices(p).transition(torch.tensor([[0.7, -0.4]], dtype=F64), 0.0, 0.2 + h - 0.2)
    torch.testing.assert_close(mean, exact.mean[0], rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(cov, exact.cov, rtol=1e-7, atol=1e-15 * (1 + mass))


def test_critical_damping_is_critical():
    """One double eigenvalue; the prior is stationary."""
    p = CriticallyDampedLangevin(3.0, 0.4)
    values = torch.linalg.eigvals(matrices(p).A)
    torch.testing.assert_close(
        values.real, torch.full((2,), -3.0 / math.sqrt(0.4), dtype=F64), rtol=1e-6, atol=0
    )
    _, late = flat(p.stationary(pair(0.0, 0.0)))
    torch.testing.assert_close(matrices(p).stationary().cov, late)
    x = p.prior((20_000, 2, 1), seed=3, dtype=F64)
    within(x[:, :, 0] ** 2, [1.0, 0.4])


def test_marginals_integrate_the_first_velocity():
    """N(0, gamma M) at the start, carried by the flow; per-sample times."""
    p = CriticallyDampedLangevin()
    x0, t = torch.tensor([[0.9], [-0.3]], dtype=F64), torch.tensor([0.05, 0.6], dtype=F64)
    law = p.marginal(x0, t)
    for row in range(2):
        phi, _, cov = matrices(p).flow(float(t[row]))
        start = torch.diag(torch.tensor([0.0, 0.04 * 0.25], dtype=F64))
        exact = phi @ start @ phi.T + cov
        found = torch.stack([law.qq[row], law.qv[row], law.qv[row], law.vv[row]]).reshape(2, 2)
        torch.testing.assert_close(found, exact, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(law.mean[row, :, 0], phi[:, 0] * x0[row])


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_the_reversal_has_the_forward_laws(eta):
    """Gaussian data: mean and covariance of the reverse SDE and of the flow, from t = 1 back to 0.05.

    The reverse drift is affine, so its moment equations are exact; Runge-Kutta on 200 steps solves them.
    """
    p, mean0, var0 = CriticallyDampedLangevin(), 0.8, 0.3
    system = matrices(p)

    def forward(t: float) -> tuple[torch.Tensor, torch.Tensor]:
        phi, _, cov = system.flow(t)
        start = torch.diag(torch.tensor([var0, 0.04 * 0.25], dtype=F64))
        return phi[:, 0] * mean0, phi @ start @ phi.T + cov

    def score(x, t):
        m, c = forward(float(t))
        return -torch.linalg.solve(c, (x[:, :, 0] - m).T).T[:, :, None]

    back = reverse(p, score, eta)
    probes = torch.cat([pair(0.0, 0.0), pair(1.0, 0.0), pair(0.0, 1.0)])

    def slopes(m, c, t):
        f = back.drift(probes, torch.tensor(t, dtype=F64))[:, :, 0]
        a = (f[1:] - f[0]).T
        g = back.noise_field(probes, t)[0, :, 0]
        return f[0] + a @ m, a @ c + c @ a.T - torch.diag(g * g)

    m, c = forward(1.0)
    n, end = 200, 0.05
    h = (end - 1.0) / n
    for k in range(n):
        t = 1.0 + k * h
        k1 = slopes(m, c, t)
        k2 = slopes(m + h / 2 * k1[0], c + h / 2 * k1[1], t + h / 2)
        k3 = slopes(m + h / 2 * k2[0], c + h / 2 * k2[1], t + h / 2)
        k4 = slopes(m + h * k3[0], c + h * k3[1], t + h)
        m, c = (
            y + h / 6 * (a + 2 * b + 2 * d + e) for y, a, b, d, e in zip((m, c), k1, k2, k3, k4, strict=True)
        )
    exact = forward(end)
    torch.testing.assert_close(m, exact[0], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(c, exact[1], rtol=1e-5, atol=1e-6)


def test_solvers_take_pairs():
    """Euler-Maruyama on 300 steps reaches the law: moments within 5 standard errors and a bias below them."""
    p = HarmonicLangevin(1.4, 0.7, 0.6)
    x0 = pair(0.7, -0.4).expand(20_000, 2, 1).contiguous()
    x = sk.solve(p, x0, (0.0, 1.0), steps=300, seed=2).x[:, :, 0]
    law = p.transition(x0[:1], 0.0, 1.0)
    within(x, law.mean[0, :, 0])
    within((x - law.mean[0, :, 0]) ** 2, law.variance[0, :, 0], sigmas=6)


def test_underdamped_dynamics_keep_their_density():
    """Fokker-Planck with p(q) N(v; 0, T): div(f p) = gamma T d^2 p/dv^2, p not Gaussian."""
    heat, gamma = 0.7, 1.3
    p = UnderdampedLangevin(log_prob=lambda q: -(q**4).sum(1) + q[:, 0], friction=gamma, temperature=heat)
    x = torch.tensor([[[0.4], [-0.9]], [[-0.7], [0.5]]], dtype=F64)

    def flux(y):
        density = torch.exp(-(y[0, 0] ** 4) + y[0, 0] - y[1, 0] ** 2 / (2 * heat))
        g = p.diffusion(y[None], 0.0).reshape(2)
        spread = torch.func.grad(lambda z: torch.exp(-(z[0, 0] ** 4) + z[0, 0] - z[1, 0] ** 2 / (2 * heat)))(
            y
        )
        q, v = y[0], y[1]
        drift = torch.stack([v, heat * (1 - 4 * q**3) - gamma * v])
        torch.testing.assert_close(p.drift(y.detach()[None], 0.0)[0], drift.detach())
        return (drift * density).reshape(2) - 0.5 * g * g * spread.reshape(2)

    for row in x:
        y = row.clone().requires_grad_()
        terms = flux(y)
        divergence = sum(
            torch.autograd.grad(terms[i], y, retain_graph=True)[0].reshape(2)[i] for i in range(2)
        )
        assert abs(float(divergence)) < 1e-12
    score = UnderdampedLangevin(lambda q: 1 - 4 * q**3, friction=gamma, temperature=heat)
    torch.testing.assert_close(score.drift(x, 0.0), p.drift(x, 0.0))
    torch.testing.assert_close(SDE.divergence_ggt(p, x, 0.0), torch.zeros_like(x))
    images = torch.zeros(3, 2, 1, 4, 4)
    assert UnderdampedLangevin(lambda q: -q).noise_field(images, 0.0).shape == images.shape


def test_messages():
    flat_state = torch.zeros(3, 4)
    p = HarmonicLangevin()
    cases = [
        (UnderdampedLangevin, TypeError, r"UnderdampedLangevin needs a score.*Langevin\(target\)"),
        (lambda: UnderdampedLangevin(torch.neg, friction=0.0), ValueError, "friction must be finite"),
        (lambda: UnderdampedLangevin(torch.neg).log_prob(flat_state), CapabilityError, "this Underdamped"),
        (lambda: p.drift(flat_state, 0.0), ShapeError, r"shape \(B, 2, \*event\).*Likely cause.*Next"),
        (lambda: p.join(flat_state, flat_state[:2]), ShapeError, "one shape"),
        (lambda: p.transition(pair(0.0, 0.0), 1.0, 0.0), DirectionError, "goes forward"),
        (lambda: p.transition(pair(0.0, 0.0), 0.0, torch.ones(1)), ShapeError, "single times"),
        (lambda: HarmonicLangevin(0.0).stationary(pair(0.0, 0.0)), ValueError, "free particle"),
        (lambda: HarmonicLangevin(-1.0), ValueError, "omega must be finite and >= 0"),
        (lambda: CriticallyDampedLangevin(mass=0.0), ValueError, "mass must be finite and > 0"),
    ]  # fmt: skip
    for call, kind, message in cases:
        with pytest.raises(kind, match=message):
            call()
    assert repr(p) == "HarmonicLangevin(omega=1, friction=1, temperature=1)"
    assert repr(CriticallyDampedLangevin()) == "CriticallyDampedLangevin(beta=4, mass=0.25, gamma=0.04)"
