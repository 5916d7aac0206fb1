"""The tests of `sdekit.check`: each a function of the level that its power is stated at."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from scipy import optimize
from scipy import stats as scipy_stats
from torch import Tensor

from sdekit.certify.check.finding import POWER, Finding
from sdekit.certify.metrics.laws import directions, has_projections, project
from sdekit.certify.metrics.pairs import pair_statistic
from sdekit.certify.metrics.result import Pair
from sdekit.noise import Philox
from sdekit.noise.source import Purpose
from sdekit.targets import Empirical, Gaussian, GaussianMixture

__all__ = ["Test", "battery", "samples_needed", "whiten"]

stats: Any = scipy_stats

#: Rows that the energy distance looks at.
ENERGY_ROWS = 1000
#: Components with fewer samples are not tested alone.
GROUP = 10
#: Largest dimension in which pairs of directions are compared.
PAIRS = 256
#: Elements of the (rows, components) table held at a time: 32 MB.
BLOCK = 2**22


Test: TypeAlias = Callable[[float], Finding]
"""A test, given the level at which its power is stated."""


def battery(given: Pair, count: int, alpha: float) -> list[Test]:
    """The tests that the target allows."""
    target, tests = given.target, list[Test]()
    smooth = not isinstance(target, Empirical) or target.bandwidth > 0
    if smooth:
        u, component = whiten(given)
        groups = [torch.ones(len(u), dtype=torch.bool)]
        if isinstance(target, GaussianMixture) and len(target) > 1:
            tests.append(functools.partial(_weights, component, target.weights))
            groups += [own for k in range(len(target)) if int((own := component == k).sum()) >= GROUP]
        tests += [functools.partial(_mean, u), functools.partial(_mean_direction, u, groups)]
        tests += [functools.partial(_spread, u), functools.partial(_spread_direction, u, groups)]
        if 2 <= u.shape[1] <= PAIRS:
            tests.append(functools.partial(_correlation, u))
        if u.shape[1] > 1:
            tests.append(functools.partial(_radius, u))
    tests.append(functools.partial(_projections, given, count))
    tests.append(functools.partial(_energy, given, len(tests) + 1, alpha))
    return tests


def samples_needed(alpha: float) -> int:
    """Samples that see a mean wrong by one standard deviation with probability 90 %, ten tests at alpha."""
    return math.ceil((_z(alpha / 20) + _z(1 - POWER)) ** 2)


def _z(p: float) -> float:
    """Upper p-quantile of the standard normal."""
    return float(stats.norm.isf(p))


# Whitening.


def whiten(given: Pair) -> tuple[Tensor, Tensor]:
    """u (n, D) and the components k (n,) drawn from their posterior."""
    target, x = given.target, given.x
    if isinstance(target, Gaussian):
        return _standard(target, x), torch.zeros(len(x), dtype=torch.int64)
    uniform = torch.special.ndtr(
        Philox(given.key).normal(0, x[:, :1], torch.arange(len(x)), purpose=Purpose.PROBES)
    )
    if isinstance(target, GaussianMixture):
        parts = target.components
        logits = torch.stack([part.log_prob(x.reshape(-1, *given.event)) for part in parts], dim=1)
        component = _draw(torch.softmax(logits + torch.log(target.weights), dim=1), uniform)
        u = torch.empty_like(x)
        for k, part in enumerate(parts):
            own = component == k
            u[own] = _standard(part, x[own])
        return u, component
    assert isinstance(target, Empirical)
    data = target.data.reshape(len(target), -1).double().cpu()
    log_p, size = torch.log(target._probabilities()), max(1, BLOCK // len(target))
    component = torch.cat(
        [
            _draw(torch.softmax(log_p - 0.5 * (torch.cdist(a, data) / target.bandwidth) ** 2, dim=1), b)
            for a, b in zip(torch.split(x, size), torch.split(uniform, size), strict=True)
        ]
    )
    return (x - data[component]) / target.bandwidth, component


def _standard(part: Gaussian, x: Tensor) -> Tensor:
    centred = x.reshape(-1, *part.event_shape) - part.mean
    return part.to_basis(centred) / part.eigenvalues.sqrt()


def _draw(probabilities: Tensor, uniform: Tensor) -> Tensor:
    """Index k with probability p_k by inversion, one a row."""
    table = probabilities.cumsum(1)
    return torch.searchsorted(table, uniform * table[:, -1:]).flatten().clamp(max=table.shape[1] - 1)


# The tests.


def _weights(component: Tensor, weights: Tensor, level: float) -> Finding:
    """Counts of each component, Binomial(n, w_k)."""
    n, k = len(component), len(weights)
    counts = torch.bincount(component, minlength=k).numpy()
    w = weights.numpy()
    p = 2 * stats.binom.cdf(counts, n, w).clip(max=0.5)
    p = (2 * stats.binom.sf(counts - 1, n, w).clip(max=0.5)).clip(max=p)
    worst = int(p.argmin())
    v = float(w[abs(w - 0.5).argmin()])
    detectable = (_z(level / (2 * k)) + _z(1 - POWER)) * math.sqrt(v * (1 - v) / n)
    observed = abs(counts[worst] / n - w[worst])
    return Finding("weights", min(1.0, k * p[worst]), float(observed), detectable, "change of a weight")


def _mean(u: Tensor, level: float) -> Finding:
    """n |mean u|^2 ~ chi^2_D."""
    n, d = u.shape
    t = float(n * u.mean(0).square().sum())

    def excess(log_shift: float) -> float:
        return float(stats.ncx2.sf(stats.chi2.isf(level, d), d, n * math.exp(2 * log_shift))) - POWER

    detectable = math.exp(optimize.brentq(excess, math.log(1e-3 / math.sqrt(n)), math.log(1e3)))
    observed = math.sqrt(max(t - d, 0.0) / n)
    return Finding("mean", float(stats.chi2.sf(t, d)), observed, detectable, "length of the shift, in std")


def _mean_direction(u: Tensor, groups: list[Tensor], level: float) -> Finding:
    """sqrt(n_g) mean u_i ~ N(0, 1), the largest over groups and directions."""
    shifts = torch.stack([u[own].mean(0) for own in groups])
    counts = torch.tensor([float(own.sum()) for own in groups], dtype=torch.float64)
    z = shifts.abs() * counts.sqrt()[:, None]
    p = 2 * float(stats.norm.sf(float(z.max()))) * z.numel()
    detectable = (_z(level / (2 * z.numel())) + _z(1 - POWER)) / math.sqrt(len(u))
    observed = float(shifts.abs().flatten()[z.argmax()])
    return Finding("mean, one direction", min(1.0, p), observed, detectable, "shift, in std")


def _spread(u: Tensor, level: float) -> Finding:
    """sum |u - mean|^2 ~ chi^2 with (n - 1) D degrees of freedom."""
    total = float((u - u.mean(0)).square().sum())
    free = (len(u) - 1) * u.shape[1]
    p = 2 * min(float(stats.chi2.cdf(total, free)), float(stats.chi2.sf(total, free)), 0.5)
    return Finding("spread", p, math.sqrt(total / free), _ratio(level, free), "ratio of std, overall")


def _ratio(level: float, free: int) -> float:
    """Ratio r > 1 of standard deviations that a two-sided chi-square test sees."""
    return math.sqrt(float(stats.chi2.isf(level / 2, free)) / float(stats.chi2.ppf(1 - POWER, free)))


def _spread_direction(u: Tensor, groups: list[Tensor], level: float) -> Finding:
    """sum_g (u_i - mean)^2 ~ chi^2_{n_g - 1}, the worst over groups and directions."""
    found = []
    for own in groups:
        free = int(own.sum()) - 1
        part = u[own]
        sums = (part - part.mean(0)).square().sum(0).numpy()
        p = 2 * stats.chi2.cdf(sums, free).clip(max=0.5)
        p = (2 * stats.chi2.sf(sums, free).clip(max=0.5)).clip(max=p)
        worst = int(p.argmin())
        found.append((float(p[worst]), math.sqrt(float(sums[worst]) / free)))
    p, observed = min(found)
    count = len(groups) * u.shape[1]
    detectable = _ratio(level / count, len(u) - 1)
    return Finding("spread, one direction", min(1.0, count * p), observed, detectable, "ratio of std")


def _correlation(u: Tensor, level: float) -> Finding:
    """r sqrt((n - 2)/(1 - r^2)) ~ Student's t_{n-2}, the largest over pairs of directions."""
    n, d = u.shape
    count = d * (d - 1) // 2
    r = float(torch.corrcoef(u.T).triu(1).abs().nan_to_num(0.0).max())  # NaN: no spread, no correlation
    t = r * math.sqrt((n - 2) / max(1 - r * r, 1e-300))
    p = 2 * float(stats.t.sf(t, n - 2)) * count
    detectable = math.tanh((_z(level / (2 * count)) + _z(1 - POWER)) / math.sqrt(n - 3))
    return Finding("correlation", min(1.0, p), r, detectable, "correlation of two directions")


def _largest_gap(n: int, level: float) -> float:
    """Distance of distribution functions that Kolmogorov's test sees: beyond its critical value by the
    largest deviation of F_n at one point, 1/(2 sqrt n) in standard deviation."""
    return float(stats.kstwo.isf(level, n)) + _z(1 - POWER) / (2 * math.sqrt(n))


def _radius(u: Tensor, level: float) -> Finding:
    """|u|^2 against the cdf of chi^2_D."""
    found = stats.kstest(u.square().sum(1).numpy(), stats.chi2(u.shape[1]).cdf)
    detectable = _largest_gap(len(u), level)
    return Finding("radius", float(found.pvalue), float(found.statistic), detectable, "gap of cdfs")


def _projections(given: Pair, count: int, level: float) -> Finding:
    """theta.x against its cdf, or against as many reference samples where the target has none."""
    theta = directions(count, given.x.shape[1], given.seed)
    values = (given.x @ theta.T).T.numpy()
    assert given.target is not None
    if has_projections(given.target):
        lines = project(given.target, theta)
        found = [stats.kstest(v, line.cdf_of_array) for v, line in zip(values, lines, strict=True)]
        detectable = _largest_gap(len(given.x), level / count)
    else:
        others = (given.draw(len(given.x)) @ theta.T).T.numpy()
        found = [stats.ks_2samp(a, b, method="asymp") for a, b in zip(values, others, strict=True)]
        detectable = math.sqrt(2) * _largest_gap(len(given.x), level / count)
    worst = min(found, key=lambda f: f.pvalue)
    p = min(1.0, count * float(worst.pvalue))
    return Finding("projections", p, float(worst.statistic), detectable, "gap of cdfs, worst projection")


def _energy(given: Pair, tests: int, alpha: float, level: float) -> Finding:
    """Energy distance of at most `ENERGY_ROWS` rows to as many exact samples, by relabelling.

    The relabellings are enough for p-values of half the level of the strictest of the tests.
    """
    n = len(given.x)
    rows = torch.linspace(0, n - 1, min(n, ENERGY_ROWS), dtype=torch.float64).round().long()
    x = given.x[rows]
    repeats = min(9999, math.ceil(2 * tests / alpha))
    found = pair_statistic("energy distance", x, given.draw(len(x)), lambda r: r, repeats, given.key)
    assert found.pvalue is not None
    return Finding("energy distance", found.pvalue, found.value, None, "data units")
