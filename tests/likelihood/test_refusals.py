"""Messages of what `log_prob` and its result cannot do."""

from __future__ import annotations

import pytest
import torch

import sdekit as sk
from sdekit.errors import EndpointError
from sdekit.likelihood.checks import ends_inside
from tests.likelihood.test_log_prob import mixture


def test_another_prior_must_be_a_law():
    found = sk.log_prob(mixture(2), torch.zeros(2, 2))
    with pytest.raises(TypeError, match=r"prior must have log_prob\(x\), got str.*marginal"):
        found.against("p")
    with pytest.raises(sk.SdekitError, match="one log-density for each sample"):
        found.against(torch.distributions.Normal(0.0, 1.0))
    with pytest.raises(sk.SdekitError, match="another dimension"):
        found.against(sk.Gaussian(torch.zeros(3), variance=1.0))


def test_a_flow_that_cannot_begin_without_noise():
    """A prediction of x0 does not give F where sigma = 0; eps does."""
    target, x = mixture(2), torch.zeros(2, 2)
    with pytest.raises(sk.SdekitError, match=r"cannot begin at t_min = 0: .*Next: t_min=1e-5") as caught:
        sk.log_prob(target.denoiser(sk.VP()), x, t_min=0)
    assert "stop at t_min" not in str(caught.value)
    exact = target.denoiser(sk.VP())
    model = sk.Denoiser(lambda x, t: exact.eps(x, t), sk.VP(), data_std=target.data_std)
    prior = target.marginal(sk.VP(), 1.0)
    zero, near = (sk.log_prob(model, x, prior=prior, t_min=t, rtol=1e-6, atol=1e-6) for t in (0.0, 1e-6))
    torch.testing.assert_close(zero.value, near.value, atol=1e-3, rtol=0)


@pytest.mark.parametrize(("sigma", "words"), [(0.0, "cannot begin at t_min"), (0.1, "^elsewhere$")])
def test_ends_without_noise_alone_are_renamed(sigma, words):
    with pytest.raises(EndpointError, match=words), ends_inside(0.0, sigma):
        raise EndpointError("elsewhere")
