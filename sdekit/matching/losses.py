"""Losses that turn a network into a score model; each returns one value a sample."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from sdekit._typing import State
from sdekit.errors import ShapeError, check_state, unknown_name
from sdekit.noise import Noise, Philox, Purpose, as_noise
from sdekit.score.model import Denoiser
from sdekit.score.predictions import Node, components
from sdekit.sde.diffusion import EDM, GaussianDiffusion

__all__ = ["TimeLaw", "Weighting", "denoising", "first_training_time", "training_times"]

Weighting: TypeAlias = "str | Callable[[Tensor], Tensor]"
TimeLaw: TypeAlias = "str | Callable[[Tensor], Tensor] | None"

TIME_LAWS = ("uniform", "log-snr")
WEIGHTINGS = ("native", "noise")
TIME_IDS = -1  # the Philox sample id that times are drawn from; data rows have ids >= 0


def first_training_time(process: GaussianDiffusion) -> float:
    """Least noisy time of training: 1e-5 where sampling ends by 1e-3 of unit time, else t_min.

    (VP, SubVP, VE, Cosine and RectifiedFlow the former; EDM, DiscreteVP and processes that end earlier
    the latter.)
    """
    short = process.t_max == 1.0 and process.t_min <= 1e-3
    return min(1e-5, process.t_min) if short else float(process.t_min)


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
                  with alpha >= 1e-3 (t_max, or `finite_t_max` where alpha(t_max) = 0).

    law: a name; a callable, q itself, (B,) -> (B,) float64; None: "uniform", and "log-snr" on EDM, whose
    time is the noise level. stratified: u_i = (U + i/B) mod 1 with one U for the batch, each u_i uniform and
    all of them evenly spread (Kingma et al. 2021, arXiv:2107.00630, appendix I.1); False: independent.
    Returns (B,) float64, a function of (seed, draw) alone. Raises UnknownNameError for an unknown law.
    """
    rows = 1 if stratified else batch
    ids = TIME_IDS - torch.arange(rows, dtype=torch.int64, device=device)
    like = torch.empty((rows, 1), dtype=torch.float64, device=ids.device)
    z = Philox(seed).normal(draw, like, ids, Purpose.TRAINING)[:, 0]
    u = 0.5 * torch.erfc(-z / math.sqrt(2.0))
    if stratified:
        u = (u + torch.arange(batch, dtype=torch.float64, device=ids.device) / max(batch, 1)) % 1.0
    if callable(law):
        return law(u)
    name = law if law is not None else "log-snr" if isinstance(process, EDM) else "uniform"
    first = first_training_time(process)
    if name == "uniform":
        return first + u * (process.t_max - first)
    if name == "log-snr":
        high, low = process.half_log_snr(first), process.half_log_snr(process.finite_t_max)
        return process.t_of_half_log_snr(high.to(u.device) + u * (low - high).to(u.device))
    raise unknown_name("law of times", name, TIME_LAWS)


def denoising(
    model: Denoiser,
    x0: State,
    *,
    t: Tensor | None = None,
    weighting: Weighting = "native",
    times: TimeLaw = None,
    stratified: bool = True,
    seed: int = 0,
    draw: int = 0,
    noise: Noise | None = None,
) -> Float[Tensor, " B"]:
    r"""Denoising score matching at many noise levels, one value a sample:

        w(t) || net(x_t, t) - k ||^2,   x_t = alpha_t x0 + sigma_t eps,   eps ~ N(0, I),

    k what the network predicts of this very x0 and eps: eps, x0, v = alpha eps - sigma x0, the score
    -eps/sigma, the velocity (dalpha/dt) x0 + (dsigma/dt) eps, or F of an "edm" network. The minimiser is
    E[k | x_t], from which the score of p_t follows exactly; the norm is summed over the event.

    Parameters
    ----------
    model
        A `Denoiser`; its network gets gradients.
    x0
        Clean data (B, *event), in the network's dtype and on its device.
    t
        Times (B,); drawn by `training_times` unless given.
    weighting
        "native": w = 1, and sigma^2 for score networks, whose target is unbounded at small noise;
        for eps networks Ho et al.'s L_simple, for "edm" Karras et al.'s unit weight on F.
        "noise": the error of eps whatever is predicted, sigma^2 weighting of the score.
        A callable: w(t) itself on the network's own prediction, (B,) float64 -> (B,).
    times, stratified
        Law of the times, see `training_times`.
    seed, draw, noise
        Row i of the batch gets draw ``draw`` of sample i of Philox(seed) in the key of training, which no
        sampling run shares; ``noise`` gives eps instead. Times come from the seed.

    Returns
    -------
    (B,), in x0's dtype, at least float32.

    Raises
    ------
    ShapeError, NonFiniteError: x0 is not floating, not finite, or t is not (B,).

    References
    ----------
    Vincent 2011 (doi:10.1162/NECO_a_00142), equation 11; Ho, Jain and Abbeel 2020 (arXiv:2006.11239),
    equation 14; Song et al. 2021 (arXiv:2011.13456), equation 7.
    """
    x0 = check_state(x0, "x0")
    rows = x0.shape[0]
    ids = torch.arange(rows, dtype=torch.int64, device=x0.device)
    eps = (
        Philox(seed).normal(draw, x0, ids, Purpose.TRAINING)
        if noise is None
        else as_noise(seed, noise).normal(draw, x0, ids)
    )
    if t is None:
        t = training_times(
            model.process, rows, law=times, stratified=stratified, seed=seed, draw=draw, device=x0.device
        )
    if t.shape != (rows,):
        raise ShapeError(f"t must have shape ({rows},), one time for each row of x0, got {tuple(t.shape)}.")
    node = model.node(t)
    k0, k1 = components(model.kind, node, model.data_std)
    state = _rows(node.alpha, x0) * x0 + _rows(node.sigma, x0) * eps
    target = _rows(k0, x0) * x0 + _rows(k1, x0) * eps
    error = (model.native(state, node) - target).reshape(rows, -1)
    error = error.to(torch.promote_types(error.dtype, torch.float32))
    weight = _weight(weighting, model, node)
    value = error.square().sum(dim=1)
    return value if weight is None else value * weight.to(value)


def _rows(coefficient: object, x: Tensor) -> Tensor:
    """A number, () or (B,) as a factor of x (B, *event), in x's dtype."""
    c = torch.as_tensor(coefficient).to(dtype=x.dtype, device=x.device)
    return c.reshape(-1, *([1] * (x.ndim - 1))) if c.ndim else c


def _weight(weighting: Weighting, model: Denoiser, node: Node) -> Tensor | None:
    """w(t), (B,) float64; None for 1."""
    assert isinstance(node.sigma, Tensor)
    if callable(weighting):
        return weighting(torch.as_tensor(node.t))
    if weighting not in WEIGHTINGS:
        raise unknown_name("weighting", weighting, WEIGHTINGS)
    if weighting == "native":
        return node.sigma.square() if model.kind == "score" else None
    if model.kind in ("eps", "score"):  # the limits at alpha = 0, where the quotient below is 0/0
        return node.sigma.square() if model.kind == "score" else None
    # d k = (k1 - k0 sigma/alpha) d eps along the line alpha d x0 + sigma d eps = 0 of a given state
    k0, k1 = components(model.kind, node, model.data_std)
    slope = node.alpha * k1 - node.sigma * k0
    return torch.as_tensor(node.alpha / slope).square()
