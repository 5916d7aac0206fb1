"""The law of the tree against exact covariances and conditional laws.

Seeds are fixed; the rates are those of a false alarm after a change of the stream. Bounds in standard errors,
two-sided: 5 is 6e-7, 5.5 is 4e-8, 6 is 2e-9.
"""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import pytest
import torch

import sdekit as sk
from sdekit.noise import _tree
from tests.noise.paths import columns, covariance

N = 100_000
TREE = sk.BrownianTree(20)


@cache
def sample(*intervals: tuple[float, float]) -> torch.Tensor:
    """(N, 3 n): W, H, K of N paths over n intervals."""
    like, ids = torch.zeros(N, 1, dtype=torch.float64), torch.arange(N)
    return columns([TREE.increments(s, t, like, ids) for s, t in intervals])


def check_covariance(x: torch.Tensor, exact: np.ndarray, bound: float = 5.5) -> None:
    """Mean zero and every second moment; Var of x_i x_j is S_ii S_jj + S_ij^2."""
    exact = torch.from_numpy(exact)
    deviation = exact.diagonal().sqrt()
    assert float((x.mean(0) / deviation).abs().max()) < bound / math.sqrt(len(x))
    error = x.T @ x / len(x) - exact
    spread = (torch.outer(exact.diagonal(), exact.diagonal()) + exact.square()) / len(x)
    worst = (error.abs() / spread.sqrt()).max()
    assert float(worst) < bound, f"{float(worst):.1f} standard errors"


@pytest.mark.parametrize("h", [1.0, 0.25, 0.7, 3.3, 2.0**-20, 0.37 * 2.0**-30], ids=lambda h: f"h={h:.2g}")
def test_variances(h: float) -> None:
    """h, h/12, h/720 and no correlation, from 0.3 on and from 0: 2 x 9 moments at 5.5, rate 7e-7 each h."""
    for s in (0.0, 0.3):
        n = _tree.ticks(np.array([s, s + h]))
        h_exact = float(np.diff(_tree.times(n))[0])
        check_covariance(sample((s, s + h)), np.diag([h_exact, h_exact / 12, h_exact / 720]))


def intervals(kind: str) -> list[tuple[float, float]]:
    rng = np.random.default_rng(len(kind))
    if kind == "random":
        return [tuple(np.sort(rng.random(2))) for _ in range(8)]
    if kind == "nested":
        cuts = np.sort(rng.random(12))
        return [(float(cuts[k]), float(cuts[11 - k])) for k in range(6)]
    if kind == "adjacent":
        cuts = np.sort(rng.random(9) * 5 - 2)
        return list(zip(cuts[:-1].tolist(), cuts[1:].tolist(), strict=True))
    if kind == "dyadic":
        return [(0.0, 0.5), (0.25, 0.75), (0.5, 1.0), (0.125, 0.25), (0.5, 0.625), (-0.5, 0.5), (-1.0, 2.0)]
    return [(0.3, 5.5), (-3.3, 1.1), (0.9, 1.1), (2.0, 9.5), (-0.1, 0.1), (3.9, 4.0001), (7.99, 8.01)]


@pytest.mark.parametrize("kind", ["random", "nested", "adjacent", "dyadic", "across roots"])
def test_joint_law(kind: str) -> None:
    """Up to eight intervals: 300 second moments and 24 means at 6 standard errors, rate 7e-7 each."""
    chosen = intervals(kind)
    check_covariance(sample(*chosen), covariance(chosen), bound=6.0)


def test_normality() -> None:
    """Five random combinations over random intervals: Kolmogorov-Smirnov, P(sqrt(n) D > 2.7) = 9e-7 each."""
    chosen = intervals("random")
    exact = covariance(chosen)
    weights = np.random.default_rng(3).normal(size=(5, len(exact)))
    for w in weights / np.sqrt(np.diag(exact)):
        y = (sample(*chosen) @ torch.from_numpy(w)) / math.sqrt(w @ exact @ w)
        u = torch.special.ndtr(y.sort().values)
        steps = torch.arange(N + 1, dtype=torch.float64) / N
        distance = max(float((u - steps[:-1]).max()), float((steps[1:] - u).max()))
        assert math.sqrt(N) * distance < 2.7


@pytest.mark.parametrize("m", [0.5, 0.25, 0.3, 1 / 3, 0.99])
def test_bridge(m: float) -> None:
    """W, H, K of [0, m] given those of [0, 1]: the residual of the exact conditional mean has the exact
    conditional covariance, and neither it nor its size has to do with the condition. 6 standard errors:
    rate 1e-7 each m."""
    exact = covariance([(0.0, m), (0.0, 1.0)])
    gain = exact[:3, 3:] @ np.linalg.inv(exact[3:, 3:])
    x = sample((0.0, m), (0.0, 1.0))
    rest, known = x[:, :3] - x[:, 3:] @ torch.from_numpy(gain).T, x[:, 3:]
    conditional = exact[:3, :3] - gain @ exact[3:, :3]
    check_covariance(
        torch.cat([rest, known], 1),
        np.block([[conditional, np.zeros((3, 3))], [np.zeros((3, 3)), exact[3:, 3:]]]),
        bound=6.0,
    )
    size, given = (
        y.square() / torch.from_numpy(d) - 1
        for y, d in ((rest, np.diag(conditional).copy()), (known, np.diag(exact[3:, 3:]).copy()))
    )
    assert float((size.T @ given / N).abs().max()) < 6 * 2 / math.sqrt(N)  # Var of chi^2 - 1 is 2


def test_bridge_at_the_middle() -> None:
    """The closed form of Foster, Lyons and Oberhauser: W_{0,1/2} = W/2 + 3/2 H + N(0, 1/16)."""
    x = sample((0.0, 0.5), (0.0, 1.0))
    rest = x[:, 0] - x[:, 3] / 2 - 1.5 * x[:, 4]
    assert abs(float(rest.square().mean()) * 16 - 1) < 5.5 * math.sqrt(2 / N)


def test_markov() -> None:
    """Past and future of t = 0.37 share nothing, in value or in size: 18 tests at 5.5, rate 7e-7."""
    past, future = sample((0.11, 0.37), (0.37, 0.93)).split(3, dim=1)
    for power in (1, 2):
        a, b = (y**power - (y**power).mean(0) for y in (past, future))
        correlation = (a.T @ b / N) / torch.outer(a.std(0), b.std(0))
        assert float(correlation.abs().max()) < 5.5 / math.sqrt(N)


def test_samples_elements_seeds_and_neighbours_are_independent() -> None:
    """W, H, K of adjacent ids, elements and seeds: 42 correlations of 1e5 pairs at 5.5, rate 2e-6."""
    n = 100_000
    like, ids = torch.zeros(n, 5, dtype=torch.float64), torch.arange(n)
    first = TREE.increments(0.1, 0.7, like, ids)
    second = sk.BrownianTree(21).increments(0.1, 0.7, like, ids)
    for x, y in zip(first[1:], second[1:], strict=True):
        z = x / x.square().mean().sqrt()
        pairs = [(z[:-1, 0], z[1:, 0]), (z[:, 0], (y / y.square().mean().sqrt())[:, 0])]
        pairs += [(z[:, i], z[:, j]) for i in range(5) for j in range(i)]
        for a, b in pairs:
            assert abs(float((a * b).mean())) < 5.5 / math.sqrt(n)


def test_times_of_each_row() -> None:
    """W, H, K over intervals drawn per row, divided by their deviations: covariance I, rate 4e-7."""
    rng = np.random.default_rng(5)
    s, h = rng.normal(size=N), rng.exponential(size=N)
    like, ids = torch.zeros(N, 1, dtype=torch.float64), torch.arange(N)
    found = TREE.increments(s, torch.from_numpy(s + h), like, ids)
    scale = [found.h.sqrt() / math.sqrt(d) for d in (1, 12, 720)]
    check_covariance(torch.cat([x / d for x, d in zip(found[1:], scale, strict=True)], 1), np.eye(3))


def test_the_path_has_no_memory_of_what_was_asked() -> None:
    """Rejected and retried steps leave the increment over the whole alone, and the halves add up to it."""
    like, ids = torch.zeros(1000, 1, dtype=torch.float64), torch.arange(1000)
    tree = sk.BrownianTree(4)
    for t in (1.0, 0.61, 0.2):
        tree.increments(0.0, t, like, ids)
    fresh = sk.BrownianTree(4).increments(0.0, 0.2, like, ids)
    assert torch.equal(tree.increments(0.0, 0.2, like, ids).H, fresh.H)
