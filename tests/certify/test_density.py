"""Exact output densities on the line: against Gaussian certificates, quadrature, closed forms, samples."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import integrate, stats

import sdekit as sk
from sdekit.certify.density import density
from sdekit.certify.density.lattice import Line, fourier, onto_band, onto_line
from sdekit.certify.density.pushforward import Curve, distribution, pushforward
from sdekit.errors import CapabilityError, NotAffineError, ShapeError
from tests.samplers.problems import DETERMINISTIC

S = sk.samplers
GAUSSIAN = sk.Gaussian([0.3], variance=[0.25])
MIXTURE = sk.GaussianMixture([0.35, 0.65], [-1.0, 0.8], [0.05, 0.1])
ONE_STEP = [
    "ddpm", "ancestral", "euler-maruyama", "reverse-diffusion", S.DDIM(eta=0.5), "edm-stochastic",
    "kdpm2-ancestral", "restart", S.DPMpp2S(eta=1.0), "seeds",
]  # fmt: skip
SLOW_TWO_STEP = pytest.param("sde-dpmpp-2m", marks=pytest.mark.slow)
TWO_STEP = ["sde-dpmpp-2m", S.SASolver(predictor=2, corrector=0)]


def cdf(target, x):
    return distribution(target, torch.as_tensor(x, dtype=torch.float64))[0].numpy()


# -- against the exact certificate of a Gaussian ---------------------------------------------------


@pytest.mark.parametrize("process", [sk.VP(), sk.EDM(), sk.RectifiedFlow()], ids=lambda p: type(p).__name__)
@pytest.mark.parametrize("sampler", [*ONE_STEP, *DETERMINISTIC], ids=repr)
def test_gaussian_data(sampler, process):
    if sampler == "euler-maruyama" and isinstance(process, sk.EDM):
        process = sk.VE()
    options = {"steps": 6, "against": "t_min"}
    found, exact = (
        density(sampler, GAUSSIAN, process, **options),
        sk.certify(sampler, GAUSSIAN, process, **options),
    )
    scale = max(1.0, float(exact.law.std))
    assert found.mean == pytest.approx(float(exact.law.mean), abs=1e-8 * scale)
    assert found.std == pytest.approx(float(exact.law.std), abs=1e-8 * scale)
    assert found.kl == pytest.approx(exact.kl, abs=1e-8 * (1 + exact.kl))
    x = found.x.numpy()
    law = stats.norm(float(exact.law.mean), float(exact.law.std))
    np.testing.assert_allclose(found.cdf.numpy(), law.cdf(x), rtol=0, atol=1e-8)
    np.testing.assert_allclose(found.pdf.numpy(), law.pdf(x), rtol=0, atol=1e-8 * law.pdf(law.mean()))


@pytest.mark.parametrize("sampler", TWO_STEP, ids=repr)
def test_gaussian_data_with_memory(sampler):
    found, exact = (f(sampler, GAUSSIAN, sk.VP(), steps=4) for f in (density, sk.certify))
    assert found.mean == pytest.approx(float(exact.law.mean), abs=1e-8)
    assert found.std == pytest.approx(float(exact.law.std), abs=1e-8)
    assert found.kl == pytest.approx(exact.kl, abs=1e-7)


def test_a_draw_that_is_used_twice():
    """Its noise passes through the denoiser: two stages of SEEDS share it."""
    options = {"grid": [0.5, 0.42, 0.35]}
    found, exact = (f(S.Seeds(stages=2), GAUSSIAN, sk.VP(), **options) for f in (density, sk.certify))
    assert found.mean == pytest.approx(float(exact.law.mean), abs=1e-8)
    assert found.std == pytest.approx(float(exact.law.std), abs=1e-8)
    assert found.kl == pytest.approx(exact.kl, abs=1e-7)


def test_distances_between_normals():
    """KS, W1 and KL of N(a, s^2) to N(0.3, 0.25) by scipy's quadrature."""
    found = density("ddim", GAUSSIAN, sk.VP(), steps=3)
    law, data = stats.norm(found.mean, found.std), stats.norm(0.3, 0.5)
    gap = lambda x: abs(law.cdf(x) - data.cdf(x))  # noqa: E731
    assert found.w1 == pytest.approx(integrate.quad(gap, -8, 8, limit=500, epsabs=1e-11)[0], abs=1e-8)
    grid = np.linspace(-3, 3, 400_001)
    assert found.ks == pytest.approx(gap(grid).max(), abs=1e-8)


# -- on a mixture ----------------------------------------------------------------------------------


def program(plan, draws, x0):
    """A plan run by its instructions, on numbers: nothing of the chain or the lattice is used."""
    from sdekit.samplers.plan import Evaluate
    from sdekit.score.predictions import conversion

    registers = {"x[0]": x0}
    for ins in plan.instructions:
        if isinstance(ins, Evaluate):
            p, q = conversion("x0", ins.predicts, ins.node, None, ins.data_std)
            d = MIXTURE._mean_given(registers[ins.x].reshape(-1, 1), ins.node.alpha, ins.node.sigma)
            registers[ins.out] = p * registers[ins.x] + q * d.reshape(registers[ins.x].shape)
        else:
            value = sum(w * registers[name] for w, name in ins.terms)
            registers[ins.out] = value + sum(c * draws[draw] for c, draw in ins.noise)
    return registers[plan.output]


@pytest.mark.parametrize("sampler", ["ddpm", S.DPMpp2S(eta=1.0), "sde-dpmpp-2m"], ids=repr)
def test_two_steps_by_quadrature(sampler):
    """E of a smooth function of the output: a product rule over x[0] and every draw."""
    plan = sk.plan(sampler, sk.VP(), grid=[1.0, 0.5, 0.15])
    n = 120
    nodes = np.linspace(-8.5, 8.5, n)
    weights = np.exp(-0.5 * nodes**2)
    axes = np.meshgrid(*[nodes] * (1 + len(plan.draws)), indexing="ij")
    mass = 1.0
    for k in range(1 + len(plan.draws)):
        shape = [1] * (1 + len(plan.draws))
        shape[k] = n
        mass = mass * (weights / weights.sum()).reshape(shape)
    x = program(plan, {d: torch.from_numpy(a) for d, a in zip(plan.draws, axes[1:], strict=True)},
                torch.from_numpy(axes[0]) * plan.prior_std)  # fmt: skip
    found = density(plan, MIXTURE, sk.VP())
    for f in (torch.sin, lambda y: torch.cos(0.5 * y), torch.tanh):
        expected = float((torch.from_numpy(mass) * f(x)).sum())
        assert float(torch.trapezoid(found.pdf * f(found.x), found.x)) == pytest.approx(expected, abs=2e-7)


@pytest.mark.parametrize("sampler", ["ddpm", "kdpm2-ancestral", "restart", "heun", "dpmpp-3m", SLOW_TWO_STEP])
def test_against_samples(sampler):
    """Kolmogorov's distance of 200,000 samples to the certified cdf: false alarm 1e-6."""
    n = 200_000
    found = density(sampler, MIXTURE, sk.VP(), steps=6)
    run = sk.sample(MIXTURE.denoiser(sk.VP()), (n, 1), sampler=sampler, steps=6, dtype=torch.float64)
    x = np.sort(run.x[:, 0].numpy())
    certified = np.interp(x, found.x.numpy(), found.cdf.numpy(), left=0.0, right=1.0)
    steps = np.arange(n + 1) / n
    ks = max(np.abs(certified - steps[1:]).max(), np.abs(certified - steps[:-1]).max())
    assert ks < stats.kstwobign.isf(1e-6) / math.sqrt(n) + 1e-6
    assert found.ks > 3 * ks  # it is the sampler's own error that is certified


@pytest.mark.parametrize("sampler", ["ddpm", "euler-maruyama", "kernel-quadrature", SLOW_TWO_STEP])
def test_it_converges_and_says_how_far(sampler):
    coarse, fine = (density(sampler, MIXTURE, sk.VP(), steps=5, resolution=r) for r in (1.5, 2.5))
    for key, error in fine.errors.items():
        gap = abs(getattr(coarse, key) - getattr(fine, key))
        assert gap <= 2 * (coarse.errors[key] + error) + 1e-9
        assert error < 1e-6


@pytest.mark.parametrize("end", ["t_min", "clean"])
def test_the_error_across_a_fold_is_not_understated(end):
    """Heun's map of five steps folds, and KL converges at first order only."""
    coarse, fine = (density("heun", MIXTURE, sk.VP(), steps=5, end=end, resolution=r) for r in (2.0, 24.0))
    assert abs(coarse.kl - fine.kl) <= coarse.errors["kl"]


def test_more_steps_come_closer():
    distances = [density("ddpm", MIXTURE, sk.VP(), steps=n, against="t_min").w1 for n in (10, 20, 40)]
    assert distances[0] > 1.7 * distances[1] > 2.5 * distances[2]


def test_the_start_may_be_the_marginal():
    found = density("kernel-quadrature", GAUSSIAN, sk.VP(), steps=40, start="marginal", against="t_min")
    assert found.w1 < 1e-6
    prior = density("kernel-quadrature", GAUSSIAN, sk.VP(), steps=40, against="t_min")
    assert prior.w1 > 10 * found.w1


def test_clean_end():
    found = density("ddpm", GAUSSIAN, sk.VP(), steps=6, end="clean")
    exact = sk.certify("ddpm", GAUSSIAN, sk.VP(), steps=6, end="clean")
    assert found.std == pytest.approx(float(exact.law.std), abs=1e-9)


# -- the pieces ------------------------------------------------------------------------------------


def points():
    """Two hundred points of a smooth law, as f(z) with f bent, z ~ N(0, 1)."""
    z = torch.linspace(-8.5, 8.5, 400, dtype=torch.float64)
    mass = torch.exp(-0.5 * z * z) * float(z[1] - z[0]) / math.sqrt(2 * math.pi)
    return z + 0.4 * torch.sin(z), mass


@pytest.mark.parametrize("spacing", [0.05, 0.1, 0.3])
def test_scatter_and_fourier_agree(spacing):
    mean, mass = points()
    line = onto_line(mean, mass, 0.5, spacing)
    exact = (mass[:, None] * torch.special.ndtr((line.y - mean[:, None]) / 0.5)).sum(0)
    torch.testing.assert_close(line.cdf, exact, atol=1e-14, rtol=0)
    if spacing <= 0.1:
        other = fourier(mean, mass, 0.5, 0.5, spacing)
        exact = (mass[:, None] * torch.special.ndtr((other.y - mean[:, None]) / 0.5)).sum(0)
        torch.testing.assert_close(other.cdf, exact, atol=1e-11, rtol=0)
        pdf = (mass[:, None] * torch.exp(-0.5 * ((other.y - mean[:, None]) / 0.5) ** 2)).sum(0)
        torch.testing.assert_close(
            other.mass, pdf * spacing / (0.5 * math.sqrt(2 * math.pi)), atol=1e-11, rtol=0
        )


@pytest.mark.parametrize("std", [0.1, 0.5])
def test_bands_hold_the_joint_law(std):
    mean, mass = points()
    axis = torch.arange(400, dtype=torch.float64)
    band = onto_band(axis, mean, mass, std, 0.06)
    assert float(band.mass.sum()) == pytest.approx(1.0, abs=1e-12)
    line = onto_line(mean, mass, std, 0.06)
    assert len(line.y) == len(band.y)
    torch.testing.assert_close(band.mass.sum(1), line.mass, atol=1e-12, rtol=0)
    position = (band.mass * band.z[band.index]).sum()
    assert float(position) == pytest.approx(float((axis * mass).sum()), abs=1e-9)


def test_images_of_a_normal():
    """sinh is increasing, and z^2 is not: chi-squared with one degree of freedom."""
    z = torch.linspace(-8, 8, 20_001, dtype=torch.float64)
    mass = torch.exp(-0.5 * z * z) * 8e-4 / math.sqrt(2 * math.pi)
    line = Line(z, mass, torch.special.ndtr(z))
    curve = pushforward(line, torch.sinh(z), torch.cosh(z))
    at = np.array([-2.0, 0.3, 5.0])
    expected = stats.norm.cdf(np.arcsinh(at))
    np.testing.assert_allclose(np.interp(at, curve.x.numpy(), curve.cdf.numpy()), expected, rtol=0, atol=1e-6)
    square = pushforward(line, z * z, 2 * z)
    assert square.mean == pytest.approx(1.0, abs=1e-9)
    assert square.std == pytest.approx(math.sqrt(2.0), abs=1e-9)
    at = np.array([0.1, 1.0, 4.0])
    np.testing.assert_allclose(
        np.interp(at, square.x.numpy(), square.cdf.numpy()), stats.chi2(1).cdf(at), atol=1e-5
    )
    np.testing.assert_allclose(
        np.interp(at, square.x.numpy(), square.pdf.numpy()), stats.chi2(1).pdf(at), rtol=1e-4
    )


def test_distances_of_a_shift():
    """N(0, 1) against N(m, 1): KS = 2 Phi(m/2) - 1, W1 = m, KL = m^2/2."""
    x = torch.linspace(-9, 10, 3001, dtype=torch.float64)
    pdf = torch.exp(-0.5 * x * x) / math.sqrt(2 * math.pi)
    curve = Curve(x, pdf, torch.special.ndtr(x), 0.0, 1.0)
    _, _, ks, w1, kl = curve.measure(sk.Gaussian([0.4], variance=[1.0]))
    assert ks == pytest.approx(2 * stats.norm.cdf(0.2) - 1, abs=1e-9)
    assert w1 == pytest.approx(0.4, abs=1e-9)
    assert kl == pytest.approx(0.08, abs=1e-9)
    wide = Curve(x, pdf, torch.special.ndtr(x), 0.0, 1.0).measure(sk.Gaussian([0.0], variance=[4.0]))
    assert wide[3] == pytest.approx(math.sqrt(2 / math.pi), abs=1e-7)  # the target's tails reach further


# -- what it refuses -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sampler", "reason"),
    [
        ("gaussian-split", "more than one place and keeps an earlier prediction"),
        ("sde-dpmpp-3m", "more than one earlier state"),
        (S.SASolver(predictor=1, corrector=1), "three coordinates"),
    ],
    ids=repr,
)
def test_longer_memory_is_refused(sampler, reason):
    with pytest.raises(CapabilityError, match=reason):
        density(sampler, MIXTURE, sk.VP(), steps=5)


def test_other_refusals():
    with pytest.raises(ShapeError, match="one-dimensional events"):
        density("ddpm", sk.Gaussian([0.0, 0.0], variance=1.0), sk.VP())
    with pytest.raises(TypeError, match="GaussianMixture or Gaussian"):
        density("ddpm", sk.Empirical(torch.randn(5, 1)), sk.VP())
    with pytest.raises(NotAffineError, match="'pc' applies"):
        density("pc", MIXTURE, sk.VP(), steps=3)
    with pytest.raises(ValueError, match="'data' or 't_min'"):
        density("ddpm", MIXTURE, sk.VP(), steps=3, against="t_max")
    with pytest.raises(ValueError, match="'prior' or 'marginal'"):
        density("ddpm", MIXTURE, sk.VP(), steps=3, start="data")
    with pytest.raises(CapabilityError, match="needs a Gaussian target"):
        density("ddpm", MIXTURE, sk.VP(), steps=3, start="marginal")
    with pytest.raises(ValueError, match="no closed form on a mixture"):
        density("ddpm", MIXTURE, sk.VP(), steps=3, end="clean", against="t_min")
    with pytest.raises(ValueError, match="resolution"):
        density("ddpm", MIXTURE, sk.VP(), steps=3, resolution=0.0)


def test_the_module_is_the_function():
    """`sk.certify.density(...)`."""
    found = sk.certify.density("ddpm", MIXTURE, sk.VP(), steps=4)
    assert found.nfe == 4
    assert "self-convergence" in repr(found)
    assert found.cdf.shape == found.pdf.shape == found.x.shape
