"""The compiled exp, log, sin and cos against numpy in a wider format, and derivatives of formulas."""

from __future__ import annotations

import math

import numba
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import sdekit as sk
from sdekit.solvers.compiled import elementary, functions
from sdekit.solvers.compiled.symbols import Symbol, Untraceable, apply, differentiate, postorder

TABLES = {"exp": elementary.EXP, "log": elementary.LOG, "sin": elementary.SIN, "cos": elementary.COS}
WIDER = {np.float32: np.float64, np.float64: np.longdouble}


def run(name, x):
    function = TABLES[name][x.dtype.type]

    @numba.njit(error_model="numpy")
    def loop(x, y):
        for i in range(x.size):
            y[i] = function(x[i])

    y = np.empty_like(x)
    loop(x, y)
    return y


def arguments(name, real):
    rng = np.random.default_rng(0)
    single = real is np.float32
    if name == "exp":
        ends = (-87.0, 88.0) if single else (-708.0, 709.0)
        x = np.r_[rng.uniform(*ends, 20000), rng.uniform(-1, 1, 20000), np.linspace(-0.4, 0.4, 5001)]
    elif name == "log":
        x = np.r_[
            np.exp(rng.uniform(-85 if single else -700, 85 if single else 700, 20000)),
            rng.uniform(0.5, 2, 20000),
            np.nextafter(real(1), [real(0), real(2)]),
        ]
    else:
        x = np.r_[
            rng.uniform(-10, 10, 20000), rng.uniform(-1e6, 1e6, 20000), np.arange(-64, 65) * (math.pi / 4)
        ]
    return x.astype(real)


@pytest.mark.parametrize("real", [np.float32, np.float64])
@pytest.mark.parametrize("name", ["exp", "log", "sin", "cos"])
def test_accuracy(name, real):
    x = arguments(name, real)
    exact = getattr(np, name)(x.astype(WIDER[real]))
    error = np.abs(run(name, x).astype(WIDER[real]) - exact)
    if name in ("exp", "log"):
        assert float((error / np.spacing(np.abs(exact).astype(real))).max()) <= 1.0
    else:
        assert float(error.max()) <= (1.5e-7 if real is np.float32 else 2.5e-16)


@pytest.mark.parametrize("real", [np.float32, np.float64])
def test_ends(real):
    inf, nan = real(math.inf), real(math.nan)
    tiny = np.finfo(real).smallest_subnormal
    assert run("exp", np.array([0, -inf, inf, 1e4, -1e4], real)).tolist() == [1, 0, math.inf, math.inf, 0]
    assert run("log", np.array([1, 0, -0.0, inf], real)).tolist() == [0, -math.inf, -math.inf, math.inf]
    assert np.isnan(run("log", np.array([-1, -inf, nan], real))).all()
    small = run("log", np.array([tiny, 4 * tiny], real))
    np.testing.assert_allclose(
        small, np.log(np.array([tiny, 4 * tiny], np.longdouble)).astype(real), rtol=3e-7
    )
    deep = np.array([-100.0 if real is np.float32 else -740.0], real)
    assert abs(float(run("exp", deep)[0]) - math.exp(float(deep[0]))) <= float(tiny)
    for name in ("exp", "sin", "cos"):
        assert np.isnan(run(name, np.array([nan], real))).all()
    for name in ("sin", "cos"):
        assert np.isnan(run(name, np.array([inf, -inf, 2.0**51], real))).all()


@pytest.mark.parametrize("name", ["exp", "log", "sin", "cos", "sqrt", "tanh"])
def test_tensors_and_floats(name):
    function, x = getattr(functions, name), torch.tensor([0.3, 1.7], dtype=torch.float64)
    assert torch.equal(function(x), getattr(torch, name)(x))
    assert function(0.3) == getattr(math, name)(0.3)


def test_choices_of_tensors_and_floats():
    c, x = sk.compiled, torch.tensor([-1.0, 2.0, math.nan])
    assert c.maximum(x, 0.5)[:2].tolist() == [0.5, 2.0]
    assert c.minimum(0.5, x)[:2].tolist() == [-1.0, 0.5]
    assert bool(c.maximum(x, 0.5)[2].isnan())
    assert (c.maximum(1.0, 2.0), c.minimum(1.0, 2.0), c.where(True, 3.0, 4.0)) == (2.0, 1.0, 3.0)
    assert c.where(x > 0, 1.0, -1.0).tolist() == [-1.0, 1.0, -1.0]


# -- derivatives -------------------------------------------------------------------------------------------


def value(root, x0):
    """A formula of x at a number."""
    at = {}
    for node in postorder([root]):
        a = [at[id(arg)] for arg in node.args if isinstance(arg, Symbol)]
        at[id(node)] = {
            "input": lambda a, n: x0,
            "constant": lambda a, n: n.args[0],
            "add": lambda a, n: a[0] + a[1],
            "sub": lambda a, n: a[0] - a[1],
            "mul": lambda a, n: a[0] * a[1],
            "div": lambda a, n: a[0] / a[1],
            "pow": lambda a, n: a[0] ** a[1],
            "neg": lambda a, n: -a[0],
            "abs": lambda a, n: abs(a[0]),
            "lt": lambda a, n: a[0] < a[1],
            "gt": lambda a, n: a[0] > a[1],
            "where": lambda a, n: a[1] if a[0] else a[2],
            "maximum": lambda a, n: max(a),
            "minimum": lambda a, n: min(a),
            **{
                f: (lambda a, n, f=f: getattr(math, f)(a[0]))
                for f in ("exp", "log", "sin", "cos", "sqrt", "tanh")
            },
        }[node.op](a, node)
    return at[id(root)]


FORMULAS = {
    "sum": lambda x: 3 * x + x - 2 + (1 - x) * x,
    "quotient": lambda x: (x + 2) / (x * x + 1) - 1 / x,
    "powers": lambda x: x**3 - x**-2 + x**0.5 + x**1.7 + 2.5**x,
    "functions": lambda x: apply("exp", -x) * apply("sin", 2 * x) + apply("cos", x) * apply("log", x + 1),
    "roots": lambda x: apply("sqrt", 1 + x * x) + apply("tanh", x) + abs(x - 5) - (-x),
    "choices": lambda x: (
        apply("where", x > 1.0, x**2, x) + apply("maximum", x, 0.2) * apply("minimum", x, 9.0)
    ),
    "other side": lambda x: (
        apply("maximum", x, 9.0) + apply("minimum", 0.01, x) + apply("where", x < 0.0, x, x * x)
    ),
}


@pytest.mark.parametrize("name", FORMULAS)
@given(at=st.floats(0.3, 4.0).filter(lambda v: abs(v - 1.0) > 1e-3))
def test_derivatives_against_differences(name, at):
    x = Symbol("input", "x")
    slope = differentiate(FORMULAS[name](x), x)
    h = 1e-5
    difference = (value(FORMULAS[name](x), at + h) - value(FORMULAS[name](x), at - h)) / (2 * h)
    assert value(slope, at) == pytest.approx(difference, rel=2e-7, abs=2e-7)


def test_derivatives_that_vanish_are_none():
    x, y = Symbol("input", "x"), Symbol("input", "y")
    assert differentiate(y * y + 3.0, x) is None
    assert differentiate(x - x, y) is None


@pytest.mark.parametrize(
    "f",
    [
        lambda x: x if x > 0 else -x,
        lambda x: math.exp(x),
        lambda x: torch.erf(x),
        lambda x: x + torch.ones(2),
        lambda x: np.add(x, 1.0, dtype=float),
        lambda x: x * "a",
    ],
)
def test_what_is_no_formula(f):
    with pytest.raises(TypeError):
        f(Symbol("input", "x"))


def test_a_tensor_that_requires_a_gradient_is_no_number():
    with pytest.raises(Untraceable, match="gradient"):
        Symbol("input", "x") * torch.tensor(2.0, requires_grad=True)
