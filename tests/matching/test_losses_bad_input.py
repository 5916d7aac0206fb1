"""What every loss says of data, networks and energies that are wrong."""

from __future__ import annotations

import math

import pytest
import torch

import sdekit as sk
from sdekit.errors import NonFiniteError, ShapeError
from sdekit.matching import losses

LOSSES = {
    "explicit": lambda s, x: losses.explicit(s, x, torch.zeros_like(x)),
    "explicit, of the exact score": lambda s, x: losses.explicit(torch.zeros_like, x, s),
    "implicit": losses.implicit,
    "implicit, at a time": lambda s, x: losses.implicit(s, x, t=0.5),
    "hutchinson": lambda s, x: losses.implicit(s, x, probes=2),
    "sliced": losses.sliced,
    "finite_difference": losses.finite_difference,
    "one_noise": lambda s, x: losses.one_noise(s, x, 0.5),
    "multi_noise": lambda s, x: losses.multi_noise(s, x, [1.0, 0.5]),
    "denoising": lambda s, x: losses.denoising(sk.Denoiser(s, sk.VP()), x),
    "likelihood_weighted": lambda s, x: losses.likelihood_weighted(sk.Denoiser(s, sk.VP()), x),
    "flow_matching": losses.flow_matching,
    "interpolant": lambda s, x: losses.interpolant(s, x, torch.zeros_like(x)),
    "sliced_sde": lambda s, x: losses.sliced_sde(s, sk.BrownianMotion(), x, (0.0, 1.0), steps=4),
}


def data():
    return torch.linspace(-1, 1, 12, dtype=torch.float64).reshape(4, 3)


def scaled(x, t=None):
    x *= 2
    return x


def rectified(x, t=None):
    """A view of x, changed by a layer."""
    return torch.nn.functional.relu(x.flatten(1), inplace=True)


def in_place_energy(x, t=None):
    x -= 1
    return x.square().sum(1)


@pytest.mark.parametrize("name", LOSSES)
def test_data_with_nan_are_refused_by_sample(name):
    x = data()
    x[2, 1] = math.nan
    with pytest.raises(NonFiniteError, match=r"in 1 of 4 samples \(first: sample 2\).*Next: drop or repair"):
        LOSSES[name](lambda y, t=None: -y, x)


@pytest.mark.parametrize("net", [scaled, rectified, sk.Energy(in_place_energy)])
@pytest.mark.parametrize("name", LOSSES)
def test_networks_that_change_their_input_are_refused(name, net):
    with pytest.raises(
        ValueError, match=r"in place.*Likely cause.*Next: make it out of\s+place.*x\.clone\(\)"
    ):
        LOSSES[name](net, data())


@pytest.mark.parametrize("name", LOSSES)
def test_networks_of_the_wrong_shape_are_refused(name):
    expected = (
        r"must return shape \(\d+, 3\), the shape of x, got \(\d+,\)\. Likely cause.*Next: return one value"
    )
    with pytest.raises(ShapeError, match=expected):
        LOSSES[name](lambda y, t=None: -y.sum(1), data())
    with pytest.raises(ShapeError, match="got tuple. Likely cause: the network returns a tuple"):
        LOSSES[name](lambda y, t=None: (-y,), data())


@pytest.mark.parametrize("name", LOSSES)
def test_networks_that_return_indices_are_refused(name):
    with pytest.raises(ShapeError, match=r"must return a floating tensor, got dtype torch\.int64.*Next: "):
        LOSSES[name](lambda y, t=None: y.argsort(dim=1), data())


@pytest.mark.parametrize("name", LOSSES)
def test_energies_that_return_vectors_are_refused(name):
    with pytest.raises(ShapeError, match=r"an energy must have shape .*returns a score.*as the score itself"):
        LOSSES[name](sk.Energy(lambda y, t=None: -y), data())


def test_energies_of_contrastive_divergence_and_their_chains_are_checked_too():
    x = data()
    for energy in (in_place_energy, sk.Energy(in_place_energy)):
        with pytest.raises(ValueError, match="energy must leave its input x as it is"):
            losses.contrastive_divergence(energy, x, x + 1)
        with pytest.raises(ValueError, match="energy must leave its input x as it is"):
            sk.matching.negatives(energy, x, steps=2)
    with pytest.raises(ShapeError, match=r"must have shape \(4,\), one floating number.*int64.*real numbers"):
        sk.Energy(lambda y: y.argmax(dim=1)).energy(x)
    with pytest.raises(ValueError, match="score must leave its input x as it is"):
        sk.curl(scaled, x)
    chosen = {"schedule": 0.1, "biased": True, "steps": 2}
    with pytest.raises(ValueError, match="log_likelihood must leave its input x as it is"):
        sk.sgld(lambda w, y: (w.mul_(2)[:, None] * y).sum(-1), torch.ones(5, 3), x, **chosen)


def test_an_error_of_the_network_itself_stays():
    def broken(y):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        losses.implicit(broken, data())


@pytest.mark.parametrize("h", [-1.0, math.nan, math.inf])
def test_bandwidths_below_zero_are_refused(h):
    with pytest.raises(ValueError, match=r"bandwidth must be .*got"):
        sk.Empirical(data(), h)
