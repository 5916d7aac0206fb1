"""Exact certificates against impulses through `sample`, closed forms, and their own mutations."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import sdekit as sk
from sdekit.certify.exact import Law, propagate
from sdekit.samplers.plan import Combine, Evaluate
from sdekit.score.model import PREDICTS
from tests.samplers.problems import AFFINE, FROM_PURE_NOISE, PROCESSES, gaussian

ENDS = ["t_min", "clean"]
GRIDS = ["standard", "uniform-t", "uniform-lambda", "karras", "exponential", "quadratic", "quantile"]
EXACT = {"rtol": 1e-9, "atol": 1e-11}


def impulse_law(plan, target, process) -> Law:
    """The output's law from impulses through `sample`: zero noise, then ones at one draw at a time.

    Ones in the eigenbasis excite every direction at once, and directions do not mix.
    """
    draws, d = plan.draws, target.dimension
    rows = 2 + len(draws)
    ones = target.from_basis(torch.ones(1, d, dtype=torch.float64))[0].to(torch.float64)
    start = torch.zeros(rows, *target.event_shape, dtype=torch.float64)
    start[1] = ones
    table = torch.zeros(max(draws, default=0) + 1, rows, *target.event_shape, dtype=torch.float64)
    for k, draw in enumerate(draws):
        table[draw, 2 + k] = ones
    noise = sk.Recorded(table, initial=start)
    x = sk.sample(target.denoiser(process), start.shape, sampler=plan, noise=noise, dtype=torch.float64).x
    c = target.to_basis(x)
    response = c[1:] - c[0]
    return Law(c[0], response.square().sum(0).sqrt())


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize("name", AFFINE)
def test_certificates_are_impulse_responses(name, process, end):
    """The certified law is the sampled law, to rounding: D = 8 in a rotated basis, and D = 1."""
    law = PROCESSES[process]
    for target in (gaussian(8, rotated=True), gaussian(1), gaussian(6, event=(1, 2, 3))):
        certificate = sk.certify(name, target, law, steps=7, end=end)
        measured = impulse_law(certificate.plan, target, law)
        torch.testing.assert_close(certificate.law.mean, measured.mean, **EXACT)
        torch.testing.assert_close(certificate.law.std, measured.std, **EXACT)


@given(
    name=st.sampled_from(AFFINE),
    process=st.sampled_from(list(PROCESSES)),
    steps=st.integers(1, 9),
    d=st.integers(1, 8),
    end=st.sampled_from(ENDS),
    against=st.sampled_from(["data", "t_min"]),
)
def test_the_three_parts_add_up(name, process, steps, d, end, against):
    """initial + discretization + truncation = output - reference, in means and in deviations.

    (The fourth part, of the model, is in test_score_error.)
    """
    target = gaussian(d)
    c = sk.certify(name, target, PROCESSES[process], steps=steps, end=end, against=against)
    size = 1e-14 * (1 + float(c.law.std.max()) + float(c.law.mean.abs().max()))
    for part in ("mean", "std"):
        total = sum(getattr(getattr(c, piece), part) for piece in ("initial", "discretization", "truncation"))
        torch.testing.assert_close(total, getattr(c.error, part), rtol=1e-13, atol=size)
        reference = getattr(c.law, part) - getattr(c.reference, part)
        torch.testing.assert_close(getattr(c.error, part), reference, rtol=0, atol=0)
    if against == "t_min":
        assert c.truncation.norm == 0.0
    assert c.nfe == c.plan.nfe
    assert float(c.error) == c.w2


@pytest.mark.parametrize("process", PROCESSES)
def test_truncation_has_a_closed_form(process):
    law, target = PROCESSES[process], gaussian(5)
    m, c = target.mean, target.eigenvalues
    a, s = float(law.alpha(law.t_min)), float(law.sigma(law.t_min))
    std = (a**2 * c + s**2).sqrt()
    found = sk.certify("ddim", target, law, steps=4).truncation
    torch.testing.assert_close(found.mean, (a - 1) * m, **EXACT)
    torch.testing.assert_close(found.std, std - c.sqrt(), **EXACT)
    clean = sk.certify("ddim", target, law, steps=4, end="clean").truncation
    torch.testing.assert_close(clean.mean, torch.zeros(5, dtype=torch.float64), **EXACT)
    torch.testing.assert_close(clean.std, a * c / std - c.sqrt(), **EXACT)


def test_the_initial_error_has_a_closed_form():
    """VP on N(0, I): none. VE: from N(0, sigma_max^2) instead of N(m, c + sigma_max^2)."""
    normal = sk.Gaussian([0.0, 0.0], variance=1.0)
    for name in AFFINE:
        assert sk.certify(name, normal, sk.VP(), steps=5).initial.norm < 1e-14
    target = sk.Gaussian([3.0], variance=0.25)
    c = sk.certify("ddim", target, sk.VE(), steps=5)
    _, g = propagate(c.plan, target.eigenvalues, target.mean)
    assert float(c.initial.mean) == pytest.approx(float(g) * -3.0, rel=1e-12)
    gap = math.sqrt(50.0**2) - math.sqrt(0.25 + 50.0**2)
    assert float(c.initial.std) == pytest.approx(float(g) * gap, rel=1e-9)
    pure = sk.certify("ddim", target, sk.RectifiedFlow(), steps=5)  # alpha = 0: the prior is exact
    assert pure.initial.norm == 0.0


def test_no_discretization_where_a_sampler_is_exact():
    normal = sk.Gaussian([0.0, 0.0, 0.0], variance=1.0)
    for name in ("euler", "heun", "trig-adams", "kernel-quadrature", "ancestral"):
        certificate = sk.certify(name, normal, sk.VP(), steps=7)
        assert certificate.discretization.norm < 1e-12
        assert certificate.w2 < 1e-12
        assert certificate.kl < 1e-20


# -- distances ------------------------------------------------------------------------------------------


def dense_w2(m1, c1, m2, c2) -> float:
    """|m1 - m2|^2 + tr(C1 + C2 - 2 (C2^1/2 C1 C2^1/2)^1/2), with scipy's square roots."""
    from scipy.linalg import sqrtm

    root = torch.as_tensor(sqrtm(c2.numpy()).real)
    cross = torch.as_tensor(sqrtm((root @ c1 @ root).numpy()).real)
    return math.sqrt(float((m1 - m2).square().sum() + (c1 + c2 - 2 * cross).trace()))


@pytest.mark.parametrize("against", ["data", "t_min"])
@pytest.mark.parametrize("process", ["VP", "VE", "RectifiedFlow"])
@pytest.mark.parametrize("name", ["ddim", "euler-maruyama", "kernel-quadrature"])
def test_w2_and_kl_on_dense_covariances(name, process, against):
    """In the event's own basis: from `mean` and `cov` by torch.distributions and matrix roots."""
    law, target = PROCESSES[process], gaussian(6, rotated=True)
    certificate = sk.certify(name, target, law, steps=6, against=against)
    reference = target if against == "data" else target.marginal(law, float(law.t_min))
    m1, c1 = certificate.mean, (certificate.cov + certificate.cov.T) / 2
    m2, c2 = reference.mean, (reference.cov + reference.cov.T) / 2
    assert float((c1 - torch.diag(c1.diagonal())).abs().max()) > 1e-3  # dense indeed
    assert certificate.w2 == pytest.approx(dense_w2(m1, c1, m2, c2), rel=1e-6)
    assert certificate.frechet == pytest.approx(dense_w2(m1, c1, m2, c2) ** 2, rel=1e-6)
    normal = torch.distributions.MultivariateNormal
    kl = torch.distributions.kl_divergence(normal(m1, c1), normal(m2, c2))
    assert certificate.kl == pytest.approx(float(kl), rel=1e-8)


def test_the_divergence_is_accurate_near_zero():
    """KL = (r^2 - 1 - ln r^2)/2 of a ratio within 1e-8 of 1, where the plain formula has no digits."""
    import mpmath

    certificate = sk.certify("kernel-quadrature", sk.Gaussian([0.0], variance=0.5), sk.VP(), steps=80)
    for gap in (1e-9, 1e-6, 1e-4, 1e-3, 0.01, 0.5):
        std = certificate.reference.std * (1 + gap)
        law = replace(certificate, law=Law(certificate.reference.mean, std))
        with mpmath.workdps(40):
            r2 = mpmath.mpf(float(std)) ** 2 / mpmath.mpf(float(certificate.reference.std)) ** 2
            exact = float((r2 - 1 - mpmath.log(r2)) / 2)
        assert law.kl == pytest.approx(exact, rel=1e-5 if gap < 1e-8 else 1e-8, abs=0)
    flat = replace(certificate, law=Law(certificate.reference.mean, torch.zeros(1, dtype=torch.float64)))
    assert flat.kl == math.inf
    assert math.isfinite(flat.w2)


def test_mean_and_covariance_have_the_shape_of_the_event():
    target = gaussian(6, event=(2, 3))
    certificate = sk.certify("ddim", target, sk.VP(), steps=3)
    assert certificate.mean.shape == (2, 3)
    assert certificate.cov.shape == (6, 6)
    torch.testing.assert_close(certificate.cov.diagonal(), certificate.law.std**2)
    dense = gaussian(6, rotated=True)
    certificate = sk.certify("ddim", dense, sk.VP(), steps=3)
    back = dense.basis.T @ certificate.cov @ dense.basis
    torch.testing.assert_close(back, torch.diag(certificate.law.std**2), rtol=0, atol=1e-12)
    torch.testing.assert_close(dense.to_basis(certificate.mean[None])[0], certificate.law.mean)


# -- what is certified ----------------------------------------------------------------------------------


@pytest.mark.parametrize("predicts", PREDICTS)
@pytest.mark.parametrize("name", AFFINE)
def test_lowered_and_saved_plans_have_the_same_certificate(name, predicts):
    target, law = gaussian(3), sk.VP()
    plan = sk.plan(name, law, steps=6, data_std=target.data_std, data_spread=target.data_spread)
    a = sk.certify(name, target, law, steps=6)
    for other in (plan, sk.Plan.from_json(plan.to_json()), plan.lower(predicts, 0.5)):
        b = sk.certify(other, target, law)
        torch.testing.assert_close(b.law.mean, a.law.mean, rtol=1e-8, atol=1e-10)
        torch.testing.assert_close(b.law.std, a.law.std, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("predicts", PREDICTS)
@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("process", PROCESSES)
def test_every_process_grid_and_prediction(process, grid, predicts):
    """Lowered plans from impulses through `sample`, alpha = 0 at the start included where it is defined."""
    law, target = PROCESSES[process], gaussian(3)
    finite = predicts in ("eps", "score", "edm")
    for name in ("gaussian-split", "heun"):
        plan = sk.plan(name, law, steps=5, grid=grid, data_std=target.data_std, finite=finite)
        assert (
            finite or process not in FROM_PURE_NOISE or name != "gaussian-split" or plan.nodes[0].alpha == 0
        )
        certified = sk.certify(plan.lower(predicts, 0.7), target, law)
        measured = impulse_law(plan, target, law)
        torch.testing.assert_close(certified.law.mean, measured.mean, rtol=1e-8, atol=1e-9)
        torch.testing.assert_close(certified.law.std, measured.std, rtol=1e-8, atol=1e-9)


def test_options_reach_the_plan():
    target, law = gaussian(3), sk.VP()
    assert sk.certify("heun", target, law, nfe=9, end="clean").nfe == 9
    assert sk.certify("ddim", target, law, steps=5, eta=1.0).law.std.equal(
        sk.certify(sk.samplers.DDIM(eta=1.0), target, law, steps=5).law.std
    )
    times = [1.0, 0.5, 0.2, 0.001]
    assert sk.certify("ddim", target, law, grid=times).plan.times == tuple(times)
    assert sk.certify("ddim", target, law).plan.steps == 20
    assert sk.certify("ddim", target, law, steps=5, grid="karras").plan.times[1] < 1.0


def test_the_grid_follows_what_the_model_predicts():
    """The default sampler lays its nodes by the prediction; the certificate is of that run."""
    target, law = gaussian(3), sk.VP()
    for predicts in ("eps", "x0"):
        plan = sk.plan(
            "kernel-quadrature",
            law,
            steps=8,
            data_std=target.data_std,
            data_spread=target.data_spread,
            predicts=predicts,
        )
        found = sk.certify("kernel-quadrature", target, law, steps=8, predicts=predicts)
        assert found.plan.times == plan.times
        assert sk.certify_monte_carlo(
            "kernel-quadrature", target, law, steps=8, predicts=predicts, samples=400
        ).plan.times == (plan.times)
    eps, x0 = (
        sk.certify("kernel-quadrature", target, law, steps=8, predicts=p).plan.times for p in ("eps", "x0")
    )
    assert eps != x0
    with pytest.raises(ValueError, match="pass it alone"):
        sk.certify(plan, target, law, predicts="eps")


def test_a_certificate_needs_no_plan():
    """Of a black box: a name, laws and parts are enough."""
    own = sk.certify("ddpm", gaussian(3), sk.VP(), steps=4)
    bare = sk.Certificate(
        name="theirs",
        target=own.target,
        against="data",
        law=own.law,
        reference=own.reference,
        initial=own.initial,
        discretization=own.discretization,
        score_error=own.score_error,
        truncation=own.truncation,
    )
    assert (bare.plan, bare.nfe, bare.w2, bare.kl) == (None, None, own.w2, own.kl)
    assert repr(bare).startswith("Certificate('theirs', W2 to data")
    assert (own.name, own.nfe, own.stochastic) == ("ddpm", 4, True)
    assert not sk.certify("ddim", gaussian(3), sk.VP(), steps=4).stochastic


# -- large targets ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["low rank", "stationary"])
@pytest.mark.parametrize("name", ["ddpm", "kernel-quadrature"])
def test_structured_targets_have_the_certificate_of_their_dense_law(name, form):
    g = torch.Generator().manual_seed(0)
    mean = torch.randn(3, 2, 4, generator=g, dtype=torch.float64)
    if form == "low rank":
        factor = torch.randn(24, 3, generator=g, dtype=torch.float64)
        target = sk.Gaussian(mean, low_rank=(factor, 0.2))
    else:
        patches = torch.randn(5, 3, 2, 4, generator=g, dtype=torch.float64)
        target = sk.Gaussian.texture(patches, periodic=False)
    dense = sk.Gaussian(target.mean, target.cov)
    a, b = (sk.certify(name, t, sk.VE(), steps=6) for t in (target, dense))
    assert a.w2 == pytest.approx(b.w2, rel=1e-9)
    assert a.kl == pytest.approx(b.kl, rel=1e-7)
    torch.testing.assert_close(a.mean, b.mean, rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(a.cov, b.cov, rtol=1e-7, atol=1e-9)
    measured = impulse_law(a.plan, target, sk.VE())
    torch.testing.assert_close(a.law.std, measured.std, rtol=1e-8, atol=1e-10)


def test_a_photograph_of_a_hundred_thousand_dimensions():
    """Every part of the certificate of a texture with 1,000 noises: no D x D matrix, no row a noise."""
    from sklearn.datasets import load_sample_image

    image = torch.tensor(load_sample_image("flower.jpg"), dtype=torch.float64).permute(2, 0, 1) / 127.5 - 1
    target = sk.Gaussian.texture(image[:, 100:283, 200:383])
    assert target.dimension == 100_467
    found = sk.certify("ddpm", target, sk.VP(), steps=1000)
    few = target.eigenvalues.sort(descending=True)
    index = few.indices[torch.tensor([0, 10, 1000, 50_000])]
    alone = sk.Gaussian(target.to_basis(target.mean)[index], variance=target.eigenvalues[index])
    same = sk.certify(found.plan, alone, sk.VP())
    torch.testing.assert_close(found.law.std[index], same.law.std, rtol=1e-12, atol=0)
    torch.testing.assert_close(found.law.mean[index], same.law.mean, rtol=1e-9, atol=1e-12)
    assert found.mean.shape == (3, 183, 183)
    with pytest.raises(sk.errors.ShapeError, match="matrix of 100467"):
        _ = found.cov


def test_a_draw_named_twice_in_one_step_is_one_normal():
    target, law = gaussian(3), sk.VP()
    made = sk.plan("ddpm", law, steps=3)

    def twice(ins):
        if not (isinstance(ins, Combine) and ins.noise):
            return ins
        ((c, draw),) = ins.noise
        return replace(ins, noise=((0.25 * c, draw), (0.75 * c, draw)))

    split = replace(made, instructions=tuple(twice(ins) for ins in made.instructions))
    torch.testing.assert_close(sk.certify(split, target, law).law.std, sk.certify(made, target, law).law.std)
    line = sk.GaussianMixture([0.5, 0.5], [-1.0, 1.0], [0.1, 0.2])
    one, other = (sk.certify_density(p, line, law).w1 for p in (made, split))
    assert other == pytest.approx(one, rel=1e-9)


def test_a_better_grid_or_more_steps_has_a_smaller_error():
    target, law = gaussian(8), sk.VP()
    errors = [sk.certify("ddim", target, law, steps=n, against="t_min").w2 for n in (5, 10, 20, 40, 80)]
    assert errors == sorted(errors, reverse=True)


def every_weight(plan):
    """(index of the instruction, what, index of the term) of each coefficient of a plan."""
    for k, ins in enumerate(plan.instructions):
        if isinstance(ins, Combine):
            yield from ((k, "terms", j) for j in range(len(ins.terms)))
            yield from ((k, "noise", j) for j in range(len(ins.noise)))


def mutated(plan, k, what, j, factor=1.03):
    ins = plan.instructions[k]
    values = list(getattr(ins, what))
    values[j] = (values[j][0] * factor, values[j][1])
    instructions = list(plan.instructions)
    instructions[k] = replace(ins, **{what: tuple(values)})
    return replace(plan, instructions=tuple(instructions))


@pytest.mark.parametrize("process", ["VP", "VE", "RectifiedFlow"])
@pytest.mark.parametrize("name", AFFINE)
def test_every_mutated_coefficient_changes_the_certificate(name, process):
    """An error in any one weight: the certificate moves, and is that of the mutated plan, not of the old one.

    The rows of the output are affine in each weight. The error is as large as moves one of them by a tenth
    of the output's deviation, up or down, so that first steps and inner stages, which matter little, are
    seen as well as the others.
    """
    law, target = PROCESSES[process], gaussian(3)
    plan = sk.plan(name, law, steps=4, data_std=target.data_std, data_spread=target.data_spread)
    honest = sk.certify(plan, target, law).law
    size = float(honest.std.max())

    def rows(p):
        return propagate(p, target.eigenvalues, target.mean)

    for place in every_weight(plan):
        influence = float((rows(mutated(plan, *place, factor=2.0)) - rows(plan)).abs().max())
        moved = 0.0
        for sign in (-1, 1):
            changed = mutated(plan, *place, factor=1 + sign * 0.1 * size / influence)
            found = sk.certify(changed, target, law).law
            gaps = (found.std - honest.std, found.mean - honest.mean)
            moved = max(moved, *(float(gap.abs().max()) for gap in gaps))
        assert moved > 1e-3 * size, (place, moved)
        measured = impulse_law(changed, target, law)
        torch.testing.assert_close(found.std, measured.std, **EXACT)
        torch.testing.assert_close(found.mean, measured.mean, **EXACT)


def test_a_mutated_node_changes_the_certificate():
    """The model asked at a wrong noise level: 3 % in one sigma."""
    law, target = sk.VP(), gaussian(3)
    plan = sk.plan("ddim", law, steps=6)
    honest = sk.certify(plan, target, law)
    for k, ins in enumerate(plan.instructions):
        if isinstance(ins, Evaluate):
            wrong = list(plan.instructions)
            wrong[k] = replace(ins, node=ins.node._replace(sigma=1.03 * ins.node.sigma))
            certificate = sk.certify(replace(plan, instructions=tuple(wrong)), target, law)
            assert float((certificate.law.std - honest.law.std).abs().max()) > 1e-7


def test_certificates_are_differentiable_in_the_weights():
    """Gradient of the exact law with respect to a weight, against central differences."""
    law, target = sk.VP(), gaussian(3)
    plan = sk.plan("ddpm", law, steps=5)
    k, ins = next((k, ins) for k, ins in enumerate(plan.instructions) if isinstance(ins, Combine))

    def value(weight):
        terms = ((weight, ins.terms[0][1]), *ins.terms[1:])
        instructions = list(plan.instructions)
        instructions[k] = replace(ins, terms=terms)
        rows = propagate(replace(plan, instructions=tuple(instructions)), target.eigenvalues, target.mean)
        return rows.square().sum()

    w = torch.tensor(float(ins.terms[0][0]), dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(value(w), w)
    h = 1e-6
    with torch.no_grad():
        difference = (value(w + h) - value(w - h)) / (2 * h)
    assert float(gradient) == pytest.approx(float(difference), rel=1e-7)


# -- refusals -------------------------------------------------------------------------------------------


def test_a_plan_that_is_not_affine_is_refused():
    with pytest.raises(sk.errors.NotAffineError) as error:
        sk.certify("pc", gaussian(2), sk.VP(), steps=3)
    for words in ("'pc' applies 'langevin-norm'", "not affine", "Next", "certify_monte_carlo"):
        assert words in str(error.value)
    assert isinstance(error.value, TypeError)


@pytest.mark.parametrize(
    ("call", "kind", "words"),
    [
        (
            lambda: sk.certify("ddim", sk.GaussianMixture([1.0], [[0.0]], 1.0), sk.VP()),
            TypeError,
            ["needs a Gaussian target", "got GaussianMixture", "Next"],
        ),
        (
            lambda: sk.certify("ddim", gaussian(2), sk.VP(), against="noise"),
            ValueError,
            ["'data' or 't_min'", "'noise'"],
        ),
        (lambda: sk.certify("dimm", gaussian(2), sk.VP()), KeyError, ["unknown sampler", "'ddim'"]),
        (lambda: sk.certify("rk45", gaussian(2), sk.VP()), KeyError, ["adaptive", "Next"]),
        (lambda: sk.certify("ddim", gaussian(2), sk.VP(), steps=0), ValueError, ["steps", ">= 1", "got 0"]),
        (
            lambda: sk.certify(sk.plan("ddim", sk.VE()), gaussian(2), sk.VP()),
            ValueError,
            ["made for VE", "Next"],
        ),
        (
            lambda: sk.certify(sk.plan("ddim", sk.VP()), gaussian(2), sk.VP(), steps=5),
            ValueError,
            ["a Plan holds its own steps", "pass it alone"],
        ),
        *(
            (call, sk.errors.DirectionError, ["from noise to data", "'t_max'", "sdekit.encode", "Next"])
            for call in (
                lambda: sk.certify("ddim", gaussian(2), sk.VP(), end="t_max"),
                lambda: sk.certify(sk.plan("ddim", sk.VP(), end="t_max"), gaussian(2), sk.VP()),
                lambda: sk.certify_monte_carlo("ddim", gaussian(2), sk.VP(), end="t_max", samples=200),
                lambda: sk.certify_monte_carlo(
                    sk.plan("ddim", sk.VP(), end="t_max"), gaussian(2), sk.VP(), samples=200
                ),
            )
        ),
        (
            lambda: sk.certify("ddim", gaussian(2), sk.BrownianMotion()),
            TypeError,
            ["must be a GaussianDiffusion", "Next"],
        ),
    ],
)
def test_refusals(call, kind, words):
    with pytest.raises(kind) as error:
        call()
    for word in words:
        assert word in str(error.value)


def test_a_certificate_says_what_it_measures():
    target = gaussian(2)
    text = repr(sk.certify("ddim", target, sk.VP(), steps=5))
    for word in ("'ddim'", "nfe=5", "W2 to data", "KL", "initial", "discretization", "truncation"):
        assert word in text
    assert "marginal at t_min" in repr(sk.certify("ddim", target, sk.VP(), steps=5, against="t_min"))
