"""Tamed Euler: an explicit step that survives drifts that grow faster than the state."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sdekit.sde.rows import flat, fold
from sdekit.solvers.base import NOISE_TYPES, Carry, Interval, Solver, register

__all__ = ["TamedEuler"]


@register
@dataclass(frozen=True)
class TamedEuler(Solver):
    """x' = x + f(x, t) h/(1 + |h| |f(x, t)|) + G(x, t) W, |f| the norm of a sample: Ito, any noise.

    No step of the drift is longer than 1, so that the moments stay bounded where Euler-Maruyama's go to
    infinity as h -> 0: one-sided Lipschitz drifts of polynomial growth such as -x^3, with Lipschitz
    diffusion. The norm is Euclidean, of one sample whatever the batch. 1 is a length in the units of x:
    bring the state to order 1. Strong order 1/2.

    Hutzenthaler, Jentzen and Kloeden 2012 (arXiv:1010.3756), theorem 1.1.
    """

    name = "tamed-euler"
    kind = "sde"
    noise_types = NOISE_TYPES
    sde_types = ("ito",)
    weak_order = 1.0
    strong_order = 0.5
    normals = 1
    reference = "Hutzenthaler, Jentzen and Kloeden 2012"

    def step(self, system: Any, x: Tensor, interval: Interval, carry: Carry) -> tuple[Tensor, Carry]:
        (t,), h = interval.times, interval.h
        drift = system.drift(x, t)
        noise = system.apply_noise(system.diffusion(x, t), interval.W)
        return x + drift * (h / (1.0 + abs(h) * _norm(drift))) + noise, ()


def _norm(x: Tensor) -> Tensor:
    """|x| of each sample, (B, 1, ..., 1); its gradient is 0 at 0, and large x do not overflow."""
    rows = flat(x)
    largest = rows.detach().abs().amax(1, keepdim=True)
    scale = torch.where((largest > 0) & torch.isfinite(largest), largest, torch.ones_like(largest))
    square = fold((rows / scale) ** 2)[:, None]
    safe = torch.where(square > 0, square, torch.ones_like(square))
    root = torch.where(square > 0, safe.sqrt() * scale, torch.zeros_like(square))
    return root.reshape(-1, *(1,) * (x.ndim - 1))
