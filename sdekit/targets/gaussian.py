"""Gaussian: N(m, C), diagonalised once."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, distributions

from sdekit._typing import Number
from sdekit.errors import NotPositiveDefiniteError, ShapeError, check_positive
from sdekit.targets._linear import as_float64, check_variances, condition, eigen, is_single
from sdekit.targets._moments import Moments
from sdekit.targets._rows import Matrix, fold
from sdekit.targets.base import PerDevice, Target, at_clean

__all__ = ["Gaussian"]

LOG_2PI = math.log(2 * math.pi)


class Gaussian(Target):
    r"""N(m, C) with C = V diag(lambda) V^T. Under x_t = alpha x0 + sigma eps,

        x_t ~ N(alpha m, alpha^2 C + sigma^2 I),
        score = -(alpha^2 C + sigma^2 I)^{-1} (x - alpha m),
        E[x0 | x_t] = m + alpha C (alpha^2 C + sigma^2 I)^{-1} (x - alpha m),

    exact at alpha = 0 (m) and sigma = 0 (x / alpha): all is diagonal in the basis V.

    Parameters
    ----------
    mean
        m, (*event), or a number for all elements.
    cov
        C, (D, D) over the flattened event; or a number, the variance of every element.
    variance
        In place of cov: a number or (*event), C diagonal.
    eigen
        In place of cov: (values (D,), basis (D, D)), eigenvectors in the columns.

    With a number as mean the event shape is that of ``variance`` or (D,); (1,) for numbers alone.

    Raises
    ------
    NotPositiveDefiniteError: C is not symmetric positive definite. ShapeError: shapes do not fit.
    """

    def __init__(
        self,
        mean: Any = 0.0,
        cov: Any = None,
        *,
        variance: Any = None,
        eigen: tuple[Any, Any] | None = None,
    ) -> None:
        given = [
            name for name, v in (("cov", cov), ("variance", variance), ("eigen", eigen)) if v is not None
        ]
        if len(given) != 1:
            raise TypeError(
                f"exactly one of cov, variance and eigen must be given, got {given or 'none'}. "
                f"Next: Gaussian(mean, cov), Gaussian(mean, variance=1.0) or "
                f"Gaussian(mean, eigen=(values, basis))."
            )
        m = as_float64(mean, "mean")
        if variance is None and cov is not None and torch.as_tensor(cov).ndim == 0:
            variance = cov
        if variance is not None:
            v = as_float64(variance, "variance")
            event = m.shape or v.shape or torch.Size([1])
            if v.shape not in ((), event):
                raise ShapeError(
                    f"variance must be a number or have the event shape {tuple(event)}, got "
                    f"{tuple(v.shape)}. Likely cause: a covariance matrix. Next: pass it as cov."
                )
            self._set(m.expand(event), check_variances(v, "variance").expand(event).reshape(-1).clone(), None)
            return
        values, basis = _from_cov(cov) if eigen is None else _from_eigen(*eigen)
        event = m.shape or torch.Size([len(values)])
        if event.numel() != len(values):
            raise ShapeError(
                f"the covariance must be (D, D) with D = {event.numel()}, the elements of mean "
                f"{tuple(event)}, got D = {len(values)}."
            )
        self._set(m.expand(event), values, Matrix(basis))

    def _set(self, mean: Tensor, values: Tensor, basis: Matrix | None) -> Gaussian:
        self.event_shape = mean.shape
        self.mean = mean.clone()
        self.eigenvalues = values
        self._basis = basis
        self._constants = PerDevice(self.mean.reshape(-1), values)
        return self

    @classmethod
    def _make(cls, mean: Tensor, values: Tensor, basis: Matrix | None) -> Gaussian:
        return cls.__new__(cls)._set(mean, values, basis)

    @classmethod
    def from_data(cls, data: Any, *, floor: float = 1e-4) -> Gaussian:
        r"""The Gaussian with the mean and covariance (1/N) of data (N, *event).

        Eigenvalues below ``floor`` times their mean, tr C / D, are raised to it: directions in which the
        data are constant, such as border pixels, get a standard deviation of sqrt(floor) data_std.
        ``floor=0`` keeps the covariance as it is, and raises NotPositiveDefiniteError if it is singular.
        """
        x = as_float64(data, "data")
        if x.ndim < 2 or len(x) < 2:
            raise ShapeError(f"data must have shape (N, *event) with N >= 2, got {tuple(x.shape)}.")
        flat = x.reshape(len(x), -1)
        mean = flat.mean(0)
        centred = flat - mean
        cov = centred.T @ centred / len(x)
        if floor == 0:
            return cls(mean.reshape(x.shape[1:]), cov)
        values, basis = torch.linalg.eigh((cov + cov.T) / 2)
        low = check_positive(floor, "floor") * float(values.mean())
        if not low > 0:
            raise NotPositiveDefiniteError(
                "the data are constant, so they have no covariance. Likely cause: one sample repeated. "
                "Next: Gaussian(mean, variance=...)."
            )
        return cls._make(mean.reshape(x.shape[1:]), values.clamp_min(low), Matrix(basis))

    # The basis.

    @property
    def basis(self) -> Tensor | None:
        """V (D, D) float64, eigenvectors in the columns; None for a diagonal covariance, V = I."""
        return None if self._basis is None else self._basis.v

    @property
    def cov(self) -> Tensor:
        """C (D, D) float64, computed on demand."""
        v = self.basis
        return torch.diag(self.eigenvalues) if v is None else (v * self.eigenvalues) @ v.T

    def to_basis(self, x: Tensor) -> Tensor:
        """V^T x: (..., *event) -> (..., D), in x's dtype; rows are independent."""
        flat = x.reshape(*x.shape[: x.ndim - len(self.event_shape)], self.dimension)
        return self._to(flat.to(torch.float64)).to(x.dtype)

    def from_basis(self, c: Tensor) -> Tensor:
        """V c: (..., D) -> (..., *event), in c's dtype; the inverse of `to_basis`."""
        return self._from(c.to(torch.float64)).reshape(*c.shape[:-1], *self.event_shape).to(c.dtype)

    def _to(self, x: Tensor) -> Tensor:
        return x if self._basis is None else self._basis.times(x)

    def _from(self, c: Tensor) -> Tensor:
        return c if self._basis is None else self._basis.transposed(c)

    # The law.

    def diffused(self, alpha: Number, sigma: Number) -> Gaussian:
        """N(alpha m, alpha^2 C + sigma^2 I), in the same basis."""
        a, s = float(alpha), float(sigma)
        values = check_variances(a * a * self.eigenvalues + s * s, "alpha^2 C + sigma^2 I")
        return self._make(a * self.mean, values, self._basis)

    def posterior(self, A: Any, y: Any, noise_cov: Any) -> Gaussian:
        """x0 given y = A x0 + n, n ~ N(0, noise_cov): the conjugate Gaussian.

            mean' = m + C A^T (A C A^T + R)^{-1} (y - A m),   C' = C - C A^T (A C A^T + R)^{-1} A C.

        A: (k, D) or (k, *event); y: (k,); noise_cov R: a number, (k,) or (k, k).
        """
        update = condition(self.mean.reshape(-1), self.eigenvalues, self.basis, A, y, noise_cov)
        return self._make(update.mean.reshape(self.event_shape), update.values, Matrix(update.basis))

    def to_torch(self) -> distributions.Distribution:
        """The same law as a `torch.distributions` object over events (D,), or (*event) if C is diagonal."""
        if self._basis is None:
            std = self.eigenvalues.sqrt().reshape(self.event_shape)
            return distributions.Independent(distributions.Normal(self.mean, std), len(self.event_shape))
        return distributions.MultivariateNormal(self.mean.reshape(-1), self.cov)

    def _density(self, x: Tensor) -> Tensor:
        mean, values = self._constants.on(x.device)
        c = self._to(x - mean)
        return -0.5 * (fold(c * c / values) + fold(torch.log(values)) + self.dimension * LOG_2PI)

    def _draw(self, normals: Tensor) -> Tensor:
        mean, values = self._constants.on(normals.device)
        return mean + self._from(torch.sqrt(values) * normals)

    def _mean_given(self, x: Tensor, alpha: Number, sigma: Number) -> Tensor:
        mean, values = self._constants.on(x.device)
        gain = alpha * values / (alpha * alpha * values + sigma * sigma)
        return at_clean(x, alpha, sigma, mean + self._from(gain * self._to(x - alpha * mean)))

    def _score_at(self, x: Tensor, alpha: Number, sigma: Number) -> Tensor:
        mean, values = self._constants.on(x.device)
        return -self._from(self._to(x - alpha * mean) / (alpha * alpha * values + sigma * sigma))

    def _moments(self) -> Moments:
        values = self.eigenvalues
        m = self.mean.reshape(-1) if self.basis is None else self.mean.reshape(-1) @ self.basis
        return Moments(
            self.dimension,
            float(values.sum()),
            float((values**2).sum()),
            float((m * m).sum()),
            float((values * m * m).sum()),
        )


def _from_cov(cov: Any) -> tuple[Tensor, Tensor]:
    c = as_float64(cov, "cov")
    if c.ndim != 2 or c.shape[0] != c.shape[1]:
        raise ShapeError(
            f"cov must have shape (D, D), got {tuple(c.shape)}. Likely cause: variances. Next: variance=..."
        )
    return eigen(c, is_single(cov))


def _from_eigen(values: Any, basis: Any) -> tuple[Tensor, Tensor]:
    w, v = as_float64(values, "eigenvalues").clone(), as_float64(basis, "basis").clone()
    if w.ndim != 1 or v.shape != (len(w), len(w)):
        raise ShapeError(
            f"eigen must be (values (D,), basis (D, D)), got shapes {tuple(w.shape)} and {tuple(v.shape)}."
        )
    defect = v.T @ v - torch.eye(len(w), dtype=v.dtype)
    error = float(defect.abs().max())
    if error > 1e-5:
        raise ValueError(
            f"basis must be orthogonal, but V^T V differs from I by {error:.3g}. Likely cause: eigenvectors "
            f"of a matrix that is not symmetric. Next: torch.linalg.eigh."
        )
    return check_variances(w, "eigenvalues"), v - v @ defect / 2  # squares a float32 basis's defect
