"""Platen and DRI1: weak order 2 on nonlinear problems, by enumeration of discrete noise: nothing is random.

The few Monte Carlo checks are 5 standard errors wide (false alarm 6e-7 each) at fixed seeds.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sdekit.certify import certify_order
from sdekit.certify.order.linear import LinearProblem
from sdekit.certify.order.measure import _errors
from sdekit.certify.order.problems import PLANE, _extend, _problem
from sdekit.certify.order.step import Stepper
from sdekit.sde import SDE
from sdekit.sde.classic import CIR, MultiplicativeLinear, SinhDiffusion
from sdekit.solvers import DRI1, EulerMaruyama, Interval, Platen, Solver, solve
from tests.solvers.enumeration import expectation, one_step

A = torch.tensor([[-0.9, 0.7], [-0.4, -0.6]], dtype=torch.float64)
B = torch.tensor([[[0.5, -0.4], [0.5, 0.2]], [[-0.2, 0.5], [0.3, 0.4]]], dtype=torch.float64)
METHODS: tuple[Solver, ...] = (Platen(), DRI1())
IDS = [s.name for s in METHODS]


class Bent(SDE):
    """Y = sinh X of dX = A X dt + sum_k B_k X dW_k, elementwise: nonlinear, non-commuting, d = m = 2."""

    def __init__(self) -> None:
        super().__init__(noise_type="general", noise_dim=2)

    def drift(self, y: Tensor, t: Any) -> Tensor:
        x, slope = torch.asinh(y), torch.sqrt(1.0 + y * y)
        square = torch.einsum("kij,bj->bik", B, x).square().sum(2)
        return slope * (x @ A.T) + 0.5 * y * square

    def diffusion(self, y: Tensor, t: Any) -> Tensor:
        return torch.sqrt(1.0 + y * y)[..., None] * torch.einsum("kij,bj->bik", B, torch.asinh(y))


def slopes(errors: list[float]) -> np.ndarray:
    return np.diff(-np.log2(np.abs(errors)))


def bent_error(solver: Solver, steps: int, end: float = 0.25) -> float:
    """Of the second moments of arsinh Y at ``end``, whose true values are those of a linear SDE."""
    start = torch.tensor([[0.6, -0.3]], dtype=torch.float64)
    law = MultiplicativeLinear(A, B)
    exact = law.second_moment(start, end)[0]
    found = expectation(
        solver,
        Bent(),
        torch.sinh(start),
        end,
        steps,
        lambda y: torch.asinh(y)[:, :, None] * torch.asinh(y)[:, None, :],
        ("three-point", "two-point"),
    )
    return float((found - exact).norm())


@pytest.mark.parametrize("solver", METHODS, ids=IDS)
def test_nonlinear_noise_that_does_not_commute(solver: Solver) -> None:
    errors = [bent_error(solver, n) for n in (1, 2, 3)]
    local = math.log(errors[0] / errors[2]) / math.log(3)
    assert 1.7 < local < 2.6
    assert errors[2] < 0.1 * bent_error(EulerMaruyama(), 3)


@pytest.mark.parametrize("solver", METHODS, ids=IDS)
def test_one_step_is_locally_of_order_three(solver: Solver) -> None:
    """Error of a single step: O(h^3)."""
    errors = [bent_error(solver, 1, end) for end in (0.04, 0.02, 0.01)]
    np.testing.assert_allclose(slopes(errors), 3.0, atol=0.15)


@pytest.mark.parametrize("solver", METHODS, ids=IDS)
def test_nonlinear_scalar_problem(solver: Solver) -> None:
    """dX = (X/2 + r) dt + r dW, r = sqrt(X^2 + 1), X0 = 0: with z = arsinh X,
    E[z^3 - 6 z^2 + 8 z] = t^3 - 3 t^2 + 2 t (Roessler 2009)."""
    end, start = 0.5, torch.zeros(1, 1, dtype=torch.float64)

    def value(x: Tensor) -> Tensor:
        z = torch.asinh(x[:, 0])
        return z**3 - 6 * z**2 + 8 * z

    errors = []
    for n in (2, 4, 8):
        found = expectation(solver, SinhDiffusion(), start, end, n, value, ("three-point", "zero"))
        errors.append(float(found) - (end**3 - 3 * end**2 + 2 * end))
    assert slopes(errors)[-1] > 1.75
    assert abs(errors[-1]) < 0.01


LAWS = ("three-point", "two-point")


def three_channels() -> LinearProblem:
    fields = [
        _extend(((0.3, -0.4), (0.5, 0.2)), (0.2, -0.1)),
        _extend(((-0.2, 0.5), (0.1, 0.4)), (-0.3, 0.2)),
        _extend(((0.4, 0.1), (-0.2, 0.3)), (0.3, 0.2)),
    ]
    return _problem("three", "general", "ito", _extend(PLANE), None, fields, None)


def single_signs(w: Tensor, signs: Tensor, size: Any) -> list[Tensor]:
    """I_kl with s_min(k, l) where s_k s_l belongs."""
    rows = []
    for k in range(w.shape[1]):
        order = torch.sign(k - torch.arange(w.shape[1])).to(w.dtype)
        sign = torch.where(order > 0, signs, signs[:, k : k + 1])
        rows.append(0.5 * (w * w[:, k : k + 1] * order.abs() + order * sign * size))
    return rows


@pytest.mark.parametrize("solver", METHODS, ids=IDS)
def test_three_channels(solver: Solver) -> None:
    """Products of two of three signs, pairwise uncorrelated only, are enough for the second order."""
    errors = [_errors(Stepper(solver, three_channels(), LAWS), n)[0] for n in (32, 64)]
    np.testing.assert_allclose(slopes(errors), 2.0, atol=0.1)


def test_one_sign_for_each_channel_is_not_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control: with the sign of the smaller index alone, I_12 and I_13 are correlated."""
    from sdekit.solvers import weak

    monkeypatch.setattr(weak, "_doubles", single_signs)
    errors = [_errors(Stepper(DRI1(), three_channels(), LAWS), n)[0] for n in (32, 64)]
    assert slopes(errors)[0] < 1.2


def test_without_the_sign_variables_the_order_is_lost() -> None:
    """Negative control: signs that are all 1 leave order 1."""
    law = ((1.0,), (1.0,))
    for solver in METHODS:
        found = certify_order(solver, noise_types="general", laws=("normal", law), steps=(32, 64))
        assert found.weak is not None
        assert found.weak < 1.2


def test_dri1_has_order_three_without_noise() -> None:
    def step(system: Any, x: Tensor, t: Tensor, h: float) -> Tensor:
        quiet = SDE(lambda y, s: system.drift(y, s), lambda y, s: torch.zeros_like(y))
        zero = torch.zeros_like(x)
        return one_step(DRI1(), quiet, x, float(t), h, zero, zero)

    found = certify_order(step, kind="ode", steps=(32, 64, 128)).deterministic
    assert found == pytest.approx(3.0, abs=0.15)


@pytest.mark.parametrize("solver", METHODS, ids=IDS)
def test_square_root_process(solver: Solver) -> None:
    """CIR far from 0, Monte Carlo: mean theta + (x0 - theta) e^(-kappa t), variance in closed form."""
    kappa, theta, sigma, x0, n = 2.0, 1.5, 0.4, 1.0, 20_000
    start = torch.full((n, 1), x0, dtype=torch.float64)
    x = solve(CIR(kappa, theta, sigma), start, (0.0, 1.0), steps=16, solver=solver, seed=3).x[:, 0]
    fall = math.exp(-kappa)
    mean = theta + (x0 - theta) * fall
    variance = sigma**2 / kappa * (x0 * (fall - fall**2) + 0.5 * theta * (1 - fall) ** 2)
    spread = math.sqrt(variance / n)
    assert abs(float(x.mean()) - mean) < 5 * spread + 1e-3
    fourth = float(((x - x.mean()) ** 4).mean())
    assert abs(float(x.var()) - variance) < 5 * math.sqrt((fourth - variance**2) / n) + 1e-3 * variance


def fields(noise_type: str) -> SDE:
    """A nonlinear SDE of this noise type on events of 2 elements."""

    def drift(x: Tensor, t: Any) -> Tensor:
        return torch.sin(x.flip(-1)) - x + torch.cos(torch.as_tensor(t)).to(x)

    def matrix(x: Tensor, t: Any) -> Tensor:
        x = torch.zeros_like(x) if noise_type == "commutative" else x
        return torch.stack([0.3 + 0.2 * torch.cos(x.flip(-1)), 0.4 + 0.1 * torch.sin(x)], dim=-1)

    def plain(x: Tensor, t: Any) -> Tensor:
        x = torch.zeros_like(x) if noise_type == "additive" else x
        return 0.5 + 0.2 * torch.sin(x + torch.as_tensor(t).to(x))

    wide = noise_type in ("commutative", "general")
    return SDE(drift, matrix if wide else plain, noise_type=noise_type, noise_dim=2 if wide else None)


TYPES = ("additive", "scalar", "diagonal", "commutative", "general")


@pytest.mark.parametrize("noise_type", TYPES)
@pytest.mark.parametrize("solver", METHODS, ids=IDS)
def test_a_row_has_the_same_bits_alone(solver: Solver, noise_type: str, device: torch.device) -> None:
    x0 = torch.linspace(-1, 1, 74, device=device).reshape(37, 2)
    system = fields(noise_type)
    whole = solve(system, x0, (0.0, 0.5), steps=5, solver=solver, seed=1).x
    part = solve(system, x0[11:12], (0.0, 0.5), steps=5, solver=solver, seed=1, first_id=11).x
    assert torch.equal(whole[11:12], part)


@pytest.mark.parametrize("noise_type", TYPES)
@pytest.mark.parametrize("solver", METHODS, ids=IDS)
def test_downwards_is_the_flipped_equation_upwards(solver: Solver, noise_type: str) -> None:
    """dX = f dt + G dW from t down is dX = -f ds + G dW in s = -t: the same numbers."""
    system = fields(noise_type)
    flipped = SDE(
        lambda x, t: -system.drift(x, -t),
        lambda x, t: system.diffusion(x, -t),
        noise_type=noise_type,
        noise_dim=system.noise_dim,
    )
    x = torch.linspace(-1, 1, 8, dtype=torch.float64).reshape(4, 2)
    g = torch.Generator().manual_seed(2)
    w, area = (torch.randn(system.noise_shape(x), generator=g, dtype=x.dtype) * s for s in (0.3, 0.1))
    down = one_step(solver, system, x, 0.7, -0.1, w, area)
    up = one_step(solver, flipped, x, -0.7, 0.1, w, area)
    torch.testing.assert_close(down, up, rtol=1e-14, atol=1e-15)
    assert not torch.equal(down, one_step(solver, system, x, 0.7, 0.1, w, area))


@pytest.mark.parametrize("solver", METHODS, ids=IDS)
def test_events_of_any_shape_and_steps_of_each_sample(solver: Solver) -> None:
    """(B, 2, 2) events with matrix noise, and h (B, 1, 1): rows are what they are with their own h."""
    system = SDE(
        lambda x, t: -(x**3),
        lambda x, t: torch.stack([x.cos(), x.sin(), 0.1 * x], -1),
        noise_type="general",
        noise_dim=3,
    )
    g = torch.Generator().manual_seed(0)
    x, w, area = (torch.randn(2, *shape, generator=g).double() for shape in ((2, 2), (3,), (3,)))
    h = torch.tensor([0.1, 0.2], dtype=torch.float64)
    times = tuple(0.3 + c * h for c in solver.nodes)
    from sdekit.solvers.problem import Counted

    both, _ = solver.step(Counted(system), x, Interval(times, h.reshape(2, 1, 1), w, area), ())
    for i in range(2):
        alone = one_step(solver, system, x[i : i + 1], 0.3, float(h[i]), w[i : i + 1], area[i : i + 1])
        torch.testing.assert_close(both[i : i + 1], alone, rtol=1e-13, atol=1e-14)


def test_gradients(device: torch.device) -> None:
    """Against central differences, through 3 steps on non-commuting noise."""
    for solver in METHODS:
        x0 = torch.tensor([[0.3, -0.2]], dtype=torch.float64, device=device)

        def end(x: Tensor, solver: Solver = solver) -> Tensor:
            return solve(fields("general"), x, (0.0, 0.3), steps=3, solver=solver, seed=4).x.sum()

        leaf = x0.clone().requires_grad_()
        (found,) = torch.autograd.grad(end(leaf), leaf)
        step = torch.tensor([[1e-6, 0.0]], dtype=torch.float64, device=device)
        assert float(found[0, 0]) == pytest.approx(float(end(x0 + step) - end(x0 - step)) / 2e-6, rel=1e-7)
