"""The Adams method of log_prob: its formulas, order and cost, compaction; bad input of log_prob."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import sdekit as sk
from sdekit.likelihood import adams
from sdekit.likelihood.adams import NODES, Adams
from sdekit.likelihood.flow import Coordinates, Flow
from sdekit.likelihood.trace import Exact
from sdekit.score.model import ExactDenoiser
from tests.likelihood.test_log_prob import at_start, mixture


def test_moments_are_integrals_of_products():
    rng = np.random.default_rng(0)
    nodes, a, h = rng.normal(size=(3, NODES)), rng.normal(size=3), rng.uniform(0.1, 1, 3)
    found = adams._moments(*(torch.from_numpy(v) for v in (nodes, a, h)))
    for row in range(3):
        for j in range(NODES):
            product = np.polynomial.Polynomial([1.0])
            for node in nodes[row, :j]:
                product = product * np.polynomial.Polynomial([-node, 1.0])
            primitive = product.integ()
            expected = primitive(a[row] + h[row]) - primitive(a[row])
            assert float(found[row, j]) == pytest.approx(expected, rel=1e-10, abs=1e-12)


def test_divided_differences_of_powers():
    """F[n_0, ..., n_j] of s^j is 1, of lower powers 0."""
    nodes = torch.tensor([[0.9, 0.7, 0.4, 0.1, -0.1, -0.4, -0.7, -0.9]], dtype=torch.float64)
    for power in range(NODES):
        slopes = [nodes[:, j : j + 1] ** power for j in range(NODES)]
        found = torch.cat(adams._divided(slopes, nodes), dim=1)[0]
        assert float(found[power]) == pytest.approx(1, abs=1e-9)
        assert float(found[power + 1 :].abs().sum()) == pytest.approx(0, abs=1e-8)


class Even(sk.ODE):
    """dx/du = f(u) x with odd f, so that x is even in u."""

    def __init__(self, f):
        super().__init__()
        self.f, self.calls, self.rows = f, 0, 0

    def drift(self, x, t):
        self.calls, self.rows = self.calls + 1, self.rows + len(x)
        return x * self.f(torch.as_tensor(t))[:, None]

    def response(self, change):
        return torch.zeros_like(change)


def integrate(f, tolerance, rows=1, **options):
    system = Even(f)
    x = torch.ones(rows, 2, dtype=torch.float64)
    found = sk.solve(
        system, x, (1e-3, 1.5), solver=Adams(size=1, probes=1, **options), rtol=tolerance, atol=tolerance
    )
    return found, system


def test_error_follows_the_tolerance_at_one_call_a_step():
    errors, exact = [], math.exp(math.sin(1.5) ** 2 - math.sin(1e-3) ** 2)
    for tolerance in (1e-4, 1e-6, 1e-8):
        found, system = integrate(lambda u: torch.sin(2 * u), tolerance)
        errors.append(float((found.x - exact).abs().max()))
        assert errors[-1] < 10 * tolerance
        assert system.calls == found.stats.steps + 1
        assert system.calls < 45
    assert errors[2] < 1e-2 * errors[1] < 1e-3 * errors[0]


def test_cubic_slopes_are_exact_from_the_first_step():
    """Two mirrored nodes beside two true ones: odd cubics without an error, whatever the step."""
    system = Even(lambda u: u)
    system.drift = lambda x, t: (torch.as_tensor(t) - 2 * torch.as_tensor(t) ** 3)[:, None].expand_as(x)
    solver = Adams(size=1, probes=1)
    x = torch.ones(1, 2, dtype=torch.float64)
    found = sk.solve(system, x, (0.1, 1.0), solver=solver, rtol=1e-9, atol=1e-9)
    exact = 1 + (1.0 - 0.01) / 2 - (1.0 - 1e-4) / 2
    assert float((found.x - exact).abs().max()) < 1e-14


def test_the_mirror_image_of_the_newest_node_is_the_last():
    slope = torch.ones(1, 1, dtype=torch.float64)
    slopes = [slope * k for k in (1, -1, 0, 0, 0, 0, 0, 0)]
    nodes = torch.tensor([[0.1, -0.1, -12.0, -13.0, -14.0, -15.0, -16.0, -17.0]], dtype=torch.float64)
    new, at, count = adams._with(3 * slope, torch.tensor([0.2], dtype=torch.float64), slopes, nodes, at2())
    assert at[0, :4].tolist() == [0.2, 0.1, -0.1, -0.2]
    assert [float(s) for s in new[:4]] == [3, 1, -1, -3]
    assert count.tolist() == [4]


def at2():
    return torch.tensor([2.0], dtype=torch.float64)


def test_the_jacobian_moves_the_slope():
    target, process = mixture(3), sk.VP()
    model = target.denoiser(process)
    c = Coordinates(model, target.data_std, 1e-5, 1.0)
    flow = Flow(c, torch.Size([3]), Exact(), torch.float64)
    state = flow.start(target.sample(4, seed=1, dtype=torch.float64), 1.0)
    change = torch.zeros_like(state)
    change[:, :3] = 1e-5 * torch.randn(4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    with torch.no_grad():
        low, high = (flow.drift(state + sign * change, 0.8)[:, :3] for sign in (-1, 1))
        flow.drift(state, 0.8)
        moved = flow.response(change)
    torch.testing.assert_close(moved[:, :3], (high - low) / 2, rtol=1e-6, atol=1e-12)
    assert not moved[:, 3:].any()


class Counting(ExactDenoiser):
    """Counts the rows it is given."""

    rows = 0

    def native(self, x, node, t=None):
        self.rows += len(x)
        return super().native(x, node, t)


def rows_used(process, compact, tolerance=1e-5):
    target = mixture(2)
    law, x = at_start(target, process, 24)
    model = Counting(target.denoiser(process).fn, process, data_std=target.data_std)
    found = sk.log_prob(
        model,
        x,
        prior=target.marginal(process, process.t_max),
        rtol=tolerance,
        atol=tolerance,
        compact=compact,
    )
    return found, model.rows, law.log_prob(x)


def test_finished_rows_leave():
    """The same bits from fewer rows: without compaction every call has all of them."""
    some, few, _ = rows_used(sk.VE(), True)
    every, many, _ = rows_used(sk.VE(), False)
    assert torch.equal(some.value, every.value)
    assert many == 24 * every.nfe
    assert few < 0.95 * many


@pytest.mark.parametrize("process", [sk.VP(), sk.VE(), sk.RectifiedFlow()], ids=lambda p: type(p).__name__)
def test_calls_are_few(process):
    """scipy's RK45 in t takes about 56, 115 and 49 calls a sample for an error of 1e-4 on this law."""
    found, rows, exact = rows_used(process, True, 1e-5)
    assert float((found.value - exact).abs().quantile(0.95)) < 1e-4
    assert rows / 24 < 30


def test_levels_laws_and_empty_events_are_refused():
    target, process = mixture(2), sk.VP()
    model, x = target.denoiser(process), torch.zeros(2, 2)
    with pytest.raises(sk.SdekitError, match="dequantize"):
        sk.log_prob(model, torch.zeros(2, 2, dtype=torch.uint8))
    with pytest.raises(sk.SdekitError, match="dequantize"):
        sk.likelihood.elbo(model, torch.zeros(2, 2, dtype=torch.int64))
    with pytest.raises(sk.SdekitError, match="another dimension"):
        sk.log_prob(model, x, prior=sk.Gaussian(torch.zeros(3), variance=1.0))
    with pytest.raises(sk.SdekitError, match="at least one element"):
        sk.log_prob(model, torch.zeros(2, 0))
    with pytest.raises(sk.SdekitError, match="event shape"):
        sk.log_prob(model, torch.zeros(2, 3))

    class Broken:
        def log_prob(self, x):
            return x.sum(1) * math.nan

    with pytest.raises(sk.SdekitError, match=r"prior\.log_prob returned NaN"):
        sk.log_prob(model, x, prior=Broken())
    with pytest.raises(sk.SdekitError, match="network returns NaN"):
        sk.log_prob(sk.Denoiser(lambda x, t: x * math.nan, process, data_std=1.0), x)
