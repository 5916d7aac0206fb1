"""Runge-Kutta methods that follow a piecewise linear path with the W and H of the Brownian motion."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from sdekit.solvers.base import NOISE_TYPES, Attempt, Carry, EmbeddedSolver, Interval, Solver, register
from sdekit.solvers.control import Controller
from sdekit.solvers.srk import check_additive

__all__ = ["SPaRK", "ShARK", "SlowRK"]


@register
@dataclass(frozen=True)
class ShARK(EmbeddedSolver):
    """Noise that does not depend on the state, a Runge-Kutta step from a shifted point:

        y = x + G(t) H,   z = y + 5/6 (f(y, t) h + G(t) W),   s = t + 5/6 h,
        x' = x + h (2/5 f(y, t) + 3/5 f(z, s)) + G(t) (2/5 W + 6/5 H) + G(s) (3/5 W - 6/5 H).

    Strong order 1.5, 2 where the drift is linear; weak order 2. "additive" noise, and "commutative" noise
    whose matrix does not depend on the state (CapabilityError where it does). The error estimate is
    3/5 h (f(z, s) - f(y, t)), the distance to the drift at y alone.
    Foster, dos Reis and Strange 2023 (arXiv:2210.17543), equation 6.1.
    """

    controller: Controller = field(default_factory=Controller)
    compact: bool = False

    name = "shark"
    kind = "sde"
    noise_types = ("additive", "commutative")
    sde_types = ("ito", "stratonovich")
    weak_order = 2.0
    strong_order = 1.5
    nodes = (0.0, 5 / 6)
    normals = 2
    error_order = 1.5
    reference = "Foster, dos Reis and Strange 2023"

    def init(self, system: Any, x: Tensor, t: Tensor) -> Carry:
        """Nothing to keep. Raises CapabilityError for a matrix diffusion that depends on the state."""
        check_additive(system, x, t)
        return ()

    def attempt(self, system: Any, x: Tensor, interval: Interval, carry: Carry) -> Attempt:
        (t, s), h, W, H = interval.times, interval.h, interval.W, interval.H
        assert W is not None
        assert H is not None
        early, late = system.diffusion(x, t), system.diffusion(x, s)
        y = x + system.apply_noise(early, H)
        first = system.drift(y, t)
        second = system.drift(y + (5 / 6) * (first * h + system.apply_noise(early, W)), s)
        noise = system.apply_noise(early, 0.4 * W + 1.2 * H) + system.apply_noise(late, 0.6 * W - 1.2 * H)
        new = x + (0.4 * first + 0.6 * second) * h + noise
        return Attempt(new, (), 0.6 * (second - first) * h, ())


@register
@dataclass(frozen=True)
class SlowRK(Solver):
    """Noise that commutes: the classical Runge-Kutta method along G W from the middle of a drift step. With
    y = x + 1/2 f(x, t) h and G at the middle of the step, s = t + h/2,

        g1 = G(y) W,  g2 = G(y + g1/2) W,  g3 = G(y + g2/2) W,  g4 = G(y + g3) W,
        p = y + g2/2,   q = x + 3/4 (f(x, t) h + g3) + 3/2 G(p, s) H,
        x' = x + h (1/3 f(x, t) + 2/3 f(q, t + 3/4 h)) + (g1 + 2 g2 + 2 g3 + g4)/6
                   + 2 (G(p, s) - G(p + 1/2 f(x, t) h, t + h)) H.

    Stratonovich, strong order 1.5, weak order 2; two drifts and five diffusions.
    Foster, dos Reis and Strange 2023 (arXiv:2210.17543), equation 6.2.
    """

    name = "slowrk"
    kind = "sde"
    noise_types = ("additive", "scalar", "diagonal", "commutative")
    sde_types = ("stratonovich",)
    weak_order = 2.0
    strong_order = 1.5
    nodes = (0.0, 0.5, 0.75, 1.0)
    normals = 2
    reference = "Foster, dos Reis and Strange 2023"

    def step(self, system: Any, x: Tensor, interval: Interval, carry: Carry) -> tuple[Tensor, Carry]:
        (t, s, later, end), h, W, H = interval.times, interval.h, interval.W, interval.H
        apply, diffusion = system.apply_noise, system.diffusion
        move = system.drift(x, t) * h
        y = x + 0.5 * move
        g1 = apply(diffusion(y, s), W)
        g2 = apply(diffusion(y + 0.5 * g1, s), W)
        p = y + 0.5 * g2
        field = diffusion(p, s)
        g3, turn = apply(field, W), apply(field, H)
        g4 = apply(diffusion(y + g3, s), W)
        last = system.drift(x + 0.75 * (move + g3) + 1.5 * turn, later) * h
        bend = 2.0 * (turn - apply(diffusion(p + 0.5 * move, end), H))
        return x + (move + 2.0 * last) / 3 + ((g1 + g4) + 2.0 * (g2 + g3)) / 6 + bend, ()


@register
@dataclass(frozen=True)
class SPaRK(EmbeddedSolver):
    """Any Stratonovich noise. With F_i = f(z_i, t + c_i h) h + G(z_i, t + c_i h) W, c = (0, 1/2, 1):

        z1 = x,   z2 = x + 1/2 F_1 + sqrt(3) G_1 H,   z3 = x + F_2,
        x' = x + a (F_1 + F_3) + b F_2 + (G_1 - G_3) H,   a = (3 - sqrt 3)/6, b = sqrt(3)/3.

    Strong order 1/2, 1 for noise that commutes, 1.5 for noise that does not depend on the state; weak order
    1. The error estimate is the distance to x + 1/2 (F_1 + F_3): of size |h| where the noise does not
    commute, |h|^(3/2) where it does. Foster and Jelincic 2023 (arXiv:2311.14201), definition 1.6.
    """

    controller: Controller = field(default_factory=Controller)
    compact: bool = False

    name = "spark"
    kind = "sde"
    noise_types = NOISE_TYPES
    sde_types = ("stratonovich",)
    weak_order = 1.0
    strong_order = 0.5
    nodes = (0.0, 0.5, 1.0)
    normals = 2
    error_order = 1.0
    reference = "Foster and Jelincic 2023"

    def attempt(self, system: Any, x: Tensor, interval: Interval, carry: Carry) -> Attempt:
        h, W, H = interval.h, interval.W, interval.H

        def increments(z: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
            """F and G H at (z, t)."""
            g = system.diffusion(z, t)
            return system.drift(z, t) * h + system.apply_noise(g, W), system.apply_noise(g, H)

        t, s, end = interval.times
        first, turn = increments(x, t)
        middle, _ = increments(x + 0.5 * first + math.sqrt(3) * turn, s)
        last, back = increments(x + middle, end)
        b = math.sqrt(3) / 3
        error = b * middle - 0.5 * b * (first + last) + (turn - back)
        return Attempt(x + 0.5 * (first + last) + error, (), error, ())
