"""Energies as scores, and the curl of scores that are none."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import sdekit as sk
from sdekit.errors import ArgumentOrderError, ShapeError, UnknownNameError
from sdekit.matching import losses
from sdekit.noise import Purpose
from sdekit.sde.calculus import pushforward

DOUBLE = torch.float64


class Quartic(torch.nn.Module):
    """E = sum of x^4/4 + t (w . x)^2/2, w learnable."""

    def __init__(self):
        super().__init__()
        self.w = torch.nn.Parameter(torch.tensor([1.0, -2.0, 0.5], dtype=DOUBLE))

    def forward(self, x, t=None):
        t = 0.0 if t is None else t
        return 0.25 * x.pow(4).sum(1) + 0.5 * t * (x @ self.w).square()


def points(n=5, seed=0):
    return torch.randn(n, 3, dtype=DOUBLE, generator=torch.Generator().manual_seed(seed))


def gradient(x, t, w):
    return -x.pow(3) - (t * (x @ w))[:, None] * w


def test_the_score_is_minus_the_gradient_in_every_mode_of_autograd():
    model, x, t = sk.Energy(Quartic()), points(), torch.linspace(0, 1, 5, dtype=DOUBLE)
    expected = gradient(x, t, model.net.w.detach())
    torch.testing.assert_close(model(x, t).detach(), expected)
    torch.testing.assert_close(model(x), -x.pow(3))
    for mode in (torch.no_grad(), torch.inference_mode()):
        with mode:
            out = model(x, t)
        torch.testing.assert_close(out, expected)
        assert not out.requires_grad
    product = pushforward(lambda y: model(y, t), x, torch.ones_like(x))
    w = model.net.w.detach()
    torch.testing.assert_close(product.detach(), -3 * x.square() - t[:, None] * w.sum() * w)


def test_it_is_differentiable_in_state_and_weights():
    model, x, t = sk.Energy(Quartic()), points().requires_grad_(), torch.rand(5, dtype=DOUBLE)

    def score(x, w):
        return torch.func.functional_call(model, {"net.w": w}, (x, t))

    assert torch.autograd.gradcheck(score, (x, model.net.w))
    assert torch.autograd.gradgradcheck(score, (x, model.net.w))


def test_an_energy_samples_reverses_and_trains_as_a_score_does():
    """The Gaussian's own energy gives the Gaussian's own samples; `fit` lowers the loss of a small one."""
    process = sk.VP()
    target = sk.Gaussian(torch.zeros(2, dtype=DOUBLE), variance=0.3)

    def own(x, t):
        return 0.5 * x.square().sum(1) / (0.3 * process.alpha(t) ** 2 + process.sigma(t) ** 2)

    model = sk.Denoiser(sk.Energy(own), process, predicts="score", data_std=target.data_std)
    a, b = (sk.sample(m, (8, 2), steps=6, seed=1).x for m in (model, target.denoiser(process)))
    torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)
    reverse = [
        sk.solve(sk.reverse(process, score), torch.ones(4, 2, dtype=DOUBLE), (1.0, 0.5), steps=5).x
        for score in (sk.Energy(own), target.score(process))
    ]
    torch.testing.assert_close(*reverse)

    class Scaled(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.a = torch.nn.Parameter(torch.zeros(()))

        def forward(self, x, t):
            return 0.5 * self.a.exp() * x.square().sum(1)

    process = sk.RectifiedFlow()
    data = target.sample(256, dtype=torch.float32)
    net = sk.Energy(Scaled())
    fitted = sk.fit(net, data, process, predicts="score", steps=60, lr=0.05, progress=False, held_out=0)
    assert float(fitted.losses[-10:].mean()) < 0.95 * float(fitted.losses[:3].mean())


@pytest.mark.parametrize(
    ("net", "message"),
    [
        (lambda x: x, r"must have shape \(5,\).*got \(5, 3\).*returns a score.*as the score itself"),
        (lambda x: x[:, :1], r"got \(5, 1\).*one output unit.*net\(x\)\.squeeze\(1\)"),
        (lambda x: x.sum(), r"got \(\)"),
        (lambda x: (x.sum(1),), "got tuple"),
    ],
)
def test_energies_that_are_no_scalars_are_refused(net, message):
    with pytest.raises(ShapeError, match=message):
        sk.Energy(net)(points())


def test_an_energy_can_be_compiled():
    model = sk.Energy(Quartic())
    x, t = points(), torch.linspace(0, 1, 5, dtype=DOUBLE)
    torch.testing.assert_close(torch.compile(model, backend="eager")(x, t), model(x, t))


def test_what_is_no_function_of_state_and_time_is_refused():
    with pytest.raises(TypeError, match="net must be callable"):
        sk.Energy(3.0)
    with pytest.raises(ArgumentOrderError, match=r"net must take \(x, t\)"):
        sk.Energy(lambda t, x: x.sum(1))
    with pytest.raises(ArgumentOrderError, match=r"score must take \(x, t\)"):
        sk.curl(lambda t, x: x, points(), 0.5)
    with pytest.raises(ShapeError, match="score must return shape"):
        sk.curl(lambda x: x[:, :1], points())
    with pytest.raises(ValueError, match="probes must be"):
        sk.curl(lambda x: x, points(), probes=0)
    with pytest.raises(UnknownNameError):
        losses.sliced(sk.Energy(Quartic()), points(), law="x")


# -- curl -----------------------------------------------------------------------------------------------


@given(seed=st.integers(0, 999), d=st.integers(1, 5))
def test_the_curl_of_a_linear_field_is_the_share_of_its_antisymmetric_part(seed, d):
    generator = torch.Generator().manual_seed(seed)
    a = torch.randn(d, d, dtype=DOUBLE, generator=generator)
    x = torch.randn(3, d, dtype=DOUBLE, generator=generator)
    expected = ((a - a.T) / 2).square().sum() / a.square().sum()
    torch.testing.assert_close(sk.curl(lambda y: y @ a.T, x), expected.expand(3), rtol=1e-9, atol=1e-12)
    if d > 1:
        ones = torch.ones(3, dtype=DOUBLE)
        torch.testing.assert_close(sk.curl(lambda y: y @ (a - a.T), x), ones)


def test_gradients_have_no_curl_and_images_are_taken():
    x, t = points(), torch.rand(5, dtype=DOUBLE)
    assert float(sk.curl(sk.Energy(Quartic()), x, t).max()) < 1e-28
    exact = sk.GaussianMixture([0.5, 0.5], [[-1.0, 0, 0], [1.0, 1, 0]], 0.2).score(sk.VP())
    assert float(sk.curl(exact, x, 0.3).max()) < 1e-12
    image = points(2).repeat(1, 4).reshape(2, 3, 2, 2)
    twisted = sk.curl(lambda y: y.transpose(2, 3) * torch.arange(12.0).reshape(3, 2, 2), image)
    jacobian = torch.zeros(12, 12)
    for c in range(3):
        for i in range(2):
            for j in range(2):
                jacobian[4 * c + 2 * i + j, 4 * c + 2 * j + i] = 4 * c + 2 * i + j
    share = ((jacobian - jacobian.T) / 2).square().sum() / jacobian.square().sum()
    torch.testing.assert_close(twisted, share.double().expand(2))


def test_probes_estimate_the_curl():
    """2,000 probes, seeds fixed; the ratio of two means of relative spread about 1/sqrt(2000) each."""
    a = torch.tensor([[1.0, 2.0, 0.0], [-1.0, 0.5, 0.3], [0.0, 1.0, 2.0]], dtype=DOUBLE)
    exact = sk.curl(lambda y: y @ a.T, points())
    found = sk.curl(lambda y: y @ a.T, points(), probes=2000, seed=4)
    assert not torch.equal(found, exact)
    torch.testing.assert_close(found, exact, rtol=0.1, atol=0)
    assert torch.equal(found, sk.curl(lambda y: y @ a.T, points(), probes=2000, seed=4))


def test_constant_scores_have_none():
    w = torch.ones(3, dtype=DOUBLE, requires_grad=True)
    for score in (torch.ones_like, lambda x: w.expand_as(x)):
        assert torch.equal(sk.curl(score, points()), torch.zeros(5, dtype=DOUBLE))
    with torch.no_grad():
        assert float(sk.curl(lambda x: x.flip(1) * torch.arange(3.0), points()).min()) > 0.1


def test_probes_of_the_curl_are_the_normal_ones_of_probes():
    """At one point, v of sample i: |J v - J^T v|^2/4 over the mean of |J v|^2 and |J^T v|^2."""
    x, turn = points(), torch.tensor([[1.0, 2.0, 0.0], [0.0, 1.0, 3.0], [0.5, 0.0, 1.0]], dtype=DOUBLE)
    v = sk.Philox(4).normal(0, x, torch.arange(5), Purpose.PROBES)
    ahead, back = v @ turn.T, v @ turn
    expected = (ahead - back).square().sum(1) / 2 / (ahead.square() + back.square()).sum(1)
    torch.testing.assert_close(sk.curl(lambda y: y @ turn.T, x, probes=1, seed=4), expected)
