"""Stratonovich methods that see W alone: any noise, strong order 1/2, and 1 where the noise commutes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from sdekit.solvers.base import NOISE_TYPES, Carry, Interval, Solver, register

__all__ = ["EulerHeun", "StratonovichHeun", "StratonovichMidpoint"]


class _Stratonovich(Solver):
    kind = "sde"
    noise_types = NOISE_TYPES
    sde_types = ("stratonovich",)
    weak_order = 1.0
    strong_order = 0.5
    normals = 1


@register
@dataclass(frozen=True)
class EulerHeun(_Stratonovich):
    """y = x + G(x, t) W,  x' = x + f(x, t) h + 1/2 (G(x, t) + G(y, t + h)) W.

    One drift and two diffusions. Strong order 1/2, 1 for noise that commutes; weak order 1.
    Burrage, Burrage and Tian 2004, Proceedings of the Royal Society A 460, 373.
    """

    name = "euler-heun"
    nodes = (0.0, 1.0)
    reference = "Burrage, Burrage and Tian 2004"

    def step(self, system: Any, x: Tensor, interval: Interval, carry: Carry) -> tuple[Tensor, Carry]:
        (t, end), h, W = interval.times, interval.h, interval.W
        drift, first = system.drift(x, t), system.apply_noise(system.diffusion(x, t), W)
        second = system.apply_noise(system.diffusion(x + first, end), W)
        return x + drift * h + 0.5 * (first + second), ()


@register
@dataclass(frozen=True)
class StratonovichHeun(_Stratonovich):
    """F(x, t) = f h + G W,  y = x + F(x, t),  x' = x + 1/2 (F(x, t) + F(y, t + h)).

    Two drifts and two diffusions; order 2 where there is no noise. Strong order 1/2, 1 for noise that
    commutes; weak order 1. Ruemelin 1982, SIAM Journal on Numerical Analysis 19, 604.
    """

    name = "heun"
    nodes = (0.0, 1.0)
    reference = "Ruemelin 1982"

    def step(self, system: Any, x: Tensor, interval: Interval, carry: Carry) -> tuple[Tensor, Carry]:
        (t, end), h, W = interval.times, interval.h, interval.W
        first = system.drift(x, t) * h + system.apply_noise(system.diffusion(x, t), W)
        y = x + first
        second = system.drift(y, end) * h + system.apply_noise(system.diffusion(y, end), W)
        return x + 0.5 * (first + second), ()


@register
@dataclass(frozen=True)
class StratonovichMidpoint(_Stratonovich):
    """F(x, t) = f h + G W,  y = x + 1/2 F(x, t),  x' = x + F(y, t + h/2).

    Two drifts and two diffusions; order 2 where there is no noise. Strong order 1/2, 1 for noise that
    commutes; weak order 1. Burrage, Burrage and Tian 2004, Proceedings of the Royal Society A 460, 373.
    """

    name = "midpoint"
    nodes = (0.0, 0.5)
    reference = "Burrage, Burrage and Tian 2004"

    def step(self, system: Any, x: Tensor, interval: Interval, carry: Carry) -> tuple[Tensor, Carry]:
        (t, middle), h, W = interval.times, interval.h, interval.W
        y = x + 0.5 * (system.drift(x, t) * h + system.apply_noise(system.diffusion(x, t), W))
        return x + system.drift(y, middle) * h + system.apply_noise(system.diffusion(y, middle), W), ()
