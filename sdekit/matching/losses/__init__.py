"""Losses that turn a network into a score model; each returns one value a sample.

At given points: `explicit`, `implicit`, `sliced`, `finite_difference`. On noised data: `one_noise`,
`multi_noise`, `denoising`, `likelihood_weighted`. Between two samples: `flow_matching`, `interpolant`. On any
SDE: `sliced_sde`. Of an energy, against samples of the model: `contrastive_divergence`.
"""

from sdekit.matching.losses.between import INTERPOLANTS, Interpolant, flow_matching, interpolant
from sdekit.matching.losses.contrastive import contrastive_divergence
from sdekit.matching.losses.direct import explicit, finite_difference, implicit, sliced
from sdekit.matching.losses.noised import denoising, likelihood_weighted, multi_noise, one_noise
from sdekit.matching.losses.simulated import sliced_sde
from sdekit.matching.losses.times import (
    TimeLaw,
    first_training_time,
    log_normal_times,
    time_density,
    training_times,
)
from sdekit.matching.losses.weights import Weighting, min_snr

__all__ = [
    "INTERPOLANTS",
    "Interpolant",
    "TimeLaw",
    "Weighting",
    "contrastive_divergence",
    "denoising",
    "explicit",
    "finite_difference",
    "first_training_time",
    "flow_matching",
    "implicit",
    "interpolant",
    "likelihood_weighted",
    "log_normal_times",
    "min_snr",
    "multi_noise",
    "one_noise",
    "sliced",
    "sliced_sde",
    "time_density",
    "training_times",
]
