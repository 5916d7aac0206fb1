"""What compiled functions read may change between runs: no run may use code or numbers of an earlier one."""

from __future__ import annotations

import copy
import math
import os
import pickle
import threading
import types
from collections import namedtuple

import numba
import numpy as np
import pytest
import torch

import sdekit as sk
from sdekit.errors import CapabilityError, DirectionError, NonFiniteError
from sdekit.solvers.compiled import build
from sdekit.solvers.compiled.door import check_compiled_noise
from sdekit.solvers.compiled.reads import readings
from sdekit.solvers.compiled.symbols import Symbol, Untraceable, fingerprint
from sdekit.solvers.compiled.trace import claims_hold, signature

X0 = torch.ones(3, 1, dtype=torch.float64)
RATE = 1.0
VALUES = np.array([1.0, 2.0])


def end(drift, **options):
    """1 + f(1, 0): one step over (0, 1) without noise."""
    sde = drift if isinstance(drift, sk.SDE) else sk.compiled(drift, lambda x, t: 0.0)
    return float(sk.solve(sde, X0, (0.0, 1.0), steps=1, backend="numba", **options).x[0, 0])


# -- numbers -----------------------------------------------------------------------------------------------


STILL = sk.compiled(lambda x, t: 1.0, lambda x, t: 0.0)


class Box:
    rate = 1.0


def by_global(x, t):
    return RATE * x


def by_branch(x, t):
    return RATE * x if x > 0 else x


BOTH = pytest.mark.parametrize("branching", [False, pytest.param(True, marks=pytest.mark.slow)])
"""A formula, and a function that numba compiles as it is."""


@BOTH
def test_a_global_that_changes_is_read_again(branching, monkeypatch):
    sde = sk.compiled(by_branch if branching else by_global, lambda x, t: 0.0)
    for rate in (1.0, 3.0, 1.0, -0.0, 5):
        monkeypatch.setitem(globals(), "RATE", rate)
        assert end(sde) == 1.0 + rate


def test_formulas_of_the_same_parts_are_told_apart():
    x, y = Symbol("input", "x"), Symbol("input", "y")
    product = x * y
    assert fingerprint([product, x]) == fingerprint([x * y, x])
    assert fingerprint([product, x]) != fingerprint([product, y])
    assert fingerprint([x - y]) != fingerprint([x + y])


def test_a_closed_over_number_that_changes_is_read_again():
    rate = 1.0

    def branch(x, t):
        return rate * x if x > 0 else x

    formula = sk.compiled(lambda x, t: rate * x, lambda x, t: 0.0)
    kicked = sk.compiled(branch, lambda x, t: 0.0)
    for rate in (1.0, 3.0, 1.0):
        assert end(formula) == end(kicked) == 1.0 + rate


def test_the_sign_of_zero_counts():
    zero, c = 0.0, sk.compiled
    sde = sk.compiled(lambda x, t: c.maximum(-3.0, c.minimum(3.0, 1.0 / (zero * x))), lambda x, t: 0.0)
    before = signature(sde, None)
    assert signature(sde, None) == before
    zero = -0.0
    assert signature(sde, None) != before


@BOTH
def test_arrays_modules_and_attributes_are_read_again(branching, monkeypatch):
    array, box, module = np.array([1.0, 2.0]), Box(), types.ModuleType("rates")
    module.rate = 1.0

    def by_array(x, t):
        return array[1] * x if x > 0 else x

    def by_module(x, t):
        return module.rate * x if x > 0 else x

    systems = [
        sk.compiled(f, lambda x, t: 0.0)
        for f in (
            by_array if branching else lambda x, t: array[1] * x,
            by_module if branching else lambda x, t: module.rate * x,
            lambda x, t: box.rate * x,
        )
    ]
    for rate in (2.0, 7.0):
        array[1] = box.rate = module.rate = rate
        assert [end(s) for s in systems] == [1.0 + rate] * 3
    monkeypatch.setattr(Box, "rate", 9.0)
    del box.rate
    assert end(systems[-1]) == 10.0


@BOTH
def test_equations_of_one_form_keep_their_own_numbers(branching):
    def make(rate, branching):
        def formula(x, t):
            return rate * x

        def branch(x, t):
            return rate * x if x > 0 else x

        return sk.compiled(branch if branching else formula, lambda x, t: 0.0)

    systems = [make(rate, branching) for rate in (1.0, 2.0)]
    assert [end(s) for s in systems * 2] == [2.0, 3.0, 2.0, 3.0]


@BOTH
def test_another_function_of_the_same_name(branching):
    found = []
    for text in ("2.0 * x", "3.0 * x"):
        scope: dict[str, object] = {}
        exec(f"def drift(x, t):\n    return {text}{' if x > 0 else x' if branching else ''}\n", scope)
        found.append(end(scope["drift"]))
    assert found == [3.0, 4.0]


@pytest.mark.slow
def test_another_solver_and_dtype_and_back():
    sde = sk.compiled(lambda x, t: 0.1 * x, lambda x, t: 0.1 * x)

    def runs():
        return [
            sk.solve(sde, X0.to(dtype), (0.0, 1.0), steps=4, solver=solver, backend="numba").x
            for dtype in (torch.float32, torch.float64)
            for solver in ("euler-maruyama", "milstein")
        ]

    first, second = runs(), runs()
    assert all(map(torch.equal, first, second))
    assert [x.dtype for x in first] == [torch.float32] * 2 + [torch.float64] * 2
    assert float((first[3] - first[2]).abs().max()) > 1e-4
    assert float((first[1].double() - first[3]).abs().max()) < 1e-5


@pytest.mark.slow
def test_a_passage_that_changes_is_read_again():
    level = 1.5
    sde = sk.compiled(lambda x, t: 1.0, lambda x, t: 0.0)

    def first(passage):
        return sk.ensemble(sde, 1.0, (0.0, 4.0), paths=2, steps=4, passage=passage).passage.tolist()

    def beyond(x, t):
        return x - level

    def holds(x, t):
        return x >= level

    for given, at in ((1.5, 1.0), (2.5, 2.0), (9.0, math.inf)):
        level = given
        assert first(beyond) == first(holds) == [at, at]


def test_a_passage_is_a_formula():
    with pytest.raises(CapabilityError, match="passage must be a formula.*branches"):
        sk.ensemble(STILL, 1.0, (0.0, 4.0), paths=2, steps=4, passage=lambda x, t: x if x > 0 else -x)


def test_two_threads_with_changing_numbers():
    systems = [sk.compiled(lambda x, t, c=[r]: c[0] * x, lambda x, t: 0.0) for r in (1.0, 2.0)]
    shared = sk.compiled(lambda x, t: 3.0 * x, lambda x, t: 0.0)
    wrong: list[float] = []

    def work(i):
        for _ in range(50):
            found = end(systems[i]), end(shared)
            if found != (2.0 + i, 4.0):
                wrong.append(found)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


# -- what numba fixes --------------------------------------------------------------------------------------

Pair = namedtuple("Pair", "a b")
Swapped = namedtuple("Swapped", "b a")


@numba.njit
def decorated(x):
    return 2.0 * x


def reader(value):
    return lambda x, t: value


@pytest.mark.parametrize(
    "pair",
    [
        (1.0, 2.0),
        (1, 1.0),
        (True, 1),
        (0.0, -0.0),
        ((1.0, 2.0), (2.0, 1.0)),
        ((1.0, (2.0,)), (1.0, 2.0)),
        (Pair(1.0, 2.0), Swapped(1.0, 2.0)),
        (np.zeros(2), np.zeros((2, 1))),
        (np.zeros(2), np.zeros(2, np.int64)),
        (np.float32(1.0), np.float64(1.0)),
        (np.float32(1.0), np.float32(2.0)),
        (math.exp, math.sin),
        (decorated, by_global),
        (reader(1.0), reader(2.0)),
    ],
)
def test_values_are_told_apart(pair):
    first, second = map(readings, map(reader, pair))
    assert first is not None
    assert first == readings(reader(copy.copy(pair[0])))
    assert first != second


def test_what_cannot_be_told_apart():
    class Own:
        def __call__(self, x, t):
            return x

    assert all(readings(reader(v)) is None for v in ([1.0], {"a": 1.0}, Own(), np.array([Own()])))
    assert readings(Own()) is None

    def early():
        return late

    assert readings(early) is not None

    def loop(x, t):
        return loop(x, t)

    assert readings(loop) == readings(loop)
    assert readings(lambda x, t, a=1.0: x) != readings(lambda x, t, a=2.0: x)
    assert readings(lambda x, t, *, a=1.0: x) != readings(lambda x, t, *, a=2.0: x)


# -- comparisons -------------------------------------------------------------------------------------------


def test_comparisons_are_symbols():
    x = Symbol("input", "x")
    assert [(x == 1.0).op, (x != 1.0).op, torch.eq(x, 1.0).op, np.not_equal(x, 1.0).op] == [
        "eq",
        "ne",
        "eq",
        "ne",
    ]
    assert [a.op for a in ((x > 0.0) * x).args] == ["where", "input"]  # 1 or 0, of the type of x
    for branch in (lambda: x == 1.0 and x, lambda: x in (1.0, 2.0), lambda: torch.equal(x, x)):
        with pytest.raises(Untraceable):
            branch()


@pytest.mark.slow
def test_equality_is_a_condition_and_not_the_identity_of_symbols():
    w = sk.compiled.where
    assert end(lambda x, t: w(x == 1.0, 5.0, 7.0)) == 6.0
    assert end(lambda x, t: w(x != 1.0, 5.0, 7.0)) == 8.0
    assert end(lambda x, t: w(torch.eq(x, 2.0) | np.not_equal(x, 1.0), 5.0, 7.0)) == 8.0

    def branch(x, t):
        return 5.0 if x == 1.0 else 7.0

    assert end(branch) == 6.0


def test_conditions_count_as_one_or_zero():
    assert end(lambda x, t: 3.0 * (x > 0) + (x < 0) - (x >= 1.0) * x) == 3.0
    with pytest.raises(CapabilityError, match="drift"):
        end(lambda x, t: x & 1)


# -- mistakes ----------------------------------------------------------------------------------------------


def test_a_mistake_in_a_function_is_told_in_a_few_words():
    def misspelt(x, t):
        return rat * x

    with pytest.raises(NameError, match="rat"):
        end(misspelt)
    with pytest.raises(CapabilityError, match="drift.*Next") as error:
        end(lambda x, t: x.size_of * 2)
    assert len(str(error.value)) < 700
    with pytest.raises(CapabilityError, match="diffusion.*Next"):
        end(sk.compiled(lambda x, t: x, lambda x, t: x[0]))


def test_claims_are_read_off_the_formulas():
    def pair(noise_type, *diffusion):
        return sk.compiled(lambda x, t: x, lambda x, t: diffusion[0](x), dim=2, noise_type=noise_type)

    true = [
        pair("additive", lambda x: (1.0, 2.0)),
        pair("diagonal", lambda x: (x[0] * x[0], sk.compiled.exp(x[1]))),
    ]
    unknown = [
        pair("additive", lambda x: (1.0, x[1])),
        pair("diagonal", lambda x: (x[0], x[0])),
        pair("diagonal", lambda x: (x[0], 1.0 if x[1] > 0 else 2.0)),
        pair("scalar", lambda x: (1.0, 1.0)),
    ]
    assert [claims_hold(s) for s in (*true, *unknown)] == [True] * 2 + [False] * 4
    vanishing = pair("diagonal", lambda x: (x[0], x[1] + 0.0 * x[0]))
    assert not claims_hold(vanishing)
    check_compiled_noise(vanishing, torch.ones(2, 2), 0.0)  # held to its word at x0 instead
    with pytest.raises(ValueError, match="diagonal"):
        sk.solve(unknown[1], torch.ones(2, 2), (0.0, 1.0), steps=2, backend="numba")


def test_spans_and_saved_times():
    sde = sk.compiled(lambda x, t: -x, lambda x, t: 0.1)
    with pytest.raises(DirectionError, match="forward"):
        sk.solve(sde, X0, (1.0, 0.0), steps=3, backend="numba")
    with pytest.raises(ValueError, match="monotone"):
        sk.solve(sde, X0, (0.0, 1.0), steps=3, backend="numba", save_at=[0.5, 0.2])


def test_a_state_that_fails_at_the_only_step():
    sde = sk.compiled(lambda x, t: sk.compiled.log(x - 2.0), lambda x, t: 0.0)
    x0 = torch.tensor([[3.0], [1.0]], dtype=torch.float64)
    with pytest.raises(NonFiniteError, match="1 of 2 samples.*sample 1 became .*step 0 of 1"):
        sk.solve(sde, x0, (0.0, 1.0), steps=1, backend="numba")
    run = sk.solve(sde, x0, (0.0, 1.0), steps=1, backend="numba", throw=False)
    assert run.status.tolist() == [0, 1]
    assert run.failed_step.tolist() == [-1, 0]
    assert run.failed_at.isnan().tolist() == [True, False]
    assert run.failed_at[1] == 1.0
    assert run.x[0, 0] == 3.0


# -- places ------------------------------------------------------------------------------------------------


def half_life(x, t):
    return -0.5 * x


def quiet(x, t):
    return 0.0


def both(x, t):
    return -0.5 * x, 0.0


@pytest.mark.parametrize("functions", [(half_life, quiet), (both,)])
def test_pickles_and_copies(functions):
    sde = sk.compiled(*functions)
    assert end(sde) == 0.5
    for again in (pickle.loads(pickle.dumps(sde)), copy.deepcopy(sde)):
        assert not again.kept
        assert end(again) == 0.5
    assert sde.kept


def test_without_a_place_for_compiled_code(monkeypatch, tmp_path):
    """Where the folder is a file nothing can be written, not even by root."""
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "file"))
    assert end(lambda x, t: x * x * x * x - 3.0) == -1.0


def test_the_kept_text_is_that_of_the_kernel(monkeypatch, tmp_path):
    """A file of that name with another content is written anew."""
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    text = "def kernel(x):\n    return x + 1.0\n"
    assert build._stored(text).kernel(1.0) == 2.0
    (path,) = (tmp_path / "sdekit").glob("*.py")
    path.write_text("def kernel(x):\n    return x + 2.0\n")
    os.utime(path, (1, 1))
    assert build._stored(text).kernel(1.0) == 2.0
