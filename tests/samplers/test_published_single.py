"""Single-step and eps-form methods, a few steps written out from each paper, to rounding."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from scipy.integrate import quad

import sdekit as sk
from sdekit.samplers import (
    DEIS,
    DPM2,
    DPM3,
    IPNDM,
    LMS,
    PNDM,
    DPMpp2S,
    EDMStochastic,
    KDPM2Ancestral,
    Restart,
)
from tests.samplers.problems import PROCESSES, ddpm_table, gaussian, smooth_network

CLOSE = {"rtol": 1e-9, "atol": 1e-11}
GRIDS = {
    "VP": [1.0, 0.8, 0.55, 0.3, 0.12, 0.05, 0.01],
    "SubVP": [1.0, 0.8, 0.55, 0.3, 0.12, 0.05, 0.01],
    "VE": [1.0, 0.8, 0.7, 0.5, 0.33, 0.2, 0.0],
    "RectifiedFlow": [0.95, 0.8, 0.55, 0.3, 0.12, 0.05, 0.01],
    "EDM": [40.0, 11.0, 4.0, 1.5, 0.4, 0.1, 0.03],
}


class Case:
    """A process, a grid, a network and a start, with the papers' alpha, sigma and lambda at the nodes."""

    def __init__(self, name, times=None):
        self.process = PROCESSES[name] if isinstance(name, str) else name
        self.t = GRIDS[name] if times is None else times
        self.model = smooth_network(self.process)
        g = torch.Generator().manual_seed(7)
        self.x = torch.randn(5, 3, generator=g, dtype=torch.float64)
        self.z = list(torch.randn(20, 5, 3, generator=g, dtype=torch.float64))
        p = self.process
        self.alpha, self.sigma, self.lam = (
            [float(f(t)) for t in self.t] for f in (p.alpha, p.sigma, p.half_log_snr)
        )
        self.rho = [s / a if a else math.inf for s, a in zip(self.sigma, self.alpha, strict=True)]

    def at(self, lam):
        """(t, alpha, sigma) where the half log-SNR is lam."""
        t = float(self.process.t_of_half_log_snr(lam))
        return t, float(self.process.alpha(t)), float(self.process.sigma(t))

    def steps(self):
        for i in range(len(self.t) - 1):
            yield i, self.lam[i + 1] - self.lam[i]

    def agrees(self, sampler, expected, **options):
        run = sk.sample(
            self.model,
            (5, 3),
            sampler=sampler,
            grid=self.t,
            x_init=self.x,
            noise=sk.Recorded(self.z),
            **options,
        )
        torch.testing.assert_close(run.x, expected, **CLOSE)
        return run


# -- DPM-Solver -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("r1", [0.5, 0.3, 0.8])
@pytest.mark.parametrize("name", ["VP", "SubVP", "RectifiedFlow", "VE"])
def test_dpm_solver_2(name, r1):
    """Lu et al. 2022 (DPM-Solver), algorithm 4; algorithm 1 at r1 = 1/2."""
    case = Case(name)
    a, s, eps, x = case.alpha, case.sigma, case.model.eps, case.x
    for i, h in case.steps():
        t1, a1, s1 = case.at(case.lam[i] + r1 * h)
        e = eps(x, case.t[i])
        u = a1 / a[i] * x - s1 * (math.exp(r1 * h) - 1) * e
        d = eps(u, t1) - e
        scale = s[i + 1] * (math.exp(h) - 1)
        x = a[i + 1] / a[i] * x - scale * e - scale / (2 * r1) * d
    run = case.agrees(DPM2(r1=r1), x)
    assert run.stats.nfe == 12


@pytest.mark.parametrize("r1", [1 / 3, 0.5])
@pytest.mark.parametrize("name", ["VP", "SubVP", "RectifiedFlow", "EDM"])
def test_dpm_solver_3(name, r1):
    """Lu et al. 2022 (DPM-Solver), algorithm 5; algorithm 2 at r1 = 1/3, r2 = 2/3."""
    case, r2 = Case(name), 2 / 3
    a, s, eps, x = case.alpha, case.sigma, case.model.eps, case.x
    for i, h in case.steps():
        t1, a1, s1 = case.at(case.lam[i] + r1 * h)
        t2, a2, s2 = case.at(case.lam[i] + r2 * h)
        e = eps(x, case.t[i])
        u1 = a1 / a[i] * x - s1 * (math.exp(r1 * h) - 1) * e
        d1 = eps(u1, t1) - e
        growth = (math.exp(r2 * h) - 1) / (r2 * h) - 1
        u2 = a2 / a[i] * x - s2 * (math.exp(r2 * h) - 1) * e - s2 * r2 / r1 * growth * d1
        d2 = eps(u2, t2) - e
        x = a[i + 1] / a[i] * x - s[i + 1] * (math.exp(h) - 1) * e
        x = x - s[i + 1] / r2 * ((math.exp(h) - 1) / h - 1) * d2
    run = case.agrees(DPM3(r1=r1), x)
    assert run.stats.nfe == 18


@pytest.mark.parametrize("r1", [0.5, 0.3])
@pytest.mark.parametrize("name", ["VP", "SubVP", "RectifiedFlow", "EDM"])
def test_dpm_solver_plus_plus_2s(name, r1):
    """Lu et al. 2022 (DPM-Solver++), algorithm 1."""
    case = Case(name)
    a, s, x0, x = case.alpha, case.sigma, case.model.x0, case.x
    for i, h in case.steps():
        t1, a1, s1 = case.at(case.lam[i] + r1 * h)
        d = x0(x, case.t[i])
        u = s1 / s[i] * x - a1 * (math.exp(-r1 * h) - 1) * d
        mixed = (1 - 1 / (2 * r1)) * d + 1 / (2 * r1) * x0(u, t1)
        x = s[i + 1] / s[i] * x - a[i + 1] * (math.exp(-h) - 1) * mixed
    run = case.agrees(DPMpp2S(r1=r1), x)
    assert run.stats.nfe == 12


# -- Karras's midpoint and the ancestral step, in his sigma ------------------------------------------------


def ancestral(high, low, eta):
    """(sigma_down, sigma_up) of DDIM's equation 16 for alpha = 1."""
    up = min(low, eta * math.sqrt(low**2 * (high**2 - low**2) / high**2))
    return math.sqrt(low**2 - up**2), up


@pytest.mark.parametrize("eta", [0.0, 0.6, 1.0])
def test_karras_midpoint(eta):
    """dx/dsigma = (x - D)/sigma, an Euler step to sqrt(sigma sigma_down), one with its slope; then noise."""
    case = Case("EDM")
    sigma, x0, x = case.t, case.model.x0, case.x
    for i in range(6):
        down, up = ancestral(sigma[i], sigma[i + 1], eta)
        middle = math.exp((math.log(sigma[i]) + math.log(down)) / 2)
        d = (x - x0(x, sigma[i])) / sigma[i]
        u = x + d * (middle - sigma[i])
        x = x + (u - x0(u, middle)) / middle * (down - sigma[i])
        x = x + up * case.z[i]
    run = case.agrees(KDPM2Ancestral(eta=eta), x)
    assert sk.plan(KDPM2Ancestral(eta=eta), case.process, grid=case.t).draws == tuple(range(6 if eta else 0))
    assert run.stats.nfe == 12
    if eta == 0:
        case.agrees("kdpm2", x)


@pytest.mark.parametrize("eta", [0.6, 1.0])
def test_dpm_solver_plus_plus_2s_ancestral(eta):
    """Algorithm 1 to sigma_down, with exp(-h) = sigma_down/sigma, then the noise sigma_up."""
    case = Case("EDM")
    sigma, x0, x = case.t, case.model.x0, case.x
    for i in range(6):
        down, up = ancestral(sigma[i], sigma[i + 1], eta)
        middle = math.sqrt(sigma[i] * down)
        u = middle / sigma[i] * x + (1 - middle / sigma[i]) * x0(x, sigma[i])
        x = down / sigma[i] * x + (1 - down / sigma[i]) * x0(u, middle) + up * case.z[i]
    case.agrees(DPMpp2S(eta=eta), x)


@pytest.mark.parametrize("name", ["VP", "RectifiedFlow"])
def test_ancestral_steps_are_those_of_z(name):
    """Any process: z = x/alpha is variance exploding with noise level rho."""
    case = Case(name)
    x0, z = case.model.x0, case.x / case.alpha[0]
    for i in range(6):
        down, up = ancestral(case.rho[i], case.rho[i + 1], 1.0)
        t, alpha, sigma = case.at(-0.5 * math.log(case.rho[i] * down))
        d = (z - x0(case.alpha[i] * z, case.t[i])) / case.rho[i]
        u = z + d * (sigma / alpha - case.rho[i])
        z = z + (u - x0(alpha * u, t)) / (sigma / alpha) * (down - case.rho[i]) + up * case.z[i]
    case.agrees("kdpm2-ancestral", case.alpha[-1] * z)


def test_more_noise_than_the_marginal_is_all_of_it():
    """eta above 1 on a coarse step: rho_down = 0 and x' = alpha' D + sigma' xi."""
    case = Case("VP", [1.0, 0.2])
    x = case.alpha[1] * case.model.x0(case.x, 1.0) + case.sigma[1] * case.z[0]
    for sampler in (KDPM2Ancestral(eta=2.0), DPMpp2S(eta=2.0)):
        assert case.agrees(sampler, x).stats.nfe == 1


# -- Adams-Bashforth on eps --------------------------------------------------------------------------------


def basis(nodes, j, u):
    """L_j(u) on the nodes."""
    return np.prod([(u - v) / (nodes[j] - v) for k, v in enumerate(nodes) if k != j])


def adams(case, most, weight):
    """x' = (alpha'/alpha) x + sum_j weight(i, nodes, j) eps_j, the newest ``most`` nodes as they come."""
    x, history = case.x, []
    for i in range(len(case.t) - 1):
        history.insert(0, (i, case.model.eps(x, case.t[i])))
        newest = history[:most]
        nodes = [k for k, _ in newest]
        x = case.alpha[i + 1] / case.alpha[i] * x
        x = x + sum(weight(i, nodes, j) * e for j, (_, e) in enumerate(newest))
    return x


def integral(f, a, b):
    value, _ = quad(f, a, b, epsabs=0, epsrel=1e-12, limit=200)
    return value


@pytest.mark.parametrize("nodes", [1, 2, 3, 4])
@pytest.mark.parametrize("name", ["VP", "EDM"])
def test_linear_multistep(name, nodes):
    """Lagrange polynomials in sigma = rho, integrated over the step; EDM is Karras's own coordinate."""
    case = Case(name)

    def weight(i, ks, j):
        levels = np.array([case.rho[k] for k in ks])
        others = np.delete(levels, j)
        poly = np.polynomial.Polynomial.fromroots(others) if len(others) else np.polynomial.Polynomial([1.0])
        area = poly.integ()
        scale = case.alpha[i + 1] / poly(levels[j])
        return float(scale * (area(case.rho[i + 1]) - area(case.rho[i])))

    x = adams(case, nodes, weight)
    case.agrees(LMS(nodes=nodes), x)
    case.agrees(DEIS(degree=nodes - 1, form="rho"), x)


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
@pytest.mark.parametrize("name", ["VP", "SubVP", "RectifiedFlow"])
def test_deis_t_ab(name, degree):
    """Zhang and Chen 2023, equation 15: C_j = int_t^t' Psi(t', tau) g^2/(2 sigma) L_j dtau."""
    case = Case(name)
    p = case.process

    def weight(i, ks, j):
        times = [case.t[k] for k in ks]

        def integrand(tau):
            f = float(p.diffusion_squared(tau)) / (2 * float(p.sigma(tau)))
            return case.alpha[i + 1] / float(p.alpha(tau)) * f * basis(times, j, tau)

        return integral(integrand, case.t[i], case.t[i + 1])

    x = adams(case, degree + 1, weight)
    case.agrees(DEIS(degree=degree), x)
    if degree == 0:
        case.agrees("ddim", x)


@pytest.mark.parametrize("nodes", [1, 2, 3, 4])
@pytest.mark.parametrize("name", ["VP", "VE"])
def test_improved_pndm_on_variable_steps(name, nodes):
    """The polynomial in lambda against drho = -exp(-lambda) dlambda."""
    case = Case(name)

    def weight(i, ks, j):
        lams = [case.lam[k] for k in ks]
        a, b = case.lam[i], case.lam[i + 1]
        return -case.alpha[i + 1] * integral(lambda u: math.exp(-u) * basis(lams, j, u), a, b)

    x = adams(case, nodes, weight)
    case.agrees(IPNDM(nodes=nodes), x)
    case.agrees(DEIS(degree=nodes - 1, form="lambda"), x)


def pndm_transfer(x, e, bar, ahead):
    """Liu et al. 2022, equation 11, with bar and ahead the cumulative alphas of t and t - delta."""
    denominator = math.sqrt(bar) * (math.sqrt((1 - ahead) * bar) + math.sqrt((1 - bar) * ahead))
    return math.sqrt(ahead) / math.sqrt(bar) * x - (ahead - bar) / denominator * e


TABLE = [50, 42, 34, 26, 18, 10, 2]


def test_pndm_published():
    """Liu et al. 2022, equations 12 and 13 on DDPM's table: pseudo Runge-Kutta, then 55, -59, 37, -9."""
    table = ddpm_table(50)
    case = Case(table, [float(t) for t in TABLE])
    bar = [1.0, *table.alphas_cumprod]
    eps, x, history = case.model.eps, case.x, []
    for i, (t, ahead) in enumerate(itertools.pairwise(TABLE)):
        middle = (t + ahead) // 2
        e1 = eps(x, float(t))
        history.insert(0, e1)
        if i < 3:
            e2 = eps(pndm_transfer(x, e1, bar[t], bar[middle]), float(middle))
            e3 = eps(pndm_transfer(x, e2, bar[t], bar[middle]), float(middle))
            e4 = eps(pndm_transfer(x, e3, bar[t], bar[ahead]), float(ahead))
            e = (e1 + 2 * e2 + 2 * e3 + e4) / 6
        else:
            e = (55 * history[0] - 59 * history[1] + 37 * history[2] - 9 * history[3]) / 24
        x = pndm_transfer(x, e, bar[t], bar[ahead])
    run = case.agrees(PNDM(compat="published"), x)
    assert run.stats.nfe == 4 * 3 + 3


@pytest.mark.parametrize("nodes", [1, 2, 3, 4])
def test_improved_pndm_published(nodes):
    """The constant weights, lower orders first, with PNDM's transfer."""
    table = ddpm_table(50)
    case = Case(table, [float(t) for t in TABLE])
    bar = [1.0, *table.alphas_cumprod]
    constants = {1: [1], 2: [3, -1], 3: [23, -16, 5], 4: [55, -59, 37, -9]}
    divisor = {1: 1, 2: 2, 3: 12, 4: 24}
    x, history = case.x, []
    for t, ahead in itertools.pairwise(TABLE):
        history.insert(0, case.model.eps(x, float(t)))
        k = min(nodes, len(history))
        e = sum(c * v for c, v in zip(constants[k], history, strict=False)) / divisor[k]
        x = pndm_transfer(x, e, bar[t], bar[ahead])
    run = case.agrees(IPNDM(nodes=nodes, compat="published"), x)
    assert run.stats.nfe == 6


@pytest.mark.parametrize("name", ["VP", "EDM"])
def test_pndm_starts_with_the_classical_runge_kutta_method(name):
    """dz/drho = eps: three steps of Kutta's method, and those of ipndm after them."""
    case = Case(name)
    z = case.x / case.alpha[0]

    def slope(z, rho):
        t, alpha, _ = case.at(-math.log(rho))
        return case.model.eps(alpha * z, t)

    slopes = []
    for i in range(3):
        rho, h = case.rho[i], case.rho[i + 1] - case.rho[i]
        k1 = slope(z, rho)
        k2 = slope(z + h / 2 * k1, rho + h / 2)
        k3 = slope(z + h / 2 * k2, rho + h / 2)
        k4 = slope(z + h * k3, rho + h)
        slopes.append(k1)
        z = z + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
    for i in range(3, 6):
        slopes.append(slope(z, case.rho[i]))
        lams = case.lam[i - 3 : i + 1]
        for j, k in enumerate(slopes[-4:]):
            a, b = case.lam[i], case.lam[i + 1]
            z = z - k * integral(lambda u, j=j, lams=lams: math.exp(-u) * basis(lams, j, u), a, b)
    case.agrees("pndm", case.alpha[-1] * z)


# -- EDM's stochastic sampler and Restart ------------------------------------------------------------------


@pytest.mark.parametrize("end", ["clean", "explicit"])
@pytest.mark.parametrize(
    "options",
    [(40.0, 0.05, 50.0, 1.003), (3.0, 0.0, math.inf, 1.0), (0.0, 0.0, math.inf, 1.0)],
    ids=["imagenet", "uncapped", "none"],
)
def test_edm_stochastic_algorithm_2(options, end):
    """Karras et al. 2022, algorithm 2 with sigma(t) = t, equation 5, t_N = 0."""
    n, p, process = 9, 7.0, sk.EDM(0.002, 80.0)
    churn, tmin, tmax, noise = options
    model = gaussian(4).denoiser(process)
    g = torch.Generator().manual_seed(0)
    x = 80.0 * torch.randn(5, 4, generator=g, dtype=torch.float64)
    draws = list(torch.randn(n, 5, 4, generator=g, dtype=torch.float64))
    low, high = 0.002 ** (1 / p), 80.0 ** (1 / p)
    t = [(high + i / (n - 1) * (low - high)) ** p for i in range(n)] + [0.0]
    y, used = x, 0
    for i in range(n):
        last = end == "clean" and i == n - 1  # the clean node is D without churn
        gamma = min(churn / n, math.sqrt(2) - 1) if tmin <= t[i] <= tmax and not last else 0.0
        hat = t[i] + gamma * t[i]
        if gamma > 0:
            y = y + math.sqrt(hat**2 - t[i] ** 2) * noise * draws[used]
            used += 1
        d = (y - model.x0(y, hat)) / hat
        ahead = y + (t[i + 1] - hat) * d
        if t[i + 1] != 0:
            d2 = (ahead - model.x0(ahead, t[i + 1])) / t[i + 1]
            ahead = y + (t[i + 1] - hat) * (d / 2 + d2 / 2)
        y = ahead
    sampler = EDMStochastic(s_churn=churn, s_tmin=tmin, s_tmax=tmax, s_noise=noise)
    grid = {"steps": n, "end": "clean"} if end == "clean" else {"grid": t}
    plan = sk.plan(sampler, process, **grid)
    run = sk.sample(model, (5, 4), sampler=plan, x_init=x, noise=sk.Recorded(draws))
    torch.testing.assert_close(run.x, y, rtol=1e-9, atol=1e-11)
    assert plan.draws == tuple(range(used))
    assert run.stats.nfe == 2 * n - 1


def test_churn_on_any_process_is_a_forward_transition():
    """One step on VP: the noise of `transition` up to rho_hat, then Heun in z; nothing beyond t_max."""
    case = Case("VP", [0.5, 0.4])
    hat = 1.25 * case.rho[0]
    t, alpha, sigma = case.at(-math.log(hat))
    law = case.process.transition(case.x, 0.5, t)
    z = (law.mean + law.std * case.z[0]) / alpha
    e = case.model.eps(alpha * z, t)
    h = case.rho[1] - sigma / alpha
    e2 = case.model.eps(case.alpha[1] * (z + h * e), 0.4)
    case.agrees(EDMStochastic(s_churn=0.25), case.alpha[1] * (z + h / 2 * (e + e2)))
    plan = sk.plan("edm-stochastic", sk.VP(), steps=8)
    assert plan.draws == tuple(range(7))
    assert max(ins.t for ins in plan.instructions if hasattr(ins, "predicts")) <= 1.0


def test_restart():
    """Xu et al. 2023, algorithm 1: K times noise from t_min to t_max and Heun back, on Karras's nodes."""
    case = Case("EDM", [40.0, 11.0, 4.0, 1.5, 0.4, 0.11, 0.03])
    x0 = case.model.x0

    def heun(x, times):
        for t, s in itertools.pairwise(times):
            d = (x - x0(x, t)) / t
            u = x + (s - t) * d
            x = x + (s - t) / 2 * (d + (u - x0(u, s)) / s)
        return x

    high, low, inner = 0.6, 0.11, 3
    a, b = high ** (1 / 7), low ** (1 / 7)
    times = [(a + k / inner * (b - a)) ** 7 for k in range(inner)] + [low]
    x = heun(case.x, case.t[:6])
    for k in range(2):
        x = heun(x + math.sqrt(high**2 - low**2) * case.z[k], times)
    x = heun(x, case.t[5:])
    sampler = Restart(intervals=((0.12, 0.6, 2, inner),))
    run = case.agrees(sampler, x)
    assert run.stats.nfe == 2 * 6 + 2 * 2 * inner
    # In units of data_std, and over the grid's own nodes when no number is given.
    scaled = Restart(intervals=((0.12 / 0.5, 0.6 / 0.5, 2, inner),))
    plan = sk.plan(scaled, case.process, grid=case.t, data_std=0.5)
    again = sk.sample(case.model, (5, 3), sampler=plan, x_init=case.x, noise=sk.Recorded(case.z)).x
    torch.testing.assert_close(again, x, **CLOSE)
    y = heun(case.x, case.t[:6])
    for k in range(2):
        y = heun(y + math.sqrt(high**2 - low**2) * case.z[k], [high, 0.4, low])
    case.agrees("restart", heun(y, case.t[5:]))


def test_restarts_above_the_grid_are_left_out():
    assert not sk.plan(Restart(intervals=((0.001, 0.002, 3, 2),)), sk.VP(), steps=6).stochastic
    two = Restart(intervals=((0.12, 0.6, 1, None), (1.0, 4.0, 2, 1)))
    assert len(sk.plan(two, sk.EDM(), steps=12).draws) == 3


# -- clean data, pure noise, bad options --------------------------------------------------------------------

SINGLE = ["kdpm2", "kdpm2-ancestral", "lms", "ipndm", "pndm", "deis", "dpm-2", "dpm-3", "dpmpp-2s", "restart"]


@pytest.mark.parametrize("name", SINGLE)
def test_a_grid_to_sigma_zero_ends_in_tweedie(name):
    """The last step is of first order: x' = D, as the clean node is."""
    case = Case("VP", [*GRIDS["VP"], 0.0])
    noise = sk.Recorded(case.z)
    before = sk.sample(case.model, (5, 3), sampler=name, grid=GRIDS["VP"], x_init=case.x, noise=noise)
    case.agrees(name, case.model.x0(before.x, GRIDS["VP"][-1]))


@pytest.mark.parametrize("name", SINGLE)
def test_a_step_from_pure_noise_is_of_first_order(name):
    """alpha = 0: x' = alpha' D + sigma' x/sigma, and one evaluation."""
    process = sk.RectifiedFlow()
    model = gaussian(3).denoiser(process)
    x = torch.randn(4, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    z = torch.randn(1, 4, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    run = sk.sample(model, (4, 3), sampler=name, grid=[1.0, 0.9], x_init=x, noise=sk.Recorded(z))
    noise = z[0] if name == "kdpm2-ancestral" else x
    torch.testing.assert_close(run.x, 0.1 * model.x0(x, 1.0) + 0.9 * noise, **CLOSE)
    assert run.stats.nfe == 1


BAD = {
    "r1 = 0": (lambda: DPM2(r1=0.0), ["r1", "strictly between 0 and 1", "0.0", "Next"]),
    "r1 of dpm-3": (lambda: DPM3(r1=0.7), ["r1", "between 0 and 0.666667", "0.7"]),
    "r1 of 2s": (lambda: DPMpp2S(r1=math.nan), ["r1", "nan"]),
    "five nodes": (lambda: LMS(nodes=5), ["nodes must be at most 4", "5"]),
    "no nodes": (lambda: IPNDM(nodes=0), ["nodes must be a whole number >= 1", "0"]),
    "compat": (lambda: IPNDM(compat="publised"), ["unknown compat", "Nearest: 'published'"]),
    "compat of pndm": (lambda: PNDM(compat="paper"), ["unknown compat 'paper'", "Known: published"]),
    "degree": (lambda: DEIS(degree=4), ["degree must be 0 to 3", "4"]),
    "form": (lambda: DEIS(form="sigma"), ["unknown form 'sigma'", "Known: lambda, rho, t"]),
    "churn": (lambda: EDMStochastic(s_churn=-1.0), ["s_churn must be finite and >= 0", "-1"]),
    "interval of churn": (lambda: EDMStochastic(s_tmin=2.0, s_tmax=1.0), ["s_tmin < s_tmax", "2.0", "Next"]),
    "noise of churn": (lambda: EDMStochastic(s_noise=0.0), ["s_noise must be"]),
    "eta of churn": (lambda: sk.plan("edm-stochastic", sk.VP(), eta=1.0), ["no eta but 0", "s_churn"]),
    "restart upside down": (lambda: Restart(intervals=((2.0, 1.0, 1, None),)), ["low < high", "Next"]),
    "restart of three": (lambda: Restart(intervals=((0.1, 1.0, 1),)), ["(low, high, repeats, steps)"]),
    "no repeats": (lambda: Restart(intervals=((0.1, 1.0, 0, None),)), ["repeats must be"]),
    "no steps": (lambda: Restart(intervals=((0.1, 1.0, 1, 0),)), ["steps must be"]),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_options_are_refused_in_words(case):
    call, words = BAD[case]
    with pytest.raises((ValueError, KeyError)) as error:
        call()
    for word in words:
        assert word in str(error.value), str(error.value)


def test_without_churn_nothing_is_drawn():
    assert not sk.plan("edm-stochastic", sk.VP(), eta=0.0).stochastic
    assert sk.plan("edm-stochastic", sk.VP(), eta=None).stochastic
