"""Chains of mini-batches: seeds of numpy, tensors of inference mode, and what cannot be run is named."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import sdekit as sk

ROWS = torch.randn(12, 2, generator=torch.Generator().manual_seed(0))
START = torch.zeros(3, 2)
SAMPLERS = (sk.sgld, sk.psgld, sk.sghmc)


def likelihood(x, rows):
    return -(rows - x[:, None]).square().sum(-1) / 2


def run(sampler, fn=likelihood, data=ROWS, x0=START, **options):
    return sampler(
        fn, data, x0, **({"schedule": 0.01, "steps": 3, "biased": True, "batch_size": 5} | options)
    ).xs


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_whole_numbers_of_any_kind_are_seeds(sampler):
    assert torch.equal(run(sampler, seed=np.int64(3)), run(sampler, seed=3))
    assert not torch.equal(run(sampler, seed=np.int64(4)), run(sampler, seed=3))


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_inference_mode(sampler):
    with torch.inference_mode():
        x0, rows, centre = START.clone(), ROWS.clone(), torch.zeros(2)
        with pytest.raises(RuntimeError, match=r"no gradients within torch.inference_mode\(\)"):
            run(sampler)
    assert torch.equal(run(sampler, data=rows, x0=x0, centre=centre), run(sampler, centre=torch.zeros(2)))

    def product(x, rows):
        return (rows * x[:, None]).sum(-1)

    options = {"batch_size": None}
    assert torch.equal(run(sampler, product, rows, x0, **options), run(sampler, product, **options))


def test_densities_without_a_gradient():
    def prior(x):
        return torch.zeros(len(x))

    with pytest.raises(ValueError, match="log_prior has no gradient in x.*log_prior=None for a flat one"):
        run(sk.sgld, log_prior=prior)
    with pytest.raises(ValueError, match="log_likelihood has no gradient in x.*operations of torch"):
        run(sk.sgld, lambda x, rows: likelihood(x.detach(), rows))
    with pytest.raises(ValueError, match="log_prior must leave its input"):
        run(sk.sgld, log_prior=lambda x: -x.square_().sum(dim=1))


def test_a_list_of_rows_is_no_table():
    with pytest.raises(
        TypeError, match=r"rows_12\), and likelihood cannot be.*data are 12 tables.*as_tensor"
    ):
        run(sk.sgld, data=ROWS.tolist(), batch_size=1)
    with pytest.raises(TypeError, match=r"log_likelihood\(x, rows\), and a lambda cannot be"):
        run(sk.sgld, lambda x: x)

    def fails(x, rows):
        raise TypeError("inside")

    with pytest.raises(TypeError, match="^inside$"):
        run(sk.sgld, fails)


@pytest.mark.parametrize("value", ["a", None, math.nan, [0.5]])
def test_numbers_that_are_none(value):
    with pytest.raises(ValueError, match=r"alpha must lie in \[0, 1\), got .* Next: 0.99"):
        run(sk.psgld, alpha=value)
    with pytest.raises(ValueError, match=r"friction must lie in \(0, 1\], got"):
        run(sk.sghmc, friction=value)
    with pytest.raises(ValueError, match=r"schedule\(1073741824\) must be finite and > 0, got"):
        run(sk.sgld, schedule=lambda k: value)
