"""Compiled ensembles: the paths of the torch back end, by the same methods, from the same functions."""

from __future__ import annotations

import math

import numba
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import sdekit as sk
from sdekit.errors import CapabilityError, NonFiniteError, ShapeError, UnknownNameError
from sdekit.solvers.compiled.trace import METHODS


def mixing(dim, s=0.3):
    """A drift in which every element takes part, with values of order 1."""

    def drift(x, t):
        return tuple(-x[i] + s * x[(i + 1) % dim] * x[i - 1] - 0.2 * t for i in range(dim))

    return drift if dim > 1 else (lambda x, t: -x + s * x * x - 0.2 * t)


def constant(dim):
    values = tuple(0.4 + 0.1 * i for i in range(dim))
    return lambda x, t: values if dim > 1 else values[0]


def own(dim):
    """Element i depends on x_i."""
    if dim == 1:
        return lambda x, t: 0.3 + 0.2 / (1.0 + x * x)
    return lambda x, t: tuple(0.3 + 0.2 / (1.0 + y**2) for y in x)


def driven(dim):
    """One noise for all; every element depends on all."""
    if dim == 1:
        return own(1)
    return lambda x, t: tuple(0.3 + 0.1 * x[i] * x[i - 1] / (1.0 + x[i] ** 2) for i in range(dim))


def matrix(dim, m):
    def row(i, x):
        return tuple(0.2 + 0.1 * k + 0.05 * x[(i + k) % dim] for k in range(m))

    if dim == 1:
        return lambda x, t: tuple(0.2 + 0.1 * k + 0.05 * x for k in range(m))
    return lambda x, t: tuple(row(i, x) for i in range(dim))


def system(dim, noise_type, sde_type="ito", m=2):
    diffusion = {"additive": constant, "diagonal": own, "scalar": driven}.get(
        noise_type, lambda d: matrix(d, m)
    )
    general = noise_type == "general"
    return sk.compiled(
        mixing(dim),
        diffusion(dim),
        dim=dim,
        noise_type=noise_type,
        sde_type=sde_type,
        noise_dim=m if general else None,
    )


ITO = ("euler-maruyama", "milstein", "milstein-free", "sra1", "sra3", "sosra", "sriw1", "sosri")
STRATONOVICH = ("heun", "euler-heun", "midpoint", "milstein")


def able(solver, noise_type):
    from sdekit.solvers.base import get

    return noise_type in get(solver, "sde").noise_types


CASES = [
    (dim, solver, noise, form)
    for form, names in (("ito", ITO), ("stratonovich", STRATONOVICH))
    for solver in names
    for noise in ("additive", "diagonal", "scalar", "general")
    for dim in (1, 2, 3, 5)
    if able(solver, noise)
]


def starts(rows, dim, dtype, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(rows, dim))).to(dtype)


def agree(a, b, dtype, steps, stages=4):
    """Both are sums of the same terms: per step at most a few dozen roundings of numbers of order 1, which
    the equations above amplify by at most e^2 over a span of 1."""
    assert a.dtype == b.dtype == dtype
    eps = torch.finfo(dtype).eps
    assert float((a - b).abs().max()) <= eps * 8 * stages * steps * math.e**2 * (1 + float(b.abs().max()))


def same_paths(case, dtype, steps, rows, first, seed):
    dim, solver, noise, form = case
    x0 = starts(rows, dim, dtype)
    options = {"solver": solver, "steps": steps, "seed": seed, "first_id": first, "save_at": [0.0, 0.37, 1.0]}
    sde = system(dim, noise, form)
    eager = sk.solve(sde, x0, (0.0, 1.0), backend="eager", **options)
    fast = sk.solve(sde, x0, (0.0, 1.0), backend="numba", **options)
    agree(fast.x, eager.x, dtype, steps + 1)
    agree(fast.xs, eager.xs, dtype, steps + 1)
    assert torch.equal(fast.ts, eager.ts)
    assert torch.equal(fast.xs[0], x0)
    assert torch.equal(fast.xs[-1], fast.x)
    assert fast.stats.nfe == eager.stats.nfe
    assert fast.ok


@settings(max_examples=20)
@given(
    kind=st.sampled_from(
        [
            ((2, "euler-maruyama", "general", "ito"), torch.float32),
            ((3, "milstein", "diagonal", "ito"), torch.float64),
        ]
    ),
    steps=st.integers(1, 13),
    rows=st.sampled_from([1, 63, 130]),
    first=st.sampled_from([0, 5, 2**32 - 20, 2**40 + 3]),
    seed=st.integers(-3, 2**63),
)
def test_every_path_is_that_of_the_torch_back_end(kind, steps, rows, first, seed):
    same_paths(*kind, steps, rows, first, seed)


@pytest.mark.parametrize(
    "case",
    [
        (1, "sra1", "additive", "ito"),
        (5, "sra1", "additive", "ito"),
        (2, "milstein", "scalar", "ito"),
        (3, "heun", "additive", "stratonovich"),
    ],
)
def test_other_methods(case):
    same_paths(case, torch.float32, 7, 130, 2**32 - 20, 1)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_all_methods(case):
    for dtype, steps, rows, first in ((torch.float32, 9, 63, 2**32 - 20), (torch.float64, 6, 130, 3)):
        same_paths(case, dtype, steps, rows, first, 1)


@pytest.mark.parametrize("dtype", [torch.float32, pytest.param(torch.float64, marks=pytest.mark.slow)])
def test_arithmetic_alone_gives_the_same_bits(dtype):
    sde = sk.compiled(lambda x, t: -1.5 * x + t, lambda x, t: 0.4 * x)
    x0 = starts(100, 1, dtype)
    runs = [sk.solve(sde, x0, (0.0, 1.0), steps=11, backend=b).x for b in ("eager", "numba")]
    assert torch.equal(*runs)


@pytest.mark.slow
@pytest.mark.parametrize("noise", [5, 16])
def test_wide_noise(noise):
    sde = system(2, "general", m=noise)
    x0 = starts(70, 2, torch.float64)
    runs = [sk.solve(sde, x0, (0.0, 1.0), steps=5, backend=b).x for b in ("eager", "numba")]
    agree(*runs, torch.float64, 5, 8)


def test_a_path_is_the_same_alone_in_a_batch_and_on_any_number_of_threads():
    sde = system(3, "diagonal")
    x0 = starts(9000, 3, torch.float32)
    whole = sk.solve(sde, x0, (0.0, 1.0), steps=6, backend="numba").x
    alone = sk.solve(sde, x0[4097:4098], (0.0, 1.0), steps=6, backend="numba", first_id=4097).x
    assert torch.equal(whole[4097:4098], alone)
    torch.set_num_threads(2)
    try:
        assert torch.equal(sk.solve(sde, x0, (0.0, 1.0), steps=6, backend="numba").x, whole)
    finally:
        torch.set_num_threads(1)


def test_states_without_an_event_axis():
    sde = system(1, "diagonal")
    x0 = starts(10, 1, torch.float64)
    flat = sk.solve(sde, x0[:, 0], (0.0, 1.0), steps=6, backend="numba", save_at=[0.5])
    full = sk.solve(sde, x0, (0.0, 1.0), steps=6, backend="numba", save_at=[0.5])
    assert flat.xs.shape == (1, 10)
    assert torch.equal(flat.xs[..., None], full.xs)
    eager = sk.solve(sde, x0[:, 0], (0.0, 1.0), steps=6, backend="eager", save_at=[0.5])
    agree(flat.xs, eager.xs, torch.float64, 6)


def test_no_paths():
    run = sk.solve(
        system(2, "additive"), torch.zeros(0, 2), (0.0, 1.0), steps=3, backend="numba", save_at=[1.0]
    )
    assert run.x.shape == (0, 2)
    assert run.xs.shape == (1, 0, 2)


# -- ways to write an equation -----------------------------------------------------------------------------


def test_functions_of_torch_numpy_and_the_package_are_one():
    c = sk.compiled
    x0 = starts(50, 1, torch.float64).abs() + 0.1
    ways = [
        lambda x, t: (
            torch.exp(-x) + torch.sin(x) * torch.sqrt(x) - torch.log(x) + torch.tanh(x) - torch.cos(t)
        ),
        lambda x, t: np.exp(-x) + np.sin(x) * np.sqrt(x) - np.log(x) + np.tanh(x) - np.cos(t),
        lambda x, t: c.exp(-x) + c.sin(x) * c.sqrt(x) - c.log(x) + c.tanh(x) - c.cos(t),
        lambda x, t: (-x).exp() + x.sin() * x.sqrt() - x.log() + x.tanh() - t.cos(),
    ]
    runs = [
        sk.solve(sk.compiled(f, lambda x, t: 0.0), x0, (0.0, 0.3), steps=4, backend="numba").x for f in ways
    ]
    assert all(torch.equal(runs[0], x) for x in runs)
    agree(
        runs[0],
        sk.solve(sk.compiled(ways[2], lambda x, t: 0.0), x0, (0.0, 0.3), steps=4, backend="eager").x,
        torch.float64,
        4,
    )


def test_selections_conditions_and_powers():
    c = sk.compiled

    def drift(x, t):
        bent = c.where((x > 0.5) & (x <= 2.0) | (x < -1.0), x**3 - x**-1, abs(x) ** 1.5)
        return (
            bent + c.maximum(x, 0.3) - c.minimum(t, x) + torch.clamp(x, min=-0.5, max=1.0) - x**0.5 * 0 + 2**x
        )

    x0 = starts(200, 1, torch.float64).abs() + 0.2
    sde = sk.compiled(drift, lambda x, t: 0.1)
    runs = [sk.solve(sde, x0, (0.0, 0.01), steps=1, backend=b, throw=False).x for b in ("eager", "numba")]
    agree(*runs, torch.float64, 1)


def test_nan_passes_through_maximum_and_minimum():
    c = sk.compiled

    def drift(x, t):
        bad = c.log(-abs(x[0]) - 1.0)
        return c.maximum(1.0, bad), c.maximum(bad, 1.0), c.minimum(1.0, bad), c.minimum(bad, 1.0)

    sde = sk.compiled(drift, lambda x, t: (0.0,) * 4, dim=4)
    run = sk.solve(sde, torch.ones(3, 4), (0.0, 1.0), steps=1, backend="numba", throw=False)
    assert bool(run.x.isnan().all())
    assert run.status.tolist() == [1, 1, 1]


def test_one_function_as_decorator():
    @sk.compiled(dim=2, noise_type="diagonal")
    def both(x, t):
        a, b = x
        rate = 0.5 * a
        return (b - rate, -a), (0.1 * a, 0.2 * b)

    apart = sk.compiled(lambda x, t: (x[1] - 0.5 * x[0], -x[0]), lambda x, t: (0.1 * x[0], 0.2 * x[1]), dim=2)
    x0 = starts(20, 2, torch.float64)
    assert both.dim == 2
    for backend in ("eager", "numba"):
        runs = [sk.solve(s, x0, (0.0, 1.0), steps=3, backend=backend).x for s in (both, apart)]
        assert torch.equal(*runs)
    with pytest.raises(ShapeError, match="must return \\(drift, diffusion\\)"):
        sk.solve(sk.compiled(lambda x, t: -x), x0[:, :1], (0.0, 1.0), steps=3, backend="numba")


@numba.njit
def folded(x):
    return math.sqrt(x) if x > 0 else 0.5 * x


@pytest.mark.slow
def test_functions_with_branches_are_compiled_as_they_are():
    def drift(x, t):
        total = 0.0
        for k in range(3):
            if x > k:
                total -= math.exp(-x) * k
        return total + folded(x) + sk.compiled.exp(-x)

    def same(x, t):
        w = sk.compiled.where
        total = w(x > 1, -torch.exp(-x), 0.0) + w(x > 2, -2 * torch.exp(-x), 0.0)
        return total + w(x > 0, torch.sqrt(abs(x)), 0.5 * x) + torch.exp(-x)

    def noise(x, t):
        return 0.3

    x0 = starts(300, 1, torch.float64) * 2
    runs = [
        sk.solve(sk.compiled(f, noise), x0, (0.0, 1.0), steps=9, backend="numba").x for f in (drift, same)
    ]
    agree(*runs, torch.float64, 9)
    single = sk.solve(sk.compiled(drift, noise), x0.float(), (0.0, 1.0), steps=9, backend="numba").x
    assert single.dtype is torch.float32
    agree(single.double(), runs[0].float().double(), torch.float64, 9e9)


@pytest.mark.slow
def test_branches_in_several_dimensions_and_in_one_function():
    @sk.compiled(dim=2, noise_type="general", noise_dim=3)
    def both(x, t):
        up = 1.0 if x[0] > 0 else -1.0
        return (-x[0], up * x[1]), ((0.1, 0.2, up), (x[0], 0.0, 0.3))

    def select(x):
        return sk.compiled.where(x[0] > 0, 1.0, -1.0)

    other = sk.compiled(
        lambda x, t: (-x[0], select(x) * x[1]),
        lambda x, t: ((0.1, 0.2, select(x)), (x[0], 0.0, 0.3)),
        dim=2,
        noise_type="general",
        noise_dim=3,
    )
    x0 = starts(200, 2, torch.float64)
    runs = [sk.solve(s, x0, (0.0, 1.0), steps=5, backend="numba").x for s in (both, other)]
    assert torch.equal(*runs)


def test_other_numbers_are_read_and_do_not_compile_again():
    from sdekit.solvers.compiled import build

    rate = 1.0
    box = {"rate": 1.0}
    x0 = torch.ones(3, 1, dtype=torch.float64)
    by_cell = sk.compiled(lambda x, t: -rate * x, lambda x, t: 0.0)
    by_item = sk.compiled(lambda x, t: -box["rate"] * x, lambda x, t: 0.0)

    def end(sde):
        return float(sk.solve(sde, x0, (0.0, 1.0), steps=1, backend="numba").x[0, 0])

    assert end(by_cell) == end(by_item) == 0.0
    before = len(build._made)
    rate = box["rate"] = 0.25
    assert end(by_cell) == end(by_item) == 0.75
    assert len(build._made) == before


# -- what is refused, and what fails -----------------------------------------------------------------------


def test_where_numba_cannot():
    sde, x0 = system(1, "diagonal"), torch.ones(4, 1)
    plain = sk.SDE(lambda x, t: -x, lambda x, t: x)
    cases = [
        (plain, x0, {}, "not made by sdekit.compiled"),
        (sde, x0, {"solver": "tamed-euler"}, "no solver 'tamed-euler'.*'euler-maruyama'"),
        (sde, x0, {"solver": "sriw1", "steps": None}, "fixed steps"),
        (sde, x0, {"noise": sk.TorchNoise()}, "TorchNoise"),
        (sde, x0, {"noise": sk.BrownianTree(0)}, "BrownianTree"),
        (sde, x0, {"gradient": "backprop"}, "gradients"),
        (sde, x0.clone().requires_grad_(), {}, "gradients"),
        (sde, x0, {"callback": lambda k, t, x: None}, "callback="),
        (sde, x0, {"event": lambda x, t: x[:, 0]}, "event="),
        (sde, x0.to(torch.bfloat16), {}, "float32 and float64"),
    ]
    for system_, x, options, message in cases:
        with pytest.raises(CapabilityError, match=message):
            sk.solve(system_, x, (0.0, 1.0), **{"steps": 4, "backend": "numba", **options})
    with pytest.raises(UnknownNameError, match="numba"):
        sk.solve(sde, x0, (0.0, 1.0), steps=4, backend="numb")


def test_auto_takes_numba_where_it_can():
    def drift(x, t):
        return -x if x > 0 else x  # of numbers alone

    sde = sk.compiled(drift, lambda x, t: 0.1)
    assert sk.solve(sde, torch.ones(5, 1), (0.0, 1.0), steps=3).ok
    seen = []
    sk.solve(system(1, "diagonal"), torch.ones(4, 1), (0.0, 1.0), steps=3, callback=lambda *a: seen.append(a))
    assert len(seen) == 3


def test_shapes():
    two = system(2, "diagonal")
    for x0 in (torch.ones(4, 3), torch.ones(4), torch.ones(4, 2, 1)):
        with pytest.raises(ShapeError, match="dim=2"):
            sk.solve(two, x0, (0.0, 1.0), steps=2, backend="numba")
    wrong = [
        (lambda x, t: x[0], lambda x, t: x),
        (lambda x, t: (x[0],), lambda x, t: x),
        (lambda x, t: x, lambda x, t: (1.0, 2.0, 3.0)),
    ]
    for fields in wrong:
        with pytest.raises(ShapeError, match="tuple of 2 numbers"):
            sk.solve(sk.compiled(*fields, dim=2), torch.ones(4, 2), (0.0, 1.0), steps=2, backend="numba")
    for fields in (
        (lambda x, t: (x if x > 0 else -x, x), lambda x, t: x),
        (lambda x, t: -x, lambda x, t: (x, x)),
    ):
        with pytest.raises((ShapeError, CapabilityError), match="one number|no formula|must return shape"):
            sk.solve(
                sk.compiled(*fields), torch.ones(4, 1), (0.0, 1.0), steps=2, backend="numba", probe=False
            )


def test_what_numba_cannot_compile_is_quoted():
    sde = sk.compiled(lambda x, t: print(object()), lambda x, t: 0.0)
    with pytest.raises(CapabilityError, match="numba cannot compile the drift.*reason.*object"):
        sk.solve(sde, torch.ones(4, 1), (0.0, 1.0), steps=2, backend="numba")


def test_a_branch_cannot_be_differentiated():
    sde = sk.compiled(lambda x, t: -x, lambda x, t: x if x > 0 else 0.1 * x)
    with pytest.raises(CapabilityError, match="milstein.*differentiate"):
        sk.solve(sde, torch.ones(4, 1), (0.0, 1.0), solver="milstein", steps=2, backend="numba")


@pytest.mark.slow
def test_differences_of_a_branch():
    sde = sk.compiled(lambda x, t: -x, lambda x, t: x if x > 0 else 0.1 * x)
    assert sk.solve(sde, torch.ones(4, 1), (0.0, 1.0), solver="milstein-free", steps=2, backend="numba").ok


def test_arguments_of_compiled():
    with pytest.raises(ValueError, match="up to 16"):
        sk.compiled(lambda x, t: x, lambda x, t: x, dim=17)
    with pytest.raises(TypeError, match="without a drift"):
        sk.compiled(diffusion=lambda x, t: x)
    with pytest.raises(TypeError, match="takes|must take"):
        sk.compiled(lambda t, x: x, lambda x, t: x)
    with pytest.raises(TypeError, match="callable"):
        sk.compiled(3.0, lambda x, t: x)


def test_false_claims_are_refused():
    with pytest.raises(ValueError, match="additive"):
        sk.solve(
            sk.compiled(lambda x, t: x, lambda x, t: x, noise_type="additive"),
            torch.ones(4, 1),
            (0.0, 1.0),
            steps=2,
            backend="numba",
        )


def test_a_failure_names_path_step_and_cause():
    sde = sk.compiled(lambda x, t: x**3, lambda x, t: 0.1 * x)
    x0 = torch.full((200, 1), 0.1, dtype=torch.float64)
    x0[77], x0[190] = 40.0, 7.0
    runs = {}
    for backend in ("eager", "numba"):
        with pytest.raises(
            NonFiniteError, match="2 of 200 samples.*sample 1077 .row 77.*too long for the drift"
        ) as e:
            sk.solve(sde, x0, (0.0, 1.0), steps=40, backend=backend, first_id=1000)
        runs[backend] = e.value.solution
    fast, eager = runs["numba"], runs["eager"]
    assert torch.equal(fast.status, eager.status)
    assert torch.equal(fast.failed_step, eager.failed_step)
    assert torch.equal(fast.failed_at, eager.failed_at) or torch.equal(
        fast.failed_at.isnan(), eager.failed_at.isnan()
    )
    assert fast.failed_step[77] < fast.failed_step[190]
    kept = sk.solve(sde, x0, (0.0, 1.0), steps=40, backend="numba", throw=False, first_id=1000)
    assert torch.equal(kept.x[:77], fast.x[:77])


def test_progress(capsys):
    sk.solve(system(1, "diagonal"), torch.ones(9000, 1), (0.0, 1.0), steps=2, backend="numba", progress=True)
    assert "100%" in capsys.readouterr().err


def test_the_methods_are_all_that_can_be_read():
    assert {solver for _, solver, _, _ in CASES} == set(METHODS)
