r"""Events: the first time at which a function of the state crosses zero.

On an ODE a crossing within a step is a root of the interpolant. A path of an SDE may cross and come back
between two nodes; with v = fn(X, t), v0 and v1 at the ends of a step of length h, and s^2 = |G^T grad v|^2,
v is close to a Brownian bridge of variance s^2, which meets zero

    with probability  exp(-2 v0 v1/(s^2 h))   if v0 v1 > 0,    and surely if not;

given that it does, its first time theta h has theta/(1 - theta) inverse Gaussian, of mean |v0/v1| and shape
v0^2/(s^2 h). (The density of the passage from v0 at theta h, times the transition density from 0 to v1;
Borodin and Salminen 2002, formula 2.2.0.2.) For a Brownian motion with drift and a level this is exact at
any h.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from sdekit.errors import NonFiniteError, ShapeError, check_argument_order
from sdekit.noise.source import Philox, Purpose
from sdekit.sde.base import SDE
from sdekit.sde.rows import flat, fold, over_event

if TYPE_CHECKING:
    from sdekit.solvers.problem import Problem

__all__ = ["Event", "Seen", "Watch", "as_event", "crossing_probability", "hitting_fraction"]

LATERAL = 2**31
"""Where the draws of the state at an event begin, so that they share no block with those of its time."""
NEWTON = 4


@dataclass(frozen=True)
class Event:
    """Where fn(X_t, t) crosses zero, as ``event=`` of `sdekit.solve`.

    fn: a callable (x, t) -> (B,), for x (B, *event) and t (B,), row by row. A sample that starts at zero has
    not crossed. On an ODE two crossings within one step are not seen: shorter steps show them.
    terminal: the sample stops there, X at min(t, tau) from then on; False only notes the time.
    direction: 1 counts crossings from below, -1 from above, 0 both. On an SDE this is the side from which
    zero is first reached in a step.
    bridge: on SDEs, crossings between the nodes are drawn from their law too; fn must then be
    differentiable by torch. False sees the nodes alone, and misses passages at order sqrt(h).

    Raises TypeError for fn that is not callable, ArgumentOrderError for fn(t, x), ValueError for another
    direction.
    """

    fn: Callable[[Tensor, Tensor], Tensor]
    terminal: bool = True
    direction: int = 0
    bridge: bool = True

    def __post_init__(self) -> None:
        if not callable(self.fn):
            raise TypeError(
                f"event must be a callable (x, t) -> (B,), got {type(self.fn).__name__}. "
                f"Next: event=lambda x, t: x[:, 0] - level."
            )
        check_argument_order(self.fn, "event")
        if self.direction not in (-1, 0, 1):
            raise ValueError(
                f"direction must be 1 (from below), -1 (from above) or 0, got {self.direction!r}."
            )


def as_event(event: object) -> Event | None:
    """An `Event` from one, or from a callable; None passes. Raises as `Event`."""
    if event is None or isinstance(event, Event):
        return event
    return Event(event)  # type: ignore[arg-type]


def crossing_probability(v0: Tensor, v1: Tensor, variance: Tensor) -> Tensor:
    """P(a Brownian bridge from v0 to v1 meets zero), ``variance`` = s^2 h >= 0, elementwise.

    exp(-2 v0 v1/(s^2 h)) on one side of zero, 1 otherwise; 0 without variance.
    """
    exponent = -2.0 * (v0 * v1).clamp(min=0.0) / variance
    apart = (v0 > 0) & (v1 > 0) | (v0 < 0) & (v1 < 0)
    return torch.where(apart, torch.exp(exponent).nan_to_num(0.0), torch.ones_like(v0))


def hitting_fraction(v0: Tensor, v1: Tensor, variance: Tensor, xi: Tensor, u: Tensor) -> Tensor:
    """theta in (0, 1]: when a Brownian bridge from v0 to v1 that meets zero does so first, elementwise.

    theta/(1 - theta) is inverse Gaussian of mean |v0/v1| and shape v0^2/variance, here from xi ~ N(0, 1) and
    u ~ U(0, 1): a root of (|v1| r - |v0|)^2 = variance xi^2 r, one or the other (Michael, Schucany and Haas
    1976). Without variance it is |v0|/(|v0| + |v1|). v0 is not 0.
    """
    a, b = v0.abs(), v1.abs()
    y = variance * xi * xi
    small = 2.0 * a * a / (2.0 * a * b + y + torch.sqrt(y * (4.0 * a * b + y)))
    other = u * (a + b * small) > a  # False where b = 0: Levy's law, one root
    ratio = torch.where(other, a * a / (b * b * small), small)
    return 1.0 / (1.0 + 1.0 / ratio)


class Seen(NamedTuple):
    """What an event is known by at the nodes, (B,) float64: when it happened, NaN before it did; v and s^2 at
    the last node."""

    at: Tensor
    v: Tensor
    s2: Tensor


class Watch:
    """One event of one run. Nothing is kept between calls; draw k belongs to step k of every sample."""

    def __init__(self, p: Problem, event: Event) -> None:
        self.event, self.ids, self.numbers = event, p.ids, Philox(p.seed)
        self.sde = p.system.system if isinstance(p.system.system, SDE) else None

    def start(self, x: Tensor, t: Tensor) -> Seen:
        """At the first node; t: () or (B,) float64. Raises NonFiniteError where fn is NaN there."""
        v, s2, _ = self._look(x, t)
        if bool(v.isnan().any()):
            bad = v.isnan().nonzero()[:, 0].tolist()
            raise NonFiniteError(
                f"event is NaN at the start of {len(bad)} of {len(v)} samples, first in row {bad[0]}. Likely "
                f"cause: a root, logarithm or division of the state outside its range. Next: a function that "
                f"is a number wherever the state may go."
            )
        return Seen(torch.full_like(v, torch.nan), v, s2)

    def value(self, x: Tensor, t: Tensor) -> Tensor:
        """fn(x, t), (B,) float64. Raises ShapeError for another shape."""
        v = torch.as_tensor(self.event.fn(x, t.to(x.dtype).expand(len(x))), device=x.device)
        if v.shape != x.shape[:1]:
            raise ShapeError(
                f"event must return one number for each sample, ({len(x)},), got {tuple(v.shape)} for x of "
                f"shape {tuple(x.shape)}. Next: index the element, x[:, 0] - level, or reduce, x.norm(dim=1)."
            )
        return v.to(torch.float64)

    def _look(self, x: Tensor, t: Tensor, since: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """v, s^2 and G G^T grad v at (x, t), with G of the time ``since``, t by default."""
        if self.sde is None or not self.event.bridge:
            with torch.no_grad():
                v = self.value(x.detach(), t)
            return v, torch.zeros_like(v), torch.zeros_like(x)
        with torch.enable_grad():
            y = x.detach().requires_grad_()
            v = self.value(y, t)
            if not v.requires_grad:
                raise ValueError(
                    "event returned a tensor without a graph, and bridge=True needs its gradient. Likely "
                    "cause: numpy, .detach() or .item() inside it, torch.inference_mode() around it, or it "
                    "does not depend on x. Next: write it in torch, or Event(fn, bridge=False)."
                )
            (slope,) = torch.autograd.grad(v.sum(), y)
        with torch.no_grad():
            g = self.sde.noise_field(x.detach(), (t if since is None else since).to(x.dtype))
            pull = self.sde.apply_ggt(g, slope)
            return v.detach(), fold(flat(slope * pull)).to(torch.float64), pull

    def after(
        self,
        draw: int,
        seen: Seen,
        x0: Tensor,
        x1: Tensor,
        t: Tensor,
        h: Tensor,
        dense: Callable[[Tensor], Tensor] | None = None,
        good: Tensor | None = None,
        rows: Any = slice(None),
    ) -> tuple[Tensor, Seen, Tensor]:
        """The step from x0 at t to x1 at t + h: (x1 with the events in it, what is seen, which rows hit).

        t, h: () or (B,) float64; dense: theta (B,) -> state, of an ODE; good: which rows moved, all by
        default; rows: where they are in the batch of the run.
        """
        event, before = self.event, ~seen.at.isnan()
        if event.terminal:
            x1 = torch.where(over_event(before, x1).bool(), x0, x1)
        v, s2, _ = self._look(x1, t + h)
        end = v
        crossed = (seen.v > 0) & (v <= 0) | (seen.v < 0) & (v >= 0)
        able = ~before if good is None else ~before & good
        if event.direction:
            able = able & (seen.v * event.direction < 0)
        variance, xi, u = seen.s2 * h.abs(), torch.zeros_like(v), torch.ones_like(v)
        hit = able & crossed
        if self.sde is not None and event.bridge:
            chance = crossing_probability(seen.v, v, variance)
            if bool((able & (chance > 1e-12)).any()):
                z = self.numbers.normal(draw, v.new_empty(len(v), 3), self.ids[rows], Purpose.EVENT)
                u, xi = torch.special.ndtr(z[:, 1]), z[:, 2]
                hit = hit | able & (v * seen.v > 0) & (torch.special.ndtr(z[:, 0]) < chance)
        if good is not None:
            keep = ~good
            v, s2 = torch.where(keep, seen.v, v), torch.where(keep, seen.s2, s2)
        if not bool(hit.any()):
            return x1, Seen(seen.at, v, s2), hit
        if dense is not None:
            theta = self._root(seen.v, dense, t, h)
            there = dense(theta)
        else:
            theta = torch.where(hit, hitting_fraction(seen.v, end, variance, xi, u), 1.0)
            there = self._on_surface(draw, x0, x1, t, h, theta, rows)
        at = torch.where(hit, t + theta.to(torch.float64) * h, seen.at)
        if event.terminal:
            x1 = torch.where(over_event(hit, x1).bool(), there, x1)
        return x1, Seen(at, v, s2), hit

    @torch.no_grad()
    def _root(self, v0: Tensor, dense: Callable[[Tensor], Tensor], t: Tensor, h: Tensor) -> Tensor:
        """By bisection, to the rounding of the state: a theta at which the sign changes."""
        probe = dense(torch.zeros_like(v0))
        low, high = (torch.full_like(v0, end, dtype=probe.dtype) for end in (0.0, 1.0))
        for _ in range(1 - round(math.log2(torch.finfo(probe.dtype).eps))):
            middle = 0.5 * (low + high)
            same = self.value(dense(middle), t + middle.to(torch.float64) * h) * torch.sign(v0) > 0
            low, high = torch.where(same, middle, low), torch.where(same, high, middle)
        return high

    def _on_surface(
        self, draw: int, x0: Tensor, x1: Tensor, t: Tensor, h: Tensor, theta: Tensor, rows: Any
    ) -> Tensor:
        """The state at theta: the bridge between the ends, given that v is zero there.

        X0 + theta (X1 - X0) + sqrt(theta (1 - theta) h) G xi, carried along G G^T grad v until v = 0 (by
        Newton's method): what is independent of v keeps its law.
        """
        assert self.sde is not None
        share = over_event(theta, x0)
        there = x0 + share * (x1 - x0)
        if not self.event.bridge:
            return there
        with torch.no_grad():
            size = over_event(torch.sqrt(theta * (1.0 - theta) * h.abs()), x0)
            room = x0.new_empty(self.sde.noise_shape(x0))
            xi = self.numbers.normal(LATERAL + draw, room, self.ids[rows], Purpose.EVENT)
            x = x0.detach()
            noise = size * self.sde.apply_noise(self.sde.noise_field(x, t.to(x.dtype)), xi)
            start = (there + noise).detach()
            time, y = t + theta * h, start
            v, s2, pull = self._look(y, time, t)
            for _ in range(NEWTON):
                closer = y - over_event((v / s2).nan_to_num(0.0, 0.0, 0.0), y) * pull
                w, new, along = self._look(closer, time, t)
                better = w.abs() < v.abs()
                wide = over_event(better, y).bool()
                v, s2 = torch.where(better, w, v), torch.where(better, new, s2)
                y, pull = torch.where(wide, closer, y), torch.where(wide, along, pull)
        return there + (y - there.detach())
