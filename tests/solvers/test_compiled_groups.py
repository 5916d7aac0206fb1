"""Steps that share blocks of Philox: one by one or several in one loop, a path has the same bits."""

from __future__ import annotations

import pytest
import torch

import sdekit as sk

SPAN = (0.0, 1.0)


def turning(x, t):
    """The new second element depends on the old first, which is replaced before it."""
    return -x[1], x[0] - 0.1 * t


SYSTEMS = {
    "four steps": sk.compiled(lambda x, t: -x + t, lambda x, t: 0.5 + 0.1 * x),
    "two steps": sk.compiled(turning, lambda x, t: (0.3, 0.2), dim=2, noise_type="additive"),
    "one step": sk.compiled(
        lambda x, t: (x[1], x[2], -x[0]), lambda x, t: (0.3, 0.2, 0.1), dim=3, noise_type="additive"
    ),
    "a long body": sk.compiled(
        lambda x, t: sum(x * (x - 0.1 * i) for i in range(30)) * -0.01, lambda x, t: 0.2
    ),
}


def run(name, steps, dtype, **options):
    dim = SYSTEMS[name].dim
    x0 = torch.linspace(-1.0, 1.0, 70 * dim, dtype=dtype).reshape(70, dim)
    return sk.solve(SYSTEMS[name], x0, SPAN, steps=steps, seed=3, backend="numba", **options)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", SYSTEMS)
def test_what_is_saved_changes_no_bit(name, dtype):
    for steps in (3, 9):
        nodes = torch.linspace(*SPAN, steps + 1, dtype=torch.float64).tolist()
        every = run(name, steps, dtype, save_at=nodes)
        assert torch.equal(run(name, steps, dtype).x, every.x)
        for node in range(1, steps + 1):
            one = run(name, steps, dtype, save_at=[nodes[node]])
            assert torch.equal(one.xs[0], every.xs[node])
            assert torch.equal(one.x, every.x)


@pytest.mark.parametrize("name", SYSTEMS)
def test_paths_are_those_of_the_torch_back_end(name):
    """In float64, where nine steps of numbers below 10 leave far less than 1e-12."""
    x0 = torch.linspace(-1.0, 1.0, 70 * SYSTEMS[name].dim, dtype=torch.float64)
    x0 = x0.reshape(70, -1)
    eager = sk.solve(SYSTEMS[name], x0, SPAN, steps=9, seed=3, backend="eager").x
    assert float((run(name, 9, torch.float64).x - eager).abs().max()) < 1e-12


@pytest.mark.parametrize("steps", [4, 7])
def test_a_passage_sees_every_node(steps):
    """The statistics with a passage go step by step: their moments are those of the paths without one."""
    system = SYSTEMS["four steps"]
    options = {"paths": 100, "steps": steps, "seed": 5}
    plain = sk.solve(
        system,
        torch.ones(100, 1),
        SPAN,
        steps=steps,
        seed=5,
        save_at=[i / steps for i in range(1, steps + 1)],
    )
    beyond = torch.cat([torch.ones(1, 100, 1), plain.xs]) >= 1.2
    first = torch.where(beyond.any(0), beyond.int().argmax(0), -1)[:, 0]
    found = sk.ensemble(system, torch.ones(1), SPAN, passage=lambda x, t: x - 1.2, **options).passage
    assert torch.equal((steps * found).round(), torch.where(first >= 0, first.double(), torch.inf))
    assert 0 < int((first > 0).sum()) < 100
