r"""Parzen windows: how wide a Gaussian to put on each datum, by the likelihood of the data left out.

    p_h(x) = (1/N) sum_i N(x; y_i, h^2 I)        (`sdekit.Empirical`)

has its greatest likelihood of the data themselves at h = 0, where it is infinite. Leaving each datum out of
the density that judges it makes the likelihood a criterion for h (Duin 1976, doi:10.1109/TC.1976.1674577):

    law = sk.Empirical(data, sk.parzen.bandwidth(data))
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from sdekit.errors import ShapeError, check_positive, check_state

__all__ = ["bandwidth", "leave_one_out"]

#: Distances of one block of rows: 32 MB in float64. Up to four such blocks are kept between bandwidths.
BLOCK = 2**22
HELD = 2**24
GRID = 32
"""Bandwidths at which the search for the greatest maximum begins."""
TOLERANCE = 1e-9


def leave_one_out(data: Any, h: float) -> Float[Tensor, " N"]:
    r"""log p_h^(-i)(y_i), the density of all data but y_i at y_i, in nats:

        log (1/(N - 1)) sum_{j != i} exp(-|y_i - y_j|^2/(2 h^2)) - (D/2) log(2 pi h^2).

    data: (N, *event) floating, N >= 2. h: > 0, in the units of the data. Returns (N,) float64; finite
    for every h > 0, however small. Time N^2 D.

    Raises ShapeError for fewer than two data, NonFiniteError for NaN, ValueError for h <= 0.
    """
    h = check_positive(h, "h")
    return torch.cat([_moments(block, h)[0] for block in _Squares(data)]) - _constant(data, h)


def bandwidth(data: Any) -> float:
    r"""h > 0 that maximises the mean of `leave_one_out`, to a relative accuracy of 1e-9.

    Where the slope is zero h^2 = (1/(N D)) sum_i <d_ij^2>_i, the mean with weights that fall with the
    distance d_ij. It lies between the least and the plain mean of the d_ij^2 of each row, hence all maxima
    between

        h_0^2 = (1/(N D)) sum_i min_{j != i} d_ij^2    and    h_1^2 = (1/(N D)) sum_i mean_{j != i} d_ij^2.

    The best of 32 bandwidths spread geometrically between the two is followed uphill by bisection of the
    slope. Time N^2 D and some 60 N^2; memory 128 MB at most.

    Parameters
    ----------
    data
        (N, *event) floating, N >= 2; standardise elements of different units first.

    Returns
    -------
    h, in the units of the data.

    Raises
    ------
    ShapeError: integer data or fewer than two. NonFiniteError: NaN. ValueError: every datum occurs twice or
    more, so that the likelihood grows without bound as h falls.
    """
    squares = _Squares(data)
    dimension = squares.x.shape[1]
    least = torch.cat([block.amin(dim=1) for block in squares])
    mean = torch.cat([torch.where(block.isinf(), 0.0, block).sum(dim=1) for block in squares])
    if bool((least == 0).all()):
        raise ValueError(
            f"each of the {len(least)} data has an exact copy, so the left-out likelihood is infinite at "
            f"bandwidth 0. Likely cause: repeated rows, or rounded data. Next: torch.unique(data, dim=0)."
        )
    low = math.sqrt(float(least.mean()) / dimension)
    high = math.sqrt(float(mean.mean()) / ((len(mean) - 1) * dimension))
    ratio = math.pow(high / low, 1 / (GRID - 1))
    grid = [low * math.pow(ratio, k) for k in range(GRID)]
    tried = [(squares.value_and_slope(h), h) for h in grid]
    (value, slope), best = max(tried)
    # Uphill of the best there is a maximum no lower, before the next bandwidth of the grid.
    outer = best * (ratio if slope > 0 else 1 / ratio)
    while abs(outer / best - 1) > TOLERANCE:
        middle = math.sqrt(best * outer)
        found, rise = squares.value_and_slope(middle)
        if found >= value and (rise > 0) == (slope > 0):
            best, value = middle, found
        else:
            outer = middle
    return best


class _Squares:
    """|y_i - y_j|^2 of data (N, *event), rows by blocks, infinite on the diagonal."""

    def __init__(self, data: Any) -> None:
        x = check_state(data, "data")
        if x.ndim < 2 or x.shape[0] < 2 or x[0].numel() == 0:
            raise ShapeError(
                f"data must have shape (N, *event) with N >= 2, one left out and one that judges it, got "
                f"{tuple(x.shape)}. Next: data[:, None] for N numbers."
            )
        self.x = x.detach().double().flatten(1)
        self.rows = max(1, BLOCK // len(self.x))
        self.held = [self._block(i) for i in self._starts()] if len(self.x) ** 2 <= HELD else None

    def _starts(self) -> range:
        return range(0, len(self.x), self.rows)

    def _block(self, start: int) -> Tensor:
        rows = self.x[start : start + self.rows]
        # not by |x|^2 + |y|^2 - 2 x.y, which loses the distances of near neighbours
        squares: Tensor = torch.cdist(rows, self.x, compute_mode="donot_use_mm_for_euclid_dist").square()
        index = torch.arange(len(rows), device=rows.device)
        squares[index, start + index] = math.inf
        return squares

    def __iter__(self) -> Iterator[Tensor]:
        return iter(self.held) if self.held is not None else map(self._block, self._starts())

    def value_and_slope(self, h: float) -> tuple[float, float]:
        """Mean left-out log-density without (D/2) log 2 pi, and its derivative in log h."""
        parts = [_moments(block, h) for block in self]
        value, square = (torch.cat(p).mean() for p in zip(*parts, strict=True))
        d = self.x.shape[1]
        return float(value) - d * math.log(h), float(square) / h**2 - d


def _moments(squares: Tensor, h: float) -> tuple[Tensor, Tensor]:
    """log mean_{j != i} exp(-d_ij^2/(2 h^2)) and the mean of d_ij^2 under those weights, (R,)."""
    logits = squares / (-2 * h * h)
    top = logits.amax(dim=1, keepdim=True)
    weights = torch.exp(logits - top)
    total = weights.sum(dim=1)
    mean = torch.where(weights > 0, weights * squares, 0.0).sum(dim=1) / total
    return torch.log(total / (squares.shape[1] - 1)) + top[:, 0], mean


def _constant(data: Any, h: float) -> float:
    dimension = torch.as_tensor(data)[0].numel()
    return 0.5 * dimension * math.log(2 * math.pi * h * h)
