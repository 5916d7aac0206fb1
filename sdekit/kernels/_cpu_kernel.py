"""The numba kernel of `combine` on CPU, for any number of terms and draws, float32 and float64.

It walks over tiles that fit the fastest cache. In each it adds the registers, makes the normals and adds
them, and writes the tile once: noise is never in memory, and the output may be one of the registers. Its
arguments lie in two tables of integers, so that a call costs what a call of a function of two numbers does:

    program    terms, draws, elements a row, slots of out and second (-1 for none), address of the weights;
               then a slot for each term, and (draw word, first block, first word) for each draw
    slots      k0, k1 of the Philox key, address of the ids; then addresses of registers and outputs

Importing this module imports numba.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

from sdekit.kernels._vector import UNIT32, UNIT64, blend
from sdekit.noise._jit import inline, load, offset, pointer, scratch, store
from sdekit.noise._normals import HALF_WORD, MASK, lane_normals, lane_words, pair32, pair64, row_words
from sdekit.noise.cpu import _kernel

__all__ = ["combine32", "combine64"]

_U, _I = np.uint64, np.int32
_INT32, _INT64, _UINT64, _FLOAT32, _FLOAT64 = _I(0), np.int64(0), _U(0), np.float32(0), np.float64(0)
separate = numba.njit(error_model="numpy", nogil=True)
HEAD = 6
CHUNK = 1024


@inline
def _at(source: Any, slot: Any, zero: Any, base: Any) -> Any:
    """Where element ``base`` of the tensor in a slot lies."""
    return offset(pointer(load(source[1], slot), zero), base)


@inline
def _sum(kind: Any, target: Any, room: Any, source: Any, weights: Any, base: Any, count: Any) -> None:
    """target[:count] = sum_i w_i register_i[base : base + count], in steps of four terms; room for count."""
    zero, unity, unit = kind
    program = source[0]
    terms = load(program, 0)
    last = terms - 1
    done = 0
    while done < terms:
        take = min(4, terms) if done == 0 else min(3, terms - done)
        a = min(done + 1, last) if done == 0 else done
        b, c = min(a + 1, last), min(a + 2, last)
        p = (
            _at(source, load(program, HEAD), zero, base) if done == 0 else room,
            _at(source, load(program, HEAD + a), zero, base),
            _at(source, load(program, HEAD + b), zero, base),
            _at(source, load(program, HEAD + c), zero, base),
        )
        w0 = load(weights, 0) if done == 0 else unity
        w = w0, load(weights, a), load(weights, b), load(weights, c)
        first, done = done, done + take
        blend(unit, take + (1 if first else 0), target if done == terms else room, p, w, count)


@inline
def _scaled(kind: Any, source: Any, weights: Any, base: Any, count: Any) -> None:
    """second[base : base + count] = scale out[base : base + count]."""
    zero, _, unit = kind
    program = source[0]
    slot = load(program, 4)
    if slot >= 0:
        out, second = _at(source, load(program, 3), zero, base), _at(source, slot, zero, base)
        scale = load(weights, load(program, 0) + load(program, 1))
        blend(unit, 1, second, (out, out, out, out), (scale, scale, scale, scale), count)


@inline
def _tile(pair: Any, kind: Any, room: Any, source: Any, weights: Any, sample: Any, key: Any, at: Any) -> None:
    """128 elements of one sample: all of a tile, from its element at[0] and its block at[1] on."""
    zero, unity, unit = kind
    total, word, buffer = room
    base, block = at
    program = source[0]
    terms, draws = load(program, 0), load(program, 1)
    out = _at(source, load(program, 3), zero, base)
    _sum(kind, total, total, source, weights, base, 128)
    for d in range(draws):
        k = HEAD + terms + 3 * d
        c = load(weights, terms + d)
        row_words(word, sample, (load(program, k + 1) + block, _U(load(program, k))), key)
        lane_normals(pair, word, buffer, 32, (0, 2))
        p, w = (total, buffer, buffer, buffer), (unity, c, c, c)
        blend(unit, 2, out if d == draws - 1 else total, p, w, 128)
    _scaled(kind, source, weights, base, 128)


@separate
def _plain(kind: Any, source: Any, r0: Any, r1: Any, t0: Any, t1: Any) -> None:
    """`_noisy` without draws."""
    zero, _, _ = kind
    program, _ = source
    event = load(program, 2)
    weights = pointer(load(program, 5), zero)
    room = scratch(CHUNK, zero)
    high = r1 * event if t1 == event // 128 else (r1 - 1) * event + 128 * t1
    for base in range(r0 * event + 128 * t0, high, CHUNK):
        count = min(CHUNK, high - base)
        _sum(kind, _at(source, load(program, 3), zero, base), room, source, weights, base, count)
        _scaled(kind, source, weights, base, count)


@separate
def _noisy(pair: Any, kind: Any, source: Any, r0: Any, r1: Any, t0: Any, t1: Any) -> None:
    """Rows r0, ..., r1 - 1; of each the full tiles t0, ..., t1 - 1, and its last one where t1 ends them."""
    zero, unity, unit = kind
    program, slots = source
    terms, draws, event = load(program, 0), load(program, 1), load(program, 2)
    weights = pointer(load(program, 5), zero)
    tiles = event // 128
    total = scratch(128, zero)
    word, buffer = scratch(128, _INT32), scratch(128, zero)
    key = _U(load(slots, 0)), _U(load(slots, 1))
    ids = pointer(load(slots, 2), _INT64)
    room = total, word, buffer
    row, tile = r0, t0
    for _ in range((r1 - r0) * (t1 - t0)):
        at, sample = (row * event + 128 * tile, 32 * tile), _U(load(ids, row))
        _tile(pair, kind, room, source, weights, sample, key, at)
        tile += 1
        if tile == t1:
            row, tile = row + 1, t0
    rest = event - 128 * tiles
    if rest == 0 or t1 < tiles:
        return
    # The last tiles of several rows side by side.
    low_id, high_id = scratch(32, _UINT64), scratch(32, _UINT64)
    lane, owner = scratch(32, _INT64), scratch(32, _INT64)
    for j in range(32):
        store(low_id, j, _UINT64)
        store(high_id, j, _UINT64)
        store(lane, j, 0)
    lanes = (rest + 3) // 4
    group = min(32 // lanes, r1 - r0)
    for i in range(group):
        for j in range(lanes):
            store(owner, i * lanes + j, i)
            store(lane, i * lanes + j, j)
    for row in range(r0, r1, group):
        rows = min(group, r1 - row)
        for j in range(rows * lanes):
            sample = _U(load(ids, row + load(owner, j)))
            store(low_id, j, sample & MASK)
            store(high_id, j, sample >> HALF_WORD)
        base = row * event + 128 * tiles
        pieces, length = (1, rows * rest) if tiles == 0 else (rows, rest)
        for i in range(pieces):
            part = offset(total, i * rest)
            _sum(kind, part, part, source, weights, base + i * event, length)
        for d in range(draws):
            k = HEAD + terms + 3 * d
            skip = load(program, k + 2)
            counter = load(program, k + 1) + 32 * tiles, _U(load(program, k))
            c = load(weights, terms + d)
            count = (rows * lanes + 15) // 16 * 16
            first, last = skip // 2, (2 if skip + rest > 2 * lanes else 1)
            lane_words(word, low_id, high_id, lane, counter, key, count)
            lane_normals(pair, word, buffer, count, (first, last))
            for p in range(2 * first, 2 * last):
                for i in range(rows):
                    for e in range(max(p * lanes, skip), min((p + 1) * lanes, skip + rest)):
                        to = i * rest + e - skip
                        xi = load(buffer, 32 * p + (i - p) * lanes + e)
                        store(total, to, load(total, to) + xi * c)
        for i in range(pieces):
            part, out = offset(total, i * rest), _at(source, load(program, 3), zero, base + i * event)
            blend(unit, 1, out, (part, part, part, part), (unity, unity, unity, unity), length)
            _scaled(kind, source, weights, base + i * event, length)


@inline
def _combine(pair: Any, kind: Any, program: Any, slots: Any, r0: Any, r1: Any, t0: Any, t1: Any) -> None:
    """Rows r0, ..., r1 - 1; of each the full tiles t0, ..., t1 - 1, and its last one where t1 ends them."""
    source = pointer(program, _INT64), pointer(slots, _INT64)
    if load(source[0], 1) == 0:
        _plain(kind, source, r0, r1, t0, t1)
    else:
        _noisy(pair, kind, source, r0, r1, t0, t1)


@_kernel
def combine32(program: int, slots: int, r0: int, r1: int, t0: int, t1: int) -> None:
    _combine(pair32, (_FLOAT32, np.float32(1), UNIT32), program, slots, r0, r1, t0, t1)


@_kernel
def combine64(program: int, slots: int, r0: int, r1: int, t0: int, t1: int) -> None:
    _combine(pair64, (_FLOAT64, np.float64(1), UNIT64), program, slots, r0, r1, t0, t1)
