"""What holds with none of the libraries installed."""

from __future__ import annotations

import math

import pytest
import torch

import sdekit as sk
from benchmarks.peers import (
    MODULES,
    Missing,
    available,
    configurations,
    courtesy_configurations,
    stochastic_configurations,
)
from benchmarks.peers.base import Problem
from benchmarks.peers.grids import COMMON
from benchmarks.peers.k_diffusion_samplers import Increments

TARGET = sk.Gaussian(torch.full((8,), 0.3), variance=1 / torch.arange(1, 9, dtype=torch.float64))


def test_names_are_unique():
    for peers in (configurations(), courtesy_configurations(), stochastic_configurations()):
        assert len({p.name for p in peers}) == len(peers) > 50


def test_an_absent_library_says_how_to_get_it():
    absent = [name for name in MODULES if name not in available()]
    if not absent:
        pytest.skip("all three libraries are installed")
    x = torch.zeros(1, 8, dtype=torch.float64)
    for name in absent:
        with pytest.raises(Missing, match="make peers-env"):
            configurations([name])[0].run(TARGET.denoiser(sk.VP()), x, 10)


def test_infinite_start_is_refused():
    with pytest.raises(ValueError, match="alpha = 0"):
        Problem(TARGET.denoiser(sk.RectifiedFlow()), COMMON["karras"], 10)


def test_increments_have_the_law_of_one_path():
    """Overlapping queries of one path are correlated as sqrt of the ratio of their lengths.

    100,000 paths: standard errors below 0.005, so that the bounds are six of them or more.
    """
    x = torch.zeros(100000, dtype=torch.float64)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        increments = Increments(x)
        half = increments(torch.tensor(9.0), torch.tensor(5.0))
        whole = increments(torch.tensor(9.0), torch.tensor(3.0))
        rest = increments(torch.tensor(3.0), torch.tensor(1.0))
    assert float((half * whole).mean()) == pytest.approx(math.sqrt(4 / 6), abs=0.03)
    assert float((whole * rest).mean()) == pytest.approx(0.0, abs=0.03)
    for part in (half, whole, rest):
        assert float(part.square().mean()) == pytest.approx(1.0, abs=0.05)
