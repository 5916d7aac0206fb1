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

import numpy as np

from sdekit.noise._jit import inline, load, offset, pointer, scratch, store
from sdekit.noise._normals import HALF_WORD, MASK, lane_normals, lane_words, pair32, pair64, row_words
from sdekit.noise.cpu import _kernel

__all__ = ["combine32", "combine64"]

_U, _I = np.uint64, np.int32
_INT32, _INT64, _UINT64, _FLOAT32, _FLOAT64 = _I(0), np.int64(0), _U(0), np.float32(0), np.float64(0)
HEAD = 6
CHUNK = 512


@inline
def _at(source: Any, slot: Any, zero: Any, base: Any) -> Any:
    """Where element ``base`` of the tensor in a slot lies."""
    return offset(pointer(load(source[1], slot), zero), base)


@inline
def _sum(zero: Any, total: Any, source: Any, weights: Any, base: Any, count: Any) -> None:
    """total[:count] = sum_i w_i register_i[base : base + count]."""
    program = source[0]
    terms = load(program, 0)
    left, v = _at(source, load(program, HEAD), zero, base), load(weights, 0)
    if terms == 1:
        for j in range(count):
            store(total, j, load(left, j) * v)
        return
    right, w = _at(source, load(program, HEAD + 1), zero, base), load(weights, 1)
    for j in range(count):
        store(total, j, load(left, j) * v + load(right, j) * w)
    for i in range(2, terms):
        register, w = _at(source, load(program, HEAD + i), zero, base), load(weights, i)
        for j in range(count):
            store(total, j, load(total, j) + load(register, j) * w)


@inline
def _write(zero: Any, total: Any, source: Any, weights: Any, base: Any, count: Any) -> None:
    """out[base : base + count] = total[:count], and second = scale out."""
    out = _at(source, load(source[0], 3), zero, base)
    for j in range(count):
        store(out, j, load(total, j))
    _scaled(zero, total, source, weights, base, count)


@inline
def _scaled(zero: Any, total: Any, source: Any, weights: Any, base: Any, count: Any) -> None:
    program = source[0]
    slot = load(program, 4)
    if slot >= 0:
        second = _at(source, slot, zero, base)
        scale = load(weights, load(program, 0) + load(program, 1))
        for j in range(count):
            store(second, j, load(total, j) * scale)


@inline
def _tile(pair: Any, zero: Any, room: Any, source: Any, weights: Any, sample: Any, key: Any, at: Any) -> None:
    """128 elements of one sample: all of a tile, from its element at[0] and its block at[1] on."""
    total, word, buffer = room
    base, block = at
    program = source[0]
    terms, draws = load(program, 0), load(program, 1)
    _sum(zero, total, source, weights, base, 128)
    for d in range(draws):
        k = HEAD + terms + 3 * d
        c = load(weights, terms + d)
        row_words(word, sample, (load(program, k + 1) + block, _U(load(program, k))), key)
        lane_normals(pair, word, buffer, 32, (0, 2))
        for j in range(128):
            store(total, j, load(total, j) + load(buffer, j) * c)
    _write(zero, total, source, weights, base, 128)


@inline
def _tile_of_one(
    pair: Any, zero: Any, room: Any, source: Any, weights: Any, sample: Any, key: Any, at: Any
) -> None:
    """The same for one draw and no second output: the normals are added on the way to the output."""
    total, word, buffer = room
    base, block = at
    program = source[0]
    terms = load(program, 0)
    _sum(zero, total, source, weights, base, 128)
    out = _at(source, load(program, 3), zero, base)
    k = HEAD + terms
    c1, first, c = _U(load(program, k)), load(program, k + 1), load(weights, terms)
    row_words(word, sample, (first + block, c1), key)
    lane_normals(pair, word, buffer, 32, (0, 2))
    for j in range(128):
        store(out, j, load(total, j) + load(buffer, j) * c)


@inline
def _combine(pair: Any, zero: Any, source: Any, r0: Any, r1: Any, t0: Any, t1: Any) -> None:
    """Rows r0, ..., r1 - 1; of each the full tiles t0, ..., t1 - 1, and its last one where t1 ends them."""
    program, slots = source
    terms, draws, event = load(program, 0), load(program, 1), load(program, 2)
    weights = pointer(load(program, 5), zero)
    tiles = event // 128
    total = scratch(512, zero)
    if draws == 0:
        low = r0 * event + 128 * t0
        high = r1 * event if t1 == tiles else (r1 - 1) * event + 128 * t1
        for base in range(low, high, CHUNK):
            count = min(CHUNK, high - base)
            _sum(zero, total, source, weights, base, count)
            _write(zero, total, source, weights, base, count)
        return
    word, buffer = scratch(128, _INT32), scratch(128, zero)
    key = _U(load(slots, 0)), _U(load(slots, 1))
    ids = pointer(load(slots, 2), _INT64)
    room = total, word, buffer
    one = draws == 1 and load(program, 4) < 0
    row, tile = r0, t0
    for _ in range((r1 - r0) * (t1 - t0)):
        at, sample = (row * event + 128 * tile, 32 * tile), _U(load(ids, row))
        if one:
            _tile_of_one(pair, zero, room, source, weights, sample, key, at)
        else:
            _tile(pair, zero, room, source, weights, sample, key, at)
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
            _sum(zero, offset(total, i * rest), source, weights, base + i * event, length)
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
            _write(zero, offset(total, i * rest), source, weights, base + i * event, length)


@_kernel
def combine32(program: int, slots: int, r0: int, r1: int, t0: int, t1: int) -> None:
    source = pointer(program, _INT64), pointer(slots, _INT64)
    _combine(pair32, _FLOAT32, source, r0, r1, t0, t1)


@_kernel
def combine64(program: int, slots: int, r0: int, r1: int, t0: int, t1: int) -> None:
    source = pointer(program, _INT64), pointer(slots, _INT64)
    _combine(pair64, _FLOAT64, source, r0, r1, t0, t1)
