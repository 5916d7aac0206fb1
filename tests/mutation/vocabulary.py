"""What names and expressions stand for: indices, nodes, registers, numbers, formulas, words."""

from __future__ import annotations

import ast

__all__ = [
    *("ARITHMETIC", "AT_NODES", "COMPARISONS", "ELEMENTARY", "EXTREMA", "INDICES", "INPUT_CHECKS"),
    *("INTEGER_ARGUMENTS", "NODE_NAMES", "SWAP", "called", "collected", "counts", "is_number", "is_words"),
    *("kind", "only_raises"),
]

INDICES = {"i", "j", "k", "m", "node", "end", "first", "second", "draw"}
NODES = {"here", "ahead", "between", "down", "one", "two", "top"}
REGISTERS = {"x", "denoised", "out", "guess", "fresh", "score", "tag"}
NUMBERS = {"a", "b", "c", "h", "s", "s2", "e", "alpha", "sigma", "rho", "phi", "start", "width", "t", "step"}
PAIRS = (
    *(("alpha", "sigma"), ("ai", "si"), ("aj", "sj"), ("dalpha", "dsigma")),
    *(("here", "ahead"), ("start", "end"), ("rho_a", "rho_b")),
)
SWAP = {a: b for pair in PAIRS for a, b in (pair, pair[::-1])}
NODE_NAMES = {"here", "ahead", "start", "end", "rho_a", "rho_b"}
EXTREMA = {
    a: b
    for pair in (
        *(("min", "max"), ("minimum", "maximum"), ("amin", "amax"), ("argmin", "argmax")),
        ("clamp_min", "clamp_max"),
    )
    for a, b in (pair, pair[::-1])
}
ELEMENTARY = {"exp", "expm1", "log", "log1p", "sqrt", "atan2", "sin", "tan", "width", "log_ndtr", "lgamma"}
#: Calls whose arguments name nodes of the path or draws.
AT_NODES = {"state", "norm", "back", "angle", "evaluate", "transfer", "spaced", "newest", "finite", "step"}
AT_NODES |= {"with_new", "normal", "sigmas", "beta", "predictor", "gap", "brownian", "unbind"}
INPUT_CHECKS = {"check_count", "check_positive", "check_fraction", "check_finite", "check_compat"}
INPUT_CHECKS |= {"_check_nodes", "_check_compat", "_check_first", "_law", "check_direction"}
INTEGER_ARGUMENTS = {
    "range",
    "unbind",
    "reshape",
    "full_like",
    "repeat",
    "arange",
    "eye",
    "linspace",
    "isqrt",
}
#: Sums of these are lists, strings or masks.
COLLECTIONS = {"nodes", "instructions", "terms", "saved", "found", "stages", "slopes", "body"}
ARITHMETIC = (ast.Add, ast.Sub, ast.Mult, ast.Div, ast.Pow)
COMPARISONS: dict[type[ast.cmpop], type[ast.cmpop]] = {
    a: b
    for pair in ((ast.Lt, ast.LtE), (ast.Gt, ast.GtE), (ast.Eq, ast.NotEq), (ast.Is, ast.IsNot))
    for a, b in (pair, pair[::-1])
}


def called(node: ast.AST) -> str:
    """The name of the function that a call calls."""
    if not isinstance(node, ast.Call):
        return ""
    f = node.func
    return f.id if isinstance(f, ast.Name) else f.attr if isinstance(f, ast.Attribute) else ""


def only_raises(body: list[ast.stmt]) -> bool:
    return all(isinstance(s, ast.Raise) for s in body)


def is_words(s: ast.stmt) -> bool:
    """Whether a statement only names things: __all__, type aliases, registries."""
    target = s.targets[0] if isinstance(s, ast.Assign) else getattr(s, "target", None)
    name = target.id if isinstance(target, ast.Name) else ""
    note = ast.unparse(s.annotation) if isinstance(s, ast.AnnAssign) else ""
    value = getattr(s, "value", None)
    return (
        name == "__all__"
        or note == "TypeAlias"
        or (isinstance(value, ast.Constant) and (isinstance(value.value, str | bool) or value.value is None))
    )


def collected(node: ast.AST) -> bool:
    """Whether + and * on this operand join or repeat collections or words."""
    if isinstance(node, ast.Name):
        return node.id in COLLECTIONS
    if isinstance(node, ast.Call):
        return called(node) in {"list", "tuple", "frozenset", "nodes_at", "jump", "keep", "type"}
    if isinstance(node, ast.BinOp):
        return collected(node.left) or collected(node.right)
    if isinstance(node, ast.Constant):
        return isinstance(node.value, str)
    return isinstance(node, ast.List | ast.Tuple | ast.ListComp | ast.JoinedStr | ast.GeneratorExp | ast.Set)


def kind(node: ast.AST) -> str:
    """What an argument stands for, "" where that is not plain."""
    if isinstance(node, ast.Name):
        groups = (("index", INDICES), ("node", NODES), ("register", REGISTERS), ("number", NUMBERS))
        return next((group for group, names in groups if node.id in names), "")
    if isinstance(node, ast.Subscript):
        return f"item of {ast.unparse(node.value)}"
    if isinstance(node, ast.Attribute):
        return f"field of {ast.unparse(node.value)}" if isinstance(node.value, ast.Name) else ""
    if isinstance(node, ast.Call):
        return "register" if called(node) == "state" else ""
    if isinstance(node, ast.JoinedStr):
        return "register"
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add | ast.Sub):
        left, right = node.left, node.right
        return "index" if kind(left) == "index" and isinstance(right, ast.Constant) else ""
    return ""


def counts(node: ast.AST) -> bool:
    """Whether a sum is of indices or numbers of nodes: an integer."""
    if not (isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add | ast.Sub)):
        return False
    whole = {"n", "q", "steps", "order", "degree", "nodes", "size", "number"}
    names = [ast.unparse(side).split("(")[0].split(".")[-1] for side in (node.left, node.right)]
    integers = [name in whole | INDICES | {"history", "len"} or name.isdigit() for name in names]
    return all(integers) or (counts(node.left) and integers[1])


def is_number(node: ast.AST) -> bool:
    if not isinstance(node, ast.Constant) or isinstance(node.value, bool):
        return False
    return isinstance(node.value, int | float)
