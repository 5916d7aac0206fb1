r"""Gaussian-split: the reverse SDE with everything solved exactly that Gaussian data of one scale would need.

With z = x/alpha, rho = sigma/alpha, a scale c, u = c^2 + rho^2, phi = atan2(rho, c), y = z/sqrt(u) and the
normalised residual F of `sdekit.samplers.trigonometric`, the reverse SDE of stochasticity eta is

    dy = (eta^2/2) y dln(u) - (1 + eta^2) F dphi + eta sqrt(-dln(u)/dt) dW,

linear but for F, and F = 0 where the data are N(0, c^2 I). A step from rho to rho' is therefore

    y' = (u'/u)^(eta^2/2) y - sum_j w_j F_j + sqrt(1 - (u'/u)^(eta^2)) xi,
    w_j = (1 + eta^2) \int (u'/u_r)^(eta^2/2) l_j(r) dphi_r,

with an interpolant sum_j l_j F_j of F: the Gaussian process of `weights.features` (stochastic kernel
quadrature) or the polynomial in phi. All of it is finite at alpha = 0, where u is infinite. Predictor,
evaluation and free corrector are those of the probability flow, and the corrector reuses the draw xi.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from sdekit.errors import check_count, check_positive, unknown_name
from sdekit.samplers.base import Path
from sdekit.samplers.grids import Grid
from sdekit.samplers.trigonometric import Trigonometric, expected_error, kernel_nodes
from sdekit.samplers.weights import features, gaussian_data, kernel, lagrange, lagrange_basis

__all__ = ["GaussianSplit", "split_weights"]

_X, _W = (torch.from_numpy(v) for v in np.polynomial.legendre.leggauss(16))
#: Nodes and weights on [0, 1] of the substitution v = x^3, which tames (sin theta)^(eta^2) at theta = 0.
_POINTS, _POINT_WEIGHTS = ((_X + 1) / 2) ** 3, 1.5 * _W * ((_X + 1) / 2) ** 2


def _measure(start: Tensor, width: Tensor, eta: float) -> tuple[Tensor, Tensor]:
    r"""(at, g), (m, q) each: sum_q g f(at) = (1 + eta^2) \int (u'/u_r)^(eta^2/2) f(phi_r) dphi_r.

    at: angles from the start of each step. start: (m,) theta = pi/2 - phi at the noisy end, 0 at
    alpha = 0; width: (m,) < 0. u = (c / sin theta)^2.
    """
    at = width[:, None] * _POINTS
    decay = (torch.sin(start[:, None] - at) / torch.sin(start - width)[:, None]) ** (eta * eta)
    return at, (1 + eta * eta) * _POINT_WEIGHTS * decay * width[:, None]


def split_weights(
    phi: Tensor,
    rho: Tensor,
    width: Tensor,
    ends: tuple[Tensor, Tensor],
    *,
    eta: float,
    c: float,
    s: float = 1.0,
    s2: float = 1.0,
    noise: float = 0.003,
    kappa: float | None = None,
) -> Tensor:
    r"""w_j = (1 + eta^2) \int (u'/u_r)^(eta^2/2) l_j(r) dphi_r of m steps with n nodes each; (m, n).

    phi: (m, n) angles of the nodes from the start of each step; rho: (m, n), finite unless n = 1 or kappa
    is None; width: (m,) < 0; ends: (m,) first and last rho. kappa None: l_j is the Lagrange basis in phi.
    Else the posterior mean of the Gaussian process of `weights.features`, scaled so that the weights sum
    to the integral of 1. eta = 0 gives `weights.lagrange` and `weights.kernel`.
    """
    n = phi.shape[-1]
    if eta == 0 and n == 1:
        return width[:, None]
    if eta == 0 and kappa is None:
        return lagrange(phi, width)
    if eta == 0 and kappa is not None:
        return kernel(phi, rho, width, *ends, c=c, s=s, s2=s2, noise=noise, kappa=kappa)
    start = torch.atan2(torch.full_like(ends[0], c), ends[0])
    at, g = _measure(start, width, eta)
    total = g.sum(-1)
    if n == 1:
        return total[:, None]
    if kappa is None:
        return (g[..., None] * lagrange_basis(phi, at)).sum(1)
    every = torch.cat([rho, c / torch.tan(start[:, None] - at)], dim=-1)
    data = gaussian_data(every, c, s, s2) * math.sqrt(kappa) if kappa > 0 else None
    table = features(torch.cat([phi, at], dim=-1), torch.log(every), c, noise, data)
    moments = (g[..., None] * table[:, n:]).sum(-2)
    q, r = torch.linalg.qr(table[:, :n].mT)
    w: Tensor = torch.linalg.solve_triangular(r, q.mT @ moments[..., None], upper=True)[..., 0]
    return w * (total / w.sum(-1))[:, None]


@dataclass(frozen=True)
class GaussianSplit(Trigonometric):
    """The step of the module, with c = sqrt(s s2): N(0, s^2 I) is sampled exactly, at any eta and any grid.

    eta: stochasticity; None takes `stochasticity`, by the number of intervals. eta = 0 is
    `kernel-quadrature` (or `trig-adams`, with its scale sqrt(s s2)) and draws nothing. interpolant:
    "kernel" or "lagrange". nodes: how many nodes a step uses, 1 to 8; None takes 5 for the kernel (at
    eta = 0 those of `kernel-quadrature`), 3 for polynomials. noise: as in `KernelQuadrature`; kappa: None
    takes 1, but 0 where eta > 0.6 on fewer than 20 intervals.

    Weak order 2 (at eta = 0 the order of the probability flow's scheme): F is as rough as the noise.
    """

    name: ClassVar[str] = "gaussian-split"
    order: ClassVar[float] = 2
    reference: ClassVar[str] = "sdekit; Bayesian quadrature after O'Hagan 1991"
    stochastic: ClassVar[bool] = True
    uses_infinite_node: ClassVar[bool] = False
    default_grid: ClassVar[Grid] = Grid("quantile")

    eta: float | None = None
    interpolant: str = "kernel"
    nodes: int | None = None
    noise: float | None = None
    kappa: float | None = None

    def __post_init__(self) -> None:
        if self.interpolant not in ("kernel", "lagrange"):
            raise unknown_name("interpolant", self.interpolant, ("kernel", "lagrange"))
        if self.nodes is not None and check_count(self.nodes, "nodes") > 8:
            raise ValueError(f"nodes must be at most 8, got {self.nodes}.")
        if self.nodes == 1:
            object.__setattr__(self, "order", 1)
        if self.noise is not None:
            check_positive(self.noise, "noise")

    def scale(self, path: Path) -> float:
        return math.sqrt(path.data_std * path.data_spread)

    def history(self, path: Path) -> int:
        if self.nodes is not None:
            return self.nodes
        if self.interpolant == "lagrange":
            return 3
        return 5 if self.stochasticity(path) > 0 else kernel_nodes(path)

    def behind(self, path: Path) -> int:
        return 5 if self.nodes is None and self.interpolant == "kernel" else super().behind(path)

    def stochasticity(self, path: Path) -> float:
        """eta; for None 0.4 up to 20 intervals, then rising with their root, 1 from 125 on.

        Few steps hold little noise without error; many hold all of it.
        """
        return min(1.0, 0.4 * math.sqrt(max(path.steps, 20) / 20)) if self.eta is None else self.eta

    def quadrature(
        self, path: Path, c: float, phi: Tensor, rho: Tensor, width: Tensor, ends: tuple[Tensor, Tensor]
    ) -> Tensor:
        eta = self.stochasticity(path)
        kappa = float(eta <= 0.6 or path.steps >= 20) if self.kappa is None else self.kappa
        return split_weights(
            phi,
            rho,
            width,
            ends,
            eta=eta,
            c=c,
            s=path.data_std,
            s2=path.data_spread,
            noise=expected_error(path) if self.noise is None else self.noise,
            kappa=kappa if self.interpolant == "kernel" else None,
        )
