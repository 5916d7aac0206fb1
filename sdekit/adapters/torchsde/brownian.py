"""Brownian paths between torchsde and here."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sdekit.errors import CapabilityError, check_count
from sdekit.noise import BrownianTree, Noise
from sdekit.noise.brownian import Increments
from sdekit.solvers import Solver

if TYPE_CHECKING:
    from jaxtyping import Int64

    from sdekit._typing import State
    from sdekit.noise._times import Times

__all__ = ["BrownianForTorchsde", "noise_of"]


def noise_of(bm: Any, solver: Solver, adaptive: bool) -> Noise | None:
    """``bm`` of torchsde's sdeint as the noise of a run. Raises CapabilityError where it knows too little,
    TypeError for what is neither."""
    if bm is None or isinstance(bm, Noise):
        return bm
    if not callable(bm):
        raise TypeError(
            f"bm must be a path of torchsde's kind, bm(ta, tb), or a Noise, got {type(bm).__name__}. "
            f"Next: seed= for a number, or bm=sdekit.BrownianTree(seed)."
        )
    if adaptive:
        raise CapabilityError(
            "adaptive=True asks the path of each sample at times of its own, which this bm cannot answer. "
            "Next: bm=sdekit.BrownianTree(seed)."
        )
    if solver.normals > 1 and getattr(bm, "levy_area_approximation", "none") == "none":
        raise CapabilityError(
            f"{solver.name!r} needs the space-time Levy area, and this bm has none. Next: "
            f"levy_area_approximation='space-time'."
        )
    if solver.normals > 2:
        raise CapabilityError(
            f"{solver.name!r} needs more than this bm knows. Next: bm=sdekit.BrownianTree(seed)."
        )
    return _Given(bm=bm, area=solver.normals > 1)


@dataclass(frozen=True)
class _Given(BrownianTree):
    """Another library's Brownian path, as the one of a run: its increments W, and H = U/h - W/2."""

    bm: Any = None
    area: bool = False

    def steps(self, ts: Times, like: State, ids: Int64[Tensor, " B"]) -> Increments:
        """(h, W, H, 0) over each step; ``ids`` are the rows of bm."""
        nodes = torch.as_tensor(ts, dtype=like.dtype, device=like.device)
        found = [self._one(a, b, like) for a, b in pairwise(nodes)]
        return Increments(*(torch.stack(parts) for parts in zip(*found, strict=True)))

    def _one(self, a: Tensor, b: Tensor, like: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        h, none = (b - a).reshape((1,) * like.ndim), torch.zeros_like(like)
        if not self.area:
            return h, self.bm(a, b).reshape(like.shape), none, none
        w, u = (v.reshape(like.shape) for v in self.bm(a, b, return_U=True)[:2])
        return h, w, u / h - 0.5 * w, none


class BrownianForTorchsde:
    """A `BrownianTree` as torchsde's ``bm``: bm(ta, tb) is W, bm(ta, tb, return_U=True) is (W, U).

    U = int_ta^tb (W_s - W_ta) ds = h (H + W/2). shape: (B, m). Row i is sample ``first_id + i`` of the tree.
    The path is rough, so two runs on it agree as far as their times do to the last bit: take dt = 1/2^k.
    """

    levy_area_approximation = "space-time"

    def __init__(
        self,
        tree: BrownianTree,
        shape: tuple[int, int],
        *,
        first_id: int = 0,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
    ) -> None:
        self.tree, self._like = tree, torch.empty(shape, dtype=dtype, device=device)
        first = check_count(first_id, "first_id", minimum=0)
        self._ids = first + torch.arange(shape[0], device=self._like.device)
        self.shape, self.dtype, self.device = self._like.shape, dtype, self._like.device

    def size(self) -> torch.Size:
        """(B, m)."""
        return self.shape

    def __call__(
        self, ta: Any, tb: Any = None, return_U: bool = False, return_A: bool = False
    ) -> Tensor | tuple[Tensor, Tensor]:
        """W over [ta, tb], (B, m), with U if wanted. Raises CapabilityError for return_A."""
        if return_A:
            raise CapabilityError(
                "the area of two motions is not offered here. Next: BrownianTree.levy_area."
            )
        start, end = (0.0, float(ta)) if tb is None else (float(ta), float(tb))
        found = self.tree.increments(start, end, self._like, self._ids)
        return (found.W, found.h * (found.H + 0.5 * found.W)) if return_U else found.W
