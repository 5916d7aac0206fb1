"""Encoding against the exact flow of a Gaussian, at the declared orders; decoding; interpolation."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import sdekit as sk
from sdekit.certify.exact import propagate
from sdekit.errors import CapabilityError, DirectionError, NonFiniteError, ShapeError, UnknownNameError
from sdekit.samplers import DDIM, EulerMaruyama, Heun, ReverseDiffusion, TrigAdams
from sdekit.samplers.plan import Combine, Evaluate
from sdekit.samplers.registry import SAMPLERS
from tests.samplers.problems import (
    FROM_PURE_NOISE,
    NAMES,
    PROCESSES,
    STOCHASTIC,
    ceiling,
    declared,
    gaussian,
    mixture,
    network,
    required,
    smooth_times,
)

ENCODERS = [n for n in NAMES if declared(n).affine and not declared(n).stochastic]
ENCODERS = [n for n in ENCODERS if not SAMPLERS[n].stochastic]


def flow(target, process, x, t, u):
    """The exact map of the probability flow from t to u on a Gaussian: m_u + S_u^1/2 S_t^-1/2 (x - m_t)."""
    a, b = (float(process.alpha(v)) for v in (t, u))
    v, w = (c * c * target.eigenvalues + float(process.sigma(r)) ** 2 for c, r in ((a, t), (b, u)))
    mean, basis = target.mean.reshape(-1), target.basis
    y = (x.double() - a * mean) if basis is None else (x.double() - a * mean) @ basis
    y = y * (w / v).sqrt()
    return b * mean + (y if basis is None else y @ basis.T)


def data(target, process, n=8, seed=5):
    """Points of the marginal at t_min."""
    g = torch.Generator().manual_seed(seed)
    x = target.sample(n, seed=seed).double()
    noise = torch.randn(x.shape, generator=g, dtype=torch.float64)
    return float(process.alpha(process.t_min)) * x + float(process.sigma(process.t_min)) * noise


def gain_error(plan, target) -> float:
    """RMS over directions of the latent's error at one standard deviation from the mean, exactly."""
    c, m = target.eigenvalues, target.mean.reshape(-1)
    b, g = propagate(plan, c, m)[:2]
    (_, a0, s0, *_), (_, a1, s1, *_) = plan.nodes[0], plan.nodes[-1]
    start, end = (a0 * a0 * c + s0 * s0).sqrt(), (a1 * a1 * c + s1 * s1).sqrt()
    return float((((g * start - end) ** 2 + (b + g * a0 * m - a1 * m) ** 2).mean()).sqrt())


# -- the map ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("process", PROCESSES)
def test_the_default_is_the_exact_map_of_a_gaussian(process, device):
    target, law = gaussian(5, rotated=True), PROCESSES[process]
    x = data(target, law)
    run = sk.encode(target.denoiser(law), x.to(device))
    exact = flow(target, law, x, law.t_min, law.t_max)
    scale = float(law.prior_std())
    assert float((run.x.cpu() - exact).abs().max()) < 1e-4 * scale
    assert run.ts.tolist() == [law.t_min, law.t_max]
    assert (run.stats.nfe, run.stats.steps) == (64, 64)
    back = sk.decode(target.denoiser(law), exact.to(device))
    assert float((back.x.cpu() - x).abs().max()) < 5e-4


def test_the_defaults_are_trig_adams_on_the_quantile_grid_and_back_by_kernel_quadrature():
    target, law = gaussian(3), sk.VP()
    x, model = data(target, law), target.denoiser(law)
    known = {"data_std": target.data_std, "data_spread": target.data_spread, "steps": 64}
    there = sk.plan("trig-adams", law, grid="quantile", end="t_max", **known)
    assert torch.equal(sk.encode(model, x).x, sk.encode(model, x, sampler=there).x)
    back = sk.plan("kernel-quadrature", law, **known)
    assert torch.equal(sk.decode(model, x).x, sk.decode(model, x, sampler=back).x)


@pytest.mark.parametrize(
    "process",
    ["VP", "RectifiedFlow", *(pytest.param(p, marks=pytest.mark.slow) for p in ("VE", "Cosine"))],
)
@pytest.mark.parametrize("name", ENCODERS)
def test_encoding_has_the_declared_order(name, process):
    p = SAMPLERS[name].order
    target = sk.Gaussian([0.3, -0.5, 1.0], variance=[0.1, 0.5, 2.0])
    law = PROCESSES[process]
    plans = [sk.plan(name, law, grid=smooth_times(law, k), end="t_max") for k in (320, 640)]
    coarse, fine = (gain_error(plan, target) for plan in plans)
    assert required(p) <= math.log2(coarse / fine) <= ceiling(name, p)


@settings(deadline=None, max_examples=50)
@given(
    name=st.sampled_from(ENCODERS),
    process=st.sampled_from(list(PROCESSES)),
    d=st.integers(1, 6),
    seed=st.integers(0, 99),
)
def test_encode_then_decode_returns(name, process, d, seed):
    target, law = gaussian(d), PROCESSES[process]
    x = data(target, law, 4, seed)
    first = SAMPLERS[name].order == 1
    trip = sk.roundtrip(target.denoiser(law), x, sampler=name, steps=256 if first else 64)
    assert float(trip.rms.max()) < (0.4 if first else 0.06)
    torch.testing.assert_close(trip.rms, ((trip.back - x) ** 2).mean(1).sqrt(), rtol=1e-12, atol=0)
    torch.testing.assert_close(trip.worst, (trip.back - x).abs().amax(1), rtol=0, atol=0)


@pytest.mark.parametrize("process", PROCESSES)
def test_the_median_round_trip_on_a_mixture(process):
    law = PROCESSES[process]
    trip = sk.roundtrip(mixture().denoiser(law), data(mixture(), law, 64))
    assert float(trip.rms.median()) < 1e-4
    assert trip.nfe == 128


@pytest.mark.parametrize("process", ["VP", "EDM", "RectifiedFlow"])
def test_rk45_both_ways(process):
    target, law = gaussian(4), PROCESSES[process]
    x = data(target, law)
    model = target.denoiser(law)
    run = sk.encode(model, x, sampler="rk45")
    exact = flow(target, law, x, law.t_min, law.t_max)
    assert float((run.x - exact).abs().max()) < 2e-3 * float(law.prior_std())
    assert float((sk.decode(model, exact, sampler="rk45").x - x).abs().max()) < 2e-3
    trip = sk.roundtrip(model, x, sampler="rk45")
    assert trip.nfe > run.stats.nfe > 0
    assert float(trip.rms.max()) < 2e-3


@pytest.mark.parametrize("kind", ["x0", "eps", "score", "v", "flow", "edm"])
@pytest.mark.parametrize("process", ["VP", "EDM"])
def test_every_prediction_gives_the_same_latent(kind, process):
    """One plan, lowered to each prediction."""
    target, law = gaussian(3), PROCESSES[process]
    x = data(target, law)
    plan = sk.plan("trig-adams", law, steps=64, grid="quantile", end="t_max", data_std=0.8)
    run = sk.encode(network(target, law, kind), x, sampler=plan)
    same = sk.encode(target.denoiser(law), x, sampler=plan)
    torch.testing.assert_close(run.x, same.x, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("process", PROCESSES)
def test_a_point_mass_goes_along_its_line(process):
    """x_t = alpha m + sigma eps keeps eps: exact for ddim at any number of steps, alpha = 0 included."""
    law, m = PROCESSES[process], torch.tensor([0.5, -2.0, 1.0], dtype=torch.float64)
    model = sk.Denoiser(lambda x, t: m.expand(x.shape), law, predicts="x0", data_std=1.0)
    eps = torch.randn(4, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    x = float(law.alpha(law.t_min)) * m + float(law.sigma(law.t_min)) * eps
    for steps in (1, 2, 7):
        z = sk.encode(model, x, sampler="ddim", steps=steps).x
        exact = float(law.alpha(law.t_max)) * m + float(law.sigma(law.t_max)) * eps
        torch.testing.assert_close(z, exact, rtol=1e-9, atol=1e-9)


# -- alpha = 0 --------------------------------------------------------------------------------------


@pytest.mark.parametrize("process", FROM_PURE_NOISE)
def test_the_limit_at_pure_noise_has_the_error_it_states(process):
    """alpha^2 c / (2 sigma^2) at alpha = 1e-3, once the steps before it are fine."""
    law = PROCESSES[process]
    target = sk.Gaussian([0.0, 0.0], variance=[0.5, 2.0])
    plan = sk.plan(TrigAdams(), law, steps=2000, grid="uniform-lambda", end="t_max")
    g = propagate(plan, target.eigenvalues, target.mean)[1]
    a0, s0 = plan.nodes[0].alpha, plan.nodes[0].sigma
    exact = plan.nodes[-1].sigma / (a0 * a0 * target.eigenvalues + s0 * s0).sqrt()
    torch.testing.assert_close(
        (1 - g / exact) / (1e-6 * target.eigenvalues / 2), torch.ones(2).double(), rtol=0.05, atol=0
    )
    assert plan.nodes[-1].alpha == 0
    assert plan.nodes[-2].alpha == pytest.approx(1e-3, rel=1e-9)


def test_networks_that_say_nothing_at_pure_noise_stop_before_it():
    target, law = gaussian(3), sk.RectifiedFlow()
    x = data(target, law)
    run = sk.encode(network(target, law, "eps"), x)
    assert float(run.ts[-1]) == law.finite_t_max
    exact = flow(target, law, x, law.t_min, law.finite_t_max)
    assert float((run.x - exact).abs().max()) < 1e-4
    start = sk.plan("ddim", law, finite=True).nodes[0]
    assert float(run.ts[-1]) == start.t


@pytest.mark.parametrize("process", FROM_PURE_NOISE)
def test_explicit_times_from_pure_noise_get_the_node_of_the_limit(process):
    law = PROCESSES[process]
    plan = sk.plan("heun", law, grid=[1.0, 0.7, 0.3, 0.01], end="t_max")
    assert plan.times == pytest.approx([0.01, 0.3, 0.7, law.finite_t_max, 1.0], rel=1e-14)
    assert plan.nfe == 7
    near = sk.plan("heun", law, grid=[1.0, 0.99999, 0.3, 0.01], end="t_max")
    assert near.times == (0.01, 0.3, 0.99999, 1.0)


def test_evaluations_count_the_limit():
    for nfe, steps, used in ((21, 11, 21), (20, 10, 19), (1, 1, 1)):
        plan = sk.plan("heun", sk.RectifiedFlow(), nfe=nfe, end="t_max")
        assert (plan.steps, plan.nfe) == (steps, used)
    assert sk.plan("heun", sk.VP(), nfe=20, end="t_max").steps == 10
    one = sk.plan("ddim", sk.RectifiedFlow(), steps=1, end="t_max")
    evaluate, jump = one.instructions
    assert isinstance(evaluate, Evaluate)
    assert (evaluate.predicts, evaluate.t) == ("eps", 1e-3)
    assert isinstance(jump, Combine)
    assert jump.terms == ((1.0, evaluate.out),)


# -- running ----------------------------------------------------------------------------------------


def test_a_plan_to_noise_is_its_grid_reversed_and_survives_json():
    law = sk.VP()
    there, back = (sk.plan("dpmpp-2m", law, steps=9, end=end) for end in ("t_max", "t_min"))
    assert there.times == back.times[::-1]
    assert there.end == "t_max"
    again = sk.Plan.from_json(there.to_json())
    assert again == there
    target = gaussian(3)
    x, model = data(target, law), target.denoiser(law)
    one = sk.encode(model, x, sampler=again)
    grid = SAMPLERS["dpmpp-2m"].default_grid
    assert torch.equal(one.x, sk.encode(model, x, sampler="dpmpp-2m", steps=9, grid=grid).x)
    sampled = sk.sample(model, x.shape, sampler=back, x_init=one.x)
    assert torch.equal(sk.decode(model, one.x, sampler=back).x, sampled.x)


@pytest.mark.parametrize("process", ["VP", "RectifiedFlow"])
def test_rows_tiles_dtype_and_saved_states(process, device):
    target, law = gaussian(4, rotated=True), PROCESSES[process]
    model, x = target.denoiser(law), data(target, law, 13).to(device)
    whole = sk.encode(model, x, steps=12, save="all")
    assert whole.xs.shape == (13, 13, 4)
    assert torch.equal(whole.xs[0], x)
    assert torch.equal(whole.xs[-1], whole.x)
    assert bool((whole.ts.diff() > 0).all())
    tiled = sk.encode(model, x, steps=12, batch_size=5)
    assert torch.equal(tiled.x, whole.x)
    assert torch.equal(sk.encode(model, x[3:4], steps=12).x[0], whole.x[3])
    single = sk.encode(model, x.float(), steps=12)
    assert single.x.dtype == torch.float32
    torch.testing.assert_close(single.x.double(), whole.x, rtol=1e-3, atol=1e-3)
    assert sk.encode(model, x.float(), steps=12, dtype=torch.float64).x.dtype == torch.float64
    assert sk.encode(model, x[:0], steps=12).x.shape == (0, 4)


def test_numpy_images_and_the_input_left_alone():
    target, law = gaussian(6, event=(2, 3)), sk.EDM()
    x = target.sample(3, seed=1).double().numpy()
    before = x.copy()
    run = sk.encode(target.denoiser(law), x)
    assert run.x.shape == (3, 2, 3)
    np.testing.assert_array_equal(x, before)
    assert sk.roundtrip(target.denoiser(law), x).rms.shape == (3,)


def test_gradients_are_those_of_the_flow():
    target, law = gaussian(3), sk.VP()
    x = data(target, law, 2).requires_grad_()
    z = sk.encode(target.denoiser(law), x).x
    (g,) = torch.autograd.grad(z.sum(), x)
    a, s = float(law.alpha(law.t_min)), float(law.sigma(law.t_min))
    b, r = float(law.alpha(law.t_max)), float(law.sigma(law.t_max))
    exact = ((b * b * target.eigenvalues + r * r) / (a * a * target.eigenvalues + s * s)).sqrt()
    torch.testing.assert_close(g, exact.expand(2, 3), rtol=1e-4, atol=1e-5)


def test_sweeps_encode_too():
    target, law = gaussian(3), sk.RectifiedFlow()
    x, model = data(target, law), target.denoiser(law)
    run = sk.encode(model, x, parallel=16, tolerance=1e-6)
    torch.testing.assert_close(run.x, sk.encode(model, x).x, rtol=0, atol=1e-4)
    assert run.stats.nfe == run.stats.sweeps < 64


def test_the_round_trip_prints():
    target = gaussian(2)
    model = target.denoiser(sk.VP())
    assert "rms: median" in repr(sk.roundtrip(model, target.sample(3)))
    empty = sk.roundtrip(model, target.sample(3)[:0])
    assert repr(empty) == "RoundTrip(x: (0, 2), nfe=128)"


# -- errors -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", STOCHASTIC)
def test_noise_cannot_be_taken_back(name):
    model = gaussian(2).denoiser(sk.VP())
    with pytest.raises(CapabilityError, match="cannot encode: it injects noise.*Next: a deterministic"):
        sk.encode(model, torch.zeros(1, 2), sampler=name)
    with pytest.raises(CapabilityError, match="injects noise, so its result is no function of the latent"):
        sk.decode(model, torch.zeros(1, 2), sampler=name)


@pytest.mark.parametrize("sampler", [DDIM(eta=0.5), EulerMaruyama(eta=0.0), ReverseDiffusion(eta=0.0)])
def test_schemes_of_the_reverse_sde_hold_one_way(sampler):
    match = "injects noise" if sampler.eta else "scheme of the reverse SDE, whose formula holds"
    with pytest.raises(CapabilityError, match=match):
        sk.encode(gaussian(2).denoiser(sk.VP()), torch.zeros(1, 2), sampler=sampler)


def test_plans_run_in_their_own_direction():
    law = sk.VP()
    model, x = gaussian(2).denoiser(law), torch.zeros(1, 2)
    there, back = (sk.plan("ddim", law, end=end) for end in ("t_max", "t_min"))
    with pytest.raises(DirectionError, match="expected a plan to noise.*t = 1 to 0.001.*encode runs plans"):
        sk.encode(model, x, sampler=back)
    for run in (sk.sample, sk.decode):
        with pytest.raises(DirectionError, match="expected a plan to data, got one from t = 0.001 to 1"):
            run(model, (1, 2) if run is sk.sample else x, sampler=there)
    for plan in (there, back):
        with pytest.raises(TypeError, match="both ways, and a Plan has one direction"):
            sk.roundtrip(model, x, sampler=plan)
    with pytest.raises(ValueError, match="'t_min' or 'clean', got 't_max'. Next: sdekit.encode"):
        sk.sample(model, (1, 2), end="t_max")
    with pytest.raises(ValueError, match="'t_min' or 'clean', got 't_max'"):
        sk.decode(model, x, end="t_max")
    with pytest.raises(ValueError, match="'t_min', 'clean' or 't_max'"):
        sk.plan("ddim", law, end="noise")


def test_a_grid_from_sigma_zero_has_no_latent():
    flow_model = sk.Denoiser(lambda x, t: -x, sk.RectifiedFlow(), predicts="flow", data_std=1.0)
    for name in ("ddim", "kernel-quadrature"):
        with pytest.raises(ValueError, match="on a grid that ends at t_min|where sigma = 0"):
            sk.encode(flow_model, torch.ones(1, 2), sampler=name, grid=[1.0, 0.5, 0.0])


def test_bad_data_is_refused():
    model = gaussian(2).denoiser(sk.VP())
    with pytest.raises(NonFiniteError, match="x holds NaN"):
        sk.encode(model, torch.full((1, 2), math.nan))
    with pytest.raises(ShapeError, match="z must be floating"):
        sk.decode(model, torch.ones(1, 2, dtype=torch.int64))
    with pytest.raises(ShapeError, match="event shape"):
        sk.encode(model, torch.zeros(1, 3))
    with pytest.raises(ValueError, match="chooses its own steps"):
        sk.encode(model, torch.zeros(1, 2), sampler="rk45", steps=5)


def test_a_failing_network_is_located():
    def net(x, t):
        return torch.where(t[:, None] > 0.5, math.nan, x)

    model = sk.Denoiser(net, sk.VP(), predicts="v", data_std=1.0)
    with pytest.raises(NonFiniteError, match="network returned NaN") as caught:
        sk.encode(model, torch.zeros(2, 2), sampler=Heun(), grid="uniform-t", steps=10)
    step = int(caught.value.solution.failed_step[0])
    assert float(caught.value.solution.failed_at[0]) > 0.5
    assert step == 5


# -- latents ----------------------------------------------------------------------------------------

latents = st.integers(0, 10_000).map(lambda s: torch.Generator().manual_seed(s))


@given(g=latents, n=st.integers(1, 3), d=st.integers(2, 30), w=st.floats(0, 1), scale=st.floats(0.1, 10))
def test_spherical_keeps_the_norm_and_the_plane(g, n, d, w, scale):
    a, b = (torch.randn(n, d, generator=g, dtype=torch.float64) for _ in range(2))
    b = b * scale
    z = sk.interpolate(a, b, w)
    na, nb, nz = (v.norm(dim=1) for v in (a, b, z))
    torch.testing.assert_close(nz, (1 - w) * na + w * nb, rtol=1e-9, atol=1e-9)

    def angle(u, v):
        u, v = u / u.norm(dim=1, keepdim=True), v / v.norm(dim=1, keepdim=True)
        return 2 * torch.atan2((u - v).norm(dim=1), (u + v).norm(dim=1))

    torch.testing.assert_close(angle(a, z), w * angle(a, b), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(angle(z, b), (1 - w) * angle(a, b), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(z, sk.interpolate(b, a, 1 - w), rtol=1e-9, atol=1e-9)


def test_ends_are_exact_and_weights_make_a_path():
    g = torch.Generator().manual_seed(0)
    a, b = (torch.randn(3, 2, 4, generator=g) for _ in range(2))
    for method in ("spherical", "linear"):
        path = sk.interpolate(a, b, torch.linspace(0, 1, 5), method)
        assert path.shape == (5, 3, 2, 4)
        assert path.dtype == torch.float32
        assert torch.equal(path[0], a)
        assert torch.equal(path[-1], b)
        assert torch.equal(path[2], sk.interpolate(a, b, 0.5, method))
        assert sk.interpolate(a, b, torch.zeros(0), method).shape == (0, 3, 2, 4)
    torch.testing.assert_close(sk.interpolate(a, b, 0.25, "linear"), 0.75 * a + 0.25 * b)
    assert torch.equal(sk.interpolate(a.numpy(), b.numpy(), 0.5), sk.interpolate(a, b, 0.5))


def test_a_right_angle_and_equal_latents():
    a, b = torch.tensor([[1.0, 0.0]]).double(), torch.tensor([[0.0, 1.0]]).double()
    third = sk.interpolate(a, b, 1 / 3)
    torch.testing.assert_close(third, torch.tensor([[math.cos(math.pi / 6), 0.5]]).double())
    torch.testing.assert_close(sk.interpolate(a, a, 0.3), a)
    torch.testing.assert_close(sk.interpolate(a, 3 * a, 0.5), 2 * a)


def test_a_zero_latent_keeps_the_other_direction():
    a, zero = torch.tensor([[3.0, 4.0]]), torch.zeros(1, 2)
    torch.testing.assert_close(sk.interpolate(zero, a, 0.2), 0.2 * a)
    torch.testing.assert_close(sk.interpolate(a, zero, 0.2), 0.8 * a)
    assert torch.equal(sk.interpolate(zero, zero, 0.5), zero)


def test_interpolation_refuses_what_has_no_answer():
    a = torch.tensor([[1.0, 2.0], [3.0, -1.0]])
    with pytest.raises(ValueError, match="opposite in sample 1.*method='linear'"):
        sk.interpolate(a, torch.tensor([[2.0, 1.0], [-6.0, 2.0]]), 0.5)
    assert torch.equal(sk.interpolate(a, -a, 0.5, "linear"), torch.zeros(2, 2))
    for weights in (1.5, -0.1, [[0.5]], math.nan, "half", None):
        with pytest.raises(ValueError, match="weights must be"):
            sk.interpolate(a, a, weights)
    with pytest.raises(ShapeError, match="one shape"):
        sk.interpolate(a, a[:1], 0.5)
    with pytest.raises(UnknownNameError, match="spherical"):
        sk.interpolate(a, a, 0.5, "slerp")
