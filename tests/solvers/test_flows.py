"""rk45, torchdiffeq and scipy on probability flows whose map is known, VP and VE, both ways."""

from __future__ import annotations

import math

import pytest
import torch

from sdekit.sde import VE, VP, GaussianDiffusion, ProbabilityFlow, RectifiedFlow, probability_flow
from sdekit.solvers import solve
from sdekit.targets import Gaussian
from tests.solvers.problems import MEAN, VARIANCE, GaussianFlow

NAMES = ("rk45", "torchdiffeq:dopri5", "scipy:RK45")
F64 = torch.float64


def flow(process: GaussianDiffusion, device: torch.device) -> tuple[GaussianFlow, ProbabilityFlow]:
    law = GaussianFlow(device)
    law.process = process
    return law, probability_flow(process, law.score)


def states(device: torch.device, rows: int = 5) -> torch.Tensor:
    return torch.linspace(-2, 2, 3 * rows, dtype=F64, device=device).reshape(rows, 3)


@pytest.mark.parametrize("process", [VP(), VE(0.01, 50.0)], ids=["VP", "VE"])
@pytest.mark.parametrize("backwards", [True, False])
def test_the_exact_map(process: GaussianDiffusion, backwards: bool, device: torch.device) -> None:
    """To 1e-6 at tolerance 1e-9, for all three."""
    law, ode = flow(process, device)
    span = (1.0, process.t_min) if backwards else (process.t_min, 1.0)
    m, v = law.marginal(span[0])
    x = m + v.sqrt() * states(device)
    exact = law.flow(x, *span)
    for name in NAMES:
        out = solve(ode, x, span, solver=name, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(out.x, exact, rtol=1e-6, atol=1e-6)
        assert out.stats.nfe > out.stats.accepted > 10


def test_a_flow_that_starts_at_alpha_zero(device: torch.device) -> None:
    """Rectified flow from t = 1 through a model's own velocity: no NaN, the exact map."""
    process = RectifiedFlow()
    target = Gaussian(torch.tensor(MEAN, dtype=F64), variance=torch.tensor(VARIANCE, dtype=F64))
    ode = probability_flow(process, target.denoiser(process))
    law, _ = flow(process, device)
    x = states(device)
    for name in NAMES:
        out = solve(ode, x, (1.0, 1e-3), solver=name, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(out.x, law.flow(x, 1.0, 1e-3), rtol=1e-6, atol=1e-6)


def test_encode_then_decode(device: torch.device) -> None:
    """There and back, to the order of the tolerance."""
    _, ode = flow(VP(), device)
    x = states(device)
    for tol in (1e-5, 1e-8):
        there = solve(ode, x, (1e-3, 1.0), solver="rk45", rtol=tol, atol=tol).x
        again = solve(ode, there, (1.0, 1e-3), solver="rk45", rtol=tol, atol=tol).x
        assert float((again - x).abs().max()) < 100 * tol


def test_error_and_work_follow_the_tolerance(device: torch.device) -> None:
    """From 1e-4 to 1e-10 the error falls by 10^6 within a factor 30; work grows as tol^(-1/5)."""
    law, ode = flow(VP(), device)
    x = states(device)
    errors, work = [], []
    for tol in (1e-4, 1e-10):
        out = solve(ode, x, (1.0, 1e-3), solver="rk45", rtol=tol, atol=tol)
        errors.append(float((out.x - law.flow(x, 1.0, 1e-3)).abs().max()))
        work.append(out.stats.accepted)
    assert 1e6 / 30 < errors[0] / errors[1] < 1e6 * 30
    assert 0.13 < math.log10(work[1] / work[0]) / 6 < 0.21


def test_steps_are_as_many_as_elsewhere(device: torch.device) -> None:
    """One sample, the same tableau: accepted steps within a factor 1.5 (the controllers differ)."""
    _, ode = flow(VP(), device)
    x = states(device, 1)
    steps = [solve(ode, x, (1.0, 1e-3), solver=n, rtol=1e-8, atol=1e-8).stats.accepted for n in NAMES]
    assert max(steps) < 1.5 * min(steps)


def test_rows_are_coupled_there_and_not_here(device: torch.device) -> None:
    """Another batch, another sample, except with per-sample control."""
    _, ode = flow(VP(), device)
    x = 3 * states(device, 8)
    for name in NAMES:
        alone, together = (solve(ode, v, (1.0, 1e-3), solver=name).x[:1] for v in (x[:1], x))
        assert torch.equal(alone, together) == (name == "rk45")


def test_dense_output(device: torch.device) -> None:
    """Fifty saved times between the steps are as accurate as the steps."""
    law, ode = flow(VP(), device)
    x, times = states(device), torch.linspace(0.99, 0.002, 50, dtype=F64)
    for tol in (1e-5, 1e-8):
        out = solve(ode, x, (1.0, 1e-3), solver="rk45", rtol=tol, atol=tol, save_at=times)
        assert out.xs is not None
        exact = torch.stack([law.flow(x, 1.0, float(t)) for t in times])
        assert float((out.xs - exact).abs().max()) < 100 * tol
        plain = solve(ode, x, (1.0, 1e-3), solver="rk45", rtol=tol, atol=tol)
        assert torch.equal(out.x, plain.x)
        assert out.stats.nfe == plain.stats.nfe
