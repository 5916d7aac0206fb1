r"""Weak orders on a nonlinear target: a mixture on the line, where the SDE's drift is not linear.

Runs of k, 2k and 4k steps share their noise: each draw of the coarser run is the sum of two of the finer one,
over sqrt(2). With d_k = E[x^2] at k steps less that at 2k, order 2 makes d_k/d_2k tend to 4 and order 1 to 2.
The start is the exact marginal. A test demands d_k > 2.6 d_2k, and a standard error of the difference
below a third of it: a sampler of order 2 then fails the first at a fresh seed with probability below 1e-3.
Seeds are fixed. Samplers of order 1 fail by many standard errors.
"""

from __future__ import annotations

import math

import pytest
import torch

import sdekit as sk
from tests.samplers.problems import smooth_times

WEIGHTS = torch.tensor([0.35, 0.65], dtype=torch.float64)
MEANS = torch.tensor([-1.0, 0.8], dtype=torch.float64)
VARIANCES = torch.tensor([0.15, 0.3], dtype=torch.float64)
ROWS = 50_000


def denoiser(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """E[x0 | x] of the mixture under VE, (B, 1), by the posterior of the second component."""
    total = VARIANCES + sk.VE().sigma(t[0].double()) ** 2
    gaps = x - MEANS
    logits = torch.log(WEIGHTS) - 0.5 * torch.log(total) - 0.5 * gaps**2 / total
    second = torch.sigmoid(logits[:, 1:] - logits[:, :1])
    means = MEANS + VARIANCES / total * gaps
    return (1 - second) * means[:, :1] + second * means[:, 1:]


def differences(sampler, k: int, blocks: int) -> tuple[float, float]:
    """(mean, standard error) of d_k - 2.6 d_2k, turned so that d_k is positive."""
    process = sk.VE()
    model = sk.Denoiser(denoiser, process, predicts="x0", data_std=1.0)
    counts = (k, 2 * k, 4 * k)
    plans = [sk.plan(sampler, process, grid=smooth_times(process, n, -1.5, 1.5)) for n in counts]
    assert all(len(plan.draws) == max(plan.draws) + 1 == n for plan, n in zip(plans, counts, strict=True))
    sigma = process.sigma(smooth_times(process, 2, -1.5, 1.5)[0])
    coarse, fine = [], []
    for seed in range(blocks):
        g = torch.Generator().manual_seed(seed)
        second = (torch.rand(ROWS, generator=g, dtype=torch.float64) < WEIGHTS[1]).long()
        clean, noise, *_ = torch.randn(2, ROWS, generator=g, dtype=torch.float64)
        start = (MEANS[second] + VARIANCES[second].sqrt() * clean + sigma * noise)[:, None]
        draws = torch.randn(4 * k, ROWS, 1, generator=g, dtype=torch.float64)
        squares = []
        for n, plan in zip(counts, plans, strict=True):
            summed = draws.reshape(n, -1, ROWS, 1).sum(1) / math.sqrt(4 * k / n)
            x = sk.sample(model, (ROWS, 1), sampler=plan, x_init=start, noise=sk.Recorded(summed)).x
            squares.append(x[:, 0] ** 2)
        coarse.append(squares[0] - squares[1])
        fine.append(squares[1] - squares[2])
    first, last = torch.cat(coarse), torch.cat(fine)
    gap = torch.sign(first.mean()) * (first - 2.6 * last)
    return float(gap.mean()), float(gap.std() / math.sqrt(len(gap)))


@pytest.mark.parametrize(
    ("sampler", "k", "blocks"),
    [
        (sk.samplers.KDPM2Ancestral(), 20, 1),
        (sk.samplers.DPMpp2S(eta=1.0), 20, 2),
        (sk.samplers.ERSDE(nodes=2), 20, 1),
        (sk.samplers.SASolver(predictor=1, corrector=2), 20, 1),
        pytest.param(sk.samplers.SDEDPMpp2M(), 20, 60, marks=pytest.mark.slow),
        pytest.param(sk.samplers.SDEDPMpp3M(), 20, 4, marks=pytest.mark.slow),
        pytest.param(sk.samplers.SASolver(), 20, 40, marks=pytest.mark.slow),
        pytest.param(sk.samplers.EDMStochastic(s_churn=20.0), 40, 10, marks=pytest.mark.slow),
        pytest.param(sk.samplers.GaussianSplit(eta=1.0), 20, 30, marks=pytest.mark.slow),
    ],
    ids=repr,
)
def test_weak_order_two_on_a_mixture(sampler, k, blocks):
    gap, error = differences(sampler, k, blocks)
    assert sampler.order == 2
    assert gap > 0.0
    assert error < gap / 3, "too few samples for the stated rate"


@pytest.mark.parametrize("sampler", [sk.samplers.DDPM(), sk.samplers.ERSDE(nodes=1)], ids=repr)
def test_a_sampler_of_order_one_fails(sampler):
    gap, error = differences(sampler, 20, 1)
    assert sampler.order == 1
    assert gap < -3.1 * error
