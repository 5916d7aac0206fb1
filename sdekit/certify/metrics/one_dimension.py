"""Kolmogorov and Smirnov's distance on the line."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from sdekit.certify.metrics.laws import has_projections, project
from sdekit.certify.metrics.result import LEVEL, Metric, pair, reference, rows
from sdekit.errors import ShapeError
from sdekit.targets import Target

__all__ = ["ks"]


def ks(samples: Any, against: Any, *, size: int | None = None, seed: int = 0) -> Metric:
    r"""Largest difference of two distribution functions on the line:

        D = sup_x |F_n(x) - F(x)|   or   sup_x |F_n(x) - G_m(x)|.

    samples: n numbers, (n,) or (n, 1). against: a one-dimensional target, a callable cdf, or m numbers. The
    cdf of Gaussians and mixtures is exact; of an `Empirical`, ``size`` samples are drawn (n unless given).
    floor and pvalue are those of the exact null law of D; with two samples the floor is that of its limit,
    which is no smaller, and so is the p-value where a set has more than 10,000 rows. stderr is that of F_n
    (and G_m) where D is reached.

    Raises
    ------
    ShapeError: samples are not on the line. NonFiniteError: NaN or infinity in samples.

    References
    ----------
    Kolmogorov 1933 (Giorn. Ist. Ital. Attuari 4, 83-91). Smirnov 1948 (Ann. Math. Statist. 19, 279-281).
    """
    from scipy import stats as scipy_stats

    stats: Any = scipy_stats
    if callable(against) and not isinstance(against, Target):
        x, cdf = rows(samples, "samples", 2)[0], _on_arrays(against)
        given = None
    else:
        given = pair(samples, against, seed)
        x, cdf = given.x, None
        if given.target is not None and has_projections(given.target) and x.shape[1] == 1:
            (line,) = project(given.target, torch.ones(1, 1, dtype=torch.float64))
            cdf = line.cdf
    if x.shape[1] != 1:
        raise ShapeError(
            f"ks needs numbers, (n,) or (n, 1), got {x.shape[1]} to a sample. Next: a projection of both, or "
            f"sdekit.metrics.sliced_w2."
        )
    n = len(x)
    if cdf is not None:
        found = stats.kstest(x[:, 0].numpy(), lambda v: cdf(torch.as_tensor(v)).numpy())
        f = float(cdf(torch.as_tensor([found.statistic_location], dtype=torch.float64))[0])
        floor, error = float(stats.kstwo.ppf(LEVEL, n)), math.sqrt(max(f * (1 - f), 0.0) / n)
        return Metric("KS", float(found.statistic), error, floor, float(found.pvalue), n, None)
    assert given is not None
    y = reference(given, size)
    m = len(y)
    found = stats.ks_2samp(x[:, 0].numpy(), y[:, 0].numpy())
    at = found.statistic_location
    f, g = float((x <= at).double().mean()), float((y <= at).double().mean())
    floor = min(1.0, float(stats.kstwobign.ppf(LEVEL)) * math.sqrt((n + m) / (n * m)))
    error = math.sqrt(f * (1 - f) / n + g * (1 - g) / m)
    return Metric("KS", float(found.statistic), error, floor, float(found.pvalue), n, m)


def _on_arrays(cdf: Callable[[Any], Any]) -> Callable[[torch.Tensor], torch.Tensor]:
    """A user's cdf, of tensors or of arrays, as a function of float64 tensors."""

    def on_tensors(v: torch.Tensor) -> torch.Tensor:
        try:
            out = cdf(v)
        except TypeError:
            out = cdf(v.numpy())
        return torch.as_tensor(out, dtype=torch.float64)

    return on_tensors
