r"""Sums and products whose rows keep their bits, whatever the other rows, the threads and the BLAS.

A sum or matrix product rounds differently with its blocking, which depends on the batch. Two remedies,
both by construction rather than by luck:

`fold` adds halves, elementwise: the order is fixed by the length alone.

`Matrix` multiplies exactly (Ozaki, Ogita, Oishi and Rump 2012, Numer. Algorithms 59, 95-118). Both
factors are cut into slices of few bits on a fixed grid,

    x = x_1 + x_2 + ...,   V = V_1 + V_2 + ...,   x V = sum_ij x_i V_j,

b_x bits below the largest element of the row, b_v below that of V, b_x + b_v + ceil(log2 n) <= 53 with n
the inner dimension. Every partial sum of x_i V_j is then an integer of at most 53 bits times a power of
two: float64 holds it without rounding, so any order of summation gives the same bits. The few products
are added elementwise in a fixed order. Zero columns may be skipped freely.

torch.exp and torch.log run the same vector code in body and tail, which the tests hold on to; torch.exp2
does not, and is not used.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import torch
from torch import Tensor

from sdekit.sde.rows import fold

__all__ = ["Matrix", "ceil_log2", "fixed_point", "fold", "logsumexp", "softmax"]

#: Bits kept of a float64 factor.
FULL = 52
#: Elements of the slices of x that one pass works on: 1 MB.
BLOCK = 2**17


def logsumexp(logits: Tensor) -> Tensor:
    """log sum exp over the last dimension, rows independent; -inf rows stay -inf."""
    top = logits.detach().amax(-1, keepdim=True)
    top = torch.where(torch.isinf(top), 0.0, top)
    return torch.log(fold(torch.exp(logits - top))) + top.squeeze(-1)


def softmax(logits: Tensor) -> Tensor:
    """exp(logits) normalised over the last dimension, rows independent."""
    weights = torch.exp(logits - logits.detach().amax(-1, keepdim=True))
    return weights / fold(weights).unsqueeze(-1)


def ceil_log2(n: int) -> int:
    """Smallest k with 2^k >= n."""
    return max(n - 1, 0).bit_length()


def _power_of_two_above(x: Tensor) -> Tensor:
    """2^e > largest |x| of each row, (..., 1): twice its leading bit; 0 for a row of zeros, exact."""
    bits = x.abs().amax(-1, keepdim=True).view(torch.int64) & (0x7FF << 52)
    return bits.view(torch.float64) * 2


def _count(bits: int, wanted: int) -> int:
    """Slices of ``bits`` bits (the first) and bits + 1 (the rest) that hold ``wanted`` bits."""
    return 1 + max(0, math.ceil((wanted - bits) / (bits + 1)))


def _slices(x: Tensor, bits: int, count: int, top: Tensor | float) -> Tensor:
    """x = sum of slices + rest, (count, *x.shape); slice i: multiples of u_i, up to 2^bits u_i,

        u_i = top 2^-(bits + i (bits + 1)).

    Adding and subtracting 1.5 2^52 u rounds to a multiple of u (Rump's splitting); bits <= 50.
    """
    anchor = top * (1.5 * 2.0 ** (52 - bits))
    slices = x.new_empty((count, *x.shape))
    for i, part in enumerate(slices):
        torch.add(x, anchor, out=part)
        part -= anchor
        if i + 1 < count:
            x = x - part
            anchor = anchor * 2.0 ** -(bits + 1)
    return slices


@functools.lru_cache(maxsize=256)
def _schedule(
    inner: int, v_bits: int, v_count: int, bits: int
) -> tuple[int, int, list[tuple[int, int]], list[int]]:
    """b_x, the slices of x, the pairs (i, j) of x_i V_j that count, smallest first, and their number by j."""
    x_bits = 53 - ceil_log2(inner) - v_bits
    count = _count(x_bits, bits)
    size = {(i, j): i * (x_bits + 1) + j * (v_bits + 1) for i in range(count) for j in range(v_count)}
    pairs = sorted((pair for pair in size if size[pair] < FULL + 4), key=lambda pair: (-size[pair], pair))
    depth = [sum(j == other for _, other in pairs) for j in range(v_count)]
    return x_bits, count, pairs, depth


def fixed_point(x: Tensor, bits: int, top: float | None = None) -> Tensor:
    """x (..., n) float64 rounded to ``bits`` <= 50 bits below ``top`` (its row's largest); gradient of x."""
    return _Round.apply(x, bits, top)  # type: ignore[no-untyped-call,no-any-return]


class _Round(torch.autograd.Function):
    """`fixed_point`, with the derivative of the identity."""

    @staticmethod
    def forward(x: Tensor, bits: int, top: float | None) -> Tensor:
        return _slices(x, bits, 1, _power_of_two_above(x) if top is None else top)[0]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return grad, None, None

    @staticmethod
    def jvp(ctx: Any, dx: Tensor, *_: Any) -> Tensor:
        return dx.view_as(dx)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], x: Tensor, *rest: Any) -> tuple[Tensor, int]:
        return _Round.apply(x.movedim(in_dims[0], 0), *rest), 0  # type: ignore[no-untyped-call]


class Matrix:
    """A constant factor V (n, k), with exact products by V and by its transpose.

    Parameters
    ----------
    v
        (n, k) float32 or float64; kept by reference.
    centre
        (k,) float64 subtracted from every row first, or None.
    slice_bits
        b_v, bits of one slice; by default half of what the larger dimension leaves.
    bits
        Bits of V below its largest element that the products respect.
    top
        A power of two above the largest |v - centre|; by default measured.
    hold
        Keep the slices in memory between calls.
    """

    def __init__(
        self,
        v: Tensor,
        *,
        centre: Tensor | None = None,
        slice_bits: int | None = None,
        bits: int = FULL,
        top: float | None = None,
        hold: bool = True,
    ) -> None:
        self.v = v
        self.centre = centre
        self.slice_bits = (54 - ceil_log2(max(v.shape))) // 2 if slice_bits is None else slice_bits
        self.bits = bits
        self.top = float(_power_of_two_above(self._exact(v.device).reshape(1, -1))) if top is None else top
        self.hold = hold
        self._held: dict[torch.device, list[Tensor]] = {}

    def _exact(self, device: torch.device, index: Tensor | None = None) -> Tensor:
        """V - centre (rows ``index``) in float64."""
        v = (self.v if index is None else self.v[index]).to(device).to(torch.float64)
        return v if self.centre is None else v - self.centre.to(device)

    def slices(self, device: torch.device, index: Tensor | None = None) -> list[Tensor]:
        """The slices of V on ``device``, all-zero tails left out; ``index``: only these rows."""
        held = self._held.get(device)
        if held is None:
            if not self.hold:
                return self._cut(self._exact(device, index))
            held = self._held[device] = self._cut(self._exact(device))
        return held if index is None else [part[index] for part in held]

    def _cut(self, v: Tensor) -> list[Tensor]:
        parts = list(_slices(v, self.slice_bits, _count(self.slice_bits, self.bits), self.top))
        while self.hold and len(parts) > 1 and not bool(parts[-1].any()):
            parts.pop()
        return parts

    def times(self, x: Tensor, bits: int = FULL, top: float | None = None) -> Tensor:
        """x V: (..., n) -> (..., k), float64. ``bits`` of x below its row's largest (or ``top``) count."""
        return _product(x, self, False, bits, top)

    def transposed(self, x: Tensor, bits: int = FULL, top: float | None = None) -> Tensor:
        """x V^T: (..., k) -> (..., n), float64."""
        return _product(x, self, True, bits, top)


def _product(x: Tensor, matrix: Matrix, transposed: bool, bits: int, top: float | None) -> Tensor:
    return _Product.apply(x, matrix, transposed, bits, top)  # type: ignore[no-untyped-call,no-any-return]


class _Product(torch.autograd.Function):
    """x V or x V^T, linear in x: derivatives of every order are products again."""

    @staticmethod
    def forward(x: Tensor, matrix: Matrix, transposed: bool, bits: int, top: float | None) -> Tensor:
        n, k = matrix.v.shape
        inner, outer = (k, n) if transposed else (n, k)
        rows = x.reshape(-1, inner)
        out = x.new_zeros(len(rows), outer)
        index = None
        if not transposed and not matrix.hold and x.device.type == "cpu":
            index = (rows != 0).any(0).nonzero().flatten()
            if len(index) == 0:
                return out.reshape(*x.shape[:-1], outer)
            if 2 * len(index) > inner:
                index = None
            else:
                rows = rows[:, index]
        slices = matrix.slices(x.device, index)
        factors = [v.T if transposed else v for v in slices]
        x_bits, count, pairs, depth = _schedule(inner, matrix.slice_bits, len(factors), bits)
        size = max(64, BLOCK // (count * max(inner, outer)))
        for start in range(0, len(rows), size):
            part = rows[start : start + size]
            x_slices = _slices(part, x_bits, count, _power_of_two_above(part) if top is None else top)
            flat = x_slices.reshape(-1, part.shape[1])
            rows_in = len(part)
            products = [
                (flat[: d * rows_in] @ v).reshape(d, rows_in, outer)
                for d, v in zip(depth, factors, strict=True)
            ]
            total = out[start : start + size]
            for i, j in pairs:
                total += products[j][i]
        return out.reshape(*x.shape[:-1], outer)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, ctx.matrix, ctx.transposed, ctx.bits, _ = inputs

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return _product(grad, ctx.matrix, not ctx.transposed, ctx.bits, None), None, None, None, None

    @staticmethod
    def jvp(ctx: Any, dx: Tensor, *_: Any) -> Tensor:
        return _product(dx, ctx.matrix, ctx.transposed, ctx.bits, None)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], x: Tensor, *rest: Any) -> tuple[Tensor, int]:
        return _Product.apply(x.movedim(in_dims[0], 0), *rest), 0  # type: ignore[no-untyped-call]
