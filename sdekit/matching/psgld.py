r"""Stochastic gradient Langevin dynamics with the diagonal preconditioner of RMSprop."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from sdekit._typing import State
from sdekit.errors import as_number, check_count, check_positive
from sdekit.matching.chains import Chains, Walk

__all__ = ["psgld"]


def psgld(
    log_likelihood: Callable[..., Tensor],
    data: Tensor | Sequence[Tensor],
    x0: State,
    *,
    log_prior: Callable[[Tensor], Tensor] | None = None,
    schedule: float | Callable[[int], float],
    steps: int,
    alpha: float = 0.99,
    damping: float = 1e-5,
    correction: bool = False,
    adapt: int | None = None,
    batch_size: int | None = None,
    centre: Tensor | None = None,
    biased: bool = False,
    burn_in: int = 0,
    save_every: int = 1,
    seed: int = 0,
    first_id: int = 0,
) -> Chains:
    r"""Sample p(x | y_1..y_N) from mini-batches, each element with a step that its own gradients scale:

        x' = x + (eps_k/2) (G g + Gamma) + sqrt(eps_k) G^(1/2) xi,
        G  = 1/(lambda + sqrt(V)),   V = alpha V_before + (1 - alpha) m^2,   V = 0 at first,

    all of them element by element and chain by chain; g as in `sgld`, m its likelihood part over N, the mean
    gradient of the batch. As G moves with x, the posterior is the law of small steps only with the drift

        Gamma_i = dG_i/dx_i = -(1 - alpha) G_i^2 m_i (dm_i/dx_i)/sqrt(V_i)      (V_before held fixed).

    Li et al. leave it out, and so does ``correction=False``; it costs D derivatives of the gradient a step.
    Without it the law is wrong as far as V follows x: in one dimension, with all data and steps so small that
    V keeps up, it is p(x) (lambda + |m|)^(1 - c), c = 0, and c = 1 - alpha with Gamma. It is right as far as
    V is constant: where the batches' noise outweighs the mean gradient, or V remembers longer than the chain.
    ``adapt`` makes it so: V stands still after that many steps, and the chain is `sgld` of a constant
    preconditioner G, exact in the limit of small steps.

    Parameters
    ----------
    alpha, damping
        alpha in [0, 1) and lambda > 0. V forgets in about 1/(1 - alpha) steps.
    correction
        True adds Gamma: it is exact for alpha = 0.
    adapt
        Steps after which V and G stay; at most ``burn_in``, so that no state is kept before. 0: G = 1/lambda
        throughout. None: they never stay.
    others
        As in `sgld`; eps_k is in units of x^2 over those of G, an inverse mean gradient: with G of order
        1/|m|, steps of order eps_k N.

    Raises
    ------
    What `sgld` does; ValueError: alpha or damping out of range, adapt above burn_in.

    References
    ----------
    Li, Chen, Carlson and Carin 2016, Preconditioned stochastic gradient Langevin dynamics for deep neural
    networks (arXiv:1512.07666), algorithm 1.
    """
    damping, given = check_positive(damping, "damping"), alpha
    alpha = as_number(alpha)
    if not 0 <= alpha < 1:
        raise ValueError(f"alpha must lie in [0, 1), got {given!r}. Next: 0.99, or adapt=0 for a constant G.")
    if adapt is not None and check_count(adapt, "adapt", 0) > burn_in:
        raise ValueError(
            f"adapt must be at most burn_in = {burn_in}, got {adapt}: states are kept while G still moves. "
            f"Next: burn_in={adapt}."
        )
    walk = Walk(
        log_likelihood, data, x0, log_prior=log_prior, schedule=schedule, steps=steps, batch_size=batch_size,
        centre=centre, biased=biased, burn_in=burn_in, save_every=save_every, seed=seed, first_id=first_id,
    )  # fmt: skip
    posterior, v = walk.posterior, torch.zeros_like(walk.x)

    def rule(k: int, eps: float, x: Tensor) -> Tensor:
        nonlocal v
        batch = posterior.batch(k)
        slope = posterior.likelihood(x, batch)
        moves = adapt is None or k < adapt
        m = slope / posterior.total
        if moves:
            v = alpha * v + (1 - alpha) * m.square()
        scale = 1 / (damping + v.sqrt())
        drift = posterior.gradient(x, batch, slope) * scale
        if correction and moves:
            turn = torch.where(v > 0, m / v.sqrt(), torch.zeros_like(m))  # at most 1/sqrt(1 - alpha)
            drift = (
                drift - (1 - alpha) * scale.square() * turn * posterior.curvature(x, batch) / posterior.total
            )
        return x + drift * (0.5 * eps) + walk.normal(k) * scale.sqrt() * math.sqrt(eps)

    return walk.run(rule, "4/L")
