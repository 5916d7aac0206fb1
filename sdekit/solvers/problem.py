"""What a run is made of, and what it gives back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from sdekit.errors import ShapeError, check_output
from sdekit.sde.base import ODE, SDE
from sdekit.solvers.base import Solver

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from sdekit.noise.source import Noise
    from sdekit.solvers.events import Event

    Floats = NDArray[np.float64]

__all__ = ["Counted", "Outcome", "Problem"]


class Counted:
    """The system as solvers see it: calls of the drift counted, its output checked at the first call."""

    def __init__(self, system: SDE | ODE) -> None:
        self.system = system
        self.calls = 0
        self._drift = _direct(system, "drift", "_drift" if isinstance(system, SDE) else "_velocity")
        if isinstance(system, SDE):
            self.apply_noise = system.apply_noise
            # One Brownian motion for all elements: the diffusion in full, so that it broadcasts by rows.
            scalar = system.noise_type == "scalar"
            self.diffusion = system.noise_field if scalar else _direct(system, "diffusion", "_diffusion")

    def drift(self, x: Tensor, t: Tensor) -> Tensor:
        self.calls += 1
        before = None if x.is_inference() else x._version
        out = self._drift(x, t)
        if before is not None and x._version != before:
            raise ValueError(
                "drift changed its input x in place, and x is the state of the run. Likely cause: an "
                "in-place operation (x.mul_, x += ...). Next: make it out of place, or wrap it: "
                "lambda x, t: drift(x.clone(), t)."
            )
        if self.calls == 1:
            check_output(out, x, "drift")
            if out.dtype != x.dtype:
                raise ShapeError(
                    f"drift returned {out.dtype} for a state of {x.dtype}. Likely cause: tensors of that "
                    f"dtype inside it. Next: convert them, or start from x0.to({out.dtype})."
                )
        return out


def _direct(system: SDE | ODE, name: str, given: str) -> Callable[[Tensor, Tensor], Tensor]:
    """A field of the system; the callable itself where one was given (t is a tensor of x's dtype already)."""
    method: Callable[[Tensor, Tensor], Tensor] = getattr(system, name)
    fn: Callable[[Tensor, Tensor], Tensor] | None = getattr(system, given, None)
    plain = getattr(method, "__func__", None) in (getattr(SDE, name), getattr(ODE, name, None))
    return method if fn is None or not plain else fn


@dataclass(frozen=True)
class Problem:
    """One run: all that the drivers (`fixed`, `adaptive`, `external`) read.

    grid: float64 nodes from t0 to t1, None for adaptive steps. save: the times asked for, in the
    direction of the run, () for none. report: called as report(step, t, x) after every step. seed: of the
    numbers that an event needs. within: which saved times are no nodes of the grid, None for none.
    """

    system: Counted
    solver: Solver
    x0: Tensor
    t0: float
    t1: float
    grid: Floats | None
    save: Floats
    noise: Noise
    ids: Tensor
    rtol: float
    atol: float
    max_steps: int
    gradient: str | None
    report: Callable[[int, float | Tensor, Tensor], None] | None = None
    event: Event | None = None
    seed: int = 0
    within: NDArray[np.bool_] | None = None


@dataclass(frozen=True)
class Outcome:
    """What a driver hands back. status, failed_at and failed_step as in `Solution`, on the host.

    cause: of the first failure, in words. event_at: (B,), None without an event.
    """

    x: Tensor
    xs: Tensor | None
    status: NDArray[np.int64]
    failed_at: Floats
    failed_step: NDArray[np.int64]
    accepted: int
    rejected: int = 0
    cause: str = ""
    event_at: Floats | None = None
