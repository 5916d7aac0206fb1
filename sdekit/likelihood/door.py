"""`log_prob`: the log-density of a model, along its probability flow."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sdekit.errors import check_count, check_first_id, check_positive, unknown_name
from sdekit.likelihood.adams import Adams
from sdekit.likelihood.checks import (
    calling_dtype,
    check_arrived,
    check_data,
    check_law,
    ends_inside,
    prior_density,
)
from sdekit.likelihood.flow import Coordinates, Flow
from sdekit.likelihood.hindsight import Record
from sdekit.likelihood.result import LogProb
from sdekit.likelihood.trace import LAWS, Exact, Probed, Trace, check_densities, probes_for
from sdekit.samplers.pilot import statistics
from sdekit.score.model import Denoiser
from sdekit.sde.gaussian import GaussianDiffusion
from sdekit.sde.horizon import first_training_time
from sdekit.sde.rows import flat, fold
from sdekit.solvers.solve import solve

if TYPE_CHECKING:
    from sdekit._typing import Array

__all__ = ["log_prob"]

EXACT = 64
"""The largest event whose trace is exact under trace="auto"."""
TRACES = ("auto", "exact", "hutchinson")
ENDS = ("t_min", "clean")


def log_prob(
    model: Any,
    x: Tensor | Array,
    *,
    prior: Any = None,
    t_min: float | None = None,
    end: str = "t_min",
    trace: str = "auto",
    probes: int = 8,
    law: str = "rademacher",
    rtol: float = 1e-5,
    atol: float = 1e-5,
    seed: int = 0,
    first_id: int = 0,
    batch_size: int | None = None,
    compact: bool | None = None,
    gradient: str | None = None,
    max_steps: int = 10_000,
) -> LogProb:
    r"""log p(x) of a model, by the change of variables along its probability flow.

        dx/dt = v(x, t),   log p_{t_min}(x) = log pi(x_T) + int tr dv/dx dt from t_min to t_max.

    Solved as y = x/(alpha^2 s^2 + sigma^2)^(1/2) in the time arctan(sigma/(0.7 alpha s)), where both ends
    are ordinary points, by an Adams method with steps and orders of its own for each sample, one call of the
    network a step. With an exact trace the integrals are then taken anew, with nodes on both sides of each
    step and no further call, from 4 D numbers kept for every step of a row.

    Parameters
    ----------
    model
        A `Denoiser` of any prediction, or ``target.denoiser(process)``. A law with a ``log_prob`` of its own,
        such as a target, is asked for it.
    x
        (B, *event), in the units of the model.
    prior
        pi, the law at t_max: an object with ``log_prob(x) -> (B,)``. None: N(0, prior_std^2 I), from which
        `sample` starts. With ``target.marginal(process, process.t_max)`` the value is exact up to the
        tolerances, and ``mismatch`` is what None would have missed.
    t_min
        Where the flow starts. None: 1e-5 on processes of unit time; else the process's own, since where t is
        a noise level (EDM) or an index (DiscreteVP) the network knows nothing below it.
    end
        "t_min": the density of the noised data at t_min. "clean": that of the data, from alpha x at t_min
        and the first term in the noise left there,

            log p_0(x) = log p_{t_min}(alpha x) + D log alpha - (|eps|^2 - sigma tr deps/dx)/2.
    trace, probes, law
        "exact": D backward products a call; "hutchinson": ``probes`` of them, "rademacher" or "gaussian",
        fixed for each sample by (seed, id). "auto": exact up to D = 64.
    rtol, atol
        Per sample, of y (of order 1); a step may err by a fifth of them. Of the log-determinant over sqrt(D):
        2 (rtol + atol), with an exact trace 4, where a second look mends most of it.
    seed, first_id
        Of the probes; row i is sample first_id + i.
    batch_size
        Rows at once; None: all. Closed forms give the same bits either way.
    compact
        Whether finished samples leave the batch. None: for closed forms, whose rows do not influence each
        other's bits; True changes a network's rows by rounding, and saves their evaluations.
    gradient
        None keeps a graph if x requires a gradient; "backprop" keeps it for the network's parameters too.
    max_steps
        Of each sample.

    Returns
    -------
    LogProb. State and sums are float64; the network is called in its weights' dtype, float32 or float64
    (in x's where it has no weights), closed forms in float64.

    Raises
    ------
    CapabilityError: the network's output has no derivative in x. ShapeError, NonFiniteError: x, an output or
    the prior's values. SolveError: a sample needs too many steps. UnknownNameError, ValueError, TypeError:
    other arguments.

    Chen et al. 2018 (arXiv:1806.07366), theorem 1; Grathwohl et al. 2019 (arXiv:1810.01367); Song et al.
    2021, score SDE (arXiv:2011.13456), equation 39 and appendix D.2.
    """
    given = dict(locals())
    if torch.is_inference_mode_enabled():  # its tensors have no derivatives, and traces need them
        with torch.inference_mode(False), torch.no_grad():
            options = {k: v for k, v in given.items() if k not in ("model", "x")}
            return log_prob(model, check_data(x).clone(), **options)
    x = check_data(x)
    if not isinstance(model, Denoiser):
        return _closed(model, x)
    for value, known, what in ((trace, TRACES, "trace"), (end, ENDS, "end"), (law, LAWS, "law of probes")):
        if value not in known:
            raise unknown_name(what, value, known)
    if gradient not in (None, "backprop"):
        raise unknown_name("gradient", gradient, ("backprop",))
    if prior is not None:
        check_law(prior, ", or None for N(0, prior_std^2 I)")
        prior_density(prior, x.detach().to(torch.float64))
    process, event = model.process, x.shape[1:]
    size = math.prod(event)
    start, stop = first_time(process, t_min), last_time(model)
    if not start < stop:
        raise ValueError(f"t_min must be below t_max = {stop:g}, got {start:g}.")
    dtype = calling_dtype(model, x)
    s = statistics(model, tuple(event), dtype=dtype, device=x.device).data_std
    coordinates = Coordinates(model, s, start, stop)
    exact = trace == "exact" or (trace == "auto" and size <= EXACT)
    probes = 0 if exact else check_count(probes, "probes")
    ids = check_first_id(first_id, len(x)) + torch.arange(len(x), device=x.device)
    rows = len(x) if batch_size is None else check_count(batch_size, "batch_size")
    parts = []
    for first in range(0, max(1, len(x)), max(1, rows)):
        some = slice(first, first + rows)
        estimate: Trace = Exact() if exact else Probed(probes_for(ids[some], size, probes, law, seed))
        flow = Flow(coordinates, event, estimate, dtype)
        stepper = Adams(
            compact=model.row_invariant if compact is None else compact,
            size=size,
            probes=estimate.width,
            record=Record(flow) if exact else None,
        )
        parts.append(_piece(flow, stepper, x[some], prior, end, (rtol, atol, gradient, max_steps)))
    return _joined(parts, probes, start, stop)


def _piece(
    flow: Flow, stepper: Adams, x: Tensor, prior: Any, end: str, options: tuple[Any, ...]
) -> tuple[tuple[Tensor | None, ...], int]:
    """value, stderr, log_prior, log_det, latent, truncation, mismatch, skewness of some rows; calls."""
    c, size = flow.coordinates, flow.size
    rtol, atol, gradient, max_steps = options
    first, last = (c.model.node(t) for t in (c.t_min, c.t_max))
    scale = [float(c.norm(node)) for node in (first, last)]
    alpha = float(first.alpha) if end == "clean" else 1.0
    state = x.to(torch.float64) * alpha
    with torch.set_grad_enabled(torch.is_grad_enabled() and (gradient is not None or x.requires_grad)):
        with ends_inside(c.t_min, float(first.sigma)):
            solution = solve(
                flow,
                flow.start(state, scale[0]),
                (c.u(c.t_min), c.u(c.t_max)),
                solver=stepper,
                rtol=rtol,
                atol=atol,
                gradient=gradient,
                max_steps=max_steps,
                throw=False,
            )
        check_arrived(solution, max_steps)
        latent, changes = flow.finish(solution.x, scale[1])
        if stepper.record is not None and len(x):
            missed = stepper.record.correction(stepper.bound(rtol, atol).allowed)
            changes = changes + (missed * math.sqrt(size))[:, None]
        truncations = flow.truncations(state)
        changes = changes + size * (math.log(scale[1]) - math.log(scale[0]) + math.log(alpha))
        own = _normal(latent, c.model.process.prior_std(c.t_max))
        law = own if prior is None else prior_density(prior, latent)
        estimates = changes - truncations if end == "clean" else changes
        value = law + _mean(estimates)
    return (
        value,
        _standard_error(estimates.detach(), flow.trace),
        law,
        _mean(changes),
        latent,
        _mean(truncations),
        None if prior is None else law - own,
        None if isinstance(flow.trace, Exact) else _skewness(estimates.detach()),
    ), solution.stats.nfe


def _normal(x: Tensor, std: float) -> Tensor:
    """log N(x; 0, std^2 I), (B,)."""
    y = flat(x) / std
    return -0.5 * fold(y * y) - y.shape[1] * (0.5 * math.log(2 * math.pi) + math.log(std))


def _mean(estimates: Tensor) -> Tensor:
    return fold(estimates) / estimates.shape[1]


def _standard_error(estimates: Tensor, trace: Trace) -> Tensor:
    """Of the mean of K estimates (B, K); 0 for an exact trace, infinite for K = 1."""
    count = estimates.shape[1]
    if isinstance(trace, Exact):
        return torch.zeros_like(estimates[:, 0])
    if count == 1:
        return torch.full_like(estimates[:, 0], math.inf)
    gap = estimates - _mean(estimates)[:, None]
    return torch.sqrt(fold(gap * gap) / (count * (count - 1)))


def _skewness(estimates: Tensor) -> Tensor:
    """Of K estimates (B, K), by moments; 0 where they are equal."""
    gap = estimates - _mean(estimates)[:, None]
    square = _mean(gap * gap)
    return torch.where(square > 0, _mean(gap**3) / square.clamp(min=1e-300) ** 1.5, 0.0)


def _joined(
    parts: list[tuple[tuple[Tensor | None, ...], int]], probes: int, start: float, stop: float
) -> LogProb:
    columns = [
        None if column[0] is None else torch.cat([c for c in column if c is not None])
        for column in zip(*(part for part, _ in parts), strict=True)
    ]
    value, stderr, law, change, latent, truncation, mismatch, skewness = columns
    assert value is not None
    assert stderr is not None
    assert law is not None
    assert change is not None
    assert latent is not None
    assert truncation is not None
    calls = sum(nfe for _, nfe in parts)
    return LogProb(
        value,
        stderr,
        calls,
        law,
        change,
        latent,
        truncation,
        mismatch,
        probes,
        float(start),
        float(stop),
        skewness,
    )


def _closed(law: Any, x: Tensor) -> LogProb:
    """The density of a law that knows it: no flow, no error."""
    if isinstance(law, torch.nn.Module) or not callable(getattr(law, "log_prob", None)):
        raise TypeError(
            f"log_prob takes a Denoiser, or a law with log_prob(x), got {type(law).__name__}. Next: "
            f"sdekit.Denoiser(net, process, predicts=...) says what a network predicts."
        )
    value = check_densities(law.log_prob(x.to(torch.float64)), x, "log_prob").to(torch.float64)
    zero = torch.zeros_like(value.detach())
    return LogProb(value, zero, 0, value, zero, x, zero)


def first_time(process: GaussianDiffusion, t_min: float | None) -> float:
    if t_min is None:
        return first_training_time(process)
    return float(t_min) if t_min == 0 else check_positive(t_min, "t_min")


def last_time(model: Denoiser) -> float:
    """t_max; the time of alpha = 1e-3 where alpha(t_max) = 0 and the network says nothing there."""
    return float(model.process.t_max if model.defined_at_pure_noise else model.process.finite_t_max)
