"""backend="triton" returns the reference's bits, whole runs through; the key may lie in memory."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton")

import sdekit as sk
from sdekit.samplers.execute import execute, prepare
from sdekit.samplers.graphs import DeviceKey
from tests.noise.on_triton import DEVICE, INTERPRETED


def net(x, t):
    return torch.tanh(x) * t.reshape(-1, 1)


@pytest.mark.parametrize("predicts", ["x0", "edm"])
@pytest.mark.parametrize("name", ["dpmpp-2m", "euler-maruyama", "sa-solver", "edm-stochastic"])
def test_a_run_is_the_reference_run(name, predicts):
    model = sk.Denoiser(net, sk.VP(), predicts=predicts, data_std=1.0)
    for dtype in (torch.float32, torch.float64):
        run = {"sampler": name, "steps": 4, "seed": 5, "dtype": dtype, "device": DEVICE, "first_id": 2**33}
        for shape in ((5, 3), (3, 150)):
            got = sk.sample(model, shape, backend="triton", **run).x
            assert torch.equal(got, sk.sample(model, shape, backend="eager", **run).x)


def test_a_key_in_memory_is_the_seed():
    model = sk.Denoiser(net, sk.VP(), predicts="x0", data_std=1.0)
    program = prepare(sk.plan("euler-maruyama", sk.VP(), steps=3), "x0", 1.0)
    x, ids = torch.ones(4, 9, device=DEVICE), torch.arange(4, device=DEVICE)
    noise = DeviceKey(DEVICE)
    with torch.no_grad():
        for seed in (1, 2**64 - 1):
            noise.seed(seed)
            got, _ = execute(program, model, x, noise, ids, backend="triton")
            expected, _ = execute(program, model, x, sk.Philox(seed), ids, backend="eager")
            assert torch.equal(got, expected)


def test_no_noise_goes_through_memory(monkeypatch):
    """Neither Philox nor a key in memory is asked for a tensor of normals."""
    model = sk.Denoiser(net, sk.VP(), predicts="x0", data_std=1.0)
    program = prepare(sk.plan("euler-maruyama", sk.VP(), steps=3), "x0", 1.0)
    x, ids = torch.ones(4, 9, device=DEVICE), torch.arange(4, device=DEVICE)

    def normal(self, *rest):
        raise AssertionError("a tensor of normals was made")

    monkeypatch.setattr(sk.Philox, "normal", normal)
    monkeypatch.setattr(DeviceKey, "normal", normal)
    with torch.no_grad():
        for noise in (sk.Philox(1), DeviceKey(DEVICE)):
            execute(program, model, x, noise, ids, backend="triton")


@pytest.mark.skipif(not INTERPRETED, reason="on a card it is served")
def test_auto_takes_the_card_s_back_end_for_cards_alone():
    from sdekit.kernels import choose

    assert choose("auto", torch.zeros(2, 3)) == "numba"
