"""Marginals, transitions, priors: consistent with each other, with the SDE and with the published facts."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sdekit.noise import Philox, Recorded
from sdekit.sde import EDM, VE, VP, Cosine, DiscreteVP, Normal, RectifiedFlow, SubVP

from .processes import ALL, F64, IDS, at, ddpm, fractions, processes

three = st.lists(fractions, min_size=3, max_size=3).map(sorted)


@given(processes, three, st.floats(-3, 3))
def test_chapman_kolmogorov(process, us, start):
    """s -> u -> t composes to s -> t: mean and variance."""
    s, u, t = (at(process, v) for v in us)
    x = torch.full((1, 2), start, dtype=F64)
    direct, first = process.transition(x, s, t), process.transition(x, s, u)
    second = process.transition(first.mean, u, t)
    one = torch.ones(1, 1, dtype=F64)
    ratio = process.transition(one, u, t).mean
    composed = ratio**2 * first.variance + second.variance
    torch.testing.assert_close(second.mean, direct.mean, rtol=1e-11, atol=1e-13)
    scale = float(process.sigma(t)) ** 2
    torch.testing.assert_close(
        composed + 0 * direct.variance, direct.variance + 0 * composed, rtol=1e-10, atol=1e-12 * scale
    )


@given(processes, three)
def test_transition_carries_marginal_to_marginal(process, us):
    s, t = at(process, us[0]), at(process, us[2])
    x0 = torch.full((1, 3), 0.7, dtype=F64)
    law = process.transition(process.marginal(x0, s).mean, s, t)
    ratio = process.transition(torch.ones_like(x0), s, t).mean
    variance = (ratio * process.marginal(x0, s).std) ** 2 + law.variance
    end = process.marginal(x0, t)
    torch.testing.assert_close(law.mean, end.mean, rtol=1e-11, atol=1e-13)
    torch.testing.assert_close(variance, end.variance.expand_as(variance), rtol=1e-10, atol=0)


@given(processes, st.floats(0.0, 0.9), st.floats(0.01, 1.0))
def test_moments_solve_their_odes(process, u, v):
    """d mean/dt = f mean and d var/dt = 2 f var + g^2, for the transition from s and for the marginal."""
    s = at(process, u)
    end = min(at(process, u + v * (1 - u)), process.finite_t_max)
    if isinstance(process, DiscreteVP):
        end = math.ceil(end) - 0.41
    if end <= s:
        return
    x = torch.full((1, 1), 1.3, dtype=F64)
    t = torch.tensor(end, dtype=F64)
    f, g2 = process.drift_coefficient(t), process.diffusion_squared(t)
    t.requires_grad_()
    for law in (process.transition(x, s, t), process.marginal(x, t)):
        mean, variance = law.mean.sum(), law.variance.sum()
        (dmean,) = torch.autograd.grad(mean, t, retain_graph=True)
        (dvariance,) = torch.autograd.grad(variance, t)
        torch.testing.assert_close(dmean, f * mean, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(dvariance, 2 * f * variance + g2, rtol=1e-7, atol=1e-9 * float(g2))


@pytest.mark.parametrize("process", ALL, ids=IDS)
def test_transition_at_the_ends(process):
    x = torch.tensor([[1.0, -2.0]], dtype=F64)
    for t in (process.t_min, process.t_max):
        same = process.transition(x, t, t)
        assert torch.equal(same.mean, x)
        assert float(same.std.max()) == 0.0
    whole = process.transition(x, process.t_min, process.t_max)
    assert bool(torch.isfinite(whole.mean).all())
    assert bool(torch.isfinite(whole.std).all())
    if process.domain[0] == 0.0 and float(process.sigma(0)) == 0:
        start, marginal = process.transition(x, 0.0, process.t_max), process.marginal(x, process.t_max)
        torch.testing.assert_close(start.mean, marginal.mean)
        torch.testing.assert_close(start.std, marginal.std)


def test_ve_transition_from_zero_is_not_its_marginal():
    p, x = VE(0.01, 50.0), torch.ones(1, 1, dtype=F64)
    assert float(p.marginal(x, 0.0).std) == 0.01
    assert float(p.transition(x, 0.0, 0.0).std) == 0.0
    exact = float(p.sigma(0.1)) ** 2 - 0.01**2
    assert float(p.transition(x, 0.0, 0.1).variance) == pytest.approx(exact, rel=1e-13)


def test_score_sde_definitions():
    """Song et al. 2021: B(t), the three kernels and diffusions, the priors."""
    t = torch.linspace(0.05, 1, 7, dtype=F64)
    b = 0.1 * t + 0.5 * 19.9 * t**2
    beta = 0.1 + 19.9 * t
    for p, std, g2 in (
        (VP(), torch.sqrt(1 - torch.exp(-b)), beta),
        (SubVP(), 1 - torch.exp(-b), beta * (1 - torch.exp(-2 * b))),
    ):
        torch.testing.assert_close(p.alpha(t), torch.exp(-b / 2))
        torch.testing.assert_close(p.sigma(t), std)
        torch.testing.assert_close(p.diffusion_squared(t), g2)
        torch.testing.assert_close(p.drift_coefficient(t), -beta / 2)
        assert p.prior_std() == 1.0
    ve = VE(0.01, 50.0)
    torch.testing.assert_close(ve.sigma(t), 0.01 * 5000.0**t)
    torch.testing.assert_close(
        torch.sqrt(ve.diffusion_squared(t)), ve.sigma(t) * math.sqrt(2 * math.log(5000.0))
    )
    assert (ve.prior_std(), EDM().prior_std()) == (50.0, 80.0)
    rho = SubVP().rho(t)
    torch.testing.assert_close(rho, 2 * torch.sinh(b / 2))
    assert [p.t_min for p in (VP(), SubVP(), Cosine(), RectifiedFlow(), VE())] == [1e-3] * 4 + [1e-5]


def test_discrete_vp_is_its_table():
    """alpha(k + 1)^2 and the one-step transitions are the table's, and N = 1000 is VP to about 1/N."""
    betas = (0.1 + torch.arange(1000, dtype=F64) / 999 * 19.9) / 1000
    p = DiscreteVP.from_betas(betas)
    table = torch.cumprod(1 - betas, 0)
    t = torch.arange(1, 1001, dtype=F64)
    torch.testing.assert_close(p.alpha(t) ** 2, table, rtol=1e-13, atol=0)
    torch.testing.assert_close(p.sigma(t) ** 2, 1 - table, rtol=1e-12, atol=0)
    torch.testing.assert_close(p.diffusion_squared(t), -torch.log1p(-betas), rtol=1e-9, atol=0)
    steps = p.transition(torch.ones(1000, 1, dtype=F64), t - 1, t)
    torch.testing.assert_close(steps.variance[:, 0], betas, rtol=1e-10, atol=0)
    torch.testing.assert_close(steps.mean[:, 0], torch.sqrt(1 - betas), rtol=1e-13, atol=0)
    assert (p.t_min, p.t_max, float(p.alpha(0)), p.prior_std()) == (1.0, 1000.0, 1.0, 1.0)
    gap = (p.alpha(t) - VP().alpha(t / 1000)).abs().max()
    assert 1e-5 < float(gap) < 5e-3
    float32 = DiscreteVP(table.float())
    assert 1e-6 < abs(float(float32.sigma(1) / p.sigma(1)) - 1) < 1e-3


@given(st.integers(2, 200), fractions)
def test_discrete_vp_interpolates_log_alpha(n, u):
    p = ddpm(n)
    t = u * n
    j = min(max(math.ceil(t) - 1, 0), n - 1)
    left, right = (float(p.log_alpha(float(k))) for k in (j, j + 1))
    assert float(p.log_alpha(t)) == pytest.approx(left + (t - j) * (right - left), rel=1e-12, abs=1e-15)


@pytest.mark.parametrize("process", ALL, ids=IDS)
@pytest.mark.parametrize("event", [(), (3,), (2, 4, 5)])
def test_shapes_and_per_sample_times(process, event, device, dtype):
    """Row i with its own time is what it is alone with that time."""
    x = torch.randn(4, *event, generator=torch.Generator().manual_seed(0), dtype=dtype).to(device)
    t = torch.tensor([at(process, u) for u in (0.1, 0.3, 0.5, 0.9)], dtype=dtype, device=device)
    s = 0.5 * (t + process.t_min)
    for fn in (
        lambda x, s, t: process.drift(x, t),
        lambda x, s, t: process.diffusion(x, t),
        lambda x, s, t: process.marginal(x, t).mean,
        lambda x, s, t: process.marginal(x, t).std + 0 * x,
        lambda x, s, t: process.transition(x, s, t).mean,
        lambda x, s, t: process.transition(x, s, t).std + 0 * x,
    ):
        out = fn(x, s, t)
        assert (out.shape, out.dtype, out.device.type) == (x.shape, dtype, device.type)
        tolerance = 1e-6 if dtype == torch.float32 else 1e-12
        for i in range(4):
            alone = fn(x[i : i + 1], s[i], t[i])
            torch.testing.assert_close(out[i : i + 1], alone, rtol=tolerance, atol=0)
    assert process.noise_shape(x) == x.shape
    assert torch.equal(process.divergence_ggt(x, t), torch.zeros_like(x))


def test_float_times_do_not_change_the_dtype():
    x = torch.ones(2, 3, dtype=torch.bfloat16)
    for out in (VP().drift(x, 0.5), VP().diffusion(x, 0.5), *VP().transition(x, 0.1, 0.5)):
        assert out.dtype == torch.bfloat16


@pytest.mark.parametrize("process", ALL, ids=IDS)
def test_prior_is_rowwise_and_scaled(process, device):
    whole = process.prior((5, 2, 3), seed=7, device=device)
    assert (whole.shape, whole.dtype) == ((5, 2, 3), torch.float32)
    assert torch.equal(process.prior((2, 2, 3), seed=7, first_id=3, device=device), whole[3:])
    recorded = Recorded(torch.zeros(1, 5, 2, 3), initial=torch.ones(5, 2, 3))
    ones = process.prior((5, 2, 3), noise=recorded, dtype=F64)
    assert torch.allclose(ones, torch.full((5, 2, 3), process.prior_std(), dtype=F64))


def test_prior_std_before_the_end():
    assert VP().prior_std(0.5) == ddpm().prior_std(17.0) == 1.0
    for p in (SubVP(), VE(), Cosine(), RectifiedFlow(), EDM()):
        t = 0.7 * p.t_max
        assert p.prior_std(t) == float(p.sigma(t))
    assert Cosine().prior_std() == RectifiedFlow().prior_std() == SubVP().prior_std() == 1.0


def test_normal_law(dtype):
    law = VP().marginal(
        torch.tensor([[0.5, -1.0], [2.0, 0.0]], dtype=dtype), torch.tensor([0.2, 0.6], dtype=dtype)
    )
    x = law.sample(seed=3)
    torch.testing.assert_close(x, law.sample(noise=Philox(3)))
    torch.testing.assert_close(
        law.sample(3, first_id=0)[1:], Normal(law.mean[1:], law.std[1:]).sample(3, first_id=1)
    )
    same = torch.distributions.Normal(law.mean, law.std.expand_as(law.mean)).log_prob(x).sum(1)
    torch.testing.assert_close(law.log_prob(x), same)
    torch.testing.assert_close(law.variance, law.std**2)
