"""Forward, then back: the reversal of every process whose law is known leads to the law at its start."""

from __future__ import annotations

import math

import pytest
import torch

import sdekit as sk
from sdekit.errors import ArgumentOrderError, CapabilityError, ShapeError
from sdekit.sde import (
    SDE,
    ArctanDiffusion,
    BrownianBridge,
    DecayingAdditive,
    DriftedBrownian,
    HarmonicLangevin,
    SinhDiffusion,
    SphericalBrownian,
    TanhDiffusion,
    probability_flow,
    reverse,
    transition_score,
    velocity_score,
)
from sdekit.sde.phase import join

from .exact import FIRST, KOLMOGOROV, kolmogorov, within
from .processes import F64

ETAS = (0.0, 0.6, 1.0)


def tensor(values):
    return torch.tensor(values, dtype=F64)


# One dimension, from a point: f - (1 + eta^2)/2 (g^2 p)_x/p, with sixth differences of the known density.

FROM_A_POINT = {
    "ou": (sk.OrnsteinUhlenbeck(1.3, 0.4, 0.8), 0.7, (-0.6, 1.2)),
    "brownian": (sk.BrownianMotion(0.8), 0.7, (-0.4, 1.4)),
    "geometric": (sk.GeometricBrownian(0.3, 0.6), 0.7, (0.3, 1.8)),
    "cir": (sk.CIR(1.2, 0.8, 0.7), 0.7, (0.2, 1.6)),
    "cir, low": (sk.CIR(1.0, 0.2, 0.9), 0.1, (0.05, 0.6)),
    "tanh": (TanhDiffusion(0.4, 0.7), 0.2, (-0.6, 0.7)),
    "sinh": (SinhDiffusion(), 0.2, (-0.6, 2.0)),
    "arctan": (ArctanDiffusion(0.8), 0.2, (-0.7, 0.9)),
    "decaying": (DecayingAdditive(0.8, 0.5), 0.2, (0.0, 0.9)),
    "drifted": (DriftedBrownian(0.6), 0.2, (-0.6, 1.6)),
    "bridge": (BrownianBridge(0.9, 1.0), 0.1, (0.0, 1.2)),
    "vp": (sk.VP(), 0.7, (-0.6, 1.3)),
}


@pytest.mark.parametrize("name", FROM_A_POINT)
def test_from_a_point_in_one_dimension(name):
    process, start, ends = FROM_A_POINT[name]
    x, t, h = torch.linspace(*ends, 9, dtype=F64)[:, None], tensor(0.6), 1e-3
    law = process.transition(torch.full_like(x, start), 0.0, t)
    score = transition_score(process, start)

    def flux(y):
        return process.noise_field(y, t) ** 2 * torch.exp(law.log_prob(y))[:, None]

    slope = sum(c * flux(x + k * h) for k, c in zip(range(-3, 4), FIRST, strict=True)) / h
    slope = slope / torch.exp(law.log_prob(x))[:, None]
    for eta in ETAS:
        exact = process.drift(x, t) - 0.5 * (1 + eta**2) * slope
        torch.testing.assert_close(reverse(process, score, eta).drift(x, t), exact, rtol=2e-7, atol=2e-7)
    flow = probability_flow(process, score).drift(x, t)
    torch.testing.assert_close(flow, process.drift(x, t) - 0.5 * slope, rtol=2e-7, atol=2e-7)


# Linear equations: the reversal is linear too, and the two moments of its law obey an ODE.


def affine(system, t, shape):
    """(A, b) of the drift A x + b over the flattened event, from its values at 0 and at the unit vectors."""
    n = math.prod(shape)
    points = torch.cat([torch.zeros(1, n, dtype=F64), torch.eye(n, dtype=F64)]).reshape(n + 1, *shape)
    values = system.drift(points, tensor(t)).reshape(n + 1, n)
    return (values[1:] - values[0]).T, values[0]


def ggt(process, t, shape):
    n = math.prod(shape)
    x = torch.eye(n, dtype=F64).reshape(n, *shape)
    return process.apply_ggt(process.noise_field(x, tensor(t)), x).reshape(n, n)


def law_at_the_end(system, process, eta, mean, cov, shape, span, steps=60):
    """(mean, cov) at the end of a run of ``system`` with decreasing t from N(mean, cov), by RK4."""

    def slope(t, m, c):
        a, b = affine(system, t, shape)
        return a @ m + b, a @ c + c @ a.T - eta**2 * ggt(process, t, shape)

    ts = span[0] * (span[1] / span[0]) ** (torch.arange(steps + 1, dtype=F64) / steps)
    for t, end in zip(ts[:-1].tolist(), ts[1:].tolist(), strict=True):
        h = end - t
        k1 = slope(t, mean, cov)
        k2 = slope(t + h / 2, mean + h / 2 * k1[0], cov + h / 2 * k1[1])
        k3 = slope(t + h / 2, mean + h / 2 * k2[0], cov + h / 2 * k2[1])
        k4 = slope(end, mean + h * k3[0], cov + h * k3[1])
        mean, cov = (
            v + h / 6 * (a + 2 * b + 2 * c + d)
            for v, a, b, c, d in zip((mean, cov), k1, k2, k3, k4, strict=True)
        )
    return mean, cov


def moments(process, mean, cov, t, shape):
    """(mean, cov) at t from N(mean, cov) at 0, from the transition law at 0 and at the unit vectors."""
    n = math.prod(shape)
    points = torch.cat([torch.zeros(1, n, dtype=F64), torch.eye(n, dtype=F64)]).reshape(n + 1, *shape)
    law = process.transition(points, 0.0, t)
    values = law.mean.reshape(n + 1, n)
    phi = (values[1:] - values[0]).T
    if hasattr(law, "cov"):
        noise = law.cov
    elif hasattr(law, "qq"):
        noise = torch.kron(tensor([[law.qq, law.qv], [law.qv, law.vv]]), torch.eye(n // 2, dtype=F64))
    else:
        noise = torch.diag(law.variance.expand(points.shape)[0].reshape(-1))
    return phi @ mean + values[0], phi @ cov @ phi.T + noise


COV = tensor([[0.8, 0.3], [0.3, 0.5]])
THREE = tensor([[1.0, 0.3, -0.2], [0.3, 0.7, 0.1], [-0.2, 0.1, 0.6]])
SYSTEMS = {
    "ou": (sk.OrnsteinUhlenbeck(1.3, [0.4, -0.6], 0.8), (2,), COV),
    "ou of vectors": (sk.OrnsteinUhlenbeck([1.3, 0.2], 0.4, [0.8, 0.3]), (2,), COV),
    "brownian": (sk.BrownianMotion(0.8), (2,), COV),
    "linear": (sk.LinearSDE([[-1.0, 0.7], [-0.2, 0.1]], [0.3, -0.5], [[1.0, 0.2], [0.0, 0.5]]), (2,), COV),
    "linear, one motion": (
        sk.LinearSDE([[-1.0, 0.7, 0.2], [-0.2, 0.1, 0.5], [0.4, 0.0, -0.3]], L=[[1.0], [0.4], [0.0]]),
        (3,),
        THREE,
    ),
    "harmonic": (HarmonicLangevin(1.3, 0.7, 0.5), (2,), COV),
    "damped": (sk.CriticallyDampedLangevin(), (2,), COV),
    "vp": (sk.VP(), (2,), COV),
}


@pytest.mark.parametrize("eta", ETAS)
@pytest.mark.parametrize("name", SYSTEMS)
def test_linear_equations_return_to_their_start(name, eta):
    """From the law at t = 0.8 of N(m, C) at 0, back to the law at 0.02, to 1e-5 of RK4."""
    process, shape, cov = SYSTEMS[name]
    mean = tensor([0.5, -1.0, 0.3])[: len(cov)]
    score = sk.Gaussian(mean, cov).score(process)
    system = reverse(process, score, eta) if eta else probability_flow(process, score)
    late, early = (moments(process, mean, cov, t, shape) for t in (0.8, 0.02))
    found = law_at_the_end(system, process, eta, *late, shape, (0.8, 0.02))
    for value, exact in zip(found, early, strict=True):
        torch.testing.assert_close(value, exact, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", [name for name in SYSTEMS if name != "linear, one motion"])
def test_linear_equations_return_to_a_point(name):
    """The score of the transition law. (Three dimensions from one motion are singular to rounding there.)"""
    process, shape, cov = SYSTEMS[name]
    start = tensor([0.5, -1.0, 0.3])[: len(cov)]
    system = reverse(process, transition_score(process, start.reshape(shape)))
    zero = torch.zeros_like(cov)
    late, early = (moments(process, start, zero, t, shape) for t in (0.8, 0.1))
    found = law_at_the_end(system, process, 1.0, *late, shape, (0.8, 0.1))
    for value, exact in zip(found, early, strict=True):
        torch.testing.assert_close(value, exact, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("event", [(), (3,), (2, 2)])
def test_positions_alone_give_the_score_of_the_pair(event):
    """With V_0 ~ N(0, gamma M) or N(0, T), the score from positions is that of the joint law."""
    n = math.prod(event)
    g = torch.Generator().manual_seed(3)
    root = torch.randn(2, n, n, dtype=F64, generator=g)
    covs = root @ root.mT + 0.3 * torch.eye(n, dtype=F64)
    means = torch.randn(2, *(event or (1,)), dtype=F64, generator=g)
    data = sk.GaussianMixture([0.3, 0.7], means, covs)
    x = torch.randn(4, 2, *(event or (1,)), dtype=F64, generator=g)
    for process, start in ((sk.CriticallyDampedLangevin(), 0.01), (HarmonicLangevin(1.3, 0.7, 0.5), 0.5)):
        wide = torch.zeros(2, 2 * n, 2 * n, dtype=F64)
        wide[:, :n, :n] = covs
        wide[:, n:, n:] = start * torch.eye(n, dtype=F64)
        joint = sk.GaussianMixture([0.3, 0.7], torch.stack([means, 0 * means], 1), wide)
        for t in (tensor(0.3), tensor([0.3, 0.9, 0.1, 0.3])):
            got = data.score(process)(x, t)
            torch.testing.assert_close(got, joint.score(process)(x, t), rtol=1e-10, atol=1e-10)


def test_langevin_reversals_are_known():
    """Detailed balance: overdamped and CIR run back as they run forward; underdamped with v turned round."""
    x = tensor([[0.3, -0.7], [1.2, 0.4]])
    score = lambda x: x - x**3  # noqa: E731
    p = sk.Langevin(score)
    torch.testing.assert_close(reverse(p, lambda x, t: score(x)).drift(x, 0.3), -p.drift(x, 0.3))
    cir = sk.CIR(1.2, 0.8, 0.7)
    y = x.abs()
    stationary = lambda x, t: cir.stationary(x).score(x)  # noqa: E731
    torch.testing.assert_close(reverse(cir, stationary).drift(y, 0.3), -cir.drift(y, 0.3))
    torch.testing.assert_close(probability_flow(cir, stationary).drift(y, 0.3), 0 * y)
    heat = 0.5
    u = sk.UnderdampedLangevin(score, friction=0.7, temperature=heat)
    state = join(x, x.flip(0))
    full = lambda s, t: join(score(s[:, 0]), -s[:, 1] / heat)  # noqa: E731
    turned = join(state[:, 0], -state[:, 1])
    back, forth = reverse(u, full).drift(state, 0.3), u.drift(turned, 0.3)
    torch.testing.assert_close(back, join(-forth[:, 0], forth[:, 1]))
    part = velocity_score(lambda s, t: -s[:, 1] / heat)
    torch.testing.assert_close(reverse(u, part).drift(state, 0.3), back)


def test_spherical_brownian_motion_runs_back_as_forward():
    """Stratonovich, not commuting: N(0, I) is kept, and the score is normal to the noise."""
    p = SphericalBrownian(0.7)
    x = tensor([[0.3, -0.7, 0.4], [1.2, 0.4, -0.1]])
    back = reverse(p, lambda x, t: -x)
    assert back.sde_type == "stratonovich"
    torch.testing.assert_close(back.drift(x, 0.3), 0 * x)
    torch.testing.assert_close(back.ito_drift(x, 0.3), -p.ito_drift(x, 0.3))


# Runs: Kolmogorov's distance to the law at the end, 3e-8 of false alarm each.


def run(system, x, span, steps=300, **options):
    """A run over geometric nodes, which shorten as t falls."""
    ts = span[0] * (span[1] / span[0]) ** (torch.arange(steps + 1, dtype=F64) / steps)
    return sk.solve(system, x, ts, **options).x


class WithoutDivergence(sk.GeometricBrownian):
    def divergence_ggt(self, x, t):
        return torch.zeros_like(x)


def test_geometric_brownian_motion_returns():
    """4,000 paths from the law at 1 of the point 1.2 to that at 0.05, missed without the divergence term."""
    n, span = 4000, (1.0, 0.05)
    for make, right in ((sk.GeometricBrownian, True), (WithoutDivergence, False)):
        p = make(0.2, 0.8)
        laws = [p.transition(torch.full((n, 1), 1.2, dtype=F64), 0.0, t) for t in span]
        x = run(reverse(p, transition_score(p, 1.2)), laws[0].sample(seed=1), span, seed=2)
        distance = kolmogorov(x[:, 0], lambda y, law=laws[1]: law.cdf(y[:, None])[:, 0])
        assert (distance < KOLMOGOROV) == right, distance


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_the_square_root_diffusion_returns(eta):
    """4,000 paths of CIR from the noncentral chi-square law at 1 to that at 0.1."""
    n, span, p = 4000, (1.0, 0.1), sk.CIR(1.2, 0.8, 0.5)
    laws = [p.transition(torch.full((n, 1), 0.6, dtype=F64), 0.0, t) for t in span]
    score = transition_score(p, 0.6)
    system = reverse(p, score) if eta else probability_flow(p, score)
    steps, solver = (200, "euler-maruyama") if eta else (40, "heun")
    x = run(system, laws[0].sample(seed=1), span, steps, seed=2, solver=solver)
    assert kolmogorov(x[:, 0], lambda y: laws[1].cdf(y[:, None])[:, 0]) < KOLMOGOROV


def test_critically_damped_langevin_generates():
    """From its prior at 1 to a mixture at 1e-3: 4,000 positions against the mixture's distribution."""
    p = sk.CriticallyDampedLangevin()
    data = sk.GaussianMixture([0.3, 0.7], [[-1.0], [0.8]], [0.05, 0.1])
    x0 = p.prior((4000, 2, 1), seed=1, dtype=F64)
    x = run(reverse(p, data.score(p)), x0, (1.0, 1e-3), 400, seed=2)
    normal = torch.special.ndtr

    def cdf(y):
        return 0.3 * normal((y + 1.0) / math.sqrt(0.05)) + 0.7 * normal((y - 0.8) / math.sqrt(0.1))

    assert kolmogorov(x[:, 0, 0], cdf) < KOLMOGOROV
    assert kolmogorov(x0[:, 0, 0], cdf) > KOLMOGOROV
    std = math.sqrt(float(p.marginal(torch.zeros(1, 1, dtype=F64), 1e-3).vv))
    assert kolmogorov(x[:, 1, 0], lambda v: normal(v / std)) < KOLMOGOROV


def turning():
    """dX = G o dW with G = [[1, x_2], [0, 1 + x_1^2]]/2 plus what keeps N(0, v(t) I), v = 1/2 + t.

    In Ito form, f = x/(2 v) + (div(G G^T) + G G^T score)/2; noise of two motions that do not commute.
    """

    def matrix(x, t):
        one, zero = torch.ones_like(x[:, 0]), torch.zeros_like(x[:, 0])
        rows = (torch.stack([one, x[:, 1]], -1), torch.stack([zero, 1 + x[:, 0] ** 2], -1))
        return 0.5 * torch.stack(rows, 1)

    def score(x, t):
        return -x / (0.5 + t)

    bare = SDE(lambda x, t: 0 * x, matrix, noise_type="general", noise_dim=2)

    def ito(x, t):
        term = bare.apply_ggt(matrix(x, t), score(x, t)) + bare.divergence_ggt(x, t)
        return 0.5 * x / (0.5 + t) + 0.5 * term

    def stratonovich(x, t):
        return ito(x, t) - bare.correction(x, t)

    forms = {"ito": ito, "stratonovich": stratonovich}
    made = {
        kind: SDE(drift, matrix, noise_type="general", noise_dim=2, sde_type=kind)
        for kind, drift in forms.items()
    }
    return made, score


@pytest.mark.parametrize("kind", ["ito", "stratonovich", "flow"])
def test_general_noise_returns_in_both_forms(kind):
    """2,000 paths from N(0, 1.5 I) at 1 to N(0, 0.7 I) at 0.2: both coordinates, and their sum."""
    forms, score = turning()
    process = forms.get(kind, forms["ito"])
    system = probability_flow(process, score) if kind == "flow" else reverse(process, score)
    solver = "euler-maruyama" if kind == "ito" else "heun"
    steps = {"ito": 120, "stratonovich": 50, "flow": 20}[kind]
    g = torch.Generator().manual_seed(5)
    x = math.sqrt(1.5) * torch.randn(2000, 2, dtype=F64, generator=g)
    x = sk.solve(system, x, (1.0, 0.2), steps=steps, solver=solver, seed=3).x
    for y in (x[:, 0], x[:, 1], x.sum(1) / math.sqrt(2)):
        assert kolmogorov(y, lambda y: torch.special.ndtr(y / math.sqrt(0.7))) < KOLMOGOROV


def test_brownian_bridge_start_of_many_points():
    """One start for each sample: pinned Brownian motion, of mean a + (y - a) t and variance t (1 - t)."""
    n, t = 4000, 0.4
    p, a = sk.BrownianMotion(), torch.linspace(-1, 1, n, dtype=F64)[:, None]
    y = 0.5 + 0 * a
    x = run(reverse(p, transition_score(p, a)), y, (1.0, t), 200, seed=4)
    z = (x - a - (y - a) * t) / math.sqrt(t * (1 - t))
    assert kolmogorov(z[:, 0], torch.special.ndtr) < KOLMOGOROV
    within(z, 0.0)


def test_messages():
    x = torch.zeros(3, 2, dtype=F64)
    with pytest.raises(CapabilityError, match=r"Heston has no transition\(x, s, t\).*Next: fit one"):
        transition_score(sk.Heston(), x)
    with pytest.raises(ShapeError, match=r"x0 must have the shape of an event \(2,\).*got \(3,\)"):
        transition_score(sk.BrownianMotion(), torch.zeros(3))(x, tensor(0.5))
    with pytest.raises(CapabilityError, match=r"CIR does not keep Gaussian in closed form.*transition_score"):
        sk.Gaussian(0.0, 1.0).score(sk.CIR())
    with pytest.raises(
        CapabilityError, match=r"LinearSDE needs a Gaussian or a GaussianMixture, got Empirical"
    ):
        sk.Empirical(x + torch.arange(3)[:, None], 0.1).score(sk.LinearSDE(torch.eye(2), L=torch.eye(2)))
    with pytest.raises(ShapeError, match=r"3 dimensions, and the law 2"):
        sk.Gaussian([0.0, 0.0], 1.0).score(sk.LinearSDE(torch.eye(3), L=torch.eye(3)))(x, 0.5)
    with pytest.raises(
        ShapeError, match=r"x must have shape \(B, 2, \*event\) for a law of positions \(2,\)"
    ):
        sk.Gaussian([0.0, 0.0], 1.0).score(sk.CriticallyDampedLangevin())(torch.zeros(3, 2, 3), 0.5)
    with pytest.raises(ArgumentOrderError, match="score must take"):
        velocity_score(lambda t, x: x)
    with pytest.raises(ShapeError, match=r"score must return shape \(3,\)"):
        velocity_score(lambda x, t: x)(x, tensor(0.5))


def test_scores_are_row_by_row_the_same_bits():
    """Of 33 rows in float32, each is what it is alone."""
    g = torch.Generator().manual_seed(6)
    data = sk.GaussianMixture([0.3, 0.7], torch.randn(2, 2, generator=g), torch.stack([COV, 2 * COV]))
    linear = SYSTEMS["linear"][0]
    scores = {
        "linear": (data.score(linear), (2,)),
        "vectors": (data.score(SYSTEMS["ou of vectors"][0]), (2,)),
        "scalar": (data.score(sk.OrnsteinUhlenbeck(1.0, 0.2, 0.7)), (2,)),
        "damped": (data.score(sk.CriticallyDampedLangevin()), (2, 2)),
        "joint": (data.score(HarmonicLangevin()), (2,)),
        "point": (transition_score(linear, [0.1, 0.2]), (2,)),
        "cir": (transition_score(sk.CIR(), 0.3), (1,)),
    }
    for name, (score, event) in scores.items():
        x = torch.rand(33, *event, generator=g)
        whole = score(x, torch.tensor(0.4))
        assert whole.dtype == x.dtype
        for i in (0, 17, 32):
            assert torch.equal(score(x[i : i + 1], torch.tensor(0.4)), whole[i : i + 1]), name


def test_laws_have_the_gradient_of_their_density():
    """Normal, log-normal, multivariate and Gamma against autograd; chi-square against differences."""
    x = tensor([[0.3, 0.9], [1.7, 0.2]])
    laws = [
        sk.sde.Normal(0.1 * x, tensor([0.5, 0.7])),
        sk.sde.LogNormal(0.1 * x, tensor([0.5, 0.7])),
        sk.sde.MultivariateNormal(0.1 * x, COV),
        sk.CIR(1.2, 0.8, 0.7).stationary(x),
    ]
    for law in laws:
        y = x.clone().requires_grad_()
        (slope,) = torch.autograd.grad(law.log_prob(y).sum(), y)
        torch.testing.assert_close(law.score(x), slope)
    y, h = tensor([[0.2], [0.6], [1.4]]), 1e-4
    chi = [
        sk.CIR(1.0, 0.8, sigma).transition(torch.full_like(y, start), 0.0, 0.9)
        for sigma, start in ((0.7, 0.5), (0.1, 0.5), (1.5, 1e-12), (3.0, 2.0))
    ]
    small = sk.sde.classic.NoncentralChiSquare(1 + 0 * y, tensor(1e-6), 4e-9 / y)  # z = 6.3e-5, n = -1 + 5e-7
    for law in (*chi, small):
        slope = sum(c * law.log_prob(y + k * h) for k, c in zip(range(-3, 4), FIRST, strict=True)) / h
        torch.testing.assert_close(law.score(y)[:, 0], slope, rtol=1e-6, atol=1e-6)
