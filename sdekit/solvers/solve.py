"""`solve`: any system, any solver, one door and one way out."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from sdekit.errors import (
    NonFiniteError,
    SolveError,
    check_count,
    check_first_id,
    check_state,
    unknown_name,
)
from sdekit.noise.brownian import BrownianTree
from sdekit.noise.source import TorchNoise
from sdekit.sde.base import ODE, SDE
from sdekit.sde.contract import unprobed
from sdekit.solution import Solution, Stats, Status
from sdekit.solvers import adaptive, adjoint, fixed
from sdekit.solvers.adjoint import Adjoint
from sdekit.solvers.base import Solver, get
from sdekit.solvers.compiled.door import Run, check_compiled_noise, choose, either, obstacle
from sdekit.solvers.door import (
    as_source,
    check_event,
    check_noise,
    check_order,
    check_system,
    check_tolerances,
    match_solver,
)
from sdekit.solvers.events import Event, as_event
from sdekit.solvers.external import External
from sdekit.solvers.problem import Counted, Outcome, Problem
from sdekit.solvers.report import Report
from sdekit.solvers.times import between, check_span, fixed_grid, save_times

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sdekit._typing import Array
    from sdekit.noise.source import Noise

__all__ = ["solve"]

GRADIENTS = ("backprop", "checkpoint", "adjoint")


def solve(
    system: SDE | ODE,
    x0: Tensor | Array,
    span: tuple[float, float] | Sequence[float] | Tensor,
    *,
    solver: str | Solver = "euler-maruyama",
    steps: int | None = None,
    dt: float | None = None,
    rtol: float | None = None,
    atol: float | None = None,
    save_at: Sequence[float] | Tensor | Array | None = None,
    seed: int = 0,
    noise: Noise | None = None,
    first_id: int = 0,
    progress: bool = False,
    callback: Callable[[int, Any, Tensor], object] | None = None,
    gradient: str | Adjoint | None = None,
    backend: str = "auto",
    throw: bool = True,
    max_steps: int = 10_000,
    probe: bool = True,
    event: Event | Callable[[Tensor, Tensor], Tensor] | None = None,
) -> Solution:
    r"""Solve dX = f(X, t) dt + G(X, t) dW, or dx/dt = f(x, t), from x0 over ``span``.

    Parameters
    ----------
    system
        An `SDE`, solved with increasing t; a `reverse(process, score)`, with decreasing t; or an `ODE`,
        either way. It is given t as a tensor of x's dtype and device: shape () at fixed steps, (B,) with
        per-sample steps.
    x0
        (B, *event), floating and finite; numpy arrays are accepted.
    span
        (t0, t1), or all the nodes of a grid from t0 to t1.
    solver
        A name or a `Solver`; ``sdekit.solvers()`` lists them. "euler-maruyama" on an ODE is Euler.
    steps, dt
        How many equal steps, or their length (> 0; the last one may be shorter). Default for fixed-step
        solvers: 1000 steps. An adaptive solver given either runs its method at fixed steps.
    rtol, atol
        Of adaptive solvers: per sample, the RMS of error/(atol + rtol |x|) stays below 1 in each step.
        Default 1e-5 both (Song et al. 2021), 1e-3 on SDEs. "torchdiffeq:..." and "scipy:..." control the
        batch as one vector, so that a sample depends on the batch around it.
    save_at
        Times at which the state is kept, within the span and in its direction. At fixed steps they join
        the grid (where they are nodes already, nothing changes; elsewhere a step is split, and the draws
        of later steps are others). Adaptive solvers use their dense output on ODEs. Adaptive steps of an
        SDE, and fixed ones with a BrownianTree, are left as they are: the state comes from a shorter step of
        the method, on the same path. (With ``event`` or an adjoint, saved times of an SDE are nodes.)
    seed, noise
        Normal draw k belongs to step k, sample i to row i - first_id; ``noise`` replaces Philox(seed). With
        BrownianTree(seed) the increments are those of one path, whatever the steps and the saved times.
        Adaptive steps of an SDE need such a path, and BrownianTree(seed) is their default.
    progress, callback
        A progress bar (of paths with "numba"); ``callback(step, t, x)`` after each step, t a float, or (B,)
        with per-sample steps.
    gradient
        None keeps a graph only if x0 requires a gradient; "backprop" keeps it (for parameters of the
        system); "checkpoint" keeps sqrt(steps) states and runs the steps again in the backward pass.
        "adjoint", or `Adjoint` with options, keeps the end and the saved states alone, and solves an equation
        backwards. Step lengths count as constants.
    backend
        "eager": plain torch. "numba": of a `compiled` equation on CPU, at fixed steps and without callback,
        event and gradient; machine code in which whole paths run one after the other, on the same Brownian
        paths, with the same states up to rounding. "auto": "numba" where it can, else "eager".
    throw
        True raises at the first failed sample; False marks it in ``status``; other samples are unaffected.
    max_steps
        Of adaptive solvers, for each sample.
    probe
        Whether the diffusion is held to its noise type by a few products with its derivative at x0 and near
        it: "additive" that depends on the state, "diagonal" that mixes elements and "commutative" that does
        not commute are refused. False takes it on trust.
    event
        A callable (x, t) -> (B,), t (B,), or an `Event` with options: the first time tau at which it crosses
        zero is ``event_at``, and the sample stops there. On SDEs crossings between the nodes count too,
        by their probability. tau counts as a constant in gradients.

    Returns
    -------
    Solution
        ``x`` at t1, or at the event that stopped the sample; ``xs`` at ``save_at`` (NaN where a sample had
        failed; after an event the state in which it stopped); ``ts`` float64; ``stats.nfe`` calls of the
        drift on the batch; with per-sample steps, ``steps``, ``accepted`` and ``rejected`` are those of the
        sample that took most.

    Raises
    ------
    DirectionError: span against the system's direction. CapabilityError: the solver cannot do this
    system. UnknownNameError: no such solver. ShapeError: x0 or an output of the system has the wrong
    shape or dtype. NonFiniteError: x0, or a sample on the way, is not finite. SolveError: a sample needs
    too many or too short steps. ValueError: any other argument. ``error.solution`` holds what there is.
    """
    check_system(system)
    check_order(x0, span)
    x = check_state(x0)
    ts = check_span(system, span)
    method = match_solver(get(solver), system, (x, float(ts[0])))
    traced = Adjoint() if gradient == "adjoint" else gradient if isinstance(gradient, Adjoint) else None
    if gradient is not None and traced is None and gradient not in GRADIENTS:
        raise unknown_name("gradient", gradient, GRADIENTS)
    t0, t1 = float(ts[0]), float(ts[-1])
    save, slack = save_times(save_at, t0, t1)
    stepping = method.adaptive and steps is None and dt is None and ts.size == 2
    tolerances = check_tolerances(method, stepping, rtol, atol, x.dtype, system)
    if stepping != method.adaptive and isinstance(method, External):
        raise ValueError(f"solver {method.name!r} chooses its own steps: it takes no steps, dt or grid.")
    source = as_source(system, stepping, seed, noise)
    graph = gradient is not None or (x.requires_grad and torch.is_grad_enabled())
    why_not = obstacle(system, x, method, stepping, source, graph, {"callback": callback, "event": event})
    numba = choose(backend, system, why_not)
    if gradient == "checkpoint" and isinstance(source, TorchNoise) and method.normals:
        raise ValueError(
            "gradient='checkpoint' draws the noise again in the backward pass, which TorchNoise cannot. "
            "Next: seed= or noise=Philox(seed), or gradient='backprop'."
        )
    if callback is not None and not callable(callback):
        raise TypeError(
            f"callback must be a callable (step, t, x), got {type(callback).__name__}. Next: "
            f"callback=lambda step, t, x: print(step, t)."
        )
    report = Report(progress, callback, t0, t1)
    on_path = (
        isinstance(system, SDE) and isinstance(source, BrownianTree) and event is None and traced is None
    )
    grid = None if stepping else fixed_grid(ts, steps, dt, np.empty(0) if on_path else save, slack)
    problem = Problem(
        system=Counted(system),
        solver=method,
        x0=x,
        t0=t0,
        t1=t1,
        grid=grid,
        save=save,
        noise=source,
        ids=torch.arange(first := check_first_id(first_id, len(x)), first + len(x), device=x.device),
        rtol=tolerances[0],
        atol=tolerances[1],
        max_steps=check_count(max_steps, "max_steps"),
        gradient=gradient if isinstance(gradient, str) else None,
        report=report if progress or callback else None,
        within=between(grid, save, slack) if on_path and grid is not None and save.size else None,
        event=as_event(event),
        seed=getattr(source, "seed", seed),
    )
    if problem.event is not None:
        check_event(method, gradient)
    run: Run = (
        method.run if isinstance(method, External) else adaptive.integrate if stepping else fixed.integrate
    )
    if numba:
        from sdekit.solvers.compiled.run import integrate as compiled_run

        run = compiled_run if backend == "numba" else either(compiled_run, run)
    back = None if traced is None else traced.method(system, method, source, stepping)
    started = time.perf_counter()
    with torch.set_grad_enabled(graph), nullcontext() if probe else unprobed():
        if isinstance(system, SDE):
            (check_compiled_noise if numba else check_noise)(system, x.detach(), t0)
        with report:
            outcome = (
                run(problem)
                if traced is None or back is None
                else adjoint.integrate(problem, run, traced, back)
            )
    seconds = time.perf_counter() - started
    stats = Stats(
        problem.system.calls, outcome.accepted + outcome.rejected, outcome.accepted, outcome.rejected, seconds
    )
    solution = Solution(
        x=outcome.x,
        ts=torch.as_tensor(save if save.size else np.array([t0, t1]), device=x.device),
        xs=outcome.xs,
        stats=stats,
        status=torch.from_numpy(outcome.status).to(x.device),
        failed_at=torch.from_numpy(outcome.failed_at).to(x.device),
        failed_step=torch.from_numpy(outcome.failed_step).to(x.device),
        event_at=None if outcome.event_at is None else torch.from_numpy(outcome.event_at).to(x.device),
    )
    if throw and outcome.status.any():
        raise _error(problem, outcome, solution, first_id)
    return solution


def _error(p: Problem, outcome: Outcome, solution: Solution, first_id: int) -> SolveError:
    """The typed error of a failed run: which sample, when, at which step, and why."""
    failed = np.flatnonzero(outcome.status)
    row = int(failed[0])
    status, step, at = Status(outcome.status[row]), outcome.failed_step[row], outcome.failed_at[row]
    what = {
        Status.NON_FINITE: "became NaN or infinite",
        Status.MAX_STEPS: "ran out of steps",
        Status.STEP_UNDERFLOW: "needed steps below rounding",
        Status.NOT_CONVERGED: "was given up by Newton's method",
    }[status]
    total = "" if p.grid is None else f" of {p.grid.size - 1}"
    when = f" at step {step}{total}, t = {at:.6g}" if step >= 0 else ""
    name = f"sample {row + first_id}" + (f" (row {row})" if first_id else "")
    kind = NonFiniteError if status == Status.NON_FINITE else SolveError
    return kind(
        f"{failed.size} of {len(outcome.status)} samples failed under {p.solver.name!r}. First: {name} "
        f"{what}{when}. Likely cause: {outcome.cause}. error.solution holds the run; throw=False returns it.",
        solution,
    )
