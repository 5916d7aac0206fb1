"""What `log_prob` returns: log-densities, their parts and their uncertainty."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sdekit.errors import check_positive
from sdekit.likelihood.checks import check_law, prior_density
from sdekit.likelihood.pixels import bits_per_dimension

__all__ = ["LogProb"]


@dataclass(frozen=True)
class LogProb:
    r"""log p(x) = log pi(x_T) + log|dx_T/dx| - truncation, each (B,) float64, in nats.

    value: log p(x), (B,). stderr: (B,), the standard error that the probes leave: 0 for exact traces,
    infinite for a single probe. nfe: calls of the network. log_prior: log pi(x_T), pi the law at t_max that
    was used. log_det: log|dx_T/dx|. latent: x_T, (B, *event). truncation: the estimate of
    log p_{t_min} - log p_0 at the same point, from the noise left at t_min; part of ``value`` with
    end="clean" alone. mismatch: with ``prior=``, log prior(x_T) - log N(x_T; 0, prior_std^2 I): what the
    process's own prior would have missed; else None. probes: number of probes, 0 for exact traces.
    t_min, t_max: the times between which the flow was solved. skewness: of the probes' estimates,
    sum (l - mean)^3/K over the 3/2 power of sum (l - mean)^2/K, (B,); None without probes.
    """

    value: Tensor
    stderr: Tensor
    nfe: int
    log_prior: Tensor
    log_det: Tensor
    latent: Tensor
    truncation: Tensor
    mismatch: Tensor | None = None
    probes: int = 0
    t_min: float = 0.0
    t_max: float = 0.0
    skewness: Tensor | None = None

    @property
    def dimension(self) -> int:
        """D, the number of elements of one sample."""
        return math.prod(self.latent.shape[1:])

    def interval(self, confidence: float = 0.95) -> tuple[Tensor, Tensor]:
        """(low, high), each (B,): where |g(T)| <= q, T = (value - truth)/stderr.

            g(T) = T + a T^2/3 + a^2 T^3/27 + a/6,   a = skewness/sqrt(probes),

        q the quantile of Student's t with probes - 1 degrees. Estimates v.Jv are skewed where few directions
        make the trace, and g takes the first effect of it out of T; at a = 0 the interval is value -+ q
        stderr. It holds the error of the trace alone, for each sample on its own. Of 2,000 truths on mixtures
        with D = 6 to 80, 95 % intervals of 3 to 8 Rademacher probes held 90 to 96 %; of 2, with no skewness
        to see, 89 %. Raises ValueError for a confidence outside (0, 1). Hall 1992.
        """
        if not 0 < check_positive(confidence, "confidence") < 1:
            raise ValueError(f"confidence must lie in (0, 1), got {confidence}.")
        if self.probes == 0:
            return self.value, self.value
        if self.probes == 1:
            return torch.full_like(self.value, -math.inf), torch.full_like(self.value, math.inf)
        from scipy.special import stdtrit

        q = float(stdtrit(self.probes - 1, 0.5 + 0.5 * confidence))
        skewness = torch.zeros_like(self.stderr) if self.skewness is None else self.skewness
        a = skewness / math.sqrt(self.probes)
        return self.value - self.stderr * _inverse(q, a), self.value - self.stderr * _inverse(-q, a)

    def bits_per_dimension(self, *, levels: int = 256, low: float = 0.0, high: float = 1.0) -> Tensor:
        """`bits_per_dimension` of ``value``, (B,): of x made by `dequantize` with the same arguments."""
        return bits_per_dimension(self.value, self.dimension, levels=levels, low=low, high=high)

    def against(self, prior: Any) -> Tensor:
        """log prior(x_T) - log pi(x_T), (B,): what ``value`` would gain under another law at t_max.

        prior: with ``log_prob(x)``, such as ``target.marginal(process, result.t_max)``. Raises TypeError
        without one, ShapeError and NonFiniteError for its values.
        """
        check_law(prior)
        return prior_density(prior, self.latent) - self.log_prior

    def __repr__(self) -> str:
        trace = f"{self.probes} probes" if self.probes else "exact trace"
        if not len(self.value):
            return f"LogProb(0 samples, D={self.dimension}, {trace})"
        value, stderr = self.value.detach(), self.stderr.detach()
        return (
            f"LogProb({len(value)} samples, D={self.dimension}, mean {float(value.mean()):.6g} nats, "
            f"{trace}, stderr {float(stderr.median()):.2g}, nfe={self.nfe})"
        )


def _inverse(q: float, a: Tensor) -> Tensor:
    """T with T + a T^2/3 + a^2 T^3/27 + a/6 = q: (1 + a T/3)^3 = 1 + a (q - a/6)."""
    rest = q - a / 6
    cube = 1 + a * rest
    root = cube.sign() * cube.abs() ** (1 / 3)
    return 3 * rest / (root * root + root + 1)
