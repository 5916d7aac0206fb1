"""Pierret and Galerne 2025 (ICML): their schemes, their recursions for the eigenvalues, and their findings.

The paper's target is CIFAR-10's covariance; here it is that of 8 x 8 colour patches of two photographs, with
the same shape: a few directions hold the variance. Parts and ranking do not depend on more.
"""

from __future__ import annotations

import functools
import itertools
import math

import numpy as np
import pytest
import torch

import sdekit as sk
from tests.certify.published import COST, RK4, SCHEMES, DiscreteDDPM

VP = sk.VP()


@functools.cache
def patches() -> sk.Gaussian:
    """N(0, diag of the covariance's eigenvalues) of 8 x 8 patches of scikit-learn's photographs."""
    from sklearn.datasets import load_sample_images

    found = []
    for image in load_sample_images().images:
        x = torch.tensor(image, dtype=torch.float64).permute(2, 0, 1) / 255
        tiles = x.unfold(1, 8, 8).unfold(2, 8, 8).permute(1, 2, 0, 3, 4)
        found.append(tiles.reshape(-1, 192))
    values = torch.linalg.eigvalsh(torch.cov(torch.cat(found).T))
    return sk.Gaussian(0.0, variance=values)


def certificate(scheme: str, nfe: int, epsilon: float) -> sk.Certificate:
    """N = nfe / (evaluations a step) nodes of equal distance from t = 1 to epsilon."""
    grid = torch.linspace(1, epsilon, nfe // COST.get(scheme, 1), dtype=torch.float64)
    return sk.certify(SCHEMES[scheme], patches(), VP, grid=grid)


def from_the_marginal(c: sk.Certificate) -> float:
    """W2 of the run that starts at the true marginal: everything but the initial part."""
    gaps = (c.error.mean - c.initial.mean, c.error.std - c.initial.std)
    return math.sqrt(sum(float(gap.square().sum()) for gap in gaps))


def eigenvalues(scheme: str, n: int, epsilon: float, lam: np.ndarray) -> np.ndarray:
    """The output's eigenvalues by the paper's recursions, in numpy, from N(0, I).

    beta_t = 0.05 + 9.95 t, B_t its integral, lambda_t = exp(-2 B_t) lambda + 1 - exp(-2 B_t).
    """

    def rate(t):
        return 0.05 + 9.95 * t

    def integral(t):
        return 0.05 * t + 9.95 * t * t / 2

    def at(t):
        return lam * np.exp(-2 * integral(t)) - np.expm1(-2 * integral(t))

    def slope(t):  # of the probability flow, backwards in time
        return rate(t) * (1 - 1 / at(t))

    times = np.linspace(1.0, epsilon, n)
    v = np.ones_like(lam)
    for t, u in itertools.pairwise(times):
        h, b = t - u, rate(t)
        if scheme == "EM":
            v = (1 + h * b * (1 - 2 / at(t))) ** 2 * v + 2 * h * b
        elif scheme == "EI":
            r = np.exp(integral(t) - integral(u))
            v = (1 + (r - 1) * (1 - 2 / at(t))) ** 2 * v + r * r - 1
        elif scheme == "DDPM":
            v = (1 - 2 * h * b / at(t)) ** 2 / (1 - 2 * h * b) * v + 2 * h * b
        elif scheme == "Euler":
            v = (1 + h * slope(t)) ** 2 * v
        elif scheme == "Heun":
            v = (1 + h / 2 * slope(t) + h / 2 * slope(u) * (1 + h * slope(t))) ** 2 * v
        else:
            one = slope(t)
            two = slope(t - h / 2) * (1 + h / 2 * one)
            three = slope(t - h / 2) * (1 + h / 2 * two)
            v = (1 + h / 6 * (one + 2 * two + 2 * three + slope(u) * (1 + h * three))) ** 2 * v
    return v


@pytest.mark.parametrize("epsilon", [0.0, 1e-5, 1e-3])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_certificates_are_the_published_recursions(scheme, epsilon):
    """Recipes and certificate against the recursions, eigenvalue by eigenvalue."""
    if scheme in COST and epsilon == 0:
        epsilon = 1e-4  # the last stage would evaluate at t = 0
    found = certificate(scheme, 60, epsilon)
    expected = eigenvalues(scheme, 60 // COST.get(scheme, 1), epsilon, patches().eigenvalues.numpy())
    torch.testing.assert_close(found.law.std, torch.from_numpy(expected).sqrt(), rtol=1e-8, atol=1e-12)


def test_the_ranking_of_the_schemes():
    """As in the paper's table: at 50 evaluations, at 1,000, and what truncation does to each."""
    w2 = {
        (scheme, nfe, epsilon): from_the_marginal(certificate(scheme, nfe, epsilon))
        for scheme in SCHEMES
        for nfe in (50, 1000)
        for epsilon in (1e-5, 1e-3)
    }
    for epsilon in (1e-5, 1e-3):
        few = {scheme: w2[scheme, 50, epsilon] for scheme in SCHEMES}
        assert few["Euler"] < few["EI"] < few["EM"] < few["DDPM"]
        many = {scheme: w2[scheme, 1000, epsilon] for scheme in SCHEMES}
        assert many["Euler"] < many["EM"] < many["DDPM"]
        assert many["EI"] == pytest.approx(many["EM"], rel=0.1)
    for scheme in ("Heun", "RK4"):  # unstable near t = 0 at few steps: truncation helps them,
        assert w2[scheme, 50, 1e-3] < w2[scheme, 50, 1e-5] / 5
        assert w2[scheme, 50, 1e-5] > w2["DDPM", 50, 1e-5]
    for scheme in ("EM", "EI", "DDPM", "Euler"):  # and at 1,000 evaluations harms the others
        assert w2[scheme, 1000, 1e-3] > w2[scheme, 1000, 1e-5]


def test_the_initial_error_of_the_sde_is_forgotten_and_that_of_the_ode_is_not():
    """Limits of short steps at t = 0, from N(0, I), in the paper's closed forms (equations 7 and 8)."""
    lam = patches().eigenvalues
    shrink = float(VP.alpha(1.0)) ** 2
    last = shrink * lam + 1 - shrink
    sde = (lam + shrink * lam**2 / last * (1 / last - 1)).sqrt() - lam.sqrt()
    ode = (lam / last).sqrt() - lam.sqrt()
    assert float(sde.norm()) < float(ode.norm()) / 50
    grid = torch.linspace(1, 0, 20_001, dtype=torch.float64)
    found = sk.certify("euler-maruyama", patches(), VP, grid=grid).initial
    assert found.norm == pytest.approx(float(sde.norm()), rel=0.02)
    found = sk.certify("euler", patches(), VP, grid=grid).initial
    assert found.norm == pytest.approx(float(ode.norm()), rel=0.01)


def test_the_recipes_have_their_orders():
    """RK4 fourth, the table's DDPM first order, on lambda = lambda_0 + (lambda_1 - lambda_0) u^2 (3 - 2u)."""
    from tests.samplers.problems import smooth_times

    target = sk.Gaussian(0.0, variance=torch.tensor([0.3, 1.4]))
    for scheme, order in ((RK4(), 4.0), (DiscreteDDPM(), 1.0)):
        coarse, fine = (
            sk.certify(scheme, target, VP, grid=smooth_times(VP, k)).discretization.norm for k in (320, 640)
        )
        assert math.log2(coarse / fine) == pytest.approx(order, abs=0.25)
