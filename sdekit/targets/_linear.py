r"""Covariances: validation, and the conjugate update of a Gaussian by a linear observation."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sdekit.errors import NotPositiveDefiniteError, ShapeError

__all__ = ["Conditioned", "as_float64", "check_variances", "condition", "eigen", "is_single", "observe"]


def as_float64(value: Any, name: str) -> Tensor:
    """A finite float64 tensor on the host from a number, sequence, array or tensor."""
    try:
        tensor = torch.as_tensor(value, dtype=torch.float64).detach().cpu()
    except (TypeError, ValueError, RuntimeError) as error:
        raise ShapeError(
            f"{name} must be a number, an array or a tensor, got {type(value).__name__}: {error}."
        ) from error
    if not bool(torch.isfinite(tensor).all()):
        raise ValueError(
            f"{name} holds NaN or infinity. Likely cause: an earlier computation failed. "
            f"Next: repair it before building the law."
        )
    return tensor


def is_single(value: Any) -> bool:
    """Whether an array or tensor came in float32 or less; plain numbers are float64."""
    if not hasattr(value, "dtype"):
        return False
    given = torch.as_tensor(value)
    return given.is_floating_point() and given.dtype != torch.float64


def check_variances(values: Tensor, name: str) -> Tensor:
    """Variances must be > 0. Raises NotPositiveDefiniteError."""
    low = float(values.min()) if values.numel() else 1.0
    if not low > 0:
        raise NotPositiveDefiniteError(
            f"{name} must be > 0 everywhere, got {low:.3g}. Likely cause: constant coordinates (border "
            f"pixels), or standard deviations of 0. Next: Gaussian.from_data(data), which raises small "
            f"variances to a floor; or add a small variance to all; or Empirical(data, bandwidth)."
        )
    return values


def eigen(cov: Tensor, single: bool, name: str = "cov") -> tuple[Tensor, Tensor]:
    """Eigenvalues (..., D) and eigenvectors (columns, (..., D, D)) of symmetric positive definite ``cov``.

    ``single``: the entries came in float32 or less, so symmetry and rank are judged to its rounding.
    Raises NotPositiveDefiniteError.
    """
    size = cov.shape[-1]
    eps = 1.2e-7 if single else 2.3e-16 * size
    asymmetry = float((cov - cov.mT).abs().max())
    largest = float(cov.abs().max())
    if asymmetry > 1e3 * eps * largest:
        raise NotPositiveDefiniteError(
            f"{name} must be symmetric, but {name} - {name}^T reaches {asymmetry:.3g} where the largest "
            f"entry is {largest:.3g}. Likely cause: a factor L given for L L^T. "
            f"Next: pass L @ L.mT, or ({name} + {name}.mT) / 2."
        )
    values, basis = torch.linalg.eigh((cov + cov.mT) / 2)
    low, high = values[..., 0], values[..., -1]
    short = low <= eps * high
    if bool(short.any()):
        worst = int(torch.where(short, low / high.abs().clamp_min(1e-300), math.inf).flatten().argmin())
        raise NotPositiveDefiniteError(
            f"{name} must be positive definite, but its smallest eigenvalue is "
            f"{float(low.flatten()[worst]):.3g} (largest {float(high.flatten()[worst]):.3g}). Likely cause: "
            f"a sample covariance without full rank, from constant coordinates (border pixels) or fewer "
            f"samples than dimensions. Next: Gaussian.from_data(data), which raises small variances to a "
            f"floor; or {name} + eps * torch.eye({size}); or Empirical(data, bandwidth)."
        )
    return values, basis


class Conditioned(NamedTuple):
    """The posterior: mean (..., D), eigenvalues (D,), basis (D, D), log evidence (...)."""

    mean: Tensor
    values: Tensor
    basis: Tensor
    log_evidence: Tensor


def condition(
    mean: Tensor, values: Tensor, basis: Tensor | None, operator: Any, y: Any, noise_cov: Any
) -> Conditioned:
    r"""Law of x given y = A x + n, for x ~ N(mean, V diag(values) V^T), n ~ N(0, R).

    Whitened: L = V diag(values)^{1/2}, B = R^{-1/2} A L = P diag(s) W^T, r = R^{-1/2} (y - A mean). Then

        mean' = mean + L W diag(s/(1 + s^2)) P^T r,     cov' = G G^T,  G = L W diag(1/sqrt(1 + s^2)),
        -2 log N(y; A mean, A C A^T + R) = k log 2 pi + log|R| + sum log(1 + s^2) + sum (P^T r)^2/(1 + s^2).

    The singular values of G give eigenvalues of cov' that stay positive and accurate for any noise.

    mean: (..., D), one law for each leading index, the same covariance; operator A: (k, D) or
    (k, *event); y: (k,); noise_cov R: a number, (k,) or (k, k).
    """
    d = values.shape[-1]
    a, data, whiten, log_det = _observation(d, operator, y, noise_cov)
    k = len(a)
    factor = values.sqrt() if basis is None else basis * values.sqrt()
    b = whiten(a * factor if basis is None else a @ factor)
    p, s, w_t = torch.linalg.svd(b, full_matrices=True)
    residual = whiten((data - mean @ a.T).movedim(-1, 0)).movedim(0, -1) @ p  # (..., k)
    shrink_k = torch.cat((s, s.new_zeros(k - len(s))))
    shrink_d = torch.cat((s, s.new_zeros(d - len(s))))
    lw = factor[:, None] * w_t.T if basis is None else factor @ w_t.T
    gain = (s / (1 + s * s)) * residual[..., : len(s)]
    g = lw / torch.sqrt(1 + shrink_d * shrink_d)
    new_basis, root, _ = torch.linalg.svd(g)
    if not float(root[-1]) > 0:
        raise NotPositiveDefiniteError(
            "the posterior has no variance left in some direction. Likely cause: noise_cov too small for "
            "float64. Next: a larger noise_cov."
        )
    quadratic = (residual * residual / (1 + shrink_k * shrink_k)).sum(-1)
    log_evidence = -0.5 * (k * math.log(2 * math.pi) + log_det + torch.log1p(s * s).sum() + quadratic)
    return Conditioned(mean + gain @ lw[:, : len(s)].T, root * root, new_basis, log_evidence)


def observe(points: Tensor, operator: Any, y: Any, noise_cov: Any) -> Tensor:
    """log N(y; A x_i, R) for points (N, D) -> (N,)."""
    a, data, whiten, log_det = _observation(points.shape[-1], operator, y, noise_cov)
    residual = whiten((data - points @ a.T).T)
    out: Tensor = -0.5 * (len(a) * math.log(2 * math.pi) + log_det + (residual * residual).sum(0))
    return out


def _observation(d: int, operator: Any, y: Any, noise_cov: Any) -> tuple[Tensor, Tensor, Any, Tensor]:
    """A (k, D), y (k,), the whitening by R and log|R|, checked."""
    a = as_float64(operator, "A")
    if a.ndim < 2 or a[0].numel() != d:
        raise ShapeError(
            f"A must have shape (k, D) with D = {d}, or (k, *event), got {tuple(a.shape)}. Next: one row "
            f"for each observed number; A[None] for a single observation."
        )
    data = as_float64(y, "y").reshape(-1)
    if len(data) != len(a):
        raise ShapeError(
            f"y must have shape ({len(a)},), one number for each row of A, got {len(data)} numbers."
        )
    whiten, log_det = _whitener(as_float64(noise_cov, "noise_cov"), len(a))
    return a.reshape(len(a), d), data, whiten, log_det


def _whitener(r: Tensor, k: int) -> tuple[Any, Tensor]:
    """(v -> R^{-1/2} v for v (k, ...), log|R|)."""
    if r.shape == (k, k) and r.ndim == 2:
        try:
            lower = torch.linalg.cholesky((r + r.T) / 2)
        except RuntimeError as error:
            raise NotPositiveDefiniteError(
                "noise_cov must be symmetric positive definite. Next: add a small variance to its diagonal."
            ) from error

        def solve(v: Tensor) -> Tensor:
            out: Tensor = torch.linalg.solve_triangular(lower, v.reshape(k, -1), upper=False)
            return out.reshape(v.shape)

        return solve, 2 * torch.log(lower.diagonal()).sum()
    if r.shape not in ((), (1,), (k,)):
        raise ShapeError(f"noise_cov must be a number, ({k},) or ({k}, {k}), got shape {tuple(r.shape)}.")
    variances = check_variances(r.expand(k), "noise_cov")
    std = variances.sqrt()
    return lambda v: v / std.reshape(-1, *([1] * (v.ndim - 1))), torch.log(variances).sum()
