"""Plans: JSON, words, lowering, cost, and what a plan refuses to be."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import sdekit as sk
from sdekit.samplers import Apply, Combine, Evaluate
from sdekit.samplers.registry import SAMPLERS
from sdekit.score.model import PREDICTS
from sdekit.score.predictions import Node
from tests.samplers.problems import (
    AFFINE,
    FROM_PURE_NOISE,
    NAMES,
    PROCESSES,
    STOCHASTIC,
    gaussian,
    network,
    smooth_times,
)

ENDS = ["t_min", "clean"]


def same_bits(a: sk.Plan, b: sk.Plan) -> bool:
    """Equality that counts NaN as equal to itself."""
    return repr(a.instructions) == repr(b.instructions) and repr(a.nodes) == repr(b.nodes)


@given(
    name=st.sampled_from(NAMES),
    process=st.sampled_from(list(PROCESSES)),
    steps=st.integers(1, 12),
    end=st.sampled_from(ENDS),
    lowered=st.sampled_from([None, *PREDICTS]),
)
def test_json_keeps_every_bit(name, process, steps, end, lowered):
    plan = sk.plan(name, PROCESSES[process], steps=steps, end=end, data_std=0.7, data_spread=0.9, finite=True)
    if lowered is not None:
        plan = plan.lower(lowered, 0.5)
    text = plan.to_json()
    again = sk.Plan.from_json(text)
    assert same_bits(plan, again)
    assert again == plan or any(math.isnan(v) for node in plan.nodes for v in node)
    assert again.to_json() == text
    for field in (
        "prior_std",
        "sampler",
        "process",
        "end",
        "data_std",
        "data_spread",
        "nfe",
        "draws",
        "times",
    ):
        assert getattr(again, field) == getattr(plan, field)


@pytest.mark.parametrize("name", NAMES)
def test_a_plan_from_json_gives_the_same_samples(name, device):
    target, process = gaussian(3), PROCESSES["VP"]
    plan = sk.plan(name, process, steps=5)
    runs = [
        sk.sample(target.denoiser(process), (4, 3), sampler=p, seed=3, device=device).x
        for p in (plan, sk.Plan.from_json(plan.to_json()))
    ]
    assert torch.equal(*runs)


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize("name", NAMES)
def test_steps_and_evaluations_are_what_was_asked(name, process, end):
    law, cost = PROCESSES[process], SAMPLERS[name].evaluations
    tail = 1 if end == "clean" else 0
    for steps in (1, 2, 5):
        plan = sk.plan(name, law, steps=steps, end=end)
        assert plan.steps == steps == len(plan.nodes) - 1
        assert plan.nfe in evaluations(name, plan, tail)
        assert (plan.nodes[-1].sigma == 0) == (end == "clean")
        last = plan.nodes[-2] if end == "clean" and steps > 1 else plan.nodes[-1]
        if steps > tail:
            assert last.t == law.t_min
    least = sk.plan(name, law, steps=1, end=end).nfe
    for nfe in {least, least + tail, 7 * cost + tail, 8 * cost + tail - 1, 29}:
        if nfe >= least:
            plan = sk.plan(name, law, nfe=nfe, end=end)
            assert plan.nfe <= nfe < sk.plan(name, law, steps=plan.steps + 1, end=end).nfe
            assert same_bits(plan, sk.plan(name, law, steps=plan.steps, end=end))


def evaluations(name: str, plan: sk.Plan, tail: int) -> set[int]:
    """What a plan may cost: as declared a step, and one evaluation to the clean node."""
    n, cost = plan.steps - tail, SAMPLERS[name].evaluations
    infinite = 1 if n and plan.nodes[0].alpha == 0 else 0  # a step of first order may do with one
    if name == "pndm":
        return {n + tail + 3 * min(3, n - infinite)}  # four in each of the first three steps
    if name == "restart":
        (low, high, repeats, _), s = sk.samplers.Restart().intervals[0], plan.data_std
        inside = [node for node in plan.nodes[1 : n + 1] if node.sigma / node.alpha < high * s]
        levels = [abs(math.log(node.sigma / node.alpha / (low * s))) for node in inside]
        passes = repeats * (levels.index(min(levels)) + 1) if levels else 0
        return {cost * (n + passes) + tail - infinite}
    return {cost * n + tail, cost * n + tail - (cost - 1) * infinite}


def test_nfe_counts_the_options_of_a_sampler():
    plan = sk.plan(sk.samplers.PredictorCorrector(corrections=2), sk.VP(), nfe=12)
    assert (plan.steps, plan.nfe) == (4, 12)
    with pytest.raises(ValueError, match="needs 3 evaluations"):
        sk.plan(sk.samplers.PredictorCorrector(corrections=2), sk.VP(), nfe=2)


def test_nfe_counts_expensive_and_cheap_steps():
    """Four evaluations in pndm's first three steps, one from pure noise, passes of restart."""
    assert [sk.plan("pndm", sk.VP(), nfe=n).steps for n in (4, 7, 8, 12, 13, 50)] == [1, 1, 2, 3, 4, 41]
    assert [sk.plan("dpm-3", sk.RectifiedFlow(), nfe=n).steps for n in (1, 3, 4, 9, 10)] == [1, 1, 2, 3, 4]
    published = sk.samplers.Restart(intervals=((0.12, 0.6, 2, 2),))
    plan = sk.plan(published, sk.EDM(), nfe=43, end="clean", data_std=0.5)
    assert (plan.steps, plan.nfe) == (18, 43)
    with pytest.raises(ValueError, match=r"4 evaluations for one interval.*Next: nfe >= 4"):
        sk.plan("pndm", sk.VP(), nfe=3)


def test_one_interval_to_the_clean_node_is_one_evaluation(device):
    """steps = 1, end = "clean": x0 = D(x, t_max), for every sampler."""
    target = gaussian(3)
    for process in ("VP", "VE", "RectifiedFlow"):
        law = PROCESSES[process]
        for name in NAMES:
            run = sk.sample(target.denoiser(law), (4, 3), sampler=name, steps=1, end="clean", device=device)
            assert (run.stats.nfe, run.stats.steps) == (1, 1)
            start = law.finite_t_max if SAMPLERS[name].needs_finite_drift else law.t_max
            x = law.prior_std(start) / law.prior_std() * law.prior((4, 3))
            torch.testing.assert_close(run.x, target.denoiser(law).x0(x, float(start)), rtol=1e-5, atol=1e-6)


def test_the_default_is_twenty_steps_of_kernel_quadrature():
    run = sk.sample(gaussian(2).denoiser(sk.VP()), (1, 2))
    assert run.stats.nfe == run.stats.steps == 20
    assert sk.plan("kernel-quadrature", sk.VP()).steps == 20


# -- lowering -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("predicts", PREDICTS)
@pytest.mark.parametrize("process", ["VP", "SubVP", "VE", "Cosine", "RectifiedFlow", "EDM"])
@pytest.mark.parametrize("name", NAMES)
def test_lowered_plans_are_equal_to_rounding(name, process, predicts, device):
    """One plan, run by an exact denoiser and by networks that predict everything else."""
    law, target = PROCESSES[process], gaussian(2)
    plan = sk.plan(name, law, steps=4, end="clean", data_std=0.9, data_spread=1.1, finite=True)
    options = {"sampler": plan, "seed": 4, "dtype": torch.float64, "device": device}
    expected = sk.sample(target.denoiser(law), (3, 2), **options).x
    found = sk.sample(network(target, law, predicts), (3, 2), **options).x
    torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("predicts", ["x0", "v", "flow"])
@pytest.mark.parametrize("process", FROM_PURE_NOISE)
@pytest.mark.parametrize("name", NAMES)
def test_the_start_at_pure_noise(name, process, predicts, device):
    """alpha = 0 at t_max: no NaN, and the same samples as the exact denoiser's.

    Samplers that need a finite drift start where alpha = 1e-3 instead, by declaration.
    """
    law, target = PROCESSES[process], gaussian(2)
    for steps, end in ((1, "t_min"), (5, "t_min"), (5, "clean")):
        plan = sk.plan(name, law, steps=steps, end=end, data_std=0.8)
        assert (plan.nodes[0].alpha == 0) is not SAMPLERS[name].needs_finite_drift
        options = {"sampler": plan, "seed": 4, "dtype": torch.float64, "device": device}
        expected = sk.sample(target.denoiser(law), (3, 2), **options).x
        assert bool(torch.isfinite(expected).all())
        found = sk.sample(network(target, law, predicts), (3, 2), **options).x
        torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("predicts", ["eps", "score", "edm"])
@pytest.mark.parametrize("process", FROM_PURE_NOISE)
@pytest.mark.parametrize("name", NAMES)
def test_noise_networks_start_just_below_pure_noise(name, process, predicts, device):
    """sample moves the start to alpha = 1e-3 by itself, from N(0, sigma^2)."""
    law = PROCESSES[process]
    times = []
    run = sk.sample(
        network(gaussian(2), law, predicts),
        (3, 2),
        sampler=name,
        steps=4,
        dtype=torch.float64,
        device=device,
        save="all",
        callback=lambda i, t, x: times.append(t),
    )
    assert bool(torch.isfinite(run.xs).all())
    assert float(run.ts[0]) == law.finite_t_max
    assert times == run.ts[1:].tolist()
    assert float(law.alpha(law.finite_t_max)) == pytest.approx(1e-3, rel=1e-9)
    assert sk.plan(name, law, finite=True).prior_std == float(law.sigma(law.finite_t_max))


def test_asking_a_noise_network_at_pure_noise_is_refused():
    law = sk.RectifiedFlow()
    plan = sk.plan("ddim", law, steps=3)
    with pytest.raises(sk.errors.EndpointError) as error:
        sk.sample(network(gaussian(2), law, "eps"), (3, 2), sampler=plan)
    for word in ("'eps' does not determine 'x0'", "t = 1", "alpha = 0 (pure noise)", "Likely cause", "Next"):
        assert word in str(error.value)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("predicts", PREDICTS)
def test_lowering_keeps_the_cost_and_is_idempotent(name, predicts):
    plan = sk.plan(name, sk.VP(), steps=6, end="clean")
    low = plan.lower(predicts, 0.5)
    assert (low.nfe, low.draws, low.times, low.output) == (plan.nfe, plan.draws, plan.times, plan.output)
    kinds = {ins.predicts for ins in low.instructions if isinstance(ins, Evaluate)}
    assert kinds == {PREDICTS[predicts]}
    assert same_bits(low.lower(predicts, 0.5), low)
    twice = plan.lower("v").lower(predicts, 0.5)  # through another prediction: equal to rounding
    if twice.affine:
        a, b = (sk.certify(p, gaussian(2), sk.VP()).law for p in (low, twice))
        torch.testing.assert_close(
            torch.stack(list(a.__dict__.values())), torch.stack(list(b.__dict__.values()))
        )


def test_lowering_folds_rather_than_lengthens():
    """ddim with an eps network costs one Evaluate and one Combine of two terms a step."""
    low = sk.plan("ddim", sk.VP(), steps=5).lower("eps")
    assert len(low.instructions) == 10
    assert all(len(ins.terms) == 2 for ins in low.instructions if isinstance(ins, Combine))
    score = sk.plan("euler-maruyama", sk.VP(), steps=5).lower("eps")
    assert len(score.instructions) == 10


# -- words ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_a_plan_prints_every_instruction(name):
    plan = sk.plan(name, sk.VP(), steps=2, end="clean")
    text = str(plan)
    assert repr(name) in text
    assert "2 intervals" in text
    assert f"{plan.nfe} evaluations" in text
    assert "-> clean" in text
    assert "VP(beta_min=0.1, beta_max=20.0)" in text
    for ins in plan.instructions:
        assert f"{ins.out} = " in text
    assert f"nfe={plan.nfe}" in repr(plan)


def test_a_plan_to_noise_prints_where_it_starts():
    law = sk.VP()
    text = str(sk.plan("ddim", law, steps=2, end="t_max"))
    assert f"t {law.t_min:g} -> {law.t_max:g}, x[0] ~ data\n" in text
    assert "x[0] ~ N(0, 1^2 I)\n" in str(sk.plan("ddim", law, steps=2))


def test_printed_coefficients_are_the_plan_s():
    plan = sk.plan("ddpm", sk.VP(), grid=[0.5, 0.4])
    (combine,) = (ins for ins in plan.instructions if isinstance(ins, Combine))
    (w, _), (d, _) = combine.terms
    ((c, _),) = combine.noise
    assert f"x[1] = {w:.6g} x[0] {d:+.6g} D[0] {c:+.6g} xi[0]" in str(plan)


@pytest.mark.parametrize(
    "text", ["{}", "[]", "1", "not json", None, '{"format": "sdekit-plan", "version": 2}']
)
def test_what_is_no_plan_is_refused(text):
    with pytest.raises(ValueError, match=r"not a plan: expected the JSON text of Plan\.to_json"):
        sk.Plan.from_json(text)


def test_tampered_json_is_refused():
    data = json.loads(sk.plan("ddim", sk.VP(), steps=2).to_json())
    data["instructions"] = data["instructions"][1:]
    with pytest.raises(ValueError, match="before it is written"):
        sk.Plan.from_json(json.dumps(data))
    apply = json.loads(sk.plan("pc", sk.VP(), steps=1).to_json())
    for ins in apply["instructions"]:
        if "apply" in ins:
            ins["name"] = "langevin-nrom"
    plan = sk.Plan.from_json(json.dumps(apply))
    with pytest.raises(KeyError, match=r"unknown operation 'langevin-nrom'. Nearest: 'langevin-norm'"):
        sk.sample(gaussian(2).denoiser(sk.VP()), (2, 2), sampler=plan)


@pytest.mark.parametrize("wrong", ["a", None, True, [1.0]])
def test_numbers_of_a_plan_are_numbers(wrong):
    text = sk.plan("ddpm", sk.VP(), steps=2).to_json()

    def replaced(change):
        data = json.loads(text)
        change(data)
        return json.dumps(data)

    for change in (
        lambda data: data.update(prior_std=wrong),
        lambda data: data.update(data_spread=wrong),
        lambda data: data["nodes"][1].__setitem__(2, wrong),
        lambda data: data["instructions"][0]["node"].__setitem__(0, wrong),
        lambda data: data["instructions"][1]["terms"][0].__setitem__(0, wrong),
        lambda data: data["instructions"][1]["noise"][0].__setitem__(0, wrong),
    ):
        with pytest.raises(ValueError, match="not a plan.*expected a number"):
            sk.Plan.from_json(replaced(change))


@pytest.mark.parametrize("name", ["ddim", "pc"])
def test_equal_plans_have_equal_hashes(name):
    plan = sk.plan(name, sk.VP(), steps=2)
    assert hash(sk.Plan.from_json(plan.to_json())) == hash(plan)


def test_plans_check_their_registers():
    node = Node(0.5, 0.8, 0.6, -1.0, 1.0)
    nodes = (node, node)
    with pytest.raises(ValueError, match=r"reads register 'y' before it is written.*Likely cause"):
        sk.Plan((Combine("x[1]", ((1.0, "y"),)),), nodes, 1.0)
    with pytest.raises(ValueError, match=r"writes register 'x\[1\]' a second time.*Next"):
        sk.Plan((Combine("x[1]", ((1.0, "x[0]"),)), Combine("x[1]", ((1.0, "x[0]"),))), nodes, 1.0)
    with pytest.raises(ValueError, match="never writes its last state"):
        sk.Plan((Combine("y", ((1.0, "x[0]"),)),), nodes, 1.0)
    with pytest.raises(ValueError, match="without its node"):
        sk.Plan((Evaluate("x[1]", "x[0]", 0.5),), nodes, 1.0)


def test_a_hand_written_plan_runs_and_certifies():
    """Two Combines that share a draw: the same integer is the same normal wherever it appears."""
    process, target = sk.VP(), sk.Gaussian([0.0, 0.0], variance=1.0)
    plan = sk.plan("ddim", process, steps=1)
    shared = replace(
        plan,
        instructions=(
            Combine("y", ((1.0, "x[0]"),), ((2.0, 7),)),
            Combine("x[1]", ((1.0, "y"),), ((-1.5, 7), (0.5, 9))),
        ),
    )
    assert shared.draws == (7, 9)
    run = sk.sample(target.denoiser(process), (1000, 2), sampler=shared, dtype=torch.float64)
    start = process.prior((1000, 2), dtype=torch.float64)
    seven, nine = (sk.Philox(0).normal(draw, start, torch.arange(1000)) for draw in (7, 9))
    torch.testing.assert_close(run.x, start + 0.5 * seven + 0.5 * nine)
    drawn = sk.TorchNoise(torch.Generator().manual_seed(0))  # no pure function: the number must be kept
    again = sk.sample(target.denoiser(process), (4, 2), sampler=shared, noise=drawn, dtype=torch.float64)
    g = torch.Generator().manual_seed(0)
    start, seven, nine = (torch.randn(4, 2, generator=g, dtype=torch.float64) for _ in range(3))
    torch.testing.assert_close(again.x, start + 0.5 * seven + 0.5 * nine)
    law = sk.certify(shared, target, process).law
    torch.testing.assert_close(law.std, torch.full((2,), math.sqrt(1.5), dtype=torch.float64))


def test_draws_are_counted():
    assert sk.plan("ddim", sk.VP(), steps=5).draws == ()
    for name in STOCHASTIC:
        plan = sk.plan(name, sk.VP(), steps=5)
        used = {draw for ins in plan.instructions if isinstance(ins, Combine) for _, draw in ins.noise}
        used |= {ins.params["draw"] for ins in plan.instructions if isinstance(ins, Apply)}
        assert plan.draws == tuple(sorted(used))


def test_the_order_drops_at_clean_data_and_what_has_no_limit_is_refused(device):
    """A grid that runs into sigma = 0: DPM-Solver++ ends in x' = alpha' D; a corrector has no score there."""
    target = gaussian(3)
    for process in ("VP", "EDM", "RectifiedFlow"):
        law = PROCESSES[process]
        grid = [0.9 * law.t_max, 0.5 * law.t_max, 0.2 * law.t_max, 0.0]
        zero = sk.sample(target.denoiser(law), (4, 3), sampler="dpmpp-2m", grid=grid, device=device).x
        clean = sk.sample(
            target.denoiser(law), (4, 3), sampler="dpmpp-2m", grid=grid[:-1], end="clean", device=device
        ).x
        torch.testing.assert_close(zero, clean, rtol=1e-5, atol=1e-6)
        for name in ("kernel-quadrature", "trig-adams"):
            last = sk.plan(name, law, grid=grid).instructions[-1]
            assert last.terms == ((1.0, "D[2]"),)
        heun = sk.plan("heun", law, grid=grid)
        assert heun.nfe == 5  # the last step is Euler's
        with pytest.raises(sk.errors.EndpointError, match="Next"):
            sk.sample(target.denoiser(law), (4, 3), sampler="pc", grid=grid, device=device)


@dataclass(frozen=True)
class OwnProcess(sk.GaussianDiffusion):
    """alpha = exp(-2 t^2), sigma = k t, with k in a list, or in a tensor that may be trained."""

    k: object = 1.0

    def alpha(self, t):
        return torch.exp(-2 * t * t)

    def sigma(self, t):
        return t * self.k[0]


@dataclass(frozen=True)
class OwnSampler(sk.samplers.DDIM):
    """ddim with a list of labels."""

    name = "own"
    labels: object = ()


def test_plans_of_the_user_s_own_processes_and_samplers_are_never_stale():
    for k in ([1.5], torch.tensor([1.5], dtype=torch.float64)):
        process = OwnProcess(k)
        first = sk.plan("ddim", process, steps=3)
        k[0] = 3.0
        again = sk.plan("ddim", process, steps=3)
        assert (first.nodes[0].sigma, again.nodes[0].sigma) == (1.5, 3.0)
        own = sk.plan(OwnSampler(labels=["a"]), process, steps=3)
        assert repr(own.instructions) == repr(again.instructions)
        run = sk.sample(gaussian(2).denoiser(process), (2, 2), sampler="kernel-quadrature", steps=5)
        assert run.ok
    assert sk.plan(OwnSampler(labels=["a"]), sk.VP(), steps=3).sampler == "own"


@pytest.mark.parametrize("name", AFFINE)
def test_samplers_reach_their_order_on_a_process_of_two_formulas(name):
    """A process given by alpha(t) and sigma(t) alone: derivatives and inverses come from the base class."""
    process, target = OwnProcess([1.5]), gaussian(2)
    coarse, fine = (
        sk.certify(name, target, process, grid=smooth_times(process, n)).discretization.norm
        for n in (160, 320)
    )
    assert coarse / fine > 2 ** (min(SAMPLERS[name].order, 3) - 0.5)


def test_equal_questions_have_equal_plans():
    """Plans may be kept between calls: every argument still counts."""
    process = sk.VP()
    base = {"steps": 4, "grid": "quantile", "end": "t_min", "data_std": 0.5, "data_spread": 0.7}
    one = sk.plan("kernel-quadrature", process, **base)
    assert same_bits(one, sk.plan("kernel-quadrature", sk.VP(), **base))
    changes = [{"steps": 5}, {"grid": "karras"}, {"end": "clean"}, {"data_std": 0.6}, {"data_spread": 0.8}]
    for change in changes:
        assert not same_bits(one, sk.plan("kernel-quadrature", process, **{**base, **change}))
    assert not same_bits(one, sk.plan("trig-adams", process, **base))
    for other in (sk.VP(0.1, 19.0), sk.SubVP(), sk.VP(t_min=1e-4)):
        assert not same_bits(one, sk.plan("kernel-quadrature", other, **base))
    assert sk.plan("ddim", process, eta=0.5, steps=4).stochastic
    assert not sk.plan("ddim", process, steps=4).stochastic
    flow = sk.RectifiedFlow()
    assert sk.plan("ddim", flow, steps=4, finite=True).times != sk.plan("ddim", flow, steps=4).times


def test_a_recipe_with_infinite_coefficients_is_refused():
    @dataclass(frozen=True)
    class Divides(sk.samplers.Sampler):
        name = "divides"
        order = 1
        reference = ""

        def recipe(self, path):
            yield Combine("x[1]", ((float(path[0].alpha) * math.inf, "x[0]"),))

    with pytest.raises(ValueError, match=r"'divides' has no finite coefficients.*sigma = 0.*Next"):
        sk.plan(Divides(), sk.EDM(), grid=[1.0, 0.0])
