"""Closed-form laws: samples, densities, scores and denoisers without an approximation."""

from sdekit.targets.base import Target
from sdekit.targets.empirical import Empirical
from sdekit.targets.gaussian import Gaussian
from sdekit.targets.mixture import GaussianMixture

__all__ = ["Empirical", "Gaussian", "GaussianMixture", "Target"]
