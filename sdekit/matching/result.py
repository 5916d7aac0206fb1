"""What a training run returns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

__all__ = ["FitResult"]


@dataclass(frozen=True)
class FitResult:
    """What `fit` returns.

    model: the score model, with the averaged weights, in evaluation mode: a `Denoiser` (a `ClassDenoiser` for
    a network of classes); the network itself where there is no process with alpha(t) and sigma(t).
    losses: (steps,) training loss of each step, a mean over batch and elements (1 = an eps network that
    returns 0). held_out: (K,) loss of the averaged weights on the held-out data after the steps
    ``held_out_steps`` (K,), always on the same times and noise; empty without held-out data. seconds: wall
    time, that before a resumption included.
    """

    model: Any
    losses: Tensor
    held_out: Tensor
    held_out_steps: Tensor
    seconds: float
    parameters: int = 0

    def __repr__(self) -> str:
        held = f", held-out {float(self.held_out[-1]):.4g}" if len(self.held_out) else ""
        tail = self.losses[-max(len(self.losses) // 10, 1) :]
        return (
            f"FitResult({self.parameters:,} parameters, {len(self.losses)} steps, loss "
            f"{float(tail.mean()):.4g}{held}, {self.seconds:.3g} s)"
        )
