r"""calibrate: a plan whose grid and coefficients are fitted to one model, with its measured error.

Three sets of trajectories of the model's own probability flow, x_m(t_max) -> x_m(t_min): one to fit, one to
choose, one to report. The fit is `sdekit.certify.calibrate.fit`; among the candidates are this package's
deterministic samplers on several grids, so that the result is no worse than they are on the second set.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from sdekit._version import __version__
from sdekit.certify.calibrate.fit import fit
from sdekit.certify.calibrate.trajectories import (
    Probe,
    Trajectories,
    error,
    geometric_mean,
    own_precision,
)
from sdekit.certify.calibrate.trajectories import trajectories as follow
from sdekit.errors import ShapeError, check_count
from sdekit.samplers.adams import DEIS, IPNDM, LMS
from sdekit.samplers.base import Sampler
from sdekit.samplers.dpmpp import DPMpp2M, DPMpp3M
from sdekit.samplers.exponential import ExponentialAdams
from sdekit.samplers.flow import Heun
from sdekit.samplers.grids import Grid
from sdekit.samplers.pilot import pilot
from sdekit.samplers.plan import Plan
from sdekit.samplers.trigonometric import KernelQuadrature, TrigAdams
from sdekit.samplers.unipc import UniPC
from sdekit.score.model import Denoiser

__all__ = ["calibrate"]

GRIDS = ("quantile", "uniform-lambda", "karras")
CANDIDATES: tuple[Sampler, ...] = (
    KernelQuadrature(),
    TrigAdams(),
    ExponentialAdams(),
    UniPC(nodes=2),
    UniPC(nodes=3),
    UniPC(nodes=4, predicts="eps"),
    IPNDM(nodes=3),
    IPNDM(nodes=4),
    DEIS(),
    LMS(),
    DPMpp2M(),
    DPMpp3M(),
    Heun(),
)
ACCURATE = 1e-2
"""The reference's error, in units of the default sampler's."""


def calibrate(
    model: Denoiser,
    *,
    shape: int | Sequence[int],
    steps: int | None = None,
    nfe: int | None = None,
    end: str = "t_min",
    trajectories: int | None = None,
    seed: int = 0,
    iterations: int = 6,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    progress: bool = False,
) -> Plan:
    r"""A deterministic plan fitted to ``model``: minimise over grid and coefficients theta

        sum_m ln(1 + e_m(theta)^2 / kappa^2),    e_m = |x_theta(t_min; x_m) - x_m(t_min)|_rms,

    the error at the end of N trajectories of the model's own probability flow. The scheme is a multistep
    predictor-corrector with one evaluation a step (`sdekit.certify.calibrate.fit`); only forward evaluations
    are needed. Nothing is known of the score's error: it is the same for every sampler.

    The plan runs as any other, ``sample(model, shape, sampler=plan)``, at the number of steps that it was
    fitted for. Its ``provenance`` says how it was made. Errors there are geometric means over trajectories of
    e_m: ``error``, ``default_error`` and ``best_uncalibrated`` on the third set, which nothing was fitted to;
    ``candidates`` and ``fit`` (after each iteration) on the second; ``reference``, what the trajectories'
    ends are worth. ``evaluations`` counts network calls, of N rows each, ``rows`` the rows. Same model,
    seed, machine and number of threads: the same plan, bit for bit.

    Parameters
    ----------
    model
        A `Denoiser` or a closed-form law's. Called on exactly ``trajectories`` rows at a time, row m being
        trajectory m: a closure may hold one label or condition for each row.
    shape
        (n, *event) as in `sample`; n is not used.
    steps, nfe
        Intervals, which are evaluations here; 20 unless given, at least 2. Pass one.
    end
        "t_min", or "clean": one interval and evaluation of them is the clean data D(x, t_min).
    trajectories
        N of each set. None: 16, and up to 128 where samples have few elements: 512 / d.
    iterations
        At most so many of Levenberg-Marquardt; 0 chooses among the uncalibrated candidates.
    dtype, device
        What the model is called in: its parameters' unless given; float64 for closed-form laws. States are
        float64.
    progress
        A bar that counts evaluations.

    Raises
    ------
    TypeError: model is no `Denoiser`. ShapeError: shape. ValueError: counts that do not fit.
    NonFiniteError: the model returns NaN; names the time.

    Reference: the coordinate of Lu and Song 2024 (TrigFlow); Levenberg 1944, Marquardt 1963.
    """
    event = _event(model, shape)
    n = _intervals(steps, nfe, end)
    d = max(1, math.prod(event))
    count = max(16, min(128, -(-512 // d))) if trajectories is None else trajectories
    count = check_count(count, "trajectories", 4)
    iterations = check_count(iterations, "iterations", 0)
    own_dtype, own_device = own_precision(model)
    precision = own_dtype if dtype is None else dtype
    place = own_device if device is None else torch.device(device)
    spent = 0
    if model.data_std is None:
        std, spread = pilot(model, (count, *event), samples=count, seed=seed, dtype=precision, device=place)
        spent = 8
    else:
        std, spread = model.data_std, model.data_spread or model.data_std
    probe = Probe(model, count, event, std, spread, precision, place)
    bar = _bar(probe) if progress else None
    try:
        plan, report = _calibrate(probe, n, end, seed, iterations)
    finally:
        if bar is not None:
            bar.close()
    evaluations = probe.calls + spent
    about = {
        "library": "sdekit",
        "version": __version__,
        "seed": seed,
        "trajectories": count,
        "dtype": str(precision).removeprefix("torch."),
        "evaluations": evaluations,
        "rows": evaluations * count,
    }
    return replace(plan, provenance=about | report)


def _calibrate(probe: Probe, n: int, end: str, seed: int, iterations: int) -> tuple[Plan, dict[str, Any]]:
    intervals = n - (end == "clean")
    default = probe.plan("kernel-quadrature", steps=intervals)

    def tolerance(start: Tensor, exact: Tensor) -> float:
        return ACCURATE * geometric_mean(error(probe.run(default, start), exact))

    train, held, test = (follow(probe, seed, which, tolerance) for which in range(3))
    plans: dict[str, Plan] = {}
    for sampler in CANDIDATES:
        for grid in GRIDS:
            plan = _plan(probe, sampler, Grid(grid), n, end)
            if plan is not None:
                plans[f"{sampler!r} on {grid}"] = plan
    chosen, reported = _Judge(probe, held, end), _Judge(probe, test, end)
    errors = {label: chosen(plan) for label, plan in plans.items()}
    first = f"{KernelQuadrature()!r} on quantile"
    uncalibrated = min(errors, key=lambda label: errors[label])
    history: list[float] = []
    if iterations:
        begin = min(GRIDS, key=lambda grid: errors[f"{KernelQuadrature()!r} on {grid}"])
        times = torch.tensor(plans[f"{KernelQuadrature()!r} on {begin}"].times, dtype=torch.float64)
        states = list(fit(probe, times[: intervals + 1], train, held, iterations))
        history = [value for value, _, _ in states]
        _, times, fitted = states[-1]
        plans["fitted"] = probe.plan(fitted, grid=Grid.explicit(times), end=end)
        errors["fitted"] = chosen(plans["fitted"])
    best = min(errors, key=lambda label: errors[label])
    return plans[best], {
        "chosen": best,
        "error": reported(plans[best]),
        "default_error": reported(plans[first]),
        "best_uncalibrated": {"name": uncalibrated, "error": reported(plans[uncalibrated])},
        "reference": {"error": max(s.floor for s in (train, held, test)), "intervals": test.intervals},
        "fit": history,
        "candidates": dict(sorted(errors.items(), key=lambda item: item[1])),
    }


class _Judge:
    """The error of a plan on a set of trajectories, at the end that the plan goes to."""

    def __init__(self, probe: Probe, where: Trajectories, end: str) -> None:
        self.probe, self.start, self.end = probe, where.start, where.end
        if end == "clean":
            self.end = probe.evaluate("x0", where.end, probe.model.node(float(probe.model.process.t_min)))

    def __call__(self, plan: Plan) -> float:
        value = geometric_mean(error(self.probe.run(plan, self.start), self.end))
        return value if math.isfinite(value) else math.inf


def _plan(probe: Probe, sampler: Sampler, grid: Grid, nfe: int, end: str) -> Plan | None:
    """The plan of at most nfe evaluations; None where there is none from the starts at hand."""
    try:
        made = probe.plan(sampler, nfe=nfe, grid=grid, end=end)
    except ValueError:
        return None
    start = probe.plan("kernel-quadrature", steps=2).times[0]
    return made if made.times[0] == start else None


def _intervals(steps: int | None, nfe: int | None, end: str) -> int:
    if end not in ("t_min", "clean"):
        raise ValueError(f"end must be 't_min' or 'clean', got {end!r}. Next: end='t_min', the default.")
    if steps is not None and nfe is not None:
        raise ValueError(f"pass steps or nfe, not both; got steps = {steps} and nfe = {nfe}.")
    name, given = ("steps", steps) if nfe is None else ("nfe", nfe)
    return 20 if given is None else check_count(given, name, 3 if end == "clean" else 2)


def _event(model: object, shape: int | Sequence[int]) -> tuple[int, ...]:
    if not isinstance(model, Denoiser):
        raise TypeError(
            f"model must be a Denoiser, got {type(model).__name__}. Next: sdekit.Denoiser(net, process, "
            f"predicts=...) for a network, target.denoiser(process) for a closed-form law."
        )
    given = (shape,) if isinstance(shape, int) else tuple(shape)
    if not given or any(isinstance(k, bool) or not isinstance(k, int) or k < 0 for k in given):
        raise ShapeError(f"shape must be (n, *event) of whole numbers >= 0, got {shape!r}.")
    own = getattr(model, "event_shape", None)
    if own is not None and given[1:] != tuple(own):
        raise ShapeError(
            f"shape must be (n, {', '.join(map(str, own))}), the event shape of {model!r}, got {given}. "
            f"Next: shape=(n, *target.event_shape)."
        )
    return given[1:]


def _bar(probe: Probe) -> Any:
    from tqdm.auto import tqdm

    bar = tqdm(desc="calibrate", unit=" evaluations")
    probe.seen = bar.update
    return bar
