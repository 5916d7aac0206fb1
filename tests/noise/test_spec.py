"""The specification: known answers, a second implementation, accuracy of the transform, pinned numbers."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sdekit.noise import Philox, Purpose, philox
from tests.noise import reference

# Random123 1.14, tests/kat_vectors, philox4x32-10: counter, key, words.
KNOWN = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]
integers = st.integers
# Both halves of 64-bit numbers matter, and hypothesis prefers small ones.
wide = st.builds(lambda high, low: high << 32 | low, integers(0, 2**32 - 1), integers(0, 2**32 - 1))


def parse(text: str) -> tuple[int, ...]:
    return tuple(int(word, 16) for word in text.split())


@pytest.mark.parametrize(("counter", "key", "words"), KNOWN)
def test_known_answers(counter: str, key: str, words: str, device: torch.device) -> None:
    assert philox.philox4x32(parse(counter), parse(key)) == parse(words)
    assert tuple(reference.philox(list(parse(counter)), list(parse(key)))) == parse(words)
    tensors = tuple(torch.tensor([c, 1], device=device) for c in parse(counter))
    assert tuple(int(w[0]) for w in philox.philox4x32(tensors, parse(key))) == parse(words)


@pytest.mark.parametrize(("counter", "key", "words"), KNOWN)
def test_known_answers_of_the_compiled_words(counter: str, key: str, words: str) -> None:
    numba = pytest.importorskip("numba")
    from sdekit.noise import _normals

    compiled = numba.njit(lambda a, b, c, d, k, m: _normals.words(a, b, c, d, k, m))
    out = compiled(*(np.uint64(w) for w in (*parse(counter), *parse(key))))
    assert tuple(int(w) & 0xFFFFFFFF for w in out) == parse(words)


@given(
    seed=wide,
    purpose=st.sampled_from(Purpose),
    sample=wide.map(lambda word: word - 2**63),
    draw=integers(0, 2**32 - 1),
    event=integers(1, 700),
    data=st.data(),
)
def test_one_element_follows_the_document(
    seed: int, purpose: Purpose, sample: int, draw: int, event: int, data: st.DataObject
) -> None:
    element = data.draw(integers(0, event - 1))
    like, ids = torch.empty(1, event, dtype=torch.float64), torch.tensor([sample])
    got = float(Philox(seed).normal(draw, like, ids, purpose)[0, element])
    assert got == pytest.approx(
        reference.normal(seed, purpose, sample, draw, element, event), rel=1e-14, abs=1e-14
    )


@given(draw=integers(0, 2**20), event=integers(1, 700))
def test_a_sample_uses_every_word_once(draw: int, event: int) -> None:
    group = {1: 4, 2: 2}.get(event, 1)
    first = draw - draw % group
    places = [reference.locate(d, e, event) for d in range(first, first + group) for e in range(event)]
    assert len(set(places)) == len(places)
    assert len({place[:2] for place in places}) == -(-len(places) // 4)  # no block that could be spared


# The transform on its own: hard words first, then random ones.
HARD = [0, 1, 2, 3, 2**29 - 1, 2**29, 2**29 + 1, 2**30, 2**31 - 1, 2**31, 2**31 + 1, 3 * 2**30, 2**32 - 1]
EDGES = [int(x * 2**32) + k for x in (11 / 32, 11 / 16, 5 / 16, 1 / 2, 1 / 4) for k in (-2, -1, 0, 1, 2)]


def hard_words(count: int) -> torch.Tensor:
    some = torch.randint(0, 2**32, (count,), generator=torch.Generator().manual_seed(1))
    near_one = 2**32 - 1 - torch.arange(1000)
    return torch.cat([torch.tensor(HARD + EDGES), torch.arange(1000), near_one, some])


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 2.5e-7), (torch.float64, 5e-16)])
def test_radius_is_accurate(dtype: torch.dtype, bound: float) -> None:
    """Relative error of the radius over [1.5e-5, 6.77], as u -> 1 too, where log(u) itself cancels."""
    w = hard_words(1_000_000)
    u = w.numpy()
    low = np.log(np.where(u < 2**31, u + 0.5, 1.0) / 2**32)
    high = np.log1p(-(2.0**32 - np.where(u < 2**31, 2.0**32 - 1, u) - 0.5) / 2**32)
    exact = torch.from_numpy(np.sqrt(-2 * np.where(u < 2**31, low, high)))
    radius, zero = philox.box_muller(w, torch.zeros_like(w), dtype)
    assert bool((zero == 0).all())  # sin 0
    error = (radius.double() / exact - 1).abs()
    assert float(error.max()) < bound
    assert float(radius.min()) == pytest.approx(math.sqrt(-2 * math.log1p(-(2.0**-33))), rel=1e-6)
    assert float(radius.max()) == pytest.approx(math.sqrt(66 * math.log(2)), rel=1e-6)


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1.5e-7), (torch.float64, 4e-16)])
def test_cosine_and_sine_are_accurate(dtype: torch.dtype, bound: float) -> None:
    v = hard_words(1_000_000)
    w = torch.full_like(v, 2**31)
    radius = math.sqrt(-2 * math.log1p(-(2**31 - 0.5) / 2**32))
    a = 2 * np.pi * v.numpy() / 2**32
    for got, exact in zip(philox.box_muller(w, v, dtype), (np.cos(a), np.sin(a)), strict=True):
        assert float(np.abs(got.double().numpy() / radius - exact).max()) < 2 * bound
    quarters = torch.arange(4) * 2**30
    cos, sin = philox.box_muller(torch.zeros(4, dtype=torch.int64), quarters, dtype)
    r = cos[0]
    assert cos.tolist() == [r, 0, -r, 0]
    assert sin.tolist() == [0, r, 0, -r]


def test_float32_is_float64_within_2e_6(device: torch.device) -> None:
    """10^7 numbers, and the hard words of radius and angle against each other."""
    like, ids = torch.empty(100, 100_000, device=device), torch.arange(100, device=device)
    single, double = Philox(5).normal(0, like, ids), Philox(5).normal(0, like.double(), ids)
    assert float((single - double).abs().max()) < 2e-6
    words = torch.tensor(HARD + EDGES, device=device)
    pairs = torch.cartesian_prod(words, words).T
    for a, b in zip(
        philox.box_muller(*pairs, torch.float32), philox.box_muller(*pairs, torch.float64), strict=True
    ):
        assert float((a - b).abs().max()) < 2e-6


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_is_float32_rounded(dtype: torch.dtype, device: torch.device) -> None:
    like, ids = torch.empty(5, 77, device=device), torch.arange(5, device=device)
    assert torch.equal(Philox(1).normal(3, like.to(dtype), ids), Philox(1).normal(3, like, ids).to(dtype))


GOLDEN_KEY = (3663298174, 3509437054)
GOLDEN = {
    (0, 0, 4): [
        "-0x1.bbcb5d18d6a48p-5",
        "-0x1.d82e372fe4982p-1",
        "0x1.8cf2f3c66b68ap-2",
        "-0x1.a41045bf3bb0bp+0",
    ],
    (1, 1, 2): ["-0x1.2db7638990880p+0", "0x1.0588b09477cb7p+0"],
    (7, 3, 1): ["-0x1.52ea134541bc6p+0"],
    (8, 1099511627777, 3): ["0x1.7a31b8d157a26p-1", "-0x1.6abaa25d3f4dap-4", "0x1.ce2e99cb03c14p-5"],
    (4294967295, -1, 130): [
        "0x1.dfbfcf396eb96p-3",
        "0x1.1b24ac8daddbfp-2",
        "-0x1.1922e941ee637p-2",
        "0x1.19310f38a095cp-1",
    ],
}


def test_pinned_numbers(device: torch.device) -> None:
    """These never change: results of one seed stay reproducible over versions and machines, to the bit."""
    assert philox.derive_key(2024, Purpose.INJECTED) == GOLDEN_KEY
    for seed in (2**32, 2**63 + 5, 2**64 - 1):
        assert philox.derive_key(seed, 3) == tuple(reference.key(seed, 3))
    for (draw, sample, event), values in GOLDEN.items():
        like = torch.empty(1, event, dtype=torch.float64, device=device)
        got = Philox(2024).normal(draw, like, torch.tensor([sample], device=device))[0]
        assert [x.hex() for x in got[-len(values) :].tolist()] == values


def test_purposes_keep_their_numbers() -> None:
    assert [(p.name, p.value) for p in Purpose][:5] == [
        ("INITIAL", 0),
        ("INJECTED", 1),
        ("BROWNIAN", 2),
        ("PROBES", 3),
        ("TRAINING", 4),
    ]
