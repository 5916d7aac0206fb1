"""Brownian paths: increments and their time integrals as pure functions of seed, sample id and interval."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from sdekit._typing import State
from sdekit.errors import ShapeError, check_count
from sdekit.noise import _times, _tree, philox
from sdekit.noise.levy import chain_areas, levy_area, normals_of_area
from sdekit.noise.source import Noise, Philox, Purpose, _check

if TYPE_CHECKING:
    from sdekit.noise._times import Times
    from sdekit.noise._tree import Floats, Ints

__all__ = ["BrownianTree", "Increments"]


class Increments(NamedTuple):
    """What a path W does over [s, t], h = t - s of either sign:

        W = W_t - W_s                                                        variance |h|
        H = 1/h   int_s^t (W_u - W_s - (u - s)/h W) du                       variance |h|/12
        K = 1/h^2 int_s^t (W_u - W_s - (u - s)/h W) (h/2 - (u - s)) du       variance |h|/720

    independent of each other and of the path outside. H is the space-time Levy area, K the space-time-time
    one (Foster, Lyons and Oberhauser 2020). In the Legendre coefficients c_n = int P_n dW of the interval,
    W = c_0, H = -c_1/2, K = c_2/12.

    W, H, K: of the noise shape. h: of a shape that broadcasts with them.
    """

    h: Tensor
    W: Tensor
    H: Tensor
    K: Tensor

    def then(self, after: Increments) -> Increments:
        """Chen's relation: over [s, u] from [s, t] and [t, u]. With p = (t - s)/(u - s) and q = 1 - p,

            W = W1 + W2,   H = p H1 + q H2 + (q W1 - p W2)/2,
            K = p^2 K1 + q^2 K2 + p q (H1 - H2)/2 + (p - q)(p W2 - q W1)/12.

        Holds for either sign of the lengths; not where they cancel.
        """
        h = self.h + after.h
        p, q = self.h / h, after.h / h
        tilt = q * self.W - p * after.W
        return Increments(
            h,
            self.W + after.W,
            p * self.H + q * after.H + tilt / 2,
            p * p * self.K + q * q * after.K + p * q * (self.H - after.H) / 2 - (p - q) * tilt / 12,
        )

    def reversed(self) -> Increments:
        """Over [t, s], time running back: (-h, -W, H, -K)."""
        return Increments(-self.h, -self.W, self.H, -self.K)


@dataclass(frozen=True)
class BrownianTree(Noise):
    """W(t), t in (-inf, inf), W(0) = 0: a path per sample and element, a function of time alone.

    `increments` answers for any interval with the exact joint law of (W, H, K), whatever was asked before:
    queries in any order, at any steps, forwards or backwards, read one path. Each interval is a sum of cells
    of a binary tree, and each cell is split by the law of its halves given its own (W, H, K) (Foster, Lyons
    and Oberhauser 2020; Jelincic, Foster and Kidger 2024); the numbers of a split are a pure function of
    (seed, sample id, element, middle of the cell), written down in `sdekit.noise._tree`. The tree ends at the
    float64 numbers themselves (within [-1, 1] at multiples of 2^-52): nothing is interpolated. Chen's
    relation holds to rounding; float32 and float64 agree to the rounding of float32.

    As ``noise`` of `sdekit.solve` at fixed steps it gives W and H over each step, so that runs with k, 2 k
    and 4 k steps, or from one end and from the other, see one path. Numbers that belong to no time (initial
    states, draws of sampler plans) are those of Philox(seed).

    seed: as in `Philox`. bits: levels of the tree, 1 to 52. Times are rounded to 2^-bits (relative to the
    power of two below, beyond 1): the same path, read at fewer times; with 26 a query costs half.
    """

    seed: int = 0
    bits: int = _tree.BITS

    def __post_init__(self) -> None:
        object.__setattr__(self, "seed", Philox(self.seed).seed)
        if not isinstance(self.bits, int) or not 1 <= self.bits <= _tree.BITS:
            raise ValueError(
                f"bits must be an integer from 1 to {_tree.BITS}, got {self.bits!r}. Next: leave it at "
                f"{_tree.BITS}, the resolution of float64, or 26 for speed."
            )

    def normal(self, draw: int, like: State, ids: Int64[Tensor, " B"]) -> State:
        """Draw ``draw`` of Philox(seed): a number that belongs to no time."""
        return Philox(self.seed).normal(draw, like, ids)

    def initial(self, like: State, ids: Int64[Tensor, " B"]) -> State:
        """The initial normal of Philox(seed)."""
        return Philox(self.seed).initial(like, ids)

    def increments(self, s: Times, t: Times, like: State, ids: Int64[Tensor, " B"]) -> Increments:
        """(h, W, H, K) over [s, t]: W, H and K of the shape, dtype and device of ``like`` (B, *event).

        s, t: a time, or one for each sample, (B,). Where t < s the path is read backwards: W(s, t) is
        -W(t, s), H(s, t) is H(t, s), K(s, t) is -K(t, s). ids: (B,) int64, absolute.

        Raises ValueError for times that are not finite, beyond 2^64, or too close for the resolution;
        ShapeError for times that are neither one nor one for each row, and as `Philox.normal`.
        """
        rows = _check(0, like, ids)
        ends = [_times.per_row(_times.on_host(x), rows) for x in (s, t)]
        h, *areas = self._over(np.stack(np.broadcast_arrays(*ends)), like, ids)
        shared = not any(x.ndim for x in ends)
        return Increments(h[0].reshape(()) if shared else h[0], *(x[0] for x in areas))

    def steps(self, ts: Times, like: State, ids: Int64[Tensor, " B"]) -> Increments:
        """`increments` over [t_0, t_1], [t_1, t_2], ..., for less: h (k, 1, ..., 1) or (k, B, 1, ..., 1),
        W, H and K (k, B, *event).

        ts: k + 1 times, or (k + 1, B) with those of each sample in a column. Raises as `increments` does.
        """
        rows = _check(0, like, ids)
        given = _times.on_host(ts)
        if given.ndim not in (1, 2) or len(given) < 2 or given.shape[1:] not in ((), (rows,)):
            raise ShapeError(
                f"ts must hold two times or more, (k + 1,) or (k + 1, {rows}), got shape {given.shape}. "
                f"Next: increments(s, t, like, ids) for one interval."
            )
        return Increments(*self._over(given, like, ids))

    def levy_area(
        self,
        s: Times,
        t: Times,
        like: State,
        ids: Int64[Tensor, " B"],
        *,
        pieces: int = 1,
        remainder: bool = True,
    ) -> Tensor:
        """A_ij = 1/2 int_s^t (W_i dW_j - W_j dW_i) of the elements of ``like`` (B, m): (B, m, m).

        [s, t] is cut into ``pieces`` of one length, the area of each taken from its W, H and K
        (`sdekit.noise.levy.levy_area`), and summed by Chen's relation. With the remainder mean and covariance
        are those of the area at any number of pieces, and the law tends to it. Without, this is the
        conditional mean given the pieces, of mean square error h^2/(20 pieces), the best there is. The
        remainder is a pure function of (seed, id, piece). Where t < s the area is -A(t, s).

        Raises ShapeError for ``like`` that is not (B, m), ValueError for pieces < 1, and as `increments`.
        """
        rows, pieces = _check(0, like, ids), check_count(pieces, "pieces")
        if like.ndim != 2:
            raise ShapeError(
                f"like must be (B, m), a row of m Brownian motions for each sample, got {tuple(like.shape)}. "
                f"Next: like.flatten(1)."
            )
        a, b = np.broadcast_arrays(*(np.atleast_1d(_times.per_row(_times.on_host(x), rows)) for x in (s, t)))
        low, high, m = np.minimum(a, b), np.maximum(a, b), like.shape[1]
        nodes = np.stack([*(low + (high - low) * (k / pieces) for k in range(pieces)), high])
        known = self.steps(nodes if len(low) == rows else nodes[:, 0], like, ids)
        z = None
        if remainder:
            key, n = philox.derive_key(self.seed, Purpose.LEVY), _tree.ticks(nodes, self.bits)
            each = _tree.ids_of_intervals(key, n[:-1], n[1:], ids).flatten()
            room = like.new_empty(len(each), normals_of_area(m))
            z = Philox(self.seed).normal(0, room, each, Purpose.LEVY).view(pieces, rows, -1)
        area = chain_areas(levy_area(known, z), known.W)
        return area * torch.from_numpy(np.where(a <= b, 1.0, -1.0)).to(area)[:, None, None]

    def _over(self, nodes: Floats, like: Tensor, ids: Tensor) -> list[Tensor]:
        """h, W, H, K over the intervals between times (k + 1,) or (k + 1, B), which may fall or rise."""
        nodes = nodes.reshape(len(nodes), -1) if nodes.ndim == 1 else nodes
        n = _tree.ticks(_times.inside(nodes), self.bits)
        falls = _times.falling(n)
        h = np.diff(_tree.times(n), axis=0)
        _times.resolved(np.diff(nodes, axis=0), h, self.bits)
        c = self._coefficients(np.sort(n, axis=0), like, ids)
        sign: Tensor | float = 1.0
        if falls.any():
            back = torch.from_numpy(falls).to(like.device)[:, None]
            c = torch.where(back, c.flip(1), c)
            sign = 1.0 - 2.0 * back.to(c.dtype)
        ones = (1,) * (like.ndim - 1)
        lengths = torch.from_numpy(h).to(like.device, like.dtype).reshape(*h.shape, *ones)
        shape = (len(h), *like.shape)
        areas = c[0] * sign, c[1] * -0.5, c[2] * (sign / 12)
        return [lengths, *(x.to(like.dtype).reshape(shape) for x in areas)]

    def _coefficients(self, n: Ints, like: Tensor, ids: Tensor) -> Tensor:
        """Legendre coefficients (3, k, B, event) between rising ticks (k + 1, B) or, shared, (k + 1, 1)."""
        nodes, rows = len(n), len(ids)
        event = like.numel() // rows if rows else 0
        dtype = torch.float64 if like.dtype is torch.float64 else torch.float32
        key = philox.derive_key(self.seed, Purpose.BROWNIAN)
        descend = (_compiled(dtype) if like.is_cpu else None) or _tree.descend
        x, none = _tree.times(n), np.full((1, n.shape[1]), np.inf)
        before, after = np.concatenate([none, x[:-1]]), np.concatenate([x[1:], -none])
        every = ids.repeat(nodes)
        left, right = descend(key, n.ravel(), before.ravel(), after.ravel(), every, event, dtype)
        shape = (3, nodes, rows, event)
        c = right.view(shape)[:, :-1] + left.view(shape)[:, 1:]
        roots = _tree.roots_between(key, n[:-1].ravel(), n[1:].ravel(), every[rows:], event, dtype)
        return c if roots is None else c + roots.view(c.shape)


@cache
def _compiled(dtype: torch.dtype) -> Callable[..., tuple[Tensor, Tensor]] | None:
    """The compiled descent; None, told once, where numba is missing, fails or is not what is specified."""
    try:
        from sdekit.noise import _tree_cpu

        return _tree_cpu.checked(dtype)
    except Exception as error:
        warnings.warn(
            f"the compiled Brownian tree is not available for {dtype} ({error}); plain torch gives the same "
            f"numbers, up to 50 times slower. Next: install a numba that works with this numpy and Python.",
            RuntimeWarning,
            stacklevel=5,
        )
        return None
