"""`estimate`: the mean of a functional, its Monte Carlo error and its bias."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from sdekit.errors import CapabilityError, check_count, check_positive, check_state, unknown_name
from sdekit.estimate.combine import from_levels, from_pairs
from sdekit.estimate.coupled import Experiment
from sdekit.estimate.quasi import QuasiNoise
from sdekit.estimate.result import Estimate
from sdekit.noise.source import Noise, Philox
from sdekit.sde.base import ODE, SDE
from sdekit.solvers.base import Solver, get
from sdekit.solvers.door import check_system, match_solver
from sdekit.solvers.external import External
from sdekit.solvers.times import check_span, fixed_grid, save_times

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from sdekit.solution import Solution

    Floats = NDArray[np.float64]

__all__ = ["estimate"]

METHODS = ("mc", "mlmc", "qmc")
DEFAULTS = {"mc": (100, 10_000), "qmc": (100, 2**14), "mlmc": (4, 1_000)}


def estimate(
    functional: Callable[[Tensor], Tensor] | Callable[[Solution], Tensor],
    system: SDE | ODE,
    x0: Tensor | Callable[[Tensor], Tensor],
    span: tuple[float, float],
    *,
    solver: str | Solver = "euler-maruyama",
    method: str = "mc",
    steps: int | None = None,
    samples: int | None = None,
    tolerance: float | None = None,
    save_at: Sequence[float] | Tensor | None = None,
    seed: int = 0,
    confidence: float = 0.95,
    batch_size: int = 2**14,
    replicates: int = 16,
    max_levels: int = 12,
) -> Estimate:
    r"""E f(X) for the solution X of a system, with the error of chance and that of the step.

    Every sample runs on two grids, one with steps twice as long, along one Brownian path. For a solver of
    weak order p, E f(X_h) - E f(X) = c h^p + ..., so that the two grids give

        bias = (E f(X_2h) - E f(X_h)) / (2^p - 1)

    (Talay and Tubaro 1990), and the difference has little variance, since the paths are close.

    Parameters
    ----------
    functional
        f: x at the end (B, *event) -> (B,) or (B, k). With ``save_at`` it is given the whole `Solution`.
        Its row i must depend on row i alone.
    system, span, solver
        As in `solve`; span is (t0, t1). The solver runs at fixed steps and has a declared weak order.
    x0
        One initial state (1, *event), or a function of the ids (B,) int64 of the samples -> (B, *event).
    method
        "mc": means over ``samples`` paths. "mlmc": multilevel Monte Carlo to ``tolerance`` (Giles 2008).
        "qmc": scrambled Sobol points and a Brownian bridge (`sdekit.estimate.QuasiNoise`), with the
        standard error of ``replicates`` scramblings.
    steps
        Of the finer grid, even, default 100; with "mlmc" of the coarsest level, default 4.
    samples
        Default 10,000. With "qmc" rounded up to ``replicates`` times a power of two, default 2^14; with
        "mlmc" those of each of the first three levels, default 1,000.
    tolerance
        Of "mlmc": the root mean square error wanted, bias included, of every component.
    save_at
        Times, kept in the `Solution` that the functional is given. They join the coarsest grid.
    seed, batch_size
        The result is a function of the seed, not of ``batch_size``, which bounds the memory of the states.
        The values of f are kept: 16 bytes for each sample and component.
    confidence
        Of ``interval``, by Student's t: it covers the mean of f(X_h), not the bias.
    max_levels
        Of "mlmc".

    Returns
    -------
    Estimate
        ``value``, ``stderr``, ``interval``, ``bias``, ``bias_stderr``, ``corrected`` = value - bias with its
        standard error, ``samples``, ``steps``, ``cost``, ``levels``.

    Raises
    ------
    NonFiniteError: f or a state is not finite, and for how many samples. ShapeError: f does not return one
    row for each sample. CapabilityError: the solver declares no weak order, or chooses its own steps.
    SolveError: "mlmc" did not reach its tolerance. UnknownNameError: no such method. ValueError: any other
    argument.
    """
    if not callable(functional):
        raise TypeError(
            f"functional must be callable, x -> (B,), got {type(functional).__name__}. Likely cause: the "
            f"arguments are in another order. Next: estimate(functional, system, x0, span)."
        )
    check_system(system)
    if method not in METHODS:
        raise unknown_name("method", method, METHODS)
    own = match_solver(get(solver, "ode" if isinstance(system, ODE) else None), system)
    order = own.weak_order if own.kind == "sde" else own.order
    if order is None or isinstance(own, External):
        raise CapabilityError(
            f"solver {own.name!r} {'chooses its own steps' if order else 'declares no weak order'}, so its "
            f"bias cannot be told from two grids. Next: 'euler-maruyama', or a solver with a weak order in "
            f"sdekit.solvers()."
        )
    if not 0.0 < confidence < 1.0:
        raise ValueError(f"confidence must lie between 0 and 1, got {confidence!r}. Next: 0.95.")
    if (tolerance is None) == (method == "mlmc"):
        raise ValueError(
            "method='mlmc' needs a tolerance, the root mean square error wanted. Next: tolerance=1e-2."
            if method == "mlmc"
            else f"tolerance is for method='mlmc'; {method!r} takes samples and steps. Next: method='mlmc'."
        )
    default = DEFAULTS[method]
    count = check_count(default[0] if steps is None else steps, "steps")
    size = check_count(default[1] if samples is None else samples, "samples", minimum=2)
    if method != "mlmc" and count % 2:
        raise ValueError(
            f"steps must be even, for the grid of half as many that shows the bias, got {count}."
        )
    replicates = check_count(replicates, "replicates", minimum=2)
    key = Philox(seed).seed

    def noise(grid: Floats, stream: int) -> Noise:
        if method != "qmc":
            return Philox(key)
        return QuasiNoise(tuple(grid.tolist()), key, stream, max(own.normals, 1))

    run = Experiment(
        functional=functional,
        system=system,
        x0=x0 if callable(x0) else _one_state(x0),
        nodes=_coarsest(system, span, count if method == "mlmc" else count // 2, save_at),
        solver=own,
        save_at=save_at,
        batch_size=check_count(batch_size, "batch_size"),
        noise=noise,
    )
    if method == "mlmc":
        assert tolerance is not None
        goal = check_positive(tolerance, "tolerance")
        return from_levels(run, goal, size, order, check_count(max_levels, "max_levels", 3), confidence)
    if method == "qmc":
        each = 2 ** math.ceil(math.log2(max(size / replicates, 1)))
        pairs = [run.values(1, r, 0, each, pairs=True) for r in range(replicates)]
        fine, coarse = (np.stack([pair[i].mean(axis=0) for pair in pairs]) for i in (0, 1))
        return from_pairs(run, "qmc", fine, coarse, order, each * replicates, confidence)
    fine, coarse = run.values(1, 0, 0, size, pairs=True)
    return from_pairs(run, "mc", fine, coarse, order, size, confidence)


def _one_state(x0: Any) -> Tensor:
    state = check_state(x0)
    if state.shape[0] != 1:
        raise ValueError(
            f"x0 must be one initial state (1, *event), the same for all samples, or a function of the "
            f"sample ids, got {state.shape[0]} states. Next: x0[:1], or x0=lambda ids: states[ids]."
        )
    return state


def _coarsest(system: Any, span: Any, steps: int, save_at: Any) -> Floats:
    """The nodes of the coarsest grid, with the saved times among them."""
    ends = check_span(system, span)
    if ends.size != 2:
        raise ValueError(f"span must be a pair (t0, t1), got {ends.size} nodes. Next: (t0, t1) and steps.")
    save, slack = save_times(save_at, float(ends[0]), float(ends[1]))
    return np.asarray(fixed_grid(ends, steps, None, save, slack))
