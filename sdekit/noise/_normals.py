"""`philox.py` for numba: words and normals of one block, to be inlined into kernels.

`words`, `pair32` and `pair64` return bit for bit what `philox.philox4x32` and `philox.box_muller` do, and
vectorise in any loop over independent blocks; the others are that loop for a tile, faster where it is written
with `Lanes`. Importing this module imports numba.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numba import types
from numba.extending import overload

from sdekit.noise import philox
from sdekit.noise._jit import add, bitand, bitcast, inline, intrinsic, load, offset, shl, store
from sdekit.noise._lanes import Lanes, splat, vectors

__all__ = [
    "HALF_WORD",
    "MASK",
    "lane_normals",
    "lane_words",
    "pair32",
    "pair64",
    "pairs",
    "row_words",
    "words",
]

_U, _I, _F, _D = np.uint64, np.int32, np.float32, np.float64
_Tuple: Any = types.UniTuple

# Words are held in 64 bits, cut to 32 only where they enter a product: that is one instruction, vpmuludq.
MASK, M0, M1 = _U(philox.MASK), _U(philox.M0), _U(philox.M1)
W0, W1, HALF_WORD = _U(philox.W0), _U(philox.W1), _U(32)


def _formula(a: Any, b: Any, c: Any, d: Any, k: Any, m: Any) -> Any:
    p, q = (a & MASK) * M0, (c & MASK) * M1
    return (q >> HALF_WORD) ^ b ^ k, q, (p >> HALF_WORD) ^ d ^ m, p


_round = inline(_formula)


@inline
def words(a: Any, b: Any, c: Any, d: Any, k: Any, m: Any) -> Any:
    """philox4x32-10 of uint64 words; the upper halves of the results are not zero."""
    for _ in range(9):
        a, b, c, d = _round(a, b, c, d, k, m)
        k, m = (k + W0) & MASK, (m + W1) & MASK
    return _round(a, b, c, d, k, m)


# Constants of the transform. Integer thresholds compare the bits of floats.
_BIT31, _BIT30, _BIT29 = _I(-(2**31)), _I(2**30), _I(2**29)
_S2, _ZERO = _I(2), _I(0)
_L52 = np.int64(52)
_EDGE64 = _D(11 / 16).view(np.int64)
_D0, _D1, _D2, _D3, _D4, _D5, _D6, _D7 = philox.LOG[torch.float64]
_E0, _E1, _E2, _E3, _E4, _E5, _E6 = philox.SIN[torch.float64]
_F0, _F1, _F2, _F3, _F4, _F5, _F6, _F7 = philox.COS[torch.float64]
_K64, _P32, _P31 = -2 * math.log(2), 2.0**-32, 2.0**-31

_A0, _A1, _A2, _A3 = philox.LOG[torch.float32]
_B0, _B1, _B2, _B3 = philox.SIN[torch.float32]
_C0, _C1, _C2, _C3, _C4 = philox.COS[torch.float32]
_EDGE32 = int(_F(11 / 16 * 2**32).view(_I))
_EXPONENT = -(2**23)
_K32 = float(_F(-2 * math.log(2))) * 2.0**-23
_FAR = -(5 * 2**28 + 65)
"""int32 words below it give x > 5/16, as 5/16 2^32 + 64 is rounded to even, which is 5/16 2^32."""


def _pair(w: Lanes, v: Lanes) -> tuple[Lanes, Lanes]:
    """The transform in float32, in units that spare multiplications by powers of two.

    x and f are 2^32 times the document's, and e is 2^23 k. Where w >= 2^31 and x <= 5/16, e = 0 and f = -x.
    """
    x = (w ^ (w >> 31)).real() + 0.5
    y = (v << 2).real() * 2.0**-31
    z = y * y
    far, whole = w.below(_FAR), w.below_unsigned(_FAR % 2**32)
    e = whole.where(far.where(_EXPONENT, (x.bits() - _EDGE32) & _EXPONENT), 0)
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


@intrinsic
def pair32(typing: Any, w: Any, v: Any) -> Any:
    """Two float32 normals from a radius and an angle word (int32 bits): `philox.box_muller`."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        x, y = _pair(*(Lanes(builder, [word]) for word in args))
        return context.make_tuple(builder, signature.return_type, x.parts + y.parts)

    return _Tuple(types.float32, 2)(types.int32, types.int32), emit


def _side_by_side(parts: int) -> Any:
    """An intrinsic: the pairs of 16 ``parts`` radius and angle words."""

    @intrinsic
    def op(typing: Any, radius: Any, angle: Any, first: Any, second: Any) -> Any:
        def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            w, v = (vectors(builder, p, 16, parts) for p in args[:2])
            for normals, p in zip(_pair(w, v), args[2:], strict=True):
                normals.store(p)
            return context.get_dummy_value()

        return types.void(radius, angle, first, second), emit

    return op


_pairs_of_16, _pairs_of_32 = _side_by_side(1), _side_by_side(2)


@inline
def pair64(w: Any, v: Any) -> Any:
    """Two float64 normals likewise; here u is exact on both sides of 1/2, and needs no case distinction."""
    u = (_D(np.uint32(w)) + 0.5) * _P32
    bits = bitcast(u)
    e = (bits - _EDGE64) >> _L52
    f = bitcast(bits - (e << _L52)) - 1.0
    s = f / (f + 2.0)
    z = s * s
    log = ((((((_D7 * z + _D6) * z + _D5) * z + _D4) * z + _D3) * z + _D2) * z + _D1) * z + _D0
    r = np.sqrt(_D(_I(e)) * _K64 + s * log)
    y = _D(shl(v, _S2)) * _P31
    z = y * y
    cos = ((((((_F7 * z + _F6) * z + _F5) * z + _F4) * z + _F3) * z + _F2) * z + _F1) * z + _F0
    sin = y * ((((((_E6 * z + _E5) * z + _E4) * z + _E3) * z + _E2) * z + _E1) * z + _E0)
    q = add(v, _BIT29)
    odd = bitand(q, _BIT30) != _ZERO
    a, b = (sin if odd else cos), (cos if odd else sin)
    a = -a if add(q, _BIT30) < _ZERO else a
    b = -b if q < _ZERO else b
    return r * a, r * b


@intrinsic
def _words_of_32(typing: Any, word: Any, first: Any, c1: Any, low: Any, high: Any, k0: Any, k1: Any) -> Any:
    """The words of 32 blocks; even and odd blocks apart, so that two of theirs make 64 bits to store."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        a = splat(builder, args[1], [range(0, 32, 2), range(1, 32, 2)])
        b, c, d, k, m = (splat(builder, x, [[0] * 16] * 2) for x in args[2:])
        for i in range(10):
            if i:
                k, m = (k + W0) & MASK, (m + W1) & MASK
            a, b, c, d = _formula(a, b, c, d, k, m)
        for i, x in enumerate((a, b, c, d)):
            x.low_halves().store(builder.gep(args[0], [args[1].type(32 * i)]))
        return context.get_dummy_value()

    u = types.uint64
    return types.void(word, u, u, u, u, u, u), emit


@inline
def row_words(word: Any, sample: Any, counter: Any, key: Any) -> None:
    """The words of 32 blocks of one sample: word w of block first + j at word[32 w + j].

    sample: its id, uint64; counter: (first block, draw word); key: two uint64. word: room for 128 int32.
    """
    _words_of_32(word, _U(counter[0]), counter[1], sample & MASK, sample >> HALF_WORD, key[0], key[1])


@inline
def lane_words(word: Any, low: Any, high: Any, lane: Any, counter: Any, key: Any, count: Any) -> None:
    """The same of ``count`` <= 32 lanes: block first + lane[j] of the id whose halves are low[j], high[j]."""
    first, c1 = counter
    k0, k1 = key
    for j in range(count):
        a, b, c, d = words(_U(first + load(lane, j)), c1, load(low, j), load(high, j), k0, k1)
        store(word, j, _I(a))
        store(word, j + 32, _I(b))
        store(word, j + 64, _I(c))
        store(word, j + 96, _I(d))


def pairs(pair: Any, radius: Any, angle: Any, first: Any, second: Any, count: Any) -> None:
    """Normals of ``count`` radius and angle words, a multiple of 16, to ``first`` and ``second``."""
    raise NotImplementedError("for compiled code only")


@overload(pairs, jit_options={"forceinline": True, "error_model": "numpy"})
def _pairs(pair: Any, radius: Any, angle: Any, first: Any, second: Any, count: Any) -> Any:
    def in_float32(pair: Any, radius: Any, angle: Any, first: Any, second: Any, count: Any) -> None:
        for j in range(0, count - 16, 32):
            _pairs_of_32(offset(radius, j), offset(angle, j), offset(first, j), offset(second, j))
        if count & 16:
            j = count - 16
            _pairs_of_16(offset(radius, j), offset(angle, j), offset(first, j), offset(second, j))

    def by_lane(pair: Any, radius: Any, angle: Any, first: Any, second: Any, count: Any) -> None:
        for j in range(count):
            x, y = pair(load(radius, j), load(angle, j))
            store(first, j, x)
            store(second, j, y)

    return in_float32 if first.dtype == types.float32 else by_lane


@inline
def lane_normals(pair: Any, word: Any, target: Any, count: Any, span: Any) -> None:
    """The normals of such words, laid out alike; count: 16 or 32; span: pairs of words, (0, 2) for all."""
    for p in range(span[0], span[1]):
        w, z = offset(word, 64 * p), offset(target, 64 * p)
        pairs(pair, w, offset(w, 32), z, offset(z, 32), count)
