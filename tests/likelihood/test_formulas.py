"""The choice of the next step by brute force, the time of the flow, where it starts, one row among others."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

import sdekit as sk
from sdekit.likelihood import adams, door
from sdekit.likelihood.adams import LENGTHS, NODES, SAFETY, Adams
from sdekit.likelihood.flow import Coordinates, Flow
from sdekit.likelihood.trace import Exact
from sdekit.sde.horizon import first_training_time
from tests.likelihood.test_log_prob import mixture


def integral(nodes, a, h):
    """int_a^{a+h} prod (s - n) ds, by Gauss-Legendre on 8 points."""
    points, weights = np.polynomial.legendre.leggauss(8)
    s = a + h * (points + 1) / 2
    return h / 2 * float((weights * np.prod([s - n for n in nodes] or [np.ones(8)], axis=0)).sum())


def longest(norms, nodes, start, h, degrees, limit):
    """(h'/h, J): the longest allowed step whose correction from the new node has a small last term."""
    best = (LENGTHS[0], -1)
    for j in degrees:
        for ratio in LENGTHS:
            end = start + ratio * h
            error = abs(integral([end, *nodes[: j - 1]], start, ratio * h)) * norms[j]
            if ratio <= limit and error <= SAFETY and (ratio, -j) > (best[0], -best[1]):
                best = (ratio, j)
    return best


@pytest.mark.parametrize(
    ("count", "degree", "good", "degrees", "limit"),
    [
        (8, 5, True, range(2, 7), 2.0),
        (8, 7, True, range(2, 8), 2.0),
        (8, 2, True, range(2, 4), 2.0),
        (4, 3, True, range(2, 4), 4.0),
        (6, 3, True, range(2, 5), 4.0),
        (8, 5, False, [5], 0.65),
        (8, 3, False, [3], 0.65),
    ],
)
def test_the_next_step_is_the_longest_that_is_predicted_good(count, degree, good, degrees, limit):
    rng, seen = np.random.default_rng(count + 10 * degree), set()
    for scale, decay in itertools.product((10.0, 1e3), (1.0, 3.0, 5.0, 6.0, 7.0, 12.0)):
        nodes = 1.0 - 0.1 * np.cumsum(rng.uniform(0.5, 1.5, NODES))
        norms = rng.uniform(0.5, 2.0, NODES) * decay ** np.arange(NODES) * scale
        start, h = nodes[0], 0.1
        known = torch.where(torch.arange(NODES) < count, torch.from_numpy(norms), torch.inf)
        one = [torch.tensor([float(v)], dtype=torch.float64) for v in (start, h, degree, count)]
        ratio, later = adams._next(known[None], torch.from_numpy(nodes)[None], *one, torch.tensor([good]))
        expected = longest(norms, nodes, start, h, degrees, limit)
        assert float(ratio) == pytest.approx(expected[0])
        if float(ratio) > LENGTHS[0]:
            assert float(later) == expected[1]
        seen.add(float(ratio))
    assert len(seen) > 1


def test_codes_of_steps():
    """1/(1 + r) for good steps, 1/r for others; no growth after a rejection; 0.1 where nothing is finite."""
    control = adams._Decoded()
    error = np.array([1 / 3, 1 / 3, 1 / 1.5, 1 / 0.7, np.inf])
    before = np.array([False, True, True, False, False])
    found = control.factor(error, np.ones(5), before, 5.0)
    assert found == pytest.approx([2.0, 1.0, 0.5, 0.7, 0.1])


class Square(sk.ODE):
    """dx/du = -3 u x, whose slope is odd in u along x; backwards too."""

    def drift(self, x, t):
        return x * (-3.0 * torch.as_tensor(t))[:, None]

    def response(self, change):
        return torch.zeros_like(change)


def test_it_runs_in_both_directions():
    x = torch.ones(2, 2, dtype=torch.float64)
    for span in ((0.1, 1.2), (1.2, 0.1), (-0.5, 0.8)):
        found = sk.solve(Square(), x, span, solver=Adams(), rtol=1e-7, atol=1e-7).x
        exact = math.exp(1.5 * (span[0] ** 2 - span[1] ** 2))
        assert float((found - exact).abs().max()) < 1e-6 * max(exact, 1)


class Kick(sk.ODE):
    """A slope with a step in it, which no polynomial holds."""

    def drift(self, x, t):
        return torch.zeros_like(x) + 5.0 * (torch.as_tensor(t)[:, None] > 0.5)

    def response(self, change):
        return torch.zeros_like(change)


def test_a_jump_of_the_slope_is_found():
    x = torch.zeros(1, 2, dtype=torch.float64)
    found = sk.solve(Kick(), x, (0.0, 1.0), solver=Adams(), rtol=1e-6, atol=1e-6)
    assert found.stats.rejected > 3
    assert float((found.x - 2.5).abs().max()) < 1e-5


@pytest.mark.parametrize(("size", "at"), [(2, 0), (2, 2)], ids=["y", "log-determinant"])
def test_errors_of_both_parts_shorten_the_step(size, at):
    """An error in y alone, or in the log-determinant alone."""

    class One(sk.ODE):
        def drift(self, x, t):
            out = torch.zeros_like(x)
            out[:, at] = torch.cos(20 * torch.as_tensor(t))
            return out

        def response(self, change):
            return torch.zeros_like(change)

    x = torch.zeros(1, 3, dtype=torch.float64)
    found = sk.solve(One(), x, (0.0, 1.5), solver=Adams(size=size), rtol=1e-6, atol=1e-6)
    assert float((found.x[0, at] - math.sin(30) / 20).abs()) < 1e-5


def test_first_times():
    for process in (sk.VP(), sk.SubVP(), sk.VE(), sk.Cosine(), sk.RectifiedFlow()):
        assert first_training_time(process) == 1e-5
    for process in (sk.EDM(), sk.DiscreteVP([0.9, 0.5, 0.1]), sk.VP(t_min=2e-3)):
        assert first_training_time(process) == process.t_min
    assert first_training_time(sk.VP(t_min=1e-6)) == 1e-6


@pytest.mark.parametrize("process", [sk.VP(), sk.EDM(), sk.RectifiedFlow()], ids=lambda p: type(p).__name__)
def test_the_time_and_its_weight(process):
    """u(t) and back; dphi/du of phi = arctan(rho/s) by differences."""
    s, start = 0.6, first_training_time(process)
    model = sk.Denoiser(lambda x, t: x, process, predicts="x0", data_std=s)
    c = Coordinates(model, s, start, float(process.t_max))
    first, last = c.u(start), c.u(process.t_max)
    u = torch.linspace(first + 1e-3, last - 1e-3, 9, dtype=torch.float64)
    node, weight = c.at(u)
    assert [c.u(float(t)) for t in node.t] == pytest.approx(u.tolist(), rel=1e-9)

    def phi(u):
        return torch.atan(0.7 * torch.tan(u))

    torch.testing.assert_close(weight, (phi(u + 1e-5) - phi(u - 1e-5)) / 2e-5, rtol=1e-7, atol=1e-9)


def test_a_row_is_itself_among_others():
    """States carry which row they are; start and finish are inverse."""
    target, process = mixture(3), sk.VP()
    c = Coordinates(target.denoiser(process), target.data_std, 1e-5, 1.0)
    flow = Flow(c, torch.Size([3]), Exact(), torch.float64)
    x = target.sample(6, seed=2, dtype=torch.float64)
    state = flow.start(x, 0.5)
    assert (state[:, -1] * 2.0**200).tolist() == [0, 1, 2, 3, 4, 5]
    torch.testing.assert_close(state[:, :3], x / 0.5)
    back, change = flow.finish(torch.cat([state[:, :3], state[:, :1] * 0 + 2.0, state[:, -1:]], dim=1), 0.5)
    torch.testing.assert_close(back, x)
    torch.testing.assert_close(change, torch.full((6, 1), 2.0 * math.sqrt(3), dtype=torch.float64))


def test_priors_without_a_density():
    target, process = mixture(2), sk.VP()

    class Infinite:
        def log_prob(self, x):
            return x.sum(1) * 0 + math.inf

    class Nowhere:
        def log_prob(self, x):
            return x.sum(1) * 0 - math.inf

    x = torch.zeros(1, 2, dtype=torch.float64)
    with pytest.raises(sk.SdekitError, match="plus infinity"):
        sk.log_prob(target.denoiser(process), x, prior=Infinite(), rtol=1e-2, atol=1e-2)
    found = sk.log_prob(target.denoiser(process), x, prior=Nowhere(), rtol=1e-2, atol=1e-2)
    assert float(found.value) == -math.inf


def test_networks_that_are_not_of_a_smoothed_law():
    """eps = k x on VE has x = x_0 exp(k (rho - rho_0)): its slope at the start is even, not odd."""
    process, k = sk.VE(), 0.03
    model = sk.Denoiser(lambda x, t: k * x, process, data_std=0.5)
    x = torch.tensor([[0.4, -1.0], [0.1, 0.2]], dtype=torch.float64)
    first, last = (float(process.sigma(t)) for t in (1e-5, 1.0))
    growth = k * (last - first)
    law = torch.distributions.Normal(0.0, torch.tensor(last, dtype=torch.float64))
    exact = law.log_prob(x * math.exp(growth)).sum(1) + 2 * growth
    found = sk.log_prob(model, x, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(found.value, exact, rtol=0, atol=1e-5)


@pytest.mark.parametrize("skewness", [0.0, 1e-9, 0.7, -0.7, 2.2, -2.2])
def test_ends_of_intervals_solve_the_transformation(skewness):
    one = torch.ones(1, dtype=torch.float64)
    found = sk.LogProb(3 * one, 2 * one, 1, one, one, one, one, probes=8, skewness=skewness * one)
    a, q = skewness / math.sqrt(8), 2.364624251592785  # the 97.5 % quantile of t with 7 degrees
    low, high = found.interval(0.95)
    for end, wanted in ((low, q), (high, -q)):
        t = (3 - float(end)) / 2
        assert t + a * t**2 / 3 + a**2 * t**3 / 27 + a / 6 == pytest.approx(wanted, rel=1e-12)


def test_skewness_by_moments():
    estimates = torch.tensor([[1.0, 2.0, 6.0], [3.0, 3.0, 3.0], [-1.0, -2.0, -6.0]], dtype=torch.float64)
    skewness = ((-2) ** 3 + (-1) ** 3 + 3**3) / 3 / ((4 + 1 + 9) / 3) ** 1.5
    assert door._skewness(estimates).tolist() == pytest.approx([skewness, 0.0, -skewness])
