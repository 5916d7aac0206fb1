"""Training: networks, losses, the loop, and trained models on disk."""

from sdekit.matching import losses, ncsn, nets
from sdekit.matching.checkpoint import load, save
from sdekit.matching.fit import FitResult, fit

__all__ = ["FitResult", "fit", "load", "losses", "ncsn", "nets", "save"]
