"""Predictors and correctors: by hand, by certificate, and the published loop of the score-SDE code."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

import sdekit as sk
from sdekit.errors import UnknownNameError
from sdekit.samplers import PredictorCorrector
from sdekit.samplers.base import nodes_at
from sdekit.samplers.operations import operation
from sdekit.samplers.plan import Apply, Combine, Evaluate
from tests.samplers.problems import PROCESSES, ddpm_table, gaussian, smooth_network

CLOSE = {"rtol": 1e-10, "atol": 1e-11}
SCORE_SDE = {"VP": sk.VP(), "VE": sk.VE(), "SubVP": sk.SubVP()}


def normals(n, *shape, seed=0):
    return torch.randn(n, *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def run(sampler, law, times, x0, xi, **options):
    model = smooth_network(law)
    noise = sk.Recorded(xi)
    return sk.sample(model, tuple(x0.shape), sampler=sampler, grid=times, x_init=x0, noise=noise, **options)


# -- correctors at the new time -------------------------------------------------------------------------


@pytest.mark.parametrize("corrector", ["langevin", "ula", "re-noise"])
@pytest.mark.parametrize("predictor", ["reverse-diffusion", "euler-maruyama", "ancestral"])
@pytest.mark.parametrize("process", ["VP", "SubVP", "VE", "Cosine", "EDM"])
def test_each_pair_by_hand(process, predictor, corrector):
    """Two intervals, two corrections: the registered predictor, then the equation of the corrector at t'."""
    law = PROCESSES[process]
    model = smooth_network(law)
    times = [2.0, 1.5, 1.1] if process == "EDM" else [0.6, 0.5, 0.42]
    sampler = PredictorCorrector(0.2, 2, predictor, corrector, step=0.3)
    per = 5 if corrector == "re-noise" else 3
    xi, x0 = normals(2 * per, 4, 3), normals(1, 4, 3, seed=1)[0]
    x = x0
    for i, (t, ahead) in enumerate(itertools.pairwise(times)):
        draws = iter(xi[i * per : (i + 1) * per])

        def predict(x, z, t=t, ahead=ahead):
            noise = sk.Recorded(z[None])
            options = {"grid": [t, ahead], "x_init": x, "noise": noise}
            return sk.sample(model, (4, 3), sampler=predictor, **options).x

        x = predict(x, next(draws))
        a = float(law.alpha(t) / law.alpha(ahead))
        s0, s1 = float(law.sigma(t)), float(law.sigma(ahead))
        for _ in range(2):
            if corrector == "re-noise":
                up = a * x + math.sqrt(s0**2 - a**2 * s1**2) * next(draws)
                x = predict(up, next(draws))
                continue
            e = 0.3 * s1**2 if corrector == "ula" else 2 * a**2 * (0.2 * s1) ** 2
            x = x + e * model.score(x, ahead) + math.sqrt(2 * e) * next(draws)
    found = run(sampler, law, times, x0, xi)
    torch.testing.assert_close(found.x, x, **CLOSE)
    assert found.stats.nfe == 6


def test_none_as_predictor_rescales():
    law = sk.VP()
    sampler = PredictorCorrector(predictor="none", corrector="ula", step=0.1)
    plan = sk.plan(sampler, law, steps=4)
    assert plan.nfe == 4
    first = plan.instructions[0]
    assert isinstance(first, Combine)
    assert first.noise == ()
    assert first.terms[0][0] == pytest.approx(plan.nodes[1].alpha / plan.nodes[0].alpha)
    x0, xi = normals(1, 3, 2, seed=1)[0], normals(4, 3, 2)
    silent = run(sampler, law, list(plan.times), x0, 0 * xi)
    assert bool((silent.x.abs() > x0.abs()).all()), "alpha grows towards the data"


@pytest.mark.parametrize("corrector", ["langevin", "ula"])
def test_a_langevin_corrector_is_a_contraction_to_its_own_law(corrector):
    """On N(0, v_t): many corrections leave variance v/(1 - e/(2 v)), as ULA, whatever the predictor left."""
    law, v = sk.VE(), 0.5
    target = sk.Gaussian([0.0], variance=v)
    times = [0.7, 0.6]
    sigma = float(law.sigma(times[1]))
    total = v + sigma**2
    e = 0.05 * sigma**2 if corrector == "ula" else 2 * (0.16 * sigma) ** 2
    certificate = sk.certify(
        PredictorCorrector(0.16, 400, "reverse-diffusion", corrector, step=0.05), target, law, grid=times
    )
    assert float(certificate.law.std) ** 2 == pytest.approx(total / (1 - e / (2 * total)), rel=1e-9)


@pytest.mark.parametrize("process", ["VP", "VE", "SubVP"])
@pytest.mark.parametrize("corrector", ["langevin", "ula", "re-noise"])
def test_correctors_reduce_the_error_of_a_coarse_predictor(corrector, process):
    """Exact W2 to the marginal at t_min, corrected and not, on the same grid."""
    law, target = PROCESSES[process], gaussian(3)
    grid = sk.Grid("uniform-lambda")
    plain = sk.certify("reverse-diffusion", target, law, steps=30, grid=grid, against="t_min").w2
    options = {"corrections": 4, "corrector": corrector, "step": 0.1}
    corrected = sk.certify(
        PredictorCorrector(**options), target, law, steps=30, grid=grid, against="t_min"
    ).w2
    assert corrected < 0.8 * plain


@pytest.mark.parametrize("corrector", ["langevin-norm", "langevin", "ula", "mala", "re-noise"])
def test_evaluations_and_draws(corrector):
    plan = sk.plan(PredictorCorrector(corrections=3, corrector=corrector), sk.VP(), nfe=40)
    assert (plan.steps, plan.nfe) == ((4, 40) if corrector == "mala" else (10, 40))
    assert plan.draws == tuple(range(len(plan.draws)))
    assert len(plan.draws) == {"re-noise": 70, "mala": 28}.get(corrector, 40)
    assert plan.affine == (corrector not in ("langevin-norm", "mala"))
    assert sk.Plan.from_json(plan.to_json()).to_json() == plan.to_json()
    drawn = [d for ins in plan.instructions if isinstance(ins, Combine) for _, d in ins.noise]
    assert len(drawn) == len(set(drawn))


def test_names_and_combinations():
    with pytest.raises(UnknownNameError, match="reverse-diffusion"):
        PredictorCorrector(predictor="reverse")
    with pytest.raises(UnknownNameError, match="langevin-norm"):
        PredictorCorrector(corrector="lang")
    with pytest.raises(UnknownNameError, match="score_sde"):
        PredictorCorrector(compat="score-sde")
    with pytest.raises(ValueError, match="re-noise"):
        PredictorCorrector(predictor="none", corrector="re-noise")
    with pytest.raises(ValueError, match="has the correctors"):
        PredictorCorrector(corrector="ula", compat="score_sde")
    with pytest.raises(ValueError, match="unstable from 2.*corrector='mala'"):
        PredictorCorrector(corrector="ula", step=2.0)
    assert PredictorCorrector(corrector="mala", step=2.0).step == 2.0


def test_the_norm_based_step_has_no_bound_in_few_dimensions():
    """On N(0, I_d) its output is too wide in 2 dimensions, not in 64; "langevin" holds in both (fixed seed).

    4000 samples of a unit deviation: 5 standard errors are 6 % (d = 2) and 1 % (d = 64).
    """
    for d, corrector, low, high in (
        (2, "langevin-norm", 1.5, 10.0),
        (64, "langevin-norm", 0.99, 1.07),
        (2, "langevin", 0.94, 1.1),
        (64, "langevin", 0.97, 1.05),
    ):
        law = sk.Gaussian(torch.zeros(d), variance=torch.ones(d)).denoiser(sk.VP())
        x = sk.sample(law, (4000, d), sampler=PredictorCorrector(corrector=corrector), steps=50).x
        assert low < float(x.std()) < high, (d, corrector, float(x.std()))


# -- Metropolis by scores -------------------------------------------------------------------------------


def accepted(score, x, y, e):
    """log of the uniform at which the operation turns from taking y to keeping x, (n,), by bisection."""
    low, high = torch.full((len(x),), -12.0).double(), torch.full((len(x),), 12.0).double()
    inputs = [x, y, score(x), score((x + y) / 2), score(y)]
    for _ in range(70):
        z = 0.5 * (low + high)
        out = operation("metropolis")(
            inputs, {"step": e, "draw": 0}, lambda draw, z=z: z[:, None].expand_as(x)
        )
        taken = (out == x).all(-1).logical_not()
        low, high = torch.where(taken, z, low), torch.where(taken, high, z)
    return torch.special.log_ndtr(0.5 * (low + high))


@pytest.mark.parametrize("d", [1, 3])
@pytest.mark.parametrize("e", [0.05, 0.4, 1.0])
def test_detailed_balance_from_scores(e, d):
    """Scores linear and cubic, where Simpson's rule is exact: p(x) q(x, y) a(x, y) is symmetric."""
    x, y = normals(2, 30, d, seed=4)
    for log_p, score in (
        (lambda x: -0.5 * x.square().sum(-1), lambda x: -x),
        (lambda x: -(x.square() - 1).square().sum(-1), lambda x: -4 * x * (x.square() - 1)),
    ):

        def log_q(u, v, score=score):
            return -(v - u - e * score(u)).square().sum(-1) / (4 * e)

        a = [accepted(score, u, v, e) for u, v in ((x, y), (y, x))]
        flow = [log_p(u) + log_q(u, v) + w for u, v, w in ((x, y, a[0]), (y, x, a[1]))]
        seen = torch.minimum(*a) > -60
        assert bool(seen.any())
        torch.testing.assert_close(flow[0][seen], flow[1][seen], rtol=1e-8, atol=1e-8)


def test_mala_has_no_bias_where_ula_has():
    """40 corrections of 0.8 sigma^2 on N(0, v_t), 8,000 samples: the variance within 5 standard errors.

    False alarm 6e-7; ULA's, 1/(1 - h/2) times too large with h the step over v_t, is 20 away.
    """
    law, target, n = sk.VE(), sk.Gaussian([0.0], variance=0.02), 8000
    times = [0.7, 0.6]
    exact = float(target.marginal(law, times[1]).eigenvalues)
    x_init = target.marginal(law, times[0]).sample(n, seed=2, dtype=torch.float64)
    error = exact * math.sqrt(2 / n)
    for corrector, inside in (("mala", True), ("ula", False)):
        sampler = PredictorCorrector(corrections=40, corrector=corrector, step=0.8)
        x = sk.sample(target.denoiser(law), (n, 1), sampler=sampler, grid=times, x_init=x_init, seed=5).x
        distance = abs(float(x.square().mean()) - exact) / error
        assert distance < 5 if inside else distance > 20


# -- the norm-based operations --------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("event", [(1,), (3,), (2, 5, 5)])
def test_norms_of_each_sample_and_of_the_batch(event, dtype):
    g = torch.Generator().manual_seed(0)
    x, s, z = torch.randn(3, 6, *event, generator=g).to(dtype)
    params = {"snr": 0.2, "scale": 0.9, "draw": 0}
    wide = [v.double().reshape(6, -1) for v in (x, s, z)]
    norms = [v.norm(dim=1, keepdim=True) for v in wide]
    for name, size in (("langevin-norm", norms), ("langevin-batch", [v.mean() for v in norms])):
        e = 2 * 0.9 * (0.2 * size[2] / size[1]) ** 2
        expected = (wide[0] + e * wide[1] + (2 * e).sqrt() * wide[2]).reshape(x.shape)
        found = operation(name)([x, s], params, lambda draw: z)
        assert found.dtype == dtype
        tolerance = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 5e-2}[dtype]
        torch.testing.assert_close(found.double(), expected, rtol=tolerance, atol=tolerance)
        still = operation(name)([x, 0 * s], params, lambda draw: z)
        assert torch.equal(still, x)


# -- compat="score_sde" ---------------------------------------------------------------------------------


def published(law, model, times, x, xi, predictor, corrector, snr, corrections):
    """The loop of the paper's code, from its formulas; xi in the order in which it draws."""
    n, z = len(times), iter(xi)
    for t in times:
        k = int(t * (n - 1))
        ve = isinstance(law, sk.VE)
        betas = torch.linspace(0.1 / n, 20.0 / n, n, dtype=torch.float64)
        sigmas = torch.exp(torch.linspace(math.log(0.01), math.log(50.0), n, dtype=torch.float64))
        b = 1.0 if ve else float(1 - betas[k])
        for _ in range(corrections):
            g, noise = model.score(x, t), next(z)
            if corrector == "langevin-norm":
                norms = [v.reshape(len(v), -1).norm(dim=-1).mean() for v in (noise, g)]
                e = float((snr * norms[0] / norms[1]) ** 2 * 2 * b)
            else:
                e = (snr * float(law.sigma(t))) ** 2 * 2 * b
            x = x + e * g + math.sqrt(2 * e) * noise
        if predictor == "none":
            mean = x
            continue
        g, noise = model.score(x, t), next(z)
        high, low = float(sigmas[k]), (float(sigmas[k - 1]) if k else 0.0)
        beta_t = 0.1 + t * 19.9
        g2 = float(law.sigma(t)) ** 2 * 2 * math.log(5000.0) if ve else beta_t
        if isinstance(law, sk.SubVP):
            g2 = beta_t * (1 - math.exp(-0.2 * t - 19.9 * t**2))
        f = 0.0 if ve else -beta_t / 2
        if predictor == "euler-maruyama" or (predictor == "reverse-diffusion" and isinstance(law, sk.SubVP)):
            mean, c = x - (f * x - g2 * g) / n, math.sqrt(g2 / n)
        elif ve:
            mean = x + (high**2 - low**2) * g
            c = math.sqrt(high**2 - low**2) * (low / high if predictor == "ancestral" else 1.0)
        elif predictor == "ancestral":
            beta = float(betas[k])
            mean, c = (x + beta * g) / math.sqrt(1 - beta), math.sqrt(beta)
        else:
            beta = float(betas[k])
            mean, c = (2 - math.sqrt(1 - beta)) * x + beta * g, math.sqrt(beta)
        x = mean + c * noise
    return mean


@pytest.mark.parametrize("corrector", ["langevin-norm", "langevin"])
@pytest.mark.parametrize("predictor", ["reverse-diffusion", "euler-maruyama", "ancestral", "none"])
@pytest.mark.parametrize("process", SCORE_SDE)
def test_the_published_loop_to_rounding(process, predictor, corrector):
    """All N = 40 iterations, two corrections each, on the grid (linspace(1, eps, N), 0)."""
    law = SCORE_SDE[process]
    if process == "SubVP" and predictor == "ancestral":
        with pytest.raises(ValueError, match="no sub-VP"):
            sk.plan(PredictorCorrector(predictor=predictor, compat="score_sde"), law, steps=30)
        return
    model, n, corrections = smooth_network(law), 40, 2
    eps = 1e-5 if process == "VE" else 1e-3
    times = torch.linspace(1, eps, n, dtype=torch.float64).tolist()
    per = corrections + (predictor != "none")
    x0 = normals(1, 5, 3, seed=1)[0] * law.prior_std()
    xi = normals(n * per, 5, 3)
    sampler = PredictorCorrector(0.16, corrections, predictor, corrector, compat="score_sde")
    found = run(sampler, law, [*times, 0.0], x0, xi)
    expected = published(law, model, times, x0, xi, predictor, corrector, 0.16, corrections)
    torch.testing.assert_close(found.x, expected, rtol=1e-8, atol=1e-10)
    assert found.stats.nfe == n * per


@pytest.mark.parametrize("process", SCORE_SDE)
def test_the_floored_index_on_another_grid(process):
    """k = floor(t (N - 1)) where it is not N - 1 - i: times that are quadratic in i."""
    law, n = SCORE_SDE[process], 40
    times = (torch.linspace(1, 0.05, n, dtype=torch.float64) ** 2).tolist()
    x0, xi = normals(1, 5, 3, seed=1)[0] * law.prior_std(), normals(2 * n, 5, 3)
    found = run(PredictorCorrector(compat="score_sde"), law, [*times, 0.0], x0, xi)
    expected = published(
        law, smooth_network(law), times, x0, xi, "reverse-diffusion", "langevin-norm", 0.16, 1
    )
    torch.testing.assert_close(found.x, expected, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("process", SCORE_SDE)
def test_what_compat_changes(process):
    """Off, the same names give other steps: the corrector at t', coefficients of the grid, norms of rows."""
    law = SCORE_SDE[process]
    times = [*torch.linspace(1, 1e-3, 30, dtype=torch.float64).tolist(), 5e-4]
    x0, xi = normals(1, 5, 3, seed=1)[0] * law.prior_std(), normals(60, 5, 3)
    ours, theirs = (run(PredictorCorrector(compat=c), law, times, x0, xi).x for c in (None, "score_sde"))
    assert float((ours - theirs).abs().max()) > 1e-3
    plan = sk.plan(PredictorCorrector(compat="score_sde"), law, grid=times)
    at = [ins.t for ins in plan.instructions if isinstance(ins, Evaluate)]
    assert at == [t for t in times[:-1] for _ in range(2)]
    first = [ins.t for ins in sk.plan("pc", law, grid=times).instructions if isinstance(ins, Evaluate)]
    assert first == [u for pair in itertools.pairwise(times) for u in pair]


def test_batch_norms_make_samples_depend_on_each_other():
    law, target = sk.VP(), gaussian(3)
    options = {"steps": 30, "seed": 5}
    for compat, same in ((None, True), ("score_sde", False)):
        whole, alone = (
            sk.sample(target.denoiser(law), (n, 3), sampler=PredictorCorrector(compat=compat), **options).x
            for n in (8, 1)
        )
        assert torch.equal(whole[:1], alone) == same


def test_the_published_loop_samples_a_gaussian():
    """VP, N = 400, eps = 1e-3: mean and standard deviation within 5 standard errors and a bias of 0.05.

    False alarm below 1e-5: six statistics of 4,000 samples.
    """
    law, target = sk.VP(), gaussian(3)
    times = [*torch.linspace(1, 1e-3, 400, dtype=torch.float64).tolist(), 0.0]
    x = sk.sample(
        target.denoiser(law), (4000, 3), sampler=PredictorCorrector(compat="score_sde"), grid=times, seed=1
    ).x.double()
    std = target.eigenvalues.sqrt()
    assert bool(((x.mean(0) - target.mean).abs() < 5 * std / math.sqrt(4000) + 0.05).all())
    assert bool(((x.std(0) / std - 1).abs() < 5 / math.sqrt(8000) + 0.05).all())


def test_compat_says_what_it_cannot_do():
    for law in (sk.EDM(), sk.Cosine(), ddpm_table(40)):
        with pytest.raises(ValueError, match="knows VP, SubVP and VE"):
            sk.plan(PredictorCorrector(compat="score_sde"), law, steps=5)
    with pytest.raises(ValueError, match="more than 20 steps"):
        sk.plan(PredictorCorrector(compat="score_sde"), sk.VP(), steps=20)


@pytest.mark.parametrize("corrector", ["langevin-norm", "mala"])
def test_parameters_of_operations_are_numbers_on_a_differentiable_grid(corrector):
    """Parameters of an Apply are no part of the gradient: plain floats, the same as on a grid without one."""
    times = torch.tensor([0.9, 0.5, 0.2], dtype=torch.float64)
    found = []
    for grid in (times, times.clone().requires_grad_()):
        path = sk.samplers.Path(tuple(nodes_at(sk.VP(), grid)), process=sk.VP())
        recipe = PredictorCorrector(corrector=corrector).recipe(path)
        found.append([dict(ins.params) for ins in recipe if isinstance(ins, Apply)])
    assert found[0] == found[1]
    assert all(type(p[key]) is float for p in found[1] for key in p if key in ("scale", "step"))
