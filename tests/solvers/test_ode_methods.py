"""ODE methods: order conditions, dense output, error estimates, work, and other libraries as oracles."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import solve_ivp

from sdekit.sde import ODE
from sdekit.solvers import (
    BogackiShampine,
    DormandPrince,
    DormandPrince8,
    EmbeddedSolver,
    Interval,
    Kvaerno5,
    RungeKutta,
    Tsitouras,
    get,
    solve,
)
from sdekit.solvers import tableaus as tables
from sdekit.solvers.base import Attempt
from sdekit.solvers.kvaerno import GAMMA, KVAERNO
from sdekit.solvers.multistep import adams_weights
from sdekit.solvers.problem import Counted
from sdekit.solvers.tableaus_high import DOP853, THIRD
from tests.solvers import trees
from tests.solvers.problems import nonlinear

F64 = torch.float64
EMBEDDED: dict[str, EmbeddedSolver] = {
    "rk23": BogackiShampine(),
    "rk45": DormandPrince(),
    "tsit5": Tsitouras(),
    "dop853": DormandPrince8(),
    "kvaerno5": Kvaerno5(),
}
#: order of the method, of its embedded solution, of its dense output.
ORDERS = {
    "rk23": (3, 2, 3),
    "rk45": (5, 4, 4),
    "tsit5": (5, 4, 4),
    "dop853": (8, 5, 7),
    "kvaerno5": (5, 4, 4),
}
TABLEAUS = {
    "euler": (tables.EULER, 1),
    "heun": (tables.HEUN, 2),
    "midpoint": (tables.MIDPOINT, 2),
    "rk4": (tables.KUTTA, 4),
    **{name: (solver.tableau, ORDERS[name][0]) for name, solver in EMBEDDED.items()},
}


def matrix(tableau: tables.Tableau) -> trees.Floats:
    a = trees.matrix(tableau)
    return a + np.diag([0.0, *[GAMMA] * 6]) if tableau is KVAERNO else a


def defects(weights: Any, tableau: tables.Tableau, orders: range, theta: float = 1.0) -> list[float]:
    return [trees.defect(weights, matrix(tableau), n, theta) for n in orders]


# -- order conditions ------------------------------------------------------------------------------


def test_the_trees_are_all_trees() -> None:
    """Cayley's numbers, and densities of the two extremes: bushes n, chains n!."""
    assert [len(trees.trees(n)) for n in range(1, 9)] == [1, 1, 2, 4, 9, 20, 48, 115]
    assert all(trees.size(t) == n for n in range(1, 9) for t in trees.trees(n))
    assert {trees.density(t) for t in trees.trees(4)} == {4, 8, 12, 24}


@pytest.mark.parametrize("name", TABLEAUS)
def test_order_conditions(name: str) -> None:
    """Every rooted tree up to the order, to rounding; some tree of the next order is not met."""
    tableau, order = TABLEAUS[name]
    a = matrix(tableau)
    np.testing.assert_allclose(a.sum(axis=1), (*tableau.c, *tableau.c_more), rtol=0, atol=5e-15)
    assert max(defects(tableau.b, tableau, range(1, order + 1))) < 5e-15
    assert trees.defect(tableau.b, a, order + 1) > 1e-5


@pytest.mark.parametrize("name", EMBEDDED)
def test_the_embedded_solution(name: str) -> None:
    tableau, order = EMBEDDED[name].tableau, ORDERS[name][1]
    hat = np.array(tableau.b) - tableau.e
    assert max(defects(hat, tableau, range(1, order + 1))) < 5e-15
    assert trees.defect(hat, matrix(tableau), order + 1) > 1e-4
    assert EMBEDDED[name].error_order == (8 if name == "dop853" else order + 1)


def test_the_second_estimate_of_dop853_is_of_order_three() -> None:
    hat = np.array(DOP853.b) - THIRD
    assert max(defects(hat, DOP853, range(1, 4))) < 1e-14
    assert trees.defect(hat, matrix(DOP853), 4) > 1e-2


def read(solver: EmbeddedSolver, theta: Any) -> Any:
    """b_i(theta) of dense output, from stages that are unit vectors."""
    tableau: tables.Tableau = solver.tableau  # type: ignore[attr-defined]
    n = len(tableau.c) + len(tableau.c_more)
    stages = tuple(torch.eye(n, dtype=F64)[:, None])
    end = torch.zeros(1, n, dtype=F64)
    end[0, : len(tableau.b)] = torch.tensor(tableau.b, dtype=F64)
    return solver.interpolate(torch.zeros_like(end), 1.0, Attempt(end, (), end, stages), theta)[0]


@pytest.mark.parametrize("name", EMBEDDED)
@given(theta=st.floats(0.0, 1.0))
@settings(max_examples=20, deadline=None)
def test_dense_output_meets_the_order_conditions_within_the_step(name: str, theta: float) -> None:
    solver, order = EMBEDDED[name], ORDERS[name][2]
    tableau: tables.Tableau = solver.tableau  # type: ignore[attr-defined]
    assert max(defects(read(solver, theta), tableau, range(1, order + 1), theta)) < 2e-14


@pytest.mark.parametrize("name", EMBEDDED)
def test_dense_output_is_of_no_higher_order_and_joins_smoothly(name: str) -> None:
    """The next order is missed in the middle; slopes at the ends are those of the end stages.

    The implicit method's joins in value alone.
    """
    solver, order = EMBEDDED[name], ORDERS[name][2]
    tableau: tables.Tableau = solver.tableau  # type: ignore[attr-defined]
    assert trees.defect(read(solver, 0.4), matrix(tableau), order + 1, 0.4) > 1e-6
    theta = torch.tensor(0.0, dtype=F64)
    if name == "kvaerno5":
        np.testing.assert_allclose(read(solver, 1.0), tableau.b, rtol=0, atol=1e-13)
        return
    for at, stage in ((0.0, 0), (1.0, len(tableau.c) - 1)):
        slope = torch.autograd.functional.jacobian(lambda s: read(solver, s), theta + at)
        unit = torch.zeros_like(slope)
        unit[stage] = 1.0
        torch.testing.assert_close(slope, unit, rtol=0, atol=1e-12)


# -- orders by slopes ------------------------------------------------------------------------------


def one_step(solver: EmbeddedSolver, h: float) -> list[float]:
    """Local error, size of the estimate, error of dense output at 0.37 h: a step from eight points each."""
    ode, exact = nonlinear()
    system, starts = Counted(ode), np.linspace(0.0, 1.4, 8)
    t = torch.from_numpy(starts)
    x = torch.stack([exact(s) for s in starts]).reshape(8, 2)
    interval = Interval(tuple(t + c * h for c in solver.nodes), h)
    attempt = solver.attempt(system, x, interval, solver.init(system, x, t))
    attempt = solver.complete(system, x, interval, attempt)
    inside = solver.interpolate(x, h, attempt, 0.37)
    ends, within = (torch.stack([exact(s + r * h) for s in starts]).reshape(8, 2) for r in (1, 0.37))
    return [float(e.norm()) for e in (attempt.x - ends, attempt.error, inside - within)]


@pytest.mark.parametrize("name", EMBEDDED)
def test_sizes_of_error_estimate_and_dense_output(name: str) -> None:
    """h^(p+1), h^(p_hat+1), h^(q+1) as h is halved, on a nonlinear flow whose terms are all at work."""
    solver, (order, hat, dense) = EMBEDDED[name], ORDERS[name]
    h = 0.4 if name == "dop853" else 0.1
    slopes = [math.log2(a / b) for a, b in zip(one_step(solver, h), one_step(solver, h / 2), strict=True)]
    assert slopes[0] > order + 0.85
    assert hat + 0.7 < slopes[1] < hat + 1.7
    assert slopes[2] > dense + 0.7


def graded(n: int, span: tuple[float, float] = (0.0, 2.0)) -> torch.Tensor:
    """n steps whose lengths differ by a factor of 3, alternately."""
    widths = torch.tensor([1.0, 3.0, 2.0] * n, dtype=F64)[:n]
    nodes = torch.cat([torch.zeros(1, dtype=F64), widths.cumsum(0) / widths.sum()])
    return span[0] + (span[1] - span[0]) * nodes


@pytest.mark.parametrize("span", [(0.0, 2.0), (2.0, 0.0)])
@pytest.mark.parametrize(("name", "order"), [("midpoint", 2), ("rk4", 4), ("abm4", 4), ("rk23", 3)])
def test_orders_on_unequal_steps_in_both_directions(
    name: str, order: int, span: tuple[float, float], device: torch.device
) -> None:
    ode, exact = nonlinear()
    x = exact(span[0]).reshape(1, 2).to(device)
    errors = []
    for n in (96, 192):
        out = solve(ode, x, graded(n, span), solver=name)
        errors.append(float((out.x.cpu() - exact(span[1])).norm()))
    assert order - 0.2 < math.log2(errors[0] / errors[1]) < order + 0.6


# -- Adams methods ---------------------------------------------------------------------------------


def test_adams_weights() -> None:
    """Equal steps: 55, -59, 37, -9 over 24 and 9, 19, -5, 1 over 24 (III.1.5 and III.1.9)."""
    np.testing.assert_allclose(adams_weights([0, -1, -2, -3]), np.array([55, -59, 37, -9]) / 24, rtol=1e-13)
    np.testing.assert_allclose(adams_weights([1, 0, -1, -2]), np.array([9, 19, -5, 1]) / 24, rtol=1e-13)


@given(st.lists(st.floats(0.25, 4.0), min_size=3, max_size=3))
@settings(max_examples=30, deadline=None)
def test_adams_weights_integrate_cubics(gaps: list[float]) -> None:
    nodes = -np.cumsum([0.0, *gaps])
    weights = adams_weights(nodes.tolist())
    for k in range(4):
        assert np.dot(weights, nodes**k) == pytest.approx(1 / (k + 1), rel=1e-9)


def test_a_saved_time_beside_a_node_starts_the_adams_method_again(device: torch.device) -> None:
    """A step of 1e-7 of the others: no extrapolation from it; 2 evaluations a step, 5 in a start."""
    ode, exact = nonlinear()
    x = exact(0.0).reshape(1, 2).to(device)
    plain = solve(ode, x, (0.0, 2.0), solver="abm4", steps=40)
    assert plain.stats.nfe == 1 + 3 * 4 + 37 * 2
    split = solve(ode, x, (0.0, 2.0), solver="abm4", steps=40, save_at=[1.0 + 5e-9])
    assert split.stats.nfe == plain.stats.nfe + 2 + 3 * 2
    assert float((split.x.cpu() - exact(2.0)).norm()) < 2 * float((plain.x.cpu() - exact(2.0)).norm())


# -- other libraries -------------------------------------------------------------------------------


def kepler(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    cube = (x[:, :1] ** 2 + x[:, 1:2] ** 2) ** 1.5
    return torch.cat([x[:, 2:], -x[:, :2] / cube], dim=1)


def lorenz(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    a, b, c = x.unbind(1)
    return torch.stack([10 * (b - a), a * (28 - c) - b, a * b - 8 / 3 * c], dim=1)


def van_der_pol(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    return torch.stack([x[:, 1], 2 * (1 - x[:, 0] ** 2) * x[:, 1] - x[:, 0]], dim=1)


Drift = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
PROBLEMS: dict[str, tuple[Drift, list[float], float]] = {
    "kepler": (kepler, [0.5, 0.0, 0.0, math.sqrt(3.0)], 6.0),
    "lorenz": (lorenz, [1.0, 1.0, 1.0], 2.0),
    "van der pol": (van_der_pol, [2.0, 0.0], 6.0),
}


def numpy_form(f: Drift) -> Callable[[float, Any], Any]:
    return lambda t, y: f(torch.from_numpy(y)[None], torch.tensor(t))[0].numpy()


@pytest.mark.parametrize(("name", "method"), [("rk23", "RK23"), ("rk45", "RK45"), ("dop853", "DOP853")])
@pytest.mark.parametrize("problem", PROBLEMS)
def test_one_step_and_its_inside_are_those_of_scipy(name: str, method: str, problem: str) -> None:
    """The same step, dense output at four times: to rounding."""
    f, x0, _ = PROBLEMS[problem]
    h, solver = 0.05, EMBEDDED[name]
    theirs = solve_ivp(
        numpy_form(f), (0, h), x0, method=method, first_step=h, rtol=1e3, atol=1e3, dense_output=True
    )
    assert theirs.t.tolist() == [0.0, h]
    x, system, t = torch.tensor([x0], dtype=F64), Counted(ODE(f)), torch.zeros((), dtype=F64)
    interval = Interval(tuple(t + c * h for c in solver.nodes), h)
    attempt = solver.attempt(system, x, interval, solver.init(system, x, t))
    np.testing.assert_allclose(attempt.x[0].numpy(), theirs.y[:, -1], rtol=1e-13, atol=1e-13)
    attempt = solver.complete(system, x, interval, attempt)
    for theta in (0.1, 0.35, 0.6, 0.95):
        inside = solver.interpolate(x, h, attempt, theta)[0].numpy()
        np.testing.assert_allclose(inside, theirs.sol(theta * h), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("name", "method"), [("rk23", "RK23"), ("rk45", "RK45"), ("dop853", "DOP853")])
def test_work_at_equal_error_is_that_of_scipy(name: str, method: str) -> None:
    """nfe (error)^(1/p) against scipy's same method, geometric mean of three problems: within 10 %."""
    ratios, order, tol = [], ORDERS[name][0], 1e-5 if name == "rk23" else 1e-7
    for f, x0, end in PROBLEMS.values():
        exact = solve_ivp(numpy_form(f), (0, end), x0, method="DOP853", rtol=1e-13, atol=1e-13).y[:, -1]
        ours = solve(ODE(f), torch.tensor([x0], dtype=F64), (0.0, end), solver=name, rtol=tol, atol=tol)
        theirs = solve_ivp(numpy_form(f), (0, end), x0, method=method, rtol=tol, atol=tol)
        errors = [np.abs(y - exact).max() for y in (ours.x[0].numpy(), theirs.y[:, -1])]
        ratios.append(math.log(ours.stats.nfe / theirs.nfev) + math.log(errors[0] / errors[1]) / order)
    assert math.exp(np.mean(ratios)) < 1.1


@pytest.mark.parametrize("problem", PROBLEMS)
def test_all_methods_agree_with_torchdiffeq_at_small_tolerances(problem: str) -> None:
    f, x0, end = PROBLEMS[problem]
    x = torch.tensor([x0], dtype=F64)
    oracle = solve(ODE(f), x, (0.0, end), solver="torchdiffeq:dopri8", rtol=1e-11, atol=1e-11).x
    for name in ("tsit5", "dop853", "kvaerno5"):
        tol = 1e-7 if name == "kvaerno5" else 1e-9
        out = solve(ODE(f), x, (0.0, end), solver=name, rtol=tol, atol=tol)
        torch.testing.assert_close(out.x, oracle, rtol=2000 * tol, atol=2000 * tol)


def test_midpoint_is_torchdiffeqs(device: torch.device) -> None:
    x = torch.tensor([[2.0, 0.0], [0.3, -1.0]], dtype=F64, device=device)
    ours, theirs = (
        solve(ODE(van_der_pol), x, (0.0, 1.0), solver=name, steps=30).x
        for name in ("midpoint", "torchdiffeq:midpoint")
    )
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


# -- adaptive runs ---------------------------------------------------------------------------------


def stable(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """Three equations whose flows do not blow errors up; `exactly` is their solution from (1.7, 0.1, 0.8)."""
    a, b, c = x.unbind(1)
    return torch.stack([2 * torch.cos(t) * (1 - a), (1 + torch.sin(3 * t)) * b * (1 - b), -2 * t * c * c], 1)


def exactly(t: float) -> list[float]:
    pace = t + (1 - math.cos(3 * t)) / 3
    return [1 + 0.7 * math.exp(-2 * math.sin(t)), 1 / (1 + 9 * math.exp(-pace)), 1 / (1 / 0.8 + t * t)]


@pytest.mark.parametrize("name", EMBEDDED)
def test_tolerances_are_honoured_between_the_steps_too(name: str, device: torch.device) -> None:
    """Errors at ten saved times and the end, either way in time: within 10 times the tolerance, 30 for the
    pair of order 3, whose many steps add up, and for the implicit one, whose two solutions are about as good.
    """
    bound = 30 if name in ("rk23", "kvaerno5") else 10
    times = np.linspace(0.0, 3.0, 11)
    right = torch.tensor([[exactly(t)] for t in times], dtype=F64, device=device)
    for tol in (1e-4, 1e-6) if name == "rk23" else (1e-5, 1e-8):
        for order in (1, -1):
            there, states = times[::order], right.flip(0) if order < 0 else right
            span, copy = (float(there[0]), float(there[-1])), there.copy()
            out = solve(ODE(stable), states[0], span, solver=name, rtol=tol, atol=tol, save_at=copy)
            assert out.xs is not None
            assert float((out.xs - states).abs().max()) < bound * tol


@pytest.mark.parametrize(("name", "stages"), [("rk23", 3), ("tsit5", 6), ("dop853", 12)])
def test_evaluations_and_the_stages_of_dense_output(name: str, stages: int, device: torch.device) -> None:
    """2 to begin, then the stages; dop853's three more once in a step that holds saved times inside."""
    ode, exact = nonlinear()
    x = exact(0.0).reshape(1, 2).to(device)
    run = {"solver": name, "rtol": 1e-6, "atol": 1e-6}
    ends: list[float] = []
    plain = solve(ode, x, (0.0, 2.0), callback=lambda k, t, x: ends.append(float(t)), **run)  # type: ignore[arg-type]
    assert plain.stats.nfe == 2 + stages * plain.stats.steps
    assert solve(ode, x, (0.0, 2.0), save_at=[2.0], **run).stats.nfe == plain.stats.nfe  # type: ignore[arg-type]
    first, second = sorted(set(ends))[:2]
    inside = [0.3 * first, 0.6 * first, 0.5 * (first + second)]
    more = solve(ode, x, (0.0, 2.0), save_at=inside, **run).stats.nfe - plain.stats.nfe  # type: ignore[arg-type]
    assert more == (6 if name == "dop853" else 0)


def test_the_estimate_of_dop853_by_hand() -> None:
    """n5^2/sqrt(n5^2 + 0.01 n3^2), zero where the fifth-order estimate is, infinite at no finite state."""
    solver, h = DormandPrince8(), 0.5
    generator = torch.Generator().manual_seed(3)
    ks = tuple(torch.randn(4, 3, dtype=F64, generator=generator) for _ in range(13))
    x = torch.zeros(4, 3, dtype=F64)
    e5 = h * sum(w * k for w, k in zip(solver.tableau.e, ks, strict=True))
    e3 = h * sum(w * k for w, k in zip(THIRD, ks, strict=True))
    assert isinstance(e5, torch.Tensor)
    assert isinstance(e3, torch.Tensor)
    x1 = x.clone()
    x1[3, 0] = torch.nan
    e5[2] = 0.0
    found = solver.norm(x, h, Attempt(x1, (), e5, ks), 1e-3, 1e-2)
    n5, n3 = ((e / 1e-2).pow(2).mean(dim=1).sqrt() for e in (e5, e3))
    torch.testing.assert_close(found[:2], (n5**2 / (n5**2 + 0.01 * n3**2).sqrt())[:2], rtol=1e-12, atol=0)
    assert found[2:].tolist() == [0.0, math.inf]


@pytest.mark.parametrize("name", ["rk23", "tsit5", "dop853", "kvaerno5"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_sample_alone_has_the_same_bits(name: str, dtype: torch.dtype, device: torch.device) -> None:
    """Alone, in a batch, with finished samples removed; saved times too."""
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(9, 2, dtype=dtype, generator=generator).to(device) * 2
    run: dict[str, Any] = {"rtol": 1e-4, "atol": 1e-5, "save_at": [0.3, 1.1]}
    full = solve(ODE(van_der_pol), x, (0.0, 1.5), solver=name, **run)
    compact = replace(EMBEDDED[name], compact=True)  # type: ignore[type-var]
    assert full.xs is not None
    for rows, solver in ((slice(4, 5), name), (slice(2, 7), name), (slice(0, 9), compact)):
        part = solve(ODE(van_der_pol), x[rows], (0.0, 1.5), solver=solver, **run)
        assert part.xs is not None
        assert torch.equal(part.x, full.x[rows])
        assert torch.equal(part.xs, full.xs[:, rows])


@pytest.mark.parametrize("options", [{"solver": n} for n in ("rk23", "tsit5", "dop853", "kvaerno5")])
def test_time_flip_changes_nothing(options: dict[str, Any], device: torch.device) -> None:
    ode, exact = nonlinear()
    flipped = ODE(lambda x, t: -ode.drift(x, -t))
    x = exact(0.0).reshape(1, 2).to(device)
    a = solve(ode, x, (0.0, 1.0), save_at=[0.3, 0.9], **options)
    b = solve(flipped, x, (0.0, -1.0), save_at=[-0.3, -0.9], **options)
    assert a.xs is not None
    assert b.xs is not None
    assert torch.equal(a.x, b.x)
    assert torch.equal(a.xs, b.xs)


# -- gradients -------------------------------------------------------------------------------------


@pytest.mark.parametrize("gradient", ["backprop", "checkpoint"])
@pytest.mark.parametrize("name", ["midpoint", "rk4", "rk23", "tsit5", "dop853", "abm4", "kvaerno5"])
def test_gradients_are_those_of_finite_differences(name: str, gradient: str, device: torch.device) -> None:
    """d/da and d/dx0 of the state after 6 steps, central differences of 1e-5: the error is about 1e-10."""

    def run(a: torch.Tensor, x: torch.Tensor, gradient: str | None = None) -> torch.Tensor:
        ode = ODE(lambda x, t: torch.stack([x[:, 1], -a * torch.sin(x[:, 0]) * (1 + 0.5 * torch.cos(t))], 1))
        return solve(ode, x, (0.0, 1.2), solver=name, steps=6, gradient=gradient).x

    a = torch.tensor(1.7, dtype=F64, device=device, requires_grad=True)
    x = torch.tensor([[0.9, -0.2], [0.1, 0.4]], dtype=F64, device=device, requires_grad=True)
    da, dx = torch.autograd.grad(run(a, x, gradient)[:, 0].sum(), (a, x))
    h, a0, x0 = 1e-5, a.detach(), x.detach()
    slope = (run(a0 + h, x0) - run(a0 - h, x0))[:, 0].sum() / (2 * h)
    torch.testing.assert_close(da, slope, rtol=1e-8, atol=1e-9)
    for j in range(2):
        step = torch.zeros_like(x0)
        step[:, j] = h
        slopes = (run(a0, x0 + step) - run(a0, x0 - step))[:, 0] / (2 * h)
        torch.testing.assert_close(dx[:, j], slopes, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("name", ["rk23", "tsit5", "dop853", "kvaerno5"])
def test_gradients_of_adaptive_runs(name: str, device: torch.device) -> None:
    """x = x0 exp(-a sin t), where samples that are finished wait; saved states too."""
    a = torch.tensor(0.7, dtype=F64, device=device, requires_grad=True)
    x0 = torch.tensor([[0.5], [2.0]], dtype=F64, device=device, requires_grad=True)
    tol = 1e-7 if name == "rk23" else 1e-8
    out = solve(
        ODE(lambda x, t: -a * torch.cos(t.reshape(-1, 1)) * x),
        *(x0, (0.0, 1.0)),
        solver=name,
        rtol=tol,
        atol=tol,
        save_at=[0.25, 1.0],
        gradient="backprop",
    )
    assert out.xs is not None
    for t, x in ((0.25, out.xs[0]), (1.0, out.x)):
        da, dx = torch.autograd.grad(x.sum(), (a, x0), retain_graph=True)
        factor = math.exp(-0.7 * math.sin(t))
        assert float(da) == pytest.approx(-math.sin(t) * 2.5 * factor, rel=1e-5)
        torch.testing.assert_close(dx, torch.full_like(dx, factor), rtol=1e-5, atol=0)


def test_names() -> None:
    for name in ("midpoint", "rk4", "rk23", "tsit5", "dop853", "abm4", "kvaerno5"):
        found = get(name, "ode")
        assert found.kind == "ode"
        assert found.adaptive == isinstance(found, EmbeddedSolver) == (name in EMBEDDED)
        assert isinstance(found, RungeKutta) == (name != "abm4")
