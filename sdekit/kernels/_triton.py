"""The Triton kernels behind `sdekit.kernels.cuda`: one pass over the state, noise made in registers."""

from __future__ import annotations

from typing import Any

import triton.language as tl

from sdekit.noise.cuda import jit, normals, places, words

__all__ = ["affine", "noisy"]

_RUNTIME = ("k0", "k1", "d0", "d1", "d2", "d3", "rows", "blocks", "event")


@jit()
def _sum(
    registers: tl.tensor,
    weights: tl.tensor,
    at: tl.tensor,
    mask: tl.tensor,
    terms: tl.constexpr,
    double: tl.constexpr,
) -> Any:
    """w_1 r_1 + w_2 r_2 + ..., left to right, of the elements ``at``."""
    wide = tl.float64 if double else tl.float32
    total = tl.load(registers[0] + at, mask=mask, other=0).to(wide) * tl.load(weights)
    for i in tl.static_range(1, terms):
        total += tl.load(registers[i] + at, mask=mask, other=0).to(wide) * tl.load(weights + i)
    return total


@jit()
def _put(
    out: tl.tensor,
    second: tl.tensor,
    scale: tl.tensor,
    at: tl.tensor,
    total: tl.tensor,
    mask: tl.tensor,
) -> None:
    """out = total, rounded; second = scale out, the scale rounded like out, and the product again."""
    x = total.to(out.dtype.element_ty)
    tl.store(out + at, x, mask=mask)
    if second is not None:
        c = tl.load(scale).to(out.dtype.element_ty).to(total.dtype)
        tl.store(second + at, (x.to(total.dtype) * c).to(out.dtype.element_ty), mask=mask)


@jit()
def affine(
    out: tl.tensor,
    second: tl.tensor,
    registers: tl.tensor,
    weights: tl.tensor,
    scale: tl.tensor,
    count: tl.tensor,
    size: tl.constexpr,
    large: tl.constexpr,
    terms: tl.constexpr,
    double: tl.constexpr,
) -> None:
    """Without noise: elementwise."""
    program = tl.program_id(0)
    if large:
        program = program.to(tl.int64)
    at = program * size + tl.arange(0, size)
    mask = at < count
    total = _sum(registers, weights, at, mask, terms, double)
    _put(out, second, scale, at, total, mask)


@jit()
def _pick(n: tl.tensor, i: tl.tensor) -> Any:
    """Normal i of a block."""
    return tl.where(i == 0, n[0], tl.where(i == 1, n[1], tl.where(i == 2, n[2], n[3])))


@jit(*_RUNTIME)
def noisy(
    out: tl.tensor,
    second: tl.tensor,
    registers: tl.tensor,
    weights: tl.tensor,
    scale: tl.tensor,
    ids: tl.tensor,
    key: tl.tensor,
    k0: tl.tensor,
    k1: tl.tensor,
    d0: tl.tensor,
    d1: tl.tensor,
    d2: tl.tensor,
    d3: tl.tensor,
    rows: tl.tensor,
    blocks: tl.tensor,
    event: tl.tensor,
    size: tl.constexpr,
    small: tl.constexpr,
    large: tl.constexpr,
    terms: tl.constexpr,
    draws: tl.constexpr,
    pack: tl.constexpr,
    double: tl.constexpr,
) -> None:
    """With noise: block by block. pack: the words that a draw takes where draws share blocks, or 0."""
    row, block, first, width = places(tl.program_id(0), event, blocks, size, small, large)
    live = row < rows
    sample = tl.load(ids + row, mask=live, other=0)
    low, high = sample.to(tl.uint32), (sample >> 32).to(tl.uint32)
    if key is not None:
        k0 = tl.load(key)
        k1 = tl.load(key + 1)
    base = row * event
    m0 = live & (first < event)
    m1 = live & (first + width < event)
    m2 = live & (first + 2 * width < event)
    m3 = live & (first + 3 * width < event)
    t0 = _sum(registers, weights, base + first, m0, terms, double)
    t1 = _sum(registers, weights, base + first + width, m1, terms, double)
    t2 = _sum(registers, weights, base + first + 2 * width, m2, terms, double)
    t3 = _sum(registers, weights, base + first + 3 * width, m3, terms, double)
    for j in tl.static_range(draws):
        if j == 0:
            draw = d0.to(tl.uint32)
        elif j == 1:
            draw = d1.to(tl.uint32)
        elif j == 2:
            draw = d2.to(tl.uint32)
        else:
            draw = d3.to(tl.uint32)
        c = tl.load(weights + terms + j)
        if pack:
            share: tl.constexpr = 4 // pack
            counter = block.to(tl.uint32) + draw // share
            a, b, d, e = words(counter, draw * 0, low, high, k0.to(tl.uint32), k1.to(tl.uint32))
            skip = ((draw % share) * pack).to(tl.int32)
            n = normals(a, b, d, e, double)
            n = _pick(n, skip), _pick(n, skip + 1), _pick(n, skip + 2), _pick(n, skip + 3)
        else:
            a, b, d, e = words(block.to(tl.uint32), draw, low, high, k0.to(tl.uint32), k1.to(tl.uint32))
            n = normals(a, b, d, e, double)
        t0 += n[0].to(out.dtype.element_ty).to(t0.dtype) * c
        t1 += n[1].to(out.dtype.element_ty).to(t1.dtype) * c
        t2 += n[2].to(out.dtype.element_ty).to(t2.dtype) * c
        t3 += n[3].to(out.dtype.element_ty).to(t3.dtype) * c
    _put(out, second, scale, base + first, t0, m0)
    _put(out, second, scale, base + first + width, t1, m1)
    _put(out, second, scale, base + first + 2 * width, t2, m2)
    _put(out, second, scale, base + first + 3 * width, t3, m3)
