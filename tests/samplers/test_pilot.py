"""The pilot: U-statistics by enumeration, known s and s2 recovered, one run per event shape."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

import sdekit as sk
from sdekit.samplers.pilot import moments
from tests.samplers.problems import PROCESSES, gaussian, mixture, network


def unknown(target, process, kind="x0") -> sk.Denoiser:
    """The target's exact denoiser, with nothing said of its data."""
    exact = target.denoiser(process)
    if kind == "x0":
        return sk.Denoiser(lambda x, t: exact.x0(x, t.double()), process, predicts="x0")
    model = network(target, process, kind)
    return sk.Denoiser(model.net, process, predicts=kind)


def trace_statistics(x):
    """(tr C, tr C^2) as `moments` estimates them, from (s, s2); exact where s2 >= s is not enforced."""
    s, s2 = moments(x)
    d = x[0].numel()
    return s * s * d, s2 * s2 * s * s * d


def test_moments_are_u_statistics():
    """Against their definition: means over distinct index tuples (tr C^2 over quadruples)."""
    x = torch.randn(6, 4, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    x = x * torch.tensor([3.0, 1.0, 0.5, 0.1], dtype=torch.float64)
    pairs = [(x[i] - x[j]).square().sum() / 2 for i, j in itertools.permutations(range(6), 2)]
    quadruples = [
        ((x[i] - x[j]) @ (x[k] - x[m])) ** 2 / 4 for i, j, k, m in itertools.permutations(range(6), 4)
    ]
    trace, square = (float(torch.stack(v).mean()) for v in (pairs, quadruples))
    found = trace_statistics(x)
    assert found[0] == pytest.approx(trace, rel=1e-12)
    assert found[1] == pytest.approx(square, rel=1e-10)


def test_moments_are_unbiased():
    """Exact enumeration: every sample of 4 from a population of 3 points in the plane, with replacement."""
    points = torch.tensor([[10.0, 0.0], [-10.0, 0.5], [0.0, -0.5]], dtype=torch.float64)
    centred = points - points.mean(0)
    cov = centred.T @ centred / 3
    traces, squares = [], []
    for index in itertools.product(range(3), repeat=4):
        x = points[list(index)]
        pairs = [(x[i] - x[j]).square().sum() / 2 for i, j in itertools.permutations(range(4), 2)]
        quads = [((x[i] - x[j]) @ (x[k] - x[m])) ** 2 / 4 for i, j, k, m in itertools.permutations(range(4))]
        traces.append(float(torch.stack(pairs).mean()))
        squares.append(float(torch.stack(quads).mean()))
    # The definition is unbiased, and `moments` equals the definition (the test above).
    assert sum(traces) / len(traces) == pytest.approx(float(cov.trace()), rel=1e-12)
    assert sum(squares) / len(squares) == pytest.approx(float((cov @ cov).trace()), rel=1e-12)


def test_moments_do_not_depend_on_the_mean_until_it_is_far():
    x = torch.randn(32, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    near, moved = moments(x), moments(x + 0.5)
    assert moved.data_std == pytest.approx(near.data_std, rel=1e-9)
    assert moved.data_spread == pytest.approx(near.data_spread, rel=1e-9)
    far = moments(x + 100.0)  # C about zero: the mean counts
    assert far.data_std == pytest.approx(100.0, rel=0.02)


@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize(
    "target",
    [
        sk.Gaussian(torch.zeros(64, dtype=torch.float64), variance=0.25),
        sk.Gaussian(torch.zeros(64), variance=torch.logspace(0, -2, 64)),
        mixture(),
        gaussian(8, rotated=True),
    ],
    ids=["isotropic", "wide spectrum", "mixture", "rotated"],
)
def test_the_pilot_recovers_data_std_and_spread(target, process):
    """Within 35 %: 32 samples give s to about 1/sqrt(2 * 32 * min(d, ...)) and s2 to some 20 %."""
    found = sk.pilot(unknown(target, PROCESSES[process]), (1, *target.event_shape))
    assert found.data_std == pytest.approx(target.data_std, rel=0.35)
    assert found.data_spread == pytest.approx(target.data_spread, rel=0.5)
    assert found.data_spread >= found.data_std


def test_more_samples_make_it_sharper():
    target = gaussian(8)
    found = sk.pilot(unknown(target, sk.VP()), (1, 8), samples=4000)
    assert found.data_std == pytest.approx(target.data_std, rel=0.03)
    assert found.data_spread == pytest.approx(target.data_spread, rel=0.03)


@pytest.mark.parametrize("kind", ["x0", "eps", "v", "score", "flow"])
@pytest.mark.parametrize("process", ["VP", "Cosine", "RectifiedFlow"])
def test_the_pilot_runs_any_network(process, kind, device):
    target = gaussian(4)
    found = sk.pilot(unknown(target, PROCESSES[process], kind), (1, 4), device=device)
    reference = sk.pilot(unknown(target, PROCESSES[process]), (1, 4), device=device)
    assert found.data_std == pytest.approx(reference.data_std, rel=0.02)


def test_the_pilot_runs_once_for_each_event_shape(device):
    calls = []

    def net(x, t):
        calls.append(tuple(x.shape))
        return 0.4 * x

    model = sk.Denoiser(net, sk.VP(), predicts="x0")
    first = sk.sample(model, (2, 3), steps=4, device=device)
    assert calls == [(32, 3)] * 8 + [(2, 3)] * 4
    sk.sample(model, (5, 3), steps=4, device=device)
    assert len(calls) == 8 + 4 + 4
    sk.sample(model, (5, 2), steps=4, device=device)
    assert len(calls) == 8 + 4 + 4 + 8 + 4
    assert set(model.measured) == {(3,), (2,)}
    again = sk.sample(model, (2, 3), steps=4, device=device)
    assert torch.equal(first.x, again.x)
    calls.clear()
    sk.sample(model, (2, 7), sampler="ddim", steps=4, device=device)
    assert len(calls) == 4  # ddim on its own grid needs nothing of the data
    sk.sample(model, (2, 7), sampler="ddim", grid="quantile", steps=4, device=device)
    assert len(calls) == 4 + 8 + 4


def test_the_pilot_is_a_pure_function_of_its_seed():
    model = unknown(gaussian(3), sk.VP())
    assert sk.pilot(model, (1, 3)) == sk.pilot(model, (100, 3))
    assert sk.pilot(model, (1, 3)) != sk.pilot(model, (1, 3), seed=1)


def test_a_known_data_std_needs_no_pilot():
    calls = []

    def net(x, t):
        calls.append(len(x))
        return 0.4 * x

    sk.sample(sk.Denoiser(net, sk.VP(), predicts="x0", data_std=0.5), (2, 3), steps=4)
    assert calls == [2] * 4


def test_a_failing_pilot_says_so():
    model = sk.Denoiser(lambda x, t: x * math.nan, sk.VP(), predicts="x0")
    with pytest.raises(sk.errors.NonFiniteError) as error:
        sk.sample(model, (2, 3))
    for words in ("pilot run of 8 evaluations", "Likely cause", "Next", "data_std"):
        assert words in str(error.value)


@pytest.mark.parametrize("samples", [0, 3, 2.5])
def test_too_few_samples_are_refused(samples):
    with pytest.raises(ValueError, match="samples must be a whole number >= 4"):
        sk.pilot(unknown(gaussian(2), sk.VP()), (1, 2), samples=samples)
