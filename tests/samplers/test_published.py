"""One step of each published method, written out from the paper, to rounding.

Discrete tables: t = k + 1 is the k-th beta, alphas_cumprod(0) = 1.
"""

from __future__ import annotations

import math

import pytest
import torch

import sdekit as sk
from tests.samplers.problems import ddpm_table, gaussian, smooth_network
from tests.samplers.test_weights import mp_kernel_weights

TABLE = 50
PLACES = [2, 7, TABLE // 2, TABLE]
CLOSE = {"rtol": 1e-9, "atol": 1e-11}


class Step:
    """x, its network and one recorded normal, for a step between two times of ``process``."""

    def __init__(self, process, t, ahead, **options):
        g = torch.Generator().manual_seed(3)
        self.process, self.t, self.ahead = process, float(t), float(ahead)
        self.x, self.z, self.z2 = torch.randn(3, 6, 4, generator=g, dtype=torch.float64)
        self.model = smooth_network(process, **options)
        self.sigma, self.sigma_ahead = (float(process.sigma(u)) for u in (self.t, self.ahead))

    def score(self, x=None, t=None):
        x = self.x if x is None else x
        return self.model.score(x, self.t if t is None else t)

    def eps(self):
        return self.model.eps(self.x, self.t)

    def x0(self):
        return self.model.x0(self.x, self.t)

    def run(self, sampler, **options):
        noise = sk.Recorded([self.z, self.z2])
        return sk.sample(
            self.model,
            tuple(self.x.shape),
            sampler=sampler,
            grid=[self.t, self.ahead],
            x_init=self.x,
            noise=noise,
            **options,
        ).x


def vp_step(k: int) -> tuple[Step, float, float, float]:
    """The step from t = k to k - 1 of a DDPM table; beta_k, alphas_cumprod at k and k - 1."""
    table = ddpm_table(TABLE)
    step = Step(table, k, k - 1)
    bar = [1.0, *table.alphas_cumprod]
    return step, 1 - bar[k] / bar[k - 1], bar[k], bar[k - 1]


def ve_step(k: int) -> tuple[Step, float, float, float]:
    """The step from sigma_k to sigma_{k - 1} of a geometric VE ladder; Delta = sigma_k^2 - sigma_{k-1}^2."""
    ve = sk.VE(0.01, 50.0)
    u = [k / TABLE, (k - 1) / TABLE]
    step = Step(ve, *u)
    s1, s0 = (0.01 * (50.0 / 0.01) ** v for v in u)
    return step, s1**2 - s0**2, s1, s0


@pytest.mark.parametrize("k", PLACES)
def test_reverse_diffusion_vp(k):
    """Song et al. 2021, equation 46 and its probability flow (equation 47 of appendix D.1)."""
    s, beta, *_ = vp_step(k)
    expected = (2 - math.sqrt(1 - beta)) * s.x + beta * s.score() + math.sqrt(beta) * s.z
    torch.testing.assert_close(s.run("reverse-diffusion"), expected, **CLOSE)
    flow = (2 - math.sqrt(1 - beta)) * s.x + 0.5 * beta * s.score()
    torch.testing.assert_close(s.run("reverse-diffusion", eta=0.0), flow, **CLOSE)


@pytest.mark.parametrize("k", PLACES)
def test_reverse_diffusion_ve(k):
    s, delta, *_ = ve_step(k)
    expected = s.x + delta * s.score() + math.sqrt(delta) * s.z
    torch.testing.assert_close(s.run("reverse-diffusion"), expected, **CLOSE)
    torch.testing.assert_close(s.run("reverse-diffusion", eta=0.0), s.x + 0.5 * delta * s.score(), **CLOSE)


@pytest.mark.parametrize("k", PLACES)
def test_ancestral_vp(k):
    """score_sde's ancestral sampler: the noise has variance beta, not the posterior's."""
    s, beta, *_ = vp_step(k)
    expected = (s.x + beta * s.score()) / math.sqrt(1 - beta) + math.sqrt(beta) * s.z
    torch.testing.assert_close(s.run("ancestral"), expected, **CLOSE)
    torch.testing.assert_close(s.run(sk.samplers.DDPM(variance="forward")), expected, **CLOSE)


@pytest.mark.parametrize("k", PLACES)
def test_ancestral_ve(k):
    """Song et al. 2021, appendix F."""
    s, delta, high, low = ve_step(k)
    expected = s.x + delta * s.score() + (low / high) * math.sqrt(delta) * s.z
    torch.testing.assert_close(s.run("ancestral"), expected, **CLOSE)


@pytest.mark.parametrize("k", PLACES)
def test_ddpm_posterior(k):
    """Ho et al. 2020, equations 7 and 11."""
    s, beta, bar, before = vp_step(k)
    mean = math.sqrt(before) * beta / (1 - bar) * s.x0()
    mean = mean + math.sqrt(1 - beta) * (1 - before) / (1 - bar) * s.x
    by_noise = (s.x - beta / math.sqrt(1 - bar) * s.eps()) / math.sqrt(1 - beta)
    torch.testing.assert_close(mean, by_noise, **CLOSE)
    small = beta * (1 - before) / (1 - bar)
    torch.testing.assert_close(s.run("ddpm"), mean + math.sqrt(small) * s.z, **CLOSE)


@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("k", PLACES)
def test_ddim_equation_12(k, eta):
    """Song, Meng and Ermon 2021, equations 12 and 16; eta = 1 is DDPM."""
    s, _, bar, before = vp_step(k)
    std = eta * math.sqrt((1 - before) / (1 - bar)) * math.sqrt(1 - bar / before)
    clean = (s.x - math.sqrt(1 - bar) * s.eps()) / math.sqrt(bar)
    expected = math.sqrt(before) * clean + math.sqrt(1 - before - std**2) * s.eps() + std * s.z
    torch.testing.assert_close(s.run("ddim", eta=eta), expected, **CLOSE)
    if eta == 1.0:
        torch.testing.assert_close(s.run("ddpm"), expected, **CLOSE)


@pytest.mark.parametrize("process", [sk.VP(), sk.VE(), sk.SubVP()])
def test_euler_maruyama(process):
    """Song et al. 2021, appendix E, with the step of the grid; VP and VE by the coefficients of the paper."""
    s = Step(process, 0.6, 0.55)
    h = s.ahead - s.t
    if isinstance(process, sk.VE):
        f, g2 = 0.0, s.sigma**2 * 2 * math.log(50.0 / 0.01)
    else:
        beta, integral = 0.1 + 0.6 * 19.9, 0.1 * 0.6 + 19.9 * 0.36 / 2
        f, g2 = -beta / 2, beta
        if isinstance(process, sk.SubVP):
            g2 *= 1 - math.exp(-2 * integral)
    for eta in (0.0, 0.5, 1.0):
        drift = f * s.x - (1 + eta**2) / 2 * g2 * s.score()
        expected = s.x + h * drift + eta * math.sqrt(g2 * -h) * s.z
        torch.testing.assert_close(s.run("euler-maruyama", eta=eta), expected, **CLOSE)


def test_edm_heun_algorithm_1():
    """Karras et al. 2022, algorithm 1 with sigma(t) = t, equation 5, t_N = 0."""
    n, p, process = 9, 7.0, sk.EDM(0.002, 80.0)
    target = gaussian(4)
    model = target.denoiser(process)
    x = 80.0 * torch.randn(5, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    low, high = 0.002 ** (1 / p), 80.0 ** (1 / p)
    t = [(high + i / (n - 1) * (low - high)) ** p for i in range(n)] + [0.0]
    y = x
    for i in range(n):
        d = (y - model.x0(y, t[i])) / t[i]
        ahead = y + (t[i + 1] - t[i]) * d
        if t[i + 1] != 0:
            d2 = (ahead - model.x0(ahead, t[i + 1])) / t[i + 1]
            ahead = y + (t[i + 1] - t[i]) * (d / 2 + d2 / 2)
        y = ahead
    run = sk.sample(model, (5, 4), sampler="heun", steps=n, end="clean", x_init=x)
    torch.testing.assert_close(run.x, y, rtol=1e-10, atol=1e-12)
    assert run.stats.nfe == 2 * n - 1  # their count


def test_dpm_solver_plus_plus_2m():
    """Lu et al. 2022 (DPM-Solver++), algorithm 2."""
    process = sk.VP()
    model = smooth_network(process)
    times = [1.0, 0.8, 0.55, 0.3, 0.12, 0.01]
    x = torch.randn(5, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    alpha, sigma, lam = (
        [float(f(t)) for t in times] for f in (process.alpha, process.sigma, process.half_log_snr)
    )
    y, buffer = x, []
    for i in range(1, len(times)):
        buffer.append(model.x0(y, times[i - 1]))
        h = lam[i] - lam[i - 1]
        d = buffer[-1]
        if i > 1:
            r = (lam[i - 1] - lam[i - 2]) / h
            d = (1 + 1 / (2 * r)) * buffer[-1] - 1 / (2 * r) * buffer[-2]
        y = sigma[i] / sigma[i - 1] * y - alpha[i] * (math.exp(-h) - 1) * d
    run = sk.sample(model, (5, 3), sampler="dpmpp-2m", grid=times, x_init=x)
    torch.testing.assert_close(run.x, y, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("process", ["VP", "VE", "SubVP"])
def test_predictor_corrector(process):
    """Song et al. 2021, algorithms 4 and 5, one corrector step; its score is taken at the NEW time.

    A corrector with the score of the previous, noisier time (a bug that shipped) must fail here.
    """
    snr = 0.16
    if process == "VP":
        s, beta, *_ = vp_step(TABLE // 2)
        predicted = (2 - math.sqrt(1 - beta)) * s.x + beta * s.score() + math.sqrt(beta) * s.z
        a = 1 - beta
    elif process == "VE":
        s, delta, *_ = ve_step(TABLE // 2)
        predicted = s.x + delta * s.score() + math.sqrt(delta) * s.z
        a = 1.0
    else:
        s = Step(sk.SubVP(), 0.5, 0.48)
        a = float(s.process.alpha(s.t) / s.process.alpha(s.ahead)) ** 2
        v = s.sigma**2 - a * s.sigma_ahead**2
        predicted = (2 - math.sqrt(a)) * s.x + v * s.score() + math.sqrt(v) * s.z

    def corrected(t):
        g = s.score(predicted, t)
        norms = [v.flatten(1).norm(dim=1)[:, None] for v in (s.z2, g)]
        e = 2 * a * (snr * norms[0] / norms[1]) ** 2
        return predicted + e * g + (2 * e).sqrt() * s.z2

    out = s.run(sk.samplers.PredictorCorrector(snr=snr))
    torch.testing.assert_close(out, corrected(s.ahead), **CLOSE)
    assert float((out - corrected(s.t)).abs().max()) > 1e-4


def test_two_corrections_reuse_nothing():
    s, delta, *_ = ve_step(TABLE // 2)
    draws = list(torch.randn(3, 6, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64))
    x = s.x + delta * s.score() + math.sqrt(delta) * draws[0]
    for z in draws[1:]:
        g = s.score(x, s.ahead)
        e = 2 * (0.1 * z.norm(dim=1) / g.norm(dim=1))[:, None] ** 2
        x = x + e * g + (2 * e).sqrt() * z
    run = sk.sample(
        s.model,
        (6, 4),
        sampler=sk.samplers.PredictorCorrector(snr=0.1, corrections=2),
        grid=[s.t, s.ahead],
        x_init=s.x,
        noise=sk.Recorded(draws),
    )
    torch.testing.assert_close(run.x, x, **CLOSE)
    assert run.stats.nfe == 3


def test_a_zero_score_leaves_the_corrector_in_place():
    model = sk.Denoiser(lambda x, t: 0 * x, sk.VE(), predicts="score", data_std=1.0)
    x = sk.sample(model, (4, 3), sampler="pc", steps=3).x
    assert bool(torch.isfinite(x).all())


@pytest.mark.parametrize("steps", [1, 2, 5, 7])
def test_trigonometric_adams_by_hand(steps):
    """The scheme in its own coordinates: y = z/S, F = S/(rho s) (D - (s/S)^2 z), dy/dphi = -F.

    Newton's divided differences, integrated exactly, in place of the Lagrange weights of the library.
    """
    process, s = sk.EDM(0.01, 20.0), 0.6
    target = gaussian(3)
    plan = sk.plan("trig-adams", process, steps=steps, data_std=s)
    x = 20.0 * torch.randn(4, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    rho = list(plan.times)
    phi = [math.atan2(r, s) for r in rho]
    size = [math.hypot(r, s) for r in rho]

    def f(z, d, i):
        return size[i] / (rho[i] * s) * (d - (s / size[i]) ** 2 * z)

    def integral(nodes, values, a, b):
        """int_a^b of the polynomial through (nodes, values), by solving for its coefficients."""
        u = torch.tensor(nodes, dtype=torch.float64) - a
        vandermonde = torch.stack([u**k for k in range(len(nodes))], dim=1)
        powers = torch.tensor([(b - a) ** (k + 1) / (k + 1) for k in range(len(nodes))], dtype=torch.float64)
        w = torch.linalg.solve(vandermonde.T, powers)
        return sum(float(wj) * v for wj, v in zip(w, values, strict=True))

    order = 3 if steps < 6 else 4
    y, history = x / size[0], []
    model = target.denoiser(process)
    history.append((phi[0], f(x, model.x0(x, rho[0]), 0)))
    for i in range(steps):
        newest = history[-order:][::-1]
        guess = y - integral([p for p, _ in newest], [v for _, v in newest], phi[i], phi[i + 1])
        if i + 1 == steps:
            y = guess
            break
        d = model.x0(guess * size[i + 1], rho[i + 1])
        fresh = f(guess * size[i + 1], d, i + 1)
        both = [(phi[i + 1], fresh), *newest[: order - 1]]
        y = y - integral([p for p, _ in both], [v for _, v in both], phi[i], phi[i + 1])
        history.append((phi[i + 1], f(y * size[i + 1], d, i + 1)))
    run = sk.sample(model, (4, 3), sampler=plan, x_init=x)
    torch.testing.assert_close(run.x, y * size[-1], rtol=1e-8, atol=1e-9)
    assert run.stats.nfe == steps


def test_kernel_quadrature_by_hand():
    """The same coordinates with c = sqrt(s s2) and K^-1 q weights at 50 digits."""
    process, s, s2, steps = sk.EDM(0.01, 20.0), 0.6, 0.9, 7
    c = math.sqrt(s * s2)
    target = gaussian(3)
    model = target.denoiser(process)
    plan = sk.plan("kernel-quadrature", process, steps=steps, data_std=s, data_spread=s2)
    x = 20.0 * torch.randn(4, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    rho = list(plan.times)
    size = [math.hypot(r, c) for r in rho]

    def f(z, d, i):
        return (d - (c / size[i]) ** 2 * z) * size[i] / (rho[i] * c)

    def integral(nodes, values, i):
        w = mp_kernel_weights(nodes, rho[i], rho[i + 1], c, s, s2, 0.003, 1.0, points=10)
        return sum(wj * v for wj, v in zip(w, values, strict=True))

    y = x / size[0]
    history = [(rho[0], f(x, model.x0(x, rho[0]), 0))]
    for i in range(steps):
        newest = history[-5:][::-1]
        guess = (y - integral(*zip(*newest, strict=True), i)) * size[i + 1]
        if i + 1 == steps:
            break
        d = model.x0(guess, rho[i + 1])
        both = [(rho[i + 1], f(guess, d, i + 1)), *newest]
        y = y - integral(*zip(*both, strict=True), i)
        history.append((rho[i + 1], f(y * size[i + 1], d, i + 1)))
    run = sk.sample(model, (4, 3), sampler=plan, x_init=x)
    torch.testing.assert_close(run.x, guess, rtol=1e-7, atol=1e-8)
    assert run.stats.nfe == steps
