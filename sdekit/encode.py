r"""Encode data to noise and decode it back along the probability flow.

    dx/dt = f(x, t) - g^2/2 score(x, t),     x(t_min) = data,     x(t_max) = latent.

The flow is a bijection that carries the data law to the prior (Song et al. 2021, score SDE, section 4.3 and
appendix D.1), so a latent is what `sample` would have started from. The inverse is that of the flow, not of
one step's algebra: both ways are integrated, each with its own small error, which `roundtrip` reports.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sdekit.errors import check_state
from sdekit.samplers.base import Sampler
from sdekit.samplers.build import GridLike
from sdekit.samplers.grids import Grid
from sdekit.samplers.launch import launch
from sdekit.samplers.plan import Plan
from sdekit.score.model import Denoiser
from sdekit.solution import Solution
from sdekit.solvers.rows import rms

if TYPE_CHECKING:
    from sdekit._typing import Array

__all__ = ["RoundTrip", "decode", "encode", "roundtrip"]

#: Intervals unless steps or nfe is given.
STEPS = 64


def encode(
    model: Denoiser,
    x: Tensor | Array,
    *,
    sampler: str | Sampler | Plan = "trig-adams",
    steps: int | None = None,
    nfe: int | None = None,
    grid: GridLike = None,
    batch_size: int | None = None,
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
) -> Solution:
    """The latent at t_max of the data x at t_min, along the probability flow.

    Parameters
    ----------
    model
        A `Denoiser`, or ``target.denoiser(process)`` of a closed-form law.
    x
        (B, *event) data in the units of the model, taken as the state at t_min.
    sampler
        A deterministic sampler by name or object, whose recipe is walked backwards; a plan made with
        ``sdekit.plan(..., end="t_max")``; or "rk45", adaptive at rtol = atol = 1e-5. Errors grow towards
        noise and the last, largest step has no corrector: Lagrange weights ("trig-adams") suit this
        direction, kernel weights, which expect noisy nodes to count for little, do not.
    steps, nfe, grid
        As in `sdekit.plan`, 64 steps unless given; grid None is "quantile". Times are given noise first, as
        for `sample`. Where alpha(t_max) = 0 the last interval is the exact limit from alpha = 1e-3.
    batch_size, save, progress, callback, backend, throw, gradient, parallel, tolerance
        As in `sdekit.sample`; ``xs`` runs from data to noise.
    dtype, device
        Of the state: x's unless given.

    Returns
    -------
    Solution; ``x`` is the latent, (B, *event). For networks that predict eps, score or F on a process with
    alpha(t_max) = 0 it lies where alpha = 1e-3, where `sample` starts with them.

    Raises
    ------
    CapabilityError: a sampler that injects noise, is not affine, or holds in one direction only.
    DirectionError: a plan from noise to data. Others as in `sdekit.sample`.
    """
    x = check_state(x, "x")
    return launch(
        model,
        tuple(x.shape),
        sampler=sampler,
        end="t_max",
        x_init=x,
        **_intervals(sampler, steps, nfe, grid, "quantile"),
        batch_size=batch_size,
        dtype=dtype,
        device=device,
        save=save,
        progress=progress,
        callback=callback,
        backend=backend,
        throw=throw,
        gradient=gradient,
        parallel=parallel,
        tolerance=tolerance,
    )


def decode(
    model: Denoiser,
    z: Tensor | Array,
    *,
    sampler: str | Sampler | Plan = "kernel-quadrature",
    steps: int | None = None,
    nfe: int | None = None,
    grid: GridLike = None,
    end: str = "t_min",
    batch_size: int | None = None,
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
) -> Solution:
    """The data at t_min of the latent z at t_max, along the probability flow; the inverse of `encode`.

    `sdekit.sample` from ``x_init=z`` with a sampler that injects no noise; 64 steps unless given. z:
    (B, *event) of the prior's scale. Other parameters as there.

    Raises
    ------
    CapabilityError: a sampler that injects noise. DirectionError: a plan from data to noise. Others as in
    `sdekit.sample`.
    """
    z = check_state(z, "z")
    if end not in ("t_min", "clean"):
        raise ValueError(f"end must be 't_min' or 'clean', got {end!r}.")
    return launch(
        model,
        tuple(z.shape),
        sampler=sampler,
        end=end,
        x_init=z,
        deterministic=True,
        **_intervals(sampler, steps, nfe, grid, None),
        batch_size=batch_size,
        dtype=dtype,
        device=device,
        save=save,
        progress=progress,
        callback=callback,
        backend=backend,
        throw=throw,
        gradient=gradient,
        parallel=parallel,
        tolerance=tolerance,
    )


def _intervals(
    sampler: str | Sampler | Plan, steps: int | None, nfe: int | None, grid: GridLike, default: str | None
) -> dict[str, Any]:
    """steps, nfe and grid with their defaults; a plan and rk45 have their own."""
    if isinstance(sampler, Plan) or sampler == "rk45":
        return {"steps": steps, "nfe": nfe, "grid": grid}
    named = grid is None or isinstance(grid, str) or (isinstance(grid, Grid) and grid.intervals is None)
    if steps is None and nfe is None and named:
        steps = STEPS
    return {"steps": steps, "nfe": nfe, "grid": default if grid is None else grid}


@dataclass(frozen=True)
class RoundTrip:
    """Data, its latent, what came back, and the error.

    x, z, back: (B, *event). rms, worst: (B,) float64, the root mean square and the largest absolute value of
    back - x in each sample, in the units of x. nfe: calls one after another, both ways.
    """

    x: Tensor
    z: Tensor
    back: Tensor
    rms: Tensor
    worst: Tensor
    nfe: int

    def __repr__(self) -> str:
        if not len(self.x):
            return f"RoundTrip(x: {tuple(self.x.shape)}, nfe={self.nfe})"
        return (
            f"RoundTrip(x: {tuple(self.x.shape)}, nfe={self.nfe}, rms: median "
            f"{float(self.rms.median()):.2g}, largest {float(self.rms.max()):.2g}, worst element "
            f"{float(self.worst.max()):.2g})"
        )


def roundtrip(
    model: Denoiser,
    x: Tensor | Array,
    *,
    sampler: str | Sampler | None = None,
    steps: int | None = None,
    nfe: int | None = None,
    grid: GridLike = None,
    batch_size: int | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> RoundTrip:
    """`encode` then `decode`, with the error of each sample: |decode(encode(x)) - x|.

    Parameters as in `encode`, used both ways; None leaves each its default. The error is that of two
    integrations of one flow, so it falls with more steps, and bounds neither way's alone. Where it stays
    large the flow itself is sensitive: nearby data, or data off the model's law, lie far apart in latents.

    Raises
    ------
    TypeError: a plan, which has one direction. Others as in `encode` and `decode`.
    """
    if isinstance(sampler, Plan):
        raise TypeError(
            f"roundtrip walks one sampler both ways, and a Plan has one direction; got {sampler!r}. Next: "
            f"the sampler's name or object, or encode and decode, each with its plan."
        )
    common: dict[str, Any] = {
        "steps": steps,
        "nfe": nfe,
        "grid": grid,
        "batch_size": batch_size,
        "dtype": dtype,
        "device": device,
    }
    if sampler is not None:
        common["sampler"] = sampler
    there = encode(model, x, **common)
    back = decode(model, there.x, **common)
    data = check_state(x, "x").to(there.x)
    gap = (back.x - data).detach()
    gap = gap.float() if gap.dtype in (torch.bfloat16, torch.float16) else gap
    return RoundTrip(
        x=data,
        z=there.x,
        back=back.x,
        rms=rms(gap),
        worst=gap.abs().reshape(len(gap), math.prod(gap.shape[1:])).amax(1).to(torch.float64),
        nfe=there.stats.nfe + back.stats.nfe,
    )
