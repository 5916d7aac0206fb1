"""batch_size="auto" to the byte: a meter with just enough memory for a tile, and one with a little less."""

from __future__ import annotations

import math

import pytest
import torch

import sdekit as sk
from sdekit.errors import CapabilityError
from sdekit.samplers.execute import prepare
from sdekit.samplers.memory import USABLE, Meter, automatic_batch, states_held
from sdekit.samplers.plan import Combine, Plan
from sdekit.score.predictions import Node

STATE = 24 * 4
"""Bytes of one float32 row of (3, 8)."""


def chosen(total, n, fixed, each, saved):
    """(tile, states of a row that the plan holds) where a network call of r rows takes fixed + each r."""
    rows = []

    def net(x, t):
        rows.append(len(x))
        return torch.tanh(x)

    def peak(work):
        work()
        return fixed + each * rows[-1]

    model = sk.Denoiser(net, sk.VP(), "x0", data_std=1.0)
    program = prepare(sk.plan("dpmpp-2m", sk.VP(), steps=5), "x0", 1.0)
    meter = Meter(lambda: total, peak)
    shape = (n, 3, 8)
    tile = automatic_batch(
        model, program, shape, torch.float32, torch.device("cpu"), saved=saved, meter=meter
    )
    return tile, states_held(program.plan)


@pytest.mark.parametrize("saved", [0, 3])
@pytest.mark.parametrize(("fixed", "each"), [(0, 0), (0, 1000), (70000, 40), (5000, 9000)])
@pytest.mark.parametrize("tile", [1, 4, 64])
def test_memory_for_just_so_many_rows(tile, fixed, each, saved):
    n = 1000
    _, held = chosen(10**12, n, fixed, each, saved)
    needs = fixed + tile * (each + held * STATE) + (1 + saved) * n * STATE
    enough = math.ceil(needs / USABLE) + 1
    assert chosen(enough, n, fixed, each, saved)[0] == tile
    if tile == 1:
        with pytest.raises(CapabilityError, match="one row does not fit"):
            chosen(enough - 4, n, fixed, each, saved)
    else:
        assert chosen(enough - 4, n, fixed, each, saved)[0] == tile // 2


def test_all_rows_at_once_where_just_all_fit():
    n, fixed, each = 64, 500, 1000
    _, held = chosen(10**12, n, fixed, each, 0)
    enough = math.ceil((fixed + n * (each + held * STATE) + n * STATE) / USABLE) + 1
    assert chosen(enough, n, fixed, each, 0)[0] is None
    assert chosen(enough - 4, n, fixed, each, 0)[0] == n // 2


def test_a_network_that_takes_less_for_more_rows_takes_nothing_a_row():
    """A meter is noisy: the slope is never negative."""
    n, measured = 1000, 10**5 - 50 * 8  # at 8 rows
    _, held = chosen(10**12, n, 0, 0, 0)
    enough = math.ceil((measured + 4 * held * STATE + n * STATE) / USABLE) + 1
    assert chosen(enough, n, 10**5, -50, 0)[0] == 4
    assert chosen(enough - 4, n, 10**5, -50, 0)[0] == 2


def test_the_output_is_held_to_the_end():
    """x[1] is written first and read by nobody: two more registers come and go beside it."""
    nodes = tuple(Node(t, *(float(f(torch.tensor(t))) for f in _coefficients())) for t in (1.0, 0.5))
    plan = Plan(
        (
            Combine("x[1]", ((0.5, "x[0]"),)),
            Combine("y", ((2.0, "x[0]"),)),
            Combine("z", ((3.0, "y"),)),
        ),
        nodes,
        prior_std=1.0,
    )
    assert states_held(plan) == 3


def _coefficients():
    process = sk.VP()
    return process.alpha, process.sigma, process.dalpha, process.dsigma
