"""Multistep and stochastic methods written out from their papers, on variable steps, to rounding.

Each reference walks the whole grid in the paper's own symbols: states, buffers of predictions, one recorded
normal a step. Integrals are scipy's or closed forms, never the library's.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.integrate import quad

import sdekit as sk
from sdekit.samplers import (
    ERSDE,
    DPMpp3M,
    ExponentialAdams,
    SASolver,
    SDEDPMpp2M,
    SDEDPMpp3M,
    Seeds,
    UniPC,
)
from tests.samplers.problems import PROCESSES, smooth_network

TIMES = [0.95, 0.8, 0.55, 0.42, 0.3, 0.12, 0.07]
CLOSE = {"rtol": 1e-9, "atol": 1e-10}
LAWS = ["VP", "VE", "RectifiedFlow"]


class Walk:
    """The grid in the papers' symbols, a network, a start and one normal a draw."""

    def __init__(self, name: str, times=TIMES, s: float = 1.0):
        self.process, self.times, self.n = PROCESSES[name], times, len(times) - 1
        self.model = smooth_network(self.process, data_std=s, data_spread=s)
        g = torch.Generator().manual_seed(4)
        self.x, *self.z = torch.randn(1 + 3 * self.n, 5, 3, generator=g, dtype=torch.float64)
        self.alpha, self.sigma, self.lam = (
            [float(f(t)) for t in times]
            for f in (self.process.alpha, self.process.sigma, self.process.half_log_snr)
        )

    def x0(self, x, i):
        return self.model.x0(x, self.times[i])

    def eps(self, x, i):
        return self.model.eps(x, self.times[i])

    def check(self, sampler, expected):
        run = sk.sample(
            self.model,
            tuple(self.x.shape),
            sampler=sampler,
            grid=self.times,
            x_init=self.x,
            noise=sk.Recorded(self.z),
        )
        torch.testing.assert_close(run.x, expected, **CLOSE)


def lagrange_weights(nodes, weight, a: float, b: float) -> list[float]:
    """int_a^b weight(u) L_j(u) du by adaptive quadrature, L_j on ``nodes``."""

    def basis(j, u):
        return math.prod((u - m) / (nodes[j] - m) for k, m in enumerate(nodes) if k != j)

    return [
        quad(lambda u, j=j: weight(u) * basis(j, u), a, b, epsabs=1e-14, epsrel=1e-12)[0]
        for j in range(len(nodes))
    ]


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("solver_type", ["midpoint", "heun"])
@pytest.mark.parametrize("eta", [0.0, 0.6, 1.0])
def test_sde_dpm_solver_plus_plus_2m(law, solver_type, eta):
    """Lu et al. 2022; the formula of k-diffusion's dpmpp_2m_sde, whose eta is eta^2."""
    w, e = Walk(law), eta**2
    x, old, h_last = w.x, None, None
    for i in range(w.n):
        d = w.x0(x, i)
        h = w.lam[i + 1] - w.lam[i]
        eh = (e + 1) * h
        x = w.sigma[i + 1] / w.sigma[i] * math.exp(-h * e) * x + w.alpha[i + 1] * (1 - math.exp(-eh)) * d
        if old is not None:
            slope = (d - old) * h / h_last
            if solver_type == "heun":
                x = x + w.alpha[i + 1] * (1 - (1 - math.exp(-eh)) / eh) * slope
            else:
                x = x + 0.5 * w.alpha[i + 1] * (1 - math.exp(-eh)) * slope
        x = x + w.z[i] * w.sigma[i + 1] * math.sqrt(1 - math.exp(-2 * h * e))
        old, h_last = d, h
    w.check(SDEDPMpp2M(eta=eta, solver_type=solver_type), x)


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("eta", [0.0, 0.6, 1.0])
@pytest.mark.parametrize("quadratic", [1.0, 0.5])
def test_dpm_solver_plus_plus_3m(law, eta, quadratic):
    """The published divided differences and phi-functions; half of the quadratic term is theirs."""
    w, e = Walk(law), eta**2
    x, d, h = w.x, [], []
    for i in range(w.n):
        d.append(w.x0(x, i))
        h.append(w.lam[i + 1] - w.lam[i])
        eh = (e + 1) * h[i]
        a = w.alpha[i + 1]
        x = w.sigma[i + 1] / w.sigma[i] * math.exp(-h[i] * e) * x + a * (1 - math.exp(-eh)) * d[i]
        phi2 = math.expm1(-eh) / eh + 1
        if i == 1:
            x = x + a * phi2 * (d[1] - d[0]) * h[1] / h[0]
        elif i > 1:
            r0, r1 = h[i - 1] / h[i], h[i - 2] / h[i]
            d10, d11 = (d[i] - d[i - 1]) / r0, (d[i - 1] - d[i - 2]) / r1
            d1 = d10 + r0 / (r0 + r1) * (d10 - d11)
            d2 = (d10 - d11) / (r0 + r1)
            x = x + a * phi2 * d1 - a * 2 * quadratic * (phi2 / eh - 0.5) * d2
        x = x + w.z[i] * w.sigma[i + 1] * math.sqrt(1 - math.exp(-2 * h[i] * e))
    compat = None if quadratic == 1 else "published"
    w.check(SDEDPMpp3M(eta=eta, compat=compat), x)
    if eta == 0:
        w.check(DPMpp3M(compat=compat), x)


def unipc_coefficients(r: list[float], hh: float, variant: str):
    """(R, b, B(h)) of UniPC, appendix: R_{nk} = r_k^{n-1}, b_n = n! phi_{n+1}(hh) hh / B, hh = -h for x0."""
    big_b = hh if variant == "bh1" else math.expm1(hh)
    phi, factorial, rows, b = math.expm1(hh) / hh - 1, 1, [], []
    for n in range(1, len(r) + 1):
        rows.append([v ** (n - 1) for v in r])
        b.append(phi * factorial / big_b)
        factorial *= n + 1
        phi = phi / hh - 1 / factorial
    return np.array(rows), np.array(b), big_b


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("predicts", ["x0", "eps"])
@pytest.mark.parametrize("variant", ["bh1", "bh2"])
@pytest.mark.parametrize("p", [1, 2, 3, 4])
@pytest.mark.parametrize("lower", [True, False])
def test_unipc(law, p, variant, predicts, lower):
    """Zhao et al. 2023, multistep UniP-p and UniC-p with the published shortcuts 1/2."""
    w = Walk(law)
    x0 = predicts == "x0"
    model = w.x0 if x0 else w.eps

    def update(x, i, order, fresh):
        """UniP where ``fresh`` is None, else UniC with it."""
        h = w.lam[i + 1] - w.lam[i]
        hh = -h if x0 else h
        r = [(w.lam[i - k] - w.lam[i]) / h for k in range(1, order)]
        d1 = [(m[i - k] - m[i]) / r[k - 1] for k in range(1, order)]
        rows, b, big_b = unipc_coefficients([*r, 1.0], hh, variant)
        if fresh is None:
            rho = [0.5] if order == 2 else np.linalg.solve(rows[:-1, :-1], b[:-1]).tolist()
        else:
            rho = [0.5] if order == 1 else np.linalg.solve(rows, b).tolist()
            d1 = [*d1, fresh - m[i]]
        change = sum((v * d for v, d in zip(rho, d1, strict=True)), torch.zeros_like(x))
        if x0:
            base = w.sigma[i + 1] / w.sigma[i] * x - w.alpha[i + 1] * math.expm1(hh) * m[i]
            return base - w.alpha[i + 1] * big_b * change
        base = w.alpha[i + 1] / w.alpha[i] * x - w.sigma[i + 1] * math.expm1(hh) * m[i]
        return base - w.sigma[i + 1] * big_b * change

    x, m = w.x, [model(w.x, 0)]
    for i in range(w.n):
        order = min(p, i + 1, w.n - i if lower else p)
        guess = update(x, i, order, None)
        if i + 1 == w.n:
            x = guess
            break
        fresh = model(guess, i + 1)
        x = update(x, i, order, fresh)
        m.append(fresh)
    w.check(UniPC(nodes=p, variant=variant, predicts=predicts, lower_order_final=lower), x)


def adams_reference(w: Walk, taus, predictor: int, corrector: int, published: bool = False):
    """Xue et al. 2023, algorithm 1: x = (sigma_t/sigma_s) e^{-tau^2 h} x + sum b_j D_j + noise."""

    def coefficients(nodes, i, tau):
        h, rate = w.lam[i + 1] - w.lam[i], 1 + tau**2
        at = [w.lam[j] - w.lam[i] for j in nodes]
        b = lagrange_weights(at, lambda u: math.exp(rate * (u - h)), 0.0, h)
        if published and len(nodes) == 2:
            extra = (h * h / 2 - (h * rate - 1 + math.exp(-rate * h)) / rate**2) / (at[0] - at[1])
            b = [b[0] + extra, b[1] - extra]
        return [w.alpha[i + 1] * rate * v for v in b]

    x, d = w.x, [w.x0(w.x, 0)]
    for i in range(w.n):
        tau, h = taus[i], w.lam[i + 1] - w.lam[i]
        base = w.sigma[i + 1] / w.sigma[i] * math.exp(-(tau**2) * h) * x
        base = base + w.sigma[i + 1] * math.sqrt(1 - math.exp(-2 * tau**2 * h)) * w.z[i]
        old = list(range(i, max(i - predictor, -1), -1))
        guess = base + sum(b * d[j] for b, j in zip(coefficients(old, i, tau), old, strict=True))
        if i + 1 == w.n:
            return guess
        d.append(w.x0(guess, i + 1))
        both = list(range(i + 1, max(i + 1 - corrector, -1), -1))
        x = guess
        if corrector:
            x = base + sum(b * d[j] for b, j in zip(coefficients(both, i, tau), both, strict=True))
    raise AssertionError


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize(("predictor", "corrector"), [(1, 2), (2, 2), (3, 4), (3, 0), (1, 1)])
@pytest.mark.parametrize("eta", [0.0, 0.7, 1.0])
def test_sa_solver(law, predictor, corrector, eta):
    w = Walk(law)
    expected = adams_reference(w, [eta] * w.n, predictor, corrector)
    w.check(SASolver(eta=eta, predictor=predictor, corrector=corrector), expected)


@pytest.mark.parametrize("law", LAWS)
def test_sa_solver_with_the_published_slopes_and_range(law):
    """tau = 1 on a range of sigma/alpha only, the form in which the paper runs EDM's networks."""
    w = Walk(law)
    rho = [s / a for a, s in zip(w.alpha, w.sigma, strict=True)]
    low, high = sorted(rho)[2] * 0.99, sorted(rho)[4] * 1.01
    taus = [0.8 if low <= r <= high else 0.0 for r in rho[:-1]]
    assert 0 < sum(t > 0 for t in taus) < w.n
    expected = adams_reference(w, taus, 2, 2, published=True)
    options = {"predictor": 2, "corrector": 2, "compat": "published"}
    w.check(SASolver(eta=0.8, where=(low, high), **options), expected)
    w.check(SASolver(eta=0.8, where=lambda r: float(low <= r <= high), **options), expected)


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("nodes", [1, 2, 3, 4, 5])
def test_exponential_adams(law, nodes):
    w = Walk(law)
    w.check(ExponentialAdams(nodes=nodes), adams_reference(w, [0.0] * w.n, nodes, nodes))


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("s", [0.5, 1.3])
@pytest.mark.parametrize("nodes", [1, 2, 3])
@pytest.mark.parametrize("published", [True, False])
def test_er_sde(law, nodes, published, s):
    """Cui et al. 2023, ER-SDE-Solver-1, 2, 3, with phi(x) = x (exp(x^0.3) + 10) at x = rho/(2 s)."""
    w = Walk(law, s=s)
    rho = [b / a / (2 * s) for a, b in zip(w.alpha, w.sigma, strict=True)]
    phi = [r * (math.exp(r**0.3) + 10) for r in rho]

    def integral(i, moment):
        return quad(
            lambda r: moment(r) / (r * (math.exp(r**0.3) + 10)), rho[i + 1], rho[i], epsabs=0, epsrel=1e-12
        )[0]

    x, d = w.x, []
    for i in range(w.n):
        d.append(w.x0(x, i))
        r = phi[i + 1] / phi[i]
        total = r * x / w.alpha[i] + (1 - r) * d[i]
        k = min(nodes, i + 1)
        step = rho[i + 1] - rho[i]
        if k > 1:
            first = (d[i] - d[i - 1]) / (rho[i] - rho[i - 1])
            total = total + (step + phi[i + 1] * integral(i, lambda u: 1.0)) * first
        if k > 2:
            before = (d[i - 1] - d[i - 2]) / (rho[i - 1] - rho[i - 2])
            second = 2 * (first - before) / (rho[i] - rho[i - 2])
            shift = integral(i, lambda u, i=i: u - rho[i])
            total = total + (step**2 / 2 + phi[i + 1] * shift) * second
            if not published:  # the slope of the parabola at rho_i, which theirs takes one-sided
                missing = (rho[i] - rho[i - 1]) / 2 * second
                total = total + (step + phi[i + 1] * integral(i, lambda u: 1.0)) * missing
        noise = 2 * s * math.sqrt(rho[i + 1] ** 2 - rho[i] ** 2 * r**2)
        x = w.alpha[i + 1] * (total + noise * w.z[i])
    w.check(ERSDE(nodes=nodes, compat="published" if published else None), x)
    w.check(ERSDE(nodes=nodes, unit=2 * s, compat="published" if published else None), x)


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("stages", [1, 2, 3])
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_seeds(law, stages, eta):
    """Gonzalez et al. 2023, SEEDS-1, 2, 3, in lambda; the factor 2 of eta = 1 is 1 + eta^2."""
    w, two = Walk(law), 1 + eta**2
    e = math.exp
    x = w.x
    for i in range(w.n):
        h = w.lam[i + 1] - w.lam[i]
        z1, z2, z3 = w.z[3 * i : 3 * i + 3]

        def at(r, lam=w.lam[i], h=h):
            t = float(w.process.t_of_half_log_snr(torch.tensor(lam + r * h, dtype=torch.float64)))
            return t, float(w.process.alpha(t)), float(w.process.sigma(t))

        eps = w.eps(x, i)
        a, a_t, s_t = w.alpha[i], w.alpha[i + 1], w.sigma[i + 1]
        if stages == 1:
            x = a_t / a * x - two * s_t * (e(h) - 1) * eps + eta * s_t * math.sqrt(e(2 * h) - 1) * z1
        elif stages == 2:
            t1, a1, s1 = at(0.5)
            u = a1 / a * x - two * s1 * (e(h / 2) - 1) * eps + eta * s1 * math.sqrt(e(h) - 1) * z1
            noise = math.sqrt(e(2 * h) - e(h)) * z1 + math.sqrt(e(h) - 1) * z2
            x = a_t / a * x - two * s_t * (e(h) - 1) * w.model.eps(u, t1) + eta * s_t * noise
        else:
            r1, r2 = 1 / 3, 2 / 3
            (t1, a1, s1), (t2, a2, s2) = at(r1), at(r2)
            u1 = a1 / a * x - two * s1 * (e(r1 * h) - 1) * eps
            u1 = u1 + eta * s1 * math.sqrt(e(2 * r1 * h) - 1) * z1
            d1 = w.model.eps(u1, t1) - eps
            u2 = a2 / a * x - two * s2 * (e(r2 * h) - 1) * eps
            u2 = u2 - two * s2 * r2 / r1 * ((e(r2 * h) - 1) / (r2 * h) - 1) * d1
            u2 = u2 + eta * s2 * (
                math.sqrt(e(2 * r2 * h) - e(2 * (r2 - r1) * h)) * z1
                + math.sqrt(e(2 * (r2 - r1) * h) - 1) * z2
            )
            d2 = w.model.eps(u2, t2) - eps
            x = a_t / a * x - two * s_t * (e(h) - 1) * eps - two * s_t / r2 * ((e(h) - 1) / h - 1) * d2
            x = x + eta * s_t * (
                math.sqrt(e(2 * h) - e(2 * (1 - r1) * h)) * z1
                + math.sqrt(e(2 * (1 - r1) * h) - e(2 * (1 - r2) * h)) * z2
                + math.sqrt(e(2 * (1 - r2) * h) - 1) * z3
            )
    w.check(Seeds(eta=eta, stages=stages), x)


X0_FORM = [
    DPMpp3M(),
    DPMpp3M(compat="published"),
    SDEDPMpp2M(),
    SDEDPMpp3M(eta=0.5),
    UniPC(nodes=3),
    UniPC(predicts="eps"),
    ExponentialAdams(),
    SASolver(),
    ERSDE(),
]


@pytest.mark.parametrize("sampler", X0_FORM, ids=repr)
@pytest.mark.parametrize("process", ["RectifiedFlow", "Cosine"])
@pytest.mark.parametrize("grid", [[1.0, 0.8, 0.5, 0.2, 0.0], [1.0, 0.0], [1.0, 0.5, 0.2]])
def test_both_ends_are_exact_limits(sampler, process, grid):
    """From alpha = 0 to sigma' = 0: a point mass m ends at alpha' m, with standard deviation sigma'."""
    mean = torch.tensor([0.3, -2.0], dtype=torch.float64)
    law = PROCESSES[process]
    found = sk.certify(sampler, sk.Gaussian(mean, variance=1e-30), law, grid=grid, against="t_min")
    alpha, sigma = float(law.alpha(grid[-1])), float(law.sigma(grid[-1]))
    torch.testing.assert_close(found.law.mean, alpha * mean, rtol=0, atol=1e-12)
    torch.testing.assert_close(found.law.std, torch.full_like(mean, sigma), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("stages", [1, 2, 3])
@pytest.mark.parametrize("process", ["RectifiedFlow", "Cosine"])
def test_seeds_at_both_ends(process, stages):
    """A step with lambda infinite at either end is DDIM's, draws nothing and has no stages."""
    plan = sk.plan(Seeds(stages=stages), PROCESSES[process], grid=[1.0, 0.6, 0.3, 0.0])
    assert plan.nfe == stages + 2
    assert plan.draws == tuple(range(3, 3 + stages))
    flow = sk.plan("ddim", PROCESSES[process], grid=[1.0, 0.6, 0.3, 0.0])
    assert plan.instructions[:2] == flow.instructions[:2]
    assert plan.instructions[-2:] == flow.instructions[-2:]


@pytest.mark.parametrize(
    "sampler", [DPMpp3M(), UniPC(nodes=3), ExponentialAdams(), SASolver(), ERSDE()], ids=repr
)
def test_history_drops_the_node_of_pure_noise(sampler):
    plan = sk.plan(sampler, sk.RectifiedFlow(), steps=5)
    first = "D[0]" if not isinstance(sampler, UniPC) else "m[0]"
    readers = [ins.out for ins in plan.instructions if first in ins.inputs]
    assert readers == ["x[1]"]


@pytest.mark.parametrize("grid", [None, "karras"])
@pytest.mark.parametrize("name", ["sde-dpmpp-2m", "sde-dpmpp-3m", "sa-solver", "seeds"])
def test_no_noise_where_eta_is_zero(name, grid):
    """eta = 0 is the scheme of the probability flow, and draws nothing."""
    pair = {"sde-dpmpp-2m": "dpmpp-2m", "sde-dpmpp-3m": "dpmpp-3m"}
    quiet = sk.plan(name, sk.VP(), steps=8, grid=grid, eta=0.0)
    assert not quiet.stochastic
    if name in pair:
        flow = sk.plan(pair[name], sk.VP(), steps=8, grid=grid or quiet_grid(name))
        assert quiet.instructions == flow.instructions


def quiet_grid(name: str) -> sk.Grid:
    """The grid that ``name`` takes by itself."""
    from sdekit.samplers.registry import SAMPLERS

    return SAMPLERS[name].default_grid


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (DPMpp3M, {"compat": "publisht"}, "published"),
        (SDEDPMpp3M, {"compat": "old"}, "published"),
        (SDEDPMpp2M, {"solver_type": "euler"}, "midpoint"),
        (UniPC, {"nodes": 5}, "at most 4"),
        (UniPC, {"variant": "bh3"}, "bh2"),
        (UniPC, {"predicts": "v"}, "eps"),
        (ExponentialAdams, {"nodes": 7}, "at most 6"),
        (SASolver, {"predictor": 0}, ">= 1"),
        (SASolver, {"corrector": 7}, "at most 6"),
        (SASolver, {"compat": "x"}, "published"),
        (ERSDE, {"nodes": 4}, "at most 3"),
        (ERSDE, {"unit": 0.0}, "> 0"),
        (ERSDE, {"compat": "x"}, "published"),
        (Seeds, {"stages": 4}, "at most 3"),
    ],
)
def test_options_that_do_not_fit_are_refused(make, options, message):
    with pytest.raises((ValueError, KeyError), match=message):
        make(**options)


def test_a_negative_tau_is_refused():
    with pytest.raises(ValueError, match=r"finite and >= 0"):
        sk.plan(SASolver(where=lambda rho: -1.0), sk.VP(), steps=3)
