"""One number depends on (seed, purpose, id, draw, element) alone; the compiled fill is the specification."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sdekit.noise import Philox, Purpose, philox, source

FLOATS = [torch.float32, torch.float64]
dtypes = st.sampled_from(FLOATS)
events = st.integers(1, 700)
draws = st.one_of(st.integers(0, 9), st.integers(2**32 - 9, 2**32 - 1))
identities = st.one_of(st.integers(0, 300), st.integers(2**32 - 3, 2**34), st.integers(-(2**63), 2**63 - 1))


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def specified(noise: Philox, draw: int, like: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    key = philox.derive_key(noise.seed, Purpose.INJECTED)
    return philox.normal(key, draw, ids, like[0].numel(), like.dtype).view(like.shape)


@pytest.mark.parametrize("dtype", FLOATS)
def test_the_compiled_fill_is_in_use(dtype: torch.dtype) -> None:
    """Otherwise the comparisons below compare the specification with itself."""
    assert source._cpu_fill(dtype) is not None


@given(
    event=events,
    dtype=dtypes,
    draw=draws,
    ids=st.lists(identities, min_size=1, max_size=40),
    seed=st.integers(0, 9),
)
def test_compiled_equals_specified(
    event: int, dtype: torch.dtype, draw: int, ids: list[int], seed: int
) -> None:
    """Normal for normal, bit for bit: closer than the 4 ulp that back ends may differ."""
    like, rows = torch.empty(len(ids), event, dtype=dtype), torch.tensor(ids)
    noise = Philox(seed)
    assert torch.equal(noise.normal(draw, like, rows), specified(noise, draw, like, rows))


@pytest.mark.parametrize("dtype", FLOATS)
def test_compiled_equals_specified_for_every_small_event(dtype: torch.dtype) -> None:
    ids = torch.tensor([0, 5, 2**32 + 1, -1, 9, 2, 3])
    for event in range(1, 270):
        like = torch.empty(len(ids), event, dtype=dtype)
        assert torch.equal(Philox(3).normal(event, like, ids), specified(Philox(3), event, like, ids)), event


@pytest.mark.parametrize("event", [1, 3, 16, 1000, 65_536, 131_072, 131_200, 200_003])
@pytest.mark.parametrize("dtype", FLOATS)
def test_threads_change_nothing(event: int, dtype: torch.dtype, threads: None) -> None:
    """Outputs of 4 MB and more, cut into pieces by rows and, for long events, within rows."""
    rows = max(2, 2**22 // event // dtype.itemsize + 1)
    like, ids = torch.empty(rows, event, dtype=dtype), torch.arange(rows) * 3
    results = []
    for count in (1, 2, 5):
        torch.set_num_threads(count)
        results.append(Philox(8).normal(2, like, ids))
    assert all(torch.equal(results[0], other) for other in results[1:])
    some = torch.tensor([0, rows // 2, rows - 1])
    assert torch.equal(results[0][some], specified(Philox(8), 2, like[some], ids[some]))


@given(event=events, dtype=dtypes, draw=draws, first=identities, data=st.data())
def test_splits_offsets_and_orders_change_nothing(
    event: int, dtype: torch.dtype, draw: int, first: int, data: st.DataObject
) -> None:
    count = data.draw(st.integers(2, 80))
    ids = torch.tensor(min(first, 2**63 - 1 - count)) + torch.arange(count)
    like, noise = torch.empty(count, event, dtype=dtype), Philox(17)
    whole = noise.normal(draw, like, ids)
    cut = data.draw(st.integers(0, count))
    parts = [noise.normal(draw, like[rows], ids[rows]) for rows in (slice(0, cut), slice(cut, None))]
    assert torch.equal(torch.cat(parts), whole)
    order = torch.tensor(data.draw(st.permutations(range(count))))
    assert torch.equal(noise.normal(draw, like, ids[order]), whole[order])
    row = data.draw(st.integers(0, count - 1))
    assert torch.equal(noise.normal(draw, like[:1], ids[row : row + 1])[0], whole[row])


def test_layouts_of_the_state_and_of_ids_change_nothing(device: torch.device) -> None:
    like = torch.empty(8, 3, 5, device=device)
    ids = torch.arange(8, device=device)
    noise = Philox(2)
    expected = noise.normal(1, like, ids)
    assert expected.is_contiguous()
    assert expected.shape == like.shape
    views = {
        "transposed": torch.empty(5, 3, 8, device=device).permute(2, 1, 0),
        "expanded": torch.empty((), device=device).expand(8, 3, 5),
        "strided": torch.empty(16, 6, 5, device=device)[::2, ::2],
        "channels last": torch.empty(8, 3, 5, 1, device=device).to(memory_format=torch.channels_last)[..., 0],
        "requires grad": like.clone().requires_grad_(),
        "flat": like.reshape(8, 15),
    }
    for name, view in views.items():
        got = noise.normal(1, view, ids)
        assert torch.equal(got.reshape(expected.shape), expected), name
        assert not got.requires_grad
    strided = torch.arange(16, device=device)[::2]
    assert torch.equal(noise.normal(1, like, strided), noise.normal(1, like, strided.clone()))
    assert torch.equal(noise.normal(1, like, torch.zeros_like(ids)), expected[:1].expand(8, 3, 5))
    assert torch.equal(noise.normal(1, like[:, 0, 0], ids), noise.normal(1, like[:, 0, :1], ids)[:, 0])


@pytest.mark.parametrize("shape", [(0,), (0, 7), (4, 0), (0, 0)])
@pytest.mark.parametrize("dtype", [*FLOATS, torch.bfloat16])
def test_empty_states(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> None:
    like = torch.empty(shape, dtype=dtype, device=device)
    out = Philox(0).normal(0, like, torch.arange(shape[0], device=device))
    assert (out.shape, out.dtype) == (like.shape, like.dtype)


def test_ids_beyond_32_bits_are_other_samples() -> None:
    like = torch.empty(4, 50)
    ids = torch.tensor([1, 1 + 2**32, 1 + 2**33, 1 - 2**63])
    rows = Philox(0).normal(0, like, ids)
    assert len({tuple(row.tolist()) for row in rows}) == 4


@given(event=st.integers(1, 3), draw=st.integers(0, 100))
def test_draws_that_share_a_block_stay_apart(event: int, draw: int) -> None:
    like, ids = torch.empty(1, event, dtype=torch.float64), torch.tensor([4])
    window = [Philox(6).normal(k, like, ids) for k in range(draw, draw + 9)]
    values = torch.cat(window).flatten().tolist()
    assert len(set(values)) == len(values)


def test_the_state_of_torch_is_left_alone() -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    Philox(3).normal(0, torch.empty(4, 4), torch.arange(4))
    assert torch.equal(torch.get_rng_state(), before)


def test_without_numba_the_specification_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    like, ids = torch.empty(5, 130), torch.arange(5)
    expected = Philox(1).normal(2, like, ids)
    monkeypatch.setattr(source, "_cpu_fill", lambda dtype: None)
    assert torch.equal(Philox(1).normal(2, like, ids), expected)


@pytest.mark.parametrize("dtype", FLOATS)
def test_a_wrong_kernel_is_refused(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    from sdekit.noise import cpu

    right = cpu.KERNELS[dtype]

    class Wrong:
        recompiled = False

        def __call__(self, out: int, ids: int, event: int, *rest: int) -> None:
            right(out, ids, event, *rest[:-1], rest[-1] ^ 1)

        def recompile(self) -> None:
            self.recompiled = True

    wrong = Wrong()
    monkeypatch.setitem(cpu.KERNELS, dtype, wrong)
    with pytest.raises(RuntimeError, match="differs from its specification"):
        cpu.checked(dtype)
    assert wrong.recompiled


def test_a_missing_kernel_is_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from sdekit.noise import cpu

    def fails(dtype: torch.dtype) -> None:
        raise RuntimeError("no compiler")

    monkeypatch.setattr(cpu, "checked", fails)
    with pytest.warns(RuntimeWarning, match=r"compiled noise .*\(no compiler\).*same numbers.*Next:"):
        assert source._cpu_fill.__wrapped__(torch.float32) is None
