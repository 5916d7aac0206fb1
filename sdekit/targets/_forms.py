"""The forms in which a covariance is given, each diagonalised once: (values (D,), basis)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sdekit.errors import NotPositiveDefiniteError, ShapeError, check_not_negative, check_positive
from sdekit.targets._basis import EIGH, LARGEST, Basis, Reflected, check_size
from sdekit.targets._linear import as_float64, check_variances, eigen, is_single
from sdekit.targets._rows import Matrix
from sdekit.targets._texture import decompose, parse

__all__ = ["from_data", "resolve"]

STRUCTURED = "low_rank=(factor, variance) or spectrum=..., which never form it; or variance=..."


def resolve(mean: Any, forms: dict[str, Any]) -> tuple[Tensor, Tensor, Basis | None]:
    """(mean (*event,), values, basis) from the one form that is not None.

    Raises TypeError for more than one, or none.
    """
    given = [name for name, form in forms.items() if form is not None]
    if len(given) != 1:
        raise TypeError(
            f"exactly one of cov, variance, eigen, low_rank and spectrum must be given, got "
            f"{given or 'none'}. Next: Gaussian(mean, cov), Gaussian(mean, variance=1.0) or "
            f"Gaussian(mean, eigen=(values, basis))."
        )
    (name,) = given
    form, m = forms[name], as_float64(mean, "mean")
    if name == "variance" or (name == "cov" and torch.as_tensor(form).ndim == 0):
        return from_variance(m, form)
    basis: Basis
    if name == "spectrum":
        event, values, basis = from_spectrum(form)
        if m.shape not in ((), event):
            raise ShapeError(
                f"mean must be a number or have the shape of the spectrum's events {tuple(event)}, got "
                f"{tuple(m.shape)}. Next: mean[:, None, None].expand(C, H, W) for one mean a channel."
            )
    else:
        if name == "cov":
            values, basis = from_cov(form)
        else:
            values, basis = (from_eigen if name == "eigen" else from_low_rank)(*form)
        event = m.shape or torch.Size([len(values)])
    if event.numel() != len(values):
        raise ShapeError(
            f"the covariance must be (D, D) with D = {event.numel()}, the elements of mean "
            f"{tuple(event)}, got D = {len(values)}."
        )
    return m.expand(event), values, basis


def from_variance(m: Tensor, variance: Any) -> tuple[Tensor, Tensor, None]:
    """A number or (*event): a diagonal covariance, V = I."""
    v = as_float64(variance, "variance")
    event = m.shape or v.shape or torch.Size([1])
    if v.shape not in ((), event):
        raise ShapeError(
            f"variance must be a number or have the event shape {tuple(event)}, got "
            f"{tuple(v.shape)}. Likely cause: a covariance matrix. Next: pass it as cov."
        )
    return m.expand(event), check_variances(v, "variance").expand(event).reshape(-1).clone(), None


def from_cov(cov: Any) -> tuple[Tensor, Basis]:
    """C (D, D)."""
    c = as_float64(cov, "cov")
    if c.ndim != 2 or c.shape[0] != c.shape[1]:
        raise ShapeError(
            f"cov must have shape (D, D), got {tuple(c.shape)}. Likely cause: variances. Next: variance=..."
        )
    values, basis = eigen(c, is_single(cov))
    return values, Matrix(basis)


def from_eigen(values: Any, basis: Any) -> tuple[Tensor, Basis]:
    """V diag(values) V^T, V (D, D) orthogonal."""
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
    # squares a float32 basis's defect
    return check_variances(w, "eigenvalues"), Matrix(v - v @ defect / 2)


def from_low_rank(factor: Any, variance: Any) -> tuple[Tensor, Basis]:
    """U U^T + diag(d): U (D, k), d a number or (D,).

    With U = Q diag(s) W^T and d one number: eigenvalues s_i^2 + d on Q, d elsewhere. Any other diagonal has
    no eigenvectors short of a decomposition of the whole matrix.
    """
    u, d = as_float64(factor, "the factor of low_rank"), as_float64(variance, "the variance of low_rank")
    if u.ndim != 2 or d.shape not in ((), (1,), (len(u),)):
        raise ShapeError(
            f"low_rank must be (factor (D, k), variance), variance a number or (D,), got shapes "
            f"{tuple(u.shape)} and {tuple(d.shape)}. Next: factor.reshape(D, k), a column for each direction."
        )
    check_variances(d, "the variance of low_rank")
    if d.numel() > 1 and not bool((d == d[0]).all()):
        check_size(
            len(u),
            "a low-rank covariance with a diagonal that varies",
            EIGH,
            "one number for the diagonal, its mean say, whose eigenvectors need no D x D matrix",
        )
        return from_cov(u @ u.T + torch.diag(d))
    rest = float(d.flatten()[0])
    q, s, _ = torch.linalg.svd(u, full_matrices=False)
    return _with_rest(q, s * s + rest, rest)


def _with_rest(q: Tensor, values: Tensor, rest: float) -> tuple[Tensor, Basis]:
    """``values`` on the columns of Q (D, k), ``rest`` on what is orthogonal to them."""
    everywhere = torch.full((len(q),), rest, dtype=torch.float64)
    everywhere[: len(values)] = values
    return everywhere, Reflected(q)


def from_spectrum(spectrum: Any) -> tuple[torch.Size, Tensor, Basis]:
    """(event shape, values, basis) of a covariance that is stationary on a torus (see `_texture`)."""
    event, s = parse(spectrum)
    values, basis = decompose(s)
    return event, check_variances(values, "the eigenvalues of spectrum"), basis


def from_data(x: Tensor, floor: float) -> tuple[Tensor, Basis]:
    """(1/N) X^T X of centred data (N, D); eigenvalues below floor tr C/D are raised to it.

    Above D = `EIGH` only the N directions that the data span are found; the rest is at the floor.
    """
    n, d = x.shape
    if check_not_negative(floor, "floor") == 0:
        check_size(d, "the covariance", LARGEST, "a positive floor")
        return from_cov(x.T @ x / n)
    low = check_positive(floor, "floor") * float(x.square().sum()) / (n * d)
    if not low > 0:
        raise NotPositiveDefiniteError(
            "the data are constant, so they have no covariance. Likely cause: one sample repeated. "
            "Next: Gaussian(mean, variance=...)."
        )
    if d > EIGH and n < d:
        q, s, _ = torch.linalg.svd(x.T / n**0.5, full_matrices=False)
        return _with_rest(q, (s * s).clamp_min(low), low)
    check_size(d, "the covariance", LARGEST, STRUCTURED)
    values, basis = torch.linalg.eigh(x.T @ x / n)
    return values.clamp_min(low), Matrix(basis)
