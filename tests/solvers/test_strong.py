"""Strong methods on nonlinear equations, path by path, and what holds for every one of them.

Orders are least-squares slopes over 16 to 128 steps on fixed Brownian paths; nothing is drawn anew. Their
standard error, from 8 groups of the paths, is below 0.05.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import sdekit as sk
from sdekit.errors import CapabilityError
from sdekit.sde import ODE, SDE
from sdekit.sde.classic import LevyArea, SphericalBrownian
from sdekit.solvers import Interval, Milstein, RungeKutta, SlowRK, Tableau, get, solve
from sdekit.solvers.problem import Counted
from sdekit.solvers.srk_tableaus import SOSRA, SOSRI, SRA1, SRA3, SRID2, SRIW1
from tests.solvers.strong import F64, problems, refined_order, stratonovich, strong_order

ITO = ("milstein", "milstein-free", "sriw1", "sosri", "srk")
STRATONOVICH = ("euler-heun", "heun", "midpoint", "reversible-heun", "spark", "slowrk")
ADDITIVE = ("sra1", "sra3", "sosra", "shark")
ALL = (*ITO, *STRATONOVICH, *ADDITIVE)
PROBLEMS = problems()


def system(solver: str, kind: str = "diagonal") -> SDE:
    """Nonlinear, in time, elementwise arithmetic, of the form and the noise that the solver takes."""
    form = "stratonovich" if solver in STRATONOVICH else "ito"
    if solver in ADDITIVE or kind == "additive":
        return SDE(_pull, lambda x, t: 0.4 + 0.2 * torch.cos(t) + 0 * x, noise_type="additive", sde_type=form)
    if kind in ("commutative", "general"):
        columns = (lambda x, t: 0.3 * x, lambda x, t: 0.2 * x * (1 + t))
        return SDE(
            lambda x, t: torch.sin(x) - t * x,
            lambda x, t: torch.stack([c(x, t) for c in columns], dim=-1),
            noise_type=kind,
            sde_type=form,
            noise_dim=2,
        )
    return SDE(_pull, lambda x, t: 0.3 * torch.cos(x) + 0.2 * t + 0.5, noise_type=kind, sde_type=form)


def _pull(x: Tensor, t: Tensor) -> Tensor:
    return torch.sin(x) - t * x + 0.3


# -- orders ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("solver", "name", "order"),
    [
        *(("milstein", "tanh", 1.0), ("milstein", "mixed", 1.0), ("milstein-free", "tanh", 1.0)),
        *(("milstein-free", "mixed", 1.0), ("sriw1", "arctan", 1.5), ("sosri", "arctan", 1.5)),
        *(("srk", "arctan", 1.5), ("sriw1", "geometric", 1.5), ("euler-heun", "arctan", 1.0)),
        *(("euler-heun", "mixed", 1.0), ("heun", "arctan", 1.0), ("midpoint", "arctan", 1.0)),
        *(("reversible-heun", "arctan", 1.0), ("spark", "arctan", 1.0), ("spark", "mixed", 1.0)),
        *(("slowrk", "tanh", 1.5), ("slowrk", "geometric", 1.5), ("slowrk", "sinh", 1.5)),
    ],
)
def test_strong_order_on_nonlinear_noise(solver: str, name: str, order: float) -> None:
    known = PROBLEMS[name]
    form = known._replace(system=stratonovich(known.system)) if solver in STRATONOVICH else known
    found = strong_order(solver, form)
    assert found.error < 0.05
    assert abs(found.order - order) < 0.1


@pytest.mark.parametrize("solver", [*ADDITIVE, "srk", "slowrk", "spark"])
def test_strong_order_on_additive_noise(solver: str) -> None:
    """A nonlinear drift, coefficients in time: the order of the term f'' g^2, not the 2 of linear drifts."""
    sde = SDE(
        lambda x, t: torch.sin(2 * x) + torch.cos(3 * t),
        lambda x, t: 1.0 + 0.4 * torch.cos(2 * t) + 0 * x,
        noise_type="additive",
    )
    found = refined_order(solver, sde, 0.4)
    assert found.error < 0.05
    assert abs(found.order - 1.5) < 0.1


def test_slowrk_where_the_noise_is_not_diagonal() -> None:
    known = PROBLEMS["mixed"]
    form = known._replace(system=stratonovich(known.system))
    found = strong_order("slowrk", form, paths=400, steps=(64, 128, 256))
    assert abs(found.order - 1.5) < 0.1


@dataclass(frozen=True)
class Backwards(Milstein):
    """A mutation: the second-order term with the other sign."""

    def second(self, *args: Any) -> Tensor:
        return -super().second(*args)


@dataclass(frozen=True)
class NoArea(SlowRK):
    """A mutation: the space-time Levy area left out."""

    def step(self, system: Any, x: Tensor, interval: Interval, carry: Any) -> Any:
        assert interval.H is not None
        return super().step(system, x, interval._replace(H=0 * interval.H), carry)


def test_broken_methods_lose_their_order() -> None:
    tanh = PROBLEMS["tanh"]
    assert strong_order("euler-maruyama", tanh).order < 0.65
    assert strong_order(Backwards(), tanh).order < 0.65
    assert strong_order(NoArea(), tanh._replace(system=stratonovich(tanh.system))).order < 1.2
    assert strong_order("milstein", tanh._replace(system=stratonovich(tanh.system))).order > 0.9


def test_methods_refuse_noise_that_costs_their_order() -> None:
    x = torch.zeros(2, 3, dtype=F64)
    with pytest.raises(CapabilityError, match="'milstein' is for additive, scalar, diagonal, commutative"):
        solve(LevyArea(), x, (0, 1), solver="milstein", steps=2)
    with pytest.raises(CapabilityError, match="it would lose its order"):
        solve(stratonovich(SphericalBrownian()), x + 1, (0, 1), solver="slowrk", steps=2)
    with pytest.raises(CapabilityError, match="converge to another process"):
        solve(sk.GeometricBrownian(), x, (0, 1), solver="heun", steps=2)
    moving = PROBLEMS["mixed"].system
    for solver in ADDITIVE:
        with pytest.raises(CapabilityError, match=r"does not depend on the state.*does, dG\[.*'milstein'"):
            solve(moving, x[:, :2] + 0.1, (0, 1), solver=solver, steps=2)
    even = sk.SDE(
        lambda x, t: -x,
        lambda x, t: torch.diag_embed(torch.cos(x)),
        noise_type="commutative",
        noise_dim=3,
    )
    for solver in ADDITIVE:  # cos has slope 0 where the run starts
        with pytest.raises(CapabilityError, match=r"does not depend on the state.*does, dG\["):
            solve(even, x, (0, 1), solver=solver, steps=2)


# -- what every method keeps ------------------------------------------------------------------------------


def tableau_of(c: Any, a: Any, b: Any) -> type[RungeKutta]:
    """The method of a tableau, without the stages that it does not use."""
    n = max(k + 1 for k, weight in enumerate(b) if weight)

    class Method(RungeKutta):
        name = "by hand"
        tableau = Tableau(c=tuple(c[:n]), a=tuple(map(tuple, a[:n])), b=tuple(b[:n]))

    return Method


HALF = tableau_of((0.0, 0.5), ((), (0.5,)), (0.0, 1.0))
TRAPEZIUM = tableau_of((0.0, 1.0), ((), (1.0,)), (0.5, 0.5))
EULER = tableau_of((0.0,), ((),), (1.0,))
ROOT = 3**0.5
WITHOUT_NOISE = {
    "milstein": EULER,
    "milstein-free": EULER,
    "euler-heun": EULER,
    "heun": TRAPEZIUM,
    "midpoint": HALF,
    "slowrk": tableau_of((0.0, 0.75), ((), (0.75,)), (1 / 3, 2 / 3)),
    "shark": tableau_of((0.0, 5 / 6), ((), (5 / 6,)), (0.4, 0.6)),
    "spark": tableau_of(
        (0.0, 0.5, 1.0), ((), (0.5,), (0.0, 1.0)), ((3 - ROOT) / 6, ROOT / 3, (3 - ROOT) / 6)
    ),
    **{
        name: tableau_of(tab.c0, tab.a0, tab.alpha)
        for name, tab in (
            *(("sra1", SRA1), ("sra3", SRA3), ("sosra", SOSRA)),
            *(("sriw1", SRIW1), ("sosri", SOSRI), ("srk", SRID2)),
        )
    },
}


@pytest.mark.parametrize("solver", WITHOUT_NOISE)
def test_without_noise_it_is_a_runge_kutta_method(solver: str) -> None:
    kind = "additive" if solver in ADDITIVE else "diagonal"
    form = "stratonovich" if solver in STRATONOVICH else "ito"
    sde = SDE(_pull, lambda x, t: 0 * x, noise_type=kind, sde_type=form)
    x0 = torch.linspace(-1, 1, 6, dtype=F64).reshape(3, 2)
    expected = solve(ODE(_pull), x0, (0.0, 1.0), solver=WITHOUT_NOISE[solver](), steps=12).x
    found = solve(sde, x0, (0.0, 1.0), solver=get(solver, "sde"), steps=12).x
    torch.testing.assert_close(found, expected, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("kind", ["diagonal", "scalar", "commutative"])
@pytest.mark.parametrize("solver", ALL)
def test_time_flip_changes_nothing(solver: str, kind: str) -> None:
    """The equation mirrored in time and run over (1, 0), with the same draws: |h| where variance is meant."""
    method = get(solver, "sde")
    there = system(solver, kind if kind in method.noise_types else "diagonal")
    back = SDE(
        lambda x, t: -there.drift(x, 1 - t),
        lambda x, t: there.diffusion(x, 1 - t),
        noise_type=there.noise_type,
        sde_type=there.sde_type,
        noise_dim=there.noise_dim,
    )
    back.runs_backward = True
    x0 = torch.linspace(0.5, 2, 8, dtype=F64).reshape(4, 2)
    a = solve(there, x0, (0.0, 1.0), steps=16, solver=method).x
    b = solve(back, x0, (1.0, 0.0), steps=16, solver=method).x
    torch.testing.assert_close(a, b, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("solver", ALL)
@settings(max_examples=10)
@given(scale=st.floats(0.2, 5.0), shift=st.floats(-3.0, 3.0), seed=st.integers(0, 99))
def test_affine_change_of_variable(solver: str, scale: float, shift: float, seed: int) -> None:
    """y = a x + b: the run in y is the image of the run in x."""
    one = system(solver)
    other = SDE(
        lambda y, t: scale * one.drift((y - shift) / scale, t),
        lambda y, t: scale * one.diffusion((y - shift) / scale, t),
        noise_type=one.noise_type,
        sde_type=one.sde_type,
    )
    x0 = torch.linspace(0.5, 2, 8, dtype=F64).reshape(4, 2)
    options: dict[str, Any] = {"steps": 8, "solver": get(solver, "sde"), "seed": seed}
    x = solve(one, x0, (0.0, 1.0), **options).x
    y = solve(other, scale * x0 + shift, (0.0, 1.0), **options).x
    torch.testing.assert_close(y, scale * x + shift, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("kind", ["additive", "scalar", "diagonal", "commutative", "general"])
@pytest.mark.parametrize("solver", ALL)
def test_a_row_is_the_same_alone(solver: str, kind: str) -> None:
    method = get(solver, "sde")
    if kind not in method.noise_types or solver in ADDITIVE:
        kind = "additive"
    sde = system(solver, kind)
    x0 = torch.randn(7, 3, 5, generator=torch.Generator().manual_seed(1))
    full = solve(sde, x0, (0.0, 1.0), solver=method, steps=4, seed=2).x
    alone = solve(sde, x0[4:5], (0.0, 1.0), solver=method, steps=4, seed=2, first_id=4).x
    assert torch.equal(full[4:5], alone)


@pytest.mark.parametrize("kind", ["scalar", "diagonal", "commutative"])
@pytest.mark.parametrize("solver", ALL)
def test_steps_of_each_sample(solver: str, kind: str) -> None:
    """h of shape (B, 1, 1), times of shape (B,): each row as with its own h; a step of length 0 stays put."""
    method = get(solver, "sde")
    sde = system(solver, kind if kind in method.noise_types else "diagonal")
    rows = Counted(_per_row(sde))
    x = torch.linspace(0.5, 2, 12, dtype=F64).reshape(3, 2, 2)
    like = x.new_empty(sde.noise_shape(x))
    draws = [sk.Philox(4).normal(j, like, torch.arange(3)) for j in range(3)]
    t, h = torch.tensor([0.1, 0.2, 0.3], dtype=F64), torch.tensor([0.05, 0.1, 0.0], dtype=F64)
    spread = [(h / v).sqrt().reshape(-1, *(1,) * (like.ndim - 1)) for v in (1, 12, 720)]
    noise = [d * s for d, s in zip(draws, spread, strict=True)][: method.normals]
    times = tuple(t + c * h for c in method.nodes)
    found, _ = method.step(
        rows, x, Interval(times, h.reshape(3, 1, 1), *noise), method.init(rows, x, times[0])
    )
    for i in range(2):
        one, each = Counted(sde), slice(i, i + 1)
        interval = Interval(tuple(v[i] for v in times), float(h[i]), *(n[each] for n in noise))
        expected, _ = method.step(one, x[each], interval, method.init(one, x[each], times[0][i]))
        torch.testing.assert_close(found[each], expected, rtol=1e-14, atol=1e-14)
    torch.testing.assert_close(found[2], x[2], rtol=0, atol=1e-14)


def _per_row(sde: SDE) -> SDE:
    """The system that is given t of shape (B,), as it comes with steps of each sample."""

    def wide(t: Tensor, x: Tensor) -> Tensor:
        return t.reshape(-1, *(1,) * (x.ndim - 1)) if t.ndim else t

    return SDE(
        lambda x, t: sde.drift(x, wide(t, x)),
        lambda x, t: sde.diffusion(x, wide(t, x)),
        noise_type=sde.noise_type,
        sde_type=sde.sde_type,
        noise_dim=sde.noise_dim,
    )


@pytest.mark.parametrize("kind", ["diagonal", "commutative"])
@pytest.mark.parametrize("solver", ALL)
def test_gradients_flow_through_the_steps(solver: str, kind: str) -> None:
    method = get(solver, "sde")
    sde = system(solver, kind if kind in method.noise_types else "diagonal")
    x0 = torch.tensor([[0.4, 1.1]], dtype=F64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: solve(sde, x, (0.0, 1.0), solver=method, steps=2).x, (x0,))


def test_additive_noise_has_one_form() -> None:
    """A Stratonovich method takes an Ito equation whose noise does not depend on the state."""
    ou = sk.OrnsteinUhlenbeck(theta=1.0, mu=0.0, sigma=1.0)
    x0 = torch.ones(3, 1, dtype=F64)
    a = solve(ou, x0, (0, 1), solver="spark", steps=200, noise=sk.BrownianTree(1)).x
    b = solve(ou, x0, (0, 1), solver="sra1", steps=200, noise=sk.BrownianTree(1)).x
    torch.testing.assert_close(a, b, rtol=0, atol=1e-4)


def test_the_form_that_a_method_wants_is_named() -> None:
    x = torch.ones(2, 1, dtype=F64)
    ito = sk.GeometricBrownian(0.1, 0.2)
    with pytest.raises(CapabilityError, match=r"Stratonovich form: SDE\(p.stratonovich_drift"):
        solve(ito, x, (0, 1), solver="euler-heun", steps=2)
    with pytest.raises(CapabilityError, match=r"Ito form: SDE\(p.ito_drift.*sde_type='ito'\)"):
        solve(stratonovich(ito), x, (0, 1), solver="sriw1", steps=2)
