"""Certificates against Monte Carlo, per direction, within four standard errors.

Under the certified law the sample mean is normal and (n - 1) s^2 / sigma^2 is chi-squared, exactly; both are
turned into standard normals, so that one comparison fails by chance with probability 6.3e-5. A case makes 2 D
of them. For each sampler 3 processes, 2 ends and D = 1, 8, 64 make 876, and a fresh seed would raise a false
alarm with probability 0.054, for 15 samplers 0.56 (13,140 comparisons). Seeds are fixed, so a pass is a pass.
The sum of squares over directions is compared too, at a level of 1e-6, which finds a small error shared by
many directions.
"""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from scipy import stats

import sdekit as sk
from sdekit.samplers.plan import Combine
from sdekit.samplers.registry import SAMPLERS
from tests.samplers.problems import AFFINE, PROCESSES, STOCHASTIC, gaussian

EXACT_STOCHASTIC = [name for name in STOCHASTIC if name in AFFINE]
N = 4096
CASES = [*EXACT_STOCHASTIC, "ddim"]


def sampler(name):
    return sk.samplers.DDIM(eta=0.7) if name == "ddim" else SAMPLERS[name]()


def scores(certificate, samples) -> tuple[torch.Tensor, torch.Tensor]:
    """Standard normals of the D means and the D variances, under the certified law."""
    c = certificate.target.to_basis(samples)
    n, law = len(c), certificate.law
    means = (c.mean(0) - law.mean) / law.std * math.sqrt(n)
    chi = (c.var(0) / law.std.square() * (n - 1)).numpy()
    upper = stats.norm.isf(stats.chi2.sf(chi, n - 1))
    lower = stats.norm.ppf(stats.chi2.cdf(chi, n - 1))
    variances = torch.as_tensor(upper).where(torch.as_tensor(chi > n - 1), torch.as_tensor(lower))
    return means, variances


def draw(plan, target, process, seed, n=N):
    model = target.denoiser(process)
    return sk.sample(model, (n, *target.event_shape), sampler=plan, seed=seed, dtype=torch.float64).x


@pytest.mark.parametrize("end", ["t_min", "clean"])
@pytest.mark.parametrize("d", [1, 8, 64])
@pytest.mark.parametrize("process", ["VP", "VE", "RectifiedFlow"])
@pytest.mark.parametrize("name", CASES)
def test_samples_follow_the_certified_law(name, process, d, end):
    law, target = PROCESSES[process], gaussian(d, rotated=d == 8)
    certificate = sk.certify(sampler(name), target, law, steps=6, end=end)
    samples = draw(certificate.plan, target, law, seed=d)
    for found in scores(certificate, samples):
        assert float(found.abs().max()) <= 4.0
        assert stats.chi2.sf(float(found.square().sum()), d) > 1e-6


@pytest.mark.parametrize(("what", "steps"), [("state", 20), ("model", 6), ("noise", 2)])
@pytest.mark.parametrize("name", CASES)
def test_a_three_percent_error_in_one_weight_is_seen(name, what, steps):
    """The control: the certificate of a plan with one wrong weight disagrees with samples of the right one.

    The weight is the one that matters most; single noises matter when there are few. Restart's are few
    at any number of steps, and lost in the error of two.
    """
    law, target = PROCESSES["VP"], gaussian(8, rotated=True)
    steps = 20 if name == "restart" else steps
    plan = sk.plan(sampler(name), law, steps=steps, data_std=target.data_std)
    samples = draw(plan, target, law, seed=3, n=(8 if steps > 2 else 16) * N)
    honest = sk.certify(plan, target, law)
    assert float(torch.cat(scores(honest, samples)).abs().max()) <= 4.0
    wrong = max((sk.certify(p, target, law) for p in mutants(plan, what)), key=lambda c: distance(c, honest))
    assert float(torch.cat(scores(wrong, samples)).abs().max()) > 4.0


def mutants(plan, what, factor=1.03):
    """Every plan with one weight of that kind 3 % off."""
    for k, ins in enumerate(plan.instructions):
        if not isinstance(ins, Combine):
            continue
        for field in ("terms", "noise"):
            for j, (w, name) in enumerate(getattr(ins, field)):
                kind = "noise" if field == "noise" else "state" if name.startswith("x[") else "model"
                if kind == what:
                    values = [*getattr(ins, field)]
                    values[j] = (factor * w, name)
                    changed = replace(ins, **{field: tuple(values)})
                    yield replace(
                        plan, instructions=(*plan.instructions[:k], changed, *plan.instructions[k + 1 :])
                    )


def distance(a, b) -> float:
    return float((a.law.std / b.law.std - 1).abs().max())


# -- certify_monte_carlo --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["euler-maruyama", "ddim", "kernel-quadrature"])
def test_the_interval_holds_the_exact_distance(name):
    """Where both apply. At 99.9 % per case, 0.3 % for the test at a fresh seed."""
    law, target = sk.VP(), gaussian(4, rotated=True)
    exact = sk.certify(name, target, law, steps=8).w2
    found = sk.certify_monte_carlo(name, target, law, steps=8, samples=20_000, confidence=0.999)
    assert found.low <= exact <= found.high
    assert found.samples == 20_000
    assert found.low <= found.w2 <= found.high


@pytest.mark.slow
def test_the_interval_covers_as_often_as_it_says():
    """95 % intervals over 200 seeds: between 88 % and 99 % hold the exact distance.

    Binomial(200, 0.95) leaves that range with probability 3e-4; the jackknife costs a little coverage.
    """
    law, target = sk.VP(), gaussian(3)
    exact = sk.certify("euler-maruyama", target, law, steps=5).w2
    held = 0
    for seed in range(200):
        found = sk.certify_monte_carlo("euler-maruyama", target, law, steps=5, samples=4000, seed=seed)
        held += found.low <= exact <= found.high
    assert 176 <= held <= 198, held


@pytest.mark.parametrize("seed", range(5))
def test_the_interval_is_not_short_near_zero(seed):
    """In one direction it holds what Student's interval holds: the mean error is at least in W2."""
    target, n = sk.Gaussian(0.0, variance=1.0), 2000

    def run(count):
        return torch.randn(count, 1, dtype=torch.float64) + 0.01

    found = sk.certify_monte_carlo(run, target, samples=n, blocks=20, seed=seed)
    law = found.law
    reach = stats.t.ppf(0.975, n - 1) * float(law.std) / math.sqrt(n)
    assert found.low <= found.w2 <= found.high
    assert found.high >= abs(float(law.mean)) + reach


def test_runs_at_neighbouring_seeds_share_no_samples():
    drawn = []

    def run(count):
        drawn.append(torch.randn(count, 1, dtype=torch.float64))
        return drawn[-1]

    for seed in (0, 1):
        sk.certify_monte_carlo(run, sk.Gaussian(0.0, variance=1.0), samples=40, blocks=4, seed=seed)
    assert len(torch.cat(drawn).unique()) == 80


def test_it_serves_plans_that_certify_refuses():
    law, target = sk.VP(), gaussian(3)
    found = sk.certify_monte_carlo("pc", target, law, steps=60, samples=8000)
    assert 0.0 <= found.low < found.w2 < found.high
    assert found.plan.nfe == 120
    assert "'pc'" in repr(found)
    assert "95%" in repr(found)
    again = sk.certify_monte_carlo("pc", target, law, steps=60, samples=8000)
    assert again.w2 == found.w2


def test_the_corrector_corrects():
    """VE, D = 64, 60 steps, per dimension: predictor and corrector against the predictor alone.

    (In few dimensions the norms of single samples fluctuate, and the corrector has a bias of its own.)
    """
    law, target = sk.VE(), gaussian(64)
    runs = {"steps": 60, "samples": 2000, "confidence": 0.999}
    pc, predictor = (
        sk.certify_monte_carlo(name, target, law, **runs) for name in ("pc", "reverse-diffusion")
    )
    assert pc.high < predictor.low
    assert pc.high / 8 < 0.06


def test_debiasing_removes_the_floor():
    """For an exact sampler W2 = 0: the estimate lies far below what chance alone would show."""
    target = sk.Gaussian(torch.zeros(16, dtype=torch.float64), variance=1.0)
    found = sk.certify_monte_carlo("kernel-quadrature", target, sk.VP(), steps=5, samples=8000)
    assert found.floor == pytest.approx(math.sqrt(1.5 * 16 / 8000))
    assert found.w2 < 0.6 * found.floor
    assert found.low == 0.0


def test_bad_numbers_of_blocks_are_refused():
    with pytest.raises(ValueError, match="blocks must be a whole number >= 2"):
        sk.certify_monte_carlo("ddim", gaussian(2), sk.VP(), blocks=1)
    with pytest.raises(ValueError, match="samples must be"):
        sk.certify_monte_carlo("ddim", gaussian(2), sk.VP(), samples=0)
