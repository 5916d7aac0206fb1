"""Runs that fail: the sample, time and step are named, and the samples beside it do not notice."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from sdekit.errors import NonFiniteError, ShapeError, SolveError
from sdekit.noise import TorchNoise
from sdekit.sde import ODE, SDE
from sdekit.solution import Status
from sdekit.solvers import solve
from tests.solvers.problems import geometric

F64 = torch.float64


def wall(row_value: float = 2.0) -> SDE:
    """Drift NaN once t >= 0.5 for the sample that carries ``row_value`` in its second element."""

    def drift(x: Tensor, t: Tensor) -> Tensor:
        bad = (x[:, 1:] == row_value) & (t >= 0.5)
        return torch.where(bad, torch.nan, -x * torch.tensor([1.0, 0.0], dtype=x.dtype, device=x.device))

    return SDE(drift, lambda x, t: x * torch.tensor([0.3, 0.0], dtype=x.dtype, device=x.device))


def start(device: torch.device) -> Tensor:
    return torch.tensor([[1.0, 0.0], [1.0, 2.0], [1.0, 3.0]], dtype=F64, device=device)


def test_nan_in_one_path(device: torch.device) -> None:
    """Status, time and step of that path; the others are what they are without it, bit for bit."""
    x0 = start(device)
    args: dict[str, Any] = {"steps": 10, "seed": 3, "save_at": [0.4, 0.8]}
    out = solve(wall(), x0, (0.0, 1.0), throw=False, **args)
    assert out.status.tolist() == [Status.OK, Status.NON_FINITE, Status.OK]
    assert out.failed_step.tolist() == [-1, 5, -1]
    assert float(out.failed_at[1]) == pytest.approx(0.6)
    assert math.isnan(float(out.failed_at[0]))
    assert not out.ok
    assert "1 of 3 failed" in repr(out)
    well = solve(wall(99.0), x0, (0.0, 1.0), **args)
    for rows in (0, 2):
        assert torch.equal(out.x[rows], well.x[rows])
        assert torch.equal(out.xs[:, rows], well.xs[:, rows])
    assert torch.isfinite(out.xs[0]).all()
    assert torch.isnan(out.xs[1, 1]).any()


def test_the_error_names_sample_time_step_and_cause(device: torch.device) -> None:
    message = (
        r"1 of 3 samples failed under 'euler-maruyama'. First: sample 41 \(row 1\) became NaN or infinite at "
        r"step 5 of 10, t = 0.6. Likely cause: the drift is not finite there.*throw=False"
    )
    with pytest.raises(NonFiniteError, match=message) as caught:
        solve(wall(), start(device), (0.0, 1.0), steps=10, first_id=40)
    assert caught.value.solution is not None
    assert caught.value.solution.status.tolist() == [0, 1, 0]
    assert isinstance(caught.value, SolveError)


def test_unstable_steps_are_told_from_singular_drifts(device: torch.device) -> None:
    x0 = torch.full((1, 1), 10.0, dtype=F64, device=device)
    cubic = SDE(lambda x, t: -(x**3), lambda x, t: 0.1 * torch.ones_like(x), noise_type="additive")
    with pytest.raises(NonFiniteError, match=r"too long for the drift.*unstable. Next: more steps"):
        solve(cubic, x0, (0.0, 10.0), steps=20)
    assert solve(cubic, x0, (0.0, 1.0), steps=2000).ok
    loud = SDE(lambda x, t: 0 * x, lambda x, t: torch.log(x - 5 * t), noise_type="diagonal")
    with pytest.raises(NonFiniteError, match="the diffusion is not finite there"):
        solve(loud, x0, (0.0, 10.0), steps=20)


@pytest.mark.parametrize("solver", ["rk4", "tsit5", "dop853", "abm4", "kvaerno5"])
def test_a_drift_that_fails_at_a_later_stage_is_named(solver: str, device: torch.device) -> None:
    """At t = 0.25 it is finite, at t = 0.5, the end of the step, it is not: shorter steps would not help."""
    x0 = torch.ones(1, 1, dtype=F64, device=device)
    ends = ODE(lambda x, t: torch.where(t >= 0.5, torch.nan, -x))
    with pytest.raises(SolveError, match=r"step 1 of 4.*the drift is not finite there, though the state is"):
        solve(ends, x0, (0.0, 1.0), solver=solver, steps=4)


def test_a_diffusion_without_a_derivative_is_named(device: torch.device) -> None:
    root = SDE(lambda x, t: 1 - x, lambda x, t: x.abs().sqrt(), noise_type="diagonal")
    x0 = torch.zeros(2, 1, dtype=F64, device=device)
    with pytest.raises(NonFiniteError, match=r"derivative of the diffusion is not finite.*'milstein-free'"):
        solve(root, x0, (0.0, 1.0), solver="milstein", steps=4)
    assert solve(root, x0, (0.0, 1.0), solver="milstein-free", steps=4).ok


def test_generators_in_call_order_cannot_be_asked_again(device: torch.device) -> None:
    with pytest.raises(
        NonFiniteError, match=r"First: sample 1 became NaN or infinite. Likely cause: not known"
    ):
        solve(wall(), start(device), (0.0, 1.0), steps=10, noise=TorchNoise())


def test_adaptive_failures_name_sample_and_time(device: torch.device) -> None:
    x = torch.tensor([[0.1], [2.0]], dtype=F64, device=device)
    square = ODE(lambda x, t: x * x)
    with pytest.raises(
        SolveError, match=r"1 of 2 samples failed under 'rk45'. First: sample 8 \(row 1\).*t = 0.5"
    ):
        solve(square, x, (0.0, 1.0), solver="rk45", first_id=7)
    with pytest.raises(SolveError, match=r"ran out of steps at step 19.*max_steps=20.*kvaerno5"):
        solve(ODE(lambda x, t: -1e4 * x), x, (0.0, 1.0), solver="rk45", max_steps=20)
    jump = ODE(lambda x, t: torch.where(x < 1, 1e300 * torch.ones_like(x), -1e300 * torch.ones_like(x)))
    with pytest.raises(SolveError, match=r"needed steps below rounding.*discontinuity or singularity"):
        solve(jump, x, (0.0, 1.0), solver="rk45", rtol=1e-12, atol=1e-12)
    with pytest.raises(
        NonFiniteError, match=r"First: sample 1 became NaN.*step \d+, t = 0\. .*singular score"
    ):
        solve(ODE(lambda x, t: torch.log(1 - x)), x, (0.0, 0.5), solver="rk45")


def test_a_drift_that_changes_its_shape_or_dtype(device: torch.device) -> None:
    x = torch.ones(3, 2, device=device)
    with pytest.raises(ShapeError, match=r"drift must return shape \(3, 2\), the shape of x, got \(3,\)"):
        solve(ODE(lambda x, t: x.sum(1)), x, (0.0, 1.0), steps=2)
    with pytest.raises(ShapeError, match=r"drift returned torch.float64 for a state of torch.float32"):
        solve(ODE(lambda x, t: x.double()), x, (0.0, 1.0), steps=2)
    with pytest.raises(ShapeError, match=r"drift must return a tensor of shape \(3, 2\), got tuple"):
        solve(ODE(lambda x, t: (x, x)), x, (0.0, 1.0), solver="rk45")
    with pytest.raises(ShapeError, match=r"diffusion must return shape \(3, 2\).*got \(3, 2, 2\)"):
        solve(SDE(lambda x, t: x, lambda x, t: torch.ones(3, 2, 2, device=device)), x, (0.0, 1.0), steps=2)


def test_an_empty_batch(device: torch.device) -> None:
    x = torch.ones(0, 3, dtype=F64, device=device)
    for options in ({"solver": "rk45"}, {"steps": 3}):
        out = solve(ODE(lambda x, t: -x), x, (0.0, 1.0), **options)
        assert (out.x.shape, out.ok) == ((0, 3), True)
    assert solve(geometric(), x, (0.0, 1.0), steps=3).x.shape == (0, 3)


EMPTY = {
    "additive": lambda x, t: torch.ones_like(x),
    "diagonal": lambda x, t: 0.3 * x,
    "scalar": lambda x, t: 0.3 * x,
    "commutative": lambda x, t: torch.stack([0.3 * x, 0.2 * x], -1),
    "general": lambda x, t: torch.stack([0.3 * x, 0.2 * x.sin()], -1),
}


@pytest.mark.parametrize("event", [(), (3,), (2, 3)])
@pytest.mark.parametrize("noise_type", EMPTY)
def test_an_empty_batch_of_any_noise(noise_type: str, event: tuple[int, ...], device: torch.device) -> None:
    """Derivatives, norms and crossings of no samples."""
    x = torch.ones(0, *event, dtype=F64, device=device)
    matrix = noise_type in ("commutative", "general")
    sde = SDE(lambda x, t: -x, EMPTY[noise_type], noise_type=noise_type, noise_dim=2 if matrix else None)
    level = {"event": lambda x, t: (x if x.ndim == 1 else x.flatten(1)[:, 0]) - 0.5}
    implicit = "implicit-milstein" if noise_type != "general" else "implicit-euler"
    for options in ({"solver": implicit}, {"solver": "tamed-euler"}, level):
        assert solve(sde, x, (0.0, 1.0), steps=2, **options).x.shape == x.shape
    assert sde.divergence_ggt(x, torch.zeros((), dtype=F64, device=device)).shape == x.shape
