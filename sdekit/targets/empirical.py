"""Empirical: the data themselves, widened by a bandwidth (Parzen)."""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Iterator
from typing import Any, ClassVar

import torch
from torch import Tensor

from sdekit._typing import Number
from sdekit.errors import EndpointError, NonFiniteError, ShapeError
from sdekit.targets._linear import as_float64, condition, observe
from sdekit.targets._moments import Moments, data_moments
from sdekit.targets._rows import Matrix, ceil_log2, fixed_point, fold, logsumexp, softmax
from sdekit.targets.base import PerDevice, Target, at_clean, by_blocks, number
from sdekit.targets.gaussian import LOG_2PI
from sdekit.targets.mixture import GaussianMixture, normalised

__all__ = ["Empirical"]

#: Elements of one chunk of data: 8 MB in float64.
CHUNK = 2**20
#: Elements of the (rows, N) weights held at a time: 32 MB in float64; 1 MB where that leaves 64 rows.
BLOCK = 2**22
#: Data of at most this many elements keep their float64 slices between calls: 64 MB a slice.
HELD = 2**23
#: Bits of the data below their largest magnitude, in one slice, for float32 states; two slices for float64.
SINGLE = 25


class Empirical(Target):
    r"""(1/N) sum_i N(y_i, h^2 I), a kernel density of the data y_i; h = 0 puts all mass on the data.

    Under x_t = alpha x0 + sigma eps, with v = alpha^2 h^2 + sigma^2,

        p_t(x) = (1/N) sum_i N(x; alpha y_i, v I),      w_i(x) = softmax_i(-|x - alpha y_i|^2 / (2 v)),
        score = (alpha m(x) - x) / v,                   m(x) = sum_i w_i y_i,
        E[x0 | x_t] = m(x) + (alpha h^2 / v) (x - alpha m(x)).

    At sigma = 0 the denoiser is x / alpha, or for h = 0 its limit, the nearest data point.

    The data stay as given; chunks of 8 MB become float64 while they are used, and data of up to 2^23
    elements stay so. Products are exact, of the data in fixed point: 25 bits below the largest magnitude
    for float32 states, finer than the states themselves; 51 bits for float64.

    Parameters
    ----------
    data
        (N, *event) float32 or float64, kept by reference; best on the device of the states.
    bandwidth
        h >= 0, in the units of the data.
    weights
        (N,) >= 0 in place of 1/N; normalised to sum 1.

    Raises
    ------
    ShapeError: integer data, or no event axis. NonFiniteError: NaN or infinity, naming the row.

    References
    ----------
    Parzen 1962 (Ann. Math. Statist. 33, 1065). Vincent 2011 (Neural Computation 23, 1661), section 4:
    denoising score matching regresses on this score.
    """

    _choices: ClassVar[int] = 1

    def __init__(self, data: Any, bandwidth: float = 0.0, *, weights: Any = None) -> None:
        y = torch.as_tensor(data).detach()
        if y.ndim < 2 or y.numel() == 0:
            raise ShapeError(
                f"data must have shape (N, *event) with N >= 1, got {tuple(y.shape)}. "
                f"Next: data[:, None] for N numbers."
            )
        if not y.is_floating_point():
            raise ShapeError(
                f"data must be floating, got dtype {y.dtype}. Likely cause: raw 8-bit images. "
                f"Next: data.float() / 127.5 - 1, or the scaling that the model is trained on."
            )
        self._y = (y if y.dtype in (torch.float32, torch.float64) else y.float()).reshape(len(y), -1)
        self.event_shape = y.shape[1:]
        self.bandwidth = number(bandwidth, "bandwidth")
        self.weights = None if weights is None else normalised(weights, len(y))
        self._scale = 1.0  # the law of scale * data + bandwidth * noise
        self._chunk = max(64, 2 ** int(math.log2(CHUNK / self._y.shape[1])))
        p = self._probabilities()
        thresholds = torch.special.ndtri(torch.cumsum(p, 0)[:-1].clamp(0, 1))
        self._constants = PerDevice(self._survey(), torch.log(p), thresholds)
        self._matrices: dict[bool, list[Matrix]] = {}
        self._norms: dict[bool, PerDevice] = {}

    def _probabilities(self) -> Tensor:
        n = len(self._y)
        return torch.full((n,), 1 / n, dtype=torch.float64) if self.weights is None else self.weights

    def _chunks(self) -> Iterator[tuple[int, Tensor]]:
        for start in range(0, len(self._y), self._chunk):
            yield start, self._y[start : start + self._chunk]

    def _survey(self) -> Tensor:
        """The centre subtracted from the data (D,), after a check; sets ``_top``, the range about it.

        The centre is 0 for data around 0, else a multiple of a power of two near the middle of the
        range, so that the difference loses no bits.
        """
        d = self._y.shape[1]
        low = torch.full((d,), math.inf, dtype=self._y.dtype, device=self._y.device)
        high = -low
        for start, rows in self._chunks():
            low, high = torch.minimum(low, rows.amin(0)), torch.maximum(high, rows.amax(0))
            if not bool((torch.isfinite(low) & torch.isfinite(high)).all()):
                row = start + int((~torch.isfinite(rows)).any(1).nonzero()[0])
                raise NonFiniteError(
                    f"data holds NaN or infinity (first: row {row}). Likely cause: missing values. "
                    f"Next: drop or repair those rows."
                )
        low, high = low.double().cpu(), high.double().cpu()
        middle, reach = (low + high) / 2, float((high - low).max()) / 2
        step = 2.0 ** (math.frexp(reach)[1] + 1) if reach > 0 else 1.0
        centre = torch.round(middle / step) * step if reach > 0 else middle
        self._top = 2.0 ** math.frexp(float(torch.maximum(high - centre, centre - low).max()))[1]
        return centre

    @property
    def data(self) -> Tensor:
        """y (N, *event), in the dtype given."""
        y = self._y if self._scale == 1 else self._y * self._scale
        return y.reshape(-1, *self.event_shape)

    def __len__(self) -> int:
        return len(self._y)

    def diffused(self, alpha: Number, sigma: Number) -> Empirical:
        """The kernel density of alpha y_i with bandwidth sqrt(alpha^2 h^2 + sigma^2); shares the data."""
        law = copy.copy(self)
        law.__dict__.pop("_scales", None)
        law._scale = self._scale * float(alpha)
        law.bandwidth = math.hypot(float(alpha) * self.bandwidth, float(sigma))
        return law

    def posterior(self, A: Any, y: Any, noise_cov: Any) -> Empirical | GaussianMixture:
        """x0 given y = A x0 + n, n ~ N(0, noise_cov); every datum weighted by its evidence.

        h > 0: a `GaussianMixture` with one covariance for all; h = 0: the data, reweighted.
        A: (k, D) or (k, *event); y: (k,); noise_cov: a number, (k,) or (k, k).
        """
        points = as_float64(self.data.reshape(len(self), -1), "data")
        log_p = torch.log(self._probabilities())
        if self.bandwidth == 0:
            weights = softmax(log_p + observe(points, A, y, noise_cov))
            return Empirical(self.data, 0.0, weights=weights)
        variance = torch.full((self.dimension,), self.bandwidth**2, dtype=torch.float64)
        update = condition(points, variance, None, A, y, noise_cov)
        means = update.mean.reshape(-1, *self.event_shape)
        values = update.values.expand(len(means), -1)
        return GaussianMixture._make(softmax(log_p + update.log_evidence), means, values, update.basis[None])

    # The formulas. x (R, D); a = alpha scale; e_i = a x.y_i - a^2 |y_i|^2 / 2, about the centre.

    def _field(self, fn: Any, x: Tensor, alpha: Number, sigma: Number) -> Tensor:
        x = torch.as_tensor(x)
        return super()._field(functools.partial(fn, single=x.dtype != torch.float64), x, alpha, sigma)

    def _pieces(self, single: bool) -> list[Matrix]:
        if single not in self._matrices:
            hold = self._y.numel() <= HELD
            centre = self._constants.on(self._y.device)[0]
            self._matrices[single] = [
                Matrix(
                    rows,
                    centre=centre if bool(centre.any()) else None,
                    slice_bits=SINGLE,
                    bits=SINGLE if single else 2 * SINGLE + 1,
                    top=self._top,
                    hold=hold,
                )
                for _, rows in self._chunks()
            ]
        return self._matrices[single]

    def _squares(self, single: bool, device: torch.device) -> Tensor:
        """|y_i|^2 / 2 of the data as the products see them, (N,)."""
        if single not in self._norms:
            norms = []
            for piece in self._pieces(single):
                y = sum(piece.slices(device)[1:], piece.slices(device)[0])
                norms.append(fold(y * y) / 2)
            self._norms[single] = PerDevice(torch.cat(norms))
        return self._norms[single].on(device)[0]

    def _energies(self, x: Tensor, a: Number, single: bool) -> Tensor:
        """e_i, (R, N): |x - a y_i|^2 = |x|^2 - 2 e_i."""
        centred = x - a * self._constants.on(x.device)[0]
        if single:
            centred = fixed_point(centred, 32)
        bits = 32 if single else 52
        inner = torch.cat([piece.transposed(centred, bits) for piece in self._pieces(single)], dim=-1)
        return a * inner - a * a * self._squares(single, x.device)

    def _block(self) -> int:
        return max(1, min(BLOCK // len(self), max(64, 2**17 // len(self))))

    def _density(self, x: Tensor) -> Tensor:
        h = self.bandwidth
        if h == 0:
            raise EndpointError(
                "the law of the data alone has no density (bandwidth 0). Next: Empirical(data, bandwidth) "
                "with a bandwidth > 0, or target.marginal(process, t).log_prob(x) at a time t > 0."
            )

        def block(x: Tensor) -> Tensor:
            centre, log_p, _ = self._constants.on(x.device)
            shifted = x - self._scale * centre
            top = logsumexp(self._energies(x, self._scale, single=False) / h**2 + log_p)
            return top - fold(shifted * shifted) / (2 * h**2)

        return by_blocks(block, self._block(), x) - self.dimension * (0.5 * LOG_2PI + math.log(h))

    def _average(self, x: Tensor, alpha: Number, v: Number, single: bool) -> Tensor:
        """m(x) = sum_i w_i y_i (in units of scale y), (R, D)."""

        def block(x: Tensor, alpha: Number, v: Number) -> Tensor:
            centre, log_p, _ = self._constants.on(x.device)
            energies = self._energies(x, alpha * self._scale, single)
            energies = energies - energies.detach().amax(-1, keepdim=True)
            if self.bandwidth == 0:  # the limit v -> 0: the nearest data share the weight
                v = torch.as_tensor(v, dtype=torch.float64, device=x.device)
                nearest = torch.where(energies == 0, 0.0, -math.inf)
                logits = torch.where(v == 0, nearest, energies / torch.where(v == 0, 1.0, v)) + log_p
            else:
                logits = energies / v + log_p
            w = torch.exp(logits - logits.detach().amax(-1, keepdim=True))
            bits = min(50, 24 + ceil_log2(len(self))) if single else 60
            if single:
                w = fixed_point(w, bits, top=1.0)
            total = torch.zeros_like(x)
            pieces = self._pieces(single)
            for piece, part in zip(pieces, torch.split(w, self._chunk, dim=-1), strict=True):
                total = total + piece.times(part, bits, top=1.0)
            return self._scale * (centre + total / fold(w)[:, None])

        return by_blocks(block, self._block(), x, alpha, v)

    def _variance(self, alpha: Number, sigma: Number) -> Number:
        return alpha * alpha * self.bandwidth**2 + sigma * sigma

    def _mean_given(self, x: Tensor, alpha: Number, sigma: Number, single: bool = False) -> Tensor:
        v = self._variance(alpha, sigma)
        mean = self._average(x, alpha, v, single)
        if self.bandwidth == 0:
            return mean
        return at_clean(x, alpha, sigma, mean + (alpha * self.bandwidth**2 / v) * (x - alpha * mean))

    def _score_at(self, x: Tensor, alpha: Number, sigma: Number, single: bool = False) -> Tensor:
        v = self._variance(alpha, sigma)
        if self.bandwidth == 0 and bool((torch.as_tensor(v) == 0).any()):
            raise EndpointError(
                "the score of the data alone is infinite where sigma = 0 (bandwidth 0). Next: a time t > 0, "
                "or Empirical(data, bandwidth) with a bandwidth > 0."
            )
        return (alpha * self._average(x, alpha, v, single) - x) / v

    def _draw(self, normals: Tensor) -> Tensor:
        thresholds = self._constants.on(normals.device)[2]
        which = torch.searchsorted(thresholds, normals[:, 0].contiguous())
        y = self._y[which.to(self._y.device)].to(device=normals.device, dtype=torch.float64)
        return self._scale * y + self.bandwidth * normals[:, 1:]

    def _moments(self) -> Moments:
        return data_moments(self._y, self._probabilities(), self._chunk).widened(self._scale, self.bandwidth)

    def __repr__(self) -> str:
        event = tuple(self.event_shape)
        return f"Empirical({len(self)} data, event_shape={event}, bandwidth={self.bandwidth:g})"
