"""Conversions between predictions: inverse pairs, exact endpoints, and refusals where one says nothing."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

import sdekit as sk
from sdekit.errors import EndpointError
from sdekit.score.predictions import KINDS, Node, components, conversion
from tests.samplers.problems import PROCESSES, prediction

PAIRS = list(itertools.product(KINDS, KINDS))
unit = st.floats(0.0, 1.0)
stds = st.floats(0.05, 20.0)


def node_of(process, t) -> Node:
    values = (f(t) for f in (process.alpha, process.sigma, process.dalpha, process.dsigma))
    return Node(float(t), *(float(v) for v in values))


def inside(process, u: float) -> float:
    """A time a fraction u of the way from t_min to the last time with finite drift."""
    return float(process.t_min) + u * (float(process.finite_t_max) - float(process.t_min))


@given(process=st.sampled_from(list(PROCESSES)), u=unit, kinds=st.sampled_from(PAIRS), s=stds)
def test_pairs_are_inverse(process, u, kinds, s):
    """b = p x + q a and a = p' x + q' b: q q' = 1, p' = -p q'."""
    a, b = kinds
    node = node_of(PROCESSES[process], inside(PROCESSES[process], u))
    p, q = conversion(a, b, node, s)
    p_back, q_back = conversion(b, a, node, s)
    assert q * q_back == pytest.approx(1.0, rel=1e-9)
    scale = max(abs(p_back), abs(p * q_back))
    assert p_back + p * q_back == pytest.approx(0.0, abs=1e-9 * (1 + scale))


@given(process=st.sampled_from(list(PROCESSES)), u=unit, kinds=st.sampled_from(PAIRS), s=stds)
def test_conversions_are_the_papers_formulas(process, u, kinds, s):
    """From x0 and eps drawn freely, every prediction written out from its own paper."""
    law = PROCESSES[process]
    node = node_of(law, inside(law, u))
    x0, eps = 0.7, -1.3
    x = node.alpha * x0 + node.sigma * eps
    names = {"F": "edm"}
    a, b = (
        prediction(names.get(k, k), x0, x, node.alpha, node.sigma, node.dalpha, node.dsigma, s) for k in kinds
    )
    p, q = conversion(*kinds, node, s)
    size = abs(p * x) + abs(q * a) + abs(b)
    assert p * x + q * a == pytest.approx(b, abs=1e-8 * size)


@given(
    process=st.sampled_from(list(PROCESSES)),
    u=unit,
    through=st.sampled_from(KINDS),
    kinds=st.sampled_from(PAIRS),
)
def test_conversions_compose(process, u, through, kinds):
    a, b = kinds
    node = node_of(PROCESSES[process], inside(PROCESSES[process], u))
    p, q = conversion(a, b, node, 0.6)
    p1, q1 = conversion(a, through, node, 0.6)
    p2, q2 = conversion(through, b, node, 0.6)
    assert q2 * q1 == pytest.approx(q, rel=1e-7)
    assert p2 + q2 * p1 == pytest.approx(p, rel=1e-6, abs=1e-7 * (abs(p2) + abs(q2 * p1)))


@given(process=st.sampled_from(list(PROCESSES)), u=unit, s=stds, wanted=stds)
def test_f_of_one_data_std_is_not_f_of_another(process, u, s, wanted):
    assume(abs(s - wanted) > 0.01)
    node = node_of(PROCESSES[process], inside(PROCESSES[process], u))
    x0, eps = 0.7, -1.3
    x = node.alpha * x0 + node.sigma * eps
    given_, expected = (
        prediction("edm", x0, x, node.alpha, node.sigma, node.dalpha, node.dsigma, v) for v in (s, wanted)
    )
    p, q = conversion("F", "F", node, s, wanted)
    assert p * x + q * given_ == pytest.approx(expected, rel=1e-8, abs=1e-8 * abs(p * x))
    assert conversion("F", "F", node, s, s) == (0.0, 1.0)


def test_zeros_are_exact():
    node = node_of(sk.VP(), 0.3)
    assert conversion("eps", "score", node)[0] == 0.0
    assert conversion("score", "eps", node)[0] == 0.0
    for kind in KINDS:
        assert conversion(kind, kind, node, 0.5) == (0.0, 1.0)


@pytest.mark.parametrize("process", ["Cosine", "RectifiedFlow"])
def test_the_end_at_pure_noise_is_exact(process):
    """alpha = 0: x = sigma eps, so eps and score say nothing of x0; the others are exact there."""
    law = PROCESSES[process]
    node = node_of(law, law.t_max)
    assert node.alpha == 0.0
    x0, eps = 0.4, 2.0
    for a, b in PAIRS:
        if a in ("eps", "score") and b not in ("eps", "score"):
            with pytest.raises(EndpointError, match=r"alpha = 0 \(pure noise\).*Likely cause.*Next"):
                conversion(a, b, node, 0.7)
            continue
        p, q = conversion(a, b, node, 0.7)
        (a0, a1), (b0, b1) = components(a, node, 0.7), components(b, node, 0.7)
        found = p * node.sigma * eps + q * (a0 * x0 + a1 * eps)
        assert found == pytest.approx(b0 * x0 + b1 * eps, abs=1e-12)


@pytest.mark.parametrize("process", ["Cosine", "RectifiedFlow", "EDM", "SubVP", "VP"])
def test_the_end_at_clean_data_is_exact_or_refused(process):
    """sigma = 0: x0 says nothing of eps, the score is infinite, VP's velocity too."""
    law = PROCESSES[process]
    node = node_of(law, 0.0)
    assert (node.alpha, node.sigma) == (1.0, 0.0)
    for a, b in PAIRS:
        unlike = a != b
        infinite = unlike and ("score" in (a, b) or (process == "VP" and "velocity" in (a, b)))
        if infinite or (a == "x0" and unlike):
            with pytest.raises(EndpointError, match="Next"):
                conversion(a, b, node, 0.7)
            continue
        if "score" in (a, b) or (process == "VP" and "velocity" in (a, b)):
            continue  # a kind to itself, infinite as it is
        p, q = conversion(a, b, node, 0.7)
        x0, eps = 0.4, 2.0
        (a0, a1), (b0, b1) = components(a, node, 0.7), components(b, node, 0.7)
        assert p * x0 + q * (a0 * x0 + a1 * eps) == pytest.approx(b0 * x0 + b1 * eps, abs=1e-12)


@pytest.mark.parametrize("process", ["Cosine", "RectifiedFlow"])
@pytest.mark.parametrize("kinds", PAIRS)
def test_the_end_is_the_limit(process, kinds):
    """t -> t_max: coefficients converge to those at t_max, where they exist."""
    law = PROCESSES[process]
    try:
        at_end = conversion(*kinds, node_of(law, law.t_max), 0.7)
    except EndpointError:
        near = conversion(*kinds, node_of(law, law.t_max - 1e-9), 0.7)
        assert max(map(abs, near)) > 1e6
        return
    near = conversion(*kinds, node_of(law, law.t_max - 1e-9), 0.7)
    assert near == pytest.approx(at_end, abs=1e-7)


def test_tensors_convert_row_by_row():
    law = sk.VP()
    t = torch.linspace(0.1, 1.0, 7, dtype=torch.float64)
    node = Node(t, law.alpha(t), law.sigma(t), law.dalpha(t), law.dsigma(t))
    for a, b in PAIRS:
        p, q = (torch.as_tensor(v, dtype=torch.float64).expand(7) for v in conversion(a, b, node, 0.7))
        for i in range(7):
            expected = conversion(a, b, node_of(law, float(t[i])), 0.7)
            assert (float(p[i]), float(q[i])) == pytest.approx(expected, rel=1e-12, abs=1e-15)


def test_an_undetermined_row_of_a_batch_is_refused():
    """NaN must not slip through where some rows have their own time at an end."""
    for law, t, pair in (
        (sk.VP(), [0.5, 0.0], ("x0", "eps")),
        (sk.VP(), [0.5, 0.0], ("v", "score")),
        (sk.VP(), [0.5, 0.0], ("v", "velocity")),
        (sk.RectifiedFlow(), [0.5, 1.0], ("eps", "x0")),
    ):
        time = torch.tensor(t, dtype=torch.float64)
        node = Node(time, *(f(time) for f in (law.alpha, law.sigma, law.dalpha, law.dsigma)))
        with pytest.raises(EndpointError, match=f"t = {t[1]:g}"):
            conversion(*pair, node)


def test_the_score_at_clean_data_and_f_without_its_scale_are_refused():
    node = Node(0.0, 1.0, 0.0, -1.0, 1.0)
    with pytest.raises(EndpointError, match=r"score is infinite where sigma = 0.*Next"):
        components("score", node)
    with pytest.raises(ValueError, match=r"scaled by data_std, and none was given.*Next"):
        components("F", Node(0.5, 0.5, 0.5, -1.0, 1.0))
    with pytest.raises(KeyError, match=r"unknown prediction 'epsilon'.*'eps'"):
        conversion("x0", "epsilon", Node(0.5, 0.5, 0.5))
    assert math.isnan(Node(0.5, 0.5, 0.5).dalpha)
