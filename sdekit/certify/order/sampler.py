r"""Orders of samplers, on grids whose ends do not cap them.

    lambda = lambda_0 + (lambda_1 - lambda_0) u^2 (3 - 2 u),   u = i/k,

has end steps of O(k^-2), so that the lower order of a multistep method's first and last steps is not seen.
The error on a Gaussian is exact (`sdekit.certify`, the discretization); on a mixture it is the distance of
the map's end points to those of the probability flow, by scipy's DOP853.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from sdekit.certify.exact import certify
from sdekit.certify.order.slopes import OrderRow
from sdekit.errors import NotAffineError
from sdekit.samplers.base import Sampler
from sdekit.samplers.build import plan
from sdekit.samplers.grids import Grid
from sdekit.samplers.sample import sample
from sdekit.sde.diffusion import VP
from sdekit.sde.gaussian import GaussianDiffusion
from sdekit.targets import Gaussian, GaussianMixture

__all__ = ["sampler_rows", "smooth_grid"]

STEPS = (160, 320, 640)
LOW, HIGH = -3.0, 3.0
POINTS = 12


def smooth_grid(process: GaussianDiffusion, k: int) -> Grid:
    """k intervals of lambda in [-3, 3], as far as the process reaches."""
    low = max(LOW, float(process.half_log_snr(float(process.finite_t_max))))
    high = min(HIGH, float(process.half_log_snr(float(process.t_min))))
    u = torch.arange(k + 1, dtype=torch.float64) / k
    return Grid.explicit(process.t_of_half_log_snr(low + (high - low) * u * u * (3 - 2 * u)))


def sampler_rows(
    sampler: Sampler, process: GaussianDiffusion | None, steps: tuple[int, ...] | None
) -> Iterator[OrderRow]:
    """Deterministic samplers on a Gaussian and a mixture; stochastic ones, weakly, on a Gaussian.

    Raises NotAffineError for samplers whose steps are not affine.
    """
    process = VP() if process is None else process
    steps = steps or STEPS
    plans = [plan(sampler, process, grid=smooth_grid(process, k)) for k in steps]
    if not all(made.affine for made in plans):
        raise NotAffineError(
            f"{sampler.name!r} is not affine in its noise, so its law on Gaussian data is not Gaussian and "
            f"has no exact error. Next: sdekit.certify_monte_carlo at several steps."
        )
    target = Gaussian([0.3, -0.5, 1.0], variance=[0.1, 0.5, 2.0])
    measure = "weak" if plans[0].stochastic else "deterministic"
    exact = tuple(
        certify(sampler, target, process, grid=smooth_grid(process, k), against="t_min").discretization.norm
        for k in steps
    )
    yield OrderRow(measure, "Gaussian", "", "", steps, exact, floor=1e-12)
    if measure == "deterministic":
        yield OrderRow(measure, "mixture", "", "", steps, _map_errors(sampler, process, steps), floor=1e-12)


def _mixture() -> GaussianMixture:
    means = [[-1.5, 0.0], [1.0, 1.0], [0.5, -1.5]]
    return GaussianMixture([0.3, 0.5, 0.2], means, [[0.3, 0.04], [0.05, 0.2], [0.1, 0.1]])


def _map_errors(sampler: Sampler, process: GaussianDiffusion, steps: tuple[int, ...]) -> tuple[float, ...]:
    """Norm of the difference of z = x/alpha at the last time, over twelve starts."""
    model, errors = _mixture().denoiser(process), []
    for k in steps:
        grid = smooth_grid(process, k)
        times = plan(sampler, process, grid=grid).times
        ends = [float(process.half_log_snr(t)) for t in (times[0], times[-1])]
        start, end = _flow(round(ends[0], 9), round(ends[1], 9))
        x = start * float(process.alpha(times[0]))
        run = sample(model, tuple(start.shape), sampler=sampler, grid=grid, x_init=x)
        errors.append(float((run.x / float(process.alpha(times[-1])) - end).norm()))
    return tuple(errors)


@lru_cache(maxsize=16)
def _flow(low: float, high: float) -> tuple[Tensor, Tensor]:
    """z at lambda = low and high along dz/dlambda = D - z, (12, 2) each, at tolerance 1e-13."""
    from scipy.integrate import solve_ivp

    target = _mixture()
    z0 = math.exp(-low) * np.random.default_rng(0).standard_normal((POINTS, 2))

    def slope(lam: float, flat: np.ndarray) -> np.ndarray:
        z = torch.from_numpy(flat.reshape(POINTS, 2))
        return np.asarray((target._mean_given(z, 1.0, math.exp(-lam)) - z).reshape(-1).numpy())

    run = solve_ivp(slope, (low, high), z0.reshape(-1), method="DOP853", rtol=1e-13, atol=1e-13)
    if not run.success:
        raise RuntimeError(f"the reference flow failed: {run.message}")
    return torch.from_numpy(z0), torch.from_numpy(run.y[:, -1].reshape(POINTS, 2).copy())
