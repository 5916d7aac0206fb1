"""The second look at a flow: integrals with nodes on both sides, the trace moved to the kept state."""

from __future__ import annotations

import math

import pytest
import torch

import sdekit as sk
from sdekit.likelihood import hindsight
from sdekit.likelihood.adams import Adams
from sdekit.likelihood.flow import Coordinates, Flow
from sdekit.likelihood.hindsight import NODES, SIDE, Record, _Nodes
from sdekit.likelihood.trace import Exact
from tests.likelihood.test_log_prob import at_start, mixture

WIDTH = 2 * SIDE + 2


def windows(seed=0, count=4):
    g = torch.Generator().manual_seed(seed)
    return torch.rand(count, WIDTH, generator=g, dtype=torch.float64).add(0.5).cumsum(1) * 0.1 - 1.0


@pytest.mark.parametrize("degree", [0, 1, 2, 3, 5, 8, 10])
def test_polynomials_are_integrated_exactly(degree):
    u = windows()
    known = torch.ones_like(u, dtype=torch.bool)
    a, b = u[:, SIDE], u[:, SIDE + 1]
    middle = (0.5 * (a + b))[:, None]
    found = hindsight._integral(u, known, (u - middle) ** degree + 3.0)
    half = (b - a) / 2
    exact = (half ** (degree + 1) - (-half) ** (degree + 1)) / (degree + 1) + 3.0 * (b - a)
    torch.testing.assert_close(found, exact, rtol=1e-9, atol=1e-12)


def test_smooth_functions_are_integrated_with_many_nodes():
    """Of cos over steps of 0.1, with 14 nodes: far better than the 1e-9 of eight."""
    u = windows(1)
    found = hindsight._integral(u, torch.ones_like(u, dtype=torch.bool), torch.cos(4 * u))
    exact = (torch.sin(4 * u[:, SIDE + 1]) - torch.sin(4 * u[:, SIDE])) / 4
    assert float((found - exact).abs().max()) < 1e-11


@pytest.mark.parametrize("side", [-1, 1])
def test_polynomials_do_not_reach_over_a_jump(side):
    u = windows(2)
    jump = u[:, SIDE : SIDE + 1] if side < 0 else u[:, SIDE + 1 : SIDE + 2]
    beyond = side * (u - jump) > 1e-12
    found = hindsight._integral(u, torch.ones_like(beyond), torch.where(beyond, 40.0, 2 + u**3))
    a, b = u[:, SIDE], u[:, SIDE + 1]
    torch.testing.assert_close(found, 2 * (b - a) + (b**4 - a**4) / 4, rtol=1e-9, atol=0)


@pytest.mark.parametrize("there", [(SIDE, WIDTH), (0, SIDE + 2), (SIDE - 2, SIDE + 4)])
def test_nodes_that_are_not_there_do_not_count(there):
    u = windows(3)
    place = torch.arange(WIDTH)
    known = ((place >= there[0]) & (place < there[1])).expand_as(u)
    found = [hindsight._integral(u, known, torch.where(known, u**3, far)) for far in (0.0, 1e6)]
    a, b = u[:, SIDE], u[:, SIDE + 1]
    assert torch.equal(*found)
    torch.testing.assert_close(found[0], (b**4 - a**4) / 4, rtol=1e-9, atol=1e-12)


def test_a_term_that_vanishes_by_accident_does_not_end_the_sum():
    """On equal steps the third difference of an even function about the step's middle is 0."""
    u = (torch.arange(WIDTH, dtype=torch.float64) - SIDE - 0.5)[None] * 0.1
    found = hindsight._integral(u, torch.ones_like(u, dtype=torch.bool), torch.cos(4 * u))
    assert float((found - math.sin(0.2) / 2).abs()) < 1e-10


def test_nodes_by_rows():
    """Rows leave and reject: each keeps its own nodes, in order."""
    rows = [torch.tensor(r) for r in ([0, 1, 2], [0, 2], [2], [0, 2])]
    marks = [torch.tensor(m, dtype=torch.float64) for m in ([0, 10, 20], [1, 21], [22], [2, 23])]
    nodes = [_Nodes(*(m if k != 1 else torch.stack([m, -m], 1) for k in range(8))) for m in marks]
    run, known = hindsight._by_rows(rows, nodes)
    assert known.tolist() == [[True] * 3 + [False], [True] + [False] * 3, [True] * 4]
    assert run.u[known].tolist() == [0, 1, 2, 10, 20, 21, 22, 23]
    assert run.y[0, 2].tolist() == [2, -2]


def test_the_score_turns_at_the_slope_of_a_parabola():
    u = torch.tensor([[0.1, 0.3, 0.4, 0.7], [0.1, 0.2, 0.5, 0.5]], dtype=torch.float64)
    known = torch.tensor([[True] * 4, [True, True, True, False]])
    score = torch.stack([u**2, 3 * u], dim=-1)
    e = torch.tensor([2.0, 1.0], dtype=torch.float64).expand(2, 4, 2)
    none = torch.zeros_like(u)
    found = hindsight._turning(_Nodes(u, score, none, score, none, score, e, none), known)
    exact = 2 * 2 * u + 3.0
    torch.testing.assert_close(found[0, 1:3], exact[0, 1:3])
    torch.testing.assert_close(found[1, 1], exact[1, 1])
    assert found[:, 0].tolist() == [0, 0]
    for row, last in ((0, 3), (1, 2)):  # one side alone
        assert float(found[row, last]) == pytest.approx(2 * float(u[row, last] + u[row, last - 1]) + 3)


@pytest.mark.parametrize(("start", "images"), [(0.1, [-0.3, -0.2, -0.1]), (0.0, [-0.3, -0.2])])
def test_mirror_images(start, images):
    u = torch.tensor([[start, 0.2, 0.3]], dtype=torch.float64)
    found = hindsight._mirrored(u, u)[0].tolist()
    assert found[SIDE - len(images) : SIDE + 3] == pytest.approx([*images, start, 0.2, 0.3])
    assert not any(found[: SIDE - len(images)])
    assert found[SIDE + 3 :] == [0.0] * SIDE


def parts(d=3, rows=5):
    target, process = mixture(d), sk.VP()
    c = Coordinates(target.denoiser(process), target.data_std, 1e-5, 1.0)
    return target, process, c, Flow(c, torch.Size([d]), Exact(), torch.float64)


def test_the_score_of_the_law():
    target, process, c, flow = parts()
    u = torch.tensor([0.05, 0.3, 0.8, 1.2, 1.5], dtype=torch.float64)
    state = flow.start(target.sample(5, seed=1, dtype=torch.float64), 1.0)
    with torch.no_grad():
        found = flow.score(state, flow.drift(state, u), u)
    node, _ = c.at(u)
    for i, norm in enumerate(c.norm(node)):
        law = target.marginal(process, float(node.t[i]))
        exact = norm * law.score(process)(norm * state[i : i + 1, :3], 0.0)
        torch.testing.assert_close(found[i : i + 1], exact, rtol=1e-6, atol=1e-6)


def test_the_trace_moves_with_the_score():
    """grad tr V' . e = -(ds/du) . e - s . V' e for the flow of a law, by differences."""
    target, _, _, flow = parts()
    state = flow.start(target.sample(5, seed=2, dtype=torch.float64), 1.0)
    u = torch.full((5,), 0.6, dtype=torch.float64)
    g = torch.Generator().manual_seed(0)
    e = torch.zeros_like(state)
    e[:, :3] = 1e-5 * torch.randn(5, 3, generator=g, dtype=torch.float64)
    with torch.no_grad():
        moved = (flow.drift(state + e, u) - flow.drift(state - e, u))[:, 3] / 2 * math.sqrt(3)
        slope = flow.drift(state, u)
        turn = (flow.score(state, slope, u) * flow.response(e)[:, :3]).sum(1)
        scores = []
        for h in (-1e-4, 1e-4):
            at = state + slope * h
            scores.append(flow.score(at, flow.drift(at, u + h), u + h))
        turning = ((scores[1] - scores[0]) / 2e-4 * e[:, :3]).sum(1)
    torch.testing.assert_close(moved, -turning - turn, rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize(("process", "gain"), [(sk.VP(), 8.0), (sk.EDM(), 8.0), (sk.RectifiedFlow(), 8.0)])
def test_it_mends_most_of_the_error(monkeypatch, process, gain):
    """Eight components on a circle: the same calls, a fraction of the error."""
    angle = torch.arange(8, dtype=torch.float64) * (math.pi / 4)
    target = sk.GaussianMixture(torch.ones(8), 2 * torch.stack([angle.cos(), angle.sin()], 1), 0.04)
    law, x = at_start(target, process, 10)
    errors, calls = [], []
    for mended in (False, True):
        if not mended:
            monkeypatch.setattr(Record, "correction", lambda self, allowed: torch.zeros(10))
        found = sk.log_prob(
            target.denoiser(process),
            x,
            prior=target.marginal(process, process.t_max),
            rtol=1e-4,
            atol=1e-4,
        )
        monkeypatch.undo()
        errors.append(float((found.value - law.log_prob(x)).abs().quantile(0.95)))
        calls.append(found.nfe)
    assert calls[0] == calls[1]
    assert errors[1] * gain < errors[0]


def recorded(allowed, tolerance=1e-3, **options):
    target, _, c, flow = parts()
    record = Record(flow)
    solver = Adams(size=3, record=record, **options)
    x = flow.start(target.sample(5, seed=3, dtype=torch.float64), 1.0)
    with torch.no_grad():
        found = sk.solve(flow, x, (c.u(1e-5), c.u(1.0)), solver=solver, rtol=tolerance, atol=tolerance)
        return found, record, record.correction(allowed)


def test_a_step_is_changed_by_twice_what_it_was_allowed_at_most():
    _, record, free = recorded(1e3)
    steps = torch.bincount(torch.cat(record.rows)) - 1
    _, _, none = recorded(0.0)
    assert not none.any()
    _, _, little = recorded(1e-12)  # every step is changed by 2e-12 up or down
    assert (little / 2e-12 - steps).remainder(2.0).sub(1).abs().tolist() == pytest.approx([1.0] * 5, abs=1e-3)
    assert bool((steps % 2 == 1).any())
    assert float(free.abs().max()) > 1e-5


def test_good_steps_are_kept_and_no_others():
    kept = []
    for compact in (False, True):
        found, record, change = recorded(1.0, 1e-6, compact=compact)
        counts = torch.bincount(torch.cat(record.rows))
        run, known = hindsight._by_rows(record.rows, record.nodes)
        assert found.stats.rejected > 0
        assert int(counts.max()) == found.stats.accepted + 1
        assert bool((run.u.diff(dim=1) > 0)[known[:, 1:]].all())
        ends = run.y[torch.arange(5), counts - 1]
        assert torch.equal(ends, found.x[:, :3])
        kept.append(change)
    assert torch.equal(*kept)


def test_what_is_allowed():
    assert Adams(rtol=1e-3, atol=2e-3).allowed == pytest.approx(6e-3)
    assert Adams(rtol=1e-3, atol=2e-3, record=Record(parts()[3])).allowed == pytest.approx(12e-3)


def test_estimated_traces_are_left_alone(monkeypatch):
    def broken(*arguments):
        raise AssertionError("not for probes")

    monkeypatch.setattr(Record, "add", broken)
    target, process = mixture(2), sk.VP()
    _, x = at_start(target, process, 2)
    found = sk.log_prob(target.denoiser(process), x, trace="hutchinson", probes=2, rtol=1e-2, atol=1e-2)
    assert bool(found.value.isfinite().all())
    with pytest.raises(AssertionError, match="not for probes"):
        sk.log_prob(target.denoiser(process), x)


def test_the_longest_polynomial():
    """K nodes need Gauss-Legendre on K/2 points."""
    assert len(hindsight.GAUSS[0]) * 2 == NODES == SIDE + 2
