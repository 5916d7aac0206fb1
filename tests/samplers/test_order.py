"""Declared orders, measured in float64 on grids with end steps of O(k^-2).

lambda = lambda_0 + (lambda_1 - lambda_0) u^2 (3 - 2u), so that the low-order first and last steps of
multistep samplers do not cap the slope. log2 of the ratio of errors at k = 320 and 640 must reach p - 0.1
for p <= 2 and p - 0.25 above, and exceed p by no more than that (`EXCESS` names the exceptions). On a
Gaussian the error is the certificate's discretization, exact; on a mixture it is the map's error against
scipy's DOP853 at 1e-13.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

import sdekit as sk
from sdekit.samplers.base import Path, Sampler, step
from sdekit.samplers.plan import Instruction, state
from sdekit.samplers.registry import SAMPLERS
from tests.samplers.problems import (
    AFFINE,
    DETERMINISTIC,
    PROCESSES,
    ceiling,
    flow_reference,
    mixture,
    required,
    smooth_times,
)

ORDER_PROCESSES = ["VP", "VE", "Cosine", "RectifiedFlow"]
#: The map in z and rho is the same on every process: two of them every time, the others in the long run.
MIXTURE_PROCESSES = [
    *ORDER_PROCESSES[:2],
    *(pytest.param(name, marks=pytest.mark.slow) for name in ORDER_PROCESSES[2:]),
]


def gaussian_slope(sampler, process, **limits) -> float:
    """log2 of the ratio of the exact errors at k = 320 and 640."""
    target = sk.Gaussian([0.3, -0.5, 1.0], variance=[0.1, 0.5, 2.0])
    grids = (smooth_times(process, k, **limits) for k in (320, 640))
    coarse, fine = (sk.certify(sampler, target, process, grid=g, against="t_min") for g in grids)
    return math.log2(coarse.discretization.norm / fine.discretization.norm)


def mixture_slope(sampler, process) -> float:
    """The same for the map on a mixture: RMS distance to the reference's end points."""
    start, end = flow_reference(-3.0, 3.0)
    errors = []
    for k in (320, 640):
        times = smooth_times(process, k)
        x_init = start * process.alpha(times[0])
        run = sk.sample(mixture().denoiser(process), start.shape, sampler=sampler, grid=times, x_init=x_init)
        errors.append(float((run.x / process.alpha(times[-1]) - end).norm()))
    return math.log2(errors[0] / errors[1])


@pytest.mark.parametrize("process", ORDER_PROCESSES)
@pytest.mark.parametrize("name", AFFINE)
def test_declared_order_on_a_gaussian(name, process):
    p = SAMPLERS[name].order
    slope = gaussian_slope(name, PROCESSES[process])
    assert required(p) <= slope <= ceiling(name, p)


@pytest.mark.parametrize("process", MIXTURE_PROCESSES)
@pytest.mark.parametrize("name", DETERMINISTIC)
def test_declared_order_on_a_mixture(name, process):
    p = SAMPLERS[name].order
    slope = mixture_slope(name, PROCESSES[process])
    assert required(p) <= slope <= ceiling(name, p)


@pytest.mark.parametrize("process", ["VE", "RectifiedFlow"])
def test_kernel_quadrature_over_the_whole_range_of_the_process(process):
    """Order 5 without the Gaussian-data term, which makes errors smaller and lets the slope rise later."""
    plain = sk.samplers.KernelQuadrature(kappa=0.0)
    assert gaussian_slope(plain, PROCESSES[process], low=-10.0, high=10.0) >= required(5)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("name", [n for n in AFFINE if "eta" in SAMPLERS[n].__dataclass_fields__])
def test_order_at_any_eta(name, eta):
    sampler = SAMPLERS[name](eta=eta)
    assert gaussian_slope(sampler, PROCESSES["VP"]) >= required(sampler.order)


OPTIONS = {
    sk.samplers.DPM2(r1=0.3): 2,
    sk.samplers.DPMpp2S(r1=0.7): 2,
    sk.samplers.DPM3(r1=0.5): 3,
    **{sk.samplers.LMS(nodes=n): n for n in (1, 2, 3)},
    **{sk.samplers.IPNDM(nodes=n): n for n in (1, 2, 3)},
    sk.samplers.IPNDM(compat="published"): 2,
    sk.samplers.PNDM(compat="published"): 2,
    **{sk.samplers.DEIS(degree=r): r + 1 for r in (0, 1, 2)},
    sk.samplers.DEIS(form="rho"): 4,
    sk.samplers.DEIS(form="lambda"): 4,
    sk.samplers.EDMStochastic(s_churn=10.0): 2,
    sk.samplers.DPMpp3M(compat="published"): 2,
    sk.samplers.SDEDPMpp3M(eta=0.0): 3,
    sk.samplers.SDEDPMpp3M(compat="published"): 2,
    sk.samplers.UniPC(nodes=1): 2,
    sk.samplers.UniPC(nodes=4): 5,
    **{sk.samplers.ExponentialAdams(nodes=n): n for n in (1, 5)},
    sk.samplers.SASolver(predictor=1, corrector=0): 1,
    sk.samplers.SASolver(predictor=1, corrector=2): 2,
    sk.samplers.SASolver(corrector=1): 1,
    sk.samplers.SASolver(eta=0.0): 4,
    sk.samplers.SASolver(eta=0.0, corrector=0): 3,
    sk.samplers.ERSDE(nodes=1): 1,
    sk.samplers.ERSDE(nodes=2): 2,
    sk.samplers.Seeds(stages=2): 2,
    sk.samplers.Seeds(stages=3): 2,
    sk.samplers.Seeds(stages=3, eta=0.0): 3,
    sk.samplers.Restart(intervals=((0.5, 2.0, 1, None), (0.12, 0.6, 3, None))): 2,
}


@pytest.mark.parametrize("sampler", OPTIONS, ids=repr)
def test_declared_order_of_options(sampler):
    """An object's order is that of its options, on a Gaussian and, without noise, on a mixture."""
    p = OPTIONS[sampler]
    assert sampler.order == p
    slopes = [gaussian_slope(sampler, PROCESSES["VP"])]
    if not sk.plan(sampler, PROCESSES["VE"], steps=4).stochastic:
        slopes.append(mixture_slope(sampler, PROCESSES["VE"]))
    assert required(p) <= min(slopes)
    assert max(slopes) <= ceiling(sampler.name, p)


def test_a_fixed_number_of_steps_a_pass_caps_restart():
    """Restart's passes of two steps leave their error however fine the grid is."""
    assert gaussian_slope(sk.samplers.Restart(intervals=((0.12, 0.6, 2, 2),)), PROCESSES["VP"]) < 0.2


@pytest.mark.parametrize("factor", [0.0, 0.5, 2.0])
def test_a_wrong_history_weight_loses_the_order(factor):
    """The gate can fail: with another r DPM-Solver++(2M) is of order 1."""

    @dataclass(frozen=True)
    class Wrong(Sampler):
        name = "wrong-2m"
        order = 2
        reference = ""

        def recipe(self, path: Path) -> Iterator[Instruction]:
            lam = path.lam
            for i in range(path.steps):
                (_, alpha, sigma, *_), (_, ahead, clean, *_) = path[i], path[i + 1]
                gain = ahead - alpha * clean / sigma
                r = factor * (lam[i + 1] - lam[i]) / (2 * (lam[i] - lam[i - 1])) if i else 0.0
                yield path.evaluate(f"D[{i}]", state(i), i)
                history = [(-gain * r, f"D[{i - 1}]")] if i else []
                yield step(i, [(clean / sigma, state(i)), (gain * (1 + r), f"D[{i}]"), *history])

    assert gaussian_slope(Wrong(), PROCESSES["VP"]) < required(2)
    assert mixture_slope(Wrong(), PROCESSES["VP"]) < required(2)
