"""Captured runs: a replay follows state, ids and seed, and nothing else differs from the executor.

A tape of torch's operations stands for a CUDA graph: like one it repeats what was recorded on the same
tensors, so that whatever the host decided at the time of recording is repeated too.
"""

from __future__ import annotations

import gc
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import sdekit as sk
from sdekit.errors import CapabilityError
from sdekit.noise import philox
from sdekit.samplers import graphs
from sdekit.samplers.execute import execute, prepare
from tests.samplers.problems import NAMES, STOCHASTIC

VP = sk.VP()
CPU = torch.device("cpu")


class Tape(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten._local_scalar_dense.default:
            raise RuntimeError("operation not permitted when stream is capturing")
        out = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, out))
        return out

    def replay(self):
        for func, args, kwargs, out in self.calls:
            for old, new in zip(tree_leaves(out), tree_leaves(func(*args, **kwargs)), strict=True):
                if isinstance(old, torch.Tensor) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)


def tape(work, device):
    recorded = Tape()
    with recorded:
        out = work()
    return recorded.replay, out


@pytest.fixture(autouse=True)
def seen_by_the_tape(monkeypatch):
    """Square roots by torch, in float64 and rounded: those by numpy would be left out of the recording."""
    monkeypatch.setattr(philox, "_sqrt", lambda x: x.double().sqrt().to(x.dtype))


def net(x, t):
    return torch.tanh(x) * t.reshape(-1, 1)


def setting(name="ddim", steps=4, **options):
    model = sk.Denoiser(net, VP, predicts="x0", data_std=1.0)
    program = prepare(sk.plan(name, VP, steps=steps, **options), model.predicts, model.data_std)
    return model, program


def start(seed, first, rows=5, event=3):
    ids = torch.arange(first, first + rows)
    return sk.Philox(seed).initial(torch.empty(rows, event), ids), ids


def compiled(program, model, x, ids, seed, **options):
    run = graphs.captured(program, model, x, ids, record=tape, backend="eager", **options)
    return run(x, ids, seed)


AFFINE = [name for name in NAMES if sk.plan(name, VP, steps=4).affine]


@pytest.mark.parametrize("name", AFFINE)
def test_a_replay_is_the_run_of_its_own_seed_ids_and_state(name):
    model, program = setting(name)
    with torch.no_grad():
        for seed, first in ((1, 0), (2, 0), (2**64 - 1, 2**40 + 7), (1, 0)):
            x, ids = start(seed, first)
            got, _ = compiled(program, model, x, ids, seed)
            expected, _ = execute(program, model, x, sk.Philox(seed), ids, backend="eager")
            assert torch.equal(got, expected)
    assert len(graphs._graphs[model]) == 1


@pytest.mark.parametrize("name", STOCHASTIC[:3])
def test_every_part_of_a_replay_matters(name):
    """The control: another seed, other ids or another state alone give other samples."""
    model, program = setting(name)
    x, ids = start(1, 0)
    with torch.no_grad():
        base, _ = compiled(program, model, x, ids, 1)
        others = [(x, ids, 2), (x, ids + 2**32, 1), (x + 1, ids, 1)]
        assert all(not torch.equal(compiled(program, model, *other)[0], base) for other in others)


def test_what_a_replay_returns_is_the_callers():
    model, program = setting()
    (x, ids), (y, others) = start(1, 0), start(2, 5)
    with torch.no_grad():
        first, states = compiled(program, model, x, ids, 1, saved=(0, 2, 4))
        before = first.clone(), {i: s.clone() for i, s in states.items()}
        compiled(program, model, y, others, 2, saved=(0, 2, 4))
    assert torch.equal(first, before[0])
    assert all(torch.equal(states[i], before[1][i]) for i in (0, 2, 4))
    assert torch.equal(states[0], x)
    assert torch.equal(states[4], first)


def test_threads_take_turns_at_a_graph():
    model, program = setting()
    (x, ids), (y, others) = start(1, 0), start(2, 5)
    with torch.no_grad():
        expected, _ = execute(program, model, x, sk.Philox(1), ids, backend="eager")
        replaying, graph = (
            threading.Event(),
            graphs.captured(program, model, x, ids, record=tape, backend="eager"),
        )
        own = graph.replay

        def slowly():
            replaying.set()
            time.sleep(0.05)
            own()

        graph.replay = slowly
        with ThreadPoolExecutor(1) as pool:
            first = pool.submit(torch.no_grad()(graph), x, ids, 1)
            replaying.wait()
            graph(y, others, 2)
            assert torch.equal(first.result()[0], expected)


def test_weights_changed_in_place_count():
    weight = torch.ones(3)
    model = sk.Denoiser(lambda x, t: x * weight, VP, predicts="x0", data_std=1.0)
    program = prepare(sk.plan("ddim", VP, steps=3), "x0", 1.0)
    x, ids = start(1, 0)
    with torch.no_grad():
        before, _ = compiled(program, model, x, ids, 1)
        weight.mul_(0.5)
        after, _ = compiled(program, model, x, ids, 1)
        expected, _ = execute(program, model, x, sk.Philox(1), ids, backend="eager")
    assert not torch.equal(after, before)
    assert torch.equal(after, expected)


def test_shapes_have_graphs_of_their_own_and_the_oldest_go():
    model, program = setting()
    with torch.no_grad():
        for rows in (1, 2, 3, 4, 5, 6):
            x, ids = start(0, 0, rows)
            compiled(program, model, x, ids, 0)
    kept = [key[1][0] for key in graphs._graphs[model]]
    assert kept == [3, 4, 5, 6]


def test_graphs_go_with_their_model():
    model, program = setting()
    x, ids = start(0, 0)
    with torch.no_grad():
        compiled(program, model, x, ids, 0)
    gone = weakref.ref(model)
    run = weakref.ref(next(iter(graphs._graphs[model].values())))
    del model
    gc.collect()
    assert gone() is None
    assert run() is None


def test_a_key_in_memory_draws_what_the_seed_does():
    key, noise = graphs.DeviceKey(CPU), sk.Philox(2**63 + 5)
    key.seed(noise.seed)
    like, ids = torch.empty(4, 150), torch.tensor([0, -1, 2**40, 7])
    for draw in (0, 2**32 - 1):
        assert torch.equal(key.normal(draw, like, ids), noise.normal(draw, like, ids))
    assert key.normal(0, torch.empty(0, 3), ids[:0]).shape == (0, 3)


class Custom(sk.TorchNoise):
    pass


@pytest.mark.parametrize(
    ("options", "noise", "device", "cause"),
    [
        ({}, sk.Philox(0), "cpu", r"lives on cpu.*torch.compile\(net\)"),
        ({"keep_graph": True}, sk.Philox(0), "cuda", "gradients"),
        ({"watched": True}, sk.Philox(0), "cuda", "callback or progress"),
        ({"window": 4}, sk.Philox(0), "cuda", "parallel="),
        ({}, sk.TorchNoise(), "cuda", "TorchNoise makes numbers on the host"),
    ],
)
def test_runs_that_no_graph_can_hold_are_refused(options, noise, device, cause):
    _, program = setting("euler-maruyama")
    with pytest.raises(CapabilityError, match=cause):
        graphs.check_capture(program, noise, torch.device(device), **options)


def test_runs_that_a_graph_can_hold_pass():
    graphs.check_capture(setting("euler-maruyama")[1], sk.Philox(0), torch.device("cuda"))
    graphs.check_capture(setting("ddim")[1], sk.TorchNoise(), torch.device("cuda"))


def test_sample_replays_tile_by_tile(monkeypatch):
    """compile=True, with the tape in the place of a graph and the checks for a card."""
    monkeypatch.setattr("sdekit.samplers.launch.check_capture", lambda *args, **options: None)
    monkeypatch.setattr(graphs.captured, "__kwdefaults__", {"saved": (), "record": tape})
    model, _ = setting()
    options = {"sampler": "euler-maruyama", "steps": 4, "batch_size": 4, "backend": "eager", "save": "all"}
    for seed, first_id in ((3, 0), (4, 6), (3, 6)):
        run = {**options, "seed": seed, "first_id": first_id}
        got, expected = sk.sample(model, (9, 3), compile=True, **run), sk.sample(model, (9, 3), **run)
        assert torch.equal(got.x, expected.x)
        assert torch.equal(got.xs, expected.xs)
        assert got.stats.evaluations == expected.stats.evaluations
    assert len(graphs._graphs[model]) == 1
    assert sk.sample(model, (0, 3), compile=True, **options).x.shape == (0, 3)


def test_without_a_card_sample_says_so():
    model, _ = setting()
    with pytest.raises(CapabilityError, match=r"lives on cpu.*torch.compile"):
        sk.sample(model, (2, 3), compile=True)
    with pytest.raises(CapabilityError, match="rk45"):
        sk.sample(model, (2, 3), sampler="rk45", compile=True)


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["ddim", "euler-maruyama"])
def test_a_cuda_graph_is_the_run(name):
    model, program = setting(name)
    device = torch.device("cuda")
    with torch.no_grad():
        for seed in (1, 2):
            x, ids = (part.to(device) for part in start(seed, 3))
            got, _ = graphs.captured(program, model, x, ids)(x, ids, seed)
            expected, _ = execute(program, model, x, sk.Philox(seed), ids)
            assert torch.equal(got, expected)


@pytest.mark.gpu
def test_a_network_that_waits_is_named():
    def waits(x, t):
        return x * float(x.sum() > 0)

    model = sk.Denoiser(waits, VP, predicts="x0", data_std=1.0)
    program = prepare(sk.plan("ddim", VP, steps=2), "x0", 1.0)
    x, ids = (part.cuda() for part in start(0, 0))
    with torch.no_grad(), pytest.raises(CapabilityError, match="reads a number back"):
        graphs.captured(program, model, x, ids)
