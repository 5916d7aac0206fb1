"""Details of solvers by themselves: step control, clocks, saved times, draws of a step, declared orders."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sdekit import Langevin
from sdekit.errors import NonFiniteError, ShapeError
from sdekit.noise import BrownianTree, Philox, Recorded
from sdekit.sde import ODE, SDE
from sdekit.solution import Status
from sdekit.solvers import (
    MALA,
    ULA,
    Controller,
    DormandPrince,
    EulerMaruyama,
    Interval,
    RungeKutta,
    Solver,
    Tableau,
    fixed,
    solve,
)
from sdekit.solvers.adaptive import _Clocks
from sdekit.solvers.control import error_norm, first_step
from tests.solvers.problems import nonlinear, slope

F64 = torch.float64
DECAY = ODE(lambda x, t: -x)


def column(*values: float) -> Tensor:
    return torch.tensor(values, dtype=F64)[:, None]


# -- step control: Hairer, Norsett and Wanner 1993, II.4 --------------------------------------------------


def test_error_norm():
    """sqrt(mean (e_i / (atol + rtol max(|x0_i|, |x1_i|)))^2); infinite beside a state that is not finite."""
    error, x0, x1 = column(3e-3, -8e-3).T, column(1.0, -4.0).T, column(-2.0, 3.0).T
    by_hand = math.sqrt(((3e-3 / (0.1 + 0.01 * 2)) ** 2 + (8e-3 / (0.1 + 0.01 * 4)) ** 2) / 2)
    assert float(error_norm(error, x0, x1, 0.01, 0.1)) == pytest.approx(by_hand, rel=1e-14)
    assert float(error_norm(0 * error, 0 * x0, 0 * x1, 0.01, 0.0)) == 0
    for bad in (math.nan, math.inf):
        assert float(error_norm(error, x0, torch.full_like(x1, bad), 0.01, 0.1)) == math.inf


def starting_step(x: float, a: float, b: float = 0.0, k: float = 0.0, span: float = 9.0) -> float:
    """Of x' = a + b (t - 2) + k (x - x0) from t = 2, scale 1, q = 5: |f0| = |a|, |f'| = |b + k a|."""
    start = column(x)
    ode = ODE(lambda y, t: a + b * (t[:, None] - 2) + k * (y - start))
    (h,) = first_step(
        ode, start, torch.full_like(start, a), torch.full((1,), 2.0, dtype=F64), span, 5, 0.0, 1.0
    )
    return float(h)


STARTING_STEPS = [
    ({"x": 3.0, "a": 2.0}, (0.01 / 2) ** 0.2),
    ({"x": 0.5, "a": 2.0, "b": 30.0}, (0.01 / 30) ** 0.2),
    ({"x": 0.5, "a": 2.0, "b": 7.0, "k": 9.0}, (0.01 / 25) ** 0.2),
    ({"x": 0.5, "a": 2.0, "b": -30.0, "k": 0.5}, (0.01 / 29) ** 0.2),
    ({"x": 0.5, "a": 2.0, "b": 7.0, "k": 9.0, "span": -9.0}, -((0.01 / 25) ** 0.2)),
    ({"x": 1e-3, "a": 1.0}, 1e-3),  # 100 h0
    ({"x": 1e-5, "a": 1.0}, 1e-5),  # the thresholds are strict: h0 = 0.01 |x| / |f|
    ({"x": 1.003e-5, "a": 1.0}, 1.003e-5),
    ({"x": 0.99e-5, "a": 1.0}, 1e-4),  # h0 = 1e-6 below them
    ({"x": 1e-7, "a": 1e-5}, 1e-4),
    ({"x": 1e-7, "a": 0.99e-5}, 1e-4),
    ({"x": 2e-5, "a": 1e-5}, 2.0),
    ({"x": 2e-5, "a": 1.003e-5}, 2 / 1.003),
    ({"x": 2e-5, "a": 0.99e-5}, 1e-4),
    ({"x": 1.0, "a": 0.0}, 1e-6),  # h1 = max(1e-6, 0.001 h0)
    ({"x": 1.0, "a": 1e-15}, 1e-6),
    ({"x": 1.0, "a": 2e-15}, 1e-4),
    ({"x": 1e-3, "a": 1.0, "span": 1e-4}, 1e-4),
]


def test_the_starting_step():
    """min(100 h0, h1, |span|) in closed form."""
    for case, expected in STARTING_STEPS:
        assert starting_step(**case) == pytest.approx(expected, rel=1e-9, abs=0), case


def test_the_first_euler_step_of_the_starting_step():
    """The second slope is taken at (x + h0 f, t + h0), h0 = min(0.01 |x|/|f|, |span|)."""
    seen: list[tuple[float, float]] = []
    ode = ODE(lambda x, t: (seen.append((float(x), float(t))), 0 * x)[1])
    for x, f, span, h0 in ((3.0, 2.0, 1.0, 0.015), (3.0, 2.0, -1.0, -0.015), (3.0, 2.0, 0.004, 0.004)):
        first_step(ode, column(x), column(f), torch.full((1,), 5.0, dtype=F64), span, 5, 0.0, 1.0)
        assert seen.pop() == pytest.approx((x + h0 * f, 5 + h0), rel=1e-14)


CONTROL: list[tuple[Any, ...]] = [
    ({}, 0.5, 0.01, False, 5, 0.9 * 0.5**-0.17 * 0.01**0.04),
    ({}, 1.0, 0.01, False, 5, 0.9 * 0.01**0.04),
    ({}, 1.5, 0.01, False, 5, 0.9 * 1.5**-0.17),
    ({}, 1e-4, 1e-6, False, 5, 0.9 * 1e-4**-0.17 * 1e-4**0.04),
    ({}, 1e-9, 1.0, False, 5, 3.0),
    ({}, 1e-9, 1.0, True, 5, 1.0),
    ({}, 0.9, 0.5, True, 5, 0.9 * 0.9**-0.17 * 0.5**0.04),
    ({}, 1e6, 1.0, False, 5, 0.2),
    ({}, math.inf, 1.0, False, 5, 0.2),
    ({"b": 0.2, "safety": 0.8}, 0.5, 0.01, False, 3, 0.8 * 0.5 ** -(1 / 3 - 0.15) * 0.01**0.2),
    ({"b": 0.0, "most": 1e9}, 0.0, 1.0, False, 2, 0.9e5),
    ({"b": 0.0, "least": 0.0}, math.inf, 1.0, False, 1, 0.9e-10),
]


def test_the_controller():
    """safety err^(-(1/q - 0.75 b)) before^b within [least, most]; at most 1 beside a rejection, then b = 0.

    err is read within [1e-10, 1e10], before from 1e-4 up.
    """
    for options, error, before, rejected, order, expected in CONTROL:
        arrays = (np.array([error]), np.array([before]), np.array([rejected]))
        (found,) = Controller(**options).factor(*arrays, order)
        assert found == pytest.approx(expected, rel=1e-12, abs=0)


def clocks(t0: float, t1: float, h: float, dtype: torch.dtype = F64, **options: Any) -> _Clocks:
    problem: Any = SimpleNamespace(t0=t0, t1=t1, x0=torch.zeros(1, 1, dtype=dtype), max_steps=3)
    return _Clocks(problem, DormandPrince(Controller(**options)), np.array([h]))


@pytest.mark.parametrize(("span", "sign"), [((2.0, 5.0), 1), ((5.0, 2.0), -1)])
def test_the_last_step_reaches_the_end(span: tuple[float, float], sign: int):
    """A step that leaves 1 % of itself or less is drawn out to the end."""
    for h, step in ((1.0, 1.0), (3 / 1.01, 3.0), (2.98, 3.0), (2.95, 2.95), (7.0, 3.0)):
        found, end = clocks(*span, sign * h).propose()
        assert (float(found[0]), float(end[0])) == (
            sign * step,
            span[1] if step == 3 else span[0] + sign * step,
        )
    (step,), (end,) = clocks(0.0, 1.01, 1.0).propose()
    assert step == end == 1.01
    done = clocks(*span, sign * 1.0)
    done.live[:] = False
    assert float(done.propose()[0][0]) == 0


def test_what_is_a_good_step():
    """A norm of 1 is good, 1.005 is not; the next step is that of the controller."""
    for error, good in ((1.0, True), (1.005, False), (0.3, True), (1.7, False)):
        clock, (step, end) = clocks(2.0, 5.0, 0.5), (np.array([0.5]), np.array([2.5]))
        assert bool(clock.judge(step, end, np.array([error]))[0]) == good
        assert clock.t == (2.5 if good else 2.0)
        assert clock.h == pytest.approx(0.5 * 0.9 * error**-0.17, rel=1e-14)
        assert (int(clock.tried[0]), int(clock.accepted[0])) == (1, int(good))
        assert bool(clock.rejected[0]) != good
        if good:
            clock.judge(step, end + 0.5, np.array([0.3]))
            assert clock.h == pytest.approx(0.5 * 0.9 * 0.3**-0.17 * error**0.04, rel=1e-14)
            assert (int(clock.tried[0]), int(clock.accepted[0])) == (2, 2)
        else:
            clock.judge(step, end, np.array([1e-9]))
            assert clock.h == 0.5  # no growth after a rejection


def test_the_most_steps():
    """The third of three tries is the last, unless it arrives; good or not."""
    for error, arrives in ((0.5, False), (7.0, False), (0.5, True)):
        clock = clocks(2.0, 5.0, 0.5)
        for k in range(3):
            assert bool(clock.live[0])
            end = np.array([5.0 if arrives and k == 2 else 2.5 + 0.5 * k])
            clock.judge(np.array([0.5]), end, np.array([error]))
        assert clock.status == (Status.OK if arrives else Status.MAX_STEPS)
        assert not clock.live[0]


@pytest.mark.parametrize(
    ("t0", "t1", "dtype", "least"),
    [
        (2.0, 5.0, F64, 3e-14),
        (5.0, 2.0, F64, 3e-14),
        (1000.0, 1001.0, torch.float32, 4 * 2.0**-23 * 1000),
        (-1000.0, -999.0, torch.float32, 4 * 2.0**-23 * 1000),
        (1000.0, 1001.0, F64, 4 * 2.0**-52 * 1000),
    ],
)
def test_the_least_step(t0: float, t1: float, dtype: torch.dtype, least: float):
    """After a rejection below max(4 eps |t|, 1e-14 |t1 - t0|) a sample stops; a step that long is tried."""
    for length, status in ((0.997, Status.STEP_UNDERFLOW), (1.0, Status.OK), (1.003, Status.OK)):
        for error in (1e9, math.inf):
            step = np.array([math.copysign(2 * length * least, t1 - t0)])
            clock = clocks(t0, t1, float(step[0]), dtype, least=0.5)
            clock.judge(step, t0 + step, np.array([error]))
            assert abs(clock.h) == pytest.approx(length * least, rel=1e-14, abs=0)
            blown = status and error == math.inf
            assert clock.status == (Status.NON_FINITE if blown else status)
            assert bool(clock.live[0]) == (status == Status.OK)


# -- adaptive runs ------------------------------------------------------------------------------------


def oscillator(x: Tensor, t: Tensor) -> Tensor:
    """Linear in x, with a rate that grows with the row's third element, which stays."""
    return torch.stack([x[:, 1] * (1 + t), -x[:, 0] * (1 + t) * x[:, 2] / x[:, 2].abs(), 0 * t], dim=1)


@pytest.mark.parametrize("relative", [True, False])
def test_tolerances_scale_with_the_state(relative: bool):
    """x -> 2^20 x of a linear system: the same steps, bit for bit, at atol = 0, or atol -> 2^20 atol."""
    x0, runs = torch.tensor([[1.0, -0.5, 1.0], [0.25, 1.0, -1.0]], dtype=F64), []
    for scale in (1.0, 2.0**20):
        tolerances = {"rtol": 1e-6, "atol": 0.0} if relative else {"rtol": 0.0, "atol": 1e-6 * scale}
        times: list[Tensor] = []
        out = solve(
            ODE(oscillator),
            x0 * scale,
            (0.0, 3.0),
            solver="rk45",
            callback=lambda k, t, x, times=times: times.append(t.clone()),
            **tolerances,
        )
        runs.append((out.x / scale, torch.stack(times)))
    assert torch.equal(runs[0][1], runs[1][1])
    assert torch.equal(runs[0][0], runs[1][0])


def pulse(x: Tensor, t: Tensor) -> Tensor:
    """A pulse at t = 1/2, too sharp for the steps that come to it, in rows of different sharpness."""
    return (
        x[:, :1] * torch.exp(-((x[:, :1] * (t[:, None] - 0.5)) ** 2)) * torch.tensor([[0.0, 1.0]], dtype=F64)
    )


@pytest.mark.parametrize("compact", [False, True])
def test_counts_of_steps(compact: bool):
    """Of the sample that takes most, here row 0: a good step moves its time, a rejected one does not."""
    x0 = torch.tensor([[20.0, 0.0], [2.0, 0.0], [60.0, 0.0]], dtype=F64)
    seen: list[tuple[int, float]] = []
    solver = DormandPrince(compact=compact)
    out = solve(
        ODE(pulse), x0, (0.0, 1.0), solver=solver, callback=lambda k, t, x: seen.append((k, float(t[0])))
    )
    times = [0.0, *(t for _, t in seen)]
    moves = sum(b > a for a, b in itertools.pairwise(times))
    assert [k for k, _ in seen] == list(range(1, out.stats.steps + 1))
    assert (out.stats.accepted, out.stats.rejected) == (moves, len(seen) - moves)
    assert out.stats.rejected > 0
    assert out.stats.nfe == 2 + 6 * out.stats.steps
    assert out.failed_step.tolist() == [-1] * 3
    assert out.failed_at.isnan().all()
    alone = [solve(ODE(pulse), x0[i : i + 1], (0.0, 1.0), solver="rk45") for i in range(3)]
    assert out.stats.steps == max(one.stats.steps for one in alone) > min(one.stats.steps for one in alone)
    assert torch.equal(out.x, torch.cat([one.x for one in alone]))


def test_the_end_is_reached_exactly():
    """The last stages are at t1, not at t + (t1 - t), which rounds."""
    rate = torch.logspace(-3, -1, 60, dtype=F64)[:, None]
    x0 = torch.linspace(5e-4, 2e-3, 60, dtype=F64)[:, None] * rate
    times, ends = [], [torch.full((60,), -0.8, dtype=F64)]

    def drift(x: Tensor, t: Tensor) -> Tensor:
        times.append(t)
        return rate * torch.cos(t[:, None])

    out = solve(ODE(drift), x0, (-0.8, 0.2), solver="rk45", callback=lambda k, t, x: ends.append(t))
    last = torch.stack(ends).where(torch.stack(ends) < 0.2, -1.0).amax(0)
    assert bool((last + (0.2 - last) != 0.2).any())
    assert torch.stack(times).amax(0).tolist() == [0.2] * 60
    exact = x0 + rate * (math.sin(0.2) + math.sin(0.8))
    torch.testing.assert_close(out.x, exact, rtol=1e-3, atol=0)


def test_the_state_saved_at_the_end_is_the_state_at_the_end():
    """Whatever the interpolant says there."""

    @dataclass(frozen=True)
    class Rough(DormandPrince):
        def interpolate(self, x: Tensor, h: Any, attempt: Any, theta: Any) -> Tensor:
            return 0 * x

    out = solve(DECAY, column(1.0, 2.0), (0.0, 1.0), solver=Rough(), save_at=[0.5, 1.0])
    assert out.xs is not None
    assert torch.equal(out.xs[0], 0 * out.x)
    assert torch.equal(out.xs[1], out.x)


@pytest.mark.parametrize("span", [(0.25, 2.0), (2.0, 0.25), (-1.5, -0.5), (-0.5, -1.5)])
@pytest.mark.parametrize("solver", ["rk45", "heun"])
def test_saved_times_of_either_direction(solver: str, span: tuple[float, float]):
    """x0 exp(-(t - t0)) at every saved time, ends bit for bit; one saved time alone is the same state."""
    x0 = torch.linspace(0.7, 3.1, 24, dtype=F64).reshape(8, 3)
    args: dict[str, Any] = {"solver": solver}
    args |= {"rtol": 1e-8, "atol": 1e-8} if solver == "rk45" else {"steps": 64}
    times = np.linspace(*span, 9)
    out = solve(DECAY, x0, span, save_at=times, **args)
    assert out.xs is not None
    exact = x0 * torch.exp(span[0] - torch.from_numpy(times))[:, None, None]
    torch.testing.assert_close(out.xs, exact, rtol=3e-4 if solver == "heun" else 1e-6, atol=0)
    assert torch.equal(out.xs[0], x0)
    assert torch.equal(out.xs[-1], out.x)
    for i in (0, 3, 8):
        alone = solve(DECAY, x0, span, save_at=times[i : i + 1], **args)
        assert alone.xs is not None
        assert torch.equal(alone.xs[0], out.xs[i])
        assert torch.equal(alone.x, out.x)


def test_a_start_is_saved_as_it_is():
    """Not from the interpolant, which is asked for later times alone."""
    asked: list[float] = []

    @dataclass(frozen=True)
    class Watched(DormandPrince):
        def interpolate(self, x: Tensor, h: Any, attempt: Any, theta: Any) -> Tensor:
            asked.extend(theta.flatten().tolist())
            return super().interpolate(x, h, attempt, theta)

    for times in ([0.0], [0.0, 0.5]):
        asked.clear()
        solve(DECAY, column(1.0, 2.0), (0.0, 1.0), solver=Watched(), save_at=times)
        assert bool(asked) == (len(times) > 1)
        assert all(theta > 0 for theta in asked)


@pytest.mark.parametrize("options", [{"solver": "rk45"}, {"solver": "heun", "steps": 9}])
def test_an_empty_batch(options: dict[str, Any]):
    out = solve(DECAY, torch.zeros(0, 2, dtype=F64), (0.0, 1.0), **options)
    assert out.x.shape == (0, 2)
    assert out.ok
    steps = options.get("steps", 0)
    assert (out.stats.steps, out.stats.accepted, out.stats.rejected) == (steps, steps, 0)


@pytest.mark.parametrize("options", [{"solver": "rk45"}, {"solver": "heun", "steps": 9}])
def test_only_checkpoints_run_again(options: dict[str, Any]):
    """The backward pass calls the drift of a checkpointed run again, of any other run never."""
    calls = []
    ode = ODE(lambda x, t: (calls.append(1), -x * x)[1])
    for gradient, again in (("checkpoint", True), ("backprop", False), (None, False)):
        x0 = torch.ones(2, 1, dtype=F64, requires_grad=True)
        out = solve(ode, x0, (0.0, 1.0), gradient=gradient, **options)
        before = len(calls)
        out.x.sum().backward()
        assert (len(calls) > before) == again


# -- runs over a grid ---------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [1, 2, 9, 10, 16, 17, 50])
def test_checkpoints_are_as_many_as_the_root_of_the_steps(steps: int, monkeypatch: pytest.MonkeyPatch):
    """Sections of ceil(sqrt(n)) steps, one after the other; the last may be shorter."""
    sections, original = [], fixed.checkpoint

    def spy(function, x, carry, first, last, **options):
        sections.append((first, last))
        return original(function, x, carry, first, last, **options)

    monkeypatch.setattr(fixed, "checkpoint", spy)
    x0 = torch.ones(1, 1, dtype=F64, requires_grad=True)
    out = solve(DECAY, x0, (0.0, 1.0), solver="euler", steps=steps, gradient="checkpoint")
    length = math.ceil(math.sqrt(steps))
    assert sections == [(k, min(k + length, steps)) for k in range(0, steps, length)]
    assert float(out.x.detach()) == pytest.approx((1 - 1 / steps) ** steps, rel=1e-13)


def test_more_steps_than_a_chunk():
    """(1 - h)^n, every step reported once."""
    steps, seen = fixed.CHUNK + 6, []
    out = solve(
        DECAY,
        torch.ones(1, 1, dtype=F64),
        (0.0, 1.0),
        solver="euler",
        steps=steps,
        callback=lambda k, t, x: seen.append((k, t)),
    )
    assert float(out.x) == pytest.approx((1 - 1 / steps) ** steps, rel=1e-12)
    assert [k for k, _ in seen] == list(range(1, steps + 1))
    assert [t for _, t in seen] == pytest.approx(np.linspace(0, 1, steps + 1)[1:], rel=1e-14)
    assert out.failed_step.tolist() == [-1]


def test_stages_at_the_ends_of_a_step_are_at_nodes():
    """Heun's second time is the next step's first, bit for bit, though t + (t' - t) would round."""
    grid = [-0.87, -0.58, -0.43, 0.15, 0.43, 0.66]
    assert any(a + (b - a) != b for a, b in itertools.pairwise(grid))
    times: list[float] = []
    ode = ODE(lambda x, t: (times.append(float(t)), -x)[1])
    solve(ode, torch.ones(1, 1, dtype=F64), grid, solver="heun")
    assert times[0::2] == grid[:-1]
    assert times[1::2] == grid[1:]


def test_a_saved_time_within_rounding_of_a_node_is_that_node():
    """Though another saved time, which splits the step, is as near on the other side."""
    near = 2.0**-21  # the rounding of float32 times up to 1, times 4
    grid, times = (
        [0.0, 0.25, 0.25 + 2.0**-14, 1.0],
        np.array([0.25 + near, 0.25 + 2 * near], dtype=np.float32),
    )
    out = solve(DECAY, torch.ones(1, 1, dtype=F64), grid, solver="euler", save_at=times)
    assert out.stats.steps == 4
    assert out.xs is not None
    assert out.xs.flatten().tolist() == [0.75, 0.75 * (1 - 2 * near)]


@dataclass(frozen=True)
class Spy(Solver):
    """Adds W and keeps what it was given; H as well."""

    name = "spy"
    kind = "sde"
    noise_types = ("additive",)
    sde_types = ("ito",)
    weak_order = strong_order = 1.0
    normals = 2
    reference = ""
    seen: Any = None

    def step(self, system: Any, x: Tensor, interval: Interval, carry: Any) -> Any:
        self.seen.append((interval.W, interval.H))
        return x + interval.W, ()


def brownian_motion(backward: bool = False) -> SDE:
    sde = SDE(lambda x, t: 0 * x, lambda x, t: torch.ones_like(x), noise_type="additive")
    sde.runs_backward = backward
    return sde


@pytest.mark.parametrize("backward", [False, True])
def test_draws_of_a_step(backward: bool):
    """W = sqrt|h| xi_2k and H = sqrt(|h|/12) xi_2k+1."""
    x0, ids, grid = torch.zeros(3, 2, dtype=F64), torch.arange(3), (0.0, 0.25, 0.9, 1.0)
    spy = Spy(seen=[])
    solve(brownian_motion(backward), x0, grid[::-1] if backward else grid, solver=spy, seed=5)
    lengths = np.abs(np.diff(grid[::-1] if backward else grid))
    assert len(spy.seen) == 3
    for k, (h, (w, levy)) in enumerate(zip(lengths, spy.seen, strict=True)):
        draws = [Philox(5).normal(2 * k + j, x0, ids) for j in (0, 1)]
        torch.testing.assert_close(w, draws[0] * math.sqrt(h), rtol=1e-14, atol=0)
        torch.testing.assert_close(levy, draws[1] * math.sqrt(h / 12), rtol=1e-14, atol=0)


def test_a_path_is_read_over_every_step():
    """150 steps, several queries: W and H of each step are those of the path over it, asked for alone."""
    tree, x0, ids = BrownianTree(4), torch.zeros(2, 1, dtype=F64), torch.arange(2)
    spy, grid = Spy(seen=[]), np.linspace(0.0, 3.0, 151) ** 1.5
    solve(brownian_motion(), x0, grid, solver=spy, noise=tree)
    assert len(spy.seen) == 150
    for k in (0, 1, 62, 63, 64, 65, 127, 128, 149):
        one = tree.increments(grid[k], grid[k + 1], x0, ids)
        assert torch.equal(spy.seen[k][0], one.W)
        assert torch.equal(spy.seen[k][1], one.H)
    whole = tree.increments(grid[0], grid[-1], x0, ids).W
    for steps in (1, 3, 64, 65):
        x = solve(brownian_motion(), x0, (grid[0], grid[-1]), steps=steps, noise=tree).x
        torch.testing.assert_close(x, whole, rtol=0, atol=1e-13)


def test_a_path_of_many_elements_of_none_and_of_an_ode():
    tree = BrownianTree(4, bits=8)
    many = torch.zeros(1, 2**15 + 2, dtype=torch.float32)
    x = solve(brownian_motion(), many, (0.0, 0.5, 1.0), noise=tree).x
    torch.testing.assert_close(x, tree.increments(0.0, 1.0, many, torch.arange(1)).W, rtol=0, atol=1e-6)
    some = torch.zeros(1, 1000, dtype=torch.float32)
    x = solve(brownian_motion(), some, (0.0, 0.5, 1.0), noise=tree).x
    torch.testing.assert_close(x, tree.increments(0.0, 1.0, some, torch.arange(1)).W, rtol=0, atol=1e-6)
    none = torch.zeros(0, 2, dtype=F64)
    assert solve(brownian_motion(), none, (0.0, 1.0), steps=3, noise=tree).x.shape == (0, 2)
    ones = torch.ones(2, 1, dtype=F64)
    ode = [solve(DECAY, ones, (0.0, 1.0), solver="heun", steps=5, noise=n).x for n in (None, tree)]
    assert torch.equal(*ode)


# -- failures ------------------------------------------------------------------------------------------


def test_the_first_step_alone_is_checked():
    """A diffusion of another dtype is found in a run of one step."""
    sde = SDE(lambda x, t: x, lambda x, t: x.double())
    with pytest.raises(ShapeError, match="first step led from torch.float32"):
        solve(sde, torch.ones(3, 2), (0, 1), steps=1)


def test_a_failure_in_the_first_step():
    """Its step is 0 and its time the end of that step; the search for it stops there."""
    calls = []

    def drift(x: Tensor, t: Tensor) -> Tensor:
        calls.append(1)
        return torch.where((x > 1) & (t < 0.01), torch.nan, -x)

    out = solve(ODE(drift), column(2.0, 0.5), (0.0, 1.0), solver="euler", steps=50, throw=False)
    assert out.failed_step.tolist() == [0, -1]
    assert float(out.failed_at[0]) == 0.02
    assert math.isnan(float(out.failed_at[1]))
    assert len(calls) <= 50 + 3
    start = ODE(lambda x, t: torch.where(t == 0, torch.nan, -x))  # seen by the first slope alone
    out = solve(start, column(2.0), (0.0, 1.0), solver="rk45", steps=4, throw=False)
    assert out.failed_step.tolist() == [0]


def test_the_first_failure_is_the_one_explained():
    """Row 1 by the drift in step 0, row 2 by the diffusion in step 3."""

    def field(x: Tensor, bad: Tensor, good: Tensor) -> Tensor:
        return torch.where(bad, torch.nan, good)

    sde = SDE(
        lambda x, t: field(x, x[:, 1:] == 1, 0 * x),
        lambda x, t: field(x, (x[:, 1:] == 2) & (t > 0.25), 0 * x),
    )
    x0 = torch.tensor([[1.0, 0.0], [1.0, 1.0], [1.0, 2.0]], dtype=F64)
    with pytest.raises(NonFiniteError, match=r"sample 1 .*step 0 of 10.*the drift is not finite") as caught:
        solve(sde, x0, (0.0, 1.0), steps=10)
    assert caught.value.solution is not None
    assert caught.value.solution.failed_step.tolist() == [-1, 0, 3]


# -- methods -------------------------------------------------------------------------------------------


def test_any_weights():
    """x' = x + h (2 k1 - k2), k2 = f(x + 2 h k1): 1 - h + 2 h^2 ... of x' = -x, by hand."""

    @dataclass(frozen=True)
    class Two(RungeKutta):
        name, order, reference = "two", 1, ""
        tableau = Tableau(c=(0.0, 2.0), a=((), (2.0,)), b=(2.0, -1.0))

    h = 0.125
    x = solve(DECAY, torch.ones(1, 1, dtype=F64), (0.0, h), solver=Two(), steps=1).x
    assert float(x) == 1 + h * (2 * -1 - -(1 - 2 * h))


def test_the_error_estimate_is_that_of_the_embedded_solution():
    """x' - error = x + h sum b_hat_i k_i, with the published b_hat (Dormand and Prince 1980, table 2)."""
    weights = (5179 / 57600, 0, 7571 / 16695, 393 / 640, -92097 / 339200, 187 / 2100, 1 / 40)
    ode, exact = nonlinear()
    solver, x, h = DormandPrince(), exact(0.4), 0.3
    times = tuple(x.new_tensor(0.4 + c * h) for c in solver.nodes)
    attempt = solver.attempt(ode, x, Interval(times, h), solver.init(ode, x, times[0]))
    embedded = x + h * sum(w * k for w, k in zip(weights, attempt.stages, strict=True))
    torch.testing.assert_close(attempt.x - attempt.error, embedded, rtol=1e-14, atol=1e-15)
    assert float(attempt.error.abs().min()) > 1e-7


def test_the_declared_order_of_the_error_estimate():
    """h sum e_i k_i = O(h^error_order)."""
    ode, exact = nonlinear()
    solver, sizes = DormandPrince(), []
    for h in (0.04, 0.02):
        x = exact(0.4)
        times = tuple(x.new_tensor(0.4 + c * h) for c in solver.nodes)
        attempt = solver.attempt(ode, x, Interval(times, h), solver.init(ode, x, times[0]))
        sizes.append(float(attempt.error.norm()))
    assert slope(sizes) == pytest.approx(DormandPrince.error_order, abs=0.25)


def hermite() -> tuple[Tensor, Tensor]:
    """Nodes (40, 1) and weights (40,) for means over N(0, 1)."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(40)
    return torch.from_numpy(nodes)[:, None], torch.from_numpy(weights / weights.sum())


def local_errors(solver: Solver, system: Any, exact: Any, rest: Any) -> tuple[float, float]:
    """Orders in h of |E e| and of sqrt(E e^2 + rest) after one step from x = 1, by quadrature over W."""
    (xi, weights), mean, square = hermite(), [], []
    for h in (2e-3, 1e-3):
        w = xi * math.sqrt(h)
        t = torch.zeros((), dtype=F64)
        out, _ = solver.step(system, torch.ones_like(xi), Interval((t,), h, w), ())
        gap = (out - exact(w, h))[:, 0]
        mean.append(abs(float(weights @ gap)))
        square.append(math.sqrt(float(weights @ gap**2) + rest(h)))
    return slope(mean), slope(square)


def test_the_declared_orders_of_euler_maruyama():
    """One step on dX = mu X dt + sigma X dW: mean O(h^(weak + 1)), mean square O(h^(strong + 1/2))."""
    mu, sigma = 0.7, 0.5
    sde = SDE(lambda x, t: mu * x, lambda x, t: sigma * x, noise_type="diagonal")
    weak, strong = local_errors(
        EulerMaruyama(), sde, lambda w, h: torch.exp((mu - sigma**2 / 2) * h + sigma * w), lambda h: 0.0
    )
    assert weak - 1 == pytest.approx(EulerMaruyama.weak_order, abs=0.02)
    assert strong - 0.5 == pytest.approx(EulerMaruyama.strong_order, abs=0.02)


def test_the_declared_orders_of_ula():
    """On N(0, 1): X_h = e^-h x + sqrt 2 int e^-(h-s) dW; of the integral, (1 - e^-h)/h W is known from W."""
    law = Langevin(lambda x: -x)
    weak, strong = local_errors(
        ULA(),
        law,
        lambda w, h: math.exp(-h) - math.sqrt(2) * math.expm1(-h) / h * w,
        lambda h: -math.expm1(-2 * h) - 2 * math.expm1(-h) ** 2 / h,
    )
    assert weak - 1 == pytest.approx(ULA.weak_order, abs=0.02)
    assert strong - 0.5 == pytest.approx(ULA.strong_order, abs=0.02)


def test_mala_by_hand():
    """Two draws a step: the proposal's, and the uniform Phi(first element of the second)."""
    law = Langevin(lambda x: -(x**3), log_prob=lambda x: -(x**4).sum(-1) / 4)
    h, steps = 0.4, 6
    draws = torch.randn(2 * steps, 5, 3, dtype=F64, generator=torch.Generator().manual_seed(0))
    x0 = torch.randn(5, 3, dtype=F64, generator=torch.Generator().manual_seed(1))
    x, moved = x0, []

    def log_q(a: Tensor, b: Tensor) -> Tensor:
        return -((b - a + h * a**3) ** 2).sum(-1) / (4 * h)

    for k in range(steps):
        y = x - h * x**3 + math.sqrt(2 * h) * draws[2 * k]
        log_r = law.log_prob(y) + log_q(y, x) - law.log_prob(x) - log_q(x, y)
        taken = torch.special.ndtr(draws[2 * k + 1][:, 0]) < log_r.exp()
        x = torch.where(taken[:, None], y, x)
        moved.append(taken)
    assert 0.1 < float(torch.stack(moved).double().mean()) < 0.95
    out = solve(law, x0, (0.0, steps * h), steps=steps, solver=MALA(), noise=Recorded(draws))
    torch.testing.assert_close(out.x, x, rtol=1e-12, atol=1e-12)
    assert out.stats.nfe == steps + 1
