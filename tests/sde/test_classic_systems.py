"""Matrix noise, the Levy area, spheres, wells, chaos, populations, decay, first passage."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import special, stats
from scipy.linalg import expm

import sdekit as sk
from sdekit.errors import CapabilityError, ShapeError
from sdekit.sde import (
    SDE,
    DoubleWell,
    DriftedBrownian,
    GeometricBrownian,
    LevyArea,
    LinearDecay,
    Lorenz63,
    LotkaVolterra,
    MultiplicativeLinear,
    SphericalBrownian,
)
from sdekit.sde.classic import HyperbolicSecant

from .exact import (
    F64,
    KOLMOGOROV,
    brownian,
    cdf_is_integral,
    ito,
    kolmogorov,
    moments_are_integrals,
    solved,
    within,
)


def column(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=F64)[:, None]


def rows(*values: tuple[float, ...]) -> torch.Tensor:
    return torch.tensor(values, dtype=F64)


# -- Linear noise ---------------------------------------------------------------------------------------

MIX = rows((0.3, -0.4), (0.4, 0.3))
COMMUTING = MultiplicativeLinear(
    rows((-0.5, 0.2), (-0.2, -0.5)), torch.stack([MIX, rows((0.1, 0.5), (-0.5, 0.1))])
)
GENERAL = MultiplicativeLinear(
    rows((-0.9, 0.7), (-0.4, -0.6)),
    torch.stack([rows((0.3, -0.4), (0.5, 0.2)), rows((-0.2, 0.5), (0.1, 0.4))]),
)
DIAGONAL = MultiplicativeLinear(
    rows((-0.9, 0.7), (-0.4, -0.6)),
    torch.stack([torch.diag(rows((0.4, -0.3))[0]), torch.diag(rows((0.2, 0.6))[0])]),
)


def test_noise_types_are_found():
    assert (COMMUTING.noise_type, COMMUTING.commutes) == ("commutative", True)
    assert (DIAGONAL.noise_type, DIAGONAL.commutes) == ("commutative", False)
    assert (GENERAL.noise_type, GENERAL.commutes) == ("general", False)


@given(st.floats(0.05, 2), st.floats(-1, 1), st.floats(-1, 1))
def test_commuting_paths_obey_itos_formula(t, w1, w2):
    x0 = rows((0.8, -0.5))
    ito(COMMUTING, lambda s, w: COMMUTING.solution(x0, s, w[None])[0], t, torch.tensor([w1, w2], dtype=F64))


@pytest.mark.parametrize("p", [COMMUTING, DIAGONAL, GENERAL], ids=["commuting", "diagonal", "general"])
def test_linear_moments_solve_their_equations(p):
    """d M/dt = E[f X^T + X f^T + G G^T] at X, with the fields themselves, by differences of the solution."""
    x0, t, step = rows((0.8, -0.5), (0.1, 1.2)), 0.7, 1e-4
    torch.testing.assert_close(p.mean(x0, t), torch.from_numpy(x0.numpy() @ expm(p.A.numpy() * t).T))
    m = p.second_moment(x0, t)
    slope = (p.second_moment(x0, t + step) - p.second_moment(x0, t - step)) / (2 * step)
    for row in range(2):
        values, vectors = torch.linalg.eigh(m[row])
        y = (values.clamp(min=0).sqrt() * vectors).T.contiguous()  # sum of y y^T is M
        f, g = p.drift(y, 0.0), p.diffusion(y, 0.0)
        terms = f[:, :, None] * y[:, None] + y[:, :, None] * f[:, None] + g @ g.transpose(1, 2)
        torch.testing.assert_close(terms.sum(0), slope[row], rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(p.second_moment(x0, 0.0), x0[:, :, None] * x0[:, None])
    torch.testing.assert_close(p.divergence_ggt(x0, 0.0), SDE.divergence_ggt(p, x0, 0.0))
    torch.testing.assert_close(p.correction(x0, 0.0), SDE.correction(p, x0, 0.0))


def test_linear_moments_are_those_of_paths():
    """20,000 rows, 5 standard errors (6e-7): paths in closed form, and Euler-Maruyama without one."""
    x0, t = rows((0.8, -0.5)).expand(20_000, 2).contiguous(), 0.6
    exact = COMMUTING.solution(x0, t, brownian((20_000, 2), t, 1, seed=1))
    simulated = solved(GENERAL, x0, t, 300, seed=2)
    for p, x in ((COMMUTING, exact), (GENERAL, simulated)):
        within(x, p.mean(x0[:1], t)[0])
        within((x[:, :, None] * x[:, None]).reshape(-1, 4), p.second_moment(x0[:1], t).reshape(4))


def test_mean_square_stability():
    """GBM: stable if and only if 2 mu + sigma^2 < 0; its Euler-Maruyama if (1 + mu h)^2 + sigma^2 h < 1."""
    for mu, sigma in ((-1.0, 1.3), (-1.0, 1.5), (0.2, 0.0)):
        gbm = GeometricBrownian(mu, sigma)
        rate = 2 * mu + sigma**2
        assert float(gbm.mean_square_rate) == pytest.approx(rate)
        assert MultiplicativeLinear([[mu]], [[[sigma]]]).mean_square_rate == pytest.approx(rate)
        growth = gbm.moment(column(1.3), 3.0, 2) / gbm.moment(column(1.3), 2.0, 2)
        assert float(growth) == pytest.approx(math.exp(rate), rel=1e-12)
    assert GENERAL.mean_square_rate == pytest.approx(
        math.log(
            GENERAL.second_moment(rows((1, 1)), 41.0).norm()
            / GENERAL.second_moment(rows((1, 1)), 40.0).norm()
        ),
        rel=1e-6,
    )
    # Gauss-Hermite nodes through one step of the solver give E b^2 exactly.
    nodes, weights = np.polynomial.hermite_e.hermegauss(8)
    for h, stable in ((0.1, True), (0.5, False)):
        ones, w = torch.ones(8, 1, dtype=F64), torch.from_numpy(nodes)[:, None]
        end = sk.solve(GeometricBrownian(-1.0, 1.3), ones, (0.0, h), steps=1, noise=sk.Recorded([w])).x[:, 0]
        gain = float((torch.from_numpy(weights) * end**2).sum()) / math.sqrt(2 * math.pi)
        assert gain == pytest.approx((1 - h) ** 2 + 1.69 * h, rel=1e-12)
        assert (gain < 1) is stable


def test_moments_of_geometric_brownian_motion():
    """E X^p of the log-normal law, by its own trapezoidal rule."""
    p, x0 = GeometricBrownian(0.3, 0.5), column(1.4)
    law = p.transition(x0, 0.0, 0.8)
    z = torch.linspace(-12, 12, 2001, dtype=F64)
    x = torch.exp(law.loc + law.scale * z)
    for power in (-1.0, 0.5, 1.0, 2.0, 3.0):
        exact = float((x**power * torch.exp(-0.5 * z * z)).sum() * (z[1] - z[0]) / math.sqrt(2 * math.pi))
        assert float(p.moment(x0, 0.8, power)) == pytest.approx(exact, rel=1e-12)


# -- The Levy area --------------------------------------------------------------------------------------


def test_the_levy_area_has_its_law():
    """Simulated areas against density, variance and characteristic function: 5 standard errors (6e-7).

    With n steps the discrete area has variance (t^2/4)(1 - 1/n).
    """
    t, steps = 1.4, 400
    p, x0 = LevyArea(), rows((0.7, -0.4, 0.3)).expand(20_000, 3).contiguous()
    x = solved(p, x0, t, steps, seed=6)
    area, law = p.area(x0, x), p.area_law(x0, 0.0, t)
    assert kolmogorov(area, law.cdf) < KOLMOGOROV
    within(area**2 / (1 - 1 / steps), law.variance[0])
    for u in (0.5, 2.0, 5.0):
        within(torch.cos(u * area), law.characteristic(torch.tensor(u, dtype=F64))[0])
    w = x[:, :2] - x0[:, :2]
    within(area**2 / (1 - 1 / steps) - p.area_variance(t, w), 0.0)
    within((area**2 / (1 - 1 / steps) - p.area_variance(t, w)) * (w**2).sum(1), 0.0)
    torch.testing.assert_close(p.solution(x0, t, w, area), x)
    assert kolmogorov(law.sample(seed=2), law.cdf) < KOLMOGOROV


def test_the_hyperbolic_secant_law():
    def law(n):
        return HyperbolicSecant(torch.full((n, 1), 0.8, dtype=F64))

    moments_are_integrals(law, -12.0, 12.0)
    cdf_is_integral(law(4), column(-1.0, -0.1, 0.3, 2.0))
    # The characteristic function is the transform of the density.
    x = torch.linspace(-12, 12, 4001, dtype=F64)
    density = torch.exp(law(4001).log_prob(x[:, None]))
    for u in (0.0, 1.0, 6.0):
        transform = float((density * torch.cos(u * x)).sum() * (x[1] - x[0]))
        assert transform == pytest.approx(float(law(1).characteristic(torch.tensor(u, dtype=F64))), abs=1e-11)


def test_levy_fields():
    p, x = LevyArea(), rows((0.7, -0.4, 0.3), (-1.0, 0.2, 2.0))
    torch.testing.assert_close(p.divergence_ggt(x, 0.0), SDE.divergence_ggt(p, x, 0.0))
    torch.testing.assert_close(p.correction(x, 0.0), SDE.correction(p, x, 0.0))
    dw = rows((0.3, -0.2), (0.5, 0.1))
    third = 0.5 * (x[:, 0] * dw[:, 1] - x[:, 1] * dw[:, 0])
    torch.testing.assert_close(p.apply_noise(p.diffusion(x, 0.0), dw), torch.cat([dw, third[:, None]], 1))


# -- The sphere -----------------------------------------------------------------------------------------


def test_the_sphere_is_kept_and_its_moments_decay():
    """Exact rotations exp(sigma sum E_k dW_k), 100 steps: norms to rounding, moments (6e-7)."""
    n, t, steps, p = 20_000, 0.6, 100, SphericalBrownian(0.8)
    x0 = rows((0.6, -0.8, 1.1)).expand(n, 3).contiguous()
    x, noise = x0, sk.Philox(4)
    for k in range(steps):
        dw = math.sqrt(t / steps) * noise.normal(k, x0, torch.arange(n))
        turn = 0.8 * dw
        angle = turn.norm(dim=1, keepdim=True)
        axis = turn / angle
        across = torch.linalg.cross(axis, x)
        x = x * angle.cos() + across * angle.sin() + axis * (axis * x).sum(1, True) * (1 - angle.cos())
    torch.testing.assert_close(x.norm(dim=1), x0.norm(dim=1))
    within(x, p.mean(x0[:1], t)[0])
    within((x[:, :, None] * x[:, None]).reshape(-1, 9), p.second_moment(x0[:1], t).reshape(9))


def test_the_noise_of_the_sphere():
    """Tangent, G G^T = sigma^2 (|x|^2 I - x x^T), Ito drift -sigma^2 x; derivatives as by default."""
    p, x = SphericalBrownian(0.8), rows((0.6, -0.8, 1.1), (1.0, 0.2, 0.0))
    g = p.diffusion(x, 0.0)
    torch.testing.assert_close((g * x[:, :, None]).sum(1), torch.zeros(2, 3, dtype=F64))
    eye = (x * x).sum(1)[:, None, None] * torch.eye(3, dtype=F64)
    torch.testing.assert_close(g @ g.transpose(1, 2), 0.64 * (eye - x[:, :, None] * x[:, None]))
    torch.testing.assert_close(p.ito_drift(x, 0.0), -0.64 * x)
    torch.testing.assert_close(p.divergence_ggt(x, 0.0), SDE.divergence_ggt(p, x, 0.0))
    torch.testing.assert_close(p.correction(x, 0.0), SDE.correction(p, x, 0.0))
    same = MultiplicativeLinear(-0.64 * torch.eye(3), 0.8 * _generators())
    assert same.noise_type == "general"
    torch.testing.assert_close(p.mean(x, 0.7), same.mean(x, 0.7))
    torch.testing.assert_close(p.second_moment(x, 0.7), same.second_moment(x, 0.7))


def _generators() -> torch.Tensor:
    """E_k x = e_k x x, from the cross product."""
    eye = torch.eye(3, dtype=F64)
    return torch.stack([torch.linalg.cross(eye[k].expand(3, 3), eye).T for k in range(3)])


# -- Nonlinear ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("beta", "height"), [(1.0, 1.0), (4.0, 1.5), (0.3, 0.5)])
def test_the_double_well(beta, height):
    """The constant by Bessel functions, zero flux, moments, samples; E x V'(x) = 1/beta."""
    p = DoubleWell(beta, height)
    law = p.stationary(torch.empty(20_000, 1, dtype=F64))
    b = 0.5 * beta * height
    z = 0.5 * math.pi * math.exp(-b) * (special.iv(0.25, b) + special.iv(-0.25, b))
    assert law.log_normaliser == pytest.approx(math.log(z), abs=1e-12)
    x = column(-1.3, -0.2, 0.4, 1.1).requires_grad_()
    (slope,) = torch.autograd.grad(law.log_prob(x).sum(), x)
    torch.testing.assert_close(p.drift(x, 0.0), slope / beta)
    torch.testing.assert_close(p.score(x), slope)
    assert law.expectation(lambda y: -y * p.drift(y, 0.0)) == pytest.approx(1 / beta, rel=1e-11)
    assert float(law.mean[0]) == pytest.approx(0.0, abs=1e-12)
    assert float(law.variance[0]) == pytest.approx(law.expectation(torch.square), rel=1e-12)
    cdf_is_integral(p.stationary(torch.empty(4, 1, dtype=F64)), x.detach())
    sample = law.sample(seed=7)
    assert kolmogorov(sample[:, 0], law.cdf) < KOLMOGOROV
    level = torch.special.ndtr(sk.Philox(7).normal(0, sample, torch.arange(len(sample))))
    torch.testing.assert_close(law.cdf(sample), level, rtol=0, atol=1e-12)
    ends = law.cdf(torch.tensor([-50.0, 0.0, 50.0], dtype=F64))
    torch.testing.assert_close(ends, torch.tensor([0.0, 0.5, 1.0], dtype=F64))


def test_the_double_well_is_stationary_under_a_solver():
    """Euler-Maruyama, h = 1/400, from the stationary law: it stays, but for the bias of order h."""
    p = DoubleWell(1.5)
    x0 = p.stationary(torch.empty(20_000, 1, dtype=F64)).sample(seed=1)
    x = solved(p, x0, 1.0, 400, seed=2)
    law = p.stationary(x[:1])
    within(x**2, law.variance[0], sigmas=6)
    within((x > 1).to(F64), 1 - law.cdf(torch.ones(1, dtype=F64)), sigmas=6)


def test_lorenz():
    """Divergence, symmetry, fixed points, and the energy balance along the drift."""
    p, x = Lorenz63(9.0, 26.0, 2.5, noise=0.4), rows((1.0, -2.0, 20.0), (-3.0, 0.5, 11.0))
    jacobian = torch.func.vmap(torch.func.jacrev(lambda y: p.drift(y[None], 0.0)[0]))(x)
    torch.testing.assert_close(torch.einsum("bii->b", jacobian), torch.full((2,), p.divergence, dtype=F64))
    turn = torch.tensor([-1.0, -1.0, 1.0], dtype=F64)
    torch.testing.assert_close(p.drift(turn * x, 0.0), turn * p.drift(x, 0.0))
    points = p.fixed_points()
    assert points.shape == (3, 3)
    assert float(p.drift(points, 0.0).abs().max()) < 1e-12
    assert float(points[1, 2]) == pytest.approx(25.0)
    assert Lorenz63(r=0.9).fixed_points().shape == (1, 3)
    a, b, c = x.T
    f = p.drift(x, 0.0)
    energy = a * f[:, 0] + b * f[:, 1] + (c - 9.0 - 26.0) * f[:, 2]
    torch.testing.assert_close(energy, -9 * a**2 - b**2 - 2.5 * c**2 + 2.5 * 35 * c)
    # The balance of X^2 along Euler-Maruyama paths: 2 s h X (Y - X) + (s h (Y - X))^2 + q^2 h a step.
    gain, h = [torch.zeros(5000, dtype=F64)], 0.4 / 100
    state = [rows((1.0, 1.0, 20.0)).expand(5000, 3).contiguous()]
    first = state[0][:, 0] ** 2

    def count(step, t, x):
        before, state[0] = state[0], x
        push = 9.0 * h * (before[:, 1] - before[:, 0])
        gain[0] = gain[0] + 2 * before[:, 0] * push + push**2

    end = sk.solve(p, state[0], (0.0, 0.4), steps=100, seed=3, callback=count).x
    within(end[:, 0] ** 2 - first - gain[0], 0.16 * 0.4)


def test_lotka_volterra_gains_at_a_known_rate():
    """L V = (q1^2 d + q2^2 a)/2 at every state, and E V_t = V_0 + rate t of paths (6e-7)."""
    p = LotkaVolterra(0.9, 1.3, 0.7, 1.1, q=(0.3, 0.2))
    x = rows((0.5, 1.4), (2.0, 0.3))
    slope = torch.func.vmap(torch.func.grad(lambda y: _volterra(p, y)))(x)
    hessian = torch.func.vmap(torch.func.jacrev(torch.func.grad(lambda y: _volterra(p, y))))(x)
    curve = hessian.diagonal(dim1=1, dim2=2)
    gain = (slope * p.drift(x, 0.0)).sum(1) + 0.5 * (curve * p.diffusion(x, 0.0) ** 2).sum(1)
    torch.testing.assert_close(gain, torch.full((2,), p.invariant_rate, dtype=F64))
    torch.testing.assert_close(p.invariant(x), torch.func.vmap(lambda y: _volterra(p, y))(x))
    u0 = torch.log(x[:1]).expand(20_000, 2).contiguous()
    u = solved(p.logarithmic(), u0, 1.0, 500, seed=5)
    within(p.invariant(torch.exp(u)) - p.invariant(x[:1]), p.invariant_rate)


def _volterra(p: LotkaVolterra, y: torch.Tensor) -> torch.Tensor:
    return p.c * y[0] - p.d * torch.log(y[0]) + p.b * y[1] - p.a * torch.log(y[1])


def test_lotka_volterra_in_logarithms():
    """Ito's formula for U = log X: drift f/x - q^2/2, noise q; derivatives as by default."""
    p, x = LotkaVolterra(0.9, 1.3, 0.7, 1.1, q=(0.3, 0.2)), rows((0.5, 1.4), (2.0, 0.3))
    logs = p.logarithmic()
    half = 0.5 * torch.tensor([0.09, 0.04], dtype=F64)
    torch.testing.assert_close(logs.drift(torch.log(x), 0.0), p.drift(x, 0.0) / x - half)
    torch.testing.assert_close(logs.diffusion(torch.log(x), 0.0), p.diffusion(x, 0.0) / x)
    torch.testing.assert_close(p.divergence_ggt(x, 0.0), SDE.divergence_ggt(p, x, 0.0))
    torch.testing.assert_close(p.correction(x, 0.0), SDE.correction(p, x, 0.0))
    assert logs.noise_type == "additive"


# -- Decay ----------------------------------------------------------------------------------------------


@given(st.integers(0, 60), st.floats(0.05, 3.0), st.floats(0.05, 3.0))
def test_decay_solves_the_master_equation(n0, rate, t):
    """p_k' = k' (k + 1) p_(k+1) - k' k p_k, by the exponential of its matrix."""
    master = np.zeros((n0 + 1, n0 + 1))
    for k in range(n0 + 1):
        master[k, k] = -rate * k
        if k:
            master[k - 1, k] = rate * k
    exact = expm(master * t)[:, n0]
    law = LinearDecay(rate).transition(torch.full((n0 + 1, 1), float(n0), dtype=F64), 0.0, t)
    k = torch.arange(n0 + 1, dtype=F64)[:, None]
    np.testing.assert_allclose(torch.exp(law.log_prob(k)).numpy(), exact, rtol=1e-8, atol=1e-12)
    np.testing.assert_allclose(law.cdf(k)[:, 0].numpy(), exact.cumsum(), rtol=1e-8, atol=1e-12)
    mean = float((exact * np.arange(n0 + 1)).sum())
    assert float(law.mean[0]) == pytest.approx(mean, rel=1e-8, abs=1e-10)
    second = float((exact * (np.arange(n0 + 1) - mean) ** 2).sum())
    assert float(law.variance[0]) == pytest.approx(second, rel=1e-7, abs=1e-9)
    assert not law.cdf(k - 1.0)[0].any()


def test_counts_are_sampled_exactly():
    """Chi-square over the counts at level 1e-7, against scipy's probabilities."""
    n = 20_000
    law = LinearDecay(0.7).transition(torch.full((n, 1), 30.0, dtype=F64), 0.0, 1.0)
    x = law.sample(seed=3)[:, 0].numpy()
    found = np.bincount(x.astype(int), minlength=31)
    expected = n * stats.binom(30, math.exp(-0.7)).pmf(np.arange(31))
    keep = expected > 5
    chi = float((((found - expected) ** 2) / expected)[keep].sum())
    assert chi < stats.chi2(int(keep.sum()) - 1).ppf(1 - 1e-7)


def test_tau_leaping_and_the_langevin_equation_have_their_moments():
    """20,000 rows within 5 standard errors (6e-7); leaps of half the length halve the error of the mean."""
    p = LinearDecay(0.8)
    x0 = torch.full((20_000, 1), 200.0, dtype=F64)
    mean, variance = p.leap_moments(x0[0], 0.125, 8)
    x = p.leap(x0, 0.125, 8, seed=2)
    within(x, mean)
    within((x - mean) ** 2, variance)
    assert torch.equal(p.leap(x0[:5], 0.125, 8, seed=2), x[:5])
    exact = p.transition(x0[:1], 0.0, 1.0)
    errors = [float(p.leap_moments(x0[0], 1 / k, k)[0] - exact.mean) for k in (64, 128)]
    assert errors[0] / errors[1] == pytest.approx(2.0, abs=0.02)
    y = solved(p.langevin(), x0, 1.0, 400, seed=5)
    within(y, exact.mean[0] * (1 - 0.8 / 400) ** 400 / math.exp(-0.8))
    within((y - exact.mean[0]) ** 2, exact.variance[0], sigmas=6)


# -- First passage --------------------------------------------------------------------------------------


@pytest.mark.parametrize("mu", [0.7, 0.0, -0.4])
@pytest.mark.parametrize("level", [1.2, -0.9])
def test_first_passage(mu, level):
    """Density against the cdf, mass, moments, samples; and the inverse Gaussian of scipy."""
    p, x = DriftedBrownian(mu, 0.8), column(0.1)

    def law(n):
        return p.first_passage(x.expand(n, 1), level)

    cdf_is_integral(law(4), column(0.2, 0.6, 1.5, 4.0))
    toward = mu if level > 0.1 else -mu
    a = abs(level - 0.1)
    late = law(1).cdf(column(1e9))
    assert float(late) == pytest.approx(float(law(1).mass), abs=1e-4)
    assert float(law(1).mass) == pytest.approx(min(1.0, math.exp(2 * toward * a / 0.64)))
    if toward > 0:
        exact = stats.invgauss(0.64 / (toward * a), scale=a * a / 0.64)
        assert float(law(1).mean) == pytest.approx(exact.mean(), rel=1e-12)
        assert float(law(1).variance) == pytest.approx(exact.var(), rel=1e-12)
        t = np.array([0.1, 0.7, 3.0])
        np.testing.assert_allclose(
            law(3).cdf(torch.from_numpy(t)[:, None])[:, 0].numpy(), exact.cdf(t), rtol=1e-9
        )
    else:
        assert math.isinf(float(law(1).mean))
    t = law(20_000).sample(seed=9)[:, 0]
    assert (
        kolmogorov(t, lambda s: torch.where(s.isinf(), 1.0, law(1).cdf(s[:, None])[:, 0])) < KOLMOGOROV
        or toward < 0
    )
    within((t < 1.0).to(F64), law(1).cdf(column(1.0))[0, 0])
    within((t < 3.0).to(F64), law(1).cdf(column(3.0))[0, 0])
    within(t.isfinite().to(F64), law(1).mass[0, 0])
    assert not law(2).cdf(column(0.0, -1.0)).any()


def test_crossings_between_nodes_make_the_passage_exact():
    """1 - prod(1 - P(crossing)) over 8 steps has mean P(tau <= t): 5 standard errors (6e-7)."""
    n, t, steps, p = 20_000, 1.0, 8, DriftedBrownian(0.4, 0.9)
    x = torch.zeros(n, 1, dtype=F64)
    safe = torch.ones(n, 1, dtype=F64)
    w, noise = torch.zeros_like(x), sk.Philox(3)
    for k in range(steps):
        w = w + math.sqrt(t / steps) * noise.normal(k, x, torch.arange(n))
        y = p.solution(torch.zeros_like(x), (k + 1) * t / steps, w)
        crossed = p.crossing(x, y, t / steps, 1.0)
        assert torch.equal(
            p.crossing(x, torch.full_like(x, 1.5), t / steps, 1.0)[x < 1], torch.ones_like(x)[x < 1]
        )
        safe, x = safe * (1 - crossed), y
    exact = p.first_passage(torch.zeros(1, 1, dtype=F64), 1.0).cdf(column(t))[0]
    within(1 - safe, exact)


def test_messages():
    plane, line = rows((1.0, 2.0)), column(1.0)
    cases = [
        (lambda: MultiplicativeLinear([1.0], [[[1.0]]]), ShapeError, r"A must have shape \(D, D\)"),
        (lambda: MultiplicativeLinear([[1.0]], [[1.0]]), ShapeError, r"B must have shape \(m, D, D\).*Next"),
        (lambda: GENERAL.drift(line, 0.0), ShapeError, r"x must have shape \(B, 2\)"),
        (lambda: GENERAL.solution(plane, 1.0, plane), CapabilityError, "do not commute.*Next: mean"),
        (lambda: DIAGONAL.solution(plane, 1.0, plane), CapabilityError, "do not commute"),
        (lambda: LevyArea().drift(plane, 0.0), ShapeError, r"\(B, 3\)"),
        (lambda: SphericalBrownian(0.0), ValueError, "sigma must be finite and > 0"),
        (lambda: SphericalBrownian().drift(plane, 0.0), ShapeError, r"\(B, 3\)"),
        (lambda: DoubleWell(beta=-1.0), ValueError, "beta must be finite and > 0"),
        (lambda: Lorenz63(noise=-1.0), ValueError, "noise must be finite and >= 0"),
        (lambda: Lorenz63().drift(plane, 0.0), ShapeError, r"\(B, 3\)"),
        (lambda: LotkaVolterra(q=(0.1, 0.2, 0.3)), ValueError, "q must be a number >= 0 or two"),
        (lambda: LotkaVolterra().invariant(-plane), ValueError, r"\(0, inf\), got -1"),
        (lambda: LinearDecay(0.0), ValueError, "rate must be finite and > 0"),
        (lambda: LinearDecay().transition(0.5 * line, 0.0, 1.0), ValueError, "got 0.5"),
        (lambda: DriftedBrownian().first_passage(line, 1.0), ValueError, "without the level"),
    ]
    for call, kind, message in cases:
        with pytest.raises(kind, match=message):
            call()
    assert repr(GENERAL) == "MultiplicativeLinear(D=2, m=2, general)"
    assert repr(LinearDecay(2.0)) == "LinearDecay(rate=2)"
