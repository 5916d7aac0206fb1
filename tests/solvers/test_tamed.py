"""Tamed Euler: bounded where Euler-Maruyama explodes, and of strong order 1/2. Seeds are fixed."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sdekit.certify import certify_order
from sdekit.errors import NotAffineError
from sdekit.noise import BrownianTree
from sdekit.sde import SDE
from sdekit.sde.classic import DoubleWell, TanhDiffusion
from sdekit.solvers import solve
from sdekit.solvers.tamed import TamedEuler, _norm
from tests.solvers.enumeration import one_step


def cubic(noise_type: str = "diagonal") -> SDE:
    return SDE(lambda x, t: -(x**3), lambda x, t: torch.full_like(x, 0.5), noise_type=noise_type)


def test_the_step_in_numbers() -> None:
    """x' = x + f h/(1 + h |f|) + g W with |f| of the whole sample."""
    x = torch.tensor([[1.0, -2.0], [0.0, 3.0]], dtype=torch.float64)
    w = torch.tensor([[0.1, -0.2], [0.3, 0.4]], dtype=torch.float64)
    f, h = -(x**3).numpy(), 0.25
    expected = x.numpy() + f * h / (1 + h * np.linalg.norm(f, axis=1, keepdims=True)) + 0.5 * w.numpy()
    found = one_step(TamedEuler(), cubic(), x, 0.0, h, w)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-14)
    down = one_step(TamedEuler(), cubic(), x, 0.0, -h, w).numpy()
    np.testing.assert_allclose(down - x.numpy() - 0.5 * w.numpy(), -(expected - x.numpy() - 0.5 * w.numpy()))


def test_a_start_far_out_comes_back() -> None:
    """dX = -X^3 dt + dW/2 from 30 with h = 0.1: Euler-Maruyama leaves the numbers, every sample of it."""
    x0 = torch.full((50, 1), 30.0, dtype=torch.float64)
    options = {"steps": 400, "seed": 1, "throw": False}
    assert not solve(cubic(), x0, (0.0, 40.0), **options).ok
    tamed = solve(cubic(), x0, (0.0, 40.0), solver="tamed-euler", **options)
    assert tamed.ok
    assert float(tamed.x.abs().max()) < 3.0


def test_strong_order_on_a_drift_that_grows() -> None:
    """dX = (X - X^3) dt + 2 X dW: against 4,096 steps on the same 200 paths. The taming's own error,
    of order 1, is the larger part at these steps."""
    system = SDE(lambda x, t: x - x**3, lambda x, t: 2 * x)
    x0, tree = torch.full((200, 1), 1.0, dtype=torch.float64), BrownianTree(3)
    fine = solve(system, x0, (0.0, 1.0), steps=4096, solver="tamed-euler", noise=tree).x
    counts = (16, 64, 256)
    errors = []
    for n in counts:
        x = solve(system, x0, (0.0, 1.0), steps=n, solver="tamed-euler", noise=tree).x
        errors.append(float((x - fine).square().mean().sqrt()))
    fitted = -np.polyfit(np.log(counts), np.log(errors), 1)[0]
    assert 0.45 < fitted < 1.05


def test_exact_paths() -> None:
    """dX = -(a + b^2 X)(1 - X^2) dt + b (1 - X^2) dW on its solution tanh(artanh x0 - a t + b W)."""
    system = TanhDiffusion(0.5, 0.6)
    x0, tree = torch.full((400, 1), 0.3, dtype=torch.float64), BrownianTree(5)
    w = tree.increments(0.0, 1.0, x0, torch.arange(400))[1]
    errors = []
    for n in (16, 256):
        x = solve(system, x0, (0.0, 1.0), steps=n, solver="tamed-euler", noise=tree).x
        errors.append(float((x - system.solution(x0, 1.0, w)).square().mean().sqrt()))
    assert 0.35 < math.log(errors[0] / errors[1]) / math.log(16) < 0.75


def test_moments_stay_bounded() -> None:
    """The stationary fourth moment of a double well at h = 0.05, from starts in (-20, 20)."""
    system = DoubleWell()
    x0 = torch.linspace(-20, 20, 2000, dtype=torch.float64)[:, None]
    x = solve(system, x0, (0.0, 20.0), steps=400, solver="tamed-euler", seed=2).x
    assert 0.3 < float((x**4).mean()) < 3.0


def test_where_the_drift_is_small_it_is_euler() -> None:
    x = torch.tensor([[1e-4]], dtype=torch.float64)
    w = torch.tensor([[0.2]], dtype=torch.float64)
    near = one_step(TamedEuler(), cubic(), x, 0.0, 0.1, w)
    assert float(near) == pytest.approx(1e-4 - 1e-13 + 0.1, abs=1e-15)


def test_the_norm() -> None:
    x = torch.tensor([[3.0, 4.0], [0.0, 0.0], [3e200, 4e200]], dtype=torch.float64, requires_grad=True)
    found = _norm(x)
    np.testing.assert_allclose(found[:, 0].detach(), [5.0, 0.0, 5e200], rtol=1e-14)
    (slope,) = torch.autograd.grad(found.sum(), x)
    np.testing.assert_allclose(slope, [[0.6, 0.8], [0.0, 0.0], [0.6, 0.8]], rtol=1e-14)


def test_it_is_no_affine_map() -> None:
    with pytest.raises(NotAffineError, match="norm"):
        certify_order("tamed-euler", noise_types="additive")


@pytest.mark.parametrize("noise_type", ["additive", "scalar", "diagonal"])
def test_a_row_has_the_same_bits_alone(noise_type: str, device: torch.device) -> None:
    x0 = torch.linspace(-2, 2, 37 * 7, device=device).reshape(37, 7)
    system = cubic(noise_type)
    whole = solve(system, x0, (0.0, 1.0), steps=6, solver="tamed-euler", seed=1).x
    part = solve(system, x0[11:12], (0.0, 1.0), steps=6, solver="tamed-euler", seed=1, first_id=11).x
    assert torch.equal(whole[11:12], part)


def test_gradients() -> None:
    def end(x: Tensor) -> Any:
        return solve(cubic(), x, (0.0, 0.5), steps=4, solver="tamed-euler", seed=4).x.sum()

    leaf = torch.tensor([[1.3, -0.2]], dtype=torch.float64, requires_grad=True)
    (found,) = torch.autograd.grad(end(leaf), leaf)
    step = torch.tensor([[1e-6, 0.0]], dtype=torch.float64)
    difference = float(end(leaf.detach() + step) - end(leaf.detach() - step)) / 2e-6
    assert float(found[0, 0]) == pytest.approx(difference, rel=1e-7)
