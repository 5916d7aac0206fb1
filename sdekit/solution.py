"""What `sample` and `solve` return: the state reached, the work it cost, and how each sample ended."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from sdekit._typing import Array

__all__ = ["Solution", "Stats", "Status"]


class Status(IntEnum):
    """How one sample ended."""

    OK = 0
    NON_FINITE = 1
    MAX_STEPS = 2
    STEP_UNDERFLOW = 3
    NOT_CONVERGED = 4


@dataclass(frozen=True)
class Stats:
    """Work, counted in one place.

    nfe: calls of the model or drift one after another on a whole batch (for per-sample step control: on the
    rows still running). steps: intervals tried, accepted + rejected. seconds: wall time. sweeps: of a run
    parallel in time, its calls (then also nfe), else 0. evaluations: rows that the network was given in
    all; counted by plans, 0 elsewhere.
    """

    nfe: int = 0
    steps: int = 0
    accepted: int = 0
    rejected: int = 0
    seconds: float = 0.0
    sweeps: int = 0
    evaluations: int = 0


@dataclass(frozen=True)
class Solution:
    """The result of `sample` or `solve`.

    x: (B, *event), the state at the end. ts: the times at which `xs` was saved, or the two ends.
    xs: (len(ts), B, *event) when saving was asked for, else None. status: (B,) int64, see `Status`.
    failed_at: (B,) float64, the time at which a sample failed, NaN where it did not or is not known.
    failed_step: (B,) int64, the step, -1 likewise. event_at: (B,) float64, the time of the event, NaN
    where there was none; None in a run without ``event``.
    """

    x: Tensor
    ts: Tensor
    xs: Tensor | None = None
    stats: Stats = field(default_factory=Stats)
    status: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))
    failed_at: Tensor | None = None
    failed_step: Tensor | None = None
    event_at: Tensor | None = None

    @property
    def ok(self) -> bool:
        """True when every sample ended well."""
        return not bool(self.status.any())

    def numpy(self) -> Array:
        """``x`` as a numpy array on the host, detached."""
        x = self.x.detach().cpu()
        return (x.float() if x.dtype in (torch.bfloat16, torch.float16) else x).numpy()

    def __repr__(self) -> str:
        bad = int((self.status != 0).sum())
        ends = f"{bad} of {self.status.numel()} failed" if bad else "all ok"
        return (
            f"Solution(x: {tuple(self.x.shape)} {str(self.x.dtype).removeprefix('torch.')}, "
            f"nfe={self.stats.nfe}, steps={self.stats.steps}, "
            f"{self.stats.seconds:.3g} s, {ends})"
        )
