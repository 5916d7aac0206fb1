"""ODE solvers: orders on a non-autonomous nonlinear problem, the exact Gaussian flow, per-sample control."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sdekit.sde import ODE, SubVP, probability_flow
from sdekit.solution import Status
from sdekit.solvers import Controller, DormandPrince, Euler, Heun, Interval, RungeKutta, solve
from sdekit.solvers.control import first_step
from sdekit.solvers.rows import rms
from sdekit.solvers.tableaus import DORMAND_PRINCE, HEUN
from tests.solvers.problems import GaussianFlow, nonlinear, slope


def errors(solver: object, grids: tuple[int, ...], device: torch.device) -> list[float]:
    ode, exact = nonlinear()
    x0 = exact(0.0).to(device)
    runs = [solve(ode, x0, (0.0, 2.0), solver=solver, steps=n).x for n in grids]
    return [float((x - exact(2.0).to(device)).abs().max()) for x in runs]


@pytest.mark.parametrize(
    ("solver", "order", "grids"),
    [(Euler(), 1, (1280, 2560)), (Heun(), 2, (160, 320)), (DormandPrince(), 5, (40, 80))],
)
def test_order(solver: RungeKutta, order: int, grids: tuple[int, ...], device: torch.device) -> None:
    observed = slope(errors(solver, grids, device))
    assert solver.order == order
    assert order - 0.1 < observed < order + 0.35


def test_order_control(device: torch.device) -> None:
    """A wrong node, which only time-dependent problems see, loses the order."""

    @dataclass(frozen=True)
    class WrongNode(RungeKutta):
        name, order, reference = "wrong-node", 2, ""
        tableau = replace(HEUN, c=(0.0, 0.9))

    assert slope(errors(WrongNode(), (160, 320), device)) < 1.2


def test_dormand_prince_tableau() -> None:
    """Row sums, quadrature conditions to order 5 of b, to order 4 of b - e; e sums to zero."""
    t = DORMAND_PRINCE
    c, b, e = np.array(t.c), np.array(t.b), np.array(t.e)
    assert t.fsal
    np.testing.assert_allclose([sum(row) for row in t.a], c, rtol=0, atol=1e-14)
    for q in range(1, 6):
        assert abs(b @ c ** (q - 1) - 1 / q) < 1e-14
    for q in range(1, 5):
        assert abs((b - e) @ c ** (q - 1) - 1 / q) < 1e-14
    assert abs((b - e) @ c**4 - 1 / 5) > 1e-4


def test_interpolant_has_order_four(device: torch.device) -> None:
    """The local error between the ends of a step is O(h^5)."""
    ode, exact = nonlinear()
    solver, worst = DormandPrince(), []
    for h in (0.1, 0.05):
        x = exact(0.4).to(device)
        times = tuple(x.new_tensor(0.4 + c * h) for c in solver.nodes)
        attempt = solver.attempt(ode, x, Interval(times, h), solver.init(ode, x, times[0]))
        thetas = np.linspace(0, 1, 21)
        inside = [solver.interpolate(x, h, attempt, float(theta)) for theta in thetas]
        gaps = [
            float((v - exact(0.4 + th * h).to(device)).abs().max())
            for v, th in zip(inside, thetas, strict=True)
        ]
        worst.append(max(gaps))
    assert 4.7 < slope(worst) < 5.6


@pytest.mark.parametrize("span", [(1.0, 1e-3), (1e-3, 1.0)])
def test_probability_flow(span: tuple[float, float], device: torch.device) -> None:
    """rk45, torchdiffeq and scipy against the exact Gaussian map, both ways, saved times included."""
    law = GaussianFlow(device)
    ode = probability_flow(law.process, law.score)
    x = torch.randn(
        8, 3, dtype=torch.float64, device=device, generator=torch.Generator(device).manual_seed(1)
    )
    middle = [0.7, 0.31] if span[0] > span[1] else [0.31, 0.7]
    for solver in ("rk45", "torchdiffeq:dopri5", "scipy:RK45"):
        out = solve(ode, x, span, solver=solver, rtol=1e-9, atol=1e-9, save_at=middle)
        assert out.ok
        assert out.xs is not None
        torch.testing.assert_close(out.x, law.flow(x, *span), rtol=1e-6, atol=1e-6)
        for t, value in zip(middle, out.xs, strict=True):
            torch.testing.assert_close(value, law.flow(x, span[0], t), rtol=1e-6, atol=1e-6)


def test_error_follows_tolerance(device: torch.device) -> None:
    law = GaussianFlow(device)
    ode = probability_flow(law.process, law.score)
    x = torch.linspace(-2, 2, 24, dtype=torch.float64, device=device).reshape(8, 3)
    for tol in (1e-4, 1e-6, 1e-8, 1e-10):
        out = solve(ode, x, (1.0, 1e-3), solver="rk45", rtol=tol, atol=tol)
        assert float((out.x - law.flow(x, 1.0, 1e-3)).abs().max()) < 60 * tol


def test_evaluations_are_counted(device: torch.device) -> None:
    """First same as last: 6 calls a step, 2 to begin; the fixed-step run has 1 to begin."""
    law, calls = GaussianFlow(device), []

    def velocity(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        calls.append(t.shape)
        return probability_flow(law.process, law.score).drift(x, t)

    x = torch.linspace(-2, 2, 24, dtype=torch.float64, device=device).reshape(8, 3)
    out = solve(ODE(velocity), x, (1.0, 1e-3), solver="rk45")
    assert out.stats.nfe == len(calls) == 2 + 6 * out.stats.steps
    assert out.stats.steps == out.stats.accepted + out.stats.rejected
    assert set(calls) == {(8,)}
    calls.clear()
    out = solve(ODE(velocity), x, (1.0, 1e-3), solver="rk45", steps=10)
    assert out.stats.nfe == len(calls) == 61
    assert set(calls) == {()}
    assert solve(ODE(velocity), x, (1.0, 1e-3), solver="heun", steps=10).stats.nfe == 20
    assert solve(ODE(velocity), x, (1.0, 1e-3), steps=10).stats.nfe == 10


@pytest.mark.parametrize("state", [torch.float32, torch.float64])
def test_sample_alone_has_the_same_bits(state: torch.dtype, device: torch.device) -> None:
    """Steps, saved times and states of a sample do not see the batch, compacted or not."""
    law = GaussianFlow(device, state)
    law.process = SubVP()
    ode = probability_flow(law.process, law.score)
    x = 3 * torch.randn(67, 3, dtype=state, device=device, generator=torch.Generator(device).manual_seed(2))
    args = {"rtol": 1e-5, "atol": 1e-5, "save_at": [0.8, 0.55, 0.1]}
    full = solve(ode, x, (1.0, 1e-3), solver="rk45", **args)
    compact = solve(ode, x, (1.0, 1e-3), solver=DormandPrince(compact=True), **args)
    assert torch.equal(full.x, compact.x)
    assert torch.equal(full.xs, compact.xs)
    for rows in (slice(17, 18), slice(0, 5), slice(30, 61)):
        part = solve(ode, x[rows], (1.0, 1e-3), solver="rk45", **args)
        assert torch.equal(part.x, full.x[rows])
        assert torch.equal(part.xs, full.xs[:, rows])


def test_compaction_leaves_finished_samples_out(device: torch.device) -> None:
    """Stiffness per row: the slow rows go on alone."""
    rate = torch.tensor([1.0, 200.0], dtype=torch.float64, device=device)
    rows = []

    def velocity(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        rows.append(len(x))
        return -x[:, :1] * torch.cat([x[:, 1:], 0 * x[:, 1:]], dim=1)

    x = torch.stack([torch.ones_like(rate), rate], dim=1)
    ends = [solve(ODE(velocity), x, (0.0, 1.0), solver=DormandPrince(compact=c)).x for c in (False, True)]
    assert torch.equal(*ends)
    assert rows[-1] == 1
    assert rows.count(1) > rows.count(2) / 4


def test_starting_step(device: torch.device) -> None:
    """x' = -k x from 1: h0 = 0.01/k, |f'| = k^2, h = (0.01/max(|f|, |f'|))^(1/5), norm over 2e-5, per row"""
    k = torch.tensor([[1.0], [100.0], [1e-3]], dtype=torch.float64, device=device)
    x, t = torch.ones_like(k), torch.zeros(3, dtype=torch.float64, device=device)
    ode = ODE(lambda x, t: -k * x)
    for span in (9.0, -9.0):
        h = first_step(ode, x, -k * x, t, span, 5, 1e-5, 1e-5)
        tops = (5e4, 5e8, 50)
        np.testing.assert_allclose(h, [math.copysign((0.01 / top) ** 0.2, span) for top in tops], rtol=1e-9)
    np.testing.assert_allclose(first_step(ode, x, -k * x, t, 0.01, 5, 1e-5, 1e-5)[2], 0.01)


@given(st.lists(st.integers(1, 9), min_size=0, max_size=3), st.integers(1, 6))
def test_rms_rows(event: list[int], rows: int) -> None:
    x = torch.randn(rows, *event, dtype=torch.float64, generator=torch.Generator().manual_seed(rows))
    expected = (x.reshape(rows, -1) ** 2).mean(dim=1).sqrt()
    torch.testing.assert_close(rms(x), expected, rtol=1e-13, atol=0)
    assert torch.equal(rms(x)[-1:], rms(x[-1:]))


def test_time_flip_changes_nothing(device: torch.device) -> None:
    """x' = f(x, t) over (0, 2) and y' = -f(y, -t) over (0, -2): the same bits."""
    ode, exact = nonlinear()
    flipped = ODE(lambda x, t: -ode.drift(x, -t))
    x = exact(0.0).to(device)
    for options in ({"solver": "euler", "steps": 33}, {"solver": "heun", "dt": 0.3}, {"solver": "rk45"}):
        a = solve(ode, x, (0.0, 2.0), save_at=[0.3, 1.1], **options)
        b = solve(flipped, x, (0.0, -2.0), save_at=[-0.3, -1.1], **options)
        assert torch.equal(a.x, b.x)
        assert torch.equal(a.xs, b.xs)


def test_integral_controller_and_events_of_any_shape(device: torch.device) -> None:
    """b = 0 is the integral controller; scalars (B,) and images (B, C, H, W) are states too."""
    for shape in ((3,), (2, 1, 4, 5)):
        x = torch.full(shape, 0.5, dtype=torch.float64, device=device)
        out = solve(
            ODE(lambda x, t: -x), x, (0.0, 1.0), solver=DormandPrince(Controller(b=0.0)), rtol=1e-9, atol=1e-9
        )
        torch.testing.assert_close(out.x, x * np.exp(-1.0), rtol=1e-8, atol=0)


def test_saved_ends_are_the_ends(device: torch.device) -> None:
    ode, exact = nonlinear()
    x = exact(0.0).to(device)
    out = solve(ode, x, (0.0, 2.0), solver="rk45", save_at=[0.0, 1.0, 2.0])
    assert torch.equal(out.xs[0], x)
    assert torch.equal(out.xs[2], out.x)
    torch.testing.assert_close(out.xs[1], exact(1.0).to(device), rtol=1e-4, atol=1e-4)
    assert out.ts.tolist() == [0.0, 1.0, 2.0]


def test_statuses(device: torch.device) -> None:
    """Blow-up, a singular velocity and too few steps, beside samples that end well."""
    x = torch.tensor([[0.1], [2.0]], dtype=torch.float64, device=device)
    square = ODE(lambda x, t: x * x)  # 1/(1/x0 - t): the second row blows up at t = 1/2
    out = solve(square, x, (0.0, 1.0), solver="rk45", throw=False, save_at=[0.4, 0.9])
    assert out.status[0] == Status.OK
    assert out.status[1] in (Status.NON_FINITE, Status.STEP_UNDERFLOW)
    torch.testing.assert_close(out.x[0], torch.full_like(out.x[0], 1 / 9), rtol=1e-4, atol=0)
    assert abs(float(out.failed_at[1]) - 0.5) < 1e-4
    assert torch.isfinite(out.x).all()
    assert torch.isfinite(out.xs[:, 0]).all()
    assert torch.isnan(out.xs[1, 1]).all()
    assert torch.equal(out.x[:1], solve(square, x[:1], (0.0, 1.0), solver="rk45").x)

    root = ODE(lambda x, t: torch.log(1 - x))
    out = solve(root, x, (0.0, 0.5), solver="rk45", throw=False)
    assert out.status.tolist() == [Status.OK, Status.NON_FINITE]
    assert float(out.failed_at[1]) == 0.0

    jump = ODE(lambda x, t: torch.where(x < 1, 1e300 * torch.ones_like(x), -1e300 * torch.ones_like(x)))
    out = solve(jump, x[:1], (0.0, 1.0), solver="rk45", throw=False, rtol=1e-12, atol=1e-12)
    assert out.status.tolist() == [Status.STEP_UNDERFLOW]

    stiff = ODE(lambda x, t: -1e4 * x)
    out = solve(stiff, x, (0.0, 1.0), solver="rk45", throw=False, max_steps=20)
    assert out.status.tolist() == [Status.MAX_STEPS] * 2
    assert out.failed_step.tolist() == [19, 19]
