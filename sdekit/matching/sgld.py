r"""Stochastic gradient Langevin dynamics: a posterior from mini-batches, with steps that shrink."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from sdekit._typing import State
from sdekit.matching.chains import Chains, Walk
from sdekit.matching.posterior import preconditioned

__all__ = ["Chains", "sgld"]


def sgld(
    log_likelihood: Callable[..., Tensor],
    data: Tensor | Sequence[Tensor],
    x0: State,
    *,
    log_prior: Callable[[Tensor], Tensor] | None = None,
    schedule: float | Callable[[int], float],
    steps: int,
    batch_size: int | None = None,
    preconditioner: Any = None,
    centre: Tensor | None = None,
    biased: bool = False,
    burn_in: int = 0,
    save_every: int = 1,
    seed: int = 0,
    first_id: int = 0,
) -> Chains:
    r"""Sample p(x | y_1..y_N) ~ p(x) prod_i p(y_i | x) from mini-batches of n data:

        x' = x + (eps_k/2) M g + sqrt(eps_k) M^(1/2) xi,
        g  = grad log p(x) + (N/n) sum_{i in batch} grad log p(y_i | x).

    Chain b is a pure function of (seed, first_id + b): its noise is draw k of that sample in Philox(seed),
    its batches are drawn with replacement, by the key of training. With all data in each batch, this is the
    "ula" of `solve` with steps eps_k/2.

    Parameters
    ----------
    log_likelihood
        (x, *rows) -> (B, n), log p(y | x) of each row in nats, up to a constant: x (B, *event), rows
        (B, n, *), a batch for each chain. Differentiated by autograd.
    data
        A tensor (N, *), or several, such as (features, labels).
    x0
        (B, *event), where the B chains start.
    log_prior
        (B, *event) -> (B,); None for a flat one.
    schedule
        eps_k: a number, a function of k = 0, 1, ..., or a `PolynomialDecay`.
    steps, burn_in, save_every
        Steps in all; those not kept; every how many of the others are.
    batch_size
        n; None for all N.
    preconditioner
        M, symmetric and positive definite and constant, so that the stationary law stays: a number, the
        diagonal (*event), or (D, D). The posterior's covariance, from its curvature at the mode, is the best.
    centre
        x_c (*event), near the mode: the gradients of the batch at x_c are subtracted and their sum over all
        data added, which leaves the mean of g and takes most of its noise (Baker et al. 2019,
        arXiv:1706.05439).
    biased
        True accepts a schedule without the second Robbins-Monro condition, such as a constant step.

    Raises
    ------
    ValueError: a Robbins-Monro condition fails, by its name; numbers out of range; M not positive definite.
    ShapeError: data of different N, or functions that return other shapes. NonFiniteError: a chain diverges,
    with chain and step.

    References
    ----------
    Welling and Teh 2011, Bayesian learning via stochastic gradient Langevin dynamics, equation 4.
    """
    walk = Walk(
        log_likelihood, data, x0, log_prior=log_prior, schedule=schedule, steps=steps, batch_size=batch_size,
        centre=centre, biased=biased, burn_in=burn_in, save_every=save_every, seed=seed, first_id=first_id,
    )  # fmt: skip
    posterior, (times_m, times_root) = walk.posterior, preconditioned(preconditioner, walk.x)

    def rule(k: int, eps: float, x: Tensor) -> Tensor:
        g = posterior.gradient(x, posterior.batch(k))
        return x + times_m(g) * (0.5 * eps) + times_root(walk.normal(k)) * math.sqrt(eps)

    return walk.run(rule, "4/L")
