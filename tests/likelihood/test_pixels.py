"""Dequantisation and bits per dimension."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import sdekit as sk
from sdekit.likelihood import bits_per_dimension, dequantize


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 300), st.floats(-5, 5), st.floats(0.01, 10), st.integers(0, 2**32))
def test_each_level_keeps_its_bin(levels, low, span, seed):
    k = torch.arange(levels).reshape(-1, 1)
    x = dequantize(k, levels=levels, low=low, high=low + span, seed=seed, dtype=torch.float64)
    width = span / levels
    offset = (x - low) / width - k
    assert bool(((offset > -1e-9) & (offset < 1 + 1e-9)).all())


def test_the_noise_is_uniform_and_belongs_to_the_sample():
    k = torch.zeros(200, 5, 10, dtype=torch.uint8)
    u = dequantize(k, levels=1, seed=1, dtype=torch.float64)
    # Mean, variance and the largest of 10^4 uniforms: each wrong in less than one of 10^5 seeds.
    assert abs(float(u.mean()) - 0.5) < 4.5 * math.sqrt(1 / 12 / u.numel())
    assert abs(float(u.var()) - 1 / 12) < 4.5 * math.sqrt(1 / 180 / u.numel())
    assert float(u.max()) > 1 - 12 / u.numel()
    assert torch.equal(u[50:52], dequantize(k[:2], levels=1, seed=1, first_id=50, dtype=torch.float64))
    assert not torch.equal(u, dequantize(k, levels=1, seed=1, draw=1, dtype=torch.float64))


@pytest.mark.parametrize(("levels", "low", "high"), [(256, 0.0, 1.0), (256, -1.0, 1.0), (16, 0.0, 16.0)])
def test_the_uniform_density_costs_log2_levels(levels, low, high):
    """p = 1/(high - low)^D: log2(levels) bits per dimension, whatever the range."""
    density = torch.tensor([-7 * math.log(high - low)], dtype=torch.float64)
    found = bits_per_dimension(density, 7, levels=levels, low=low, high=high)
    assert float(found) == pytest.approx(math.log2(levels))


def test_bits_bound_the_entropy_of_levels():
    """A Gaussian on unit bins: E[-log2 p] is at least the entropy of the levels, and close to it."""
    law = sk.Gaussian([0.0], variance=36.0)
    edges = torch.arange(-64, 65, dtype=torch.float64)
    cdf = torch.special.ndtr(edges / 6.0)
    p = cdf[1:] - cdf[:-1]
    entropy = float(-(p * torch.log2(p.clamp_min(1e-300))).sum())
    k = torch.arange(128).reshape(-1, 1)
    bits = torch.zeros(128, dtype=torch.float64)
    for draw in range(200):
        x = dequantize(k, levels=128, low=-64.0, high=64.0, draw=draw, dtype=torch.float64)
        bits += sk.log_prob(law, x).bits_per_dimension(levels=128, low=-64.0, high=64.0) / 200
    mean = float((p * bits).sum())
    assert entropy < mean < entropy + 0.01


def test_errors():
    with pytest.raises(sk.SdekitError, match="whole numbers from 0 to 255"):
        dequantize(torch.tensor([[0.5]]))
    with pytest.raises(sk.SdekitError, match="whole numbers"):
        dequantize(torch.tensor([[256]]))
    with pytest.raises(ValueError, match="low < high"):
        dequantize(torch.tensor([[1]]), low=1.0, high=0.0)
    with pytest.raises(ValueError, match="levels"):
        bits_per_dimension(torch.zeros(1), 2, levels=0)


@pytest.mark.parametrize("levels", ["abc", [["a"]], None])
def test_what_is_no_array_of_numbers_is_refused(levels):
    with pytest.raises(TypeError, match=r"k must be levels.*uint8 images"):
        dequantize(levels)


def test_ends_must_be_numbers():
    with pytest.raises(TypeError, match="low must be a number, got str"):
        dequantize(torch.zeros(2, 2), low="a")
    with pytest.raises(TypeError, match="high must be a number, got NoneType"):
        bits_per_dimension(0.0, 2, high=None)
