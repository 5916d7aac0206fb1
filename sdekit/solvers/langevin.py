"""Langevin Monte Carlo as solvers: unadjusted, and Metropolis-adjusted."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sdekit.errors import CapabilityError, NonFiniteError, ShapeError
from sdekit.sde.langevin import Langevin
from sdekit.sde.rows import flat, fold
from sdekit.solvers.base import Carry, Interval, Solver, register

__all__ = ["MALA", "ULA", "Acceptance"]


def _law(system: Any, name: str) -> Langevin:
    """The Langevin SDE behind what a solver is given. Raises CapabilityError for any other system."""
    found = getattr(system, "system", system)
    if not isinstance(found, Langevin):
        raise CapabilityError(
            f"solver {name!r} is for Langevin dynamics, got {type(found).__name__}. Next: "
            f"sdekit.Langevin(score, log_prob=...), or 'euler-maruyama' for any SDE."
        )
    return found


@register
@dataclass(frozen=True)
class ULA(Solver):
    """x' = x + h score(x) + sqrt(2 h) xi: Euler-Maruyama on `Langevin`, the unadjusted Langevin algorithm.

    Its stationary law is biased at order h: N(0, v) becomes N(0, v/(1 - h/(2 v))), exactly, for h < 2 v.
    Roberts and Tweedie 1996, section 1.4.1.
    """

    name = "ula"
    kind = "sde"
    noise_types = ("additive",)
    sde_types = ("ito",)
    weak_order = 1.0
    strong_order = 1.0
    normals = 1
    reference = "Roberts and Tweedie 1996; Parisi 1981"

    def init(self, system: Any, x: Tensor, t: Tensor) -> Carry:
        _law(system, self.name)
        return ()

    def step(self, system: Any, x: Tensor, interval: Interval, carry: Carry) -> tuple[Tensor, Carry]:
        assert interval.W is not None
        return x + system.drift(x, interval.times[0]) * interval.h + math.sqrt(2.0) * interval.W, ()


@register
@dataclass(frozen=True)
class MALA(Solver):
    """A step of `ULA` to y, taken with probability min(1, r), else x' = x: p is stationary at any h, exactly.

        r = p(y) q(x | y) / (p(x) q(y | x)),   log q(y | x) = -|y - x - h score(x)|^2/(4 h) + const.

    Each sample has its own decision. A proposal where log p or r is not a number is refused. In high
    dimension the best h accepts 0.574 of the proposals (Roberts and Rosenthal 1998); `Acceptance` counts.
    Needs ``Langevin(..., log_prob=...)``. One evaluation of score and log p a step, and one at the start.
    strong_order: refusals have probability O(h^(3/2)) and move by O(h^(1/2)) (Bou-Rabee and
    Vanden-Eijnden 2010).
    """

    name = "mala"
    kind = "sde"
    noise_types = ("additive",)
    sde_types = ("ito",)
    weak_order = 1.0
    strong_order = 0.75
    normals = 2
    reference = "Roberts and Tweedie 1996, section 1.4.2; Besag 1994"

    def init(self, system: Any, x: Tensor, t: Tensor) -> Carry:
        """(score, log p) at x. Raises NonFiniteError where no proposal could ever be accepted."""
        law = _law(system, self.name)
        if not law.has_density:
            raise CapabilityError(
                "solver 'mala' accepts by log p, and this Langevin knows its score only. Next: "
                "Langevin(score, log_prob=...), or 'ula'."
            )
        score, density = system.drift(x, t), law.log_prob(x)
        stuck = torch.isnan(density) | (density == math.inf)
        stuck |= ~flat(torch.isfinite(score)).all(dim=1)
        if bool(stuck.any()):
            i = int(stuck.nonzero()[0])
            slope = "finite" if bool(torch.isfinite(score[i]).all()) else "not finite"
            raise NonFiniteError(
                f"'mala' cannot leave the start of {int(stuck.sum())} of {x.shape[0]} samples; first: sample "
                f"{i}, where log p = {float(density[i]):g} and the score is {slope}. Likely cause: a start "
                f"outside the support, or a log_prob that returns NaN. Next: start where both are finite."
            )
        return score, density

    def step(self, system: Any, x: Tensor, interval: Interval, carry: Carry) -> tuple[Tensor, Carry]:
        assert interval.W is not None
        assert interval.H is not None
        (score, density), h = carry, interval.h
        y = x + score * h + math.sqrt(2.0) * interval.W
        score_y, density_y = system.drift(y, interval.times[0]), _law(system, self.name).log_prob(y)
        back = x - y - score_y * h
        log_r = (density_y - density).double() + _squares(interval.W) / (2 * h) - _squares(back) / (4 * h)
        accept = _log_uniform(interval.H, h) <= log_r
        rows = accept.reshape(-1, *(1,) * (x.ndim - 1))
        carry = torch.where(rows, score_y, score), torch.where(accept, density_y, density)
        return torch.where(rows, y, x), carry


def _squares(x: Tensor) -> Tensor:
    """|x|^2 of each sample, (B,) float64."""
    wide = x.double()
    return fold(flat(wide * wide))


def _log_uniform(levy: Tensor, h: float) -> Tensor:
    """log of a uniform number of each sample, (B,) float64: log Phi of the first element of H's normal."""
    out: Tensor = torch.special.log_ndtr(flat(levy)[:, 0].double() / math.sqrt(h / 12))
    return out


class Acceptance:
    """Counts the accepted proposals of a run of `MALA`: ``callback=Acceptance(x0)`` in `solve`.

    A refused proposal leaves every element of a sample as it was. rate: (B,) float64, accepted over
    proposed, for each sample. Use a new one for each run.
    """

    def __init__(self, x0: Tensor) -> None:
        self._last = torch.as_tensor(x0)
        self._moved = torch.zeros(self._last.shape[0], dtype=torch.float64, device=self._last.device)
        self._steps = 0

    def __call__(self, step: int, t: Any, x: Tensor) -> None:
        if x.shape != self._last.shape:
            raise ShapeError(
                f"this Acceptance was made for states of shape {tuple(self._last.shape)}, got "
                f"{tuple(x.shape)}. Next: a new Acceptance(x0) for each run."
            )
        self._moved += flat(x != self._last).any(dim=1)
        self._last = x
        self._steps += 1

    @property
    def rate(self) -> Tensor:
        """(B,) accepted proposals over proposals; NaN before the first step."""
        return self._moved / self._steps if self._steps else torch.full_like(self._moved, math.nan)
