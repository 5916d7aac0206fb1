"""The calculators of noise conditional score networks: the shipped configurations, and by recursion."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chi, norm

import sdekit as sk
from sdekit.errors import NonFiniteError

#: Figures of the shipped configurations: exit variance of their (T, eps) at their levels.
VARIANCE = {"cifar10": 1.055, "celeba": 1.031, "church": 1.025, "bedroom": 1.017, "ffhq": 1.009}
COUNT = {"cifar10": 232, "celeba": 500, "church": 788, "bedroom": 1086, "ffhq": 2311}
#: Their printed eps, where technique 4 chose it.
EPS = {"cifar10": "6.2e-06", "celeba": "3.3e-06", "bedroom": "1.8e-06", "ffhq": "8.9e-07"}


def recursion(u: float, ratio: float, steps: int, levels: int = 1) -> float:
    """Variance over sigma^2 on a point mass after T steps at each of several levels, step by step."""
    v = 1.0
    for _ in range(levels):
        v *= ratio**2
        for _ in range(steps):
            v = (1 - u) ** 2 * v + 2 * u
    return v


@pytest.mark.parametrize("name", VARIANCE)
def test_the_shipped_configurations(name):
    c = sk.ncsn.SHIPPED[name]
    assert len(c.levels) == COUNT[name]
    assert (float(c.levels[0]), float(c.levels[-1])) == (c.sigma_max, 0.01)
    assert sk.ncsn.overlap(c.levels, c.dimension) == pytest.approx(0.567, abs=1e-3)
    variance = sk.ncsn.exit_variance(c.levels, c.steps_per_level, c.eps)
    assert round(variance, 3) == VARIANCE[name]
    best = sk.ncsn.steps(c.levels, c.steps_per_level)
    assert best.variance <= variance
    if name in EPS:
        assert f"{best.eps:.1e}" == EPS[name]


def test_in_units_of_the_norm_based_corrector():
    """r = sqrt(eps/2)/sigma_L."""
    r = [math.sqrt(sk.ncsn.SHIPPED[n].eps / 2) / 0.01 for n in ("cifar10", "celeba", "bedroom")]
    assert [round(v, 3) for v in r] == [0.176, 0.128, 0.095]


def test_ncsn_of_2019():
    """Ten levels from 1 to 0.01, 100 steps; its eps = 2e-5 multiplies score/2."""
    c = sk.ncsn.NCSN
    assert len(c.levels) == 10
    assert float(c.levels[0]) == 1.0
    assert c.steps_per_level == 100
    assert c.eps == 2e-5 / 2
    torch.testing.assert_close(c.levels[1:] / c.levels[:-1], torch.full((9,), 0.01 ** (1 / 9)).double())


@given(u=st.floats(1e-4, 0.9), ratio=st.floats(1.0, 1.5), steps=st.integers(1, 20))
def test_exit_variance_is_the_recursion(u, ratio, steps):
    levels = [ratio * 0.01 + 1e-12, 0.01]
    ratio = levels[0] / levels[1]
    found = sk.ncsn.exit_variance(levels, steps, u * 1e-4)
    assert found == pytest.approx(recursion(u, ratio, steps), rel=1e-9)
    assert found >= 1 - 1e-12
    carried = sk.ncsn.exit_variance(levels, steps, u * 1e-4, carried=True)
    if (1 - u) ** (2 * steps) * ratio**2 < 0.9:
        assert carried == pytest.approx(recursion(u, ratio, steps, levels=400), rel=1e-9)
    elif (1 - u) ** (2 * steps) * ratio**2 >= 1:
        assert carried == math.inf


@given(ratio=st.floats(1.02, 2.0), steps=st.integers(3, 30), carried=st.booleans())
def test_no_other_step_leaves_less(ratio, steps, carried):
    levels = [0.01 * ratio, 0.01]
    best = sk.ncsn.steps(levels, steps, carried=carried)
    for factor in (0.5, 0.9, 1.1, 1.7):
        assert sk.ncsn.exit_variance(levels, steps, factor * best.eps, carried=carried) >= best.variance
    assert sk.ncsn.exit_variance(levels, steps, best.eps, carried=carried) == pytest.approx(best.variance)


def test_fine_levels_need_the_carried_rule():
    """T = 1, h = ln ratio -> 0: the rule takes u = 2 h and carries variance 2; the fixed point, sqrt(2 h)."""
    fine = sk.ncsn.levels(50.0, count=5000)
    h = math.log(50.0 / 0.01) / 4999
    plain, best = (sk.ncsn.steps(fine, 1, carried=carried) for carried in (False, True))
    assert plain.eps / 1e-4 == pytest.approx(2 * h, rel=0.05)
    assert sk.ncsn.exit_variance(fine, 1, plain.eps, carried=True) == pytest.approx(2, rel=0.05)
    assert best.eps / 1e-4 == pytest.approx(math.sqrt(2 * h), rel=0.05)
    assert best.variance - 1 == pytest.approx(math.sqrt(2 * h), rel=0.05)


@given(d=st.integers(8, 10**6), overlap=st.floats(0.05, 0.95), top=st.floats(0.1, 1e3))
def test_levels_overlap_as_asked_and_no_fewer_would(d, overlap, top):
    found = sk.ncsn.levels(top, 0.01, dimension=d, overlap=overlap)
    assert float(found[0]) == top
    assert float(found[-1]) == 0.01
    assert sk.ncsn.overlap(found, d) >= overlap - 1e-9
    if len(found) > 2:
        fewer = sk.ncsn.levels(top, 0.01, count=len(found) - 1)
        assert sk.ncsn.overlap(fewer, d) < overlap
        ratios = found[:-1] / found[1:]
        torch.testing.assert_close(ratios, ratios[:1].expand_as(ratios), rtol=1e-9, atol=0)


@pytest.mark.parametrize("d", [300, 3072])
def test_the_overlap_is_that_of_radii(d):
    """|N(0, sigma^2 I)| within three deviations of the radius one level up: chi's own law, to O(D^-1/2)."""
    levels = sk.ncsn.levels(1.0, 0.01, dimension=d)
    g = float(levels[0] / levels[1])
    edges = [math.sqrt(d) * g + k * g / math.sqrt(2) for k in (3, -3)]
    exact = chi.cdf(edges[0], d) - chi.cdf(edges[1], d)
    assert sk.ncsn.overlap(levels, d) == pytest.approx(exact, abs=0.5 / math.sqrt(d))


@given(d=st.integers(1, 50), ratio=st.floats(1.01, 3.0))
def test_the_overlap_as_printed(d, ratio):
    """Phi(sqrt(2 D) (g - 1) + 3 g) - Phi(sqrt(2 D) (g - 1) - 3 g): the upper edge shows in few dimensions."""
    shift = math.sqrt(2 * d) * (ratio - 1)
    expected = norm.cdf(shift + 3 * ratio) - norm.cdf(shift - 3 * ratio)
    assert sk.ncsn.overlap([0.01 * ratio, 0.01], d) == pytest.approx(expected, abs=1e-12)


def test_max_distance():
    g = torch.Generator().manual_seed(0)
    x = torch.randn(70, 2, 3, generator=g)
    direct = max(float((a - b).double().norm()) for a in x for b in x)
    for block in (7, 64, 1024):
        assert sk.ncsn.max_distance(x, block) == pytest.approx(direct, rel=1e-6)
    assert sk.ncsn.max_distance([[0.0, 0.0], [3.0, 4.0]]) == pytest.approx(5.0)


def test_the_unconditional_network_is_a_score():
    """s(x)/sigma with s = -eps: the target of denoising score matching at every level."""
    net = torch.nn.Linear(3, 3).double()
    process = sk.EDM(0.01, 10.0)
    model = sk.Denoiser(sk.ncsn.Unconditional(net), process, predicts="score", time="sigma")
    x = torch.randn(5, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for sigma in (0.01, 0.7, 10.0):
        torch.testing.assert_close(model.score(x, sigma), net(x) / sigma)
        torch.testing.assert_close(model.eps(x, sigma), -net(x))
    sigmas = torch.linspace(0.1, 1.0, 5).double()
    torch.testing.assert_close(sk.ncsn.Unconditional(net)(x, sigmas), net(x) / sigmas[:, None])


def test_budget():
    levels = sk.ncsn.levels(50.0, count=100)
    assert sk.ncsn.steps(levels, nfe=512).steps_per_level == 5
    with pytest.raises(ValueError, match="100 levels need at least 100 evaluations"):
        sk.ncsn.steps(levels, nfe=99)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: sk.ncsn.levels(0.01, 1.0, count=3), "must exceed"),
        (lambda: sk.ncsn.levels(1.0), "one of them"),
        (lambda: sk.ncsn.levels(1.0, dimension=3, count=3), "one of them"),
        (lambda: sk.ncsn.levels(1.0, dimension=3, overlap=1.0), "overlap must lie"),
        (lambda: sk.ncsn.levels(1.0, dimension=1, overlap=0.01), "Next: pass count"),
        (lambda: sk.ncsn.steps([1.0, 0.1]), "one of them"),
        (lambda: sk.ncsn.overlap([0.1, 1.0], 3), "fall strictly"),
        (lambda: sk.ncsn.exit_variance([1.0], 3, 1e-5), "fall strictly"),
        (lambda: sk.ncsn.overlap([math.inf, 1.0], 3), "finite numbers above 0"),
        (lambda: sk.ncsn.overlap(None, 3), "numbers, got NoneType"),
        (lambda: sk.ncsn.exit_variance([1.0, 0.5], 3, 0.5), "unstable from 2"),
        (lambda: sk.ncsn.exit_variance([1.0, 0.1], 3, 1e9, carried=True), "unstable from 2"),
        (lambda: sk.ncsn.max_distance(torch.ones(1, 3)), "N >= 2"),
        (lambda: sk.ncsn.max_distance("data"), "got str"),
    ],
)
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_data_with_nan_have_no_largest_distance():
    data = torch.ones(3, 2)
    data[1, 0] = math.nan
    with pytest.raises(NonFiniteError, match="first: sample 1"):
        sk.ncsn.max_distance(data)
    assert sk.ncsn.max_distance(torch.tensor([[0, 0], [3, 4]], dtype=torch.uint8)) == 5.0
