r"""A second look at the flow of `log_prob`: integrals with nodes on both sides, without another call.

An Adams step from u_i to u_{i+1} knows the past alone. Once the flow has ended the slopes after u_{i+1} are
there too, and integrals over the step are better known than they were. For dy/du = V and the log-determinant
dl/du = tr V', an error d_i of y made in step i changes the log-density by s . d_i to first order, with
s = grad log q_u. So the steps missed, together,

    sum_i  int (tau + s_{i+1} . V) du - (l_{i+1} - l_i) - s_{i+1} . (y_{i+1} - y_i),

where tau is tr V' at the y_i that were kept, though it was taken at the predicted y*_i = y_i - e_i. The trace
of a flow changes with its score, ds/du = -V'^T s - grad tr V', so that

    tau = tr V'(y*) - (ds/du) . e - s . V' e.

s is the network's own (eps = -sigma s/N); where it is not the gradient of a density, what is added stays
within twice the error that a step was allowed. Each integral is that of one polynomial through up to K nodes
about the step: one more at a time, on the side where the divided difference is the smaller, so that no
polynomial reaches over a place where the slope turns (Harten et al. 1987), and as many as let the terms
decrease. Nodes before the start are mirror images, as in `sdekit.likelihood.adams`.
"""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from sdekit.sde.rows import fold

if TYPE_CHECKING:
    from sdekit.likelihood.flow import Flow

__all__ = ["Record"]

NODES = 14
"""K: nodes of the longest polynomial."""
MOST = 2.0
"""What a step may be changed by, in units of the error it was allowed."""
BEFORE = 0.3
"""A term counts as at least this part of the one before: it may vanish by accident."""
GAUSS = np.polynomial.legendre.leggauss(NODES // 2)
SIDE = NODES - 2
"""Nodes on each side of a step that its polynomials may reach."""


class _Nodes(NamedTuple):
    """u, y, l, V, tr V', s, e and s . V' e at nodes; vectors have D elements on the last axis."""

    u: Tensor
    y: Tensor
    change: Tensor
    slope: Tensor
    trace: Tensor
    score: Tensor
    miss: Tensor
    turn: Tensor


class Record:
    """The nodes of a run, kept as it goes, 4 D numbers each, and `correction` when it has ended.

    For exact traces: what probes leave open is more than what steps miss.
    """

    def __init__(self, flow: Flow) -> None:
        self.flow = flow
        self.rows: list[Tensor] = []
        self.nodes: list[_Nodes] = []

    def add(self, good: Tensor, u: Tensor, x: Tensor, slope: Tensor, miss: Tensor, moved: Tensor) -> None:
        """Steps that ended at u (b,) in the states x (b, W) with these slopes, where ``good`` (b,).

        miss: x less the predicted states; moved: how much the slopes were moved for it; both (b, W).
        """
        size = self.flow.size
        score = self.flow.score(x, slope, u)
        turn = fold(score * moved[:, :size])
        y, v, e = (part[:, :size] for part in (x, slope, miss))
        columns = (u, y, x[:, size], v, slope[:, size], score, e, turn)
        self.nodes.append(_Nodes(*(column[good] for column in columns)))
        self.rows.append(self.flow.row(x)[good])

    def correction(self, allowed: float) -> Tensor:
        """The sum above over sqrt(D), (B,), to be added to l. allowed: the error of l allowed to a step."""
        root = math.sqrt(self.flow.size)
        run, known = _by_rows(self.rows, self.nodes)
        trace = run.trace - (_turning(run, known) + run.turn) / root
        score, steps = run.score[:, 1:], run.u.shape[1] - 1
        slopes, traces = _mirrored(run.slope, run.u), _mirrored(trace, run.u)
        values = torch.stack(
            [
                traces[:, k : k + steps] + fold(slopes[:, k : k + steps] * score) / root
                for k in range(2 * SIDE + 2)
            ],
            dim=-1,
        )
        whole = _mirrored(known.to(run.u), run.u) != 0
        places = _mirrored(run.u, run.u)
        places = torch.where(whole, places, 100.0 + torch.arange(places.shape[1]).to(places))
        around, there = (v.unfold(1, 2 * SIDE + 2, 1) for v in (places, whole))
        taken = run.change.diff(dim=1) + fold(run.y.diff(dim=1) * score) / root
        missed = (_integral(around, there, values) - taken).clamp(-MOST * allowed, MOST * allowed)
        missed = torch.where(known[:, 1:], missed, 0.0)
        total = torch.zeros_like(missed[:, 0])
        for k in range(steps):  # left to right: a row's bits do not depend on how long others are
            total = total + missed[:, k]
        return total


def _by_rows(rows: list[Tensor], nodes: list[_Nodes]) -> tuple[_Nodes, Tensor]:
    """Nodes (b, ...) of steps as (B, n, ...) of rows, and which of them there are, (B, n)."""
    row = torch.cat(rows)
    counts = torch.bincount(row)
    order = torch.argsort(row, stable=True)
    place = torch.arange(int(counts.max()), device=row.device)
    known = place < counts[:, None]
    index = order[(counts.cumsum(0) - counts)[:, None] + torch.minimum(place, counts[:, None] - 1)]
    return _Nodes(*(torch.cat(column)[index] for column in zip(*nodes, strict=True))), known


def _turning(run: _Nodes, known: Tensor) -> Tensor:
    """(ds/du) . e at the nodes (B, n): the slope of the parabola through three scores; 0 at the first."""
    gaps = torch.where(known[:, 1:], run.u.diff(dim=1), 1.0)
    changes = run.score.diff(dim=1)
    back = fold(changes * run.miss[:, 1:]) / gaps
    ahead = fold(changes[:, 1:] * run.miss[:, 1:-1]) / gaps[:, 1:]
    left, right = gaps[:, :-1], gaps[:, 1:]
    inner = (right * back[:, :-1] + left * ahead) / (left + right)
    inner = torch.where(known[:, 2:], inner, back[:, :-1])
    return torch.cat([torch.zeros_like(back[:, :1]), inner, back[:, -1:]], dim=1)


def _mirrored(odd: Tensor, u: Tensor) -> Tensor:
    """An odd function at the nodes (B, n, ...) with its mirror images before them and zeros about both."""
    first = 1 if bool((u[:, 0] == 0).any()) else 0
    images = -odd[:, first : first + SIDE].flip(1)
    blank = odd.new_zeros(len(odd), SIDE, *odd.shape[2:])
    return torch.cat([blank[:, : SIDE - images.shape[1]], images, odd, blank], dim=1)


def _integral(u: Tensor, known: Tensor, values: Tensor) -> Tensor:
    """int over the middle step of the windows u (..., 2 K - 2) of functions with these values, (...)."""
    h = u[..., SIDE + 1] - u[..., SIDE]
    z = (u - u[..., SIDE, None]) / h[..., None]
    points, weights = (torch.from_numpy(v).to(z) for v in ((GAUSS[0] + 1) / 2, GAUSS[1] / 2))
    differences = [values]
    for j in range(1, NODES):
        previous = differences[-1]
        differences.append((previous[..., 1:] - previous[..., :-1]) / (z[..., j:] - z[..., :-j]))
    low = torch.full(h.shape, SIDE, device=h.device)
    product = (points * (points - 1)).expand(*h.shape, len(points))
    terms, sizes = [], []
    for j in range(2, NODES):  # from j nodes, low ... low + j - 1, to one more
        left, right = (_at(differences[j], low - k) for k in (1, 0))
        costs = [
            torch.where(_at(known, k), d.detach().abs(), torch.inf)
            for k, d in ((low - 1, left), (low + j, right))
        ]
        down = costs[0] < costs[1]
        able = torch.isfinite(torch.minimum(*costs))
        moment = fold(product * weights)
        terms.append(torch.where(able, torch.where(down, left, right) * moment, 0.0))
        sizes.append(torch.where(able, terms[-1].detach().abs(), torch.inf))
        product = product * (points - _at(z, torch.where(down, low - 1, low + j))[..., None])
        low = low - down.to(low.dtype)
    worth = torch.stack([torch.maximum(b, BEFORE * a) for a, b in itertools.pairwise(sizes)])
    best = worth.argmin(dim=0) + 1
    total = 0.5 * (values[..., SIDE] + values[..., SIDE + 1])
    for j, term in enumerate(terms):
        total = total + torch.where(j <= best, term, 0.0)
    return total * h


def _at(values: Tensor, index: Tensor) -> Tensor:
    return values.gather(-1, index[..., None])[..., 0]
