"""DPM-Solver++: multistep exponential integrators for the x0-prediction in half log-SNR."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from sdekit.samplers.base import Path, Sampler, step
from sdekit.samplers.plan import Instruction, state

__all__ = ["DPMpp2M"]


@dataclass(frozen=True)
class DPMpp2M(Sampler):
    """x' = (sigma'/sigma) x + (alpha' - alpha sigma'/sigma) [(1 + r) D_i - r D_{i-1}].

    r = h_i / (2 h_{i-1}), h_i = lambda_{i+1} - lambda_i, and alpha' - alpha sigma'/sigma is
    -alpha' expm1(-h_i). D_i is the x0-prediction at node i. The first step, and any step whose history
    reaches alpha = 0 (h infinite, r = 0), is of first order, and so is a step to sigma' = 0: x' = alpha' D.
    """

    name: ClassVar[str] = "dpmpp-2m"
    order: ClassVar[int] = 2
    reference: ClassVar[str] = "Lu et al. 2022 (DPM-Solver++), algorithm 2"

    def recipe(self, path: Path) -> Iterator[Instruction]:
        lam = path.lam
        for i in range(path.steps):
            (_, alpha, sigma, *_), (_, ahead, clean, *_) = path[i], path[i + 1]
            shrink = clean / sigma
            gain = ahead - alpha * shrink
            r = (lam[i + 1] - lam[i]) / (2 * (lam[i] - lam[i - 1])) if i and clean != 0 else 0.0
            yield path.evaluate(f"D[{i}]", state(i), i)
            history = [(-gain * r, f"D[{i - 1}]")] if i else []
            yield step(i, [(shrink, state(i)), (gain * (1 + r), f"D[{i}]"), *history])
