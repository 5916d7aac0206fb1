"""The contract of `combine`: left to right, no fused multiply-add, inputs untouched, halves rounded once."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sdekit.kernels import combine


def registers(n, shape, dtype, seed=0, device="cpu"):
    g = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=g, dtype=torch.float64).to(dtype).to(device) for _ in range(n)]


def numpy_reference(weights, values, dtype):
    """Every product and every sum rounded once, in order, by numpy."""
    total = values[0].astype(dtype) * dtype(weights[0])
    for w, v in zip(weights[1:], values[1:], strict=True):
        total = (total + (v.astype(dtype) * dtype(w)).astype(dtype)).astype(dtype)
    return total


weight = st.floats(-10, 10, allow_subnormal=False).filter(lambda w: w == 0 or abs(w) > 1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@given(
    weights=st.lists(weight, min_size=1, max_size=6),
    noises=st.lists(weight, max_size=3),
    shape=st.sampled_from([(1,), (3,), (1, 17), (5, 4, 3), (2, 1000)]),
)
def test_terms_are_added_left_to_right_with_one_rounding_each(weights, noises, shape, dtype):
    values = registers(len(weights), shape, dtype)
    xi = registers(len(noises), shape, dtype, seed=1)
    out = combine([*weights, *noises], values, list(range(len(noises))), xi.__getitem__)
    kind = np.float32 if dtype == torch.float32 else np.float64
    expected = numpy_reference([*weights, *noises], [v.numpy() for v in (*values, *xi)], kind)
    assert out.dtype == dtype
    np.testing.assert_array_equal(out.numpy(), expected)


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_half_types_are_summed_in_float32_and_rounded_once(half, device):
    weights, noises = [0.3, -1.7, 2.9], [0.11]
    values, xi = (
        registers(3, (4, 33), half, device=device),
        registers(1, (4, 33), half, seed=1, device=device),
    )
    out = combine([*weights, *noises], values, [0], xi.__getitem__)
    wide = combine([*weights, *noises], [v.float() for v in values], [0], lambda k: xi[k].float())
    assert out.dtype == half
    assert torch.equal(out, wide.to(half))


def test_inputs_are_left_alone_even_when_they_alias(device):
    (x,) = registers(1, (3, 5), torch.float32, device=device)
    before = x.clone()
    out = combine([1.0], [x])
    assert out.data_ptr() != x.data_ptr()
    out += 1
    assert torch.equal(x, before)
    combine([1.0, 2.0, -1.0, 1.0], [x, x, x], [0], lambda k: x)
    assert torch.equal(x, before)


def test_draws_are_asked_for_in_order(device):
    asked = []

    def normal(k):
        asked.append(k)
        return torch.full((2, 2), float(k), device=device)

    out = combine([1.0, 1.0, 10.0], [torch.zeros(2, 2, device=device)], [7, 3], normal)
    assert asked == [7, 3]
    assert out.unique().tolist() == [37.0]


def test_rows_do_not_depend_on_their_batch(device):
    """Vector bodies and tails round alike: every row alone equals the row in the batch."""
    for dtype in (torch.float32, torch.float64):
        values = registers(4, (67, 5), dtype, device=device)
        weights = [0.1, 1.3, -0.7, 0.9]
        whole = combine(weights, values)
        for i in range(67):
            assert torch.equal(combine(weights, [v[i : i + 1] for v in values])[0], whole[i])


def test_non_contiguous_registers(device):
    values = [v.T for v in registers(3, (6, 4), torch.float64, device=device)]
    out = combine([0.5, 2.0, -1.0], values)
    expected = combine([0.5, 2.0, -1.0], [v.contiguous() for v in values])
    assert torch.equal(out, expected)


def test_gradients_flow_through_registers_and_weights():
    values = [v.requires_grad_() for v in registers(2, (3, 2), torch.float64)]
    w = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda w, a, b: combine([w, -1.5], [a, b]), (w, *values))
    noise = torch.ones(3, 2, dtype=torch.float64)
    out = combine([1.0, 2.0, 0.5], values, [0], lambda k: noise)
    out.sum().backward()
    assert values[1].grad.unique().tolist() == [2.0]


def test_tensor_weights_do_not_change_the_dtype_of_the_state():
    (x,) = registers(1, (3, 2), torch.float32)
    w = torch.tensor(0.7, dtype=torch.float64)
    assert combine([w], [x]).dtype == torch.float32
    torch.testing.assert_close(combine([w, w], [x, x]), combine([0.7, 0.7], [x, x]))


def test_an_empty_batch():
    x = torch.empty(0, 3)
    assert combine([1.0, 2.0, 1.0], [x, x], [0], lambda k: x).shape == (0, 3)
