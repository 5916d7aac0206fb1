"""A posterior of many data: mini-batches as pure functions of the seed, and the gradients they give."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sdekit.errors import NonFiniteError, ShapeError, check_call, check_count, check_state, out_of_place
from sdekit.noise import Purpose
from sdekit.noise.philox import derive_key, words
from sdekit.sde.rows import flat, matvec

__all__ = ["Posterior", "plain", "preconditioned"]


class Posterior:
    r"""p(x | y_1..y_N) ~ p(x) prod_i p(y_i | x), seen through batches of n data:

        g = grad log p(x) + l,   l = (N/n) sum_{i in batch} grad log p(y_i | x);

    with a centre x_c, l is l(x) - l(x_c) + (the sum over all data at x_c). batch_size: n, None for all data.
    """

    def __init__(
        self, likelihood: Any, prior: Any, data: Any, x: Tensor, ids: Tensor, batch_size: int | None,
        centre: Any, seed: int,
    ) -> None:  # fmt: skip
        for name, fn, call in (
            ("log_likelihood", likelihood, "(x, *rows) -> (B, n)"),
            ("log_prior", prior, "(x) -> (B,), or None"),
        ):
            if not callable(fn) and (fn is not None or fn is likelihood):
                raise TypeError(f"{name} must be a function {call}, got {type(fn).__name__}.")
        self.of_data, self.prior, self.rows, self.ids = likelihood, prior, _tables(data, x), ids
        self.total, self.every = len(self.rows[0]), batch_size is None
        self.size = self.total if batch_size is None else check_count(batch_size, "batch_size")
        self.key = derive_key(seed, Purpose.TRAINING)
        self.anchor = None if centre is None else _centre(centre, x)
        self.offset = None if self.anchor is None else self._slope(self.anchor, self._all(), 1.0)

    def batch(self, k: int) -> list[Tensor]:
        """Batch k of each chain, (B, n, *): all data, or row floor(N w/2^32) for a word w."""
        if self.every:
            return self._all()
        w = words(self.key, k, self.ids, 4 * -(-self.size // 4)).flatten(1)[:, : self.size]
        index = (w * self.total) >> 32
        return [r[index] for r in self.rows]

    def likelihood(self, x: Tensor, batch: list[Tensor]) -> Tensor:
        """l, shape of x."""
        scale = self.total / self.size
        slope = self._slope(x, batch, scale)
        if self.anchor is None or self.offset is None:
            return slope
        return slope - self._slope(self.anchor, batch, scale) + self.offset

    def gradient(self, x: Tensor, batch: list[Tensor], likelihood: Tensor | None = None) -> Tensor:
        """g, shape of x. likelihood: l, where it is known."""
        slope = self.likelihood(x, batch) if likelihood is None else likelihood
        if self.prior is None:
            return slope
        with torch.enable_grad():
            y = x.detach().requires_grad_()
            values = out_of_place(self.prior, y, "log_prior")
            (own,) = torch.autograd.grad(_shaped(values, x.shape[:1], "log_prior").sum(), y)
        return slope + own

    def curvature(self, x: Tensor, batch: list[Tensor]) -> Tensor:
        """dl_i/dx_i of each element i, shape of x: as many derivatives of l as an event has elements."""
        out = torch.zeros_like(flat(x))
        with torch.enable_grad():
            y = x.detach().requires_grad_()
            slope = self._slope(y, batch, self.total / self.size, twice=True)
            for i in range(out.shape[1]) if slope.requires_grad else ():
                column = flat(slope)[:, i].sum()
                (row,) = torch.autograd.grad(column, y, retain_graph=True, materialize_grads=True)
                out[:, i] = flat(row)[:, i]
        return out.view_as(x)

    def _all(self) -> list[Tensor]:
        """All data for each chain, (B, N, *), without a copy."""
        return [r.expand(len(self.ids), *r.shape) for r in self.rows]

    def _values(self, x: Tensor, batch: list[Tensor]) -> Tensor:
        try:
            out: Tensor = self.of_data(x, *batch)
        except TypeError:
            names = [f"rows_{i}" for i in range(1, len(batch) + 1)] if len(batch) > 1 else ["rows"]
            cause = f"the data are {len(batch)} tables; a list is one of tables, not of rows"
            check_call(self.of_data, ("x", *names), "log_likelihood", cause, "torch.as_tensor(rows) for one")
            raise
        return out

    def _slope(self, x: Tensor, batch: list[Tensor], scale: float, twice: bool = False) -> Tensor:
        """scale * sum of the gradients of the log-likelihoods, shape of x."""
        with torch.enable_grad():
            y = x if twice else x.detach().requires_grad_()
            values = out_of_place(lambda z: self._values(z, batch), y, "log_likelihood")
            values = _shaped(values, batch[0].shape[:2], "log_likelihood")
            (out,) = torch.autograd.grad(scale * values.sum(), y, create_graph=twice)
        return out


def _shaped(out: Any, shape: torch.Size, name: str) -> Tensor:
    if not isinstance(out, Tensor) or out.shape != shape:
        got = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
        what = "(B, n), one number a row of each chain's batch" if len(shape) == 2 else "(B,), one a chain"
        raise ShapeError(
            f"{name} must return shape {tuple(shape)}, {what}, got {got}. Likely cause: a sum too many or "
            f"too few, or parameters (B, D) against features (B, n, D). Next: (features * "
            f"x[:, None]).sum(-1)."
        )
    if not out.requires_grad:
        flat_one = ", or log_prior=None for a flat one" if name == "log_prior" else ""
        raise ValueError(
            f"{name} has no gradient in x. Likely cause: x.detach(), numpy, or numbers that do not depend on "
            f"x. Next: operations of torch on x{flat_one}."
        )
    return out


def plain(x: Tensor) -> Tensor:
    """x, or a copy of it where it was made within torch.inference_mode(), which autograd refuses."""
    return x.clone() if x.is_inference() else x


def _tables(data: Any, x: Tensor) -> list[Tensor]:
    rows = [torch.as_tensor(r, device=x.device) for r in (data if isinstance(data, list | tuple) else [data])]
    if not rows or any(r.ndim < 1 for r in rows) or len({len(r) for r in rows}) != 1 or len(rows[0]) == 0:
        shapes = [tuple(r.shape) for r in rows]
        raise ShapeError(
            f"data must be tensors of one and the same number N >= 1 of rows, got {shapes}. Likely cause: "
            f"features without their labels, or a list of data. Next: torch.stack(list), or (features, "
            f"labels)."
        )
    if len(rows[0]) >= 2**31:
        raise ShapeError(f"data must have fewer than 2^31 rows, got {len(rows[0])}.")
    for i, r in enumerate(rows):
        if r.is_floating_point() and not bool(torch.isfinite(r).all()):
            raise NonFiniteError(f"data {i} holds NaN or infinity. Next: drop or repair those rows.")
    return [plain(r.to(x.dtype) if r.is_floating_point() else r) for r in rows]


def _centre(centre: Any, x: Tensor) -> Tensor:
    c = check_state(torch.as_tensor(centre)[None], "centre")
    if c.shape[1:] != x.shape[1:]:
        raise ShapeError(f"centre must have shape {tuple(x.shape[1:])}, got {tuple(c.shape[1:])}.")
    return plain(c.detach().to(x)).expand_as(x)


def preconditioned(m: Any, x: Tensor) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
    """z -> M z and z -> M^(1/2) z for states; the root by Cholesky for a matrix."""
    if m is None:
        return (lambda z: z), (lambda z: z)
    matrix = torch.as_tensor(m, dtype=torch.float64, device=x.device).detach()
    event, size = x.shape[1:], flat(x).shape[1]
    if matrix.ndim == 0 or matrix.shape == event:
        if not bool(((matrix > 0) & torch.isfinite(matrix)).all()):
            raise ValueError("preconditioner must be finite and > 0 in every element. Next: variances.")
        scale, root = matrix.to(x.dtype), matrix.sqrt().to(x.dtype)
        return (lambda z: z * scale), (lambda z: z * root)
    if matrix.shape != (size, size):
        raise ShapeError(
            f"preconditioner must be a number, the diagonal {tuple(event)} or a matrix ({size}, {size}), got "
            f"shape {tuple(matrix.shape)}."
        )
    factor, info = torch.linalg.cholesky_ex(matrix)
    if int(info) or not torch.allclose(matrix, matrix.T, rtol=1e-6, atol=0.0):
        raise ValueError(
            "preconditioner must be symmetric and positive definite. Likely cause: a curvature that is not "
            "the mode's. Next: the inverse of minus the Hessian of log p at the mode."
        )
    full, root = matrix.to(x.dtype), factor.to(x.dtype)
    return (lambda z: matvec(full, flat(z)).view_as(z)), (lambda z: matvec(root, flat(z)).view_as(z))
