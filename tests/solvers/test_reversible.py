"""Reversible Heun: steps taken back, its formula, and what it keeps."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import sdekit as sk
from sdekit.sde import SDE
from sdekit.sde.classic import SphericalBrownian
from sdekit.solvers import Interval, ReversibleHeun, solve
from sdekit.solvers.problem import Counted
from tests.solvers.strong import F64, Mixed, stratonovich

SPHERE = SphericalBrownian(sigma=0.7)
SOLVER = ReversibleHeun()
SYSTEMS = {
    "sphere": (SPHERE, 3),
    "mixed": (stratonovich(Mixed()), 2),
    "scalar": (
        SDE(
            lambda x, t: torch.cos(x) - t * x,
            lambda x, t: 0.4 * torch.sin(x.flip(1)) + t,
            noise_type="scalar",
            sde_type="stratonovich",
        ),
        2,
    ),
    "diagonal": (SDE(lambda x, t: -x + t, lambda x, t: 0.3 * x, sde_type="stratonovich"), 4),
}


@pytest.mark.parametrize("h", [0.01, -0.01])
@pytest.mark.parametrize("name", SYSTEMS)
@settings(max_examples=5)
@given(seed=st.integers(0, 2**32))
def test_steps_are_taken_back(name: str, h: float, seed: int) -> None:
    """100 steps forth and back: state, second state, drift and diffusion to 1e-10."""
    sde, dimension = SYSTEMS[name]
    system, steps = Counted(sde), 100
    x0 = 0.3 + 0.2 * sk.Philox(seed).normal(0, torch.empty(6, dimension, dtype=F64), torch.arange(6))
    x0 = torch.nn.functional.normalize(x0) if name == "sphere" else 0.5 * torch.tanh(x0)
    like = x0.new_empty(sde.noise_shape(x0))
    intervals = []
    for k in range(steps):
        W = abs(h) ** 0.5 * sk.Philox(seed).normal(k + 1, like, torch.arange(6))
        times = (torch.tensor(k * h, dtype=F64), torch.tensor((k + 1) * h, dtype=F64))
        intervals.append(Interval(times, h, W))
    start = (x0, SOLVER.init(system, x0, intervals[0].times[0]))
    x, carry = start
    for interval in intervals:
        x, carry = SOLVER.step(system, x, interval, carry)
    assert float((x - x0).abs().max()) > 0.01
    for interval in reversed(intervals):
        x, carry = SOLVER.reverse_step(system, x, interval, carry)
    for found, expected in zip((x, *carry), (x0, *start[1]), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)


def test_the_formula_on_linear_fields() -> None:
    """Two steps of x' = a x h + b x W by hand."""
    a, b, h, w1, w2 = -0.7, 0.4, 0.1, 0.2, -0.3
    sde = SDE(lambda x, t: a * x, lambda x, t: b * x, sde_type="stratonovich")
    x0 = torch.tensor([[1.5]], dtype=F64)
    draws = sk.Recorded([torch.full((1, 1), w / h**0.5, dtype=F64) for w in (w1, w2)])
    found = solve(sde, x0, (0.0, 0.2), steps=2, noise=draws, solver="reversible-heun").x
    x, z = 1.5, 1.5
    for w in (w1, w2):
        p = a * h + b * w
        x, z = x + 0.5 * p * (z + (2 * x - z + p * z)), 2 * x - z + p * z
    assert float(found) == pytest.approx(x, rel=1e-14)


def test_one_evaluation_a_step() -> None:
    sde, dimension = SYSTEMS["diagonal"]
    out = solve(sde, torch.ones(2, dimension, dtype=F64), (0, 1), steps=10, solver=SOLVER)
    assert out.stats.nfe == 11
