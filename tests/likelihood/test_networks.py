"""Densities of networks as people have them: float32 weights, numpy's float64 data, rows that end apart."""

import numpy as np
import pytest
import torch
from torch import nn

import sdekit as sk
from sdekit.likelihood import bits_per_dimension, elbo


class Bumps(nn.Module):
    """A smooth prediction of eps, of different difficulty in different places."""

    def __init__(self, dtype=torch.float32):
        super().__init__()
        self.gain = nn.Parameter(torch.tensor([0.9, 1.1], dtype=dtype))

    def forward(self, x, t):
        assert x.dtype == self.gain.dtype == t.dtype
        return 0.7 * x + 0.2 * torch.sin(3 * self.gain * x)


X = torch.tensor([[0.1, -0.2], [1.0, 0.5], [-2.5, 3.0], [0.0, 4.0]])

LOOSE = {"rtol": 1e-3, "atol": 1e-3, "t_min": 1e-2}


def model(dtype=torch.float32):
    return sk.Denoiser(Bumps(dtype), sk.VP(), predicts="eps", data_std=0.8)


@pytest.mark.parametrize("trace", ["exact", "hutchinson"])
def test_gradients_of_rows_that_end_before_others(trace):
    """A finished row stands still in the batch; its gradient is that of the row alone."""

    def slope(rows, first=0):
        x = X[rows].double().requires_grad_()
        found = sk.log_prob(model(torch.float64), x, trace=trace, probes=2, first_id=first, **LOOSE)
        return torch.autograd.grad(found.value.sum(), x)[0], found.nfe

    together, calls = slope(slice(None))
    apart = [slope(slice(i, i + 1), i) for i in range(len(X))]
    assert min(nfe for _, nfe in apart) < calls  # some row ends early
    torch.testing.assert_close(together, torch.cat([g for g, _ in apart]), atol=1e-9, rtol=1e-9)


def test_data_and_weights_of_different_dtypes():
    x64 = X.double().numpy()
    single, double = sk.log_prob(model(), X, **LOOSE), sk.log_prob(model(), x64, **LOOSE)
    assert isinstance(x64, np.ndarray)
    torch.testing.assert_close(single.value, double.value, atol=1e-4, rtol=0)
    torch.testing.assert_close(
        sk.log_prob(model(), X.half(), **LOOSE).value,
        sk.log_prob(model(), X.half().float(), **LOOSE).value,
        atol=1e-6,
        rtol=0,
    )
    assert torch.equal(
        sk.log_prob(model(torch.float64), X, **LOOSE).value,
        sk.log_prob(model(torch.float64), X.double(), **LOOSE).value,
    )
    torch.testing.assert_close(
        elbo(model(), x64, strata=4).value, elbo(model(), X, strata=4).value, atol=1e-3, rtol=1e-5
    )


def test_runs_that_do_not_arrive():
    with pytest.raises(
        sk.errors.SolveError, match=r"of 4 of 4 samples did not reach.*Next: .*max_steps > 3\."
    ):
        sk.log_prob(model(), X, max_steps=3)

    class Torn(Bumps):
        def forward(self, x, t):
            return torch.where((x[:, :1] > 3) & (t[:, None] < 1e-2), torch.nan, super().forward(x, t))

    torn = sk.Denoiser(Torn(), sk.VP(), predicts="eps", data_std=0.8)
    x = torch.cat([X, torch.tensor([[9.0, 0.0]])])
    with pytest.raises(sk.errors.NonFiniteError, match=r"of 1 of 5 samples.*row 4.*returns NaN"):
        sk.log_prob(torn, x)


def test_bits_of_lists_and_of_results():
    assert bits_per_dimension([0.0, -64.0], 64).shape == (2,)
    with pytest.raises(TypeError, match=r"got LogProb. Next: .value"):
        bits_per_dimension(sk.log_prob(model(), X, **LOOSE), 2)
