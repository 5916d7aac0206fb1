"""What `log_prob` and `elbo` require of their data and of the law at t_max."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from sdekit.errors import EndpointError, NonFiniteError, ShapeError, SolveError, check_state
from sdekit.likelihood.trace import check_densities
from sdekit.score.model import Denoiser
from sdekit.solution import Solution, Status

__all__ = ["calling_dtype", "check_arrived", "check_data", "check_law", "ends_inside", "prior_density"]


def calling_dtype(model: Denoiser, x: Tensor) -> torch.dtype:
    """The dtype in which the model is called at data x.

    float64 for closed forms; a network's own where its weights are float32 or float64, so that numpy's
    float64 data go through a float32 network; else that of x.
    """
    if model.row_invariant:
        return torch.float64
    weights = model.net.parameters() if isinstance(model.net, torch.nn.Module) else ()
    own = next((w.dtype for w in weights if w.is_floating_point()), x.dtype)
    return own if own in (torch.float32, torch.float64) else x.dtype


def check_data(x: Any) -> Tensor:
    """x (B, *event), floating and finite, with at least one element a sample.

    Raises ShapeError; for whole numbers it names `dequantize`, since they have no density.
    """
    dtype = getattr(x, "dtype", None)
    if dtype is not None and not torch.as_tensor(x).is_floating_point():
        raise ShapeError(
            f"x must be floating, got {dtype}. Likely cause: raw levels, such as 8-bit pixels, with a "
            f"probability and no density. Next: sdekit.likelihood.dequantize(x, levels=256, low=, high=), "
            f"or x.float() for data that are not counted."
        )
    state: Tensor = check_state(x, "x")
    if math.prod(state.shape[1:]) == 0:
        raise ShapeError(f"x must have at least one element a sample, got shape {tuple(state.shape)}.")
    return state


def check_law(prior: Any, otherwise: str = "") -> None:
    """A law at t_max must have ``log_prob``. Raises TypeError."""
    if not callable(getattr(prior, "log_prob", None)):
        raise TypeError(
            f"prior must have log_prob(x), got {type(prior).__name__}. Next: "
            f"target.marginal(process, process.t_max){otherwise}."
        )


@contextlib.contextmanager
def ends_inside(t_min: float, sigma: float) -> Iterator[None]:
    """EndpointError of a flow that begins without noise, sigma(t_min) = 0, names t_min."""
    try:
        yield
    except EndpointError as error:
        if sigma > 0:
            raise
        raise EndpointError(
            f"the flow cannot begin at t_min = {t_min:g}: {str(error).split(' Likely cause')[0]} "
            f"Likely cause: no noise is left there, and the network's prediction does not say what the flow "
            f"needs. Next: t_min=1e-5, with end='clean' for the density of the data."
        ) from error


def prior_density(prior: Any, x: Tensor) -> Tensor:
    """log prior(x), (B,) float64.

    Raises ShapeError where the law has another dimension, NonFiniteError for NaN and plus infinity.
    """
    try:
        value = prior.log_prob(x)
    except (ValueError, RuntimeError) as error:
        raise ShapeError(
            f"prior.log_prob failed on {len(x)} events of shape {tuple(x.shape[1:])}: {error} Likely "
            f"cause: a law of another dimension or event shape. Next: a law over events {tuple(x.shape[1:])}."
        ) from error
    value = check_densities(value, x, "prior.log_prob").to(torch.float64)
    if bool((torch.isnan(value) | torch.isposinf(value)).any()):
        raise NonFiniteError(
            "prior.log_prob returned NaN or plus infinity. Likely cause: a law without a density at x_T, or "
            "with a variance of 0. Next: evaluate it at a sample of process.prior(shape, seed)."
        )
    return value


def check_arrived(solution: Solution, max_steps: int) -> None:
    """Every sample must have reached t_max. Raises SolveError, NonFiniteError where one is not finite."""
    failed = torch.nonzero(solution.status != Status.OK).flatten().tolist()
    if not failed:
        return
    infinite = bool((solution.status == Status.NON_FINITE).any())
    cause, hint = (
        "tolerances below the rounding of the network's dtype, or jumps of the network",
        "larger rtol and atol",
    )
    if infinite:
        cause, hint = (
            "the network returns NaN or infinity, or overflows far from its data",
            "model.eps(x, t) there",
        )
    elif bool((solution.status == Status.MAX_STEPS).any()):
        hint = f"larger rtol and atol, or max_steps > {max_steps}"
    tried = solution.failed_step
    steps = "some" if tried is None else int(tried[failed[0]]) + 1
    raise (NonFiniteError if infinite else SolveError)(
        f"the flow of {len(failed)} of {len(solution.status)} samples did not reach t_max, first that of row "
        f"{failed[0]} after {steps} steps. Likely cause: {cause}. Next: "
        f"{hint}.",
        solution,
    )
