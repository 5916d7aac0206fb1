"""Statistics of an ensemble that arrives piece by piece: moments that merge, and a sketch of quantiles."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

__all__ = ["ERROR", "Moments", "Sketch"]


class Moments:
    r"""Mean and sum of squared deviations, merged (Chan, Golub and LeVeque 1983):

        m = m_a + d n_b/n,   M = M_a + M_b + d^2 n_a n_b/n,   d = m_b - m_a,   n = n_a + n_b.

    Pieces may arrive in any order, and are merged in that of their numbers, so that the result has the same
    bits whatever the threads.
    """

    def __init__(self) -> None:
        self.count, self.mean, self.squares = 0, np.zeros(()), np.zeros(())
        self._waiting: dict[int, tuple[int, Any, Any]] = {}
        self._next = 0
        self._lock = threading.Lock()

    def add(self, number: int, x: Floats) -> None:
        """Piece ``number``, from 0 on without gaps: x (n, ...) float64; n may be 0."""
        mean = x.mean(axis=0) if len(x) else np.zeros(x.shape[1:])
        squares = ((x - mean) ** 2).sum(axis=0)
        with self._lock:
            self._waiting[number] = len(x), mean, squares
            while self._next in self._waiting:
                self._merge(*self._waiting.pop(self._next))
                self._next += 1

    def _merge(self, count: int, mean: Any, squares: Any) -> None:
        if not self._next:
            self.count, self.mean, self.squares = count, mean, squares
            return
        total = self.count + count
        if total == 0:
            return
        gap = mean - self.mean
        self.mean = self.mean + gap * (count / total)
        self.squares = self.squares + squares + gap * gap * (self.count * count / total)
        self.count = total


BITS, LOW, HIGH = 7, -16, 24
SIDE = (HIGH - LOW) << BITS
"""Buckets on either side of the one around 0."""
ERROR = (2.0**-BITS, 2.0**LOW)
"""The error of a quantile: ERROR[0] of its distance from the centre, plus ERROR[1] of the scale."""


class Sketch:
    """Counts in buckets of u = (x - centre)/scale whose width is 2^-7 of \\|u\\| or less, and 2^-16 near 0.

    The bucket of u is read off its exponent and its first 7 bits; \\|u\\| > 2^24 counts as the last. Counts
    add up, so that the result does not depend on the order of the pieces. For scale and translation to fit,
    the centre is the median of a first piece and the scale its spread between quartiles.
    """

    def __init__(self, pilot: Floats) -> None:
        """pilot: (n, ...) float64, n > 0, some of the numbers to come."""
        low, self.centre, high = np.quantile(pilot, [0.25, 0.5, 0.75], axis=0)
        spread = high - low
        wide = pilot.max(axis=0) - pilot.min(axis=0)
        self.scale = np.where(spread > 0, spread, np.where(wide > 0, wide, 1.0))
        self.counts = np.zeros((self.centre.size, 2 * SIDE + 1), dtype=np.int64)
        self._lock = threading.Lock()

    def add(self, x: Floats) -> None:
        """x: (n, ...) float64."""
        u = ((x - self.centre) / self.scale).reshape(len(x), self.centre.size)
        bucket = (np.abs(u).view(np.int64) >> (52 - BITS)) - ((1023 + LOW) << BITS) + 1
        index = SIDE + np.where(u < 0, -1, 1) * np.clip(bucket, 0, SIDE)
        found = np.stack([np.bincount(i, minlength=2 * SIDE + 1) for i in index.T])
        with self._lock:
            self.counts += found

    def quantile(self, q: float) -> Floats:
        """The number below which a part q lies, 0 <= q <= 1: of the order statistic ceil(q n), by its rank
        within its bucket."""
        edges = _edges()
        upto = self.counts.cumsum(axis=1)
        n = int(upto[0, -1])
        rank = min(max(int(np.ceil(q * n)), 1), n)
        bucket = (upto >= rank).argmax(axis=1)
        inside = np.take_along_axis(self.counts, bucket[:, None], axis=1)[:, 0]
        before = np.take_along_axis(upto, bucket[:, None], axis=1)[:, 0] - inside
        part = (rank - before - 0.5) / inside
        u = edges[bucket] + part * (edges[bucket + 1] - edges[bucket])
        found: Floats = self.centre + self.scale * u.reshape(self.centre.shape)
        return found


def _edges() -> Floats:
    """The 2 SIDE + 2 ends of the buckets, rising."""
    steps = np.arange(SIDE + 1)
    up = np.ldexp(1.0 + (steps & (2**BITS - 1)) / 2.0**BITS, LOW + (steps >> BITS))
    return np.concatenate([-up[::-1], up])
