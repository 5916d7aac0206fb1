"""Gaussian: N(m, C), diagonalised once."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, distributions

from sdekit._typing import Number
from sdekit.errors import NotPositiveDefiniteError, ShapeError, check_positive
from sdekit.targets._basis import EIGH, LARGEST, Basis, Hartley, check_size, dense
from sdekit.targets._forms import from_data, resolve
from sdekit.targets._linear import as_float64, check_variances, condition
from sdekit.targets._moments import Moments
from sdekit.targets._rows import Matrix, fold
from sdekit.targets._texture import decompose, photograph
from sdekit.targets.base import PerDevice, Target, at_clean

__all__ = ["Gaussian"]

LOG_2PI = math.log(2 * math.pi)


class Gaussian(Target):
    r"""N(m, C) with C = V diag(lambda) V^T. Under x_t = alpha x0 + sigma eps,

        x_t ~ N(alpha m, alpha^2 C + sigma^2 I),
        score = -(alpha^2 C + sigma^2 I)^{-1} (x - alpha m),
        E[x0 | x_t] = m + alpha C (alpha^2 C + sigma^2 I)^{-1} (x - alpha m),

    exact at alpha = 0 (m) and sigma = 0 (x / alpha): all is diagonal in the basis V. Two forms of C have a
    basis that is applied without a D x D matrix, so that D = 1e5 and more is cheap: low_rank and spectrum.

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
    low_rank
        In place of cov: (U (D, k), d), C = U U^T + d I; d may be (D,) where D is small.
    spectrum
        In place of cov: C is stationary on a torus, Cov(x(p), x(q)) = r(p - q), with eigenvalues
        S(f) = sum_p r(p) exp(-2 pi i f.p) in the order of `torch.fft`: (L,), (H, W) or (C, H, W), channels
        uncoupled; or cross-spectra (C, C, H, W), S_cc' = the transform of Cov(x_c(p), x_c'(0)).

    With a number as mean the event shape is that of ``variance`` or ``spectrum``, or (D,); (1,) for numbers
    alone.

    Raises
    ------
    NotPositiveDefiniteError: C is not symmetric positive definite. ShapeError: shapes do not fit, or a
    D x D matrix is asked for that would be too large. ValueError: a spectrum without its symmetries.
    """

    def __init__(
        self,
        mean: Any = 0.0,
        cov: Any = None,
        *,
        variance: Any = None,
        eigen: tuple[Any, Any] | None = None,
        low_rank: tuple[Any, Any] | None = None,
        spectrum: Any = None,
    ) -> None:
        forms = {"cov": cov, "variance": variance, "eigen": eigen, "low_rank": low_rank}
        self._set(*resolve(mean, {**forms, "spectrum": spectrum}))

    def _set(self, mean: Tensor, values: Tensor, basis: Basis | None) -> Gaussian:
        self.event_shape = mean.shape
        self.mean = mean.clone()
        self.eigenvalues = values
        self._basis = basis
        self._constants = PerDevice(self.mean.reshape(-1), values)
        return self

    @classmethod
    def _make(cls, mean: Tensor, values: Tensor, basis: Basis | None) -> Gaussian:
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
        return cls._make(mean.reshape(x.shape[1:]), *from_data(flat - mean, floor))

    @classmethod
    def texture(
        cls, images: Any, *, floor: float = 1e-4, couple: bool = True, periodic: bool = True
    ) -> Gaussian:
        r"""The stationary Gaussian with the mean colour and the spectrum of photographs.

            S(f) = mean over images of X(f) X(f)^H,   X the unitary Fourier transform of image - mean.

        For one photograph its samples are those of asymptotic discrete spot noise: the same spectrum,
        random phases. images: (H, W), (C, H, W), or (N, C, H, W) for the mean of several, patches say.
        floor: eigenvalues below floor tr C/D are raised to it; one photograph leaves all but one of each
        frequency's C eigenvalues there. couple: False forgets how the channels go together. periodic: take
        out first the jumps between opposite borders, which a torus does not have.

        Galerne, Gousseau and Morel 2011, Random phase textures (IEEE TIP 20); Moisan 2011, Periodic plus
        smooth image decomposition (JMIV 39).
        """
        mean, s = photograph(images, couple, periodic)
        values, basis = decompose(s if s.is_complex() else s.reshape(*[1] * (3 - s.ndim), *s.shape))
        low = check_positive(floor, "floor") * float(values.mean())
        if not low > 0:
            raise NotPositiveDefiniteError(
                "the image is constant, so it has no spectrum. Next: Gaussian(mean, variance=...)."
            )
        return cls._make(mean, values.clamp_min(low), basis)

    def with_eigenvalues(self, values: Any, mean: Any = None) -> Gaussian:
        """The law with the same eigenvectors and other ``values`` (D,), and another mean (*event) if given.

        With it a wrong model is written down: `sdekit.certify(..., model=target.with_eigenvalues(...))`.
        """
        v = as_float64(values, "values")
        if v.shape not in ((), self.eigenvalues.shape):
            raise ShapeError(f"values must be a number or ({self.dimension},), got {tuple(v.shape)}.")
        m = self.mean if mean is None else as_float64(mean, "mean")
        if m.shape not in ((), self.event_shape):
            raise ShapeError(f"mean must have shape {tuple(self.event_shape)}, got {tuple(m.shape)}.")
        v = check_variances(v, "values").expand(self.eigenvalues.shape).clone()
        return self._make(m.expand(self.event_shape), v, self._basis)

    # The basis.

    @property
    def basis(self) -> Tensor | None:
        """V (D, D) float64, eigenvectors in the columns; None for a diagonal covariance, V = I.

        Raises ShapeError where it would be too large to write out: `to_basis` and `from_basis` apply it.
        """
        return None if self._basis is None else dense(self._basis, self.dimension)

    @property
    def cov(self) -> Tensor:
        """C (D, D) float64, computed on demand. Raises ShapeError where it would be too large."""
        return self.assemble(self.eigenvalues)

    def assemble(self, variances: Tensor) -> Tensor:
        """V diag(variances) V^T, (D,) -> (D, D) float64. Raises ShapeError where it would be too large."""
        check_size(
            self.dimension,
            "the covariance",
            LARGEST,
            "variances along the eigenvectors, .eigenvalues or .law",
        )
        v = self.basis
        return torch.diag(variances) if v is None else (v * variances) @ v.T

    def variances_of(self, other: Gaussian) -> Tensor:
        """Eigenvalues (D,) of ``other``'s covariance along this law's eigenvectors, which it must share.

        Raises ValueError where it does not, ShapeError where D is too large to find out.
        """
        mine, its = self._basis, other._basis
        if its is mine or (isinstance(mine, Hartley) and mine.same(its)):
            return other.eigenvalues
        if bool((other.eigenvalues == other.eigenvalues[0]).all()):
            return other.eigenvalues
        hint = "target.with_eigenvalues(values), which keeps the eigenvectors"
        check_size(self.dimension, "the comparison of eigenvectors", EIGH, hint)
        v = self.basis
        inside = other.cov if v is None else v.T @ other.cov @ v
        values = inside.diagonal().clone()
        off = float((inside - torch.diag(values)).abs().max())
        if off > 1e-9 * float(values.max()):
            raise ValueError(
                f"the two covariances must have the same eigenvectors, but along the first's the second has "
                f"entries off the diagonal up to {off:.3g}, where its largest variance is "
                f"{float(values.max()):.3g}. Next: {hint}."
            )
        return check_variances(values, "the variances along the first law's eigenvectors")

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
        check_size(self.dimension, "the posterior's basis", EIGH, "a smaller event")
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
        m = self._to(self.mean.reshape(-1))
        return Moments(
            self.dimension,
            float(values.sum()),
            float((values**2).sum()),
            float((m * m).sum()),
            float((values * m * m).sum()),
        )
