"""W2 between Gaussians, from moments or from samples."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from sdekit.certify.metrics.laws import moments
from sdekit.certify.metrics.result import Metric, judge, pair
from sdekit.errors import ShapeError
from sdekit.targets import Gaussian, Target
from sdekit.targets._linear import as_float64

__all__ = ["w2_gaussian"]


def w2_gaussian(samples: Any, against: Any, *, repeats: int = 99, seed: int = 0) -> Metric:
    r"""2-Wasserstein distance of the Gaussians with the two sides' means and covariances, in data units:

        W2^2 = |m - m'|^2 + tr(C + C' - 2 (C^{1/2} C' C^{1/2})^{1/2}).

    Either side: samples (n, *event), a target (its exact moments), or a pair (mean (D,), cov (D, D)). From
    samples the value is that of their mean and covariance (1/n), so never 0: exact samples reach about
    sqrt(1.5 tr C/n) for n much larger than D. Between Gaussians it is exact, and a lower bound of W2 between
    other laws with these moments.

    repeats: sets of exact samples (against a target) or relabellings (against samples) behind floor and
    p-value; 0 for none. stderr: delete-one-block jackknife, 20 blocks.

    Raises
    ------
    ShapeError: shapes do not fit. NonFiniteError: NaN or infinity in samples.

    References
    ----------
    Gelbrich 1990 (Math. Nachr. 147, 185-203), theorem 2.1.
    """
    left, right = _law(samples), _law(against)
    if left is not None and right is not None:
        if left[0].shape != right[0].shape:
            raise ShapeError(f"both laws must have one dimension, got {len(left[0])} and {len(right[0])}.")
        return Metric("W2 (Gaussian)", _w2(left, right), 0.0, 0.0, None, None, None)
    if left is not None:
        return w2_gaussian(against, samples, repeats=repeats, seed=seed)
    if right is None:
        given = pair(samples, against, seed)
        return judge("W2 (Gaussian)", lambda x, y: _w2(_fit(x), _fit(y)), given, given.y, repeats)
    target = against if isinstance(against, Target) else Gaussian(*right)
    given = pair(samples, target, seed)
    root = _root(right[1])
    return judge("W2 (Gaussian)", lambda x, y: _w2(_fit(x), right, root), given, None, repeats)


def _law(value: Any) -> tuple[Tensor, Tensor] | None:
    """(mean, covariance) of a target or of a pair; None for samples."""
    if isinstance(value, Target):
        return moments(value)
    if not (isinstance(value, tuple) and len(value) == 2):
        return None
    mean, cov = as_float64(value[0], "mean").reshape(-1), as_float64(value[1], "cov")
    if cov.shape != (len(mean), len(mean)):
        raise ShapeError(
            f"a law is a pair (mean (D,), cov (D, D)), got {tuple(mean.shape)} and {tuple(cov.shape)}. "
            f"Likely cause: variances. Next: torch.diag(variances)."
        )
    return mean, cov


def _fit(x: Tensor | None) -> tuple[Tensor, Tensor]:
    assert x is not None
    mean = x.mean(0)
    centred = x - mean
    return mean, centred.T @ centred / len(x)


def _root(cov: Tensor) -> Tensor:
    """The symmetric square root; eigenvalues that rounding made negative count as 0."""
    values, basis = torch.linalg.eigh((cov + cov.T) / 2)
    out: Tensor = (basis * values.clamp_min(0).sqrt()) @ basis.T
    return out


def _w2(a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor], root: Tensor | None = None) -> float:
    """min over rotations U of |C^{1/2} - C'^{1/2} U|, which cancels nothing where the two are close."""
    p, q = _root(a[1]), _root(b[1]) if root is None else root
    u, _, v = torch.linalg.svd(q.T @ p)
    return math.sqrt(float((a[0] - b[0]).square().sum() + (p - q @ (u @ v)).square().sum()))
