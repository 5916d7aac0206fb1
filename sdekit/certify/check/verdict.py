r"""Verdict on samples of a known law, at a stated false-alarm rate, with the power it had.

A mixture is brought back to one standard normal by drawing each sample's component from its posterior:
if x ~ sum_k w_k N(m_k, C_k) and k is drawn with probability w_k N(x; m_k, C_k) / p(x), then, exactly,

    k ~ w,    u = C_k^{-1/2} (x - m_k) ~ N(0, I) given k.

Every test below is exact for that law (binomial, chi-square, Student, Kolmogorov), and Holm's method
(1979, Scand. J. Statist. 6, 65-70) keeps the probability of any false alarm at or below alpha.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from sdekit.certify.check.finding import Finding
from sdekit.certify.metrics.result import pair
from sdekit.errors import SdekitError, ShapeError, check_count
from sdekit.targets import Target

__all__ = ["CheckError", "Finding", "Verdict", "check"]


class CheckError(SdekitError, AssertionError):
    """Samples did not pass `check`; the message is the verdict."""


@dataclass(frozen=True)
class Verdict:
    """What `check` found; true where every test passed.

    alpha: probability that exact samples fail, at most. samples: how many were judged. findings: one
    `Finding` a test, the worst first.
    """

    alpha: float
    samples: int
    target: Target
    findings: tuple[Finding, ...]

    @property
    def passed(self) -> bool:
        """Whether no test failed."""
        return not self.failed

    @property
    def failed(self) -> tuple[Finding, ...]:
        """The tests that failed."""
        return tuple(f for f in self.findings if f.failed)

    @property
    def pvalue(self) -> float:
        """The smallest adjusted p-value: the family's."""
        return min(f.adjusted for f in self.findings)

    def __bool__(self) -> bool:
        return self.passed

    def raise_for_failure(self) -> None:
        """Raise CheckError with the verdict if a test failed."""
        if not self.passed:
            raise CheckError(str(self))

    def __repr__(self) -> str:
        word = "passed" if self.passed else f"failed: {', '.join(f.name for f in self.failed)}"
        return f"Verdict({word}; {self.samples} samples, alpha = {self.alpha:g}, p = {self.pvalue:.3g})"

    def __str__(self) -> str:
        head = (
            f"{'PASSED' if self.passed else 'FAILED'}: {self.samples} samples against {self.target!r}; exact "
            f"samples fail with probability <= {self.alpha:g}.\n"
            f"{'test':24} {'p (Holm)':>9}  {'observed':>9}  {'seen in 90 %':>12}  measured"
        )
        lines = [
            f"{f.name:24} {f.adjusted:9.3g}  {f.observed:9.4g}  "
            f"{'-' if f.detectable is None else format(f.detectable, '.4g'):>12}  {f.unit}"
            + ("  <- failed" if f.failed else "")
            for f in self.findings
        ]
        return "\n".join([head, *lines])


def check(
    samples: Any, target: Target, *, alpha: float = 0.01, directions: int = 16, seed: int = 0
) -> Verdict:
    r"""Are these samples of this law? A verdict that is wrong about exact samples with probability <= alpha.

    Tests, each exact, on whitened residuals u and mixture components k (see the module):

        weights           counts of each component, binomial
        mean              n |mean u|^2 ~ chi^2_D; and the worst direction of the worst component
        spread            sum |u - mean u|^2 ~ chi^2_{(n-1) D}; and the worst direction of the worst component
        correlation       the largest correlation of two directions, Student's t (2 <= D <= 256)
        radius            |u|^2 against chi^2_D, Kolmogorov-Smirnov
        projections       theta.x against its exact cdf along ``directions`` random theta, Kolmogorov-Smirnov
        energy distance   to as many exact samples (at most 1,000), by relabelling

    Of an `Empirical` without bandwidth only the last two exist, against samples of it. A test on several
    directions or components is corrected for their number (Bonferroni), the tests for theirs (Holm).

    Parameters
    ----------
    samples
        (n, *event), tensor or array, from any code; independent of each other.
    target
        A `Gaussian`, `GaussianMixture` or `Empirical`.
    alpha
        Probability that exact samples fail.
    directions
        Random projections.
    seed
        Of the components drawn, the projections and the reference samples.

    Each `Finding` tells what was observed, in which unit, and the effect that its test would have seen with
    probability 90 % at this n.

    Raises
    ------
    ShapeError: the shape is not the target's, or too few samples (the message says how many are needed).
    NonFiniteError: NaN or infinity in samples. ValueError: alpha is not between 0 and 1.
    TypeError: the target is not a target.
    """
    from sdekit.certify.check.batteries import battery, samples_needed

    if not isinstance(target, Target):
        raise TypeError(
            f"check needs a target law, got {type(target).__name__}. Next: Gaussian.from_data(data) or "
            f"Empirical(data, bandwidth); two sets of samples are compared by sdekit.metrics."
        )
    if not 0 < float(alpha) < 1:
        raise ValueError(f"alpha must be a probability between 0 and 1, got {alpha}.")
    given = pair(samples, target, seed, minimum=1)
    needed = samples_needed(alpha)
    if len(given.x) < needed:
        raise ShapeError(
            f"check needs at least {needed} samples at alpha = {alpha:g}, got {len(given.x)}: with fewer, a "
            f"mean wrong by one standard deviation would pass more than one time in ten. Next: more "
            f"samples; 1,000 see shifts of about 0.15."
        )
    count = check_count(directions, "directions")
    tests = battery(given, count, alpha)
    level = alpha / len(tests)
    return Verdict(alpha, len(given.x), target, _holm([test(level) for test in tests], alpha))


def _holm(findings: list[Finding], alpha: float) -> tuple[Finding, ...]:
    """Adjusted p-values, the worst finding first."""
    ordered = sorted(findings, key=lambda f: f.pvalue)
    m = len(ordered)
    raised: Tensor = torch.tensor([(m - i) * f.pvalue for i, f in enumerate(ordered)], dtype=torch.float64)
    adjusted = raised.cummax(0).values.clamp(max=1.0).tolist()
    return tuple(replace(f, adjusted=p, failed=p <= alpha) for f, p in zip(ordered, adjusted, strict=True))
