"""Normal numbers as a pure function of (seed, purpose, sample id, draw, element), and other sources."""

from sdekit.noise.brownian import BrownianTree, Increments
from sdekit.noise.source import Noise, Philox, Purpose, Recorded, TorchNoise, as_noise

__all__ = ["BrownianTree", "Increments", "Noise", "Philox", "Purpose", "Recorded", "TorchNoise", "as_noise"]
