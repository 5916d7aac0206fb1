"""Scores written in numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import sdekit as sk
from sdekit.errors import ArgumentOrderError, ShapeError


@pytest.mark.parametrize("state", [torch.float32, torch.float64, torch.bfloat16])
def test_numpy_in_tensor_out(state, device):
    seen = []

    def score(x, t):
        seen.append((type(x), x.dtype, t.shape, t.dtype))
        return -x / (1 + t.reshape(-1, 1))

    fn = sk.numpy_score(score)
    x = torch.ones(3, 2, dtype=state, device=device)
    out = fn(x, torch.full((3,), 1.0, device=device))
    assert (out.dtype, out.device.type) == (state, device.type)
    torch.testing.assert_close(out, -0.5 * x)
    kind = np.float64 if state == torch.float64 else np.float32
    assert seen == [(np.ndarray, kind, (3,), kind)]
    assert fn(x, torch.tensor(1.0, device=device)).shape == x.shape


def test_it_is_a_score_of_a_model_and_of_a_reverse_sde(device):
    process, target = sk.VP(), sk.Gaussian([0.0, 0.0], variance=1.0)
    fn = sk.numpy_score(lambda x, t: -x)  # N(0, I) under VP
    model = sk.Denoiser(fn, process, predicts="score", data_std=1.0)
    run, exact = (
        sk.sample(m, (4, 2), sampler="ddpm", steps=5, dtype=torch.float64, device=device)
        for m in (model, target.denoiser(process))
    )
    torch.testing.assert_close(run.x, exact.x)
    x0 = torch.ones(4, 2, dtype=torch.float64, device=device)
    found, expected = (
        sk.solve(sk.reverse(process, s), x0, (1.0, 0.1), steps=5).x for s in (fn, target.score(process))
    )
    torch.testing.assert_close(found, expected)


def test_what_it_refuses():
    with pytest.raises(ArgumentOrderError, match="Next: swap"):
        sk.numpy_score(lambda t, x: x)
    with pytest.raises(ShapeError, match=r"must return shape \(2, 3\).*got \(2,\)"):
        sk.numpy_score(lambda x, t: x.sum(1))(torch.zeros(2, 3), torch.tensor(0.5))
    with pytest.raises(TypeError, match=r"no gradient.*Next"):
        sk.numpy_score(lambda x, t: x)(torch.zeros(2, 3, requires_grad=True), torch.tensor(0.5))
