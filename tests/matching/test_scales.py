"""Noise levels and laws of training from data of known scale."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import sdekit as sk
from sdekit.errors import NonFiniteError, ShapeError
from sdekit.matching import losses, scales_of
from sdekit.matching.scales import _step

DOUBLE = torch.float64
LENGTHS = ("data_std", "data_spread", "sigma_max", "sigma_min")


def draws(*shape, seed=0):
    return torch.randn(*shape, dtype=DOUBLE, generator=torch.Generator().manual_seed(seed))


def test_they_are_their_definitions():
    x = draws(60, 2, 3) * torch.tensor([1.0, 2.0, 0.1])
    found = scales_of(x)
    c = torch.cov(x.flatten(1).T, correction=0)
    assert found.data_std == pytest.approx(math.sqrt(float(c.trace()) / 6))
    assert found.data_spread == pytest.approx(math.sqrt(float((c @ c).trace() / c.trace())))
    distances = (x.flatten(1)[:, None] - x.flatten(1)[None]).square().sum(-1).sqrt()
    assert found.sigma_max == pytest.approx(float(distances.max()))
    assert found.sigma_min == pytest.approx(0.004 * found.data_std)
    assert found.mean_log_sigma == pytest.approx(-1.2 + math.log(2 * found.data_std))
    assert (found.std_log_sigma, found.dimension) == (1.2, 6)


def test_data_of_edm_s_scale_have_edm_s_numbers():
    """Deviation 0.5 about zero: P_mean = -1.2, P_std = 1.2, sigma_min = 0.002, sigma_data = 0.5."""
    x = draws(500, 4)
    x = x - x.mean(0)
    found = scales_of(0.5 * x / x.square().mean().sqrt())
    assert found.data_std == pytest.approx(0.5)
    assert found.mean_log_sigma == pytest.approx(-1.2)
    assert found.sigma_min == pytest.approx(0.002)
    assert found.std_log_sigma == 1.2
    process = found.process()
    assert (process.sigma_min, process.sigma_max) == (found.sigma_min, found.sigma_max)


@given(scale=st.floats(1e-3, 1e3), seed=st.integers(0, 99), steps=st.booleans(), single=st.booleans())
def test_they_have_the_units_of_the_data(scale, seed, steps, single):
    x = draws(80, 5, seed=seed)
    x = (8 * x).round() / 8 if steps else x
    x = x.float() if single else x
    one, other = scales_of(x), scales_of(x * scale)
    for name in LENGTHS:
        assert getattr(other, name) == pytest.approx(scale * getattr(one, name), rel=1e-5)
    assert other.mean_log_sigma - one.mean_log_sigma == pytest.approx(math.log(scale), abs=1e-5)
    assert other.std_log_sigma == one.std_log_sigma
    assert ("steps" in one.reasons["sigma_min"]) == ("steps" in other.reasons["sigma_min"]) == steps


@given(seed=st.integers(0, 99), shift=st.floats(-1, 1))
def test_the_order_and_the_origin_of_the_data_do_not_matter(seed, shift):
    x = draws(40, 3, seed=seed)
    one, other = scales_of(x), scales_of(x.flip(0) + shift * x.std())
    for name in LENGTHS:
        assert getattr(other, name) == pytest.approx(getattr(one, name), rel=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
def test_eight_bits_have_the_deviation_of_their_rounding(dtype):
    """U(-q/2, q/2) has deviation q/sqrt(12): 0.00226 for images in [-1, 1], where EDM takes 0.002."""
    x = (
        torch.randint(0, 256, (400, 3, 4, 4), generator=torch.Generator().manual_seed(0)).to(dtype) / 127.5
        - 1
    )
    found = scales_of(x)
    assert found.sigma_min == pytest.approx(2 / 255 / math.sqrt(12), rel=1e-5)
    assert "steps of 0.007843" in found.reasons["sigma_min"]
    even = scales_of(x[:, :, :, :1].mul(0.5))  # half the range, hence half the step
    assert even.sigma_min == pytest.approx(found.sigma_min / 2, rel=1e-5)


def test_what_has_no_steps_is_not_said_to():
    assert _step(draws(1000, 4)) is None
    assert _step(draws(4, 1)) is None
    assert _step((draws(1000, 4) > 0).double()) is None  # two classes, no levels
    uneven = torch.cat([torch.arange(40), torch.tensor([40.37])]).double().repeat(50)[:, None]
    assert _step(uneven) is None
    assert _step(torch.arange(40).repeat(50)[:, None] * 0.3 + 7.0) == pytest.approx(0.3)
    # as many values as data: nothing is repeated, so no rounding is seen
    assert _step(torch.arange(100)[:, None].double()) is None
    far = torch.cat([torch.arange(40), torch.tensor([2**17])]).double().repeat(50)[:, None]
    assert _step(far) is None  # more steps than 16 bits have
    assert _step(far / 4 * (far < 100)) == pytest.approx(0.25)
    assert _step(0.3 * torch.arange(40)[torch.arange(40) % 7 != 3].repeat(50)[:, None]) == pytest.approx(0.3)


def test_of_many_data_some_are_compared():
    x = draws(300, 2)
    every, some = scales_of(x), scales_of(x, rows=50)
    assert some.sigma_max <= every.sigma_max
    assert some.sigma_max > 0.5 * every.sigma_max
    assert "50 of 300 data, hence at least" in some.reasons["sigma_max"]
    assert some == scales_of(x, rows=50)
    assert some != scales_of(x, rows=50, seed=1)
    assert some.data_std == every.data_std


def test_constant_elements_are_counted_and_reasons_printed():
    x = draws(30, 4)
    x[:, 1:3] = 2.0
    text = str(scales_of(x))
    assert "2 of them constant" in text
    assert "constant" not in str(scales_of(draws(30, 4)))
    assert [line.split()[0] for line in text.splitlines()] == [*LENGTHS, "mean_log_sigma", "std_log_sigma"]
    for line in text.splitlines():
        assert float(line.split()[1]) == pytest.approx(getattr(scales_of(x), line.split()[0]), rel=1e-4)


def test_levels_are_those_of_ncsn():
    found = scales_of(draws(100, 64))
    expected = sk.ncsn.levels(found.sigma_max, found.sigma_min, dimension=64)
    assert torch.equal(found.levels(), expected)
    assert len(found.levels(overlap=0.3)) < len(expected)


def test_times_have_the_law_that_is_named():
    found = replace(scales_of(draws(50, 3)), mean_log_sigma=-0.5, std_log_sigma=0.3)
    u = torch.special.ndtr(torch.tensor([-1.0, 0.0, 1.0], dtype=DOUBLE))
    t = found.times(sk.EDM(1e-4, 1e4))(u)
    torch.testing.assert_close(t.log(), torch.tensor([-0.8, -0.5, -0.2], dtype=DOUBLE), rtol=1e-6, atol=1e-9)
    assert replace(found, sigma_min=0.3, sigma_max=7.0).process() == sk.EDM(0.3, 7.0)


def of_scale(c):
    """A mixture of three, times c, as a model on EDM's process of its own range."""
    weights, means = [0.2, 0.3, 0.5], torch.tensor([[-1.0, 0.0], [0.5, 0.5], [1.0, -1.0]], dtype=DOUBLE)
    target = sk.GaussianMixture(weights, c * means, 0.01 * c**2)
    process = sk.EDM(0.002 * c, 80.0 * c)
    model = target.denoiser(process)
    model.data_std = c * target.data_std if c == 1 else target.data_std
    return target, process, model


@given(scale=st.floats(0.01, 100))
def test_the_loss_profile_moves_with_the_data_and_the_law_of_times_with_it(scale):
    """EDM's loss at quantile u of the law is that of the data of unit scale, sample by sample."""
    (target, one, model), (_, other, scaled) = of_scale(1.0), of_scale(scale)
    x0 = target.sample(64, seed=1, dtype=DOUBLE)
    a, b = scales_of(x0), scales_of(scale * x0)
    u = torch.linspace(0.01, 0.99, 64, dtype=DOUBLE)
    t, s = a.times(one)(u), b.times(other)(u)
    torch.testing.assert_close(s, scale * t, rtol=1e-9, atol=0)
    torch.testing.assert_close(
        losses.denoising(scaled, scale * x0, t=s, weighting="edm", seed=3),
        losses.denoising(model, x0, t=t, weighting="edm", seed=3),
        rtol=1e-6,
        atol=1e-9,
    )


def test_the_law_of_times_is_where_there_is_something_to_learn():
    """The best linear denoiser of the digits: its loss of F is 1 far below and far above the data's scales.

    The least, hence the most that any network gains over none, lies within a standard deviation of the
    middle of the law; at six of them from it less than a fifth of that gain is left.
    """
    datasets = pytest.importorskip("sklearn.datasets")
    x = torch.as_tensor(datasets.load_digits().data, dtype=DOUBLE) / 8 - 1
    found = scales_of(x)
    cov = torch.cov(x.T, correction=0) + 1e-6 * torch.eye(64, dtype=DOUBLE)
    process = sk.EDM(1e-4, 1e3)
    model = sk.Gaussian(x.mean(0), cov).denoiser(process)
    model.data_std = found.data_std
    offsets = torch.arange(-6, 7) * found.std_log_sigma
    profile = []
    for level in (found.mean_log_sigma + offsets).exp().tolist():
        t = torch.full((len(x),), level, dtype=DOUBLE)
        profile.append(float(losses.denoising(model, x, t=t, weighting="edm", seed=1).mean()) / 64)
    gain = 1 - np.array(profile)
    assert abs(int(gain.argmax()) - 6) <= 1
    assert gain.max() > 0.4
    assert max(abs(gain[0]), abs(gain[-1])) < 0.2 * gain.max()


def test_bad_data_are_refused():
    with pytest.raises(NonFiniteError, match="data holds NaN or infinity in 1 of 2 samples"):
        scales_of(torch.tensor([[0.0], [math.nan]]))
    with pytest.raises(ShapeError, match=r"data must be floating.*8-bit"):
        scales_of(torch.zeros(4, 3, dtype=torch.uint8))
    with pytest.raises(ShapeError, match=r"data\[:, None\] for scalar samples"):
        scales_of(draws(5))
    with pytest.raises(ShapeError, match=r"N >= 2.*got \(1, 3\).*one image without its batch axis"):
        scales_of(draws(1, 3))
    with pytest.raises(ValueError, match="all 5 .* samples are equal"):
        scales_of(torch.ones(5, 3))
    with pytest.raises(ValueError, match="rows must be a whole number >= 2"):
        scales_of(draws(5, 3), rows=1)
    assert scales_of(draws(5, 3).numpy()) == scales_of(draws(5, 3))
