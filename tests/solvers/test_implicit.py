"""Drift-implicit methods: the equation is solved, stiff problems stay bounded, failures are told.

Moments of a step are exact, from three-point noise; pathwise checks run on one tree at fixed seeds.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sdekit.certify import certify_order
from sdekit.errors import CapabilityError, SolveError
from sdekit.noise import BrownianTree
from sdekit.sde import SDE, LinearSDE
from sdekit.sde.classic import GeometricBrownian, MultiplicativeLinear
from sdekit.solution import Status
from sdekit.solvers import ImplicitEuler, ImplicitMilstein, Solver, Theta, solve
from tests.solvers.enumeration import one_step

METHODS: tuple[Solver, ...] = (Theta(), ImplicitEuler(), ImplicitMilstein())
IDS = [s.name for s in METHODS]
ROOT3 = math.sqrt(3.0)


def mixed(x: Tensor, t: Any) -> Tensor:
    """A nonlinear drift that mixes the elements of an event (B, 2), in time."""
    a, b = x.unbind(1)
    return torch.stack([b - a**3, torch.sin(a) - 2 * b + torch.as_tensor(t, dtype=x.dtype)], dim=1)


@pytest.mark.parametrize("theta", [0.3, 0.5, 1.0])
def test_the_equation_is_solved(theta: float) -> None:
    """x' - x - (1 - theta) h f(x, t) - theta h f(x', t + h) - G W = 0, to rounding."""
    g = torch.Generator().manual_seed(0)
    x, w = (torch.randn(20, 2, generator=g, dtype=torch.float64) for _ in range(2))
    system = SDE(mixed, lambda x, t: 0.4 * x)
    t, h = 0.3, 0.5
    y = one_step(Theta(theta), system, x, t, h, w)
    left = y - x - (1 - theta) * h * mixed(x, t) - theta * h * mixed(y, t + h) - 0.4 * x * w
    assert float(left.abs().max()) < 1e-13


@pytest.mark.parametrize(
    ("name", "strong"), [("theta", 0.5), ("implicit-euler", 0.5), ("implicit-milstein", 1.0)]
)
def test_orders(name: str, strong: float) -> None:
    """On scalar noise in two dimensions, with and without time."""
    found = certify_order(name, noise_types="scalar", steps=(16, 32))
    assert found.weak == pytest.approx(1.0, abs=0.1)
    assert found.strong == pytest.approx(strong, abs=0.1)


def second_moment(solver: Solver, rate: complex, noise: complex, h: float) -> float:
    """E|R|^2 of one step x' = R x on dX = rate X dt + noise X dW, complex numbers as pairs."""

    def times(c: complex, x: Tensor) -> Tensor:
        a, b = x.unbind(1)
        return torch.stack([c.real * a - c.imag * b, c.real * b + c.imag * a], dim=1)

    system = SDE(lambda x, t: times(rate, x), lambda x, t: times(noise, x), noise_type="scalar")
    x = torch.tensor([[1.0, 0.0]], dtype=torch.float64).expand(3, 2)
    w = math.sqrt(h) * torch.tensor([[-ROOT3], [0.0], [ROOT3]], dtype=torch.float64)
    square = one_step(solver, system, x, 0.0, h, w).square().sum(1)
    return float(square @ torch.tensor([1 / 6, 2 / 3, 1 / 6], dtype=torch.float64))


@pytest.mark.parametrize("theta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("rate", [-3.0 + 0j, -1.0 + 2j, 0.4 - 1j])
def test_mean_square_growth_of_geometric_brownian_motion(theta: float, rate: complex) -> None:
    """E|R|^2 = (|1 + (1 - theta) lambda h|^2 + |mu|^2 h)/|1 - theta lambda h|^2 (Higham 2000), and with
    Milstein's term + |mu^2 h|^2/2."""
    noise, h = 1.1 - 0.3j, 0.7
    plain = abs(1 + (1 - theta) * rate * h) ** 2 + abs(noise) ** 2 * h
    under = abs(1 - theta * rate * h) ** 2
    assert second_moment(Theta(theta), rate, noise, h) == pytest.approx(plain / under, rel=1e-12)
    extra = abs(noise) ** 4 * h * h / 2
    found = second_moment(ImplicitMilstein(theta), rate, noise, h)
    assert found == pytest.approx((plain + extra) / under, rel=1e-12)


@pytest.mark.parametrize("h", [0.1, 1.0, 40.0])
def test_the_trapezium_rule_is_stable_where_the_equation_is(h: float) -> None:
    """At theta = 1/2, |1 + lambda h/2|^2 + |mu|^2 h - |1 - lambda h/2|^2 = (2 Re lambda + |mu|^2) h."""
    for rate, noise in ((-0.51, 1.0), (-0.49, 1.0)):
        assert (second_moment(Theta(), rate, noise, h) < 1) == (2 * rate + noise**2 < 0)


def test_stiff_relaxation() -> None:
    """lambda h = 100: Euler-Maruyama explodes; theta = 1/2 keeps |x|, theta = 1 divides it by 101 a step."""
    stiff = SDE(lambda x, t: -1000.0 * x, lambda x, t: torch.zeros_like(x), noise_type="additive")
    x0 = torch.ones(2, 1, dtype=torch.float64)
    ends = {n: solve(stiff, x0, (0.0, 1.0), steps=10, solver=n, throw=False).x for n in IDS}
    assert float(solve(stiff, x0, (0.0, 1.0), steps=10).x.abs().min()) > 1e19
    np.testing.assert_allclose(ends["theta"], (49 / 51) ** 10, rtol=1e-12)
    np.testing.assert_allclose(ends["implicit-euler"], 101.0**-10, rtol=1e-9)
    np.testing.assert_allclose(ends["implicit-milstein"], 101.0**-10, rtol=1e-9)


def test_stationary_law_of_a_stiff_linear_sde() -> None:
    """Implicit Euler on dX = -k X dt + s dW: variance s^2/(2 k + k^2 h); theta = 1/2: s^2/(2 k), exactly.

    By the law of one step: b^2 V + s^2 h/(1 + theta k h)^2 = V.
    """
    k, s, h = 50.0, 2.0, 0.2
    system = LinearSDE([[-k]], L=[[s]])
    x = torch.tensor([[0.0], [1.0], [0.0]], dtype=torch.float64)
    w = torch.tensor([[0.0], [0.0], [math.sqrt(h)]], dtype=torch.float64)
    for theta, expected in ((1.0, s * s / (2 * k + k * k * h)), (0.5, s * s / (2 * k))):
        zero, moved, pushed = one_step(Theta(theta), system, x, 0.0, h, w)[:, 0].tolist()
        assert zero == 0.0
        assert pushed**2 / (1 - moved**2) == pytest.approx(expected, rel=1e-12)


def test_implicit_milstein_on_exact_paths() -> None:
    """Strong order 1 on diagonal noise, and on matrices that commute; the theta method has 1/2."""
    tree, n = BrownianTree(7), 300
    b = torch.diag_embed(torch.tensor([[0.7, -0.5], [-0.4, 0.6]], dtype=torch.float64))
    commuting = MultiplicativeLinear(-torch.eye(2, dtype=torch.float64), b)
    assert commuting.noise_type == "commutative"
    for system, width in ((GeometricBrownian(-1.0, 0.8), 1), (commuting, 2)):
        x0 = torch.ones(n, width, dtype=torch.float64)
        w = tree.increments(0.0, 1.0, x0, torch.arange(n)).W
        exact, order = system.solution(x0, 1.0, w), {}
        for solver in (ImplicitMilstein(), ImplicitEuler()):
            errors = []
            for steps in (16, 128):
                x = solve(system, x0, (0.0, 1.0), steps=steps, solver=solver, noise=tree).x
                errors.append(float((x - exact).square().mean().sqrt()))
            order[solver.name] = math.log(errors[0] / errors[1]) / math.log(8)
        assert 0.9 < order["implicit-milstein"] < 1.15
        assert 0.35 < order["implicit-euler"] < 0.7


def test_milstein_term_of_a_nonlinear_commuting_field() -> None:
    """G_1 = (c(x), 0), G_2 = (0, s(y)) as a matrix is what the same noise is as diagonal."""

    def field(x: Tensor, t: Any) -> Tensor:
        return 1.0 + 0.5 * torch.sin(x)

    x = torch.tensor([[0.3, -0.8]], dtype=torch.float64)
    w = torch.tensor([[0.4, 0.2]], dtype=torch.float64)
    diagonal = SDE(mixed, field)
    matrix = SDE(mixed, lambda x, t: torch.diag_embed(field(x, t)), noise_type="commutative", noise_dim=2)
    found = [one_step(ImplicitMilstein(), s, x, 0.0, 0.1, w) for s in (diagonal, matrix)]
    torch.testing.assert_close(found[0], found[1], rtol=1e-14, atol=1e-15)
    term = 0.5 * field(x, 0) * 0.5 * torch.cos(x) * (w * w - 0.1)
    plain = one_step(ImplicitMilstein(0.0), diagonal, x, 0.0, 0.1, w)
    torch.testing.assert_close(plain, x + 0.1 * mixed(x, 0.0) + field(x, 0) * w + term)


def kinked(x: Tensor, t: Any) -> Tensor:
    """A drift without a root of y = x + h f(y) where x > 1: f grows faster than y."""
    return torch.where(x > 0.5, 10.0 * x * x + 20.0, -x)


def test_samples_that_do_not_converge_are_marked() -> None:
    system = SDE(kinked, lambda x, t: torch.zeros_like(x), noise_type="additive")
    x0 = torch.tensor([[0.1], [2.0], [-0.3]], dtype=torch.float64)
    run = solve(system, x0, (0.0, 1.0), steps=4, solver="implicit-euler", throw=False)
    assert run.status.tolist() == [Status.OK, Status.NOT_CONVERGED, Status.OK]
    assert run.failed_step is not None
    assert run.failed_step.tolist() == [-1, 0, -1]
    assert torch.isnan(run.x[1]).all()
    np.testing.assert_allclose(run.x[[0, 2], 0], np.array([0.1, -0.3]) / 1.25**4, rtol=1e-12)
    with pytest.raises(SolveError, match=r"given up by Newton's method at step 0.*too long for the drift"):
        solve(system, x0, (0.0, 1.0), steps=4, solver="implicit-euler")


def test_a_drift_that_is_not_finite_is_not_blamed_on_newton() -> None:
    def drift(x: Tensor, t: Any) -> Tensor:
        return torch.where(x > 1, torch.full_like(x, torch.nan), -x)

    system = SDE(drift, lambda x, t: torch.zeros_like(x), noise_type="additive")
    x0 = torch.tensor([[0.5], [2.0]], dtype=torch.float64)
    run = solve(system, x0, (0.0, 1.0), steps=4, solver="theta", throw=False)
    assert run.status.tolist() == [Status.OK, Status.NON_FINITE]


@pytest.mark.parametrize("solver", METHODS, ids=IDS)
def test_gradients_of_state_and_parameters(solver: Solver) -> None:
    """Through 4 steps of a nonlinear drift, against central differences."""

    def end(values: Tensor) -> Tensor:
        x0, k, s = values[:2].expand(2, 2), values[2], values[3]
        system = SDE(lambda x, t: -k * x**3 + x.flip(1), lambda x, t: s * torch.cos(x))
        return solve(system, x0, (0.0, 2.0), steps=4, solver=solver, seed=3, gradient="backprop").x.sum()

    values = torch.tensor([0.4, -0.7, 2.0, 0.3], dtype=torch.float64)
    (found,) = torch.autograd.grad(end(leaf := values.clone().requires_grad_()), leaf)
    for i, unit in enumerate(torch.eye(4, dtype=torch.float64)):
        difference = float(end(values + 1e-5 * unit) - end(values - 1e-5 * unit)) / 2e-5
        assert float(found[i]) == pytest.approx(difference, rel=1e-6, abs=1e-8)
    assert torch.equal(end(leaf).detach(), end(values))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("solver", METHODS, ids=IDS)
def test_a_row_has_the_same_bits_alone(solver: Solver, dtype: torch.dtype, device: torch.device) -> None:
    """Rows need different numbers of iterations here."""
    x0 = torch.linspace(-3, 3, 37 * 2, device=device, dtype=dtype).reshape(37, 2)
    system = SDE(mixed, lambda x, t: 0.3 * torch.sin(x))
    whole = solve(system, x0, (0.0, 2.0), steps=4, solver=solver, seed=1).x
    for i in (0, 11, 36):
        part = solve(system, x0[i : i + 1], (0.0, 2.0), steps=4, solver=solver, seed=1, first_id=i).x
        assert torch.equal(whole[i : i + 1], part)


@pytest.mark.parametrize("noise_type", ["additive", "scalar", "diagonal"])
@pytest.mark.parametrize("solver", METHODS, ids=IDS)
def test_downwards_is_the_flipped_equation_upwards(solver: Solver, noise_type: str) -> None:
    def field(x: Tensor, t: Any) -> Tensor:
        return 0.5 + (0.0 if noise_type == "additive" else 0.2) * torch.sin(x)

    system = SDE(mixed, field, noise_type=noise_type)
    flipped = SDE(lambda x, t: -mixed(x, -t), field, noise_type=noise_type)
    x = torch.linspace(-1, 1, 8, dtype=torch.float64).reshape(4, 2)
    w = torch.randn(system.noise_shape(x), generator=torch.Generator().manual_seed(2), dtype=x.dtype) * 0.3
    down = one_step(solver, system, x, 0.7, -0.1, w)
    torch.testing.assert_close(down, one_step(solver, flipped, x, -0.7, 0.1, w), rtol=1e-13, atol=1e-14)


def test_events_of_any_shape() -> None:
    """(B, 2, 2) and one number, as (B, 4) and (B, 1)."""
    system = SDE(lambda x, t: -(x**3) + x.sum(), lambda x, t: 0.2 + 0 * x, noise_type="additive")
    x = torch.linspace(-1, 1, 4, dtype=torch.float64)
    w = torch.linspace(0.3, -0.2, 4, dtype=torch.float64)
    wide = one_step(Theta(), system, x.reshape(1, 2, 2), 0.0, 0.1, w.reshape(1, 2, 2))
    flat = one_step(Theta(), system, x.reshape(1, 4), 0.0, 0.1, w.reshape(1, 4))
    torch.testing.assert_close(wide.reshape(1, 4), flat)


def test_a_drift_that_torch_cannot_follow_is_refused() -> None:
    def drift(x: Tensor, t: Any) -> Tensor:
        return torch.from_numpy(-x.numpy())

    system = SDE(drift, lambda x, t: torch.ones_like(x), noise_type="additive")
    with pytest.raises(CapabilityError, match="derivative of the drift"):
        solve(system, torch.ones(2, 1), (0.0, 1.0), steps=2, solver="theta")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"theta": 1.2}, r"\[0, 1\]"),
        ({"tolerance": 0.0}, r"\(0, 1\)"),
        ({"iterations": 0}, "at least 1"),
    ],
)
def test_options_out_of_range(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Theta(**options)


def test_one_iteration_is_not_enough_for_a_cubic() -> None:
    """Negative control of the failure status: iterations count."""
    system = SDE(lambda x, t: -(x**3), lambda x, t: torch.zeros_like(x), noise_type="additive")
    x0 = torch.tensor([[2.0]], dtype=torch.float64)
    assert not solve(system, x0, (0.0, 1.0), steps=2, solver=ImplicitEuler(iterations=1), throw=False).ok
    assert solve(system, x0, (0.0, 1.0), steps=2, solver=ImplicitEuler()).ok
