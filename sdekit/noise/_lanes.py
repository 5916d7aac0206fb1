"""Formulas on many lanes at once, written as LLVM vectors.

LLVM's vectoriser works lane by lane of one vector: a chain of dependent operations then waits for itself. A
`Lanes` is several vectors (or one plain number), and each operation is emitted for all of them in a row, so
that the chains of one hide the latency of the others. `splat` and `vectors` make them inside an intrinsic.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from llvmlite import binding, ir  # type: ignore[import-untyped]
from numba.core import cgutils, config

__all__ = ["WIDTH", "Lanes", "splat", "vectors"]


def _width() -> int:
    given: Any = config.CPU_FEATURES  # type: ignore[attr-defined]
    try:
        wide = "+avx2" in given if given is not None else binding.get_host_cpu_features().get("avx2", False)
    except RuntimeError:  # the machine does not tell
        wide = False
    return 16 if wide else 4


WIDTH = _width()
"""Elements of 32 bits in a vector: four vectors of it, and what a formula keeps, should fit the registers."""

_INT32, _INT64, _FLOAT32, _FLOAT64 = ir.IntType(32), ir.IntType(64), ir.FloatType(), ir.DoubleType()
_SAME_WIDTH = {_INT32: _FLOAT32, _FLOAT32: _INT32, _INT64: _FLOAT64, _FLOAT64: _INT64}
_SUFFIX = {_FLOAT32: "f32", _FLOAT64: "f64"}
_declare: Any = cgutils.get_or_insert_function


class Lanes:
    """int32, uint64, float32 or float64 values side by side.

    Operators take a number or a Lanes of the same element; one plain number counts for all lanes.
    """

    def __init__(self, builder: Any, parts: list[Any]) -> None:
        self.builder, self.parts = builder, parts

    def _make(self, parts: list[Any]) -> Lanes:
        return Lanes(self.builder, parts)

    def _element(self) -> Any:
        kind = self.parts[0].type
        return kind.element if self._is_vector() else kind

    def _is_vector(self) -> bool:
        return isinstance(self.parts[0].type, ir.VectorType)

    def _of(self, element: Any) -> Any:
        kind = self.parts[0].type
        return ir.VectorType(element, kind.count) if self._is_vector() else element

    def _like(self, x: Any) -> list[Any]:
        """x, or a number in every lane."""
        kind, element = self.parts[0].type, self._element()
        if isinstance(x, Lanes):
            if x._is_vector() or not self._is_vector():
                return x.parts
            return splat(self.builder, x.parts[0], [[0] * kind.count]).parts * len(self.parts)
        value: float = int(x)
        if element in _SUFFIX:
            value = float(np.float32(x)) if element == _FLOAT32 else float(x)
        constant = ir.Constant(element, value)
        if self._is_vector():
            constant = ir.Constant(kind, [constant] * kind.count)
        return [constant] * len(self.parts)

    def _each(self, emit: Callable[..., Any], *others: Any) -> Lanes:
        widest = max((x for x in (self, *others) if isinstance(x, Lanes)), key=Lanes._is_vector)
        columns = (widest._like(x) for x in (self, *others))
        return self._make([emit(*x) for x in zip(*columns, strict=True)])

    def _arithmetic(self, of_integers: str, of_reals: str, x: Any) -> Lanes:
        name = of_reals if self._element() in _SUFFIX else of_integers
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

    def __rshift__(self, x: Any) -> Lanes:
        """Arithmetic of int32, logical of uint64."""
        return self._each(self.builder.lshr if self._element() == _INT64 else self.builder.ashr, x)

    def bits(self) -> Lanes:
        """The same bits as an integer or a real number of the same width."""
        kind = self._of(_SAME_WIDTH[self._element()])
        return self._make([self.builder.bitcast(x, kind) for x in self.parts])

    def real(self) -> Lanes:
        """int32 to float32."""
        kind = self._of(_FLOAT32)
        return self._make([self.builder.sitofp(x, kind) for x in self.parts])

    def double(self, *, signed: bool = True) -> Lanes:
        """int32, or its bits as uint32, to float64."""
        kind = self._of(_FLOAT64)
        convert = self.builder.sitofp if signed else self.builder.uitofp
        return self._make([convert(x, kind) for x in self.parts])

    def low(self) -> Lanes:
        """The lower halves of uint64, as int32."""
        kind = self._of(_INT32)
        return self._make([self.builder.trunc(x, kind) for x in self.parts])

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

    def negative_where(self, condition: Lanes) -> Lanes:
        return condition.where(self._make([self.builder.fneg(x) for x in self.parts]), self)

    def sqrt(self) -> Lanes:
        kind, suffix = self.parts[0].type, _SUFFIX[self._element()]
        suffix = f"v{kind.count}{suffix}" if self._is_vector() else suffix
        root = _declare(self.builder.module, ir.FunctionType(kind, [kind]), f"llvm.sqrt.{suffix}")
        return self._make([self.builder.call(root, [x]) for x in self.parts])

    def halves(self, upper: bool) -> Lanes:
        """Of each two vectors of uint64 the halves as int32: the lanes of the first, then of the second."""
        count = self.parts[0].type.count
        kind = ir.VectorType(_INT32, 2 * count)
        words = [self.builder.bitcast(x, kind) for x in self.parts]
        mask = ir.Constant(kind, [ir.Constant(_INT32, i) for i in range(int(upper), 4 * count, 2)])
        pairs = zip(words[::2], words[1::2], strict=True)
        return self._make([self.builder.shuffle_vector(a, b, mask) for a, b in pairs])

    def store(self, pointer: Any) -> None:
        """One vector behind the other, from a pointer on that is aligned to one element."""
        for i, x in enumerate(self.parts):
            at = self.builder.gep(pointer, [ir.Constant(_INT64, i * x.type.count)])
            self.builder.store(x, self.builder.bitcast(at, x.type.as_pointer())).align = 4


def vectors(builder: Any, pointer: Any, width: int, parts: int) -> Lanes:
    """``parts`` vectors of ``width`` elements from a pointer on that is aligned to one element."""
    kind = ir.VectorType(pointer.type.pointee, width)
    found = []
    for i in range(parts):
        at = builder.gep(pointer, [ir.Constant(_INT64, i * width)])
        found.append(builder.load(builder.bitcast(at, kind.as_pointer())))
        found[-1].align = 4
    return Lanes(builder, found)


def splat(builder: Any, x: Any, steps: Sequence[Sequence[int]]) -> Lanes:
    """x + steps[i][j], an integer or with all steps 0 any number, in lane j of part i."""
    kind = ir.VectorType(x.type, len(steps[0]))
    nothing = ir.Constant(kind, ir.Undefined)
    one = builder.insert_element(nothing, x, ir.Constant(_INT32, 0))
    all_same = builder.shuffle_vector(one, nothing, ir.Constant(ir.VectorType(_INT32, kind.count), None))
    if not any(map(any, steps)):
        return Lanes(builder, [all_same] * len(steps))
    parts = [ir.Constant(kind, [ir.Constant(x.type, s) for s in step]) for step in steps]
    return Lanes(builder, [builder.add(all_same, step) for step in parts])
