"""The changes that make mutants, found in a module's syntax tree.

operator       the change
-------------  ----------------------------------------------------------------------------
sign           -a for a where a is a whole formula or a weight, not within |a|; a for -a
plus-minus     a - b for a + b, and back; -= for +=
times-over     a / b for a * b, and back
exponent       a**(n + 1) and a**(n - 1) for a**n
constant       c + 1; 0 for 1; 1.01 c in formulas
index          i + 1 and i - 1 for an index i, in subscripts, register names and node arguments
comparison     <= for <, == for !=, `is` for `is not`, and back
argument       f(b, a) for f(a, b) where a and b are of one kind: nodes, indices, registers, numbers
coefficient    alpha for sigma, alpha' for sigma', and back
node           the node ahead for the node here, and back
extremum       max for min, and back

Left out, because they are no formulas: docstrings, annotations, words, `raise` and what guards it alone,
`assert`, input checks, and the functions of `scope.NOT_FORMULAS`.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from tests.mutation.vocabulary import (
    ARITHMETIC,
    AT_NODES,
    COMPARISONS,
    ELEMENTARY,
    EXTREMA,
    INDICES,
    INPUT_CHECKS,
    INTEGER_ARGUMENTS,
    NODE_NAMES,
    SWAP,
    called,
    collected,
    counts,
    is_number,
    is_words,
    kind,
    only_raises,
)

__all__ = ["Around", "Change", "changes"]


@dataclass(frozen=True)
class Around:
    """What a visit knows of the nodes above.

    function, names: of the outermost function, and the names in it; scope: qualified name down to here;
    lines: of the statement; index: inside a subscript, a range or a register's name, where integers count;
    inside: within a larger formula, whose sign changes with that of its whole; exponent: of a power.
    """

    function: str = ""
    names: frozenset[str] = frozenset()
    scope: str = ""
    lines: tuple[int, int] = (0, 0)
    index: bool = False
    inside: bool = False
    exponent: bool = False


class Change(NamedTuple):
    """``new`` for the value in ``field`` of ``parent``, at ``position`` where that is a list.

    at: the node whose place in the text is the change's.
    """

    parent: Any
    field: str
    position: int | None
    new: Any
    operator: str
    at: Any
    around: Around


def changes(tree: ast.Module, skipped: set[str]) -> Iterator[Change]:
    """Every change of a module, in the order of its text; ``skipped`` functions have none."""
    yield from _block(tree.body, Around(), skipped)


def _block(body: list[ast.stmt], around: Around, skipped: set[str]) -> Iterator[Change]:
    for statement in body:
        if isinstance(statement, ast.ClassDef | ast.FunctionDef):
            yield from _definition(statement, around, skipped)
        else:
            yield from _statement(statement, around, skipped)


def _definition(s: ast.ClassDef | ast.FunctionDef, around: Around, skipped: set[str]) -> Iterator[Change]:
    scope = f"{around.scope}.{s.name}".lstrip(".")
    if scope in skipped:
        return
    if isinstance(s, ast.FunctionDef):
        header = replace(around, lines=(s.lineno, s.body[0].lineno - 1))
        for field in ("defaults", "kw_defaults"):
            for k, default in enumerate(getattr(s.args, field)):
                yield from _value(s.args, field, k, default, header)
        if not around.function:
            names = {node.id for node in ast.walk(s) if isinstance(node, ast.Name)}
            names |= {node.arg for node in ast.walk(s) if isinstance(node, ast.arg)}
            around = replace(around, function=scope, names=frozenset(names))
    yield from _block(s.body, replace(around, scope=scope), skipped)


def _statement(s: ast.stmt, around: Around, skipped: set[str]) -> Iterator[Change]:
    if isinstance(s, ast.Raise | ast.Assert | ast.Import | ast.ImportFrom):
        return
    if isinstance(s, ast.Expr) and (isinstance(s.value, ast.Constant) or called(s.value) in INPUT_CHECKS):
        return
    if isinstance(s, ast.If) and (only_raises(s.body) or ast.unparse(s.test) == "TYPE_CHECKING"):
        yield from _block(s.orelse, around, skipped)
        return
    blocks = [name for name in ("body", "orelse", "finalbody") if getattr(s, name, None)]
    last = getattr(s, blocks[0])[0].lineno - 1 if blocks else (s.end_lineno or s.lineno)
    around = replace(around, lines=(s.lineno, max(last, s.lineno)))
    if isinstance(s, ast.AugAssign) and isinstance(s.op, ast.Add | ast.Sub) and not collected(s.target):
        new = ast.Sub() if isinstance(s.op, ast.Add) else ast.Add()
        yield Change(s, "op", None, new, "plus-minus", s, around)
    for field in ("value", "test", "iter"):
        if not is_words(s):
            yield from _value(s, field, None, getattr(s, field, None), around)
    if isinstance(s, ast.With):
        for item in s.items:
            yield from _value(item, "context_expr", None, item.context_expr, around)
    for name in blocks:
        yield from _block(getattr(s, name), around, skipped)


def _value(parent: Any, field: str, k: int | None, node: Any, around: Around) -> Iterator[Change]:
    """Changes of one expression and of those inside it."""
    if is_number(node):
        for operator, c in _constants(node.value, around):
            yield Change(parent, field, k, ast.copy_location(ast.Constant(c), node), operator, node, around)
        return
    if node is None or isinstance(node, ast.Constant):
        return
    formula = _is_formula(node)
    if counts(node):
        around = replace(around, index=True)
    if formula and not around.inside and not around.index:
        yield Change(parent, field, k, _minus(node), "sign", node, around)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        if not is_number(node.operand):
            yield Change(parent, field, k, node.operand, "sign", node, around)
        yield from _value(node, "operand", None, node.operand, replace(around, inside=True))
    elif isinstance(node, ast.BinOp):
        yield from _binary(node, around, formula)
    elif isinstance(node, ast.Name):
        yield from _name(parent, field, k, node, around)
    elif isinstance(node, ast.Attribute):
        if node.attr in SWAP and node.attr not in NODE_NAMES:
            yield Change(node, "attr", None, SWAP[node.attr], "coefficient", node, around)
        yield from _value(node, "value", None, node.value, around)
    elif isinstance(node, ast.Subscript):
        yield from _value(node, "value", None, node.value, around)
        yield from _value(node, "slice", None, node.slice, replace(around, index=True))
    elif isinstance(node, ast.Call):
        yield from _call(node, around)
    elif isinstance(node, ast.Compare):
        yield from _compare(node, around)
    elif isinstance(node, ast.JoinedStr):
        for part in node.values:
            if isinstance(part, ast.FormattedValue):
                yield from _value(part, "value", None, part.value, replace(around, index=True))
    elif isinstance(node, ast.Tuple | ast.List):
        yield from _elements(node, around)
    else:
        yield from _children(node, replace(around, inside=False))


def _is_formula(node: ast.AST) -> bool:
    if isinstance(node, ast.BinOp):
        joined = collected(node.left) or collected(node.right)
        return isinstance(node.op, ARITHMETIC) and not joined
    return called(node) in ELEMENTARY


def _minus(node: ast.expr) -> ast.UnaryOp:
    return ast.copy_location(ast.UnaryOp(ast.USub(), node), node)


def _shifted(node: ast.expr, by: int) -> ast.BinOp:
    operator = ast.Add() if by > 0 else ast.Sub()
    return ast.copy_location(ast.BinOp(node, operator, ast.Constant(abs(by))), node)


def _constants(c: Any, around: Around) -> list[tuple[str, Any]]:
    """(operator, value) of the changes of a number c. In sums of indices the sign does the rest."""
    if around.exponent:
        return [("exponent", c + 1), ("exponent", c - 1)]
    found = [] if around.index and around.inside else [("constant", c + 1)]
    if c == 1:
        found.append(("constant", 0 if isinstance(c, int) else 0.0))
    if c != 0 and not around.index and around.inside:
        found.append(("constant", c * 1.01))
    return found


def _elements(node: ast.Tuple | ast.List, around: Around) -> Iterator[Change]:
    """In a pair (weight, register) the weight may change its sign."""
    pair = isinstance(node, ast.Tuple) and len(node.elts) == 2 and not around.index
    for k, element in enumerate(node.elts):
        plain = isinstance(element, ast.Name | ast.Attribute | ast.Subscript)
        if pair and k == 0 and plain and kind(element) not in ("index", "node", "register", "item of path"):
            yield Change(node, "elts", k, _minus(element), "sign", element, around)
        yield from _value(node, "elts", k, element, replace(around, inside=False))


def _children(node: ast.AST, around: Around) -> Iterator[Change]:
    """Inside conditions, comprehensions, lambdas, slices and the like."""
    for name, child in ast.iter_fields(node):
        if name in ("ctx", "args", "func", "target"):
            continue
        if isinstance(child, list):
            for k, element in enumerate(child):
                if isinstance(element, ast.expr | ast.comprehension):
                    yield from _value(node, name, k, element, around)
        elif isinstance(child, ast.expr):
            yield from _value(node, name, None, child, around)


def _compare(node: ast.Compare, around: Around) -> Iterator[Change]:
    for k, op in enumerate(node.ops):
        if type(op) in COMPARISONS:
            yield Change(node, "ops", k, COMPARISONS[type(op)](), "comparison", node, around)
    yield from _value(node, "left", None, node.left, around)
    for k, right in enumerate(node.comparators):
        yield from _value(node, "comparators", k, right, around)


def _binary(node: ast.BinOp, around: Around, formula: bool) -> Iterator[Change]:
    other: dict[type[ast.operator], tuple[type[ast.operator], str]] = {
        ast.Add: (ast.Sub, "plus-minus"),
        ast.Sub: (ast.Add, "plus-minus"),
        ast.Mult: (ast.Div, "times-over"),
        ast.Div: (ast.Mult, "times-over"),
    }
    if formula and type(node.op) in other:
        new, operator = other[type(node.op)]
        yield Change(node, "op", None, new(), operator, node, around)
    inner = replace(around, inside=True, exponent=False)
    yield from _value(node, "left", None, node.left, inner)
    power = isinstance(node.op, ast.Pow)
    if power and not is_number(node.right):
        for by in (1, -1):
            yield Change(node, "right", None, _shifted(node.right, by), "exponent", node.right, around)
    yield from _value(node, "right", None, node.right, replace(inner, exponent=power))


def _name(parent: Any, field: str, k: int | None, node: ast.Name, around: Around) -> Iterator[Change]:
    if around.index and node.id in INDICES and not isinstance(parent, ast.BinOp | ast.Call):
        for by in (1, -1):
            yield Change(parent, field, k, _shifted(node, by), "index", node, around)
    if not around.index and SWAP.get(node.id) in around.names:
        operator = "node" if node.id in NODE_NAMES else "coefficient"
        yield Change(node, "id", None, SWAP[node.id], operator, node, around)


def _call(node: ast.Call, around: Around) -> Iterator[Change]:
    name, func = called(node), node.func
    if name in INPUT_CHECKS or name in {"unknown_name", "cast", "isinstance"}:
        return
    if name in EXTREMA:
        field = "id" if isinstance(func, ast.Name) else "attr"
        yield Change(func, field, None, EXTREMA[name], "extremum", node, around)
    for k in range(len(node.args) - 1):
        a, b = node.args[k : k + 2]
        if kind(a) and kind(a) == kind(b) and name not in EXTREMA and name != "zip":
            swapped = [*node.args[:k], b, a, *node.args[k + 2 :]]
            yield Change(node, "args", None, swapped, "argument", a, around)
    if isinstance(func, ast.Attribute):
        yield from _value(func, "value", None, func.value, replace(around, inside=True))
    for k, argument in enumerate(node.args):
        if name in AT_NODES and isinstance(argument, ast.Name) and argument.id in INDICES:
            for by in (1, -1):
                yield Change(node, "args", k, _shifted(argument, by), "index", argument, around)
            continue
        integer = (
            around.index or name in INTEGER_ARGUMENTS or (name in AT_NODES and kind(argument) == "index")
        )
        yield from _value(
            node, "args", k, argument, replace(around, index=integer, inside=name == "abs", exponent=False)
        )
    for keyword in node.keywords:
        if keyword.arg not in ("strict", "dtype", "device", "keepdim", "dim"):
            yield from _value(keyword, "value", None, keyword.value, replace(around, inside=False))
