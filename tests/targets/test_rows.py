"""A row has the same bits alone, in a batch, permuted, and on any number of threads."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import sdekit as sk
from sdekit.targets import Target
from sdekit.targets._rows import Matrix, fold, logsumexp, softmax
from tests.targets.laws import law, states

KINDS = [
    "gaussian diagonal",
    "gaussian dense",
    "gaussian low-rank",
    "gaussian stationary",
    "mixture dense",
    "mixture shared",
    "empirical",
]
EVENTS = [(1,), (3,), (8, 8), (1, 16, 16)]
FLOATS = [torch.float32, torch.float64]


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    """`torch.set_num_threads`, undone afterwards; 1 to begin with."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield torch.set_num_threads
    torch.set_num_threads(before)


def functions(target: Target, process: sk.GaussianDiffusion) -> dict[str, Callable[[Tensor, Tensor], Tensor]]:
    model, score = target.denoiser(process), target.score(process)
    return {
        "score": lambda x, t: score(x, 0.37),
        "denoiser": lambda x, t: model.x0(x, 0.37),
        "score, a time for each row": lambda x, t: score(x, t),
        "denoiser, a time for each row": lambda x, t: model.x0(x, t),
        "log_prob": lambda x, t: target.log_prob(x),
    }


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("event", EVENTS, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_sample_17_is_sample_17(
    kind: str,
    event: tuple[int, ...],
    dtype: torch.dtype,
    threads: Callable[[int], None],
    device: torch.device,
) -> None:
    target = law(kind, event).target
    x = states(target, 200, dtype=dtype).to(device)
    t = torch.linspace(0.01, 1.0, 200, dtype=torch.float64, device=device)
    order = torch.randperm(200, generator=torch.Generator().manual_seed(1)).to(device)
    for label, fn in functions(target, sk.VP()).items():
        whole = fn(x, t)
        assert torch.equal(fn(x[17:18], t[17:18])[0], whole[17]), label
        assert torch.equal(fn(x[:64], t[:64])[17], whole[17]), label
        assert torch.equal(fn(x[order], t[order]), whole[order]), label
        threads(2)
        assert torch.equal(fn(x, t), whole), label
        threads(1)
        if len(event) > 1:  # another layout of the same numbers
            strided = x.mT.contiguous().mT
            assert torch.equal(fn(strided, t), whole), label


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("kind", KINDS)
def test_samples_are_rows_too(kind: str, dtype: torch.dtype, threads: Callable[[int], None]) -> None:
    target = law(kind, (8, 8)).target
    whole = target.sample(200, seed=4, dtype=dtype)
    threads(2)
    assert torch.equal(target.sample(200, seed=4, dtype=dtype), whole)
    assert torch.equal(target.sample(1, seed=4, first_id=17, dtype=dtype)[0], whole[17])
    assert torch.equal(target.sample(64, seed=4, dtype=dtype), whole[:64])


# The building blocks.


@given(
    n=st.integers(1, 90),
    k=st.integers(1, 90),
    rows=st.integers(1, 40),
    scale=st.sampled_from([1e-12, 1e-3, 1.0, 1e9]),
    seed=st.integers(0, 99),
)
def test_matrix_products_are_accurate_and_by_row(n: int, k: int, rows: int, scale: float, seed: int) -> None:
    """Against numpy's long double: errors a few units of 2^-52 of (largest x)(largest V) n."""
    g = torch.Generator().manual_seed(seed)
    v = torch.randn(n, k, generator=g, dtype=torch.float64)
    x = scale * torch.randn(rows, n, generator=g, dtype=torch.float64)
    x[0, 0] *= 1e6  # a row of its own range
    matrix = Matrix(v)
    got = matrix.times(x)
    exact = torch.from_numpy(
        (x.numpy().astype("longdouble") @ v.numpy().astype("longdouble")).astype("float64")
    )
    unit = x.abs().amax(1, keepdim=True) * v.abs().max() * n * 2.0**-52
    assert bool(((got - exact).abs() <= 2 * unit).all())
    row = rows // 2
    assert torch.equal(matrix.times(x[row : row + 1])[0], got[row])
    assert torch.equal(matrix.transposed(got)[row], matrix.transposed(got[row : row + 1])[0])
    back = got @ v.T
    assert bool(((matrix.transposed(got) - back).abs() <= got.abs().amax(1, keepdim=True) * k * 1e-13).all())


def test_matrix_products_of_zeros_and_of_extremes() -> None:
    matrix = Matrix(torch.eye(3, dtype=torch.float64))
    x = torch.tensor([[0.0, 0, 0], [1e-300, 0, 0], [1e280, 1, 0], [5e-324, 0, 0]], dtype=torch.float64)
    got = matrix.times(x)
    assert bool((got[0] == 0).all())
    assert float(got[1, 0]) == pytest.approx(1e-300, rel=1e-12)
    assert float(got[2, 0]) == pytest.approx(1e280, rel=1e-12)
    assert bool(torch.isfinite(got).all())
    assert matrix.times(x[:0]).shape == (0, 3)


@given(
    n=st.integers(1, 70),
    rows=st.integers(1, 40),
    function=st.sampled_from([fold, logsumexp, softmax, torch.exp, torch.log]),
)
def test_reductions_by_row(n: int, rows: int, function: Callable[[Tensor], Tensor]) -> None:
    x = 0.1 + 5 * torch.rand(rows, n, dtype=torch.float64, generator=torch.Generator().manual_seed(n))
    whole = function(x)
    for row in range(rows):
        assert torch.equal(function(x[row : row + 1])[0], whole[row])
    expected = {
        "fold": x.sum(-1),
        "logsumexp": torch.logsumexp(x, -1),
        "softmax": torch.softmax(x, -1),
        "exp": torch.exp(x),
        "log": torch.log(x),
    }[function.__name__]
    torch.testing.assert_close(whole, expected, rtol=1e-13, atol=1e-13)


def test_logsumexp_of_nothing_but_zero_weights() -> None:
    rows = torch.tensor([[-torch.inf, -torch.inf], [-torch.inf, 1.0]], dtype=torch.float64)
    assert logsumexp(rows).tolist() == [-torch.inf, 1.0]
