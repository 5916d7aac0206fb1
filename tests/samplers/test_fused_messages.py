"""Networks that cannot take the state: the same words whatever the back end."""

from __future__ import annotations

import pytest
import torch

import sdekit as sk
from sdekit.errors import CapabilityError, ShapeError


def model():
    net = torch.nn.Linear(4, 4)

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net

        def forward(self, x, t):
            return self.net(x)

    return sk.Denoiser(Net(), sk.VP(), predicts="eps", data_std=1.0)


@pytest.mark.parametrize("backend", ["auto", "eager", "numba"])
def test_weights_of_another_dtype_are_named(backend):
    with pytest.raises(ShapeError, match="float32 weights and failed on x of dtype torch.float64"):
        sk.sample(model(), (3, 4), sampler="ddim", steps=2, dtype=torch.float64, backend=backend)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a card")
@pytest.mark.parametrize("options", [{}, {"compile": True}, {"batch_size": "auto"}])
def test_a_card_that_is_not_there_is_named(options):
    with pytest.raises(CapabilityError, match="device='cuda', and torch finds no CUDA device"):
        sk.sample(model(), (3, 4), sampler="ddim", steps=2, device="cuda", **options)
