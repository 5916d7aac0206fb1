"""The noise, specified: a normal number is a function of (seed, purpose, sample id, draw, element).

Every back end computes what this file defines. It is plain torch on int64 and floating tensors, runs on
any device, and is the fallback where no faster back end exists.

**Words.** Philox-4x32-10 (Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3",
SC 2011, section 3.3). Ten rounds of

    c <- (hi(M1 c2) ^ c1 ^ k0,  lo(M1 c2),  hi(M0 c0) ^ c3 ^ k1,  lo(M0 c0)),    k <- k + (W0, W1) mod 2^32

turn a counter of four 32-bit words and a key of two into four words w0, w1, w2, w3.

**Key.** Words 0 and 1 of philox(counter = (seed mod 2^32, seed div 2^32, purpose, 0), key = ("sdek", "it")).
Seeds count mod 2^64: -1 and 2^64 - 1 are the same.

**Counter.** (block, draw, id mod 2^32, id div 2^32); sample ids count mod 2^64 likewise.

**Layout.** An event of E elements in row-major order; L lanes side by side, t the tile, w the word:

    full tiles of 128     e = 128 t + 32 w + lane    is word w of block 32 t + lane
    last tile of n < 128  e = 128 t + L w + lane     likewise, with L = ceil(n / 4)
    events of E < 4       P = 4 / E' draws share a block, E' = 1, 2, 4 for E = 1, 2, 3:
                          element e is word (draw mod P) E' + e of block draw div P, with 0 for the draw

**Normals** (Box and Muller 1958). A block makes r cos a, r sin a from (w0, w1) and again from (w2, w3):

    r = sqrt(-2 ln u),    u = (w + 1/2) / 2^32,    a = 2 pi w' / 2^32.

- Radius. Let x = u for w < 2^31 and x = 1 - u otherwise; both are (integer + 1/2) / 2^32, so that nothing is
  lost as u -> 1. Write u = 2^k (1 + f) with 11/16 <= 1 + f < 11/8; near u = 1 this is f = -x or f = 1 - 2x,
  free of rounding. Then, s = f / (2 + f), -2 ln u = -2 k ln 2 + s l(s^2) with a polynomial l.
  r lies in [1.5e-5, 6.77].
- Angle. Integers give the nearest multiple q of a quarter turn and the rest y 2^29, |y| <= 1: a =
  (pi/2) q + (pi/4) y. Polynomials in y^2 give cos and sin within that octant.
- Arithmetic. Plain multiply, add, divide and square root, each rounded to the dtype, in the order written,
  never fused: any IEEE machine returns the same bits. float32 and float64 take the same steps with
  polynomials of their own and agree within 2e-6; other dtypes are float32 rounded.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

__all__ = ["DRAWS", "Key", "address", "box_muller", "derive_key", "normal", "philox4x32", "words"]

Key: TypeAlias = tuple[int, int]

MASK = 0xFFFFFFFF
M0, M1 = 0xD2511F53, 0xCD9E8D57
W0, W1 = 0x9E3779B9, 0xBB67AE85
ROUNDS = 10
ROOT: Key = (0x7364656B, 0x69740000)  # "sdek", "it"
DRAWS = 2**32
"""Draws are numbered 0, ..., DRAWS - 1."""

# Minimax polynomials by Remez exchange in 60 digits, rounded coefficient by coefficient, constant term first.
# Relative errors: log 1.5e-9, sin 2.8e-8, cos 5e-10 in float32; 5e-18, 4e-17, 4e-19 in float64.
LOG = {  # -2 ln(1 + f) / s in powers of s^2, |s| <= 5/27
    torch.float32: (-4.0, -1.3333368, -0.79938585, -0.6018982),
    torch.float64: (
        *(-4.0, -1.3333333333333734, -0.7999999999702408, -0.5714285788892601),
        *(-0.4444435588755178, -0.3636924454909377, -0.3057499197521929, -0.30111041139078726),
    ),
}
SIN = {  # sin(pi y / 4) / y in powers of y^2, |y| <= 1
    torch.float32: (0.7853982, -0.08074583, 0.0024910164, -3.6609155e-05),
    torch.float64: (
        *(0.7853981633974483, -0.0807455121882785, 0.002490394570164845, -3.6576204056011824e-05),
        *(3.133614233027788e-07, -1.7569723976785744e-09, 6.81797498723408e-12),
    ),
}
COS = {  # cos(pi y / 4) in powers of y^2, |y| <= 1
    torch.float32: (1.0, -0.30842513, 0.015854284, -0.0003258687, 3.4940874e-06),
    torch.float64: (
        *(1.0, -0.30842513753404244, 0.015854344243815106, -0.0003259918869247027),
        *(3.590860439970591e-06, -2.4611354929493777e-08, 1.1499839189195871e-10, -3.838747720340338e-13),
    ),
}


def philox4x32(
    counter: tuple[Any, Any, Any, Any], key: Key, rounds: int = ROUNDS
) -> tuple[Any, Any, Any, Any]:
    """Four 32-bit words from a counter of four and a key of two: Salmon et al. 2011, section 3.3.

    Words are ints or int64 tensors in [0, 2^32), of shapes that broadcast. A product that wraps around
    int64 keeps all of its 64 bits, hence both halves are exact.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(rounds):
        p0, p1 = M0 * c0, M1 * c2
        c0, c1, c2, c3 = ((p1 >> 32) & MASK) ^ c1 ^ k0, p1 & MASK, ((p0 >> 32) & MASK) ^ c3 ^ k1, p0 & MASK
        k0, k1 = (k0 + W0) & MASK, (k1 + W1) & MASK
    return c0, c1, c2, c3


@lru_cache(maxsize=4096)
def derive_key(seed: int, purpose: int) -> Key:
    """The key of a seed (mod 2^64) and a purpose in [0, 2^32)."""
    seed %= 2**64
    k0, k1, _, _ = philox4x32((seed & MASK, seed >> 32, int(purpose), 0), ROOT)
    return k0, k1


def address(draw: int, event: int) -> tuple[int, int, int]:
    """(first block, draw word, first word) of a draw for events of ``event`` elements."""
    if not 0 < event < 4:
        return 0, draw, 0
    width = 4 if event == 3 else event
    return draw // (4 // width), 0, draw % (4 // width) * width


def words(key: Key, draw: int, ids: Tensor, event: int) -> Tensor:
    """The blocks of one draw: (B, blocks, 4) int64 words for sample ids (B,)."""
    first, draw_word, _ = address(draw, event)
    full, rest = divmod(event, 128)
    block = first + torch.arange(32 * full + -(-rest // 4), device=ids.device)
    low, high = ids[:, None] & MASK, (ids[:, None] >> 32) & MASK
    return torch.stack(philox4x32((block, draw_word, low, high), key), dim=-1)


def _horner(coefficients: tuple[float, ...], z: Tensor) -> Tensor:
    total = torch.full_like(z, coefficients[-1])
    for c in reversed(coefficients[:-1]):
        total = total * z + c
    return total


def _sqrt(x: Tensor) -> Tensor:
    """Correctly rounded square root. On CPU this is numpy's: torch's vectorised one errs in the last bit."""
    return torch.from_numpy(np.sqrt(x.numpy())) if x.device.type == "cpu" else x.sqrt()


def _radius(w: Tensor, dtype: torch.dtype) -> Tensor:
    """sqrt(-2 ln((w + 1/2) / 2^32))."""
    low = w < 2**31
    x = (torch.where(low, w, MASK - w).to(dtype) + 0.5) * 2.0**-32
    m, k = torch.frexp(x)
    halved, far = m < 11 / 16, x > 5 / 16
    f = torch.where(low, torch.where(halved, 2 * m, m) - 1, torch.where(far, 1 - 2 * x, -x))
    k = torch.where(low, k - halved.to(k.dtype), -far.to(k.dtype))
    s = f / (f + 2)
    square = k.to(dtype) * (-2 * math.log(2)) + s * _horner(LOG[dtype], s * s)
    return _sqrt(square)


def _cos_sin(w: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """cos and sin of 2 pi w / 2^32."""
    nearest = w + 2**29
    quarter = (nearest >> 30) & 3
    y = ((nearest & (2**30 - 1)) - 2**29).to(dtype) * 2.0**-29
    z = y * y
    cos, sin = _horner(COS[dtype], z), y * _horner(SIN[dtype], z)
    odd = (quarter & 1) == 1
    cos, sin = torch.where(odd, sin, cos), torch.where(odd, cos, sin)
    left, below = (quarter == 1) | (quarter == 2), quarter >= 2
    return torch.where(left, -cos, cos), torch.where(below, -sin, sin)


def box_muller(w: Tensor, v: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Two normals (r cos a, r sin a) of float32 or float64 from a radius and an angle word."""
    radius, (cos, sin) = _radius(w, dtype), _cos_sin(v, dtype)
    return radius * cos, radius * sin


def normal(key: Key, draw: int, ids: Tensor, event: int, dtype: torch.dtype) -> Tensor:
    """One draw of N(0, 1) numbers: (B, event) for int64 sample ids (B,), on the device of ``ids``."""
    w = words(key, draw, ids, event)
    working = torch.float64 if dtype == torch.float64 else torch.float32
    a = box_muller(w[..., 0], w[..., 1], working)
    b = box_muller(w[..., 2], w[..., 3], working)
    n = torch.stack((*a, *b), dim=-1)
    if 0 < event < 4:
        skip = address(draw, event)[2]
        return n[:, 0, skip : skip + event].to(dtype)
    tiles, rest = divmod(event, 128)
    body = n[:, : 32 * tiles].reshape(len(n), tiles, 32, 4).transpose(2, 3).flatten(1)
    tail = n[:, 32 * tiles :].transpose(1, 2).flatten(1)[:, :rest]
    return torch.cat((body, tail), dim=1).to(dtype)
