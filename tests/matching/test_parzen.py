"""Leave-one-out bandwidths of Parzen windows, against their definition and closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar

import sdekit as sk
from sdekit.errors import NonFiniteError, ShapeError
from sdekit.matching import parzen


def draws(n, *event, seed=0):
    return torch.randn(n, *event, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("h", [0.05, 0.7, 20.0])
def test_the_density_is_that_of_the_other_data(h):
    """Each value against `sdekit.Empirical` on the data without that row."""
    data = draws(9, 2, 3)
    expected = [
        sk.Empirical(torch.cat([data[:i], data[i + 1 :]]), h).log_prob(data[i : i + 1])[0] for i in range(9)
    ]
    torch.testing.assert_close(parzen.leave_one_out(data, h), torch.stack(expected), rtol=1e-10, atol=1e-10)


def test_two_data_have_a_closed_form():
    """One distance d in D dimensions: the maximum of -d^2/(2 h^2) - D log h is h = d/sqrt(D)."""
    data = torch.tensor([[0.0, 0.0, 0.0], [1.0, 2.0, 2.0]], dtype=torch.float64)
    assert parzen.bandwidth(data) == pytest.approx(3 / math.sqrt(3), rel=1e-9)


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 10**6), st.integers(3, 40), st.integers(1, 3))
def test_no_other_bandwidth_is_better(seed, n, dimension):
    """Nor does a search by scipy from every interval of a finer grid find one."""
    data = draws(n, dimension, seed=seed) ** 3
    h = parzen.bandwidth(data)
    best = float(parzen.leave_one_out(data, h).mean())

    def loss(u):
        return -float(parzen.leave_one_out(data, math.exp(u)).mean())

    grid = np.linspace(math.log(h) - 3, math.log(h) + 3, 61)
    lowest = min(range(1, 60), key=lambda k: loss(grid[k]))
    found = minimize_scalar(
        loss, bounds=(grid[lowest - 1], grid[lowest + 1]), method="bounded", options={"xatol": 1e-9}
    )
    assert best >= -found.fun - 1e-9


def test_the_bandwidth_has_the_units_of_the_data():
    data = draws(50, 2)
    assert parzen.bandwidth(1000 * data + 7.0) == pytest.approx(1000 * parzen.bandwidth(data), rel=1e-6)


def test_blocks_change_nothing(monkeypatch):
    data = draws(60, 2)
    h, values = parzen.bandwidth(data), parzen.leave_one_out(data, 0.4)
    monkeypatch.setattr(parzen, "BLOCK", 7 * 60)
    monkeypatch.setattr(parzen, "HELD", 0)
    assert parzen.bandwidth(data) == pytest.approx(h, rel=1e-8)
    torch.testing.assert_close(parzen.leave_one_out(data, 0.4), values, rtol=0, atol=1e-12)


def test_near_neighbours_far_from_zero_keep_their_distance():
    data = torch.tensor([[1e6], [1e6 + 1e-4]], dtype=torch.float64)
    assert parzen.bandwidth(data) == pytest.approx(1e-4, rel=1e-5)


def test_it_beats_the_rule_of_thumb_on_new_data_of_two_modes():
    """Silverman's normal rule, 1.06 s n^(-1/5), is too wide there by the distance of the modes."""
    target = sk.GaussianMixture([0.5, 0.5], [[-5.0], [5.0]], 0.25)
    data, new = (target.sample(n, seed=s, dtype=torch.float64) for n, s in ((300, 1), (5000, 2)))
    rule = 1.06 * float(data.std()) * 300**-0.2
    chosen, thumb = (
        float(sk.Empirical(data, h).log_prob(new).mean()) for h in (parzen.bandwidth(data), rule)
    )
    exact = float(target.log_prob(new).mean())
    assert exact - chosen < 0.05 < 0.5 < exact - thumb


def test_float32_and_numpy_are_taken():
    data = draws(30, 2)
    assert parzen.bandwidth(data.float().numpy()) == pytest.approx(parzen.bandwidth(data), rel=1e-5)


@pytest.mark.parametrize("h", [0.0, -1.0, math.nan, math.inf])
def test_a_bandwidth_that_is_not_positive_is_refused(h):
    with pytest.raises(ValueError, match="h must be finite and > 0"):
        parzen.leave_one_out(draws(5, 1), h)


def test_bad_data_are_refused():
    with pytest.raises(ShapeError, match="N >= 2"):
        parzen.bandwidth(draws(1, 2))
    with pytest.raises(ShapeError, match=r"data\[:, None\]"):
        parzen.bandwidth(draws(5))
    with pytest.raises(ShapeError, match="floating"):
        parzen.bandwidth(torch.arange(4)[:, None])
    with pytest.raises(NonFiniteError, match="sample 1"):
        parzen.bandwidth(torch.tensor([[0.0], [math.nan]]))
    with pytest.raises(ValueError, match="exact copy"):
        parzen.bandwidth(draws(5, 2).repeat(2, 1))


def test_one_datum_without_a_copy_suffices():
    data = torch.tensor([[0.0], [0.0], [1.0]], dtype=torch.float64)
    h = parzen.bandwidth(data)
    # two rows of weights (1, e^(-1/2h^2)), one of distance 1 alone
    w = math.exp(-0.5 / h**2)
    assert h**2 == pytest.approx((2 * w / (1 + w) + 1) / 3, rel=1e-6)


def test_of_two_maxima_the_greater_is_taken():
    """Pairs 1e-3 apart, the pairs 1 apart: a maximum near each scale, and neighbours decide."""
    places = torch.arange(12, dtype=torch.float64)[:, None]
    data = torch.cat([places, places + 1e-3])
    narrow = parzen.bandwidth(data)
    assert narrow == pytest.approx(1e-3, rel=0.01)
    some = torch.cat([places, places[:2] + 1e-3])  # most have no near neighbour
    assert parzen.bandwidth(some) > 0.1
    for law in (data, some):
        h = parzen.bandwidth(law)
        best = float(parzen.leave_one_out(law, h).mean())
        for other in torch.logspace(-4, 1, 60).tolist():
            assert float(parzen.leave_one_out(law, other).mean()) <= best + 1e-12
