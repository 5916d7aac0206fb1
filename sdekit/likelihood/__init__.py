"""Log-densities of models: the probability flow with its Jacobian, bounds by the SDE, dequantisation."""

from sdekit.likelihood.bound import Bound, elbo
from sdekit.likelihood.door import log_prob
from sdekit.likelihood.pixels import bits_per_dimension, dequantize
from sdekit.likelihood.result import LogProb

__all__ = ["Bound", "LogProb", "bits_per_dimension", "dequantize", "elbo", "log_prob"]
