"""Weights in float32: what rounding does to a history does not add up over the steps."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import sdekit as sk
from sdekit.noise import Philox
from sdekit.samplers.execute import execute, prepare
from sdekit.samplers.rounding import balanced, sizes

WEIGHTS = st.lists(st.floats(-4.0, 4.0), min_size=1, max_size=5)


@given(WEIGHTS)
def test_the_sum_over_states_is_right_to_the_last_bit_of_the_least_weight(weights):
    names = [f"x[{i}]" for i in range(len(weights))]
    found = balanced(names, weights, dict.fromkeys(names, 1.0))
    least = min(abs(w) for w in found)
    sums = abs(sum(map(float, found)) - sum(weights))
    assert sums <= 0.5 * np.spacing(np.float32(least)) + 1e-14
    for f, w in zip(found, weights, strict=True):
        assert float(np.float32(f)) == f
        assert abs(f - w) <= 2.5 * np.spacing(np.float32(max(map(abs, weights))))


def test_weights_of_predictions_and_noise_are_rounded():
    """A score may be a thousand times as large at the next node."""
    names, weights = ["x[3]", "D[3]", "D[2]"], (0.1, 0.2, 0.3, 0.4, 0.7)
    assert balanced(names, weights, {"x[3]": 1.0}) == tuple(float(np.float32(w)) for w in weights)


def test_a_state_takes_over_from_one_at_least_half_as_large():
    names, weights = ["x[1]", "x[0]"], (1.1, -0.1)
    plain = tuple(float(np.float32(w)) for w in weights)
    assert balanced(names, weights, {"x[0]": 2.1, "x[1]": 1.0}) == plain
    found = balanced(names, weights, {"x[0]": 1.9, "x[1]": 1.0})
    assert found[0] == plain[0]
    assert abs(sum(found) - 1) < 1e-9 < abs(sum(plain) - 1)


def test_sizes_are_those_of_the_states():
    plan = sk.plan("ddim", sk.EDM(), steps=3, data_std=0.5)
    assert sizes(plan)["x[0]"] == pytest.approx((80.0**2 + 0.25) ** 0.5)


@pytest.mark.parametrize("backend", ["eager", "auto"])
@pytest.mark.parametrize("steps", [49, 51, 99])
def test_the_error_of_a_multistep_method_does_not_grow_with_its_steps(steps, backend):
    """Against float64, on two modes at -0.6 and 0.6: rounded one by one the weights leave 1.5e-6 and more."""

    def eps(x, t):
        y, rho = x.double(), t.double().reshape(-1, 1)
        v = 0.04 + rho * rho
        return (rho / v * (y - 0.6 * torch.tanh(0.6 * y / v))).to(x.dtype)

    model = sk.Denoiser(eps, sk.EDM(), predicts="eps", data_std=0.63)
    program = prepare(sk.plan("dpmpp-2m", sk.EDM(), steps=steps, data_std=0.63), "eps", 0.63)
    x = 80 * torch.randn(512, 2, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        exact, _ = execute(program, model, x.double(), Philox(0), torch.arange(512))
        found, _ = execute(program, model, x, Philox(0), torch.arange(512), backend=backend)
    assert float((found - exact).square().mean().sqrt()) < 6e-7
