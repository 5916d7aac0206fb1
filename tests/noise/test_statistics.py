"""The numbers are normal and independent.

Seeds are fixed, so a test that passes stays green; the rates are those of a false alarm after a change of the
stream. Bounds in standard errors: 5 is 6e-7 two-sided, 6 is 2e-9.
"""

from __future__ import annotations

import math
from functools import cache

import pytest
import torch

from sdekit.noise import Philox, Purpose

N = 10_000_000


@cache
def sample() -> torch.Tensor:
    """10^7 numbers: 10,000 samples of 1,000 elements."""
    return (
        Philox(1234).normal(0, torch.empty(10_000, 1000, dtype=torch.float64), torch.arange(10_000)).flatten()
    )


@pytest.mark.parametrize(
    ("power", "moment", "variance"),
    [(1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96), (5, 0, 945), (6, 15, 10_170), (8, 105, 2_016_000)],
)
def test_moments(power: int, moment: float, variance: float) -> None:
    """Var X^k = (2k-1)!! - (E X^k)^2. Rate 6e-7 each."""
    error = float((sample() ** power).mean()) - moment
    assert abs(error) < 5 * math.sqrt(variance / N)


def test_kolmogorov_smirnov() -> None:
    """P(sqrt(n) D > 2.7) = 2 exp(-2 2.7^2) = 9e-7."""
    ordered = torch.special.ndtr(sample().sort().values)
    steps = torch.arange(N + 1, dtype=torch.float64) / N
    distance = max(float((ordered - steps[:-1]).max()), float((steps[1:] - ordered).max()))
    assert math.sqrt(N) * distance < 2.7


def test_tails() -> None:
    """Counts beyond 3, 4, 4.5 and 5 on each side: 5 standard errors of a Poisson count, rate 5e-6 together;
    beyond 5 (2.87 expected) fewer than 16, rate 1e-7."""
    x = sample()
    for edge in (3.0, 4.0, 4.5):
        expected = N * 0.5 * math.erfc(edge / math.sqrt(2))
        for side in (x, -x):
            assert abs(int((side > edge).sum()) - expected) < 5 * math.sqrt(expected), edge
    assert max(int((x > 5).sum()), int((x < -5).sum())) < 16
    assert 4.7 < float(x.abs().max()) < 6.8


def test_every_place_in_a_tile_is_normal() -> None:
    """Mean and variance at each of 128 places, 78,125 numbers each: 256 tests at 5.5, rate 1e-5."""
    x = sample()[: N // 128 * 128].view(-1, 128)  # 1,000 is not a multiple of 128: places mix over tiles
    tiles = Philox(5).normal(1, torch.empty(10_000, 7 * 128, dtype=torch.float64), torch.arange(10_000))
    for table in (x, tiles.view(-1, 128)):
        n = len(table)
        assert float(table.mean(0).abs().max()) < 5.5 / math.sqrt(n)
        assert float((table.square().mean(0) - 1).abs().max()) < 5.5 * math.sqrt(2 / n)


def correlated(table: torch.Tensor, bound: float) -> bool:
    """Whether some two columns (n, K) correlate by more than ``bound`` standard errors, in x or in x^2."""
    n, worst = len(table), 0.0
    for y in (table, (table.square() - 1) / math.sqrt(2)):
        gram = (y.T @ y / n).fill_diagonal_(0)
        worst = max(worst, float(gram.abs().max()) * math.sqrt(n))
    return worst > bound


@pytest.mark.parametrize("event", [1, 2, 3, 4, 37, 128, 160])
def test_elements_are_independent(event: int) -> None:
    """x and x^2 of all elements and of the next draw, over 40,000 samples. At most 2 x 51,040 tests at 6.5,
    rate 1e-5. The two numbers of one Box-Muller pair share a radius: x^2 would show it."""
    like, ids = torch.empty(40_000, event, dtype=torch.float64), torch.arange(40_000)
    table = torch.cat([Philox(3).normal(draw, like, ids) for draw in (6, 7)], dim=1)
    assert not correlated(table, 6.5)


def test_streams_are_independent() -> None:
    """Draws, samples, purposes and seeds, neighbours and far ones: 34 streams of 2^18, rate 2e-6."""
    like = torch.empty(1, 2**18, dtype=torch.float64)

    def stream(
        seed: int = 0, purpose: Purpose = Purpose.INJECTED, sample: int = 0, draw: int = 0
    ) -> torch.Tensor:
        return Philox(seed).normal(draw, like, torch.tensor([sample]), purpose)[0]

    streams = [stream(draw=draw) for draw in (0, 1, 2, 3, 255, 256, 2**31, 2**32 - 1)]
    streams += [stream(sample=i) for i in (1, 2, 3, 1024, 2**31, 2**32, 2**32 + 1, 2**48, -1)]
    streams += [stream(purpose=purpose) for purpose in Purpose if purpose != Purpose.INJECTED]
    streams += [stream(seed=seed) for seed in (1, 2, 3, 2**31, 2**32, 2**32 + 1, 2**63, -1)]
    streams += [stream(seed=1, draw=1), stream(sample=1, draw=1)]
    assert len(streams) == 34
    assert not correlated(torch.stack(streams, dim=1), 6.0)


def test_consecutive_samples_and_draws_are_independent() -> None:
    """Lag-1 products over ids and over draws for scalar events: 4 tests at 5, rate 2e-6."""
    n = 1_000_000
    over_ids = Philox(9).normal(0, torch.empty(n, dtype=torch.float64), torch.arange(n))
    one, ids = torch.empty(1000, dtype=torch.float64), torch.arange(1000)
    over_draws = torch.stack([Philox(9).normal(k, one, ids) for k in range(1000)]).T.flatten()
    for x in (over_ids, over_draws):
        for y in (x, (x.square() - 1) / math.sqrt(2)):
            assert abs(float((y[1:] * y[:-1]).sum())) < 5 * math.sqrt(n)


def test_initial_and_injected_noise_have_their_own_keys() -> None:
    like, ids = torch.empty(3, 40), torch.arange(3)
    noise = Philox(4)
    assert torch.equal(noise.initial(like, ids), noise.normal(0, like, ids, Purpose.INITIAL))
    assert torch.equal(noise.normal(0, like, ids), noise.normal(0, like, ids, Purpose.INJECTED))
    assert not torch.equal(noise.initial(like, ids), noise.normal(0, like, ids))
