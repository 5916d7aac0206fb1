"""Several draws at once: the bits of one at a time, on every path that takes them."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import sdekit as sk
from sdekit.noise import Noise, philox
from sdekit.noise.source import TOGETHER
from sdekit.solvers import Solver, fixed
from sdekit.solvers.base import NOISE_TYPES


@given(
    rows=st.integers(1, 70),
    event=st.sampled_from([(), (1,), (2,), (1, 2), (3,), (5,)]),
    start=st.sampled_from([0, 1, 2, 3, 7, 2**31, philox.DRAWS - 40]),
    count=st.integers(1, 20),
    base=st.sampled_from([0, 31, 2**32 - 5, 2**40]),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.float16]),
)
def test_normals_are_the_draws_one_by_one(rows, event, start, count, base, dtype):
    noise, like = sk.Philox(5), torch.zeros(rows, *event, dtype=dtype)
    ids = base + torch.arange(rows)
    one_by_one = torch.stack([noise.normal(start + k, like, ids) for k in range(count)])
    together = noise.normals(start, count, like, ids)
    assert torch.equal(together, one_by_one)
    assert together.dtype == dtype


def test_only_small_events_of_batches_that_fit_go_together():
    cheaper = sk.Philox(0).cheaper_together
    assert cheaper(torch.zeros(5, 1))
    assert cheaper(torch.zeros(5, 2, dtype=torch.float64))
    assert not cheaper(torch.zeros(5, 3))
    assert not cheaper(torch.zeros(5, 1, dtype=torch.bfloat16))
    assert not cheaper(torch.empty(TOGETHER + 1, 1))


def test_draws_out_of_range_are_refused():
    like, ids = torch.zeros(2, 1), torch.arange(2)
    with pytest.raises(ValueError, match="draw must be in"):
        sk.Philox(0).normals(philox.DRAWS - 1, 2, like, ids)
    with pytest.raises(ValueError, match="count must be a whole number"):
        sk.Philox(0).normals(0, 0, like, ids)


class OneByOne(Noise):
    """Philox without `normals`."""

    def normal(self, draw, like, ids):
        return sk.Philox(9).normal(draw, like, ids)


class Areas(Solver):
    """A step that adds W, H and K with weights of their own: not a method, a probe."""

    name, kind, reference = "areas", "sde", ""
    noise_types, sde_types = NOISE_TYPES, ("ito",)

    def __init__(self, normals):
        self.normals = normals

    def step(self, system, x, interval, carry):
        known = [a for a in (interval.W, interval.H, interval.K) if a is not None]
        return x + sum((j + 1) * a for j, a in enumerate(known)), ()


@pytest.mark.parametrize("normals", [1, 2, 3])
@pytest.mark.parametrize("shape", [(5, 1), (5, 2), (3,), (5, 4)])
def test_runs_take_the_same_bits_however_they_draw(monkeypatch, normals, shape):
    monkeypatch.setattr(fixed, "AHEAD", 50)  # several refills within the run
    x0 = torch.ones(*shape, dtype=torch.float64)
    span = torch.tensor([0.0, 0.1, 0.15, 0.6, 0.7, 1.0, 1.1, 1.3, 1.35, 1.6, 2.0], dtype=torch.float64)
    ahead = sk.solve(sk.BrownianMotion(), x0, span, solver=Areas(normals), noise=sk.Philox(9))
    plain = sk.solve(sk.BrownianMotion(), x0, span, solver=Areas(normals), noise=OneByOne())
    assert torch.equal(ahead.x, plain.x)
