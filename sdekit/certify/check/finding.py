"""Finding: what one test of `sdekit.check` says."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["POWER", "Finding"]

#: The power at which effects are stated.
POWER = 0.9


@dataclass(frozen=True)
class Finding:
    """One test. pvalue: its own; adjusted: Holm's, compared with alpha.

    observed, detectable: the effect found, and the effect that is found with probability 90 % at this number
    of samples and this alpha, in the same ``unit``; detectable None where no formula gives it.
    """

    name: str
    pvalue: float
    observed: float
    detectable: float | None
    unit: str
    adjusted: float = 1.0
    failed: bool = False
