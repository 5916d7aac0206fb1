"""The compiled words and normals, one by one and in blocks, against the specification: bit for bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from sdekit.noise import philox

numba = pytest.importorskip("numba")

# Where the float32 transform changes its course: the halves of u, and the powers of two in 11/16 of 2^32.
PLACES = [0, 2**32, 2**31, 11 * 2**28, 5 * 2**28, *(11 * 2**k for k in range(28)), *(2**k for k in range(32))]
NEAR = [(place + k) % 2**32 for place in PLACES for k in range(-200, 201)]


def bits(x: torch.Tensor) -> Any:
    return x.numpy().view(np.int32 if x.dtype == torch.float32 else np.int64)


def hard_words(seed: int) -> torch.Tensor:
    """A multiple of 16 of words, those near the places first."""
    near = torch.tensor(NEAR)
    some = torch.randint(0, 2**32, (2**20 - len(near),), generator=torch.Generator().manual_seed(seed))
    return torch.cat([near, some])


@pytest.fixture(scope="module")
def compiled() -> Any:
    """(one pair at a time, a block of ``count``) of each dtype, on addresses."""
    from sdekit.noise import _normals
    from sdekit.noise._jit import load, offset, pointer, store

    word, rows, pairs = np.int32(0), _normals.row_words, _normals.pairs

    def build(pair: Any, zero: Any) -> tuple[Any, Any]:
        @numba.njit(error_model="numpy")  # type: ignore[untyped-decorator]
        def single(w: int, v: int, x: int, y: int, count: int) -> None:
            a, b = pointer(w, word), pointer(v, word)
            c, d = pointer(x, zero), pointer(y, zero)
            for i in range(count):
                p, q = pair(load(a, i), load(b, i))
                store(c, i, p)
                store(d, i, q)

        @numba.njit(error_model="numpy")  # type: ignore[untyped-decorator]
        def block(w: int, v: int, x: int, y: int, count: int) -> None:
            pairs(pair, pointer(w, word), pointer(v, word), pointer(x, zero), pointer(y, zero), count)

        return single, block

    @numba.njit(error_model="numpy")  # type: ignore[untyped-decorator]
    def words(out: int, sample: int, first: int, draw: int, k0: int, k1: int) -> None:
        target, key = pointer(out, word), (np.uint64(k0), np.uint64(k1))
        rows(offset(target, 0), np.uint64(sample), (first, np.uint64(draw)), key)

    return {
        torch.float32: build(_normals.pair32, np.float32(0)),
        torch.float64: build(_normals.pair64, np.float64(0)),
        "words": words,
    }


@pytest.mark.parametrize("way", [0, 1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_transform_of_hard_words(compiled: Any, dtype: torch.dtype, way: int) -> None:
    w, v = hard_words(1), hard_words(2).flip(0)
    for radius, angle in ((w, v), (v, w)):
        a, b = radius.numpy().astype(np.uint32), angle.numpy().astype(np.uint32)
        x, y = torch.empty(len(w), dtype=dtype), torch.empty(len(w), dtype=dtype)
        compiled[dtype][way](a.ctypes.data, b.ctypes.data, x.data_ptr(), y.data_ptr(), len(w))
        for got, wanted in zip((x, y), philox.box_muller(radius, angle, dtype), strict=True):
            assert np.array_equal(bits(got), bits(wanted))


@pytest.mark.parametrize("count", [16, 32, 48, 64, 80])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_block_writes_its_numbers_and_no_more(compiled: Any, dtype: torch.dtype, count: int) -> None:
    """At addresses that are aligned to one element only."""
    w, v = hard_words(3)[-count:], hard_words(4)[-count:]
    a, b = w.numpy().astype(np.uint32), v.numpy().astype(np.uint32)
    x, y = torch.full((2, count + 2), 9.0, dtype=dtype)
    size = x.element_size()
    compiled[dtype][1](a.ctypes.data, b.ctypes.data, x.data_ptr() + size, y.data_ptr() + size, count)
    for got, wanted in zip((x, y), philox.box_muller(w, v, dtype), strict=True):
        assert torch.equal(got[1:-1], wanted)
        assert got[0] == got[-1] == 9


@pytest.mark.parametrize("sample", [0, 7, 2**32 - 1, 2**40 + 3, 2**64 - 1])
@pytest.mark.parametrize("first", [0, 32, 2**31 - 32, 2**32 - 32])
def test_words_of_a_tile(compiled: Any, sample: int, first: int) -> None:
    key, draw = philox.derive_key(3, 1), 2**32 - 5
    out = np.full(129, -1, dtype=np.int32)
    compiled["words"](out.ctypes.data, np.uint64(sample), first, draw, *key)
    block = torch.arange(first, first + 32)
    wanted = philox.philox4x32((block, draw, sample & philox.MASK, sample >> 32), key)
    assert out[128] == -1
    assert np.array_equal(out[:128].view(np.uint32), torch.cat(wanted).numpy().astype(np.uint32))


@pytest.mark.parametrize("count", [16, 32])
def test_words_of_lanes(count: int) -> None:
    """Blocks of many samples side by side, those from ``count`` on left alone."""
    from sdekit.noise import _normals
    from sdekit.noise._jit import pointer

    word, whole, wide, rows = np.int32(0), np.int64(0), np.uint64(0), _normals.lane_words

    @numba.njit(error_model="numpy")  # type: ignore[untyped-decorator]
    def words(out: int, low: int, high: int, lane: int, first: int, draw: int, k0: int, k1: int) -> None:
        key = (np.uint64(k0), np.uint64(k1))
        samples = pointer(low, wide), pointer(high, wide)
        rows(pointer(out, word), *samples, pointer(lane, whole), (first, np.uint64(draw)), key, count)

    key, draw, first = philox.derive_key(3, 1), 2**32 - 5, 2**31 - 7
    random = np.random.default_rng(1)
    low, high = random.integers(0, 2**32, (2, 32), dtype=np.uint64)
    lane, out = random.integers(0, 99, 32), np.full(128, -1, dtype=np.int32)
    words(out.ctypes.data, low.ctypes.data, high.ctypes.data, lane.ctypes.data, first, draw, *key)
    counter = (*(torch.from_numpy(x.astype(np.int64)) for x in (first + lane, low, high)),)
    wanted = torch.stack(philox.philox4x32((counter[0], draw, *counter[1:]), key)).numpy().astype(np.uint32)
    assert np.array_equal(out.reshape(4, 32)[:, :count].view(np.uint32), wanted[:, :count])
    assert (out.reshape(4, 32)[:, count:] == -1).all()


@pytest.mark.parametrize("step", [32, 64])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_normals_of_blocks(dtype: torch.dtype, step: int) -> None:
    from sdekit.noise import _box_muller
    from sdekit.noise._jit import offset, pointer

    word, zero, normals = (
        np.int32(0),
        np.zeros(1, str(dtype).removeprefix("torch."))[0],
        _box_muller.normals_of_32,
    )

    @numba.njit(error_model="numpy")  # type: ignore[untyped-decorator]
    def run(words: int, out: int) -> None:
        z = pointer(out, zero)
        normals(pointer(words, word), step, z, offset(z, 40), offset(z, 80), offset(z, 120))

    words = hard_words(5)[-4 * step :]
    out = torch.full((4, 40), 9.0, dtype=dtype)
    given = words.numpy().astype(np.uint32)
    run(given.ctypes.data, out.data_ptr())
    a, b, c, d = words.reshape(4, step)[:, :32]
    wanted = torch.stack([*philox.box_muller(a, b, dtype), *philox.box_muller(c, d, dtype)])
    assert torch.equal(out[:, :32], wanted)
    assert (out[:, 32:] == 9).all()
