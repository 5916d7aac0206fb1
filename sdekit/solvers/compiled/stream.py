"""Philox's words for the paths of an ensemble, without what does not change from block to block of a path.

With the counter (c0, c1, low, high) of a path, of which 64 paths share ``high`` and c0, c1 at a time, and
h(x), l(x) the halves of a product, the first two rounds give

    a = h(M1 low) ^ c1 ^ k0,                    s = M1 (h(M0 c0) ^ high ^ k1)
    (h(s) ^ l(M1 low) ^ k0', l(s), h(M0 a) ^ l(M0 c0) ^ k1', l(M0 a))

where s is one number for all of them, M1 low belongs to the path, and so does M0 a as long as c1 stays. Only
eight rounds are left. Importing this module imports numba.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import types

from sdekit.noise._jit import inline, intrinsic, load, store
from sdekit.noise._lanes import Lanes, vectors
from sdekit.noise._normals import HALF, HALF_WORD, M0, M1, MASK, W0, W1, rounds

__all__ = ["alike", "product_0", "products", "words_of_32"]

_U = np.uint64


@inline
def product_0(q: Any, c1: Any, k0: Any) -> Any:
    """M0 a from q = M1 low, uint64."""
    return (((q >> HALF_WORD) ^ c1 ^ k0) & MASK) * M0


@inline
def alike(ids: Any, count: Any) -> Any:
    """How many of ``count`` <= 64 ids, from the first on, have its upper half."""
    high, other = _U(load(ids, 0)) >> HALF_WORD, _U(0)
    for p in range(count):
        other |= (_U(load(ids, p)) >> HALF_WORD) ^ high
    if other == _U(0):
        return count
    used = 1
    while _U(load(ids, used)) >> HALF_WORD == high:
        used += 1
    return used


@inline
def products(ids: Any, used: Any, q: Any, p: Any, k0: Any) -> None:
    """M1 low and, with c1 = 0, M0 a of 64 paths, those from ``used`` on the first's."""
    for j in range(used):
        store(q, j, (_U(load(ids, j)) & MASK) * M1)
    for j in range(used, 64):
        store(q, j, (_U(load(ids, 0)) & MASK) * M1)
    for j in range(64):
        store(p, j, product_0(load(q, j), _U(0), k0))


@intrinsic
def words_of_32(typing: Any, word: Any, q: Any, p: Any, c0: Any, high: Any, k0: Any, k1: Any) -> Any:
    """The words of 32 paths from their q = M1 low and p = M0 a: word w of path j at word[64 w + j]."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        block, upper, *key = (Lanes(builder, [x]) for x in args[3:])
        t = (block & MASK) * M0
        s = (((t >> HALF_WORD) ^ upper ^ key[1]) & MASK) * M1
        k, m = ((x + w) & MASK for x, w in zip(key, (W0, W1), strict=True))
        for start in range(0, 32, 4 * HALF):
            at = [builder.gep(x, [args[3].type(start)]) for x in args[1:3]]
            path, own = (vectors(builder, x, HALF, 4) for x in at)
            counter = (s >> HALF_WORD) ^ k ^ path, s, (own >> HALF_WORD) ^ (t ^ m), own
            for i, x in enumerate(rounds(*counter, key, 2)):
                x.store(builder.gep(args[0], [args[3].type(64 * i + start)]))
        return context.get_dummy_value()

    u = types.uint64
    return types.void(word, q, p, u, u, u, u), emit
