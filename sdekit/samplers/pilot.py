"""Pilot: the two numbers of the data that grids and coordinates need, measured with eight evaluations."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from sdekit.errors import NonFiniteError, check_count
from sdekit.noise import Philox
from sdekit.samplers.build import plan
from sdekit.samplers.execute import execute, prepare
from sdekit.score.model import Denoiser
from sdekit.targets._moments import Moments

__all__ = ["DataStatistics", "pilot", "statistics"]


class DataStatistics(NamedTuple):
    """data_std s = sqrt(tr C / D) and data_spread s2 = sqrt(tr C^2 / tr C); s2 >= s."""

    data_std: float
    data_spread: float


def pilot(
    model: Denoiser,
    shape: tuple[int, ...],
    *,
    samples: int = 32,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
) -> DataStatistics:
    """s and s2 of the model's data, from one run of 8 evaluations on 32 samples.

        s^2 = tr C / D,  s2^2 = tr C^2 / tr C,

    tr C from the diagonal of the samples' Gram matrix, tr C^2 from its off-diagonal (`moments`). shape:
    (n, *event) as in `sample`; n is not used.

    Raises NonFiniteError when the pilot run fails: then pass data_std to the `Denoiser`.
    """
    samples = check_count(samples, "samples", 4)
    made = plan(
        "kernel-quadrature",
        model.process,
        steps=8,
        data_std=0.5,
        data_spread=1.0,
        predicts=model.predicts,
        finite=not model.defined_at_pure_noise,
    )
    like = torch.empty((samples, *shape[1:]), dtype=dtype, device=device)
    ids = torch.arange(samples, dtype=torch.int64, device=like.device)
    noise = Philox(seed)
    with torch.no_grad():
        start = noise.initial(like, ids) * made.prior_std
        program = prepare(made, model.predicts, model.data_std)
        x, _ = execute(program, model, start, noise, ids)
    if not bool(torch.isfinite(x).all()):
        raise NonFiniteError(
            "the pilot run of 8 evaluations, which measures data_std and data_spread, did not stay finite. "
            "Likely cause: the network returns NaN, or `predicts`, `time` or the process does not match its "
            "training. Next: check those, or pass data_std and data_spread to the Denoiser."
        )
    return moments(x)


def moments(x: Tensor) -> DataStatistics:
    r"""Unbiased tr C and tr C^2 of samples (n, *event), by U-statistics of the Gram matrix G.

        tr C = mean_i G_ii n/(n-1),
        tr C^2 = S2/(n)_2 - 2 S3/(n)_3 + S4/(n)_4,

    S2, S3, S4 the sums of G_ij^2, G_ij G_ik, G_ij G_kl over distinct indices (Chen, Zhang and Zhong 2010,
    equation 2.3). From them s and s2 by `Moments.scales`; s2 is at least s. n >= 4.
    """
    n = x.shape[0]
    flat = x.reshape(n, -1).to(torch.float64)
    mean = flat.mean(dim=0)
    flat = flat - mean
    gram = flat @ flat.T
    trace = gram.diagonal().sum() / (n - 1)
    gram = gram - torch.diag(gram.diagonal())
    rows = gram.sum(dim=1)
    s2 = (gram * gram).sum()
    s3 = (rows * rows).sum() - s2
    s4 = rows.sum() ** 2 - 2 * s2 - 4 * s3
    square = s2 / (n * (n - 1)) - 2 * s3 / (n * (n - 1) * (n - 2)) + s4 / (n * (n - 1) * (n - 2) * (n - 3))
    along = (flat @ mean).square().sum() / (n - 1)
    found = Moments(flat.shape[1], float(trace), max(float(square), 0.0), float(mean @ mean), float(along))
    std, spread = found.scales()
    return DataStatistics(std, max(std, spread))


def statistics(
    model: Denoiser, event: tuple[int, ...], *, dtype: torch.dtype, device: torch.device
) -> DataStatistics:
    """What the model knows of its data, or else a pilot's finding, made once per event shape."""
    if model.data_std is not None:
        return DataStatistics(model.data_std, model.data_spread or model.data_std)
    if event not in model.measured:
        found = pilot(model, (1, *event), dtype=dtype, device=device)
        model.measured[event] = (found.data_std, found.data_spread)
    return DataStatistics(*model.measured[event])
