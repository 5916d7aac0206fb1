"""Optimised grids: the objective against certificates and trajectories, what is gained, what is refused."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch

import sdekit as sk
from sdekit.certify.optimize import _Problem
from sdekit.errors import CapabilityError, NotAffineError, UnknownNameError
from sdekit.samplers.base import Path, Sampler, move
from sdekit.samplers.plan import state
from sdekit.samplers.registry import SAMPLERS
from sdekit.score.predictions import Node
from tests.samplers.problems import PROCESSES, gaussian

FAST = {"iterations": 12}


def law(d=16):
    return sk.Gaussian(torch.zeros(d), variance=1 / torch.arange(1, d + 1, dtype=torch.float64))


def shifted_law():
    return gaussian(4, rotated=True)


@pytest.mark.parametrize("end", ["t_min", "clean"])
@pytest.mark.parametrize("against", ["data", "t_min"])
@pytest.mark.parametrize("name", ["dpmpp-2m", "ancestral"])
def test_the_objective_is_the_certified_w2(name, against, end):
    target, process = shifted_law(), sk.VP()
    problem = _Problem(SAMPLERS[name](), target, process, "w2", against, end, None)
    made = sk.plan(name, process, steps=5, data_std=target.data_std, data_spread=target.data_spread)
    times = torch.tensor(made.times, dtype=torch.float64)
    steps = 5 + (end == "clean")
    exact = sk.certify(name, target, process, steps=steps, grid=times, end=end, against=against).w2
    assert problem.value(times) ** 0.5 == pytest.approx(exact, rel=1e-9)


@pytest.mark.parametrize("end", ["t_min", "clean"])
@pytest.mark.parametrize("process", ["VP", "EDM"])
def test_the_map_error_is_the_mean_square_over_trajectories(process, end):
    """Two starts, mean + and - one standard deviation along every direction, average it exactly."""
    target, diffusion = shifted_law(), PROCESSES[process]
    problem = _Problem(SAMPLERS["ipndm"](), target, diffusion, "map", "data", end, None)
    made = sk.plan("ipndm", diffusion, steps=5 + (end == "clean"), end=end)
    times = torch.tensor(made.times[:6], dtype=torch.float64)
    c, m = target.eigenvalues, target.to_basis(target.mean)

    def marginal(t):
        alpha, sigma = float(diffusion.alpha(t)), float(diffusion.sigma(t))
        return alpha * m, torch.sqrt(alpha**2 * c + sigma**2)

    (first, spread), (last, final) = marginal(float(times[0])), marginal(float(times[-1]))
    if end == "clean":
        last, final = m, float(diffusion.alpha(times[-1])) * c / final
    signs = torch.tensor([[1.0], [-1.0]], dtype=torch.float64)
    starts = target.from_basis(first + signs * spread)
    ends = target.from_basis(last + signs * final)
    x = sk.sample(target.denoiser(diffusion), tuple(starts.shape), sampler=made, x_init=starts).x
    expected = (x - ends).square().flatten(1).sum(1).mean()
    assert problem.value(times) == pytest.approx(float(expected), rel=1e-7)


@pytest.mark.parametrize(("name", "factor"), [("dpmpp-2m", 5), ("ipndm", 5), ("ancestral", 1.2)])
def test_w2_at_five_evaluations(name, factor):
    """Against the best of the named grids: by more than five for multistep samplers."""
    target, process = law(), sk.VP()
    grid = sk.optimize_grid(name, target, process, steps=5, against="t_min")
    found = sk.certify(name, target, process, grid=grid, against="t_min").w2
    named = [
        sk.certify(name, target, process, steps=5, grid=g, against="t_min").w2
        for g in (None, "quantile", "karras", "uniform-lambda")
    ]
    assert found < min(named) / factor
    assert grid.intervals == 5
    assert grid.values[0] == process.t_max
    assert grid.values[-1] == process.t_min


@pytest.mark.parametrize("process", ["VP", "VE", "RectifiedFlow"])
@pytest.mark.parametrize(
    "name",
    ["ddim", "heun", "unipc-2", "kernel-quadrature", "gaussian-split", "euler-maruyama", "sde-dpmpp-2m"],
)
def test_never_worse_than_any_named_grid(name, process):
    target, diffusion = law(6), PROCESSES[process]
    grid = sk.optimize_grid(name, target, diffusion, steps=3, **FAST)
    found = sk.certify(name, target, diffusion, grid=grid).w2
    for named in (None, "quantile", "karras", "uniform-lambda"):
        assert found <= sk.certify(name, target, diffusion, steps=3, grid=named).w2 * (1 + 1e-9)


@pytest.mark.parametrize("process", ["Cosine", "RectifiedFlow"])
def test_noise_from_pure_noise_has_gradients(process):
    """alpha = 0 at the first node: only the inner nodes move, and they do."""
    target, diffusion = law(6), PROCESSES[process]
    options = {"steps": 4, "eta": 1.0, "against": "t_min"}
    grid = sk.optimize_grid("ddim", target, diffusion, **options, iterations=40)
    before = sk.certify("ddim", target, diffusion, steps=4, eta=1.0, grid="quantile", against="t_min").w2
    after = sk.certify("ddim", target, diffusion, grid=grid, eta=1.0, against="t_min").w2
    assert grid.values[0] == diffusion.t_max
    assert after < 0.97 * before


def test_the_transition_from_pure_noise_keeps_nothing():
    """alpha_i = 0: a = 0 and v = sigma_i^2, numbers without a gradient whatever the other node carries."""
    alpha = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    path = Path((Node(1.0, 0.0, 2.0), Node(0.5, alpha, 0.5)))
    assert path.back(0, 1) == (0.0, 4.0)


def test_no_neighbouring_grid_is_better():
    """At the optimum a move of any inner node by 1 % of its gap lowers the error by less than 0.1 %."""
    target, process = law(8), sk.VP()
    grid = sk.optimize_grid("ddim", target, process, steps=4, against="t_min")
    problem = _Problem(SAMPLERS["ddim"](), target, process, "w2", "t_min", "t_min", None)
    times = torch.tensor(grid.values, dtype=torch.float64)
    best = problem.value(times)
    for i in range(1, 4):
        for way in (-0.01, 0.01):
            moved = times.clone()
            moved[i] += way * (times[i - 1] - times[i]).minimum(times[i] - times[i + 1])
            assert problem.value(moved) > best * (1 - 1e-3)


def test_a_spectrum_is_a_law_of_zero_mean():
    values = [4.0, 1.0, 0.25]
    target = sk.Gaussian(torch.zeros(3), variance=torch.tensor(values, dtype=torch.float64))
    options = {"steps": 4, "objective": "map", **FAST}
    by_spectrum = sk.optimize_grid("dpmpp-2m", None, sk.VP(), spectrum=values, **options)
    assert by_spectrum == sk.optimize_grid("dpmpp-2m", target, sk.VP(), **options)
    assert by_spectrum != sk.optimize_grid("dpmpp-2m", None, sk.VP(), spectrum=[1.0], **options)


def test_the_map_objective_lowers_the_discretisation():
    target, process = law(), sk.EDM()
    grid = sk.optimize_grid("dpmpp-3m", target, process, steps=6, objective="map", iterations=60)
    after = sk.certify("dpmpp-3m", target, process, grid=grid).discretization.norm
    before = sk.certify("dpmpp-3m", target, process, steps=6, grid="karras").discretization.norm
    assert after < before / 5


def test_the_clean_node_is_one_of_the_steps():
    grid = sk.optimize_grid("ddim", law(4), sk.VP(), steps=4, end="clean", **FAST)
    assert grid.intervals == 3
    assert sk.plan("ddim", sk.VP(), grid=grid, end="clean").steps == 4


def test_eps_networks_start_where_alpha_is_not_zero():
    process = sk.RectifiedFlow()
    grid = sk.optimize_grid("ddim", law(4), process, steps=3, finite=True, predicts="eps", **FAST)
    assert grid.values[0] == pytest.approx(float(process.finite_t_max))


@dataclass(frozen=True)
class Opaque(Sampler):
    """DDIM whose recipe turns its nodes into floats."""

    name: ClassVar[str] = "opaque"
    order: ClassVar[float] = 1
    reference: ClassVar[str] = "test"

    def recipe(self, path) -> Iterator:
        for i in range(path.steps):
            here, ahead = (type(path[k])(*(float(v) for v in path[k])) for k in (i, i + 1))
            yield path.evaluate(f"D[{i}]", state(i), here)
            yield move(here, ahead, state(i), f"D[{i}]", state(i + 1))


@pytest.mark.parametrize(
    ("sampler", "options", "raised", "words"),
    [
        ("ddim", {"steps": 1}, ValueError, "steps must be a whole number >= 2"),
        ("ddim", {"steps": 2, "end": "clean"}, ValueError, ">= 3"),
        ("ddim", {"steps": 3, "objective": "kl"}, UnknownNameError, "unknown objective 'kl'"),
        ("ddim", {"steps": 3, "against": "prior"}, ValueError, "'data' or 't_min'"),
        ("ddim", {"steps": 3, "end": "t_max"}, ValueError, "ends at data"),
        ("ddim", {"steps": 3, "spectrum": [1.0, 0.0]}, ValueError, "eigenvalues > 0"),
        ("ancestral", {"steps": 3, "objective": "map"}, CapabilityError, "injects noise"),
        ("pc", {"steps": 3}, NotAffineError, "not affine"),
        (Opaque(), {"steps": 3}, CapabilityError, "no gradient passes through the recipe of 'opaque'"),
    ],
)
def test_what_does_not_fit_is_refused(sampler, options, raised, words):
    with pytest.raises(raised, match=words):
        sk.optimize_grid(sampler, law(3), sk.VP(), **options)


def test_a_mixture_has_no_exact_error():
    mixture = sk.GaussianMixture([0.5, 0.5], [[-1.0], [1.0]], 0.1)
    with pytest.raises(TypeError, match="needs a Gaussian target, got GaussianMixture"):
        sk.optimize_grid("ddim", mixture, sk.VP(), steps=3)
