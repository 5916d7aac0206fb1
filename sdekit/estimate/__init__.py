"""Means of functionals of a solution, with errors: ``sdekit.estimate(functional, system, x0, span)``."""

from __future__ import annotations

from sdekit._callable import callable_module
from sdekit.estimate.coupled import Merged
from sdekit.estimate.door import estimate
from sdekit.estimate.quasi import QuasiNoise
from sdekit.estimate.result import Estimate, Level

__all__ = ["Estimate", "Level", "Merged", "QuasiNoise", "estimate"]

callable_module(__name__, estimate)
