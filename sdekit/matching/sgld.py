r"""Stochastic gradient Langevin dynamics: a posterior from mini-batches, with steps that shrink."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from sdekit._typing import State
from sdekit.errors import (
    NonFiniteError,
    ShapeError,
    check_count,
    check_first_id,
    check_positive,
    check_state,
    out_of_place,
)
from sdekit.matching.schedules import require, robbins_monro
from sdekit.noise import Philox, Purpose
from sdekit.noise.philox import derive_key, words
from sdekit.sde.rows import flat, matvec

__all__ = ["Chains", "sgld"]


@dataclass(frozen=True)
class Chains:
    """What `sgld` returns: xs (K, B, *event), the states kept; weights (K,) float64, their steps eps_k.

    Averages weigh a state by its step (Welling and Teh 2011), over steps and chains.
    """

    xs: Tensor
    weights: Float[Tensor, " K"]

    @property
    def x(self) -> Tensor:
        """The last states, (B, *event)."""
        return self.xs[-1]

    def average(self, values: Tensor) -> Tensor:
        """Each chain's average of values (K, B, ...): (B, ...), float64."""
        w = (self.weights / self.weights.sum()).reshape(-1, *[1] * (values.ndim - 1))
        return (w * values.double()).sum(dim=0)

    @property
    def mean(self) -> Tensor:
        """Posterior mean, (*event), float64."""
        return self.average(self.xs).mean(dim=0)

    @property
    def std(self) -> Tensor:
        """Posterior standard deviation of each element, (*event), float64."""
        return self.average((self.xs.double() - self.mean).square()).mean(dim=0).sqrt()

    @property
    def stderr(self) -> Tensor:
        """Standard error of the mean, (*event): from the spread of the chains, which are independent.

        The statistical error alone; that of the step is not in it. NaN for one chain.
        """
        means = self.average(self.xs)
        return means.std(dim=0) / math.sqrt(len(means)) if len(means) > 1 else means[0] * math.nan

    @property
    def ess(self) -> Tensor:
        """Effective number of independent samples, (std/stderr)^2, (*event)."""
        return (self.std / self.stderr).square()


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
    require(robbins_monro(schedule), biased)
    x = check_state(x0).detach()
    rows = _tables(data, x)
    total, count = len(rows[0]), check_count(steps, "steps")
    size = total if batch_size is None else check_count(batch_size, "batch_size")
    every, skip = check_count(save_every, "save_every"), check_count(burn_in, "burn_in", 0)
    if skip + every > count:
        raise ValueError(f"of {count} steps none is kept with burn_in={burn_in}, save_every={save_every}.")
    ids = check_first_id(first_id, len(x)) + torch.arange(len(x), dtype=torch.int64, device=x.device)
    drift_of, noise_of = _preconditioner(preconditioner, x)
    source, key = Philox(seed), derive_key(seed, Purpose.TRAINING)
    posterior = _Posterior(log_likelihood, log_prior, rows)
    anchor = None if centre is None else _centre(centre, x)
    offset = None if anchor is None else posterior.slope(anchor, posterior.all(len(x)), 1.0, prior=False)

    kept, weights = [], []
    for k in range(count):
        eps = check_positive(schedule(k), f"schedule({k})") if callable(schedule) else float(schedule)
        batch = posterior.all(len(x)) if batch_size is None else posterior.draw(key, k, ids, size)
        g = posterior.slope(x, batch, total / size)
        if anchor is not None and offset is not None:
            g = g - posterior.slope(anchor, batch, total / size, prior=False) + offset
        x = x + drift_of(g) * (0.5 * eps) + noise_of(source.normal(k, x, ids)) * math.sqrt(eps)
        _finite(x, k, eps)
        if k >= skip and (k - skip + 1) % every == 0:
            kept.append(x)
            weights.append(eps)
    return Chains(torch.stack(kept), torch.tensor(weights, dtype=torch.float64, device=x.device))


class _Posterior:
    """The functions of the user, their batches and their gradients."""

    def __init__(self, likelihood: Any, prior: Any, rows: list[Tensor]) -> None:
        self.likelihood, self.prior, self.rows = likelihood, prior, rows

    def all(self, chains: int) -> list[Tensor]:
        """All data for each chain, (B, N, *), without a copy."""
        return [r.expand(chains, *r.shape) for r in self.rows]

    def draw(self, key: tuple[int, int], k: int, ids: Tensor, size: int) -> list[Tensor]:
        """Batch k of each chain, (B, n, *): row floor(N w/2^32) for a word w."""
        w = words(key, k, ids, 4 * -(-size // 4)).flatten(1)[:, :size]
        index = (w * len(self.rows[0])) >> 32
        return [r[index] for r in self.rows]

    def slope(self, x: Tensor, batch: list[Tensor], scale: float, prior: bool = True) -> Tensor:
        """grad (log prior + scale * sum of log-likelihoods), shape of x."""
        with torch.enable_grad():
            y = x.detach().requires_grad_()
            values = out_of_place(lambda z: self.likelihood(z, *batch), y, "log_likelihood")
            values = _shaped(values, batch[0].shape[:2], "log_likelihood")
            value = scale * values.sum()
            if prior and self.prior is not None:
                value = value + _shaped(self.prior(y), x.shape[:1], "log_prior").sum()
            (out,) = torch.autograd.grad(value, y)
        return out


def _shaped(out: Any, shape: torch.Size, name: str) -> Tensor:
    if not isinstance(out, Tensor) or out.shape != shape:
        got = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
        what = "(B, n), one number a row of each chain's batch" if len(shape) == 2 else "(B,), one a chain"
        raise ShapeError(
            f"{name} must return shape {tuple(shape)}, {what}, got {got}. Likely cause: a sum too many or "
            f"too few, or parameters (B, D) against features (B, n, D). Next: (features * "
            f"x[:, None]).sum(-1)."
        )
    return out


def _tables(data: Any, x: Tensor) -> list[Tensor]:
    rows = [torch.as_tensor(r, device=x.device) for r in (data if isinstance(data, list | tuple) else [data])]
    if not rows or any(r.ndim < 1 for r in rows) or len({len(r) for r in rows}) != 1 or len(rows[0]) == 0:
        shapes = [tuple(r.shape) for r in rows]
        raise ShapeError(
            f"data must be tensors of one and the same number N >= 1 of rows, got {shapes}. Likely cause: "
            f"features without their labels, or a list of data. Next: torch.stack(list), or (features, "
            f"labels)."
        )
    if len(rows[0]) >= 2**31:
        raise ShapeError(f"data must have fewer than 2^31 rows, got {len(rows[0])}.")
    for i, r in enumerate(rows):
        if r.is_floating_point() and not bool(torch.isfinite(r).all()):
            raise NonFiniteError(f"data {i} holds NaN or infinity. Next: drop or repair those rows.")
    return [r.to(x.dtype) if r.is_floating_point() else r for r in rows]


def _centre(centre: Any, x: Tensor) -> Tensor:
    c = check_state(torch.as_tensor(centre)[None], "centre")
    if c.shape[1:] != x.shape[1:]:
        raise ShapeError(f"centre must have shape {tuple(x.shape[1:])}, got {tuple(c.shape[1:])}.")
    return c.detach().to(x).expand_as(x)


def _preconditioner(m: Any, x: Tensor) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
    """z -> M z and z -> M^(1/2) z for states; the root by Cholesky for a matrix."""
    if m is None:
        return (lambda z: z), (lambda z: z)
    matrix = torch.as_tensor(m, dtype=torch.float64, device=x.device).detach()
    event, size = x.shape[1:], flat(x).shape[1]
    if matrix.ndim == 0 or matrix.shape == event:
        if not bool(((matrix > 0) & torch.isfinite(matrix)).all()):
            raise ValueError("preconditioner must be finite and > 0 in every element. Next: variances.")
        scale, root = matrix.to(x.dtype), matrix.sqrt().to(x.dtype)
        return (lambda z: z * scale), (lambda z: z * root)
    if matrix.shape != (size, size):
        raise ShapeError(
            f"preconditioner must be a number, the diagonal {tuple(event)} or a matrix ({size}, {size}), got "
            f"shape {tuple(matrix.shape)}."
        )
    factor, info = torch.linalg.cholesky_ex(matrix)
    if int(info) or not torch.allclose(matrix, matrix.T, rtol=1e-6, atol=0.0):
        raise ValueError(
            "preconditioner must be symmetric and positive definite. Likely cause: a curvature that is not "
            "the mode's. Next: the inverse of minus the Hessian of log p at the mode."
        )
    full, root = matrix.to(x.dtype), factor.to(x.dtype)
    return (lambda z: matvec(full, flat(z)).view_as(z)), (lambda z: matvec(root, flat(z)).view_as(z))


def _finite(x: Tensor, k: int, eps: float) -> None:
    good = flat(torch.isfinite(x)).all(dim=1)
    if not bool(good.all()):
        chain = int((~good).nonzero()[0])
        raise NonFiniteError(
            f"{int((~good).sum())} of {len(x)} chains are not finite after step {k}; first: chain {chain}. "
            f"Likely cause: eps = {eps:.3g} above the limit of stability, 4/L for curvature L of -log p "
            f"(times M). Next: smaller steps, or a preconditioner."
        )
