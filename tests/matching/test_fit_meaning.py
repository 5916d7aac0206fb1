"""Losses and predictions that do not fit each other are refused, and finite limits are taken."""

from __future__ import annotations

import pytest
import torch

import sdekit as sk
from sdekit.matching import fit, losses, nets

DOUBLE = torch.float64
SIGMAS = torch.tensor([1.0, 0.3])


def data():
    return torch.randn(64, 2, generator=torch.Generator().manual_seed(0))


def train(process, loss, **options):
    net = nets.MLP(2, width=8, depth=1, seed=0)
    return fit(net, data(), process, loss=loss, steps=1, held_out=0, progress=False, **options)


def test_flow_matching_trains_a_velocity_unless_another_prediction_is_given():
    assert train(sk.RectifiedFlow(), "flow_matching").model.predicts == "flow"
    assert train(sk.RectifiedFlow(), "flow_matching", predicts="v").model.predicts == "v"


@pytest.mark.parametrize("predicts", ["eps", "score", "x0"])
def test_flow_matching_refuses_predictions_whose_loss_has_no_mean(predicts):
    with pytest.raises(ValueError, match=f"made of '{predicts}' is infinite at an end.*predicts='flow'"):
        train(sk.RectifiedFlow(), "flow_matching", predicts=predicts)
    net = sk.Denoiser(nets.MLP(2, width=8, depth=1, seed=0), sk.RectifiedFlow(), predicts)
    with pytest.raises(ValueError, match=f"made of '{predicts}' is infinite"):
        fit(net, data(), loss="flow_matching", steps=1, held_out=0, progress=False)


@pytest.mark.parametrize("process", [sk.VP(), sk.SubVP(), sk.Cosine(), sk.RectifiedFlow()])
def test_multi_noise_refuses_processes_that_scale_the_data(process):
    """It trains at x + sigma eps; these would ask the network at alpha x + sigma eps."""
    with pytest.raises(ValueError, match=r"data that are not scaled, alpha = 1.*sdekit.VE\(\)"):
        train(process, "multi_noise", sigmas=SIGMAS, predicts="score", time="sigma")


@pytest.mark.parametrize("process", [sk.VE(), sk.EDM()])
def test_multi_noise_trains_on_processes_that_do_not(process):
    result = train(process, "multi_noise", sigmas=SIGMAS, predicts="score", time="sigma")
    assert torch.isfinite(result.losses).all()


@pytest.mark.parametrize(("predicts", "limit"), [("eps", 1.0), ("score", 1.0), ("x0", 0.0), ("flow", 0.0)])
def test_min_snr_has_its_limit_at_pure_noise(predicts, limit):
    """min(1, 5/SNR) on eps, times sigma^2 on the score: 1 at alpha = 0, and no NaN from 0/0."""
    process = sk.RectifiedFlow()
    x = data().double()
    t = torch.full((len(x),), 1.0, dtype=DOUBLE)
    net = sk.Denoiser(lambda y, t: torch.zeros_like(y), process, predicts, data_std=1.0)
    value = losses.denoising(net, x, t=t, weighting="min-snr")
    plain = losses.denoising(net, x, t=t)
    torch.testing.assert_close(value, limit * plain)
    near = losses.denoising(net, x, t=t - 1e-7, weighting="min-snr")
    torch.testing.assert_close(value, near, rtol=1e-5, atol=1e-5)


def test_losses_of_pairs_are_means_over_the_elements_of_one_prediction():
    """A noise network that returns 0 (nets begin so) has a loss of about 1, as an eps network has."""
    pairs = torch.randn(2000, 2, 3, generator=torch.Generator().manual_seed(1))
    net = nets.MLP(3, width=8, depth=1, seed=0)
    result = fit(
        net, pairs, loss="interpolant", predicts="noise", steps=1, batch_size=1000, lr=1e-9, held_out=0.5,
        progress=False,
    )  # fmt: skip
    assert abs(float(result.losses[0]) - 1) < 0.13  # 5 standard errors of 3,000 squares of normals
    assert abs(float(result.held_out[0]) - 1) < 0.13


@pytest.mark.parametrize("predicts", ["eps", "score"])
def test_min_snr_by_name_is_the_pair_of_min_snr(predicts):
    process = sk.VP()
    x = data().double()
    model = sk.Denoiser(lambda y, t: torch.zeros_like(y), process, predicts)
    named = losses.denoising(model, x, weighting="min-snr")
    torch.testing.assert_close(named, losses.denoising(model, x, weighting=losses.min_snr(process)))
