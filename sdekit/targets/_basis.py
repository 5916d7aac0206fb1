r"""Orthonormal bases of eigenvectors that are never written out as a matrix.

Each has ``times``, x V, the coordinates V^T x of the rows of x, and ``transposed``, c V^T, the way back;
rows never influence each other (see `_rows`).
"""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor

from sdekit.errors import ShapeError
from sdekit.targets._rows import Matrix
from sdekit.targets.base import PerDevice

__all__ = ["EIGH", "LARGEST", "Basis", "Hartley", "Reflected", "check_size", "dense"]

#: The largest D of a D x D matrix: 2.1 GB in float64.
LARGEST = 2**14
#: The largest D that is diagonalised or decomposed densely: about a minute on one core.
EIGH = 2**12
#: Elements of the rows of the unit matrix that `dense` works on at a time: 32 MB.
BLOCK = 2**22


def check_size(d: int, what: str, largest: int, instead: str) -> None:
    """Refuse matrices that would not fit. Raises ShapeError."""
    if d > largest:
        raise ShapeError(
            f"{what} would be a matrix of {d} x {d} numbers, {8e-9 * d * d:.3g} GB; the largest is D = "
            f"{largest}. Next: {instead}."
        )


class Basis(Protocol):
    """V (D, D), V^T V = I."""

    def times(self, x: Tensor) -> Tensor:
        """x V: (..., D) -> (..., D), float64."""

    def transposed(self, x: Tensor) -> Tensor:
        """x V^T: (..., D) -> (..., D), float64."""


def dense(basis: Basis, d: int) -> Tensor:
    """V (D, D). Raises ShapeError above D = `LARGEST`."""
    if isinstance(basis, Matrix):
        return basis.v
    check_size(d, "basis", LARGEST, "to_basis and from_basis apply it without the matrix")
    out = torch.empty(d, d, dtype=torch.float64)
    size = max(1, BLOCK // d)
    for start in range(0, d, size):
        rows = torch.zeros(min(size, d - start), d, dtype=torch.float64)
        rows.diagonal(start).fill_(1.0)
        out[:, start : start + size] = basis.transposed(rows).T
    return out


class Reflected:
    r"""Q (D, k), orthonormal columns, completed to V (D, D) by one block reflection.

    With the singular value decomposition Q_top = W diag(s) Z^T of the upper k rows, P = -Z W^T and
    N = Q P - [I; 0],

        H = I - Y Y^T,  Y = N W diag(1/sqrt(1 + s)),  Y^T Y = 2 I,
        V = H blockdiag(P^T, I):    the first k columns of V are Q.

    Q_top P is symmetric and negative, so N^T N = 2 (I + W diag(s) W^T) is well conditioned. O(D k) a vector.

    Schreiber and Parlett 1988, Block reflectors: theory and computation, SIAM J. Numer. Anal. 25, 189-205.
    """

    def __init__(self, q: Tensor) -> None:
        self.k = k = q.shape[1]
        w, s, z_t = torch.linalg.svd(q[:k])
        p = -(w @ z_t).T
        n = q @ p
        n.diagonal().sub_(1.0)
        self._y = Matrix(n @ (w / torch.sqrt(1 + s)))
        self._p = Matrix(p)

    def _reflect(self, x: Tensor) -> Tensor:
        return x - self._y.transposed(self._y.times(x))

    def times(self, x: Tensor) -> Tensor:
        """x V."""
        x = self._reflect(x)
        return torch.cat((self._p.transposed(x[..., : self.k]), x[..., self.k :]), dim=-1)

    def transposed(self, x: Tensor) -> Tensor:
        """x V^T."""
        return self._reflect(torch.cat((self._p.times(x[..., : self.k]), x[..., self.k :]), dim=-1))


class Hartley:
    r"""Real eigenvectors of covariances that are stationary on a torus (C, H, W).

    With X = F x the unitary Fourier transform of each channel and U(f) (C, C) unitary with
    U(-f) = conj U(f), the coordinates of x are

        c(f) = Re z(f) - Im z(f),    z(f) = U(f)^H X(f),

    real and orthonormal because z(-f) = conj z(f). In terms of A = Re X - Im X, Hartley's transform,

        c(f) = Re U(f)^T A(f) + Im U(f)^T A(-f),      A(f) = Re U(f) c(f) - Im U(f) c(-f).

    A itself is separable up to four signs, as cas(a + b) = (cas a cas b + cas a cas -b + cas -a cas b
    - cas -a cas -b)/2, cas = cos + sin: two products by small matrices, whose rows keep their bits.

    Bracewell 1983, Discrete Hartley transform, J. Opt. Soc. Am. 73, 1832-1835.

    shape: (C, H, W). mix: U, (C, C, H, W) complex, or None for U = I.
    """

    def __init__(self, shape: tuple[int, int, int], mix: Tensor | None = None) -> None:
        self.shape = shape
        _, height, width = shape
        self._rows, self._columns = _cas(height), _cas(width)
        self.mix = mix
        self._parts = PerDevice() if mix is None else PerDevice(mix.real.clone(), mix.imag.clone())

    def same(self, other: object) -> bool:
        """Whether ``other`` has the same vectors."""
        if not isinstance(other, Hartley) or self.shape != other.shape:
            return False
        if self.mix is None or other.mix is None:
            return self.mix is other.mix
        return torch.equal(self.mix, other.mix)

    def _transform(self, x: Tensor) -> Tensor:
        """A = Re X - Im X of (..., H, W), its own inverse."""
        t = self._rows.times(self._columns.times(x).mT.contiguous()).mT
        up, left = minus(t, -2), minus(t, -1)
        return 0.5 * (((t + up) + left) - minus(up, -1))

    def times(self, x: Tensor) -> Tensor:
        """x V."""
        a = self._transform(x.reshape(*x.shape[:-1], *self.shape))
        if self.mix is not None:
            real, imag = self._parts.on(x.device)
            b = minus(minus(a, -2), -1)
            parts = [
                real[j] * a[..., j, None, :, :] + imag[j] * b[..., j, None, :, :] for j in range(len(real))
            ]
            a = sum(parts[1:], parts[0])
        return a.reshape(x.shape)

    def transposed(self, x: Tensor) -> Tensor:
        """x V^T."""
        c = x.reshape(*x.shape[:-1], *self.shape)
        if self.mix is not None:
            real, imag = self._parts.on(x.device)
            d = minus(minus(c, -2), -1)
            parts = [
                real[:, i] * c[..., i, None, :, :] - imag[:, i] * d[..., i, None, :, :]
                for i in range(len(real))
            ]
            c = sum(parts[1:], parts[0])
        return self._transform(c).reshape(x.shape)


def minus(x: Tensor, dim: int) -> Tensor:
    """x at the frequencies -f along ``dim``: 0, n - 1, ..., 1."""
    return x.roll(-1, dim).flip(dim)


def _cas(n: int) -> Matrix:
    """cas(2 pi i j/n)/sqrt(n), (n, n): symmetric and orthogonal."""
    i = torch.arange(n, dtype=torch.int64)
    angle = (2 * math.pi / n) * (i[:, None] * i % n).to(torch.float64)
    return Matrix((torch.cos(angle) + torch.sin(angle)) / math.sqrt(n))
