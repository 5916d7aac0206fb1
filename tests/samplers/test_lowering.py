"""`Plan.lower` takes the fewest passes over memory, and changes no result beyond rounding."""

from __future__ import annotations

import pytest
import torch

import sdekit as sk
from sdekit.noise import Philox
from sdekit.samplers.execute import execute, prepare
from sdekit.samplers.plan import Combine, Evaluate, Plan
from tests.samplers.problems import NAMES

STEPS = 8


def passes(plan):
    """States read and written by the Combines."""
    return sum(len(ins.terms) + 1 for ins in plan.instructions if isinstance(ins, Combine))


def model(predicts):
    return sk.Denoiser(lambda x, t: torch.tanh(x) * 0.7, sk.VP(), predicts=predicts, data_std=1.0)


def as_written(plan, net, x, ids):
    """The plan run with every prediction converted by `Denoiser.evaluate`, nothing folded."""
    registers = {"x[0]": x}
    for ins in plan.instructions:
        if isinstance(ins, Evaluate):
            registers[ins.out] = net.evaluate(ins.predicts, registers[ins.x], ins.node, None, ins.data_std)
        else:
            total = sum(float(w) * registers[name] for w, name in ins.terms)
            total = total + sum(float(c) * Philox(0).normal(draw, x, ids) for c, draw in ins.noise)
            registers[ins.out] = total
    return registers[plan.output]


@pytest.mark.parametrize("predicts", ["eps", "x0", "v", "score", "edm"])
@pytest.mark.parametrize("name", NAMES)
def test_the_result_is_that_of_the_plan_as_written(name, predicts):
    plan = sk.plan(name, sk.VP(), steps=STEPS)
    if not plan.affine:
        pytest.skip("steps that look at the data")
    net = model(predicts)
    x, ids = (
        torch.randn(3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0)),
        torch.arange(3),
    )
    expected = as_written(plan, net, x, ids)
    with torch.no_grad():
        found, _ = execute(prepare(plan, predicts, 1.0), net, x, Philox(0), ids)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("name", "combines", "states"), [("ddim", 1, 3), ("dpmpp-2m", 1, 5), ("sde-dpmpp-2m", 1, 5)]
)
def test_passes_of_a_step(name, combines, states):
    """One Combine a step, that reads x, the prediction and the last of each, and writes x."""
    plan = sk.plan(name, sk.VP(), steps=STEPS).lower("eps")
    found = [ins for ins in plan.instructions if isinstance(ins, Combine)]
    assert len(found) == combines * STEPS
    assert max(len(ins.terms) + 1 for ins in found) == states


@pytest.mark.parametrize("name", NAMES)
def test_never_more_passes_than_forming_each_prediction_once(name):
    plan = sk.plan(name, sk.VP(), steps=STEPS)
    calls = {ins.out for ins in plan.instructions if isinstance(ins, Evaluate)}
    once = passes(plan) + sum(
        3 for ins in plan.instructions if isinstance(ins, Evaluate) and ins.predicts != "eps"
    )
    assert passes(plan.lower("eps")) <= once
    assert sum(isinstance(ins, Evaluate) for ins in plan.lower("eps").instructions) == len(calls)


def test_what_is_not_absorbed():
    """A value that two read, one that is read after the next call, one with noise, a state."""
    node = sk.plan("ddim", sk.VP(), steps=1).instructions[0].node
    call = Evaluate("e", "x[0]", node.t, "eps", node)
    later = Evaluate("f", "b", node.t, "eps", node)

    def lowered(*instructions):
        return Plan(tuple(instructions), (node, node), 1.0).lower("eps").instructions

    single = Combine("a", ((2.0, "x[0]"), (3.0, "e")))
    end = Combine("x[1]", ((5.0, "a"), (7.0, "x[0]")))
    assert lowered(call, single, end) == (call, Combine("x[1]", ((17.0, "x[0]"), (15.0, "e"))))
    twice = Combine("b", ((1.0, "a"), (1.0, "e")))
    kept = (call, single, twice, Combine("x[1]", ((1.0, "a"), (1.0, "b"), (1.0, "e"))))
    assert lowered(*kept)[1] == single
    across = (call, single, Combine("b", ((1.0, "e"),)), later, Combine("x[1]", ((1.0, "a"), (1.0, "f"))))
    assert lowered(*across) == across
    noisy = Combine("a", single.terms, ((1.0, 0),))
    assert lowered(call, noisy, end) == (call, noisy, end)


def held(plan):
    """The most registers that are read again after a call of the network, its input among them."""
    last = {name: k for k, ins in enumerate(plan.instructions) for name in ins.inputs}
    written, most = {"x[0]"}, 0
    for k, ins in enumerate(plan.instructions):
        if isinstance(ins, Evaluate):
            most = max(most, sum(last.get(name, -1) > k or name == ins.x for name in written))
        written.add(ins.out)
    return most


@pytest.mark.parametrize("name", NAMES)
def test_the_network_is_called_with_at_most_one_state_more(name):
    plan = sk.plan(name, sk.VP(), steps=STEPS)
    assert held(plan.lower("eps")) <= held(plan) + 1


@pytest.mark.parametrize("uses", [1, 2, 3])
def test_a_prediction_is_formed_where_that_takes_fewer_passes(uses):
    """Formed: 3 passes and one a use; folded: one a use, and one more for x."""
    node = sk.plan("ddim", sk.VP(), steps=1).instructions[0].node
    call = Evaluate("k", "x[0]", node.t, "x0", node)
    parts = [Combine(f"a{i}", ((1.0 + i, "k"), (2.0, "b"))) for i in range(uses)]
    end = Combine("x[1]", tuple((1.0, part.out) for part in (*parts, *parts[:1])))
    head = Combine("b", ((2.0, "x[0]"),))
    again = Evaluate("c", "b", node.t, "eps", node)  # what is before it is not absorbed
    plan = Plan((head, call, *parts, again, end), (node, node), 1.0).lower("eps")
    formed = [ins for ins in plan.instructions if isinstance(ins, Combine) and ins.out == "k"]
    assert len(formed) == (uses > 2)


def test_states_of_nodes_are_not_absorbed():
    """They may be saved, and followed by a callback."""
    node = sk.plan("ddim", sk.VP(), steps=1).instructions[0].node
    call = Evaluate("e", "x[0]", node.t, "eps", node)
    middle, end = Combine("x[1]", ((2.0, "x[0]"), (1.0, "e"))), Combine("x[2]", ((3.0, "x[1]"),))
    plan = Plan((call, middle, end), (node, node, node), 1.0)
    assert plan.lower("eps").instructions == plan.instructions
