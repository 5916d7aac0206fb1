r"""The probability flow in the coordinates of `log_prob`: bounded at both ends, for every process.

With rho = sigma/alpha, s the data's standard deviation, N = (alpha^2 s^2 + sigma^2)^(1/2) and y = x/N,

    dy/dphi = -F(N y, t),   phi = arctan(rho/s),

F the normalised v-prediction of Karras et al. 2022, equation 7, 0 for data N(0, s^2 I). The time here is

    u = arctan(rho/(c s)),    dphi/du = (c^2 s^2 + rho^2)/(c (s^2 + rho^2)),

from 0 (clean data) to pi/2 (alpha = 0, an ordinary point). Along the flow d log|dy_u/dy_0|/du is the trace
of the right side's Jacobian in y, and |dx_T/dx_0| = (N_T/N_0)^D |dy_T/dy_0|.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sdekit.likelihood.trace import Trace, check_differentiable
from sdekit.score.model import Denoiser
from sdekit.score.predictions import Node, conversion
from sdekit.sde.base import ODE
from sdekit.sde.rows import flat, fold

__all__ = ["Coordinates", "Flow", "prediction"]

KNEE = 0.7
"""c, in units of data_std: where the time turns from rho to -1/rho."""

ROW = 2.0**-200
"""Unit of the row number in the state: exact, and too small to count in a norm."""


@dataclass(frozen=True)
class Coordinates:
    """u and N of a process between t_min and t_max, for data of standard deviation s."""

    model: Denoiser
    s: float
    t_min: float
    t_max: float

    @property
    def knee(self) -> float:
        return KNEE * self.s

    def u(self, t: float) -> float:
        """arctan(rho/(c s)) at the time t of the process."""
        p = self.model.process
        return math.atan2(float(p.sigma(t)), float(p.alpha(t)) * self.knee)

    def norm(self, node: Node) -> Tensor:
        """N, float64, of the shape of the node's alpha."""
        alpha, sigma = torch.as_tensor(node.alpha), torch.as_tensor(node.sigma)
        return torch.sqrt((alpha * self.s) ** 2 + sigma**2)

    def at(self, u: Tensor) -> tuple[Node, Tensor]:
        """The node at u (B,) and dphi/du there."""
        rho = self.knee * torch.tan(u)
        t = self.model.process.t_of_rho(rho).clamp(self.t_min, self.t_max)
        sine, cosine = torch.sin(u), torch.cos(u)
        # (c^2 s^2 + rho^2)/(c (s^2 + rho^2)), numerator and denominator times cos^2
        return self.model.node(t), KNEE / (cosine**2 + (KNEE * sine) ** 2)


def prediction(
    model: Denoiser,
    kind: str,
    x: Tensor,
    node: Node,
    dtype: torch.dtype,
    s: float | None = None,
    differentiable: bool = True,
) -> Tensor:
    """``kind`` at x (B, *event) float64: the network in ``dtype``, its conversion in float64.

    differentiable: whether the output must have a derivative in x.
    """
    given = x.to(dtype)
    out = model.native(given, node)
    if differentiable:
        check_differentiable(out, given)
    p, q = conversion(model.kind, kind, node, model.data_std, s)
    back = given.to(x.dtype)
    return _scaled(p, back) + _scaled(q, out.to(x.dtype))


def _scaled(c: Any, x: Tensor) -> Tensor:
    if isinstance(c, Tensor) and c.ndim:
        return x * c.to(x).reshape(-1, *(1,) * (x.ndim - 1))
    return x * float(c)


class Flow(ODE):
    """d(y, l_1, ..., l_K, row)/du = (-w F, -w tr_k dF/dy / sqrt(D), 0), w = dphi/du.

    States are (B, D + K + 1) float64: the flow in y, K estimates of the log-determinant over sqrt(D), and
    which row of the run it is (rows may leave the batch, and probes belong to rows). slope: the first answer,
    which is that at the start.
    """

    def __init__(self, coordinates: Coordinates, event: torch.Size, trace: Trace, dtype: torch.dtype) -> None:
        super().__init__()
        self.coordinates, self.event, self.trace, self.dtype = coordinates, event, trace, dtype
        self.size = math.prod(event)
        self.slope: Tensor | None = None
        self.weight = torch.ones(())

    def drift(self, x: Tensor, t: Any) -> Tensor:
        u = torch.as_tensor(t, dtype=x.dtype, device=x.device).expand(len(x))
        node, weight = self.coordinates.at(u)
        norm = self.coordinates.norm(node)[:, None]

        def field(y: Tensor) -> Tensor:
            state = (y * norm).reshape(len(y), *self.event)
            c = self.coordinates
            return flat(prediction(c.model, "F", state, node, self.dtype, c.s))

        value, traces = self.trace(field, x[:, : self.size], self.row(x))
        w = self.weight = -weight[:, None]
        slope = torch.cat(
            [value * w, traces * (w / math.sqrt(self.size)), torch.zeros_like(x[:, -1:])], dim=1
        )
        self.slope = slope if self.slope is None else self.slope
        return slope

    def response(self, change: Tensor) -> Tensor:
        """The slope of y moved by ``change`` (B, D + K + 1) less that of the last call, to first order.

        From the Jacobian that the trace has taken, without a call; 0 where it has not, and for l.
        """
        rows = self.trace.rows
        if rows is None:
            return torch.zeros_like(change)
        moved = fold(rows * change[:, : self.size]).mT * self.weight
        return torch.cat([moved, torch.zeros_like(change[:, self.size :])], dim=1)

    def score(self, state: Tensor, slope: Tensor, u: Tensor) -> Tensor:
        """Gradient in y of the log-density, (B, D), where the last call, at u (B,), gave these slopes.

        -N eps/sigma = F cot(phi) - y; 0 in place of F cot(phi) at u = 0.
        """
        turns = torch.where(u == 0, 0.0, 1 / (self.weight[:, 0] * KNEE * torch.tan(u)))
        return slope[:, : self.size] * turns[:, None] - state[:, : self.size]

    @staticmethod
    def row(state: Tensor) -> Tensor:
        """Which rows of the run the states are, (B,)."""
        return (state[:, -1].detach() / ROW).to(torch.int64)

    def start(self, x: Tensor, norm: float) -> Tensor:
        """The state of x (B, *event) at N = norm."""
        rows = torch.arange(len(x), dtype=torch.float64, device=x.device)[:, None]
        zeros = torch.zeros(len(x), self.trace.width, dtype=torch.float64, device=x.device)
        return torch.cat([flat(x.to(torch.float64)) / norm, zeros, rows * ROW], dim=1)

    def finish(self, state: Tensor, norm: float) -> tuple[Tensor, Tensor]:
        """x (B, *event) at N = norm, and the K log-determinants (B, K) of y."""
        x = (state[:, : self.size] * norm).reshape(len(state), *self.event)
        return x, state[:, self.size : -1] * math.sqrt(self.size)

    def truncations(self, x: Tensor) -> Tensor:
        r"""(|eps|^2 - sigma tr deps/dx)/2 at t_min, (B, K): log p_{t_min} - log p_0 to first order in rho^2.

            eps = sin y - cos F,   sigma tr deps/dx = sin (D sin - cos tr dF/dy),

        sin = sigma/N and cos = alpha s/N.

        x: (B, *event) at t_min, where the run began.
        """
        c = self.coordinates
        node, weight = c.at(torch.tensor(c.u(c.t_min), dtype=torch.float64))
        norm = float(c.norm(node))
        sine, cosine = float(node.sigma) / norm, float(node.alpha) * c.s / norm
        assert self.slope is not None
        field = self.slope / -float(weight)
        eps = flat(x) * (sine / norm) - field[:, : self.size] * cosine
        traces = field[:, self.size : -1] * math.sqrt(self.size)
        return 0.5 * (fold(eps * eps)[:, None] - (self.size * sine - traces * cosine) * sine)
