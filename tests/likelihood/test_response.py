"""Where the Jacobian that the trace has taken moves the slope: what a step of the Adams method keeps."""

from __future__ import annotations

import torch

import sdekit as sk
from sdekit.likelihood.adams import Adams
from sdekit.likelihood.flow import Coordinates, Flow
from sdekit.likelihood.trace import Exact, Probed, probes_for
from sdekit.solvers.base import Interval
from sdekit.solvers.problem import Counted
from tests.likelihood.test_log_prob import mixture

A = torch.tensor([[-1.0, 2.0], [-3.0, 0.5]], dtype=torch.float64)


class Linear(sk.ODE):
    """dx/du = A x for the two elements of y; 0 for the log-determinant."""

    def drift(self, x, t):
        return torch.cat([x[:, :2] @ A.T, torch.zeros_like(x[:, 2:])], dim=1)

    def response(self, change):
        return self.drift(change, None)


def step(system, solver, x, a, h):
    """(x1, the slope kept, carry) after one step from a to a + h."""
    counted, start = Counted(system), torch.full((len(x),), a, dtype=torch.float64)
    with torch.no_grad():
        carry = solver.init(counted, x, start)
        attempt = solver.attempt(counted, x, Interval((start, start + h), h), carry)
    return attempt.x, attempt.carry[0], carry


def test_the_slope_kept_is_that_of_the_corrected_state():
    """Linear equations: A x1, from the slope A x* at the prediction and A (x1 - x*)."""
    x = torch.tensor([[1.0, -0.5, 0.0], [0.3, 2.0, 1.0]], dtype=torch.float64)
    x1, kept, carry = step(Linear(), Adams(size=2, probes=1), x, 0.2, 0.3)
    # the slopes at -0.2 and 0.2 say: a line through 0
    predicted = x + carry[0] * ((0.5**2 - 0.2**2) / (2 * 0.2))
    assert float((x1 - predicted)[:, :2].abs().min()) > 1e-2
    torch.testing.assert_close(kept, Linear().drift(x1, None), rtol=1e-13, atol=1e-13)


def flow_of(trace):
    target, process = mixture(3), sk.VP()
    x = target.sample(5, seed=1, dtype=torch.float64)
    flow = Flow(
        Coordinates(target.denoiser(process), target.data_std, 1e-5, 1.0), x.shape[1:], trace, x.dtype
    )
    return flow, flow.start(x, 1.0)


def test_exact_traces_leave_an_error_of_the_second_order():
    """At half the step x1 - x* is less by 2^3 or so, its square by far more than 2^4."""
    left, without = [], []
    for h in (0.1, 0.05, 0.025):
        flow, state = flow_of(Exact())
        solver = Adams(size=3, probes=1)
        x1, kept, _ = step(flow, solver, state, 0.5, h)
        with torch.no_grad():
            true = flow.drift(x1, torch.full((5,), 0.5 + h, dtype=torch.float64))[:, :3]
        moved = flow.response(x1 * 0 + 1)[:, :3]
        assert bool(moved.any())
        left.append(float((kept[:, :3] - true).abs().max()))

        flow, state = flow_of(Exact())
        flow.response = torch.zeros_like
        _, kept, _ = step(flow, solver, state, 0.5, h)
        without.append(float((kept[:, :3] - true).abs().max()))
    assert left[0] > 2**4 * left[1] > 2**8 * left[2]
    assert all(a < 0.2 * b for a, b in zip(left, without, strict=True))


def test_probed_traces_leave_the_slope_of_the_prediction():
    slopes = []
    for respond in (True, False):
        flow, state = flow_of(Probed(probes_for(torch.arange(5), 3, 2, "rademacher", 0)))
        if not respond:
            flow.response = torch.zeros_like
        slopes.append(step(flow, Adams(size=3, probes=2), state, 0.5, 0.1)[1])
    assert torch.equal(*slopes)


def test_the_jacobian_of_a_network_need_not_be_symmetric():
    model = sk.Denoiser(lambda x, t: torch.tanh(x @ A.T.to(x)), sk.VP(), predicts="x0", data_std=0.8)
    flow = Flow(Coordinates(model, 0.8, 1e-5, 1.0), torch.Size([2]), Exact(), torch.float64)
    state = flow.start(torch.tensor([[0.3, -0.2], [1.0, 0.4]], dtype=torch.float64), 1.0)
    change = torch.zeros_like(state)
    change[:, 0] = 1e-5
    with torch.no_grad():
        low, high = (flow.drift(state + sign * change, 0.7)[:, :2] for sign in (-1, 1))
        flow.drift(state, 0.7)
        moved = flow.response(change)[:, :2]
    torch.testing.assert_close(moved, (high - low) / 2, rtol=1e-4, atol=1e-9)


def test_the_first_step_and_the_terms_of_the_last():
    """A twentieth of the span at most; terms that were large a step ago shorten the next one."""
    x = torch.ones(1, 3, dtype=torch.float64)
    assert abs(float(Adams(rtol=0.1, atol=0.1).first(x, -1.5)) + 0.075) < 1e-9
    assert abs(float(Adams(rtol=5e-11, atol=5e-11).first(x, 1.5)) - 0.01) < 1e-9
    counted, start = Counted(Linear()), torch.full((1,), 0.2, dtype=torch.float64)
    solver, codes = Adams(size=2, rtol=1e-3, atol=1e-3), []
    for before in (0.0, 1e3):
        *slopes, notes = solver.init(counted, x, start)
        notes = torch.cat([notes[:, :2], notes[:, 2:] + before], dim=1)
        interval = Interval((start, start + 0.02), 0.02)
        codes.append(float(solver.attempt(counted, x, interval, (*slopes, notes)).error))
    assert codes[0] < codes[1] <= 1
