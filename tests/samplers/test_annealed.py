"""Annealed Langevin dynamics: the published loop, exact variances, its order, and what it costs."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

import sdekit as sk
from sdekit.certify.exact import propagate
from sdekit.errors import EndpointError
from sdekit.samplers import AnnealedLangevin, PredictorCorrector
from sdekit.samplers.plan import Evaluate
from tests.samplers.problems import PROCESSES, gaussian, mixture, smooth_network

CLOSE = {"rtol": 1e-10, "atol": 1e-10}


def normals(n, *shape, seed=0):
    return torch.randn(n, *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_ncsn_by_hand():
    """T steps at every level from U[0, 1], a_i = eps (sigma_i/sigma_L)^2, and the final denoising."""
    process, T, eps = sk.EDM(0.01, 1.0), 3, 2e-5
    model = mixture().denoiser(process)
    levels = sk.ncsn.levels(1.0, 0.01, count=6)
    x0 = torch.rand(4, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    xi = normals(T * 6, 4, 2)
    x, draw = x0, 0
    for sigma in levels.tolist():
        a = eps * (sigma / 0.01) ** 2
        for _ in range(T):
            x = x + a * model.score(x, sigma) + math.sqrt(2 * a) * xi[draw]
            draw += 1
    run = sk.sample(
        model,
        (4, 2),
        sampler=AnnealedLangevin(T, eps, burn_in=T),
        grid=levels,
        x_init=x0,
        noise=sk.Recorded(xi),
        end="clean",
    )
    torch.testing.assert_close(run.x, x + 0.01**2 * model.score(x, 0.01), **CLOSE)
    assert run.stats.nfe == T * 6 + 1


@pytest.mark.parametrize("process", ["VP", "SubVP", "Cosine", "RectifiedFlow", "DiscreteVP"])
def test_every_process_in_z(process):
    """z <- z + a alpha score + sqrt(2 a) xi with a = eps (rho_i/rho_L)^2: the same loop in z = x/alpha."""
    law, T = PROCESSES[process], 2
    model = smooth_network(law)
    rho = [node.sigma / node.alpha for node in sk.plan("annealed-langevin", law, steps=4).nodes]
    eps = 0.1 * rho[-1] ** 2
    plan = sk.plan(AnnealedLangevin(T, eps), law, steps=4)
    x0, xi = normals(1, 5, 3, seed=1)[0], normals(4 * T, 5, 3)
    z, draw = x0 / plan.nodes[0].alpha, 0
    for node, level in zip(plan.nodes[1:], rho[1:], strict=True):
        a = eps * (level / rho[-1]) ** 2
        for _ in range(T):
            score = node.alpha * model.score(node.alpha * z, node.t)
            z = z + a * score + math.sqrt(2 * a) * xi[draw]
            draw += 1
    run = sk.sample(model, (5, 3), sampler=plan, x_init=x0, noise=sk.Recorded(xi))
    torch.testing.assert_close(run.x, plan.nodes[-1].alpha * z, **CLOSE)


@pytest.mark.parametrize("process", ["VP", "VE"])
def test_it_is_a_corrector_without_predictor(process):
    law, u = PROCESSES[process], 0.07
    rho = float(law.sigma(law.t_min) / law.alpha(law.t_min))
    corrector = PredictorCorrector(corrections=3, predictor="none", corrector="ula", step=u)
    options = {"steps": 5, "grid": "uniform-lambda", "seed": 3, "dtype": torch.float64}
    a, b = (
        sk.sample(smooth_network(law), (4, 3), sampler=s, **options)
        for s in (AnnealedLangevin(3, u * rho**2), corrector)
    )
    torch.testing.assert_close(a.x, b.x, **CLOSE)
    assert a.stats.nfe == b.stats.nfe == 15


@pytest.mark.parametrize("process", ["VP", "VE", "RectifiedFlow"])
def test_the_variance_on_a_point_is_the_carried_one(process):
    """A point mass, many levels: the certificate's variance over sigma^2 is that of `sdekit.ncsn`."""
    law, steps = PROCESSES[process], 60
    point = sk.Gaussian([0.7, -2.0], variance=1e-24)
    certificate = sk.certify("annealed-langevin", point, law, steps=steps)
    last = certificate.plan.nodes[-1]
    rho = [node.sigma / node.alpha for node in certificate.plan.nodes]
    best = sk.ncsn.steps([rho[0], rho[-1]] if steps == 1 else torch.tensor(rho), 5, carried=True)
    torch.testing.assert_close(
        certificate.law.std**2 / last.sigma**2, torch.full((2,), best.variance).double(), rtol=1e-6, atol=0
    )
    torch.testing.assert_close(
        certificate.law.mean, last.alpha * torch.tensor([0.7, -2.0]).double(), rtol=0, atol=1e-6
    )


def test_no_other_eps_is_better_on_a_point():
    """eps = None against multiples of it, by exact W2 to the marginal."""
    law, point = sk.VE(), sk.Gaussian([0.0], variance=1e-24)
    rho = float(law.sigma(law.t_min))
    path = sk.samplers.Path(sk.plan("ddim", law, steps=40).nodes)
    u = AnnealedLangevin().relative_step(path)
    w2 = {
        f: sk.certify(AnnealedLangevin(eps=f * u * rho**2), point, law, steps=40, against="t_min").w2
        for f in (0.7, 0.9, 1.0, 1.1, 1.4)
    }
    assert min(w2, key=w2.get) == 1.0
    default = sk.certify("annealed-langevin", point, law, steps=40, against="t_min").w2
    assert default == pytest.approx(w2[1.0], rel=1e-9)


@pytest.mark.parametrize("process", ["VP", "VE", "Cosine", "RectifiedFlow"])
def test_order_one_half_on_uniform_levels(process):
    law, target = PROCESSES[process], sk.Gaussian([0.3, -0.5, 1.0], variance=[0.1, 0.5, 2.0])
    errors = [
        sk.certify("annealed-langevin", target, law, steps=k, against="t_min").discretization.norm
        for k in (320, 640)
    ]
    assert 0.45 < math.log2(errors[0] / errors[1]) < 0.65


def test_a_fixed_eps_keeps_its_bias_across_the_data():
    """On a point the variance is too large by u/2 at any number of levels; wide directions see order 1."""
    law = sk.VE()
    u = 3e-5 / float(law.sigma(law.t_min)) ** 2
    found, sampler = {}, AnnealedLangevin(eps=3e-5)
    for name, variance in (("point", 1e-24), ("wide", 1.0)):
        target = sk.Gaussian([0.0], variance=variance)
        found[name] = [sk.certify(sampler, target, law, steps=k, against="t_min").w2 for k in (160, 320)]
    assert found["point"][1] / 0.01 > math.sqrt(1 + u / 2) - 1
    assert math.log2(found["point"][0] / found["point"][1]) < 0.4
    assert math.log2(found["wide"][0] / found["wide"][1]) == pytest.approx(1.0, abs=0.1)


def test_the_start_is_forgotten():
    """d x[L]/d x[0] on a point mass is (1 - u)^(T (L - 1)): NCSN may start from U[0, 1]."""
    law, eps, T = sk.EDM(0.01, 1.0), 1e-5, 4
    plan = sk.plan(AnnealedLangevin(T, eps, burn_in=T), law, grid=sk.ncsn.levels(1.0, 0.01, count=9))
    rows = propagate(plan, torch.tensor([1e-30]).double(), torch.zeros(1).double())
    assert float(rows[1]) == pytest.approx((1 - eps / 1e-4) ** (T * 9), rel=1e-9)


def test_cost_and_times():
    law = sk.VP()
    plan = sk.plan(AnnealedLangevin(3), law, nfe=20)
    assert (plan.steps, plan.nfe) == (6, 18)
    burnt = sk.plan(AnnealedLangevin(3, burn_in=4), law, steps=6)
    assert burnt.nfe == 22
    assert len(burnt.draws) == 22
    at = [ins.t for ins in burnt.instructions if isinstance(ins, Evaluate)]
    assert [len(list(group)) for _, group in itertools.groupby(at)] == [4, 3, 3, 3, 3, 3, 3]
    assert sk.Plan.from_json(burnt.to_json()).to_json() == burnt.to_json()


def test_an_unstable_eps_is_refused():
    with pytest.raises(ValueError, match=r"unstable from 2.*Next: eps=None"):
        sk.plan(AnnealedLangevin(eps=1e-3), sk.VE(), steps=5)
    for options in ({"steps_per_level": 0}, {"burn_in": -1}, {"eps": 0.0}):
        with pytest.raises(ValueError, match=next(iter(options))):
            AnnealedLangevin(**options)


def test_gradient_of_the_error_with_respect_to_the_grid():
    """Coefficients are differentiable in the times, as those of any sampler."""
    law, target = sk.VE(), gaussian(2)
    times = sk.Grid("uniform-lambda").times(law, 6)

    def error(t):
        from sdekit.samplers.base import nodes_at

        path = sk.samplers.Path(tuple(nodes_at(law, t)))
        rows = propagate(
            sk.Plan(tuple(AnnealedLangevin(2, 2e-5).recipe(path)), path.nodes, 50.0),
            target.eigenvalues,
            torch.zeros(2).double(),
        )
        return (rows[1] * 50).square().sum() + rows[2:].square().sum()

    t = times.clone().requires_grad_()
    (slope,) = torch.autograd.grad(error(t), t)
    h = 1e-6
    bump = torch.zeros_like(times)
    bump[3] = h
    numeric = (error(times + bump) - error(times - bump)) / (2 * h)
    assert float(slope[3]) == pytest.approx(float(numeric), rel=1e-4)


@pytest.mark.parametrize("options", [{}, {"eps": 1e-5}])
def test_a_last_level_without_noise_is_refused(options):
    """At sigma = 0 there is no score, and no step in units of sigma."""
    with pytest.raises(EndpointError, match="t_min"):
        sk.plan(AnnealedLangevin(**options), sk.EDM(), grid=[1.0, 0.1, 0.0])
