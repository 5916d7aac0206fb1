"""Explicit, implicit, sliced and finite-difference score matching against closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import sdekit as sk
from sdekit.errors import NonFiniteError, ShapeError, UnknownNameError
from sdekit.matching import losses
from sdekit.matching.losses.fields import probe

DOUBLE = torch.float64
WAYS = {
    "implicit": losses.implicit,
    "hutchinson": lambda s, x, **k: losses.implicit(s, x, probes=3, **k),
    "sliced": lambda s, x, **k: losses.sliced(s, x, probes=3, **k),
    "sliced, normal": lambda s, x, **k: losses.sliced(s, x, probes=3, law="normal", **k),
    "sliced, both random": lambda s, x, **k: losses.sliced(s, x, probes=3, variance_reduced=False, **k),
    "finite differences": lambda s, x, **k: losses.finite_difference(s, x, probes=3, **k),
}


def data(n=200, d=3, seed=0):
    """Correlated, with a mean."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(d, d, dtype=DOUBLE, generator=generator)
    return torch.randn(n, d, dtype=DOUBLE, generator=generator) @ mix.T + torch.arange(d)


def smooth(d=3, seed=1):
    """A nonlinear score without symmetry, and its parameters."""
    generator = torch.Generator().manual_seed(seed)
    w = torch.randn(d, d, dtype=DOUBLE, generator=generator).requires_grad_()
    b = torch.randn(d, dtype=DOUBLE, generator=generator).requires_grad_()
    return (lambda x: torch.tanh(x @ w.T + b) @ w.T * 0.5 - x), (w, b)


def gauss_newton(loss, shapes):
    """The minimiser of a loss that is quadratic in its parameters: one Newton step from 0."""
    sizes = [math.prod(s) for s in shapes]

    def value(theta):
        return loss(*(p.reshape(s) for p, s in zip(theta.split(sizes), shapes, strict=True)))

    zero = torch.zeros(sum(sizes), dtype=DOUBLE)
    gradient = torch.autograd.functional.jacobian(value, zero)
    hessian = torch.autograd.functional.hessian(value, zero)
    theta = -torch.linalg.solve(hessian, gradient)
    return [p.reshape(s) for p, s in zip(theta.split(sizes), shapes, strict=True)]


def test_implicit_matching_of_a_gaussian_gives_mean_and_inverse_covariance():
    """Hyvarinen 2005, section 3.1: s = -M (x - mu) has M = C^{-1}, with 1/N in C, and mu the sample mean."""
    x = data()
    matrix, shift = gauss_newton(
        lambda a, b: losses.implicit(lambda y: y @ a.T + b, x).mean(), [(3, 3), (3,)]
    )
    covariance = torch.cov(x.T, correction=0)
    torch.testing.assert_close(-matrix, torch.linalg.inv(covariance), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(-torch.linalg.solve(matrix, shift), x.mean(0), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["normal", "rademacher", "sphere"])
def test_sliced_matching_of_a_gaussian_is_the_least_squares_of_its_slices(name):
    """With v: s = A x + b minimises sum v^T A v + |A x + b|^2/2, so that A C = -mean of v v^T, b = -A m."""
    x = data()
    v = probe(name, x, 5, 0)
    matrix, shift = gauss_newton(
        lambda a, b: losses.sliced(lambda y: y @ a.T + b, x, law=name, seed=5).mean(), [(3, 3), (3,)]
    )
    slices = v.T @ v / len(x)
    expected = -slices @ torch.linalg.inv(torch.cov(x.T, correction=0))
    torch.testing.assert_close(matrix, expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(shift, -expected @ x.mean(0), rtol=1e-9, atol=1e-9)


def test_implicit_and_explicit_differ_by_a_constant_of_the_data():
    """Gauss-Hermite nodes of a Gaussian: the difference is E |grad log p|^2 / 2 = tr C^{-1} / 2."""
    nodes, weights = (torch.from_numpy(v) for v in np.polynomial.hermite_e.hermegauss(24))
    grid = torch.cartesian_prod(nodes, nodes)
    weight = torch.cartesian_prod(weights, weights).prod(1)
    weight = weight / weight.sum()
    std = torch.tensor([0.5, 0.8], dtype=DOUBLE)
    x = std * grid

    def score(y):
        return torch.stack([torch.sin(y[:, 0] + 2 * y[:, 1]), y[:, 0] * y[:, 1] - y[:, 1]], 1)

    def expected(values):
        return float((weight * values).sum().detach())

    difference = expected(losses.explicit(score, x, lambda y: -y / std**2) - losses.implicit(score, x))
    assert difference == pytest.approx(0.5 * float((1 / std**2).sum()), abs=1e-9)


def test_the_exact_trace_is_that_of_the_jacobian_for_images_too():
    score, _ = smooth(12)
    x = data(4, 12)
    jacobian = torch.stack(
        [torch.autograd.functional.jacobian(lambda y: score(y[None])[0], row) for row in x]
    )
    expected = torch.einsum("bii->b", jacobian) + 0.5 * score(x).square().sum(1)
    torch.testing.assert_close(losses.implicit(score, x), expected)
    images = x.reshape(4, 3, 2, 2)
    value = losses.implicit(lambda y: score(y.flatten(1)).reshape(y.shape), images)
    torch.testing.assert_close(value, expected)


@pytest.mark.parametrize("name", ["normal", "rademacher", "sphere"])
def test_probes_have_identity_covariance(name):
    """20,000 probes in D = 3: entries of the mean of v v^T within 5 standard errors (at most sqrt(2)/141)."""
    v = probe(name, torch.zeros(20_000, 3, dtype=DOUBLE), 3, 0)
    assert float((v.T @ v / len(v) - torch.eye(3)).abs().max()) < 5 * math.sqrt(2 / 20_000)
    if name == "rademacher":
        assert torch.equal(v.abs(), torch.ones_like(v))
    if name == "sphere":
        torch.testing.assert_close(v.square().sum(1), torch.full((20_000,), 3.0, dtype=DOUBLE))


def test_a_probe_sliced_is_its_own_formula():
    score, _ = smooth()
    x = data(5)
    for law in ("normal", "rademacher", "sphere"):
        v = [probe(law, x, 7, 2 * 4 + j) for j in range(2)]
        jacobian = torch.stack(
            [torch.autograd.functional.jacobian(lambda y: score(y[None])[0], r) for r in x]
        )
        curved = torch.stack([torch.einsum("bi,bij,bj->b", p, jacobian, p) for p in v]).mean(0)
        s = score(x)
        reduced = curved + 0.5 * s.square().sum(1)
        plain = curved + 0.5 * torch.stack([(s * p).sum(1).square() for p in v]).mean(0)
        torch.testing.assert_close(losses.sliced(score, x, probes=2, law=law, seed=7, draw=4), reduced)
        torch.testing.assert_close(
            losses.sliced(score, x, probes=2, law=law, variance_reduced=False, seed=7, draw=4), plain
        )
        if law == "rademacher":
            torch.testing.assert_close(losses.implicit(score, x, probes=2, seed=7, draw=4), reduced)


@pytest.mark.parametrize("reduced", [True, False])
@pytest.mark.parametrize("law", ["normal", "rademacher", "sphere"])
def test_sliced_is_unbiased_for_implicit(law, reduced):
    """4,000 probes of one point against the exact trace: 5 standard errors, false alarms 6e-7."""
    score, _ = smooth()
    x = data(1).expand(4000, 3)
    value = losses.sliced(score, x, law=law, variance_reduced=reduced, seed=11)
    error = float((value.mean() - losses.implicit(score, x[:1])).detach())
    assert abs(error) < 5 * float(value.std().detach()) / math.sqrt(4000)
    assert float(value.std().detach()) > 0.05


@torch.no_grad()
@given(scale=st.floats(0.3, 3), seed=st.integers(0, 99))
def test_finite_differences_converge_at_order_two(scale, seed):
    score, _ = smooth(seed=seed)
    x = scale * data(6, seed=seed)
    exact = losses.sliced(score, x, law="normal", seed=seed)
    errors = [
        float((losses.finite_difference(score, x, eps=e, law="normal", seed=seed) - exact).abs().max())
        for e in (2e-3, 1e-3)
    ]
    assert errors[1] == pytest.approx(0.25 * errors[0], rel=0.05)
    assert float((losses.finite_difference(score, x, law="normal", seed=seed) - exact).abs().max()) < 1e-6


def energy(x):
    """Quartic, coupled."""
    return 0.25 * x.pow(4).sum(1) + torch.sin(x[:, 0] * x[:, 1])


@torch.no_grad()
def test_finite_differences_of_an_energy_need_its_values_alone():
    x = data(6) / 3
    model = sk.Energy(energy)
    exact = losses.sliced(model, x, law="normal", variance_reduced=False, seed=2)
    errors = [
        (losses.finite_difference(model, x, eps=e, law="normal", seed=2) - exact).abs().max()
        for e in (2e-2, 1e-2)
    ]
    assert float(errors[1] / errors[0]) == pytest.approx(0.25, abs=0.02)
    default = losses.finite_difference(model, x, law="normal", seed=2, probes=2)
    both = losses.sliced(model, x, law="normal", variance_reduced=False, seed=2, probes=2)
    torch.testing.assert_close(default, both, rtol=1e-5, atol=1e-5)

    def vector(y, _):
        raise AssertionError("no score is asked for")

    model.forward = vector
    losses.finite_difference(model, x)


@pytest.mark.parametrize("name", WAYS)
def test_gradients_reach_the_weights_and_are_right(name):
    x = data(4)
    _, (w, b) = smooth()

    def loss(w, b):
        return WAYS[name](lambda y: torch.tanh(y @ w.T + b) @ w.T * 0.5 - y, x).sum()

    options = {"eps": 1e-4, "atol": 1e-4, "rtol": 1e-4} if name == "finite differences" else {}
    assert torch.autograd.gradcheck(loss, (w, b), **options)


@pytest.mark.parametrize("name", WAYS)
def test_every_form_takes_time_energies_denoisers_and_no_grad(name):
    x, t = data(5), torch.linspace(0.2, 0.8, 5, dtype=DOUBLE)
    target = sk.Gaussian(torch.zeros(3, dtype=DOUBLE), variance=0.5)
    model = target.denoiser(sk.VP())
    field = target.score(sk.VP())
    a = WAYS[name](model, x, t=t)
    assert a.shape == (5,)
    torch.testing.assert_close(a, WAYS[name](field, x, t=t))
    variance = (0.5 * sk.VP().alpha(t) ** 2 + sk.VP().sigma(t) ** 2)[:, None]
    quadratic = sk.Energy(lambda y, s: 0.5 * (y.square() / variance).sum(1))
    if name != "finite differences":
        torch.testing.assert_close(a, WAYS[name](quadratic, x, t=t))
    with torch.no_grad():
        without = WAYS[name](field, x, t=t)
    assert not without.requires_grad
    torch.testing.assert_close(a, without)
    one = WAYS[name](field, x, t=0.3)
    torch.testing.assert_close(one, WAYS[name](field, x, t=torch.full((5,), 0.3, dtype=DOUBLE)))
    torch.testing.assert_close(losses.explicit(model, x, field, t=t), torch.zeros(5, dtype=DOUBLE))


def test_a_score_that_ignores_x_has_no_trace():
    w = torch.ones(3, requires_grad=True)
    for score in (torch.ones_like, lambda x: w.expand_as(x)):
        torch.testing.assert_close(losses.implicit(score, torch.zeros(2, 3)), torch.full((2,), 1.5))
        torch.testing.assert_close(losses.sliced(score, torch.zeros(2, 3)), torch.full((2,), 1.5))


def test_explicit_is_half_the_squared_distance():
    x = data(4)
    torch.testing.assert_close(losses.explicit(lambda y: y, x, x - 2.0), torch.full((4,), 6.0, dtype=DOUBLE))
    half = losses.explicit(lambda y: y, x.bfloat16(), torch.zeros(4, 3, dtype=torch.bfloat16))
    assert half.dtype == torch.float32


def test_the_learned_score_of_a_mixture_is_near_the_exact():
    """Sliced matching by 24 random features on 20,000 samples: a squared error below 3 % of E |score|^2."""
    target = sk.GaussianMixture([0.4, 0.6], [[-1.0, 0.0], [1.0, 0.5]], 0.25)
    x = target.sample(20_000, seed=1, dtype=DOUBLE)
    generator = torch.Generator().manual_seed(0)
    w = 1.5 * torch.randn(24, 2, dtype=DOUBLE, generator=generator)
    b = torch.randn(24, dtype=DOUBLE, generator=generator)

    def features(y):
        return torch.cat([torch.tanh(y @ w.T + b), y, torch.ones_like(y[:, :1])], 1)

    (c,) = gauss_newton(lambda c: losses.sliced(lambda y: features(y) @ c, x, seed=3).mean(), [(27, 2)])
    test = target.sample(4000, seed=2, dtype=DOUBLE)
    exact = target.score(sk.EDM())(test, torch.tensor(0.0, dtype=DOUBLE))
    error = losses.explicit(lambda y: features(y) @ c, test, exact).mean() / (
        0.5 * exact.square().sum(1).mean()
    )
    assert 1e-4 < float(error) < 0.03


def test_bad_input_is_named():
    x = data(4)
    with pytest.raises(ShapeError, match="x must be floating"):
        losses.implicit(lambda y: y, torch.ones(2, 3, dtype=torch.uint8))
    with pytest.raises(NonFiniteError, match="first: sample 1"):
        losses.sliced(lambda y: y, torch.tensor([[0.0], [float("nan")]]))
    with pytest.raises(ShapeError, match="score must return shape"):
        losses.implicit(lambda y: y[:, :1], x)
    with pytest.raises(ShapeError, match="exact must return shape"):
        losses.explicit(lambda y: y, x, x[:, :1])
    with pytest.raises(ValueError, match="a Denoiser has a score at each time"):
        losses.implicit(sk.Denoiser(lambda y, t: y, sk.VP()), x)
    with pytest.raises(sk.errors.ArgumentOrderError, match=r"score must take \(x, t\)"):
        losses.implicit(lambda t, x: x, x, t=0.5)
    with pytest.raises(ShapeError, match="t must be a number or have shape"):
        losses.implicit(lambda y, t: y, x, t=torch.ones(3))
    with pytest.raises(TypeError, match="score must be a callable"):
        losses.implicit(x, x)
    with pytest.raises(UnknownNameError, match="unknown law of probes 'gauss'"):
        losses.sliced(lambda y: y, x, law="gauss")
    with pytest.raises(ValueError, match="probes must be a whole number"):
        losses.sliced(lambda y: y, x, probes=0)
    with pytest.raises(ValueError, match="eps must be finite and > 0"):
        losses.finite_difference(lambda y: y, x, eps=0.0)
