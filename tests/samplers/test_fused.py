"""Compiled steps against plain torch: the same bits for every sampler, and nobody's tensor is overwritten."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import sdekit as sk
from sdekit.errors import CapabilityError, ShapeError
from sdekit.noise import Noise
from sdekit.samplers import records as module
from sdekit.samplers.buffers import SPARES, Memory
from sdekit.samplers.execute import execute, prepare
from sdekit.samplers.liveness import is_buffer, layout
from sdekit.samplers.operations import register
from sdekit.samplers.plan import Apply, Combine, Evaluate
from sdekit.samplers.records import bind
from tests.samplers.problems import NAMES

VP = sk.VP()


def network(x, t):
    return torch.tanh(x) * torch.cos(t).reshape(-1, *[1] * (x.ndim - 1))


def model(net=network, predicts="eps", **options):
    return sk.Denoiser(net, VP, predicts=predicts, data_std=0.7, **options)


def both(plan, given, shape, dtype=torch.float32, noise=None, first_id=3):
    """(eager, numba), each with every state."""
    program = prepare(plan, given.predicts, given.data_std)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype)
    ids = first_id + torch.arange(shape[0])
    found = []
    for backend in ("eager", "numba"):
        with torch.no_grad():
            out, states = execute(
                program,
                given,
                x,
                noise or sk.Philox(1),
                ids,
                saved=range(len(plan.nodes)),
                backend=backend,
            )
            again, _ = execute(
                program, given, x.clone(), noise or sk.Philox(1), ids, backend=backend, donate=True
            )
        assert torch.equal(out, again)
        found.append((out, states))
    return found


def assert_same(pair):
    (a, states_a), (b, states_b) = pair
    assert torch.equal(a, b)
    assert states_a.keys() == states_b.keys()
    assert all(torch.equal(states_a[i], states_b[i]) for i in states_a)


@cache
def made(name, predicts, end="t_min", steps=4):
    finite = not model(predicts=predicts).defined_at_pure_noise
    return sk.plan(name, VP, steps=steps, end=end, data_std=0.7, predicts=predicts, finite=finite)


CASES = {
    "kind": st.sampled_from(
        [("x0", "t"), ("eps", "sigma"), ("v", "index"), ("score", "t"), ("edm", "t"), ("eps", torch.sqrt)]
    ),
    "end": st.sampled_from(["t_min", "clean"]),
    "shape": st.sampled_from([(1, 16), (3, 2), (2, 150), (5, 3, 7), (4, 1)]),
    "dtype": st.sampled_from([torch.float32, torch.float64]),
}


def check_bits(name, kind, end, shape, dtype):
    predicts, time = kind
    assert_same(both(made(name, predicts, end), model(predicts=predicts, time=time), shape, dtype))


@pytest.mark.parametrize("name", NAMES)
@given(**CASES)
@settings(max_examples=6)
def test_every_sampler_gives_the_bits_of_plain_torch(name, kind, end, shape, dtype):
    check_bits(name, kind, end, shape, dtype)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
@given(**CASES)
@settings(max_examples=100)
def test_every_sampler_gives_the_bits_of_plain_torch_everywhere(name, kind, end, shape, dtype):
    check_bits(name, kind, end, shape, dtype)


@pytest.mark.parametrize("name", ["euler-maruyama", "seeds", "restart", "pc", "sde-dpmpp-2m"])
@pytest.mark.parametrize("kind", ["recorded", "own", "tree"])
def test_noise_that_is_not_philox(name, kind):
    class Own(Noise):
        def normal(self, draw, like, ids):
            return sk.Philox(7).normal(draw, like, ids).flip(1).contiguous().flip(1)

    plan = made(name, "eps")
    shape = (4, 6)
    like = torch.empty(9, 6)
    draws = [sk.Philox(2).normal(k, like, torch.arange(9)) for k in range(1 + max(plan.draws))]
    noise = {"recorded": sk.Recorded(draws), "own": Own(), "tree": sk.BrownianTree(3)}[kind]
    assert_same(both(plan, model(), shape, noise=noise))


# -- whose memory it is ---------------------------------------------------------------------------------


def sampled(net, backend, **options):
    return sk.sample(model(net), (3, 5), sampler="sde-dpmpp-2m", steps=6, backend=backend, **options)


def test_a_network_that_keeps_its_input_keeps_what_it_was_given():
    expected = sampled(network, "eager", save="all").xs
    for keep in (
        lambda x: x,
        lambda x: x.view(-1),
        lambda x: x[1:],
        lambda x: x.detach(),
        lambda x: x.numpy(),
    ):
        kept = []

        def net(x, t, keep=keep, kept=kept):
            kept.append(keep(x))
            return network(x, t)

        assert torch.equal(sampled(net, "numba").x, expected[-1])
        assert len(kept) == 6
        for i, value in enumerate(kept):
            assert torch.equal(
                torch.as_tensor(value), keep(expected[i]) if torch.is_tensor(value) else expected[i]
            )


@pytest.mark.parametrize(
    "net",
    [
        lambda x, t: x,
        lambda x, t: x.view(x.shape),
        lambda x, t: x.detach(),
        lambda x, t: x.flip(1),
        lambda x, t: x[:, :1].expand(x.shape),
        lambda x, t: x.T.contiguous().T,
        lambda x, t: x.double(),
        lambda x, t: torch.nn.Parameter(x.clone()),
        lambda x, t: torch.complex(x, x * 0 + 1).conj().imag,
    ],
    ids=[
        "its input",
        "a view",
        "detached",
        "flipped",
        "expanded",
        "transposed",
        "double",
        "parameter",
        "negated",
    ],
)
def test_what_a_network_may_return(net):
    assert torch.equal(sampled(net, "numba").x, sampled(net, "eager").x)


@pytest.mark.parametrize("copies", [1, 2, 3, 4])
@pytest.mark.parametrize("predicts", ["eps", "edm"])
def test_however_often_a_network_keeps_its_input(copies, predicts):
    kept = []

    def net(x, t):
        kept.append(([x] * copies, x.clone()))
        return x

    sk.sample(model(net, predicts), (3, 5), sampler="ddim", steps=6, backend="numba")
    assert len(kept) == 6
    assert all(torch.equal(x, expected) for (x, *_), expected in kept)


def test_a_storage_that_is_kept():
    kept = []

    def net(x, t):
        kept.append((x.untyped_storage(), x.clone()))
        return network(x, t)

    sampled(net, "numba")
    for storage, expected in kept:
        assert torch.equal(torch.empty(0).set_(storage, 0, (3, 5)), expected)


def tagged(x, t):
    x.times = getattr(x, "times", 0) + 1
    return x.times * network(x, t)


def with_gradient(x, t):
    with torch.enable_grad():
        torch.sin(x.requires_grad_()).sum().backward()
    return x.grad


def elsewhere(x, t):
    x.data = x.data * 0.9
    return network(x, t)


def elsewhere_transposed(x, t):
    x.data = (x.data.T * 0.9).contiguous().T
    return network(x, t)


@pytest.mark.parametrize("predicts", ["eps", "edm"])
@pytest.mark.parametrize("alter", [tagged, with_gradient, elsewhere, elsewhere_transposed])
def test_a_state_that_is_made_another_tensor_is_not_used_again(alter, predicts):
    """What is done to the tensor at one step must not be there at the next."""

    def watched(step, t, x):
        alter(x, torch.zeros(()))

    for sampler in ("sde-dpmpp-2m", "pndm", "ddim"):
        options = {"sampler": sampler, "steps": 6, "save": "all"}
        # A callback must not change numbers: those of x.data = ... would come too late for "edm".
        also = [(network, watched)] if predicts == "eps" else []
        for net, callback in ((alter, None), *also):
            found, expected = (
                sk.sample(model(net, predicts), (3, 5), backend=name, callback=callback, **options)
                for name in ("numba", "eager")
            )
            assert torch.equal(found.x, expected.x)
            assert torch.equal(found.xs, expected.xs)


@pytest.mark.parametrize("predicts", ["eps", "edm"])
def test_a_callback_gets_a_new_tensor_after_it_altered_one(predicts):
    seen = []

    def callback(step, t, x):
        x.times = getattr(x, "times", 0) + 1
        seen.append(x.times)

    sk.sample(model(predicts=predicts), (3, 5), sampler="ddim", steps=6, backend="numba", callback=callback)
    assert seen == [1] * 6


def test_a_network_that_writes_to_what_it_returned():
    place = torch.empty(3, 5)

    def net(x, t):
        return place.copy_(network(x, t))

    def rows(x, t):
        row = next(numbers)
        table[row] = network(x, t)
        return table[row]

    def in_turn(x, t):
        return pair[next(numbers) % 2].copy_(network(x, t))

    for backend in ("eager", "numba"):
        with pytest.raises(ValueError, match=r"net wrote to a tensor that it returned.*Next.*clone\(\)"):
            sk.sample(model(net), (3, 5), sampler="pndm", steps=6, backend=backend)
        table, pair, numbers = torch.empty(60, 3, 5), [torch.empty(3, 5) for _ in range(2)], iter(range(60))
        for other, sampler, predicts in (
            (net, "ddim", "eps"),
            (lambda x, t: place, "pndm", "eps"),
            (rows, "pndm", "eps"),  # rows of one table are tensors of their own
            (in_turn, "dpmpp-2m", "x0"),  # what is written to is no longer needed
        ):
            sk.sample(model(other, predicts), (3, 5), sampler=sampler, steps=6, backend=backend)


def test_a_callback_keeps_what_it_saw():
    expected = sampled(network, "eager", save="all")
    seen = []
    out = sampled(network, "numba", callback=lambda i, t, x: seen.append(x), save="all")
    assert all(torch.equal(x, expected.xs[i + 1]) for i, x in enumerate(seen))
    assert torch.equal(out.xs, expected.xs)


def test_the_initial_state_of_the_caller_is_left_alone():
    x = torch.randn(3, 5)
    before = x.clone()
    for batch_size in (None, 2):
        sampled(network, "numba", x_init=x, batch_size=batch_size)
        assert torch.equal(x, before)


def test_results_of_two_runs_do_not_share_memory():
    first = sampled(network, "numba").x
    copy = first.clone()
    sampled(network, "numba", seed=1)
    assert torch.equal(first, copy)


@pytest.mark.parametrize("name", NAMES)
def test_no_buffer_is_made_in_the_loop_but_those_of_the_layout(name, monkeypatch):
    """Networks that return their own tensors: each buffer of the layout is made once, 40 steps or 4."""
    counts = {}
    for steps in (20, 40):
        renewed = []
        own = Memory.renew

        def renew(self, place, own=own, renewed=renewed):
            renewed.append(place)
            own(self, place)

        plan = made(name, "eps", steps=steps)
        program = prepare(plan, "eps", 0.7)
        x, ids = torch.randn(2, 3), torch.arange(2)
        with monkeypatch.context() as patch, torch.no_grad():
            patch.setattr(Memory, "renew", renew)
            execute(program, model(), x, sk.Philox(0), ids, backend="numba", donate=True)
        assert len(renewed) == len(set(renewed))
        assert 0 not in renewed
        counts[steps] = bind(program, model(), True, x).layout.buffers
        assert len(renewed) < counts[steps]
    assert counts[20] == counts[40]
    if name in ("ddim", "euler-maruyama", "euler", "ddpm"):
        assert counts[40] == 1  # the state alone, in place


def test_a_network_that_returns_its_input_costs_no_buffer(monkeypatch):
    renewed = []
    monkeypatch.setattr(Memory, "renew", lambda self, place: renewed.append(place))
    sk.sample(model(lambda x, t: x), (2, 3), sampler="ddim", steps=9, backend="numba")
    assert not renewed


def test_buffers_that_others_hold_are_forgotten_in_time(monkeypatch):
    seen, kept = [], []
    own = Memory.renew
    monkeypatch.setattr(
        Memory, "renew", lambda self, place: (own(self, place), seen.append(len(self.spares)))
    )
    net = lambda x, t: (kept.append(x), network(x, t))[1]  # noqa: E731
    sk.sample(model(net), (2, 3), sampler="ddim", steps=30, backend="numba")
    assert len(seen) == 30
    assert max(seen) == SPARES


def test_threads_and_runs_within_runs():
    """The tables of a program are shared; memory is not."""
    plan = made("sde-dpmpp-2m", "eps", steps=5)
    outer = model(lambda x, t: network(x, t) + 0.1 * inner(x, "numba"))

    def inner(x, backend):
        return sk.sample(model(), tuple(x.shape), sampler=plan, x_init=x, backend=backend).x

    shapes = [(3, n) for n in range(1, module.KEPT + 5)]
    expected = {
        shape: sk.sample(
            model(lambda x, t: network(x, t) + 0.1 * inner(x, "eager")), shape, sampler=plan, backend="eager"
        ).x
        for shape in shapes
    }

    def work(shape):
        return all(
            torch.equal(sk.sample(outer, shape, sampler=plan, backend="numba").x, expected[shape])
            for _ in range(3)
        )

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with ThreadPoolExecutor(4) as pool:
            assert all(pool.map(work, shapes))
    finally:
        sys.setswitchinterval(before)


def test_an_error_in_a_network_leaves_nothing_behind():
    calls = []

    def net(x, t):
        calls.append(None)
        if len(calls) == 4:
            raise RuntimeError("out of luck")
        return network(x, t)

    with pytest.raises(RuntimeError, match="out of luck"):
        sampled(net, "numba")
    assert torch.equal(sampled(net, "numba").x, sampled(network, "eager").x)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("in_pass", [True, False])
def test_every_step_of_a_layout_reads_what_it_should(name, in_pass):
    """Run the layout on names in place of numbers."""
    program = prepare(made(name, "edm", end="clean", steps=7), "edm", 0.7)
    scales = {k: 2.0 for k, line in enumerate(program.lines) if isinstance(line.ins, Evaluate)}
    found = layout(program.lines, program.plan.output, scales=scales, in_pass=in_pass, reused=program.reused)
    holds = {0: "x[0]"}
    passes = 0
    for step in found.steps:
        ins = program.lines[step.line].ins
        assert all(place < found.places for place in (*step.inputs, step.out, step.second))
        drawn = [place for place, _ in step.drawn]
        assert not {holds.get(place) for place in drawn} & set(ins.inputs)
        for place, draw in step.drawn:
            holds[place] = f"xi{draw}"
        read = [holds[place] for place in step.inputs]
        if step.ins is None:
            assert read == [ins.x]
            holds[step.out] = "scaled " + ins.x
        elif isinstance(ins, Evaluate):
            assert read == ["scaled " + ins.x]
            assert not is_buffer(step.out)
            holds[step.out] = ins.out
        elif isinstance(ins, Combine):
            draws = [d for _, d in ins.noise]
            assert read == [*ins.inputs, *(f"xi{d}" for d, _ in zip(draws, drawn, strict=False))]
            assert list(step.draws) == ([] if step.drawn else draws)
            assert step.second < 0 or step.second not in (*step.inputs, step.out)
            assert is_buffer(step.out)
            holds[step.out] = ins.out
            if step.second >= 0:
                passes += 1
                holds[step.second] = "scaled " + ins.out
                assert len(step.weights) == len(read) + len(step.draws) + 1
        else:
            assert read == list(ins.inputs)
            holds[step.out] = ins.out
        for place in step.freed:
            assert not is_buffer(place)
            del holds[place]
    assert holds[found.output] == program.plan.output
    assert passes > 0


# -- what is refused ------------------------------------------------------------------------------------


def test_a_network_that_works_in_place_is_refused():
    with pytest.raises(ValueError, match=r"net changed its input x in place.*Next.*x\.clone\(\)"):
        sampled(lambda x, t: x.mul_(0.5), "numba")
    with torch.inference_mode():
        assert torch.equal(sampled(network, "numba").x, sampled(network, "eager").x)


def test_outputs_that_are_no_state():
    for net, words in (
        (lambda x, t: x[:, :2], "net must return shape"),
        (lambda x, t: x[:1], "net must return shape"),
        (lambda x, t: (x, x), "net must return a tensor"),
        (lambda x, t: x.long(), "net must return a floating tensor"),
        (lambda x, t: x.to("meta"), "net must return a tensor on cpu"),
    ):
        with pytest.raises(ShapeError, match=words):
            sampled(net, "numba")


@register("test-fewer-rows")
def fewer_rows(inputs, params, normal):
    (x,) = inputs
    return x[:1]


def test_an_operation_that_loses_rows_is_seen():
    plan = made("ddim", "eps")
    last = plan.instructions[-1]
    wrong = replace(
        plan,
        instructions=(
            *plan.instructions[:-1],
            replace(last, out="y"),
            Apply(last.out, ("y",), "test-fewer-rows"),
        ),
    )
    with pytest.raises(ShapeError, match="an operation must return shape"):
        sk.sample(model(), (3, 5), sampler=wrong, backend="numba")


def test_back_ends_by_name_say_why_they_cannot_serve():
    x = torch.randn(3, 5, requires_grad=True)
    for options, words in (
        ({"x_init": x}, "gradients are recorded"),
        ({"dtype": torch.bfloat16}, "torch.bfloat16, and numba takes float32 and float64"),
        ({"x_init": torch.randn(5, 3).T}, "strides"),
        ({"parallel": 2}, "a parallel run combines many times"),
    ):
        with pytest.raises(CapabilityError, match=words):
            sampled(network, "numba", **options)
    with pytest.raises(CapabilityError, match="'rk45' runs in `solve`"):
        sk.sample(model(), (2, 2), sampler="rk45", backend="numba")
    assert sampled(network, "auto", x_init=x).x.requires_grad
    assert sampled(network, "auto", dtype=torch.bfloat16).x.dtype == torch.bfloat16


def test_ids_and_draws_are_checked():
    program = prepare(made("euler-maruyama", "eps"), "eps", 0.7)
    x = torch.randn(3, 5)
    with torch.no_grad(), pytest.raises(ShapeError, match="ids must be int64"):
        execute(program, model(), x, sk.Philox(0), torch.arange(2), backend="numba")


def test_more_shapes_than_are_kept():
    """The tables of old shapes are let go, and the run goes on."""
    plan = made("euler-maruyama", "eps")
    program = prepare(plan, "eps", 0.7)
    for n in range(1, module.KEPT + 4):
        assert_same(both(plan, model(), (2, n)))
        assert len(program.bound) <= module.KEPT


# -- transforms -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["ddim", "euler-maruyama", "sde-dpmpp-2m"])
def test_sample_under_vmap_and_grad(name):
    plan = made(name, "eps")

    def f(x):
        return sk.sample(
            model(), tuple(x.shape), sampler=plan, x_init=x, backend="eager", gradient="backprop"
        ).x

    xs = torch.randn(3, 2, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    mapped = torch.func.vmap(f)(xs)
    for x, out in zip(xs, mapped, strict=True):
        torch.testing.assert_close(out, f(x), rtol=0, atol=1e-14)
    own = xs[0].clone().requires_grad_()
    (expected,) = torch.autograd.grad(f(own).square().sum(), own)
    found = torch.func.grad(lambda x: f(x).square().sum())(xs[0])
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-14)


def test_auto_takes_plain_torch_inside_a_transform():
    xs = torch.randn(3, 2, 5)

    def f(x, backend):
        return sk.sample(model(), (2, 5), sampler="ddim", steps=3, x_init=x, backend=backend).x

    assert torch.func.vmap(lambda x: f(x, "auto"))(xs).shape == xs.shape
    with pytest.raises(CapabilityError, match=r"torch\.func transform"):
        torch.func.vmap(lambda x: f(x, "numba"))(xs)
