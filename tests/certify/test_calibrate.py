"""Calibrated plans: the scheme, its derivatives, what fitting gains on unseen starts, and what is refused."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch

import sdekit as sk
from sdekit.certify.calibrate import fit as fit_steps
from sdekit.certify.calibrate.scheme import Fitted, Scheme
from sdekit.certify.calibrate.trajectories import Probe, Trajectories, error, geometric_mean, trajectories
from sdekit.errors import NonFiniteError, ShapeError
from sdekit.samplers.grids import Grid
from sdekit.samplers.trigonometric import KernelQuadrature

PROCESSES = {
    "VP": sk.VP(),
    "VE": sk.VE(),
    "EDM": sk.EDM(),
    "Cosine": sk.Cosine(),
    "RectifiedFlow": sk.RectifiedFlow(),
}


def ring():
    angle = 2 * math.pi * torch.arange(4, dtype=torch.float64) / 4
    return sk.GaussianMixture(torch.ones(4) / 4, torch.stack([angle.cos(), angle.sin()], 1), 0.04)


def as_network(predicts, process, law=None):
    """A network that answers as the law's exact denoiser does, in float64, in what it predicts."""
    law = law or ring()
    exact = law.denoiser(process)
    if predicts == "edm":
        s = law.data_std

        def net(x, c_noise):
            rho = (4 * c_noise[0]).exp()
            t = process.t_of_rho(rho.double())
            norm = torch.sqrt(process.alpha(t) ** 2 * s**2 + process.sigma(t) ** 2)
            scaled = x * norm
            clean = exact.x0(scaled, float(t))
            node = exact.node(t)
            return norm / (s * node.sigma) * clean - node.alpha * s / (node.sigma * norm) * scaled

        return sk.Denoiser(net, process, "edm", data_std=s)
    kind = {"flow": "velocity"}.get(predicts, predicts)
    net = lambda x, t: exact.predict(kind, x, float(t[0]))  # noqa: E731
    return sk.Denoiser(net, process, predicts, data_std=law.data_std)


def probe_of(model, rows=8, event=(2,)):
    std = float(model.data_std)
    return Probe(model, rows, event, std, float(model.data_spread or std), torch.float64, torch.device("cpu"))


def random_shifts(steps, seed=0):
    generator = torch.Generator().manual_seed(seed)
    kinds = {"growth": 1, "predictor": 5, "corrector": 6}
    return {
        (kind, i, j): 0.05 * float(torch.randn((), generator=generator))
        for kind, width in kinds.items()
        for i in range(steps - (kind == "corrector"))
        for j in range(width)
    }


# -- the scheme -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PROCESSES)
def test_the_plan_is_the_scheme_that_was_fitted(name):
    """Recipe and executor give what the tables give, with shifts at every place, from alpha = 0 too."""
    model = ring().denoiser(PROCESSES[name])
    probe = probe_of(model)
    times = torch.tensor(probe.plan("kernel-quadrature", steps=6).times, dtype=torch.float64)
    sampler = Fitted.shifted(6, random_shifts(6))
    made = probe.plan(sampler, grid=Grid.explicit(times))
    start = made.prior_std * torch.randn(8, 2, generator=torch.Generator().manual_seed(1)).double()
    by_tables = Scheme(probe, times, sampler).end(start)
    by_plan = sk.sample(model, (8, 2), sampler=made, x_init=start).x
    torch.testing.assert_close(by_plan, by_tables, rtol=1e-9, atol=1e-11)
    plain = probe.run(probe.plan(KernelQuadrature(), grid=Grid.explicit(times)), start)
    assert float((plain - by_plan).abs().max()) > 1e-3
    unshifted = Scheme(probe, times, Fitted.shifted(6, {})).end(start)
    torch.testing.assert_close(unshifted, plain, rtol=1e-9, atol=1e-11)


def test_a_shift_changes_the_weight_that_it_names():
    """w_ij - w0_ij = dphi_i b_ij, and x_i's factor 1 + |dphi_i| a_i, read off the plan."""
    model = ring().denoiser(sk.VP())
    probe = probe_of(model)
    grid = Grid.explicit(probe.plan("kernel-quadrature", steps=4).times)
    path = probe.plan("kernel-quadrature", steps=4)
    c = math.sqrt(probe.data_std * probe.data_spread)

    def weights(made, out):
        return next({n: w for w, n in ins.terms} for ins in made.instructions if ins.out == out)

    def phi(i):
        node = path.nodes[i]
        return math.atan2(float(node.sigma / node.alpha), c)

    def norm(i):
        return math.hypot(float(path.nodes[i].alpha) * c, float(path.nodes[i].sigma))

    shifts = {("growth", 2, 0): 0.3, ("predictor", 2, 1): 0.2, ("corrector", 2, 0): -0.1}
    base = probe.plan(Fitted(), grid=grid)
    made = probe.plan(Fitted.shifted(4, shifts), grid=grid)
    step = phi(3) - phi(2)
    before, after = weights(base, "p[3]"), weights(made, "p[3]")
    assert after["F[1]"] - before["F[1]"] == pytest.approx(-norm(3) * step * 0.2, rel=1e-9)
    assert after["x[2]"] / before["x[2]"] == pytest.approx(1 + abs(step) * 0.3, rel=1e-12)
    assert after["F[2]"] == before["F[2]"]
    before, after = weights(base, "x[3]"), weights(made, "x[3]")
    assert after["P[3]"] - before["P[3]"] == pytest.approx(norm(3) * step * 0.1, rel=1e-9)
    assert after["x[2]"] / before["x[2]"] == pytest.approx(1 + abs(step) * 0.3, rel=1e-12)


def problem(steps=5, rows=8):
    model = ring().denoiser(sk.VP())
    probe = probe_of(model, rows)
    sets = [trajectories(probe, 0, which, lambda start, end: 1e-6) for which in range(2)]
    times = torch.tensor(probe.plan("kernel-quadrature", steps=steps).times, dtype=torch.float64)
    return probe, times, sets


def test_derivatives_of_the_end():
    """Runs that begin in the middle give the derivatives of whole runs, by every shift and every node."""
    probe, times, (train, _) = problem()
    ends = times[[0, -1]]
    log_rho = probe.model.process.rho(times[1:-1]).log()
    shifts = {k: 0.0 for k in random_shifts(5) if k[0] != "predictor" or k[2] <= k[1]}
    shifts = {k: v for k, v in shifts.items() if k[0] != "corrector" or k[2] <= k[1] + 1}
    own = fit_steps.scheme(probe, ends, log_rho, shifts)
    jacobian, residual, gaps = fit_steps._linearise(
        probe, ends, fit_steps._State(log_rho, shifts, own), train
    )
    assert jacobian.shape == (8, 2, len(shifts) + 4)
    torch.testing.assert_close(residual * own.norm[-1], own.end(train.start) - train.end)
    h = 1e-5

    def whole(moved, changed):
        return fit_steps.scheme(probe, ends, moved, changed).run(train.start)[0][-1]

    expected = []
    for key in shifts:
        ahead, behind = (whole(log_rho, shifts | {key: sign * h}) for sign in (1, -1))
        expected.append(0.1 * (ahead - behind) / (2 * h))
    for k, gap in enumerate(gaps.tolist()):
        unit = torch.eye(4, dtype=torch.float64)[k] * gap
        ahead, behind = (whole(log_rho + sign * h * unit, shifts) for sign in (1, -1))
        expected.append((ahead - behind) / (2 * h))
    found = torch.stack(expected, -1)
    size = found.abs().amax((0, 1))
    assert bool(((jacobian - found).abs().amax((0, 1)) <= 0.03 * size + 1e-9).all())
    spacing = -probe.model.process.rho(times).log().diff()
    torch.testing.assert_close(gaps, torch.minimum(spacing[:-1], spacing[1:]), rtol=1e-6, atol=0)


def test_every_iteration_of_the_fit_gains():
    probe, times, (train, held) = problem()
    states = list(fit_steps.fit(probe, times, train, held, 3))
    values = [value for value, _, _ in states]
    assert all(b < a for a, b in pairwise(values))
    assert values[-1] < 0.3 * values[0]
    for value, grid, sampler in states:
        assert float(grid[0]) == float(times[0])
        assert float(grid[-1]) == float(times[-1])
        made = probe.plan(sampler, grid=Grid.explicit(grid))
        again = geometric_mean(error(probe.run(made, held.start), held.end))
        assert again == pytest.approx(value, rel=1e-6)


def test_a_trajectory_gone_astray_does_not_lead_the_fit():
    """One end of eight in another mode: the gain on the others is that without it, within 40 %."""
    probe, times, (train, held) = problem()
    spoiled = train.end.clone()
    spoiled[0] = -spoiled[0]
    astray = Trajectories(train.start, spoiled, train.floor, train.intervals)
    clean, robust = (
        [value for value, _, _ in fit_steps.fit(probe, times, given, held, 2)][-1]
        for given in (train, astray)
    )
    assert robust < 1.4 * clean


def test_nothing_to_gain_ends_the_fit():
    """A target that is met exactly gives no direction: one state, no failure."""
    probe, times, (train, _) = problem(3)
    own = Scheme(probe, times, Fitted.shifted(3, {}))
    met = Trajectories(train.start, own.end(train.start), 0.0, 0)
    assert len(list(fit_steps.fit(probe, times, met, met, 2))) == 1
    assert len(list(fit_steps.fit(probe, times, train, met, 2))) == 1  # every step is worse there


# -- trajectories ---------------------------------------------------------------------------------------


def test_reference_ends_are_exact_and_say_how_exact():
    """On a Gaussian the map is known: the end is nearer to it than the floor that is reported."""
    law = sk.Gaussian(torch.zeros(4), variance=torch.tensor([4.0, 1.0, 0.25, 0.01]))
    for process in (sk.VP(), sk.EDM()):
        model = law.denoiser(process)
        found = trajectories(probe_of(model, 16, (4,)), 0, 0, lambda start, end: 1e-5)
        v = law.eigenvalues
        span = (process.t_max, process.t_min)
        ends = [float(process.alpha(t)) ** 2 * v + float(process.sigma(t)) ** 2 for t in span]
        exact = law.from_basis(law.to_basis(found.start) * torch.sqrt(ends[1] / ends[0]))
        assert geometric_mean(error(found.end, exact)) <= found.floor <= 1e-5


def test_references_double_until_they_meet_the_tolerance():
    probe = probe_of(ring().denoiser(sk.VP()))
    wide, narrow = (trajectories(probe, 0, 0, lambda s, e, tol=tol: tol) for tol in (1.0, 0.0))
    assert (wide.intervals, narrow.intervals) == (128, 512)
    assert narrow.floor < wide.floor
    assert probe.calls == 64 + 128 + 64 + 128 + 256 + 512
    assert torch.equal(wide.start, narrow.start)
    other = trajectories(probe, 0, 1, lambda s, e: 1.0)
    assert float((other.start - wide.start).abs().min()) > 0
    assert not torch.equal(other.start, trajectories(probe, 1, 1, lambda s, e: 1.0).start)


def test_a_geometric_mean_of_errors():
    x = torch.tensor([[3.0, 4.0], [0.0, math.inf]])
    found = error(x, torch.zeros(2, 2))
    assert found.tolist() == [pytest.approx(math.sqrt(12.5)), math.inf]
    assert geometric_mean(torch.tensor([1.0, 100.0])) == pytest.approx(10.0)


# -- calibrate ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def calibrated():
    model = ring().denoiser(sk.VP())
    return model, sk.calibrate(model, shape=(1, 2), nfe=8, trajectories=48, iterations=3)


def unseen(model, made, n=128):
    """Errors on starts of `sample`, against a fine run."""
    start = model.process.prior((n, 2), seed=7, dtype=torch.float64)
    fine = sk.sample(model, (n, 2), steps=200, x_init=start).x
    return geometric_mean(error(sk.sample(model, (n, 2), sampler=made, x_init=start).x, fine))


def test_error_on_unseen_starts(calibrated):
    """A fifth of the default's and of the best uncalibrated one's; the error reported is what is met."""
    model, made = calibrated
    about = made.provenance
    default = sk.plan("kernel-quadrature", model.process, nfe=8, data_std=model.data_std)
    assert unseen(model, made) < 0.2 * unseen(model, default)
    assert about["chosen"] == "fitted"
    assert about["error"] < 0.2 * about["best_uncalibrated"]["error"]
    assert unseen(model, made) == pytest.approx(about["error"], rel=0.7)
    assert made.nfe == 8
    assert made.sampler == "calibrated"


def test_provenance_adds_up(calibrated):
    _, made = calibrated
    about = made.provenance
    assert about["rows"] == 48 * about["evaluations"]
    assert about["evaluations"] > 3 * (64 + 128)
    assert about["candidates"]["fitted"] == pytest.approx(about["fit"][-1], rel=1e-6)
    assert about["candidates"]["fitted"] == min(about["candidates"].values())
    assert about["reference"]["error"] < 0.05 * about["error"]
    assert about["seed"] == 0
    assert about["version"] == sk.__version__
    assert about["dtype"] == "float64"


def test_saved_with_its_provenance(calibrated):
    model, made = calibrated
    again = sk.Plan.from_json(made.to_json())
    assert again == made
    assert again.provenance == made.provenance
    assert again.lower("eps").provenance == made.provenance
    x, y = (sk.sample(model, (4, 2), sampler=plan, seed=3).x for plan in (made, again))
    assert torch.equal(x, y)
    old = json.loads(made.to_json())
    del old["provenance"]
    assert sk.Plan.from_json(json.dumps(old)).provenance == {}
    assert "provenance" not in sk.plan("ddim", sk.VP(), steps=2).to_json()


def test_the_same_bits_again():
    model = ring().denoiser(sk.EDM())
    options = {"shape": (1, 2), "steps": 3, "trajectories": 16, "iterations": 1}
    first, second = (sk.calibrate(model, **options).to_json() for _ in range(2))
    assert first == second
    assert sk.calibrate(model, **options, seed=1).to_json() != first


@pytest.mark.parametrize(
    ("process", "predicts", "end"),
    [
        ("VP", "eps", "t_min"),
        ("VP", "v", "clean"),
        ("VE", "score", "t_min"),
        ("EDM", "edm", "clean"),
        ("Cosine", "x0", "t_min"),
        ("Cosine", "eps", "clean"),
        ("RectifiedFlow", "flow", "t_min"),
        ("RectifiedFlow", "flow", "clean"),
    ],
)
def test_every_process_and_prediction(process, predicts, end):
    """From pure noise too; better than the default, at its number of evaluations, to the end asked for."""
    model = as_network(predicts, PROCESSES[process])
    made = sk.calibrate(
        model, shape=(1, 2), nfe=4, end=end, trajectories=24, iterations=2, dtype=torch.float64
    )
    assert made.nfe == 4
    assert made.end == end
    assert made.provenance["error"] < 0.8 * made.provenance["default_error"]
    x = sk.sample(model, (64, 2), sampler=made, dtype=torch.float64).x
    assert float((x.norm(dim=1) - 1).abs().median()) < 0.35


def test_every_call_has_the_same_rows():
    """A closure may hold one label for each trajectory: rows come all, in order, whatever is measured."""
    law, process = ring(), sk.VP()
    exact = law.denoiser(process)
    labels = torch.linspace(-0.1, 0.1, 12, dtype=torch.float64)[:, None]

    def net(x, t):
        assert len(x) == 12
        return exact.x0(x, float(t[0])) + labels

    model = sk.Denoiser(net, process, "x0")
    made = sk.calibrate(model, shape=(1, 2), steps=3, trajectories=12, iterations=1, dtype=torch.float64)
    assert made.data_std == pytest.approx(law.data_std, rel=0.5)
    assert made.provenance["error"] < made.provenance["default_error"]


def test_no_better_fit_leaves_the_best_candidate():
    """iterations=0 chooses among samplers; so does a network on which no fit can gain."""
    model = ring().denoiser(sk.VP())
    made = sk.calibrate(model, shape=(1, 2), steps=4, trajectories=16, iterations=0)
    about = made.provenance
    assert about["chosen"] == about["best_uncalibrated"]["name"]
    assert about["candidates"][about["chosen"]] == min(about["candidates"].values())
    assert about["error"] == about["best_uncalibrated"]["error"]
    assert about["fit"] == []
    assert len(about["candidates"]) >= 30
    assert made.nfe == 4


def test_a_network_without_a_derivative():
    """Rough at every scale of the differences: the result is no worse than any candidate."""
    exact, process = ring().denoiser(sk.VP()), sk.VP()

    def net(x, t):
        out = exact.eps(x, float(t[0]))
        return out + 0.02 * torch.sin(1e6 * out.sum(1, keepdim=True))

    model = sk.Denoiser(net, process, "eps", data_std=ring().data_std)
    made = sk.calibrate(model, shape=(1, 2), steps=5, trajectories=16, iterations=1, dtype=torch.float64)
    about = made.provenance
    assert about["candidates"][about["chosen"]] == min(about["candidates"].values())
    assert about["reference"]["intervals"] == 512
    assert about["reference"]["error"] > 1e-4


def test_more_trajectories_where_samples_are_small():
    counts = {}
    for d in (1, 8, 64):
        law = sk.Gaussian(torch.zeros(d), variance=torch.ones(d))
        made = sk.calibrate(law.denoiser(sk.VP()), shape=(1, d), steps=2, iterations=0)
        counts[d] = made.provenance["trajectories"]
    assert counts == {1: 128, 8: 64, 64: 16}


def test_progress(capsys):
    model = ring().denoiser(sk.VP())
    sk.calibrate(model, shape=(1, 2), steps=2, trajectories=4, iterations=0, progress=True)
    assert "calibrate" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "raised", "words"),
    [
        ({"steps": 1}, ValueError, "steps must be a whole number >= 2, got 1"),
        ({"nfe": 2, "end": "clean"}, ValueError, "nfe must be a whole number >= 3, got 2"),
        ({"steps": 5, "nfe": 5}, ValueError, "not both"),
        ({"end": "t_max"}, ValueError, "'t_min' or 'clean'"),
        ({"shape": (1, 3)}, ShapeError, "the event shape"),
        ({"shape": (1.5, 2)}, ShapeError, "whole numbers"),
        ({"trajectories": 3}, ValueError, "trajectories must be a whole number >= 4"),
        ({"iterations": -1}, ValueError, "iterations must be a whole number >= 0"),
    ],
)
def test_what_does_not_fit_is_refused(options, raised, words):
    with pytest.raises(raised, match=words):
        sk.calibrate(ring().denoiser(sk.VP()), **{"shape": (1, 2), **options})


def test_a_model_must_be_a_denoiser():
    with pytest.raises(TypeError, match="must be a Denoiser, got function"):
        sk.calibrate(lambda x, t: x, shape=(1, 2))


def test_nan_names_the_time():
    def net(x, t):
        return torch.where(t[:, None] < 0.1, torch.nan, x)

    model = sk.Denoiser(net, sk.VP(), "eps", data_std=1.0)
    with pytest.raises(NonFiniteError, match=r"trajectory 0 at t = 0\.09"):
        sk.calibrate(model, shape=(1, 2), steps=4, trajectories=4)


def test_a_plan_keeps_what_it_was_given():
    made = replace(sk.plan("ddim", sk.VP(), steps=2), provenance={"seed": 3})
    assert sk.Plan.from_json(made.to_json()).provenance == {"seed": 3}


def test_the_benchmark_keeps_its_plans(tmp_path, monkeypatch):
    """A problem is calibrated once; its figures are those of the plan that is kept, from unseen starts."""
    pytest.importorskip("sklearn")
    from benchmarks import _cache, _cells, calibrated

    monkeypatch.setattr(_cache, "CACHE", tmp_path)
    _cells.loaded.cache_clear()
    try:
        name = "gaussian 1/k d=64, EDM"
        found = calibrated.one(name, 4)
        monkeypatch.setattr(calibrated, "calibrate", None)
        assert calibrated.one(name, 4) == found
        default = calibrated._default(name, 4)
    finally:
        _cells.loaded.cache_clear()
    assert found["median"] < 0.5 * default
    assert found["nfe"] == 4
    assert found["rows"] == 16 * found["evaluations"]
    row = {"problem": name, "nfe": 4, "over default": found["median"] / default, "seconds": 2.0}
    row |= {"over peer": 0.5, "over candidates": 1.0, "evaluations": 100, "rows": 1600}
    summary = calibrated._summary("both", [row, row | {"over peer": 2.0, "problem": "other"}], "peer")
    assert summary["over peer"] == pytest.approx(1.0)
    assert summary["on"] == "other"
