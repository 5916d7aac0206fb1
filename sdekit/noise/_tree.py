"""The Brownian tree, specified: increments of one path as a function of (seed, sample id, element, times).

Every back end computes what this file defines; it is plain torch and runs on any device.

**Ticks.** Time is counted in ticks, integers n. On [-1, 1] a tick is 2^-52; beyond, ticks are the float64
numbers themselves, 2^52 of them from 2^(r-1) to 2^r. So the roots r = n div 2^52 = 0, 1, 2, 3, ... are the
intervals [0, 1], [1, 2], [2, 4], [4, 8], ..., those of r = -1, -2, ... their mirror images, and each holds
2^52 ticks of one length. Times between ticks, which exist only within (-1/2, 1/2), go to the nearest.

**Cells.** A cell of length w carries the Legendre coefficients of its white noise,

    c_n = int P_n dW ~ N(0, w / (2 n + 1)),   n = 0, 1, 2, independent,   P_n on [-1, 1] laid over the cell.

c_0 is the increment. A root draws its three. A cell with coefficients c has halves l and r whose sums
s = l + r and differences d = r - l satisfy

    c_0 = s_0,   c_1 = (d_0 + s_1) / 2,   c_2 = (3 d_1 + s_2) / 4;

the law of the six numbers given these three is, with independent g_1 ~ N(0, w/4), g_2 ~ N(0, w/48) and
g_3 ~ N(0, w/5),

    d_0 = 3/2 c_1 + g_1,   s_1 = 1/2 c_1 - g_1,   d_1 = 5/4 c_2 + g_2,   s_2 = 1/4 c_2 - 3 g_2,   d_2 = g_3.

**Address.** The numbers of a split have the address of the cell's middle tick, those of a root that of its
first: every tick belongs to one. Element e takes three normals of philox(counter = (e, 0, id), key), the key
of the seed and the purpose BROWNIAN with the 64 bits of the address added modulo 2.

**Intervals.** [x, y] is the disjoint union of the largest cells within it. In the coordinate of [x, y] a cell
is z = nu z' + zeta, nu the ratio of the lengths, zeta its middle, hence

    c_0 += p_0,   c_1 += nu p_1 + zeta p_0,
    c_2 += nu^2 p_2 + 3 nu zeta p_1 + (nu^2 + 3 zeta^2 - 1)/2 p_0.

Cells right of x under its root come first, from the largest; then those left of y, likewise; then roots in
between. No small number is ever the difference of large ones: short intervals are as accurate as long ones.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from sdekit.noise import philox

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    Floats = NDArray[np.float64]
    Ints = NDArray[np.int64]

__all__ = [
    "BITS",
    "depth",
    "descend",
    "ids_of_intervals",
    "normals",
    "root",
    "roots_between",
    "ticks",
    "times",
]

BITS = 52
"""Levels of the tree below a root."""
_OFFSET = 1022 << BITS
"""bits(t) - tick(t) for the float64 numbers t >= 1."""
SPREAD = (1.0, math.sqrt(1 / 3), math.sqrt(1 / 5))
"""Standard deviations of c_n on a cell of length 1."""
SPLIT = (0.5, math.sqrt(1 / 48), math.sqrt(1 / 5))
"""Standard deviations of g_1, g_2, g_3 likewise."""
CHUNK = 2**21
"""Blocks of normals held at a time."""


def ticks(t: Floats, bits: int = BITS) -> Ints:
    """The nearest tick of finite times, rounded to multiples of 2^(52 - bits)."""
    size = np.abs(t)
    near = np.rint(np.minimum(size, 1.0) * 2.0**BITS).astype(np.int64)
    n = np.where(size < 1, near, np.ascontiguousarray(size).view(np.int64) - _OFFSET)
    if bits < BITS:
        drop = BITS - bits
        n = (n + (1 << (drop - 1))) >> drop << drop
    return np.where(t < 0, -n, n)


def times(n: Ints) -> Floats:
    """The time of each tick, exact."""
    size = np.abs(n)
    far = (np.maximum(size, 1 << BITS) + _OFFSET).view(np.float64)
    return np.copysign(np.where(size < 1 << BITS, size * 2.0**-BITS, far), n)


def root(n: Ints) -> tuple[Floats, Floats]:
    """Where the root of each tick begins, and how long it is."""
    first = n >> BITS << BITS
    start = times(first)
    return start, times(first + (1 << BITS)) - start


def depth(n: Ints, after: Floats) -> Ints:
    """The splits from n's root to a cell that begins at n and, where after > n, ends within [n, after]."""
    low = n & -n & ((1 << BITS) - 1)
    begins = np.where(low > 0, BITS + 1 - np.frexp(low.astype(np.float64))[1], 0)
    room = np.where(after > times(n), after - times(n), np.inf)
    fits = np.frexp(root(n)[1])[1] - np.frexp(np.minimum(room, 2.0**1000))[1]
    levels: Ints = np.clip(np.maximum(begins, fits), 0, BITS).astype(np.int64)
    return levels


def normals(
    key: philox.Key, address: Tensor, ids: Tensor, event: int, dtype: torch.dtype
) -> tuple[Tensor, ...]:
    """Three normals (..., R, event) for every element of samples ids (R,) at nodes ``address`` (..., R)."""
    low, high = ids[:, None] & philox.MASK, (ids[:, None] >> 32) & philox.MASK
    k0 = key[0] ^ (address[..., None] & philox.MASK)
    k1 = key[1] ^ ((address[..., None] >> 32) & philox.MASK)
    element = torch.arange(event, device=ids.device)
    w = torch.broadcast_tensors(*philox.philox4x32((element, 0, low, high), (k0, k1)))  # type: ignore[arg-type,no-untyped-call]
    a, b = philox.box_muller(w[0], w[1], dtype)
    return a, b, philox.box_muller(w[2], w[3], dtype)[0]


def ids_of_intervals(key: philox.Key, n: Ints, m: Ints, ids: Tensor) -> Tensor:
    """Sample ids for what belongs to ids (B,) over the intervals from ticks n to m (k, B) or (k, 1): (k, B).

    64 bits of philox(id and 64 bits of philox((n, m), key), key).
    """

    def hashed(x: Tensor, y: Tensor) -> Tensor:
        halves = [z >> shift & philox.MASK for z in (x, y) for shift in (0, 32)]
        low, high, _, _ = philox.philox4x32((halves[0], halves[1], halves[2], halves[3]), key)
        return torch.as_tensor(high << 32 | low)

    return hashed(ids, hashed(torch.from_numpy(n), torch.from_numpy(m)).to(ids.device))


def _draw(z: Sequence[Tensor], spread: tuple[float, ...], w: Tensor) -> list[Tensor]:
    """The normals z (R, event) with standard deviations ``spread`` on cells of lengths w (R,)."""
    scale = philox._sqrt(w)
    return [x * (scale * d).to(x.dtype)[:, None] for x, d in zip(z, spread, strict=True)]


def _split(c: list[Tensor], g: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    s = c[0], 0.5 * c[1] - g[0], 0.25 * c[2] - 3.0 * g[1]
    d = 1.5 * c[1] + g[0], 1.25 * c[2] + g[1], g[2]
    left = [0.5 * (a - b) for a, b in zip(s, d, strict=True)]
    return left, [0.5 * (a + b) for a, b in zip(s, d, strict=True)]


def _add(total: list[Tensor], p: list[Tensor], nu: Tensor, zeta: Tensor, where: Tensor) -> None:
    """total += the cell with coefficients p, in the rows ``where``."""
    square, cross = nu * nu, 3.0 * (nu * zeta)
    level = 0.5 * ((square + 3.0 * (zeta * zeta)) - 1.0)
    nu, zeta, square, cross, level = (x.to(p[0].dtype)[:, None] for x in (nu, zeta, square, cross, level))
    more = p[0], nu * p[1] + zeta * p[0], (square * p[2] + cross * p[1]) + level * p[0]
    for n in range(3):
        total[n] = torch.where(where[:, None], total[n] + more[n], total[n])


def descend(
    key: philox.Key,
    n: Ints,
    before: Floats,
    after: Floats,
    ids: Tensor,
    event: int,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    """The cells on both sides of ticks n: two tensors (3, R, event) of Legendre coefficients.

    First the cells of n's root within [before, n], as their part of the coefficients of that interval; then
    those within [n, after], where before = inf and after = -inf stand for none. n, before and after are (T,),
    for R = T m samples ids (R,): m in a row share a tick.
    """
    copies = len(ids) // max(len(n), 1)
    n, before, after = n.repeat(copies), before.repeat(copies), after.repeat(copies)
    levels = depth(n, after)
    rows = max(1, CHUNK // ((int(levels.max(initial=0)) + 1) * max(event, 1)))
    parts = []
    for k in range(0, max(len(n), 1), rows):
        some = slice(k, k + rows)
        deepest = int(levels[some].max(initial=0))
        parts.append(_descend(key, n[some], before[some], after[some], deepest, ids[some], event, dtype))
    return torch.cat([p[0] for p in parts], dim=1), torch.cat([p[1] for p in parts], dim=1)


def _descend(
    key: philox.Key,
    n: Ints,
    before: Floats,
    after: Floats,
    depth: int,
    ids: Tensor,
    event: int,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    def send(x: NDArray[Any]) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(x)).to(ids.device)

    first, x, start, w = map(send, (n >> BITS << BITS, times(n), *root(n)))
    tick, s, t = map(send, (n, before, after))
    past, ahead = 1.0 / (x - s), 1.0 / (t - x)
    level = torch.arange(depth, device=ids.device)[:, None]
    middle = (tick >> (BITS - level) << (BITS - level)) + (1 << (BITS - 1 - level))
    z = normals(key, torch.cat([first[None], middle]), ids, event, dtype)
    c = _draw([y[0] for y in z], SPREAD, w)
    left, right = ([torch.zeros_like(c[0]) for _ in range(3)] for _ in range(2))
    a, cell, done = start, first, ~(t > x)
    for k in range(depth + 1):
        end = a + w
        whole = ~done & (cell == tick) & (end <= t)
        _add(right, c, w * ahead, ((a - x) - (t - end)) * ahead, whole)
        done = done | whole
        if k == depth:
            break
        low, high = _split(c, _draw([y[k + 1] for y in z], SPLIT, w))
        w = 0.5 * w
        m, turn = a + w, tick >= middle[k]
        _add(left, low, w * past, ((a - s) - (x - m)) * past, turn & (a > s))
        _add(right, high, w * ahead, ((m - x) - (t - end)) * ahead, ~turn & ~done & (end <= t))
        c = [torch.where(turn[:, None], v, u) for u, v in zip(low, high, strict=True)]
        a, cell = torch.where(turn, m, a), torch.where(turn, middle[k], cell)
    return torch.stack(left), torch.stack(right)


def roots_between(
    key: philox.Key, n: Ints, m: Ints, ids: Tensor, event: int, dtype: torch.dtype
) -> Tensor | None:
    """The roots strictly between those of ticks n and m (T,), n <= m, as part of [n, m]; None without any."""
    if not len(ids) or not ((n >> BITS) + 1 < m >> BITS).any():
        return None
    copies = len(ids) // max(len(n), 1)
    n, m = n.repeat(copies), m.repeat(copies)
    low, high = (n >> BITS) + 1, m >> BITS
    x, y = (torch.from_numpy(times(k)).to(ids.device) for k in (n, m))
    inverse = 1.0 / (y - x)
    total = [torch.zeros(len(ids), event, dtype=dtype, device=ids.device) for _ in range(3)]
    for r in range(int(low[low < high].min()), int(high[low < high].max())):
        first = np.int64(r) << BITS
        a, b = (float(times(np.asarray(k))) for k in (first, first + (1 << BITS)))
        inside = torch.from_numpy((low <= r) & (r < high)).to(ids.device)
        address = torch.full_like(ids, int(first))
        width = torch.full_like(x, b - a)
        c = _draw(normals(key, address, ids, event, dtype), SPREAD, width)
        _add(total, c, width * inverse, ((a - x) - (y - b)) * inverse, inside)
    return torch.stack(total)
