"""Stochastic Runge-Kutta tableaus: order conditions as equations, what breaks them, error estimates."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch

import sdekit as sk
from sdekit.sde import SDE
from sdekit.sde.classic import SphericalBrownian
from sdekit.solvers import SRA1, SRIW1, Interval, get, solve
from sdekit.solvers import srk_tableaus as tableaus
from sdekit.solvers.problem import Counted
from sdekit.solvers.srk import DiagonalRungeKutta
from tests.solvers.strong import F64, problems, stratonovich, strong_order

PROBLEMS = problems()


def matrix(rows: Any) -> np.ndarray:
    out = np.zeros((len(rows), len(rows)))
    for i, row in enumerate(rows):
        out[i, : len(row)] = row
    return out


def vectors(tab: Any, *names: str) -> list[np.ndarray]:
    return [np.array(getattr(tab, name)) for name in names]


@pytest.mark.parametrize("name", ["SRA1", "SRA3", "SOSRA"])
def test_order_conditions_of_additive_noise(name: str) -> None:
    """From E[(W/2 + H)^2] = h/3 and int g dW = g(t + h) W - g' h (W/2 + H) + ..."""
    tab = getattr(tableaus, name)
    alpha, beta1, beta2, c0, c1 = vectors(tab, "alpha", "beta1", "beta2", "c0", "c1")
    a, b = matrix(tab.a0).sum(1), matrix(tab.b0).sum(1)
    found = [
        alpha.sum(),
        beta1.sum(),
        beta2.sum(),
        alpha @ b,
        alpha @ a,
        alpha @ b**2,
        beta1 @ c1,
        beta2 @ c1,
    ]
    np.testing.assert_allclose(found, [1, 1, 0, 1, 1 / 2, 3 / 2, 1, -1], rtol=0, atol=2e-14)
    np.testing.assert_allclose(c0, a, rtol=0, atol=1e-14)


@pytest.mark.parametrize("name", ["SRIW1", "SRID2", "SOSRI"])
def test_order_conditions_of_diagonal_noise(name: str) -> None:
    """The conditions of strong order 1.5 in Ito form, one line for each elementary differential."""
    tab = getattr(tableaus, name)
    alpha, c0, c1 = vectors(tab, "alpha", "c0", "c1")
    beta = np.array(vectors(tab, "beta1", "beta2", "beta3", "beta4"))
    a0, a1, b0, b1 = (matrix(getattr(tab, key)) for key in ("a0", "a1", "b0", "b1"))
    e = np.ones(len(alpha))
    conditions = {
        "f": (alpha @ e, 1),
        "g": (beta @ e, [1, 0, 0, 0]),
        "g' g": (beta @ b1 @ e, [0, 1, 0, 0]),
        "f' f": (alpha @ a0 @ e, 1 / 2),
        "f' g": (alpha @ b0 @ e, 1),
        "f'' g g": (alpha @ (b0 @ e) ** 2, 3 / 2),
        "g' f": (beta @ a1 @ e, [1, 0, -1, 0]),
        "g'' g g": (beta @ (b1 @ e) ** 2, [1, 0, -1, 2]),
        "g' g' g": (beta @ b1 @ b1 @ e, [0, 0, 0, 1]),
        "g' f' g": (beta[0] @ a1 @ b0 @ e / 2 + beta[2] @ a1 @ b0 @ e / 3, 0),
        "drift in time": (c0, a0 @ e),
        "noise in time": (c1, a1 @ e),
    }
    for differential, (found, expected) in conditions.items():
        np.testing.assert_allclose(found, expected, rtol=0, atol=2e-14, err_msg=differential)


def altered(base: Any, **weights: Any) -> Any:
    """The method with other coefficients: a mutation."""

    @dataclass(frozen=True)
    class Altered(base):
        name = "altered"
        tableau = replace(base.tableau, **weights)

    return Altered()


@pytest.mark.parametrize(
    "weights",
    [
        {"beta2": (1.0, -4 / 3, 1 / 3, 0.0)},
        {"beta3": (-2.0, 4 / 3, 2 / 3, 0.0)},
        {"beta4": (2.0, -5 / 3, 2 / 3, -1.0)},
        {"b1": ((), (-1 / 2,), (-1.0, 0.0), (-5.0, 3.0, 1 / 2))},
    ],
    ids=lambda w: next(iter(w)),
)
def test_a_wrong_sign_lowers_the_order(weights: Any) -> None:
    assert strong_order("sriw1", PROBLEMS["geometric"]).order > 1.4
    assert strong_order(altered(SRIW1, **weights), PROBLEMS["geometric"]).order < 1.2


def test_noise_in_time_sees_what_constant_noise_does_not() -> None:
    """beta2 of the other sign, or c1 the other way: the same method where the noise is constant."""
    ou = sk.OrnsteinUhlenbeck(theta=1.0, mu=0.5, sigma=0.8)
    x0 = torch.zeros(5, 1, dtype=F64)
    for wrong in (altered(SRA1, beta2=(1.0, -1.0)), altered(SRA1, c1=(0.0, 1.0))):
        a, b = (solve(ou, x0, (0, 1), steps=16, solver=s).x for s in ("sra1", wrong))
        torch.testing.assert_close(a, b, rtol=0, atol=1e-15)
        assert strong_order(wrong, PROBLEMS["decaying"]).order < 1.2
    for right in ("sra1", "sriw1", "sosri"):
        assert strong_order(right, PROBLEMS["decaying"]).order > 1.9


# -- error estimates -------------------------------------------------------------------------------------


def sizes(name: str, sde: SDE, x: torch.Tensor, lengths: tuple[float, ...]) -> list[float]:
    """RMS of the error estimate over steps of each length from x, with the same unit normals."""
    method, system = get(name, "sde"), Counted(sde)
    like = x.new_empty(sde.noise_shape(x))
    draws = [sk.Philox(1).normal(j, like, torch.arange(len(x))) for j in range(2)]
    found = []
    for h in lengths:
        W, H = draws[0] * math.sqrt(h), draws[1] * math.sqrt(h / 12)
        times = tuple(torch.tensor(0.3 + c * h, dtype=F64) for c in method.nodes)
        attempt = method.attempt(system, x, Interval(times, h, W, H), method.init(system, x, times[0]))
        found.append(float(attempt.error.square().mean().sqrt()))
    return found


@pytest.mark.parametrize(
    ("name", "problem", "order"),
    [
        *(("sra1", "decaying", 1.5), ("sra3", "decaying", 1.5), ("sosra", "decaying", 1.5)),
        *(("shark", "decaying", 1.5), ("sriw1", "tanh", 1.5), ("sosri", "tanh", 1.5)),
        *(("srk", "tanh", 1.5), ("spark", "tanh", 1.5)),
    ],
)
def test_size_of_the_error_estimate(name: str, problem: str, order: float) -> None:
    known = PROBLEMS[problem]
    sde = stratonovich(known.system) if name == "spark" else known.system
    coarse, fine = sizes(name, sde, torch.full((500, 1), known.x0[0], dtype=F64), (1e-3, 1e-5))
    assert abs(math.log10(coarse / fine) / 2 - order) < 0.1
    assert get(name, "sde").error_order <= order


def test_the_estimate_sees_noise_that_does_not_commute() -> None:
    """Of size h, not h^(3/2), where a Levy area is missing."""
    x = torch.nn.functional.normalize(torch.ones(500, 3, dtype=F64))
    coarse, fine = sizes("spark", SphericalBrownian(), x, (1e-3, 1e-5))
    assert abs(math.log10(coarse / fine) / 2 - get("spark", "sde").error_order) < 0.1


# -- one name for elementwise noise -----------------------------------------------------------------------


def test_srk_is_one_of_two_methods() -> None:
    class SRID2(DiagonalRungeKutta):
        name = "by hand"
        tableau = tableaus.SRID2

    x0 = torch.linspace(0.1, 0.5, 4, dtype=F64)[:, None]
    for known, other in ((PROBLEMS["decaying"], SRA1()), (PROBLEMS["tanh"], SRID2())):
        a, b = (solve(known.system, x0, (0, 1), steps=7, solver=s).x for s in ("srk", other))
        torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_calls_of_the_fields() -> None:
    """No stage is evaluated that has no weight."""
    counts = {"sra1": (2, 2), "sra3": (3, 2), "sosra": (3, 3), "shark": (2, 2)}
    counts |= {"sriw1": (2, 4), "sosri": (4, 4)}
    for name, (drifts, diffusions) in counts.items():
        calls = []

        def noise(x: torch.Tensor, t: Any, calls: list[int] = calls) -> torch.Tensor:
            calls.append(1)
            return 0.3 + 0.1 * t + 0 * x

        kind = "diagonal" if name in ("sriw1", "sosri") else "additive"
        sde = SDE(lambda x, t: -x, noise, noise_type=kind)
        method, x = get(name, "sde"), torch.ones(2, 1, dtype=F64)
        system, times = Counted(sde), tuple(torch.tensor(c) for c in method.nodes)
        method.step(system, x, Interval(times, 1.0, x, x), ())
        assert (system.calls, len(calls)) == (drifts, diffusions), name


@pytest.mark.parametrize("name", ["sra1", "sra3", "sosra", "shark"])
def test_a_constant_matrix_is_additive_noise(name: str) -> None:
    """A diagonal one gives the run of the same elementwise noise; one in numpy is taken on trust."""
    gains = torch.tensor([0.3, 0.5], dtype=F64)

    def in_numpy(x: torch.Tensor, t: Any) -> torch.Tensor:
        return torch.from_numpy(np.broadcast_to(np.diag(gains.numpy()), (*x.numpy().shape, 2)).copy())

    systems = (
        SDE(lambda x, t: -x, lambda x, t: gains.expand_as(x), noise_type="additive"),
        sk.LinearSDE(-torch.eye(2), L=torch.diag(gains)),
        SDE(lambda x, t: -x, in_numpy, noise_type="commutative", noise_dim=2),
    )
    x0 = torch.ones(3, 2, dtype=F64)
    first, *others = (solve(s, x0, (0, 1), solver=name, steps=5, probe=False).x for s in systems)
    for other in others:
        torch.testing.assert_close(other, first, rtol=1e-14, atol=1e-15)
