r"""Levenberg-Marquardt for the grid and the coefficients of a `Fitted`, end to end.

theta holds the shifts of `sdekit.certify.calibrate.scheme`, and the moves of the inner nodes' ln rho in units
of the smaller gap beside them. With r_m(theta) the error of y at the end of trajectory m and e_m its RMS,
sum_m ln(1 + e_m^2/kappa^2), a robust loss, is lowered by

    (sum_m w_m J_m^T J_m + mu) d(theta/scale) = -sum_m w_m J_m^T r_m,    w_m = 1/(e_m^2 + kappa^2),

kappa = 0.3 median e. J is taken by differences of runs that begin at the step that changes: no gradient of
the model is needed. mu and the length of the step are those best on other trajectories, which guards against
fitting to the few at hand; the iteration ends when these gain less than 5 %.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from sdekit.certify.calibrate.scheme import Cache, Fitted, Scheme, Shift, scheme
from sdekit.certify.calibrate.trajectories import Probe, Trajectories, error, geometric_mean

__all__ = ["fit"]

DIFFERENCE = 1e-3, 1e-2
"""Of the differences that give J: of shifts, and of nodes in units of the gap."""
SCALES = 0.1, 1.0
"""Of shifts and of moves: a small one is held nearer to where it is."""
DAMPING = tuple(10.0**k for k in range(-8, 1))
LENGTHS = 1.0, 0.4
LARGEST_MOVE = 0.4
GAIN = 0.95
ROUNDING = 1e-14
FREE, FREE_FINE, FINE = 6, 2, 24
"""Weights of a formula that are fitted; fewer on more than 24 intervals, where the analytic ones are good."""
COORDINATES = 4096
"""At most so many elements of a sample enter the normal equations."""


@dataclass(frozen=True)
class _State:
    log_rho: Tensor
    shifts: dict[Shift, float]
    scheme: Scheme


def fit(
    probe: Probe, times: Tensor, train: Trajectories, held: Trajectories, iterations: int
) -> Iterator[tuple[float, Tensor, Fitted]]:
    """(error on ``held``, times, sampler) before the first iteration and after each that gains.

    times: (n + 1,) the grid to begin with; its ends stay. error: the geometric mean over trajectories.
    """
    ends = times[[0, -1]]
    log_rho = probe.model.process.rho(times[1:-1]).log()
    plain = scheme(probe, ends, log_rho, {})
    free = FREE if plain.steps <= FINE else FREE_FINE
    names = [
        (name, i, j)
        for name, table in plain.tables.items()
        for i, row in enumerate(table)
        for j in range(min(free, len(row)))
    ]
    now = _State(log_rho, dict.fromkeys(names, 0.0), plain)

    def held_out(tried: Scheme) -> float:
        return geometric_mean(error(tried.end(held.start), held.end))

    best = held_out(plain)
    yield best, times, plain.sampler
    for _ in range(iterations):
        found = _step(probe, ends, now, train, held_out)
        if found is None or found[0] >= best:
            return
        small = found[0] > GAIN * best
        best, now = found
        yield best, now.scheme.times, now.scheme.sampler
        if small:
            return


def _step(
    probe: Probe, ends: Tensor, now: _State, train: Trajectories, held_out: Callable[[Scheme], float]
) -> tuple[float, _State] | None:
    """The best step from ``now``, by ``held_out``; None if none is finite."""
    jacobian, residual, gaps = _linearise(probe, ends, now, train)
    e = residual.square().mean(1).sqrt()
    finite = torch.isfinite(jacobian.sum((1, 2)) + e)
    jacobian, residual, e = jacobian[finite], residual[finite], e[finite]
    if not len(e) or float(e.max()) < ROUNDING or not bool(jacobian.any()):
        return None
    kappa = 0.3 * e.median().clamp_min(1e-12)
    weight = 1 / (e.square() + kappa.square())
    normal = torch.einsum("mdp,m,mdq->pq", jacobian, weight, jacobian).cpu()
    slope = torch.einsum("mdp,m,md->p", jacobian, weight, residual).cpu()
    unit = normal.diagonal().mean() * torch.eye(len(slope), dtype=torch.float64)
    count, found = len(now.shifts), None
    for damping in DAMPING:
        whole = -torch.linalg.solve(normal + damping * unit, slope)
        if not bool(torch.isfinite(whole).all()):
            continue
        for length in LENGTHS:
            moves = whole[count:] * SCALES[1] * length
            short = min(1.0, LARGEST_MOVE / max(1e-300, *moves.abs().tolist()))
            shifts = whole[:count] * SCALES[0] * length * short
            moved = {k: now.shifts[k] + v for k, v in zip(now.shifts, shifts.tolist(), strict=True)}
            log_rho = now.log_rho + moves * short * gaps
            tried = scheme(probe, ends, log_rho, moved)
            value = held_out(tried)
            if math.isfinite(value) and (found is None or value < found[0]):
                found = value, _State(log_rho, moved, tried)
    return found


def _linearise(probe: Probe, ends: Tensor, now: _State, train: Trajectories) -> tuple[Tensor, Tensor, Tensor]:
    """(J (N, D, P) in units of SCALES, r (N, D), gaps (n - 1,)), D elements of a sample."""
    own = now.scheme
    cache = own.run(train.start)
    end = cache[0][-1]
    size = end[0].numel()
    kept = torch.arange(size)
    if size > COORDINATES:
        kept = torch.randperm(size, generator=torch.Generator().manual_seed(0))[:COORDINATES]
    kept = kept.to(end.device)

    def column(run: Cache, kind: int) -> Tensor:
        return (run[0][-1] - end).flatten(1)[:, kept] * (SCALES[kind] / DIFFERENCE[kind])

    columns = []
    for name, i, j in now.shifts:
        row, width = own.tables[name][i], own.width[i]
        before = row[j]
        row[j] = before + DIFFERENCE[0] * (abs(width) if name == "growth" else width)
        columns.append(column(own.run(train.start, cache, i, name), 0))
        row[j] = before
    gaps = _gaps(probe, ends, now.log_rho)
    for k, gap in enumerate(gaps.tolist()):
        moved = now.log_rho.clone()
        moved[k] += DIFFERENCE[1] * gap
        columns.append(column(scheme(probe, ends, moved, now.shifts).run(train.start, cache, k), 1))
    residual = (end - train.end / own.norm[-1]).flatten(1)[:, kept]
    return torch.stack(columns, dim=-1), residual, gaps


def _gaps(probe: Probe, ends: Tensor, log_rho: Tensor) -> Tensor:
    """The smaller distance of each inner node to its neighbours; an infinite first node counts as 200 s."""
    first, last = (float(probe.model.process.rho(t)) for t in ends)
    if math.isinf(first):
        first = 200 * probe.data_std
    around = torch.tensor([math.log(first), *log_rho.tolist(), math.log(last)], dtype=torch.float64)
    steps = -around.diff()
    return torch.minimum(steps[:-1], steps[1:]).abs()
