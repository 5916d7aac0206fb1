"""`philox.py` for numba: words and normals of one block, to be inlined into kernels.

`words`, `pair32` and `pair64` return bit for bit what `philox.philox4x32` and `philox.box_muller` do, and
vectorise in any loop over independent blocks. Importing this module imports numba.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

from sdekit.noise import philox
from sdekit.noise._jit import add, bitand, bitcast, bitxor, inline, sar, shl, sub

__all__ = ["HALF_WORD", "MASK", "pair32", "pair64", "words"]

_U, _I, _F, _D = np.uint64, np.int32, np.float32, np.float64

# Words are held in 64 bits, cut to 32 only where they enter a product: that is one instruction, vpmuludq.
MASK, M0, M1 = _U(philox.MASK), _U(philox.M0), _U(philox.M1)
W0, W1, HALF_WORD = _U(philox.W0), _U(philox.W1), _U(32)


@inline
def _round(a: Any, b: Any, c: Any, d: Any, k: Any, m: Any) -> Any:
    p, q = (a & MASK) * M0, (c & MASK) * M1
    return (q >> HALF_WORD) ^ b ^ k, q, (p >> HALF_WORD) ^ d ^ m, p


@inline
def words(a: Any, b: Any, c: Any, d: Any, k: Any, m: Any) -> Any:
    """philox4x32-10 of uint64 words; the upper halves of the results are not zero."""
    for _ in range(9):
        a, b, c, d = _round(a, b, c, d, k, m)
        k, m = (k + W0) & MASK, (m + W1) & MASK
    return _round(a, b, c, d, k, m)


# Constants of the transform. Integer thresholds compare the bits of floats.
_BIT31, _BIT30, _BIT29 = _I(-(2**31)), _I(2**30), _I(2**29)
_S31, _S23, _S2, _ZERO = _I(31), _I(23), _I(2), _I(0)
_L52 = np.int64(52)
_EDGE32, _EDGE64 = _F(11 / 16).view(_I), _D(11 / 16).view(np.int64)
_A0, _A1, _A2, _A3 = map(_F, philox.LOG[torch.float32])
_B0, _B1, _B2, _B3 = map(_F, philox.SIN[torch.float32])
_C0, _C1, _C2, _C3, _C4 = map(_F, philox.COS[torch.float32])
_K32, _HALF, _ONE, _TWO, _FAR = _F(-2 * math.log(2)), _F(0.5), _F(1), _F(2), _F(5 / 16)
_SCALE32, _SCALE31, _NONE = _F(2.0**-32), _F(2.0**-31), _F(0)
_D0, _D1, _D2, _D3, _D4, _D5, _D6, _D7 = philox.LOG[torch.float64]
_E0, _E1, _E2, _E3, _E4, _E5, _E6 = philox.SIN[torch.float64]
_F0, _F1, _F2, _F3, _F4, _F5, _F6, _F7 = philox.COS[torch.float64]
_K64, _P32, _P31 = -2 * math.log(2), 2.0**-32, 2.0**-31


@inline
def pair32(w: Any, v: Any) -> Any:
    """Two float32 normals from a radius and an angle word (int32 bits): `philox.box_muller`."""
    low = w >= _ZERO
    x = (_F(bitxor(w, sar(w, _S31))) + _HALF) * _SCALE32
    bits = bitcast(x)
    e = sar(sub(bits, _EDGE32), _S23)
    far = x > _FAR
    f = bitcast(sub(bits, shl(e, _S23))) - _ONE
    k = _F(e)
    near = _ONE - (x + x) if far else -x
    whole = -_ONE if far else _NONE
    f = f if low else near
    k = k if low else whole
    s = f / (f + _TWO)
    z = s * s
    r = np.sqrt(k * _K32 + s * (((_A3 * z + _A2) * z + _A1) * z + _A0))
    y = _F(shl(v, _S2)) * _SCALE31
    z = y * y
    cos = (((_C4 * z + _C3) * z + _C2) * z + _C1) * z + _C0
    sin = y * (((_B3 * z + _B2) * z + _B1) * z + _B0)
    q = add(v, _BIT29)
    odd = bitand(q, _BIT30) != _ZERO
    a, b = (sin if odd else cos), (cos if odd else sin)
    a = bitcast(bitxor(bitcast(a), bitand(add(q, _BIT30), _BIT31)))
    b = bitcast(bitxor(bitcast(b), bitand(q, _BIT31)))
    return r * a, r * b


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
