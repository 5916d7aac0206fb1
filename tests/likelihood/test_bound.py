"""The bound by the SDE: an equality for exact scores, below the density for others; its error estimate."""

from __future__ import annotations

import math

import pytest
import torch

import sdekit as sk
from sdekit.likelihood import elbo
from tests.likelihood.test_log_prob import PROCESSES, mixture


@pytest.mark.parametrize("process", PROCESSES, ids=lambda p: type(p).__name__)
def test_equality_for_the_exact_score(process):
    """Mean over 1,000 samples within 4.5 standard errors: false alarms 7e-6 a process."""
    target = mixture(2)
    x = target.sample(1000, seed=1, dtype=torch.float64)
    with torch.no_grad():
        found = elbo(target.denoiser(process), x, prior=target.marginal(process, process.t_max), seed=5)
    gap = found.value - target.log_prob(x)
    assert abs(float(gap.mean())) < 4.5 * float(gap.std()) / math.sqrt(1000)
    # The error estimate: squared gaps have the mean of the variances.
    excess = gap**2 - found.stderr**2
    assert abs(float(excess.mean())) < 4.5 * float(excess.std()) / math.sqrt(1000)
    parts = found.prior + found.diffusion + found.reconstruction
    torch.testing.assert_close(found.value, -parts, atol=1e-10, rtol=0)
    assert found.nfe == 66


def test_the_process_prior_costs_its_mismatch():
    """For N(0, s^2 I) the part of the own prior is a Gaussian divergence, in closed form."""
    process, target = sk.VE(), sk.Gaussian([0.0, 0.0], variance=0.25)
    x = target.sample(50, seed=2, dtype=torch.float64)
    with torch.no_grad():
        found = elbo(target.denoiser(process), x)
        exact = elbo(target.denoiser(process), x, prior=sk.Gaussian([0.0, 0.0], variance=50.0**2))
    torch.testing.assert_close(found.prior, (x**2).sum(1) / (2 * 50.0**2), atol=1e-12, rtol=1e-9)
    torch.testing.assert_close(exact.prior, found.prior, atol=1e-9, rtol=0)


def test_a_wrong_score_lies_below():
    target, process = mixture(2), sk.VP()
    exact = target.denoiser(process)
    model = sk.Denoiser(lambda x, t: 1.1 * exact.x0(x, t), process, predicts="x0", data_std=target.data_std)
    x = target.sample(500, seed=1, dtype=torch.float64)
    with torch.no_grad():
        found = elbo(model, x, t_min=1e-3)
        flow = sk.log_prob(model, x[:100], t_min=1e-3, end="clean", rtol=1e-4, atol=1e-4)
    truth = float(target.log_prob(x).mean())
    assert float(found.value.mean()) < truth - 1.0
    assert torch.isfinite(flow.value).all()
    torch.testing.assert_close(
        found.bits_per_dimension(levels=1), -found.value / (2 * math.log(2)), atol=1e-9, rtol=0
    )


def test_rows_draws_and_gradients():
    target, process = mixture(2), sk.VP()
    x = target.sample(4, seed=1, dtype=torch.float64)
    model = target.denoiser(process)
    whole = elbo(model, x, seed=3, strata=4)
    assert torch.equal(whole.value[2:], elbo(model, x[2:], seed=3, strata=4, first_id=2).value)
    assert not torch.equal(whole.value, elbo(model, x, seed=4, strata=4).value)
    gain = torch.tensor(0.5, requires_grad=True)
    net = sk.Denoiser(lambda x, t: x * gain, process, predicts="x0", data_std=0.7)
    elbo(net, x.float(), strata=4, t_min=1e-2).value.mean().backward()
    assert float(gain.grad) != 0


def test_errors():
    target = mixture(2)
    with pytest.raises(TypeError, match="takes a Denoiser"):
        elbo(target, torch.zeros(2, 2))
    with pytest.raises(ValueError, match="where sigma > 0"):
        elbo(target.denoiser(sk.VP()), torch.zeros(2, 2), t_min=0)
