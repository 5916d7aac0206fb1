"""The numba back end against the reference: the same bits, whatever the shape, the terms and the draws."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sdekit.kernels import Draws, cpu, eager
from sdekit.noise import Philox, Purpose, philox

DTYPES = [torch.float32, torch.float64]


def registers(n, shape, dtype, seed):
    g = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=g, dtype=torch.float64).to(dtype) for _ in range(n)]


def injected(seed, numbers, ids, like):
    noise = Philox(seed)
    key = philox.derive_key(noise.seed, Purpose.INJECTED)
    return Draws(tuple(numbers), ids, key, lambda k: noise.normal(k, like, ids))


weight = st.floats(-10, 10, allow_subnormal=False)
events = st.one_of(
    st.sampled_from([(), (1,), (2,), (3,), (4,), (127,), (128,), (129,), (2, 3, 5)]),
    st.tuples(st.integers(1, 700)),
)


@pytest.mark.parametrize("dtype", DTYPES)
@given(
    rows=st.integers(1, 70),
    event=events,
    terms=st.integers(1, 11),
    numbers=st.lists(st.sampled_from([0, 1, 2, 3, 5, 2**20 + 1, 2**32 - 1]), max_size=3),
    first=st.sampled_from([0, 17, 2**40]),
    seed=st.integers(0, 2**63 - 1),
    place=st.integers(-1, 10),
    scale=st.sampled_from([None, 0.37]),
    weights=st.lists(weight, min_size=14, max_size=14),
)
def test_the_bits_of_the_reference(rows, event, terms, numbers, first, seed, place, scale, weights, dtype):
    """Any number of terms and draws, in place of any of them, with and without a second output."""
    values = registers(terms, (rows, *event), dtype, seed % 1000)
    draws = injected(seed, numbers, first + torch.arange(rows), values[0])
    weights = weights[: terms + len(numbers)]
    expected, scaled = eager.combine(None, values, weights, draws, scale)
    own = [v.clone() for v in values]
    target = own[place] if 0 <= place < terms else None
    out, second = cpu.combine(target, own, weights, draws, scale)
    assert target is None or out is target
    assert torch.equal(out, expected)
    assert (second is None) == (scale is None)
    assert second is None or torch.equal(second, scaled)
    assert all(torch.equal(a, b) for a, b in zip(own, values, strict=True) if a is not target)


@pytest.mark.parametrize("dtype", DTYPES)
def test_infinity_and_nan_pass_through(dtype):
    x = torch.tensor([[torch.inf, -torch.inf, torch.nan, 0.0, -0.0]], dtype=dtype)
    y = torch.ones_like(x)
    for weights in ([1.0, 2.0], [0.0, -1.0]):
        (expected, _), (found, _) = (f.combine(None, [x, y], weights) for f in (eager, cpu))
        torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)
        assert torch.equal(found.signbit(), expected.signbit())


@pytest.mark.parametrize("shape", [(0, 3), (4, 0), (0,)])
def test_nothing_to_do(shape):
    x = torch.empty(shape)
    out, second = cpu.combine(None, [x, x], [1.0, 2.0], None, 0.5)
    assert out.shape == second.shape == shape


@pytest.mark.parametrize("shape", [(3000, 16, 16), (3, 400_001), (700_000, 1)])
@pytest.mark.parametrize("numbers", [(), (3,), (4, 9)])
def test_threads_change_nothing(shape, numbers):
    """States of 2 MB and more are cut into pieces: of rows, and of tiles within long rows."""
    x, y = registers(2, shape, torch.float32, 1)
    draws = injected(5, numbers, torch.arange(shape[0]), x)
    weights = [0.3, -1.1, 0.7, 0.2][: 2 + len(numbers)]
    assert x.nbytes >= 2**21
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = cpu.combine(None, [x, y], weights, draws, 0.5)
        torch.set_num_threads(3)
        shared = cpu.combine(None, [x, y], weights, draws, 0.5)
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(alone, shared, strict=True))
    assert torch.equal(alone[0], eager.combine(None, [x, y], weights, draws)[0])


def test_a_kernel_that_differs_is_not_used(monkeypatch):
    """Compiled code is tried against the reference before its first use."""
    cpu._checked.cache_clear()
    kernel = cpu.KERNELS[torch.float32]

    class Wrong:
        recompiled = 0

        def __call__(self, *args):
            kernel(*args)
            kernel(*args)  # in place: the second pass starts from the first one's result

        def recompile(self):
            Wrong.recompiled += 1

    monkeypatch.setitem(cpu.KERNELS, torch.float32, Wrong())
    try:
        assert "differs from the reference" in cpu.serves(torch.zeros(1))
        assert Wrong.recompiled == 2
    finally:
        monkeypatch.undo()
        cpu._checked.cache_clear()
    assert cpu.serves(torch.zeros(1)) is None
