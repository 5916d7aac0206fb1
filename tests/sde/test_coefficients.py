"""Coefficients: closed forms against 50-digit arithmetic, derivatives, inverses, ends, the contract."""

from __future__ import annotations

import math

import mpmath as mp
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sdekit.sde import EDM, VE, VP, Cosine, GaussianDiffusion, RectifiedFlow, SubVP

from .processes import ALL, F64, IDS, LIBRARY, Trigonometric, at, ddpm, fractions, processes

NAMES = (
    *("alpha", "sigma", "log_alpha", "dalpha", "dsigma", "rho", "half_log_snr"),
    *("drift_coefficient", "diffusion_squared"),
)


def reference(process: GaussianDiffusion, t: float) -> dict[str, mp.mpf]:
    """alpha, sigma, lambda, f, g^2 in 50 digits, from the definition of each process."""
    t = mp.mpf(t)
    match process:
        case VP(beta_min=a, beta_max=b):  # SubVP too
            a, b = mp.mpf(a), mp.mpf(b)
            integral, beta = a * t + (b - a) * t * t / 2, a + (b - a) * t
            alpha, sigma = mp.exp(-integral / 2), mp.sqrt(1 - mp.exp(-integral))
            f, g2 = -beta / 2, beta
            if isinstance(process, SubVP):
                sigma, g2 = 1 - mp.exp(-integral), beta * (1 - mp.exp(-2 * integral))
        case VE(sigma_min=a, sigma_max=b):
            rate = mp.log(mp.mpf(b) / mp.mpf(a))
            alpha, sigma, f = mp.mpf(1), mp.mpf(a) * mp.exp(rate * t), mp.mpf(0)
            g2 = 2 * rate * sigma**2
        case Cosine():
            u = mp.pi * t / 2
            alpha, sigma, f, g2 = mp.cos(u), mp.sin(u), -mp.pi / 2 * mp.tan(u), mp.pi * mp.tan(u)
        case EDM():
            alpha, sigma, f, g2 = mp.mpf(1), t, mp.mpf(0), 2 * t
        case RectifiedFlow():
            alpha, sigma, f, g2 = 1 - t, t, -1 / (1 - t), 2 * t / (1 - t)
        case _:
            raise AssertionError(process)
    lam = mp.log(alpha / sigma)
    return {
        "alpha": alpha,
        "sigma": sigma,
        "half_log_snr": lam,
        "drift_coefficient": f,
        "diffusion_squared": g2,
    }


@pytest.mark.parametrize("process", ALL[:6], ids=IDS[:6])
@pytest.mark.parametrize("u", [1e-12, 1e-9, 1e-6, 1e-3, 0.03, 0.3, 0.7, 0.97, 1 - 1e-6])
def test_twelve_digits_at_both_ends(process, u):
    """Relative 1e-12 (absolute for a half log-SNR near its zero), t down to 1e-12 of the span."""
    t = u * process.t_max
    with mp.workdps(50):
        for name, exact in reference(process, t).items():
            got = float(getattr(process, name)(t))
            scale = max(abs(exact), mp.mpf(1)) if name == "half_log_snr" else abs(exact)
            assert abs(got - exact) <= 1e-12 * scale, name


@given(processes, st.lists(fractions, min_size=1, max_size=5))
def test_derivatives_are_those_of_autograd(process, us):
    t = torch.tensor([at(process, u) for u in us], dtype=F64)
    if isinstance(process, type(ddpm(50))):
        t = torch.floor(t) - 0.37  # inside an interval
    for name, derivative in (("alpha", "dalpha"), ("sigma", "dsigma")):
        leaf = t.clone().requires_grad_()
        (slope,) = torch.autograd.grad(getattr(process, name)(leaf).sum(), leaf)
        torch.testing.assert_close(getattr(process, derivative)(t), slope, rtol=1e-9, atol=1e-12)


@given(processes, fractions)
def test_f_and_g_follow_from_alpha_and_sigma(process, u):
    """f = dalpha/alpha and g^2 = d sigma^2/dt - 2 f sigma^2 = -2 sigma^2 dlambda/dt."""
    t = torch.tensor(min(at(process, u), process.finite_t_max), dtype=F64)
    f, g2 = process.drift_coefficient(t), process.diffusion_squared(t)
    sigma = process.sigma(t)
    torch.testing.assert_close(f, process.dalpha(t) / process.alpha(t), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(g2, 2 * sigma * (process.dsigma(t) - f * sigma), rtol=1e-8, atol=1e-12)


@given(processes, fractions)
def test_inverses_are_inverse(process, u):
    t = torch.tensor(at(process, u), dtype=F64)
    lam, rho = process.half_log_snr(t), process.rho(t)
    torch.testing.assert_close(process.t_of_half_log_snr(lam), t, rtol=1e-9, atol=1e-13 * process.t_max)
    torch.testing.assert_close(process.t_of_rho(rho), t, rtol=1e-9, atol=1e-13 * process.t_max)
    if float(lam) > -8:
        again = process.half_log_snr(process.t_of_half_log_snr(lam))
        torch.testing.assert_close(again, lam, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("process", ALL, ids=IDS)
def test_default_inverse_and_coefficients_agree_with_closed_forms(process):
    """What a subclass with alpha and sigma alone gets, on the processes whose closed forms are known."""
    t = torch.tensor([at(process, u) - 0.29 * (process.t_max > 900) for u in (0.01, 0.2, 0.8)], dtype=F64)
    for name in NAMES[2:]:  # all but alpha and sigma themselves
        plain = getattr(GaussianDiffusion, name)(process, t)
        torch.testing.assert_close(plain, getattr(process, name)(t), rtol=1e-8, atol=1e-12)
    lam = process.half_log_snr(t)
    found = GaussianDiffusion.t_of_half_log_snr(process, lam)
    torch.testing.assert_close(found, t, rtol=1e-12, atol=0)


@pytest.mark.parametrize("process", ALL, ids=IDS)
def test_inverses_are_differentiable(process):
    t = torch.tensor([at(process, 0.4) + 0.3 * (process.t_max > 900)], dtype=F64)
    slope = torch.func.grad(lambda u: process.half_log_snr(u).sum())(t)
    lam = process.half_log_snr(t).requires_grad_()
    (inverse,) = torch.autograd.grad(process.t_of_half_log_snr(lam).sum(), lam)
    torch.testing.assert_close(inverse * slope, torch.ones(1, dtype=F64), rtol=1e-9, atol=0)


def test_exact_ends():
    for p in (VP(), SubVP(), Cosine(), RectifiedFlow(), ddpm(100), Trigonometric()):
        assert (float(p.alpha(0)), float(p.sigma(0)), float(p.rho(0))) == (1.0, 0.0, 0.0)
        assert float(p.half_log_snr(0)) == math.inf
        assert float(p.t_of_rho(0.0)) == 0.0
        assert float(p.t_of_half_log_snr(math.inf)) == 0.0
    for p in (Cosine(), RectifiedFlow()):
        assert (float(p.alpha(1.0)), float(p.sigma(1.0)), float(p.rho(1.0))) == (0.0, 1.0, math.inf)
        assert float(p.half_log_snr(1)) == float(p.log_alpha(1)) == -math.inf
        assert float(p.t_of_rho(math.inf)) == float(p.t_of_half_log_snr(-math.inf)) == 1.0
        assert float(p.drift_coefficient(1)) == -math.inf
        assert float(p.diffusion_squared(1)) == math.inf
    assert (float(Cosine().dalpha(1)), float(Cosine().dsigma(1))) == (-math.pi / 2, 0.0)
    assert (float(RectifiedFlow().dalpha(1)), float(RectifiedFlow().dsigma(1))) == (-1.0, 1.0)
    ve, edm = VE(0.01, 50.0), EDM(0.002, 80.0)
    assert (float(ve.sigma(0)), float(ve.sigma(1))) == (0.01, 50.0)
    assert (edm.t_min, edm.t_max, float(edm.sigma(0.002)), float(edm.sigma(80.0))) == (
        0.002,
        80.0,
        0.002,
        80.0,
    )
    assert float(edm.sigma(100.0)) == 100.0  # churn may go beyond sigma_max


def test_finite_t_max_is_where_alpha_is_a_thousandth():
    assert RectifiedFlow().finite_t_max == pytest.approx(0.999, abs=1e-15)
    assert float(Cosine().alpha(Cosine().finite_t_max)) == pytest.approx(1e-3, rel=1e-9)
    assert VP().finite_t_max == 1.0
    assert EDM().finite_t_max == 80.0


@pytest.mark.parametrize("process", ALL, ids=IDS)
@pytest.mark.parametrize("name", NAMES)
def test_contract_of_shape_dtype_device(process, name, device):
    coefficient, t = getattr(process, name), 0.5 * process.t_max
    exact = coefficient(t)
    assert exact.shape == ()
    assert exact.dtype == F64
    for number in (np.float32(t), np.float64(t), np.asarray(t)):
        torch.testing.assert_close(coefficient(number), exact, rtol=1e-6, atol=1e-7, check_device=False)
        assert coefficient(number).dtype == F64
    for dtype in (torch.float32, F64, torch.bfloat16):
        for shape in ((), (3,), (2, 3)):
            out = coefficient(torch.full(shape, t, dtype=dtype, device=device))
            assert (out.shape, out.dtype, out.device.type) == (shape, dtype, device.type)
            assert torch.equal(out.cpu(), exact.to(dtype).expand(shape).clone())
    assert coefficient(torch.empty(0, dtype=F64, device=device)).shape == (0,)
    assert coefficient(np.full(3, t)).shape == (3,)


@pytest.mark.parametrize("process", LIBRARY, ids=IDS[:-1])
def test_float32_times_lose_nothing_inside(process):
    """Computed in float64 and rounded once: sigma of VP at t = 1e-6 keeps all its float32 digits."""
    t = torch.tensor([1e-6, 1e-3, 0.9, 1.0]) * process.t_max
    for name in ("alpha", "sigma", "half_log_snr"):
        got, exact = getattr(process, name)(t), getattr(process, name)(t.double())
        assert torch.equal(got, exact.float()), name


def test_differentiable_twice_and_under_functorch():
    p = VP()
    t = torch.tensor(0.3, dtype=F64, requires_grad=True)
    (first,) = torch.autograd.grad(p.sigma(t), t, create_graph=True)
    (second,) = torch.autograd.grad(first, t)
    h = 1e-5
    numeric = (p.dsigma(0.3 + h) - p.dsigma(0.3 - h)) / (2 * h)
    torch.testing.assert_close(second, numeric, rtol=1e-6, atol=0)
    times = torch.linspace(0.1, 0.9, 5, dtype=F64)
    for q in (p, Trigonometric()):
        assert torch.equal(torch.func.vmap(q.sigma)(times), q.sigma(times))
        torch.testing.assert_close(torch.func.vmap(torch.func.grad(q.sigma))(times), q.dsigma(times))


def test_rounding_at_the_ends_is_forgiven():
    p = Cosine()
    assert float(p.alpha(1.0 + 1e-9)) == 0.0
    assert float(p.sigma(-1e-12)) == 0.0
    assert float(p.alpha(torch.tensor(1.0, dtype=torch.float32).nextafter(torch.tensor(2.0)))) == 0.0


def test_times_that_cannot_be_read_give_nan():
    """Under vmap (and on an accelerator) no value is read: outside is NaN, ends are forgiven."""
    out = torch.func.vmap(Cosine().alpha)(torch.tensor([-0.2, 0.5, 1.0 + 1e-9, 1.2, math.nan], dtype=F64))
    assert torch.isnan(out).tolist() == [True, False, False, True, True]
    assert float(out[2]) == 0.0


def test_constant_coefficients_of_a_user_keep_the_contract():
    class Constant(GaussianDiffusion):
        def alpha(self, t):
            return 1.0

        def sigma(self, t):
            return 2.0 * t + 0.1

    p = Constant()
    assert p.alpha(torch.zeros(3)).shape == (3,)
    assert float(p.dalpha(0.5)) == 0.0
    assert float(p.diffusion_squared(0.5)) == pytest.approx(2 * 1.1 * 2.0)
    assert float(p.t_of_rho(1.1)) == pytest.approx(0.5, rel=1e-14)
