"""Metrics against known values, brute force and repetition; tests of chance state their false-alarm rate."""

from __future__ import annotations

import math
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import integrate, linalg, stats

import sdekit as sk
from sdekit import metrics
from sdekit.certify.metrics import laws, pairs
from sdekit.certify.metrics.result import judge, pair
from sdekit.errors import NonFiniteError, OptionalDependencyError, ShapeError

GAUSSIAN = sk.Gaussian(torch.tensor([0.5, -1.0]), torch.tensor([[1.0, 0.6], [0.6, 0.8]]))
MIXTURE = sk.GaussianMixture([0.3, 0.7], [[-2.0, 0.0], [1.0, 1.0]], [0.05, 0.4])
LINE = sk.GaussianMixture([0.25, 0.7, 0.05], [-2.0, 1.0, 4.0], [0.01, 0.5, 2.0])
#: Repetitions, and the rate at which a right program would fail a test of them.
REPEATS, RATE = 200, 1e-4


def normals(n: int, d: int, seed: int) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# Laws on the line.


@given(st.lists(st.tuples(st.floats(0.05, 1), st.floats(-5, 5), st.floats(0.01, 3)), min_size=1, max_size=4))
def test_the_quantile_inverts_the_cdf_and_cells_sum_to_the_mean(parts):
    w, m, s = (torch.tensor(v, dtype=torch.float64) for v in zip(*parts, strict=True))
    line = laws.Line(w / w.sum(), m, s)
    u = torch.linspace(1e-6, 1 - 1e-6, 201, dtype=torch.float64)
    torch.testing.assert_close(line.cdf(line.quantile(u)), u, rtol=0, atol=1e-12)
    assert float(line.cell_means(50).sum()) == pytest.approx(float((line.weights * m).sum()), abs=1e-12)


def test_cell_means_are_integrals_of_the_quantile_function():
    (line,) = laws.project(LINE, torch.ones(1, 1, dtype=torch.float64))
    cells = line.cell_means(8)
    for i in range(1, 7):
        q = integrate.quad(lambda u: float(line.quantile(torch.tensor([u]).double())[0]), i / 8, (i + 1) / 8)
        assert float(cells[i]) == pytest.approx(q[0], rel=1e-8)


@pytest.mark.parametrize("target", [GAUSSIAN, MIXTURE], ids=repr)
def test_projections_are_the_laws_of_projected_samples(target):
    """Kolmogorov-Smirnov at 1e-4 each, fixed seed."""
    theta = laws.directions(3, 2, seed=1)
    x = target.sample(20_000, seed=2, dtype=torch.float64)
    for line, v in zip(laws.project(target, theta), theta @ x.T, strict=True):
        assert stats.kstest(v.numpy(), line.cdf_of_array).pvalue > RATE


@pytest.mark.parametrize(("count", "dimension"), [(128, 2), (7, 3), (5, 12)])
def test_directions_come_in_orthonormal_frames(count, dimension):
    theta = laws.directions(count, dimension, seed=0)
    assert theta.shape == (count, dimension)
    frame = theta[: min(count, dimension)]
    torch.testing.assert_close(frame @ frame.T, torch.eye(len(frame), dtype=torch.float64))
    assert not torch.allclose(laws.directions(count, dimension, seed=1), theta)


@pytest.mark.parametrize(
    "target",
    [MIXTURE, sk.GaussianMixture([0.5, 0.5], torch.eye(2), torch.eye(2).expand(2, 2, 2) * 0.3),
     sk.Empirical(torch.tensor([[0.0, 1.0], [2.0, 0.0], [1.0, 5.0]]), 0.2, weights=[0.2, 0.3, 0.5])],
    ids=repr,
)  # fmt: skip
def test_moments_are_those_of_samples(target):
    """4.5 standard errors, 2 + 3 comparisons a target: a right program fails with probability below 1e-4."""
    mean, cov = laws.moments(target)
    x = target.sample(100_000, seed=3, dtype=torch.float64)
    assert bool(((x.mean(0) - mean).abs() < 4.5 * cov.diagonal().sqrt() / len(x) ** 0.5).all())
    products = (x - mean)[:, :, None] * (x - mean)[:, None, :]
    assert bool(((products.mean(0) - cov).abs() < 4.5 * products.std(0) / len(x) ** 0.5).all())


# W2 of Gaussians.


def test_w2_of_gaussians_is_the_closed_form():
    a, b = normals(4, 4, 0), normals(4, 4, 1)
    p, q = a @ a.T, b @ b.T
    m = torch.tensor([1.0, 2.0, 0.0, -1.0], dtype=torch.float64)
    root = linalg.sqrtm(p.numpy())
    cross = np.trace(linalg.sqrtm(root @ q.numpy() @ root)).real
    expected = math.sqrt(float(m @ m + p.trace() + q.trace()) - 2 * cross)
    found = metrics.w2_gaussian((m, p), (torch.zeros(4), q))
    assert found.value == pytest.approx(expected, rel=1e-10)
    assert (found.stderr, found.floor, found.pvalue) == (0.0, 0.0, None)
    as_laws = metrics.w2_gaussian(sk.Gaussian(m, p), sk.Gaussian(torch.zeros(4), q))
    assert as_laws.value == pytest.approx(expected, rel=1e-7)


def test_w2_keeps_its_digits_between_close_laws():
    """std 1 and 1 + 1e-9: a formula of traces would lose all digits."""
    c = torch.eye(3, dtype=torch.float64)
    found = metrics.w2_gaussian((torch.zeros(3), c), (torch.zeros(3), c * (1 + 1e-9) ** 2))
    assert found.value == pytest.approx(math.sqrt(3) * 1e-9, rel=1e-5)


def test_w2_of_samples_is_that_of_their_moments_from_either_side():
    x = GAUSSIAN.sample(500, seed=4, dtype=torch.float64) * 1.5
    fitted = (x.mean(0), torch.cov(x.T, correction=0))
    expected = metrics.w2_gaussian(fitted, GAUSSIAN).value
    for found in (metrics.w2_gaussian(x, GAUSSIAN), metrics.w2_gaussian(GAUSSIAN, x)):
        assert found.value == pytest.approx(expected, rel=1e-10)
        assert found.pvalue == 0.01
        assert found.value > found.floor
        assert (found.samples, found.reference) == (500, None)
    pair = metrics.w2_gaussian(x, (GAUSSIAN.mean, GAUSSIAN.cov))
    assert pair.value == pytest.approx(expected, rel=1e-10)


def test_the_floor_of_w2_is_the_documented_size():
    """Exact samples reach about sqrt(1.5 tr C / n) here; their 95 % quantile lies above, within twice."""
    target = sk.Gaussian(torch.zeros(8), variance=1.0)
    found = metrics.w2_gaussian(target.sample(4000, seed=1), target, repeats=49)
    typical = math.sqrt(1.5 * 8 / 4000)
    assert typical < found.floor < 2 * typical


# Sliced W2.


@pytest.mark.parametrize("d", [1, 2, 16])
def test_sliced_w2_of_a_shift_is_its_length_over_root_d(d):
    """W2 along theta is |theta.m|, and orthonormal frames add theta.m up to |m| exactly."""
    x, m = normals(50, d, 0), normals(1, d, 1)
    found = metrics.sliced_w2(x + m, x, directions=16 * d, repeats=0)
    assert found.value == pytest.approx(float(m.norm()) / math.sqrt(d), rel=1e-12)


@pytest.mark.parametrize("target", [sk.Gaussian(0.3, variance=0.7), LINE], ids=repr)
def test_sliced_w2_to_a_law_on_the_line_is_the_integral(target):
    """int (x_(i) - y)^2 p(y) dy over the i-th fifth of the law, by trapezia."""
    x = torch.tensor([[-2.5], [0.4], [0.1], [3.0], [-1.0]], dtype=torch.float64)
    (line,) = laws.project(target, torch.ones(1, 1, dtype=torch.float64))
    q = torch.sort(x[:, 0]).values
    ends = [-30.0, *line.quantile(torch.tensor([0.2, 0.4, 0.6, 0.8]).double()).tolist(), 30.0]
    total = 0.0
    for i in range(5):
        y = torch.linspace(ends[i], ends[i + 1], 400_001, dtype=torch.float64)
        total += float(torch.trapezoid((q[i] - y) ** 2 * line.density(y), y))
    found = metrics.sliced_w2(x, target, directions=3, repeats=0)
    assert found.value == pytest.approx(math.sqrt(total), rel=1e-7)


def test_sliced_w2_of_unequal_sizes_is_the_same_coupling():
    """Repeating every row changes no law: 12 against 8 rows as 24 against 24."""
    x, y = normals(12, 3, 0), normals(8, 3, 1) + 0.5
    direct = metrics.sliced_w2(x, y, directions=9, repeats=0).value
    repeated = metrics.sliced_w2(x.repeat(2, 1), y.repeat(3, 1), directions=9, repeats=0).value
    assert direct == pytest.approx(repeated, rel=1e-12)


def test_the_law_is_the_limit_of_many_reference_samples():
    x = MIXTURE.sample(400, seed=1, dtype=torch.float64) + 0.4
    exact = metrics.sliced_w2(x, MIXTURE, directions=4, repeats=0).value
    drawn = metrics.sliced_w2(x, MIXTURE.sample(20_000, seed=2, dtype=torch.float64), directions=4, repeats=0)
    assert drawn.value == pytest.approx(exact, rel=0.05)


# Pairs.


def by_hand(x, y, h):
    """2 mean h(X, Y) - mean h(X, X') - mean h(Y, Y'), pair by pair."""

    def mean(a, b, same):
        values = [h(float((p - q).norm())) for i, p in enumerate(a) for j, q in enumerate(b)
                  if not (same and i == j)]  # fmt: skip
        return sum(values) / len(values)

    return 2 * mean(x, y, False) - mean(x, x, True) - mean(y, y, True)


def test_pair_metrics_are_their_definitions():
    x, y = normals(7, 3, 0), normals(5, 3, 1) + 1
    energy = metrics.energy_distance(x, y, repeats=0)
    assert energy.value == pytest.approx(by_hand(x, y, lambda r: r), rel=1e-10)
    squared = metrics.mmd(x, y, bandwidth=0.8, repeats=0)
    assert squared.value == pytest.approx(by_hand(x, y, lambda r: -math.exp(-(r**2) / (2 * 0.64))), rel=1e-10)
    assert math.isnan(energy.floor)
    assert energy.pvalue is None


def test_relabellings_and_jackknife_are_recomputed_values():
    x, y = normals(9, 2, 0), normals(6, 2, 1) + 0.5
    labels = pairs._relabellings(9, 6, 30, seed=pair(x, y, 5).key)
    pool = torch.cat([x, y])
    null = [by_hand(pool[c], pool[~c], lambda r: r) for c in labels.T[1:]]
    found = metrics.energy_distance(x, y, repeats=30, seed=5)
    assert found.pvalue == (1 + sum(v >= found.value for v in null)) / 31
    assert found.floor == pytest.approx(float(torch.tensor(null).quantile(0.95)), rel=1e-6)

    def keep(n):
        return [torch.arange(n) != i for i in range(n)]

    without_x = torch.tensor([by_hand(x[k], y, lambda r: r) for k in keep(9)])
    without_y = torch.tensor([by_hand(x, y[k], lambda r: r) for k in keep(6)])
    variance = 8 / 9 * float((without_x - without_x.mean()).square().sum())
    variance += 5 / 6 * float((without_y - without_y.mean()).square().sum())
    assert found.stderr == pytest.approx(math.sqrt(variance), rel=1e-5)


def test_tiles_change_nothing(monkeypatch):
    """Memory is bounded by tiles of pairs; their size is no part of the result."""
    x, y = normals(70, 4, 0), normals(45, 4, 1)
    whole = [metrics.energy_distance(x, y), metrics.mmd(x, y)]
    monkeypatch.setattr(pairs, "TILE", (16, 24))
    for before, after in zip(whole, [metrics.energy_distance(x, y), metrics.mmd(x, y)], strict=True):
        assert after.pvalue == before.pvalue
        for name in ("value", "stderr", "floor"):
            assert getattr(after, name) == pytest.approx(getattr(before, name), rel=1e-9)


def test_large_sets_are_cut_into_blocks(monkeypatch):
    """Value, error and relabelled values are means over blocks; every row is in one of them."""
    x, y = normals(50, 2, 0), normals(32, 2, 1) + 0.4
    monkeypatch.setattr(pairs, "ROWS", 20)
    found = metrics.energy_distance(x, y, repeats=39)
    parts = [(x[b::3], y[b::3]) for b in range(3)]
    each = [by_hand(a, b, lambda r: r) for a, b in parts]
    assert found.value == pytest.approx(sum(each) / 3, rel=1e-9)
    single = [metrics.energy_distance(a, b, repeats=0).stderr for a, b in parts]
    assert found.stderr == pytest.approx(math.sqrt(sum(e**2 for e in single)) / 3, rel=1e-9)
    few = metrics.energy_distance(x, y[:4], repeats=0)
    assert few.value == pytest.approx(by_hand(x, y[:4], lambda r: r), rel=1e-9)


def test_pvalues_in_blocks_of_exact_samples_are_uniform(monkeypatch):
    """P(p <= 0.1) over 300 repetitions: at most the 1 - 1e-4 quantile of Binomial(300, 0.1)."""
    monkeypatch.setattr(pairs, "ROWS", 10)
    found = [
        metrics.energy_distance(normals(30, 2, k), normals(24, 2, 1000 + k), repeats=19) for k in range(300)
    ]
    count = sum(f.pvalue <= 0.1 for f in found)
    assert stats.binom.ppf(1e-4, 300, 0.1) <= count <= stats.binom.ppf(1 - 1e-4, 300, 0.1)


def test_the_energy_distance_of_shifted_normals_is_unbiased():
    """Mean of 2,000 values at n = 4, m = 6 within 4 standard errors (6e-5) of the closed form.

    E|X - Y| = s sqrt(2/pi) exp(-a^2/(2 s^2)) + a (1 - 2 Phi(-a/s)), s = sqrt(2).
    """
    for a in (0.0, 0.7):
        values = torch.tensor(
            [
                metrics.energy_distance(normals(4, 1, 2 * k), normals(6, 1, 2 * k + 1) + a, repeats=0).value
                for k in range(2000)
            ]
        )
        s = math.sqrt(2)
        between = s * math.sqrt(2 / math.pi) * math.exp(-(a**2) / 4) + a * (1 - 2 * stats.norm.cdf(-a / s))
        expected = 2 * between - 2 * s * math.sqrt(2 / math.pi)
        assert abs(float(values.mean()) - expected) < 4 * float(values.std()) / math.sqrt(2000)


def test_mmd_of_shifted_normals_is_unbiased():
    """As above: E k(X, Y) = h/sqrt(h^2 + 2) exp(-a^2/(2 (h^2 + 2))) on the line."""
    a, h = 0.7, 0.9
    values = torch.tensor(
        [
            metrics.mmd(normals(4, 1, 2 * k), normals(6, 1, 2 * k + 1) + a, bandwidth=h, repeats=0).value
            for k in range(2000)
        ]
    )
    scale = h / math.sqrt(h * h + 2)
    expected = 2 * scale * (1 - math.exp(-(a**2) / (2 * (h * h + 2))))
    assert abs(float(values.mean()) - expected) < 4 * float(values.std()) / math.sqrt(2000)


def test_the_median_bandwidth_does_not_look_at_labels_and_refuses_ties():
    x, y = normals(30, 2, 0), normals(20, 2, 1)
    h = float(torch.pdist(torch.cat([x, y])).median())
    assert metrics.mmd(x, y).value == pytest.approx(metrics.mmd(x, y, bandwidth=h).value, rel=1e-12)
    with pytest.raises(ValueError, match=r"median distance is 0.*bandwidth=\.\.\."):
        metrics.mmd(torch.zeros(10, 2), torch.zeros(10, 2))
    with pytest.raises(ValueError, match="bandwidth must be finite and > 0"):
        metrics.mmd(x, y, bandwidth=-1.0)


# Tests of chance.

TESTS = {
    "w2_gaussian": lambda x, y: metrics.w2_gaussian(x, y, repeats=19),
    "sliced_w2": lambda x, y: metrics.sliced_w2(x, y, directions=4, repeats=19),
    "energy_distance": lambda x, y: metrics.energy_distance(x, y, repeats=19),
    "mmd": lambda x, y: metrics.mmd(x, y, repeats=19),
}


@pytest.mark.parametrize("against", ["samples", "target"])
@pytest.mark.parametrize("name", TESTS)
def test_pvalues_of_exact_samples_are_uniform(name, against):
    """p is uniform on 1/20, ..., 1: chi-square of 200 repetitions in ten bins, and the count of p <= 1/20.

    A right program fails each with probability 1e-4.
    """
    p = []
    for k in range(REPEATS):
        x = MIXTURE.sample(24, seed=1000 + k, dtype=torch.float64)
        y = MIXTURE.sample(18, seed=9000 + k, dtype=torch.float64) if against == "samples" else MIXTURE
        p.append(TESTS[name](x, y).pvalue)
    bins = np.bincount(np.round(np.array(p) * 20).astype(int) - 1, minlength=20).reshape(10, 2).sum(1)
    assert stats.chisquare(bins).pvalue > RATE
    low, high = stats.binom.ppf([RATE / 2, 1 - RATE / 2], REPEATS, 0.05)
    assert low <= sum(v <= 0.05 for v in p) <= high


@pytest.mark.parametrize("name", [*TESTS, "c2st", "ks"])
def test_a_shift_of_one_standard_deviation_is_seen(name):
    target = sk.GaussianMixture([0.5, 0.5], [[-1.0], [1.0]], 0.5)
    x = target.sample(200, seed=3, dtype=torch.float64) + target.data_std
    settings = {"repeats": 19} if name == "c2st" else {}
    run = TESTS.get(name) or (lambda a, b: getattr(metrics, name)(a, b, **settings))
    for against in (target, target.sample(200, seed=4)):
        found = run(x, against)
        assert found.pvalue <= 0.05
        assert found.value > found.floor


@pytest.mark.parametrize("name", ["w2_gaussian", "sliced_w2", "energy_distance", "mmd", "ks"])
def test_standard_errors_are_those_of_repetition(name):
    """Mean of 100 standard errors against the deviation of 100 values, within 35 %."""
    settings = {} if name == "ks" else {"repeats": 0}
    settings |= {"directions": 1} if name == "sliced_w2" else {}
    found = [
        getattr(metrics, name)(1.6 * normals(150, 1, 50 + k) + 1, normals(150, 1, 9000 + k), **settings)
        for k in range(100)
    ]
    deviation = float(torch.tensor([f.value for f in found]).std())
    reported = float(torch.tensor([f.stderr for f in found]).mean())
    assert reported == pytest.approx(deviation, rel=0.35)


# KS and the classifier.


def test_ks_is_scipy_s_with_every_kind_of_reference():
    x = LINE.sample(300, seed=0, dtype=torch.float64)
    parts = list(zip([0.25, 0.7, 0.05], [-2.0, 1.0, 4.0], [0.01, 0.5, 2.0], strict=True))

    def cdf(v):
        return sum(w * stats.norm.cdf(v, m, c**0.5) for w, m, c in parts)

    expected = stats.kstest(x[:, 0].numpy(), cdf)
    for found in (metrics.ks(x, LINE), metrics.ks(x[:, 0], cdf)):
        assert found.value == pytest.approx(expected.statistic, rel=1e-9)
        assert found.pvalue == pytest.approx(expected.pvalue, rel=1e-6)
        assert found.floor == pytest.approx(stats.kstwo.ppf(0.95, 300))
    gauss = metrics.ks(x, stats.norm.cdf)
    share = stats.norm.cdf(stats.kstest(x[:, 0].numpy(), "norm").statistic_location)
    assert gauss.value == pytest.approx(stats.kstest(x[:, 0].numpy(), "norm").statistic)
    y = LINE.sample(200, seed=5, dtype=torch.float64)
    two = metrics.ks(x, y)
    assert two.value == pytest.approx(stats.ks_2samp(x[:, 0].numpy(), y[:, 0].numpy()).statistic)
    assert (two.samples, two.reference) == (300, 200)
    assert two.floor == pytest.approx(stats.kstwobign.ppf(0.95) * math.sqrt(1 / 300 + 1 / 200))
    assert gauss.stderr == pytest.approx(math.sqrt(share * (1 - share) / 300), rel=1e-9)
    drawn = metrics.ks(x, sk.Empirical(LINE.sample(50, seed=7), 0.1), size=400)
    assert drawn.reference == 400


def test_ks_pvalues_of_exact_samples_are_uniform():
    """Kolmogorov-Smirnov of 200 p-values at 1e-4."""
    p = [metrics.ks(LINE.sample(40, seed=k, dtype=torch.float64), LINE).pvalue for k in range(REPEATS)]
    assert stats.kstest(p, "uniform").pvalue > RATE


def test_c2st_tells_what_can_be_told():
    """Exact samples: chance level, 400 predictions within 4.5 binomial standard errors."""
    x = GAUSSIAN.sample(200, seed=1)
    same = metrics.c2st(x, GAUSSIAN, repeats=0)
    assert abs(same.value - 0.5) < 4.5 * same.stderr
    apart = metrics.c2st(x, x + 50, repeats=19)
    assert (apart.value, apart.pvalue) == (1.0, 0.05)
    assert apart.floor < 0.65


def test_c2st_takes_any_classifier_and_is_fair_to_unequal_sets():
    from sklearn.linear_model import LogisticRegression

    x, y = normals(300, 2, 0), normals(60, 2, 1)
    found = metrics.c2st(x, y, classifier=LogisticRegression(), repeats=9)
    assert (found.samples, found.reference) == (60, 60)
    wide = metrics.c2st(x * 3, normals(300, 2, 2), classifier=LogisticRegression(), repeats=0)
    assert wide.value < 0.6 < metrics.c2st(x * 3, normals(300, 2, 2), repeats=0).value


def test_c2st_pvalues_of_exact_samples_are_uniform():
    """60 repetitions with 9 relabellings: p <= 1/10 in Binomial(60, 0.1) of them, at 1e-4."""
    from sklearn.neighbors import KNeighborsClassifier

    p = [
        metrics.c2st(
            normals(20, 1, 2 * k),
            normals(20, 1, 2 * k + 1),
            classifier=KNeighborsClassifier(3),
            folds=2,
            repeats=9,
            seed=k,
        ).pvalue
        for k in range(60)
    ]
    assert sum(v <= 0.1 for v in p) <= stats.binom.ppf(1 - RATE, 60, 0.1)
    assert np.mean(p) > 0.4


def test_without_scikit_learn_the_error_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.base", None)
    with pytest.raises(OptionalDependencyError, match="pip install 'sdekit"):
        metrics.c2st(normals(20, 1, 0), normals(20, 1, 1))


# The door.


@pytest.mark.parametrize("name", ["w2_gaussian", "sliced_w2", "energy_distance", "mmd"])
def test_results_follow_from_the_seed_and_arrays_are_tensors(name):
    run = getattr(metrics, name)
    x = MIXTURE.sample(40, seed=1, dtype=torch.float64)
    first = run(x, MIXTURE, repeats=9, seed=3)
    assert run(x.numpy(), MIXTURE, repeats=9, seed=3) == first
    assert run(x, MIXTURE, repeats=9, seed=4) != first


@pytest.mark.parametrize("name", ["energy_distance", "mmd", "c2st"])
def test_reference_samples_are_never_the_user_s_own(name):
    """target.sample(n, seed=0) against the target at seed 0: two sets, not one and itself."""
    given_ = pair(MIXTURE.sample(50, seed=0, dtype=torch.float64), MIXTURE, 0)
    assert not torch.isclose(given_.draw(50)[:, None], given_.x[None]).all(-1).any()
    assert getattr(metrics, name)(given_.x, MIXTURE, repeats=9).value != 0


def test_images_are_flattened():
    data = sk.Gaussian(torch.zeros(1, 3, 3), variance=1.0)
    x = data.sample(30, seed=1)
    flat = metrics.energy_distance(x.flatten(1), data.sample(30, seed=2).flatten(1), repeats=0)
    assert metrics.energy_distance(x, data.sample(30, seed=2), repeats=0).value == pytest.approx(flat.value)


@pytest.mark.parametrize("name", ["w2_gaussian", "sliced_w2", "energy_distance", "mmd", "c2st"])
def test_bad_input_is_named(name):
    run = getattr(metrics, name)
    x = MIXTURE.sample(30, seed=1)
    broken = x.clone()
    broken[4, 1] = math.nan
    with pytest.raises(NonFiniteError, match="samples holds NaN or infinity in 1 of 30"):
        run(broken, MIXTURE)
    with pytest.raises(ShapeError, match=r"samples must have shape \(n, 2\), the target's event shape"):
        run(x[:, :1], MIXTURE)
    with pytest.raises(ShapeError, match="samples of one shape"):
        run(x, x[:, :1])
    with pytest.raises(ShapeError, match="must be floating"):
        run(x.long(), MIXTURE)
    with pytest.raises(ShapeError, match="n >= "):
        run(x[:1], MIXTURE)
    with pytest.raises(ValueError, match="repeats must be a whole number >= 0"):
        run(x, MIXTURE, repeats=-1)


def test_laws_that_do_not_fit_are_named():
    with pytest.raises(ShapeError, match=r"pair \(mean \(D,\), cov \(D, D\)\).*torch.diag"):
        metrics.w2_gaussian((torch.zeros(2), torch.ones(2)), GAUSSIAN)
    with pytest.raises(ShapeError, match="one dimension, got 3 and 2"):
        metrics.w2_gaussian((torch.zeros(3), torch.eye(3)), GAUSSIAN)
    with pytest.raises(ShapeError, match="ks needs numbers"):
        metrics.ks(MIXTURE.sample(30), MIXTURE)
    with pytest.raises(ShapeError, match="fewer folds"):
        metrics.c2st(normals(6, 1, 0), normals(6, 1, 1))


def test_a_metric_prints_what_it_knows():
    text = repr(metrics.energy_distance(normals(30, 1, 0), normals(30, 1, 1)))
    for word in ("energy distance = ", "±", "exact samples stay below", "p = "):
        assert word in text
    assert "p =" not in repr(metrics.energy_distance(normals(30, 1, 0), normals(30, 1, 1), repeats=0))
    assert float(metrics.ks(normals(30, 1, 0), stats.norm.cdf)) > 0


def test_the_jackknife_is_that_of_the_mean():
    """For a mean the delete-one-block jackknife is the blocks' own standard error."""
    x = normals(400, 1, 0)
    found = judge("mean", lambda v, _: float(v.mean()), pair(x, MIXTURE_LINE, 0), None, 0)
    means = x.reshape(20, 20).mean(0)  # every 20th row is a block
    assert found.stderr == pytest.approx(float(means.std()) / math.sqrt(20), rel=1e-9)


MIXTURE_LINE = sk.GaussianMixture([1.0], [0.0], 1.0)


def test_a_solution_counts_as_its_samples():
    made = sk.sample(GAUSSIAN.denoiser(sk.VP()), (50, 2), steps=3)
    found, same = (metrics.energy_distance(x, GAUSSIAN, repeats=9) for x in (made, made.x))
    assert found == same
