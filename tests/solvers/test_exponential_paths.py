"""Exponential Euler path by path: what it takes for the stochastic integral, given W and the space-time area.

The mean of a Brownian path given both is (s/h) W + 6 s (h - s)/h^2 H, and so that of the integral

    int_0^h e^(A (h - s)) dW_s    is    int_0^h e^(A (h - s)) (W/h + 6 (h - 2 s)/h^2 H) ds,

here by quadrature. A step with the other sign of H has the same law, and is further from the path.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.linalg import expm

from sdekit.sde import SDE, LinearSDE
from sdekit.solvers import ExponentialEuler
from tests.solvers.enumeration import one_step

POINTS, WEIGHTS = np.polynomial.legendre.leggauss(20)


def means(a, h):
    """(k_W, k_H) (D, D) of a matrix A over a step h."""
    s = 0.5 * h * (1 + POINTS)
    flows = np.stack([expm(a * (h - v)) for v in s]) * (0.5 * h * WEIGHTS)[:, None, None]
    return flows.sum(0) / h, (flows * (6 * (h - 2 * s) / h**2)[:, None, None]).sum(0)


def field(x, t):
    return 0.5 + 0.3 * torch.sin(x)


def noise_of(solver, system, x, h, w, area):
    """What W and H add to a step."""
    zero = torch.zeros_like(w)
    still = one_step(solver, system, x, 0.1, h, zero, zero)
    return (one_step(solver, system, x, 0.1, h, w, area) - still).numpy()


X = torch.tensor([[0.7, -0.4], [1.3, 0.2]], dtype=torch.float64)
W = torch.tensor([[0.3, -0.2], [0.1, 0.4]], dtype=torch.float64)
H = torch.tensor([[0.1, 0.05], [-0.2, 0.15]], dtype=torch.float64)
MATRIX = [[-1.0, 0.6], [-0.8, -2.5]]


@pytest.mark.parametrize("h", [0.05, 0.8])
def test_elementwise_the_mean_on_the_path_scaled_to_the_variance(h):
    rates = np.array([-1.5, 0.7])
    system = SDE(lambda x, t: -(x**3), field)
    found = noise_of(ExponentialEuler(rates.tolist()), system, X, h, W, H)
    g = field(X, 0.1).numpy()
    for i, rate in enumerate(rates):
        (k_w,), (k_h,) = (k[0] for k in means(np.array([[rate]]), h))
        variance = math.expm1(2 * rate * h) / (2 * rate)
        scale = math.sqrt(variance / (h * k_w**2 + h * k_h**2 / 12))
        expected = scale * g[:, i] * (k_w * W[:, i].numpy() + k_h * H[:, i].numpy())
        np.testing.assert_allclose(found[:, i], expected, rtol=1e-12)


@pytest.mark.parametrize("h", [0.05, 0.8])
def test_a_matrix_and_noise_that_depends_on_the_state(h):
    system = SDE(lambda x, t: -(x**3), field)
    found = noise_of(ExponentialEuler(MATRIX), system, X, h, W, H)
    k_w, k_h = means(np.array(MATRIX), h)
    g = field(X, 0.1).numpy()
    expected = (g * W.numpy()) @ k_w.T + (g * H.numpy()) @ k_h.T
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_three_dimensions_of_one_brownian_motion_take_the_mean():
    """D > 2 m: W and H do not span the integral, which is given its mean."""
    a = np.array([[-1.0, 0.6, 0.0], [-0.8, -2.5, 0.3], [0.2, 0.0, -0.7]])
    spread = np.array([[0.9], [0.0], [-0.4]])
    system = LinearSDE(a.tolist(), None, spread.tolist())
    found = noise_of(ExponentialEuler(), system, torch.ones(2, 3).double(), 0.4, W[:, :1], H[:, :1])
    k_w, k_h = means(a, 0.4)
    expected = W[:, :1].numpy() @ (k_w @ spread).T + H[:, :1].numpy() @ (k_h @ spread).T
    np.testing.assert_allclose(found, expected, rtol=1e-11)


@pytest.mark.parametrize("m", [1, 2, 3])
def test_constant_noise_is_near_the_mean_on_the_path(m):
    """The map with the covariance of the integral differs from the mean by O(h^(5/2)), W by O(h^(1/2))."""
    a = -np.eye(m) + 0.3 * np.arange(m * m).reshape(m, m)
    spread = np.eye(m) + 0.1
    system = LinearSDE(a.tolist(), None, spread.tolist())
    generator = torch.Generator().manual_seed(0)
    gaps = []
    for h in (0.1, 0.05):
        w, area = (
            s * math.sqrt(h) * torch.randn(4, m, generator=generator, dtype=torch.float64)
            for s in (1.0, math.sqrt(1 / 12))
        )
        found = noise_of(ExponentialEuler(), system, torch.ones(4, m).double(), h, w, area)
        k_w, k_h = means(a, h)
        expected = w.numpy() @ (k_w @ spread).T + area.numpy() @ (k_h @ spread).T
        gaps.append(np.abs(found - expected).max() / h**2.5)
    assert max(gaps) < 1.0
