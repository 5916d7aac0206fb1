"""Drift-implicit methods for stiff SDEs: theta, implicit Euler, implicit Milstein; Newton for each sample."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sdekit.sde.calculus import pushforward
from sdekit.solvers.base import NOISE_TYPES, Carry, Interval, Solver, register
from sdekit.solvers.newton import Root, apply, inverse, jacobian
from sdekit.solvers.rows import finite_rows, rms

__all__ = ["ImplicitEuler", "ImplicitMilstein", "Theta"]


@register
@dataclass(frozen=True)
class Theta(Solver):
    """x' = x + ((1 - theta) f(x, t) + theta f(x', t + h)) h + G(x, t) W: Ito, any noise.

    Solved by Newton's method for each sample, with Jacobians by torch.func: n forward products and n^3
    operations an iteration for events of n elements, n up to some hundreds. theta >= 1/2: A-stable; 1/2 has
    order 2 where there is no noise; 1 is `ImplicitEuler` and damps stiff parts. On dX = lambda X dt + mu X dW
    it is stable in mean square where |1 + (1 - theta) lambda h|^2 + |mu|^2 h < |1 - theta lambda h|^2, so at
    theta = 1/2 wherever the equation itself is (Higham 2000). tolerance: of Newton, relative to the size of
    each sample; default eps^(2/3) of the dtype. iterations: at most. Samples that do not get there are
    marked ``not_converged``. Gradients are those of the solved equation.

    Kloeden and Platen 1992, section 12.2; Higham 2000 (SIAM Journal on Numerical Analysis 38, 753).

    Raises ValueError for options outside these ranges, CapabilityError where torch.func cannot follow the
    drift.
    """

    theta: float = 0.5
    tolerance: float | None = None
    iterations: int = 20

    name = "theta"
    kind = "sde"
    noise_types: tuple[str, ...] = NOISE_TYPES
    sde_types = ("ito",)
    weak_order = 1.0
    strong_order = 0.5
    nodes = (0.0, 1.0)
    normals = 1
    reference = "Kloeden and Platen 1992, section 12.2"

    def __post_init__(self) -> None:
        if not 0.0 <= self.theta <= 1.0:
            raise ValueError(f"theta must lie in [0, 1], 1 for the implicit end, got {self.theta}.")
        if self.tolerance is not None and not 0.0 < self.tolerance < 1.0:
            raise ValueError(f"tolerance must lie in (0, 1), relative to the state, got {self.tolerance}.")
        if self.iterations < 1:
            raise ValueError(f"iterations must be at least 1, got {self.iterations}.")

    def step(self, system: Any, x: Tensor, interval: Interval, carry: Carry) -> tuple[Tensor, Carry]:
        known = self._known(system, x, interval)
        root = self._root(system, x, known, interval)
        y = root.y + _implicit_gradient(system, root.y, known, self.theta * interval.h, interval.times[1])
        return torch.where(_rows(root.failed, y), torch.full_like(y, torch.nan), y), ()

    def unsolved(self, system: Any, x: Tensor, interval: Interval, carry: Carry) -> Tensor:
        """Which samples (B,) Newton gave up, of a step from x that is finite itself."""
        known = self._known(system, x, interval)
        return self._root(system, x, known, interval).failed & finite_rows(known)

    def _known(self, system: Any, x: Tensor, interval: Interval) -> Tensor:
        """What does not depend on x'."""
        known = x + self._noise(system, x, interval)
        if self.theta < 1.0:
            known = known + system.drift(x, interval.times[0]) * ((1.0 - self.theta) * interval.h)
        return known

    def _noise(self, system: Any, x: Tensor, interval: Interval) -> Tensor:
        out: Tensor = system.apply_noise(system.diffusion(x, interval.times[0]), interval.W)
        return out

    @torch.no_grad()
    def _root(self, system: Any, x: Tensor, known: Tensor, interval: Interval) -> Root:
        """x' = known + theta h f(x', t + h), from x: Newton's method, its step halved where it leads uphill.

        A sample is there when a second correction with the same Jacobian is within the tolerance.
        """
        part, end = self.theta * interval.h, interval.times[1]
        tolerance = torch.finfo(x.dtype).eps ** (2.0 / 3.0) if self.tolerance is None else self.tolerance
        scale = rms(known)

        def residual(y: Tensor) -> Tensor:
            out: Tensor = y - known - part * system.drift(y, end)
            return out

        y = x.detach().contiguous()
        r, damping = residual(y), torch.ones_like(scale)
        done = torch.zeros_like(scale, dtype=torch.bool)
        for _ in range(self.iterations):
            solver = _solver(system, y, part, end)
            z = y - _rows(damping, y).to(y.dtype) * apply(solver, r)
            r_z = residual(z)
            again = apply(solver, r_z)
            there = ~done & (rms(again) <= tolerance * (scale + rms(z)))
            down = ~done & ~there & (rms(r_z) < rms(r))
            y = torch.where(_rows(there, y), z - again, torch.where(_rows(down, y), z, y))
            r = torch.where(_rows(down, y), r_z, r)
            damping = torch.where(down, (2.0 * damping).clamp_max(1.0), 0.5 * damping)
            done = done | there
            if bool(done.all()):
                break
        return Root(y, ~done)


def _rows(c: Tensor, x: Tensor) -> Tensor:
    """One value for each sample (B,), against events."""
    return c.reshape(-1, *(1,) * (x.ndim - 1))


def _solver(system: Any, y: Tensor, part: Any, end: Tensor) -> Tensor:
    """(I - theta h df/dy)^-1 of each sample, (B, n, n)."""
    slope = jacobian(lambda z: system.drift(z, end), y.detach())
    eye = torch.eye(slope.shape[-1], dtype=y.dtype, device=y.device)
    scale = part.reshape(-1, 1, 1) if isinstance(part, Tensor) else part
    return inverse(eye - scale * slope)


def _implicit_gradient(system: Any, y: Tensor, known: Tensor, part: Any, end: Tensor) -> Any:
    """0, with the gradient of the root y of y = known + part f(y): (I - part f')^-1 d(known + part f)."""
    if not torch.is_grad_enabled():
        return 0.0
    right = known + part * system.drift(y, end)
    if not right.requires_grad:
        return 0.0
    return apply(_solver(system, y, part, end).detach(), right - right.detach())


@register
@dataclass(frozen=True)
class ImplicitEuler(Theta):
    """x' = x + f(x', t + h) h + G(x, t) W: `Theta` at theta = 1. Stiff parts are damped, not only bounded.

    Kloeden and Platen 1992, section 12.2.
    """

    theta: float = 1.0
    name = "implicit-euler"


@register
@dataclass(frozen=True)
class ImplicitMilstein(Theta):
    """x' = x + ((1 - theta) f(x, t) + theta f(x', t + h)) h + sum_k G_k W_k
              + 1/2 sum_kl (G_k d) G_l (W_k W_l - h delta_kl), with G and its derivative at (x, t).

    Strong order 1 for noise that commutes: additive, diagonal, scalar, "commutative". Default theta = 1;
    options and errors as `Theta`. The derivatives of G are by torch.func: one forward product along G W, and
    the Ito correction. Kloeden and Platen 1992, section 12.2.
    """

    theta: float = 1.0
    name = "implicit-milstein"
    noise_types: tuple[str, ...] = ("additive", "scalar", "diagonal", "commutative")
    strong_order = 1.0

    def _noise(self, system: Any, x: Tensor, interval: Interval) -> Tensor:
        plain, t = super()._noise(system, x, interval), interval.times[0]
        if system.system.noise_type == "additive":
            return plain
        slope = pushforward(lambda y: system.system.noise_field(y, t), x, plain)
        twice = system.apply_noise(slope, interval.W)
        out: Tensor = plain + 0.5 * twice - system.system.correction(x, t) * abs(interval.h)
        return out
