"""Laws and symmetries that hold exactly, over processes, samplers, event shapes and dtypes."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import sdekit as sk
from sdekit.samplers.base import Path, nodes_at
from sdekit.samplers.plan import Combine, Evaluate, Plan, state
from sdekit.samplers.registry import SAMPLERS
from sdekit.samplers.trigonometric import Trigonometric
from tests.samplers.problems import AFFINE, DETERMINISTIC, NAMES, NORMAL, POINT, PROCESSES, gaussian, mixture

#: Exact on a point mass where the flow is a straight line in t.
STRAIGHT = ["euler", "heun"]
#: Samplers that return to noisier times on their way.
EXCURSIONS = {"edm-stochastic", "restart"}
PRESERVING = ["VP", "Cosine", "DiscreteVP"]

shapes = st.lists(st.integers(1, 4), min_size=1, max_size=3).map(tuple)
dims = st.integers(1, 8)
processes = st.sampled_from(list(PROCESSES))
steps = st.integers(1, 9)
etas = st.floats(0.0, 1.0)
TOLERANCE = {torch.float32: 2e-4, torch.float64: 1e-9}
dtypes = st.sampled_from(list(TOLERANCE))


def point(m: torch.Tensor, process) -> sk.Denoiser:
    """E[x0 | x] = m: a network that predicts x0 and knows only one datum."""
    return sk.Denoiser(lambda x, t: m.to(x).expand(x.shape), process, predicts="x0", data_std=1.0)


@pytest.mark.parametrize("name", POINT)
@settings(max_examples=8)
@given(process=processes, event=shapes, n=steps, dtype=dtypes)
def test_a_point_mass_is_transported_exactly(name, process, event, n, dtype):
    """x_i = alpha_i m + sigma_i eps_i, with the same eps everywhere where nothing is drawn.

    In float32 the eps of a late node holds rounding of the first, larger by the ratio of noise levels.
    """
    law = PROCESSES[process]
    m = torch.linspace(-1.0, 2.0, math.prod(event)).reshape(event)
    plan = sk.plan(name, law, steps=n, end="clean")
    run = sk.sample(point(m, law), (3, *event), sampler=plan, save="all", dtype=dtype)
    torch.testing.assert_close(run.x, m.to(dtype).expand(3, *event), rtol=0, atol=TOLERANCE[dtype])
    if name in DETERMINISTIC and dtype == torch.float64:
        eps = [
            (x - node.alpha * m.to(dtype)) / node.sigma
            for x, node in zip(run.xs[:-1], plan.nodes[:-1], strict=True)
        ]
        worst = max(float((e - eps[0]).abs().max()) for e in eps)
        smallest = min(float(node.sigma) for node in plan.nodes[:-1])
        assert worst <= TOLERANCE[dtype] * (1 + 1 / smallest)


@pytest.mark.parametrize("name", AFFINE)
def test_exactness_on_a_point_mass_is_declared_both_ways(name):
    """The law at t_min from the exact start, data of variance 1e-24: exact everywhere, or somewhere not.

    Exact is within 1e-9 of the noise at the start: that is what rounding leaves of eps where the last stage
    of one huge step asks for it.
    """
    target = sk.Gaussian([0.7, -1.3], variance=1e-24)
    worst = 0.0
    for process, n in itertools.product(PROCESSES, (1, 2, 5)):
        law = PROCESSES[process]
        plan = sk.plan(name, law, steps=n, data_std=0.8)
        error = sk.certify(plan, target, law, against="t_min").discretization.norm
        worst = max(worst, error / plan.nodes[0].sigma)
    assert (worst < 1e-9) == ("point" in SAMPLERS[name].exact_for), worst


@pytest.mark.parametrize("name", NAMES)
def test_fixed_points_are_declared_both_ways(name):
    """Whether N(0, I) under VP is left as it is, sample by sample."""
    target = sk.Gaussian([0.0, 0.0], variance=1.0)
    run = sk.sample(target.denoiser(sk.VP()), (3, 2), sampler=name, steps=4, dtype=torch.float64, save="all")
    assert (float((run.xs - run.xs[:1]).abs().max()) < 1e-9) == ("normal" in SAMPLERS[name].exact_for)


@given(name=st.sampled_from(["ddim", "ddpm"]), process=processes, n=steps, eta=etas)
def test_the_exact_family_satisfies_its_two_equations(name, process, n, eta):
    """x' = a x + b D + c xi: b = alpha' - a alpha and a^2 sigma^2 + c^2 = sigma'^2."""
    law = PROCESSES[process]
    plan = sk.plan(name, law, steps=n, eta=eta if name == "ddim" else None)
    combines = [ins for ins in plan.instructions if isinstance(ins, Combine)]
    for i, ins in enumerate(combines):
        here, ahead = plan.nodes[i], plan.nodes[i + 1]
        terms = {register: w for w, register in ins.terms}
        a, b = terms.get(state(i), 0.0), terms.get(f"D[{i}]", 0.0)
        c = sum(c for c, _ in ins.noise)
        assert b == pytest.approx(ahead.alpha - a * here.alpha, rel=1e-9, abs=1e-13)
        assert a**2 * here.sigma**2 + c**2 == pytest.approx(ahead.sigma**2, rel=1e-9)


@given(name=st.sampled_from(STRAIGHT), process=st.sampled_from(["RectifiedFlow", "EDM"]), n=steps)
def test_straight_lines_are_straight(name, process, n):
    law = PROCESSES[process]
    m = torch.tensor([0.5, -2.0], dtype=torch.float64)
    run = sk.sample(point(m, law), (3, 2), sampler=name, steps=n, dtype=torch.float64, end="clean")
    torch.testing.assert_close(run.x, m.expand(3, 2), rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", NORMAL)
@settings(max_examples=8)
@given(process=st.sampled_from(PRESERVING), event=shapes, n=steps, dtype=dtypes)
def test_standard_normal_data_is_a_fixed_point_of_vp(name, process, event, n, dtype):
    law = PROCESSES[process]
    target = sk.Gaussian(torch.zeros(event, dtype=torch.float64), variance=1.0)
    run = sk.sample(target.denoiser(law), (3, *event), sampler=name, steps=n, dtype=dtype, save="all")
    torch.testing.assert_close(run.xs, run.xs[:1].expand(run.xs.shape), rtol=0, atol=TOLERANCE[dtype])


@given(process=st.sampled_from(["VP", "DiscreteVP"]), n=steps, d=dims)
def test_standard_normal_data_is_a_fixed_law_of_ancestral_sampling(process, n, d):
    """With the forward variance: exact for N(0, I), at any number of steps."""
    target = sk.Gaussian(torch.zeros(d, dtype=torch.float64), variance=1.0)
    certificate = sk.certify("ancestral", target, PROCESSES[process], steps=n)
    torch.testing.assert_close(certificate.law.std, torch.ones(d, dtype=torch.float64), rtol=1e-12, atol=0)
    assert certificate.w2 < 1e-11


@given(n=steps)
def test_ddim_rotates_standard_normal_data_by_chords(n):
    """On N(0, I) under VP each step is x' = cos(theta - theta') x, theta = atan2(sigma, alpha)."""
    target = sk.Gaussian([0.0], variance=1.0)
    certificate = sk.certify("ddim", target, sk.VP(), steps=n)
    theta = [math.atan2(node.sigma, node.alpha) for node in certificate.plan.nodes]
    product = math.prod(math.cos(a - b) for a, b in itertools.pairwise(theta))
    assert float(certificate.law.std) == pytest.approx(product, rel=1e-12)


def flow_map(plan: Plan, model, x, draws=None):
    noise = None if draws is None else sk.Recorded(draws)
    return sk.sample(model, tuple(x.shape), sampler=plan, x_init=x, noise=noise).x


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=8)
@given(process=processes, n=st.integers(1, 5), d=st.integers(2, 6), seed=st.integers(0, 99))
def test_reflections_and_permutations_of_the_axes_commute(name, process, n, d, seed):
    """Affine equivariance under orthogonal maps that are exact in floating point."""
    law, g = PROCESSES[process], torch.Generator().manual_seed(seed)
    mean = torch.randn(d, generator=g, dtype=torch.float64)
    variance = torch.rand(d, generator=g, dtype=torch.float64) + 0.1
    order = torch.randperm(d, generator=g)
    sign = torch.randint(0, 2, (d,), generator=g, dtype=torch.float64) * 2 - 1
    plan = sk.plan(name, law, steps=n, data_std=0.8)
    x = torch.randn(4, d, generator=g, dtype=torch.float64) * plan.prior_std
    draws = torch.randn(max(plan.draws, default=0) + 1, 4, d, generator=g, dtype=torch.float64)

    def turn(v):
        return (v * sign)[..., order]

    first = flow_map(plan, sk.Gaussian(mean, variance=variance).denoiser(law), x, draws)
    turned = sk.Gaussian(turn(mean), variance=variance[order]).denoiser(law)
    again = flow_map(plan, turned, turn(x), turn(draws))
    torch.testing.assert_close(again, turn(first), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=5)
@given(process=processes, n=st.integers(1, 5), seed=st.integers(0, 99))
def test_rotations_commute(name, process, n, seed):
    law, g = PROCESSES[process], torch.Generator().manual_seed(seed)
    d = 4
    q, _ = torch.linalg.qr(torch.randn(d, d, generator=g, dtype=torch.float64))
    mean = torch.randn(d, generator=g, dtype=torch.float64)
    values = torch.rand(d, generator=g, dtype=torch.float64) + 0.1
    plan = sk.plan(name, law, steps=n, data_std=0.8)
    x = torch.randn(4, d, generator=g, dtype=torch.float64) * plan.prior_std
    draws = torch.randn(max(plan.draws, default=0) + 1, 4, d, generator=g, dtype=torch.float64)
    first = flow_map(plan, sk.Gaussian(mean, variance=values).denoiser(law), x, draws)
    turned = sk.Gaussian(q @ mean, eigen=(values, q)).denoiser(law)
    again = flow_map(plan, turned, x @ q.T, draws @ q.T)
    torch.testing.assert_close(again, first @ q.T, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("name", [n for n in NAMES if not issubclass(SAMPLERS[n], Trigonometric)])
@settings(max_examples=5)
@given(process=st.sampled_from(["VE", "EDM"]), n=st.integers(1, 6), shift=st.floats(-5, 5))
def test_translations_commute_where_alpha_is_one(name, process, n, shift):
    """Data moved by b move the samples by b: the weights are consistent.

    Not so in trigonometric coordinates, which know where zero is.
    """
    law, target = PROCESSES[process], mixture()
    moved = sk.GaussianMixture(target.weights, target.means + shift, target.eigenvalues)
    plan = sk.plan(name, law, steps=n, data_std=0.8, end="clean")
    g = torch.Generator().manual_seed(0)
    x = torch.randn(4, 2, generator=g, dtype=torch.float64) * plan.prior_std
    draws = torch.randn(max(plan.draws, default=0) + 1, 4, 2, generator=g, dtype=torch.float64)
    first = flow_map(plan, target.denoiser(law), x, draws)
    again = flow_map(plan, moved.denoiser(law), x + shift, draws)
    torch.testing.assert_close(again, first + shift, rtol=0, atol=1e-8 * (1 + plan.prior_std))


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=5)
@given(n=st.integers(1, 12), scale=st.sampled_from([1e-3, 0.25, 3.0, 1e3]))
def test_units_of_the_data_do_not_matter(name, n, scale):
    """Data, noise levels, data_std and data_spread in other units: samples in those units."""
    target = mixture()
    scaled = sk.GaussianMixture(target.weights, target.means * scale, target.eigenvalues * scale**2)
    found = []
    for law, unit in ((target, 1.0), (scaled, scale)):
        process = sk.EDM(0.01 * unit, 20.0 * unit)
        x = sk.sample(law.denoiser(process), (5, 2), sampler=name, steps=n, seed=1, dtype=torch.float64).x
        found.append(x / unit)
    torch.testing.assert_close(*found, rtol=1e-7, atol=1e-7)


@given(name=st.sampled_from(AFFINE), process=processes, n=steps, d=dims, data=st.data())
def test_the_law_does_not_depend_on_the_event_shape(name, process, n, d, data):
    """(d,), (1, d) and (d, 1, 1) hold the same numbers."""
    flat = gaussian(d)
    event = data.draw(st.sampled_from([(1, d), (d, 1, 1), (d, 1)]))
    target = gaussian(d, event=event)
    law = PROCESSES[process]
    plan = sk.plan(name, law, steps=n, data_std=0.8)
    g = torch.Generator().manual_seed(0)
    x = torch.randn(3, d, generator=g, dtype=torch.float64) * plan.prior_std
    draws = torch.randn(max(plan.draws, default=0) + 1, 3, d, generator=g, dtype=torch.float64)
    first = flow_map(plan, flat.denoiser(law), x, draws)
    again = flow_map(plan, target.denoiser(law), x.reshape(3, *event), draws.reshape(-1, 3, *event))
    assert again.shape == (3, *event)
    torch.testing.assert_close(again.reshape(3, d), first, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_evaluations_are_in_order_and_each_is_at_a_node_of_the_process(name):
    """Times asked of the network never increase; stages lie within their step; alpha and sigma are theirs."""
    for process, n in itertools.product(PROCESSES, (1, 2, 5)):
        law = PROCESSES[process]
        plan = sk.plan(name, law, steps=n, end="clean")
        calls = [ins for ins in plan.instructions if isinstance(ins, Evaluate)]
        times = torch.tensor([ins.t for ins in calls], dtype=torch.float64)
        assert {calls[0].t, calls[-1].t} <= set(plan.times) or name in EXCURSIONS
        for ins, node in zip(calls, nodes_at(law, times), strict=True):
            assert tuple(ins.node) == pytest.approx(tuple(node), rel=1e-12, nan_ok=True)
        if name not in EXCURSIONS:
            # A stage that meets the next node does so to rounding.
            assert all(a.t >= b.t * (1 - 1e-9) for a, b in itertools.pairwise(calls))
            assert all(call.t >= plan.times[-2] * (1 - 1e-9) for call in calls)


@pytest.mark.parametrize("name", AFFINE)
def test_coefficients_are_differentiable_in_the_grid(name):
    """The gradient of a function of every weight with respect to one node, against central differences."""
    sampler = SAMPLERS[name]()
    for process in ("VP", "RectifiedFlow"):
        law = PROCESSES[process]

        def total(times, law=law):
            path = Path(tuple(nodes_at(law, times)), process=law)
            combines = [ins for ins in sampler.recipe(path) if isinstance(ins, Combine)]
            weights = [w for ins in combines for w, _ in (*ins.terms, *ins.noise)]
            return sum(torch.as_tensor(w, dtype=torch.float64).sin() for w in weights)

        times = torch.linspace(float(law.finite_t_max), 0.01, 7, dtype=torch.float64)
        (found,) = torch.autograd.grad(total(leaf := times.clone().requires_grad_()), leaf)
        shift = 1e-6 * torch.eye(7, dtype=torch.float64)[3]
        slope = float(total(times + shift) - total(times - shift)) / 2e-6
        assert float(found[3]) == pytest.approx(slope, rel=1e-5, abs=1e-6)


def test_noise_needs_the_names_it_declares():
    """`stochastic` on the class is what the plan does at its defaults."""
    for name, cls in SAMPLERS.items():
        assert sk.plan(name, sk.VP(), steps=3).stochastic == cls.stochastic
        if "eta" in cls.__dataclass_fields__:
            assert not sk.plan(name, sk.VP(), steps=3, eta=0.0).stochastic
            assert sk.plan(name, sk.VP(), steps=3, eta=0.5).stochastic
