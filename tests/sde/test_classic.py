"""Geometric Brownian motion: exact law, pathwise solution, score."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sdekit.errors import DirectionError
from sdekit.sde import SDE, GeometricBrownian

from .processes import F64


@given(st.floats(-1, 1), st.floats(0.05, 1), st.floats(0.1, 3), st.floats(0.01, 3))
def test_moments(mu, sigma, start, t):
    """E X = x0 e^(mu t), E X^2 = x0^2 e^((2 mu + sigma^2) t)."""
    law = GeometricBrownian(mu, sigma).transition(torch.tensor([[start]], dtype=F64), 0.5, 0.5 + t)
    assert float(law.mean) == pytest.approx(start * math.exp(mu * t), rel=1e-12)
    second = float(law.variance + law.mean**2)
    assert second == pytest.approx(start**2 * math.exp((2 * mu + sigma**2) * t), rel=1e-11)
    torch.testing.assert_close(law.std**2, law.variance)


def test_density_is_log_normal():
    law = GeometricBrownian(0.3, [0.2, 0.5]).transition(torch.tensor([[1.0, 2.0]], dtype=F64), 0.0, 2.0)
    x = law.sample(seed=1)
    exact = torch.distributions.LogNormal(law.loc, law.scale).log_prob(x).sum(1)
    torch.testing.assert_close(law.log_prob(x), exact)


def test_samples_have_the_law():
    """Mean and variance of 40,000 samples within 5 standard errors (false alarm 6e-7 each)."""
    n = 40_000
    law = GeometricBrownian(0.1, 0.4).transition(torch.full((n, 1), 1.5, dtype=F64), 0.0, 1.0)
    logs = torch.log(law.sample(seed=2))
    assert abs(float(logs.mean() - law.loc[0])) < 5 * float(law.scale) / math.sqrt(n)
    assert abs(float(logs.var() / law.scale**2) - 1) < 5 * math.sqrt(2 / n)


def test_pathwise_solution_solves_the_equation():
    """Ito's formula: X = F(t, W) has dX = (F_t + F_ww/2) dt + F_w dW, the drift and diffusion of X."""
    p = GeometricBrownian(0.3, 0.7)
    x0 = torch.tensor([[1.2], [-0.4]], dtype=F64)
    t = torch.tensor(0.8, dtype=F64, requires_grad=True)
    w = torch.tensor([[0.3], [-1.1]], dtype=F64, requires_grad=True)
    x = p.solution(x0, t, w)
    (fw,) = torch.autograd.grad(x.sum(), w, create_graph=True)
    (fww,) = torch.autograd.grad(fw.sum(), w, retain_graph=True)
    for row in range(2):
        (ft,) = torch.autograd.grad(x[row].sum(), t, retain_graph=True)
        torch.testing.assert_close(ft + 0.5 * fww[row], p.drift(x, t)[row], rtol=1e-12, atol=0)
    torch.testing.assert_close(fw, p.diffusion(x, t), rtol=1e-12, atol=0)
    assert torch.equal(p.solution(x0, 0.0, torch.zeros_like(x0)), x0)


def test_score_is_the_gradient_of_the_density(device, dtype):
    """For X_0 a point and for X_0 log-normal; per-sample times."""
    p = GeometricBrownian(0.3, 0.5)
    x = torch.tensor([[0.5, 1.0], [2.0, 3.0]], dtype=dtype, device=device, requires_grad=True)
    t = torch.tensor([0.4, 1.5], dtype=dtype, device=device)
    for mean, std in ((0.2, 0.0), (-0.1, 0.6)):
        rise = mean + (0.3 - 0.125) * t[:, None]
        law = torch.distributions.LogNormal(rise, torch.sqrt(std**2 + 0.25 * t[:, None]))
        (exact,) = torch.autograd.grad(law.log_prob(x).sum(), x)
        torch.testing.assert_close(p.marginal_score(mean, std)(x.detach(), t), exact)


def test_closed_forms_are_the_defaults():
    p, x = GeometricBrownian(0.3, [0.5, 0.2]), torch.tensor([[0.5, 1.0], [-2.0, 3.0]], dtype=F64)
    torch.testing.assert_close(p.divergence_ggt(x, 0.0), SDE.divergence_ggt(p, x, 0.0))
    torch.testing.assert_close(p.correction(x, 0.0), SDE.correction(p, x, 0.0))


def test_messages():
    p, x = GeometricBrownian(), torch.tensor([[1.0], [-1.0]])
    with pytest.raises(ValueError, match=r"sigma must be >= 0, got -1.*argument order \(mu, sigma\)"):
        GeometricBrownian(1.0, -1.0)
    with pytest.raises(ValueError, match=r"x must be > 0, got -1.*solution\(x0, t, w\)"):
        p.transition(x, 0.0, 1.0)
    with pytest.raises(DirectionError, match="goes forward in time"):
        p.transition(x[:1], 1.0, 0.0)
    assert repr(p) == "GeometricBrownian(mu=0.0, sigma=1.0)"
