"""Gaussian-split: its step by hand, its weights at 50 digits, what it leaves exact, and how near it comes."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.integrate import quad

import sdekit as sk
from sdekit.samplers import GaussianSplit, KernelQuadrature
from sdekit.samplers.gaussian_split import split_weights
from sdekit.samplers.plan import Combine
from tests.samplers.problems import PROCESSES, gaussian, smooth_times
from tests.samplers.test_weights import CASES, mp_kernel_weights

INTERPOLANTS = ["kernel", "lagrange"]


def weights(rhos, ends, c, s, s2, kappa, eta):
    rho = torch.tensor([rhos], dtype=torch.float64)
    a, b = (torch.tensor([r], dtype=torch.float64) for r in ends)
    phi = torch.atan2(c * (rho - a), c * c + rho * a)
    width = torch.atan2(c * (b - a), c * c + a * b)
    return split_weights(phi, rho, width, (a, b), eta=eta, c=c, s=s, s2=s2, kappa=kappa)[0].tolist()


@pytest.mark.parametrize("eta", [0.3, 1.0])
@pytest.mark.parametrize(("rhos", "ends", "c", "s", "s2", "kappa"), CASES)
def test_kernel_weights_solve_their_equation(rhos, ends, c, s, s2, kappa, eta):
    expected = mp_kernel_weights(rhos, *ends, c, s, s2, 0.003, kappa, points=40, eta=eta)
    found = weights(rhos, ends, c, s, s2, kappa, eta)
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-8 * abs(sum(expected)))


@pytest.mark.parametrize("eta", [0.3, 1.0])
@pytest.mark.parametrize("top", [2.0, 80.0, 1e4])
def test_polynomial_weights_by_adaptive_quadrature(top, eta):
    """w_j = (1 + eta^2) int (u'/u_r)^(eta^2/2) L_j(phi_r) dphi_r."""
    c, last = 0.7, 0.9
    rhos = [top, 1.5 * top, 4 * top]
    phi = [math.atan2(r, c) for r in rhos]

    def f(p, j):
        basis = math.prod((p - phi[m]) / (phi[j] - phi[m]) for m in range(3) if m != j)
        return (1 + eta**2) * (math.cos(p) / math.cos(math.atan2(last, c))) ** (eta**2) * basis

    expected = [quad(f, phi[0], math.atan2(last, c), (j,), epsabs=0, epsrel=1e-11)[0] for j in range(3)]
    np.testing.assert_allclose(weights(rhos, (top, last), c, 1.0, 1.0, None, eta), expected, rtol=1e-7)


@pytest.mark.parametrize("eta", [0.25, 1.0])
def test_a_constant_is_integrated_from_pure_noise(eta):
    """At alpha = 0: (1 + eta^2) int_0^{theta'} (sin theta / sin theta')^(eta^2) dtheta, with its sign."""
    c, last = 0.7, 0.9
    end = math.atan2(c, last)
    exact = quad(lambda v: (math.sin(v) / math.sin(end)) ** (eta**2), 0, end, epsrel=1e-10)[0]
    infinite, width = torch.tensor([math.inf]).double(), torch.tensor([-end]).double()
    ends = (infinite, torch.tensor([last]).double())
    w = split_weights(0 * width[:, None], infinite[:, None], width, ends, eta=eta, c=c, kappa=1.0).item()
    assert w == pytest.approx(-(1 + eta**2) * exact, rel=1e-6)


def dense_weights(rhos, a, b, c, s, s2, kappa, eta) -> np.ndarray:
    """K^-1 int k(nodes, r) dmu in float64, 40-point Gauss-Legendre in ln r; scaled to int dmu."""
    x, v = np.polynomial.legendre.leggauss(40)
    r = a * (b / a) ** ((x + 1) / 2)
    mu = v / 2 * math.log(b / a) * c * r / (c * c + r * r)
    mu = mu * (1 + eta**2) * ((c * c + b * b) / (c * c + r * r)) ** (eta**2 / 2)
    level = np.exp(np.linspace(math.log(0.04 * s * s), math.log(1.2 * s2 * s2), 12))[:, None]

    def h(r):
        return (
            (level / (level + r * r) - c * c / (c * c + r * r))
            * np.sqrt((c * c + r * r) * (level + r * r))
            / (c * r)
        )

    def k(p, q):
        total = 30 + np.exp(-((np.arctan2(p, c)[:, None] - np.arctan2(q, c)) ** 2) / 2)
        growth = np.sqrt(1 + (p / c) ** 2)[:, None] * np.sqrt(1 + (q / c) ** 2)
        total += 0.003**2 * growth * np.exp(-(np.log(p[:, None] / q) ** 2) / 18)
        return total + kappa * (h(p).T @ h(q)) / 12

    nodes = np.array(rhos)
    w = np.linalg.solve(k(nodes, nodes), k(nodes, r) @ mu)
    return w * mu.sum() / w.sum()


@pytest.mark.parametrize(("process", "eta"), [("VP", 0.4), ("EDM", 1.0), ("RectifiedFlow", 0.4)])
@pytest.mark.parametrize("interpolant", INTERPOLANTS)
def test_the_scheme_by_hand(process, interpolant, eta):
    """z' = (u'/u)^((1 + eta^2)/2) z - sqrt(u') sum w F + sqrt(u' (1 - (u'/u)^(eta^2))) xi, in z."""
    law, s, s2 = PROCESSES[process], 0.6, 0.9
    c, steps = math.sqrt(s * s2), 7
    times = smooth_times(law, steps).tolist()
    model = gaussian(3).denoiser(law)
    g = torch.Generator().manual_seed(2)
    x, *xi = torch.randn(1 + steps, 4, 3, generator=g, dtype=torch.float64)
    alpha = [float(law.alpha(t)) for t in times]
    rho = [float(law.sigma(t)) / a for t, a in zip(times, alpha, strict=True)]
    u = [c * c + r * r for r in rho]
    k = 5 if interpolant == "kernel" else 3

    def residual(z, d, i):
        return math.sqrt(u[i]) / (rho[i] * c) * (d - c * c / u[i] * z)

    def advance(z, i, nodes, f):
        at, ends = [rho[j] for j in nodes], (rho[i], rho[i + 1])
        if interpolant == "lagrange":
            w = weights(at, ends, c, s, s2, None, eta)
        else:
            w = dense_weights(at, *ends, c, s, s2, 0.5, eta)
        ratio = u[i + 1] / u[i]
        total = ratio ** ((1 + eta**2) / 2) * z
        total = total - math.sqrt(u[i + 1]) * sum(v * f[j] for v, j in zip(w, nodes, strict=True))
        return total + math.sqrt(u[i + 1] * (1 - ratio ** (eta**2))) * xi[i]

    z, d, f = x / alpha[0], model.x0(x, times[0]), {}
    f[0] = residual(z, d, 0)
    for i in range(steps):
        old = list(range(i, max(i - k, -1), -1))
        guess = advance(z, i, old, f)
        if i + 1 == steps:
            z = guess
            break
        d = model.x0(alpha[i + 1] * guess, times[i + 1])
        f[i + 1] = residual(guess, d, i + 1)
        z = advance(z, i, [i + 1, *old[: 5 if interpolant == "kernel" else k - 1]], f)
        f[i + 1] = residual(z, d, i + 1)
    sampler = GaussianSplit(eta=eta, interpolant=interpolant, kappa=0.5)
    plan = sk.plan(sampler, law, grid=times, data_std=s, data_spread=s2)
    run = sk.sample(model, (4, 3), sampler=plan, x_init=x, noise=sk.Recorded(xi))
    torch.testing.assert_close(run.x, alpha[-1] * z, rtol=1e-5, atol=1e-7)
    assert run.stats.nfe == steps
    assert plan.draws == tuple(range(steps))


@given(
    process=st.sampled_from(list(PROCESSES)),
    interpolant=st.sampled_from(INTERPOLANTS),
    eta=st.floats(0.0, 1.5),
    n=st.integers(1, 12),
    s=st.sampled_from([0.3, 1.0, 4.0]),
)
def test_gaussian_data_of_one_scale_are_sampled_exactly(process, interpolant, eta, n, s):
    """N(0, s^2 I): the law at the end is the marginal there, at any noise, grid and number of steps."""
    target = sk.Gaussian(torch.zeros(3, dtype=torch.float64), variance=s * s)
    found = sk.certify(
        GaussianSplit(eta=eta, interpolant=interpolant), target, PROCESSES[process], steps=n, against="t_min"
    )
    assert found.discretization.norm < 1e-11 * max(1.0, s)


@pytest.mark.parametrize("process", ["VP", "RectifiedFlow"])
@pytest.mark.parametrize("steps", [1, 6, 15])
def test_no_noise_gives_kernel_quadrature(process, steps):
    law = PROCESSES[process]
    quiet = sk.plan("gaussian-split", law, steps=steps, eta=0.0, data_std=0.5, data_spread=0.8)
    flow = sk.plan("kernel-quadrature", law, steps=steps, data_std=0.5, data_spread=0.8)
    assert not quiet.stochastic
    for a, b in zip(quiet.instructions, flow.instructions, strict=True):
        assert a == b
    assert GaussianSplit(eta=0.0).noise == KernelQuadrature().noise


def test_little_noise_tends_to_no_noise():
    """The weights of eta = 1e-6, by their own rule, against those of kernel-quadrature."""
    for rhos, ends, c, s, s2, kappa in CASES[:3]:
        still = weights(rhos, ends, c, s, s2, kappa, 0.0)
        near = weights(rhos, ends, c, s, s2, kappa, 1e-6)
        np.testing.assert_allclose(near, still, rtol=1e-4, atol=1e-6 * abs(sum(still)))


@pytest.mark.parametrize("steps", [5, 20, 50, 200])
def test_the_noise_rises_with_the_number_of_steps(steps):
    """eta = None: 0.4 up to 20 intervals, as the root of their number beyond, 1 from 125 on."""
    expected = min(1.0, 0.4 * max(1.0, math.sqrt(steps / 20)))
    plain = sk.plan("gaussian-split", sk.VP(), steps=steps)
    assert plain.instructions == sk.plan("gaussian-split", sk.VP(), steps=steps, eta=expected).instructions


@pytest.mark.parametrize(("eta", "first"), [(0.0, 2), (0.6, 2), (0.7, 20), (1.0, 20)])
def test_the_term_of_gaussian_data_enters_with_enough_steps(eta, first):
    """kappa = None: 1, but 0 where eta > 0.6 on fewer than 20 intervals. (One step has one node.)"""
    for steps in (first - 1, first)[first == 2 :]:
        found, without, whole = (
            sk.plan(GaussianSplit(eta=eta, kappa=kappa), sk.EDM(), steps=steps).instructions
            for kappa in (None, 0.0, 1.0)
        )
        assert without != whole
        assert found == (whole if steps == first else without)


def test_the_corrector_reuses_the_draw_of_its_predictor():
    plan = sk.plan("gaussian-split", sk.EDM(), steps=6)
    used: dict[int, list[float]] = {}
    for ins in plan.instructions:
        if isinstance(ins, Combine):
            for size, draw in ins.noise:
                used.setdefault(draw, []).append(size)
    assert sorted(used) == list(range(6))
    assert all(len(sizes) == (2 if draw < 5 else 1) for draw, sizes in used.items())
    assert all(len(set(sizes)) == 1 for sizes in used.values())


def power_law(k: float, d: int = 64) -> sk.Gaussian:
    """N(0, diag(j^-k)), j = 1, ..., d."""
    variance = torch.arange(1, d + 1, dtype=torch.float64) ** -k
    return sk.Gaussian(torch.zeros(d, dtype=torch.float64), variance=variance)


@pytest.mark.parametrize("nfe", [10, 20])
@pytest.mark.parametrize("process", ["VP", "VE", "EDM", "RectifiedFlow"])
def test_it_is_the_nearest_of_the_stochastic_samplers(process, nfe):
    """Exact W2 on power-law spectra, against the best of the others on four grids: at most 0.3 of it."""
    target, law = power_law(1.0), PROCESSES[process]

    def error(name, grid=None, **options):
        found = sk.certify(name, target, law, nfe=nfe, grid=grid, against="t_min", **options)
        return found.discretization.norm

    others = ["sde-dpmpp-2m", "sde-dpmpp-3m", "sa-solver", "er-sde", "seeds", "ddpm", "ancestral"]
    grids = ["karras", "uniform-lambda", "quantile", "standard"]
    best = min(error(name, grid) for name in others for grid in grids)
    assert error("gaussian-split") <= 0.3 * best


def test_options_that_do_not_fit_are_refused():
    with pytest.raises(KeyError, match="kernel"):
        GaussianSplit(interpolant="kernal")
    with pytest.raises(ValueError, match="at most 8"):
        GaussianSplit(nodes=9)
    with pytest.raises(ValueError, match=">= 1"):
        GaussianSplit(nodes=0)
    with pytest.raises(ValueError, match="noise must be finite and > 0"):
        GaussianSplit(noise=0.0)
