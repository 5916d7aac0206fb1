"""Exponential Euler: exact in law on linear SDEs, stable on stiff ones, order 1."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sdekit.certify import certify_order
from sdekit.certify.order.measure import _errors
from sdekit.certify.order.problems import PLANE, linear_problems
from sdekit.certify.order.step import Stepper
from sdekit.errors import CapabilityError, ShapeError
from sdekit.sde import SDE, LinearSDE, OrnsteinUhlenbeck
from sdekit.sde.regression import joint_system, regress
from sdekit.solvers import ExponentialEuler, solve
from sdekit.solvers.exponential import _flow_of
from tests.solvers.enumeration import one_step

STIFF = [[-100.0, 99.0], [99.0, -100.0]]
KINETIC = [[0.0, 1.0], [-2.0, -0.7]]


def step_law(solver: ExponentialEuler, system: Any, x0: Tensor, h: float) -> tuple[np.ndarray, np.ndarray]:
    """Mean (D,) and covariance (D, D) of a step from x0 (D,) that is affine in its noise."""
    m = system.noise_shape(x0[None])[1]
    rows = x0.expand(1 + 2 * m, -1)
    w, area = torch.zeros(1 + 2 * m, m, dtype=x0.dtype), torch.zeros(1 + 2 * m, m, dtype=x0.dtype)
    w[1 : 1 + m] = math.sqrt(h) * torch.eye(m, dtype=x0.dtype)
    area[1 + m :] = math.sqrt(h / 12) * torch.eye(m, dtype=x0.dtype)
    out = one_step(solver, system, rows, 0.2, h, w, area).numpy()
    noise = (out[1:] - out[0]).T
    return out[0], noise @ noise.T


@pytest.mark.parametrize("h", [1e-3, 0.3, 5.0])
@pytest.mark.parametrize(
    ("a", "spread"),
    [
        (PLANE, [[0.4, 0.1], [0.0, 0.3]]),
        (STIFF, [[0.4, 0.1], [0.0, 0.3]]),
        (KINETIC, [[0.0], [0.9]]),
        ([[0.0]], [[0.7]]),
        ([[1.3]], [[0.7]]),
    ],
)
def test_linear_sdes_exactly(a: Any, spread: Any, h: float) -> None:
    """Also the kinetic one: one Brownian motion, its W and H for two dimensions."""
    shift = [0.3, -0.5][: len(a)]
    system = LinearSDE(a, shift, spread)
    x0 = torch.tensor([1.2, -0.4], dtype=torch.float64)[: len(a)]
    exact = system.transition(x0[None], 0.0, h)
    mean, cov = step_law(ExponentialEuler(), system, x0, h)
    np.testing.assert_allclose(mean, exact.mean[0], rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(cov, exact.cov, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("theta", [-0.8, 0.0, 1e-9, 2.0, 300.0])
def test_ornstein_uhlenbeck_exactly(theta: float) -> None:
    system = OrnsteinUhlenbeck(theta, 0.4, 0.7)
    x0, h = torch.tensor([1.2, -3.0], dtype=torch.float64), 0.6
    law = system.transition(x0[None], 0.0, h)
    mean, cov = step_law(ExponentialEuler(), system, x0, h)
    np.testing.assert_allclose(mean, law.mean[0], rtol=1e-12)
    spread = law.std.expand(1, 2)[0].numpy()
    np.testing.assert_allclose(cov, np.diag(spread**2), rtol=1e-12)


def test_the_noise_is_that_of_the_path() -> None:
    """The map of (W, H) differs from the conditional mean by what those leave open, O(h^(5/2))."""
    a, g = torch.tensor(KINETIC, dtype=torch.float64), torch.tensor([[0.0], [0.9]], dtype=torch.float64)
    gaps = []
    for h in (0.2, 0.1, 0.05):
        flow = _flow_of(a, h, g)
        joint = LinearSDE(*(lambda p: (p[0], None, p[1]))(joint_system(a, g, h))).flow(h)[2]
        k_w, k_h, _ = regress(joint, 2, h, True)
        gaps.append(
            float(((flow.k_w - k_w) * math.sqrt(h)).norm() + ((flow.k_h - k_h) * math.sqrt(h / 12)).norm())
        )
    assert (np.log2(np.array(gaps[:-1]) / np.array(gaps[1:])) > 2.3).all()


def cubic(x: Tensor, t: Any) -> Tensor:
    return x @ torch.tensor(PLANE, dtype=x.dtype).T - x**3


def test_given_the_linear_part() -> None:
    """n is what is left: f - A x, frozen, through phi_1 = A^-1 (e^A - 1)."""
    from scipy.linalg import expm

    a, h = np.array(PLANE), 0.4
    x = torch.tensor([[0.7, -0.4]], dtype=torch.float64)
    zero = torch.zeros_like(x)
    system = SDE(cubic, lambda x, t: 0.3 + 0.1 * x)
    found = one_step(ExponentialEuler(PLANE), system, x, 0.0, h, zero, zero)[0]
    decay = expm(a * h)
    phi = np.linalg.solve(a * h, decay - np.eye(2))
    np.testing.assert_allclose(found, decay @ x[0].numpy() - h * phi @ (x[0] ** 3).numpy(), rtol=1e-12)
    elementwise = one_step(ExponentialEuler([-1.5, -0.2]), system, x, 0.0, h, zero, zero)[0].numpy()
    z = np.array([-1.5, -0.2]) * h
    rest = cubic(x, 0.0)[0].numpy() - z / h * x[0].numpy()
    np.testing.assert_allclose(elementwise, np.exp(z) * x[0].numpy() + np.expm1(z) / z * rest * h, rtol=1e-12)


@pytest.mark.parametrize("linear", [-1.0, [-0.9, -0.6], PLANE])
@pytest.mark.parametrize("name", ["diagonal", "non-commuting"])
def test_orders(name: str, linear: Any) -> None:
    (problem,) = (p for p in linear_problems() if p.name == name and p.sde_type == "ito")
    stepper = Stepper(ExponentialEuler(linear), problem, ("normal", "normal"))
    (weak, strong), (weak_fine, strong_fine) = (_errors(stepper, n) for n in (32, 64))
    assert math.log2(weak / weak_fine) == pytest.approx(1.0, abs=0.1)
    assert math.log2(strong / strong_fine) == pytest.approx(0.5, abs=0.1)


def test_additive_noise_has_strong_order_one() -> None:
    found = certify_order(ExponentialEuler(-1.0), noise_types="additive", steps=(64, 128))
    assert found.strong == pytest.approx(1.0, abs=0.1)


def test_stiff_and_nonlinear() -> None:
    """-500 X + sin X at a step of 1/10, where Euler-Maruyama explodes: variance 9/998, as for sin X = X.

    Monte Carlo, 5 standard errors and 0.5 percent for sin: false alarm 6e-7.
    """

    def drift(x: Tensor, t: Any) -> Tensor:
        return -500.0 * x + torch.sin(x)

    system = SDE(drift, lambda x, t: torch.full_like(x, 3.0), noise_type="additive")
    x0 = torch.full((20_000, 1), 5.0, dtype=torch.float64)
    x = solve(system, x0, (0.0, 1.0), steps=10, solver=ExponentialEuler(-500.0), seed=1).x
    assert abs(float(x.var()) * 998.0 / 9.0 - 1) < 5 * math.sqrt(2 / 20_000) + 0.005
    assert float(solve(system, x0[:9], (0.0, 1.0), steps=10).x.abs().min()) > 1e10


@pytest.mark.parametrize("linear", [-1.5, PLANE])
@pytest.mark.parametrize("noise_type", ["additive", "scalar", "diagonal"])
def test_downwards_is_the_flipped_equation_upwards(noise_type: str, linear: Any) -> None:
    def field(x: Tensor, t: Any) -> Tensor:
        return 0.5 + (0.0 if noise_type == "additive" else 0.2) * torch.sin(x)

    system = SDE(cubic, field, noise_type=noise_type)
    flipped = SDE(lambda x, t: -cubic(x, t), field, noise_type=noise_type)
    x = torch.linspace(-1, 1, 8, dtype=torch.float64).reshape(4, 2)
    g = torch.Generator().manual_seed(2)
    w, area = (torch.randn(system.noise_shape(x), generator=g, dtype=x.dtype) * s for s in (0.3, 0.1))
    down = one_step(ExponentialEuler(linear), system, x, 0.7, -0.1, w, area)
    up = one_step(ExponentialEuler(-torch.tensor(linear, dtype=x.dtype)), flipped, x, -0.7, 0.1, w, area)
    torch.testing.assert_close(down, up, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("linear", [-1.5, PLANE])
def test_a_row_has_the_same_bits_alone(linear: Any, dtype: torch.dtype, device: torch.device) -> None:
    x0 = torch.linspace(-2, 2, 74, device=device, dtype=dtype).reshape(37, 2)
    system = SDE(lambda x, t: -x - x**3, lambda x, t: 0.3 * torch.sin(x))
    solver = ExponentialEuler(linear)
    whole = solve(system, x0, (0.0, 1.0), steps=5, solver=solver, seed=1).x
    part = solve(system, x0[11:12], (0.0, 1.0), steps=5, solver=solver, seed=1, first_id=11).x
    assert whole.dtype == dtype
    assert torch.equal(whole[11:12], part)


def test_what_is_kept_follows_the_matrix() -> None:
    """The flow of a step is computed once; a matrix changed in place is another one."""
    a, x = torch.tensor(PLANE, dtype=torch.float64), torch.ones(1, 2, dtype=torch.float64)
    system, zero = LinearSDE(a, None, torch.eye(2)), torch.zeros(1, 2, dtype=torch.float64)
    solver = ExponentialEuler()
    before = one_step(solver, system, x, 0.0, 0.3, zero, zero)
    assert torch.equal(before, one_step(solver, system, x, 0.0, 0.3, zero, zero))
    assert len(solver._memo) == 1
    system.A.mul_(2.0)
    after = one_step(solver, system, x, 0.0, 0.3, zero, zero)
    torch.testing.assert_close(after, system.transition(x, 0.0, 0.3).mean)
    assert not torch.allclose(before, after)
    for k in range(20):
        one_step(solver, system, x, 0.0, 0.1 + 0.01 * k, zero, zero)
    assert len(solver._memo) <= 9


def test_gradients_reach_the_matrix() -> None:
    a = torch.tensor(PLANE, dtype=torch.float64, requires_grad=True)
    x, w = torch.ones(1, 2, dtype=torch.float64), torch.full((1, 2), 0.3, dtype=torch.float64)

    def end(m: Tensor) -> Tensor:
        return one_step(ExponentialEuler(m), SDE(cubic, lambda x, t: 0.2 * x), x, 0.0, 0.4, w, w).sum()

    (found,) = torch.autograd.grad(end(a), a)
    nudge = torch.zeros(2, 2, dtype=torch.float64)
    nudge[0, 1] = 1e-6
    difference = float(end(a.detach() + nudge) - end(a.detach() - nudge)) / 2e-6
    assert float(found[0, 1]) == pytest.approx(difference, rel=1e-6)


def test_refusals() -> None:
    x0 = torch.zeros(2, 3)
    plain = SDE(lambda x, t: -x, lambda x, t: torch.ones_like(x), noise_type="additive")
    with pytest.raises(CapabilityError, match=r"ExponentialEuler\(linear=A\)"):
        solve(plain, x0, (0.0, 1.0), solver="exponential-euler")
    with pytest.raises(ShapeError, match=r"needs states \(B, 2\), got \(2, 3\)"):
        solve(plain, x0, (0.0, 1.0), solver=ExponentialEuler(PLANE))
    with pytest.raises(ShapeError, match="broadcast to the event"):
        solve(plain, x0, (0.0, 1.0), solver=ExponentialEuler([1.0, 2.0]))
