"""fit: data and a network in, a score model with averaged weights out."""

from __future__ import annotations

import math
import os
import time as clock
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sdekit.errors import NonFiniteError, check_count, check_positive
from sdekit.matching.checkpoint import require_safetensors, save
from sdekit.matching.data import Batches, as_data, permutation, scales, split
from sdekit.matching.losses import TimeLaw, Weighting, denoising, training_times
from sdekit.score.model import Denoiser
from sdekit.sde.diffusion import GaussianDiffusion

__all__ = ["FitResult", "fit"]

HELD_OUT_SEED = 2**63 + 1
"""Times and noise of the held-out loss: the same in every run, so that runs can be compared."""


@dataclass(frozen=True)
class FitResult:
    """What `fit` returns.

    model: the score model, with the averaged weights, in evaluation mode. losses: (steps,) training loss
    of each step, a mean over batch and elements (1 = an eps network that returns 0). held_out: (K,) loss of
    the averaged weights on the held-out data after the steps ``held_out_steps`` (K,), always on the same
    times and noise; empty without held-out data. seconds: wall time.
    """

    model: Denoiser
    losses: Tensor
    held_out: Tensor
    held_out_steps: Tensor
    seconds: float
    parameters: int = 0

    def __repr__(self) -> str:
        held = f", held-out {float(self.held_out[-1]):.4g}" if len(self.held_out) else ""
        tail = self.losses[-max(len(self.losses) // 10, 1) :]
        return (
            f"FitResult({self.parameters:,} parameters, {len(self.losses)} steps, loss "
            f"{float(tail.mean()):.4g}{held}, {self.seconds:.3g} s)"
        )


def fit(
    net: nn.Module | Denoiser,
    data: Any,
    process: GaussianDiffusion | None = None,
    *,
    predicts: str = "eps",
    time: str | Callable[[Tensor], Tensor] = "t",
    steps: int = 2000,
    batch_size: int = 128,
    lr: float = 1e-3,
    warmup: int | None = None,
    clip: float | None = 1.0,
    ema: float = 0.999,
    weighting: Weighting = "native",
    times: TimeLaw = None,
    held_out: float | Tensor = 0.1,
    check_every: int | None = None,
    seed: int = 0,
    progress: bool = True,
    checkpoint: str | os.PathLike[str] | None = None,
) -> FitResult:
    r"""Train a network by denoising score matching:

        minimise  E w(t) || net(x_t, t) - k ||^2 / D        (see `sdekit.losses.denoising`)

    with Adam (betas 0.9, 0.99), its rate rising linearly over ``warmup`` steps and falling to 0 by a cosine,
    and keep the exponential moving average of the weights, W <- m_n W + (1 - m_n) w with
    m_n = min(ema, (1 + n)/(10 + n)) at update n; update 0 copies (the warm-up of the score-SDE code; rates
    in Song et al. 2021, appendix H).

    Equal arguments give equal weights, on one CPU with one number of threads bit for bit: order, times and
    noise are pure functions of the seed. The initial weights are the network's own.

    Parameters
    ----------
    net
        nn.Module called as net(x, t), trained in place (the averaged copy is in the result); or a `Denoiser`
        that holds one, with process, predicts and time.
    data
        (N, *event), tensor or numpy array of floating dtype; converted to the network's dtype and device.
        Scale it to a standard deviation of about 1/2 to 1.
    process, predicts, time
        As in `Denoiser`.
    steps, batch_size
        Optimiser steps; samples in each (at most N).
    lr, warmup, clip
        Peak rate; steps up to it (steps/20, at most 500, unless given); bound on the gradient's norm or None.
    ema
        m in [0, 1); 0 keeps the last weights.
    weighting, times
        As in `sdekit.losses.denoising`.
    held_out
        Fraction of the data, chosen by the seed, or data of the same event shape; 0 for none.
    check_every
        Steps between held-out losses and checkpoints; steps/10 unless given.
    checkpoint
        A .safetensors path for the averaged model, see `sdekit.matching.load`.

    Returns
    -------
    FitResult. Its model knows the data's standard deviation and spread, as samplers ask for.

    Raises
    ------
    ShapeError: data that are empty, integer or not (N, *event); a network of the wrong output shape.
    NonFiniteError: NaN in the data, or a loss that is no longer finite. ValueError: numbers out of range.
    OptionalDependencyError: ``checkpoint`` without safetensors.
    """
    started = clock.perf_counter()
    module = net.net if isinstance(net, Denoiser) else net
    like = _parameter(module)
    assert isinstance(module, nn.Module)
    steps, batch_size = check_count(steps, "steps"), check_count(batch_size, "batch_size")
    lr, ema = check_positive(lr, "lr"), float(ema)
    if not 0 <= ema < 1:
        raise ValueError(f"ema must lie in [0, 1), got {ema}. Next: 0.999, or 0 for the last weights.")
    warmup = min(500, steps // 20) if warmup is None else check_count(warmup, "warmup", 0)
    every = max(steps // 10, 1) if check_every is None else check_count(check_every, "check_every")
    if checkpoint is not None:
        require_safetensors()
    train, held = split(as_data(data, like), held_out, seed)
    model = _model(net, train, process, predicts, time)
    batch_size = min(batch_size, len(train))

    fused = like.device.type in ("cpu", "cuda")
    optimiser = torch.optim.Adam(module.parameters(), lr=lr, betas=(0.9, 0.99), fused=fused)
    averaged = _average(module, ema)
    losses = torch.zeros(steps, dtype=torch.float32, device=like.device)
    checks: list[tuple[int, float]] = []
    batches = Batches(train, batch_size, seed)
    bar = _bar(steps, progress)
    devices = [like.device] if like.is_cuda else []
    module.train()
    try:
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(seed)
            for n in range(steps):
                for group in optimiser.param_groups:
                    group["lr"] = lr * _rate(n, steps, warmup)
                values = denoising(model, batches[n], weighting=weighting, times=times, seed=seed, draw=n)
                loss = values.mean() / train[0].numel()
                optimiser.zero_grad(set_to_none=True)
                loss.backward()  # type: ignore[no-untyped-call]
                if clip is not None:
                    nn.utils.clip_grad_norm_(module.parameters(), clip)
                optimiser.step()
                averaged.update_parameters(module)
                losses[n] = loss.detach()
                if bar is not None:
                    bar.update()
                if n == 0:
                    _finite(losses, 0, 1, lr)
                if (n + 1) % every == 0 or n + 1 == steps:
                    _finite(losses, n + 1 - every, n + 1, lr)
                    result = _with_net(model, averaged.module)
                    if len(held):
                        checks.append((n + 1, _held_out_loss(result, held, weighting, times)))
                    if checkpoint is not None:
                        save(result, checkpoint, extra={"steps": n + 1, "seed": seed})
                    if bar is not None:
                        bar.set_postfix(_report(losses[max(n + 1 - every, 0) : n + 1], checks))
    finally:
        if bar is not None:
            bar.close()
    module.eval()
    return FitResult(
        model=_with_net(model, averaged.module),
        losses=losses.cpu(),
        held_out=torch.tensor([value for _, value in checks]),
        held_out_steps=torch.tensor([n for n, _ in checks], dtype=torch.int64),
        seconds=clock.perf_counter() - started,
        parameters=sum(p.numel() for p in module.parameters()),
    )


def _parameter(module: object) -> Tensor:
    """The first trainable parameter: dtype and device of the training."""
    if not isinstance(module, nn.Module):
        raise TypeError(
            f"fit trains an nn.Module, got {type(module).__name__}. Next: sdekit.nets.MLP or UNet."
        )
    like = next((p for p in module.parameters() if p.requires_grad), None)
    if like is None:
        raise ValueError(f"{type(module).__name__} has no trainable parameters. Next: requires_grad_(True).")
    return like


def _model(
    net: nn.Module | Denoiser,
    data: Tensor,
    process: GaussianDiffusion | None,
    predicts: str,
    time: str | Callable[[Tensor], Tensor],
) -> Denoiser:
    """The Denoiser to train, with data_std and data_spread measured where they are not given."""
    std, spread = scales(data)
    if isinstance(net, Denoiser):
        if process is not None:
            raise TypeError("a Denoiser holds its own process. Next: fit(denoiser, data) without process.")
        if net.data_std is not None:
            std, spread = net.data_std, net.data_spread or net.data_std
        return Denoiser(net.net, net.process, net.predicts, net.time, std, spread, net.network_dtype)
    if process is None:
        raise TypeError("fit needs the process that adds the noise. Next: fit(net, data, sdekit.VP()).")
    return Denoiser(net, process, predicts, time, std, spread)


def _with_net(model: Denoiser, net: nn.Module) -> Denoiser:
    return Denoiser(
        net.eval(),
        model.process,
        model.predicts,
        model.time,
        model.data_std,
        model.data_spread,
        model.network_dtype,
    )


def _average(module: nn.Module, ema: float) -> Any:
    """torch's AveragedModel with the warm-up m_n = min(ema, (1 + n)/(10 + n))."""
    from torch.optim.swa_utils import AveragedModel

    def update(averaged: Any, current: Any, count: Any) -> None:
        n = int(count)
        keep = min(ema, (1 + n) / (10 + n))
        for a, c in zip(averaged, current, strict=True):
            a.lerp_(c, 1 - keep)

    return AveragedModel(module, multi_avg_fn=update)


def _rate(n: int, steps: int, warmup: int) -> float:
    """Factor of the learning rate at step n."""
    if n < warmup:
        return (n + 1) / (warmup + 1)
    return 0.5 * (1 + math.cos(math.pi * (n - warmup) / max(steps - warmup, 1)))


def _held_out_loss(model: Denoiser, held: Tensor, weighting: Weighting, times: TimeLaw) -> float:
    """Mean over at least 1,024 fixed pairs of held-out sample and noise level."""
    copies = max(1, -(-1024 // len(held)))
    x = held.repeat(copies, *([1] * (held.ndim - 1)))
    t = training_times(model.process, len(x), law=times, seed=HELD_OUT_SEED, device=held.device)
    t = t[permutation(len(x), HELD_OUT_SEED).to(t.device)]
    total = 0.0
    with torch.no_grad():
        for k, i in enumerate(range(0, len(x), 256)):
            part, level = x[i : i + 256], t[i : i + 256]
            values = denoising(model, part, t=level, weighting=weighting, seed=HELD_OUT_SEED, draw=k)
            total += float(values.double().sum())
    return total / x.numel()


def _finite(losses: Tensor, low: int, high: int, lr: float) -> None:
    part = losses[max(low, 0) : high]
    bad = (~torch.isfinite(part)).nonzero()
    if len(bad) == 0:
        return
    step = max(low, 0) + int(bad[0])
    cause, hint = f"a learning rate too large (lr = {lr:g})", "a smaller lr, and clip=1.0"
    if step == 0:
        cause = "the network returns NaN as it is: 'log' time features, say, given a negative level"
        hint = "check net(x, t); features='real' for an 'edm' network or a half log-SNR"
    raise NonFiniteError(
        f"the training loss is {float(part[bad[0]]):g} at step {step}. Likely cause: {cause}. Next: {hint}."
    )


def _bar(steps: int, progress: bool) -> Any:
    if not progress:
        return None
    from tqdm.auto import tqdm

    return tqdm(total=steps, desc="training", unit="step", mininterval=0.2)


def _report(losses: Tensor, checks: list[tuple[int, float]]) -> dict[str, str]:
    report = {"loss": f"{float(losses.mean()):.4f}"}
    return report | ({"held-out": f"{checks[-1][1]:.4f}"} if checks else {})
