"""Langevin splittings: stationary laws in closed form, order 2, one force a step. Nothing here is random but
one Monte Carlo check, 5 standard errors wide (false alarm 6e-7) at a fixed seed."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy.linalg import solve_discrete_lyapunov
from torch import Tensor

from sdekit.certify import certify_order
from sdekit.errors import CapabilityError, ShapeError
from sdekit.sde import SDE, HarmonicLangevin, Langevin, UnderdampedLangevin, reverse
from sdekit.solvers import ABOBA, BAOAB, OABAO, OBABO, Interval, Solver, Splitting, solve
from sdekit.solvers.problem import Counted
from tests.solvers.enumeration import one_step

METHODS = (BAOAB(), ABOBA(), OBABO(), OABAO())
IDS = [s.name for s in METHODS]


def affine(solver: Solver, law: HarmonicLangevin, h: float) -> tuple[np.ndarray, np.ndarray]:
    """M (2, 2) and F (2, r) of the step x' = M x + F xi, xi standard normals."""
    normals = solver.normals
    rows = torch.zeros(2 + normals, 2, dtype=torch.float64)
    rows[0, 0] = rows[1, 1] = 1.0
    w, area = torch.zeros_like(rows), torch.zeros_like(rows)
    w[2, 1] = math.sqrt(h)
    if normals == 2:
        area[3, 1] = math.sqrt(h / 12)
    out = one_step(solver, law, rows, 0.0, h, w, area if normals == 2 else None).numpy()
    return out[:2].T, out[2:].T


def stationary(solver: Solver, omega: float, friction: float, heat: float, h: float) -> np.ndarray:
    m, f = affine(solver, HarmonicLangevin(omega, friction, heat), h)
    return np.asarray(solve_discrete_lyapunov(m, f @ f.T))


@pytest.mark.parametrize("h", [0.05, 0.7, 1.2])
@pytest.mark.parametrize("friction", [0.3, 2.0, 50.0])
def test_stationary_laws_on_a_harmonic_potential(friction: float, h: float) -> None:
    """Of the map itself, by the discrete Lyapunov equation, at any stable step."""
    omega, heat = 1.5, 0.6
    bend = 1 - (omega * h) ** 2 / 4
    q, v = heat / omega**2, heat
    expected = {
        "baoab": (q, v * bend),
        "aboba": (q, v / bend),
        "obabo": (q / bend, v),
        "oabao": (q * bend, v),
    }
    for solver in METHODS:
        found = stationary(solver, omega, friction, heat, h)
        np.testing.assert_allclose(found, np.diag(expected[solver.name]), rtol=1e-10, atol=1e-11)


def test_another_bath_has_another_law() -> None:
    """Negative control: half the noise, a quarter of the stationary variance."""
    m, f = affine(BAOAB(), HarmonicLangevin(1.5, 0.8, 0.6), 0.5)
    assert solve_discrete_lyapunov(m, 0.25 * f @ f.T)[0, 0] == pytest.approx(0.25 * 0.6 / 1.5**2)


@pytest.mark.parametrize("solver", METHODS, ids=IDS)
def test_one_step_against_the_exact_law(solver: Solver) -> None:
    """Mean and covariance of a step from those of the SDE: O(h^3) each."""
    law, errors = HarmonicLangevin(1.1, 0.9, 0.7), []
    for h in (0.08, 0.04, 0.02):
        exact = law.transition(torch.eye(2, dtype=torch.float64), 0.0, h)
        m, f = affine(solver, law, h)
        cov = np.array([[float(exact.qq), float(exact.qv)], [float(exact.qv), float(exact.vv)]])
        errors.append((np.abs(m - exact.mean.numpy().T).max(), np.abs(f @ f.T - cov).max()))
    np.testing.assert_allclose(np.log2(np.array(errors)[:-1] / np.array(errors)[1:]), 3.0, atol=0.25)


@pytest.mark.parametrize("letters", ["BAOAB", "OBABO", "ABOBA", "OABAO", "BABOBAB", "AOBOA"])
def test_any_palindrome_has_weak_order_two(letters: str) -> None:
    found = certify_order(Splitting(letters), steps=(32, 64, 128))
    assert [row.problem for row in found.rows if row.measure == "weak"] == ["underdamped"]
    assert found.weak == pytest.approx(2.0, abs=0.1)
    assert found.strong == pytest.approx(1.0, abs=0.1)


class Lopsided(Splitting):
    """A mutation: the first kick is missed."""

    def step(self, system: Any, x: Tensor, interval: Interval, carry: Any) -> Any:
        (force,) = carry
        q, v = x.unbind(1)
        early = torch.stack([q, v - 0.02 * interval.h * force], dim=1)
        return super().step(system, early, interval, carry)


def test_a_weak_kick_loses_the_order() -> None:
    weak = certify_order(Lopsided(), steps=(32, 64)).weak
    assert weak is not None
    assert weak < 0.6


@pytest.mark.parametrize(
    ("letters", "calls"), [("BAOAB", 11), ("OBABO", 11), ("ABOBA", 10), ("OABAO", 10), ("BABOBAB", 21)]
)
def test_forces_are_kept(letters: str, calls: int) -> None:
    x0 = torch.zeros(3, 2, 4)
    assert solve(HarmonicLangevin(), x0, (0.0, 1.0), steps=10, solver=Splitting(letters)).stats.nfe == calls


def test_the_kept_force_is_that_of_the_new_position() -> None:
    law = UnderdampedLangevin(lambda q: -(q**3), friction=0.7, temperature=0.5)
    x, counted = torch.randn(4, 2, 3, generator=torch.Generator().manual_seed(0)).double(), Counted(law)
    t, solver = torch.zeros((), dtype=torch.float64), BAOAB()
    carry = solver.init(counted, x, t)
    y, carry = solver.step(counted, x, Interval((t,), 0.1, torch.zeros_like(x)), carry)
    torch.testing.assert_close(carry[0], -0.5 * y[:, 0] ** 3)


def test_verlet_without_a_bath() -> None:
    """Friction near 0: OBABO and OABAO are velocity and position Verlet, by hand; and time-reversible."""
    law = UnderdampedLangevin(lambda q: -(q**3), friction=1e-300, temperature=1.0)
    x, h = torch.tensor([[0.4, -0.9]], dtype=torch.float64), 0.3
    q, v = 0.4, -0.9
    half = v - 0.5 * h * q**3
    ahead = q + h * half
    found = one_step(OBABO(), law, x, 0.0, h, torch.zeros_like(x), torch.zeros_like(x))
    np.testing.assert_allclose(found[0], [ahead, half - 0.5 * h * ahead**3], rtol=1e-14)
    middle = q + 0.5 * h * v
    late = v - h * middle**3
    found = one_step(OABAO(), law, x, 0.0, h, torch.zeros_like(x), torch.zeros_like(x))
    np.testing.assert_allclose(found[0], [middle + 0.5 * h * late, late], rtol=1e-14)


def test_positions_of_a_quartic_well() -> None:
    """p ~ exp(-q^4/4), E q^2 = 2 Gamma(3/4)/Gamma(1/4): Monte Carlo at h = 0.2, with its bias allowed."""
    law = UnderdampedLangevin(lambda q: -(q**3), friction=1.5, temperature=1.0)
    x0 = torch.zeros(20_000, 2, 1, dtype=torch.float64)
    q = solve(law, x0, (0.0, 12.0), steps=60, solver="baoab", seed=5).x[:, 0, 0]
    exact = 2 * math.gamma(0.75) / math.gamma(0.25)
    spread = math.sqrt((1.0 - exact**2) / 20_000)  # E q^4 = 1
    assert abs(float((q * q).mean()) - exact) < 5 * spread + 0.003


@pytest.mark.parametrize("solver", METHODS, ids=IDS)
def test_a_row_has_the_same_bits_alone(solver: Solver, device: torch.device) -> None:
    x0 = torch.linspace(-1, 1, 37 * 6, device=device).reshape(37, 2, 3)
    law = UnderdampedLangevin(lambda q: -torch.sin(q))
    whole = solve(law, x0, (0.0, 1.0), steps=6, solver=solver, seed=1).x
    part = solve(law, x0[11:12], (0.0, 1.0), steps=6, solver=solver, seed=1, first_id=11).x
    assert torch.equal(whole[11:12], part)


@pytest.mark.parametrize("solver", METHODS, ids=IDS)
def test_steps_of_each_sample(solver: Solver) -> None:
    law, g = HarmonicLangevin(), torch.Generator().manual_seed(0)
    x, w, area = (torch.randn(2, 2, 3, generator=g).double() for _ in range(3))
    h, counted = torch.tensor([0.1, 0.2], dtype=torch.float64), Counted(law)
    carry = solver.init(counted, x, h)
    both, _ = solver.step(counted, x, Interval((h,), h.reshape(2, 1, 1), w, area), carry)
    for i in range(2):
        alone = one_step(solver, law, x[i : i + 1], 0.3, float(h[i]), w[i : i + 1], area[i : i + 1])
        torch.testing.assert_close(both[i : i + 1], alone, rtol=1e-13, atol=1e-14)


def test_gradients() -> None:
    """Of a parameter of the score, through 5 steps, against a central difference."""

    def end(k: Tensor) -> Tensor:
        law = UnderdampedLangevin(lambda q: -k * q**3)
        x0 = torch.full((3, 2, 1), 0.5, dtype=torch.float64)
        return solve(law, x0, (0.0, 1.0), steps=5, solver="baoab", seed=4, gradient="backprop").x.sum()

    k = torch.tensor(1.3, dtype=torch.float64, requires_grad=True)
    (found,) = torch.autograd.grad(end(k), k)
    difference = float(end(k.detach() + 1e-6) - end(k.detach() - 1e-6)) / 2e-6
    assert float(found) == pytest.approx(difference, rel=1e-7)


@pytest.mark.parametrize("letters", ["BAO", "BAB", "AOA", "BAOAOAOAB", "BAXAB", "", "baoab", 3])
def test_letters_that_make_no_method(letters: Any) -> None:
    with pytest.raises(ValueError, match="palindrome of A"):
        Splitting(letters)


def test_other_systems_are_refused() -> None:
    x0 = torch.zeros(2, 2, 1)
    plain = SDE(lambda x, t: -x, lambda x, t: torch.ones_like(x), noise_type="additive")
    with pytest.raises(CapabilityError, match="underdamped Langevin dynamics, got SDE"):
        solve(plain, x0, (0.0, 1.0), solver="baoab")
    with pytest.raises(CapabilityError, match="got Langevin"):
        solve(Langevin(lambda x: -x), x0, (0.0, 1.0), solver="obabo")
    with pytest.raises(ShapeError, match="positions in"):
        solve(HarmonicLangevin(), torch.zeros(2, 3, 1), (0.0, 1.0), solver="baoab")
    back = reverse(HarmonicLangevin(), lambda x, t: -x)
    with pytest.raises(CapabilityError, match="underdamped"):
        solve(back, x0, (1.0, 0.0), solver="baoab")
