"""The run behind `sample`, `encode` and `decode`: checks, plan, tiles, and how each sample ended."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from operator import index

import torch
from torch import Tensor

from sdekit.errors import (
    CapabilityError,
    DirectionError,
    ShapeError,
    check_call,
    check_count,
    check_first_id,
    check_not_negative,
    check_state,
    unknown_name,
)
from sdekit.kernels import BACKENDS
from sdekit.noise import BrownianTree, Noise, Philox, Recorded, as_noise
from sdekit.samplers.base import Sampler
from sdekit.samplers.build import GridLike, as_grid, check_initial, plan, same_schedule
from sdekit.samplers.execute import prepare
from sdekit.samplers.graphs import check_capture
from sdekit.samplers.memory import automatic_batch
from sdekit.samplers.pilot import statistics
from sdekit.samplers.plan import Plan
from sdekit.samplers.registry import as_sampler
from sdekit.samplers.run import Run, finite_rows
from sdekit.score.model import Denoiser
from sdekit.sde.reverse import probability_flow
from sdekit.solution import Solution, Stats, Status
from sdekit.solvers.solve import solve

__all__ = ["launch"]

#: Default tolerance of a parallel run.
TOLERANCE = 1e-3
COMPILED = tuple(name for name in BACKENDS if name != "eager")


def launch(
    model: Denoiser,
    shape: int | Sequence[int],
    *,
    sampler: str | Sampler | Plan,
    end: str,
    x_init: Tensor | None,
    steps: int | None = None,
    nfe: int | None = None,
    grid: GridLike = None,
    eta: float | None = None,
    seed: int = 0,
    noise: Noise | None = None,
    first_id: int = 0,
    batch_size: int | str | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    save: str | None = None,
    progress: bool = False,
    callback: Callable[[int, float, Tensor], None] | None = None,
    backend: str = "auto",
    throw: bool = True,
    gradient: str | None = None,
    parallel: int | None = None,
    tolerance: float | None = None,
    compile: bool = False,
    deterministic: bool = False,
) -> Solution:
    """The run behind `sample`, `sdekit.decode`, and with end = "t_max" `sdekit.encode`."""
    started = time.perf_counter()
    _check_options(model, backend, save, gradient, callback, batch_size)
    window, tolerance = _check_parallel(parallel, tolerance)
    if backend in COMPILED and (sampler == "rk45" or window is not None):
        what = "'rk45' runs in `solve`" if window is None else "a parallel run combines many times at once"
        raise CapabilityError(
            f"backend={backend!r} runs the steps of a plan one after another, and {what}. "
            f"Next: leave backend out."
        )
    shape = _check_shape(shape, model)
    x_init = None if x_init is None else check_initial(check_state(x_init, "x_init"), shape)
    dtype, device = _dtype_device(model, x_init, dtype, device)
    source = as_noise(seed, noise)
    keep_graph = gradient == "backprop" or (
        x_init is not None and x_init.requires_grad and torch.is_grad_enabled()
    )
    with torch.set_grad_enabled(keep_graph):
        if sampler == "rk45":
            if compile:
                raise CapabilityError(
                    "compile=True records a fixed loop, and 'rk45' chooses its steps as it goes. Next: a "
                    "sampler of fixed steps."
                )
            if any(given is not None for given in (steps, nfe, grid, batch_size, save, parallel)):
                raise ValueError(
                    "'rk45' chooses its own steps, sample by sample; steps, nfe, grid, batch_size, save "
                    "and parallel do not apply. Next: sdekit.solve(sdekit.probability_flow(process, model), "
                    "...) takes rtol, atol and save_at."
                )
            first_id = check_first_id(first_id, shape[0])
            return _adaptive(
                model, shape, end, eta, source, first_id, x_init, dtype, device, progress, callback, throw
            )
        made = _make_plan(model, sampler, shape, steps, nfe, grid, end, eta, dtype, device)
        if deterministic and made.stochastic:
            raise CapabilityError(
                f"{made.sampler!r} injects noise, so its result is no function of the latent. Next: a "
                f"deterministic sampler ('kernel-quadrature', 'ddim', 'heun'), eta = 0 where it has one, or "
                f"'rk45'."
            )
        program = prepare(made, model.predicts, model.data_std)
        if compile:
            watched = progress or callback is not None
            check_capture(program, source, device, keep_graph=keep_graph, watched=watched, window=window)
        if isinstance(batch_size, str):
            saved = len(made.nodes) if save else 0
            batch_size = automatic_batch(model, program, shape, dtype, device, saved=saved)
        run = Run(
            model,
            program,
            source,
            shape,
            check_first_id(first_id, shape[0]),
            dtype,
            device,
            x_init,
            batch_size,
            saved=range(len(made.nodes)) if save else (),
            callback=callback,
            progress=progress,
            window=window,
            tolerance=tolerance,
            backend=backend,
            compile=compile and shape[0] > 0,
        )
        x, xs = run()
    status, failed_step = _status(run, x)
    times = torch.tensor(made.times, dtype=torch.float64)
    solution = Solution(
        x=x,
        ts=times if save else times[[0, -1]],
        xs=xs,
        stats=Stats(
            nfe=run.sweeps if window else len(run.program.evaluation_times),
            steps=made.steps,
            accepted=made.steps,
            seconds=time.perf_counter() - started,
            sweeps=run.sweeps,
            evaluations=run.evaluations,
        ),
        status=status,
        failed_step=failed_step,
        failed_at=torch.where(failed_step >= 0, times[failed_step.clamp(min=0)], torch.nan),
    )
    if throw and not solution.ok:
        raise run.failure(solution)
    return solution


def _status(run: Run, x: Tensor) -> tuple[Tensor, Tensor]:
    """(status, failed_step), the step found by a replay where the noise is a pure function."""
    n = run.shape[0]
    unknown = not x.numel() or torch._C._functorch.is_functorch_wrapped_tensor(x)
    bad = torch.zeros(n, dtype=torch.bool) if unknown else ~finite_rows(x)
    step = torch.full((n,), -1, dtype=torch.int64)
    if bool(bad.any()) and isinstance(run.noise, Philox | Recorded | BrownianTree):
        with torch.no_grad():
            step = torch.where(bad, run.locate(), step)
    return bad.to(torch.int64) * int(Status.NON_FINITE), step


def _check_options(
    model: object, backend: str, save: str | None, gradient: str | None, callback: object, batch: object
) -> None:
    if not isinstance(model, Denoiser):
        raise TypeError(
            f"model must be a Denoiser, got {type(model).__name__}. Next: sdekit.Denoiser(net, process, "
            f"predicts=...) for a network, target.denoiser(process) for a closed-form law."
        )
    if backend not in ("auto", *BACKENDS):
        raise unknown_name("backend", backend, ("auto", *BACKENDS))
    if isinstance(batch, str) and batch != "auto":
        raise ValueError(f"batch_size must be a number of rows, 'auto' or None, got {batch!r}.")
    if save not in (None, "all"):
        raise ValueError(f"save must be None or 'all', got {save!r}.")
    if gradient not in (None, "backprop"):
        raise ValueError(f"gradient must be None or 'backprop', got {gradient!r}.")
    if callback is not None:
        if not callable(callback):
            raise TypeError(f"callback must be a function of (step, time, x), got {callback!r}.")
        cause = "a callback of `fit` or of another library"
        check_call(callback, ("step", "time", "x"), "callback", cause, "def callback(step, time, x)")


def _check_parallel(parallel: int | None, tolerance: float | None) -> tuple[int | None, float]:
    if parallel is None:
        if tolerance is not None:
            raise ValueError(
                "tolerance belongs to a parallel run, and parallel was not given. Next: parallel=8."
            )
        return None, TOLERANCE
    accepted = TOLERANCE if tolerance is None else check_not_negative(tolerance, "tolerance")
    return check_count(parallel, "parallel"), accepted


def _check_shape(shape: int | Sequence[int], model: Denoiser) -> tuple[int, ...]:
    given = tuple(shape) if isinstance(shape, Sequence) else (shape,)
    try:
        sizes = tuple(-1 if isinstance(n, bool) else index(n) for n in given)
    except TypeError:
        sizes = ()
    if not sizes or min(sizes) < 0:
        raise ShapeError(f"shape must be (n, *event) of whole numbers >= 0, got {shape!r}.")
    event = getattr(model, "event_shape", None)
    if event is not None and sizes[1:] != event:
        raise ShapeError(
            f"shape must be (n, {', '.join(map(str, event))}), the event shape of {model!r}, got {sizes}. "
            f"Next: shape=(n, *target.event_shape)."
        )
    return sizes


def _dtype_device(
    model: Denoiser, x_init: Tensor | None, dtype: torch.dtype | None, device: torch.device | str | None
) -> tuple[torch.dtype, torch.device]:
    if dtype is None:
        dtype = torch.float32 if x_init is None else x_init.dtype
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise ShapeError(f"dtype must be a floating torch.dtype, such as torch.float32, got {dtype!r}.")
    if device is None:
        device = x_init.device if x_init is not None else torch.device("cpu")
        if x_init is None and isinstance(model.net, torch.nn.Module):
            device = next((p.device for p in model.net.parameters()), device)
    found = torch.device(device)
    if found.type == "cuda" and not torch.cuda.is_available():
        raise CapabilityError(
            f"device={str(found)!r}, and torch finds no CUDA device here. Likely cause: a CPU build of "
            f"torch, or no driver. Next: leave device out, or device='cpu'."
        )
    return dtype, found


def _make_plan(
    model: Denoiser,
    sampler: str | Sampler | Plan,
    shape: Sequence[int],
    steps: int | None,
    nfe: int | None,
    grid: GridLike,
    end: str,
    eta: float | None,
    dtype: torch.dtype,
    device: torch.device,
) -> Plan:
    if isinstance(sampler, Plan):
        if steps is not None or nfe is not None or grid is not None or eta is not None or end == "clean":
            raise ValueError(
                "a Plan holds its own steps, grid, end and eta; pass it alone, or pass the sampler's name."
            )
        if (sampler.end == "t_max") != (end == "t_max"):
            raise DirectionError(
                f"expected a plan {'to noise' if end == 't_max' else 'to data'}, got one from t = "
                f"{sampler.times[0]:g} to {sampler.times[-1]:g}. Next: sdekit.encode runs plans made with "
                f"end='t_max', sdekit.sample and sdekit.decode all others."
            )
        if sampler.prepared.get("process") is not model.process:
            same_schedule(sampler, model.process)
            sampler.prepared["process"] = model.process
        return sampler
    method = as_sampler(sampler)
    data_std, data_spread = 1.0, 1.0
    if model.data_std is not None or method.uses_data or as_grid(grid, method).uses_data:
        data_std, data_spread = statistics(model, tuple(shape[1:]), dtype=dtype, device=device)
    return plan(
        method,
        model.process,
        steps=steps,
        nfe=nfe,
        grid=grid,
        end=end,
        eta=eta,
        data_std=data_std,
        data_spread=data_spread,
        predicts=model.predicts,
        finite=not model.defined_at_pure_noise,
    )


def _adaptive(
    model: Denoiser,
    shape: Sequence[int],
    end: str,
    eta: float | None,
    noise: Noise,
    first_id: int,
    x_init: Tensor | None,
    dtype: torch.dtype,
    device: torch.device,
    progress: bool,
    callback: Callable[[int, float, Tensor], None] | None,
    throw: bool,
) -> Solution:
    """rk45 on the probability flow; ``end="clean"`` adds the Tweedie evaluation, "t_max" goes to noise."""
    if eta:
        raise ValueError(
            f"'rk45' solves the probability flow (eta = 0), got eta = {eta}. Next: 'ddim' or "
            f"'euler-maruyama', which take any eta."
        )
    process = model.process
    start = float(process.t_max if model.defined_at_pure_noise else process.finite_t_max)
    if x_init is None:
        ids = torch.arange(first_id, first_id + shape[0], dtype=torch.int64, device=device)
        like = torch.empty(tuple(shape), dtype=dtype, device=device)
        x_init = noise.initial(like, ids) * float(process.prior_std(start))
    span = (start, float(process.t_min))
    solution = solve(
        probability_flow(process, model),
        x_init.to(dtype=dtype, device=device),
        span[::-1] if end == "t_max" else span,
        solver="rk45",
        first_id=first_id,
        progress=progress,
        callback=callback,
        throw=throw,
    )
    if end == "clean":
        stats = replace(solution.stats, nfe=solution.stats.nfe + 1)
        x = model.x0(solution.x, float(process.t_min))
        solution = replace(solution, x=x, stats=stats)
    return solution
