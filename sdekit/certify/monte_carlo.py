"""Monte Carlo in place of a certificate, for samplers that are not affine: distances with an interval."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sdekit.certify.certificate import Law
from sdekit.certify.exact import as_plan
from sdekit.certify.response.blackbox import as_samples, isolated, noise_argument
from sdekit.errors import check_count
from sdekit.noise import Philox
from sdekit.samplers.base import Sampler
from sdekit.samplers.build import GridLike
from sdekit.samplers.plan import Plan
from sdekit.samplers.sample import sample
from sdekit.sde.gaussian import GaussianDiffusion
from sdekit.targets.gaussian import Gaussian

__all__ = ["MonteCarloCertificate", "certify_monte_carlo"]


@dataclass(frozen=True, kw_only=True, eq=False)
class MonteCarloCertificate:
    """What samples tell of the distance to the data law.

    name, nfe, plan, stochastic: of the sampler, as in `Certificate`.
    w2: sqrt of the debiased sum of squared differences of mean and standard deviation along the target's
    eigendirections (the W2 distance of Gaussians that share them). low, high: its interval at
    ``confidence``, by the delete-one-block jackknife, wider near zero. floor: the value that exact samples
    would reach by chance alone without debiasing, sqrt(1.5 tr C / n). law: sample means and standard
    deviations, (D,).
    """

    name: str
    w2: float
    low: float
    high: float
    floor: float
    confidence: float
    samples: int
    law: Law
    plan: Plan | None = None
    nfe: int | None = None
    stochastic: bool = True

    def __repr__(self) -> str:
        evaluations = "" if self.nfe is None else f"nfe={self.nfe}, "
        return (
            f"MonteCarloCertificate({self.name!r}, {evaluations}W2 = {self.w2:.4g} in "
            f"[{self.low:.4g}, {self.high:.4g}] at {self.confidence:.0%}, {self.samples} samples)"
        )


def certify_monte_carlo(
    sampler: str | Sampler | Plan | Callable[..., Any],
    target: Gaussian,
    process: GaussianDiffusion | None = None,
    *,
    steps: int | None = None,
    nfe: int | None = None,
    grid: GridLike = None,
    end: str = "t_min",
    eta: float | None = None,
    predicts: str | None = None,
    samples: int = 20_000,
    blocks: int = 40,
    confidence: float = 0.95,
    seed: int = 0,
) -> MonteCarloCertificate:
    r"""W2 to Gaussian data from samples, for plans that `certify` refuses.

        W2^2 = sum_i (mean_i - m_i)^2 - var_i/n + (std_i - sqrt(c_i))^2 - var(std_i)

    over eigendirections i, debiased by the sampling variances (to order 1/n near agreement); the
    interval is the jackknife's over ``blocks`` blocks with Student's t. Where it reaches 0 the estimate
    is not linear in the samples, and the jackknife too short: the upper end is then at least
    sqrt(W2^2 + u) + t sqrt(v), u the most that a direction is debiased by, v the largest sampling variance.
    Arguments as in `certify`.

    A callable ``run(n)``, or ``run(n, noise)``, is a black box as in `certify_response`; it needs no process.
    ``samples`` is rounded to whole blocks, of 4 at least. Each block is one run of its own, seeded by
    ``seed``, so that the interval holds where the samples of a run depend on each other.

    Raises DirectionError for a plan from data to noise; TypeError without a process where one is needed.
    """
    if not isinstance(target, Gaussian):
        raise TypeError(
            f"certify_monte_carlo needs a Gaussian target, got {type(target).__name__}: its W2 is by "
            f"eigendirections. Next: sdekit.metrics or sdekit.check on samples."
        )
    blocks = check_count(blocks, "blocks", 2)
    n = max(check_count(samples, "samples"), 4 * blocks) // blocks * blocks
    made = None
    if callable(sampler):
        given = (steps, grid, eta, predicts)
        if any(value is not None for value in given) or end != "t_min":
            raise ValueError("a run makes its own steps, grid, end and eta; pass it without them.")
        name = str(getattr(sampler, "__qualname__", type(sampler).__name__))
        x = _black_box(sampler, target, n // blocks, blocks, seed)
    else:
        if process is None:
            raise TypeError(
                "certify_monte_carlo needs the process of a sampler. Next: pass process; for samples already "
                "drawn, sdekit.check or sdekit.metrics."
            )
        made = as_plan(sampler, target, process, steps, nfe, grid, end, eta, predicts)
        name, nfe = made.sampler, made.nfe
        model, shape = target.denoiser(process), (n, *target.event_shape)
        x = sample(model, shape, sampler=made, seed=seed, dtype=torch.float64, batch_size=None).x
    coordinates = target.to_basis(x).reshape(n, -1)
    m = target.to_basis(target.mean[None]).reshape(-1).to(coordinates)
    s = target.eigenvalues.to(coordinates).sqrt()
    parts = coordinates.reshape(blocks, n // blocks, -1)
    sums, squares, cubes, fourths = (((parts - m) / s).pow(k).sum(dim=1) for k in (1, 2, 3, 4))

    def squared(keep: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        count = keep.sum() * (n // blocks)
        m1, m2, m3, m4 = (t[keep].sum(dim=0) / count for t in (sums, squares, cubes, fourths))
        variance = m2 - m1**2
        fourth = m4 - 4 * m1 * m3 + 6 * m1**2 * m2 - 3 * m1**4
        std = variance.sqrt()
        of_std = (fourth - variance**2) / (4 * variance * count)
        of_mean = variance / count
        terms = m1**2 - of_mean + (std - 1) ** 2 - of_std
        largest = (s**2 * torch.maximum(of_mean, of_std)).max()
        return (s**2 * terms).sum(), (s**2 * (of_mean + of_std)).max(), largest

    everything = torch.ones(blocks, dtype=torch.bool)
    whole, removed, largest = (float(part) for part in squared(everything))
    left_out = torch.stack([squared(~torch.eye(blocks, dtype=torch.bool)[b])[0] for b in range(blocks)])
    error = math.sqrt(float((left_out - left_out.mean()).square().sum()) * (blocks - 1) / blocks)
    from scipy.stats import t as student

    quantile = float(student.ppf(0.5 + confidence / 2, blocks - 1))
    low, high = (math.sqrt(max(whole + sign * quantile * error, 0.0)) for sign in (-1, 1))
    if low == 0:
        high = max(high, math.sqrt(max(whole + removed, 0.0)) + quantile * math.sqrt(largest))
    return MonteCarloCertificate(
        name=name,
        plan=made,
        nfe=nfe,
        stochastic=made is None or made.stochastic,
        w2=math.sqrt(max(whole, 0.0)),
        low=low,
        high=high,
        floor=math.sqrt(1.5 * float((s**2).sum()) / n),
        confidence=confidence,
        samples=n,
        law=Law(coordinates.mean(dim=0), coordinates.std(dim=0)),
    )


def _black_box(run: Callable[..., Any], target: Gaussian, n: int, blocks: int, seed: int) -> Tensor:
    """Samples (blocks n, *event) float64 of as many runs of n."""
    argument = noise_argument(run, None)
    parts = []
    for block in range(blocks):
        own = seed * blocks + block
        source = Philox(own)
        positional = (n, source) if argument == "" else (n,)
        with isolated(own):
            out = run(*positional, **({argument: source} if argument else {}))
        parts.append(as_samples(out, n, target).detach().to(device="cpu", dtype=torch.float64))
    return torch.cat(parts)
