"""The source text of a kernel: formulas of a step, written out in a loop over 64 paths at a time.

Per block of 64 paths the state stays in 64-wide arrays on the stack. For every few steps, as many as share
blocks of Philox, their normals are made; then for each step one loop over the paths holds the formulas in
straight-line code. All loops run over independent paths, so that they vectorise. The text depends on the
formulas alone: numbers in them, times and step lengths are data.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sdekit.solvers.compiled.blocks import blocks
from sdekit.solvers.compiled.symbols import Symbol, postorder

__all__ = ["Source", "source"]

INFIX = {"add": "+", "sub": "-", "mul": "*", "div": "/", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}
INFIX |= {"eq": "==", "ne": "!=", "and": "&", "or": "|", "pow": "**"}
TEMPLATES = {name: f"{{}} {op} {{}}" for name, op in INFIX.items()} | {
    "neg": "-{}",
    "sqrt": "np.sqrt({})",
    "exp": "exp({})",
    "log": "log({})",
    "sin": "sin({})",
    "cos": "cos({})",
    "tanh": "math.tanh({})",
    "abs": "abs({})",
    "where": "({1} if {0} else {2})",
    "maximum": "({1} if ({0} < {1}) | ({1} != {1}) else {0})",
    "minimum": "({1} if ({0} > {1}) | ({1} != {1}) else {0})",
}


LINES = 40
"""Operations up to which steps that share blocks go in one loop, their state in registers."""


@dataclass(frozen=True)
class Source:
    """text: a module that defines ``kernel``. numbers: the parameters that it reads, in order."""

    text: str
    numbers: tuple[float, ...]


class _Writer:
    """Formulas as assignments, each value once."""

    def __init__(self, numbers: dict[bytes, tuple[int, float]], real: Callable[[str], str]) -> None:
        self.lines: list[str] = []
        self.known: dict[Any, str] = {}
        self.names: dict[int, str] = {}
        self.numbers, self.real = numbers, real

    def write(self, roots: list[Symbol]) -> list[str]:
        """The names that hold the values of the roots."""
        for node in postorder(roots):
            self.names[id(node)] = self._name(node)
        return [self.names[id(root)] for root in roots]

    def _name(self, node: Symbol) -> str:
        if node.op == "input":
            return str(node.args[0])
        if node.op == "constant":
            key = struct.pack("d", node.args[0])
            index, _ = self.numbers.setdefault(key, (len(self.numbers), node.args[0]))
            return f"c{index}"
        if node.op == "call":
            function, index, args = node.args
            call = self._assign(f"{function}({', '.join(self.names[id(a)] for a in args)})")
            return self._assign(self.real(call + "".join(f"[{i}]" for i in index)))
        text = TEMPLATES[node.op].format(*(self.names[id(a)] for a in node.args))
        # numba computes powers and libm functions of float32 in float64.
        return self._assign(self.real(text) if node.op in ("pow", "tanh") else text)

    def _assign(self, text: str) -> str:
        if text not in self.known:
            self.known[text] = f"v{len(self.known)}"
            self.lines.append(f"{self.known[text]} = {text}")
        return self.known[text]


def _indent(lines: list[str], depth: int) -> str:
    return "\n".join("    " * depth + line for line in lines)


HEADER = '''"""Written by sdekit.solvers.compiled."""

import math

import numba
import numpy as np

from sdekit.noise._box_muller import normals_of_32, pair{bits} as pair, pairs
from sdekit.noise._jit import load, offset, pointer, scratch, store
from sdekit.noise._normals import HALF_WORD
from sdekit.solvers.compiled.elementary import COS, EXP, LOG, SIN
from sdekit.solvers.compiled.stream import alike, product_0, products, words_of_32

F, I, U, L = np.float{bits}, np.int32, np.uint64, np.int64
exp, log, sin, cos = EXP[F], LOG[F], SIN[F], COS[F]
F0, I0, U0, L0 = F(0), I(0), U(0), L(0)

'''

KERNEL = """
def kernel(start, end, saved, nodes, count, hits, ids, rows, stride, steps, table, numbers, key0, key1):
    start, end, saved = pointer(start, F0), pointer(end, F0), pointer(saved, F0)
    nodes, hits, ids = pointer(nodes, L0), pointer(hits, I0), pointer(ids, L0)
    table, numbers = pointer(table, F0), pointer(numbers, F0)
    k0, k1 = U(key0), U(key1)
{constants}
    x, z, word = scratch({width_x}, F0), scratch({width_z}, F0), scratch(256, I0)
    spare = scratch(64, F0)
    low, ready, hit = scratch(64, U0), scratch(64, U0), scratch(64, I0)
    row, many = 0, 64 + (stride >> 62)  # 64, for loops that stay loops
    while row < rows:
        used = alike(offset(ids, row), min(64, rows - row))
        high = U(load(ids, row)) >> HALF_WORD
        products(offset(ids, row), used, low, ready, k0)
        for p in range(64):
            store(hit, p, I(-1))
        for p in range(used):
            for e in range({dim}):
                store(x, 64 * e + p, load(start, (row + p) * {dim} + e))
        for p in range(used, 64):
            for e in range({dim}):
                store(x, 64 * e + p, load(start, row * {dim} + e))
        save = 0
{first}
        k = 0
        while k < steps:
            if k % {group} == 0:
{noise}
{together}
            at = offset(z, (k % {group}) * {stride})
{scalars}
            for p in range(many):
{body}
            k += 1
{seen}
            while save < count and load(nodes, save) == k:
                for p in range(used):
                    for e in range({dim}):
                        store(saved, (save * stride + row + p) * {dim} + e, load(x, 64 * e + p))
                save += 1
        for p in range(used):
            for e in range({dim}):
                store(end, (row + p) * {dim} + e, load(x, 64 * e + p))
{last}
        row += used
"""

TOGETHER = """if {condition}:
{scalars}
    for p in range(many):
{body}
    k += {group}
    continue"""

WATCH = """for p in range(64):
{loads}
{lines}
    store(hit, p, I({step}) if (load(hit, p) < I0) & ({value} >= F0) else load(hit, p))"""


def source(
    new: tuple[Symbol, ...],
    *,
    noise: int,
    normals: int,
    nodes: int,
    bits: int,
    watch: Symbol | None = None,
) -> Source:
    """The kernel of a step in float32 or float64 (``bits``).

    kernel(addresses of start (rows, dim), end (rows, dim), saved (count, rows, dim) in blocks of ``stride``
    rows, nodes int64 (count,), hits int32 (rows,), ids int64 (rows,); rows, stride, steps, table (steps + 1,
    width), numbers, key). A row of the table holds the ``nodes`` times of a step, its length and the standard
    deviations of W, H, K; row ``steps`` the last time. Saved times are nodes of the grid, counted from 1.
    hits: of ``watch``, a formula in x0...
    and t0, the first node at which it is >= 0, else -1; not written without one.
    """
    dim = len(new)
    numbers: dict[bytes, tuple[int, float]] = {}

    def real(text: str) -> str:
        return f"F({text})"

    writer = _Writer(numbers, real)
    outputs = writer.write(list(new))
    group, rows, made = blocks(noise, normals)
    width = nodes + 1 + normals
    names = [*(f"t{i}" for i in range(nodes)), "h", *(f"s{j}" for j in range(normals))]
    per = rows // (group * normals)
    stride = 64 * normals * per
    inputs = [f"x{i}" for i in range(dim)]
    states = [f"{name} = load(x, p + {64 * i})" for i, name in enumerate(inputs)]
    ends = [f"store(x, p + {64 * i}, {name})" for i, name in enumerate(outputs)]

    def scalars(step: int, mark: str) -> list[str]:
        return [f"{name}{mark} = load(table, (k + {step}) * {width} + {i})" for i, name in enumerate(names)]

    def formulas(start: int) -> list[str]:
        places = [(j * noise + e, start + 64 * (j * per + e)) for j in range(normals) for e in range(noise)]
        return [*(f"z{i} = load(at, p + {place})" for i, place in places), *writer.lines]

    together = ""
    if group > 1 and watch is None and group * len(writer.lines) <= LINES:
        body = list(states)
        for g in range(group):
            body += [f"{name} = {name}_{g}" for name in names]
            body += formulas(g * stride)
            body += [f"{', '.join(inputs)} = {', '.join(outputs)}"] if g < group - 1 else ends
        together = TOGETHER.format(
            condition=f"k % {group} == 0 and k + {group} <= steps and "
            f"(save == count or load(nodes, save) > k + {group})",
            scalars=_indent(
                ["at = offset(z, 0)", *(line for g in range(group) for line in scalars(g, f"_{g}"))], 1
            ),
            body=_indent(body, 2),
            group=group,
        )
    first, last, seen = "", "", ""
    if watch is not None:
        other = _Writer(numbers, real)
        (value,) = other.write([watch])
        parts = {
            "loads": _indent([f"x{i} = load(x, p + {64 * i})" for i in range(dim)], 1),
            "lines": _indent(other.lines, 1) or "    pass",
            "value": value,
        }
        first = _indent(["t0 = load(table, 0)", *WATCH.format(**parts, step="0").split("\n")], 2)
        after = f"t0 = load(table, k * {width})"
        seen = _indent([after, *WATCH.format(**parts, step="k").split("\n")], 3)
        last = _indent(["for p in range(used):", "    store(hits, row + p, load(hit, p))"], 2)
    text = KERNEL.format(
        constants=_indent([f"c{i} = load(numbers, {i})" for i, _ in numbers.values()], 1),
        width_x=64 * dim,
        width_z=64 * rows,
        dim=dim,
        first=first,
        group=group,
        noise=_indent(made, 4),
        together=_indent(together.split("\n"), 3),
        stride=stride,
        scalars=_indent(scalars(0, ""), 3),
        body=_indent([*states, *formulas(0), *ends], 4),
        seen=seen,
        last=last,
    )
    return Source(HEADER.format(bits=bits) + text, tuple(v for _, v in numbers.values()))
