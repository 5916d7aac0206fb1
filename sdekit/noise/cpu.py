"""The normals of `philox.py` on CPU: one numba kernel over tiles of 128, for float32 and float64.

A tile is up to 32 blocks side by side: first their words, then their normals, each in a loop that vectorises.
A full tile goes straight to the output; the last tiles of several samples are packed into one and scattered.
Importing this module imports numba; `source.py` does so on first use.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import pairwise
from typing import Any

import numba
import numpy as np
import torch
from torch import Tensor

from sdekit.noise import philox
from sdekit.noise._jit import inline, load, offset, pointer, scratch, store
from sdekit.noise._normals import HALF_WORD, MASK, lane_normals, lane_words, pair32, pair64, row_words

__all__ = ["PARALLEL_BYTES", "checked", "cut", "fill", "fill_blocks"]

_U, _I = np.uint64, np.int32
_INT32, _INT64, _UINT64, _FLOAT32, _FLOAT64 = _I(0), np.int64(0), _U(0), np.float32(0), np.float64(0)


@inline
def _fill(
    pair: Any,
    zero: Any,
    out: Any,
    ids: Any,
    event: Any,
    r0: Any,
    r1: Any,
    t0: Any,
    t1: Any,
    counter: Any,
    key: Any,
) -> None:
    word, buffer = scratch(128, _INT32), scratch(128, zero)
    low, high = scratch(32, _UINT64), scratch(32, _UINT64)
    lane, owner = scratch(32, _INT64), scratch(32, _INT64)
    for j in range(32):
        store(lane, j, j)
        store(low, j, _UINT64)
        store(high, j, _UINT64)
    c1, first_block, skip = counter
    c1, k0, k1 = _U(c1), _U(key[0]), _U(key[1])
    tiles = event // 128
    rest = event - 128 * tiles
    lanes = (rest + 3) // 4
    group = min(32 // max(lanes, 1), r1 - r0)
    full = (r1 - r0) * (t1 - t0)
    packed = (r1 - r0 + group - 1) // group if rest > 0 and t1 == tiles else 0
    row, tile = r0, t0
    for job in range(full + packed):
        if job < full:
            row_words(word, _U(load(ids, row)), (32 * tile, c1), (k0, k1))
            lane_normals(pair, word, offset(out, row * event + 128 * tile), 32, (0, 2))
            tile += 1
            if tile == t1:
                row, tile = row + 1, t0
        else:
            if job == full:
                row = r0
                for i in range(group):
                    for j in range(lanes):
                        store(owner, i * lanes + j, i)
                        store(lane, i * lanes + j, j)
            rows = min(group, r1 - row)
            used = rows * lanes
            for j in range(used):
                sample = _U(load(ids, row + load(owner, j)))
                store(low, j, sample & MASK)
                store(high, j, sample >> HALF_WORD)
            count = (used + 15) // 16 * 16
            first, last = skip // 2, (2 if skip + rest > 2 * lanes else 1)
            lane_words(word, low, high, lane, (first_block + 32 * tiles, c1), (k0, k1), count)
            lane_normals(pair, word, buffer, count, (first, last))
            base = row * event + 128 * tiles - skip
            for p in range(2 * first, 2 * last):
                e0, e1 = max(p * lanes, skip), min((p + 1) * lanes, skip + rest)
                if lanes > rows:
                    for i in range(rows):
                        for e in range(e0, e1):
                            store(out, base + i * event + e, load(buffer, 32 * p + (i - p) * lanes + e))
                else:
                    for e in range(e0, e1):
                        for i in range(rows):
                            store(out, base + i * event + e, load(buffer, 32 * p + (i - p) * lanes + e))
            row += rows


def _kernel(function: Callable[..., None]) -> Any:
    """A kernel that runs without the interpreter's lock; its code is kept on disk where there is a place."""
    try:
        return numba.njit(cache=True, nogil=True, error_model="numpy")(function)
    except RuntimeError:  # no folder to keep compiled code in
        return numba.njit(nogil=True, error_model="numpy")(function)


@_kernel
def fill32(
    out: int,
    ids: int,
    event: int,
    r0: int,
    r1: int,
    t0: int,
    t1: int,
    c1: int,
    c0: int,
    skip: int,
    k0: int,
    k1: int,
) -> None:
    p, q = pointer(out, _FLOAT32), pointer(ids, _INT64)
    _fill(pair32, _FLOAT32, p, q, event, r0, r1, t0, t1, (c1, c0, skip), (k0, k1))


@_kernel
def fill64(
    out: int,
    ids: int,
    event: int,
    r0: int,
    r1: int,
    t0: int,
    t1: int,
    c1: int,
    c0: int,
    skip: int,
    k0: int,
    k1: int,
) -> None:
    p, q = pointer(out, _FLOAT64), pointer(ids, _INT64)
    _fill(pair64, _FLOAT64, p, q, event, r0, r1, t0, t1, (c1, c0, skip), (k0, k1))


@inline
def _blocks(pair: Any, zero: Any, out: Any, ids: Any, event: Any, rows: Any, blocks: Any, key: Any) -> None:
    word, buffer = scratch(128, _INT32), scratch(128, zero)
    low, high, lane = scratch(32, _UINT64), scratch(32, _UINT64), scratch(32, _INT64)
    for j in range(32):
        store(low, j, _UINT64)
        store(high, j, _UINT64)
        store(lane, j, 0)
    first, count = blocks
    k0, k1 = _U(key[0]), _U(key[1])
    for b in range(count):
        c0 = _U(first + b)
        for row in range(0, rows, 32):
            used = min(32, rows - row)
            for j in range(used):
                sample = _U(load(ids, row + j))
                store(low, j, sample & MASK)
                store(high, j, sample >> HALF_WORD)
            lane_words(word, low, high, lane, (c0, _UINT64), (k0, k1), 32)
            lane_normals(pair, word, buffer, 32, (0, 2))
            for w in range(4):
                draw, element = (w, 0) if event == 1 else (w // 2, w % 2)
                target = offset(out, (b * (4 // event) + draw) * rows * event + row * event + element)
                if event == 1:
                    for j in range(used):
                        store(target, j, load(buffer, 32 * w + j))
                else:
                    for j in range(used):
                        store(target, 2 * j, load(buffer, 32 * w + j))


@_kernel
def blocks32(out: int, ids: int, event: int, rows: int, first: int, count: int, k0: int, k1: int) -> None:
    p, q = pointer(out, _FLOAT32), pointer(ids, _INT64)
    _blocks(pair32, _FLOAT32, p, q, event, rows, (first, count), (k0, k1))


@_kernel
def blocks64(out: int, ids: int, event: int, rows: int, first: int, count: int, k0: int, k1: int) -> None:
    p, q = pointer(out, _FLOAT64), pointer(ids, _INT64)
    _blocks(pair64, _FLOAT64, p, q, event, rows, (first, count), (k0, k1))


BLOCKS = {torch.float32: blocks32, torch.float64: blocks64}
KERNELS = {torch.float32: fill32, torch.float64: fill64}
PARALLEL_BYTES = 2**21
"""Smaller outputs stay on the calling thread: waking another costs about as much as filling 2^17 numbers."""
PIECE = 2**16
"""Elements that a thread takes at a time."""

_pool: ThreadPoolExecutor | None = None


def _forget_pool() -> None:
    global _pool
    _pool = None


if hasattr(os, "register_at_fork"):  # threads do not survive a fork
    os.register_at_fork(after_in_child=_forget_pool)


def fill(out: Tensor, key: philox.Key, draw: int, ids: Tensor, event: int) -> None:
    """Write one draw into ``out``, contiguous (B, *event), float32 or float64: `philox.normal`, bit for bit.

    ids: (B,) int64, contiguous. Uses up to ``torch.get_num_threads()`` threads; the result does not depend on
    their number.
    """
    rows, tiles = ids.numel(), event // 128
    first, word, skip = philox.address(draw, event)
    kernel, head, tail = (
        KERNELS[out.dtype],
        (out.data_ptr(), ids.data_ptr(), event),
        (word, first, skip, *key),
    )
    if out.nbytes < PARALLEL_BYTES or (threads := torch.get_num_threads()) == 1:
        if rows and event:
            kernel(*head, 0, rows, 0, tiles, *tail)
        return
    _share(lambda piece: kernel(*head, *piece, *tail), cut(rows, event), threads)


def cut(rows: int, event: int) -> deque[tuple[int, int, int, int]]:
    """Pieces (r0, r1, t0, t1) of a state for threads: of whole rows, or of whole tiles of one row."""
    tiles = event // 128
    if event < 2 * PIECE:
        step = max(1, PIECE // event)
        return deque((r, min(r + step, rows), 0, tiles) for r in range(0, rows, step))
    cuts = [*range(0, tiles - PIECE // 128 + 1, PIECE // 128), tiles]
    return deque((r, r + 1, a, b) for r in range(rows) for a, b in pairwise(cuts))


def fill_blocks(out: Tensor, key: philox.Key, first: int, ids: Tensor, event: int) -> None:
    """Write all draws of the blocks from ``first`` on, which events of one or two elements share.

    out: contiguous (draws, B, event), draws a multiple of 4 / event; out[k] is draw 4 / event * first + k of
    `philox.normal`, bit for bit, at the cost of one draw a block. On the calling thread.
    """
    BLOCKS[out.dtype](out.data_ptr(), ids.data_ptr(), event, ids.numel(), first, len(out) * event // 4, *key)


def _share(work: Callable[[Any], None], pieces: deque[Any], threads: int) -> None:
    """Run ``work`` on every piece; helpers that have not woken up by the end are not waited for."""
    global _pool

    def take() -> None:
        with suppress(IndexError):
            while True:
                work(pieces.popleft())

    if _pool is None:
        _pool = ThreadPoolExecutor(os.cpu_count(), "sdekit-noise")
    helpers = [_pool.submit(take) for _ in range(min(threads, len(pieces)) - 1)]
    take()
    for helper in helpers:
        if not helper.cancel():
            helper.result()


def checked(dtype: torch.dtype) -> Callable[[Tensor, philox.Key, int, Tensor, int], None]:
    """`fill`, after its kernel for ``dtype`` has reproduced the specification on this machine.

    Raises RuntimeError where it does not, after one try with compiled code of an older version thrown away.
    """
    ids = torch.tensor([0, 1, -1, 2**40 + 3])

    def agrees(event: int) -> bool:
        out = torch.empty(len(ids), event, dtype=dtype)
        fill(out, (1, 2), 7, ids, event)
        return torch.equal(out, philox.normal((1, 2), 7, ids, event, dtype))

    def agrees_in_blocks(event: int) -> bool:
        out = torch.empty(8 // event, len(ids), event, dtype=dtype)
        fill_blocks(out, (1, 2), 3, ids, event)
        draws = range(12 // event, 20 // event)
        return torch.equal(out, torch.stack([philox.normal((1, 2), k, ids, event, dtype) for k in draws]))

    for _ in range(2):
        if all(map(agrees, (1, 2, 3, 4, 150))) and all(map(agrees_in_blocks, (1, 2))):
            return fill
        KERNELS[dtype].recompile()
        BLOCKS[dtype].recompile()
    raise RuntimeError(f"the compiled noise differs from its specification in {dtype}")
