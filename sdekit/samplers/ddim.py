"""DDIM: exact transport of a point mass, with any amount of noise."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from sdekit._math import sqrt
from sdekit.samplers.base import Path, Sampler, step
from sdekit.samplers.plan import Instruction, state

__all__ = ["DDIM"]


@dataclass(frozen=True)
class DDIM(Sampler):
    """x' = alpha' D + sqrt(sigma'^2 - c^2) eps + c xi,  c = eta sigma'/sigma sqrt(v).

    D = x0-prediction, eps = (x - alpha D)/sigma, v = sigma^2 - (alpha/alpha')^2 sigma'^2. eta = 0 is the
    first-order exponential integrator of the probability flow (DPM-Solver-1), eta = 1 is DDPM.
    eta is at most 1 / max(sqrt(v)/sigma), where the noise fills the marginal.
    """

    name: ClassVar[str] = "ddim"
    order: ClassVar[float] = 1
    reference: ClassVar[str] = "Song, Meng and Ermon 2021, equations 12 and 16"
    exact_for: ClassVar[frozenset[str]] = frozenset({"point"})

    eta: float = 0.0

    def recipe(self, path: Path) -> Iterator[Instruction]:
        for i in range(path.steps):
            (_, alpha, sigma, *_), (_, ahead, clean, *_) = path[i], path[i + 1]
            _, v = path.back(i, i + 1)
            part = self.eta * sqrt(v) / sigma  # of the marginal's standard deviation
            if part > 1:
                if part > 1 + 1e-12:
                    raise self._too_much(path, i)
                part = 1.0
            c = part * clean
            keep = clean * sqrt(1 - part * part) / sigma
            yield path.evaluate(f"D[{i}]", state(i), i)
            yield step(i, [(keep, state(i)), (ahead - alpha * keep, f"D[{i}]")], [(c, i)])

    def _too_much(self, path: Path, i: int) -> ValueError:
        """The error for an eta beyond what step i, and the whole grid, can hold."""
        filled = [sqrt(path.back(j, j + 1)[1]) / path[j].sigma for j in range(path.steps)]
        most = 1 / max(float(part) for part in filled)
        return ValueError(
            f"ddim with eta = {self.eta:g} would inject more noise than step {i} of this grid may hold "
            f"({float(self.eta * filled[i]):.4g} times the marginal's). Next: eta <= {most:.4g}."
        )
