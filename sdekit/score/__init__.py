"""Score models: what a network predicts, and everything else from it."""

from sdekit.score.arrays import numpy_score
from sdekit.score.energy import Energy, curl
from sdekit.score.model import Denoiser, ExactDenoiser

__all__ = ["Denoiser", "Energy", "ExactDenoiser", "curl", "numpy_score"]
