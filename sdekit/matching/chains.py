"""What the chains of stochastic-gradient Monte Carlo leave behind, and the loop that all of them share."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from sdekit._typing import State
from sdekit.errors import NonFiniteError, check_count, check_first_id, check_positive, check_state
from sdekit.matching.arguments import check_seed
from sdekit.matching.posterior import Posterior, plain
from sdekit.matching.schedules import require, robbins_monro
from sdekit.noise import Philox
from sdekit.sde.rows import flat

__all__ = ["Chains", "Walk"]


@dataclass(frozen=True)
class Chains:
    """What `sgld`, `psgld` and `sghmc` return: xs (K, B, *event), states kept; weights (K,) float64, their
    steps eps_k.

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


class Walk:
    """One run of `sgld` and its companions: everything but the rule of the step, checked.

    x (B, *event), where the chains start; posterior, whose gradients the rule asks for; ``normal(k)``, the
    numbers of step k. Raises what `sgld` does.
    """

    def __init__(
        self,
        log_likelihood: Callable[..., Tensor],
        data: Any,
        x0: State,
        *,
        log_prior: Callable[[Tensor], Tensor] | None,
        schedule: float | Callable[[int], float],
        steps: int,
        batch_size: int | None,
        centre: Tensor | None,
        biased: bool,
        burn_in: int,
        save_every: int,
        seed: int,
        first_id: int,
    ) -> None:
        if torch.is_inference_mode_enabled():
            raise RuntimeError(
                "log-densities have no gradients within torch.inference_mode(). Next: call it outside of "
                "that block; torch.no_grad() does no harm."
            )
        require(robbins_monro(schedule), biased)
        self.x = x = plain(check_state(x0).detach())
        self.schedule, self.steps = schedule, check_count(steps, "steps")
        self.every, self.skip = check_count(save_every, "save_every"), check_count(burn_in, "burn_in", 0)
        own = torch.arange(len(x), dtype=torch.int64, device=x.device)
        seed = check_seed(seed)
        self.ids, self.source = check_first_id(first_id, len(x)) + own, Philox(seed)
        self.posterior = Posterior(log_likelihood, log_prior, data, x, self.ids, batch_size, centre, seed)
        if self.skip + self.every > self.steps:
            raise ValueError(
                f"of {self.steps} steps none is kept with burn_in={burn_in}, save_every={save_every}."
            )

    def normal(self, k: int) -> Tensor:
        """xi ~ N(0, I) of step k, (B, *event)."""
        return self.source.normal(k, self.x, self.ids)

    def run(self, rule: Callable[[int, float, Tensor], Tensor], limit: str) -> Chains:
        """All steps x <- rule(k, eps_k, x). limit: of eps, for the error of a chain that diverges."""
        x, kept, weights = self.x, [], []
        for k in range(self.steps):
            eps = self.schedule
            eps = check_positive(eps(k), f"schedule({k})") if callable(eps) else float(eps)
            x = rule(k, eps, x)
            _finite(x, k, eps, limit)
            if k >= self.skip and (k - self.skip + 1) % self.every == 0:
                kept.append(x)
                weights.append(eps)
        return Chains(torch.stack(kept), torch.tensor(weights, dtype=torch.float64, device=x.device))


def _finite(x: Tensor, k: int, eps: float, limit: str) -> None:
    good = flat(torch.isfinite(x)).all(dim=1)
    if not bool(good.all()):
        chain = int((~good).nonzero()[0])
        raise NonFiniteError(
            f"{int((~good).sum())} of {len(x)} chains are not finite after step {k}; first: chain {chain}. "
            f"Likely cause: eps = {eps:.3g} above the limit of stability, {limit} for curvature L of -log p "
            f"(times M). Next: smaller steps, or a preconditioner."
        )
