"""Grids at their extremes: an end at clean data, steps of very different size, times with a gradient."""

from __future__ import annotations

import pytest
import torch

import sdekit as sk
from sdekit._math import table
from sdekit.samplers.registry import SAMPLERS
from tests.samplers.problems import NAMES, PROCESSES, gaussian

#: f, g or Langevin steps have no limit at sigma = 0: refused with an error that says so.
NO_LIMIT = {"annealed-langevin", "pc"}
TO_CLEAN = [name for name in NAMES if name not in NO_LIMIT]


def point(m, process):
    return sk.Denoiser(lambda x, t: m.to(x).expand(x.shape), process, predicts="x0", data_std=1.0)


@pytest.mark.parametrize("process", ["EDM", "VP", "RectifiedFlow"])
@pytest.mark.parametrize("name", TO_CLEAN)
def test_an_explicit_grid_may_end_at_clean_data(name, process):
    """The last step is its limit for sigma' -> 0, of first order: no 0/0, and samples of the data's size
    (noise may leave more on so coarse a grid)."""
    law, target = PROCESSES[process], gaussian(3)
    start = float(law.finite_t_max if process == "RectifiedFlow" else law.t_max)
    inner = law.t_of_rho(torch.tensor([10.0, 3.0, 1.0, 0.3, 0.1], dtype=torch.float64)).tolist()
    x = law.prior((4, 3), seed=1, dtype=torch.float64)
    run = sk.sample(target.denoiser(law), (4, 3), sampler=name, grid=[start, *inner, 0.0], x_init=x)
    assert run.ok
    assert SAMPLERS[name].stochastic or float(run.x.abs().max()) < 20


@pytest.mark.parametrize("name", TO_CLEAN)
def test_a_last_step_to_clean_data_gives_the_denoiser(name):
    m = torch.tensor([0.5, -2.0], dtype=torch.float64)
    if "point" in SAMPLERS[name].exact_for:
        run = sk.sample(
            point(m, sk.EDM()), (3, 2), sampler=name, grid=[80.0, 3.0, 0.5, 0.0], dtype=torch.float64
        )
        torch.testing.assert_close(run.x, m.expand(3, 2), rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "annealed-langevin"])
def test_steps_of_very_different_size_amplify_nothing(name):
    """A long step after steps a million times shorter: histories may not divide by the short ones."""
    lam = [-2.0]
    for h in (0.5, 1e-6, 0.5, 1e-6, 1e-6, 1.0):
        lam.append(lam[-1] + h)
    times = [float(torch.tensor(-v).exp()) for v in lam]
    run = sk.sample(gaussian(3).denoiser(sk.EDM()), (16, 3), sampler=name, grid=times, dtype=torch.float64)
    assert float(run.x.abs().max()) < 30  # a standard deviation of the start is 7


def test_a_gradient_survives_beside_floats():
    a = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    for values in ([1.0, a], [a, 1.0], [[0.5, a], [a, 2.0]]):
        assert table(values).requires_grad


def test_an_explicit_grid_that_would_lose_its_gradient_is_refused():
    times = torch.tensor([1.0, 0.5, 0.1], dtype=torch.float64, requires_grad=True)
    with pytest.raises(ValueError, match="require grad.*detach"):
        sk.plan("ddim", sk.VP(), grid=times)
