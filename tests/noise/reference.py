"""The noise written a second time, from the published description alone, in plain Python numbers."""

from __future__ import annotations

import math


def mulhilo(a: int, b: int) -> tuple[int, int]:
    return divmod(a * b, 2**32)


def philox(counter: tuple[int, ...], key: tuple[int, ...], rounds: int = 10) -> tuple[int, ...]:
    """Salmon et al. 2011, figure of Philox-4x32: multiply c0 and c2, swap, xor with the key, bump the key."""
    c, (k0, k1) = counter, key
    for r in range(rounds):
        if r:
            k0, k1 = (k0 + 0x9E3779B9) % 2**32, (k1 + 0xBB67AE85) % 2**32
        high0, low0 = mulhilo(0xD2511F53, c[0])
        high1, low1 = mulhilo(0xCD9E8D57, c[2])
        c = (high1 ^ c[1] ^ k0, low1, high0 ^ c[3] ^ k1, low0)
    return c


def key(seed: int, purpose: int) -> tuple[int, int]:
    sdek, it = (int.from_bytes(text, "big") for text in (b"sdek", b"it\0\0"))
    return philox((seed % 2**32, seed % 2**64 // 2**32, purpose, 0), (sdek, it))[:2]


def locate(draw: int, element: int, event: int) -> tuple[int, int, int]:
    """(block, draw word, word) of one element."""
    if event < 4:
        width = {1: 1, 2: 2, 3: 4}[event]
        return draw // (4 // width), 0, draw % (4 // width) * width + element
    tile, inside = divmod(element, 128)
    lanes = 32 if event - 128 * tile >= 128 else math.ceil((event - 128 * tile) / 4)
    word, lane = divmod(inside, lanes)
    return 32 * tile + lane, draw, word


def radius(w: int) -> float:
    """sqrt(-2 ln((w + 1/2) / 2^32)), with log1p in the upper half."""
    if w < 2**31:
        return math.sqrt(-2 * math.log((w + 0.5) / 2**32))
    return math.sqrt(-2 * math.log1p(-(2**32 - w - 0.5) / 2**32))


def normal(seed: int, purpose: int, sample: int, draw: int, element: int, event: int) -> float:
    block, draw_word, word = locate(draw, element, event)
    w = philox((block, draw_word, sample % 2**32, sample % 2**64 // 2**32), key(seed, purpose))
    angle = 2 * math.pi * (w[word | 1] / 2**32)
    return radius(w[word & 2]) * (math.sin(angle) if word % 2 else math.cos(angle))
