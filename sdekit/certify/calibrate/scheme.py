r"""Fitted: the predictor-corrector whose grid and coefficients `sdekit.calibrate` fits.

The scheme of `sdekit.samplers.trigonometric` in y = x/N, F, phi, with shifts a_i, b_ij, c_ij of step i:

    predict   p  = (1 + |dphi_i| a_i) y_i - sum_j w_ij F_j,               w_ij  = w0_ij  + dphi_i b_ij,
    correct   y' = (1 + |dphi_i| a_i) y_i - w'_i0 F' - sum_j w'_ij F_j,   w'_ij = w0'_ij + dphi_i c_ij,

w0 and w0' the weights of `KernelQuadrature` on the grid at hand.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, TypeAlias

import torch
from torch import Tensor

from sdekit._math import value
from sdekit._typing import Number
from sdekit.certify.calibrate.trajectories import Probe
from sdekit.samplers.base import Path, nodes_at
from sdekit.samplers.multistep import spaced
from sdekit.samplers.plan import Combine, Instruction, state
from sdekit.samplers.trigonometric import KernelQuadrature, Rule

__all__ = ["Cache", "Fitted", "Scheme", "Shift"]

#: ("growth" | "predictor" | "corrector", step, place): which shift.
Shift: TypeAlias = "tuple[str, int, int]"
Cache: TypeAlias = "tuple[list[Tensor], list[Tensor], list[tuple[Tensor, Tensor]]]"
_NAMES = ("growth", "predictor", "corrector")


@dataclass(frozen=True)
class Fitted(KernelQuadrature):
    """`KernelQuadrature` with shifts a_i (growth), b_ij (predictor) and c_ij (corrector); see above."""

    name: ClassVar[str] = "calibrated"
    reference: ClassVar[str] = "sdekit"

    growth: tuple[float, ...] = ()
    predictor: tuple[tuple[float, ...], ...] = ()
    corrector: tuple[tuple[float, ...], ...] = ()

    @staticmethod
    def shifted(steps: int, shifts: Mapping[Shift, float]) -> Fitted:
        """From shifts by name; those not named are zero."""
        table = {name: [[0.0] * 8 for _ in range(steps)] for name in _NAMES}
        for (name, i, j), amount in shifts.items():
            table[name][i][j] = amount
        predictor, corrector = (tuple(map(tuple, table[name])) for name in ("predictor", "corrector"))
        return Fitted(
            growth=tuple(row[0] for row in table["growth"]), predictor=predictor, corrector=corrector
        )

    def grown(self, path: Path, i: int, c: float) -> Number:
        """1 + |dphi_i| a_i; phi decreases."""
        shift = self.growth[i] if i < len(self.growth) else 0.0
        return 1.0 + shift * path.angle(i, i + 1, c)

    def weights(self, path: Path, rules: Sequence[Rule], c: float) -> list[Sequence[Number]]:
        """As `Trigonometric.weights`, shifted."""
        found: list[Sequence[Number]] = []
        for (i, nodes), w in zip(rules, super().weights(path, rules, c), strict=True):
            shifts = self.corrector if nodes[0] > i else self.predictor
            given = shifts[i] if i < len(shifts) else ()
            step = path.angle(i + 1, i, c)
            found.append([w_j + step * (given[j] if j < len(given) else 0.0) for j, w_j in enumerate(w)])
        return found

    def recipe(self, path: Path) -> Iterator[Instruction]:
        """That of `Trigonometric`, x_i multiplied by its growth in both formulas of step i."""
        steps = {name.format(i + 1): i for i in range(path.steps) for name in ("p[{}]", "x[{}]")}
        for ins in super().recipe(path):
            if isinstance(ins, Combine) and ins.out in steps:
                i = steps[ins.out]
                growth = self.grown(path, i, self.scale(path))
                terms = tuple((w * growth if name == state(i) else w, name) for w, name in ins.terms)
                ins = replace(ins, terms=terms)
            yield ins


class Scheme:
    """The tables of a `Fitted` on given times, and runs of it that may begin in the middle.

    tables: {"growth": (n, 1), "predictor": (n, k), "corrector": (n - 1, k + 1)} numbers, free to be changed.
    """

    def __init__(self, probe: Probe, times: Tensor, sampler: Fitted) -> None:
        self.probe, self.times, self.sampler = probe, times, sampler
        self.nodes = nodes_at(probe.model.process, times)
        path = Path(tuple(self.nodes), probe.data_std, probe.data_spread, probe.model.process)
        path = replace(path, predicts=probe.predicts)
        self.steps, self.c = path.steps, sampler.scale(path)
        k, m = sampler.history(path), sampler.behind(path)
        self.old = [spaced(i, max(k, m), lambda a, b: path.angle(a, b, self.c)) for i in range(self.steps)]
        predict = [(i, self.old[i][:k]) for i in range(self.steps)]
        correct = [(i, (i + 1, *self.old[i][:m])) for i in range(self.steps - 1)]
        self.width = [value(path.angle(i + 1, i, self.c)) for i in range(self.steps)]
        self.norm = [value(path.norm(i, self.c)) for i in range(self.steps + 1)]
        self.tables: dict[str, list[list[float]]] = {
            "growth": [[value(sampler.grown(path, i, self.c))] for i in range(self.steps)],
            "predictor": [[value(w) for w in row] for row in sampler.weights(path, predict, self.c)],
            "corrector": [[value(w) for w in row] for row in sampler.weights(path, correct, self.c)],
        }

    def run(self, start: Tensor, cache: Cache | None = None, i: int = 0, name: str = "predictor") -> Cache:
        """All y, all F and all (p, D) of a run; from step i on where ``cache`` holds the run before it.

        name: the table that differs at step i from that run. Where it is "corrector" p and D are its own.
        """
        if cache is None:
            y, d = start / self.norm[0], self.probe.evaluate("x0", start, self.nodes[0])
            ys, fs, calls = [y], [self._f(0, y, d)], [(y, d)]
        else:
            ys, fs, calls = cache[0][: i + 1], cache[1][: i + 1], cache[2][: i + 1]
        growth, predictor, corrector = (self.tables[table] for table in _NAMES)
        for k in range(i, self.steps):
            grown = growth[k][0] * ys[k]
            if cache is not None and k == i and name == "corrector":
                guess, d = cache[2][k + 1]
            else:
                guess = self._minus(grown, predictor[k], k, fs)
                if k + 1 == self.steps:
                    return [*ys, guess], fs, calls
                d = self.probe.evaluate("x0", guess * self.norm[k + 1], self.nodes[k + 1])
            first, *rest = corrector[k]
            y = self._minus(grown - first * self._f(k + 1, guess, d), rest, k, fs)
            ys, fs, calls = [*ys, y], [*fs, self._f(k + 1, y, d)], [*calls, (guess, d)]
        raise AssertionError("a grid has at least one step")

    def end(self, start: Tensor) -> Tensor:
        """x (N, *event) at the last time."""
        return self.run(start)[0][-1] * self.norm[-1]

    def _minus(self, y: Tensor, weights: Sequence[float], i: int, fs: list[Tensor]) -> Tensor:
        for w, j in zip(weights, self.old[i], strict=False):
            y = y - w * fs[j]
        return y

    def _f(self, i: int, y: Tensor, denoised: Tensor) -> Tensor:
        """F = N/(sigma c) D - (alpha c/sigma) y."""
        _, alpha, sigma, *_ = self.nodes[i]
        return self.norm[i] / (sigma * self.c) * denoised - alpha * self.c / sigma * y


def scheme(probe: Probe, ends: Tensor, log_rho: Tensor, shifts: Mapping[Shift, float]) -> Scheme:
    """The scheme on ends[0], the times of ln(sigma/alpha) = log_rho (n - 1,), ends[1]."""
    inner = probe.model.process.t_of_rho(log_rho.exp()) if len(log_rho) else log_rho
    times = torch.cat([ends[:1], inner, ends[1:]])
    return Scheme(probe, times, Fitted.shifted(len(times) - 1, shifts))
