"""Grids on which the peers run: those that the libraries ship, as times of any process.

A grid is a `sdekit.Grid` or a function (process, n) -> (n + 1,) times from t_max to t_min.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor

import sdekit as sk

__all__ = ["COMMON", "COURTESY", "OWN", "Layout", "times"]

Layout: TypeAlias = "sk.Grid | Callable[[sk.GaussianDiffusion, int], Tensor]"


def _along(f: Callable[[Tensor], Tensor], inverse: Callable[[Tensor], Tensor]) -> Layout:
    """n intervals of equal length in f(rho)."""

    def layout(process: sk.GaussianDiffusion, n: int) -> Tensor:
        ends = torch.tensor([process.t_max, process.t_min], dtype=torch.float64)
        first, last = f(process.rho(ends))
        inner = inverse(first + (last - first) * torch.arange(1, n, dtype=torch.float64) / n)
        middle = process.t_of_rho(inner) if n > 1 else inner
        return torch.cat([ends[:1], middle, ends[1:]])

    return layout


def _beta(process: sk.GaussianDiffusion, n: int) -> Tensor:
    """rho at the quantiles of Beta(0.6, 0.6) (Lee et al. 2024, Beta sampling is all you need)."""
    from scipy.stats import beta

    ends = torch.tensor([process.t_max, process.t_min], dtype=torch.float64)
    first, last = process.rho(ends)
    part = torch.from_numpy(beta.ppf(torch.arange(1, n, dtype=torch.float64).numpy() / n, 0.6, 0.6))
    middle = process.t_of_rho(first + (last - first) * part) if n > 1 else part
    return torch.cat([ends[:1], middle, ends[1:]])


#: Grids of all three libraries.
COMMON: dict[str, Layout] = {
    "karras": sk.Grid("karras"),
    "uniform-lambda": sk.Grid("uniform-lambda"),
    "polyexponential": sk.Grid("exponential", power=1.5),
    "uniform-t": sk.Grid("uniform-t"),
}

#: Grids that one library ships, for its own samplers: flow (uniform in sigma of the rectified flow),
#: angle (uniform in arctan rho, the cosine schedule), beta.
_FLOW = _along(lambda rho: rho / (1 + rho), lambda s: s / (1 - s))
OWN: dict[str, dict[str, Layout]] = {
    "diffusers": {"flow": _FLOW, "beta": _beta},
    "k-diffusion": {},
    "azula": {"flow": _FLOW, "angle": _along(torch.atan, torch.tan)},
}

#: Grids of this package.
COURTESY: dict[str, Layout] = {
    "quantile": sk.Grid("quantile"),
    "quantile-narrow": sk.Grid("quantile-narrow"),
}


def times(layout: Layout, model: sk.Denoiser, n: int) -> Tensor:
    """(n + 1,) float64 times from t_max to t_min of the model's process."""
    if isinstance(layout, sk.Grid):
        s = 1.0 if model.data_std is None else model.data_std
        return layout.times(model.process, n, s, model.data_spread)
    return layout(model.process, n)
