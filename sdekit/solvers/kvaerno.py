r"""Kvaerno's singly diagonally implicit method of order 5, for stiff ODEs.

    k_1 = f(x, t),   k_i = f(x + h sum_{j<i} a_ij k_j + gamma h k_i, t + c_i h),   x' = x + h sum_i b_i k_i

with gamma = 0.26 in all six equations, so that one inverse (I - gamma h df/dx)^-1 serves a step.
Kvaerno 2004.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from sdekit.sde.rows import over_event
from sdekit.solvers.base import Attempt, Carry, Interval, register
from sdekit.solvers.control import Controller
from sdekit.solvers.newton import Root, apply, find_root, inverse, jacobian
from sdekit.solvers.rows import rms
from sdekit.solvers.runge_kutta import EmbeddedRungeKutta, weighted
from sdekit.solvers.tableaus import Tableau

__all__ = ["Kvaerno5"]

GAMMA = 0.26
# Kvaerno 2004, the pair of orders 5 and 4 with seven stages; the diagonal is apart.
A: tuple[tuple[float, ...], ...] = (
    (),
    (GAMMA,),
    (0.13, 0.84033320996790809),
    (0.22371961478320505, 0.47675532319799699, -0.06470895363112615),
    (0.16648564323248321, 0.10450018841591720, 0.03631482272098715, -0.13090704451073998),
    (0.13855640231268224, 0.0, -0.04245337201752043, 0.02446657898003141, 0.61943039072480676),
    (
        0.13659751177640291,
        0.0,
        -0.05496908796538376,
        -0.04118626728321046,
        0.62993304899016403,
        0.06962479448202728,
    ),
)
C = (0.0, *(sum(row) + GAMMA for row in A[1:5]), 1.0, 1.0)
B = (*A[6], GAMMA)
KVAERNO = Tableau(
    c=C,
    a=A,
    b=B,
    e=(*(b - hat for b, hat in zip(A[6], (*A[5], GAMMA), strict=True)), GAMMA),
)

DENSE = (
    (0.987235356700907, -2.072485550501369, 1.7276375136417044, -0.5057898080648396),
    (-1.477664284669516e-16, 3.417659264290136e-16, -8.98496178767974e-16, 4.132016522119795e-16),
    (-0.08155567998745214, 0.8398622084127699, -1.6678243226694731, 0.8545487062787717),
    (-0.42781112502193164, -0.6815992942637765, 2.4142675759954417, -1.346043423992944),
    (0.0684380693901315, 3.2593305763271627, -4.1934259248752985, 1.4955903281481686),
    (0.0958311049224444, -0.2841195973259653, 0.36316762351296467, -0.10525433662741643),
    (0.35786227399590104, -1.0609883426488222, 1.3561775343946618, -0.39305146574174055),
)
"""x(t + theta h) = x + h sum_j k_j sum_m DENSE[j][m] theta^(m+1).

A mean of x and of the stage values at c_2, ..., c_5 and 1, so that it stays bounded where slopes are large
(h |df/dx| -> infinity); the five conditions of order 4, given stage order 2, leave no freedom.
"""


def _lagrange(nodes: tuple[float, ...], at: float) -> tuple[float, ...]:
    """l_j(at) of the Lagrange polynomials of the nodes."""
    return tuple(
        math.prod((at - other) / (node - other) for other in nodes if other != node) for node in nodes
    )


GUESS = (*((_lagrange(C[: min(i, 3)], C[i])) for i in range(1, 6)), (0.0,) * 5 + (1.0,))
"""Where Newton starts in stages 2 to 7: the parabola through the first slopes; the slope of stage 6."""


@register
@dataclass(frozen=True)
class Kvaerno5(EmbeddedRungeKutta):
    r"""Order 5 with an embedded order 4, A-stable and stiffly accurate, R(inf) = 0; for stiff drifts.

    Each of six stages solves for its slope by Newton's method, per sample, with one matrix of n^2
    derivatives a step, n the size of one event: n calls of `torch.func.jvp`, each counted as one of the
    drift, and n^3 arithmetic per sample: n up to some hundreds. Iterations stop at a hundredth of the run's
    tolerances, at fixed steps at rounding. A step in which they do not converge is rejected; at fixed
    steps the sample becomes NaN and is reported. Dense output of order 4, continuous, from stage values.
    Gradients (first derivatives) are those of the equations, not of the iterations. t and ``compact`` as in
    `DormandPrince`. Raises CapabilityError for a drift that torch.func.jvp cannot follow.
    Kvaerno 2004; Hairer and Wanner 1996, IV.6 and IV.8.
    """

    controller: Controller = field(default_factory=Controller)
    compact: bool = False
    tolerances: tuple[float, float] = (0.0, 0.0)

    name = "kvaerno5"
    order = 5
    error_order = 5
    tableau = KVAERNO
    reference = "Kvaerno 2004"

    def init(self, system: Any, x: Tensor, t: Tensor) -> Carry:
        return (system.drift(x, t),)

    def bound(self, rtol: float, atol: float) -> Kvaerno5:
        return replace(self, tolerances=(rtol, atol))

    def attempt(self, system: Any, x: Tensor, interval: Interval, carry: Carry) -> Attempt:
        ks, failed = self._stages(system, x, interval, carry[0])
        x1 = x + weighted(B, ks) * interval.h
        error = weighted(self.tableau.e, ks) * interval.h
        lost = over_event(failed, x).bool() & torch.isfinite(x1)
        return Attempt(x1, ks[-1:], torch.where(lost, 1e6 * (1 + x.abs()), error), ks)

    def interpolate(self, x: Tensor, h: Any, attempt: Attempt, theta: Any) -> Tensor:
        powers = (theta, theta * theta, theta**3, theta**4)
        state = x
        for row, k in zip(DENSE, attempt.stages, strict=True):
            state = state + k * (h * sum(w * p for w, p in zip(row, powers, strict=True)))
        return state

    def step(self, system: Any, x: Tensor, interval: Interval, carry: Carry) -> tuple[Tensor, Carry]:
        ks, failed = self._stages(system, x, interval, carry[0])
        x1 = x + weighted(B, ks) * interval.h
        return torch.where(over_event(failed, x).bool(), torch.nan, x1), ks[-1:]

    def unsolved(self, system: Any, x: Tensor, interval: Interval, carry: Carry) -> Tensor:
        return self._stages(system, x, interval, carry[0])[1]

    def _stages(
        self, system: Any, x: Tensor, interval: Interval, first: Tensor
    ) -> tuple[tuple[Tensor, ...], Tensor]:
        """k_1, ..., k_7 and which samples failed (B,)."""
        ks, reach = [first], GAMMA * interval.h
        failed = torch.zeros(x.shape[0], dtype=torch.bool, device=x.device)
        matrix = _newton_matrix(system, x, interval.times[0], reach)
        for row, guess, t in zip(A[1:], GUESS, interval.times[1:], strict=True):
            base = x + weighted(row, ks) * interval.h
            k, failed = self._slope(system, base, reach, t, matrix, weighted(guess, ks), failed)
            if torch.is_grad_enabled():  # dk = (I - gamma h df/dx)^-1 df, of everything that f depends on
                exact = _newton_matrix(system, base + k * reach, t, reach)
                moved = apply(exact, system.drift(base + k * reach, t) - k)
                k = k + (moved - moved.detach())
            ks.append(k)
        return tuple(ks), failed

    @torch.no_grad()
    def _slope(
        self, system: Any, base: Tensor, reach: Any, t: Tensor, matrix: Tensor, guess: Tensor, failed: Tensor
    ) -> Root:
        """k with k = f(base + gamma h k, t)."""

        def correction(k: Tensor) -> Tensor:
            return apply(matrix, system.drift(base + k * reach, t) - k)

        def norm(step: Tensor, k: Tensor) -> Tensor:
            return self._norm(step * reach, base, base + k * reach)

        return find_root(correction, guess, norm, most=10 if any(self.tolerances) else 50, skip=failed)

    def _norm(self, step: Tensor, x: Tensor, y: Tensor) -> Tensor:
        """Size (B,) of a change of the stage value y, in hundredths of the tolerances, or in roundings."""
        rtol, atol = self.tolerances
        size = math.prod(x.shape[1:])
        largest = torch.maximum(x.abs(), y.abs()).reshape(x.shape[0], size).amax(dim=1)
        rounding = 16 * torch.finfo(x.dtype).eps * over_event(largest, x)
        scale = torch.maximum((y.abs() * rtol + atol) * 0.01, rounding)
        return rms(step / scale.clamp_min(torch.finfo(x.dtype).tiny))


@torch.no_grad()
def _newton_matrix(system: Any, y: Tensor, t: Tensor, reach: Any) -> Tensor:
    """(I - gamma h df/dx)^-1 at (y, t), (B, n, n)."""
    slopes = jacobian(lambda v: system.drift(v, t), y.detach())
    eye = torch.eye(slopes.shape[-1], dtype=y.dtype, device=y.device)
    scale = reach.reshape(-1, 1, 1) if isinstance(reach, Tensor) else reach
    return inverse(eye - slopes * scale)
