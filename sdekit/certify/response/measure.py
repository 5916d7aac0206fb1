r"""Exact law of a black box's output on a Gaussian target, from its response to impulses of noise.

For data N(m, C) the denoiser is affine and, in the eigenbasis of C, acts on each direction alone. A sampler
whose steps are affine in state and noise, with scalar weights, then gives direction by direction

    x = b + sum_k G_k xi_k,   k = 1, ..., K the normals of a run,

so that the output is N(b, sum_k G_k^2). A sample without noise is b; one with ones at draw k alone, in every
direction at once, is b + G_k. No random number enters.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sdekit.certify.certificate import Certificate, Law
from sdekit.certify.response.blackbox import TOLERANCE, BlackBox, Measured, measure, noise_argument
from sdekit.errors import NotAffineError, check_count, check_positive
from sdekit.sde.gaussian import GaussianDiffusion
from sdekit.targets.gaussian import Gaussian

__all__ = ["ResidualError", "ResponseCertificate", "certify_response"]


class ResidualError(NotAffineError):
    """A black box is not affine in its noise; ``residual`` is by how much."""

    def __init__(self, message: str, residual: float) -> None:
        super().__init__(message)
        self.residual = residual


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class ResponseCertificate(Certificate):
    """A `Certificate` measured on a black box.

    residual: the largest distance between a sample with noise and what the impulses predict, over its
    deviation from the mean (or the law's, if larger): rounding, if the box is affine. draws: K. batch:
    samples in a run. dtype: the coarsest dtype of the box's states. frozen: the law is that of the
    response linearised about the path without noise. seconds: of all runs.
    """

    residual: float
    draws: int
    batch: int
    dtype: torch.dtype
    frozen: bool
    seconds: float

    def __repr__(self) -> str:
        kind = "linearised, " if self.frozen else ""
        return f"{super().__repr__()[:-1]}; {kind}{self.draws} draws, residual {self.residual:.2g})"


def certify_response(
    run: Callable[..., Any],
    target: Gaussian,
    process: GaussianDiffusion | None = None,
    *,
    against: str = "data",
    start: int | None = 0,
    start_std: float | Tensor | None = None,
    t_start: float | None = None,
    t_end: float | None = None,
    end: str = "t_min",
    noise: bool | None = None,
    batch: int | None = None,
    frozen: bool = False,
    tolerance: float | None = None,
    name: str | None = None,
    nfe: int | None = None,
) -> ResponseCertificate:
    r"""The exact law of the samples of ``run`` on Gaussian data, by impulses through its noise.

        x = b + sum_k G_k xi_k,   output N(b, sum_k G_k^2) in the target's eigenbasis.

    ``run(n)`` is any code that returns n samples, (n, *event), made with the exact denoiser of the target
    (``target.denoiser(process)``), and that draws its normals through torch: randn, randn_like, normal,
    normal_, `torch.distributions.Normal`, with any generator, dtype and device. Or ``run(n, noise)``, which
    draws from the `Noise` it is given. The affine law is verified, within a batch and across batches, on
    samples with noise in every draw.

    With a process the error is split as in `certify`, the first state rescaled to the true marginal there.
    Without one, initial and truncation are zero, and all error is discretization.

    Parameters
    ----------
    run
        Called about K/batch + 5 times, with different n.
    target
        A `Gaussian`.
    process
        Of the samples: x_t = alpha x0 + sigma eps.
    against
        "data": the data law. "t_min": the marginal at the end time; needs a process.
    start, start_std
        Which normal, counted from 0, makes the first state start_std xi (the process's prior standard
        deviation; a number, or (D,) in the eigenbasis), in the units of the process. None: no normal does.
    t_start, t_end, end
        Times of the first state and the last: t_max and t_min. end="clean": the sample is D(x, t_end).
    noise
        Whether run takes a `Noise`; by its signature unless given.
    batch
        Samples in a run, unless draws are shared by samples: then they are run one by one.
    frozen
        Linearise about the path without noise instead of refusing a run that is not affine: a law valid to
        first order in the noise. ``residual`` says by how much it is wrong.
    tolerance
        The largest residual: 1e-8 for states in float64, 1e-4 float32, 0.05 float16, 0.3 bfloat16.
    name, nfe
        Of the sampler, for the record.

    Raises
    ------
    ResidualError (a NotAffineError): runs with noise differ from the prediction by ``.residual``.
    NotAffineError: random numbers that are not normal, not drawn in ``run``, or shared by the elements of a
    sample. ShapeError, NonFiniteError: what run returned.
    """
    if not isinstance(target, Gaussian):
        raise TypeError(
            f"certify_response needs a Gaussian target, got {type(target).__name__}: only there is the "
            f"output's law Gaussian. Next: sdekit.certify_monte_carlo for samples of a Gaussian target, "
            f"sdekit.metrics for others."
        )
    if against not in ("data", "t_min"):
        raise ValueError(f"against must be 'data' or 't_min', got {against!r}.")
    if against == "t_min" and process is None:
        raise ValueError("against='t_min' needs the process whose marginal is meant. Next: pass process.")
    if end not in ("t_min", "clean"):
        raise ValueError(f"end must be 't_min' or 'clean', got {end!r}.")
    if process is not None and not isinstance(process, GaussianDiffusion):
        raise TypeError(
            f"process must be a GaussianDiffusion (VP, VE, EDM, ...) or None, got {type(process).__name__}."
        )
    if start_std is not None and not bool((torch.as_tensor(start_std) > 0).all()):
        raise ValueError(f"start_std must be > 0, got {start_std}. Next: start=None where no normal starts.")
    if not callable(run):
        raise TypeError(
            f"run must be callable as run(n), got {type(run).__name__}. Next: sdekit.certify for a sampler "
            f"or a plan of this package."
        )
    began = time.perf_counter()
    box = BlackBox(run, target, noise_argument(run, noise))
    if start is not None and (not isinstance(start, int) or not 0 <= start < box.draws):
        raise ValueError(
            f"start must number one of the {box.draws} normals of a run, 0 to {box.draws - 1}, got {start}. "
            f"Next: start=None where no normal makes the first state."
        )
    batch = None if batch is None else check_count(batch, "batch", 3)
    found = measure(box, -1 if start is None else start, batch, frozen)
    limit = TOLERANCE[box.dtype] if tolerance is None else check_positive(tolerance, "tolerance")
    if not frozen:
        _require_affine(found, limit, box.dtype)
    law = Law(found.base, torch.sqrt(found.start.square() + found.injected))
    data = Law(target.to_basis(target.mean), target.eigenvalues.sqrt())
    marginal, reached = law, data
    if process is not None:
        first = process.t_max if t_start is None else t_start
        last = process.t_min if t_end is None else t_end
        if start is not None:
            marginal = _from_marginal(found, target, process, float(first), start_std)
        reached = _reached(target, process, float(last), end)
    reference = reached if against == "t_min" else data
    return ResponseCertificate(
        name=name or str(getattr(run, "__qualname__", type(run).__name__)),
        nfe=nfe,
        stochastic=bool(found.injected.any()),
        target=target,
        against=against,
        law=law,
        reference=reference,
        initial=law - marginal,
        discretization=marginal - reached,
        score_error=law - law,
        truncation=reached - reference,
        residual=max(found.residual, found.coupling),
        draws=box.draws,
        batch=found.batch,
        dtype=box.dtype,
        frozen=frozen,
        seconds=time.perf_counter() - began,
    )


def _require_affine(found: Measured, limit: float, dtype: torch.dtype) -> None:
    if not bool(found.start.any() | found.injected.any()):
        raise NotAffineError(
            "expected samples that depend on the normals drawn, got none that does. Likely cause: the first "
            "state was drawn before run. Next: draw it inside run(n)."
        )
    residual = max(found.residual, found.coupling)
    if residual <= limit:
        return
    if found.coupling > limit:
        what = "the same noise gives another sample in another batch"
        cause = "norms or thresholds taken over the batch, or noise that torch does not draw"
    else:
        what = "a sample with noise is not what its impulses predict"
        cause = (
            "clipping, thresholding, steps that depend on the state, a denoiser of another target, or steps "
            "that mix the target's eigendirections"
        )
    raise ResidualError(
        f"expected a run that is affine in its noise, but {what}: they differ by {residual:.3g} of its size "
        f"({limit:g} is allowed in {dtype}). Likely cause: {cause}. Next: sdekit.certify_monte_carlo(run, "
        f"target) for distances with an interval, or frozen=True for the response linearised about the path "
        f"without noise.",
        residual,
    )


def _from_marginal(
    found: Measured, target: Gaussian, process: GaussianDiffusion, t: float, std: float | Tensor | None
) -> Law:
    """The output's law from the true marginal at t: the start's part of it, rescaled and shifted."""
    gain = found.start / (process.prior_std() if std is None else std)
    alpha, sigma = float(process.alpha(t)), float(process.sigma(t))
    variance = gain.square() * (alpha**2 * target.eigenvalues + sigma**2) + found.injected
    return Law(found.base + gain * alpha * target.to_basis(target.mean), variance.sqrt())


def _reached(target: Gaussian, process: GaussianDiffusion, t: float, end: str) -> Law:
    """The exact law at the end of a run."""
    alpha, sigma = float(process.alpha(t)), float(process.sigma(t))
    mean, c = target.to_basis(target.mean), target.eigenvalues
    std = torch.sqrt(alpha**2 * c + sigma**2)
    return Law(mean, alpha * c / std) if end == "clean" else Law(alpha * mean, std)
