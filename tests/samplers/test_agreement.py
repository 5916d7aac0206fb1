"""Two ways to the same numbers: plans and `solve`, reductions between samplers, closed forms."""

from __future__ import annotations

import math

import pytest
import torch

import sdekit as sk
from sdekit.samplers.plan import Combine
from tests.samplers.problems import PROCESSES, ddpm_table, gaussian, mixture, smooth_network

#: Equal to rounding: the same algorithm in other arithmetic, a few hundred operations.
ROUNDING = {"rtol": 1e-10, "atol": 1e-10}
GRIDS = ["uniform-t", "karras"]


def nodes(process, grid, steps):
    return sk.plan("euler-maruyama", process, steps=steps, grid=grid).times


def start(process, t, n=6, d=3):
    shape = (n, d)
    return process.prior(shape, seed=8, dtype=torch.float64) * (process.prior_std(t) / process.prior_std())


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize("eta", [1.0, 0.4])
def test_euler_maruyama_is_solve_of_the_reverse_sde(process, grid, eta, device):
    law, target = PROCESSES[process], gaussian(3)
    model = target.denoiser(law)
    times = nodes(law, grid, 12)
    x = start(law, times[0]).to(device)
    plan = sk.sample(model, (6, 3), sampler="euler-maruyama", grid=times, eta=eta, x_init=x, seed=5)
    run = sk.solve(sk.reverse(law, model, eta=eta), x, times, solver="euler-maruyama", seed=5)
    torch.testing.assert_close(plan.x, run.x, **ROUNDING)
    assert plan.stats.nfe == run.stats.nfe == 12


@pytest.mark.parametrize("solver", ["euler", "heun"])
@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("process", PROCESSES)
def test_euler_and_heun_are_solve_of_the_probability_flow(process, grid, solver, device):
    law, target = PROCESSES[process], mixture()
    model = target.denoiser(law)
    times = sk.Grid(grid).times(law, 12)  # from pure noise where the process has it
    x = start(law, float(times[0]), d=2).to(device)
    plan = sk.sample(model, (6, 2), sampler=solver, grid=times, x_init=x)
    run = sk.solve(sk.probability_flow(law, model), x, times, solver=solver)
    torch.testing.assert_close(plan.x, run.x, **ROUNDING)


@pytest.mark.parametrize("process", ["VP", "VE"])
def test_euler_maruyama_without_a_given_start(process, device):
    """The initial state and the draws are the same pure function of (seed, id) on both sides."""
    law = PROCESSES[process]
    model = smooth_network(law)
    plan = sk.sample(
        model,
        (5, 3),
        sampler="euler-maruyama",
        steps=10,
        seed=3,
        first_id=100,
        dtype=torch.float64,
        device=device,
    )
    x = law.prior((5, 3), 3, first_id=100, dtype=torch.float64, device=device)
    times = sk.plan("euler-maruyama", law, steps=10).times
    run = sk.solve(sk.reverse(law, model), x, times, seed=3, first_id=100)
    torch.testing.assert_close(plan.x, run.x, **ROUNDING)


@pytest.mark.parametrize("process", ["VP", "EDM", "RectifiedFlow"])
def test_the_adaptive_sampler_is_accurate(process, device):
    """rk45 at rtol = atol = 1e-5 against the exact flow map of a Gaussian, and its clean end."""
    law, target = PROCESSES[process], gaussian(3)
    x = start(law, law.t_max).to(device)
    run = sk.sample(target.denoiser(law), (6, 3), sampler="rk45", x_init=x)
    end = target.marginal(law, law.t_min)
    first = target.marginal(law, law.t_max)
    ratio = (end.eigenvalues / first.eigenvalues).sqrt()
    exact = end.mean + ratio * (x - first.mean)
    torch.testing.assert_close(run.x, exact, rtol=1e-3, atol=1e-3)
    clean = sk.sample(target.denoiser(law), (6, 3), sampler="rk45", x_init=x, end="clean")
    torch.testing.assert_close(clean.x, target.denoiser(law).x0(run.x, law.t_min), **ROUNDING)
    assert clean.stats.nfe == run.stats.nfe + 1


# -- reductions -----------------------------------------------------------------------------------------


def sample(sampler, process, **options):
    model = smooth_network(process)
    options = {"steps": 7, "seed": 2, "dtype": torch.float64, **options}
    return sk.sample(model, (5, 3), sampler=sampler, **options).x


@pytest.mark.parametrize("process", PROCESSES)
def test_euler_maruyama_at_eta_zero_is_euler(process):
    law = PROCESSES[process]
    grid = nodes(law, "standard", 7)
    a = sample("euler-maruyama", law, eta=0.0, grid=grid, steps=None)
    torch.testing.assert_close(a, sample("euler", law, grid=grid, steps=None), **ROUNDING)


@pytest.mark.parametrize("process", PROCESSES)
def test_ddim_at_eta_one_is_ddpm(process):
    law = PROCESSES[process]
    grid = sk.Grid("standard")
    torch.testing.assert_close(
        sample("ddim", law, eta=1.0, grid=grid), sample("ddpm", law, grid=grid), **ROUNDING
    )


@pytest.mark.parametrize("process", ["VP", "VE", "EDM", "SubVP"])
def test_ddim_is_the_exponential_integrator_of_first_order(process):
    """eta = 0: x' = (sigma'/sigma) x - alpha' expm1(-h) D (DPM-Solver++, first order; Lu et al. 2022)."""
    law = PROCESSES[process]
    plan = sk.plan("ddim", law, steps=9)
    for i, ins in enumerate(ins for ins in plan.instructions if isinstance(ins, Combine)):
        (keep, x), (gain, _) = ins.terms
        h = float(law.half_log_snr(plan.times[i + 1]) - law.half_log_snr(plan.times[i]))
        a, s = plan.nodes[i + 1].alpha, plan.nodes[i].sigma
        assert x == f"x[{i}]"
        assert keep == pytest.approx(plan.nodes[i + 1].sigma / s, rel=1e-12)
        assert gain == pytest.approx(-a * math.expm1(-h), rel=1e-9)
    first = sk.plan("dpmpp-2m", law, steps=1)
    assert repr(first.instructions) == repr(sk.plan("ddim", law, steps=1).instructions)


def test_euler_is_ddim_where_the_flow_is_a_straight_line():
    """x' = x + h (eps - x0) on the rectified flow, and x' = x + h eps for EDM."""
    for process in ("RectifiedFlow", "EDM"):
        law = PROCESSES[process]
        times = sk.Grid("karras").times(law, 7)
        for grid in (times, times[1:]):
            a, b = (
                sk.sample(mixture().denoiser(law), (5, 2), sampler=s, grid=grid, dtype=torch.float64).x
                for s in ("euler", "ddim")
            )
            torch.testing.assert_close(a, b, **ROUNDING)


def test_ancestral_variances_have_names():
    law = ddpm_table(20)
    options = {"grid": "uniform-t", "steps": 19}
    posterior, forward = (sk.samplers.Ancestral(variance=v) for v in ("posterior", "forward"))
    torch.testing.assert_close(sample(posterior, law, **options), sample("ddpm", law, **options), **ROUNDING)
    torch.testing.assert_close(
        sample(forward, law, **options), sample("ancestral", law, **options), **ROUNDING
    )
    ve = PROCESSES["VE"]
    torch.testing.assert_close(sample(posterior, ve), sample("ancestral", ve), **ROUNDING)


def test_trigonometric_adams_of_order_one_is_euler_in_phi():
    """One node: y' = y - dphi F, with the corrector's implicit step; the coordinate alone is tested."""
    law, s = sk.EDM(0.01, 10.0), 0.7
    plan = sk.plan(sk.samplers.TrigAdams(nodes=1), law, grid=[10.0, 0.01], data_std=s)
    model = smooth_network(law)
    x = 10 * torch.randn(4, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    d = model.x0(x, 10.0)
    n0, n1 = math.hypot(s, 10.0), math.hypot(s, 0.01)
    f = n0 / (10.0 * s) * (d - (s / n0) ** 2 * x)
    expected = n1 * (x / n0 - (math.atan2(0.01, s) - math.atan2(10.0, s)) * f)
    found = sk.sample(model, (4, 2), sampler=plan, x_init=x).x
    torch.testing.assert_close(found, expected, **ROUNDING)
