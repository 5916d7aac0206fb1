"""The door of `solve`: promises of systems, capabilities of solvers, forms of input."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from sdekit.errors import CapabilityError
from sdekit.sde import ODE, SDE, VP, OrnsteinUhlenbeck
from sdekit.solvers import EulerMaruyama, solve
from tests.solvers.problems import geometric

X = torch.ones(2, 3, dtype=torch.float64)
DECAY = ODE(lambda x, t: -x)
GBM = geometric()


def score(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    return -x


def message_of(kind: type[Exception], pattern: str, *args: Any, **options: Any) -> None:
    with pytest.raises(kind, match=pattern):
        solve(*args, **options)


def test_models_are_told_from_systems() -> None:
    class Model:
        process, score = VP(), staticmethod(score)

    message_of(
        TypeError, r"a model was passed. Next: reverse\(model.process, model\)", Model(), X, (1.0, 0.1)
    )


def test_capabilities() -> None:
    """A method that cannot do the noise, or the calculus, says which can."""

    class Diagonal(EulerMaruyama):
        name = "diagonal-only"
        noise_types = ("diagonal",)

    general = SDE(lambda x, t: x, lambda x, t: torch.stack([x, x], -1), noise_type="general", noise_dim=2)
    pattern = (
        r"'diagonal-only' is for diagonal noise, got noise_type='general'.*Next: one of .*'euler-maruyama'"
    )
    message_of(CapabilityError, pattern, general, X, (0, 1), solver=Diagonal(), steps=2)
    assert solve(GBM, X, (0, 1), solver=Diagonal(), steps=2).ok
    other = SDE(lambda x, t: x, lambda x, t: x, sde_type="stratonovich")
    message_of(CapabilityError, "is for ito equations.*Ito form: SDE.p.ito_drift", other, X, (0, 1), steps=2)
    ito = SDE(other.ito_drift, other.diffusion)
    same = SDE(lambda x, t: 1.5 * x, lambda x, t: x)
    torch.testing.assert_close(solve(ito, X, (0, 1), steps=9).x, solve(same, X, (0, 1), steps=9).x)

    class Forward(EulerMaruyama):
        name = "forward-only"

    message_of(
        CapabilityError,
        "'forward-only' is for SDEs, and this system is an ODE.*'rk45'",
        DECAY,
        X,
        (0, 1),
        solver=Forward(),
    )


def test_noise_that_breaks_its_promise() -> None:
    additive = SDE(lambda x, t: -x, lambda x, t: 0.1 + x, noise_type="additive")
    message_of(
        ValueError, "'additive' promises a diffusion independent of the state", additive, X, (0, 1), steps=2
    )
    mixed = SDE(lambda x, t: -x, lambda x, t: x.flip(1), noise_type="diagonal")
    message_of(ValueError, "'diagonal' promises.*noise_type='general'", mixed, X, (0, 1), steps=2)
    outside = SDE(lambda x, t: -x, lambda x, t: torch.from_numpy(0.1 * np.cos(x.numpy())))
    assert solve(outside, X, (0, 1), steps=2).ok  # numpy inside cannot be checked, and runs


def test_numpy_and_python_are_accepted() -> None:
    """Arrays, lists of times, integers and numpy scalars as times."""
    p, a = OrnsteinUhlenbeck(), solve(OrnsteinUhlenbeck(), X, (0.0, 1.0), steps=4).x
    for span in (
        (0, 1),
        [0, 1],
        torch.tensor([0.0, 1.0]),
        np.array([0, 1]),
        (np.float32(0), np.int64(1)),
        np.linspace(0, 1, 5),
    ):
        steps = None if len(span) > 2 else 4
        assert torch.equal(solve(p, X.numpy(), span, steps=steps).x, a)
    out = solve(p, X.numpy(), (0, 1), dt=0.25, save_at=np.array([0.5, 1.0], dtype=np.float32))
    assert torch.equal(out.x, a)
    assert isinstance(out.numpy(), np.ndarray)
    assert out.ts.dtype == torch.float64
    assert torch.equal(out.xs[1], a)


def test_arguments_of_another_kind() -> None:
    message_of(
        ValueError, r"save_at must be a 1-D sequence of times, got 'end'", GBM, X, (0, 1), save_at="end"
    )
    message_of(TypeError, r"callback must be a callable \(step, t, x\), got int", GBM, X, (0, 1), callback=3)
