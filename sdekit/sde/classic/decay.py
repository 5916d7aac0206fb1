"""The decay of a number of molecules, one at a time."""

from __future__ import annotations

import torch
from torch import Tensor

from sdekit._typing import Number
from sdekit.errors import check_count, check_positive
from sdekit.noise import Noise
from sdekit.sde.base import SDE
from sdekit.sde.classic._door import check_domain, elapsed
from sdekit.sde.classic.laws import Binomial, poisson
from sdekit.sde.classic.square_root import root
from sdekit.sde.laws import draw

__all__ = ["LinearDecay"]


class LinearDecay:
    """The jump process n -> n - 1 at rate k n, elementwise: N_t is Binomial(n0, e^(-k t)).

    rate k > 0 (1/time). The process on which tau-leaping is exactly known: a leap of length h takes away a
    Poisson(k h n) number, so that after j leaps E n = n0 (1 - k h)^j (`leap_moments`). The chemical Langevin
    equation dX = -k X dt - sqrt(k X) dW (`langevin`) has the mean and variance of the process.

    Gillespie 2001, Journal of Chemical Physics 115, 1716; Gillespie 2000, 113, 297. Raises ValueError for
    a rate that is not positive.
    """

    def __init__(self, rate: float = 1.0) -> None:
        self.rate = check_positive(rate, "rate")

    def transition(self, n: Tensor, s: Number, t: Number) -> Binomial:
        """Law of N_t given N_s = n, whole numbers >= 0 of floating dtype, (B, *event). s <= t: () or (B,).

        Raises DirectionError for s > t, ValueError for n that is negative or not whole.
        """
        check_domain(n, (n >= 0) & (n == torch.floor(n)), "{0, 1, 2, ...}")
        p = torch.exp(-self.rate * elapsed(n, s, t)).to(n.dtype)
        return Binomial(n, p.expand(n.shape))

    def leap_moments(self, n: Tensor, h: float, leaps: int) -> tuple[Tensor, Tensor]:
        """Mean and variance after ``leaps`` of length h without truncation at 0, exactly, (B, *event).

        m' = (1 - k h) m, v' = (1 - k h)^2 v + k h m.
        """
        share = self.rate * check_positive(h, "h")
        mean, variance = n, torch.zeros_like(n)
        for _ in range(check_count(leaps, "leaps", minimum=0)):
            mean, variance = (1.0 - share) * mean, (1.0 - share) ** 2 * variance + share * mean
        return mean, variance

    def leap(
        self, n: Tensor, h: float, leaps: int, seed: int = 0, *, noise: Noise | None = None, first_id: int = 0
    ) -> Tensor:
        """The state after ``leaps`` of length h, held at 0 from below, (B, *event). Leap j takes draw j."""
        share = self.rate * check_positive(h, "h")
        out = n.to(torch.float64)
        for j in range(check_count(leaps, "leaps", minimum=0)):
            u = torch.special.ndtr(draw(out, seed, noise, first_id, j))
            out = (out - poisson(share * out, u)).clamp(min=0.0)
        return out.to(n.dtype)

    def langevin(self) -> SDE:
        """The chemical Langevin equation dX = -k X dt - sqrt(k X) dW, with sqrt(0) below 0."""
        k = self.rate
        return SDE(lambda x, t: -k * x, lambda x, t: -(k**0.5) * root(x), noise_type="diagonal")

    def __repr__(self) -> str:
        return f"LinearDecay(rate={self.rate:g})"
