"""Where registers live: what a layout makes once, what it holds, and what it lets go."""

from __future__ import annotations

import weakref
from collections import Counter

import pytest
import torch

import sdekit as sk
from sdekit.noise import Noise
from sdekit.samplers.execute import execute, prepare
from sdekit.samplers.liveness import layout
from sdekit.samplers.plan import Combine, Evaluate, Plan
from sdekit.score.predictions import Node

VP = sk.VP()
NODES = tuple(
    Node(t, float(VP.alpha(t)), float(VP.sigma(t)), float(VP.dalpha(t)), float(VP.dsigma(t)))
    for t in (1.0, 0.5)
)
TWICE = ["gaussian-split", "sa-solver"]
"""Samplers that read some draws twice."""


def program(name, steps=4, predicts="eps"):
    return prepare(sk.plan(name, VP, steps=steps, data_std=0.7, predicts=predicts), predicts, 0.7)


def laid(made, in_pass=True, scaled=False):
    scales = {k: 2.0 for k, line in enumerate(made.lines) if isinstance(line.ins, Evaluate) and scaled}
    return layout(made.lines, made.plan.output, scales=scales, in_pass=in_pass, reused=made.reused)


@pytest.mark.parametrize("name", TWICE)
def test_a_draw_that_is_read_twice_is_held_and_not_made_in_the_pass(name):
    made = program(name)
    assert made.reused
    for step in laid(made).steps:
        assert made.reused.isdisjoint(step.draws)


@pytest.mark.parametrize("name", ["euler-maruyama", "seeds", "sa-solver"])
def test_noise_in_memory_is_let_go_after_its_step(name):
    steps = laid(program(name), in_pass=False).steps
    assert any(step.drawn for step in steps)
    for step in steps:
        assert {place for place, _ in step.drawn} <= {*step.freed}


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("in_pass", [False, True])
@pytest.mark.parametrize("name", ["ddim", "euler-maruyama", "dpmpp-3m", "heun", "seeds", "sa-solver"])
def test_more_steps_need_no_more_places(name, in_pass, scaled):
    assert len({laid(program(name, steps), in_pass, scaled).places for steps in (8, 16)}) == 1


def test_a_second_output_is_for_the_next_call_alone():
    """y is written before the network is called for z: what y's own call needs is made when it comes."""
    plan = Plan(
        (
            Combine("y", ((2.0, "x[0]"),)),
            Combine("z", ((3.0, "x[0]"),)),
            Evaluate("f", "z", 0.5, "eps", NODES[1]),
            Evaluate("g", "y", 0.5, "eps", NODES[1]),
            Combine("x[1]", ((1.0, "f"), (1.0, "g"))),
        ),
        NODES,
        prior_std=1.0,
    )
    steps = laid(prepare(plan, "eps", 0.7), scaled=True).steps
    kinds = [type(step.ins).__name__ for step in steps]
    assert kinds == ["Combine", "Combine", "Evaluate", "NoneType", "Evaluate", "Combine"]
    assert [step.second >= 0 for step in steps] == [False, True, False, False, False, False]
    assert steps[2].inputs == (steps[1].second,)
    assert steps[4].inputs == (steps[3].out,)


class Counted(Noise):
    """Philox by another name, which remembers what it made as long as anybody holds it."""

    def __init__(self):
        self.asked, self.made = Counter(), weakref.WeakValueDictionary()

    def normal(self, draw, like, ids):
        self.asked[draw] += 1
        self.made[draw] = out = sk.Philox(3).normal(draw, like, ids)
        return out


@pytest.mark.parametrize("backend", ["eager", "numba"])
@pytest.mark.parametrize("name", TWICE)
def test_a_draw_is_made_once_and_held_to_its_last_reader(name, backend):
    held = []
    noise = Counted()

    def net(x, t):
        held.append(set(noise.made))
        return torch.tanh(x)

    made = program(name, 6)
    x = torch.linspace(-1, 1, 6).reshape(2, 3)
    with torch.no_grad():
        execute(made, sk.Denoiser(net, VP, data_std=0.7), x, noise, torch.arange(2), backend=backend)
    assert {*noise.asked.values()} == {1}
    assert len(noise.asked) > 3
    readers = {
        draw: [k for k, line in enumerate(made.lines) if draw in _draws(line.ins)] for draw in noise.asked
    }
    calls = [k for k, line in enumerate(made.lines) if isinstance(line.ins, Evaluate)]
    for k, alive in zip(calls, held, strict=True):
        assert alive == {draw for draw, at in readers.items() if at[0] < k < at[-1]}


def _draws(ins):
    return {draw for _, draw in ins.noise} if isinstance(ins, Combine) else set()
