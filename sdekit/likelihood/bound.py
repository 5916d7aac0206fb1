r"""A lower bound of log p by the reverse SDE: no Jacobian, no solver, one call a draw.

For the model that draws x_T from pi, follows the reverse SDE with the model's score to t_min, and returns
D(x_{t_min}) + rho_min xi (Kingma et al. 2021, equations 12 and 15, in other coordinates),

    -log p(x) <= KL-like(x_T) + int E|F - F*|^2 dw + E|F - F*|^2 s^2/(2 S_min^2) + D/2 log(2 pi rho_min^2),

    KL-like = E[log q(x_T|x)/pi(x_T)],   q(x_t|x) = N(alpha x, sigma^2 I),   S = (s^2 + rho^2)^(1/2),
    w = log(rho/S),   F* = (rho/(s S)) x - (s/S) eps,

F the normalised v-prediction. |F - F*|^2 = (S/s)^2 |eps - eps_hat|^2 is D on average for data N(0, s^2 I)
with the exact F = 0, at every w; w ends at 0 where alpha = 0. The bound is an equality for the exact score,
as t_min -> 0 and with pi the law at t_max.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sdekit.errors import check_count, check_first_id
from sdekit.likelihood.checks import calling_dtype, check_data, prior_density
from sdekit.likelihood.door import first_time, last_time
from sdekit.likelihood.flow import prediction
from sdekit.likelihood.pixels import bits_per_dimension
from sdekit.noise import Philox, Purpose
from sdekit.samplers.pilot import statistics
from sdekit.score.model import Denoiser
from sdekit.score.predictions import components
from sdekit.sde.rows import flat, fold

if TYPE_CHECKING:
    from sdekit._typing import Array

__all__ = ["Bound", "elbo"]


@dataclass(frozen=True)
class Bound:
    """A lower bound of log p(x) in nats, with the error of its Monte Carlo estimate.

    value, stderr: (B,) float64. prior, diffusion, reconstruction: (B,), the three parts of -value: at t_max,
    between, and at t_min. dimension: D. nfe: calls of the network.
    """

    value: Tensor
    stderr: Tensor
    prior: Tensor
    diffusion: Tensor
    reconstruction: Tensor
    dimension: int
    nfe: int

    def bits_per_dimension(self, *, levels: int = 256, low: float = 0.0, high: float = 1.0) -> Tensor:
        """`bits_per_dimension` of ``value``, (B,): an upper bound of the code length."""
        return bits_per_dimension(self.value, self.dimension, levels=levels, low=low, high=high)


def elbo(
    model: Denoiser,
    x: Tensor | Array,
    *,
    prior: Any = None,
    t_min: float | None = None,
    strata: int = 32,
    seed: int = 0,
    first_id: int = 0,
) -> Bound:
    r"""The bound above at data x (B, *event), from 2 strata + 2 calls of the network.

    The range of w is cut into ``strata`` equal pieces with two independent draws (w, eps) in each, so that
    the value is unbiased and its variance too: sum over pieces of (width (a - b)/2)^2. prior, t_min: as in
    `log_prob`. seed, first_id: draws are functions of (seed, first_id + row). Keeps a graph where autograd is
    on, for the network's parameters: minus the mean is a likelihood-weighted loss.

    Raises TypeError for what is no `Denoiser`; others as in `log_prob`.
    """
    x = check_data(x)
    if not isinstance(model, Denoiser):
        raise TypeError(
            f"elbo takes a Denoiser, got {type(model).__name__}. Next: sdekit.Denoiser(net, process, "
            f"predicts=...), or log_prob for a law that knows its density."
        )
    process, size = model.process, math.prod(x.shape[1:])
    strata = check_count(strata, "strata")
    start, stop = first_time(process, t_min), last_time(model)
    if not 0 < start < stop:
        raise ValueError(f"t_min must lie in (0, {stop:g}), where sigma > 0, got {start:g}.")
    dtype = calling_dtype(model, x)
    s = statistics(model, tuple(x.shape[1:]), dtype=dtype, device=x.device).data_std
    ids = check_first_id(first_id, len(x)) + torch.arange(len(x), device=x.device)
    draws = _Draws(model, x.to(torch.float64), s, dtype, Philox(seed), ids)
    low, high = (_log_sine(model, t, s) for t in (start, stop))
    width = (high - low) / strata
    first = torch.full((len(x),), start, dtype=torch.float64)
    diffusion, variance = torch.zeros_like(draws.x[:, 0]), torch.zeros_like(draws.x[:, 0])
    for j in range(strata):
        a, b = (draws.loss(k, draws.time(k, low + j * width, width, start, stop)) for k in (2 * j, 2 * j + 1))
        diffusion = diffusion + width * 0.5 * (a + b)
        variance = variance + (0.5 * width * (a - b).detach()) ** 2
    weight = 0.5 * (1.0 - math.exp(2 * low))  # s^2/(2 S^2)
    a, b = (draws.loss(2 * strata + k, first) for k in (0, 1))
    rho = float(process.sigma(start)) / float(process.alpha(start))
    rest = weight * 0.5 * (a + b) + 0.5 * size * math.log(2 * math.pi * rho**2)
    variance = variance + (0.5 * weight * (a - b).detach()) ** 2
    ends = [draws.end(2 * strata + 2 + k, prior, stop) for k in (0, 1)]
    final = 0.5 * (ends[0] + ends[1])
    variance = variance + (0.5 * (ends[0] - ends[1]).detach()) ** 2
    value = -(final + diffusion + rest)
    return Bound(value, variance.sqrt(), final, diffusion, rest, size, 2 * strata + 2)


def _log_sine(model: Denoiser, t: float, s: float) -> float:
    """w = log(rho/S) at t; 0 where alpha = 0."""
    alpha, sigma = float(model.process.alpha(t)), float(model.process.sigma(t))
    return -0.5 * math.log1p((alpha * s / sigma) ** 2)


class _Draws:
    """The random terms of the bound at x (B, D), row by row."""

    def __init__(
        self, model: Denoiser, x: Tensor, s: float, dtype: torch.dtype, source: Philox, ids: Tensor
    ) -> None:
        self.model, self.shape, self.s, self.dtype = model, x.shape, s, dtype
        self.x, self.source, self.ids = flat(x), source, ids

    def eps(self, draw: int) -> Tensor:
        return self.source.normal(draw, self.x, self.ids, Purpose.PROBES)

    def time(self, draw: int, low: float, width: float, start: float, stop: float) -> Tensor:
        """The time (B,) at w uniform on [low, low + width]."""
        z = self.source.normal(draw, self.x[:, :1].contiguous(), self.ids, Purpose.TRAINING)[:, 0]
        w = (low + width * 0.5 * torch.erfc(-z / math.sqrt(2.0))).cpu().clamp(max=-1e-15)
        rho = self.s * torch.exp(w) / torch.sqrt(-torch.expm1(2 * w))
        return self.model.process.t_of_rho(rho).clamp(start, stop)

    def loss(self, draw: int, t: Tensor) -> Tensor:
        """|F - F*|^2 - (s/S)^2 (|eps|^2 - D) at t (B,): its mean is that of the first term."""
        node, eps = self.model.node(t), self.eps(draw)
        alpha, sigma = (torch.as_tensor(c).to(self.x)[:, None] for c in (node.alpha, node.sigma))
        state = (self.x * alpha + eps * sigma).reshape(self.shape)
        found = flat(prediction(self.model, "F", state, node, self.dtype, self.s, differentiable=False))
        k0, k1 = (torch.as_tensor(c).to(self.x)[:, None] for c in components("F", node, self.s))
        gap = found - (self.x * k0 + eps * k1)
        return fold(gap * gap - (eps * eps - 1.0) * k1**2)

    def end(self, draw: int, prior: Any, stop: float) -> Tensor:
        """log q(x_T|x)/pi(x_T), (B,): exact for pi = N(0, prior_std^2 I), else one draw."""
        process, size = self.model.process, self.x.shape[1]
        alpha, sigma, std = float(process.alpha(stop)), float(process.sigma(stop)), process.prior_std(stop)
        ratio = sigma / std
        mean = 0.5 * fold((self.x * (alpha / std)) ** 2)
        own = mean + size * (0.5 * (ratio**2 - 1.0) - math.log(ratio))
        if prior is None:
            return own
        x = (self.x * alpha + self.eps(draw) * sigma).reshape(self.shape)
        y = flat(x) / std
        normal = -0.5 * fold(y * y) - size * (0.5 * math.log(2 * math.pi) + math.log(std))
        return own + normal - prior_density(prior, x)
