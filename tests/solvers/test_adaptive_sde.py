"""Adaptive steps on SDEs: one path whatever is rejected, hence the exact laws; steps by their definition."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import sdekit as sk
from sdekit.errors import NonFiniteError, SolveError
from sdekit.noise import BrownianTree, Philox
from sdekit.sde import SDE
from sdekit.sde.classic import DecayingAdditive
from sdekit.solution import Status
from sdekit.solvers import Attempt, Controller, EmbeddedSolver, Interval, get, paths, solve
from sdekit.solvers.control import first_noisy_step
from sdekit.solvers.problem import Counted
from tests.solvers.problems import geometric

F64 = torch.float64


def column(*values: float) -> Tensor:
    return torch.tensor(values, dtype=F64)[:, None]


def wiener(sigma: float = 1.0) -> SDE:
    return SDE(lambda x, t: 0 * x, lambda x, t: sigma + 0 * x, noise_type="additive")


@dataclass(frozen=True)
class Choosy(EmbeddedSolver):
    """Euler-Maruyama that dislikes large increments: its error is W^2, whatever the drift."""

    name, kind, reference = "choosy", "sde", ""
    noise_types, sde_types = ("additive", "diagonal"), ("ito",)
    strong_order, weak_order, normals = 0.5, 1.0, 1
    error_order = 1.0
    controller: Controller = field(default_factory=Controller)
    compact: bool = False

    def attempt(self, system: Any, x: Tensor, interval: Interval, carry: Any) -> Attempt:
        t, w = interval.times[0], interval.W
        noise = system.apply_noise(system.diffusion(x, t), w)
        return Attempt(x + system.drift(x, t) * interval.h + noise, (), w * w, ())


# -- the path -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("span", [(0.0, 1.0), (0.3, 2.7), (1.0, 33.0)])
def test_rejection_does_not_change_the_path(span: tuple[float, float]):
    """W over the whole span, though a third of the steps is rejected for its W."""
    x0 = torch.zeros(40, 2, dtype=F64)
    out = solve(wiener(), x0, span, solver=Choosy(), rtol=0.0, atol=0.3, seed=4)
    assert out.stats.rejected > 3
    whole = BrownianTree(4).increments(*span, x0, torch.arange(40))
    torch.testing.assert_close(out.x, whole.W, rtol=0, atol=1e-12)


@pytest.mark.parametrize("solver", ["sosra", "sra1", "sosri", "sriw1"])
def test_the_error_on_the_path_follows_the_tolerance(solver: str):
    """Against 2^9 steps of the same method on the same path."""
    sde = sk.OrnsteinUhlenbeck(1.0, 0.0, 1.0) if solver in ("sosra", "sra1") else geometric()
    x0, args = torch.ones(30, 1, dtype=F64), {"solver": solver, "noise": BrownianTree(8)}
    exact = solve(sde, x0, (0.0, 1.0), steps=512, **args).x
    error = []
    for tolerance in (1e-1, 1e-3, 1e-4):
        found = solve(sde, x0, (0.0, 1.0), rtol=tolerance, atol=tolerance, **args)
        error.append(float((found.x - exact).square().mean().sqrt()))
    assert error[1] < 0.1 * error[0]
    assert error[2] < 0.5 * error[1]
    assert error[2] < 1e-3


def test_backwards_in_time():
    """The reversal of a Brownian motion given its start, X_t ~ N(m, t): back to where it started."""
    sde = sk.reverse(wiener(), lambda x, t: -(x - 0.7) / t[:, None] if t.ndim else -(x - 0.7) / t)
    x0 = 0.7 + math.sqrt(2.0) * Philox(1).normal(0, torch.empty(2000, 1, dtype=F64), torch.arange(2000))
    out = solve(sde, x0, (2.0, 0.5), solver="sosra", rtol=1e-3, atol=1e-3, seed=2)
    close(out.x, torch.tensor([0.7], dtype=F64), torch.tensor([0.5], dtype=F64), 5.0)


def rotating() -> SDE:
    """Two motions, and the area between them."""

    def field(x: Tensor, t: Tensor) -> Tensor:
        one, none = torch.ones_like(x[:, 0]), torch.zeros_like(x[:, 0])
        rows = [one, none], [none, one], [-x[:, 1] / 2, x[:, 0] / 2]
        return torch.stack([torch.stack(row, -1) for row in rows], 1)

    return SDE(lambda x, t: 0 * x, field, noise_type="general", noise_dim=2, sde_type="stratonovich")


@pytest.mark.parametrize("general", [True, False])
def test_times_looked_at_are_visited(general: bool, monkeypatch: pytest.MonkeyPatch):
    """The end of every step, rejected or not, is a node later, where noise does not commute; elsewhere it
    need not be."""
    asked: list[tuple[Any, Any]] = []
    interval = paths.interval

    def spy(p: Any, solver: Any, x: Tensor, rows: Any, t: Any, step: Any, end: Any) -> Interval:
        asked.append((t.copy(), end.copy()))
        return interval(p, solver, x, rows, t, step, end)

    monkeypatch.setattr(paths, "interval", spy)
    system, solver = (rotating(), get("spark", "sde")) if general else (wiener(), Choosy())
    out = solve(system, torch.zeros(6, 3, dtype=F64), (0.0, 0.9), solver=solver, rtol=0.0, atol=0.01, seed=3)
    assert out.stats.rejected > 3
    nodes, ends = (np.stack(v) for v in zip(*asked, strict=True))
    skipped = [sum(e not in nodes[:, i] and e != 0.9 for e in ends[:, i]) for i in range(6)]
    assert max(skipped) == 0 if general else max(skipped) > 0


def test_the_area_between_two_motions():
    """On the path, against its area from 2^12 pieces; the error is of order 1/2 in the tolerance."""
    x0, ids = torch.zeros(60, 3, dtype=F64), torch.arange(60)
    area = BrownianTree(3).levy_area(0.0, 1.0, x0[:, :2], ids, pieces=4096, remainder=False)[:, 0, 1]
    error = []
    for tolerance in (1e-1, 1e-2):
        out = solve(rotating(), x0, (0.0, 1.0), solver="spark", rtol=0.0, atol=tolerance, seed=3)
        error.append(float((out.x[:, 2] - area).square().mean().sqrt()))
    assert error[1] < 0.6 * error[0]
    assert error[1] < 0.1


# -- the law --------------------------------------------------------------------------------------------


def close(x: Tensor, mean: Tensor, variance: Tensor, bound: float) -> None:
    """Mean and variance over rows and (equal) elements within ``bound`` standard errors; the error of the
    variance from the fourth moment of the sample."""
    size = x.numel()
    centred = (x - mean).square()
    assert abs(float((x - mean).mean())) < bound * math.sqrt(float(variance.mean()) / size)
    assert abs(float((centred - variance).mean())) < bound * float(centred.std()) / math.sqrt(size)


def ornstein(d: int) -> Any:
    sde = sk.OrnsteinUhlenbeck(1.0, 0.0, 1.0)
    return sde, "sosra", 1.0, math.exp(-1.0), 0.5 * (1 - math.exp(-2.0))


def growth(d: int) -> Any:
    mean = 1.0 * math.exp(0.3)
    return sk.GeometricBrownian(0.3, 0.5), "sosri", 1.0, mean, mean**2 * (math.exp(0.25) - 1)


def decaying(d: int) -> Any:
    """(x0 + beta (t + alpha W))/sqrt(1 + t)."""
    return DecayingAdditive(0.5, 0.7), "sra1", 1.0, 1.7 / math.sqrt(2.0), 0.35**2 / 2


PROBLEMS = [ornstein, growth, decaying]


def ends(problem: Any, d: int, rows: int, seed: int = 6, tolerance: float = 1e-3) -> Any:
    sde, solver, start, mean, variance = problem(d)
    x0 = torch.full((rows, d), start, dtype=F64)
    out = solve(sde, x0, (0.0, 1.0), solver=solver, rtol=tolerance, atol=tolerance, seed=seed)
    return out, torch.tensor(mean, dtype=F64), torch.tensor(variance, dtype=F64)


@pytest.mark.parametrize("problem", PROBLEMS)
@pytest.mark.parametrize(("d", "rows"), [(1, 2000), (8, 500), (64, 100)])
def test_the_law(problem: Any, d: int, rows: int):
    """Mean and variance within 5 standard errors: false alarm 6e-7 each."""
    out, mean, variance = ends(problem, d, rows)
    assert out.stats.rejected > 0
    close(out.x, mean, variance, 5.0)


@pytest.mark.slow
@pytest.mark.parametrize("problem", PROBLEMS)
@pytest.mark.parametrize(("d", "rows"), [(1, 40000), (8, 10000), (64, 2000)])
def test_the_law_sharply(problem: Any, d: int, rows: int):
    """4e4 numbers and more, within 4 standard errors: false alarm 6e-5 each."""
    out, mean, variance = ends(problem, d, rows, tolerance=1e-4)
    close(out.x, mean, variance, 4.0)


def test_noise_drawn_anew_after_a_rejection_is_seen(monkeypatch: pytest.MonkeyPatch):
    """The control: the same driver with fresh increments in every attempt loses a fifth of the variance."""
    generator = torch.Generator().manual_seed(0)

    def fresh(p: Any, x: Tensor, rows: Any, t: Any, end: Any) -> tuple[Tensor, Tensor]:
        h = torch.from_numpy(np.abs(end - t))[:, None]
        w, z = (torch.randn(x.shape, generator=generator, dtype=F64) for _ in range(2))
        return w * h.sqrt(), z * (h / 12).sqrt()

    monkeypatch.setattr(paths, "increments", fresh)
    out, mean, variance = ends(ornstein, 1, 2000)
    assert out.stats.rejected > 0
    assert float(out.x.var()) < 0.9 * float(variance)
    with pytest.raises(AssertionError):
        close(out.x, mean, variance, 5.0)


# -- samples by themselves ------------------------------------------------------------------------------


@pytest.mark.parametrize("solver", ["sosra", "sosri", "sriw1"])
def test_a_sample_is_the_same_alone_and_in_a_batch(solver: str, device: torch.device):
    """Bit for bit, saved states too, and whether finished samples leave the batch or stay."""
    sde = sk.OrnsteinUhlenbeck(2.0, 0.3, 0.6) if solver == "sosra" else geometric()
    x0 = torch.linspace(0.2, 9.0, 14, dtype=F64, device=device).reshape(7, 2)
    args: dict[str, Any] = {"rtol": 1e-3, "atol": 1e-4, "save_at": [0.31, 0.7, 1.0], "seed": 5}
    out = solve(sde, x0, (0.0, 1.0), solver=solver, **args)
    compact = type(get(solver, "sde"))(compact=True)  # type: ignore[call-arg]
    left = solve(sde, x0, (0.0, 1.0), solver=compact, **args)
    assert torch.equal(left.x, out.x)
    assert torch.equal(left.xs, out.xs)
    steps = []
    for i in range(7):
        alone = solve(sde, x0[i : i + 1], (0.0, 1.0), solver=solver, first_id=i, **args)
        assert torch.equal(alone.x[0], out.x[i])
        assert torch.equal(alone.xs[:, 0], out.xs[:, i])
        steps.append(alone.stats.steps)
    assert len(set(steps)) > 1
    assert out.stats.steps == max(steps)


def test_noise_types_and_shapes(device: torch.device):
    """Scalar noise has one motion for all elements; a matrix sums over its own; events of any shape."""
    x0 = torch.ones(4, 3, 2, dtype=F64, device=device)
    scalar = SDE(lambda x, t: 0 * x, lambda x, t: 0.5 * x, noise_type="scalar")
    out = solve(scalar, x0, (0.0, 1.0), solver="sosri", rtol=1e-4, atol=1e-4, seed=1)
    assert torch.equal(out.x, out.x[:, :1, :1].expand_as(out.x))
    w = BrownianTree(1).increments(0.0, 1.0, x0[:, 0, :1], torch.arange(4, device=device)).W
    torch.testing.assert_close(out.x[:, 0, :1], torch.exp(0.5 * w - 0.125), rtol=2e-3, atol=0)
    g = torch.tensor([[1.0, 0.2], [0.0, 0.5], [0.3, -1.0]], dtype=F64, device=device)
    matrix = SDE(
        lambda x, t: 0 * x, lambda x, t: g.expand(len(x), 3, 2), noise_type="commutative", noise_dim=2
    )
    x0 = torch.zeros(4, 3, dtype=F64, device=device)
    out = solve(matrix, x0, (0.0, 1.0), solver="sosra", seed=1)
    w = BrownianTree(1).increments(0.0, 1.0, x0[:, :2], torch.arange(4, device=device)).W
    torch.testing.assert_close(out.x, w @ g.T, rtol=0, atol=1e-12)


def test_float32_follows_float64():
    """The same path; the states differ by the tolerance at most a few times over."""
    x0 = torch.ones(20, 2, dtype=F64)
    args: dict[str, Any] = {"solver": "sosri", "rtol": 1e-3, "atol": 1e-3, "seed": 3}
    double, single = (solve(geometric(), x0.to(d), (0.0, 1.0), **args).x for d in (F64, torch.float32))
    assert single.dtype is torch.float32
    torch.testing.assert_close(single.double(), double, rtol=2e-2, atol=0)


def test_gradients_are_those_of_the_steps_taken():
    """A method is linear in x0 on a linear equation: dx1/dx0 = x1/x0, also for samples that finish early."""
    for gradient in ("backprop", "checkpoint"):
        x0 = column(0.5, 1.0, 4.0).requires_grad_()
        out = solve(
            geometric(), x0, (0.0, 1.0), solver="sosri", rtol=0.0, atol=1e-2, seed=2, gradient=gradient
        )
        (slope,) = torch.autograd.grad(out.x.sum(), x0)
        torch.testing.assert_close(slope, (out.x / x0).detach(), rtol=1e-12, atol=0)


# -- steps ----------------------------------------------------------------------------------------------


@given(
    st.floats(-100, 100, allow_nan=False),
    st.floats(1e-6, 10.0),
    st.sampled_from([-1.0, 1.0]),
)
def test_ends_of_steps_have_few_bits(t: float, size: float, sign: float):
    """Less than |h|/32 short of t + h, and a multiple of 2^-5 of the power of two below |h|."""
    end = float(paths.coarse(np.array([t]), np.array([sign * size]))[0])
    short = sign * (t + sign * size - end)
    assert -1e-13 <= short < size / 32
    quantum = 2.0 ** math.floor(math.log2(size)) / 32
    assert end / quantum == round(end / quantum)


def test_starting_steps():
    """min((0.01/max(|f|, |G|))^(1/q), |span|), sizes over atol + rtol |x|; of a matrix, its rows."""
    x, t = column(2.0, 0.0), torch.zeros(2, dtype=F64)
    sde = SDE(lambda x, t: -3.0 * x, lambda x, t: 0.5 + 0 * x, noise_type="additive")
    for q, span, expected in (
        (1.5, 1.0, [(0.01 * (1e-2 + 2e-3) / 6.0) ** (1 / 1.5), (0.01 * 1e-2 / 0.5) ** (1 / 1.5)]),
        (2.0, -1e-9, [-1e-9, -1e-9]),
    ):
        found = first_noisy_step(Counted(sde), x, t, span, q, 1e-3, 1e-2)
        assert found == pytest.approx(expected, rel=1e-12)
    g = torch.tensor([[0.3, 0.4]], dtype=F64)
    matrix = SDE(lambda x, t: 0 * x, lambda x, t: g.expand(len(x), 1, 2), noise_type="general", noise_dim=2)
    found = first_noisy_step(Counted(matrix), x, t, 1.0, 1.0, 0.0, 1e-2)
    assert found == pytest.approx([2e-4, 2e-4], rel=1e-12)
    still = SDE(lambda x, t: 0 * x, lambda x, t: 0 * x)
    assert first_noisy_step(Counted(still), x, t, 2.0, 1.0, 0.0, 1e-2) == pytest.approx([2.0, 2.0])


def test_nan_in_one_path():
    """The sample and its time are named; the others are what they are without it, bit for bit."""

    def drift(x: Tensor, t: Tensor) -> Tensor:
        return torch.where((x[:, 1:] == 2.0) & (t[:, None] >= 0.5), torch.nan, 0 * x)

    def some(x: Tensor, t: Tensor) -> Tensor:
        return x * torch.tensor([0.3, 0.0], dtype=F64)

    x0 = torch.tensor([[1.0, 0.0], [1.0, 2.0], [1.0, 3.0]], dtype=F64)
    out = solve(
        SDE(drift, some), x0, (0.0, 1.0), solver="sosri", throw=False, save_at=[0.25, 0.75], probe=False
    )
    assert out.status.tolist() == [Status.OK, Status.NON_FINITE, Status.OK]
    assert float(out.failed_at[1]) < 0.5
    assert out.xs[1, 1].isnan().all()
    assert torch.isfinite(out.xs[0]).all()
    rest = solve(SDE(drift, some), x0 * torch.tensor([1.0, 3.0]), (0.0, 1.0), solver="sosri", probe=False)
    assert torch.equal(out.x[::2, 0], rest.x[::2, 0])
    with pytest.raises(NonFiniteError, match="sample 1 became NaN"):
        solve(SDE(drift, some), x0, (0.0, 1.0), solver="sosri", probe=False)


def test_runs_that_cannot_end():
    """Too many steps; steps below what the path resolves."""
    x0 = torch.ones(2, 1, dtype=F64)
    with pytest.raises(
        SolveError, match="max_steps=5 steps were not enough.*larger rtol and atol or max_steps"
    ):
        solve(geometric(), x0, (0.0, 1.0), solver="sriw1", rtol=1e-6, atol=1e-6, max_steps=5)
    out = solve(
        wiener(), x0, (0.0, 1.0), solver=Choosy(), rtol=0.0, atol=1e-3, noise=BrownianTree(0, 10), throw=False
    )
    assert out.status.tolist() == [Status.STEP_UNDERFLOW] * 2


# -- the door -------------------------------------------------------------------------------------------


def test_defaults():
    """A path of the seed, and rtol = atol = 1e-3."""
    x0 = torch.ones(3, 1, dtype=F64)
    plain = solve(geometric(), x0, (0.0, 1.0), solver="sosri", seed=9)
    args: dict[str, Any] = {"solver": "sosri", "rtol": 1e-3, "atol": 1e-3}
    assert torch.equal(plain.x, solve(geometric(), x0, (0.0, 1.0), seed=9, **args).x)
    assert torch.equal(plain.x, solve(geometric(), x0, (0.0, 1.0), noise=BrownianTree(9), **args).x)
    assert not torch.equal(plain.x, solve(geometric(), x0, (0.0, 1.0), seed=10, **args).x)


def test_refusals():
    x0 = torch.ones(3, 1, dtype=F64)
    with pytest.raises(ValueError, match=r"need a path.*got noise=Philox.*Next: noise=BrownianTree\(seed\)"):
        solve(geometric(), x0, (0.0, 1.0), solver="sosri", noise=Philox(1))
    with pytest.raises(ValueError, match="have no effect: 'euler-maruyama' .*no error estimate.*'sosri'"):
        solve(geometric(), x0, (0.0, 1.0), rtol=1e-3)
    with pytest.raises(ValueError, match="have no effect: 'sosri' runs at fixed steps here"):
        solve(geometric(), x0, (0.0, 1.0), solver="sosri", steps=10, rtol=1e-3)
    with pytest.raises(TypeError, match="noise must be a Noise"):
        solve(geometric(), x0, (0.0, 1.0), solver="sosri", noise=1)  # type: ignore[arg-type]
    fixed = solve(geometric(), x0, (0.0, 1.0), solver="sosri", steps=64, noise=Philox(1))
    assert fixed.stats.steps == 64
