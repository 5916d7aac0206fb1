"""fit: data and a network in, a score model with averaged weights out."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from sdekit.errors import check_count, check_positive, unknown_name
from sdekit.matching import arguments
from sdekit.matching import resume as states
from sdekit.matching.labels import classes_of
from sdekit.matching.logs import StepReport
from sdekit.matching.models import architecture, as_model
from sdekit.matching.objectives import objective
from sdekit.matching.optimisers import make_optimiser, trainable
from sdekit.matching.rates import SCHEDULES, Schedule
from sdekit.matching.result import FitResult
from sdekit.matching.sources import open_data
from sdekit.matching.stream import checksum
from sdekit.matching.training import Training
from sdekit.score.energy import Energy
from sdekit.score.model import Denoiser
from sdekit.sde.base import SDE

__all__ = ["FitResult", "fit"]


def fit(
    net: nn.Module | Denoiser,
    data: Any,
    process: SDE | None = None,
    *,
    predicts: str | None = None,
    time: str | Callable[[Tensor], Tensor] | None = None,
    loss: str | Callable[..., Tensor] = "denoising",
    labels: Any = None,
    drop_labels: float = 0.1,
    steps: int = 2000,
    batch_size: int = 128,
    lr: float | None = None,
    optimiser: Callable[..., torch.optim.Optimizer] | None = None,
    schedule: Schedule = "cosine",
    warmup: int | None = None,
    clip: float | None = 1.0,
    ema: float | None = 0.999,
    held_out: Any = None,
    check_every: int | None = None,
    seed: int = 0,
    autocast: torch.dtype | None = None,
    compile: bool = False,
    progress: bool = True,
    callback: Callable[[int, StepReport], object] | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    resume: bool | str = False,
    **options: Any,
) -> FitResult:
    r"""Train a network, by denoising score matching unless another loss is named:

        minimise  E w(t) || net(x_t, t) - k ||^2 / D        (see `sdekit.losses.denoising`)

    with Adam (betas 0.9, 0.99), its rate rising linearly over ``warmup`` steps and falling to 0 by a cosine,
    and keep the exponential moving average of the weights, W <- m_n W + (1 - m_n) w with
    m_n = min(ema, (1 + n)/(10 + n)) at update n; update 0 copies (the warm-up of the score-SDE code; rates
    in Song et al. 2021, appendix H).

    Equal arguments give equal weights, on one CPU with one number of threads bit for bit: order, times and
    noise are pure functions of the seed, and a run that was stopped and resumed is equal to one that was not.
    The initial weights are the network's own.

    Parameters
    ----------
    net
        nn.Module called as net(x, t), trained in place (the averaged copy is in the result); a
        `sdekit.Energy`, whose gradient is the prediction; or a `Denoiser` that holds one, with process,
        predicts and time.
    data
        (N, *event), tensor or numpy array of floating dtype; converted to the network's dtype and device.
        Scale it to a standard deviation of about 1/2 to 1. Or a torch Dataset, read item by item in an
        order of the seed; or a DataLoader or another iterable of batches, whose batch size is its own. Items
        and batches are x or (x, label).
    process
        As in `Denoiser`; any `SDE` for loss="sliced_sde"; None for losses that need none, which train net(x),
        or net(x, t) with their option ``t``.
    predicts, time
        As in `Denoiser`, "eps" ("flow" for loss="flow_matching", "score" for a `sdekit.Energy`) and "t"
        unless given; for loss="interpolant" as in `sdekit.losses.interpolant`.
    loss, **options
        A name in `sdekit.losses`, with its own options as further arguments: "denoising" (weighting, times,
        ...), "likelihood_weighted", "flow_matching" (on `RectifiedFlow`), "multi_noise" (sigmas),
        "sliced_sde" (span, and path_steps for its ``steps``). With a process "implicit", "sliced",
        "finite_difference" and "explicit" (exact) are taken at noised data x_t, at times ``times`` and
        weighted by sigma^2 (or by ``weighting``, "none" or a function of t); without one at the data, as are
        "one_noise" (sigma), "multi_noise" and "interpolant" (pairs, (N, 2, *event)). Or a callable
        loss(model, x, seed=, draw=, **options) -> (B,), where model is a `Denoiser`, or the network without a
        process, and draw the step. An "edm" network's times are EDM's, ln(sigma/alpha) ~
        N(-1.2 + ln(data_std/0.5), 1.2^2), unless ``times`` is given.
    labels, drop_labels
        Classes (N,), whole numbers 0, ..., K - 1, for a network with an attribute ``classes`` = K called as
        net(x, t, label), label int64 (B,). Each is replaced by K, "no class", with probability drop_labels,
        so that the network learns the model without a class too. See `sdekit.matching.ClassDenoiser`.
    steps, batch_size
        Optimiser steps; samples in each (at most N).
    lr, optimiser
        Peak rate, 1e-3 unless given; or, in place of Adam and lr, a function of the parameters:
        ``lambda p: torch.optim.AdamW(p, lr=1e-3)``, whose own rates are the peaks.
    schedule, warmup, clip
        "cosine", "constant" or a function of the step, a factor of the rate; steps up to the peak
        (steps/20, at most 500, unless given); bound on the gradient's norm or None.
    ema
        m in [0, 1); 0 or None keeps the last weights. See `sdekit.matching.ema_rate`.
    held_out
        Fraction of the data, chosen by the seed (0.1 unless given), or data of the same event shape, (x,
        labels) with classes; 0 for none. A loader has no fraction to hold out: data, or none.
    check_every
        Steps between held-out losses and checkpoints; steps/10 unless given.
    autocast, compile
        torch.bfloat16 for mixed precision, weights and losses in full; True trains through torch.compile.
    progress, callback
        A bar with both losses; callback(step, report) after each step, with a
        `sdekit.matching.StepReport`: a `CSVLog`, a `TensorBoardLog`, or a function.
    checkpoint, resume
        A .safetensors path for the averaged model, see `sdekit.matching.load`. Beside it, under the name
        *.state.safetensors, the state of the run is kept, at every check and when the run is interrupted.
        resume=True goes on from it, "auto" too if there is one, and refuses data, arguments or a seed that
        differ; ``steps`` may grow if the schedule is not the cosine, which is made for one number of steps.
        The batches of a loader must come in the same order again: shuffling and transforms that draw from
        torch's generator do, others are refused.

    Returns
    -------
    FitResult. Its model knows the data's standard deviation and spread, as samplers ask for (measured on
    4,096 samples where the data are not in memory).

    Raises
    ------
    ShapeError: data that are empty, integer or not (N, *event), labels that are floats or of another number;
    a network or a loss of the wrong output shape. NonFiniteError: NaN in the data, or a loss that is no
    longer finite. ValueError: numbers out of range, a state of another run. TypeError: labels missing or of
    no use, unknown options. FileNotFoundError: resume=True without a state. UnknownNameError: loss, schedule.
    RuntimeError: torch.compile fails,
    or gradients are switched off. OptionalDependencyError: ``checkpoint`` without safetensors.
    """
    arguments.check_gradients()
    module = net.net if isinstance(net, Denoiser) else net
    like = trainable(module)
    assert isinstance(module, nn.Module)
    arguments.check_process(process)
    seed, held_out = arguments.check_seed(seed), arguments.fraction(held_out)
    steps, batch_size = check_count(steps, "steps"), check_count(batch_size, "batch_size")
    ema = arguments.check_share(ema, "ema", below=True)
    drop_labels = arguments.check_share(drop_labels, "drop_labels")
    warmup = min(500, steps // 20) if warmup is None else check_count(warmup, "warmup", 0)
    every = max(steps // 10, 1) if check_every is None else check_count(check_every, "check_every")
    clip = None if clip is None else check_positive(clip, "clip")
    if not callable(schedule) and schedule not in SCHEDULES:
        raise unknown_name("schedule", schedule, SCHEDULES)
    if autocast not in (None, torch.bfloat16):
        raise ValueError(
            f"autocast must be torch.bfloat16 or None, got {autocast}. float16 needs scaled gradients."
        )
    arguments.check_callback(callback)
    path = arguments.run_path(checkpoint, resume)
    chosen = make_optimiser(module, lr, optimiser)

    source, held = open_data(
        data, labels, held_out, size=batch_size, seed=seed, like=like, classes=classes_of(module)
    )
    if loss == "flow_matching" and not isinstance(net, Denoiser):
        predicts = predicts or "flow"
    if isinstance(net, Energy) and process is not None:
        predicts = predicts or "score"  # what an energy's gradient is
    model = as_model(net, module, source.sample, process, predicts, time)
    if loss == "interpolant" and predicts is not None:
        options["predicts"] = predicts
    law = model.process if isinstance(model, Denoiser) else process
    aim = objective(loss, model, law, options, len(source.event))
    identity = {
        "data": source.fingerprint(),
        "held_out": held_out if held_out is None or isinstance(held_out, float) else checksum(*held),
        "network": f"{type(module).__name__}, {architecture(module)}",
        "process": states.describe(law),
        "predicts": getattr(model, "predicts", None),
        "time": states.describe(getattr(model, "time", None)),
        "data_std": getattr(net, "data_std", None),
        "loss": aim.name,
        "options": states.describe(options),
        "drop_labels": drop_labels,
        "steps": steps,
        "batch_size": batch_size,
        "optimiser": states.about_optimiser(chosen),
        "schedule": states.describe(schedule),
        "warmup": warmup,
        "clip": clip,
        "ema": ema,
        "seed": seed,
        "autocast": states.describe(autocast),
        "compile": compile,
    }
    run = Training(
        module=module, model=model, objective=aim, source=source, held=held, optimiser=chosen, steps=steps,
        every=every, seed=seed, ema=ema, schedule=schedule, warmup=warmup, clip=clip, drop_labels=drop_labels,
        autocast=autocast, compiled=torch.compile(module) if compile else None, path=path, identity=identity,
        callback=callback,
    )  # fmt: skip
    if path is not None and resume and (resume is True or states.state_path(path).exists()):
        run.go_on()
    run.run(progress)
    return FitResult(
        model=run.result(),
        losses=run.losses.cpu(),
        held_out=torch.tensor([value for _, value in run.checks]),
        held_out_steps=torch.tensor([n for n, _ in run.checks], dtype=torch.int64),
        seconds=run.elapsed(),
        parameters=sum(p.numel() for p in module.parameters()),
    )
