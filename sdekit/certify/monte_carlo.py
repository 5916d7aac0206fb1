"""Monte Carlo in place of a certificate, for samplers that are not affine: distances with an interval."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from sdekit.certify.exact import Law, as_plan
from sdekit.errors import check_count
from sdekit.samplers.base import Sampler
from sdekit.samplers.build import GridLike
from sdekit.samplers.plan import Plan
from sdekit.samplers.sample import sample
from sdekit.sde.gaussian import GaussianDiffusion
from sdekit.targets.gaussian import Gaussian

__all__ = ["MonteCarloCertificate", "certify_monte_carlo"]


@dataclass(frozen=True)
class MonteCarloCertificate:
    """What samples tell of the distance to the data law.

    w2: sqrt of the debiased sum of squared differences of mean and standard deviation along the target's
    eigendirections (the W2 distance of Gaussians that share them). low, high: its interval at
    ``confidence``, by the delete-one-block jackknife. floor: the value that exact samples would reach by
    chance alone without debiasing, sqrt(1.5 tr C / n). law: sample means and standard deviations, (D,).
    """

    plan: Plan
    w2: float
    low: float
    high: float
    floor: float
    confidence: float
    samples: int
    law: Law

    def __repr__(self) -> str:
        return (
            f"MonteCarloCertificate({self.plan.sampler!r}, nfe={self.plan.nfe}, W2 = {self.w2:.4g} in "
            f"[{self.low:.4g}, {self.high:.4g}] at {self.confidence:.0%}, {self.samples} samples)"
        )


def certify_monte_carlo(
    sampler: str | Sampler | Plan,
    target: Gaussian,
    process: GaussianDiffusion,
    *,
    steps: int | None = None,
    nfe: int | None = None,
    grid: GridLike = None,
    end: str = "t_min",
    eta: float | None = None,
    samples: int = 20_000,
    blocks: int = 40,
    confidence: float = 0.95,
    seed: int = 0,
) -> MonteCarloCertificate:
    r"""W2 to Gaussian data from samples, for plans that `certify` refuses.

        W2^2 = sum_i (mean_i - m_i)^2 - var_i/n + (std_i - sqrt(c_i))^2 - var(std_i)

    over eigendirections i, debiased by the sampling variances (to order 1/n near agreement); the
    interval is the jackknife's over ``blocks`` blocks with Student's t. Arguments as in `certify`.
    Raises DirectionError for a plan from data to noise.
    """
    blocks = check_count(blocks, "blocks", 2)
    n = max(check_count(samples, "samples"), 4 * blocks) // blocks * blocks
    made = as_plan(sampler, target, process, steps, nfe, grid, end, eta)
    model = target.denoiser(process)
    shape = (n, *target.event_shape)
    x = sample(model, shape, sampler=made, seed=seed, dtype=torch.float64, batch_size=None).x
    coordinates = target.to_basis(x).reshape(n, -1)
    m = target.to_basis(target.mean[None]).reshape(-1).to(coordinates)
    s = target.eigenvalues.to(coordinates).sqrt()
    parts = coordinates.reshape(blocks, n // blocks, -1)
    sums, squares, cubes, fourths = (((parts - m) / s).pow(k).sum(dim=1) for k in (1, 2, 3, 4))

    def squared(keep: Tensor) -> Tensor:
        count = keep.sum() * (n // blocks)
        m1, m2, m3, m4 = (t[keep].sum(dim=0) / count for t in (sums, squares, cubes, fourths))
        variance = m2 - m1**2
        fourth = m4 - 4 * m1 * m3 + 6 * m1**2 * m2 - 3 * m1**4
        std = variance.sqrt()
        of_std = (fourth - variance**2) / (4 * variance * count)
        terms = m1**2 - variance / count + (std - 1) ** 2 - of_std
        return (s**2 * terms).sum()

    everything = torch.ones(blocks, dtype=torch.bool)
    whole = squared(everything)
    left_out = torch.stack([squared(~torch.eye(blocks, dtype=torch.bool)[b]) for b in range(blocks)])
    error = math.sqrt(float((left_out - left_out.mean()).square().sum()) * (blocks - 1) / blocks)
    from scipy.stats import t as student

    half = float(student.ppf(0.5 + confidence / 2, blocks - 1)) * error
    low, high = (math.sqrt(max(float(whole) + sign * half, 0.0)) for sign in (-1, 1))
    return MonteCarloCertificate(
        plan=made,
        w2=math.sqrt(max(float(whole), 0.0)),
        low=low,
        high=high,
        floor=math.sqrt(1.5 * float((s**2).sum()) / n),
        confidence=confidence,
        samples=n,
        law=Law(coordinates.mean(dim=0), coordinates.std(dim=0)),
    )
