"""The Triton noise is the specification, bit for bit; compiled, it rounds every operation by itself."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("triton")
import triton.language as tl

from sdekit.noise import philox
from tests.noise.on_triton import DEVICE, EXACT
from tests.noise.test_spec import EDGES, HARD, KNOWN, parse

from sdekit.noise import cuda  # isort: skip  (after the interpreter was chosen)

IDS = torch.tensor([0, 1, -1, 2**40 + 3, -(2**63)])
EVENTS = [1, 2, 3, 4, 5, 31, 127, 128, 129, 260, 1100]


def filled(key, draw, ids, event, dtype):
    out = torch.full((len(ids), event), 9.0, dtype=dtype, device=DEVICE)
    cuda.fill(out, key, draw, ids.to(DEVICE), event)
    return out.cpu()


@cuda.jit()
def _words(out: tl.tensor, given: tl.tensor) -> None:
    a, b, c, d = cuda.words(
        tl.load(given).to(tl.uint32),
        tl.load(given + 1).to(tl.uint32),
        tl.load(given + 2).to(tl.uint32),
        tl.load(given + 3).to(tl.uint32),
        tl.load(given + 4).to(tl.uint32),
        tl.load(given + 5).to(tl.uint32),
    )
    tl.store(out, a.to(tl.int64))
    tl.store(out + 1, b.to(tl.int64))
    tl.store(out + 2, c.to(tl.int64))
    tl.store(out + 3, d.to(tl.int64))


@pytest.mark.parametrize(("counter", "key", "words"), KNOWN)
def test_known_answers(counter, key, words):
    given = torch.tensor([*parse(counter), *parse(key)], device=DEVICE)
    out = torch.empty(4, dtype=torch.int64, device=DEVICE)
    _words[(1,)](out, given)
    assert tuple(out.tolist()) == parse(words)


@cuda.jit()
def _transform(out: tl.tensor, w: tl.tensor, v: tl.tensor, size: tl.constexpr, double: tl.constexpr) -> None:
    at = tl.arange(0, size)
    radius, angle = tl.load(w + at).to(tl.uint32), tl.load(v + at).to(tl.uint32)
    n = cuda.normals(radius, angle, angle, radius, double)
    for i in tl.static_range(4):
        tl.store(out + i * size + at, n[i])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_hard_words(dtype):
    """Both ends of every branch of the transform, and random words between."""
    g = torch.Generator().manual_seed(0)
    hard = torch.tensor(HARD + EDGES)
    words = torch.cat([hard, torch.randint(2**32, (4096 - len(hard),), generator=g)])
    angles = words.flip(0)
    out = torch.empty(4, 4096, dtype=dtype, device=DEVICE)
    _transform[(1,)](out, words.to(DEVICE), angles.to(DEVICE), 4096, dtype is torch.float64, **cuda.EXACT)
    expected = (
        *philox.box_muller(words, angles, dtype),
        *philox.box_muller(angles, words, dtype),
    )
    assert torch.equal(out.cpu(), torch.stack(expected))


@pytest.mark.parametrize("dtype", EXACT)
@pytest.mark.parametrize("event", EVENTS)
def test_a_draw_is_the_specified_one(event, dtype):
    key = (0xFFFFFFF1, 2)
    for draw in (0, 1, 2, 3, 2**32 - 1):
        expected = philox.normal(key, draw, IDS, event, dtype)
        assert torch.equal(filled(key, draw, IDS, event, dtype), expected), draw


@settings(max_examples=10)
@given(
    key=st.tuples(st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1)),
    draw=st.integers(0, 2**32 - 1),
    event=st.integers(1, 700),
    ids=st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=70),
)
def test_any_key_draw_event_and_ids(key, draw, event, ids):
    ids = torch.tensor(ids)
    expected = philox.normal(key, draw, ids, event, torch.float32)
    assert torch.equal(filled(key, draw, ids, event, torch.float32), expected)


def test_more_rows_than_one_program_takes():
    """Programs that begin within a row, at its end, and in padding."""
    for rows, event in ((300, 3), (700, 2), (130, 9), (3, 1024), (2, 4096 + 60)):
        ids = torch.arange(rows) - 5
        expected = philox.normal((3, 4), 6, ids, event, torch.float32)
        assert torch.equal(filled((3, 4), 6, ids, event, torch.float32), expected), (rows, event)


@pytest.mark.parametrize("event", [2, 5, 130])
def test_a_key_in_memory_is_read_at_the_launch(event):
    """What a captured graph relies on: the same tensor with other words gives other numbers."""
    key = torch.tensor([5, 6], device=DEVICE)
    for words in ((0xFFFFFFFF, 0x80000000), (1, 2)):
        key.copy_(torch.tensor(words))
        expected = philox.normal(words, 4, IDS, event, torch.float32)
        assert torch.equal(filled(key, 4, IDS, event, torch.float32), expected)


def test_places_beyond_32_bits_follow_the_same_rule(monkeypatch):
    """The kernel for large states, asked for on small ones."""
    monkeypatch.setattr(cuda, "far", lambda out: True)
    for event in (2, 130, 1100):
        expected = philox.normal((1, 2), 3, IDS, event, torch.float32)
        assert torch.equal(filled((1, 2), 3, IDS, event, torch.float32), expected)


def test_nothing_to_fill():
    for shape in ((0, 3), (3, 0)):
        out = torch.empty(shape, device=DEVICE)
        cuda.fill(out, (1, 2), 0, torch.arange(shape[0], device=DEVICE), shape[1])


def test_a_fill_that_differs_is_refused(monkeypatch):
    assert cuda.checked(torch.float32, DEVICE) is cuda.fill
    monkeypatch.setattr(cuda, "fill", lambda out, *rest: out.zero_())
    with pytest.raises(RuntimeError, match="differs from its specification"):
        cuda.checked.__wrapped__(torch.float32, DEVICE)


COMPILE = """
import sys, triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from sdekit.kernels import _triton
dtype, double = sys.argv[1], sys.argv[1] == "fp64"
fixed = {"size": 256, "small": False, "large": False, "terms": 2, "draws": 1, "pack": 0, "double": double}
given = dict.fromkeys(_triton.noisy.arg_names, "i32") | dict.fromkeys((*fixed, "key"), "constexpr")
given |= {"out": "*" + dtype, "second": "*" + dtype, "weights": "*" + dtype, "ids": "*i64"}
given |= {"scale": "*" + dtype}
given |= {"registers": ("*" + dtype,) * 2}
source = ASTSource(_triton.noisy, given, constexprs=fixed | {"key": None})
options = {"enable_fp_fusion": False, "num_warps": 4}
print(triton.compile(source, target=GPUTarget("cuda", int(sys.argv[2]), 32), options=options).asm["ptx"])
"""


@pytest.mark.parametrize(("dtype", "card"), [("fp32", 80), ("fp64", 90)])
def test_machine_code_rounds_every_operation(dtype, card, tmp_path):
    """No fused multiply-add, no approximate division, root or denormal flush; compiled without a card."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", COMPILE, dtype, str(card)], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr
    operations = set(re.findall(r"^\s+(?:@%p\d+ )?([a-z0-9]+(?:\.[a-z0-9:]+)*)", done.stdout, re.M))
    kind = "f32" if dtype == "fp32" else "f64"
    assert {f"div.rn.{kind}", f"sqrt.rn.{kind}", "mul.wide.u32"} <= operations
    assert not [op for op in operations if op.startswith("fma") or "approx" in op or "ftz" in op]
