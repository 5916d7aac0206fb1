"""`philox.py` for numba: words and normals of one block, to be inlined into kernels.

`words` returns bit for bit what `philox.philox4x32` does, and vectorises in any loop over independent blocks;
the others are that loop for a tile, faster where it is written with `Lanes`. Importing this module imports
numba.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import types

from sdekit.noise import philox
from sdekit.noise._box_muller import normals_of_32, pair32, pair64, pairs
from sdekit.noise._jit import inline, intrinsic, offset
from sdekit.noise._lanes import WIDTH, Lanes, splat, vectors

__all__ = [
    "HALF_WORD",
    "MASK",
    "lane_normals",
    "lane_words",
    "pair32",
    "pair64",
    "pairs",
    "rounds",
    "row_words",
    "words",
]

_U = np.uint64
HALF = WIDTH // 2
"""Words of 64 bits in a vector."""

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


def rounds(a: Any, b: Any, c: Any, d: Any, key: Any, first: int) -> tuple[Any, Any, Any, Any]:
    """Rounds ``first``, ..., 9 of a counter: the words, int32, on half as many vectors of twice the width.

    Of the counter, Lanes of uint64, what is the same in all lanes may be one number. key: two numbers.
    """
    for i in range(first, 10):
        k, m = ((x + int(w) * i) & MASK for x, w in zip(key, (W0, W1), strict=True))
        if i < 9:
            a, b, c, d = _formula(a, b, c, d, k, m)
    p, q = (a & MASK) * M0, (c & MASK) * M1
    return (
        q.halves(True) ^ b.halves(False) ^ k.low(),
        q.halves(False),
        p.halves(True) ^ d.halves(False) ^ m.low(),
        p.halves(False),
    )


@intrinsic
def _words_of_32(typing: Any, word: Any, first: Any, c1: Any, low: Any, high: Any, k0: Any, k1: Any) -> Any:
    """The words of 32 blocks, which differ in one word of the counter: half of two rounds is scalar."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        b, c, d, *key = (Lanes(builder, [x]) for x in args[2:])
        for start in range(0, 32, 2 * WIDTH):
            steps = [range(start + i * HALF, start + (i + 1) * HALF) for i in range(4)]
            for i, x in enumerate(rounds(splat(builder, args[1], steps), b, c, d, key, 0)):
                x.store(builder.gep(args[0], [args[1].type(32 * i + start)]))
        return context.get_dummy_value()

    u = types.uint64
    return types.void(word, u, u, u, u, u, u), emit


@inline
def row_words(word: Any, sample: Any, counter: Any, key: Any) -> None:
    """The words of 32 blocks of one sample: word w of block first + j at word[32 w + j].

    sample: its id, uint64; counter: (first block, draw word); key: two uint64. word: room for 128 int32.
    """
    _words_of_32(word, _U(counter[0]), counter[1], sample & MASK, sample >> HALF_WORD, key[0], key[1])


def _words_of_lanes(count: int) -> Any:
    """An intrinsic: the words of ``count`` blocks first + lane[j] of any ids."""

    @intrinsic
    def op(
        typing: Any, word: Any, first: Any, lane: Any, c1: Any, low: Any, high: Any, k0: Any, k1: Any
    ) -> Any:
        def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            first, c1, *key = (Lanes(builder, [args[i]]) for i in (1, 3, 6, 7))
            size = min(count, 2 * WIDTH)
            for start in range(0, count, size):
                at = [builder.gep(args[i], [args[1].type(start)]) for i in (2, 4, 5)]
                lane, low, high = (vectors(builder, p, HALF, size // HALF) for p in at)
                for i, x in enumerate(rounds(lane + first, c1, low, high, key, 0)):
                    x.store(builder.gep(args[0], [args[1].type(32 * i + start)]))
            return context.get_dummy_value()

        u = types.uint64
        return types.void(word, u, lane, u, low, high, u, u), emit

    return op


_words_of_16_lanes, _words_of_32_lanes = map(_words_of_lanes, (16, 32))


@inline
def lane_words(word: Any, low: Any, high: Any, lane: Any, counter: Any, key: Any, count: Any) -> None:
    """The same of 16 or 32 lanes: block first + lane[j] of the id whose halves are low[j], high[j]."""
    first, c1 = _U(counter[0]), counter[1]
    if count > 16:
        _words_of_32_lanes(word, first, lane, c1, low, high, key[0], key[1])
    else:
        _words_of_16_lanes(word, first, lane, c1, low, high, key[0], key[1])


@inline
def lane_normals(pair: Any, word: Any, target: Any, count: Any, span: Any) -> None:
    """The normals of such words, laid out alike; count: 16 or 32; span: pairs of words, (0, 2) for all."""
    if count == 32 and span[0] == 0 and span[1] == 2:
        normals_of_32(word, 32, target, offset(target, 32), offset(target, 64), offset(target, 96))
        return
    for p in range(span[0], span[1]):
        w, z = offset(word, 64 * p), offset(target, 64 * p)
        pairs(pair, w, offset(w, 32), z, offset(z, 32), count)
