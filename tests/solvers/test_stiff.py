"""The implicit method: stability, stiff problems against scipy's Radau, Newton's method and its failures."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import solve_ivp

from sdekit.errors import CapabilityError, SolveError
from sdekit.sde import ODE
from sdekit.solution import Status
from sdekit.solvers import Interval, Kvaerno5, solve
from sdekit.solvers.kvaerno import GAMMA, KVAERNO
from sdekit.solvers.newton import apply, find_root, inverse, jacobian
from sdekit.solvers.problem import Counted
from tests.solvers import trees

F64 = torch.float64


def stability(z: complex) -> complex:
    """R(z) = 1 + z b^T (I - z A)^-1 1."""
    a = trees.matrix(KVAERNO) + np.diag([0.0, *[GAMMA] * 6])
    return complex(1 + z * np.array(KVAERNO.b) @ np.linalg.solve(np.eye(7) - z * a, np.ones(7)))


# -- stability -------------------------------------------------------------------------------------


def test_it_is_a_stable_and_damps_at_infinity() -> None:
    """|R(iy)| <= 1 on the imaginary axis, poles (1/gamma) on the right: A-stable; R(-1e6) = 6.5e-6."""
    values = [abs(stability(1j * y)) for y in np.geomspace(1e-3, 1e6, 400)]
    assert max(values) < 1 + 1e-12
    assert abs(stability(-1e6)) < 1e-5
    assert stability(1 / GAMMA * (1 + 1e-9)).real > 1e6


@pytest.mark.parametrize("z", [-1e-2, -1.0, -30.0, -1e6, 0.5])
def test_a_step_is_the_stability_function(z: float, device: torch.device) -> None:
    """One step of h = 1 on x' = z x."""
    x = torch.tensor([[1.0], [-3.0]], dtype=F64, device=device)
    out = solve(ODE(lambda x, t: z * x), x, (0.0, 1.0), solver="kvaerno5", steps=1)
    expected = stability(z).real
    torch.testing.assert_close(out.x, x * expected, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("start", [1.0, 2.0])
def test_lambda_of_minus_a_million(start: float, device: torch.device) -> None:
    """x' = -1e6 (x - cos t) - sin t, on the smooth solution or off it: a few steps, not 1e6."""
    ode = ODE(lambda x, t: -1e6 * (x - torch.cos(t).reshape(-1, 1)) - torch.sin(t).reshape(-1, 1))
    x = torch.tensor([[start]], dtype=F64, device=device)
    out = solve(ode, x, (0.0, 10.0), solver="kvaerno5", rtol=1e-8, atol=1e-8)
    assert out.stats.steps < 120
    assert float((out.x - math.cos(10.0)).abs()) < 1e-7
    fixed = solve(ode, x, (0.0, 10.0), solver="kvaerno5", steps=20)
    assert float((fixed.x - math.cos(10.0)).abs()) < 1e-7
    assert (
        solve(ode, x, (0.0, 10.0), solver="tsit5", max_steps=2000, throw=False).status[0] == Status.MAX_STEPS
    )


# -- stiff problems --------------------------------------------------------------------------------


def robertson(x: Any, t: Any) -> list[Any]:
    a, b, c = x[:, 0], x[:, 1], x[:, 2]
    fast, slow, quadratic = 1e4 * b * c, 0.04 * a, 3e7 * b * b
    return [fast - slow, slow - fast - quadratic, quadratic]


def oscillator(x: Any, t: Any) -> list[Any]:
    """Van der Pol, mu = 1000, over its first fast transition."""
    return [x[:, 1], 1000 * (1 - x[:, 0] ** 2) * x[:, 1] - x[:, 0]]


STIFF: dict[str, tuple[Any, list[float], float, float]] = {
    "robertson": (robertson, [1.0, 0.0, 0.0], 1e4, 1e-6),
    "van der pol": (oscillator, [2.0, 0.0], 900.0, 1e-3),
}


@pytest.mark.parametrize("name", STIFF)
def test_stiff_problems_as_radau(name: str) -> None:
    """Within 30 tolerances of scipy's Radau at 1e-10, in at most 1.3 times Radau's evaluations.

    Its Jacobians are not among those; ours are, two or three products a step.
    """
    f, x0, end, small = STIFF[name]

    def drift(t: float, y: Any) -> Any:
        return np.stack(f(y[None], t), axis=-1)[0]

    exact = solve_ivp(drift, (0, end), x0, method="Radau", rtol=1e-10, atol=1e-13).y[:, -1]
    tol = 1e-6
    out = solve(
        ODE(lambda x, t: torch.stack(f(x, t), dim=1)),
        *(torch.tensor([x0], dtype=F64), (0.0, end)),
        solver="kvaerno5",
        rtol=tol,
        atol=tol * small,
    )
    np.testing.assert_allclose(out.x[0].numpy(), exact, rtol=30 * tol, atol=0)
    radau = solve_ivp(drift, (0, end), x0, method="Radau", rtol=tol, atol=tol * small)
    assert out.stats.nfe < 1.3 * radau.nfev


def test_dense_output_stays_bounded_where_the_start_is_far_off(device: torch.device) -> None:
    """One step of h lambda = -1e6 from x0: the state stays within (-x0, x0], where a cubic through the end
    slopes would reach 1e5 x0."""
    system, x = Counted(ODE(lambda x, t: -1e6 * x)), torch.ones(1, 1, dtype=F64, device=device)
    solver, t = Kvaerno5(), torch.zeros((), dtype=F64, device=device)
    interval = Interval(tuple(t + c for c in solver.nodes), 1.0)
    attempt = solver.attempt(system, x, interval, solver.init(system, x, t))
    values = [float(solver.interpolate(x, 1.0, attempt, theta)) for theta in np.linspace(0, 1, 21)]
    assert max(map(abs, values)) < 1.001


def test_stiffness_of_one_row_costs_the_others_no_accuracy(device: torch.device) -> None:
    """Rates from 1 to 1e5 in one batch, each row with its own steps."""
    rate = torch.tensor([[1.0], [1e2], [1e5]], dtype=F64, device=device)

    def drift(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        slope = -x[:, 1:] * (x[:, :1] - torch.sin(t).reshape(-1, 1)) + torch.cos(t).reshape(-1, 1)
        return torch.cat([slope, torch.zeros_like(slope)], dim=1)

    x = torch.cat([torch.zeros_like(rate), rate], dim=1)
    out = solve(ODE(drift), x, (0.0, 2.0), solver="kvaerno5", rtol=1e-7, atol=1e-7)
    assert float((out.x[:, 0] - math.sin(2.0)).abs().max()) < 2e-6


def test_gradients_of_a_stiff_run(device: torch.device) -> None:
    """x -> cos(a t)/... on the slow manifold of x' = -1e4 (x - a t): d x/d a = t - 1e-4 at large t."""
    a = torch.tensor(0.8, dtype=F64, device=device, requires_grad=True)
    x = torch.zeros(2, 1, dtype=F64, device=device)
    out = solve(
        ODE(lambda x, t: -1e4 * (x - a * t.reshape(-1, 1))),
        *(x, (0.0, 2.0)),
        solver="kvaerno5",
        rtol=1e-8,
        atol=1e-8,
        gradient="backprop",
    )
    (slope,) = torch.autograd.grad(out.x[0, 0], a)
    assert float(slope) == pytest.approx(2.0 - 1e-4, rel=1e-7)


# -- Newton's method -------------------------------------------------------------------------------


@given(st.integers(1, 6), st.integers(0, 10_000))
@settings(max_examples=40, deadline=None)
def test_inverses(n: int, seed: int) -> None:
    """Against LAPACK; a matrix alone has the bits that it has among others."""
    m = torch.randn(5, n, n, dtype=F64, generator=torch.Generator().manual_seed(seed))
    found = inverse(m)
    scale = float(torch.linalg.cond(m).max())
    torch.testing.assert_close(found, torch.linalg.inv(m), rtol=1e-13 * scale, atol=1e-13 * scale**2)
    assert torch.equal(inverse(m[2:3]), found[2:3])
    v = torch.randn(5, n, dtype=F64, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(apply(m, v), torch.einsum("bij,bj->bi", m, v))


def test_pivots_and_singular_matrices() -> None:
    """A zero on the diagonal needs an exchange of rows; a singular matrix spoils its own row alone."""
    m = torch.tensor([[[0.0, 2.0], [4.0, 1.0]], [[1.0, 2.0], [2.0, 4.0]]], dtype=F64)
    found = inverse(m)
    torch.testing.assert_close(found[0], torch.linalg.inv(m[0]))
    assert not torch.isfinite(found[1]).all()


def test_jacobians() -> None:
    """Of events of any shape, d f_i/d x_j at [:, i, j]."""
    x = torch.randn(3, 2, 2, dtype=F64, generator=torch.Generator().manual_seed(1))

    def field(y: torch.Tensor) -> torch.Tensor:
        return torch.sin(y) * y.sum(dim=(1, 2), keepdim=True) + y.flip(1) ** 2

    found = jacobian(field, x)
    for row in range(3):
        full = torch.autograd.functional.jacobian(lambda y: field(y[None])[0], x[row])
        torch.testing.assert_close(found[row], full.reshape(4, 4))


def test_roots_are_found_and_failures_told() -> None:
    """y^2 = c with the derivative kept at the guess: linear convergence; no root of c = -1; one skipped."""
    c = torch.tensor([[4.0], [9.0], [-1.0], [4.0]], dtype=F64)
    guess = torch.tensor([[2.3], [3.2], [1.0], [2.3]], dtype=F64)
    skip = torch.tensor([False, False, False, True])
    root = find_root(
        lambda y: (c - y * y) / (2 * guess),
        guess,
        lambda step, y: step.abs()[:, 0] / 1e-10,
        most=40,
        skip=skip,
    )
    assert root.failed.tolist() == [False, False, True, True]
    torch.testing.assert_close(root.y[:2], c[:2].sqrt(), rtol=0, atol=1e-10)
    assert root.y[3].tolist() == [2.3]


def test_a_first_small_correction_is_enough() -> None:
    calls = []

    def correction(y: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        return torch.full_like(y, 1e-3)

    root = find_root(correction, torch.zeros(2, 1, dtype=F64), lambda step, y: step.abs()[:, 0])
    assert len(calls) == 1
    assert not root.failed.any()


def test_what_is_left_is_estimated_from_the_rate() -> None:
    """Corrections 4, 2, 1 at rate 1/2: what is left is as large as the last one, and 1 is enough."""
    sizes = []

    def correction(y: torch.Tensor) -> torch.Tensor:
        sizes.append(4.0 * 0.5 ** len(sizes))
        return torch.full_like(y, sizes[-1])

    find_root(correction, torch.zeros(2, 1, dtype=F64), lambda step, y: step.abs()[:, 0])
    assert sizes == [4.0, 2.0, 1.0]
    assert Kvaerno5().bound(1e-3, 1e-5).tolerances == (1e-3, 1e-5)


def test_newton_that_does_not_converge_rejects_the_step(device: torch.device) -> None:
    """Adaptive: the steps shrink and the run goes on. Fixed: the sample becomes NaN, the others do not."""
    ode = ODE(lambda x, t: torch.stack([-(x[:, 0] ** 3) * x[:, 1], 0 * x[:, 1]], dim=1))
    x = torch.tensor([[1.0, 1.0], [300.0, 1e3]], dtype=F64, device=device)
    exact = x[:, 0] / (1 + 2 * x[:, 1] * x[:, 0] ** 2).sqrt()
    out = solve(ode, x, (0.0, 1.0), solver="kvaerno5", rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(out.x[:, 0], exact, rtol=1e-6, atol=0)
    assert out.stats.rejected > 0
    fixed = solve(ode, x, (0.0, 1.0), solver="kvaerno5", steps=20, throw=False)
    assert fixed.status.tolist() == [Status.OK, Status.NOT_CONVERGED]
    torch.testing.assert_close(fixed.x[0, 0], exact[0], rtol=1e-6, atol=0)
    with pytest.raises(SolveError, match="Newton.s method at step 0 .* more steps"):
        solve(ode, x, (0.0, 1.0), solver="kvaerno5", steps=20)


def test_a_drift_without_derivative(device: torch.device) -> None:
    """A blow-up at t = 1 ends as a status there; a drift that torch cannot follow is refused."""

    class Opaque(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
            return -x

    x = torch.ones(1, 2, dtype=F64, device=device)
    with pytest.raises(CapabilityError, match="derivative of the drift"):
        solve(ODE(lambda x, t: Opaque.apply(x)), x, (0.0, 1.0), solver="kvaerno5", steps=2)
    blowup = solve(ODE(lambda x, t: x * x), x, (0.0, 2.0), solver="kvaerno5", throw=False)
    assert blowup.status[0] in (Status.NON_FINITE, Status.STEP_UNDERFLOW)
    assert abs(float(blowup.failed_at[0]) - 1.0) < 1e-3
