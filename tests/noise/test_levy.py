"""The Levy area: exact moments given W, H and K, the law sech(pi a/h)/h in the limit, Chen's relation.

Bounds in standard errors, two-sided: 5 is 6e-7, 5.5 is 4e-8, 6 is 2e-9. Seeds are fixed.
"""

from __future__ import annotations

import math
from functools import cache

import pytest
import torch

import sdekit as sk
from sdekit.errors import ShapeError
from sdekit.noise.levy import chain_areas, levy_area, normals_of_area

N = 100_000
TREE = sk.BrownianTree(31)
IDS = torch.arange(N)
S, T = 0.25, 0.75
H = T - S


@cache
def area(pieces: int, remainder: bool) -> torch.Tensor:
    """(N, 3, 3), in units of h."""
    like = torch.zeros(N, 3, dtype=torch.float64)
    return TREE.levy_area(S, T, like, IDS, pieces=pieces, remainder=remainder) / H


def mean_is(x: torch.Tensor, expected: float, bound: float = 5.5) -> None:
    assert abs(float(x.mean()) - expected) < bound * float(x.std()) / math.sqrt(len(x))


@pytest.mark.parametrize("pieces", [1, 2, 3])
def test_variance(pieces: int) -> None:
    """1/4 with the remainder, 1/4 - 1/(20 k) without; areas of different pairs are uncorrelated."""
    full, part = area(pieces, True), area(pieces, False)
    for i, j in ((0, 1), (0, 2), (1, 2)):
        mean_is(full[:, i, j], 0.0)
        mean_is(full[:, i, j].square(), 0.25)
        mean_is(part[:, i, j].square(), 0.25 - 0.05 / pieces)
    mean_is(full[:, 0, 1] * full[:, 0, 2], 0.0)
    assert torch.equal(full, -full.transpose(1, 2))


def test_the_conditional_mean_is_that_of_the_path() -> None:
    """A martingale in the pieces: E (A_16 - A_1)^2 = (1 - 1/16)/20, and the step does not know A_1."""
    coarse, fine = area(1, False), area(16, False)
    for i, j in ((0, 1), (0, 2), (1, 2)):
        step = fine[:, i, j] - coarse[:, i, j]
        mean_is(step.square(), (1 - 1 / 16) / 20)
        mean_is(step * coarse[:, i, j], 0.0)


def test_conditional_variance_given_W_and_H() -> None:
    """Var[A_ij | W, H] = 1/20 + (H_i^2 + H_j^2)/5, Cov[A_ij, A_ik | W, H] = H_j H_k/5 (h = 1), by regression
    of the squared residual, and the same of the path itself cut into 16."""
    known = TREE.increments(S, T, torch.zeros(N, 3, dtype=torch.float64), IDS)
    W, h = known.W / math.sqrt(H), known.H / math.sqrt(H)
    for found in (area(1, True), area(16, True)):
        for i, j in ((0, 1), (2, 1)):
            rest = found[:, i, j] - (h[:, i] * W[:, j] - W[:, i] * h[:, j])
            size = h[:, i].square() + h[:, j].square()
            mean_is(rest.square(), 1 / 12)
            mean_is((rest.square() - 1 / 20 - size / 5) * size, 0.0)
            mean_is((rest.square() - 1 / 20 - size / 5) * (W[:, i].square() - 1), 0.0)
        a = found[:, 0, 1] - (h[:, 0] * W[:, 1] - W[:, 0] * h[:, 1])
        b = found[:, 0, 2] - (h[:, 0] * W[:, 2] - W[:, 0] * h[:, 2])
        cross = h[:, 1] * h[:, 2]
        mean_is((a * b - cross / 5) * cross, 0.0)


def test_conditional_variance_given_K() -> None:
    """Var[A_ij | W, H, K] = 1/28 + 36/7 (K_i^2 + K_j^2) at h = 1."""
    known = TREE.increments(S, T, torch.zeros(N, 3, dtype=torch.float64), IDS)
    K = known.K / math.sqrt(H)
    size = K[:, 0].square() + K[:, 1].square()
    for found in (area(1, True), area(16, True)):
        rest = (found - area(1, False))[:, 0, 1].square()
        mean_is(rest, 1 / 20)
        mean_is((rest - 1 / 28 - 36 / 7 * size) * size, 0.0)


def test_fourth_moment() -> None:
    """One piece: 0.3109696 = 0.24 + 6 * 0.0104762 + 3 * 0.0027041, from E M^4 + 6 E M^2 v + 3 E v^2."""
    q2, p1, p2 = 1 / 18, 1 / 360, 8 / 720**2
    m2v = (1 / 28 + 36 / 7 * p1 + 72 / 28 * p1 + 72 * 36 / 7 * p2) / 6
    v2 = 1 / 28**2 + 2 / 28 * 36 / 7 * p1 + (36 / 7) ** 2 * p2
    exact = 3 * (6 / 5) ** 2 * q2 + 6 * m2v + 3 * v2
    assert abs(exact - 0.3110) < 1e-4
    for i, j in ((0, 1), (0, 2), (1, 2)):
        mean_is(area(1, True)[:, i, j] ** 4, exact)


@pytest.mark.parametrize("u", [0.5, 2.0, 5.0, 8.0])
def test_characteristic_function(u: float) -> None:
    """E cos(u A/h) = sech(u/2): 16 pieces."""
    for i, j in ((0, 1), (0, 2), (1, 2)):
        mean_is((u * area(16, True)[:, i, j]).cos(), 1 / math.cosh(u / 2))


def test_law() -> None:
    """The distribution function 2/pi arctan(exp(pi a/h)) of Levy: Kolmogorov-Smirnov, 16 pieces, rate 9e-7;
    and the tail beyond 2 h, of weight 2.4e-3, where a normal law of the same variance has 6e-5."""
    a = area(16, True)[:, 0, 1].sort().values
    F = 2 / math.pi * torch.atan(torch.exp(math.pi * a))
    steps = torch.arange(N + 1, dtype=torch.float64) / N
    distance = max(float((F - steps[:-1]).max()), float((steps[1:] - F).max()))
    assert math.sqrt(N) * distance < 2.7
    weight = 4 / math.pi * math.atan(math.exp(-2 * math.pi))
    count = int((area(16, True)[:, 0, 1].abs() > 2).sum())
    assert abs(count - N * weight) < 5.5 * math.sqrt(N * weight)


def test_chen() -> None:
    """Without the remainder pieces add up: [s, t] in 8 is [s, m] in 4 and [m, t] in 4."""
    like, ids = torch.zeros(9, 4, dtype=torch.float64), torch.arange(9)
    m = (S + T) / 2
    parts = torch.stack(
        [TREE.levy_area(a, b, like, ids, pieces=4, remainder=False) for a, b in ((S, m), (m, T))]
    )
    W = TREE.steps([S, m, T], like, ids).W
    whole = TREE.levy_area(S, T, like, ids, pieces=8, remainder=False)
    assert float((chain_areas(parts, W) - whole).abs().max()) < 1e-14


def test_a_path_of_straight_pieces() -> None:
    """A square run round once: area 1, from its four corners."""
    W = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]])
    assert chain_areas(torch.zeros(4, 2, 2), W).tolist() == [[0.0, 1.0], [-1.0, 0.0]]


def test_a_parabola() -> None:
    """W = (x, x^2) over h = 1: A_12 = 1/2 int (x 2x - x^2) dx = 1/6, with H = (0, -1/6) and K = 0."""
    from sdekit.noise import Increments

    row = [torch.tensor(x) for x in ([1.0, 1.0], [0.0, -1 / 6], [0.0, 0.0])]
    assert abs(float(levy_area(Increments(torch.tensor(1.0), *row))[0, 1]) - 1 / 6) < 1e-7


@pytest.mark.parametrize("remainder", [True, False])
def test_rows_times_and_directions(remainder: bool) -> None:
    """Each row as alone, with times of its own; backwards the area changes sign; the pieces are a function
    of the interval."""
    ids = torch.arange(6)
    like = torch.zeros(6, 3)
    s = torch.linspace(0, 1, 6, dtype=torch.float64)
    t = s + torch.tensor([1.0, -1.0, 0.5, -0.5, 2.0, 3.0])

    def found(*rows: int, pieces: int) -> torch.Tensor:
        k = list(rows)
        return TREE.levy_area(s[k], t[k], like[k], ids[k], pieces=pieces, remainder=remainder)

    for pieces in (1, 3):
        whole = found(*range(6), pieces=pieces)
        assert whole.dtype == like.dtype
        for k in range(6):
            assert torch.equal(found(k, pieces=pieces)[0], whole[k])
            one = (float(s[k]), float(t[k]), like[:1], ids[k : k + 1])
            assert torch.equal(TREE.levy_area(*one, pieces=pieces, remainder=remainder)[0], whole[k])
        back = TREE.levy_area(t, s, like, ids, pieces=pieces, remainder=remainder)
        assert torch.equal(back, -whole)
        fine = TREE.levy_area(s, t, like.double(), ids, pieces=pieces, remainder=remainder)
        assert float((fine - whole).abs().max()) < 1e-5


def test_normals_are_counted() -> None:
    assert [normals_of_area(m) for m in (1, 2, 3, 5)] == [1, 3, 6, 15]


def test_one_motion_has_no_area() -> None:
    assert not TREE.levy_area(0, 1, torch.zeros(4, 1), IDS[:4]).any()


def test_errors() -> None:
    with pytest.raises(ShapeError, match=r"like must be \(B, m\).*got \(4, 2, 2\).*flatten"):
        TREE.levy_area(0, 1, torch.zeros(4, 2, 2), IDS[:4])
    with pytest.raises(ValueError, match="pieces must be a whole number >= 1, got 0"):
        TREE.levy_area(0, 1, torch.zeros(4, 2), IDS[:4], pieces=0)
