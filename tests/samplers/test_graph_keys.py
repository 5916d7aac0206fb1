"""Captured runs are told apart by whatever they record: program, shape, states kept, options."""

from __future__ import annotations

import torch

import sdekit as sk
from sdekit.samplers import graphs
from sdekit.samplers.execute import prepare

VP = sk.VP()


def test_each_kind_of_run_has_its_own_graph():
    model = sk.Denoiser(lambda x, t: torch.tanh(x), VP, predicts="x0", data_std=1.0)
    short, long = (prepare(sk.plan("ddim", VP, steps=steps), "x0", 1.0) for steps in (3, 4))
    x, ids = torch.ones(2, 3), torch.arange(2)

    def run(program, x, ids, **options):
        options = {"backend": "eager", **options}
        return graphs.captured(program, model, x, ids, record=lambda work, device: (None, work()), **options)

    with torch.no_grad():
        first = run(short, x, ids)
        assert run(short, x + 1, ids + 7) is first
        kinds = [
            run(short, x, ids, saved=(0, 2)),
            run(long, x, ids),
            run(short, x.double(), ids),
        ]
        assert len({id(kind) for kind in (first, *kinds)}) == 4
        assert [set(kind.kept) for kind in (first, *kinds)] == [set(), {0, 2}, set(), set()]
        assert run(short, x, ids, backend="numba") is not first
