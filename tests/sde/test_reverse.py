"""Time reversal: the Fokker-Planck equation at points, for every eta and noise type."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sdekit.errors import ArgumentOrderError, EndpointError, ShapeError, UnknownNameError
from sdekit.sde import (
    ODE,
    SDE,
    VE,
    VP,
    Cosine,
    GeometricBrownian,
    LinearSDE,
    RectifiedFlow,
    probability_flow,
    reverse,
)

from .processes import ALL, F64, IDS, at

ETAS = (0.0, 0.5, 1.0)
D = 2
POINTS = torch.tensor([[0.4, 1.3], [2.0, 0.6], [1.1, 1.2]], dtype=F64)


class Made:
    """A general process whose marginals are N(m(t), v(t) I) by construction.

    f = u + (div S + S score)/2 with S = G G^T for any G, and u = m' + v'/(2 v) (x - m), which carries the
    Gaussian by itself. div S comes from the full Jacobian of S.
    """

    def log_p(self, x, t):
        m, v = torch.stack([torch.sin(t), 1 + t * t]), 0.5 + t
        return -0.5 * ((x - m) ** 2).sum() / v - 0.5 * D * torch.log(v)

    def matrix(self, x, t):
        a, b = x
        return torch.stack([torch.stack([1 + a * b, torch.sin(b) * t]), torch.stack([a * a, torch.cos(a)])])

    def process(self, sde_type="ito"):
        score = torch.func.grad(self.log_p)

        def ggt(x, t):
            g = self.matrix(x, t)
            return g @ g.T

        def one(x, t):
            u = torch.stack([torch.cos(t), 2 * t]) + 0.5 / (0.5 + t) * (
                x - torch.stack([torch.sin(t), 1 + t * t])
            )
            divergence = torch.einsum("ijj->i", torch.func.jacrev(ggt)(x, t))
            f = u + 0.5 * (divergence + ggt(x, t) @ score(x, t))
            if sde_type == "ito":
                return f
            jacobian = torch.func.jacrev(self.matrix)(x, t)
            return f - 0.5 * torch.einsum("jk,ikj->i", self.matrix(x, t), jacobian)

        rows = lambda fn: lambda x, t: torch.stack([fn(row, t) for row in x.unbind()])  # noqa: E731
        return SDE(rows(one), rows(self.matrix), noise_type="general", noise_dim=2, sde_type=sde_type)


class Geometric:
    """Two geometric Brownian motions from log-normal starts: diagonal noise with its known drift."""

    def log_p(self, x, t):
        p = GeometricBrownian(0.3, torch.tensor([0.5, 0.8], dtype=F64))
        v = 0.2 + p.sigma**2 * t
        m = (0.3 - 0.5 * p.sigma**2) * t
        return (-0.5 * (torch.log(x) - m) ** 2 / v - 0.5 * torch.log(v) - torch.log(x)).sum()

    def process(self):
        return SDE(
            lambda x, t: 0.3 * x,
            lambda x, t: torch.tensor([0.5, 0.8], dtype=x.dtype) * x,
            noise_type="diagonal",
        )


class Scalar(Geometric):
    """x = exp(y) for y = (0.7, 0.2) W + noise at the start: one Brownian motion for both elements."""

    c = torch.tensor([0.7, 0.2], dtype=F64)

    def log_p(self, x, t):
        cov = 0.3 * torch.eye(2, dtype=F64) + t * torch.outer(self.c, self.c)
        y = torch.log(x) + 0.5 * self.c**2 * t
        return -0.5 * y @ torch.linalg.solve(cov, y) - 0.5 * torch.logdet(cov) - torch.log(x).sum()

    def process(self):
        return SDE(lambda x, t: 0 * x, lambda x, t: self.c * x, noise_type="scalar")


class Commuting(Scalar):
    """x = exp(y) for y = C W + noise at the start: two Brownian motions, in both elements, that commute."""

    c = torch.tensor([[0.7, 0.2], [-0.3, 0.5]], dtype=F64)

    def log_p(self, x, t):
        ccT = self.c @ self.c.T
        cov = 0.3 * torch.eye(2, dtype=F64) + t * ccT
        y = torch.log(x) + 0.5 * t * ccT.diagonal()
        return -0.5 * y @ torch.linalg.solve(cov, y) - 0.5 * torch.logdet(cov) - torch.log(x).sum()

    def process(self):
        return SDE(
            lambda x, t: 0 * x, lambda x, t: x[..., None] * self.c, noise_type="commutative", noise_dim=2
        )


class Linear:
    """A linear SDE from N(0, I): additive noise through a matrix."""

    system = LinearSDE([[-1.0, 0.7], [-0.2, 0.1]], [0.3, -0.5], [[1.0, 0.2], [0.0, 0.5]])

    def log_p(self, x, t):
        a, b, q = self.system.A, self.system.b, self.system.L @ self.system.L.T
        block = torch.linalg.matrix_exp(
            t * torch.cat([torch.cat([-a, q], 1), torch.cat([torch.zeros_like(a), a.T], 1)])
        )
        phi = block[2:, 2:].T
        cov = phi @ phi.T + phi @ block[:2, 2:]
        z = x - torch.linalg.solve(a, (phi - torch.eye(2, dtype=F64)) @ b)
        return -0.5 * z @ torch.linalg.solve(cov, z) - 0.5 * torch.logdet(cov)

    def process(self):
        return self.system


LAWS = {
    "general": Made(),
    "diagonal": Geometric(),
    "scalar": Scalar(),
    "commutative": Commuting(),
    "matrix": Linear(),
}


def residual(drift, sde, eta, law, x, t, sign):
    """d log p/dt - (Fokker-Planck operator of drift and eta G, in direction ``sign`` of time)/p at (x, t)."""

    def ggt(y):
        row = y[None]
        eye = torch.eye(D, dtype=F64)
        columns = [sde.apply_ggt(sde.noise_field(row, t), e[None])[0] for e in eye]
        return eta**2 * torch.stack(columns, dim=1)

    def div(y):
        return torch.einsum("ijj->i", torch.func.jacrev(ggt)(y))

    score = torch.func.grad(law.log_p)
    s, hessian = score(x, t), torch.func.jacrev(score)(x, t)
    b, db = drift(x), torch.func.jacrev(drift)(x)
    diffusion = (
        torch.func.jacrev(div)(x).trace() + 2 * div(x) @ s + (ggt(x) * (hessian + torch.outer(s, s))).sum()
    )
    return torch.func.grad(law.log_p, argnums=1)(x, t) + db.trace() + b @ s - sign * 0.5 * diffusion


def rowwise(law):
    score = torch.func.grad(law.log_p)
    return lambda x, t: torch.stack([score(row, t) for row in x.unbind()])


@pytest.mark.parametrize("name", LAWS)
def test_fokker_planck(name):
    """The process forward; its reversal at every eta backward; the flow; the reversal of the reversal."""
    law = LAWS[name]
    p, score = law.process(), rowwise(law)
    t = torch.tensor(0.7, dtype=F64)
    runs = [(p, 1.0, 1)]
    for eta in ETAS:
        back = reverse(p, score, eta)
        runs += [(back, eta, -1), (reverse(back, score, 0.6), 0.6 * eta, 1)]
    runs += [(probability_flow(p, score), 0.0, -1)]
    for system, eta, sign in runs:
        for x in POINTS:
            gap = residual(lambda y, s=system: s.drift(y[None], t)[0], p, eta, law, x, t, sign)
            assert abs(float(gap)) < 1e-9, (system, eta)


@pytest.mark.parametrize("name", ["general", "diagonal", "scalar", "commutative"])
@pytest.mark.parametrize("eta", ETAS)
def test_fokker_planck_fails_without_the_divergence_term(name, eta):
    law = LAWS[name]
    p, score, t = law.process(), rowwise(law), torch.tensor(0.7, dtype=F64)
    p.divergence_ggt = lambda x, t: torch.zeros_like(x)
    back = reverse(p, score, eta)
    gaps = [abs(float(residual(lambda y: back.drift(y[None], t)[0], p, eta, law, x, t, -1))) for x in POINTS]
    assert min(gaps) > 1e-2


def test_stratonovich_reversal_is_the_same_process():
    """The reversal of the Stratonovich form, brought to Ito form, is the reversal of the Ito form."""
    law, t = Made(), torch.tensor(0.7, dtype=F64)
    ito, other, score = law.process(), law.process("stratonovich"), rowwise(law)
    torch.testing.assert_close(other.ito_drift(POINTS, t), ito.drift(POINTS, t))
    for eta in ETAS:
        a, b = reverse(ito, score, eta), reverse(other, score, eta)
        assert b.sde_type == "stratonovich"
        torch.testing.assert_close(b.ito_drift(POINTS, t), a.drift(POINTS, t))
        torch.testing.assert_close(a.stratonovich_drift(POINTS, t), b.drift(POINTS, t))
        again = reverse(a, score, 0.7), reverse(b, score, 0.7)
        torch.testing.assert_close(again[1].ito_drift(POINTS, t), again[0].drift(POINTS, t))
    flows = probability_flow(ito, score), probability_flow(other, score)
    torch.testing.assert_close(flows[0].drift(POINTS, t), flows[1].drift(POINTS, t))


@pytest.mark.parametrize("name", LAWS)
def test_reversal_of_the_reversal_is_the_process(name):
    law, t = LAWS[name], torch.tensor(0.7, dtype=F64)
    p, score = law.process(), rowwise(law)
    again = reverse(reverse(p, score), score)
    assert not again.runs_backward
    torch.testing.assert_close(again.drift(POINTS, t), p.drift(POINTS, t))
    assert torch.equal(again.diffusion(POINTS, t), p.diffusion(POINTS, t))
    back = reverse(p, score, 0.5)
    assert back.runs_backward
    torch.testing.assert_close(back.divergence_ggt(POINTS, t), 0.25 * p.divergence_ggt(POINTS, t))
    torch.testing.assert_close(back.correction(POINTS, t), 0.25 * p.correction(POINTS, t))
    flow = probability_flow(p, score).drift(POINTS, t)
    torch.testing.assert_close(flow, reverse(p, score, 0.0).drift(POINTS, t))


@pytest.mark.parametrize("process", ALL, ids=IDS)
@given(u=st.floats(0.05, 0.95), eta=st.floats(0, 2))
def test_diffusions_in_closed_form(process, u, eta):
    """f x - (1 + eta^2)/2 g^2 score, and eta g; a flow by the model's own velocity is the same."""
    t = at(process, u)
    x = torch.tensor([[0.5, -1.0]], dtype=F64)

    def score(x, t):
        return -x * (1 + t) / (1 + process.t_max)

    back = reverse(process, score, eta)
    f, g2 = process.drift_coefficient(t), process.diffusion_squared(t)
    exact = f * x - 0.5 * (1 + eta**2) * g2 * score(x, t)
    torch.testing.assert_close(back.drift(x, t), exact, rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(back.diffusion(x, t), (eta * torch.sqrt(g2)).expand(1, 2))


class Model:
    """A score with a velocity and a process of its own, as a Denoiser has."""

    def __init__(self, process):
        self.process = process

    def score(self, x, t):
        return -x

    def velocity(self, x, t):
        return 2.0 * x + t


def test_models_with_a_velocity():
    """Finite where alpha = 0; processes that differ in t_min alone go together."""
    x = torch.ones(2, 3)
    for process in (RectifiedFlow(), Cosine()):
        model = Model(process)
        assert torch.equal(probability_flow(process, model).drift(x, 1.0), 2 * x + 1)
        with pytest.raises(EndpointError, match=r"is infinite at t = 1, where alpha = 0.*finite_t_max"):
            reverse(process, model).drift(x, 1.0)
    reverse(VP(t_min=1e-5), Model(VP()))
    with pytest.raises(ValueError, match=r"the score belongs to VP\(.*but VE\(.*is to be reversed"):
        reverse(VE(), Model(VP()))


def test_messages():
    p, x = VP(), torch.ones(2, 3)

    def score(x, t):
        return -x

    for make in (reverse, probability_flow):
        with pytest.raises(TypeError, match=r"an ODE has no noise to reverse.*decreasing span"):
            make(ODE(score), score)
        with pytest.raises(TypeError, match=r"process must be an SDE, got str"):
            make("VP", score)
        with pytest.raises(TypeError, match=r"score must be a callable \(x, t\).*got int"):
            make(p, 3)
        with pytest.raises(ArgumentOrderError, match=r"score must take \(x, t\).*swap the parameters"):
            make(p, lambda t, x: -x)
    for eta in (-0.1, float("nan"), float("inf"), "much"):
        with pytest.raises(ValueError, match=r"eta must be a finite number >= 0"):
            reverse(p, score, eta)
    with pytest.raises(ShapeError, match=r"score must return shape \(2, 3\).*got \(2, 6\).*variances"):
        reverse(p, lambda x, t: torch.cat([x, x], 1)).drift(x, 0.5)
    with pytest.raises(ShapeError, match=r"score must return a tensor.*got tuple"):
        reverse(p, lambda x, t: (x, x)).drift(x, 0.5)
    with pytest.raises(UnknownNameError, match=r"unknown noise_type 'diag'. Nearest: 'diagonal'"):
        SDE(score, score, noise_type="diag")
    assert repr(reverse(p, score, 0.5)) == f"reverse({p!r}, eta=0.5)"
    assert repr(probability_flow(p, score)) == f"probability_flow({p!r})"


@pytest.mark.parametrize("eta", ETAS)
def test_reversed_geometric_brownian_motion_restores_its_start(eta):
    """Mean of log X_0 from the exact law at t = 1: 0 with the divergence term, -0.160 at eta = 1 without it.

    In y = log x the reversal is linear, so its mean obeys m' = drift(e^m)/e^m + (eta sigma)^2/2 as t
    decreases (200 Runge-Kutta steps). Without the term it is off by -(1 + eta^2) s^2 k, where s^2 is the
    variance of log X_0 and k = int_0^1 sigma^2 (s^2/v)^((1 + eta^2)/2) dt / s^2, v = s^2 + sigma^2 t.
    """
    s2 = 0.04
    sigma2 = s2 * math.expm1(2.0)

    class Without(GeometricBrownian):
        def divergence_ggt(self, x, t):
            return torch.zeros_like(x)

    def mean_at_start(p):
        back = reverse(p, p.marginal_score(0.0, math.sqrt(s2)), eta)

        def slope(m, t):
            return float(back.drift(torch.full((1, 1), math.exp(m), dtype=F64), t)) * math.exp(-m) + (
                0.5 * eta**2 * sigma2
            )

        m, n = -0.5 * sigma2, 200
        for k in range(n, 0, -1):
            h, t = -1 / n, k / n
            a = slope(m, t)
            b = slope(m + 0.5 * h * a, t + 0.5 * h)
            c = slope(m + 0.5 * h * b, t + 0.5 * h)
            m += h / 6 * (a + 2 * b + 2 * c + slope(m + h * c, t + h))
        return m

    sigma = math.sqrt(sigma2)
    power = 0.5 * (1 + eta**2)
    k = 2.0 if power == 1 else math.expm1(2.0 * (1 - power)) / (1 - power)
    assert mean_at_start(GeometricBrownian(0.0, sigma)) == pytest.approx(0.0, abs=1e-8)
    assert mean_at_start(Without(0.0, sigma)) == pytest.approx(-(1 + eta**2) * s2 * k, rel=1e-6)
    if eta == 1:
        assert mean_at_start(Without(0.0, sigma)) == pytest.approx(-0.160, abs=1e-6)


NONLINEAR = {
    "diagonal": SDE(lambda x, t: x - x**3, lambda x, t: 1 + 0.3 * x, noise_type="diagonal"),
    "scalar": SDE(lambda x, t: -x, lambda x, t: x * x, noise_type="scalar"),
    "general": SDE(
        lambda x, t: -x,
        lambda x, t: torch.stack([x, 0.5 * x.flip(1), x * x.flip(1)], -1),
        noise_type="general",
        noise_dim=3,
    ),
    "linear": LinearSDE([[0.1, 0.7, 0.3]] * 3, L=[[1.0, 0.2], [0.3, 0.5], [0.1, 0.9]]),
    "diffusion": VP(),
}


@pytest.mark.parametrize("name", NONLINEAR)
def test_rows_are_bitwise_their_own(name, device):
    """Drift, divergence and noise of row i of 33 are those of row i alone, bit for bit, in float32."""
    p = NONLINEAR[name]
    back = reverse(p, lambda x, t: -1.3 * x, 0.7)
    g = torch.Generator().manual_seed(3)
    x = torch.randn(33, 3, generator=g).to(device)
    dw = torch.randn(p.noise_shape(x), generator=g).to(device)
    for sde in (p, back):
        drift, noise = sde.drift(x, 0.4), sde.apply_noise(sde.noise_field(x, 0.4), dw)
        assert drift.shape == noise.shape == x.shape
        for i in (0, 17, 32):
            row = x[i : i + 1]
            assert torch.equal(sde.drift(row, 0.4), drift[i : i + 1])
            field = sde.noise_field(row, 0.4)
            assert torch.equal(sde.apply_noise(field, dw[i : i + 1]), noise[i : i + 1])


def test_a_false_promise_is_refused_before_it_is_reversed():
    """A diffusion that depends on the state, called additive, would lose its divergence term."""
    false = SDE(lambda x, t: -x, lambda x, t: 1 + x, noise_type="additive")
    with pytest.raises(ValueError, match="'additive' promises"):
        reverse(false, lambda x, t: -x).drift(torch.ones(2, 2), 0.5)
