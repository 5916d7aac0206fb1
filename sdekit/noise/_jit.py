"""Building blocks of numba kernels: 32-bit integers that stay 32 bits wide, bit casts, raw memory.

numba widens every integer operation to 64 bits and has no bit casts. Each intrinsic here emits the one LLVM
instruction that is meant, so that a loop over them vectorises. Importing this module imports numba.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba.extending
from llvmlite import ir  # type: ignore[import-untyped]
from numba import types
from numba.core import cgutils

__all__ = [
    "add",
    "bitand",
    "bitcast",
    "bitxor",
    "inline",
    "load",
    "offset",
    "pointer",
    "sar",
    "scratch",
    "shl",
]
__all__ += ["store", "sub"]

_alloca: Any = cgutils.alloca_once
_Pointer: Any = types.CPointer


def intrinsic(codegen: Callable[..., Any]) -> Any:
    """`numba.extending.intrinsic`, annotated."""
    return numba.extending.intrinsic(codegen)


def inline(function: Callable[..., Any]) -> Any:
    """Decorator for helpers that must dissolve into the loop that calls them."""
    return numba.njit(forceinline=True, error_model="numpy")(function)


def _int32(instruction: str) -> Any:
    @intrinsic
    def op(typing: Any, a: Any, b: Any) -> Any:
        def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            return getattr(builder, instruction)(*args)

        return types.int32(types.int32, types.int32), emit

    return op


add, sub, bitand, bitxor, shl, sar = map(_int32, ("add", "sub", "and_", "xor", "shl", "ashr"))
"""int32, int32 -> int32, wrapping."""

_SAME_WIDTH = {
    types.float32: types.int32,
    types.int32: types.float32,
    types.float64: types.int64,
    types.int64: types.float64,
}


@intrinsic
def bitcast(typing: Any, x: Any) -> Any:
    """The same bits as a float or an integer of the same width."""
    to = _SAME_WIDTH[x]

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], context.get_value_type(to))

    return to(x), emit


@intrinsic
def pointer(typing: Any, address: Any, like: Any) -> Any:
    """A pointer to elements of the type of ``like`` at an integer address."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.inttoptr(args[0], context.get_value_type(like).as_pointer())

    return _Pointer(like)(types.int64, like), emit


@intrinsic
def scratch(typing: Any, count: Any, like: Any) -> Any:
    """``count`` (a literal) elements of the type of ``like`` on the stack, aligned to 64 bytes."""
    if not isinstance(count, types.IntegerLiteral):
        return None

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        element = context.get_value_type(like)
        room = _alloca(builder, ir.ArrayType(element, count.literal_value))
        room.align = 64
        return builder.bitcast(room, element.as_pointer())

    return _Pointer(like)(count, like), emit


@intrinsic
def offset(typing: Any, p: Any, i: Any) -> Any:
    """p + i."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.gep(args[0], [args[1]])

    return p(p, types.int64), emit


@intrinsic
def load(typing: Any, p: Any, i: Any) -> Any:
    """p[i]."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.load(builder.gep(args[0], [args[1]]))

    return p.dtype(p, types.int64), emit


@intrinsic
def store(typing: Any, p: Any, i: Any, x: Any) -> Any:
    """p[i] = x."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        builder.store(args[2], builder.gep(args[0], [args[1]]))
        return context.get_dummy_value()

    return types.void(p, types.int64, p.dtype), emit
