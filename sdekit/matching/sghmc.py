r"""Stochastic gradient Hamiltonian Monte Carlo: `sgld` with a momentum, and friction against batch noise."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from sdekit._typing import State
from sdekit.errors import ShapeError, as_number
from sdekit.matching.chains import Chains, Walk
from sdekit.matching.posterior import preconditioned

__all__ = ["sghmc"]


def sghmc(
    log_likelihood: Callable[..., Tensor],
    data: Tensor | Sequence[Tensor],
    x0: State,
    *,
    log_prior: Callable[[Tensor], Tensor] | None = None,
    schedule: float | Callable[[int], float],
    steps: int,
    friction: float = 0.1,
    gradient_noise: float | Tensor | None = None,
    batch_size: int | None = None,
    preconditioner: Any = None,
    centre: Tensor | None = None,
    biased: bool = False,
    burn_in: int = 0,
    save_every: int = 1,
    seed: int = 0,
    first_id: int = 0,
) -> Chains:
    r"""Sample p(x | y_1..y_N) from mini-batches, with a momentum that friction and noise keep in equilibrium:

        v' = (1 - a) v + eta_k M g + N(0, 2 (a - b) eta_k M),   eta_k = eps_k/2,   v = 0 at first,
        x' = x + v',                                            b = eta_k M B/2,

    g the gradient of `sgld`, a = ``friction``, B the variance of g over batches: that is noise too, and b
    leaves so much out of what is added. a = 1 with B = 0 is `sgld` itself, of the same steps eps_k; a small a
    keeps a direction for about 1/a steps.

    On a Gaussian of precision L (all data, M = 1, constant step) the variance is 1/(L (1 - eta L/(4 - 2a))):
    the error of the step falls with a, to half of that of `sgld`. Batches of variance B make it
    1 + (eta B/2 - b)/a times as large, so that where B is not given, a small a needs smaller steps.

    Parameters
    ----------
    friction
        a in (0, 1].
    gradient_noise
        B, a number or (*event), variances of the elements of g at the mode, in units of 1/x^2; None for 0.
        Not beside a full preconditioner.
    others
        As in `sgld`; M is the inverse of the mass.

    Raises
    ------
    What `sgld` does; ValueError: a friction out of range, or less than b: the batches alone are noisier than
    the friction lets be.

    References
    ----------
    Chen, Fox and Guestrin 2014, Stochastic gradient Hamiltonian Monte Carlo, equation 15 (alpha = a,
    beta^ = b, eta there is eta_k M).
    """
    a = as_number(friction)
    if not 0 < a <= 1:
        raise ValueError(
            f"friction must lie in (0, 1], got {friction!r}. Likely cause: the paper's C, of which this is "
            f"sqrt(eta) C. Next: 0.1, or 1 for sgld."
        )
    walk = Walk(
        log_likelihood, data, x0, log_prior=log_prior, schedule=schedule, steps=steps, batch_size=batch_size,
        centre=centre, biased=biased, burn_in=burn_in, save_every=save_every, seed=seed, first_id=first_id,
    )  # fmt: skip
    posterior, (times_m, times_root) = walk.posterior, preconditioned(preconditioner, walk.x)
    noise = _noise(gradient_noise, preconditioner, walk.x)
    v = torch.zeros_like(walk.x)

    def rule(k: int, eps: float, x: Tensor) -> Tensor:
        nonlocal v
        eta = eps / 2
        rest = a if noise is None else _rest(a - 0.5 * eta * noise, a, k, eps)
        xi = times_root(walk.normal(k))
        xi = xi * (rest * (2 * eta)) ** 0.5
        v = v * (1 - a) + times_m(posterior.gradient(x, posterior.batch(k))) * eta + xi
        return x + v

    return walk.run(rule, f"{4 * (2 - a):.3g}/L")


def _noise(noise: Any, m: Any, x: Tensor) -> Tensor | None:
    """M B of each element, on the device and in the dtype of x."""
    if noise is None:
        return None
    event = x.shape[1:]
    b, m = (torch.as_tensor(1.0 if v is None else v).detach().to(x) for v in (noise, m))
    for name, v in (("gradient_noise", b), ("preconditioner beside gradient_noise", m)):
        if v.ndim and v.shape != event:
            raise ShapeError(
                f"{name} must be a number or {tuple(event)}, one for each element, got shape "
                f"{tuple(v.shape)}. Likely cause: a covariance matrix. Next: its diagonal."
            )
    if not bool(((b >= 0) & torch.isfinite(b)).all()):
        raise ValueError("gradient_noise must be finite and >= 0 in every element. Next: variances.")
    scaled: Tensor = m * b
    return scaled


def _rest(rest: Tensor, a: float, k: int, eps: float) -> Tensor:
    """a - b. Raises ValueError where it is negative."""
    if bool((rest < 0).any()):
        b = a - float(rest.min())
        raise ValueError(
            f"friction = {a} is less than b = {b:.3g}: the batches alone are noisier at step {k}, of eps = "
            f"{eps:.3g}, than it allows. Next: steps below {eps * a / b:.3g}, larger batches, or a centre."
        )
    return rest
