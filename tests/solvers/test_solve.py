"""The door and the loop of `solve`: bad input, saved times, failures, gradients, reports."""

from __future__ import annotations

import math
import sys
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sdekit import solvers as solvers_module
from sdekit.errors import (
    CapabilityError,
    DirectionError,
    NonFiniteError,
    SdekitError,
    ShapeError,
    SolveError,
    UnknownNameError,
)
from sdekit.noise import Philox, TorchNoise
from sdekit.sde import ODE, SDE, VP, probability_flow, reverse
from sdekit.solution import Status
from sdekit.solvers import DormandPrince, EulerMaruyama, Solver, get, register, solve, solvers
from tests.solvers.problems import GaussianFlow, geometric

X0 = torch.ones(3, 2)
DECAY = ODE(lambda x, t: -x)


def backward() -> Any:
    law = GaussianFlow(torch.device("cpu"))
    return reverse(law.process, law.score)


def flow() -> Any:
    law = GaussianFlow(torch.device("cpu"))
    return probability_flow(law.process, law.score)


STRATONOVICH = SDE(lambda x, t: x, lambda x, t: x, sde_type="stratonovich")

BAD: list[tuple[str, type[Exception], str, Any]] = [
    (
        "integers",
        ShapeError,
        r"must be floating, got dtype torch.int64",
        lambda: solve(DECAY, X0.long(), (0, 1)),
    ),
    (
        "nan",
        NonFiniteError,
        r"NaN or infinity in 1 of 3 .* sample 0",
        lambda: solve(DECAY, X0 / torch.tensor([[0.0], [1], [1]]), (0, 1)),
    ),
    ("0-d", ShapeError, r"must have shape \(B, \*event\)", lambda: solve(DECAY, torch.tensor(1.0), (0, 1))),
    ("swapped", ValueError, r"x0 and span|Likely cause: they are swapped", lambda: solve(DECAY, (0, 1), X0)),
    (
        "a number",
        ValueError,
        r"span must be a pair \(t0, t1\).*Next: span=\(0.0, 2.0\)",
        lambda: solve(DECAY, X0, 2.0),
    ),
    ("text", ValueError, r"span must be a pair", lambda: solve(DECAY, X0, "01")),
    ("words", ValueError, r"span must be a pair", lambda: solve(DECAY, X0, ("a", "b"))),
    ("one", ValueError, r"span must be a pair.*shape \(1,\)", lambda: solve(DECAY, X0, (1.0,))),
    ("empty", ValueError, r"span \(1, 1\) is empty", lambda: solve(DECAY, X0, (1.0, 1.0))),
    ("infinite", ValueError, r"span must be finite", lambda: solve(DECAY, X0, (0.0, math.inf))),
    ("zigzag", ValueError, r"strictly monotone", lambda: solve(DECAY, X0, (0.0, 0.5, 0.4, 1.0))),
    (
        "forward SDE backwards",
        DirectionError,
        r"cannot be solved from t = 1 down to 0.*reverse\(process, score\)",
        lambda: solve(geometric(), X0, (1, 0)),
    ),
    (
        "reverse forwards",
        DirectionError,
        r"runs from noise to data.*span=\(1, 0.001\)",
        lambda: solve(backward(), X0, (1e-3, 1)),
    ),
    (
        "negative time",
        ValueError,
        r"span \(0.5, -0.1\) leaves the times.*negative",
        lambda: solve(backward(), X0, (0.5, -0.1)),
    ),
    ("negative flow", ValueError, r"leaves the times at which VP", lambda: solve(flow(), X0, (0.5, -0.1))),
    (
        "negative SDE",
        ValueError,
        r"leaves the times.*Next: .*SDE\(..., t_min=-1\)",
        lambda: solve(geometric(), X0, (-1, 1)),
    ),
    ("step index", ValueError, r"leaves the times.*step index", lambda: solve(VP(), X0, (0, 1000))),
    (
        "no steps",
        ValueError,
        r"steps must be a whole number >= 1, got 0",
        lambda: solve(DECAY, X0, (0, 1), steps=0),
    ),
    (
        "half steps",
        ValueError,
        r"steps must be a whole number >= 1, got 2.5",
        lambda: solve(DECAY, X0, (0, 1), steps=2.5),
    ),
    (
        "both",
        ValueError,
        r"steps=10 and dt=0.1 were both given",
        lambda: solve(DECAY, X0, (0, 1), steps=10, dt=0.1),
    ),
    (
        "negative dt",
        ValueError,
        r"dt must be finite and > 0 in either direction",
        lambda: solve(DECAY, X0, (1, 0), dt=-0.1),
    ),
    (
        "grid and steps",
        ValueError,
        r"span holds 3 nodes already",
        lambda: solve(DECAY, X0, (0, 0.3, 1), steps=2),
    ),
    (
        "name",
        UnknownNameError,
        r"unknown solver 'euler-maruyana'. Nearest: 'euler-maruyama'",
        lambda: solve(DECAY, X0, (0, 1), solver="euler-maruyana"),
    ),
    (
        "external name",
        UnknownNameError,
        r"unknown torchdiffeq method 'dopri6'. Nearest: 'dopri",
        lambda: solve(DECAY, X0, (0, 1), solver="torchdiffeq:dopri6"),
    ),
    (
        "scipy name",
        UnknownNameError,
        r"unknown scipy method 'RK46'. Nearest: 'RK45'",
        lambda: solve(DECAY, X0, (0, 1), solver="scipy:RK46"),
    ),
    (
        "no solver",
        TypeError,
        r"solver must be a name or a Solver, got int",
        lambda: solve(DECAY, X0, (0, 1), solver=5),
    ),
    (
        "ODE solver",
        CapabilityError,
        r"'rk45' solves ODEs only.*'euler-maruyama'.*probability_flow",
        lambda: solve(geometric(), X0, (0, 1), solver="rk45"),
    ),
    (
        "calculus",
        CapabilityError,
        r"for ito equations, got sde_type='stratonovich'.*ito_drift",
        lambda: solve(STRATONOVICH, X0, (0, 1)),
    ),
    (
        "tolerances",
        ValueError,
        r"have no effect: 'heun' runs at fixed steps",
        lambda: solve(DECAY, X0, (0, 1), solver="heun", rtol=1e-3),
    ),
    (
        "steps and rtol",
        ValueError,
        r"have no effect",
        lambda: solve(DECAY, X0, (0, 1), solver="rk45", steps=3, rtol=1e-3),
    ),
    (
        "rounding",
        ValueError,
        r"rtol=1e-09 is below the rounding of torch.float32",
        lambda: solve(DECAY, X0, (0, 1), solver="rk45", rtol=1e-9),
    ),
    (
        "bfloat16",
        ValueError,
        r"below the rounding of torch.bfloat16",
        lambda: solve(DECAY, X0.bfloat16(), (0, 1), solver="rk45"),
    ),
    (
        "negative rtol",
        ValueError,
        r"rtol and atol must be >= 0",
        lambda: solve(DECAY, X0, (0, 1), solver="rk45", rtol=-1),
    ),
    (
        "save outside",
        ValueError,
        r"save_at must lie within the span \(0, 1\)",
        lambda: solve(DECAY, X0, (0, 1), save_at=[0.5, 1.5]),
    ),
    (
        "save order",
        ValueError,
        r"save_at must be strictly monotone",
        lambda: solve(DECAY, X0, (0, 1), save_at=[0.5, 0.2]),
    ),
    (
        "save scalar",
        ValueError,
        r"save_at must be a 1-D sequence",
        lambda: solve(DECAY, X0, (0, 1), save_at=0.5),
    ),
    (
        "gradient",
        UnknownNameError,
        r"unknown gradient 'forward'",
        lambda: solve(DECAY, X0, (0, 1), gradient="forward"),
    ),
    (
        "numba",
        ValueError,
        r"'numba' cannot run this: ODE was not made by sdekit.compiled",
        lambda: solve(DECAY, X0, (0, 1), backend="numba"),
    ),
    (
        "backend",
        UnknownNameError,
        r"unknown backend 'eagre'. Nearest: 'eager'",
        lambda: solve(DECAY, X0, (0, 1), backend="eagre"),
    ),
    (
        "class",
        TypeError,
        r"the class itself was passed. Next: call it, VP\(...\)",
        lambda: solve(VP, X0, (0, 1)),
    ),
    (
        "function",
        TypeError,
        r"Next: ODE\(fn\) for dx/dt = fn\(x, t\)",
        lambda: solve(lambda x, t: x, X0, (0, 1)),
    ),
    (
        "order of arguments",
        TypeError,
        r"system must be an SDE or an ODE, got Tensor",
        lambda: solve(X0, DECAY, (0, 1)),
    ),
    ("noise", TypeError, r"noise must be a Noise", lambda: solve(geometric(), X0, (0, 1), noise=3)),
    (
        "drift shape",
        ShapeError,
        r"drift must return shape \(3, 2\)",
        lambda: solve(ODE(lambda x, t: x.sum(1)), X0, (0, 1)),
    ),
    (
        "drift dtype",
        ShapeError,
        r"drift returned torch.float64 for a state of torch.float32",
        lambda: solve(ODE(lambda x, t: x.double()), X0, (0, 1)),
    ),
    (
        "diffusion shape",
        ShapeError,
        r"diffusion must return shape \(3, 2\)",
        lambda: solve(SDE(lambda x, t: x, lambda x, t: x[..., None] * x[..., None, :]), X0, (0, 1)),
    ),
    (
        "diffusion dtype",
        ShapeError,
        r"first step led from torch.float32 \(3, 2\) to torch.float64",
        lambda: solve(SDE(lambda x, t: x, lambda x, t: x.double()), X0, (0, 1)),
    ),
    (
        "max_steps",
        ValueError,
        r"max_steps must be a whole number",
        lambda: solve(DECAY, X0, (0, 1), max_steps=0),
    ),
    (
        "checkpointed generator",
        ValueError,
        r"gradient='checkpoint' draws the noise again",
        lambda: solve(geometric(), X0, (0, 1), noise=TorchNoise(), gradient="checkpoint"),
    ),
]


@pytest.mark.parametrize(("error", "message", "call"), [b[1:] for b in BAD], ids=[b[0] for b in BAD])
def test_bad_input(error: type[Exception], message: str, call: Any) -> None:
    with pytest.raises(error, match=message):
        call()


def test_noise_types_are_checked() -> None:
    @register
    class Additive(EulerMaruyama):
        name = "only-additive"
        noise_types = ("additive",)

    try:
        with pytest.raises(
            CapabilityError, match=r"for additive noise, got noise_type='diagonal'.*'euler-maruyama'"
        ):
            solve(geometric(), X0, (0, 1), solver="only-additive")
        with pytest.raises(CapabilityError, match=r"is for SDEs, and this system is an ODE.*'rk45'"):
            solve(DECAY, X0, (0, 1), solver="only-additive")
    finally:
        from sdekit.solvers.base import _REGISTRY

        del _REGISTRY["only-additive", "sde"]


def test_table_and_names() -> None:
    """The package is callable; every name in its table resolves, and its declared order is shown."""
    table = solvers_module()  # type: ignore[operator]
    assert table == solvers()
    assert {"euler-maruyama", "euler", "heun", "rk45", "torchdiffeq:dopri5", "scipy:RK45"} <= {
        row.name for row in table
    }
    for row in table:
        assert isinstance(get(row.name), Solver)
        assert row.reference
        assert row.name in str(table)
    assert get(DormandPrince) == DormandPrince() == get("rk45")
    assert sys.modules["sdekit.solvers"] is solvers_module


# Grids and saved times.


def test_dt_and_steps(device: torch.device) -> None:
    x = X0.double().to(device)
    seen: list[float] = []
    solve(DECAY, x, (0.0, 1.0), dt=0.3, callback=lambda k, t, x: seen.append(t))
    assert seen == pytest.approx([0.3, 0.6, 0.9, 1.0])
    assert torch.equal(solve(DECAY, x, (0, 1), dt=0.1).x, solve(DECAY, x, (0, 1), steps=10).x)
    assert solve(DECAY, x, (1, 0), dt=0.1).stats.steps == 10
    assert solve(DECAY, x, (0, 1), dt=7.0).stats.steps == 1
    assert solve(DECAY, x, (0, 1)).stats.steps == 1000
    assert torch.equal(solve(DECAY, x, np.linspace(0, 1, 11)).x, solve(DECAY, x, (0, 1), steps=10).x)
    assert torch.equal(
        solve(DECAY, x, torch.tensor([0.0, 1.0]), steps=3).x, solve(DECAY, x, (0, 1), steps=3).x
    )


@pytest.mark.parametrize("kind", [torch.float32, torch.float64])
def test_saving_at_nodes_changes_nothing(kind: torch.dtype, device: torch.device) -> None:
    x, at = X0.double().to(device), torch.linspace(0, 1, 11, dtype=kind)
    plain, saved = (solve(geometric(), x, (0, 1), steps=100, save_at=s) for s in (None, at))
    assert plain.xs is None
    assert plain.ts.tolist() == [0.0, 1.0]
    assert torch.equal(plain.x, saved.x)
    assert saved.stats.steps == 100
    assert saved.xs.shape == (11, 3, 2)
    assert torch.equal(saved.xs[0], x)
    assert torch.equal(saved.xs[-1], saved.x)
    half = solve(geometric(), x, (0, 0.5), steps=50).x
    torch.testing.assert_close(saved.xs[5], half, rtol=1e-13, atol=0)


def test_saving_between_nodes_splits_a_step(device: torch.device) -> None:
    x = X0.double().to(device)
    out = solve(DECAY, x, (0, 1), steps=4, solver="heun", save_at=[0.3, 0.75])
    assert out.stats.steps == 5
    assert torch.equal(out.x, solve(DECAY, x, (0, 0.25, 0.3, 0.5, 0.75, 1), solver="heun").x)
    torch.testing.assert_close(out.xs[0], x * math.exp(-0.3), rtol=5e-3, atol=0)


def test_numpy_in_and_out() -> None:
    out = solve(
        DECAY,
        np.ones((3, 2)),
        np.array([0.0, 1.0]),
        solver="rk45",
        rtol=1e-9,
        atol=1e-9,
        save_at=np.array([0.5]),
    )
    assert out.numpy().dtype == np.float64
    np.testing.assert_allclose(out.numpy(), np.exp(-1.0) * np.ones((3, 2)), rtol=1e-8)


def test_times_are_tensors_of_the_state(device: torch.device, dtype: torch.dtype) -> None:
    seen: list[Tensor] = []

    def drift(x: Tensor, t: Tensor) -> Tensor:
        seen.append(t)
        return -x

    x = X0.to(device=device, dtype=dtype)
    solve(ODE(drift), x, (0, 1), solver="heun", steps=2)
    assert all(t.shape == () and t.dtype == dtype and t.device == x.device for t in seen)
    assert [float(t) for t in seen] == [0.0, 0.5, 0.5, 1.0]


def test_draw_k_belongs_to_step_k_and_first_id_to_row_zero(device: torch.device) -> None:
    x = torch.zeros(2, 1, dtype=torch.float64, device=device)
    sde = SDE(lambda x, t: 0 * x, lambda x, t: torch.ones_like(x), noise_type="additive")
    out = solve(sde, x, (0.0, 0.25, 1.0), seed=3, first_id=7, save_at=[0.25])
    ids = torch.tensor([7, 8], device=device)
    xi = [Philox(3).normal(k, x, ids) for k in (0, 1)]
    assert torch.equal(out.xs[0], xi[0] * 0.5)
    assert torch.equal(out.x, xi[0] * 0.5 + xi[1] * math.sqrt(0.75))


# Failures.


def explode(x: Tensor, t: Tensor) -> Tensor:
    return torch.where(x > 5, torch.full_like(x, math.nan), torch.ones_like(x))


@pytest.mark.parametrize("system", ["ode", "sde"])
def test_one_bad_path_leaves_the_others(system: str, device: torch.device) -> None:
    x = torch.tensor([[0.0], [4.45], [1.0]], dtype=torch.float64, device=device)
    made = ODE(explode) if system == "ode" else SDE(explode, lambda x, t: 1e-9 + 0 * x, noise_type="additive")
    out = solve(made, x, (0.0, 1.0), steps=10, throw=False, first_id=20, save_at=[0.4, 1.0])
    assert out.status.tolist() == [Status.OK, Status.NON_FINITE, Status.OK]
    assert out.failed_step.tolist() == [-1, 6, -1]
    assert float(out.failed_at[1]) == pytest.approx(0.7)
    assert out.failed_at.isnan().tolist() == [True, False, True]
    assert not out.ok
    assert torch.isfinite(out.xs[0]).all()
    good = solve(made, x[::2], (0.0, 1.0), steps=10, save_at=[0.4, 1.0])
    torch.testing.assert_close(out.x[::2], good.x, rtol=0, atol=1e-8)
    with pytest.raises(
        NonFiniteError,
        match=r"1 of 3 samples .* sample 21 \(row 1\) became NaN or infinite at step 6 of 10, t = 0.7. "
        r"Likely cause: the drift is not finite there, though the state is",
    ) as caught:
        solve(made, x, (0.0, 1.0), steps=10, first_id=20)
    assert isinstance(caught.value, SdekitError)
    assert caught.value.solution is not None
    assert caught.value.solution.status.tolist() == [0, 1, 0]


def test_causes_are_named(device: torch.device) -> None:
    x = X0.to(device)
    with pytest.raises(
        NonFiniteError, match=r"sample 0 .* step .* is too long for the drift .* unstable. Next: more steps"
    ):
        solve(ODE(lambda x, t: -(x**3) * 1e3), x, (0, 1), steps=20)
    with pytest.raises(
        NonFiniteError, match=r"at step 5 of 10, t = 0.6. Likely cause: the diffusion is not finite"
    ):
        solve(SDE(lambda x, t: x, lambda x, t: x / (t < 0.45)), x, (0, 1), steps=10)
    with pytest.raises(NonFiniteError, match=r"cannot be drawn again"):
        solve(SDE(explode, lambda x, t: x), 6 * x, (0, 1), steps=2, noise=TorchNoise(torch.Generator(device)))
    with pytest.raises(
        SolveError,
        match=r"ran out of steps at step 19, t = .*max_steps=20 were not enough|max_steps=20 steps",
    ) as caught:
        solve(ODE(lambda x, t: -1e4 * x), x, (0, 1), solver="rk45", max_steps=20)
    assert not isinstance(caught.value, NonFiniteError)
    with pytest.raises(SolveError, match=r"needed steps below rounding .* a discontinuity or singularity"):
        solve(
            ODE(lambda x, t: 1 / (0.5 - t).abs().reshape(-1, 1) + 0 * x),
            x.double(),
            (0, 1),
            solver="rk45",
            max_steps=10**5,
        )


# Reports and memory.


def test_progress_and_callback(capsys: pytest.CaptureFixture[str], device: torch.device) -> None:
    seen: list[tuple[int, Any]] = []
    for solver, steps in (("euler", 5), ("rk45", None), ("scipy:RK45", None), ("torchdiffeq:dopri5", None)):
        seen.clear()
        out = solve(
            DECAY,
            X0.to(device),
            (1, 0),
            solver=solver,
            steps=steps,
            progress=True,
            callback=lambda k, t, x: seen.append((k, t)),
        )
        assert [k for k, _ in seen] == list(range(1, len(seen) + 1))
        assert len(seen) == (5 if steps else out.stats.steps if solver == "rk45" else out.stats.accepted)
    assert "100%" in capsys.readouterr().err


def test_a_checkpointed_step_is_reported_once(device: torch.device) -> None:
    """Not again when the backward pass runs it again."""
    x0, ticks = X0.to(device).clone().requires_grad_(), []
    out = solve(DECAY, x0, (0, 1), steps=9, gradient="checkpoint", callback=lambda k, t, x: ticks.append(k))
    out.x.sum().backward()
    assert ticks == list(range(1, 10))


def test_state_given_is_not_overwritten(device: torch.device) -> None:
    x0 = X0.to(device)
    for solver in ("euler", "heun", "rk45"):
        out = solve(ODE(lambda x, t: 0 * x), x0, (0, 1), solver=solver)
        assert out.x.data_ptr() != x0.data_ptr()
    assert torch.equal(x0, X0.to(device))


@pytest.mark.slow
def test_a_million_steps_in_constant_memory(device: torch.device) -> None:
    """Resident memory between step 100,000 and step 1,000,000 grows by less than 8 MB."""
    import resource

    peak: dict[int, float] = {}

    def look(k: int, t: float, x: Tensor) -> None:
        if k in (100_000, 1_000_000):
            peak[k] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

    sde = SDE(lambda x, t: -x, lambda x, t: torch.ones_like(x), noise_type="additive")
    out = solve(
        sde, X0.to(device), (0, 1000), steps=1_000_000, callback=look, save_at=np.linspace(0, 1000, 1001)
    )
    assert out.ok
    assert out.xs is not None
    assert peak[1_000_000] - peak[100_000] < 8
    assert abs(float(out.xs[10:].var()) - 0.5) < 0.1  # stationary variance 1/2
