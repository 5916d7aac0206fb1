"""A callback of other arguments is named before the network is called."""

from __future__ import annotations

import pytest
import torch

import sdekit as sk


@pytest.mark.parametrize("callback", [lambda x: None, lambda *, step, time, x: None, torch.nn.Linear(2, 2)])
def test_callbacks_of_other_arguments(callback):
    calls = []

    def net(x, t):
        calls.append(1)
        return x

    model = sk.Denoiser(net, sk.VP(), data_std=1.0)
    with pytest.raises(TypeError, match=r"callback\(step, time, x\), and .* cannot be: .*Next: def callback"):
        sk.sample(model, (2, 2), steps=2, callback=callback)
    assert not calls
    seen = []
    sk.sample(model, (2, 2), steps=2, callback=lambda *given: seen.append(len(given)))
    assert seen == [3, 3]
