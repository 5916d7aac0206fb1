"""torchdiffeq and scipy by name: every method, what they count, how they fail."""

from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest
import torch

from sdekit.errors import NonFiniteError, SolveError
from sdekit.sde import ODE
from sdekit.solution import Status
from sdekit.solvers import Scipy, TorchDiffEq, solve
from sdekit.solvers.external import SCIPY, TORCHDIFFEQ, external_names
from tests.solvers.problems import nonlinear, slope

DECAY = ODE(lambda x, t: -x)


def test_names_are_those_of_the_libraries() -> None:
    import scipy.integrate
    from torchdiffeq._impl.odeint import SOLVERS

    assert set(TORCHDIFFEQ) == set(SOLVERS) - {"fixed_adams", "scipy_solver"}  # older names of what is here
    assert all(issubclass(getattr(scipy.integrate, name), scipy.integrate.OdeSolver) for name in SCIPY)


@pytest.mark.parametrize("span", [(0.0, 2.0), (2.0, 0.0)])
@pytest.mark.parametrize("name", external_names())
def test_every_method(name: str, span: tuple[float, float], device: torch.device) -> None:
    ode, exact = nonlinear()
    x = exact(span[0]).to(device)
    method = name.partition(":")[2]
    adaptive = name.startswith("scipy") or TORCHDIFFEQ[method][1]
    options = {"rtol": 1e-6, "atol": 1e-7} if adaptive else {"steps": 200}
    out = solve(ode, x, span, solver=name, save_at=[span[0], 1.0], **options)
    assert torch.equal(out.xs[0], x)
    tolerance = {"euler": 1e-1, "adaptive_heun": 1e-2, "fehlberg2": 1e-2}.get(method, 5e-4)
    torch.testing.assert_close(out.x, exact(span[1]).to(device), rtol=0, atol=tolerance)
    torch.testing.assert_close(out.xs[1], exact(1.0).to(device), rtol=0, atol=tolerance)
    assert out.stats.nfe >= out.stats.steps > 0
    assert out.stats.steps == out.stats.accepted + out.stats.rejected


@pytest.mark.parametrize("method", [m for m, (order, adaptive) in TORCHDIFFEQ.items() if not adaptive])
def test_declared_orders(method: str, device: torch.device) -> None:
    """The fixed-step methods at the order in the table."""
    if "adams" in method:
        pytest.skip("starts at order 3, iterates to a tolerance")
    ode, exact = nonlinear()
    solver = TorchDiffEq(method)
    errors = [
        float(
            (solve(ode, exact(0.0).to(device), (0.0, 2.0), solver=solver, steps=n).x - exact(2.0).to(device))
            .abs()
            .max()
        )
        for n in (320, 640)
    ]
    assert slope(errors) > solver.order - 0.1


def test_refusals(device: torch.device) -> None:
    x = torch.ones(2, 1, dtype=torch.float64, device=device)
    with pytest.raises(ValueError, match="chooses its own steps"):
        solve(DECAY, x, (0, 1), solver="scipy:RK45", steps=5)
    with pytest.raises(ValueError, match="chooses its own steps"):
        solve(DECAY, x, (0, 1), solver="torchdiffeq:dopri5", dt=0.1)
    with pytest.raises(ValueError, match="equal steps only"):
        solve(DECAY, x, (0, 1), solver="torchdiffeq:explicit_adams", steps=5, save_at=[0.33])
    with pytest.raises(ValueError, match="gives no gradients"):
        solve(DECAY, x.clone().requires_grad_(), (0, 1), solver="scipy:RK45")
    with pytest.raises(ValueError, match="no gradient='checkpoint'"):
        solve(DECAY, x, (0, 1), solver="torchdiffeq:dopri5", gradient="checkpoint")


def test_gradient_through_torchdiffeq(device: torch.device) -> None:
    """x(1) = x0 exp(-k): d/dk = -x."""
    k = torch.tensor(1.5, dtype=torch.float64, device=device, requires_grad=True)
    x0 = torch.ones(3, 2, dtype=torch.float64, device=device)
    for name, options in (("dopri5", {"rtol": 1e-9, "atol": 1e-9}), ("rk4", {"steps": 50})):
        decay = ODE(lambda x, t: -k * x)
        out = solve(
            decay, x0, (0, 1), solver=f"torchdiffeq:{name}", gradient="backprop", save_at=[0.5], **options
        )
        (by_k,) = torch.autograd.grad(out.x.sum() + out.xs.sum(), k)
        assert float(by_k) == pytest.approx(-6 * math.exp(-1.5) - 3 * math.exp(-0.75), rel=1e-6)


@pytest.mark.parametrize("name", ["torchdiffeq:dopri5", "scipy:RK45", "scipy:Radau", "scipy:LSODA"])
def test_failures_have_a_status(name: str, device: torch.device) -> None:
    x = torch.tensor([[0.1], [2.0]], dtype=torch.float64, device=device)
    with pytest.raises(SolveError, match=r"of 2 samples failed.*one sample stops all|became NaN"):
        solve(ODE(lambda x, t: x * x), x, (0, 1), solver=name, max_steps=3000)
    with pytest.raises(NonFiniteError, match=r"not finite|underflow|non-finite"):
        solve(ODE(lambda x, t: torch.log(1 - x)), x, (0, 0.5), solver=name)
    out = solve(
        ODE(lambda x, t: 1e3 * torch.cos(1e3 * t) + 0 * x), x, (0, 9), solver=name, max_steps=30, throw=False
    )
    assert out.status.tolist() == [Status.MAX_STEPS] * 2
    assert torch.isfinite(out.x).all()


@pytest.mark.parametrize("name", ["torchdiffeq:dopri5", "torchdiffeq:rk4", "scipy:RK45", "scipy:LSODA"])
def test_no_evaluation_outside_the_span(name: str, device: torch.device) -> None:
    seen: list[float] = []

    def drift(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        seen.append(float(t))
        assert t.dtype == x.dtype
        return -x

    x = torch.ones(2, 3, device=device)
    for span in ((0.0, 0.7), (0.7, 0.0)):
        out = solve(ODE(drift), x, span, solver=name, steps=5 if "rk4" in name else None)
        assert out.x.dtype == x.dtype
        torch.testing.assert_close(out.x, x * math.exp(span[0] - span[1]), rtol=1e-3, atol=0)
    assert np.float32(0.0) <= min(seen)
    assert max(seen) <= np.float32(0.7)
    assert Scipy().adaptive


def test_libraries_are_imported_at_first_use() -> None:
    code = (
        "import sys; import sdekit.solvers as s; s(); "
        "print([m for m in ('scipy', 'torchdiffeq', 'numba', 'tqdm.auto', 'matplotlib') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
