"""Pathwise solutions: Ito's formula, and solvers on the same Brownian motion."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sdekit.errors import DirectionError, EndpointError
from sdekit.sde import (
    SDE,
    ArctanDiffusion,
    BrownianBridge,
    BrownianMotion,
    DecayingAdditive,
    DriftedBrownian,
    GeometricBrownian,
    LinearSDE,
    LogNormal,
    Normal,
    OrnsteinUhlenbeck,
    SinhDiffusion,
    TanhDiffusion,
)

from .exact import (
    F64,
    KOLMOGOROV,
    brownian,
    cdf_is_integral,
    fokker_planck,
    ito,
    kolmogorov,
    moments_are_integrals,
    solved,
)

#: process, a start, points at which its law is looked at, an interval that holds the law's mass
PATHS = [
    (ArctanDiffusion(0.8), 0.4, (-0.6, 0.2, 1.1), (-math.pi / 2, math.pi / 2)),
    (TanhDiffusion(0.5, 0.7), 0.3, (-0.8, -0.1, 0.5), (-1.0, 1.0)),
    (SinhDiffusion(), 0.3, (-0.9, 0.5, 4.0), (-400.0, 4000.0)),
    (DecayingAdditive(0.4, 0.7), 0.9, (0.4, 1.0, 1.6), (-1.5, 3.0)),
    (DriftedBrownian(-0.3, 0.8), 0.2, (-1.0, 0.0, 1.2), (-7.0, 7.0)),
    (GeometricBrownian(0.3, 0.6), 1.2, (0.5, 1.3, 2.5), (1e-9, 40.0)),
]
NAMES = [type(case[0]).__name__ for case in PATHS]


def column(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=F64)[:, None]


@pytest.mark.parametrize(("process", "start", "points", "span"), PATHS, ids=NAMES)
@given(t=st.floats(0.05, 2.0), w=st.floats(-1.5, 1.5))
def test_paths_obey_itos_formula(process, start, points, span, t, w):
    ito(process, lambda s, b: process.solution(column(start), s, b[None])[0], t, torch.tensor([w], dtype=F64))


@pytest.mark.parametrize(("process", "start", "points", "span"), PATHS, ids=NAMES)
def test_paths_begin_at_their_start(process, start, points, span):
    x0 = column(start, 0.5 * start)
    torch.testing.assert_close(process.solution(x0, 0.0, torch.zeros_like(x0)), x0, rtol=1e-14, atol=0)


@pytest.mark.parametrize(("process", "start", "points", "span"), PATHS, ids=NAMES)
def test_laws_solve_the_fokker_planck_equation(process, start, points, span):
    def log_density(x, t):
        return process.transition(torch.full_like(x, start), 0.3, t).log_prob(x)

    assert fokker_planck(process, log_density, torch.tensor(points, dtype=F64), 1.1) < 1e-7


@pytest.mark.parametrize(("process", "start", "points", "span"), PATHS, ids=NAMES)
def test_moments_and_cdf_are_integrals_of_the_density(process, start, points, span):
    def law(n):
        return process.transition(torch.full((n, 1), start, dtype=F64), 0.2, 0.9)

    moments_are_integrals(law, *span, panels=10_000, rtol=1e-6)
    cdf_is_integral(law(len(points)), column(*points))


@pytest.mark.parametrize(("process", "start", "points", "span"), PATHS, ids=NAMES)
def test_samples_have_the_law(process, start, points, span):
    law = process.transition(torch.full((20_000, 1), start, dtype=F64), 0.0, 0.7)
    assert kolmogorov(law.sample(seed=3)[:, 0], lambda x: law.cdf(x[:, None])[:, 0]) < KOLMOGOROV


def quantile(law, z: float) -> torch.Tensor:
    """The point at z standard deviations of the normal behind the law."""
    y = law[0] + z * law[1]
    return y if isinstance(law, Normal) else torch.exp(y) if isinstance(law, LogNormal) else law.forward(y)


@pytest.mark.parametrize(("process", "start", "points", "span"), PATHS, ids=NAMES)
def test_transitions_compose(process, start, points, span):
    """Increments with a sqrt(.4) + b sqrt(1.1) = z sqrt(1.5) end at the same point, by way of 0.4 or not."""
    x, z = column(start), 1.3
    a, b = z * math.sqrt(0.4 / 1.5), z * math.sqrt(1.1 / 1.5)
    between = quantile(process.transition(x, 0.0, 0.4), a)
    end = quantile(process.transition(between, 0.4, 1.5), b)
    torch.testing.assert_close(end, quantile(process.transition(x, 0.0, 1.5), z), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize(("process", "start", "points", "span"), PATHS, ids=NAMES)
def test_solvers_find_the_path(process, start, points, span):
    """Euler-Maruyama on the same noise: the error falls as h^(1/2), as h where the noise is additive.

    The factor from 16 to 256 steps is 4 or 16; 2.5 and 10 are asked for.
    """
    x0, t = torch.full((400, 1), start, dtype=F64), 0.5
    errors = []
    for steps in (16, 256):
        exact = process.solution(x0, t, brownian((400, 1), t, steps, seed=steps))
        errors.append(float((solved(process, x0, t, steps, seed=steps) - exact).pow(2).mean().sqrt()))
    if type(process) is DriftedBrownian:
        assert max(errors) < 1e-13
    else:
        assert errors[0] / errors[1] > (10.0 if process.noise_type == "additive" else 2.5)
        assert errors[1] < 0.05


@pytest.mark.parametrize(("process", "start", "points", "span"), PATHS, ids=NAMES)
def test_closed_derivatives_are_the_defaults(process, start, points, span):
    x, t = column(*points), torch.tensor(0.4, dtype=F64)
    torch.testing.assert_close(process.divergence_ggt(x, t), SDE.divergence_ggt(process, x, t))
    torch.testing.assert_close(process.correction(x, t), SDE.correction(process, x, t))


def test_parameters_broadcast_over_the_event(device, dtype):
    """Per-element parameters and per-sample times, in the dtype and on the device of the state."""
    p = TanhDiffusion([0.1, 0.5], [[0.3], [0.7]])
    x = torch.full((3, 2, 2), 0.25, dtype=dtype, device=device)
    t = torch.tensor([0.1, 0.5, 2.0], dtype=dtype, device=device)
    whole = p.transition(x, 0.0 * t, t)
    end = p.solution(x, t, torch.ones_like(x))
    assert end.dtype == whole.mean.dtype == p.drift(x, 0.0).dtype == dtype
    for row, k in ((1, 0), (2, 1)):
        alone, one = TanhDiffusion((0.1, 0.5)[k], 0.7), x[row : row + 1, 1:, k : k + 1]
        path = alone.solution(one, float(t[row]), torch.ones_like(one))
        torch.testing.assert_close(path.item(), end[row, 1, k].item())
        law = alone.transition(one, 0.0, float(t[row]))
        torch.testing.assert_close(law.mean.item(), whole.mean[row, 1, k].item(), rtol=1e-5, atol=1e-6)


def test_the_functional_of_weak_schemes():
    """E(Z^3 - 6 Z^2 + 8 Z) = t^3 - 3 t^2 + 2 t from x0 = 0."""
    for t in (0.5, 1.0, 2.0):
        law = SinhDiffusion().transition(torch.zeros(1, 1, dtype=F64), 0.0, t)
        found = float(law.expectation(SinhDiffusion.functional))
        assert found == pytest.approx(t**3 - 3 * t**2 + 2 * t, abs=1e-11)


def test_sinh_has_known_moments():
    """E sinh Y = sinh(m) e^(v/2), E sinh^2 Y = (cosh(2 m) e^(2 v) - 1)/2 for Y ~ N(m, v)."""
    law = SinhDiffusion().transition(column(0.7), 0.2, 1.7)
    m, v = math.asinh(0.7) + 1.5, 1.5
    mean = math.sinh(m) * math.exp(v / 2)
    assert float(law.mean) == pytest.approx(mean, rel=1e-12)
    assert float(law.variance) == pytest.approx(
        (math.cosh(2 * m) * math.exp(2 * v) - 1) / 2 - mean**2, rel=1e-11
    )


# -- Given the noise ------------------------------------------------------------------------------------


def discrete_noise(n: int, h: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(nodes u, W and H as weights of white noise on n Gauss-Legendre nodes of [0, h])."""
    import numpy as np

    x, w = np.polynomial.legendre.leggauss(n)
    u, mass = torch.from_numpy(0.5 * h * (1 + x)), torch.from_numpy(0.5 * h * w)
    return u, mass, (0.5 - u / h)


@pytest.mark.parametrize("theta", [-0.8, 0.0, 1e-4, 0.7, 6.0, 900.0])
@pytest.mark.parametrize("known", [False, True])
def test_ornstein_uhlenbeck_given_the_noise(theta, known):
    """Regression of int e^(-theta (h-u)) dB on W and H, by quadrature of the three kernels."""
    h, sigma = 0.9, 1.3
    u, mass, kernel_h = discrete_noise(200, h)
    kernel = sigma * torch.exp(-theta * (h - u))
    on_w = float((mass * kernel).sum()) / h
    on_h = float((mass * kernel * kernel_h).sum()) * 12 / h if known else 0.0
    left = float((mass * (kernel - on_w - on_h * kernel_h) ** 2).sum())
    p, x = OrnsteinUhlenbeck(theta, 0.4, sigma), column(1.1)
    w, area = column(0.6), column(-0.2)
    law = p.given(x, 0.2, 1.1, w, area if known else None)
    mean = float(p.transition(x, 0.2, 1.1).mean) + on_w * 0.6 + on_h * -0.2
    assert float(law.mean) == pytest.approx(mean, rel=1e-11)
    assert float(law.variance) == pytest.approx(left, rel=1e-7, abs=1e-28)


@given(st.floats(1e-6, 30.0), st.floats(-3, 3), st.booleans())
def test_matrices_and_elements_agree(h, theta, known):
    """The same regression from the joint covariance of (X, B, int B)."""
    x, w, area = column(0.7), column(0.3), column(-0.1)
    one = OrnsteinUhlenbeck(theta, 0.4, 0.8).given(x, 0.0, h, w, area if known else None)
    other = LinearSDE([[-theta]], [0.4 * theta], [[0.8]]).given(x, 0.0, h, w, area if known else None)
    torch.testing.assert_close(one.mean, other.mean, rtol=1e-10, atol=1e-10)
    full = float(LinearSDE([[-theta]], L=[[0.8]]).flow(h)[2])
    assert float(one.variance) == pytest.approx(float(other.cov), rel=1e-9, abs=1e-12 * full)


def test_small_steps_leave_little_open():
    """sigma theta h^(3/2)/sqrt(12) given W, sigma theta^2 h^(5/2)/sqrt(720) given W and H, to all digits."""
    p, x = OrnsteinUhlenbeck(2.0, 0.0, 0.5), column(1.0)
    zero = torch.zeros_like(x)
    for h in (1e-3, 1e-5):
        first = float(p.given(x, 0.0, h, zero).std)
        second = float(p.given(x, 0.0, h, zero, zero).std)
        assert first == pytest.approx(0.5 * 2.0 * h**1.5 / math.sqrt(12), rel=3 * h)
        assert second == pytest.approx(0.5 * 4.0 * h**2.5 / math.sqrt(720), rel=3 * h)


def test_brownian_motion_is_its_increment():
    x, w = column(0.5), column(-1.2)
    law = BrownianMotion(0.7).given(x, 0.0, 2.0, w)
    torch.testing.assert_close(law.mean, x + 0.7 * w)
    assert float(law.std) == 0.0
    torch.testing.assert_close(DriftedBrownian(0.0, 0.7).solution(x, 2.0, w), law.mean)


def test_integrated_brownian_motion_is_known_from_w_and_h():
    """dX = V dt, dV = q dB: X = x + v h + q h (H + W/2), nothing is left open."""
    h, q = 0.8, 1.4
    law = LinearSDE([[0.0, 1.0], [0.0, 0.0]], L=[[0.0], [q]]).given(
        torch.tensor([[0.3, -0.5]], dtype=F64), 0.0, h, column(0.6), column(0.25)
    )
    exact = torch.tensor([[0.3 - 0.5 * h + q * h * (0.25 + 0.3), -0.5 + q * 0.6]], dtype=F64)
    torch.testing.assert_close(law.mean, exact)
    assert float(law.cov.abs().max()) < 1e-15


def test_euler_maruyama_is_as_far_off_as_the_law_given_w_says():
    """(X_h - x')/std: the exact one-step error given W is N(bias, std^2), 4,000 rows.

    A mean square of normals within 5 of its standard errors sqrt(2/n): false alarm 6e-7.
    """
    n, h, fine = 4000, 0.5, 512
    p, x0 = OrnsteinUhlenbeck(1.5, 0.2, 0.9), torch.full((4000, 1), 0.7, dtype=F64)
    end = solved(p, x0, h, fine, seed=11)
    law = p.given(x0, 0.0, h, brownian((n, 1), h, fine, seed=11))
    z = (end - law.mean) / law.std
    assert abs(float(z.pow(2).mean()) - 1) < 5 * math.sqrt(2 / n) + 0.02
    assert abs(float(z.mean())) < 5 / math.sqrt(n) + 0.02


# -- The bridge -----------------------------------------------------------------------------------------


@given(st.floats(0.05, 0.9), st.floats(0.01, 0.99), st.floats(-2, 2), st.floats(-2, 2))
def test_the_bridge_is_brownian_motion_given_its_end(s, share, a, b):
    """Bayes: N(x, t-s) times N(b - y, T-t) over N(b - x, T-s)."""
    end, x = 1.3, column(a)
    t = s + share * (end - s)
    law = BrownianBridge(b, end).transition(x, s, t)
    y = column(0.37)

    def log_normal(z, v):
        return -0.5 * z * z / v - 0.5 * math.log(2 * math.pi * v)

    exact = log_normal(0.37 - a, t - s) + log_normal(b - 0.37, end - t) - log_normal(b - a, end - s)
    assert float(law.log_prob(y)) == pytest.approx(exact, rel=1e-9, abs=1e-9)


def test_the_bridge_solves_its_equation_and_ends_where_it_should():
    p = BrownianBridge(0.7, 2.0)
    x = torch.tensor([-0.5, 0.3, 1.4], dtype=F64)

    def log_density(y, t):
        return p.transition(torch.full_like(y, 0.2), 0.1, t).log_prob(y)

    assert fokker_planck(p, log_density, x, 1.2) < 1e-7
    law = p.transition(column(0.2), 0.5, 2.0)
    assert float(law.mean) == pytest.approx(0.7, rel=1e-15)
    assert float(law.std) == 0.0
    given_ = p.given(column(0.2), 0.5, 2.0, column(3.0), column(1.0))
    assert float(given_.mean) == pytest.approx(0.7, rel=1e-15)
    assert float(given_.std) == 0.0
    x0 = torch.zeros(50, 1, dtype=F64)
    end = solved(p, x0, 2.0, 64, seed=1)
    h = 2.0 / 64
    torch.testing.assert_close((end - 0.7).std(), torch.tensor(math.sqrt(h), dtype=F64), rtol=0.6, atol=0)


@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize("t", [0.9, 1.7, 1.99])
def test_the_bridge_given_the_noise(t, known):
    """Regression of int (T-t)/(T-u) dB on W and H, by quadrature of the kernels."""
    s, end, h = 0.4, 2.0, t - 0.4
    u, mass, kernel_h = discrete_noise(400, h)
    kernel = (end - t) / (end - s - u)
    on_w = float((mass * kernel).sum()) / h
    on_h = float((mass * kernel * kernel_h).sum()) * 12 / h if known else 0.0
    left = float((mass * (kernel - on_w - on_h * kernel_h) ** 2).sum())
    p = BrownianBridge(0.7, end)
    law = p.given(column(0.1), s, t, column(0.5), column(-0.3) if known else None)
    mean = float(p.transition(column(0.1), s, t).mean) + 0.5 * on_w - 0.3 * on_h
    assert float(law.mean) == pytest.approx(mean, rel=1e-10)
    assert float(law.variance) == pytest.approx(left, rel=1e-6)


# -- Refusals -------------------------------------------------------------------------------------------


def test_messages():
    x, far, wide = column(0.5), column(2.0), torch.ones(1, 2)
    cases = [
        (lambda: ArctanDiffusion(0.0), ValueError, "a must be > 0, got 0.0"),
        (lambda: TanhDiffusion(1.0, -1.0), ValueError, r"b must be > 0, got -1.0.*argument order \(a, b\)"),
        (lambda: DecayingAdditive(alpha=0.0), ValueError, "alpha must be > 0"),
        (lambda: DriftedBrownian(1.0, 0.0), ValueError, r"sigma must be > 0.*\(mu, sigma\)"),
        (lambda: ArctanDiffusion().solution(far, 1.0, x), ValueError, r"\(-pi/2, pi/2\), got 2.*Next"),
        (lambda: TanhDiffusion().transition(column(1.0), 0.0, 1.0), ValueError, r"lie in \(-1, 1\), got 1"),
        (lambda: SinhDiffusion().transition(x, 1.0, 0.5), DirectionError, "goes forward in time"),
        (lambda: BrownianBridge(duration=0.0), ValueError, "duration must be finite and > 0"),
        (lambda: BrownianBridge(0.0, 1.0).drift(x, 1.0), EndpointError, "no value at t >= T = 1.*Next"),
        (lambda: BrownianBridge(0.0, 1.0).transition(x, 0.2, 1.5), ValueError, "ends at T = 1, got t = 1.5"),
        (lambda: LinearSDE([[0.0]], L=[[1.0]]).given(x, 0, 1, wide), ValueError, "W must have shape"),
    ]  # fmt: skip
    for call, kind, message in cases:
        with pytest.raises(kind, match=message):
            call()
    assert repr(TanhDiffusion(0.5, 2.0)) == "TanhDiffusion(a=0.5, b=2.0)"
    assert repr(SinhDiffusion()) == "SinhDiffusion()"
    assert repr(BrownianBridge(1.0, 2.0)) == "BrownianBridge(end=1.0, duration=2)"
