"""The accuracy benchmark at a tiny scale: its references, networks, figures and comparison."""

import math
from dataclasses import replace

import pytest
import torch

import sdekit as sk

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")
pytest.importorskip("safetensors")

from benchmarks import _cache, _cells, accuracy, networks, problems

TINY = ("ring of 8 d=2, VP", "gaussian 1/k d=64, EDM")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(_cache, "CACHE", tmp_path)
    monkeypatch.setattr(accuracy, "PICTURE", tmp_path / "accuracy.png")
    _cells.loaded.cache_clear()
    yield tmp_path
    _cells.loaded.cache_clear()


def test_suite_has_every_kind():
    kinds = [kind for kind, _, _ in problems.LAWS.values()]
    assert {k: kinds.count(k) >= 2 for k in kinds} == dict.fromkeys(
        ("gaussian", "mixture", "real", "curve", "tree"), True
    )
    assert all({"VP", "EDM"} <= set(where) for _, _, where in problems.LAWS.values())
    assert len(problems.LEARNED) >= 8


@pytest.mark.parametrize("process", problems.PROCESSES.values(), ids=problems.PROCESSES)
def test_reference_follows_the_gaussian_flow(process):
    law = sk.Gaussian(torch.zeros(3), variance=torch.tensor([4.0, 0.3, 0.01]))
    process = process()
    start = process.prior((16, 3), seed=1, dtype=torch.float64)
    exact = problems.gaussian_map(law, process, start)
    found = problems.flow_map(law.denoiser(process), start, 1e-9)
    torch.testing.assert_close(found, exact, rtol=0, atol=1e-7)
    # the map takes N(0, alpha^2 v + sigma^2) at t_max, not the prior, to that at t_min
    ends = [law.marginal(process, t).cov.diagonal() for t in (process.t_max, process.t_min)]
    torch.testing.assert_close((exact / start).square(), (ends[1] / ends[0]).expand(16, 3))


@pytest.mark.parametrize("name", [n for n, (kind, _, _) in problems.LAWS.items() if kind != "gaussian"])
def test_fast_denoiser_is_that_of_the_law(name):
    law = problems.LAWS[name][1]()
    process = sk.VP()
    fast, exact = problems.Spherical(law, process), law.denoiser(process)
    x, noise = law.sample(32, dtype=torch.float64), law.sample(32, seed=1, dtype=torch.float64)
    for t in (process.t_min, 0.1, 0.5, process.t_max):
        y = process.alpha(t) * x + process.sigma(t) * noise
        torch.testing.assert_close(fast.x0(y, t), exact.x0(y, t), rtol=0, atol=1e-10)
    assert (fast.data_std, fast.data_spread) == (exact.data_std, exact.data_spread)


def test_figures_are_mean_median_and_rmse(cache):
    p = problems.problem(TINY[0])
    shift = torch.zeros_like(p.exact)
    shift[0] = 3.0
    mean, median, rmse = _cells.figures(p, p.exact + shift)
    assert median == 0
    assert mean == pytest.approx(3 / 128)
    assert rmse == pytest.approx(3 / math.sqrt(128))
    shift[1] = math.nan
    assert _cells.figures(p, p.exact + shift)[2] == math.inf


def test_reference_is_kept(cache, monkeypatch):
    first = problems.problem(TINY[0])
    monkeypatch.setattr(problems, "flow_map", lambda *_: pytest.fail("solved twice"))
    torch.testing.assert_close(problems.problem(TINY[0]).exact, first.exact, rtol=0, atol=0)
    assert _cache.digest(first.exact) != _cache.digest(first.exact + 1e-16 * first.exact.sign() + 1e-15)


def test_errors_fall_and_take_the_statistics_given(cache):
    two = problems.closed_form(TINY)
    found = accuracy.errors(two, "kernel-quadrature", None, (8, 20))
    assert set(found) == set(TINY)
    for row in found.values():
        assert 0 < row[20][1] < row[8][1] / 4
        assert row[8][0] <= row[8][2]
    other = accuracy.errors(two, "kernel-quadrature", None, (8,), data_std=2.0, data_spread=3.0)
    assert other[TINY[0]][8] != found[TINY[0]][8]
    assert accuracy.errors(two[:1], "heun", "karras", (1,)) == {TINY[0]: {1: None}}


def test_comparison_takes_the_best_single_configuration():
    tables = {
        "a": {"one": {5: (1.0, 1.0, 1.0)}, "two": {5: (3.0, 3.0, 3.0)}, "three": {5: (1e-9,) * 3}},
        "b": {"one": {5: (1.0, 1.0, 1.0)}, "two": {5: (0.1, 0.1, 0.1)}, "three": {5: None}},
    }
    order = accuracy.rank(tables, ("one", "two", "three"), 5)
    assert [name for _, name, _ in order] == ["two", "one"]  # "three" has no run on b
    assert order[0][0] == pytest.approx(math.sqrt(0.3))
    assert accuracy.rank(tables, ("one",), 6) == []


def test_race_drops_what_cannot_catch_up(monkeypatch):
    medians = {"lead": 0.02, "near": 0.024, "far": 0.18}
    ran = []

    def measure(name, wanted, each, redo):
        ran.append({c for c in wanted if c != "own"})
        return {}

    monkeypatch.setattr(_cells, "SUITES", {"closed-form": ("p", "q", "r")})
    monkeypatch.setattr(_cells, "EVALUATIONS", (5,))
    monkeypatch.setattr(_cells, "CATCH_UP", {"closed-form": 1.25})
    monkeypatch.setattr(_cells, "loaded", lambda name: None)
    monkeypatch.setattr(_cells, "peers", lambda: medians)
    monkeypatch.setattr(_cells, "measure", measure)
    monkeypatch.setattr(_cells, "cells", lambda name, names: {c: {5: (0.0, medians[c], 0.0)} for c in names})
    _cells.race("closed-form", ["own"], medians)
    # behind by 9 > 1.25^2 after the first problem, by 1.2^2 > 1.25 after the second
    assert ran == [{"lead", "near", "far"}, {"lead", "near"}, {"lead"}]


def test_run_measures_once_and_reports(cache, monkeypatch):
    monkeypatch.setattr(_cells, "SUITES", {"closed-form": TINY[:1], "learned": TINY[1:]})
    monkeypatch.setattr(_cells, "EVALUATIONS", (6, 10))
    monkeypatch.setattr(_cells, "peers", dict)
    monkeypatch.setattr(accuracy, "ours", lambda: ["kernel-quadrature", "ddim"])
    result = accuracy.run(workers=1)
    rows = {(row["suite"], row["nfe"]): row for row in result["table"]}
    assert set(rows) == {(s, n) for s in ("closed-form", "learned") for n in (6, 10)}
    for row in rows.values():
        assert row["ratio"] == pytest.approx(row["default"] / row["best peer"])
        assert row["peer"] in _cells.STAND_INS
    direct = accuracy.errors(problems.closed_form(TINY[:1]), "kernel-quadrature", None, (10,))
    assert rows["closed-form", 10]["default"] == pytest.approx(direct[TINY[0]][10][1], rel=1e-12)
    assert (cache / "accuracy.png").stat().st_size > 1000
    assert accuracy.peer_best("closed-form")[10][0] == rows["closed-form", 10]["peer"]
    monkeypatch.setattr(_cells, "run_plan", lambda *_: pytest.fail("ran what is kept"))
    again = accuracy.run(workers=1)
    assert again["table"] == result["table"]
    assert result["ratios"] == {}  # our own samplers stand in: nothing is said of the libraries
    assert result["absent"] == "no library is installed, and none is kept"
    monkeypatch.setattr(accuracy, "QUICK", TINY[:1])
    found = accuracy.compare(accuracy.ours(), _cells.STAND_INS[:-1])["ratios"]
    row = next(row for row in result["table"] if (row["suite"], row["nfe"]) == ("closed-form", 10))
    for name in ("closed-form, 10: error over the best peer", f"{TINY[0]}, 10: error over the best peer"):
        assert found[name]["median"] == pytest.approx(row["ratio"], rel=1e-3)


def _tiny(kind, architecture, data, **options):
    return networks.Network(
        f"tiny {kind}", kind, data, architecture, (2,), 3, 8, {"width": 8, "depth": 1} | options
    )


@pytest.mark.parametrize("kind", ["edm", "eps"])
def test_training_is_kept_and_repeats_itself(cache, monkeypatch, kind):
    recipe = _tiny(kind, sk.nets.MLP, networks.moons)
    report = networks.train(recipe)
    assert report["parameters"] > 0
    monkeypatch.setattr(networks, "NETWORKS", {recipe.name: recipe, "not trained": replace(recipe, steps=4)})
    assert networks.kept() == {recipe.name: report}
    first = networks.load(recipe.path, recipe.make())
    assert first.predicts == kind
    assert first.process == (sk.EDM() if kind == "edm" else sk.VP())
    networks.train(recipe)
    second = networks.load(recipe.path, recipe.make())
    for a, b in zip(first.net.parameters(), second.net.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)
    assert recipe.path != _tiny(kind, sk.nets.MLP, networks.moons, width=9).path


def test_guidance_extrapolates_from_the_free_to_the_conditional(cache):
    def labelled():
        x, _ = networks.moons()
        return x, torch.arange(len(x)) % networks.CLASSES

    recipe = _tiny("edm", networks.LabelledMLP, labelled)
    networks.train(recipe)
    net = networks.load(recipe.path, recipe.make()).net
    generator = torch.Generator().manual_seed(0)
    x, t = torch.randn(12, 2, generator=generator), torch.zeros(12)
    with torch.no_grad():
        for weights in net.parameters():
            weights.normal_(generator=generator)
        guided = networks.Guided(net, 3.0)(x, t)
        net.embed.labels = None
        free = net(x, t)
        net.embed.labels = torch.arange(12) % 10
        conditional = net(x, t)
    assert float((conditional - free).abs().max()) > 0.1
    torch.testing.assert_close(guided, free + 3.0 * (conditional - free))


def test_training_levels_are_published():
    u = torch.tensor([1e-9, 0.5, 0.841344746, 1 - 1e-12], dtype=torch.float64)
    expected = torch.tensor([0.002, math.exp(-1.2), 1.0, 80.0], dtype=torch.float64)
    torch.testing.assert_close(networks.published_edm(u), expected)


def test_rough_network_changes_fast_in_time():
    smooth, rough = (
        net(1, width=8, multipliers=(1, 2), seed=0) for net in (sk.nets.UNet, networks.RoughUNet)
    )
    t = torch.tensor([0.5, 0.5 + math.pi / 1000])
    with torch.no_grad():
        change = [float(net.embed[0](t).diff(dim=0).abs().max()) for net in (smooth, rough)]
    assert change[0] < 0.02
    assert change[1] > 1


def test_patches_are_sixteen_pixels_square():
    x, _ = networks.patches()
    assert x.shape[1:] == (1, 16, 16)
    assert len(x) == 2 * 52 * 79
    assert -1 <= float(x.min()) < float(x.max()) <= 1
