"""Saved states of SDEs between the nodes: a shorter step of the method on the same path, unseen by it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import sdekit as sk
from sdekit.noise import BrownianTree, Philox
from sdekit.sde import SDE
from sdekit.solvers import Interval, get, solve
from tests.solvers.problems import geometric

F64 = torch.float64
TREE = BrownianTree(7)
ADAPTIVE: dict[str, Any] = {"solver": "sosra", "rtol": 1e-2, "atol": 1e-2, "noise": TREE}
FIXED: dict[str, Any] = {"solver": "sosra", "steps": 8, "noise": TREE}
RUNS = pytest.mark.parametrize("options", [ADAPTIVE, FIXED], ids=["adaptive", "fixed"])


def ornstein() -> SDE:
    return sk.OrnsteinUhlenbeck(1.5, 0.2, 0.8)


def start(rows: int = 5) -> Tensor:
    return torch.linspace(-1.0, 1.0, 2 * rows, dtype=F64).reshape(rows, 2)


@RUNS
def test_the_run_does_not_depend_on_what_is_saved(options: dict[str, Any]):
    """x bit for bit; and a state is the same whatever else is saved."""
    plain = solve(ornstein(), start(), (0.0, 1.0), **options)
    times = np.linspace(0.0, 1.0, 30)
    many = solve(ornstein(), start(), (0.0, 1.0), save_at=times, **options)
    assert torch.equal(many.x, plain.x)
    assert many.stats.steps == plain.stats.steps
    assert torch.equal(many.xs[0], start())
    assert torch.equal(many.xs[-1], plain.x)
    for i in (0, 7, 18):
        one = solve(ornstein(), start(), (0.0, 1.0), save_at=times[i : i + 1], **options)
        assert torch.equal(one.xs[0], many.xs[i])


@RUNS
@pytest.mark.parametrize("span", [(0.0, 1.0), (0.25, 3.0)])
def test_states_are_on_the_path(options: dict[str, Any], span: tuple[float, float]):
    """Of a Brownian motion exactly, at any time."""
    motion = SDE(lambda x, t: 0 * x, lambda x, t: 0.5 + 0 * x, noise_type="additive")
    times = np.sort(np.random.default_rng(0).uniform(*span, 12))
    out = solve(motion, start(), span, save_at=times, **options)
    for x, t in zip(out.xs, times, strict=True):
        w = TREE.increments(span[0], float(t), start(), torch.arange(5)).W
        torch.testing.assert_close(x, start() + 0.5 * w, rtol=0, atol=1e-13)


def test_a_state_is_a_shorter_step_from_the_node_before():
    """With W and H over that part, and the stages at its own times."""
    sde = SDE(
        lambda x, t: torch.cos(3 * t) - x, lambda x, t: 1.0 + t * torch.ones_like(x), noise_type="additive"
    )
    out = solve(sde, start(), (0.0, 1.0), save_at=[0.25, 0.3, 0.5], steps=4, solver="sra1", noise=TREE)
    _, w, h, _ = TREE.increments(0.25, 0.3, start(), torch.arange(5))
    solver, part = get("sra1", "sde"), 0.3 - 0.25
    nodes = tuple(torch.tensor(0.25 + c * part, dtype=F64) for c in solver.nodes)
    from sdekit.solvers.problem import Counted

    x, _ = solver.step(Counted(sde), out.xs[0], Interval(nodes, part, w, h), ())
    torch.testing.assert_close(out.xs[1], x, rtol=0, atol=1e-15)


def test_saved_times_within_rounding_of_a_node_are_nodes():
    """From float32 tables, and an ulp beside; nothing is asked of the path there."""
    plain = solve(ornstein(), start(), (0.0, 1.0), save_at=np.arange(9) / 8, **FIXED)
    near = np.arange(9) / 8 * (1 - 2.0**-52)
    assert torch.equal(solve(ornstein(), start(), (0.0, 1.0), save_at=near, **FIXED).xs, plain.xs)
    third = solve(ornstein(), start(), (0.0, 1.0), steps=3, noise=TREE, save_at=np.float32([1 / 3, 2 / 3]))
    nodes = solve(ornstein(), start(), (0.0, 1.0), steps=3, noise=TREE, save_at=[1 / 3, 2 / 3])
    assert torch.equal(third.xs, nodes.xs)


def test_times_beside_the_start_of_a_step():
    """Closer than the path resolves: the state itself."""
    out = solve(ornstein(), start(), (0.0, 1.0), save_at=[1e-15, 0.5], **ADAPTIVE)
    assert torch.equal(out.xs[0], start())


@RUNS
def test_the_law_of_saved_states(options: dict[str, Any]):
    """Mean and variance within 5 standard errors, false alarm 6e-7 each; and the covariance of two times."""
    theta, mu, sigma, rows = 1.5, 0.2, 0.8, 3000
    x0 = torch.full((rows, 1), 1.0, dtype=F64)
    times = [0.13, 0.61]
    more = options | ({"rtol": 1e-4, "atol": 1e-4} if "rtol" in options else {"steps": 16})
    xs = solve(sk.OrnsteinUhlenbeck(theta, mu, sigma), x0, (0.0, 1.0), save_at=times, **more).xs[:, :, 0]
    variance = [sigma**2 / (2 * theta) * (1 - math.exp(-2 * theta * t)) for t in times]
    centred = [x - (mu + (1 - mu) * math.exp(-theta * t)) for x, t in zip(xs, times, strict=True)]
    for c, v in zip(centred, variance, strict=True):
        assert abs(float(c.mean())) < 5 * math.sqrt(v / rows)
        assert abs(float(c.var()) - v) < 5 * v * math.sqrt(2 / rows)
    both = variance[0] * math.exp(-theta * (times[1] - times[0]))
    error = math.sqrt((variance[0] * variance[1] + both**2) / rows)
    assert abs(float((centred[0] * centred[1]).mean()) - both) < 5 * error


def test_gradients_of_saved_states():
    """Linear in x0: dx(t)/dx0 = x(t)/x0, at nodes and between, in order."""
    for options in ({"solver": "sosri", "rtol": 1e-2, "atol": 0.0}, {"solver": "sosri", "steps": 4}):
        for gradient in ("backprop", "checkpoint"):
            x0 = torch.tensor([[0.5], [2.0]], dtype=F64).requires_grad_()
            args: Any = {"noise": TREE, "gradient": gradient} | options
            xs = solve(geometric(), x0, (0.0, 1.0), save_at=[0.2, 0.5, 0.6, 0.9], **args).xs
            for x in xs:
                (slope,) = torch.autograd.grad(x.sum(), x0, retain_graph=True)
                torch.testing.assert_close(slope, (x / x0).detach(), rtol=1e-12, atol=0)
            plain = solve(
                geometric(), x0.detach(), (0.0, 1.0), save_at=[0.2, 0.5, 0.6, 0.9], noise=TREE, **options
            )
            torch.testing.assert_close(xs.detach(), plain.xs, rtol=1e-14, atol=0)


def test_without_a_path_saved_times_join_the_grid():
    """Numbers that belong to steps: a step is split."""
    out = solve(ornstein(), start(), (0.0, 1.0), steps=4, noise=Philox(7), save_at=[0.3])
    assert out.stats.steps == 5
    split = solve(ornstein(), start(), [0.0, 0.25, 0.3, 0.5, 0.75, 1.0], noise=Philox(7))
    assert torch.equal(out.x, split.x)
