"""The source text of a kernel: formulas of a step, written out in a loop over 64 paths at a time.

Per block of 64 paths the state stays in 64-wide arrays on the stack. For every few steps, as many as share
blocks of Philox, their normals are made; then for each step one loop over the paths holds the formulas in
straight-line code. Path p is in lane 2 (p mod 32) + p div 32, so that words are stored in pairs. All loops
run over independent paths, so that they vectorise. The text depends on the formulas alone: numbers in them,
times and step lengths are data.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from math import lcm
from typing import Any

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


def _noise(event: int, normals: int) -> tuple[int, int, list[str]]:
    """(steps that share blocks, 64-wide rows of normals, code that fills them before step k).

    Row (k mod steps) * normals * width + j * width + e is element e of draw k * normals + j.
    """
    if event < 4:
        width = 4 if event == 3 else event
        shared = 4 // width
        steps = lcm(normals, shared) // normals
        count, used = steps * normals // shared, 3 if event == 3 else 4
        blocks = [
            (f"(k // {steps}) * {count} + {b}", "0", [4 * b + w if w < used else -1 for w in range(4)])
            for b in range(count)
        ]
    else:
        lanes, steps, width = -(-event // 4), 1, event
        blocks = [
            (str(lane), f"k * {normals} + {j}", [j * event + e if e < event else -1 for e in elements])
            for j in range(normals)
            for lane in range(lanes)
            for elements in [[lanes * w + lane for w in range(4)]]
        ]
    lines: list[str] = []
    for c0, c1, slots in blocks:

        def ready(p: str, q: str, c1: str = c1) -> str:
            return f"load(ready, {p})" if c1 == "0" else f"product_0({q}, c_1, k0)"

        lines += [
            f"shared = common(U({c0}), high, k0, k1)",
            *([] if c1 == "0" else [f"c_1 = U({c1})"]),
            "for p in range(some):",
            "    q, r = load(low, p), load(low, p + 32)",
            f"    a0, a1, a2, a3 = later(shared, q, {ready('p', 'q')}, k0, k1)",
            f"    b0, b1, b2, b3 = later(shared, r, {ready('p + 32', 'r')}, k0, k1)",
            *(f"    store(word, p + {32 * w}, together(a{w}, b{w}))" for w in range(4)),
        ]
        for half in range(2):
            pair = slots[2 * half : 2 * half + 2]
            if max(pair) < 0:
                continue
            words = [f"offset(bits, {128 * half + 64 * i})" for i in range(2)]
            places = [f"offset(z, {64 * slot})" if slot >= 0 else "spare" for slot in pair]
            lines.append(f"pairs(pair, {', '.join(words + places)}, many)")
    rows = steps * normals * width
    return steps, rows, lines


HEADER = '''"""Written by sdekit.solvers.compiled."""

import math

import numba
import numpy as np

from sdekit.noise._jit import inline, load, offset, pointer, scratch, store
from sdekit.noise._normals import HALF_WORD, MASK, pair{bits} as pair, pairs
from sdekit.solvers.compiled.elementary import COS, EXP, LOG, SIN
from sdekit.solvers.compiled.stream import common, halves, later, product_0, product_1, together

F, I, U, L = np.float{bits}, np.int32, np.uint64, np.int64
exp, log, sin, cos = EXP[F], LOG[F], SIN[F], COS[F]
F0, I0, U0, L0 = F(0), I(0), U(0), L(0)

'''

KERNEL = """
@inline
def lane(p):
    return 2 * (p % 32) + p // 32


def kernel(start, end, saved, nodes, count, hits, ids, rows, stride, steps, table, numbers, key0, key1):
    start, end, saved = pointer(start, F0), pointer(end, F0), pointer(saved, F0)
    nodes, hits, ids = pointer(nodes, L0), pointer(hits, I0), pointer(ids, L0)
    table, numbers = pointer(table, F0), pointer(numbers, F0)
    k0, k1 = U(key0), U(key1)
{constants}
    x, z, word = scratch({width_x}, F0), scratch({width_z}, F0), scratch(128, U0)
    spare = scratch(64, F0)
    bits = halves(word)
    low, ready, hit = scratch(64, U0), scratch(64, U0), scratch(64, I0)
    row, some, many = 0, 32 + (stride >> 62), 64 + (stride >> 62)  # 32 and 64, for loops that stay loops
    while row < rows:
        high, used = U(load(ids, row)) >> HALF_WORD, 1
        while used < min(64, rows - row) and U(load(ids, row + used)) >> HALF_WORD == high:
            used += 1
        for p in range(64):
            q = row + min(p, used - 1)
            product = product_1(U(load(ids, q)) & MASK)
            store(low, p, product)
            store(ready, p, product_0(product, U0, k0))
            store(hit, p, I(-1))
        for p in range(64):
            q = row + min(p, used - 1)
            for e in range({dim}):
                store(x, 64 * e + lane(p), load(start, q * {dim} + e))
        save = 0
{first}
        for k in range(steps):
            if k % {group} == 0:
{noise}
            at = offset(z, (k % {group}) * {stride})
{scalars}
            for p in range(many):
{body}
            while save < count and load(nodes, save) == k + 1:
                for p in range(used):
                    for e in range({dim}):
                        store(saved, (save * stride + row + p) * {dim} + e, load(x, 64 * e + lane(p)))
                save += 1
        for p in range(used):
            for e in range({dim}):
                store(end, (row + p) * {dim} + e, load(x, 64 * e + lane(p)))
{last}
        row += used
"""

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
    group, rows, made = _noise(noise, normals)
    width = nodes + 1 + normals
    names = [*(f"t{i}" for i in range(nodes)), "h", *(f"s{j}" for j in range(normals))]
    scalars = [f"{name} = load(table, k * {width} + {i})" for i, name in enumerate(names)]
    per = rows // (group * normals)
    body = [
        *(f"x{i} = load(x, p + {64 * i})" for i in range(dim)),
        *(
            f"z{j * noise + e} = load(at, p + {64 * (j * per + e)})"
            for j in range(normals)
            for e in range(noise)
        ),
        *writer.lines,
        *(f"store(x, p + {64 * i}, {name})" for i, name in enumerate(outputs)),
    ]
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
        after = f"t0 = load(table, (k + 1) * {width})"
        seen = _indent([after, *WATCH.format(**parts, step="k + 1").split("\n")], 3)
        last = _indent(["for p in range(used):", "    store(hits, row + p, load(hit, lane(p)))"], 2)
    text = KERNEL.format(
        constants=_indent([f"c{i} = load(numbers, {i})" for i, _ in numbers.values()], 1),
        width_x=64 * dim,
        width_z=64 * rows,
        dim=dim,
        first=first,
        group=group,
        noise=_indent(made, 4),
        stride=64 * normals * per,
        scalars=_indent(scalars, 3),
        body=_indent(body, 4) + ("\n" + seen if seen else ""),
        last=last,
    )
    return Source(HEADER.format(bits=bits) + text, tuple(v for _, v in numbers.values()))
