"""Euler-Maruyama, the one SDE method that takes any noise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from sdekit.solvers.base import NOISE_TYPES, Carry, Interval, Solver, register

__all__ = ["EulerMaruyama"]


@register
@dataclass(frozen=True)
class EulerMaruyama(Solver):
    """x' = x + f(x, t) h + G(x, t) W, W = sqrt|h| N(0, I): Ito, any noise, forward and reverse.

    Weak order 1; strong order 1/2, and 1 for additive noise. Maruyama 1955; Kloeden and Platen 1992,
    section 10.2.
    """

    name = "euler-maruyama"
    kind = "sde"
    noise_types = NOISE_TYPES
    sde_types = ("ito",)
    weak_order = 1.0
    strong_order = 0.5
    normals = 1
    reference = "Maruyama 1955"

    def step(self, system: Any, x: Tensor, interval: Interval, carry: Carry) -> tuple[Tensor, Carry]:
        (t,) = interval.times
        drift = system.drift(x, t)
        return x + drift * interval.h + system.apply_noise(system.diffusion(x, t), interval.W), ()
