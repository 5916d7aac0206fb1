"""Coefficients of single steps: the integrals that define them, limits, gradients, published options."""

from __future__ import annotations

import itertools
import math
import zlib

import pytest
import torch
from scipy.integrate import quad

import sdekit as sk
from sdekit.samplers.adams import DEIS, IPNDM, LMS
from sdekit.samplers.base import Path, nodes_at
from sdekit.samplers.dpmpp import SDEDPMpp2M, transfer
from sdekit.samplers.er_sde import ERSDE
from sdekit.samplers.gaussian_split import split_weights
from sdekit.samplers.multistep import SPACING, spaced
from sdekit.samplers.plan import Combine, Evaluate
from sdekit.samplers.pndm import PNDM
from sdekit.samplers.registry import SAMPLERS
from sdekit.samplers.restart import Restart
from sdekit.samplers.sa import SASolver, with_new
from sdekit.samplers.score_sde import Tables
from sdekit.samplers.seeds import Seeds
from sdekit.samplers.single_step import DPMpp2S, KDPM2Ancestral, split
from sdekit.samplers.stages import rise
from sdekit.samplers.trigonometric import KernelQuadrature, TrigAdams
from sdekit.samplers.weights import features, kernel
from sdekit.score.predictions import Node


def levels(rho) -> Path:
    """A path with alpha = 1 and sigma = rho."""
    return Path(tuple(Node(float(r), 1.0, float(r), 0.0, 1.0) for r in rho))


def flow(times) -> Path:
    """A path of the rectified flow: pure noise at t = 1, clean data at t = 0."""
    process = sk.RectifiedFlow()
    return Path(tuple(nodes_at(process, torch.as_tensor(times, dtype=torch.float64))), process=process)


def combines(instructions) -> dict[str, dict[str, float]]:
    """Register -> {register read: weight}, of the affine instructions."""
    return {
        ins.out: {name: float(w) for w, name in ins.terms} for ins in instructions if isinstance(ins, Combine)
    }


# Integrals


def test_polynomials_in_t_are_integrated_over_a_long_step_beside_a_short_one():
    r"""\int L_j(t(lambda)) drho with adaptive quadrature, over 8 in lambda."""
    process, lam = sk.VP(), [-4.6, -4.2, -4.0, 4.0]
    times = process.t_of_half_log_snr(torch.tensor(lam, dtype=torch.float64))
    path = Path(tuple(nodes_at(process, times)), process=process)
    found = combines(DEIS(degree=1).recipe(path))["x[3]"]
    newest, older = float(times[2]), float(times[1])

    def integrand(v, j):
        t = float(process.t_of_half_log_snr(torch.tensor(v, dtype=torch.float64)))
        line = (t - newest) / (older - newest)
        return -math.exp(-v) * (line if j else 1 - line)

    for j, register in enumerate(["e[2]", "e[1]"]):
        parts = [quad(integrand, a, a + 1, (j,), epsabs=1e-14, epsrel=1e-12)[0] for a in range(-4, 4)]
        assert found[register] == pytest.approx(path[3].alpha * math.fsum(parts), rel=1e-9)


def noise_scale(r: float) -> float:
    """phi(r) = r (exp(r^0.3) + 10), Cui et al. 2023, their recommended function."""
    return r * (math.exp(r**0.3) + 10)


def parabola(r: float, nodes, values, published: bool) -> float:
    """Newton's form on the newest nodes. Published: (r - a)^2 in place of (r - a)(r - b)."""
    if len(nodes) == 1:
        return values[0]
    (a, b), slope = nodes[:2], (values[0] - values[1]) / (nodes[0] - nodes[1])
    line = values[0] + (r - a) * slope
    if len(nodes) == 2:
        return line
    bend = (slope - (values[1] - values[2]) / (b - nodes[2])) / (a - nodes[2])
    return line + bend * (r - a) * (r - a if published else r - b)


@pytest.mark.parametrize("compat", [None, "published"])
def test_er_sde_integrates_its_parabola_over_short_and_long_steps(compat):
    r"""Weights of D: phi' \int P d(1/phi) with adaptive quadrature, one D of P being 1."""
    rho = [3e5, 2e5, 1.2e5, 1e5, 9e4, 9e4 * math.exp(-16), 1e-3]
    found = combines(ERSDE(unit=1.0, compat=compat).recipe(levels(rho)))
    for i in range(len(rho) - 1):
        first, last = rho[i], rho[i + 1]
        used = list(range(i, max(i - 3, -1), -1))
        for k, j in enumerate(used):

            def integrand(v, last=last, used=used, k=k):
                r = last * math.exp(v)
                top = math.exp(r**0.3)
                decay = noise_scale(last) / noise_scale(r) * (1 + 0.3 * r**0.3 * top / (top + 10))
                unit = [float(k == m) for m in range(len(used))]
                return decay * parabola(r, [rho[m] for m in used], unit, compat is not None)

            span = math.log(first / last)
            cuts = [span * m / 8 for m in range(9)]
            want = math.fsum(
                quad(integrand, a, b, epsabs=0, epsrel=1e-11)[0] for a, b in itertools.pairwise(cuts)
            )
            assert found[f"x[{i + 1}]"][f"D[{j}]"] == pytest.approx(want, rel=1e-8)


@pytest.mark.parametrize("eta", [0.5, 1.6])
def test_the_line_of_sde_dpmpp_2m_is_integrated_with_its_own_rate(eta):
    r"""rate \int_0^h e^{-rate (h - u)} (1, u) du = (1 - e^{-rate h}, h - (1 - e^{-rate h})/rate)."""
    rho = [5.0, 2.0, 0.7]
    found = combines(SDEDPMpp2M(eta=eta, solver_type="heun").recipe(levels(rho)))["x[2]"]
    rate, h, before = 1 + eta**2, math.log(2.0 / 0.7), math.log(5.0 / 2.0)
    constant = 1 - math.exp(-rate * h)
    slope = (h - constant / rate) / before
    assert found["D[1]"] == pytest.approx(constant + slope, rel=1e-12)
    assert found["D[0]"] == pytest.approx(-slope, rel=1e-12)


def test_sa_solver_moves_a_point_at_a_stochasticity_that_changes():
    """D = m and x = alpha m give x' = alpha' m: alpha times the weight of x plus those of D make alpha'."""
    path = Path(tuple(nodes_at(sk.VP(), torch.linspace(0.6, 0.1, 6, dtype=torch.float64))))
    solver = SASolver(where=lambda rho: 1.5 if rho > 2 else 0.2)
    assert len(set(solver.taus(path))) == 2
    for out, terms in combines(solver.recipe(path)).items():
        step = int(out[2:-1])
        total = sum(path[step - 1].alpha * w if name[0] == "x" else w for name, w in terms.items())
        assert total == pytest.approx(path[step].alpha, rel=1e-13)


def test_features_are_the_covariance_over_eight_decades():
    r"""The covariance of `weights.features`, entry by entry, without its data term."""
    c, noise = 0.7, 0.003
    rho = torch.logspace(-4, 4, 9, dtype=torch.float64)
    phi = torch.atan2(rho, torch.full_like(rho, c))
    phi_features = features(phi, torch.log(rho), c, noise, None)
    found = phi_features @ phi_features.mT
    for i, r in enumerate(rho.tolist()):
        for j, other in enumerate(rho.tolist()):
            smooth = math.exp(-((math.atan2(r, c) - math.atan2(other, c)) ** 2) / 2)
            size = noise**2 * math.sqrt((1 + (r / c) ** 2) * (1 + (other / c) ** 2))
            want = 30 + smooth + size * math.exp(-(math.log(r / other) ** 2) / 18)
            assert float(found[i, j]) == pytest.approx(want, rel=1e-11)


# Histories


def test_numbers_of_nodes_change_with_the_number_of_intervals():
    """trig-adams: 3 below 6 intervals, 4 from there; kernel-quadrature: 5 below 40, 6 from there."""
    paths = {n: levels(torch.linspace(2.0, 0.5, n + 1)) for n in (5, 6, 39, 40)}
    assert [TrigAdams().history(paths[n]) for n in (5, 6)] == [3, 4]
    assert [KernelQuadrature().history(paths[n]) for n in (39, 40)] == [5, 6]


def test_a_node_at_the_least_distance_is_kept():
    gaps = {(2, 1): 1.0, (1, 0): SPACING}
    assert spaced(1, 2, lambda j, k: gaps[j, k]) == (1, 0)
    gaps[1, 0] = SPACING * (1 - 1e-12)
    assert spaced(1, 2, lambda j, k: gaps[j, k]) == (1,)


def test_a_step_between_finite_nodes_is_corrected_beside_one_that_is_not():
    from_noise, to_data = flow([1.0, 0.6, 0.3, 0.1]), flow([0.9, 0.5, 0.2, 0.0])
    assert [with_new(from_noise, i, 3) for i in range(3)] == [(), (2, 1), (3, 2, 1)]
    assert [with_new(to_data, i, 3) for i in range(3)] == [(1, 0), (2, 1, 0), ()]


def test_a_corrector_may_use_more_old_nodes_than_the_predictor():
    class Wide(TrigAdams):
        def behind(self, path):
            return 2

    path = levels([3.0, 2.0, 1.0, 0.5])
    found = combines(Wide(nodes=1).recipe(path))
    assert set(found["p[2]"]) == {"x[1]", "F[1]"}
    assert set(found["x[2]"]) == {"x[1]", "P[2]", "F[1]", "F[0]"}
    assert set(found["x[3]"]) == {"x[2]", "F[2]"}
    assert found["x[3]"]["F[2]"] == pytest.approx(-path.norm(3, 1.0) * path.angle(3, 2, 1.0), rel=1e-13)


#: Options of the published algorithms: Lu et al. 2022 (DPM-Solver, algorithms 4 and 5; DPM-Solver++,
#: algorithm 1); Liu et al. 2022; Zhang and Chen 2023 (tAB3); Cui et al. 2023; Karras et al. 2022, table 5
#: (ImageNet-64); Song et al. 2021, appendix G (CIFAR-10); Song and Ermon 2020 (CIFAR-10); Xue et al. 2023;
#: Zhao et al. 2023. eta: 1 is the reverse SDE, 0 the probability flow. (pc's step, of correctors that were
#: published without one, is the library's.)
PUBLISHED = {
    "dpm-2": {"r1": 1 / 2},
    "dpm-3": {"r1": 1 / 3},
    "dpmpp-2s": {"r1": 1 / 2, "eta": 0},
    "ddim": {"eta": 0},
    "sde-dpmpp-2m": {"eta": 1},
    "sde-dpmpp-3m": {"eta": 1},
    "kdpm2-ancestral": {"eta": 1},
    "euler-maruyama": {"eta": 1},
    "reverse-diffusion": {"eta": 1},
    "seeds": {"eta": 1},
    "sa-solver": {"eta": 1, "predictor": 3, "corrector": 4},
    "lms": {"nodes": 4},
    "ipndm": {"nodes": 4},
    "deis": {"degree": 3},
    "er-sde": {"nodes": 3},
    "edm-stochastic": {"s_churn": 40},
    "pc": {"snr": 0.16, "corrections": 1, "step": 0.1},
    "annealed-langevin": {"steps_per_level": 5},
    "unipc-2": {"nodes": 2},
    "unipc-3": {"nodes": 3},
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_options_are_the_published_ones_unless_given(name):
    assert {key: getattr(SAMPLERS[name](), key) for key in PUBLISHED[name]} == PUBLISHED[name]


def test_restart_has_the_published_interval_unless_given():
    """0.06 to 0.3, twice, where the data have a standard deviation of 1/2."""
    assert [(0.5 * low, 0.5 * high, n) for low, high, n, _ in Restart().intervals] == [(0.06, 0.3, 2)]


def test_a_corrector_does_not_raise_the_order_of_its_predictor():
    assert SAMPLERS["pc"](predictor="reverse-diffusion").order == SAMPLERS["reverse-diffusion"]().order == 1


def test_data_of_unit_spread_are_assumed_where_none_is_given():
    path = Path((Node(0.0, 1.0, 0.0),))
    assert (path.steps, path.data_std, path.data_spread) == (0, 1.0, 1.0)


@pytest.mark.parametrize("sampler", [LMS, IPNDM])
def test_adams_has_no_fifth_node(sampler):
    assert sampler(nodes=4).order == 4
    with pytest.raises(ValueError, match="at most 4"):
        sampler(nodes=5)


def test_a_transfer_is_ddim_and_a_rise_the_forward_transition():
    """keep = sigma'/sigma without noise; alpha'/alpha and alpha' sqrt(rho'^2 - rho^2)."""
    low, high = Node(0.2, 0.8, 0.6), Node(0.6, 0.5, 0.7)
    assert transfer(Path((high, low)), 0) == pytest.approx((0.6 / 0.7, 0.8 - 0.5 * 0.6 / 0.7, 0.0))
    up = rise(low, high, "x", "y", 0)
    assert up.terms[0][0] == pytest.approx(0.5 / 0.8)
    assert up.noise[0][0] == pytest.approx(0.5 * math.sqrt((0.7 / 0.5) ** 2 - (0.6 / 0.8) ** 2))


# Ends of the grid


def test_one_trigonometric_step_to_clean_data_is_the_denoiser():
    found = combines(TrigAdams().recipe(flow([0.8, 0.0])))
    assert found["x[1]"] == {"D[0]": 1.0}


def test_published_pndm_needs_no_process_where_no_stage_lies_between_nodes():
    found = combines(PNDM(compat="published").recipe(levels([1.0, 0.0])))
    assert found == {"x[1]": {"D[0]": 1.0}}


@pytest.mark.parametrize("times", [[0.8, 0.5, 0.3, 0.0], [1.0, 0.8, 0.5, 0.3]])
def test_a_step_that_is_not_finite_leaves_the_others_of_seeds_as_they_are(times):
    whole, inner = flow(times), flow([0.8, 0.5, 0.3])
    shift = times.index(0.8)
    found, want = (combines(Seeds(stages=3).recipe(path)) for path in (whole, inner))
    for i in range(2):
        weights, same = found[f"x[{i + 1 + shift}]"], want[f"x[{i + 1}]"]
        assert list(weights.values()) == pytest.approx(list(same.values()), rel=1e-12)


@pytest.mark.parametrize("name", ["trig-adams", "kernel-quadrature", "exponential-adams", "ddim"])
def test_one_step_back_to_pure_noise_is_one_evaluation(name):
    """x' = sigma' eps: nothing else is evaluated."""
    plan = sk.plan(name, sk.RectifiedFlow(), steps=1, end="t_max")
    (call,) = (ins for ins in plan.instructions if isinstance(ins, Evaluate))
    assert call.predicts == "eps"
    assert combines(plan.instructions) == {"x[1]": {call.out: 1.0}}


def test_an_ancestral_step_above_eta_one_may_be_all_noise():
    """rho_up^2 = min(1, eta^2 (1 - rho'^2/rho^2)) rho'^2, here with 1.3^2 (1 - 1/16) = 1.58."""
    down, up = split(Node(0.8, 0.5, 2.0), Node(0.4, 0.5, 0.5), 1.3)
    assert (down.sigma, up) == (0.0, 0.5)


def test_tables_of_two_entries_end_at_the_process_own():
    """beta_1 = beta_max/2 and sigma_1 = sigma_max at N = 2, sigma_0 = sigma_min."""
    vp, ve = sk.VP(), sk.VE()
    assert Tables(vp, 2).beta(1) == pytest.approx(vp.beta_max / 2)
    assert Tables(vp, 2).beta(0) == pytest.approx(vp.beta_min / 2)
    assert Tables(ve, 2).sigmas(1) == pytest.approx((ve.sigma_max, ve.sigma_min))
    assert Tables(ve, 2).sigmas(0) == pytest.approx((ve.sigma_min, 0.0))


# Gradients


def mass(instructions) -> torch.Tensor:
    """A sum of all coefficients, each times a factor of its own. Zeros may be left out."""
    total = torch.zeros((), dtype=torch.float64)
    for ins in instructions:
        if isinstance(ins, Combine):
            for c, name in [*ins.terms, *ins.noise]:
                total = total + math.sin(zlib.crc32(f"{ins.out} {name}".encode())) * c
    return total


@pytest.mark.parametrize(
    "sampler",
    [
        SDEDPMpp2M(),
        KDPM2Ancestral(),
        DPMpp2S(eta=1.0),
        ERSDE(),
        *(SAMPLERS[name]() for name in ("pndm", "exponential-adams", "trig-adams", "kernel-quadrature")),
    ],
    ids=lambda sampler: sampler.name,
)
def test_coefficients_from_pure_noise_to_clean_data_are_differentiable(sampler):
    """The gradient in the inner times, by central differences of the float recipe."""
    inner = torch.linspace(0.9, 0.1, 9, dtype=torch.float64, requires_grad=True)

    def path(times):
        whole = torch.cat([times.new_tensor([1.0]), times, times.new_tensor([0.0])])
        return flow(whole)

    (gradient,) = torch.autograd.grad(mass(sampler.recipe(path(inner))), inner)
    for k in range(len(inner)):
        h = 1e-5 * torch.eye(len(inner), dtype=torch.float64)[k]
        ahead, back = (mass(sampler.recipe(path((inner + s * h).detach()))) for s in (1, -1))
        assert float(gradient[k]) == pytest.approx(float(ahead - back) / 2e-5, rel=1e-6, abs=1e-7)


@pytest.mark.parametrize("sampler", [ERSDE(), TrigAdams()], ids=lambda sampler: sampler.name)
def test_a_last_step_to_clean_data_is_ddim_to_first_order(sampler):
    """(sigma'/sigma) x + (alpha' - alpha sigma'/sigma) D: at sigma' = 0 the slopes in sigma' are 1/sigma
    and -alpha/sigma."""
    sigma = torch.tensor(0.0, dtype=torch.float64, requires_grad=True)
    *nodes, last = (Node(t, 1 - 0.5 * t, t, -0.5, 1.0) for t in (2.0 / 3, 0.5, 0.25, 0.0))
    path = Path((*nodes, last._replace(sigma=sigma)))
    *_, step = (ins for ins in sampler.recipe(path) if isinstance(ins, Combine))
    weights = {name: w for w, name in step.terms}
    assert set(weights) == {"x[2]", "D[2]"}
    slopes = {name: float(torch.autograd.grad(w, sigma, retain_graph=True)[0]) for name, w in weights.items()}
    assert {name: float(w.detach()) for name, w in weights.items()} == {"x[2]": 0.0, "D[2]": 1.0}
    assert slopes == pytest.approx({"x[2]": 1 / 0.25, "D[2]": -0.875 / 0.25})


def test_a_step_from_pure_noise_does_not_depend_on_the_time_it_starts_from():
    """x' = alpha' D + sigma' xi, of slopes -1 and 1 in the time of the rectified flow."""
    times = torch.tensor([1.0, 0.4], dtype=torch.float64, requires_grad=True)
    keep, gain, noise = transfer(flow(times), 0, 1.0)
    assert keep == 0
    assert (float(gain.detach()), float(noise.detach())) == (0.6, 0.4)
    for coefficient, slope in ((gain, -1.0), (noise, 1.0)):
        assert torch.autograd.grad(coefficient, times, retain_graph=True)[0].tolist() == [0.0, slope]


def test_the_way_back_to_pure_noise_has_the_variance_of_the_noise_there():
    """a = 0 and v = sigma_i^2, and sigma_i need not be 1."""
    nodes = (Node(1.0, 0.0, 3.0), Node(0.5, 0.5, 2.0))
    assert Path(nodes).back(0, 1) == (0.0, 9.0)


def test_split_weights_are_those_of_unit_data_unless_given():
    phi, rho = torch.tensor([[0.0, -0.2]]).double(), torch.tensor([[1.0, 1.5]]).double()
    width, *ends = (torch.tensor([value]).double() for value in (-0.3, 1.0, 0.7))

    def weights(**scales):
        return split_weights(phi, rho, width, tuple(ends), eta=0.7, c=1.0, kappa=1.0, **scales)

    assert torch.equal(weights(), weights(s=1.0, s2=1.0))
    assert not torch.equal(weights(), weights(s=1.0, s2=2.0))
    assert not torch.equal(weights(), weights(s=2.0, s2=1.0))


def test_kernel_weights_know_gaussian_data_unless_told_otherwise():
    phi, rho = torch.tensor([[0.0, -0.2]]).double(), torch.tensor([[1.0, 1.5]]).double()
    width, first, last = (torch.tensor([value]).double() for value in (-0.3, 1.0, 0.7))

    def weights(**options):
        return kernel(phi, rho, width, first, last, c=1.0, s=1.0, s2=1.5, **options)

    assert torch.equal(weights(), weights(kappa=1.0, noise=0.003))
    assert not torch.equal(weights(), weights(noise=0.03))
    assert not torch.equal(weights(), weights(kappa=2.0))
    assert not torch.equal(weights(), weights(kappa=0.0))
