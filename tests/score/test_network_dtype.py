"""Mixed precision: the network works in bfloat16 or float16, the state and the times stay as they are."""

from __future__ import annotations

import pytest
import torch

import sdekit as sk
from sdekit.matching import load
from tests.samplers.problems import mixture

X = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))


class Linear(torch.nn.Module):
    """W x + t, and what it was given."""

    def __init__(self, dtype=torch.float32):
        super().__init__()
        weight = torch.randn(4, 4, generator=torch.Generator().manual_seed(1))
        self.weight = torch.nn.Parameter(weight.to(dtype))
        self.seen = []

    def forward(self, x, t):
        self.seen.append((x.dtype, t.dtype, t.clone()))
        return torch.nn.functional.linear(x, self.weight) + t[:, None]


@pytest.mark.parametrize("weights", [torch.float32, torch.bfloat16])
def test_the_network_works_in_its_dtype_and_the_state_keeps_its_own(weights):
    net = Linear(weights)
    model = sk.Denoiser(net, sk.VP(), "eps", time="index", network_dtype=torch.bfloat16)
    eps = model.eps(X, 0.9995)
    ((given, time, t),) = net.seen
    assert (given, time, eps.dtype) == (torch.bfloat16, torch.float32, torch.float32)
    assert torch.equal(t, torch.full((6,), 0.9995).mul(999))  # 998.5: bfloat16 would say 1000
    product = X.bfloat16() @ net.weight.bfloat16().T
    assert torch.equal(eps, product.float() + t[:, None])


def test_one_product_differs_by_its_rounding():
    """x, W and the product are each rounded to 8 bits: 3 roundings of 2^-9, to first order."""
    exact = sk.Denoiser(Linear(), sk.VP(), "eps").eps(X, 0.3)
    mixed = sk.Denoiser(Linear(), sk.VP(), "eps", network_dtype=torch.bfloat16).eps(X, 0.3)
    bound = 3.1 * 2**-9 * (X.abs() @ Linear().weight.abs().T)
    assert not torch.equal(mixed, exact)
    assert bool(((mixed - exact).abs() <= bound).all())


def test_edm_scales_the_input_before_it_is_rounded():
    inputs = []

    def spy(x, t):
        inputs.append(x)
        return x

    sk.Denoiser(spy, sk.EDM(), "edm", data_std=0.5, network_dtype=torch.bfloat16).x0(X, 3.0)
    scale = torch.tensor(1 / (0.5**2 + 9) ** 0.5, dtype=torch.float32)
    assert torch.equal(inputs[0], (X * scale).bfloat16())


def test_a_run_keeps_the_state_in_float32():
    """The mixture's own denoiser stands for the network: only what it returns is rounded to bfloat16."""
    law, process = mixture(), sk.VP()
    exact = law.denoiser(process)
    dtypes = set()

    def net(x, t):
        dtypes.add((x.dtype, t.dtype))
        return exact.x0(x.float(), t).to(x.dtype)

    run = {"shape": (64, 2), "sampler": "dpmpp-2m", "steps": 12}
    full = sk.sample(exact, **run).x
    mixed = sk.sample(sk.Denoiser(net, process, "x0", network_dtype=torch.bfloat16), **run).x
    assert dtypes == {(torch.bfloat16, torch.float32)}
    assert mixed.dtype == torch.float32
    assert 0 < float((mixed - full).abs().median()) < 0.02
    assert len(mixed.unique()) > 120  # a state in bfloat16 would take fewer values


def test_a_network_that_works_in_place_changes_its_copy_alone():
    before = X.clone()
    model = sk.Denoiser(lambda x, t: x.mul_(2), sk.VP(), "x0", network_dtype=torch.bfloat16)
    model.x0(X, 0.5)
    assert torch.equal(X, before)


@pytest.mark.parametrize("dtype", [torch.float64, torch.int32, "bfloat16"])
def test_other_dtypes_are_refused(dtype):
    with pytest.raises(ValueError, match=r"network_dtype must be torch.bfloat16"):
        sk.Denoiser(Linear(), sk.VP(), network_dtype=dtype)


def test_training_keeps_the_option():
    g = torch.Generator().manual_seed(0)
    model = sk.Denoiser(Linear(), sk.VP(), "eps", network_dtype=torch.bfloat16)
    fitted = sk.fit(model, torch.randn(64, 4, generator=g), steps=2, batch_size=16, progress=False)
    assert fitted.model.network_dtype == torch.bfloat16


def test_the_averaged_network_of_a_training_is_the_one_that_is_called(tmp_path):
    x = torch.randn(40, 2, generator=torch.Generator().manual_seed(2))
    model = sk.Denoiser(
        sk.nets.MLP(2, width=8, depth=1, seed=0), sk.VP(), "eps", network_dtype=torch.bfloat16
    )
    options = {"steps": 6, "lr": 0.1, "held_out": 0, "progress": False}
    fitted = sk.fit(model, x, checkpoint=tmp_path / "m.safetensors", **options).model
    again = sk.Denoiser(fitted.net, sk.VP(), "eps", network_dtype=torch.bfloat16)
    loaded = load(tmp_path / "m.safetensors")
    assert loaded.network_dtype == torch.bfloat16
    expected = again.eps(x, 0.3)
    assert torch.equal(fitted.eps(x, 0.3), expected)
    assert torch.equal(loaded.eps(x, 0.3), expected)
    assert not torch.equal(model.eps(x, 0.3), expected)
