"""Linear equations with linear noise in several dimensions."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sdekit._typing import Number
from sdekit.errors import CapabilityError, ShapeError
from sdekit.sde.base import SDE
from sdekit.sde.classic._door import elapsed
from sdekit.sde.rows import constant, matvec

__all__ = ["MultiplicativeLinear"]


class MultiplicativeLinear(SDE):
    """dX = A X dt + sum_k B_k X dW_k (Ito).

    A: (D, D); B: (m, D, D). States are (B, D). The noise type is "commutative" where the B_k commute with
    one another, "general" otherwise. Where A commutes with them too (`commutes`),
    X_t = exp((A - (1/2) sum B_k^2) t + sum B_k W_k) x0; the first two moments are known always:

        E X = e^(A t) x0,   d E XX^T/dt = A M + M A^T + sum B_k M B_k^T,  M = E XX^T.

    Kloeden and Platen 1992, section 4.8. Raises ShapeError for shapes that do not fit, NonFiniteError
    for NaN.
    """

    def __init__(self, A: Any, B: Any) -> None:
        a, b = constant(A, "A"), constant(B, "B")
        if a.ndim != 2 or a.shape[0] != a.shape[1]:
            raise ShapeError(f"A must have shape (D, D), got {tuple(a.shape)}.")
        if b.ndim != 3 or b.shape[0] == 0 or b.shape[1:] != a.shape:
            raise ShapeError(
                f"B must have shape (m, D, D) with D = {a.shape[0]} from A, got {tuple(b.shape)}. Next: "
                f"torch.stack([B_1, ..., B_m])."
            )
        self.A, self.B = a, b.to(a.device)
        among = _commute(self.B, self.B)
        self._commutes = among and _commute(a[None], self.B)
        super().__init__(noise_type="commutative" if among else "general", noise_dim=b.shape[0])

    @property
    def dimension(self) -> int:
        """D, the size of a state."""
        return self.A.shape[0]

    @property
    def commutes(self) -> bool:
        """Whether A and all B_k commute, so that `solution` holds."""
        return self._commutes

    def _check_rows(self, x: Tensor) -> None:
        if x.ndim != 2 or x.shape[1] != self.dimension:
            raise ShapeError(f"x must have shape (B, {self.dimension}), got {tuple(x.shape)}.")

    def drift(self, x: Tensor, t: Number) -> Tensor:
        """A x, (B, D)."""
        self._check_rows(x)
        return matvec(self.A, x)

    def diffusion(self, x: Tensor, t: Number) -> Tensor:
        """The columns B_k x, (B, D, m)."""
        self._check_rows(x)
        return torch.stack([matvec(b, x) for b in self.B], dim=2)

    def divergence_ggt(self, x: Tensor, t: Number) -> Tensor:
        """sum_k (B_k + tr B_k) B_k x, (B, D)."""
        self._check_rows(x)
        trace = torch.einsum("kii->k", self.B)
        return matvec((self.B @ self.B + trace[:, None, None] * self.B).sum(0), x)

    def correction(self, x: Tensor, t: Number) -> Tensor:
        """(1/2) sum_k B_k^2 x, (B, D)."""
        self._check_rows(x)
        return matvec(0.5 * (self.B @ self.B).sum(0), x)

    def solution(self, x0: Tensor, t: Number, w: Tensor) -> Tensor:
        """X_t on the path with X_0 = x0 and W_t = w, (B, D); w: (B, m); t: () or (B,).

        Raises CapabilityError where the matrices do not commute: X_t is then no function of W_t.
        """
        self._check_rows(x0)
        if not self.commutes:
            raise CapabilityError(
                "A and the B_k do not commute, so X_t depends on the whole path, not on W_t alone. Next: "
                "mean(x0, t) and second_moment(x0, t), which hold always."
            )
        h = elapsed(x0, 0.0, t)[..., None].to(x0.device)
        fixed = (self.A - 0.5 * (self.B @ self.B).sum(0)).to(x0.device)
        turned = torch.einsum("bk,kij->bij", w.to(torch.float64), self.B.to(x0.device))
        flow = torch.linalg.matrix_exp(h * fixed + turned)
        return torch.einsum("bij,bj->bi", flow, x0.to(torch.float64)).to(x0.dtype)

    def mean(self, x0: Tensor, t: float) -> Tensor:
        """E X_t = e^(A t) x0, (B, D)."""
        self._check_rows(x0)
        return matvec(torch.linalg.matrix_exp(self.A * float(t)), x0)

    def _second_generator(self) -> Tensor:
        """A (+) A + sum_k B_k (x) B_k, on vec M, (D^2, D^2)."""
        identity = torch.eye(self.dimension, dtype=self.A.dtype, device=self.A.device)
        drift = torch.kron(self.A, identity) + torch.kron(identity, self.A)
        return drift + sum(torch.kron(b, b) for b in self.B)

    def second_moment(self, x0: Tensor, t: float) -> Tensor:
        """E X_t X_t^T, (B, D, D)."""
        self._check_rows(x0)
        flow = torch.linalg.matrix_exp(self._second_generator() * float(t))
        outer = (x0[:, :, None] * x0[:, None, :]).reshape(x0.shape[0], -1)
        return matvec(flow, outer).reshape(x0.shape[0], self.dimension, self.dimension)

    @property
    def mean_square_rate(self) -> float:
        """The rate at which E |X|^2 grows at last, the spectral abscissa on second moments: < 0 if stable."""
        return float(torch.linalg.eigvals(self._second_generator().detach()).real.max())

    def __repr__(self) -> str:
        return f"MultiplicativeLinear(D={self.dimension}, m={self.noise_dim}, {self.noise_type})"


def _commute(p: Tensor, q: Tensor) -> bool:
    """Whether every matrix of p commutes with every one of q, to rounding."""
    p, q = p.detach()[:, None], q.detach()[None, :]
    size = torch.linalg.matrix_norm(p) * torch.linalg.matrix_norm(q)
    return bool((torch.linalg.matrix_norm(p @ q - q @ p) <= 1e-13 * p.shape[-1] * size).all())
