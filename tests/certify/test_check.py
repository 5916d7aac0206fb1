"""`check`: its false alarms and its power, measured; the faults that published samplers shipped, caught."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats

import sdekit as sk
from sdekit.certify.check import CheckError, batteries
from sdekit.certify.check.batteries import samples_needed, whiten
from sdekit.certify.metrics.result import pair
from sdekit.errors import NonFiniteError, ShapeError

#: Rate at which a right program would fail a statistical test here.
RATE = 1e-4
GAUSSIAN = sk.Gaussian(torch.tensor([0.5, -1.0, 0.0]), torch.diag(torch.tensor([1.0, 0.25, 4.0])) + 0.1)
MIXTURE = sk.GaussianMixture([0.2, 0.3, 0.5], [[-1.0, 0.0], [0.0, 1.0], [1.5, 0.0]], [0.3, 0.1, 0.4])
PARZEN = sk.Empirical(MIXTURE.sample(50, seed=9), 0.3)
DATA = sk.Empirical(MIXTURE.sample(500, seed=9))
LAWS = {"gaussian": GAUSSIAN, "mixture": MIXTURE, "parzen": PARZEN, "data": DATA}


@pytest.fixture
def brief(monkeypatch):
    """The energy distance on few rows, where another test is looked at."""
    monkeypatch.setattr(batteries, "ENERGY_ROWS", 20)


def verdicts(target, n, repeats, alpha, change=lambda x: x, **settings):
    """`check` of ``change`` of exact samples, at seeds of their own."""
    for k in range(repeats):
        x = target.sample(n, seed=5000 + k, dtype=torch.float64)
        yield sk.check(change(x), target, alpha=alpha, **settings)


@pytest.mark.parametrize("name", LAWS)
def test_exact_samples_fail_no_more_often_than_alpha(name):
    """At alpha = 0.1, 60 repetitions: at most the 1 - 1e-4 quantile of Binomial(60, 0.1) fail.

    Each test's own p-values are valid: p <= 0.1 in no more than that.
    """
    found = list(verdicts(LAWS[name], 100, 60, alpha=0.1, directions=4))
    most = stats.binom.ppf(1 - RATE, 60, 0.1)
    assert sum(not v for v in found) <= most
    for test in {f.name for f in found[0].findings}:
        p = [f.pvalue for v in found for f in v.findings if f.name == test]
        assert sum(value <= 0.1 for value in p) <= most


@pytest.mark.slow
@pytest.mark.parametrize("name", LAWS)
def test_the_default_false_alarm_rate_holds(name):
    """alpha = 0.01, 400 repetitions: at most the 1 - 1e-4 quantile of Binomial(400, 0.01), 13, fail."""
    assert sum(not v for v in verdicts(LAWS[name], 300, 400, alpha=0.01)) <= stats.binom.ppf(
        1 - RATE, 400, 0.01
    )


@pytest.mark.parametrize("name", ["mixture", "overlapping", "parzen"])
def test_whitened_residuals_are_standard_normal_and_components_multinomial(name):
    """Overlapping components: residuals and counts stay exact, by KS and chi-square at 1e-4 each."""
    target = LAWS.get(name) or sk.GaussianMixture([0.1, 0.9], [[0.0, 0.0], [0.5, 0.0]], [0.5, 0.5])
    u, component = whiten(pair(target.sample(4000, seed=1, dtype=torch.float64), target, 0))
    for column in u.T:
        assert stats.kstest(column.numpy(), "norm").pvalue > RATE
    assert stats.kstest(u.square().sum(1).numpy(), stats.chi2(2).cdf).pvalue > RATE
    weights = getattr(target, "weights", None)
    expected = np.full(50, 80.0) if weights is None else weights.numpy() * 4000
    assert stats.chisquare(np.bincount(component.numpy(), minlength=len(expected)), expected).pvalue > RATE


def scaled(factor):
    """Deviations from the mean times sqrt(factor)."""
    return lambda x: GAUSSIAN.mean + math.sqrt(factor) * (x - GAUSSIAN.mean)


def kept_noise(x):
    """Samples at sigma = 0.3 given out as clean."""
    return x + 0.3 * torch.randn(x.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


FAULTS = {
    "variance 2.35 times": (GAUSSIAN, scaled(2.35), "spread"),
    "variance 1.14 times": (GAUSSIAN, scaled(1.14), "spread"),
    "variance 0.95 times": (GAUSSIAN, scaled(0.95), "spread"),
    "noise of the last step kept": (MIXTURE, kept_noise, "spread"),
    "a mean shifted": (GAUSSIAN, lambda x: x + torch.tensor([0.0, 0.1, 0.0]), "mean, one direction"),
    "one direction too wide": (
        GAUSSIAN,
        lambda x: x * torch.tensor([1.0, 1.0, 1.1]),
        "spread, one direction",
    ),
    "correlations lost": (
        GAUSSIAN,
        lambda x: torch.stack([x[:, 0], x[:, 1].roll(1), x[:, 2].roll(2)], 1),
        "correlation",
    ),
    "two axes swapped": (MIXTURE, lambda x: x.flip(1), "projections"),
    "tails of Student's t": (
        GAUSSIAN,
        lambda x: (
            GAUSSIAN.mean
            + (x - GAUSSIAN.mean)
            * math.sqrt(3 / 5)
            / torch.from_numpy(np.sqrt(np.random.default_rng(0).chisquare(5, (len(x), 1)) / 5))
        ),
        "radius",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_faults_of_published_samplers_are_caught(name):
    """10,000 samples each; the test that is made for the fault names it."""
    target, change, culprit = FAULTS[name]
    verdict = sk.check(change(target.sample(10_000, seed=11, dtype=torch.float64)), target)
    assert not verdict
    assert culprit in [f.name for f in verdict.failed]
    assert verdict.pvalue <= 0.01


def test_a_weight_off_by_five_percent_and_a_dropped_mode_are_caught():
    for weights in ([0.25, 0.3, 0.45], [0.0, 0.375, 0.625]):
        other = sk.GaussianMixture(torch.tensor(weights) + 1e-12, MIXTURE.means, MIXTURE.eigenvalues[:, 0])
        verdict = sk.check(other.sample(8000, seed=2), MIXTURE)
        assert "weights" in [f.name for f in verdict.failed]


def test_what_only_the_omnibus_tests_see():
    """Data without a density: the two-sample tests carry the verdict alone."""
    good = sk.check(DATA.sample(1000, seed=3), DATA)
    assert [f.name for f in good.findings if f.name in ("projections", "energy distance")] == [
        f.name for f in good.findings
    ]
    assert good
    assert not sk.check(DATA.sample(1000, seed=3) * 1.3, DATA)


EFFECTS = {
    "mean": lambda x, e: x + e / math.sqrt(3),
    "mean, one direction": lambda x, e: x + torch.tensor([e, 0.0, 0.0]),
    "spread": lambda x, e: x * e,
    "spread, one direction": lambda x, e: x * torch.tensor([1.0, e, 1.0]),
    "correlation": lambda x, e: torch.stack(
        [x[:, 0], e * x[:, 0] + math.sqrt(1 - e * e) * x[:, 1], x[:, 2]], 1
    ),
}


@pytest.mark.parametrize("name", EFFECTS)
@pytest.mark.usefixtures("brief")
def test_the_power_stated_is_the_power_had(name):
    """The detectable effect is found in 90 % of 60 repetitions, and half of it much less often.

    At least the 1e-4 quantile of Binomial(60, 0.9) = 44; the level is the strictest that Holm asks for.
    """
    target = sk.Gaussian(torch.zeros(3), variance=1.0)
    n, alpha = 400, 0.05
    detectable = {f.name: f.detectable for f in next(verdicts(target, n, 1, alpha)).findings}[name]

    def rejections(effect):
        found = verdicts(target, n, 60, alpha, lambda x: EFFECTS[name](x, effect), directions=1)
        return sum(f.pvalue <= alpha / len(v.findings) for v in found for f in v.findings if f.name == name)

    assert rejections(detectable) >= stats.binom.ppf(RATE, 60, 0.9)
    weak = detectable / 2 if name.startswith(("mean", "corr")) else 1 + (detectable - 1) / 2
    assert rejections(weak) < 40


@pytest.mark.usefixtures("brief")
def test_the_power_against_weights_is_the_power_had():
    """As above, for the component whose weight is nearest 1/2, far from the others."""
    target = sk.GaussianMixture([0.5, 0.3, 0.2], [[0.0], [10.0], [-10.0]], 1.0)
    first = next(verdicts(target, 400, 1, 0.05)).findings
    e = {f.name: f.detectable for f in first}["weights"]
    other = sk.GaussianMixture([0.5 + e, 0.3 - 0.6 * e, 0.2 - 0.4 * e], target.means, 1.0)
    found = [sk.check(other.sample(400, seed=k), target, alpha=0.05, directions=1) for k in range(60)]
    hits = [f.pvalue <= 0.05 / len(v.findings) for v in found for f in v.findings if f.name == "weights"]
    assert sum(hits) >= stats.binom.ppf(RATE, 60, 0.9)


@pytest.mark.usefixtures("brief")
def test_a_gap_of_the_detectable_size_is_always_found_by_ks():
    """The stated gap is a sufficient one: a shift that makes it on the line is found in at least 90 %."""
    target = sk.Gaussian(torch.zeros(1), variance=1.0)
    findings = {f.name: f for f in next(verdicts(target, 400, 1, 0.05, directions=1)).findings}
    gap = findings["projections"].detectable
    shift = 2 * stats.norm.ppf(0.5 + gap / 2)  # sup |Phi(x - a) - Phi(x)| = 2 Phi(a/2) - 1
    found = verdicts(target, 400, 60, 0.05, lambda x: x + shift, directions=1)
    hits = [f.pvalue <= 0.05 / len(v.findings) for v in found for f in v.findings if f.name == "projections"]
    assert sum(hits) >= stats.binom.ppf(RATE, 60, 0.9)


def test_a_constant_direction_has_no_correlation(brief):
    normals = GAUSSIAN.sample(100, seed=1, dtype=torch.float64)
    x = torch.stack([normals[:, 0], normals[:, 1], torch.zeros(100, dtype=torch.float64)], dim=1)
    target = sk.Gaussian(0.0, variance=[1.0, 1.0, 1.0])
    found = {f.name: f for f in sk.check(x, target).findings}
    assert found["spread, one direction"].failed
    assert found["correlation"].observed == pytest.approx(abs(float(torch.corrcoef(x[:, :2].T)[0, 1])))


def test_holm_is_step_down_and_bounded():
    verdict = sk.check(GAUSSIAN.sample(500, seed=1), GAUSSIAN)
    m = len(verdict.findings)
    p = [f.pvalue for f in verdict.findings]
    assert p == sorted(p)
    running = 0.0
    for i, f in enumerate(verdict.findings):
        running = max(running, (m - i) * f.pvalue)
        assert f.adjusted == pytest.approx(min(1.0, running))
        assert f.failed == (f.adjusted <= verdict.alpha)
    assert verdict.pvalue == verdict.findings[0].adjusted


def test_a_verdict_is_a_truth_value_and_a_report():
    good = sk.check(MIXTURE.sample(500, seed=1), MIXTURE)
    good.raise_for_failure()
    assert str(good).startswith("PASSED: 500 samples")
    bad = sk.check(MIXTURE.sample(500, seed=1) + 1, MIXTURE)
    assert (bool(good), bool(bad)) == (True, False)
    assert "failed" in repr(bad)
    with pytest.raises(CheckError, match="FAILED: 500 samples"):
        bad.raise_for_failure()
    for f in bad.findings:
        assert f.name in str(bad)
        assert (f.name in [g.name for g in bad.failed]) == f.failed
    assert "<- failed" in str(bad)


def test_anybody_s_samples_images_and_arrays():
    target = sk.Gaussian(torch.zeros(1, 4, 4), variance=0.5)
    x = np.random.default_rng(0).normal(0, math.sqrt(0.5), (600, 1, 4, 4))
    first = sk.check(x, target)
    assert first
    assert sk.check(torch.from_numpy(x), target).findings == first.findings
    assert sk.check(x, target, seed=1).findings != first.findings


def test_samplers_pass_where_their_error_is_below_the_power():
    target = sk.GaussianMixture([0.3, 0.7], [[-2.0, 0.0], [1.0, 1.0]], 0.2)
    model = target.denoiser(sk.VP())
    assert sk.check(sk.sample(model, (1000, 2), nfe=30, end="clean").x, target)
    assert not sk.check(sk.sample(model, (1000, 2), sampler="euler-maruyama", nfe=10).x, target)


def test_bad_input_is_named():
    x = GAUSSIAN.sample(100, seed=0)
    needed = samples_needed(0.01)
    with pytest.raises(ShapeError, match=f"at least {needed} samples at alpha = 0.01, got 10"):
        sk.check(x[:10], GAUSSIAN)
    sk.check(x[:needed], GAUSSIAN)
    with pytest.raises(ShapeError, match=r"samples must have shape \(n, 3\)"):
        sk.check(x[:, :2], GAUSSIAN)
    with pytest.raises(NonFiniteError, match="samples holds NaN"):
        sk.check(torch.full((100, 3), math.nan), GAUSSIAN)
    with pytest.raises(TypeError, match=r"target law, got Tensor.*sdekit\.metrics"):
        sk.check(x, x)
    for alpha in (0.0, 1.0, -1):
        with pytest.raises(ValueError, match="alpha must be a probability"):
            sk.check(x, GAUSSIAN, alpha=alpha)
