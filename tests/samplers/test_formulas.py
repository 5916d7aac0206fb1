"""The parts of which recipes are made, each against its definition."""

from __future__ import annotations

import itertools
import math

import mpmath
import numpy as np
import pytest
import torch

import sdekit as sk
from sdekit.samplers.adams import rho_weights, time_weights
from sdekit.samplers.annealed import carried_variance, exit_variance, minimise
from sdekit.samplers.base import Path, nodes_at
from sdekit.samplers.er_sde import _integrals
from sdekit.samplers.gaussian_split import split_weights
from sdekit.samplers.multistep import SPACING, newest, spaced
from sdekit.samplers.score_sde import Tables
from sdekit.samplers.trigonometric import expected_error, kernel_nodes
from sdekit.samplers.weights import exponential, features, gaussian_data, lagrange_basis

from .problems import PROCESSES
from .test_weights import mp_kernel_weights


def path_of(process, times, **options):
    return Path(
        tuple(nodes_at(process, torch.tensor(times, dtype=torch.float64))), process=process, **options
    )


def levels(process, n=4):
    """n + 1 times, noise first, away from both ends."""
    low, high = process.t_min, process.t_max
    return [float(high - (high - low) * (0.15 + 0.7 * i / n)) for i in range(n + 1)]


@pytest.mark.parametrize("name", PROCESSES)
def test_coordinates_of_a_path(name):
    """lambda, rho, angles and norms from alpha and sigma, over every pair of nodes."""
    process = PROCESSES[name]
    times = [10.0, 6.0, 3.0, 1.0] if name == "DiscreteVP" else levels(process)
    path = path_of(process, times)
    assert path.steps == len(times) - 1
    for i, (t, alpha, sigma, dalpha, dsigma) in enumerate(path.nodes):
        assert t == times[i]
        assert alpha == pytest.approx(float(process.alpha(t)), rel=1e-14)
        assert sigma == pytest.approx(float(process.sigma(t)), rel=1e-14)
        assert dalpha == pytest.approx(float(process.dalpha(t)), rel=1e-13, abs=1e-300)
        assert dsigma == pytest.approx(float(process.dsigma(t)), rel=1e-13)
        assert path.lam[i] == pytest.approx(math.log(alpha / sigma), rel=1e-12, abs=1e-13)
        assert path.rho[i] == pytest.approx(sigma / alpha, rel=1e-14)
        assert path.norm(i, 0.7) == pytest.approx(math.hypot(0.7 * alpha, sigma), rel=1e-14)
    for (i, a), (j, b) in itertools.permutations(enumerate(path.nodes), 2):
        phi = [math.atan2(node.sigma / node.alpha, 0.7) for node in (a, b)]
        assert path.angle(i, j, 0.7) == pytest.approx(phi[0] - phi[1], abs=1e-14)
        if i < j:
            scale, variance = path.back(i, j)
            assert scale == pytest.approx(a.alpha / b.alpha, rel=1e-14)
            assert variance == pytest.approx(a.sigma**2 - scale**2 * b.sigma**2, rel=1e-9)


@pytest.mark.parametrize("name", ["VP", "VE", "EDM", "RectifiedFlow"])
def test_stages_lie_at_their_fraction_of_the_step(name):
    process = PROCESSES[name]
    path = path_of(process, levels(process))
    for i, stages in enumerate(path.between((0.2, 0.75))):
        for r, node in zip((0.2, 0.75), stages, strict=True):
            lam = path.lam[i] + r * (path.lam[i + 1] - path.lam[i])
            assert math.log(node.alpha / node.sigma) == pytest.approx(lam, abs=1e-9)


def test_steps_at_both_ends_are_not_finite():
    path = path_of(sk.RectifiedFlow(), [1.0, 0.6, 0.3, 0.0])
    assert [path.finite(i) for i in range(3)] == [False, True, False]
    assert path.rho[0] == math.inf
    assert path.rho[-1] == 0
    assert [len(stages) for stages in path.between((0.5,))] == [0, 1, 0]
    assert [newest(path, i, 3) for i in range(3)] == [(), (1,), ()]


def test_history_keeps_nodes_a_thousandth_of_a_step_apart():
    """The newest of near nodes stands for all; the distance is counted from the node kept before."""
    assert SPACING == 1e-3
    # Step from node 5 to 6 of length 1: at least 1e-3 between nodes that are kept.
    at = [4.0, 3.0, 1.1, 1.0005, 1.0, 0.0, -1.0]

    def gap(j, k):
        return at[j] - at[k]

    assert spaced(5, 4, gap) == (5, 4, 2, 1)
    assert spaced(5, 3, gap) == (5, 4, 2)
    assert spaced(5, 1, gap) == (5,)
    assert spaced(5, 9, gap) == (5, 4, 2, 1, 0)
    at[3] = 1.001 + 1e-12
    assert spaced(5, 4, gap) == (5, 4, 3, 2)
    at[3] = 1.001 - 1e-12
    assert spaced(5, 4, gap) == (5, 4, 2, 1)


@pytest.mark.parametrize("rate", [-1.0, 0.0, 0.3, 1.0, 5.0])
def test_exponential_weights_at_fifty_digits(rate):
    r"""\int_0^h e^{-rate (h - u)} L_j(u) du for short steps, long ones and several together."""
    steps = [(0.02, [0.0, -0.03]), (1.7, [0.0, -0.4]), (9.0, [0.0, 2.0])]
    nodes = torch.tensor([row for _, row in steps], dtype=torch.float64)
    width = torch.tensor([h for h, _ in steps], dtype=torch.float64)
    found = exponential(nodes, width, rate)
    with mpmath.workdps(50):
        for row, (h, (a, b)) in zip(found.tolist(), steps, strict=True):
            for w, own, other in ((row[0], a, b), (row[1], b, a)):
                exact = mpmath.quad(
                    lambda u, h=h, own=own, other=other: (
                        mpmath.exp(-rate * (h - u)) * (u - other) / (mpmath.mpf(own) - other)
                    ),
                    mpmath.linspace(0, h, 9),
                )
                assert w == pytest.approx(float(exact), rel=2e-13)


def test_the_panels_of_the_exponential_rule_are_enough():
    """|rate h| of 4 to a panel of 16 points leaves rounding; a step of 80 decays is still exact."""
    width = torch.tensor([4.0, 3.99, 80.0], dtype=torch.float64)
    found = exponential(torch.zeros(3, 1, dtype=torch.float64), width, 1.0)[:, 0]
    torch.testing.assert_close(found, -torch.expm1(-width), rtol=1e-14, atol=0)


def test_the_lagrange_basis_by_products():
    nodes, points = [0.3, -1.2, 0.9, 2.0], [0.0, 0.3, 1.7]
    found = lagrange_basis(*(torch.tensor([row], dtype=torch.float64) for row in (nodes, points)))[0]
    for q, u in enumerate(points):
        for j, own in enumerate(nodes):
            exact = math.prod((u - v) / (own - v) for v in nodes if v != own)
            assert float(found[q, j]) == pytest.approx(exact, rel=1e-14, abs=1e-15)


@pytest.mark.parametrize(
    ("c", "noise", "rhos"),
    [
        (0.7, 0.003, [0.05, 0.11, 0.6, 1.4, 7.0]),
        (2.0, 0.3, [0.05, 0.11, 0.6, 1.4, 7.0]),
        (0.5, 0.3, [1e-4, 1e-2, 0.3, 4.0, 50.0]),
        (0.5, 0.3, [1e-5, 2e-5, 3e-5, 5e-5, 7e-5]),
    ],
)
def test_features_are_the_covariance(c, noise, rhos):
    """Phi Phi^T is the four kernels of the docstring, to the truncation of their series."""
    rho = torch.tensor(rhos, dtype=torch.float64)
    phi, s, s2 = torch.atan2(rho, torch.tensor(c)), 0.5, 0.8
    table = features(phi, torch.log(rho), c, noise, gaussian_data(rho, c, s, s2))
    low, high = math.log(0.04 * s * s), math.log(1.2 * s2 * s2)
    for i, j in itertools.product(range(5), repeat=2):
        r, q = float(rho[i]), float(rho[j])
        k = 30 + math.exp(-((float(phi[i]) - float(phi[j])) ** 2) / 2)
        k += (
            noise**2
            * math.sqrt((1 + (r / c) ** 2) * (1 + (q / c) ** 2))
            * math.exp(-(math.log(r / q) ** 2) / 18)
        )
        for l in (math.exp(low + (high - low) * m / 11) for m in range(12)):  # noqa: E741
            a, b = (
                (l / (l + v * v) - c * c / (c * c + v * v))
                * math.sqrt((c * c + v * v) * (l + v * v))
                / (c * v)
                for v in (r, q)
            )
            k += a * b / 12
        assert float(table[i] @ table[j]) == pytest.approx(k, rel=1e-13)


@pytest.mark.parametrize("steps", [1, 4, 19, 20, 21, 40, 200])
def test_the_error_to_expect_of_a_network(steps):
    """0.03 where it is amplified; else 0.003, and by the square of the steps less beyond 20."""
    process = sk.EDM()
    times = torch.linspace(1.0, 0.1, steps + 1).tolist()
    for predicts in ("x0", "edm", "v", "flow", None):
        expected = 0.003 * (1 if steps <= 20 else (20 / steps) ** 2)
        path = path_of(process, times, predicts=predicts)
        if not path.amplified:
            assert expected_error(path) == pytest.approx(expected, rel=1e-13)
    for predicts in ("eps", "score"):
        assert expected_error(path_of(process, times, predicts=predicts)) == 0.03
    assert kernel_nodes(path_of(process, times)) == (6 if steps >= 40 else 5)


@pytest.mark.parametrize(("u", "ratio", "steps"), [(0.3, 1.4, 3), (0.05, 1.0, 1), (0.9, 3.0, 5)])
def test_the_variance_of_langevin_steps_by_recursion(u, ratio, steps):
    """v <- (1 - u)^2 v + 2 u, T times; carried: started from ratio^2 times the level before."""
    v = ratio**2
    for _ in range(steps):
        v = (1 - u) ** 2 * v + 2 * u
    assert exit_variance(u, ratio, steps) == pytest.approx(v, rel=1e-13)
    carried = 1.0
    for _ in range(4000):
        carried *= ratio**2
        for _ in range(steps):
            carried = (1 - u) ** 2 * carried + 2 * u
        if carried > 1e12:
            carried = math.inf
            break
    assert carried_variance(u, ratio, steps) == pytest.approx(carried, rel=1e-9)


def test_the_carried_variance_ends_where_levels_fall_too_fast():
    """(1 - u)^{2T} ratio^2 = 1 exactly is too fast; a little less is not."""
    assert carried_variance(0.5, 2.0, 1) == math.inf
    assert carried_variance(0.5, 2.0 - 1e-6, 1) > 1e5


@pytest.mark.parametrize("best", [1e-8, 3e-5, 0.01, 0.4, 1.0])
def test_the_minimum_is_found(best):
    found = minimise(lambda u: abs(math.log(u / best)))
    assert found == pytest.approx(best, rel=1e-9)
    calls = []
    minimise(lambda u: calls.append(u) or (math.log(u) + 4) ** 2)
    assert min(calls) == pytest.approx(1e-8, rel=1e-12)
    assert max(calls) == pytest.approx(1.0, rel=1e-12)
    assert np.diff(np.log(calls[:401])) == pytest.approx(math.log(1e8) / 400, rel=1e-9)


def test_golden_sections_follow_the_grid():
    """The first two probes divide the bracket of the best of 401 points at 0.382 and 0.618."""
    calls = []
    minimise(lambda u: calls.append(u) or (math.log(u) + 4) ** 2)
    grid = calls[:401]
    best = min(range(401), key=lambda k: (math.log(grid[k]) + 4) ** 2)
    a, b = grid[best - 1], grid[best + 1]
    golden = (math.sqrt(5) - 1) / 2
    probes = [u for u in calls[401:] if u not in grid]
    assert probes[0] == pytest.approx(b - golden * (b - a), rel=1e-12)
    assert probes[1] == pytest.approx(a + golden * (b - a), rel=1e-12)
    assert abs(probes[-1] - probes[-2]) < 1e-11 * (b - a)


def test_levels_of_equal_alpha_are_not_rescaled():
    """For VE and EDM z is x: a level is T evaluations and T combinations, and nothing between levels."""
    plan = sk.plan(sk.samplers.AnnealedLangevin(steps_per_level=3), sk.EDM(), steps=5)
    assert len(plan.instructions) == 2 * 3 * 5
    rescaled = sk.plan(sk.samplers.AnnealedLangevin(steps_per_level=3), sk.VP(), steps=5)
    assert len(rescaled.instructions) == (2 * 3 + 1) * 5


@pytest.mark.parametrize("clean", [False, True])
def test_churn_raises_rho_by_gamma_and_the_cap(clean):
    """gamma = min(s_churn/N, sqrt 2 - 1) on s_tmin <= rho <= s_tmax, both too; N counts the clean one."""
    process, times = sk.EDM(), [8.0, 4.0, 2.0, 1.0, 0.5]
    path = path_of(process, times, clean=clean)
    n = 5 if clean else 4
    for churn, gamma in ((0.4, 0.4 / n), (1.0, 1.0 / n), (40.0, math.sqrt(2) - 1)):
        raised = sk.samplers.EDMStochastic(s_churn=churn, s_tmin=1.0, s_tmax=4.0).raised(path)
        assert list(raised) == [1, 2, 3]
        for i, node in raised.items():
            assert node.sigma / node.alpha == pytest.approx((1 + gamma) * path.rho[i], rel=1e-12)
    assert sk.samplers.EDMStochastic(s_churn=0.0).raised(path) == {}


def test_churn_stops_at_the_process_s_largest_noise():
    """rho_hat is at most rho(t_max), and a step that starts there is not churned."""
    process = sk.VP()
    top = float(process.rho(process.domain[1]))
    ahead = float(process.t_of_rho(torch.tensor([0.9 * top], dtype=torch.float64)))
    path = path_of(process, [float(process.domain[1]), ahead, 0.5])
    raised = sk.samplers.EDMStochastic(s_churn=40.0).raised(path)
    assert list(raised) == [1]
    assert raised[1].sigma / raised[1].alpha == pytest.approx(top, rel=1e-9)


def test_ddim_takes_all_of_the_marginal_as_noise_to_rounding():
    """eta sqrt(v)/sigma = 1, missed by rounding: nothing of x is kept, and sigma' xi is added."""
    process = sk.VP()
    path = path_of(process, [0.8, 0.5])
    whole = path[0].sigma / math.sqrt(path.back(0, 1)[1])
    for eta in (whole * (1 + 4e-13), whole * (1 - 1e-16)):
        _, last = sk.samplers.DDIM(eta=eta).recipe(path)
        weights = {name: w for w, name in last.terms}
        assert abs(weights.get("x[0]", 0.0)) < 1e-6
        assert weights["D[0]"] == pytest.approx(path[1].alpha, abs=1e-6)
        assert last.noise[0][0] == pytest.approx(path[1].sigma, rel=1e-12)
    with pytest.raises(ValueError, match="more noise"):
        list(sk.samplers.DDIM(eta=whole * (1 + 1e-11)).recipe(path))


@pytest.mark.parametrize("steps", [6, 24])
def test_polynomials_without_noise_are_trigonometric_adams(steps):
    """Gaussian-split with the Lagrange interpolant at eta = 0, where the scales agree."""
    process = sk.VP()
    for nodes in (1, 2, 3, 4):
        split = sk.samplers.GaussianSplit(eta=0.0, interpolant="lagrange", nodes=nodes)
        adams = sk.samplers.TrigAdams(nodes=nodes)
        a, b = (sk.plan(s, process, steps=steps, grid="karras", data_std=0.6) for s in (split, adams))
        for mine, theirs in zip(a.instructions, b.instructions, strict=True):
            assert mine.out == theirs.out
            for (w, x), (v, y) in zip(getattr(mine, "terms", ()), getattr(theirs, "terms", ()), strict=True):
                assert x == y
                assert w == pytest.approx(v, rel=1e-12, abs=1e-15)
    assert [sk.samplers.GaussianSplit(nodes=k).order for k in (1, 2, 3)] == [1, 2, 2]


def test_er_sde_weights_of_long_and_short_steps_together():
    r"""w_0 = phi' (1/phi' - 1/phi) for one node, phi = rho (exp(rho^0.3) + 10)."""
    first = torch.tensor([30.0, 1.0, 0.2], dtype=torch.float64)
    last = torch.tensor([0.3, 0.9, 1e-4], dtype=torch.float64)
    found = _integrals(first[:, None], first, last, published=False)[:, 0]

    def phi(rho):
        return rho * (torch.exp(rho**0.3) + 10)

    torch.testing.assert_close(found, 1 - phi(last) / phi(first), rtol=1e-11, atol=0)


def test_the_published_parabola_on_few_steps():
    """SDE-DPM-Solver++(3M) as published differs from the exact integral from the third step on."""
    process = sk.VP()
    times = [0.9, 0.7, 0.45, 0.2]
    exact = sk.plan(sk.samplers.DPMpp3M(), process, grid=times)
    published = sk.plan(sk.samplers.DPMpp3M(compat="published"), process, grid=times)
    same = [a == b for a, b in zip(exact.instructions, published.instructions, strict=True)]
    assert same == [True, True, True, True, True, False]


def test_an_encoder_knows_both_scales_of_the_data():
    """kernel-quadrature backwards: the scale is sqrt(s s2), the kernel has s and s2 in their places."""
    process = sk.EDM()
    plans = [
        sk.plan("kernel-quadrature", process, steps=6, end="t_max", data_std=s, data_spread=s2)
        for s, s2 in ((0.5, 2.0), (2.0, 0.5))
    ]
    path = Path(plans[0].nodes, 0.5, 2.0, process)
    expected = list(sk.samplers.KernelQuadrature().recipe(path))
    assert list(plans[0].instructions) == expected
    assert plans[0].instructions != plans[1].instructions
    assert plans[0].prior_std == pytest.approx(
        math.hypot(0.5 * plans[0].nodes[0].alpha, plans[0].nodes[0].sigma)
    )


@pytest.mark.parametrize("steps", [None, 3])
def test_a_restart_visits_no_node_twice(steps):
    """rho_high may be a node of the grid: each pass starts there once, falls, and ends at rho_low."""
    path = path_of(sk.EDM(), [8.0, 6.0, 4.0, 2.0, 1.0, 0.5], data_std=2.0)
    passes = sk.samplers.Restart(intervals=((0.6, 3.0, 2, steps),)).passes(path)
    assert list(passes) == [4]
    assert len(passes[4]) == 2
    for nodes in passes[4]:
        found = [node.sigma for node in nodes]
        if steps is None:
            assert found == pytest.approx([6.0, 4.0, 2.0, 1.0], rel=1e-12)
        else:
            fall = [6 ** (1 / 7) + (1 - 6 ** (1 / 7)) * k / steps for k in range(steps + 1)]
            assert found == pytest.approx([v**7 for v in fall], rel=1e-12)


def test_restarts_may_end_at_the_first_node_below_and_at_the_last():
    path = path_of(sk.EDM(), [8.0, 4.0, 2.0, 1.0])
    for low, high, end in ((3.9, 7.9, 1), (1e-3, 1.5, 3), (2.7, 7.9, 2), (2.9, 7.9, 1), (2.8, 3.9, 2)):
        assert list(sk.samplers.Restart(intervals=((low, high, 1, None),)).passes(path)) == [end]
    assert list(sk.samplers.Restart(intervals=((7.9, 9.0, 1, None),)).passes(path)) == [1]
    assert sk.samplers.Restart(intervals=((1e-3, 0.9, 1, None),)).passes(path) == {}
    whole = path_of(sk.RectifiedFlow(), [1.0, 0.7, 0.4, 0.0])
    assert list(sk.samplers.Restart(intervals=((2.0, 3.0, 1, None),)).passes(whole)) == [1]
    assert list(sk.samplers.Restart(intervals=((1e-9, 0.5, 1, None),)).passes(whole)) == []


@pytest.mark.parametrize("eta", [0.0, 0.6, 1.0, 1.3])
def test_reverse_diffusion_at_any_eta(eta):
    """x' = (2 - a) x + (1 + eta^2)/2 v score + eta sqrt(v) xi."""
    path = path_of(sk.VP(), [0.8, 0.5, 0.3])
    steps = [ins for ins in sk.samplers.ReverseDiffusion(eta=eta).recipe(path) if hasattr(ins, "terms")]
    for i, ins in enumerate(steps):
        a, v = path.back(i, i + 1)
        assert [w for w, _ in ins.terms] == pytest.approx([2 - a, (1 + eta * eta) / 2 * v], rel=1e-14)
        assert [c for c, _ in ins.noise] == pytest.approx([eta * math.sqrt(v)] if eta else [], rel=1e-14)


@pytest.mark.parametrize(
    ("process", "forward"),
    [("VP", True), ("DiscreteVP", True), ("SubVP", False), ("VE", False), ("RectifiedFlow", False)],
)
def test_the_published_variance_is_forward_where_the_process_keeps_variance(process, forward):
    law = PROCESSES[process]
    published, named = (
        sk.plan(sk.samplers.Ancestral(variance=v), law, steps=6)
        for v in ("published", "forward" if forward else "posterior")
    )
    assert published.instructions == named.instructions


def test_the_published_variance_at_pure_noise_is_the_posterior():
    """The forward transition from alpha' > 0 to alpha = 0 forgets x: its variance says nothing of x'."""
    times = [1.0, 0.7, 0.3]
    published, posterior = (
        sk.plan(sk.samplers.Ancestral(variance=v), sk.Cosine(), grid=times)
        for v in ("published", "posterior")
    )
    assert published.instructions == posterior.instructions


def test_declared_orders_of_sa_solver():
    """The pair's min(p + 1, c) where nothing is random, p without a corrector; weak order 2 at most."""
    for predictor, corrector in itertools.product((1, 2, 3, 6), (0, 1, 2, 3, 6)):
        exact = predictor if corrector == 0 else min(predictor + 1, corrector)
        sampler = sk.samplers.SASolver(eta=0.0, predictor=predictor, corrector=corrector)
        assert sampler.order == exact
        assert sk.samplers.SASolver(predictor=predictor, corrector=corrector).order == min(exact, 2)
    for wrong in ({"predictor": 0}, {"predictor": 7}, {"corrector": -1}, {"corrector": 7}):
        with pytest.raises(ValueError):
            sk.samplers.SASolver(**wrong)


def test_declared_orders_follow_the_options():
    s = sk.samplers
    assert [s.LMS(nodes=k).order for k in (1, 2, 3, 4)] == [1, 2, 3, 4]
    assert [s.IPNDM(nodes=k).order for k in (1, 2, 3, 4)] == [1, 2, 3, 4]
    assert [s.IPNDM(nodes=k, compat="published").order for k in (1, 2, 3, 4)] == [1, 2, 2, 2]
    assert [s.DEIS(degree=k).order for k in (0, 1, 2, 3)] == [1, 2, 3, 4]
    assert [s.PNDM(compat=c).order for c in (None, "published")] == [4, 2]
    assert [s.DPMpp3M(compat=c).order for c in (None, "published")] == [3, 2]
    assert [s.SDEDPMpp3M(eta=e, compat=c).order for e, c in ((1, None), (0, None), (0, "published"))] == [
        2,
        3,
        2,
    ]
    assert [s.ERSDE(nodes=k).order for k in (1, 2, 3)] == [1, 2, 2]
    assert [s.Seeds(stages=k).order for k in (1, 2, 3)] == [1, 2, 2]
    assert [s.Seeds(eta=0.0, stages=k).order for k in (1, 2, 3)] == [1, 2, 3]
    assert [s.UniPC(nodes=k).order for k in (1, 2, 3, 4)] == [2, 3, 4, 5]
    assert [s.TrigAdams(nodes=k).order for k in (None, 1, 8)] == [4, 1, 8]
    assert [s.ExponentialAdams(nodes=k).order for k in (1, 3, 6)] == [1, 3, 6]


def test_sa_solver_is_random_where_it_was_asked_to_be():
    """tau = eta in a range of rho with both ends, eta times a function of rho, or everywhere."""
    path = path_of(sk.EDM(), [8.0, 4.0, 2.0, 1.0, 0.5])
    assert sk.samplers.SASolver(eta=0.7, where=(2.0, 4.0)).taus(path) == [0.0, 0.7, 0.7, 0.0]
    assert sk.samplers.SASolver(eta=0.7).taus(path) == [0.7] * 4
    assert sk.samplers.SASolver(eta=0.5, where=lambda rho: rho / 2).taus(path) == [2.0, 1.0, 0.5, 0.25]


@pytest.mark.parametrize("n", [1, 2, 5])
def test_published_tables_of_few_entries(n):
    """beta_k and sigma_k run from the least to the largest; one entry is the least."""
    vp, ve = Tables(sk.VP(0.2, 1.4), n), Tables(sk.VE(0.1, 9.0), n)
    assert vp.beta(0) == pytest.approx(0.2 / n, rel=1e-14)
    assert ve.sigmas(0) == (pytest.approx(0.1, rel=1e-14), 0.0)
    if n > 1:
        assert vp.beta(n - 1) == pytest.approx(1.4 / n, rel=1e-14)
        assert ve.sigmas(n - 1)[0] == pytest.approx(9.0, rel=1e-13)
        assert ve.sigmas(1)[1] == pytest.approx(0.1, rel=1e-13)
        assert ve.sigmas(1)[0] == pytest.approx(0.1 * 90 ** (1 / (n - 1)), rel=1e-13)
    assert [vp.index(t) for t in (0.0, 0.5, 1.0)] == [0, (n - 1) // 2, n - 1]


def test_polynomials_in_t_are_those_in_rho_where_t_is_rho():
    """On EDM t is rho: the quadrature in lambda gives the exact integrals in rho, on steps of any length."""
    path = path_of(sk.EDM(), [80.0, 60.0, 40.0, 30.0, 0.002])
    rules = [(i, newest(path, i, 4)) for i in range(path.steps)]
    for by_time, by_rho in zip(time_weights(path, rules), rho_weights(path, rules), strict=True):
        assert by_time == pytest.approx(by_rho, rel=1e-11)


@pytest.mark.parametrize("steps", [1, 5, 6, 19, 20, 21, 39, 40, 100, 124, 130, 400])
def test_how_many_nodes_and_how_much_noise(steps):
    """Documented choices by the number of intervals, on both sides of each change."""
    s = sk.samplers
    path = path_of(sk.EDM(), torch.linspace(4.0, 0.1, steps + 1).tolist())
    assert s.TrigAdams().history(path) == (3 if steps < 6 else 4)
    assert s.KernelQuadrature().history(path) == (5 if steps < 40 else 6)
    assert s.KernelQuadrature().behind(path) == 5
    for k in (1, 2, 5):
        for sampler in (s.TrigAdams(nodes=k), s.GaussianSplit(nodes=k)):
            assert (sampler.history(path), sampler.behind(path)) == (k, k - 1)
    eta = min(1.0, 0.4 * math.sqrt(max(steps, 20) / 20))
    assert s.GaussianSplit().stochasticity(path) == pytest.approx(eta, rel=1e-14)
    assert s.GaussianSplit(eta=0.3).stochasticity(path) == 0.3
    assert s.TrigAdams().stochasticity(path) == s.KernelQuadrature().stochasticity(path) == 0
    assert (s.GaussianSplit().history(path), s.GaussianSplit().behind(path)) == (5, 5)
    assert s.GaussianSplit(eta=0.0).history(path) == s.KernelQuadrature().history(path)
    lagrange = s.GaussianSplit(interpolant="lagrange")
    assert (lagrange.history(path), lagrange.behind(path)) == (3, 2)


def test_the_node_of_pure_noise_is_history_of_polynomials_only():
    """phi = pi/2 is a node for a polynomial; the kernel expects infinite errors there."""
    path = path_of(sk.RectifiedFlow(), [1.0, 0.7, 0.5, 0.3])
    rules = [(1, (1, 0)), (2, (2, 1, 0)), (0, (0,))]
    kernel, adams = sk.samplers.KernelQuadrature(), sk.samplers.TrigAdams()
    found = kernel.weights(path, rules, 1.0)
    assert [len(row) for row in found] == [2, 3, 1]
    assert found[0][1] == found[1][2] == 0
    assert found[0][0] == pytest.approx(path.angle(2, 1, 1.0), rel=1e-12)
    assert found[2][0] == pytest.approx(path.angle(1, 0, 1.0), rel=1e-12)
    for (i, nodes), row in zip(rules, adams.weights(path, rules, 1.0), strict=True):
        assert sum(row) == pytest.approx(path.angle(i + 1, i, 1.0), rel=1e-12)
        moment = sum(w * path.angle(j, i, 1.0) for w, j in zip(row, nodes, strict=True))
        exact = path.angle(i + 1, i, 1.0) ** 2 / 2 if len(nodes) > 1 else 0.0
        assert moment == pytest.approx(exact, rel=1e-11)


@pytest.mark.parametrize("corrector", ["langevin-norm", "langevin", "ula", "mala", "re-noise"])
@pytest.mark.parametrize("predictor", ["reverse-diffusion", "none"])
def test_the_cost_of_an_object_is_what_its_plan_spends(predictor, corrector):
    """Evaluations a step: Plan.nfe over the intervals."""
    if (predictor, corrector) == ("none", "re-noise"):
        return
    for corrections in (1, 3):
        sampler = sk.samplers.PredictorCorrector(
            predictor=predictor, corrector=corrector, corrections=corrections
        )
        assert sk.plan(sampler, sk.VP(), steps=4).nfe == 4 * sampler.cost
    assert sk.plan(sk.samplers.Seeds(stages=3), sk.VP(), steps=4).nfe == 4 * sk.samplers.Seeds(stages=3).cost


def test_the_last_heun_step_to_clean_data_is_euler_s():
    """x' = x + h v(x, t), h = t' - t: the slope at sigma' = 0 is not asked for."""
    path = path_of(sk.EDM(), [8.0, 2.0, 0.0])
    *_, slope, last = sk.samplers.Heun().recipe(path)
    assert (slope.x, slope.t, slope.predicts) == ("x[1]", 2.0, "velocity")
    assert last.out == "x[2]"
    assert sorted((name, w) for w, name in last.terms) == sorted([("x[1]", 1.0), (slope.out, -2.0)])


def test_unipc_in_eps_ends_in_the_denoiser():
    """To sigma' = 0: x' = (alpha'/alpha) (x - sigma eps)."""
    path = path_of(sk.RectifiedFlow(), [0.8, 0.4, 0.0])
    *_, last = sk.samplers.UniPC(predicts="eps").recipe(path)
    (_, alpha, sigma, *_), ahead = path[1], path[2].alpha
    terms = {name: w for w, name in last.terms}
    assert terms["x[1]"] == pytest.approx(ahead / alpha, rel=1e-14)
    assert terms["m[1]"] == pytest.approx(-ahead * sigma / alpha, rel=1e-14)


def test_a_metropolis_correction_asks_for_scores_at_the_new_time():
    """The proposal, the middle of its line, and the scores at x, there and at the proposal, all at t'."""
    sampler = sk.samplers.PredictorCorrector(predictor="none", corrector="mala", step=0.2)
    path = path_of(sk.VP(), [0.8, 0.5, 0.3])
    found = list(sampler.recipe(path))[:7]
    rescale, score, propose, middle, at_middle, at_y, decide = found
    assert [ins.t for ins in (score, at_middle, at_y)] == [0.5] * 3
    assert (score.x, at_middle.x, at_y.x) == (rescale.out, middle.out, propose.out)
    assert sorted(middle.terms) == sorted([(0.5, rescale.out), (0.5, propose.out)])
    e = 0.2 * path[1].sigma ** 2
    assert {name: w for w, name in propose.terms} == pytest.approx(
        {rescale.out: 1.0, score.out: e}, rel=1e-14
    )
    assert propose.noise[0][0] == pytest.approx(math.sqrt(2 * e), rel=1e-14)
    assert decide.inputs == (rescale.out, propose.out, score.out, at_middle.out, at_y.out)
    assert decide.params["step"] == pytest.approx(e, rel=1e-14)
    assert decide.params["draw"] == propose.noise[0][1] + 1


@pytest.mark.parametrize(("kappa", "eta"), [(0.3, 0.0), (2.5, 0.0), (0.3, 0.7)])
def test_the_weight_of_gaussian_data(kappa, eta):
    """kappa multiplies the covariance of Gaussian data, not its features."""
    rhos, (a, b), c, s, s2 = [1.2, 2.6, 7.0], (1.2, 0.5), 0.55, 0.5, 0.6
    rho, start, end = (torch.tensor([v], dtype=torch.float64) for v in (rhos, a, b))
    phi = torch.atan2(c * (rho - start), c * c + rho * start)
    width = torch.atan2(c * (end - start), c * c + end * start)
    scales = {"c": c, "s": s, "s2": s2, "noise": 0.003, "kappa": kappa}
    found = split_weights(phi, rho, width, (start, end), eta=eta, **scales)[0].tolist()
    expected = mp_kernel_weights(rhos, a, b, c, s, s2, 0.003, kappa, points=40, eta=eta)
    other = mp_kernel_weights(rhos, a, b, c, s, s2, 0.003, 1 / kappa, points=40, eta=eta)
    size = float(width.abs())
    assert found == pytest.approx(expected, abs=2e-6 * size)
    assert max(abs(x - y) for x, y in zip(expected, other, strict=True)) > 2e-5 * size


def test_an_encoding_grid_may_name_the_last_time_of_finite_drift():
    """alpha = 1e-3 is put before t_max where the grid lacks it, and not twice."""
    process = sk.RectifiedFlow()
    near = float(process.finite_t_max)
    for times in ([1.0, near, 0.5, 0.1], [1.0, 0.5, 0.1]):
        plan = sk.plan("ddim", process, grid=times, end="t_max")
        assert [node.t for node in plan.nodes] == pytest.approx(sorted({*times, near}), abs=1e-15)
