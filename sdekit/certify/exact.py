r"""Exact law of a plan's output on a Gaussian target: no random numbers, no Monte Carlo error.

For data N(m, C) the denoiser is affine, and in the eigenbasis of C it acts on each direction alone:

    D(x) = m + alpha c / (alpha^2 c + sigma^2) (x - alpha m),  c an eigenvalue of C.

A plan's Combines have scalar weights, so every register is, direction by direction,

    r = b + g x_init + sum_k G_k xi_k

with numbers b, g, G_k that the plan's own instructions give (`sdekit.certify.affine`). The output is
Gaussian with mean b + g mu_T and variance g^2 v_T + sum_k G_k^2, for any law N(mu_T, v_T) of the initial
state.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from sdekit._typing import Number
from sdekit.certify.affine import Affine, Response, exact_denoiser, propagate, respond
from sdekit.certify.certificate import Certificate, Component, Law
from sdekit.errors import DirectionError, NonFiniteError, ShapeError
from sdekit.samplers.base import Sampler
from sdekit.samplers.build import GridLike, plan, same_schedule
from sdekit.samplers.plan import Plan
from sdekit.score.predictions import Node
from sdekit.sde.gaussian import GaussianDiffusion
from sdekit.targets.gaussian import Gaussian

__all__ = ["Certificate", "Component", "Law", "Perturbation", "certify", "propagate"]

#: node -> (gain, shift) of x0-hat - D(x) = gain x + shift, numbers or (D,) in the target's eigenbasis.
Perturbation: TypeAlias = "Callable[[Node], tuple[Number, Number]]"


def certify(
    sampler: str | Sampler | Plan,
    target: Gaussian,
    process: GaussianDiffusion,
    *,
    steps: int | None = None,
    nfe: int | None = None,
    grid: GridLike = None,
    end: str = "t_min",
    eta: float | None = None,
    predicts: str | None = None,
    against: str = "data",
    model: Gaussian | None = None,
    perturbation: Perturbation | None = None,
) -> Certificate:
    r"""The exact law that ``sampler`` produces on Gaussian data, and its distances W2 and KL.

    The run certified is the run made: start at the process's prior, every step of the plan, noise of the
    last step kept. The four parts of the error are telescoped:

        score_error     law with the model - law with the exact denoiser, both from the prior
        initial         law from the prior - law from the true marginal at the first time
        discretization  law from the true marginal - exact law at the last node
        truncation      exact law at the last node - data

    with the exact law at a clean node that of D(x, t_min), x from the true marginal. The last three do not
    depend on the model.

    Parameters
    ----------
    sampler
        A name, a sampler object or a `Plan` (any prediction, lowered or not); a plan whose nodes or weights
        require grad gives a certificate that does.
    target
        A `Gaussian`; one eigendecomposition serves every certificate of it.
    steps, nfe, grid, end, eta, predicts
        As in `sdekit.plan`.
    against
        "data": the data law. "t_min": the marginal at the end time, without truncation.
    model
        The law whose exact denoiser is the model, where it is not the target's: another mean, another
        covariance with the same eigenvectors.
    perturbation
        ``perturbation(node) -> (gain, shift)``, numbers or (D,) in the target's eigenbasis: the model's
        error, state by state,

            x0_hat(x, t) = D(x, t) + gain x + shift,    score_hat = score + alpha/sigma^2 (gain x + shift).

        ``node`` has t, alpha, sigma.

    Raises
    ------
    NotAffineError: the plan has steps that are not affine. TypeError: the target is not Gaussian.
    DirectionError: the plan goes from data to noise (end="t_max"). ShapeError, NonFiniteError: the model's
    event shape, the shape and values of its perturbation. ValueError: the model's covariance has other
    eigenvectors.
    """
    if not isinstance(target, Gaussian):
        raise TypeError(
            f"certify needs a Gaussian target, got {type(target).__name__}: only there is the output's law "
            f"Gaussian. Next: Gaussian(mean, cov) with the target's own covariance, or "
            f"sdekit.certify_monte_carlo for the target itself."
        )
    if against not in ("data", "t_min"):
        raise ValueError(f"against must be 'data' or 't_min', got {against!r}.")
    made = as_plan(sampler, target, process, steps, nfe, grid, end, eta, predicts)
    c, m = target.eigenvalues, target.to_basis(target.mean)
    exact = exact_denoiser(c, m)
    response = respond(made, exact, target.dimension)
    first, last = made.nodes[0], made.nodes[-2] if made.end == "clean" else made.nodes[-1]
    nothing, prior = torch.zeros_like(m), torch.full_like(c, made.prior_std)
    from_prior = _output(response, nothing, prior)
    from_marginal = _output(response, first.alpha * m, torch.sqrt(first.alpha**2 * c + first.sigma**2))
    std_end = torch.sqrt(last.alpha**2 * c + last.sigma**2)
    reached = Law(m, last.alpha * c / std_end) if made.end == "clean" else Law(last.alpha * m, std_end)
    reference = Law(m, torch.sqrt(c)) if against == "data" else reached
    law = from_prior
    if model is not None or perturbation is not None:
        used = _denoiser(target, exact, model, perturbation)
        law = _output(respond(made, used, target.dimension), nothing, prior)
    return Certificate(
        name=made.sampler,
        nfe=made.nfe,
        plan=made,
        stochastic=made.stochastic,
        target=target,
        against=against,
        law=law,
        reference=reference,
        initial=from_prior - from_marginal,
        discretization=from_marginal - reached,
        score_error=law - from_prior,
        truncation=reached - reference,
    )


def _output(response: Response, mean: Tensor, std: Tensor) -> Law:
    variance = (response.gain * std).square() + response.variance
    return Law(response.constant + response.gain * mean, torch.sqrt(variance))


def _denoiser(
    target: Gaussian, exact: Affine, model: Gaussian | None, perturbation: Perturbation | None
) -> Affine:
    """The model as an affine map in the target's eigenbasis."""
    base = exact
    if model is not None:
        if not isinstance(model, Gaussian):
            raise TypeError(
                f"model must be a Gaussian, the law that the model has learned, got {type(model).__name__}. "
                f"Next: Gaussian(...) of it, or perturbation= for any affine error."
            )
        if model.event_shape != target.event_shape:
            raise ShapeError(
                f"the model must have the target's event shape {tuple(target.event_shape)}, got "
                f"{tuple(model.event_shape)}."
            )
        base = exact_denoiser(target.variances_of(model), target.to_basis(model.mean))
    if perturbation is None:
        return base
    wrong = perturbation

    def denoise(node: Node) -> tuple[Number, Number]:
        gain, shift = base(node)
        returned = wrong(node)
        if not (isinstance(returned, tuple | list) and len(returned) == 2):
            raise TypeError(
                f"a perturbation must return (gain, shift), got {type(returned).__name__}. Next: (gain, 0.0)."
            )
        parts = tuple(torch.as_tensor(part, dtype=torch.float64) for part in returned)
        for name, part in zip(("gain", "shift"), parts, strict=True):
            if not bool(torch.isfinite(part).all()):
                raise NonFiniteError(
                    f"the {name} of a perturbation must be finite, got NaN or infinity at t = {node.t:.4g}."
                )
            if part.shape not in ((), (target.dimension,)):
                raise ShapeError(
                    f"the {name} of a perturbation must be a number or ({target.dimension},), one for each "
                    f"eigendirection, got {tuple(part.shape)}. Next: target.to_basis for a shift over events."
                )
        return gain + parts[0], shift + parts[1]

    return denoise


def as_plan(
    sampler: str | Sampler | Plan,
    target: Gaussian,
    process: GaussianDiffusion,
    steps: int | None,
    nfe: int | None,
    grid: GridLike,
    end: str,
    eta: float | None,
    predicts: str | None = None,
) -> Plan:
    """The plan to certify, made with what the target knows of itself."""
    if isinstance(sampler, Plan):
        given: Sequence[object] = (steps, nfe, grid, eta, predicts)
        if any(value is not None for value in given) or end != "t_min":
            raise ValueError("a Plan holds its own steps, grid, end and eta; pass it alone.")
        _require_data(sampler.end)
        same_schedule(sampler, process)
        return sampler
    _require_data(end)
    return plan(
        sampler,
        process,
        steps=steps,
        nfe=nfe,
        grid=grid,
        end=end,
        eta=eta,
        data_std=target.data_std,
        data_spread=target.data_spread,
        predicts=predicts,
    )


def _require_data(end: str) -> None:
    """Refuse plans that go from data to noise: a certificate is of samples."""
    if end == "t_max":
        raise DirectionError(
            "expected a plan from noise to data, got end = 't_max', data to noise: its output is no sample "
            "of the data. Likely cause: a plan made for sdekit.encode. Next: certify the same sampler with "
            "end='t_min' or 'clean'; sdekit.roundtrip measures what encoding loses."
        )
