"""batch_size="auto": the tile that fits, from a meter that is given in place of a device's."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import sdekit as sk
from sdekit.errors import CapabilityError
from sdekit.samplers.execute import prepare
from sdekit.samplers.memory import USABLE, Meter, automatic_batch, states_held
from tests.samplers.problems import NAMES

MODEL = sk.Denoiser(lambda x, t: torch.tanh(x), sk.VP(), "x0", data_std=1.0)
EVENT = (3, 8)
STATE = 24 * 4
CPU = torch.device("cpu")


def program(sampler="ddim", steps=5):
    return prepare(sk.plan(sampler, sk.VP(), steps=steps), MODEL.predicts, MODEL.data_std)


class Device:
    """A device with ``total`` bytes, on which a network call of r rows takes fixed + each r."""

    def __init__(self, total, fixed=0, each=1000):
        self.total, self.fixed, self.each, self.rows = total, fixed, each, []

    def net(self, x, t):
        self.rows.append(len(x))
        return torch.tanh(x)

    def peak(self, work):
        work()
        return self.fixed + self.each * self.rows[-1]

    def choose(self, n, made=None, saved=0):
        model = sk.Denoiser(self.net, sk.VP(), "x0", data_std=1.0)
        meter = Meter(lambda: self.total, self.peak)
        return automatic_batch(
            model, made or program(), (n, *EVENT), torch.float32, CPU, saved=saved, meter=meter
        )

    def needs(self, rows, n, made, saved=0):
        return self.fixed + rows * (self.each + states_held(made.plan) * STATE) + (1 + saved) * n * STATE


@given(
    total=st.integers(10**5, 10**9),
    fixed=st.integers(0, 10**4),
    each=st.integers(0, 10**5),
    n=st.integers(1, 300),
    saved=st.integers(0, 3),
)
def test_the_tile_is_the_largest_power_of_two_that_fits(total, fixed, each, n, saved):
    made, device = program(), Device(total, fixed, each)
    room = USABLE * total
    if device.needs(1, n, made, saved) > room:
        with pytest.raises(CapabilityError, match="one row does not fit"):
            device.choose(n, made, saved)
        return
    rows = device.choose(n, made, saved)
    if rows is None:
        assert device.needs(n, n, made, saved) <= room * (1 + 1e-12)
        return
    assert rows & (rows - 1) == 0
    assert device.needs(rows, n, made, saved) <= room * (1 + 1e-12)
    assert 2 * rows > n or device.needs(2 * rows, n, made, saved) > room * (1 - 1e-12)


def test_two_small_probes_are_all_it_costs():
    device = Device(10**9)
    device.choose(5000)
    assert device.rows == [8, 8, 16]
    device.rows.clear()
    device.choose(3)
    assert device.rows == [3, 3, 6]


def test_a_little_more_or_less_memory_changes_nothing():
    tiles = {Device(10**6 + k).choose(4000) for k in range(-5000, 5000, 500)}
    assert len(tiles) == 1
    assert Device(2 * 10**6).choose(4000) > min(tiles)


def test_states_of_the_plan_count():
    """Each evaluation of a multistep method that is kept costs a state a row."""
    assert states_held(program("ddim").plan) == 3  # x, the network's output, the next x
    held = [states_held(program(name, 8).plan) for name in ("ddim", "dpmpp-2m", "dpmpp-3m")]
    assert held == sorted(set(held))


@pytest.mark.parametrize("name", NAMES)
def test_states_held_are_those_of_the_executor(name):
    """A run that keeps every register as long as something reads it never holds more."""
    plan = program(name, 4).plan
    alive, most = {plan.instructions[0].inputs[0]}, 1
    for k, ins in enumerate(plan.instructions):
        alive.add(ins.out)
        most = max(most, len(alive))
        later = {name for other in plan.instructions[k + 1 :] for name in other.inputs} | {plan.output}
        alive &= later
    assert states_held(plan) == most


def test_on_a_cpu_all_samples_go_at_once():
    assert automatic_batch(MODEL, program(), (10**6, *EVENT), torch.float32, CPU) is None
    assert Device(10**9).choose(0) is None


def test_a_run_takes_the_tile_that_fits(monkeypatch):
    """`sample` asks for it: tiles of the chosen size go through the network."""
    rows = []

    def net(x, t):
        rows.append(len(x))
        return torch.tanh(x)

    model = sk.Denoiser(net, sk.VP(), "x0", data_std=1.0)
    run = {"sampler": "ddim", "steps": 3, "dtype": torch.float64}
    whole = sk.sample(model, (11, 2), **run).x
    assert torch.equal(sk.sample(model, (11, 2), batch_size="auto", **run).x, whole)
    assert set(rows) == {11}
    rows.clear()
    asked = []

    def chosen(model, program, shape, dtype, device, saved):
        asked.append((tuple(shape), dtype, device.type, saved))
        return 4

    monkeypatch.setattr("sdekit.samplers.launch.automatic_batch", chosen)
    tiled = sk.sample(model, (11, 2), batch_size="auto", save="all", **run)
    assert asked == [((11, 2), torch.float64, "cpu", 4)]
    assert set(rows) == {4}
    torch.testing.assert_close(tiled.x, whole, rtol=1e-13, atol=1e-13)
    with pytest.raises(ValueError, match="batch_size must be a number of rows, 'auto' or None, got 'all'"):
        sk.sample(model, (11, 2), batch_size="all", **run)
