"""What the loop asks of the machine: only noise that it uses, and never an answer from the device."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import sdekit as sk
from sdekit.certify.exact import propagate
from sdekit.noise import Noise
from sdekit.samplers.execute import execute, prepare
from sdekit.samplers.operations import register
from sdekit.samplers.plan import Apply, Combine, state
from sdekit.samplers.registry import SAMPLERS
from tests.samplers.problems import NAMES, PROCESSES, STOCHASTIC, gaussian, mixture

ENDS = ["t_min", "clean"]


class Counting(Noise):
    """Philox that counts its calls, and moves one draw if asked to."""

    def __init__(self, moved: int | None = None) -> None:
        self.inner, self.moved, self.calls = sk.Philox(0), moved, []

    def initial(self, like, ids):
        return self.inner.initial(like, ids)

    def normal(self, draw, like, ids):
        self.calls.append(draw)
        return self.inner.normal(draw, like, ids) + (0.1 if draw == self.moved else 0.0)


def run(plan, process, noise):
    options = {"noise": noise, "dtype": torch.float64}
    return sk.sample(mixture().denoiser(process), (3, 2), sampler=plan, **options).x


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("name", NAMES)
def test_each_draw_is_made_once_and_matters(name, end):
    """The loop asks for the plan's draws, each once; another value of any one gives other samples.

    A plan that declares itself deterministic asks for none. Metropolis's uniform number matters only where
    it decides: its draw is counted, and left alone.
    """
    for process, steps in (("VP", 5), ("RectifiedFlow", 2)):
        law = PROCESSES[process]
        plan = sk.plan(name, law, steps=steps, end=end)
        honest = Counting()
        expected = run(plan, law, honest)
        assert sorted(honest.calls) == list(plan.draws)
        if process == "VP":
            assert (honest.calls != []) == SAMPLERS[name].stochastic
        decisions = [ins for ins in plan.instructions if isinstance(ins, Apply) and ins.name == "metropolis"]
        for draw in set(plan.draws) - {ins.params["draw"] for ins in decisions}:
            assert not torch.equal(run(plan, law, Counting(moved=draw)), expected), draw


@pytest.mark.parametrize("name", STOCHASTIC)
def test_noise_that_enters_the_output_nowhere_is_seen(name):
    """The control: a draw added to a register that nothing reads."""
    law = PROCESSES["VP"]
    plan = sk.plan(name, law, steps=3)
    spare = max(plan.draws) + 1
    wasted = replace(
        plan, instructions=(*plan.instructions, Combine("spare", ((1.0, state(0)),), ((1.0, spare),)))
    )
    assert torch.equal(run(wasted, law, Counting(moved=spare)), run(wasted, law, Counting()))


# -- host and device ------------------------------------------------------------------------------------


class DeviceOnly(TorchDispatchMode):
    """From the first call of the network on, refuses what waits for the device or for a copy from the host.

    Tensors are on the meta device, which holds no numbers: reading one (item, tolist, bool, .cpu(),
    .numpy(), nonzero) fails by itself. New host tensors are refused where they are copied to it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls, self.looping = 0, False

    def net(self, x, t):
        self.looping = True
        return torch.tanh(x) * t.reshape(-1, *[1] * (x.ndim - 1))

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.calls += 1
        if self.looping and func is torch.ops.aten._to_copy.default:
            assert args[0].device == out.device, f"a copy from {args[0].device} to {out.device} in the loop"
        return out


def on_meta(plan, process, event, **options) -> DeviceOnly:
    """Run ``plan`` in the executor with the network and every state on the meta device."""
    watch = DeviceOnly()
    model = sk.Denoiser(watch.net, process, data_std=1.0, **options)
    program = prepare(plan, model.predicts, model.data_std)
    x, ids = torch.empty(5, *event, device="meta"), torch.arange(5, device="meta")
    with watch:
        out, kept = execute(program, model, x, sk.Philox(0), ids, saved=range(len(plan.nodes)))
    assert out.is_meta
    assert len(kept) == len(plan.nodes)
    assert watch.looping
    return watch


@pytest.mark.parametrize("predicts", ["x0", "eps", "edm"])
@pytest.mark.parametrize("name", NAMES)
def test_the_loop_never_waits_for_the_device(name, predicts):
    for process, time, event in (("VP", "sigma", (3,)), ("DiscreteVP", "index", (2, 1, 4))):
        law = PROCESSES[process]
        plan = sk.plan(name, law, steps=3, end="clean")
        assert on_meta(plan, law, event, predicts=predicts, time=time).calls > 0


@register("test-read-back")
def read_back(inputs, params, normal):
    """x where its first number is positive, as a host would decide."""
    (x,) = inputs
    return x if float(x.flatten()[0]) > 0 else -x


@register("test-mask")
def mask(inputs, params, normal):
    """Rows in an order that the device must report."""
    (x,) = inputs
    return x[x[:, 0].argsort().nonzero().flatten()]


@register("test-upload")
def upload(inputs, params, normal):
    """A number from the host, copied at each step."""
    (x,) = inputs
    return x * torch.tensor(0.5).to(x.device)


@pytest.mark.parametrize("name", ["test-read-back", "test-mask", "test-upload"])
def test_a_loop_that_waits_is_seen(name):
    """The control: operations that read numbers back, or send them over."""
    law = PROCESSES["VP"]
    plan = sk.plan("ddim", law, steps=2)
    last = plan.instructions[-1]
    waits = replace(
        plan, instructions=(*plan.instructions[:-1], replace(last, out="y"), Apply(last.out, ("y",), name))
    )
    with pytest.raises((RuntimeError, NotImplementedError, AssertionError)):
        on_meta(waits, law, (3,), predicts="x0")


@pytest.mark.gpu
@pytest.mark.parametrize("name", NAMES)
def test_the_loop_never_waits_for_a_cuda_device(name):
    """CUDA's own report of synchronising calls, raised from the first evaluation of a second run on."""
    law, armed = PROCESSES["VP"], []

    def net(x, t):
        if armed:
            torch.cuda.set_sync_debug_mode("error")
        return torch.tanh(x)

    model = sk.Denoiser(net, law, predicts="x0", data_std=1.0)
    program = prepare(sk.plan(name, law, steps=4), "x0", 1.0)
    x, ids = torch.randn(5, 3, device="cuda"), torch.arange(5, device="cuda")
    execute(program, model, x, sk.Philox(0), ids)
    armed.append(True)
    try:
        out, _ = execute(program, model, x, sk.Philox(0), ids)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert bool(torch.isfinite(out).all())


def test_the_law_needs_every_draw_of_the_plan():
    """One row of the certificate for each draw, none of them zero."""
    target, law = gaussian(2), PROCESSES["VP"]
    for name in (n for n in STOCHASTIC if sk.plan(n, law, steps=3).affine):
        plan = sk.plan(name, law, steps=3)
        rows = propagate(plan, target.eigenvalues, target.mean)
        assert len(rows) == 2 + len(plan.draws)
        assert bool((rows[2:].abs() > 0).any(dim=1).all()), name
