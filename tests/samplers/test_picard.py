"""Picard sweeps against the run one evaluation after another."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import sdekit as sk
from sdekit.errors import CapabilityError, NonFiniteError
from sdekit.samplers.plan import Combine, Evaluate, Plan
from sdekit.score.predictions import Node
from tests.samplers.problems import (
    AFFINE,
    NAMES,
    PROCESSES,
    STOCHASTIC,
    gaussian,
    mixture,
    network,
    smooth_network,
)

NOT_AFFINE = [name for name in NAMES if name not in AFFINE]
SEQUENCES = ["VP", "EDM", "RectifiedFlow"]


def run(model, name="ddim", n=6, steps=24, **options):
    shape = (n, *model.event_shape) if getattr(model, "event_shape", None) else (n, 2)
    return sk.sample(model, shape, sampler=name, **{"steps": steps, "dtype": torch.float64, **options})


# -- the same result --------------------------------------------------------------------------------


@pytest.mark.parametrize("process", SEQUENCES)
@pytest.mark.parametrize("name", AFFINE)
def test_at_tolerance_zero_it_is_the_run_one_after_another(name, process):
    """Every input must stop changing: the result then differs by rounding at most."""
    model = mixture().denoiser(PROCESSES[process])
    one = run(model, name, steps=10, save="all")
    scale = one.xs.abs().amax()
    for window in (2, 5, 100):
        swept = run(model, name, steps=10, save="all", parallel=window, tolerance=0.0)
        torch.testing.assert_close(swept.xs, one.xs, rtol=1e-9, atol=1e-11 * float(scale))
        assert torch.equal(swept.ts, one.ts)
        assert swept.stats.sweeps <= one.stats.nfe


@pytest.mark.parametrize("process", SEQUENCES)
@pytest.mark.parametrize("name", AFFINE)
def test_a_window_of_one_is_the_run_itself(name, process):
    model = mixture().denoiser(PROCESSES[process])
    one, swept = run(model, name), run(model, name, parallel=1)
    assert torch.equal(one.x, swept.x)
    assert swept.stats.nfe == swept.stats.sweeps == one.stats.nfe
    assert swept.stats.evaluations == one.stats.evaluations == 6 * one.stats.nfe
    assert one.stats.sweeps == 0


@pytest.mark.parametrize("process", SEQUENCES)
@pytest.mark.parametrize("name", AFFINE)
def test_the_tolerance_is_kept_with_fewer_calls(name, process):
    """The RMS error of a sample stays below 20 tolerances; the network is called less often in a row."""
    target = gaussian(3)
    model = target.denoiser(PROCESSES[process])
    one = run(model, name, steps=40)
    calls = []
    for tolerance in (1e-2, 1e-4, 1e-6):
        swept = run(model, name, steps=40, parallel=60, tolerance=tolerance)
        assert float((swept.x - one.x).square().mean(1).sqrt().max()) < 20 * tolerance
        assert swept.stats.nfe == swept.stats.sweeps
        assert swept.stats.steps == one.stats.steps
        calls.append(swept.stats.sweeps)
    assert calls == sorted(calls)
    assert calls[0] < 0.7 * one.stats.nfe


@settings(deadline=None)
@given(
    name=st.sampled_from(AFFINE),
    kind=st.sampled_from(["x0", "eps", "v", "flow", "score", "edm"]),
    process=st.sampled_from(["VP", "VE", "EDM", "SubVP", "DiscreteVP"]),
    window=st.integers(1, 12),
    end=st.sampled_from(["t_min", "clean"]),
)
def test_any_prediction_window_and_end(name, kind, process, window, end):
    model = network(gaussian(2), PROCESSES[process], kind)
    one = run(model, name, n=3, steps=8, end=end)
    swept = run(model, name, n=3, steps=8, end=end, parallel=window, tolerance=0.0)
    scale = max(1.0, float(one.x.abs().max()))
    torch.testing.assert_close(swept.x, one.x, rtol=1e-7, atol=1e-7 * scale)


@pytest.mark.parametrize("kind", ["x0", "v", "flow"])
def test_pure_noise_is_an_exact_start(kind):
    model = network(gaussian(2), sk.RectifiedFlow(), kind)
    one, swept = (run(model, "heun", n=3, **o) for o in ({}, {"parallel": 16, "tolerance": 1e-8}))
    assert one.ts[0] == 1.0
    torch.testing.assert_close(swept.x, one.x, rtol=1e-6, atol=1e-6)


# -- the work ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("window", [1, 3, 8, 50])
def test_each_sweep_settles_at_least_one_evaluation(window):
    """A network without memory of its input's size, of no use to guesses: the worst case still ends."""
    model = sk.Denoiser(lambda x, t: torch.sin(1e6 * x), sk.VP(), predicts="eps", data_std=1.0)
    one = run(model, steps=12)
    swept = run(model, steps=12, parallel=window, tolerance=0.0)
    assert swept.stats.sweeps <= 12
    assert swept.stats.evaluations <= 6 * sum(min(window, 12 - i) for i in range(12))
    torch.testing.assert_close(swept.x, one.x, rtol=0, atol=1e-4)


def test_an_exact_guess_takes_one_sweep_for_each_window_and_one_to_see_it():
    """A point mass: the denoiser is a constant, so ddim's guesses are right after the first sweep."""
    m = torch.tensor([1.0, -2.0], dtype=torch.float64)
    model = sk.Denoiser(lambda x, t: m.expand(x.shape), sk.VP(), predicts="x0", data_std=1.0)
    whole = run(model, steps=30, parallel=30)
    assert whole.stats.sweeps == 2
    assert whole.stats.evaluations == 6 * (30 + 29)
    part = run(model, steps=30, parallel=10)
    assert part.stats.sweeps == 4  # the first settles one evaluation, then windows of ten
    assert part.stats.evaluations == 6 * (10 + 10 + 10 + 9)


def test_the_tolerance_is_a_fraction_of_the_marginals_scale():
    """One Euler step of dx = v dt: the input moves by 0.05; it is settled where that is below tolerance."""
    law = sk.EDM(sigma_min=1.0, sigma_max=3.0)
    nodes = [Node(t, 1.0, t, 0.0, 1.0) for t in (3.0, 2.0, 1.0)]
    scale = math.hypot(1.0, 2.0)
    plan = Plan(
        (
            Evaluate("a", "x[0]", 3.0, "eps", nodes[0]),
            Combine("x[1]", ((1.0, "x[0]"), (1.0, "a"))),
            Evaluate("b", "x[1]", 2.0, "eps", nodes[1]),
            Combine("x[2]", ((1.0, "x[1]"), (1.0, "b"))),
        ),
        tuple(nodes),
        3.0,
    )
    # D = 0 is the first guess, so eps is guessed as x/3 at x = 3: the input is guessed at 4, found at 4.05.
    model = sk.Denoiser(lambda x, t: torch.full_like(x, 1.05), law, predicts="eps", data_std=1.0)
    start = torch.full((1, 1), 3.0, dtype=torch.float64)
    for factor, sweeps in ((1.01, 1), (0.99, 2)):
        tolerance = factor * 0.05 / scale
        swept = sk.sample(model, (1, 1), sampler=plan, x_init=start, parallel=2, tolerance=tolerance)
        assert swept.stats.sweeps == sweeps
        assert float(swept.x) == pytest.approx(5.1, rel=1e-12)


def test_an_input_settled_behind_an_unsettled_one_waits():
    """The third evaluation's input is x[0] itself; the second's is guessed wrong and must not pass too."""
    law = sk.VP()
    node = [Node(t, float(law.alpha(t)), float(law.sigma(t))) for t in (1.0, 0.5)]
    plan = Plan(
        (
            Evaluate("a", "x[0]", 1.0, "eps", node[0]),
            Combine("r", ((1.0, "x[0]"), (1.0, "a"))),
            Evaluate("b", "r", 0.5, "eps", node[1]),
            Combine("q", ((1.0, "x[0]"),)),
            Evaluate("c", "q", 0.5, "eps", node[1]),
            Combine("x[1]", ((1.0, "b"), (1.0, "c"))),
        ),
        tuple(node),
        1.0,
    )
    model = sk.Denoiser(lambda x, t: x * x, law, predicts="eps", data_std=1.0)
    start = torch.full((1, 1), 2.0, dtype=torch.float64)
    swept = sk.sample(model, (1, 1), sampler=plan, x_init=start, parallel=3)
    assert float(swept.x) == 36.0 + 4.0
    assert swept.stats.sweeps == 2


def test_settled_samples_cost_nothing_more():
    """Two samples, one at a fixed point of the guess: only the other is evaluated again."""

    def net(x, t):
        return torch.where(x[:, :1] > 0, torch.sin(50 * x), torch.zeros_like(x))

    model = sk.Denoiser(net, sk.VP(), predicts="x0", data_std=1.0)
    rough, still = torch.full((1, 2), 1.0).double(), torch.full((1, 2), -1.0).double()
    alone = [run(model, n=1, x_init=x, parallel=8, tolerance=1e-9).stats for x in (rough, still)]
    both = run(model, n=2, x_init=torch.cat([rough, still]), parallel=8, tolerance=1e-9).stats
    assert alone[0].sweeps > alone[1].sweeps
    assert both.sweeps == alone[0].sweeps
    assert both.evaluations == alone[0].evaluations + alone[1].evaluations


# -- one sample and its batch -----------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", ["kernel-quadrature", "heun", "ancestral", "ddim"])
def test_a_sample_does_not_depend_on_its_batch(name, dtype, device):
    """Bit for bit with closed-form targets: each sample has its own window."""
    for target, process in ((mixture(), "VP"), (gaussian(5, rotated=True), "RectifiedFlow")):
        model = target.denoiser(PROCESSES[process])
        options = {"parallel": 6, "dtype": dtype, "seed": 11, "device": device}
        whole = run(model, name, n=23, **options)
        for i in (0, 7, 22):
            alone = run(model, name, n=1, first_id=i, **options)
            assert torch.equal(alone.x[0], whole.x[i])
        tiled = run(model, name, n=23, batch_size=5, **options)
        assert torch.equal(tiled.x, whole.x)
        assert tiled.stats.sweeps == whole.stats.sweeps
        assert tiled.stats.evaluations == whole.stats.evaluations


@pytest.mark.parametrize("name", [n for n in STOCHASTIC if n in AFFINE])
def test_a_generator_with_a_state_gives_the_same_draws(name):
    model, steps = mixture().denoiser(sk.VP()), 8
    one = run(model, name, steps=steps, noise=sk.TorchNoise(torch.Generator().manual_seed(3)))
    swept = run(
        model,
        name,
        steps=steps,
        noise=sk.TorchNoise(torch.Generator().manual_seed(3)),
        parallel=4,
        tolerance=0.0,
    )
    torch.testing.assert_close(swept.x, one.x, rtol=1e-9, atol=1e-9)


def test_saved_states_and_callbacks_come_in_order():
    model = mixture().denoiser(sk.VP())
    seen: list[tuple[int, float]] = []
    swept = run(
        model,
        "dpmpp-2m",
        steps=12,
        save="all",
        end="clean",
        parallel=5,
        callback=lambda i, t, x: seen.append((i, t)),
        tolerance=1e-9,
    )
    one = run(model, "dpmpp-2m", steps=12, save="all", end="clean")
    assert [i for i, _ in seen] == list(range(1, 13))
    assert [t for _, t in seen] == one.ts.tolist()[1:]
    torch.testing.assert_close(swept.xs, one.xs, rtol=0, atol=1e-6)


def test_gradients_pass_through_the_sweeps():
    model = mixture().denoiser(sk.VP())
    found = []
    for options in ({}, {"parallel": 12, "tolerance": 0.0}, {"parallel": 4, "tolerance": 1e-7}):
        x = torch.linspace(-1, 1, 6, dtype=torch.float64).reshape(3, 2).requires_grad_()
        out = run(model, "dpmpp-2m", n=3, steps=12, x_init=x, **options).x
        found.append(torch.autograd.grad(out.square().sum(), x)[0])
    torch.testing.assert_close(found[1], found[0], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(found[2], found[0], rtol=1e-3, atol=1e-3)
    assert not run(model, parallel=4).x.requires_grad


def test_half_precision():
    model = smooth_network(sk.VP())
    one = run(model, dtype=torch.bfloat16)
    swept = run(model, dtype=torch.bfloat16, parallel=24, tolerance=0.0)
    assert swept.x.dtype == torch.bfloat16
    torch.testing.assert_close(swept.x.float(), one.x.float(), rtol=0, atol=0.1)


def test_a_plan_without_evaluations_and_a_run_without_samples():
    law = sk.VP()
    node = [Node(t, float(law.alpha(t)), float(law.sigma(t))) for t in (1.0, 0.5)]
    plan = Plan((Combine("x[1]", ((0.5, "x[0]"),), ((1.0, 0),)),), tuple(node), 1.0)
    model = smooth_network(law)
    one, swept = (sk.sample(model, (3, 2), sampler=plan, parallel=p) for p in (None, 4))
    assert torch.equal(one.x, swept.x)
    assert swept.stats.sweeps == swept.stats.evaluations == 0
    assert run(model, n=0, parallel=4).x.shape == (0, 2)


# -- errors -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NOT_AFFINE)
def test_steps_that_are_not_affine_are_refused(name):
    with pytest.raises(CapabilityError, match="not affine.*cannot run in parallel. Next: leave parallel out"):
        run(smooth_network(sk.VP()), name, parallel=4)


def test_the_failing_sample_and_step_are_named():
    model = sk.Denoiser(
        lambda x, t: torch.where((t[:, None] < 0.5) & (x[:, :1] > 0), math.nan, 0 * x),
        sk.VP(),
        predicts="x0",
        data_std=1.0,
    )
    x = torch.tensor([[-1.0, 0.0], [1.0, 0.0], [-2.0, 0.0]])
    options = {"x_init": x, "grid": "uniform-t", "steps": 10, "dtype": None}
    with pytest.raises(NonFiniteError, match="1 of 3 samples are not finite; first: sample 1 at step 7"):
        run(model, n=3, parallel=4, **options)
    kept = run(model, n=3, parallel=4, throw=False, **options)
    assert kept.status.tolist() == [0, 1, 0]
    assert torch.equal(kept.x[[0, 2]], run(model, n=3, throw=False, **options).x[[0, 2]])


def test_options_are_checked():
    model = smooth_network(sk.VP())
    for parallel in (0, -1, 2.5, True):
        with pytest.raises(ValueError, match="parallel must be a whole number >= 1"):
            run(model, parallel=parallel)
    for tolerance in (-1e-3, math.nan, math.inf):
        with pytest.raises(ValueError, match="tolerance must be finite and >= 0"):
            run(model, parallel=4, tolerance=tolerance)
    with pytest.raises(ValueError, match="parallel was not given"):
        run(model, tolerance=1e-3)
    with pytest.raises(ValueError, match="parallel do not apply"):
        sk.sample(model, (2, 2), sampler="rk45", parallel=4)
