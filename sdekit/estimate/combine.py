"""From samples on several grids to an `Estimate`."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from sdekit.estimate.coupled import Experiment
from sdekit.estimate.multilevel import multilevel
from sdekit.estimate.result import Estimate, Level

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

__all__ = ["from_levels", "from_pairs"]


def from_pairs(
    run: Experiment, method: str, fine: Floats, coarse: Floats, order: float, samples: int, confidence: float
) -> Estimate:
    """From independent rows of f at h and at 2 h, (N, k) each."""
    shift = (coarse - fine) / (2.0**order - 1.0)
    value, bias, corrected = _mean(fine), _mean(shift), _mean(fine - shift)
    reach = _quantile(confidence, len(fine) - 1) * value[1]
    steps = 2 * (run.nodes.size - 1)
    return _result(run, method, value, reach, confidence, bias, corrected, samples=samples, steps=steps)


def from_levels(
    run: Experiment, tolerance: float, samples: int, order: float, max_levels: int, confidence: float
) -> Estimate:
    """From the levels of `multilevel`; degrees of freedom by Welch and Satterthwaite."""
    strong = getattr(run.solver, "strong_order", None)
    stages = multilevel(run, tolerance, samples, order, strong, max_levels)
    means, variances = np.stack([s.mean() for s in stages]), np.stack([s.variance() for s in stages])
    sizes = np.array([[s.size] for s in stages])
    parts = variances / sizes
    total, last, ratio = parts.sum(axis=0), parts[-1], 2.0**order - 1.0
    freedom = total**2 / np.maximum((parts**2 / (sizes - 1)).sum(axis=0), np.finfo(float).tiny)
    reach = _quantile(confidence, np.maximum(freedom, 1.0)) * np.sqrt(total)
    value, shift = means.sum(axis=0), -means[-1] / ratio
    levels = tuple(
        Level(s.level, s.steps, s.size, _tensor(run, m), _tensor(run, v), s.cost / s.size)
        for s, m, v in zip(stages, means, variances, strict=True)
    )
    return _result(
        run,
        "mlmc",
        (value, np.sqrt(total)),
        reach,
        confidence,
        (shift, np.sqrt(last) / ratio),
        (value - shift, np.sqrt(total - last + last * (1.0 + 1.0 / ratio) ** 2)),
        samples=int(sizes.sum()),
        steps=levels[-1].steps,
        levels=levels,
    )


def _result(
    run: Experiment,
    method: str,
    value: tuple[Floats, Floats],
    reach: Floats,
    confidence: float,
    bias: tuple[Floats, Floats],
    corrected: tuple[Floats, Floats],
    *,
    samples: int,
    steps: int,
    levels: tuple[Level, ...] = (),
) -> Estimate:
    """An `Estimate` from means with their standard errors."""
    return Estimate(
        method=method,
        value=_tensor(run, value[0]),
        stderr=_tensor(run, value[1]),
        interval=(_tensor(run, value[0] - reach), _tensor(run, value[0] + reach)),
        confidence=confidence,
        bias=_tensor(run, bias[0]),
        bias_stderr=_tensor(run, bias[1]),
        corrected=_tensor(run, corrected[0]),
        corrected_stderr=_tensor(run, corrected[1]),
        samples=samples,
        steps=steps,
        cost=run.cost,
        levels=levels,
    )


def _quantile(confidence: float, freedom: Any) -> Any:
    """Of Student's t, two-sided."""
    from scipy.special import stdtrit

    return stdtrit(freedom, 0.5 + confidence / 2)


def _mean(rows: Floats) -> tuple[Floats, Floats]:
    """Mean (k,) of independent rows (N, k), and its standard error."""
    return np.asarray(rows.mean(axis=0)), np.asarray(rows.std(axis=0, ddof=1) / math.sqrt(len(rows)))


def _tensor(run: Experiment, value: Floats) -> Tensor:
    """float64, () where the functional returns (B,), else (k,)."""
    return torch.from_numpy(np.array(value[0] if run.scalar else value, dtype=np.float64))
