"""Declared orders, measured in float64 on grids with end steps of O(k^-2).

lambda = lambda_0 + (lambda_1 - lambda_0) u^2 (3 - 2u), so that the low-order first and last steps of
multistep samplers do not cap the slope. log2 of the ratio of errors at k = 320 and 640 must reach p - 0.1
for p <= 2 and p - 0.25 above. On a Gaussian the error is the certificate's discretization, exact; on a
mixture it is the map's error against scipy's DOP853 at 1e-13.
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
from tests.samplers.problems import AFFINE, DETERMINISTIC, PROCESSES, flow_reference, mixture, smooth_times

ORDER_PROCESSES = ["VP", "VE", "Cosine", "RectifiedFlow"]


def required(p: int) -> float:
    return p - (0.1 if p <= 2 else 0.25)


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
    assert slope >= required(p)
    if p <= 2:
        assert slope <= p + 0.6, "the declared order is too low"


@pytest.mark.parametrize("process", ORDER_PROCESSES)
@pytest.mark.parametrize("name", DETERMINISTIC)
def test_declared_order_on_a_mixture(name, process):
    p = SAMPLERS[name].order
    slope = mixture_slope(name, PROCESSES[process])
    assert slope >= required(p)
    if p <= 2:
        assert slope <= p + 0.6, "the declared order is too low"


@pytest.mark.parametrize("process", ["VE", "RectifiedFlow"])
def test_kernel_quadrature_over_the_whole_range_of_the_process(process):
    """Order 5 without the Gaussian-data term, which makes errors smaller and lets the slope rise later."""
    plain = sk.samplers.KernelQuadrature(kappa=0.0)
    assert gaussian_slope(plain, PROCESSES[process], low=-10.0, high=10.0) >= required(5)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("name", [n for n in AFFINE if "eta" in SAMPLERS[n].__dataclass_fields__])
def test_order_at_any_eta(name, eta):
    assert gaussian_slope(SAMPLERS[name](eta=eta), PROCESSES["VP"]) >= 0.9


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
