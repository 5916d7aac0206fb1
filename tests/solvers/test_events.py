"""Events: the law of the first crossing between two nodes, first passages against the inverse Gaussian law
with few steps, roots on ODEs, and what a run makes of a sample that stopped."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy import integrate, stats
from torch import Tensor

import sdekit as sk
from sdekit.errors import ArgumentOrderError, NonFiniteError, ShapeError
from sdekit.noise import BrownianTree, Philox
from sdekit.sde import ODE, SDE
from sdekit.sde.classic import DriftedBrownian
from sdekit.solvers import Event, solve
from sdekit.solvers.events import crossing_probability, hitting_fraction

F64 = torch.float64
MU, SIGMA, START, LEVEL, END = 0.6, 1.3, 0.2, 1.5, 2.0
FALSE_ALARM = 1e-4


def column(*values: float) -> Tensor:
    return torch.tensor(values, dtype=F64)[:, None]


def level(x: Tensor, t: Tensor) -> Tensor:
    return x[:, 0] - LEVEL


# -- a bridge -------------------------------------------------------------------------------------------


def test_the_probability_of_a_crossing():
    """That of `DriftedBrownian.crossing`; 1 with zero between or at an end; 0 without variance."""
    v0, v1 = torch.tensor([[0.3, -0.4, 0.2, 0.2], [0.5, -0.1, -0.2, 0.0]], dtype=F64)
    sde = DriftedBrownian(MU, SIGMA)
    for h in (0.05, 0.3):
        found = crossing_probability(v0, v1, torch.full_like(v0, SIGMA**2 * h))
        known = sde.crossing(v0[:, None], v1[:, None], h, 0.0)[:, 0]
        torch.testing.assert_close(found, known, rtol=1e-12, atol=0)
        assert found[2:].tolist() == [1.0, 1.0]
    assert crossing_probability(v0, v1, torch.zeros_like(v0)).tolist() == [0.0, 0.0, 1.0, 1.0]
    assert crossing_probability(0 * v0 + 1e-200, v1.abs() + 1e-200, 0 * v0)[0] == 0


@pytest.mark.parametrize(
    ("v0", "v1", "variance"), [(0.5, 0.3, 0.4), (-0.5, 0.3, 0.4), (0.7, 0.0, 0.2), (0.1, 3.0, 1.0)]
)
def test_the_time_of_a_crossing(v0: float, v1: float, variance: float):
    """Against the density of the passage from v0 times that of the way on to v1, by quadrature: Kolmogorov's
    distance of 4000 draws, false alarm 1e-4 each."""
    z = Philox(3).normal(0, torch.empty(4000, 2, dtype=F64), torch.arange(4000))
    a, b = (torch.full((4000,), v, dtype=F64) for v in (v0, v1))
    theta = hitting_fraction(a, b, torch.full_like(a, variance), z[:, 0], torch.special.ndtr(z[:, 1]))

    def density(s: float) -> float:
        there = abs(v0) * s**-1.5 * math.exp(-v0 * v0 / (2 * variance * s))
        return there * (1 - s) ** -0.5 * math.exp(-v1 * v1 / (2 * variance * (1 - s)))

    nodes = 0.5 - 0.5 * np.cos(np.linspace(0.0, math.pi, 400))  # the density may be singular at 1
    parts = [integrate.quad(density, p, q)[0] for p, q in itertools.pairwise(nodes)]
    cdf = np.concatenate([[0.0], np.cumsum(parts)])
    found = stats.kstest(theta.numpy(), lambda s: np.interp(s, nodes, cdf / cdf[-1]))
    assert found.pvalue > FALSE_ALARM


def test_crossings_without_noise_are_on_the_line():
    v0, v1 = torch.tensor([[0.3, -0.4, 0.2], [-0.5, 0.1, 0.0]], dtype=F64)
    u = torch.tensor([0.1, 0.9, 0.5], dtype=F64)
    theta = hitting_fraction(v0, v1, torch.zeros(3, dtype=F64), u - 0.5, u)
    torch.testing.assert_close(theta, v0.abs() / (v0.abs() + v1.abs()), rtol=1e-14, atol=0)


# -- first passages -------------------------------------------------------------------------------------


def passages(event: Any, mu: float = MU, rows: int = 4000, **options: Any) -> Tensor:
    sde = options.pop("sde", DriftedBrownian(mu, SIGMA))
    x0 = torch.full((rows, 1), START, dtype=F64)
    return solve(sde, x0, options.pop("span", (0.0, END)), seed=1, event=event, **options)


def p_value(tau: Tensor, mu: float = MU) -> float:
    """Kolmogorov-Smirnov of min(tau, END), END standing for "not yet", against the inverse Gaussian law."""
    law = DriftedBrownian(mu, SIGMA).first_passage(column(START), LEVEL)

    def cdf(t: Any) -> Any:
        return law.cdf(torch.as_tensor(t, dtype=F64).reshape(-1, 1))[:, 0].numpy()

    end = cdf([END])[0]
    reached = tau[~tau.isnan()].numpy()
    count = stats.binomtest(len(reached), len(tau), end).pvalue
    return min(count, stats.kstest(reached, lambda t: cdf(t) / end).pvalue)


RUNS: dict[str, dict[str, Any]] = {
    "20 steps": {"steps": 20},
    "3 steps": {"steps": 3},
    "a path": {"steps": 20, "noise": BrownianTree(3)},
    "adaptive": {"solver": "sosra", "rtol": 1e-2, "atol": 1e-2},
    "saved": {"solver": "sosra", "save_at": [0.25, 1.3]},
}


@pytest.mark.parametrize("name", RUNS)
def test_first_passage(name: str):
    """The inverse Gaussian law; false alarm 1e-4, for either of two tests."""
    out = passages(level, **RUNS[name])
    assert p_value(out.event_at) > FALSE_ALARM
    stopped = ~out.event_at.isnan()
    torch.testing.assert_close(out.x[stopped], torch.full_like(out.x[stopped], LEVEL), rtol=1e-12, atol=0)
    assert bool((out.x[~stopped] < LEVEL).all())


@pytest.mark.parametrize("name", ["20 steps", "a path", "adaptive"])
def test_nodes_alone_miss_passages(name: str):
    """The control: without the bridge the law is refused."""
    out = passages(Event(level, bridge=False), **RUNS[name])
    assert p_value(out.event_at) < 1e-9


def test_first_passage_down_a_decreasing_time():
    """An equation that runs backwards in time, from END to 0: W and the bridge have variance |h|."""

    class Backward(SDE):
        noise_type, runs_backward = "additive", True

        def drift(self, x: Tensor, t: Any) -> Tensor:
            return torch.full_like(x, -MU)

        def diffusion(self, x: Tensor, t: Any) -> Tensor:
            return torch.full_like(x, SIGMA)

    out = passages(level, sde=Backward(), span=(END, 0.0), steps=10)
    assert p_value(END - out.event_at) > FALSE_ALARM


def test_the_side_of_the_approach():
    """From below only, or from above only: the other side is no event."""
    up = passages(Event(level, direction=1), steps=20).event_at
    both = passages(level, steps=20).event_at
    assert torch.equal(up.nan_to_num(-1.0), both.nan_to_num(-1.0))
    down = passages(Event(level, direction=-1), steps=20).event_at
    again = ~down.isnan()
    assert 500 < int(again.sum()) < int((~up.isnan()).sum())
    assert bool((down > up)[again].all())


def test_an_event_that_is_not_terminal_changes_nothing():
    """The run goes on as without it; the time is that of the first crossing."""
    for options in ({"steps": 20}, {"solver": "sosra"}):
        plain = passages(None, **options)
        noted = passages(Event(level, terminal=False), **options)
        stopped = passages(level, **options)
        assert plain.event_at is None
        assert torch.equal(noted.x, plain.x)
        assert torch.equal(noted.event_at.isnan(), stopped.event_at.isnan())
        torch.testing.assert_close(noted.event_at, stopped.event_at, rtol=1e-12, atol=0, equal_nan=True)


def test_a_moving_boundary():
    """X = b - c t is the level b for a drift more by c; fn is given t of shape (B,)."""

    def falling(x: Tensor, t: Tensor) -> Tensor:
        assert t.shape == x.shape[:1]
        return x[:, 0] - (LEVEL - 0.4 * t)

    assert p_value(passages(falling, mu=MU - 0.4, steps=10).event_at) > FALSE_ALARM


G = ((1.0, 0.0), (0.8, 0.5))


def test_the_state_at_an_event():
    """X_2 given tau, where X_1 meets a level: beta (level - x_1) + (mu_2 - beta mu_1) tau + N(0, r tau), with
    beta and r of the regression of dX_2 on dX_1; false alarm 1e-4."""
    g, mu = torch.tensor(G, dtype=F64), torch.tensor([MU, -0.7], dtype=F64)
    sde = SDE(
        lambda x, t: mu.expand_as(x), lambda x, t: g.expand(len(x), 2, 2), noise_type="general", noise_dim=2
    )
    x0 = torch.tensor([[START, 0.4]], dtype=F64).expand(4000, 2)
    out = solve(sde, x0, (0.0, 40.0), steps=20, seed=2, event=level)
    hit = ~out.event_at.isnan()
    assert int(hit.sum()) > 3900
    torch.testing.assert_close(out.x[hit, 0], torch.full_like(out.x[hit, 0], LEVEL), rtol=1e-12, atol=0)
    cov = g @ g.T
    beta, rest = cov[1, 0] / cov[0, 0], cov[1, 1] - cov[1, 0] ** 2 / cov[0, 0]
    tau = out.event_at[hit]
    centre = 0.4 + beta * (LEVEL - START) + (mu[1] - beta * mu[0]) * tau
    z = (out.x[hit, 1] - centre) / (rest * tau).sqrt()
    early = z[tau < 4.0]  # most of them within the first two steps
    assert len(early) > 2000
    assert stats.kstest(z.numpy(), "norm").pvalue > FALSE_ALARM
    assert stats.kstest(early.numpy(), "norm").pvalue > FALSE_ALARM


def exits(steps: int, bridge: bool) -> Tensor:
    """Of a Brownian motion in the plane from the unit disc, E tau = 1/2."""
    sde = SDE(lambda x, t: 0 * x, lambda x, t: 1 + 0 * x, noise_type="additive")
    event = Event(lambda x, t: x.square().sum(1) - 1.0, bridge=bridge)
    out = solve(sde, torch.zeros(4000, 2, dtype=F64), (0.0, 8.0), steps=steps, seed=5, event=event)
    assert not out.event_at.isnan().any()
    torch.testing.assert_close(
        out.x.norm(dim=1), torch.ones(4000, dtype=F64), rtol=0.02 if bridge else 1.0, atol=0
    )
    return out.event_at


def test_the_exit_from_a_disc():
    """A curved surface: the mean within 4 standard errors of 1/2 at h = 1/64 (var tau = 1/8, false alarm
    6e-5); without the bridge 0.1 too long, as its order 1/2 has it."""
    error = 4 * math.sqrt(1 / 8 / 4000)
    assert abs(float(exits(512, True).mean()) - 0.5) < error
    assert float(exits(512, False).mean()) - 0.5 > 2 * error


def test_noise_that_does_not_reach_the_event():
    """A position driven through its velocity is smooth: crossings at nodes alone, on the line between."""
    sde = SDE(
        lambda x, t: torch.stack([x[:, 1], 0 * x[:, 1]], 1),
        lambda x, t: torch.tensor([0.0, 0.5], dtype=F64).expand_as(x),
        noise_type="additive",
    )
    x0 = torch.tensor([[0.0, 1.0]], dtype=F64).expand(50, 2)
    out = solve(sde, x0, (0.0, 1.0), steps=100, seed=1, event=lambda x, t: x[:, 0] - 0.3)
    plain = solve(sde, x0, (0.0, 1.0), steps=100, seed=1, save_at=np.linspace(0.0, 1.0, 101))
    v = plain.xs[:, :, 0] - 0.3
    last = (v < 0).cumprod(0).sum(0) - 1
    a, b = (v.gather(0, (last + k)[None])[0] for k in (0, 1))
    torch.testing.assert_close(out.event_at, 0.01 * (last + a / (a - b)), rtol=1e-10, atol=0)


# -- ODEs -----------------------------------------------------------------------------------------------

CIRCLE = ODE(lambda x, t: torch.stack([x[:, 1], -x[:, 0]], 1))
ANGLES = torch.tensor([0.1, 0.9, 1.7], dtype=F64)  # x = cos(t - angle)


def on_circle() -> Tensor:
    return torch.stack([torch.cos(ANGLES), torch.sin(ANGLES)], 1)


def zero_after(start: Tensor, kind: int) -> Tensor:
    """First t > 0 with cos(t - angle) = 0: falling (kind -1), rising (1), or either (0)."""
    falling, rising = ((start + c) % (2 * math.pi) for c in (math.pi / 2, 3 * math.pi / 2))
    return {-1: falling, 1: rising, 0: torch.minimum(falling, rising)}[kind]


@pytest.mark.parametrize("direction", [-1, 0, 1])
@pytest.mark.parametrize(
    ("solver", "options", "tolerance"),
    [
        ("rk45", {"rtol": 1e-10, "atol": 1e-10}, 1e-7),
        ("rk45", {"steps": 200}, 1e-8),
        ("heun", {"steps": 400}, 5e-4),
    ],
)
def test_roots(solver: str, options: dict[str, Any], tolerance: float, direction: int):
    """Of cos(t - angle), in either direction of time; the state there is the solution, zero to rounding."""
    event = Event(lambda x, t: x[:, 0], direction=direction)
    out = solve(CIRCLE, on_circle(), (0.0, 6.5), solver=solver, event=event, **options)
    exact = zero_after(ANGLES, direction)
    torch.testing.assert_close(out.event_at, exact, rtol=0, atol=tolerance)
    assert float(out.x[:, 0].abs().max()) < 1e-14
    torch.testing.assert_close(out.x[:, 1], -torch.sin(exact - ANGLES), rtol=0, atol=tolerance)
    back = solve(CIRCLE, on_circle(), (0.0, -6.5), solver=solver, event=event, **options)
    torch.testing.assert_close(back.event_at, -zero_after(-ANGLES, direction), rtol=0, atol=tolerance)


def test_a_start_at_zero_is_no_crossing():
    """The next zero is."""
    x0 = torch.tensor([[0.0, 1.0]], dtype=F64)
    out = solve(CIRCLE, x0, (0.0, 4.0), solver="rk45", rtol=1e-9, atol=1e-9, event=lambda x, t: x[:, 0])
    assert float(out.event_at) == pytest.approx(math.pi, abs=1e-7)


@pytest.mark.parametrize("options", [{"solver": "rk45"}, {"solver": "heun", "steps": 64}])
def test_states_saved_after_the_event_are_the_last(options: dict[str, Any]):
    """X at min(t, tau), before and after tau, also within the step in which it happened."""
    times = np.linspace(0.0, 3.0, 31)
    out = solve(CIRCLE, on_circle(), (0.0, 3.0), save_at=times, event=lambda x, t: x[:, 0], **options)
    stopped = torch.minimum(torch.from_numpy(times)[:, None], out.event_at.nan_to_num(9.0))
    exact = torch.stack([torch.cos(stopped - ANGLES), -torch.sin(stopped - ANGLES)], -1)
    torch.testing.assert_close(out.xs, exact, rtol=0, atol=2e-3)
    for i in range(3):
        late = times > float(out.event_at[i])
        assert torch.equal(out.xs[late, i], out.x[i].expand(int(late.sum()), 2))


def test_saved_states_know_of_the_event():
    """Before it below the level, after it there, at every one of 15 times that steps would pass over."""
    times = np.linspace(0.1, 1.5, 15)
    out = passages(level, rows=400, solver="sosra", rtol=0.1, atol=0.1, save_at=times)
    after = torch.from_numpy(times)[:, None] >= out.event_at.nan_to_num(9.0)
    assert 0 < int(after.sum()) < after.numel()
    torch.testing.assert_close(out.xs[after], torch.full_like(out.xs[after], LEVEL), rtol=1e-12, atol=0)
    assert bool((out.xs[~after] < LEVEL).all())


# -- samples by themselves ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {"steps": 16},
        {"steps": 16, "noise": BrownianTree(1)},
        {"solver": "sosra", "save_at": [0.4, 1.0]},
        {"solver": "sosra"},
    ],
)
def test_a_sample_is_the_same_alone_and_in_a_batch(options: dict[str, Any]):
    """Event and state, bit for bit; with compaction too."""
    sde = sk.OrnsteinUhlenbeck(1.0, 0.0, 1.0)
    x0 = torch.linspace(-0.5, 0.9, 12, dtype=F64).reshape(6, 2)
    args: dict[str, Any] = {"seed": 1, "event": lambda x, t: x[:, 0] - 1.0} | options
    out = solve(sde, x0, (0.0, 2.0), **args)
    assert 0 < int(out.event_at.isnan().sum()) < 6
    for i in range(6):
        alone = solve(sde, x0[i : i + 1], (0.0, 2.0), first_id=i, **args)
        assert torch.equal(alone.x[0], out.x[i])
        assert torch.equal(alone.event_at.nan_to_num(-1.0)[0], out.event_at.nan_to_num(-1.0)[i])
    if "solver" in options:
        args["solver"] = sk.solvers.get("sosra", "sde").__class__(compact=True)
        left = solve(sde, x0, (0.0, 2.0), **args)
        assert torch.equal(left.x, out.x)
        assert (left.xs is None) == (out.xs is None)
        assert out.xs is None or torch.equal(left.xs, out.xs)
        assert torch.equal(left.event_at.nan_to_num(-1.0), out.event_at.nan_to_num(-1.0))


def test_checkpointed_gradients_are_those_of_the_graph():
    """tau counts as a constant; of samples that did not stop the gradient is the plain one."""
    grads = []
    for gradient in ("backprop", "checkpoint"):
        x0 = column(1.45, 0.2, -3.0).requires_grad_()
        out = solve(
            DriftedBrownian(MU, SIGMA), x0, (0.0, 1.0), steps=9, seed=4, event=level, gradient=gradient
        )
        grads.append(torch.autograd.grad(out.x.sum(), x0)[0])
    assert 0 < int(out.event_at.isnan().sum()) < 3
    assert torch.equal(*grads)
    assert bool((grads[0][out.event_at.isnan()] == 1).all())


def test_a_stopped_sample_cannot_fail():
    """The drift is NaN beyond the level, which no sample that stops there sees."""
    sde = SDE(
        lambda x, t: torch.where(x > LEVEL, torch.nan, 1.0 + 0 * x),
        lambda x, t: 0.3 + 0 * x,
        noise_type="additive",
    )
    out = solve(sde, column(START, 1.0), (0.0, 5.0), steps=50, event=level)
    assert out.ok
    assert not out.event_at.isnan().any()


# -- the door -------------------------------------------------------------------------------------------


def test_refusals():
    x0 = torch.ones(3, 1, dtype=F64)
    args: Any = (DriftedBrownian(), x0, (0.0, 1.0))
    with pytest.raises(ShapeError, match=r"one number for each sample, \(3,\), got \(3, 1\)"):
        solve(*args, event=lambda x, t: x)
    with pytest.raises(NonFiniteError, match="NaN at the start of 3 of 3 samples, first in row 0"):
        solve(*args, event=lambda x, t: (x[:, 0] - 2).sqrt())
    with pytest.raises(ArgumentOrderError):
        solve(*args, event=lambda t, x: x[:, 0])
    with pytest.raises(TypeError, match="event must be a callable"):
        solve(*args, event=1.5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="direction must be 1"):
        Event(level, direction=2)
    with pytest.raises(ValueError, match="without a graph.*Next.*bridge=False"):
        solve(*args, event=lambda x, t: x.detach()[:, 0] - 2)
    with pytest.raises(ValueError, match="takes no event"):
        solve(CIRCLE, torch.ones(1, 2), (0.0, 1.0), solver="scipy:RK45", event=lambda x, t: x[:, 0])
    with pytest.raises(ValueError, match="cannot from an event"):
        solve(*args, event=level, gradient="adjoint")
