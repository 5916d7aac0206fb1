"""`philox.box_muller` for numba: the transform of words into normals, to be inlined into kernels.

`pair32` and `pair64` take one radius and one angle word, `pairs` and `normals_of_32` many side by side; all
return the bits of the specification. Importing this module imports numba.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from llvmlite import ir  # type: ignore[import-untyped]
from numba import types
from numba.extending import overload

from sdekit.noise import philox
from sdekit.noise._jit import intrinsic, offset
from sdekit.noise._lanes import WIDTH, Lanes, vectors

__all__ = ["normals_of_32", "pair32", "pair64", "pairs"]

_I, _F, _D = np.int32, np.float32, np.float64
_Tuple: Any = types.UniTuple
_INT64 = ir.IntType(64)

# Integer thresholds compare the bits of floats.
_BIT31, _BIT30, _BIT29 = -(2**31), 2**30, 2**29
_D0, _D1, _D2, _D3, _D4, _D5, _D6, _D7 = philox.LOG[torch.float64]
_E0, _E1, _E2, _E3, _E4, _E5, _E6 = (
    c * 2.0 ** (-62 * i - 31) for i, c in enumerate(philox.SIN[torch.float64])
)
_F0, _F1, _F2, _F3, _F4, _F5, _F6, _F7 = (
    c * 2.0 ** (-62 * i) for i, c in enumerate(philox.COS[torch.float64])
)
_EDGE64, _EXPONENT64 = int(_D(11 / 16 * 2**32).view(np.int64)), -(2**52)
_K64 = -2 * math.log(2) * 2.0**-20

_A0, _A1, _A2, _A3 = philox.LOG[torch.float32]
_B0, _B1, _B2, _B3 = philox.SIN[torch.float32]
_C0, _C1, _C2, _C3, _C4 = philox.COS[torch.float32]
_EDGE32, _EXPONENT32 = int(_F(11 / 16 * 2**32).view(_I)), -(2**23)
_K32 = float(_F(-2 * math.log(2))) * 2.0**-23
_FAR = -(5 * 2**28 + 65)
"""int32 words below it give x > 5/16, as 5/16 2^32 + 64 is rounded to even, which is 5/16 2^32."""

Transform = Callable[[Lanes, Lanes], tuple[Lanes, Lanes]]


def _in_float32(w: Lanes, v: Lanes) -> tuple[Lanes, Lanes]:
    """The transform in float32, in units that spare multiplications by powers of two.

    x and f are 2^32 times the document's, and e is 2^23 k. Where w >= 2^31 and x <= 5/16, e = 0 and f = -x.
    """
    x = (w ^ (w >> 31)).real() + 0.5
    y = (v << 2).real() * 2.0**-31
    z = y * y
    far, whole = w.below(_FAR), w.below_unsigned(_FAR % 2**32)
    e = whole.where(far.where(_EXPONENT32, (x.bits() - _EDGE32) & _EXPONENT32), 0)
    m = (x.bits() - e).bits()
    f = whole.where(m - 2.0**32, m)
    f = (f.bits() ^ (w & _BIT31)).bits()
    s = f / (f + 2.0**33)
    k = e.real() * _K32
    cos = (((z * _C4 + _C3) * z + _C2) * z + _C1) * z + _C0
    sin = y * (((z * _B3 + _B2) * z + _B1) * z + _B0)
    q = v + _BIT29
    even = (q & _BIT30).is_zero()
    a, b = even.where(cos, sin), even.where(sin, cos)
    a = (a.bits() ^ ((q + _BIT30) & _BIT31)).bits()
    b = (b.bits() ^ (q & _BIT31)).bits()
    z = s * s
    r = (k + s * (((z * _A3 + _A2) * z + _A1) * z + _A0)).sqrt()
    return r * a, r * b


def _in_float64(w: Lanes, v: Lanes) -> tuple[Lanes, Lanes]:
    """The same in float64, where u is exact on both sides of 1/2, and needs no case distinction.

    u and f are 2^32 times the document's, e is 2^52 k, of which the upper half is 2^20 k, and y is 2^31 times
    the document's: the coefficients make up for it, by powers of two, so that every product has its bits.
    """
    u = (w.double(signed=False) + 0.5).bits()
    e = (u - _EDGE64) & _EXPONENT64
    f = (u - e).bits() - 2.0**32
    s = f / (f + 2.0**33)
    y = (v << 2).double()
    k = (e >> 32).low().double() * _K64
    z = y * y
    cos = ((((((z * _F7 + _F6) * z + _F5) * z + _F4) * z + _F3) * z + _F2) * z + _F1) * z + _F0
    sin = y * ((((((z * _E6 + _E5) * z + _E4) * z + _E3) * z + _E2) * z + _E1) * z + _E0)
    q = v + _BIT29
    even = (q & _BIT30).is_zero()
    a, b = even.where(cos, sin), even.where(sin, cos)
    a, b = a.negative_where((q + _BIT30).below(0)), b.negative_where(q.below(0))
    z = s * s
    log = ((((((z * _D7 + _D6) * z + _D5) * z + _D4) * z + _D3) * z + _D2) * z + _D1) * z + _D0
    r = (k + s * log).sqrt()
    return r * a, r * b


def _one(transform: Transform, real: Any) -> Any:
    """An intrinsic: two normals from a radius and an angle word (int32 bits)."""

    @intrinsic
    def pair(typing: Any, w: Any, v: Any) -> Any:
        def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            x, y = transform(*(Lanes(builder, [word]) for word in args))
            return context.make_tuple(builder, signature.return_type, x.parts + y.parts)

        return _Tuple(real, 2)(types.int32, types.int32), emit

    return pair


def _side_by_side(transform: Transform, count: int, width: int) -> Any:
    """An intrinsic: the pairs of ``count`` radius and angle words, on vectors of ``width``, two at a time."""

    @intrinsic
    def op(typing: Any, radius: Any, angle: Any, first: Any, second: Any) -> Any:
        def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            size = min(count, 2 * width)
            for start in range(0, count, size):
                at = [builder.gep(p, [_INT64(start)]) for p in args]
                w, v = (vectors(builder, p, width, size // width) for p in at[:2])
                for normals, p in zip(transform(w, v), at[2:], strict=True):
                    normals.store(p)
            return context.get_dummy_value()

        return types.void(radius, angle, first, second), emit

    return op


def _of_blocks(transform: Transform, count: int, width: int) -> Any:
    """An intrinsic: all normals of ``count`` blocks, two vectors at a time; words lie ``step`` apart."""

    @intrinsic
    def op(typing: Any, word: Any, step: Any, z0: Any, z1: Any, z2: Any, z3: Any) -> Any:
        def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            for start in range(0, count, 2 * width):
                index = [builder.add(builder.mul(args[1], _INT64(i)), _INT64(start)) for i in range(4)]
                words = [vectors(builder, builder.gep(args[0], [i]), width, 2).parts for i in index]
                w, v = Lanes(builder, words[0] + words[2]), Lanes(builder, words[1] + words[3])
                for normals, places in zip(transform(w, v), (args[2::2], args[3::2]), strict=True):
                    for half, p in zip((normals.parts[:2], normals.parts[2:]), places, strict=True):
                        Lanes(builder, half).store(builder.gep(p, [_INT64(start)]))
            return context.get_dummy_value()

        return types.void(word, types.int64, z0, z1, z2, z3), emit

    return op


pair32, pair64 = _one(_in_float32, types.float32), _one(_in_float64, types.float64)
_pairs_of_16, _pairs_of_32 = (_side_by_side(_in_float32, count, WIDTH) for count in (16, 32))
_doubles_of_16 = _side_by_side(_in_float64, 16, WIDTH // 2)
_blocks_of_32, _double_blocks_of_16 = (
    _of_blocks(_in_float32, 32, WIDTH),
    _of_blocks(_in_float64, 16, WIDTH // 2),
)


def pairs(pair: Any, radius: Any, angle: Any, first: Any, second: Any, count: Any) -> None:
    """Normals of ``count`` radius and angle words, 16 or 32, to ``first`` and ``second``."""
    raise NotImplementedError("for compiled code only")


def normals_of_32(word: Any, step: Any, z0: Any, z1: Any, z2: Any, z3: Any) -> None:
    """The normals of 32 blocks: number w of block j to z_w[j], from the words at word[step w + j]."""
    raise NotImplementedError("for compiled code only")


@overload(pairs, jit_options={"forceinline": True, "error_model": "numpy"})
def _pairs(pair: Any, radius: Any, angle: Any, first: Any, second: Any, count: Any) -> Any:
    def in_float32(pair: Any, radius: Any, angle: Any, first: Any, second: Any, count: Any) -> None:
        for j in range(0, count - 16, 32):
            _pairs_of_32(offset(radius, j), offset(angle, j), offset(first, j), offset(second, j))
        if count & 16:
            j = count - 16
            _pairs_of_16(offset(radius, j), offset(angle, j), offset(first, j), offset(second, j))

    def in_float64(pair: Any, radius: Any, angle: Any, first: Any, second: Any, count: Any) -> None:
        for j in range(0, count, 16):
            _doubles_of_16(offset(radius, j), offset(angle, j), offset(first, j), offset(second, j))

    return in_float32 if first.dtype == types.float32 else in_float64


@overload(normals_of_32, jit_options={"forceinline": True, "error_model": "numpy"})
def _normals_of_32(word: Any, step: Any, z0: Any, z1: Any, z2: Any, z3: Any) -> Any:
    def in_float32(word: Any, step: Any, z0: Any, z1: Any, z2: Any, z3: Any) -> None:
        _blocks_of_32(word, step, z0, z1, z2, z3)

    def in_float64(word: Any, step: Any, z0: Any, z1: Any, z2: Any, z3: Any) -> None:
        for j in range(0, 32, 16):
            at = offset(z0, j), offset(z1, j), offset(z2, j), offset(z3, j)
            _double_blocks_of_16(offset(word, j), step, *at)

    return in_float32 if z0.dtype == types.float32 else in_float64
