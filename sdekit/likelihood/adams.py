r"""The Adams method of `log_prob`: one call of the network a step, orders and steps of each sample's own.

With divided differences F[...] of the slopes over the newest nodes, a step from a to b = a + h is

    predict   y* = y + sum_{j<=J} g_j F[a, a_1, ..., a_j],       g_j = int_a^b (s - a) ... (s - a_{j-1}) ds,
    evaluate  f = F(y*, b),
    correct   y' = y + sum_{j<=J} g'_j F[b, a, ..., a_{j-1}],    g'_j = int_a^b (s - b) (s - a) ... ds.

f stays the slope at b (PEC), so that a step costs one call; where the trace is exact, the Jacobian that it
took moves f along with y' - y*. The last term of the correction is the error estimate; the terms of all
degrees, with g'_j for other steps, predict the error of the next step at any length and degree. (Hairer,
Norsett and Wanner 1993, III.5; Shampine and Gordon 1975 for changing orders.)

Slopes before the start come from a symmetry: a law smoothed by noise rho depends on rho^2 alone, so y is
even in the time u = arctan(rho/(c s)) and its slope odd,

    F(-u) = -F(u) along the flow:

each of the first nodes is worth two, and the method starts at order 4 without a Runge-Kutta step.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sdekit.likelihood.hindsight import Record
from sdekit.solvers.base import Attempt, Carry, EmbeddedSolver, Interval
from sdekit.solvers.control import Controller, error_norm
from sdekit.solvers.rows import finite_rows

__all__ = ["Adams"]

NODES = 8
"""K: nodes of the highest degree, K - 1."""
STRICT = 5.0
"""How much less than the tolerance a step may err, since errors of many steps add up."""
SAFETY = 0.2
"""The error aimed at, in units of the error allowed."""
START = 0.05
"""The first step is (rtol + atol)^(1/5), at most this part of the span."""
FIRST = 3
"""J of the first step; no later one goes below 2."""
LENGTHS = (
    *(0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95, 1.0),
    *(1.05, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.8, 2.0, 2.25, 2.5, 3.0, 3.5, 4.0),
)
"""h'/h that a next step may have."""
GROWTH, GROWTH_AT_START, AFTER_REJECTION = 2.0, 4.0, 0.65
"""The longest of them: with all K nodes, before that, and after a step that was not good."""
GAUSS = np.polynomial.legendre.leggauss(4)


class _Decoded(Controller):
    """h'/h from 1/(1 + h'/h) <= 1 for good steps and h/h' > 1 for others."""

    def factor(self, error: Any, before: Any, rejected_before: Any, order: float) -> Any:
        good = error <= 1
        ratio = np.where(good, 1.0 / np.minimum(error, 1.0) - 1.0, 1.0 / np.maximum(error, 1.0))
        ratio = np.maximum(ratio, LENGTHS[0])
        return np.where(good & rejected_before, np.minimum(ratio, 1.0), ratio)


@dataclass(frozen=True)
class Adams(EmbeddedSolver):
    """The method above on states (y, l_1, ..., l_K, row) of `sdekit.likelihood.flow.Flow`.

    Errors of y (``size`` elements) count by `error_norm`; those of the ``probes`` log-determinants over
    sqrt(D), whose origin is arbitrary, in units of ``allowed``. With a ``record``, good steps are kept for a
    second look, which mends the log-determinant more than y: there ``allowed`` is twice as much. Between
    steps it keeps the slopes (B, W) at K nodes, newest first, the nodes (B, K), and how many there are, J
    and the terms of the last step (B, 2 + K).
    """

    size: int = 1
    probes: int = 1
    rtol: float = 1e-5
    atol: float = 1e-5
    controller: Controller = field(default_factory=_Decoded)
    compact: bool = False
    record: Record | None = None

    name = "adams"
    kind = "ode"
    error_order = 5.0
    nodes = (0.0, 1.0)
    reference = "Hairer, Norsett and Wanner 1993, III.5"

    @property
    def allowed(self) -> float:
        """Of the log-determinant over sqrt(D) to a step: 2 (rtol + atol), with a record 4."""
        return (2.0 if self.record is None else 4.0) * (self.rtol + self.atol)

    def bound(self, rtol: float, atol: float) -> Adams:
        return replace(self, rtol=rtol / STRICT, atol=atol / STRICT)

    def first(self, x: Tensor, span: float) -> Tensor | None:
        h = min((self.rtol + self.atol) ** 0.2, START * abs(span))
        return torch.full((len(x),), math.copysign(h, span), dtype=torch.float64)

    def init(self, system: Any, x: Tensor, t: Tensor) -> Carry:
        slope = system.drift(x, t)
        away = -10.0 - torch.arange(NODES, dtype=t.dtype, device=t.device)  # not used, and nowhere equal
        nodes = away.expand(len(x), NODES).clone()
        nodes[:, 0] = t
        both = t > 0
        nodes[:, 1] = torch.where(both, -t, nodes[:, 1])
        notes = torch.zeros(len(x), 2 + NODES, dtype=t.dtype, device=t.device)
        notes[:, 0] = torch.where(both, 2.0, 1.0)
        notes[:, 1] = FIRST
        none = torch.zeros_like(slope)
        if self.record is not None:
            self.record.add(torch.ones_like(both), notes[:, 0] * 0 + t, x, slope, none, none)
        mirror = torch.where(both[:, None], -slope, none)
        return (slope, mirror, *(none for _ in range(NODES - 2)), nodes, notes)

    def attempt(self, system: Any, x: Tensor, interval: Interval, carry: Carry) -> Attempt:
        *slopes, nodes, notes = carry
        a, b = interval.times
        h = b - a
        count, wanted, before = notes[:, 0], notes[:, 1], notes[:, 2:]
        degrees = torch.arange(NODES, dtype=a.dtype, device=a.device)
        g = _moments(nodes, a, h) * (degrees <= torch.minimum(wanted, count - 1)[:, None])
        ahead = x + _weighted(g, _divided(slopes, nodes))
        past = nodes
        slopes, nodes, count = _with(system.drift(ahead, b), b, slopes, nodes, count)
        g = _moments(nodes, a, h)
        differences = _divided(slopes, nodes)
        degree = torch.minimum(wanted, count - 1)
        x1 = x + _weighted(g * (degrees <= degree[:, None]), differences)
        moved = system.system.response(x1 - ahead)
        slopes = [slopes[0] + moved, *slopes[1:]]
        with torch.no_grad():
            terms = self._terms(x, x1, g, differences)
            known = degrees < count[:, None]
            terms = torch.where(known, terms, torch.inf)
            error = terms.gather(1, degree.to(torch.int64)[:, None])[:, 0]
            good = (error <= 1) & finite_rows(x1)
            start = torch.where(good, b, a)
            older = torch.where(good[:, None], nodes, past)
            worst = torch.maximum(terms, before) / g.abs()
            ratio, later = _next(worst, older, start, h, degree, count, good)
            code = torch.where(good, 1 / (1 + ratio), 1 / ratio)
            code = torch.where(torch.isfinite(error) & finite_rows(x1), code, torch.inf)
            notes = torch.cat([count[:, None], later[:, None], torch.where(known, terms, 0.0)], dim=1)
        if self.record is not None:
            self.record.add(good & (h != 0), b, x1, slopes[0], x1 - ahead, moved)
        return Attempt(x1, (*slopes, nodes, notes), code[:, None], ())

    def norm(self, x: Tensor, h: Any, attempt: Attempt, rtol: float, atol: float) -> Tensor:
        """At most 1 where the step is good, and otherwise a code of the next step (see `_Decoded`)."""
        return attempt.error[:, 0]

    def _terms(self, x: Tensor, x1: Tensor, g: Tensor, differences: list[Tensor]) -> Tensor:
        """The terms g_j F[...] of every degree in units of the tolerances, (B, K)."""
        y, change = slice(0, self.size), slice(self.size, self.size + self.probes)
        norms = []
        for j, difference in enumerate(differences):
            term = difference * g[:, j : j + 1]
            flow = error_norm(term[:, y], x[:, y], x1[:, y], self.rtol, self.atol)
            trace = error_norm(term[:, change], x[:, change], x1[:, change], 0.0, self.allowed)
            norms.append(torch.maximum(flow, trace))
        return torch.stack(norms, dim=1)


def _with(
    slope: Tensor, at: Tensor, slopes: list[Tensor], nodes: Tensor, count: Tensor
) -> tuple[list[Tensor], Tensor, Tensor]:
    """The nodes with a new one in front and, while there is room, its mirror image at the end."""
    slopes, nodes = [slope, *slopes[:-1]], torch.cat([at[:, None], nodes[:, :-1]], dim=1)
    place = torch.arange(NODES, dtype=nodes.dtype, device=nodes.device)
    here = place == (count + 1)[:, None]
    slopes = [torch.where(here[:, j : j + 1], -slope, s) for j, s in enumerate(slopes)]
    return slopes, torch.where(here, -at[:, None], nodes), (count + 2).clamp(max=NODES)


def _divided(slopes: list[Tensor], nodes: Tensor) -> list[Tensor]:
    """F[n_0], F[n_0, n_1], ..., F[n_0, ..., n_{K-1}], each (B, W)."""
    column, first = list(slopes), [slopes[0]]
    for j in range(1, NODES):
        gaps = nodes[:, : NODES - j] - nodes[:, j:]
        gaps = torch.where(gaps == 0, 1.0, gaps)  # of a sample that stands still; 1/0 would spoil gradients
        column = [(column[i] - column[i + 1]) / gaps[:, i : i + 1] for i in range(len(column) - 1)]
        first.append(column[0])
    return first


def _moments(nodes: Tensor, a: Tensor, h: Tensor) -> Tensor:
    """int_a^{a+h} (s - n_0) ... (s - n_{j-1}) ds for j < K: nodes (..., K), a and h (...) -> (..., K)."""
    points, weights = (torch.from_numpy(v).to(a) for v in ((GAUSS[0] + 1) / 2, GAUSS[1] / 2))
    s = a[..., None] + h[..., None] * points
    product, moments = torch.ones_like(s), []
    for j in range(NODES):
        terms = product * weights
        moments.append((terms[..., 0] + terms[..., 1] + (terms[..., 2] + terms[..., 3])) * h)
        product = product * (s - nodes[..., j, None])
    return torch.stack(moments, dim=-1)


def _weighted(g: Tensor, differences: list[Tensor]) -> Tensor:
    total = differences[0] * g[:, :1]
    for j in range(1, NODES):
        total = total + differences[j] * g[:, j : j + 1]
    return total


def _next(
    worst: Tensor, nodes: Tensor, start: Tensor, h: Tensor, degree: Tensor, count: Tensor, good: Tensor
) -> tuple[Tensor, Tensor]:
    """h'/h and J of the next step from ``start``, each (B,): the longest whose error is predicted small.

    worst: norms of the divided differences (B, K), taken as constant; infinite where not known. J grows by
    one at most; a step that was not good is tried again with its own.
    """
    ratios = torch.tensor(LENGTHS, dtype=h.dtype, device=h.device)
    steps = ratios * h[:, None]
    ahead = (start[:, None] + steps)[..., None]
    grid = torch.cat([ahead, nodes[:, None, :-1].expand(-1, len(ratios), -1)], dim=-1)
    error = _moments(grid, start[:, None].expand_as(steps), steps).abs() * worst[:, None]
    degrees = torch.arange(NODES, dtype=h.dtype, device=h.device)
    longest = torch.where(count < NODES, GROWTH_AT_START, GROWTH).to(h.dtype)
    longest = torch.where(good, longest, AFTER_REJECTION)
    small = (error <= SAFETY) & (ratios <= longest[:, None])[..., None]
    reach = torch.where(small, ratios[:, None], 0.0).amax(dim=1)
    able = (degrees >= 2) & (degrees <= (degree + 1)[:, None])
    able = torch.where(good[:, None], able, degrees == degree[:, None])
    ratio, later = torch.where(able, reach, -1.0).max(dim=1)
    later = torch.where(ratio > 0, later.to(h.dtype), degree)
    return ratio.clamp(min=LENGTHS[0]), later
