"""A denoising autoencoder is a score model: Vincent 2011 (doi:10.1162/NECO_a_00142), sections 3 to 5.

With one hidden layer and tied weights, r(x) = W^T sigmoid(W x + b) + c, the field (r(x) - x)/sigma^2 is the
gradient of a potential, its denoising score matching is the autoencoder's squared error, and both have the
gradient of explicit score matching on the Parzen density of the data.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

import sdekit as sk

SIGMA = 0.4


class Autoencoder(nn.Module):
    """r(x) = W^T sigmoid(W x + b) + c, (B, D) -> (B, D)."""

    def __init__(self, dimension, hidden, seed=0):
        super().__init__()
        g = torch.Generator().manual_seed(seed)
        self.W = nn.Parameter(torch.randn(hidden, dimension, generator=g, dtype=torch.float64))
        self.b = nn.Parameter(torch.randn(hidden, generator=g, dtype=torch.float64))
        self.c = nn.Parameter(torch.randn(dimension, generator=g, dtype=torch.float64))

    def forward(self, x):
        return torch.sigmoid(x @ self.W.T + self.b) @ self.W + self.c

    def score(self, x, sigma):
        return (self(x) - x) / sigma[:, None] ** 2

    def potential(self, x, sigma):
        """Vincent 2011, section 4.2: E with score = -grad E."""
        inner = (self.c * x).sum(-1) - x.square().sum(-1) / 2
        return -(inner + nn.functional.softplus(x @ self.W.T + self.b).sum(-1)) / sigma**2


def model(net):
    return sk.Denoiser(net.score, sk.EDM(sigma_min=0.01), predicts="score", time="sigma")


def gradients(value, net):
    return torch.autograd.grad(value, list(net.parameters()))


def data(n, dimension):
    return torch.randn(n, dimension, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def test_the_autoencoder_s_error_is_the_denoising_score_matching_loss():
    """|r(x + sigma eps) - x|^2 = sigma^2 |sigma s + eps|^2, sample by sample, and so are the gradients."""
    net, x, eps = Autoencoder(3, 5), data(16, 3), data(32, 3)[16:]
    t = torch.full((16,), SIGMA, dtype=torch.float64)
    matching = sk.losses.denoising(model(net), x, t=t, noise=sk.Recorded([eps]))
    error = (net(x + SIGMA * eps) - x).square().sum(1)
    torch.testing.assert_close(error, SIGMA**2 * matching, rtol=1e-12, atol=0)
    scaled = gradients(SIGMA**2 * matching.mean(), net)
    for a, b in zip(gradients(error.mean(), net), scaled, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-14)


def test_with_tied_weights_the_score_is_the_gradient_of_a_potential():
    net, x = Autoencoder(3, 5), data(7, 3).requires_grad_()
    sigma = torch.full((7,), SIGMA, dtype=torch.float64)
    (slope,) = torch.autograd.grad(net.potential(x, sigma).sum(), x)
    torch.testing.assert_close(net.score(x, sigma), -slope, rtol=1e-12, atol=1e-12)
    jacobian = torch.func.jacrev(lambda y: net.score(y[None], sigma[:1])[0])(x[0].detach())
    torch.testing.assert_close(jacobian, jacobian.T, rtol=1e-12, atol=1e-12)


def test_its_gradient_is_that_of_explicit_score_matching_on_the_parzen_density():
    """E |s - score of p_sigma|^2 and E |s + eps/sigma|^2 differ by a constant. The expectations over noise in
    one dimension by 80 Gauss-Hermite nodes, exact to rounding: gradients equal, values apart."""
    net, y = Autoencoder(1, 3), data(6, 1)
    law = sk.Empirical(y, SIGMA)
    nodes, weights = np.polynomial.hermite_e.hermegauss(80)
    eps, w = torch.from_numpy(nodes), torch.from_numpy(weights / math.sqrt(2 * math.pi)) / len(y)
    x = (y + SIGMA * eps).reshape(-1, 1)  # (6 * 80, 1)
    t = torch.full((len(x),), SIGMA, dtype=torch.float64)
    noise = eps.repeat(len(y))[:, None]
    w = w.repeat(len(y))

    denoising = w @ sk.losses.denoising(model(net), x - SIGMA * noise, t=t, noise=sk.Recorded([noise]))
    leaf = x.clone().requires_grad_()
    (exact,) = torch.autograd.grad(law.log_prob(leaf).sum(), leaf)
    explicit = w @ (SIGMA * (net.score(x, t) - exact)).square().sum(1)
    for a, b in zip(gradients(denoising, net), gradients(explicit, net), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-8)
    constant = 1 - SIGMA**2 * float(w @ exact.square().sum(1))  # E|eps|^2 - sigma^2 E|score|^2
    assert (denoising - explicit).item() == pytest.approx(constant, rel=1e-8)
    assert constant > 0.1


def test_the_best_reconstruction_is_the_posterior_mean_of_the_parzen_density():
    """A free r has its least error at the weighted mean of the data: r = x + sigma^2 score (Tweedie)."""
    y = data(6, 1)
    law, x = sk.Empirical(y, SIGMA), data(20, 1)
    posterior = torch.softmax(-(x - y.T).square() / (2 * SIGMA**2), dim=1)
    leaf = x.clone().requires_grad_()
    (score,) = torch.autograd.grad(law.log_prob(leaf).sum(), leaf)
    torch.testing.assert_close(posterior @ y, x + SIGMA**2 * score, rtol=1e-10, atol=1e-10)
