"""GaussianMixture: sum_k w_k N(m_k, C_k), every component diagonalised once."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, distributions

from sdekit._typing import Number
from sdekit.errors import ShapeError
from sdekit.targets._linear import as_float64, check_variances, condition, eigen, is_single
from sdekit.targets._moments import Moments
from sdekit.targets._rows import Matrix, fold, logsumexp, softmax
from sdekit.targets.base import PerDevice, Target, at_clean, by_blocks
from sdekit.targets.gaussian import LOG_2PI, Gaussian

__all__ = ["GaussianMixture"]

#: Elements of one working array (rows x components x D): 32 MB in float64.
BLOCK = 2**22


class GaussianMixture(Target):
    r"""sum_k w_k N(m_k, C_k). Under x_t = alpha x0 + sigma eps it stays a mixture,

        p_t(x) = sum_k w_k N(x; alpha m_k, S_k),      S_k = alpha^2 C_k + sigma^2 I,
        r_k(x) = w_k N(x; alpha m_k, S_k) / p_t(x),
        score = -sum_k r_k S_k^{-1} (x - alpha m_k),
        E[x0 | x_t] = sum_k r_k [m_k + alpha C_k S_k^{-1} (x - alpha m_k)],

    with r_k from logarithms, so nothing under- or overflows, and the limits at alpha = 0
    (sum_k w_k m_k) and sigma = 0 (x / alpha) exact.

    Parameters
    ----------
    weights
        (K,), positive; normalised to sum 1.
    means
        (K, *event); (K,) is K means of event shape (1,).
    covs
        A number or (K,): isotropic variances; (K, *event): diagonal variances; (K, D, D): covariances;
        (1, D, D): one covariance for all components.

    Raises
    ------
    NotPositiveDefiniteError: some C_k is not symmetric positive definite. ShapeError: shapes do not fit.
    """

    _choices: ClassVar[int] = 1

    def __init__(self, weights: Any, means: Any, covs: Any) -> None:
        m = as_float64(means, "means")
        m = m[:, None] if m.ndim == 1 else m
        if m.ndim < 2 or len(m) == 0:
            raise ShapeError(f"means must have shape (K, *event) with K >= 1, got {tuple(m.shape)}.")
        k, event = len(m), m.shape[1:]
        d = event.numel()
        c = as_float64(covs, "covs")
        values: Tensor
        basis: Tensor | None = None
        if c.shape in ((), (k,)):
            values = check_variances(c, "covs").reshape(-1, 1).expand(k, d)
        elif c.shape == m.shape:
            values = check_variances(c, "covs").reshape(k, d)
        elif c.shape in ((k, d), (k, d, d), (1, d, d)):
            if c.ndim == 2:
                values = check_variances(c, "covs")
            else:
                values, basis = eigen(c, is_single(covs), "covs")
        else:
            raise ShapeError(
                f"covs must be a number, or have shape ({k},), ({k}, *event), ({k}, {d}, {d}) or "
                f"(1, {d}, {d}) for means of shape {tuple(m.shape)}, got {tuple(c.shape)}."
            )
        self._set(normalised(weights, k), m, values.expand(k, d), basis)

    def _set(self, weights: Tensor, means: Tensor, values: Tensor, basis: Tensor | None) -> GaussianMixture:
        """basis: None, (1, D, D) for all components or (K, D, D)."""
        self.event_shape = means.shape[1:]
        self.weights = weights
        self.means = means.clone()
        self.eigenvalues = values
        self.basis = basis
        flat = self.means.reshape(len(means), -1)
        #: x -> V_k^T x for all k side by side: (D, D) shared, or (D, K D).
        self._rotation = None if basis is None else Matrix(torch.cat(list(basis), dim=1))
        rotated = flat if basis is None else (basis.mT @ flat[:, :, None])[..., 0]
        thresholds = torch.special.ndtri(torch.cumsum(weights, 0)[:-1].clamp(0, 1))
        self._constants = PerDevice(torch.log(weights), flat, rotated, values, thresholds)
        return self

    @classmethod
    def _make(cls, weights: Tensor, means: Tensor, values: Tensor, basis: Tensor | None) -> GaussianMixture:
        return cls.__new__(cls)._set(weights, means, values, basis)

    def __len__(self) -> int:
        return len(self.weights)

    @property
    def components(self) -> list[Gaussian]:
        """The K components as `Gaussian` laws."""
        return [
            Gaussian._make(mean, values, None if basis is None else Matrix(basis))
            for mean, values, basis in zip(self.means, self.eigenvalues, self._bases(), strict=True)
        ]

    def _bases(self) -> list[Tensor | None]:
        if self.basis is None:
            return [None] * len(self)
        return list(self.basis.expand(len(self), -1, -1))

    def diffused(self, alpha: Number, sigma: Number) -> GaussianMixture:
        """sum_k w_k N(alpha m_k, alpha^2 C_k + sigma^2 I)."""
        a, s = float(alpha), float(sigma)
        values = check_variances(a * a * self.eigenvalues + s * s, "alpha^2 C + sigma^2 I")
        return self._make(self.weights, a * self.means, values, self.basis)

    def posterior(self, A: Any, y: Any, noise_cov: Any) -> GaussianMixture:
        """x0 given y = A x0 + n, n ~ N(0, noise_cov): every component updated, weights times its evidence.

            w_k' ~ w_k N(y; A m_k, A C_k A^T + R).

        A: (k, D) or (k, *event); y: (k,); noise_cov R: a number, (k,) or (k, k).
        """
        flat = self.means.reshape(len(self), -1)
        same = bool((self.eigenvalues == self.eigenvalues[:1]).all())
        if same and (self.basis is None or len(self.basis) == 1):
            basis = None if self.basis is None else self.basis[0]
            update = condition(flat, self.eigenvalues[0], basis, A, y, noise_cov)
            means, evidence = update.mean, update.log_evidence
            values, bases = update.values.expand(len(self), -1), update.basis[None]
        else:
            triples = zip(flat, self.eigenvalues, self._bases(), strict=True)
            updates = [condition(*triple, A, y, noise_cov) for triple in triples]
            means, values, bases, evidence = (torch.stack(parts) for parts in zip(*updates, strict=True))
        weights = softmax(torch.log(self.weights) + evidence)
        return self._make(weights, means.reshape(self.means.shape), values, bases)

    def to_torch(self) -> distributions.MixtureSameFamily:
        """The same law in `torch.distributions`, over events (D,), or (*event) if all C_k are diagonal."""
        mix = distributions.Categorical(probs=self.weights)
        if self.basis is None:
            std = self.eigenvalues.sqrt().reshape(self.means.shape)
            normal: Any = distributions.Normal(self.means, std)
            return distributions.MixtureSameFamily(
                mix, distributions.Independent(normal, len(self.event_shape))
            )
        normal = distributions.MultivariateNormal(self.means.reshape(len(self), -1), self._covs())
        return distributions.MixtureSameFamily(mix, normal)

    def _covs(self) -> Tensor:
        if self.basis is None:
            return torch.diag_embed(self.eigenvalues)
        return (self.basis * self.eigenvalues[:, None, :]) @ self.basis.mT

    # The formulas; c (R, K, D) are the coordinates of x - alpha m_k in the basis of component k.

    def _coordinates(self, x: Tensor, alpha: Number) -> Tensor:
        _, _, rotated, _, _ = self._constants.on(x.device)
        c = x if self._rotation is None else self._rotation.times(x)
        return c.reshape(len(x), c.shape[-1] // x.shape[-1], x.shape[-1]) - alpha * rotated

    def _back(self, c: Tensor) -> Tensor:
        """sum_k V_k c_k: (R, K, D) -> (R, D)."""
        if self._rotation is None or self.basis is None:
            return fold(c.mT)
        if len(self.basis) == 1:
            return self._rotation.transposed(fold(c.mT))
        return self._rotation.transposed(c.flatten(1))

    def _log_joint(self, c: Tensor, variances: Tensor) -> Tensor:
        """log w_k N(c_k; 0, variances), (R, K)."""
        log_weights, *_ = self._constants.on(c.device)
        return log_weights - 0.5 * (
            fold(c * c / variances) + fold(torch.log(variances)) + c.shape[-1] * LOG_2PI
        )

    def _by_blocks(self, fn: Callable[..., Tensor], x: Tensor, *coefficients: Number) -> Tensor:
        """fn over blocks of rows, so that its arrays (R, K, D) stay small."""
        return by_blocks(fn, max(1, BLOCK // (len(self) * x.shape[-1])), x, *coefficients)

    def _density(self, x: Tensor) -> Tensor:
        def block(x: Tensor) -> Tensor:
            values = self._constants.on(x.device)[3]
            return logsumexp(self._log_joint(self._coordinates(x, 1.0), values))

        return self._by_blocks(block, x)

    def _mean_given(self, x: Tensor, alpha: Number, sigma: Number) -> Tensor:
        def block(x: Tensor, alpha: Number, sigma: Number) -> Tensor:
            _, means, _, values, _ = self._constants.on(x.device)
            a, s = _over_components(alpha), _over_components(sigma)
            variances = a * a * values + s * s
            c = self._coordinates(x, a)
            r = softmax(self._log_joint(c, variances))[..., None]
            mean = fold((r * means).mT) + self._back(r * (a * values / variances * c))
            return at_clean(x, alpha, sigma, mean)

        return self._by_blocks(block, x, alpha, sigma)

    def _score_at(self, x: Tensor, alpha: Number, sigma: Number) -> Tensor:
        def block(x: Tensor, alpha: Number, sigma: Number) -> Tensor:
            values = self._constants.on(x.device)[3]
            a, s = _over_components(alpha), _over_components(sigma)
            variances = a * a * values + s * s
            c = self._coordinates(x, a)
            r = softmax(self._log_joint(c, variances))[..., None]
            return -self._back(r * (c / variances))

        return self._by_blocks(block, x, alpha, sigma)

    def _draw(self, normals: Tensor) -> Tensor:
        _, means, _, values, thresholds = self._constants.on(normals.device)
        which = torch.searchsorted(thresholds, normals[:, 0].contiguous())
        c = torch.sqrt(values)[which] * normals[:, 1:]
        if self._rotation is not None and self.basis is not None:
            if len(self.basis) > 1:
                wide = c.new_zeros(len(c), len(self), c.shape[-1])
                wide[torch.arange(len(c), device=c.device), which] = c
                c = wide.flatten(1)
            c = self._rotation.transposed(c)
        return means[which] + c

    def _moments(self) -> Moments:
        w = self.weights
        flat = self.means.reshape(len(self), -1)
        mean = w @ flat
        scaled = w.sqrt()[:, None] * (flat - mean)  # C = P + scaled^T scaled
        between = float(((scaled @ scaled.T) ** 2).sum())
        if self.basis is None:
            p = w @ self.eigenvalues
            square = float((p * p).sum()) + 2 * float((scaled * p * scaled).sum())
            within = float((mean * p * mean).sum())
            trace = float(p.sum())
        else:
            dense = (w[:, None, None] * self._covs()).sum(0)
            square = float((dense * dense).sum()) + 2 * float(((scaled @ dense) * scaled).sum())
            within = float(mean @ dense @ mean)
            trace = float(dense.diagonal().sum())
        return Moments(
            self.dimension,
            trace + float((scaled * scaled).sum()),
            square + between,
            float(mean @ mean),
            within + float(((scaled @ mean) ** 2).sum()),
        )

    def __repr__(self) -> str:
        return f"GaussianMixture({len(self)} components, event_shape={tuple(self.event_shape)})"


def _over_components(value: Number) -> Number:
    """(R, 1) -> (R, 1, 1), to broadcast over (R, K, D)."""
    return value[..., None] if isinstance(value, Tensor) and value.ndim else value


def normalised(weights: Any, k: int) -> Tensor:
    w = as_float64(weights, "weights")
    if w.shape != (k,):
        raise ShapeError(f"weights must have shape ({k},), one for each mean, got {tuple(w.shape)}.")
    if not (bool((w >= 0).all()) and math.isfinite(total := float(w.sum())) and total > 0):
        raise ValueError(f"weights must be >= 0 with a positive sum, got {w.tolist()[:8]}.")
    return w / total
