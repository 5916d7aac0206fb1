"""sample: from noise to data, by any sampler."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from sdekit.noise import Noise
from sdekit.samplers.base import Sampler
from sdekit.samplers.build import GridLike
from sdekit.samplers.launch import launch
from sdekit.samplers.plan import Plan
from sdekit.score.model import Denoiser
from sdekit.solution import Solution

__all__ = ["sample"]


def sample(
    model: Denoiser,
    shape: int | Sequence[int],
    *,
    sampler: str | Sampler | Plan = "kernel-quadrature",
    steps: int | None = None,
    nfe: int | None = None,
    grid: GridLike = None,
    end: str = "t_min",
    eta: float | None = None,
    seed: int = 0,
    noise: Noise | None = None,
    first_id: int = 0,
    x_init: Tensor | None = None,
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
) -> Solution:
    """Samples of the model's data law: the reverse process from t_max to t_min.

    Parameters
    ----------
    model
        A `Denoiser`, or ``target.denoiser(process)`` of a closed-form law.
    shape
        (n, *event), n samples.
    sampler
        A name (`sdekit.samplers()`), a sampler object, a `Plan`, or "rk45": adaptive Dormand-Prince on
        the probability flow at rtol = atol = 1e-5 with control per sample (its callback as in `solve`).
    steps, nfe, grid, end, eta
        As in `sdekit.plan`.
    seed, noise, first_id
        Sample i of the run is the pure function of (seed, first_id + i) that it is in any other run,
        whatever the batch. ``noise`` replaces the seed by a `Noise` object.
    x_init
        (n, *event) state at the start, instead of a draw from the prior.
    batch_size
        Rows per network call, in tiles aligned to absolute ids and padded, so that a network sees tiles
        of one size; None runs all at once, "auto" measures on CUDA devices what fits (see
        `sdekit.samplers.memory`) and is None elsewhere. The tile decides the last bits of most networks.
    dtype, device
        Of the state: x_init's, else float32 and the network's device.
    save
        None, or "all": ``xs`` holds the state at every node.
    callback
        ``callback(i, t, x)`` after node i of each tile.
    backend
        What adds up the terms of a step: "numba" on CPU (float32, float64), "triton" on CUDA devices, or
        "eager", plain torch, which serves everything and alone records gradients. "auto" takes the fastest
        that serves. On CPU all give the same bits.
    throw
        False marks failed samples in ``status`` instead of raising.
    gradient
        None keeps the graph if x_init requires grad; "backprop" always keeps it.
    parallel
        None evaluates one time after another. A number W evaluates the next W times of every sample in one
        network call and repeats until they agree (see `picard`): fewer calls in a row, more evaluations in
        all. Plans without `Apply` only; the network must take any number of rows.
    tolerance
        Of a parallel run, 1e-3 unless given: an evaluation is accepted once the RMS change of its input,
        sample by sample, is below tolerance times the marginal's standard deviation there.
    compile
        True records the run as a CUDA graph at its first call and replays it: one launch for all kernels, the
        network's included. The graph is kept with the model; seeds and ids may change.

    Returns
    -------
    Solution; ``stats.nfe`` counts calls one after another: evaluations for one sample, or the sweeps of a
    parallel run; ``stats.evaluations`` counts rows sent to the network.

    Raises
    ------
    NonFiniteError: naming sample, time, step and likely cause, with ``.solution``. ShapeError: network
    or x_init of the wrong shape. UnknownNameError, ValueError: as in `sdekit.plan`. CapabilityError: a
    back end by name, or compile=True, that cannot serve this run.
    """
    if end not in ("t_min", "clean"):
        raise ValueError(
            f"end must be 't_min' or 'clean', got {end!r}. Next: sdekit.encode goes from data to noise."
        )
    return launch(
        model,
        shape,
        sampler=sampler,
        steps=steps,
        nfe=nfe,
        grid=grid,
        end=end,
        eta=eta,
        seed=seed,
        noise=noise,
        first_id=first_id,
        x_init=x_init,
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
        compile=compile,
    )
