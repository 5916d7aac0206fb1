"""Time grids: a name and its parameters give the nodes of a process from noise to data, in float64.

Every grid but ``uniform-t`` and ``quadratic`` is laid out in rho = sigma / alpha or lambda = -ln rho, so
that one definition serves every process. Where alpha = 0 at the start (rho infinite) the grid is laid out
below rho = 200 s and its first node moved to t_max.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from sdekit.errors import check_count, unknown_name

if TYPE_CHECKING:
    from sdekit._typing import Array
    from sdekit.sde.gaussian import GaussianDiffusion

__all__ = ["AMPLIFIED", "Grid"]

#: Predictions k with x0 = (x - sigma k) / alpha up to a factor: an error e of the network is rho e in x0, so
#: that the trajectory is rough where noise is high, and nodes there are worth more.
AMPLIFIED = ("eps", "score")


def _uniform_t(process: GaussianDiffusion, start: float, n: int, **_: Any) -> Tensor:
    return torch.linspace(start, process.t_min, n + 1, dtype=torch.float64)


def _quadratic(process: GaussianDiffusion, start: float, n: int, **_: Any) -> Tensor:
    """t linear in its square root (Song, Meng and Ermon 2021, appendix D.2, "quadratic")."""
    root = torch.linspace(math.sqrt(start), math.sqrt(process.t_min), n + 1, dtype=torch.float64)
    times = root * root
    times[0], times[-1] = start, process.t_min  # a square root squared is off by an ulp
    return times


def _on_rho(process: GaussianDiffusion, start: float, n: int, s: float, place: Any) -> Tensor:
    """Nodes at rho = place(rho_max, rho_min, n) with both ends exact and an infinite first node kept."""
    rho_max, rho_min = float(process.rho(start)), float(process.rho(process.t_min))
    ends = [start, process.t_min]
    if math.isinf(rho_max):
        rho_max = max(200.0 * s, 2.0 * rho_min)
    inner = place(rho_max, rho_min, n)[1:-1]
    times = process.t_of_rho(inner) if inner.numel() else inner
    fixed = torch.tensor(ends, dtype=torch.float64)
    return torch.cat([fixed[:1], times, fixed[1:]])


def _karras(process: GaussianDiffusion, start: float, n: int, s: float, rho: float = 7.0, **_: Any) -> Tensor:
    """rho_i^(1/p) uniform, p = 7 (Karras et al. 2022, equation 5)."""

    def place(top: float, bottom: float, n: int) -> Tensor:
        u = torch.linspace(0.0, 1.0, n + 1, dtype=torch.float64)
        root: Tensor = top ** (1 / rho) + u * (bottom ** (1 / rho) - top ** (1 / rho))
        return torch.pow(root, rho)

    return _on_rho(process, start, n, s, place)


def _exponential(
    process: GaussianDiffusion, start: float, n: int, s: float, power: float = 1.0, **_: Any
) -> Tensor:
    """ln rho = ln rho_min + u^power (ln rho_max - ln rho_min), u from 1 to 0; power 1 is uniform lambda."""

    def place(top: float, bottom: float, n: int) -> Tensor:
        u = torch.linspace(1.0, 0.0, n + 1, dtype=torch.float64) ** power
        return torch.exp(math.log(bottom) + u * (math.log(top) - math.log(bottom)))

    return _on_rho(process, start, n, s, place)


def _t3_cdf(x: Array) -> Array:
    """Distribution function of Student's t with 3 degrees of freedom."""
    u = x / math.sqrt(3.0)
    cdf: Array = 0.5 + (u / (1 + u * u) + np.arctan(u)) / math.pi
    return cdf


def _quantile(
    process: GaussianDiffusion,
    start: float,
    n: int,
    s: float,
    s2: float,
    lower: float,
    upper: float,
    width: float | None = None,
    floor: float | None = None,
    mix: float = 0.0,
    amplified: bool = False,
) -> Tensor:
    r"""Quantiles of a density in l = ln rho: flat on a plateau, Student-t (3) shoulders, and a floor.

        density(l) = floor + (1 - floor) k(l) / mean k,
        k(l) = 1 on [ln(lower s), ln top], t3(distance / width) / t3(0) outside,
        top = max(lower s, upper s^(1 - mix) s2^mix).

    floor None: min(0.45, 0.015 n), or min(0.9, 0.6 + 0.01 n) where the network's error is amplified
    (`AMPLIFIED`). width None: 1.8 there and up to 20 intervals, then falling as their root, to 1.3.
    """
    if floor is None:
        floor = min(0.9, 0.6 + 0.01 * n) if amplified else min(0.45, 0.015 * n)
    if width is None:
        width = 1.8 if amplified else min(1.8, max(1.3, 1.8 * math.sqrt(20 / n)))
    a = math.log(lower * s)
    b = max(a, math.log(upper) + (1 - mix) * math.log(s) + mix * math.log(s2))
    peak = 2.0 / (math.pi * math.sqrt(3.0))  # t3(0)

    def mass(x: Array) -> Array:  # antiderivative of k, zero at a
        shoulder = width / peak
        left = shoulder * (_t3_cdf((np.minimum(x, a) - a) / width) - 0.5)
        right = shoulder * (_t3_cdf((np.maximum(x, b) - b) / width) - 0.5)
        total: Array = left + (np.clip(x, a, b) - a) + right
        return total

    def place(top: float, bottom: float, n: int) -> Tensor:
        low, high = math.log(bottom), math.log(top)
        m0, m1 = mass(np.array([low, high]))
        wanted = np.linspace(1.0, 0.0, n + 1)
        left, right = np.full(n + 1, low), np.full(n + 1, high)
        for _ in range(60):
            middle = (left + right) / 2
            reached = floor * (middle - low) / (high - low) + (1 - floor) * (mass(middle) - m0) / (m1 - m0)
            below = reached < wanted
            left, right = np.where(below, middle, left), np.where(below, right, middle)
        return torch.from_numpy(np.exp((left + right) / 2))

    return _on_rho(process, start, n, s, place)


def _standard(process: GaussianDiffusion, start: float, n: int, s: float, **_: Any) -> Tensor:
    """The grid a process was published with: Karras for EDM, whose t is sigma; uniform t for all others."""
    from sdekit.sde.diffusion import EDM

    return (_karras if isinstance(process, EDM) else _uniform_t)(process, start, n, s=s)


_LAYOUTS = {
    "standard": (_standard, {}),
    "uniform-t": (_uniform_t, {}),
    "uniform-lambda": (_exponential, {}),
    "karras": (_karras, {}),
    "exponential": (_exponential, {}),
    "quadratic": (_quadratic, {}),
    "quantile": (_quantile, {"lower": 0.25, "upper": 0.75, "mix": 0.75}),
    "quantile-narrow": (_quantile, {"lower": 0.5, "upper": 0.5, "width": 1.8, "floor": 0.15}),
}


_SHAPE = ("lower", "upper", "width", "floor", "mix")
_OPTIONS = {"karras": ("rho",), "exponential": ("power",), "quantile": _SHAPE, "quantile-narrow": _SHAPE}


@dataclass(frozen=True)
class Grid:
    """A time grid by name, or explicit times.

        standard         karras for EDM, uniform-t for every other process
        uniform-t        t linear                                          (Song et al. 2021, score SDE)
        quadratic        sqrt(t) linear                                    (Song, Meng and Ermon 2021, D.2)
        uniform-lambda   lambda = log(alpha/sigma) linear                  (Lu et al. 2022)
        karras           (sigma/alpha)^(1/7) linear, option rho = 7        (Karras et al. 2022, equation 5)
        exponential      ln(sigma/alpha) a power law, option power = 1; power = 1 is uniform-lambda
        quantile         the default of kernel-quadrature: dense in ln(sigma/alpha) from 0.25 s to
                         0.75 s^(1/4) s2^(3/4), with Student-t shoulders and a floor, which is higher for
                         networks that predict eps or the score
        quantile-narrow  the grid of trig-adams: the same with no plateau, centred at s/2

    ``Grid("karras", rho=5.0)`` sets an option; ``Grid.explicit(times)`` takes times from start to end.
    s and s2 are data_std and data_spread.

    Raises UnknownNameError for a name, ValueError for an option or for times that are no grid.
    """

    name: str
    options: tuple[tuple[str, float], ...] = field(default=())
    values: tuple[float, ...] | None = None

    def __init__(self, name: str, **options: float) -> None:
        if name not in _LAYOUTS:
            raise unknown_name("grid", name, _LAYOUTS)
        for option, value in options.items():
            if option not in _OPTIONS.get(name, ()):
                raise ValueError(
                    f"grid {name!r} does not take {option!r}. Its options: "
                    f"{', '.join(_OPTIONS.get(name, ())) or 'none'}."
                )
            if not math.isfinite(value):
                raise ValueError(f"option {option!r} of grid {name!r} must be finite, got {value}.")
        object.__setattr__(self, "name", name)
        object.__setattr__(self, "options", tuple(sorted(options.items())))
        object.__setattr__(self, "values", None)

    @staticmethod
    def explicit(times: Tensor | Sequence[float]) -> Grid:
        """A grid of given times (n + 1,), strictly decreasing from noise to data."""
        t = torch.as_tensor(times, dtype=torch.float64)
        if t.requires_grad:
            raise ValueError(
                "an explicit grid is numbers, got times that require grad: a plan holds floats, and the "
                "gradient would be lost. Next: pass times.detach()."
            )
        t = t.cpu()
        if t.ndim != 1 or t.numel() < 2:
            raise ValueError(
                f"an explicit grid is a 1-D tensor of at least two times from start to end, got shape "
                f"{tuple(t.shape)}."
            )
        if not bool(torch.isfinite(t).all()) or bool((t < 0).any()):
            raise ValueError(f"grid times must be finite and >= 0, got {t.tolist()}.")
        if bool((t.diff() >= 0).any()):
            where = int((t.diff() >= 0).nonzero()[0])
            raise ValueError(
                f"grid times must decrease strictly, from noise to data; got t[{where}] = {t[where]:g}, "
                f"t[{where + 1}] = {t[where + 1]:g}. Likely cause: a grid in forward order. "
                f"Next: times.flip(0)."
            )
        grid = object.__new__(Grid)
        object.__setattr__(grid, "name", "explicit")
        object.__setattr__(grid, "options", ())
        object.__setattr__(grid, "values", tuple(t.tolist()))
        return grid

    @property
    def uses_data(self) -> bool:
        """Whether data_std and data_spread shape it (others use them at alpha = 0 only, if known)."""
        return self.name.startswith("quantile")

    @property
    def intervals(self) -> int | None:
        """Intervals of an explicit grid; None for a named one."""
        return None if self.values is None else len(self.values) - 1

    def times(
        self,
        process: GaussianDiffusion,
        n: int,
        data_std: float = 1.0,
        data_spread: float | None = None,
        start: float | None = None,
        predicts: str | None = None,
    ) -> Tensor:
        """(n + 1,) float64 times from ``start`` (default t_max) to t_min, strictly decreasing.

        predicts: what the network returns, which shapes "quantile"; None where that is not known.
        """
        if self.values is not None:
            return torch.tensor(self.values, dtype=torch.float64)
        n = check_count(n, "intervals")
        start = float(process.t_max) if start is None else start
        layout, defaults = _LAYOUTS[self.name]
        s2 = data_std if data_spread is None else data_spread
        options = {**defaults, **dict(self.options)}
        if layout is _quantile:
            options["s2"] = s2
            options.setdefault("amplified", predicts in AMPLIFIED)
        times: Tensor = layout(process, start, n, s=data_std, **options)  # type: ignore[operator]
        if bool((times.diff() >= 0).any()):
            raise ValueError(
                f"grid {self.name!r} with {n} intervals is not strictly decreasing on {process!r}: too many "
                f"intervals for float64 at this end. Next: fewer steps or another grid."
            )
        return times

    def __repr__(self) -> str:
        if self.values is not None:
            return f"Grid.explicit({len(self.values)} times, {self.values[0]:g} -> {self.values[-1]:g})"
        return "Grid(" + ", ".join([repr(self.name), *(f"{k}={v:g}" for k, v in self.options)]) + ")"
