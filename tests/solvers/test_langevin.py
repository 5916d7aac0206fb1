"""Langevin Monte Carlo: ULA's exact bias, MALA's exact invariance, acceptance, and what each refuses."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import gamma, kstest, norm

import sdekit as sk
from sdekit.errors import ArgumentOrderError, CapabilityError, NonFiniteError, ShapeError
from sdekit.noise import Philox, Recorded
from sdekit.solvers import MALA, ULA, Acceptance, Interval

#: False alarm of a Kolmogorov-Smirnov test here: p below it fails.
ALARM = 1e-6
MIXTURE = sk.GaussianMixture([0.3, 0.7], [[-1.0], [1.2]], 0.3)
NORMAL = sk.Langevin(lambda x: -x, log_prob=lambda x: -0.5 * x.square().sum(-1))


def mixture_cdf(x):
    return 0.3 * norm.cdf(x, -1.0, 0.3**0.5) + 0.7 * norm.cdf(x, 1.2, 0.3**0.5)


def well() -> sk.Langevin:
    """p proportional to exp(-(x^2 - 1)^2): neither Gaussian nor log-concave."""
    return sk.Langevin(
        lambda x: -4 * x * (x.square() - 1), log_prob=lambda x: -(x.square() - 1).square().sum(-1)
    )


def log_acceptance(law, x, y, h):
    """log a(x, y) of MALA, (n,), from its steps alone: where the uniform turns it from taken to refused."""
    solver, t = MALA(), torch.zeros((), dtype=torch.float64)
    W = (y - x - h * law.score(x)) / math.sqrt(2)
    carry = solver.init(law, x, t)
    low, high = torch.full((len(x),), -12.0).double(), torch.full((len(x),), 12.0).double()
    for _ in range(70):
        z = 0.5 * (low + high)
        H = (z * math.sqrt(h / 12))[:, None].expand_as(x)
        out, _ = solver.step(law, x, Interval((t,), h, W, H), carry)
        taken = (out == x).all(-1).logical_not()
        low, high = torch.where(taken, z, low), torch.where(taken, high, z)
    return torch.special.log_ndtr(0.5 * (low + high))


def log_q(law, x, y, h):
    return -(y - x - h * law.score(x)).square().sum(-1) / (4 * h)


# -- ULA ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("h", [0.1, 0.5, 1.0, 1.6])
def test_stationary_variance_of_ula(h):
    """N(0, 1): the recursion's variance is 1/(1 - h/2), exactly: one unit impulse at each draw."""
    n = 400
    draws = torch.zeros(n, n, 1, dtype=torch.float64)
    draws[torch.arange(n), torch.arange(n)] = 1.0
    x0 = torch.zeros(n, 1, dtype=torch.float64)
    gains = sk.solve(NORMAL, x0, (0.0, n * h), steps=n, solver="ula", noise=Recorded(draws)).x
    assert float(gains.square().sum()) == pytest.approx(1 / (1 - h / 2), rel=1e-9)


def test_ula_is_euler_maruyama():
    x0 = torch.randn(6, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    a, b = (
        sk.solve(sk.Langevin(lambda x: -x.tanh()), x0, (0.0, 2.0), steps=30, solver=s)
        for s in ("ula", "euler-maruyama")
    )
    torch.testing.assert_close(a.x, b.x, rtol=1e-13, atol=1e-14)
    assert a.stats.nfe == 30


# -- MALA -----------------------------------------------------------------------------------------------


@given(h=st.floats(0.01, 2.0), d=st.integers(1, 4), seed=st.integers(0, 99))
def test_detailed_balance(h, d, seed):
    """p(x) q(x, y) a(x, y) is symmetric in x and y, a found by bisection on the solver's own decisions."""
    x, y = torch.randn(2, 20, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    for law in (NORMAL, well()):
        pairs = ((x, y), (y, x))
        a = [log_acceptance(law, u, v, h) for u, v in pairs]
        flow = [law.log_prob(u) + log_q(law, u, v, h) + w for (u, v), w in zip(pairs, a, strict=True)]
        seen = torch.minimum(*a) > -60  # the bisection looks no further than Phi(-12)
        assert bool(seen.any())
        torch.testing.assert_close(flow[0][seen], flow[1][seen], rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("start", ["stationary", "far"])
def test_the_law_of_mala_is_the_target(start, device):
    """Kolmogorov-Smirnov, 20,000 samples, false alarm 1e-6; ULA at the same step fails it."""
    n, h = 20_000, 0.3
    law = sk.Langevin(MIXTURE)
    if start == "stationary":
        x0, steps = MIXTURE.sample(n, seed=4, dtype=torch.float64, device=device), 10
    else:
        x0, steps = torch.full((n, 1), 2.5, dtype=torch.float64, device=device), 200
    p = {}
    for solver in ("mala", "ula"):
        x = sk.solve(law, x0, (0.0, steps * h), steps=steps, solver=solver, seed=7).x
        p[solver] = kstest(x[:, 0].cpu().numpy(), mixture_cdf).pvalue
    assert p["mala"] > ALARM
    assert p["ula"] < ALARM


def test_a_density_with_a_boundary():
    """Gamma(3): log p is -inf and the score NaN outside; such proposals are refused. False alarm 1e-6."""

    def log_prob(x):
        return torch.where(x > 0, 2 * x.clamp(min=1e-300).log() - x, -math.inf).sum(-1)

    law = sk.Langevin(lambda x: torch.where(x > 0, 2 / x - 1, math.nan), log_prob=log_prob)
    x0 = torch.from_numpy(gamma(3).rvs((8000, 1), random_state=np.random.default_rng(0)))
    x = sk.solve(law, x0, (0.0, 20.0), steps=20, solver="mala", seed=1).x
    assert float(x.min()) > 0
    assert kstest(x[:, 0].numpy(), gamma(3).cdf).pvalue > ALARM


def moments_of_refusals(h, power):
    """E[(1 - a)(y - x)^power] at x = 0.6 in the double well, by quadrature over the proposal's normal."""
    law, xi = well(), torch.linspace(-8, 8, 4001, dtype=torch.float64)[:, None]
    x = torch.full_like(xi, 0.6)
    y = x + h * law.score(x) + math.sqrt(2 * h) * xi
    weight = torch.exp(-0.5 * xi[:, 0] ** 2) / math.sqrt(2 * math.pi) * 16 / 4000
    return float((weight * -torch.expm1(log_acceptance(law, x, y, h)) * (y - x)[:, 0] ** power).sum())


def test_the_declared_orders_of_mala():
    """Against ULA (weak and strong order 1 here) in one step: mean O(h^2), mean square O(h^(5/2))."""
    mean, square = ([moments_of_refusals(h, power) for h in (4e-4, 1e-4)] for power in (1, 2))
    assert math.log(mean[0] / mean[1], 4) - 1 == pytest.approx(MALA.weak_order, abs=0.1)
    assert math.log(square[0] / square[1], 4) / 2 - 0.5 == pytest.approx(MALA.strong_order, abs=0.05)


def test_acceptance():
    """The callback counts the moves; their share is E a(x, y), here by simulation of a on its own draws."""
    n, steps, h = 4000, 12, 0.8
    law = sk.Langevin(MIXTURE)
    x0 = MIXTURE.sample(n, seed=0, dtype=torch.float64)
    count = Acceptance(x0)
    assert bool(count.rate.isnan().all())
    times = torch.linspace(0, steps * h, steps + 1, dtype=torch.float64)
    run = sk.solve(law, x0, times, solver="mala", callback=count, save_at=times)
    moved = (run.xs[1:] != run.xs[:-1]).any(-1).double().mean(0)
    assert torch.equal(count.rate, moved)
    assert run.stats.nfe == steps + 1
    xi = Philox(99).normal(0, x0, torch.arange(n))
    y = x0 + h * law.score(x0) + math.sqrt(2 * h) * xi
    expected = log_acceptance(law, x0, y, h).exp()
    spread = math.sqrt(float(expected.var() + moved.var()) / n)  # samples are independent
    assert abs(float(moved.mean() - expected.mean())) < 5 * spread  # false alarm below 1e-6
    tiny = Acceptance(x0)
    sk.solve(law, x0, (0.0, 1e-3), steps=5, solver="mala", callback=tiny)
    assert float(tiny.rate.mean()) > 0.999


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_sample_is_the_same_alone(dtype):
    law = sk.Langevin(sk.GaussianMixture([0.5, 0.5], [[0.0, 1.0, 0.0], [1.0, 0.0, 2.0]], 0.4))
    x0 = torch.randn(9, 3, generator=torch.Generator().manual_seed(0)).to(dtype)
    whole = sk.solve(law, x0, (0.0, 6.0), steps=20, solver="mala", seed=3).x
    assert whole.dtype == dtype
    for i in (0, 4, 8):
        alone = sk.solve(law, x0[i : i + 1], (0.0, 6.0), steps=20, solver="mala", seed=3, first_id=i).x
        assert torch.equal(alone[0], whole[i])


# -- the system -----------------------------------------------------------------------------------------


def test_the_score_of_a_density():
    """By autograd and in closed form, images included; differentiable where x is."""
    target = sk.Gaussian(torch.zeros(2, 3, 3), variance=2.0)
    law = sk.Langevin(target)
    x = torch.randn(4, 2, 3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    torch.testing.assert_close(law.score(x), -x / 2)
    torch.testing.assert_close(law.drift(x, 0.3), -x / 2)
    assert law.has_density
    z = x.clone().requires_grad_()
    (slope,) = torch.autograd.grad(law.score(z).square().sum(), z)
    torch.testing.assert_close(slope, x / 2)
    assert float(law.diffusion(x, 0.0).square().mean()) == pytest.approx(2.0)
    law.validate(x, 0.0)


@pytest.mark.parametrize("solver", ["ula", "mala"])
def test_other_systems_are_refused(solver):
    ou = sk.SDE(lambda x, t: -x, lambda x, t: torch.ones_like(x), noise_type="additive")
    with pytest.raises(CapabilityError, match=r"Langevin dynamics, got SDE.*Next"):
        sk.solve(ou, torch.zeros(2, 1), (0.0, 1.0), steps=3, solver=solver)


def test_what_langevin_refuses():
    x = torch.zeros(2, 3)
    with pytest.raises(CapabilityError, match=r"knows its score only.*'ula'"):
        sk.solve(sk.Langevin(lambda x: -x), x, (0.0, 1.0), steps=3, solver="mala")
    with pytest.raises(ShapeError, match="one number a sample"):
        sk.solve(sk.Langevin(lambda x: -x, log_prob=lambda x: -x), x, (0.0, 1.0), steps=3, solver="mala")
    with pytest.raises(TypeError, match="no time"):
        sk.Langevin(MIXTURE.score(sk.VP()))
    with pytest.raises(ArgumentOrderError):
        sk.Langevin(lambda t, x: -x)
    with pytest.raises(TypeError, match="needs a score or log_prob"):
        sk.Langevin()
    with pytest.raises(TypeError, match="must be callable"):
        sk.Langevin(3.0)


def test_they_are_in_the_table():
    rows = {row.name: row for row in sk.solvers()}
    assert rows["ula"].cls == ULA.__name__
    assert rows["mala"].cls == MALA.__name__


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_mala_says_where_it_could_never_move(bad):
    """log p NaN or infinite, or no score, at the start: every proposal would be refused, in silence."""
    x = torch.tensor([[1.0], [-1.0], [2.0]])
    broken = sk.Langevin(lambda x: -x, log_prob=lambda x: torch.where(x > 0, -0.5 * x * x, bad).sum(-1))
    with pytest.raises(NonFiniteError, match="1 of 3 samples; first: sample 1, where log p = (nan|inf)"):
        sk.solve(broken, x, (0.0, 1.0), steps=3, solver="mala")
    slope = sk.Langevin(lambda x: torch.where(x < 1.5, -x, bad), log_prob=lambda x: (-0.5 * x * x).sum(-1))
    with pytest.raises(NonFiniteError, match="first: sample 2, where log p = -2 and the score is not finite"):
        sk.solve(slope, x, (0.0, 1.0), steps=3, solver="mala")


def test_acceptance_belongs_to_one_run():
    law, count = (
        sk.Langevin(lambda x: -x, log_prob=lambda x: (-0.5 * x * x).sum(-1)),
        Acceptance(torch.zeros(2, 1)),
    )
    with pytest.raises(ShapeError, match=r"states of shape \(2, 1\), got \(3, 1\)"):
        sk.solve(law, torch.zeros(3, 1), (0.0, 1.0), steps=3, solver="mala", callback=count)
