"""Philox's words for 64 paths at a time, without what does not change from block to block of a path.

With the counter (c0, c1, low, high) of a path, of which 64 paths share ``high`` and c0, c1 at a time, and
h(x), l(x) the halves of a product, the first two rounds give

    a = h(M1 low) ^ c1 ^ k0,                    s = M1 (h(M0 c0) ^ high ^ k1)
    (h(s) ^ l(M1 low) ^ k0', l(s), h(M0 a) ^ l(M0 c0) ^ k1', l(M0 a))

where s is one number for all of them, M1 low belongs to the path, and so does M0 a as long as c1 stays. Only
eight rounds are left. Importing this module imports numba.
"""

from __future__ import annotations

from typing import Any

from numba import types

from sdekit.noise._jit import inline, intrinsic
from sdekit.noise._normals import HALF_WORD, M0, M1, MASK, W0, W1, _round

__all__ = ["common", "halves", "later", "product_0", "product_1", "together"]

_K0, _K1 = (W0 + W0) & MASK, (W1 + W1) & MASK


@inline
def product_1(low: Any) -> Any:
    """M1 low, uint64."""
    return low * M1


@inline
def product_0(q: Any, c1: Any, k0: Any) -> Any:
    """M0 a from q = M1 low, uint64."""
    return (((q >> HALF_WORD) ^ c1 ^ k0) & MASK) * M0


@inline
def common(c0: Any, high: Any, k0: Any, k1: Any) -> Any:
    """What the paths share after two rounds: words a and c to be combined with theirs, and word b."""
    p = (c0 & MASK) * M0
    s = (((p >> HALF_WORD) ^ high ^ k1) & MASK) * M1
    return (s >> HALF_WORD) ^ ((k0 + W0) & MASK), s, (p & MASK) ^ ((k1 + W1) & MASK)


@inline
def later(shared: Any, q: Any, p: Any, k0: Any, k1: Any) -> Any:
    """The four words, from q = M1 low and p = M0 a."""
    a, b, c = shared
    a, c, d = a ^ q, c ^ (p >> HALF_WORD), p
    k, m = (k0 + _K0) & MASK, (k1 + _K1) & MASK
    for _ in range(7):
        a, b, c, d = _round(a, b, c, d, k, m)
        k, m = (k + W0) & MASK, (m + W1) & MASK
    return _round(a, b, c, d, k, m)


@inline
def together(a: Any, b: Any) -> Any:
    """The low halves of two uint64 in one: a's below."""
    return (a & MASK) | (b << HALF_WORD)


@intrinsic
def halves(typing: Any, p: Any) -> Any:
    """A pointer to uint64 as one to int32, twice as many."""
    pointer: Any = types.CPointer
    to = pointer(types.int32)

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], context.get_value_type(to))

    return to(p), emit
