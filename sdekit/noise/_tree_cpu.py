"""The descent of `_tree.py` on CPU: one numba kernel over tiles of 32 elements, for float32 and float64.

Every lane of a tile has its own sample, element and times; all go down one level at a time, in loops that
vectorise. Importing this module imports numba; `brownian.py` does so on first use.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from sdekit.noise import _tree
from sdekit.noise._jit import inline, load, offset, pointer, scratch, store
from sdekit.noise._normals import HALF_WORD, MASK, pair32, pair64, words
from sdekit.noise.cpu import _kernel, _share

if TYPE_CHECKING:
    from sdekit.noise import philox
    from sdekit.noise._tree import Floats, Ints

__all__ = ["checked", "descend"]

_U, _I, _F, _D = np.uint64, np.int32, np.float32, np.float64
_INT32, _INT64, _UINT64, _FLOAT32, _FLOAT64 = _I(0), np.int64(0), _U(0), _F(0), _D(0)
_BITS, _ONE = np.int64(_tree.BITS), np.int64(1)
_CONSTANTS = (0.5, 0.25, 1.5, 1.25, 3.0)
_CONSTANTS32, _CONSTANTS64 = tuple(map(_F, _CONSTANTS)), tuple(map(_D, _CONSTANTS))
_SPREAD, _SPLIT = _tree.SPREAD, _tree.SPLIT
PIECE = 2**12
"""Elements that a thread takes at a time."""


@inline
def _to32(x: Any) -> Any:
    return np.float32(x)


@inline
def _to64(x: Any) -> Any:
    return np.float64(x)


@inline
def _normals(pair: Any, word: Any, z: Any, address: Any, counter: Any, key: Any) -> None:
    """Three normals a lane: z[j], z[j + 32], z[j + 64]."""
    element, low, high = counter
    for j in range(32):
        node = _U(load(address, j))
        a, b, c, d = words(
            _U(load(element, j)),
            _UINT64,
            load(low, j),
            load(high, j),
            key[0] ^ (node & MASK),
            key[1] ^ (node >> HALF_WORD),
        )
        store(word, j, _I(a))
        store(word, j + 32, _I(b))
        store(word, j + 64, _I(c))
        store(word, j + 96, _I(d))
    for p in range(2):
        for j in range(64 * p, 64 * p + 32):
            x, y = pair(load(word, j), load(word, j + 32))
            store(z, j, x)
            store(z, j + 32, y)


@inline
def _add(total: Any, j: Any, p: Any, nu: Any, zeta: Any, where: Any, to: Any) -> None:
    p0, p1, p2 = p
    square, cross = nu * nu, 3.0 * (nu * zeta)
    level = to(0.5 * ((square + 3.0 * (zeta * zeta)) - 1.0))
    square, cross, nu, zeta = to(square), to(cross), to(nu), to(zeta)
    x, y, z = load(total, j), load(total, j + 32), load(total, j + 64)
    u, v, w = x + p0, y + (nu * p1 + zeta * p0), z + ((square * p2 + cross * p1) + level * p0)
    store(total, j, u if where else x)
    store(total, j + 32, v if where else y)
    store(total, j + 64, w if where else z)


@inline
def _tile(
    pair: Any,
    to: Any,
    zero: Any,
    constants: Any,
    ids: Any,
    ints: Any,
    floats: Any,
    out: Any,
    event: Any,
    key: Any,
    span: Any,
) -> None:
    """The elements first <= flat < last of (R, event), at most 32 of them."""
    half, quarter, three_halves, five_quarters, three = constants
    first, last = span
    rows, size = ids.size, ids.size * event
    repeat = rows // ints.shape[1]
    word, z, c = scratch(128, _INT32), scratch(128, zero), scratch(96, zero)
    left, right = scratch(96, zero), scratch(96, zero)
    a, w, x = scratch(32, _FLOAT64), scratch(32, _FLOAT64), scratch(32, _FLOAT64)
    s, t = scratch(32, _FLOAT64), scratch(32, _FLOAT64)
    past, ahead = scratch(32, _FLOAT64), scratch(32, _FLOAT64)
    tick, cell = scratch(32, _INT64), scratch(32, _INT64)
    middle, done = scratch(32, _INT64), scratch(32, _INT64)
    element, low, high = scratch(32, _INT64), scratch(32, _UINT64), scratch(32, _UINT64)
    depth = _INT64
    for j in range(32):
        flat = min(first + j, last - 1)
        row = flat // event
        time = row // repeat
        sample = _U(ids[row])
        store(element, j, flat - row * event)
        store(low, j, sample & MASK)
        store(high, j, sample >> HALF_WORD)
        store(tick, j, ints[0, time])
        store(cell, j, ints[1, time])
        depth = max(depth, ints[2, time])
        store(a, j, floats[0, time])
        store(w, j, floats[1, time])
        store(x, j, floats[2, time])
        store(s, j, floats[3, time])
        store(t, j, floats[4, time])
        store(past, j, floats[5, time])
        store(ahead, j, floats[6, time])
        store(done, j, _INT64 if floats[4, time] > floats[2, time] else _ONE)
    for j in range(96):
        store(left, j, zero)
        store(right, j, zero)
    counter = (element, low, high)
    for j in range(32):
        store(middle, j, load(cell, j))
    for k in range(depth + 1):
        _normals(pair, word, z, middle, counter, key)
        if k == 0:
            for j in range(32):
                scale = np.sqrt(load(w, j))
                store(c, j, load(z, j) * to(scale * _SPREAD[0]))
                store(c, j + 32, load(z, j + 32) * to(scale * _SPREAD[1]))
                store(c, j + 64, load(z, j + 64) * to(scale * _SPREAD[2]))
        else:
            for j in range(32):
                width = load(w, j)
                scale = np.sqrt(width)
                g0 = load(z, j) * to(scale * _SPLIT[0])
                g1 = load(z, j + 32) * to(scale * _SPLIT[1])
                g2 = load(z, j + 64) * to(scale * _SPLIT[2])
                c0, c1, c2 = load(c, j), load(c, j + 32), load(c, j + 64)
                s0, s1, s2 = c0, half * c1 - g0, quarter * c2 - three * g1
                d0, d1, d2 = three_halves * c1 + g0, five_quarters * c2 + g1, g2
                l0, l1, l2 = half * (s0 - d0), half * (s1 - d1), half * (s2 - d2)
                r0, r1, r2 = half * (s0 + d0), half * (s1 + d1), half * (s2 + d2)
                begin, end, width = load(a, j), load(a, j) + width, 0.5 * width
                mid, at = begin + width, load(x, j)
                here, there = load(cell, j), load(middle, j)
                turn = load(tick, j) >= there
                before, after, p, q = load(s, j), load(t, j), load(past, j), load(ahead, j)
                zeta = ((begin - before) - (at - mid)) * p
                _add(left, j, (l0, l1, l2), width * p, zeta, turn & (begin > before), to)
                zeta = ((mid - at) - (after - end)) * q
                inside = (load(done, j) == _INT64) & (end <= after)
                _add(right, j, (r0, r1, r2), width * q, zeta, inside & (not turn), to)
                store(c, j, r0 if turn else l0)
                store(c, j + 32, r1 if turn else l1)
                store(c, j + 64, r2 if turn else l2)
                store(a, j, mid if turn else begin)
                store(w, j, width)
                store(cell, j, there if turn else here)
        for j in range(32):
            begin, width, end = load(a, j), load(w, j), load(a, j) + load(w, j)
            over = load(done, j)
            whole = (over == _INT64) & (load(cell, j) == load(tick, j)) & (end <= load(t, j))
            zeta = ((begin - load(x, j)) - (load(t, j) - end)) * load(ahead, j)
            p = (load(c, j), load(c, j + 32), load(c, j + 64))
            _add(right, j, p, width * load(ahead, j), zeta, whole, to)
            store(done, j, _ONE if whole else over)
        drop = _BITS - k
        for j in range(32):
            store(middle, j, ((load(tick, j) >> drop) << drop) + ((_ONE << drop) >> _ONE))
    for n in range(3):
        here, there = offset(out, n * size + first), offset(out, (n + 3) * size + first)
        for j in range(last - first):
            store(here, j, load(left, 32 * n + j))
            store(there, j, load(right, 32 * n + j))


@_kernel
def descend32(
    out: int, ids: Ints, ints: Ints, floats: Floats, event: int, first: int, last: int, k0: int, k1: int
) -> None:
    key, target = (_U(k0), _U(k1)), pointer(out, _FLOAT32)
    for flat in range(first, last, 32):
        span = (flat, min(flat + 32, last))
        _tile(pair32, _to32, _FLOAT32, _CONSTANTS32, ids, ints, floats, target, event, key, span)


@_kernel
def descend64(
    out: int, ids: Ints, ints: Ints, floats: Floats, event: int, first: int, last: int, k0: int, k1: int
) -> None:
    key, target = (_U(k0), _U(k1)), pointer(out, _FLOAT64)
    for flat in range(first, last, 32):
        span = (flat, min(flat + 32, last))
        _tile(pair64, _to64, _FLOAT64, _CONSTANTS64, ids, ints, floats, target, event, key, span)


KERNELS = {torch.float32: descend32, torch.float64: descend64}


def descend(
    key: philox.Key,
    n: Ints,
    before: Floats,
    after: Floats,
    ids: Tensor,
    event: int,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    """`_tree.descend`, bit for bit, on up to ``torch.get_num_threads()`` threads."""
    x = _tree.times(n)
    ints = np.stack([n, n >> _tree.BITS << _tree.BITS, _tree.depth(n, after)])
    with np.errstate(divide="ignore"):
        floats = np.stack([*_tree.root(n), x, before, after, 1.0 / (x - before), 1.0 / (after - x)])
    out = torch.empty(2, 3, len(ids), event, dtype=dtype)
    tables = (out.data_ptr(), ids.numpy(), ints, floats, event)
    kernel, size = KERNELS[dtype], len(ids) * event
    threads = torch.get_num_threads()
    if threads == 1 or size <= PIECE:
        kernel(*tables, 0, size, *key)
    else:
        pieces = deque((first, min(first + PIECE, size)) for first in range(0, size, PIECE))
        _share(lambda p: kernel(*tables, *p, *key), pieces, threads)
    return out[0], out[1]


def checked(dtype: torch.dtype) -> Callable[..., tuple[Tensor, Tensor]]:
    """`descend`, after its kernel for ``dtype`` has reproduced the specification on this machine.

    Raises RuntimeError where it does not, after one try with compiled code of an older version thrown away.
    """
    t = np.array([0.1, 0.5, -1.7, 3.0, 5.25])
    case = (_tree.ticks(t), t - 0.3, t + 0.7, torch.tensor([0, 1, -1, 2**40 + 3, 5]))

    def agrees(event: int) -> bool:
        pairs = zip(
            descend((1, 2), *case, event, dtype), _tree.descend((1, 2), *case, event, dtype), strict=True
        )
        return all(torch.equal(a, b) for a, b in pairs)

    for _ in range(2):
        if agrees(1) and agrees(40):
            return descend
        KERNELS[dtype].recompile()
    raise RuntimeError(f"the compiled Brownian tree differs from its specification in {dtype}")
