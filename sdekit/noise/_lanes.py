"""Formulas on many lanes at once, written as LLVM vectors.

LLVM's vectoriser works lane by lane of one vector: a chain of dependent operations then waits for itself. A
`Lanes` is several vectors (or one plain number), and each operation is emitted for all of them in a row, so
that the chains of one hide the latency of the others. `splat` and `vectors` make them inside an intrinsic.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from llvmlite import ir  # type: ignore[import-untyped]
from numba.core import cgutils

__all__ = ["Lanes", "splat", "vectors"]

_INT32, _INT64, _FLOAT32 = ir.IntType(32), ir.IntType(64), ir.FloatType()
_declare: Any = cgutils.get_or_insert_function


class Lanes:
    """int32, float32 or uint64 values side by side; operators take a Lanes of the same type or a number."""

    def __init__(self, builder: Any, parts: list[Any]) -> None:
        self.builder, self.parts = builder, parts

    def _make(self, parts: list[Any]) -> Lanes:
        return Lanes(self.builder, parts)

    def _element(self) -> Any:
        kind = self.parts[0].type
        return kind.element if isinstance(kind, ir.VectorType) else kind

    def _of(self, element: Any) -> Any:
        kind = self.parts[0].type
        return ir.VectorType(element, kind.count) if isinstance(kind, ir.VectorType) else element

    def _like(self, x: Any) -> list[Any]:
        """x, or a number in every lane."""
        if isinstance(x, Lanes):
            return x.parts
        kind, element = self.parts[0].type, self._element()
        value = float(np.float32(x)) if element == _FLOAT32 else int(x)
        constant = ir.Constant(element, value)
        if isinstance(kind, ir.VectorType):
            constant = ir.Constant(kind, [constant] * kind.count)
        return [constant] * len(self.parts)

    def _each(self, emit: Callable[..., Any], *others: Any) -> Lanes:
        return self._make([emit(*x) for x in zip(self.parts, *map(self._like, others), strict=True)])

    def _arithmetic(self, of_integers: str, of_reals: str, x: Any) -> Lanes:
        name = of_reals if self._element() == _FLOAT32 else of_integers
        return self._each(getattr(self.builder, name), x)

    def __add__(self, x: Any) -> Lanes:
        return self._arithmetic("add", "fadd", x)

    def __sub__(self, x: Any) -> Lanes:
        return self._arithmetic("sub", "fsub", x)

    def __mul__(self, x: Any) -> Lanes:
        return self._arithmetic("mul", "fmul", x)

    def __truediv__(self, x: Any) -> Lanes:
        return self._each(self.builder.fdiv, x)

    def __and__(self, x: Any) -> Lanes:
        return self._each(self.builder.and_, x)

    def __xor__(self, x: Any) -> Lanes:
        return self._each(self.builder.xor, x)

    def __lshift__(self, x: int) -> Lanes:
        return self._each(self.builder.shl, x)

    def __rshift__(self, x: int) -> Lanes:
        """Arithmetic of int32, logical of uint64."""
        return self._each(self.builder.lshr if self._element() == _INT64 else self.builder.ashr, x)

    def bits(self) -> Lanes:
        """The same bits as float32 or int32."""
        kind = self._of(_INT32 if self._element() == _FLOAT32 else _FLOAT32)
        return self._make([self.builder.bitcast(x, kind) for x in self.parts])

    def real(self) -> Lanes:
        """int32 to float32."""
        kind = self._of(_FLOAT32)
        return self._make([self.builder.sitofp(x, kind) for x in self.parts])

    def below(self, x: int) -> Lanes:
        """self < x of int32."""
        return self._each(lambda a, b: self.builder.icmp_signed("<", a, b), x)

    def below_unsigned(self, x: int) -> Lanes:
        return self._each(lambda a, b: self.builder.icmp_unsigned("<", a, b), x)

    def is_zero(self) -> Lanes:
        return self._each(lambda a, b: self.builder.icmp_signed("==", a, b), 0)

    def where(self, true: Lanes | float, false: Lanes | float) -> Lanes:
        """``true`` where this condition holds, else ``false``; one of the two is a Lanes."""
        like = true if isinstance(true, Lanes) else false
        assert isinstance(like, Lanes)
        yes, no = like._like(true), like._like(false)
        return self._make([self.builder.select(*x) for x in zip(self.parts, yes, no, strict=True)])

    def sqrt(self) -> Lanes:
        kind = self.parts[0].type
        suffix = f"v{kind.count}f32" if isinstance(kind, ir.VectorType) else "f32"
        root = _declare(self.builder.module, ir.FunctionType(kind, [kind]), f"llvm.sqrt.{suffix}")
        return self._make([self.builder.call(root, [x]) for x in self.parts])

    def low_halves(self) -> Lanes:
        """Of two vectors of uint64, the low halves as int32: lane i of the first, then of the second."""
        count = self.parts[0].type.count
        kind = ir.VectorType(_INT32, 2 * count)
        words = [self.builder.bitcast(x, kind) for x in self.parts]
        order = [i + 2 * count * second for i in range(0, 2 * count, 2) for second in (0, 1)]
        mask = ir.Constant(kind, [ir.Constant(_INT32, i) for i in order])
        return self._make([self.builder.shuffle_vector(*words, mask)])

    def store(self, pointer: Any) -> None:
        """One vector behind the other, from a pointer on that is aligned to 4 bytes."""
        for i, x in enumerate(self.parts):
            at = self.builder.gep(pointer, [ir.Constant(_INT64, i * x.type.count)])
            self.builder.store(x, self.builder.bitcast(at, x.type.as_pointer())).align = 4


def vectors(builder: Any, pointer: Any, width: int, parts: int) -> Lanes:
    """``parts`` vectors of ``width`` elements from a pointer on that is aligned to 4 bytes."""
    kind = ir.VectorType(pointer.type.pointee, width)
    found = []
    for i in range(parts):
        at = builder.gep(pointer, [ir.Constant(_INT64, i * width)])
        found.append(builder.load(builder.bitcast(at, kind.as_pointer())))
        found[-1].align = 4
    return Lanes(builder, found)


def splat(builder: Any, x: Any, steps: Sequence[Sequence[int]]) -> Lanes:
    """x + steps[i][j], a uint64, in lane j of part i."""
    kind = ir.VectorType(x.type, len(steps[0]))
    nothing = ir.Constant(kind, ir.Undefined)
    one = builder.insert_element(nothing, x, ir.Constant(_INT32, 0))
    all_same = builder.shuffle_vector(one, nothing, ir.Constant(ir.VectorType(_INT32, kind.count), None))
    parts = [ir.Constant(kind, [ir.Constant(x.type, s) for s in step]) for step in steps]
    return Lanes(builder, [builder.add(all_same, step) for step in parts])
