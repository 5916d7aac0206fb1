"""Scalar expressions: a drift called with symbols instead of numbers returns the formula that it computes.

A `Symbol` takes part in arithmetic, comparisons and elementary functions, those of torch and numpy included,
and remembers them in the order written. `differentiate` gives exact derivatives. What needs a value (an
``if``, a conversion to float) raises `Untraceable`.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable
from numbers import Real
from typing import Any

import numpy as np
from torch import Tensor

__all__ = ["CONDITIONS", "Symbol", "Untraceable"]
__all__ += ["apply", "as_symbol", "constant", "differentiate", "fingerprint", "postorder"]


class Untraceable(TypeError):
    """The formula cannot be read off: the function needs the value of a symbol."""


UNARY = ("exp", "log", "sin", "cos", "sqrt", "tanh", "abs", "neg")
CONDITIONS = ("lt", "le", "gt", "ge", "eq", "ne", "and", "or")
BINARY = ("add", "sub", "mul", "div", "pow", "maximum", "minimum", *CONDITIONS)
ALSO = {  # names of numpy, torch and Python's operators
    "negative": "neg",
    "absolute": "abs",
    "fabs": "abs",
    "subtract": "sub",
    "multiply": "mul",
    "divide": "div",
    "truediv": "div",
    "true_divide": "div",
    "power": "pow",
    "less": "lt",
    "less_equal": "le",
    "greater": "gt",
    "greater_equal": "ge",
    "equal": "eq",
    "not_equal": "ne",
    "bitwise_and": "and",
    "bitwise_or": "or",
    "logical_and": "and",
    "logical_or": "or",
}


class Symbol:
    """A node of an expression: an operation and what it is applied to.

    op: "input" (args: its name), "constant" (its value), "call" (function, index, arguments: one value of a
    compiled function), or a name of `apply`.
    """

    __slots__ = ("args", "op")

    def __init__(self, op: str, *args: Any) -> None:
        self.op, self.args = op, args

    def __add__(self, other: Any) -> Symbol:
        return apply("add", self, other)

    def __radd__(self, other: Any) -> Symbol:
        return apply("add", other, self)

    def __sub__(self, other: Any) -> Symbol:
        return apply("sub", self, other)

    def __rsub__(self, other: Any) -> Symbol:
        return apply("sub", other, self)

    def __mul__(self, other: Any) -> Symbol:
        return apply("mul", self, other)

    def __rmul__(self, other: Any) -> Symbol:
        return apply("mul", other, self)

    def __truediv__(self, other: Any) -> Symbol:
        return apply("div", self, other)

    def __rtruediv__(self, other: Any) -> Symbol:
        return apply("div", other, self)

    def __pow__(self, other: Any) -> Symbol:
        return apply("pow", self, other)

    def __rpow__(self, other: Any) -> Symbol:
        return apply("pow", other, self)

    def __neg__(self) -> Symbol:
        return apply("neg", self)

    def __pos__(self) -> Symbol:
        return self

    def __abs__(self) -> Symbol:
        return apply("abs", self)

    def __lt__(self, other: Any) -> Symbol:
        return apply("lt", self, other)

    def __le__(self, other: Any) -> Symbol:
        return apply("le", self, other)

    def __gt__(self, other: Any) -> Symbol:
        return apply("gt", self, other)

    def __ge__(self, other: Any) -> Symbol:
        return apply("ge", self, other)

    def __eq__(self, other: object) -> Symbol:  # type: ignore[override]
        return apply("eq", self, other)

    def __ne__(self, other: object) -> Symbol:  # type: ignore[override]
        return apply("ne", self, other)

    __hash__ = object.__hash__

    def __and__(self, other: Any) -> Symbol:
        return apply("and", self, other)

    def __or__(self, other: Any) -> Symbol:
        return apply("or", self, other)

    def __bool__(self) -> bool:
        raise Untraceable("it branches on a value (if, and, or, max): sdekit.compiled.where selects")

    def __getattr__(self, name: str) -> Any:
        """The methods of a tensor that are known: x.exp(), x.clamp(min=0.0), ..."""
        if name in ("clamp", "clip"):
            return lambda min=None, max=None: _clamp(self, min, max)
        if name in UNARY or name in ("square", "maximum", "minimum"):
            return lambda *args: apply(name, self, *args)
        raise AttributeError(f"a state in a compiled function is one number: it has no {name!r}")

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **options: Any) -> Symbol:
        if method != "__call__" or options:
            raise Untraceable(f"numpy.{ufunc.__name__} with options")
        return apply(ufunc.__name__, *inputs)

    def __array_function__(self, function: Any, types: Any, args: Any, kwargs: Any) -> Any:
        if function is np.where and not kwargs:
            return apply("where", *args)
        if function is np.clip and not kwargs:
            return _clamp(*args)
        return function._implementation(*args, **kwargs)

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Symbol:
        name = function.__name__
        if name in ("clamp", "clip"):
            return _clamp(*args, **(kwargs or {}))
        if kwargs or name == "equal":  # of all samples at once
            raise Untraceable(f"torch.{name}{' with options' if kwargs else ''}")
        if name.startswith("__r") and name[3:-2] in ("sub", "truediv", "div", "pow", "add", "mul"):
            name, args = name[3:-2], args[::-1]
        elif name == "rsub":
            name, args = "sub", args[::-1]
        return apply(name.strip("_"), *args)


def constant(value: float) -> Symbol:
    return Symbol("constant", float(value))


def as_symbol(value: Any) -> Symbol:
    """A symbol, or a number as one. Raises Untraceable for anything else."""
    if isinstance(value, Symbol):
        return value
    if type(value) is float:
        return Symbol("constant", value)
    if isinstance(value, Real):  # numpy's numbers are
        return constant(float(value))
    if isinstance(value, (Tensor, np.ndarray)) and value.ndim == 0:
        if isinstance(value, Tensor) and value.requires_grad:
            raise Untraceable("it uses a tensor that requires a gradient")
        return constant(float(value))
    raise Untraceable(f"it uses a {type(value).__name__} where a number is expected")


def apply(name: str, *operands: Any) -> Symbol:
    """The symbol of an operation by its name here, in numpy, torch or `operator`. Raises Untraceable."""
    name = ALSO.get(name, name)
    args = [as_symbol(a) for a in operands]
    tests = 2 if name in ("and", "or") else 1 if name == "where" else 0
    if any(a.op not in CONDITIONS for a in args[:tests]):
        raise Untraceable(f"{name!r} of numbers, where conditions are expected")
    args[tests:] = [_number(a) for a in args[tests:]]
    if name == "square" and len(args) == 1:
        return Symbol("mul", args[0], args[0])
    if name == "where" and len(args) == 3:
        return Symbol("where", *args)
    if name == "pow" and len(args) == 2 and args[1].op == "constant":
        return _power(args[0], args[1].args[0])
    if len(args) != (1 if name in UNARY else 2) or name not in (*UNARY, *BINARY):
        raise Untraceable(f"it calls {name!r} with {len(args)} arguments, which is not known here")
    if all(a.op == "constant" for a in args) and name in ("add", "sub", "mul", "neg"):
        a, b = args[0].args[0], args[-1].args[0]
        return constant({"add": a + b, "sub": a - b, "mul": a * b, "neg": -a}[name])
    return Symbol(name, *args)


def _number(a: Symbol) -> Symbol:
    """A condition as 1 or 0."""
    return Symbol("where", a, constant(1.0), constant(0.0)) if a.op in CONDITIONS else a


def _power(x: Symbol, p: float) -> Symbol:
    """x^p: products for small whole p, a square root for p = 1/2."""
    if p == 0.5:
        return Symbol("sqrt", x)
    if not (abs(p) <= 16 and p == int(p) and p):
        return constant(1.0) if p == 0 else Symbol("pow", x, constant(p))
    out = x
    for _ in range(int(abs(p)) - 1):
        out = Symbol("mul", out, x)
    return out if p > 0 else Symbol("div", constant(1.0), out)


def _clamp(x: Any, min: Any = None, max: Any = None) -> Symbol:
    out = as_symbol(x)
    out = out if min is None else apply("maximum", out, min)
    return out if max is None else apply("minimum", out, max)


def postorder(roots: Iterable[Symbol]) -> list[Symbol]:
    """Every node below the roots once, each after what it is applied to."""
    out: list[Symbol] = []
    seen: set[int] = set()
    stack = [(root, False) for root in reversed(list(roots))]
    while stack:
        node, ready = stack.pop()
        if ready:
            out.append(node)
        elif id(node) not in seen:
            seen.add(id(node))
            stack.append((node, True))
            below = node.args[2] if node.op == "call" else node.args
            stack += [(a, False) for a in reversed(below) if isinstance(a, Symbol)]
    return out


def fingerprint(roots: list[Symbol]) -> tuple[Any, ...]:
    """Equal for the same formulas with the same numbers, of symbols made at different times."""
    places: dict[int, int] = {}
    found: list[Any] = []
    for node in postorder(roots):
        places[id(node)] = len(places)
        op, args = node.op, node.args
        if op == "constant":
            found.append(struct.pack("d", args[0]))  # 0.0 and -0.0 are equal, and differ
        elif op == "input":
            found.append(args[0])
        else:
            if op == "call":
                found += args[:2]
                args = args[2]
            found.append(op)
            found += [places[id(a)] for a in args]
    found += [places[id(root)] for root in roots]
    return tuple(found)


def _chain(node: Symbol) -> tuple[Callable[[], Symbol], ...]:
    """The derivative of an operation in each of its arguments."""
    a = node.args[0]
    b = node.args[-1]
    return {
        "add": (lambda: constant(1.0), lambda: constant(1.0)),
        "sub": (lambda: constant(1.0), lambda: constant(-1.0)),
        "mul": (lambda: b, lambda: a),
        "div": (lambda: 1.0 / b, lambda: -node / b),
        "neg": (lambda: constant(-1.0),),
        "exp": (lambda: node,),
        "log": (lambda: 1.0 / a,),
        "sin": (lambda: apply("cos", a),),
        "cos": (lambda: -apply("sin", a),),
        "sqrt": (lambda: 0.5 / node,),
        "tanh": (lambda: 1.0 - node * node,),
        "abs": (lambda: apply("where", a < 0.0, -1.0, apply("where", a > 0.0, 1.0, 0.0)),),
        "maximum": (lambda: apply("where", a > b, 1.0, 0.0), lambda: apply("where", a > b, 0.0, 1.0)),
        "minimum": (lambda: apply("where", a < b, 1.0, 0.0), lambda: apply("where", a < b, 0.0, 1.0)),
        "pow": (lambda: b * a ** (b - 1.0), lambda: node * apply("log", a)),
    }[node.op]


def _product(d: Symbol, factor: Symbol) -> Symbol:
    for one, other in ((d, factor), (factor, d)):
        if one.op == "constant" and one.args[0] in (1.0, -1.0):
            return other if one.args[0] == 1.0 else -other
    return d * factor


def differentiate(root: Symbol, x: Symbol) -> Symbol | None:
    """d root / d x, None where it is zero. Raises Untraceable below a compiled function."""
    slopes: dict[int, Symbol] = {id(x): constant(1.0)}
    for node in postorder([root]):
        if node is x or node.op in ("input", "constant", *CONDITIONS):
            continue
        below = node.args[2] if node.op == "call" else node.args
        if all(id(a) not in slopes for a in below):
            continue
        if node.op == "call":
            raise Untraceable("its formula is not known, so that it cannot be differentiated")
        if node.op == "where":
            test, *choices = node.args
            ends = [slopes.get(id(a), constant(0.0)) for a in choices]
            slopes[id(node)] = apply("where", test, *ends)
            continue
        total: Symbol | None = None
        for a, slope in zip(node.args, _chain(node), strict=False):
            if id(a) in slopes:
                term = _product(slopes[id(a)], slope())
                total = term if total is None else total + term
        if total is not None:
            slopes[id(node)] = total
    found = slopes.get(id(root))
    return None if found is not None and found.op == "constant" and found.args[0] == 0.0 else found
