"""What `estimate` returns: a mean, how far chance and the step may have moved it, and what it cost."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

__all__ = ["Estimate", "Level"]


@dataclass(frozen=True)
class Level:
    """One level of a multilevel sum: E[P_l - P_(l-1)], or E P_0 on the first.

    steps: of the finer run. samples: how many. mean, variance: of one difference, () or (k,) float64.
    cost: calls of the drift for one sample, both runs together.
    """

    level: int
    steps: int
    samples: int
    mean: Tensor
    variance: Tensor
    cost: float


@dataclass(frozen=True)
class Estimate:
    """The estimate of E f(X), with f(X) one number, or k of them for each sample.

    Tensors are float64 of shape () or (k,). value: the estimate at the finest step. stderr: its standard
    error. interval: (low, high), where E of the discretised f lies with probability ``confidence``. bias: the
    estimated E f(X_h) - E f(X); bias_stderr: its standard error. corrected: value - bias (Richardson), with
    corrected_stderr. samples: in all. steps: of the finest run. cost: calls of the drift, counted by sample.
    levels: of method "mlmc", else ().
    """

    method: str
    value: Tensor
    stderr: Tensor
    interval: tuple[Tensor, Tensor]
    confidence: float
    bias: Tensor
    bias_stderr: Tensor
    corrected: Tensor
    corrected_stderr: Tensor
    samples: int
    steps: int
    cost: int
    levels: tuple[Level, ...] = ()

    def __repr__(self) -> str:
        work = f"{self.samples} samples, {self.steps} steps, cost {self.cost:.3g}"
        lines = [f"Estimate by {self.method!r}: {work}"]
        columns = (
            *(self.value, self.stderr, *self.interval, self.bias, self.bias_stderr),
            *(self.corrected, self.corrected_stderr),
        )
        for i, row in enumerate(zip(*(c.reshape(-1).tolist() for c in columns), strict=True)):
            name = f"f[{i}]" if self.value.ndim else "f"
            lines += [
                f"{name} = {row[0]:.6g} +- {row[1]:.2g}, {100 * self.confidence:g} % in "
                f"[{row[2]:.6g}, {row[3]:.6g}]",
                f"    bias of the step {row[4]:.2g} +- {row[5]:.2g}; corrected {row[6]:.6g} +- {row[7]:.2g}",
            ]
        if self.levels:
            lines.append("level   steps    samples        mean    variance    cost")
        for level in self.levels:
            mean, variance = (float(v.reshape(-1)[0]) for v in (level.mean, level.variance))
            lines.append(
                f"{level.level:5} {level.steps:7} {level.samples:10} {mean:11.3g} {variance:11.3g} "
                f"{level.cost:7.4g}"
            )
        return "\n".join(lines)

    __str__ = __repr__
