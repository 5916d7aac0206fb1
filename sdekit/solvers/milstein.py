"""Milstein's method, strong order 1, for noise that commutes; with derivatives and without."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sdekit.sde.calculus import pushforward
from sdekit.solvers.base import Carry, Interval, Solver, register
from sdekit.solvers.rows import length

__all__ = ["Milstein", "MilsteinFree"]

COMMUTING = ("additive", "scalar", "diagonal", "commutative")


class _StrongOne(Solver):
    kind = "sde"
    noise_types = COMMUTING
    sde_types: tuple[str, ...] = ("ito", "stratonovich")
    weak_order = 1.0
    strong_order = 1.0
    normals = 1

    def second(self, system: Any, x: Tensor, interval: Interval, g: Tensor, drift: Tensor) -> Tensor:
        """1/2 sum_kl L_k G_l (W_k W_l - d_kl |h|), (B, *event); without |h| in Stratonovich form."""
        raise NotImplementedError

    def step(self, system: Any, x: Tensor, interval: Interval, carry: Carry) -> tuple[Tensor, Carry]:
        (t,) = interval.times
        drift, g = system.drift(x, t), system.diffusion(x, t)
        new = x + drift * interval.h + system.apply_noise(g, interval.W)
        if system.system.noise_type == "additive":
            return new, ()
        return new + self.second(system, x, interval, g, drift), ()


@register
@dataclass(frozen=True)
class Milstein(_StrongOne):
    """x' = x + f h + G W + 1/2 sum_kl L_k G_l (W_k W_l - d_kl |h|),  L_k = sum_j G_jk d_j.

    For one Brownian motion, or one an element, the last term is 1/2 g g' (W^2 - |h|). Where L_k G_l = L_l G_k
    it needs no Levy area and is half the derivative of G W along itself, one forward product, less |h| times
    `SDE.correction`. In Stratonovich form the term in |h| is absent. Strong and weak order 1. The derivatives
    are those of torch.func, or of the system's own ``correction``; `MilsteinFree` takes none.
    Milstein 1974; Kloeden and Platen 1992, equations 10.3.1 and 10.3.16.
    """

    name = "milstein"
    reference = "Milstein 1974"

    def second(self, system: Any, x: Tensor, interval: Interval, g: Tensor, drift: Tensor) -> Tensor:
        (t,), h, W = interval.times, interval.h, interval.W
        assert W is not None
        sde, ito = system.system, system.system.sde_type == "ito"
        if sde.noise_type != "commutative":
            square = W * W - length(h, W) if ito else W * W
            out: Tensor = system.apply_noise(sde.correction(x, t), square)
            return out
        along = system.apply_noise(g, W)
        twice = pushforward(lambda y: system.apply_noise(system.diffusion(y, t), W), x, along)
        return 0.5 * twice - sde.correction(x, t) * abs(h) if ito else 0.5 * twice


@register
@dataclass(frozen=True)
class MilsteinFree(_StrongOne):
    """`Milstein` with differences for derivatives, where torch.func cannot differentiate the diffusion:

        L_k G_l ~ (G_l(x + f h + G_k sqrt|h|, t) - G_l(x, t))/sqrt|h|.

    Ito: the mean of the last term is 0 there, so that the h^(3/2) which the difference is off by does no
    harm; in Stratonovich form `EulerHeun` needs no derivatives either. Strong and weak order 1; one
    evaluation of the diffusion more than Euler-Maruyama, m more for a matrix of m columns.
    Kloeden and Platen 1992, equation 11.1.3.
    """

    name = "milstein-free"
    sde_types = ("ito",)
    reference = "Kloeden and Platen 1992"

    def second(self, system: Any, x: Tensor, interval: Interval, g: Tensor, drift: Tensor) -> Tensor:
        (t,), h, W = interval.times, interval.h, interval.W
        assert W is not None
        variance, root, ahead = length(h, W), abs(h) ** 0.5, x + drift * h
        if system.system.noise_type != "commutative":
            slope = system.diffusion(ahead + g * root, t) - g
            out: Tensor = system.apply_noise(slope, 0.5 * (W * W - variance) / variance**0.5)
            return out
        units = torch.eye(W.shape[1], dtype=W.dtype, device=W.device)
        total = torch.zeros_like(x)
        for k, unit in enumerate(units):
            products = W * W[:, k : k + 1] - variance * unit
            slope = system.diffusion(ahead + g[..., k] * root, t) - g
            total = total + system.apply_noise(slope, 0.5 * products / variance**0.5)
        return total
