r"""Traces of Jacobians by backward products, row by row.

For F: R^D -> R^D in each row, with J = dF/dy there,

    tr J = sum_j e_j . J^T e_j          (exact, D products),
    E[v . J^T v] = tr J                 for E[v v^T] = I (one product a probe).

Hutchinson 1989 for Rademacher probes, v_i = +-1 (variance 2 sum_{i<j} (J_ij + J_ji)^2/2: the diagonal
counts for nothing); Gaussian probes pay for the diagonal too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sdekit.errors import CapabilityError, ShapeError, check_count, unknown_name
from sdekit.noise import Philox, Purpose
from sdekit.sde.rows import fold

__all__ = ["Exact", "Probed", "Trace", "check_densities", "check_differentiable", "probes_for"]

LAWS = ("rademacher", "gaussian")
ELEMENTS = 2**22
"""Elements of the products taken at once."""
KEPT = 64
"""The largest D whose Jacobian is kept."""


class Trace:
    """``trace(fn, y, rows)`` -> (fn(y), estimates of the trace); see `Exact` and `Probed`.

    width: estimates a row, K. rows: J of the last call where it is known, (D, B, D), row by row.
    """

    width: int = 1

    def __init__(self) -> None:
        self._together = True
        self.rows: Tensor | None = None

    def __call__(self, fn: Callable[[Tensor], Tensor], y: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """fn: (B, D) -> (B, D), rows independent; y: (B, D); rows: (B,), which rows of the run they are.

        Returns fn(y) (B, D) and (B, K). With a graph only where autograd is on.
        """
        raise NotImplementedError

    def _value(self, fn: Callable[[Tensor], Tensor], y: Tensor) -> tuple[Tensor, Tensor, bool]:
        """y as a variable, fn(y), and whether a graph is wanted."""
        keep = torch.is_grad_enabled()
        with torch.enable_grad():
            at = y if keep and y.requires_grad else y.detach().requires_grad_()
            out = fn(at)
        return at, out, keep

    def _pull(self, out: Tensor, at: Tensor, v: Tensor, keep: bool) -> Tensor:
        """J^T v for each v: (K, B, D) -> (K, B, D); together where torch can, else one by one."""
        options: dict[str, Any] = {
            "retain_graph": True,
            "create_graph": keep,
            "allow_unused": True,
            "materialize_grads": True,
        }
        if self._together and len(v) > 1:
            try:
                return torch.autograd.grad(out, at, v, is_grads_batched=True, **options)[0]
            except RuntimeError:  # an operation without a batching rule; what else failed fails again below
                self._together = False
        return torch.stack([torch.autograd.grad(out, at, one, **options)[0] for one in v])


class Exact(Trace):
    """tr J from D products, for any event shape; J itself up to D = 64."""

    def __call__(self, fn: Callable[[Tensor], Tensor], y: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        at, out, keep = self._value(fn, y)
        batch, size = y.shape
        chunk = max(1, ELEMENTS // max(1, batch * size))
        diagonal, jacobian = [], []
        for first in range(0, size, chunk):
            index = torch.arange(first, min(first + chunk, size), device=y.device)
            v = torch.zeros(len(index), batch, size, dtype=out.dtype, device=y.device)
            v[torch.arange(len(index), device=y.device), :, index] = 1.0
            pulled = self._pull(out, at, v, keep)
            diagonal.append(pulled.gather(2, index[:, None, None].expand(-1, batch, 1))[..., 0])
            if size <= KEPT:
                jacobian.append(pulled)
        self.rows = torch.cat(jacobian) if jacobian else None
        trace = fold(torch.cat(diagonal).movedim(0, 1))[:, None]
        return (out if keep else out.detach()), trace


class Probed(Trace):
    """K estimates v_k . J^T v_k, for fixed probes v (N, K, D) of the N rows of the run."""

    def __init__(self, probes: Tensor) -> None:
        super().__init__()
        self.probes, self.width = probes, probes.shape[1]

    def __call__(self, fn: Callable[[Tensor], Tensor], y: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        at, out, keep = self._value(fn, y)
        v = self.probes[rows].movedim(1, 0)
        estimates = fold(self._pull(out, at, v, keep) * v).movedim(0, 1)
        return (out if keep else out.detach()), estimates


def probes_for(ids: Tensor, size: int, count: int, law: str, seed: int) -> Tensor:
    """Probes (B, count, size) float64 of samples ``ids``, functions of (seed, id, number) alone.

    law: "rademacher", signs of normals, or "gaussian". Raises UnknownNameError, ValueError.
    """
    if law not in LAWS:
        raise unknown_name("law of probes", law, LAWS)
    count = check_count(count, "probes")
    like = torch.empty(len(ids), size, dtype=torch.float64, device=ids.device)
    source = Philox(seed)
    v = torch.stack([source.normal(k, like, ids, Purpose.PROBES) for k in range(count)], dim=1)
    return v if law == "gaussian" else torch.where(v >= 0, 1.0, -1.0).to(v)


def check_differentiable(out: Tensor, given: Tensor) -> None:
    """The network's output must be in the graph of its input. Raises CapabilityError."""
    if given.requires_grad and not out.requires_grad:
        raise CapabilityError(
            "the network's output has no derivative in x, and the density needs its trace. Likely cause: "
            "torch.no_grad or .detach() inside the network, or a function written in numpy. Next: take them "
            "out; a prediction that is constant on purpose: c + 0 * x."
        )


def check_densities(value: object, x: Tensor, role: str) -> Tensor:
    """A log-density must be (B,), floating. Raises ShapeError."""
    if not isinstance(value, Tensor) or value.shape != x.shape[:1]:
        got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise ShapeError(
            f"{role} must return one log-density for each sample, shape ({len(x)},), got {got}. Likely "
            f"cause: densities of elements. Next: sum them over the event, or wrap the law in "
            f"torch.distributions.Independent."
        )
    return value
