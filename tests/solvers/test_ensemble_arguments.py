"""Compiled equations as newcomers write them: refusals say why, and "auto" falls back to plain torch."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest
import torch

import sdekit as sk
from sdekit.errors import CapabilityError, ShapeError

OU = sk.compiled(lambda x, t: -x, lambda x, t: 0.5, noise_type="additive")
PAIR = sk.compiled(lambda x, t: (x[1], -x[0]), lambda x, t: (0.1, 0.1), dim=2)
SPAN = (0.0, 1.0)


def gather(system=OU, x0=1.0, paths=10, **options):
    return sk.ensemble(system, x0, SPAN, paths=paths, steps=4, **options)


@pytest.mark.parametrize(
    ("error", "words", "options"),
    [
        (TypeError, "x0 must be a number.*None", {"x0": None}),
        (TypeError, "x0 must be a number.*'a'", {"x0": "a"}),
        (
            ShapeError,
            r"one state of shape \(1,\) or \(\), got \(10, 1\).*drop paths=",
            {"x0": torch.ones(10, 1)},
        ),
        (ShapeError, r"one state of shape \(2,\), got \(1, 2\)", {"system": PAIR, "x0": torch.ones(1, 2)}),
        (ShapeError, "number of paths was not given", {"paths": None}),
        (ShapeError, "number of paths was not given", {"system": PAIR, "x0": [1.0, 0.0], "paths": None}),
        (CapabilityError, "passage must be a formula.*real number", {"passage": lambda x, t: math.exp(x)}),
        (CapabilityError, "passage must be a formula.*subscriptable", {"passage": lambda x, t: x[0]}),
        (CapabilityError, "passage must be a formula.*not callable", {"passage": "x"}),
    ],
)
def test_wrong_arguments_are_named(error, words, options):
    with pytest.raises(error, match=words):
        gather(**options)


def test_whole_numbers_are_states():
    assert torch.equal(gather(x0=1).mean, gather(x0=1.0).mean)
    assert torch.equal(gather(PAIR, [1, 0]).mean, gather(PAIR, [1.0, 0.0]).mean)


@pytest.mark.parametrize("q", [None, "a", [], [[0.5]], 1.5, math.nan])
def test_quantiles_are_asked_for_by_numbers(q):
    found = gather(quantiles=True)
    with pytest.raises(ValueError, match=r"q must be a number in \[0, 1\]"):
        found.quantile(q)
    assert torch.equal(found.quantile(torch.tensor(0.5)), found.quantile(0.5))


def test_without_a_path_left_nothing_is_known():
    bad = sk.compiled(lambda x, t: 1e30 * x**3, lambda x, t: 1.0)
    found = gather(bad, quantiles=True, throw=False)
    assert found.count == 0
    assert bool(found.mean.isnan().all())
    assert bool(found.variance.isnan().all())
    with pytest.raises(ValueError, match="no path is left: all 10 failed"):
        found.quantile(0.5)


def branching(x, t):
    return -x if x > 0 else 0.5 * x


class Callable:
    def __call__(self, x, t):
        return branching(x, t)


@pytest.mark.parametrize("drift", [branching, lambda x, t: -math.sqrt(x * x)])
def test_functions_of_one_number_say_so_in_plain_torch(drift):
    system = sk.compiled(drift, lambda x, t: 0.1)
    for options in ({"backend": "eager"}, {"callback": lambda *given: None}, {"gradient": "backprop"}):
        with pytest.raises(CapabilityError, match="drift needs the value of one number.*backend='numba'"):
            sk.solve(system, torch.ones(3, 1), SPAN, solver="euler-maruyama", steps=2, **options)


def test_other_errors_of_a_function_are_its_own():
    system = sk.compiled(lambda x, t: x @ torch.ones(7, 7), lambda x, t: 0.1)
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        sk.solve(system, torch.ones(3, 1), SPAN, solver="euler-maruyama", steps=2, backend="eager")


@pytest.mark.parametrize("drift", [Callable(), Callable().__call__, partial(branching)])
def test_numba_takes_plain_functions(drift):
    with pytest.raises(CapabilityError, match="drift is no formula.*plain functions alone"):
        gather(sk.compiled(drift, lambda x, t: 0.1))


def test_auto_falls_back_to_plain_torch():
    system = sk.compiled(lambda x, t: -torch.sigmoid(x), lambda x, t: 0.1)
    run = partial(sk.solve, system, torch.ones(3, 1), SPAN, solver="euler-maruyama", steps=3, seed=2)
    with pytest.raises(CapabilityError, match="sigmoid"):
        run(backend="numba")
    assert torch.equal(run().x, run(backend="eager").x)


def test_auto_gives_the_reason_of_the_compiler_where_neither_can():
    table = {"rate": 1.0}
    system = sk.compiled(lambda x, t: -table["rate"] * x if x > 0 else x, lambda x, t: 0.1)
    with pytest.raises(CapabilityError, match="numba cannot compile the drift.*dict"):
        sk.solve(system, torch.ones(3, 1), SPAN, solver="euler-maruyama", steps=3)


def test_numpy_where_and_clip_are_formulas():
    system = sk.compiled(lambda x, t: np.where(x > 0.5, -x, np.clip(x, 0.1, 0.4)), lambda x, t: 0.3)
    same = sk.compiled(lambda x, t: torch.where(x > 0.5, -x, torch.clamp(x, 0.1, 0.4)), lambda x, t: 0.3)
    x0 = torch.linspace(-1.0, 1.0, 50)[:, None]
    a, b = (sk.solve(s, x0, SPAN, steps=9, seed=1, backend="numba").x for s in (system, same))
    assert torch.equal(a, b)


def test_a_method_that_cannot_is_not_offered():
    system = sk.compiled(branching, branching)
    with pytest.raises(CapabilityError, match="milstein") as error:
        gather(system, solver="milstein")
    assert "'milstein'," not in str(error.value).partition("It runs")[2]
