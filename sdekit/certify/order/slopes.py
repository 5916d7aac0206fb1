"""Errors at several numbers of steps, and the order that they show."""

from __future__ import annotations

import math
from dataclasses import dataclass

__all__ = ["OrderRow"]


@dataclass(frozen=True)
class OrderRow:
    """error(n) at n steps on one problem, and its slope.

    measure: "weak", "strong" or "deterministic". noise_type, sde_type: of the problem, "" where they do not
    apply. floor: errors below it are rounding, and are left out of the slope.
    """

    measure: str
    problem: str
    noise_type: str
    sde_type: str
    steps: tuple[int, ...]
    errors: tuple[float, ...]
    floor: float = 0.0

    @property
    def finest(self) -> tuple[tuple[int, float], ...]:
        """The two largest step counts whose errors are above rounding; () where there are none."""
        seen = []
        for n, error in zip(self.steps, self.errors, strict=True):
            if not error > self.floor:
                break
            seen.append((n, error))
        return tuple(seen[-2:]) if len(seen) > 1 else ()

    @property
    def order(self) -> float:
        """log(e_n / e_m)/log(m/n) for the two largest counts n < m above rounding; inf: exact.

        NaN where the errors are not finite, or only one is above rounding.
        """
        if not all(math.isfinite(error) for error in self.errors):
            return math.nan
        if not self.errors[0] > self.floor:
            return math.inf
        if not self.finest:
            return math.nan
        (n, coarse), (m, fine) = self.finest
        return math.log(coarse / fine) / math.log(m / n)

    def cells(self) -> tuple[str, ...]:
        """The row of a printed table."""
        last = ", ".join(f"{error:.3g} ({n})" for n, error in self.finest) or "rounding"
        order = "exact" if self.order == math.inf else f"{self.order:.2f}"
        return self.measure, self.problem, self.noise_type, self.sde_type, order, last
