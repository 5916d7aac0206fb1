"""Distances between samples and a law, or between two sets of samples, each with its Monte Carlo floor.

Samples are tensors or arrays (n, *event), of any origin; ``against`` is a second set or a target. Every
function returns a `Metric`: the value, its standard error, the value that exact samples of the same size
stay below 95 times in 100, and a p-value. Everything random follows from ``seed`` and the samples.
"""

from sdekit.certify.metrics.classifier import c2st
from sdekit.certify.metrics.moments import w2_gaussian
from sdekit.certify.metrics.one_dimension import ks
from sdekit.certify.metrics.pairs import energy_distance, mmd
from sdekit.certify.metrics.result import Metric
from sdekit.certify.metrics.sliced import sliced_w2

__all__ = ["Metric", "c2st", "energy_distance", "ks", "mmd", "sliced_w2", "w2_gaussian"]
