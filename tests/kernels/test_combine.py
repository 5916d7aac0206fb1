"""The contract of `combine`: left to right, no fused multiply-add, inputs untouched, halves rounded once."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sdekit.errors import CapabilityError
from sdekit.kernels import BACKENDS, Draws, choose, combine
from sdekit.kernels.contract import module


def registers(n, shape, dtype, seed=0, device="cpu"):
    g = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=g, dtype=torch.float64).to(dtype).to(device) for _ in range(n)]


def drawn(values):
    """Draws 0, 1, ... that are these tensors."""
    ids = torch.arange(len(values[0]), device=values[0].device) if values else torch.arange(0)
    return Draws(tuple(range(len(values))), ids, None, values.__getitem__)


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
    out, second = combine(None, values, [*weights, *noises], drawn(xi), 0.7)
    kind = np.float32 if dtype == torch.float32 else np.float64
    expected = numpy_reference([*weights, *noises], [v.numpy() for v in (*values, *xi)], kind)
    assert out.dtype == second.dtype == dtype
    np.testing.assert_array_equal(out.numpy(), expected)
    np.testing.assert_array_equal(second.numpy(), expected * kind(0.7))


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_half_types_are_summed_in_float32_and_rounded_once(half, device):
    weights, noises = [0.3, -1.7, 2.9], [0.11]
    values = registers(3, (4, 33), half, device=device)
    xi = registers(1, (4, 33), half, seed=1, device=device)
    out, second = combine(None, values, [*weights, *noises], drawn(xi), 0.7)
    wide, none = combine(None, [v.float() for v in values], [*weights, *noises], drawn([xi[0].float()]))
    assert out.dtype == second.dtype == half
    assert none is None
    assert torch.equal(out, wide.to(half))
    assert torch.equal(second, (out.float() * torch.tensor(0.7, dtype=half).float()).to(half))


def test_inputs_are_left_alone_even_when_they_alias(device):
    (x,) = registers(1, (3, 5), torch.float32, device=device)
    before = x.clone()
    out, _ = combine(None, [x], [1.0])
    assert out.data_ptr() != x.data_ptr()
    out += 1
    assert torch.equal(x, before)
    combine(None, [x, x, x], [1.0, 2.0, -1.0, 1.0], drawn([x]))
    assert torch.equal(x, before)


def test_an_output_that_is_given_is_written_and_may_be_an_input(device):
    values = registers(3, (3, 5), torch.float32, device=device)
    expected, _ = combine(None, values, [0.3, -1.0, 2.0])
    for i in range(3):
        own = [v.clone() for v in values]
        out, _ = combine(own[i], own, [0.3, -1.0, 2.0])
        assert out is own[i]
        assert torch.equal(out, expected)
        assert all(torch.equal(own[j], values[j]) for j in range(3) if j != i)


def test_draws_are_asked_for_in_order(device):
    asked = []

    def normal(k):
        asked.append(k)
        return torch.full((2, 2), float(k), device=device)

    draws = Draws((7, 3), torch.arange(2, device=device), None, normal)
    out, _ = combine(None, [torch.zeros(2, 2, device=device)], [1.0, 1.0, 10.0], draws)
    assert asked == [7, 3]
    assert out.unique().tolist() == [37.0]


def test_rows_do_not_depend_on_their_batch(device):
    """Vector bodies and tails round alike: every row alone equals the row in the batch."""
    for dtype in (torch.float32, torch.float64):
        values = registers(4, (67, 5), dtype, device=device)
        weights = [0.1, 1.3, -0.7, 0.9]
        whole, _ = combine(None, values, weights)
        for i in range(67):
            assert torch.equal(combine(None, [v[i : i + 1] for v in values], weights)[0][0], whole[i])


def test_non_contiguous_registers(device):
    values = [v.T for v in registers(3, (6, 4), torch.float64, device=device)]
    out, _ = combine(None, values, [0.5, 2.0, -1.0])
    expected, _ = combine(None, [v.contiguous() for v in values], [0.5, 2.0, -1.0])
    assert torch.equal(out, expected)


def test_gradients_flow_through_registers_and_weights():
    values = [v.requires_grad_() for v in registers(2, (3, 2), torch.float64)]
    w = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda w, a, b: combine(None, [a, b], [w, -1.5])[0], (w, *values))
    noise = torch.ones(3, 2, dtype=torch.float64)
    out, _ = combine(None, values, [1.0, 2.0, 0.5], drawn([noise]))
    out.sum().backward()
    assert values[1].grad.unique().tolist() == [2.0]


def test_tensor_weights_do_not_change_the_dtype_of_the_state():
    (x,) = registers(1, (3, 2), torch.float32)
    w = torch.tensor(0.7, dtype=torch.float64)
    assert combine(None, [x], [w])[0].dtype == torch.float32
    torch.testing.assert_close(combine(None, [x, x], [w, w]), combine(None, [x, x], [0.7, 0.7]))


def test_an_empty_batch():
    x = torch.empty(0, 3)
    assert combine(None, [x, x], [1.0, 2.0, 1.0], drawn([x]))[0].shape == (0, 3)


def test_the_back_end_by_itself_and_by_name(device):
    x = torch.zeros(2, 3, device=device)
    if x.is_cpu:
        assert choose("auto", x) == choose("numba", x) == "numba"
    assert choose("auto", x, "gradients") == choose("eager", x, "gradients") == "eager"
    for odd in (x.to(torch.float16).cpu(), torch.zeros(3, 2).T, torch.zeros(2, 3, device="meta")):
        assert choose("auto", odd) == "eager"
        with pytest.raises(CapabilityError, match="'numba' cannot run this: the state.*Next: backend='auto'"):
            choose("numba", odd)
    with pytest.raises(CapabilityError, match="'numba' cannot run this: gradients"):
        choose("numba", x, "gradients")


def test_every_back_end_has_the_contract():
    for name in BACKENDS:
        try:
            found = module(name)
        except ImportError:
            assert name == "triton"
            continue
        assert callable(found.combine)
        assert callable(found.serves)
