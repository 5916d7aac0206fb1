"""The fourth part of the error: a model that is not the exact denoiser, against runs of that very model."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

import sdekit as sk
from sdekit.errors import NonFiniteError, ShapeError
from sdekit.sde.rows import over_event
from tests.certify.test_exact import impulse_law
from tests.samplers.problems import AFFINE, PROCESSES, gaussian

EXACT = {"rtol": 1e-9, "atol": 1e-11}
PARTS = ("initial", "discretization", "score_error", "truncation")


class Wrong:
    """x0_hat = D + (gain x + shift) h(t), as a model that `sample` runs; gain and shift per direction."""

    def __init__(self, target: sk.Gaussian, process: sk.GaussianDiffusion, seed: int = 0) -> None:
        g = torch.Generator().manual_seed(seed)
        self.target, self.process = target, process
        self.gain, self.shift = (
            0.1 * torch.randn(target.dimension, generator=g, dtype=torch.float64) for _ in range(2)
        )
        self.dimension, self.event_shape = target.dimension, target.event_shape
        self.to_basis, self.from_basis = target.to_basis, target.from_basis

    def strength(self, alpha, sigma):
        """h, larger at high noise."""
        return sigma / (alpha**2 + sigma**2) ** 0.5

    def perturbation(self, node):
        h = self.strength(node.alpha, node.sigma)
        return h * self.gain, h * self.shift

    def denoiser(self, process):
        exact = self.target.denoiser(process)

        def net(x, t):
            h = self.strength(process.alpha(t.double()), process.sigma(t.double()))
            wrong = self.from_basis(self.gain * self.to_basis(x) + self.shift)
            return exact.x0(x, t) + over_event(h, x) * wrong

        return sk.Denoiser(net, process, predicts="x0", data_std=1.0)


@pytest.mark.parametrize("end", ["t_min", "clean"])
@pytest.mark.parametrize("process", ["VP", "VE", "RectifiedFlow"])
@pytest.mark.parametrize("name", AFFINE)
def test_the_certificate_of_a_wrong_model_is_that_of_its_run(name, process, end):
    """By impulses through `sample` with the perturbed model: equal to rounding."""
    law = PROCESSES[process]
    wrong = Wrong(gaussian(4, rotated=True), law)
    found = sk.certify(name, wrong.target, law, steps=6, end=end, perturbation=wrong.perturbation)
    measured = impulse_law(found.plan, wrong, law)
    torch.testing.assert_close(found.law.mean, measured.mean, **EXACT)
    torch.testing.assert_close(found.law.std, measured.std, **EXACT)
    assert found.score_error.norm > 1e-3
    honest = sk.certify(name, wrong.target, law, steps=6, end=end)
    for part in ("initial", "discretization", "truncation"):
        assert torch.equal(getattr(found, part).std, getattr(honest, part).std)
    assert honest.score_error.norm == 0.0


@given(
    name=st.sampled_from(AFFINE),
    process=st.sampled_from(list(PROCESSES)),
    steps=st.integers(1, 8),
    seed=st.integers(0, 99),
)
def test_the_four_parts_add_up(name, process, steps, seed):
    law = PROCESSES[process]
    wrong = Wrong(gaussian(5), law, seed)
    c = sk.certify(name, wrong.target, law, steps=steps, perturbation=wrong.perturbation)
    size = 1e-14 * (1 + float(c.law.std.max()) + float(c.law.mean.abs().max()))
    for what in ("mean", "std"):
        total = sum(getattr(getattr(c, part), what) for part in PARTS)
        torch.testing.assert_close(total, getattr(c.error, what), rtol=1e-12, atol=100 * size)
    if c.score_error.norm > 0:
        assert "score error" in repr(c)


@pytest.mark.parametrize("name", ["ddpm", "kernel-quadrature", "gaussian-split"])
def test_the_law_of_another_gaussian_as_model(name):
    """model=Gaussian against impulses through its own denoiser, in a rotated basis, of a dense copy too."""
    law, target = sk.VP(), gaussian(4, rotated=True)
    values = target.eigenvalues * torch.tensor([0.5, 1.0, 1.5, 2.0], dtype=torch.float64)
    other = target.with_eigenvalues(values, target.mean + 0.3)
    measured = None
    for model in (other, sk.Gaussian(other.mean, other.cov)):
        found = sk.certify(name, target, law, steps=6, model=model)
        measured = measured or impulse_law(found.plan, other, law)
        response = target.to_basis(other.from_basis(measured.mean[None]))[0]
        torch.testing.assert_close(found.law.mean, response, **EXACT)
        torch.testing.assert_close(found.law.std, measured.std, **EXACT)
    right = sk.certify(name, target, law, steps=6, model=target)
    assert right.score_error.norm == 0.0
    fine = sk.certify("kernel-quadrature", target, law, steps=60, model=other)
    ideal = other.marginal(law, law.t_min)
    torch.testing.assert_close(fine.law.std, ideal.eigenvalues.sqrt(), rtol=1e-4, atol=1e-4)


def test_an_error_of_the_score_is_an_error_of_the_denoiser():
    """score_hat = (1 + e) score is x0_hat = D + e sigma^2/alpha score: two ways to write one model."""
    law, target, e = sk.VP(), gaussian(3), 0.05
    c, m = target.eigenvalues, target.mean

    def of_the_score(node):  # score = -(x - alpha m)/(alpha^2 c + sigma^2)
        total = node.alpha**2 * c + node.sigma**2
        return tuple(e * node.sigma**2 / node.alpha * part for part in (-1 / total, node.alpha * m / total))

    exact = target.denoiser(law)
    model = sk.Denoiser(lambda x, t: (1 + e) * exact.score(x, t), law, predicts="score", data_std=1.0)
    found = sk.certify("euler-maruyama", target, law, steps=8, perturbation=of_the_score)

    class Model:
        dimension, event_shape = target.dimension, target.event_shape
        to_basis, from_basis = staticmethod(target.to_basis), staticmethod(target.from_basis)

        def denoiser(self, process):
            return model

    measured = impulse_law(found.plan, Model(), law)
    torch.testing.assert_close(found.law.std, measured.std, **EXACT)
    torch.testing.assert_close(found.law.mean, measured.mean, **EXACT)


def test_samples_of_a_wrong_model_follow_the_certificate():
    """50,000 samples: 16 means and variances within 4 deviations (false alarm 1e-3 at a fresh seed)."""
    law = sk.VP()
    wrong = Wrong(gaussian(8, rotated=True), law)
    found = sk.certify("gaussian-split", wrong.target, law, steps=8, perturbation=wrong.perturbation)
    n = 50_000
    x = sk.sample(wrong.denoiser(law), (n, 8), sampler=found.plan, dtype=torch.float64).x
    c = wrong.to_basis(x)
    means = (c.mean(0) - found.law.mean) / found.law.std * math.sqrt(n)
    assert float(means.abs().max()) <= 4.0
    chi = (c.var(0) / found.law.std.square() * (n - 1)).numpy()
    tails = stats.chi2.cdf(chi, n - 1)
    assert stats.norm.cdf(-4) <= tails.min() <= tails.max() <= stats.norm.cdf(4)
    honest = sk.certify("gaussian-split", wrong.target, law, steps=8)
    far = (c.mean(0) - honest.law.mean) / honest.law.std * math.sqrt(n)
    assert float(far.abs().max()) > 20.0  # the control: the exact denoiser's law is not that of the samples


@pytest.mark.parametrize(
    ("options", "kind", "words"),
    [
        (
            {"model": sk.Gaussian(torch.zeros(3), 1.0)},
            sk.errors.ShapeError,
            r"event shape \(2,\), got \(3,\)",
        ),
        (
            {"perturbation": lambda node: (torch.ones(3), 0.0)},
            sk.errors.ShapeError,
            r"gain of a perturbation must be a number or \(2,\).*to_basis",
        ),
        (
            {"model": sk.Gaussian(torch.zeros(2), [[1.0, 0.5], [0.5, 1.0]])},
            ValueError,
            "same eigenvectors.*with_eigenvalues",
        ),
    ],
)
def test_refusals(options, kind, words):
    with pytest.raises(kind, match=f"(?s){words}"):
        sk.certify("ddim", gaussian(2), sk.VP(), steps=3, **options)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"perturbation": lambda node: 0.1}, TypeError, r"must return \(gain, shift\)"),
        ({"perturbation": lambda node: (0.1, 0.0, 0.0)}, TypeError, r"must return \(gain, shift\)"),
        ({"perturbation": lambda node: (math.nan, 0.0)}, NonFiniteError, "the gain"),
        ({"perturbation": lambda node: (0.0, np.zeros(2))}, ShapeError, "the shift"),
        ({"model": sk.GaussianMixture([1.0], [[0.0]], 1.0)}, TypeError, "model must be a Gaussian"),
    ],
)
def test_models_that_do_not_fit(options, error, message):
    target = sk.Gaussian(torch.zeros(3), variance=[1.0, 0.5, 0.1])
    with pytest.raises(error, match=message):
        sk.certify("ddim", target, sk.VP(), steps=3, **options)


def test_a_perturbation_in_arrays():
    target = sk.Gaussian(torch.zeros(3), variance=[1.0, 0.5, 0.1])
    one, other = (
        sk.certify("ddim", target, sk.VP(), steps=3, perturbation=lambda node, a=a: (a, 0.0)).w2
        for a in (np.full(3, -0.1), -0.1)
    )
    assert one == pytest.approx(other, abs=1e-14)


def test_certificates_can_be_compared_and_kept_in_sets():
    target = sk.Gaussian(torch.zeros(3), variance=[1.0, 0.5, 0.1])
    one, other = (sk.certify("ddim", target, sk.VP(), steps=3) for _ in range(2))
    assert one != other
    assert one.law != other.law
    assert len({one, other, one}) == 2
