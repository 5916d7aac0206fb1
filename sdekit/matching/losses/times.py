"""Times of training: laws, their densities, and rows that are evenly spread."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from sdekit.errors import check_positive, unknown_name
from sdekit.noise import Philox, Purpose
from sdekit.sde.diffusion import EDM, GaussianDiffusion
from sdekit.sde.horizon import first_training_time

__all__ = ["TimeLaw", "first_training_time", "log_normal_times", "time_density", "training_times", "uniform"]

TimeLaw: TypeAlias = "str | Callable[[Tensor], Tensor] | None"

TIME_LAWS = ("uniform", "log-snr", "edm")
TIME_IDS = -1  # the Philox sample id that times are drawn from; data rows have ids >= 0
P_MEAN, P_STD = -1.2, 1.2  # Karras et al. 2022, table 1


def uniform(
    batch: int, *, stratified: bool = True, seed: int = 0, draw: int = 0, device: torch.device | None = None
) -> Float[Tensor, " B"]:
    """u (B,) float64, each uniform on (0, 1); stratified as in `training_times`."""
    rows = 1 if stratified else batch
    ids = TIME_IDS - torch.arange(rows, dtype=torch.int64, device=device)
    like = torch.empty((rows, 1), dtype=torch.float64, device=ids.device)
    z = Philox(seed).normal(draw, like, ids, Purpose.TRAINING)[:, 0]
    u = 0.5 * torch.erfc(-z / math.sqrt(2.0))
    if stratified:
        u = (u + torch.arange(batch, dtype=torch.float64, device=ids.device) / max(batch, 1)) % 1.0
    return u


def training_times(
    process: GaussianDiffusion,
    batch: int,
    *,
    law: TimeLaw = None,
    stratified: bool = True,
    seed: int = 0,
    draw: int = 0,
    device: torch.device | str | None = None,
) -> Float[Tensor, " B"]:
    r"""Random times, t = q(u) with u uniform on (0, 1) and q the quantile function of the law:

        uniform   q(u) = t_0 + u (t_max - t_0),   t_0 = `first_training_time`,
        log-snr   q(u) the time at which log(alpha/sigma) is u of the way from t_0 to the last time
                  with alpha >= 1e-3 (t_max, or `finite_t_max` where alpha(t_max) = 0),
        edm       ln(sigma/alpha) ~ N(-1.2, 1.2^2) within the range of the process (`log_normal_times`).

    The density of "log-snr" is proportional to g^2/sigma^2 = -2 d log(alpha/sigma)/dt: the importance
    sampling of the likelihood weighting (Song, Durkan, Murray and Ermon 2021, arXiv:2101.09258).

    law: a name; a callable, q itself, (B,) -> (B,) float64; None: "uniform", and "log-snr" on EDM, whose
    time is the noise level. stratified: u_i = (U + i/B) mod 1 with one U for the batch, each u_i uniform and
    all of them evenly spread (Kingma et al. 2021, arXiv:2107.00630, appendix I.1); False: independent.
    Returns (B,) float64, a function of (seed, draw) alone. Raises UnknownNameError for an unknown law.
    """
    where = None if device is None else torch.device(device)
    u = uniform(batch, stratified=stratified, seed=seed, draw=draw, device=where)
    if callable(law):
        return law(u)
    name = law_name(process, law)
    first = first_training_time(process)
    if name == "uniform":
        return first + u * (process.t_max - first)
    if name == "edm":
        return log_normal_times(process)(u)
    high, low = _range(process)
    return process.t_of_half_log_snr(high.to(u.device) + u * (low - high).to(u.device))


def law_name(process: GaussianDiffusion, law: str | None) -> str:
    """The name of the law, the process's own for None. Raises UnknownNameError."""
    name = law if law is not None else "log-snr" if isinstance(process, EDM) else "uniform"
    if name not in TIME_LAWS:
        raise unknown_name("law of times", name, TIME_LAWS)
    return name


def log_normal_times(
    process: GaussianDiffusion, mean: float = P_MEAN, std: float = P_STD
) -> Callable[[Tensor], Tensor]:
    """The law ln(sigma/alpha) ~ N(mean, std^2) as a quantile function for ``times``, u (B,) -> t (B,).

    The normal is cut off at the ends of the range that "log-snr" covers, so that every time exists; sigma is
    in units of the data. Karras et al. 2022, table 1 (P_mean, P_std). Raises ValueError for std <= 0.
    """
    std = check_positive(std, "std")

    def quantile(u: Tensor) -> Tensor:
        high, low = (v.to(u.device) for v in _range(process))
        a, b = (torch.special.ndtr((-v - mean) / std) for v in (high, low))
        z = torch.special.ndtri(a + u * (b - a))
        t: Tensor = process.t_of_half_log_snr((-(mean + std * z)).clamp(low, high))
        return t

    return quantile


def time_density(process: GaussianDiffusion, t: Tensor, law: TimeLaw = None) -> Tensor:
    """p(t) of a named law of `training_times` within its range, (B,) float64 -> (B,).

    Raises UnknownNameError for an unknown law, TypeError for a callable, whose density is its own affair.
    """
    if callable(law):
        raise TypeError(
            f"the density of a law of times given by a callable is not known. Next: a name, one of "
            f"{', '.join(TIME_LAWS)}, or put 1/p(t) into a weighting of your own."
        )
    name = law_name(process, law)
    t = t.to(torch.float64)
    if name == "uniform":
        return torch.full_like(t, 1.0 / (process.t_max - first_training_time(process)))
    high, low = (v.to(t.device) for v in _range(process))
    slope = process.dsigma(t) / process.sigma(t) - process.dalpha(t) / process.alpha(t)  # -d lambda/dt
    if name == "log-snr":
        return slope / (high - low)
    z, a, b = ((-v - P_MEAN) / P_STD for v in (process.half_log_snr(t), high, low))
    mass = torch.special.ndtr(b) - torch.special.ndtr(a)
    density: Tensor = slope * torch.exp(-0.5 * z * z) / (math.sqrt(2 * math.pi) * P_STD * mass)
    return density


def _range(process: GaussianDiffusion) -> tuple[Tensor, Tensor]:
    """log(alpha/sigma) at the first and the last time of training, 0-d float64."""
    first = first_training_time(process)
    return process.half_log_snr(first), process.half_log_snr(process.finite_t_max)
