"""exp, log, sin and cos for numba, made of multiplications, additions and bit casts, so that loops vectorise.

Polynomials by interpolation in Chebyshev points at 60 digits, constant term first. With r the argument
reduced by multiples of ln 2 or pi/2 (Cody and Waite 1980),

    e^r = 1 + r + r^2 P(r),   |r| <= 0.35           log(1 + f) = 2 atanh s = 2 s + s^3 L(s^2), s = f/(2 + f)
    sin r = r + r^3 S(r^2),   cos r = 1 - r^2/2 + r^4 C(r^2),   |r| <= pi/4

Importing this module imports numba, and makes the functions of `sdekit.solvers.compiled` known to it.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import types
from numba.extending import overload

from sdekit.noise._jit import add, bitcast, inline, sar, shl, sub
from sdekit.solvers.compiled import functions

__all__ = ["COS", "EXP", "LOG", "SIN"]

_F, _I, _L = np.float32, np.int32, np.int64

_MAGIC32, _MAGIC64 = _F(1.5 * 2**23), 1.5 * 2.0**52
_MAGIC_BITS32, _MAGIC_BITS64 = _MAGIC32.view(_I), np.float64(_MAGIC64).view(_L)
_LOG2E32, _LN2_HIGH32, _LN2_LOW32 = _F(1 / math.log(2)), _F(0.693115234375), _F(3.1946184945309415e-05)
_LOG2E64, _LN2_HIGH64, _LN2_LOW64 = 1 / math.log(2), 0.6931471803691238, 1.9082149292705877e-10
_ONE, _TWO, _HALF, _ZERO, _INF32, _NAN32 = _F(1), _F(2), _F(0.5), _F(0), _F(math.inf), _F(math.nan)
_ONE_BIT, _S23, _BIAS32, _L1, _L52, _BIAS64 = _I(1), _I(23), _I(127), _L(1), _L(52), _L(1023)

_P0, _P1, _P2, _P3, _P4 = map(_F, (0.5, 0.16666573, 0.04166655, 0.008363767, 0.0013926919))
_Q0, _Q1, _Q2, _Q3, _Q4 = (
    *(0.5000000000000001, 0.16666666666666669, 0.04166666666662068),
    *(0.008333333333329796, 0.0013888888918918907),
)
_Q5, _Q6, _Q7, _Q8, _Q9 = (
    *(0.00019841269864364933, 2.4801518672268355e-05, 2.7557266442353424e-06),
    *(2.7621324269313687e-07, 2.5101335854788522e-08),
)
_LOW32, _HIGH32, _LOW64, _HIGH64 = _F(-105), _F(90), -746.0, 711.0


@inline
def _exp32(x: Any) -> Any:
    x = _LOW32 if x < _LOW32 else x
    x = _HIGH32 if x > _HIGH32 else x
    shifted = x * _LOG2E32 + _MAGIC32
    n = shifted - _MAGIC32
    k = sub(bitcast(shifted), _MAGIC_BITS32)
    r = (x - n * _LN2_HIGH32) - n * _LN2_LOW32
    y = _ONE + (r + (r * r) * ((((_P4 * r + _P3) * r + _P2) * r + _P1) * r + _P0))
    half = sar(k, _ONE_BIT)
    a, b = add(half, _BIAS32), add(sub(k, half), _BIAS32)
    return y * bitcast(shl(a, _S23)) * bitcast(shl(b, _S23))


@inline
def _exp64(x: Any) -> Any:
    x = _LOW64 if x < _LOW64 else x
    x = _HIGH64 if x > _HIGH64 else x
    shifted = x * _LOG2E64 + _MAGIC64
    n = shifted - _MAGIC64
    k = bitcast(shifted) - _MAGIC_BITS64
    r = (x - n * _LN2_HIGH64) - n * _LN2_LOW64
    p = ((((_Q9 * r + _Q8) * r + _Q7) * r + _Q6) * r + _Q5) * r + _Q4
    p = (((p * r + _Q3) * r + _Q2) * r + _Q1) * r + _Q0
    y = 1.0 + (r + (r * r) * p)
    half = k >> _L1
    a, b = half + _BIAS64, (k - half) + _BIAS64
    return y * bitcast(a << _L52) * bitcast(b << _L52)


_A0, _A1, _A2 = map(_F, (0.66666687, 0.39988655, 0.2958568))
_B0, _B1, _B2, _B3 = 0.666666666666667, 0.3999999999989607, 0.28571428627528794, 0.22222210881932927
_B4, _B5, _B6 = 0.1818290749767122, 0.1533111258796017, 0.1462395660821188
_EDGE32, _EDGE64 = _F(math.sqrt(0.5)).view(_I), np.float64(math.sqrt(0.5)).view(_L)
_TINY32, _TINY64 = np.finfo(_F).tiny, float(np.finfo(np.float64).tiny)
_UP32, _SHIFT32, _UP64, _SHIFT64 = _F(2.0**24), _F(24), 2.0**54, 54.0


@inline
def _log32(x: Any) -> Any:
    small = x < _TINY32
    y = x * _UP32 if small else x
    bits = bitcast(y)
    e = sar(sub(bits, _EDGE32), _S23)
    f = bitcast(sub(bits, shl(e, _S23))) - _ONE
    k = _F(e) - (_SHIFT32 if small else _ZERO)
    s = f / (f + _TWO)
    z = s * s
    half = _HALF * f * f
    tail = s * (half + z * ((_A2 * z + _A1) * z + _A0)) + k * _LN2_LOW32
    out = k * _LN2_HIGH32 - ((half - tail) - f)
    out = _INF32 if x == _INF32 else out
    out = -_INF32 if x == _ZERO else out
    return _NAN32 if (x < _ZERO) | (x != x) else out


@inline
def _log64(x: Any) -> Any:
    small = x < _TINY64
    y = x * _UP64 if small else x
    bits = bitcast(y)
    e = (bits - _EDGE64) >> _L52
    f = bitcast(bits - (e << _L52)) - 1.0
    k = float(_I(e)) - (_SHIFT64 if small else 0.0)
    s = f / (f + 2.0)
    z = s * s
    half = 0.5 * f * f
    p = (((_B6 * z + _B5) * z + _B4) * z + _B3) * z + _B2
    tail = s * (half + z * ((p * z + _B1) * z + _B0)) + k * _LN2_LOW64
    out = k * _LN2_HIGH64 - ((half - tail) - f)
    out = math.inf if x == math.inf else out
    out = -math.inf if x == 0.0 else out
    return math.nan if (x < 0.0) | (x != x) else out


_S0, _S1, _S2 = map(_F, (-0.16666664, 0.008332742, -0.00019586606))
_C0, _C1, _C2 = map(_F, (0.041666664, -0.0013888297, 2.4546654e-05))
_T0, _T1, _T2 = -0.16666666666666666, 0.008333333333330887, -0.0001984126983666588
_T3, _T4, _T5 = 2.755731605459391e-06, -2.5051121875169608e-08, 1.5917412836707387e-10
_D0, _D1, _D2 = 0.041666666666666664, -0.0013888888888887359, 2.48015872987077e-05
_D3, _D4, _D5 = -2.755731724172776e-07, 2.0876140031390975e-09, -1.138218421447753e-11
_QUARTERS, _FARTHEST = 2 / math.pi, 2.0**50
_PI_1, _PI_2, _PI_3 = 1.5707963267341256, 6.077100506303966e-11, 2.0222662487959506e-21


@inline
def _reduce(x: Any) -> Any:
    """x = q pi/2 + r, |r| <= pi/4: (r, q)."""
    shifted = x * _QUARTERS + _MAGIC64
    n = shifted - _MAGIC64
    q = bitcast(shifted) - _MAGIC_BITS64
    return ((x - n * _PI_1) - n * _PI_2) - n * _PI_3, q


@inline
def _wave32(x: Any, ahead: Any) -> Any:
    wide = float(x)
    y, q = _reduce(wide)
    q = _I(q) + _I(ahead)
    r = _F(y)
    z = r * r
    sin = r + r * z * ((_S2 * z + _S1) * z + _S0)
    cos = _ONE - (_HALF * z - z * z * ((_C2 * z + _C1) * z + _C0))
    out = cos if q & 1 else sin
    out = -out if q & 2 else out
    return out if abs(wide) < _FARTHEST else _NAN32


@inline
def _wave64(x: Any, ahead: Any) -> Any:
    r, q = _reduce(x)
    q = q + ahead
    z = r * r
    sin = r + r * z * (((((_T5 * z + _T4) * z + _T3) * z + _T2) * z + _T1) * z + _T0)
    cos = 1.0 - (0.5 * z - z * z * (((((_D5 * z + _D4) * z + _D3) * z + _D2) * z + _D1) * z + _D0))
    out = cos if q & 1 else sin
    out = -out if q & 2 else out
    return out if abs(x) < _FARTHEST else math.nan


@inline
def _sin32(x: Any) -> Any:
    return _wave32(x, 0)


@inline
def _cos32(x: Any) -> Any:
    return _wave32(x, 1)


@inline
def _sin64(x: Any) -> Any:
    return _wave64(x, 0)


@inline
def _cos64(x: Any) -> Any:
    return _wave64(x, 1)


EXP, LOG = {np.float32: _exp32, np.float64: _exp64}, {np.float32: _log32, np.float64: _log64}
SIN, COS = {np.float32: _sin32, np.float64: _sin64}, {np.float32: _cos32, np.float64: _cos64}


def _known(function: Any, single: Any, double: Any) -> None:
    """Let functions that numba compiles call ``function``: in float32 on float32, else in float64."""

    def choose(x: Any) -> Any:
        if x == types.float32:
            return lambda x: single(x)
        return (lambda x: double(float(x))) if isinstance(x, types.Number) else None

    overload(function, strict=False)(choose)


for _name, _table in (("exp", EXP), ("log", LOG), ("sin", SIN), ("cos", COS)):
    _known(getattr(functions, _name), _table[np.float32], _table[np.float64])


@overload(functions.sqrt, strict=False)
def _sqrt(x: Any) -> Any:
    return lambda x: np.sqrt(x)


@overload(functions.tanh, strict=False)
def _tanh(x: Any) -> Any:
    return lambda x: np.tanh(x)


@overload(functions.maximum, strict=False)
def _maximum(x: Any, y: Any) -> Any:
    return lambda x, y: y if (x < y) | (y != y) else x


@overload(functions.minimum, strict=False)
def _minimum(x: Any, y: Any) -> Any:
    return lambda x, y: y if (x > y) | (y != y) else x


@overload(functions.where, strict=False)
def _where(condition: Any, x: Any, y: Any) -> Any:
    return lambda condition, x, y: x if condition else y
