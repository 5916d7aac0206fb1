r"""Densities on uniform grids, and the two ways to carry them over a step.

    p'(y) = int p(z) N(y; m(z), s^2) dz        noise that enters a step last: scattered, no interpolation
    y = m(z, xi), xi ~ N(0, 1)                 noise that passes through the denoiser: a Fourier sum

Both sums are trapezoidal on grids that resolve every factor, where they converge faster than any power of the
spacing. With history the density is that of (y, z), z the state before: kept on a band about its ridge.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from sdekit.errors import CapabilityError

__all__ = ["CUT", "Band", "Line", "fourier", "onto_band", "onto_line", "uniform"]

CUT = 8.3
"""Standard deviations kept of a kernel: e^(-CUT^2/2) = 1e-15."""

LIMIT = 2**28
"""Kernel values that one step may take."""

BLOCK = 2**21

SPREAD, WIDE = 1.7, 4.7
"""In spacings: the Gaussian that points are spread by before a transform, and the least scale it is for."""


@dataclass(frozen=True)
class Line:
    """Masses p(y_i) dy of a density at uniform points y (n,), and its cdf there."""

    y: Tensor
    mass: Tensor
    cdf: Tensor

    @property
    def spacing(self) -> float:
        return float(self.y[1] - self.y[0])


@dataclass(frozen=True)
class Band:
    """Masses of the pair (y_i, z_j), j = index[i, b]: y (n,), z (nz,), index and mass (n, B)."""

    y: Tensor
    z: Tensor
    index: Tensor
    mass: Tensor

    @property
    def spacing(self) -> float:
        return float(self.y[1] - self.y[0])


def uniform(low: float, high: float, spacing: float) -> Tensor:
    """Points low, low + spacing, ... that reach high."""
    count = math.ceil((high - low) / spacing) + 1
    if count > 2**22:
        raise CapabilityError(
            f"the density needs {count} points: the noise of one step is {spacing:.3g} where the state "
            f"spreads over {high - low:.3g}. Next: a lower resolution=, or a later end of the grid."
        )
    return low + spacing * torch.arange(max(count, 2), dtype=torch.float64)


def _significant(mean: Tensor, mass: Tensor) -> tuple[Tensor, Tensor]:
    keep = mass.reshape(-1) > 1e-22
    return mean.reshape(-1)[keep], mass.reshape(-1)[keep]


def _reach(mean: Tensor, margin: float) -> tuple[float, float]:
    return float(mean.min()) - margin, float(mean.max()) + margin


def _afford(points: int, width: int) -> None:
    if points * width > LIMIT:
        raise CapabilityError(
            f"one step would take {points * width:.3g} kernel values ({points} points, {width} neighbours), "
            f"more than {LIMIT:.3g}. Likely cause: noise much smaller in one step than in its neighbours. "
            f"Next: a lower resolution=, or fewer steps."
        )


def onto_line(mean: Tensor, mass: Tensor, std: float, spacing: float) -> Line:
    """sum_j mass_j N(y; mean_j, std^2) and its cdf, from points of any shape."""
    mean, mass = _significant(mean, mass)
    y = uniform(*_reach(mean, CUT * std + 3 * spacing), spacing)
    half = math.ceil(CUT * std / spacing) + 1
    offsets = torch.arange(-half, half + 1)
    _afford(len(mean), len(offsets))
    density, cdf = torch.zeros(len(y) + 1, dtype=torch.float64), torch.zeros(len(y) + 1, dtype=torch.float64)
    passed = torch.zeros(len(y) + 1, dtype=torch.float64)
    size = max(1, BLOCK // len(offsets))
    for m, w in zip(torch.split(mean, size), torch.split(mass, size), strict=True):
        nearest = ((m - y[0]) / spacing).round().long()
        at = nearest[:, None] + offsets
        u = (y[0] + spacing * at.double() - m[:, None]) / std
        inside = at.clamp(-1, len(y))
        inside = torch.where(inside < 0, len(y), inside)
        kernel = w[:, None] * torch.exp(-0.5 * u * u) * (spacing / (std * math.sqrt(2 * math.pi)))
        density.index_add_(0, inside.reshape(-1), kernel.reshape(-1))
        cdf.index_add_(0, inside.reshape(-1), (w[:, None] * torch.special.ndtr(u)).reshape(-1))
        passed.index_add_(0, (nearest + half + 1).clamp(0, len(y)), w)
    total = (cdf + passed.cumsum(0))[:-1]
    return Line(y, density[:-1], total)


def onto_band(axis: Tensor, mean: Tensor, mass: Tensor, std: float, spacing: float) -> Band:
    """The pair (y, axis_i): row i of mean and mass (n, ...) holds the points whose y has that axis value."""
    rows = mean.reshape(len(axis), -1)
    weights = mass.reshape(len(axis), -1)
    seen = weights > 1e-22
    y = uniform(*_reach(rows[seen], CUT * std + 3 * spacing), spacing)
    wide = std > WIDE * spacing
    width_of = SPREAD * spacing if wide else std
    half = math.ceil(CUT * width_of / spacing) + 1
    offsets = torch.arange(-half, half + 1)
    _afford(int(seen.sum()), len(offsets))
    margin = math.ceil(CUT * std / spacing) + 1
    nearest = ((rows - y[0]) / spacing).round().long().clamp(margin, len(y) - 1 - margin)
    low = torch.where(seen, nearest, len(y)).amin(1) - margin
    width = int((torch.where(seen, nearest, 0).amax(1) + margin - low).clamp(min=0).max()) + 1
    _afford(len(axis), width)
    found = torch.zeros(len(axis) * width, dtype=torch.float64)
    size = max(1, BLOCK // len(offsets))
    which = seen.reshape(-1).nonzero().reshape(-1)
    base = (torch.arange(len(axis)) * width - low)[:, None].expand(rows.shape).reshape(-1)
    for part in torch.split(which, size):
        m, w, at = rows.reshape(-1)[part], weights.reshape(-1)[part], nearest.reshape(-1)[part]
        to = at[:, None] + offsets
        u = (y[0] + spacing * to.double() - m[:, None]) / width_of
        kernel = w[:, None] * torch.exp(-0.5 * u * u) * (spacing / (width_of * math.sqrt(2 * math.pi)))
        found.index_add_(0, (base[part][:, None] + to).reshape(-1), kernel.reshape(-1))
    rows_of = found.reshape(len(axis), width)
    if wide:
        gain = _gain(width, spacing, width_of**2 - std**2)
        rows_of = torch.fft.irfft(torch.fft.rfft(rows_of, dim=1) * gain, n=width, dim=1)
    return _transposed(y, axis, low, rows_of)


def _gain(n: int, spacing: float, excess: float) -> Tensor:
    """exp(w^2 excess/2) at the frequencies of n points: a spread of variance ``excess`` divided out."""
    frequency = 2 * math.pi * torch.fft.rfftfreq(n, d=spacing, dtype=torch.float64)
    return torch.where(frequency < 0.5 * math.pi / spacing, torch.exp(0.5 * frequency**2 * excess), 0.0)


def _transposed(y: Tensor, axis: Tensor, low: Tensor, found: Tensor) -> Band:
    """found[i, b] at (axis_i, y_(low_i + b)) as a band with rows y; what lies beyond y is rounding."""
    place = low[:, None] + torch.arange(found.shape[1])
    i, b = ((found > 1e-26) & (place < len(y))).nonzero(as_tuple=True)
    at = low[i] + b
    first = torch.full((len(y),), len(axis), dtype=torch.long).scatter_reduce(0, at, i, "amin")
    last = torch.full((len(y),), -1, dtype=torch.long).scatter_reduce(0, at, i, "amax")
    first = torch.where(last < 0, 0, first)
    width = int((last - first).max()) + 1
    _afford(len(y), width)
    mass = torch.zeros(len(y), width, dtype=torch.float64)
    mass[at, i - first[at]] = found[i, b]
    index = (first[:, None] + torch.arange(width)).clamp(max=len(axis) - 1)
    return Band(y, axis, index, mass)


def fourier(mean: Tensor, mass: Tensor, std: float, smooth: float, spacing: float) -> Line:
    """The law of mean_j + std xi with probabilities mass_j, for points dense enough that it is smooth.

    smooth: a lower bound of the law's own scale, at least WIDE spacings. Points are spread by a Gaussian of
    SPREAD spacings, which the transform divides out again (Dutt and Rokhlin 1993).
    """
    mean, mass = _significant(mean, mass)
    tau = SPREAD * spacing
    spread = onto_line(mean, mass, tau, spacing)
    margin = math.ceil((CUT * (smooth + std)) / spacing)
    n = len(spread.y) + 2 * margin
    y = spread.y[0] + spacing * (torch.arange(n, dtype=torch.float64) - margin)
    padded = torch.nn.functional.pad(spread.mass, (margin, margin))
    frequency = 2 * math.pi * torch.fft.rfftfreq(n, d=spacing, dtype=torch.float64)
    spectrum = torch.fft.rfft(padded) * _gain(n, spacing, tau * tau - std * std)
    density = torch.fft.irfft(spectrum, n=n)
    slopes = torch.where(frequency > 0, spectrum / (1j * torch.where(frequency > 0, frequency, 1.0)), 0.0)
    wave = torch.fft.irfft(slopes, n=n) / spacing
    total = float(spectrum[0].real)
    cdf = wave - wave[0] + total * (y - y[0]) / (n * spacing)
    return Line(y, density.clamp(min=0.0), cdf)
