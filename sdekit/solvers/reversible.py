"""Reversible Heun: a step that can be taken back by algebra."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from sdekit.solvers.base import NOISE_TYPES, Carry, Interval, Solver, register

__all__ = ["ReversibleHeun"]


@register
@dataclass(frozen=True)
class ReversibleHeun(Solver):
    """With a second state z, z = x at the start, and F(z, t) = f(z, t) h + G(z, t) W:

        z' = 2 x - z + F(z, t),   x' = x + 1/2 (F(z, t) + F(z', t + h)).

    Stratonovich, any noise; one drift and one diffusion a step. What is kept between steps, (z, f, G) at the
    end of the last one, is enough to take the step back (`reverse_step`). Strong order 1/2, 1 for noise that
    commutes or does not depend on the state; weak order 1; order 2 where there is no noise. Its region of
    stability is a segment of the imaginary axis: stiff drifts need another method.
    Kidger, Foster, Li and Lyons 2021 (arXiv:2105.13493), algorithms 1 and 2.
    """

    name = "reversible-heun"
    kind = "sde"
    noise_types = NOISE_TYPES
    sde_types = ("stratonovich",)
    weak_order = 1.0
    strong_order = 0.5
    nodes = (0.0, 1.0)
    normals = 1
    reference = "Kidger, Foster, Li and Lyons 2021"

    def init(self, system: Any, x: Tensor, t: Tensor) -> Carry:
        """(z, f(z, t), G(z, t)) with z = x: shapes (B, *event) twice, and that of `SDE.noise_field`."""
        return x, system.drift(x, t), system.system.noise_field(x, t)

    def step(self, system: Any, x: Tensor, interval: Interval, carry: Carry) -> tuple[Tensor, Carry]:
        z, *fields = carry
        now = self._increment(system, interval, *fields)
        new = (2.0 * x - z) + now
        fields = self._fields(system, new, interval.times[1])
        return x + 0.5 * (now + self._increment(system, interval, *fields)), (new, *fields)

    def reverse_step(self, system: Any, x: Tensor, interval: Interval, carry: Carry) -> tuple[Tensor, Carry]:
        """The x and carry from which `step` with the same interval came to these, up to rounding."""
        z, *fields = carry
        now = self._increment(system, interval, *fields)
        old = (2.0 * x - z) - now
        fields = self._fields(system, old, interval.times[0])
        return x - 0.5 * (self._increment(system, interval, *fields) + now), (old, *fields)

    @staticmethod
    def _fields(system: Any, z: Tensor, t: Tensor) -> list[Tensor]:
        return [system.drift(z, t), system.system.noise_field(z, t)]

    @staticmethod
    def _increment(system: Any, interval: Interval, drift: Tensor, diffusion: Tensor) -> Tensor:
        out: Tensor = drift * interval.h + system.apply_noise(diffusion, interval.W)
        return out
