"""The normals of `philox.py` on CUDA: Triton kernels that compute what the specification says, bit for bit.

A thread takes whole blocks: ten rounds give four words, these two pairs of normals. Block b of a row holds
elements 128 t + 32 w + lane of tile t = b div 32 at lane = b mod 32, so a warp writes 32 neighbours at a
time. Rows follow each other: a batch of small events fills the machine as one large event does.

A product of two 32-bit words is taken in 64 bits, one instruction. No multiply-add is fused (the launch says
so), float32 division and square root are the correctly rounded ones. `words`, `normals` and `places` are for
kernels that use the numbers where they are made (`sdekit.kernels.cuda`). Importing this module imports
Triton; with TRITON_INTERPRET=1 in the environment by then, the kernels run on CPU tensors.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from sdekit.noise import philox

__all__ = ["BLOCK", "EXACT", "checked", "far", "fill", "jit", "normals", "on", "places", "signed", "words"]

BLOCK = 256
"""Philox blocks, each of four numbers, that one program of a kernel takes."""
EXACT: dict[str, Any] = {"enable_fp_fusion": False, "num_warps": 4}
"""Launch options: no fused multiply-add."""


def jit(*runtime: str) -> Callable[[Callable[..., Any]], Any]:
    """`triton.jit`, annotated; arguments named in ``runtime`` never lead to another compilation."""
    return lambda function: triton.jit(function, do_not_specialize=list(runtime))


def _constant(value: Any) -> Any:
    return tl.constexpr(value)


_M0, _M1 = _constant(philox.M0), _constant(philox.M1)
_W0, _W1 = _constant(philox.W0), _constant(philox.W1)
_ROUNDS = _constant(philox.ROUNDS)


@jit()
def words(c0: tl.tensor, c1: tl.tensor, c2: tl.tensor, c3: tl.tensor, k0: tl.tensor, k1: tl.tensor) -> Any:
    """`philox.philox4x32` of uint32 words."""
    for _ in tl.static_range(_ROUNDS):
        p = c0.to(tl.uint64) * _M0
        q = c2.to(tl.uint64) * _M1
        c0 = (q >> 32).to(tl.uint32) ^ c1 ^ k0
        c1 = q.to(tl.uint32)
        c2 = (p >> 32).to(tl.uint32) ^ c3 ^ k1
        c3 = p.to(tl.uint32)
        k0 = k0 + _W0
        k1 = k1 + _W1
    return c0, c1, c2, c3


_LOG32, _LOG64 = (_constant(philox.LOG[dtype]) for dtype in (torch.float32, torch.float64))
_SIN32, _SIN64 = (_constant(philox.SIN[dtype]) for dtype in (torch.float32, torch.float64))
_COS32, _COS64 = (_constant(philox.COS[dtype]) for dtype in (torch.float32, torch.float64))
_EDGE32 = _constant(int(torch.tensor(11 / 16).view(torch.int32)))
_EDGE64 = _constant(int(torch.tensor(11 / 16, dtype=torch.float64).view(torch.int64)))
_LN4, _TINY, _UNIT = _constant(-2 * math.log(2)), _constant(2.0**-32), _constant(2.0**-31)
_EIGHTH, _QUARTER, _SIGN = _constant(2**29), _constant(2**30), _constant(-(2**31))


@jit()
def _horner(z: tl.tensor, coefficients: tl.constexpr, degree: tl.constexpr) -> Any:
    total = z * coefficients[degree] + coefficients[degree - 1]
    for i in tl.static_range(2, degree + 1):
        total = total * z + coefficients[degree - i]
    return total


@jit()
def _pair32(w: tl.tensor, v: tl.tensor) -> Any:
    w = w.to(tl.int32, bitcast=True)
    v = v.to(tl.int32, bitcast=True)
    low = w >= 0
    x = ((w ^ (w >> 31)).to(tl.float32) + 0.5) * _TINY
    bits = x.to(tl.int32, bitcast=True) - _EDGE32
    k = bits >> 23
    f = (bits - (k << 23) + _EDGE32).to(tl.float32, bitcast=True) - 1.0
    far = x > 0.3125
    f = tl.where(low, f, tl.where(far, 1.0 - (x + x), -x))
    k = tl.where(low, k.to(tl.float32), tl.where(far, -1.0, 0.0))
    s = tl.math.div_rn(f, f + 2.0)
    r = tl.math.sqrt_rn(k * _LN4 + s * _horner(s * s, _LOG32, 3))
    y = (v << 2).to(tl.float32) * _UNIT
    z = y * y
    cos = _horner(z, _COS32, 4)
    sin = y * _horner(z, _SIN32, 3)
    q = v + _EIGHTH
    odd = (q & _QUARTER) != 0
    a = tl.where(odd, sin, cos).to(tl.int32, bitcast=True) ^ ((q + _QUARTER) & _SIGN)
    b = tl.where(odd, cos, sin).to(tl.int32, bitcast=True) ^ (q & _SIGN)
    return r * a.to(tl.float32, bitcast=True), r * b.to(tl.float32, bitcast=True)


@jit()
def _pair64(w: tl.tensor, v: tl.tensor) -> Any:
    v = v.to(tl.int32, bitcast=True)
    u = (w.to(tl.float64) + 0.5) * _TINY
    bits = u.to(tl.int64, bitcast=True) - _EDGE64
    k = bits >> 52
    f = (bits - (k << 52) + _EDGE64).to(tl.float64, bitcast=True) - 1.0
    s = f / (f + 2.0)
    r = tl.sqrt(k.to(tl.float64) * _LN4 + s * _horner(s * s, _LOG64, 7))
    y = (v << 2).to(tl.float64) * _UNIT
    z = y * y
    cos = _horner(z, _COS64, 7)
    sin = y * _horner(z, _SIN64, 6)
    q = v + _EIGHTH
    odd = (q & _QUARTER) != 0
    a = tl.where(odd, sin, cos).to(tl.int64, bitcast=True) ^ (((q + _QUARTER) & _SIGN).to(tl.int64) << 32)
    b = tl.where(odd, cos, sin).to(tl.int64, bitcast=True) ^ ((q & _SIGN).to(tl.int64) << 32)
    return r * a.to(tl.float64, bitcast=True), r * b.to(tl.float64, bitcast=True)


@jit()
def normals(w0: tl.tensor, w1: tl.tensor, w2: tl.tensor, w3: tl.tensor, double: tl.constexpr) -> Any:
    """Four normals from the four words of a block: `philox.box_muller` of each pair."""
    if double:
        a, b = _pair64(w0, w1)
        c, d = _pair64(w2, w3)
    else:
        a, b = _pair32(w0, w1)
        c, d = _pair32(w2, w3)
    return a, b, c, d


@jit()
def places(
    program: tl.tensor,
    event: tl.tensor,
    blocks: tl.tensor,
    size: tl.constexpr,
    small: tl.constexpr,
    large: tl.constexpr,
) -> Any:
    """Where the blocks of one program lie: (row, block, first, width); word w is element first + w width.

    small: a row has fewer than ``size`` blocks. Otherwise a program meets two rows at most. large: the state
    has elements beyond the reach of 32 bits, and places are int64.
    """
    if large:
        program = program.to(tl.int64)
    row = program * size // blocks
    block = (program * size - row * blocks).to(tl.int32) + tl.arange(0, size)
    further = block // blocks if small else (block >= blocks).to(tl.int32)
    block = block - further * blocks
    tile = block >> 5
    width = tl.where(tile < (event >> 7), 32, ((event & 127) + 3) >> 2)
    if large:
        tile = tile.to(tl.int64)
    return row + further, block, tile * 128 + (block & 31), width


@jit("k0", "k1", "first_block", "draw_word", "skip", "rows", "blocks", "event")
def _fill(
    out: tl.tensor,
    ids: tl.tensor,
    key: tl.tensor,
    k0: tl.tensor,
    k1: tl.tensor,
    first_block: tl.tensor,
    draw_word: tl.tensor,
    skip: tl.tensor,
    rows: tl.tensor,
    blocks: tl.tensor,
    event: tl.tensor,
    size: tl.constexpr,
    small: tl.constexpr,
    large: tl.constexpr,
    double: tl.constexpr,
) -> None:
    row, block, first, width = places(tl.program_id(0), event, blocks, size, small, large)
    live = row < rows
    sample = tl.load(ids + row, mask=live, other=0)
    if key is not None:
        k0 = tl.load(key)
        k1 = tl.load(key + 1)
    w0, w1, w2, w3 = words(
        (block + first_block).to(tl.uint32),
        draw_word.to(tl.uint32),
        sample.to(tl.uint32),
        (sample >> 32).to(tl.uint32),
        k0.to(tl.uint32),
        k1.to(tl.uint32),
    )
    n = normals(w0, w1, w2, w3, double)
    for w in tl.static_range(4):
        e = first + w * width - skip
        tl.store(out + row * event + e, n[w].to(out.dtype.element_ty), mask=live & (e >= 0) & (e < event))


def signed(word: int) -> int:
    """A 32-bit word as the int32 of the same bits, so that every word is passed as one type."""
    return word - 2**32 if word >= 2**31 else word


def far(out: Tensor) -> bool:
    """Whether places in ``out``, and just beyond, exceed int32."""
    return out.numel() >= 2**31 - 2**16


def on(device: torch.device) -> AbstractContextManager[Any]:
    """Launches go to the current device: make it that of the tensors."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def fill(out: Tensor, key: philox.Key | Tensor, draw: int, ids: Tensor, event: int) -> None:
    """Write one draw into ``out``, contiguous (B, *event): the bits of `philox.normal`, asynchronously.

    float32 or float64, or bfloat16 and float16, which are float32 rounded. ids: (B,) int64, contiguous, on
    the device of ``out``. key: two words, or int64 (2,) on the device, read when the kernel runs: a graph
    that holds the call then follows the tensor.
    """
    rows, blocks = ids.numel(), 32 * (event // 128) + -(-(event % 128) // 4)
    if not rows or not event:
        return
    first, word, skip = philox.address(draw, event)
    held = isinstance(key, Tensor)
    k0, k1 = (0, 0) if held else map(signed, key)
    grid = (-(-rows * blocks // BLOCK),)
    with on(out.device):
        _fill[grid](
            out,
            ids,
            key if held else None,
            k0,
            k1,
            signed(first),
            signed(word),
            skip,
            rows,
            blocks,
            event,
            BLOCK,
            blocks < BLOCK,
            far(out),
            out.dtype is torch.float64,
            **EXACT,
        )


@cache
def checked(dtype: torch.dtype, device: torch.device) -> Callable[..., None]:
    """`fill`, after it has reproduced the specification on this device to 4 eps (1 + |x|).

    Raises RuntimeError where it does not.
    """
    ids = torch.tensor([0, 1, -1, 2**40 + 3])
    bound = 4 * torch.finfo(dtype).eps

    def agrees(event: int, draws: Sequence[int] = (0, 7, 2**32 - 1)) -> bool:
        for draw in draws:
            out = torch.empty(len(ids), event, dtype=dtype, device=device)
            fill(out, (1, 2), draw, ids.to(device), event)
            expected = philox.normal((1, 2), draw, ids, event, dtype)
            if not torch.allclose(out.cpu(), expected, rtol=bound, atol=bound):
                return False
        return True

    if all(map(agrees, (1, 2, 3, 4, 150, 1100))):
        return fill
    raise RuntimeError(f"the noise compiled for {device} differs from its specification in {dtype}")
