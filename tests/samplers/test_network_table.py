"""What the loop tabulates of a network: its times, its inputs, and whether a step is one call of it."""

from __future__ import annotations

import pytest
import torch

import sdekit as sk
from sdekit.samplers.execute import execute, prepare
from sdekit.samplers.network import direct
from sdekit.samplers.plan import Evaluate
from sdekit.score.predictions import Node
from tests.samplers.problems import PROCESSES, ddpm_table

VP = sk.VP()


def network(x, t):
    return torch.tanh(x) * torch.cos(t).reshape(-1, *[1] * (x.ndim - 1))


KINDS = [("VP", "eps", "t"), ("VP", "v", "index"), ("VP", "eps", torch.sqrt), ("VP", "edm", "t")]
KINDS += [("DiscreteVP", "eps", "index"), ("EDM", "x0", "sigma"), ("SubVP", "edm", "t")]


@pytest.mark.parametrize(("process", "predicts", "time"), KINDS)
def test_a_network_sees_the_same_from_both_loops(process, predicts, time):
    seen = {"eager": [], "numba": []}
    for backend, calls in seen.items():

        def net(x, t, calls=calls):
            calls.append((x.clone(), t.clone()))
            return network(x, t)

        model = sk.Denoiser(net, PROCESSES[process], predicts=predicts, time=time, data_std=0.7)
        sk.sample(model, (3, 5), sampler="dpmpp-2m", steps=5, backend=backend, seed=4)
    assert len(seen["eager"]) == len(seen["numba"]) == 5
    for (x, t), (y, s) in zip(seen["eager"], seen["numba"], strict=True):
        assert torch.equal(x, y)
        assert torch.equal(t, s)


def test_positions_in_a_table_count_from_zero():
    times = []
    model = sk.Denoiser(lambda x, t: times.append(float(t[0])) or x, ddpm_table(), time="index", data_std=1.0)
    sk.sample(model, (2, 3), sampler="ddim", steps=4, backend="numba")
    assert times[0] == 999.0
    assert min(times) >= 0.0


NODE = Node(0.5, float(VP.alpha(0.5)), float(VP.sigma(0.5)), float(VP.dalpha(0.5)), float(VP.dsigma(0.5)))


def evaluation(predicts, data_std=None):
    return [Evaluate("y", "x[0]", 0.5, predicts, NODE, data_std)]


def test_what_is_one_call_of_the_network():
    plain, edm = (sk.Denoiser(network, VP, predicts=p, data_std=0.7) for p in ("eps", "edm"))
    assert direct(plain, evaluation("eps"))
    assert direct(edm, evaluation("F", 0.7))
    assert not direct(plain, evaluation("x0"))
    assert not direct(edm, evaluation("F", 0.5))  # F of another data_std is another number


@pytest.mark.parametrize("method", ["evaluate", "native"])
def test_a_class_with_its_own_way_is_asked(method):
    class Own(sk.Denoiser):
        pass

    setattr(Own, method, lambda self, *args: 2 * getattr(super(Own, self), method)(*args))
    own = Own(network, VP, predicts="eps", data_std=0.7)
    assert not direct(own, evaluation("eps"))
    run = {"sampler": "ddim", "steps": 4, "seed": 1}
    found, expected = (sk.sample(own, (3, 5), backend=name, **run).x for name in ("numba", "eager"))
    assert torch.equal(found, expected)
    assert not torch.equal(found, sk.sample(sk.Denoiser(network, VP, data_std=0.7), (3, 5), **run).x)


# -- what compiled steps depend on: none of it may be of an earlier run -----------------------------------


def same(program, model, noise):
    ids, x = torch.arange(3), torch.linspace(-1, 1, 15).reshape(3, 5)
    with torch.no_grad():
        found, expected = (
            execute(program, model, x, noise, ids, backend=name)[0] for name in ("numba", "eager")
        )
    return torch.equal(found, expected)


class Negated(sk.Philox):
    def normal(self, draw, like, ids):
        return -super().normal(draw, like, ids)


def test_noise_that_is_made_in_the_pass_and_noise_that_is_not():
    program = prepare(sk.plan("euler-maruyama", VP, steps=4), "eps", 0.7)
    model = sk.Denoiser(network, VP, data_std=0.7)
    draws = [sk.Philox(9).normal(k, torch.empty(3, 5), torch.arange(3)) for k in range(4)]
    for noise in (sk.Philox(1), sk.Recorded(draws), Negated(1), sk.Philox(2)):
        assert same(program, model, noise)


def test_networks_whose_input_is_scaled_and_those_that_scale_it_themselves():
    class Own(sk.Denoiser):
        def evaluate(self, *args):
            return super().evaluate(*args)

    program = prepare(sk.plan("dpmpp-2m", VP, steps=4), "F", 0.7)
    for kind in (sk.Denoiser, Own, sk.Denoiser):
        assert same(program, kind(network, VP, predicts="edm", data_std=0.7), sk.Philox(1))


@pytest.mark.parametrize("backend", ["eager", "numba"])
def test_an_output_with_a_pending_sign(backend):
    """The imaginary part of a conjugate is a view whose sign is yet to flip; of one element, contiguous."""

    def net(x, t):
        out = torch.complex(x, x + 1).conj().imag
        assert out.is_neg()
        assert out.is_contiguous()
        return out

    run = {"sampler": "ddim", "steps": 3, "backend": backend, "seed": 2}
    model, plain = (sk.Denoiser(f, VP, data_std=0.7) for f in (net, lambda x, t: -(x + 1)))
    assert torch.equal(sk.sample(model, (1, 1), **run).x, sk.sample(plain, (1, 1), **run).x)
