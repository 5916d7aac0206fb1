"""One path: Chen's relation, an independent implementation, and what must not change its numbers."""

from __future__ import annotations

import itertools
import pickle
from collections.abc import Callable
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import sdekit as sk
from sdekit.errors import ShapeError
from sdekit.noise import Increments, _tree, brownian
from tests.noise.paths import Tree

IDS = torch.arange(4)
LIKE = torch.zeros(4, 3, dtype=torch.float64)
TREE = sk.BrownianTree(7)
times = st.one_of(
    st.floats(-2, 2),
    st.floats(-1e6, 1e6),
    st.integers(-64, 64).map(lambda k: k / 16),
    st.sampled_from([0.0, 1.0, -1.0, 2.0, 1 - 2**-53, 1 + 2**-52, 1 / 3, -4.0]),
)


def close(a: Increments, b: Increments, eps: float) -> None:
    """To ``eps`` of the standard deviation of W."""
    size = float(b.h.abs().max()) ** 0.5
    for name, x, y in zip(Increments._fields[1:], a[1:], b[1:], strict=True):
        assert float((x - y).abs().max()) <= eps * size, name


def equal(a: Increments, b: Increments) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def over(s: object, t: object, tree: sk.BrownianTree = TREE, like: torch.Tensor = LIKE) -> Increments:
    return tree.increments(s, t, like, IDS[: len(like)])


# Against a second implementation


@pytest.mark.parametrize(
    ("s", "t"),
    [
        *((0.0, 1.0), (0.0, 0.25), (0.5, 0.75), (0.125, 0.9375), (-0.5, 0.0), (-1.0, -0.75), (2.0, 4.0)),
        *((0.375, 6.5), (-9.0, 3.25), (2.5, 3.75), (0.1, 0.7), (1 / 3, 5.3), (0.3, 0.3 + 2.0**-30)),
        *((1 - 2.0**-50, 1 + 2.0**-50), (100.1, 100.2), (-2.0, -1.0)),
    ],
)
def test_the_tree_written_a_second_time(s: float, t: float) -> None:
    """Rational times, recursion over cells, conditional means by solving with the covariance matrix."""
    sample, element = 2**40 + 3, 2
    path = Tree(7, sample, element)
    s, t = (float(_tree.times(_tree.ticks(np.array([x])))[0]) for x in (s, t))
    whole, length = None, 0.0
    edges = [Fraction(0), *(Fraction(2) ** r for r in range(8))]
    roots = [(-b, -a) for a, b in itertools.pairwise(edges)][::-1]
    for a, b in [*roots, *itertools.pairwise(edges)]:
        part = path.over(Fraction(s), Fraction(t), a, b, path.root(a, b))
        if part is not None:
            inside = float(min(b, Fraction(t)) - max(a, Fraction(s)))
            whole = part if whole is None else path.chain(whole, part, length, inside)
            length += inside
    got = TREE.increments(s, t, LIKE[:1], torch.tensor([sample]))
    assert float(got.h) == t - s
    for x, expected in zip(got[1:], whole, strict=True):
        assert abs(float(x[0, element]) - expected) < 1e-12 * (t - s) ** 0.5


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_compiled_descent_is_the_specification(dtype: torch.dtype) -> None:
    compiled = brownian._compiled(dtype)
    assert compiled is not None
    rng = np.random.default_rng(0)
    t = np.concatenate([rng.normal(size=40) * 4, rng.integers(-64, 64, 40) / 16, rng.random(20)])
    n = _tree.ticks(t)
    x = _tree.times(n)
    before, after = x - rng.exponential(size=100), x + rng.exponential(size=100)
    before[::7], after[::5] = np.inf, -np.inf
    key = (5, 9)
    for event in (1, 5, 70):
        ids = torch.from_numpy(rng.integers(-(2**63), 2**63, 300))
        got = compiled(key, n, before, after, ids, event, dtype)
        for a, b in zip(got, _tree.descend(key, n, before, after, ids, event, dtype), strict=True):
            assert torch.equal(a, b)


def test_the_specification_serves_without_the_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = over(0.2, 3.3), TREE.steps([0.1, 0.4, 1.5], LIKE, IDS)
    monkeypatch.setattr(brownian, "_compiled", lambda dtype: None)
    monkeypatch.setattr(_tree, "CHUNK", 64)
    assert equal(over(0.2, 3.3), expected[0])
    assert equal(TREE.steps([0.1, 0.4, 1.5], LIKE, IDS), expected[1])


def test_a_missing_compiler_is_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from sdekit.noise import _tree_cpu

    def wrong(*args: object) -> tuple[torch.Tensor, ...]:
        return tuple(x + 1 for x in _tree.descend(*args))  # type: ignore[arg-type]

    class Kernel:
        def recompile(self) -> None: ...

    monkeypatch.setattr(_tree_cpu, "descend", wrong)
    monkeypatch.setattr(_tree_cpu, "KERNELS", {torch.float32: Kernel()})
    with pytest.warns(RuntimeWarning, match=r"Brownian tree .*differs from its specification.*same.*Next:"):
        assert brownian._compiled.__wrapped__(torch.float32) is None


def test_threads_change_nothing() -> None:
    like, ids = torch.zeros(3000, 5), torch.arange(3000)
    expected = TREE.increments(0.1, 0.3, like, ids)
    try:
        torch.set_num_threads(3)
        assert equal(TREE.increments(0.1, 0.3, like, ids), expected)
    finally:
        torch.set_num_threads(1)


# Chen's relation, direction, nesting


@given(s=times, t=times, u=times)
def test_chen(s: float, t: float, u: float) -> None:
    """In any order of the times, forwards or backwards: to 1e-13, away from lengths that cancel."""
    points = sorted((s, t, u))
    gaps = [b - a for a, b in itertools.pairwise(points)]
    if min(gaps) < 1e-9 * max(1.0, abs(points[0]), abs(points[2])):
        return
    whole = over(s, u)
    joined = over(s, t).then(over(t, u))
    size = max(gaps) / abs(u - s)
    close(joined, whole, 1e-13 * max(1.0, size) ** 3)
    assert torch.allclose(joined.h, whole.h, rtol=1e-12, atol=0)


def test_chen_tells_the_sides_apart() -> None:
    a, b = over(0.1, 0.4), over(0.4, 1.3)
    assert float((b.then(a).H - over(0.1, 1.3).H).abs().max()) > 1e-3


@given(s=times, t=times)
def test_backwards(s: float, t: float) -> None:
    if s == t or abs(s - t) < 1e-12:
        return
    assert equal(over(t, s), over(s, t).reversed())


def test_short_intervals_are_as_accurate_as_long_ones() -> None:
    """H over 1e-9, an integral of 1e-14: no digits lost to the value of the path."""
    t = 0.3
    close(over(t, t + 3e-10).then(over(t + 3e-10, t + 1e-9)), over(t, t + 1e-9), 1e-13)


@pytest.mark.parametrize("first", [12, 100])
def test_refinement_reads_the_same_path(first: int) -> None:
    coarse = TREE.steps(np.linspace(0, 1, first + 1), LIKE, IDS)
    for k in (2, 4):
        fine = TREE.steps(np.linspace(0, 1, k * first + 1), LIKE, IDS)
        joined = Increments(*(x[::k] for x in fine))
        for j in range(1, k):
            joined = joined.then(Increments(*(x[j::k] for x in fine)))
        close(joined, coarse, 1e-13)


@given(data=st.data(), bits=st.sampled_from([52, 30]))
def test_a_sequence_is_its_intervals(data: st.DataObject, bits: int) -> None:
    """Bit for bit, rising and falling, times shared or of each row; a repeated time is an empty interval."""
    rows = data.draw(st.integers(1, 4))
    shared = data.draw(st.booleans())
    grid = st.integers(-400, 400).map(lambda k: k / 96)
    table = [
        sorted(data.draw(st.lists(grid, min_size=5, max_size=5)), reverse=data.draw(st.booleans()))
        for _ in range(1 if shared else rows)
    ]
    ts = np.array(table).T
    tree, like = sk.BrownianTree(2, bits), LIKE[:rows]
    found = tree.steps(ts[:, 0] if shared else ts, like, IDS[:rows])
    for k in range(4):
        s, t = (ts[k, 0], ts[k + 1, 0]) if shared else (ts[k], ts[k + 1])
        alone = tree.increments(s, t, like, IDS[:rows])
        assert torch.equal(found.h[k].expand(rows, 1), alone.h.expand(rows, 1))
        for x, y in zip(found[1:], alone[1:], strict=True):
            assert torch.equal(x[k], y)


def test_an_empty_interval() -> None:
    for x in over(0.3, 0.3):
        assert not x.any()


# What must not change the numbers


@given(data=st.data(), event=st.integers(1, 40))
def test_batches_and_times_of_other_rows_change_nothing(data: st.DataObject, event: int) -> None:
    count = data.draw(st.integers(2, 40))
    s = torch.tensor(data.draw(st.lists(st.floats(-3, 3), min_size=count, max_size=count)))
    s = s.double()
    t = s + torch.linspace(0.1, 2, count, dtype=torch.float64)
    ids = torch.arange(count) + data.draw(st.sampled_from([0, 2**32 - 5, -7]))
    like = torch.zeros(count, event, dtype=data.draw(st.sampled_from([torch.float32, torch.float64])))
    whole = TREE.increments(s, t, like, ids)
    order = torch.tensor(data.draw(st.permutations(range(count))))
    mixed = TREE.increments(s[order], t[order], like, ids[order])
    assert equal(mixed, Increments(*(x[order] for x in whole)))
    row = data.draw(st.integers(0, count - 1))
    alone = TREE.increments(float(s[row]), float(t[row]), like[:1], ids[row : row + 1])
    for x, y in zip(alone[1:], whole[1:], strict=True):
        assert torch.equal(x[0], y[row])


def test_an_element_has_its_number_in_any_shape() -> None:
    wide = TREE.increments(0.1, 0.9, torch.zeros(4, 2, 6, dtype=torch.float64), IDS)
    flat = TREE.increments(0.1, 0.9, torch.zeros(4, 12, dtype=torch.float64), IDS)
    assert wide.W.shape == (4, 2, 6)
    assert torch.equal(wide.K.flatten(1), flat.K)
    assert torch.equal(flat.H[:, :3], over(0.1, 0.9).H)


@pytest.mark.parametrize(
    ("low", "eps"), [(torch.float32, 2e-6), (torch.bfloat16, 2e-2), (torch.float16, 2e-3)]
)
def test_precision_rounds_the_same_path(low: torch.dtype, eps: float) -> None:
    like, ids = torch.zeros(500, 3, dtype=torch.float64), torch.arange(500)
    for s, t in ((0.1, 0.7), (0.3, 0.3001), (0.5, 7.25)):
        exact, rounded = TREE.increments(s, t, like, ids), TREE.increments(s, t, like.to(low), ids)
        assert rounded.W.dtype == low
        for x, y in zip(rounded[1:], exact[1:], strict=True):
            error = (x.double() - y).abs() / (float((y.square().mean()).sqrt()) + y.abs())
            assert float(error.max()) < 4 * eps


def test_fewer_bits_read_the_same_path_at_fewer_times() -> None:
    coarse = sk.BrownianTree(7, bits=20)
    assert equal(over(0.25, 0.75, coarse), over(0.25, 0.75))
    assert equal(over(2 / 3, 0.9, coarse), over(round(2**21 / 3) / 2**20, round(0.9 * 2**20) / 2**20))
    assert equal(over(3.3, 5.1, coarse), over(round(3.3 * 2**19) / 2**19, round(5.1 * 2**18) / 2**18))


def test_seeds_samples_and_elements_are_different_paths() -> None:
    W = torch.cat([over(0.1, 0.3).W.flatten(), over(0.1, 0.3, sk.BrownianTree(8)).W.flatten()])
    assert W.unique().numel() == 24


def test_every_cell_has_numbers_of_its_own() -> None:
    """Of 2^10 cells on each of eight roots, and of the coarser ones above them."""
    found = [
        TREE.steps(np.linspace(a, b, 2**k + 1), LIKE[:1, :1], IDS[:1]).K.flatten()
        for a, b in ((-8, -4), (-4, -2), (-2, -1), (-1, 0), (0, 1), (1, 2), (2, 4), (4, 8))
        for k in range(11)
    ]
    values = torch.cat(found)
    assert values.unique().numel() == values.numel() == 8 * (2**11 - 1)


@pytest.mark.gpu
def test_devices_agree() -> None:
    here, there = over(0.1, 5.7), TREE.increments(0.1, 5.7, LIKE.cuda(), IDS.cuda())
    close(Increments(*(x.cpu() for x in there)), here, 1e-13)


# Time


@given(t=st.one_of(times, st.floats(-(2.0**60), 2.0**60)))
def test_ticks(t: float) -> None:
    """Odd; exact from 1/2 on, within 2^-53 below; multiples of 2^-52 are their own ticks."""
    n = _tree.ticks(np.array([t, -t]))
    assert n[1] == -n[0]
    back = float(_tree.times(n)[0])
    assert back == t if abs(t) >= 0.5 else abs(back - t) <= 2.0**-53
    assert _tree.ticks(np.array([back]))[0] == n[0]


@given(a=times, b=times)
def test_ticks_are_in_order(a: float, b: float) -> None:
    n = _tree.ticks(np.array([a, b]))
    assert (n[0] <= n[1]) if a <= b else (n[0] >= n[1])


@pytest.mark.parametrize("t", [float("nan"), float("inf"), -float("inf"), 2.0**65])
def test_times_are_finite(t: float) -> None:
    for call in (lambda: over(0.0, t), lambda: TREE.steps([0.0, t], LIKE, IDS)):
        with pytest.raises(ValueError, match=r"finite and within \[-2\^64, 2\^64\], got .*Next:"):
            call()


def test_intervals_below_the_resolution_are_refused() -> None:
    with pytest.raises(ValueError, match=r"1e-16 is too short .*2\^-52.*large a unit"):
        over(0.0, 1e-16)
    with pytest.raises(ValueError, match=r"too short .*2\^-20.*Next: bits=52"):
        over(0.1, 0.100001, sk.BrownianTree(0, bits=20))
    over(1.0, 1 + 2.0**-52)


# Contracts


def test_the_object() -> None:
    tree = sk.BrownianTree(-1)
    assert tree == sk.BrownianTree(2**64 - 1)
    assert tree != sk.BrownianTree(-1, bits=26)
    assert eval(repr(tree), {"BrownianTree": sk.BrownianTree}) == tree
    assert pickle.loads(pickle.dumps(tree)) == tree
    assert isinstance(tree, sk.Noise)
    with pytest.raises(TypeError, match="seed must be an integer"):
        sk.BrownianTree(0.5)  # type: ignore[arg-type]
    for bits in (0, 53, 20.0):
        with pytest.raises(ValueError, match=r"bits must be an integer from 1 to 52, got"):
            sk.BrownianTree(0, bits)  # type: ignore[arg-type]


def test_numbers_without_a_time_are_those_of_philox() -> None:
    assert torch.equal(TREE.normal(3, LIKE, IDS), sk.Philox(7).normal(3, LIKE, IDS))
    assert torch.equal(TREE.initial(LIKE, IDS), sk.Philox(7).initial(LIKE, IDS))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: over(torch.zeros(3), 1.0), r"shape \(4,\), one for each row of like, got \(3,\)"),
        (lambda: over(torch.zeros(4, 1), 1.0), r"one for each row of like, got \(4, 1\)"),
        (lambda: TREE.steps(0.5, LIKE, IDS), r"two times or more.*got shape \(\).*increments"),
        (lambda: TREE.steps([0.5], LIKE, IDS), r"two times or more.*got shape \(1,\)"),
        (lambda: TREE.steps(np.zeros((2, 3)), LIKE, IDS), r"\(k \+ 1, 4\), got shape \(2, 3\)"),
        (lambda: TREE.increments(0, 1, LIKE, IDS[:2]), "ids must be int64"),
        (lambda: TREE.increments(0, 1, LIKE.long(), IDS), "like must be a floating tensor"),
    ],
)
def test_shapes_are_told(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        call()


def test_times_of_a_sequence_rise_or_fall() -> None:
    with pytest.raises(ValueError, match="must rise, or fall"):
        TREE.steps([0.0, 1.0, 0.5], LIKE, IDS)


@pytest.mark.parametrize("shape", [(0,), (0, 7), (4, 0), (0, 0)])
def test_empty_states(shape: tuple[int, ...]) -> None:
    like, ids = torch.zeros(shape), torch.arange(shape[0])
    assert TREE.increments(0.1, 3.0, like, ids).W.shape == shape
    assert TREE.steps([0.1, 0.2, 3.0], like, ids).H.shape == (2, *shape)
    assert TREE.increments(torch.zeros(shape[0]), 3.0, like, ids).K.shape == shape


# As the noise of solve


def test_solve_follows_the_path(dtype: torch.dtype) -> None:
    """dX = dW: X(1) = x + W(0, 1) at any number of steps; saved times, halves and parts of a batch too."""
    motion, x = sk.BrownianMotion(), torch.ones(5, 2, dtype=dtype)
    eps = 20 * torch.finfo(dtype).eps
    end = x + TREE.increments(0.0, 1.0, x, torch.arange(5)).W
    for steps in (1, 7, 64, 100):
        assert float((sk.solve(motion, x, (0.0, 1.0), steps=steps, noise=TREE).x - end).abs().max()) < eps
    half = sk.solve(motion, x, (0.0, 0.5), steps=8, noise=TREE).x
    assert torch.equal(
        sk.solve(motion, half, (0.5, 1.0), steps=8, noise=TREE).x,
        sk.solve(motion, x, (0.0, 1.0), steps=16, noise=TREE).x,
    )
    saved = sk.solve(motion, x, (0.0, 1.0), steps=8, noise=TREE, save_at=[0.3, 0.7]).xs
    assert saved is not None
    assert float((saved[0] - x - TREE.increments(0, 0.3, x, torch.arange(5)).W).abs().max()) < eps
    part = sk.solve(motion, x[2:], (0.0, 1.0), steps=7, noise=TREE, first_id=2).x
    assert torch.equal(part, sk.solve(motion, x, (0.0, 1.0), steps=7, noise=TREE).x[2:])


def test_solve_reads_the_path_backwards() -> None:
    """A time-reversed Brownian motion without score unwinds the forward run: only the noise remains."""
    motion, x = sk.BrownianMotion(), torch.ones(5, 2, dtype=torch.float64)
    there = sk.solve(motion, x, (0.0, 1.0), steps=10, noise=TREE).x
    back = sk.reverse(motion, lambda x, t: torch.zeros_like(x))
    again = sk.solve(back, there, (1.0, 0.0), steps=13, noise=TREE).x
    assert float((there - x).abs().min()) > 1e-3
    assert float((again - x).abs().max()) < 1e-14


def test_solve_converges_pathwise() -> None:
    """Euler-Maruyama on geometric Brownian motion, 4,000 paths: the error falls as sqrt(h)."""
    process, x = sk.GeometricBrownian(0.1, 0.5), torch.ones(4000, 1, dtype=torch.float64)
    W = TREE.increments(0.0, 1.0, x, torch.arange(4000)).W
    exact = torch.exp(0.1 - 0.125 + 0.5 * W)
    errors = []
    for steps in (8, 128):
        got = sk.solve(process, x, (0.0, 1.0), steps=steps, noise=TREE).x
        errors.append(float((got - exact).square().mean().sqrt()))
    assert 3.4 < errors[0] / errors[1] < 4.6


def test_solve_takes_scalar_and_matrix_noise() -> None:
    """A Brownian motion of (B, 1) and of (B, m) for an event of another shape."""
    x = torch.zeros(3, 2, dtype=torch.float64)
    ids = torch.arange(3)
    g = torch.tensor([[1.0, 2.0, 0.0], [0.0, 1.0, 3.0]], dtype=torch.float64)
    general = sk.SDE(
        lambda x, t: 0 * x, lambda x, t: g.expand(len(x), 2, 3), noise_type="general", noise_dim=3
    )
    W = TREE.increments(0.0, 1.0, x.new_zeros(3, 3), ids).W
    got = sk.solve(general, x, (0.0, 1.0), steps=4, noise=TREE).x
    assert float((got - W @ g.T).abs().max()) < 1e-14
    scalar = sk.SDE(lambda x, t: 0 * x, lambda x, t: 1 + 0 * x, noise_type="scalar")
    W = TREE.increments(0.0, 1.0, x.new_zeros(3, 1), ids).W
    got = sk.solve(scalar, x, (0.0, 1.0), steps=4, noise=TREE).x
    assert float((got - W).abs().max()) < 1e-14


def test_gradients_see_the_same_path() -> None:
    x = torch.ones(3, 1, dtype=torch.float64, requires_grad=True)
    process = sk.GeometricBrownian(0.1, 0.5)
    grads = [
        torch.autograd.grad(sk.solve(process, x, (0.0, 1.0), steps=20, noise=TREE, gradient=how).x.sum(), x)[
            0
        ]
        for how in ("backprop", "checkpoint")
    ]
    assert torch.equal(*grads)
