"""The Triton back end of `combine` returns the bits of the reference: any terms, draws, dtype and layout."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sdekit.errors import ShapeError
from sdekit.kernels import Draws, eager
from sdekit.kernels import cuda as back_end
from sdekit.noise import philox

pytest.importorskip("triton")

from tests.noise.on_triton import DEVICE, EXACT, INTERPRETED

KEY = (0xFFFFFFF1, 7)
WEIGHTS = [0.3, -1.7, 2.9, 0.11, 0.5, 0.77, 1.3, -0.4, 3.1]


def case(event, dtype, terms, numbers, rows=5, key=KEY):
    """Registers, draws and weights on the device; the noise of `normal` is the specification's."""
    g = torch.Generator().manual_seed(terms)
    registers = [
        torch.randn(rows, *event, generator=g, dtype=torch.float64).to(dtype).to(DEVICE) for _ in range(terms)
    ]
    ids = torch.tensor([0, -1, 2**40 + 3, 5, -(2**63)])[:rows] if rows <= 5 else torch.arange(rows)
    size = torch.Size(event).numel()

    def normal(draw):
        return philox.normal(KEY, draw, ids, size, dtype).view(rows, *event).to(DEVICE)

    draws = Draws(tuple(numbers), ids.to(DEVICE), key, normal) if numbers else None
    return registers, draws, WEIGHTS[: terms + len(numbers)]


def agree(registers, draws, weights, scale=None):
    expected, second = eager.combine(None, registers, weights, draws, scale)
    before = [r.clone() for r in registers]
    out, scaled = back_end.combine(None, registers, weights, draws, scale)
    assert torch.equal(out, expected)
    assert (scaled is None) == (scale is None)
    assert scale is None or torch.equal(scaled, second)
    assert all(map(torch.equal, registers, before))
    in_place, _ = back_end.combine(registers[-1], registers, weights, draws)
    assert in_place is registers[-1]
    assert torch.equal(in_place, expected)


@pytest.mark.parametrize("dtype", EXACT)
@pytest.mark.parametrize("event", [(1,), (2,), (3,), (4,), (2, 3, 5), (150,), (1100,)])
def test_equal_to_the_reference_in_every_layout(event, dtype):
    agree(*case(event, dtype, 3, ()), 0.37)
    agree(*case(event, dtype, 1, (3,)))
    agree(*case(event, dtype, 2, (2**32 - 1, 5)), 1 / 3)


@settings(max_examples=12)
@given(
    terms=st.integers(1, 8),
    numbers=st.lists(st.integers(0, 2**32 - 1), max_size=4),
    event=st.integers(1, 300),
    scale=st.one_of(st.none(), st.floats(1e-3, 1e3)),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_any_step(terms, numbers, event, scale, dtype):
    registers, draws, _ = case((event,), dtype, terms, numbers)
    agree(registers, draws, (WEIGHTS * 2)[: terms + len(numbers)], scale)


@pytest.mark.parametrize(("rows", "event"), [(300, 3), (700, 1), (130, 9), (2, 4156)])
def test_more_rows_than_one_program_takes(rows, event):
    agree(*case((event,), torch.float32, 2, (6,), rows))
    agree(*case((event,), torch.float32, 2, (), rows))


def test_every_draw_of_a_block_that_events_share():
    """Draws 0 to 3 of one element, 0 and 1 of two, begin at different words of their block."""
    for event in (1, 2, 3):
        for numbers in ((0, 1), (2, 3), (1, 6), (7, 0, 5, 2)):
            agree(*case((event,), torch.float32, 1, numbers))


def test_bfloat16_to_its_rounding():
    """Exact on a card. The interpreter cuts off where a card rounds: one unit of each value rounded."""
    registers, draws, weights = case((150,), torch.bfloat16, 2, (4,))
    expected, second = eager.combine(None, registers, weights, draws, 0.7)
    out, scaled = back_end.combine(None, registers, weights, draws, 0.7)
    parts = [*registers, draws.normal(4)]
    size = sum(abs(w) * part.float().abs() for w, part in zip(weights, parts, strict=True))
    units = 2**-7 * 2 * size if INTERPRETED else 0 * size
    assert bool(((out - expected).float().abs() <= units).all())
    assert bool(((scaled - second).float().abs() <= units).all())


def test_the_table_of_weights_is_read_where_it_lies():
    registers, draws, weights = case((9,), torch.float64, 2, (4,))
    table = torch.tensor(weights, dtype=torch.float64, device=DEVICE)
    out, _ = back_end.combine(None, registers, table, draws)
    assert torch.equal(out, back_end.combine(None, registers, weights, draws)[0])


@pytest.mark.parametrize("dtype", EXACT)
def test_a_scale_in_the_table_is_rounded_like_the_state(dtype):
    """As a number and as an entry of the arithmetic dtype: the second output has the same bits."""
    registers, draws, weights = case((9,), dtype, 2, (4,))
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    table = torch.tensor([*weights, 0.37], dtype=wide, device=DEVICE)
    _, expected = eager.combine(None, registers, weights, draws, 0.37)
    assert torch.equal(back_end.combine(None, registers, table[:-1], draws, table[-1])[1], expected)
    assert torch.equal(back_end.combine(None, registers, table[:-1], draws, 0.37)[1], expected)


@pytest.mark.parametrize("event", [(3,), (150,)])
def test_a_key_in_memory(event):
    registers, draws, weights = case(event, torch.float32, 1, (4,))
    held = draws._replace(key=torch.tensor(KEY, device=DEVICE))
    assert torch.equal(
        back_end.combine(None, registers, weights, held)[0],
        back_end.combine(None, registers, weights, draws)[0],
    )


def test_noise_of_another_source_and_many_draws_take_the_reference():
    registers, draws, weights = case((9,), torch.float32, 1, (1, 2, 3, 4, 5))
    agree(registers, draws, weights)
    ones = draws._replace(numbers=(0,), key=None, normal=lambda k: torch.ones_like(registers[0]))
    out, _ = back_end.combine(None, registers, [1.0, 2.0], ones)
    assert torch.equal(out, registers[0] + 2)


def test_an_empty_batch():
    x = torch.empty(0, 3, device=DEVICE)
    ids = torch.empty(0, dtype=torch.int64, device=DEVICE)
    out, second = back_end.combine(None, [x, x], [1.0, 2.0, 1.0], Draws((0,), ids, KEY, lambda k: x), 2.0)
    assert out.shape == second.shape == (0, 3)


def test_what_cannot_be_served_is_named():
    x = torch.zeros(2, 3, device=DEVICE)
    assert back_end.serves(x) is None
    assert "int64" in back_end.serves(x.long())
    assert "meta" in back_end.serves(torch.zeros(2, 3, device="meta"))
    with pytest.raises(ShapeError, match="contiguous"):
        back_end.combine(None, [torch.zeros(3, 2, device=DEVICE).T], [1.0])
    with pytest.raises(ShapeError, match=r"\(3, 3\).*beside \(2, 3\)"):
        back_end.combine(None, [x, torch.zeros(3, 3, device=DEVICE)], [1.0, 1.0])
    with pytest.raises(ShapeError, match="float64"):
        back_end.combine(x.double(), [x], [1.0])


@pytest.mark.skipif(not INTERPRETED, reason="the interpreter alone serves CPU tensors")
def test_cpu_states_are_served_by_the_interpreter_alone(monkeypatch):
    monkeypatch.setattr(back_end, "_interpreted", lambda: False)
    assert "needs a CUDA device" in back_end.serves(torch.zeros(2, 3))
