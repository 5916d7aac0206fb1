"""What the benchmarks measure with, and the check of today's ratios against the committed ones."""

import ctypes
import json
import shutil
import sys
import types

import numpy as np
import pytest
import scipy.stats
import torch

from benchmarks import _cache, _memory, _rivals, _summary, _timing, check, ensembles
from benchmarks import run as bench


def figure(median, better="higher", width=0.0, wanted=None):
    return {
        "median": median,
        "low": median * (1 - width),
        "high": median * (1 + width),
        "better": better,
        "wanted": wanted,
    }


@pytest.mark.parametrize(
    ("today", "better", "verdict"),
    [
        (0.81, "higher", "ok"),
        (0.79, "higher", "LOST"),
        (1.19, "lower", "ok"),
        (1.21, "lower", "LOST"),
        (3.0, "higher", "ok"),
        (0.3, "lower", "ok"),
    ],
)
def test_a_loss_of_more_than_a_fifth_fails(today, better, verdict):
    [row] = check.compare({"a": figure(1.0, better)}, {"a": figure(today, better)}, ["a"], {})
    assert row["verdict"] == verdict
    assert check.failed([row]) == (["a"] if verdict == "LOST" else [])


@pytest.mark.parametrize(("better", "bad"), [("higher", 0.7), ("lower", 1.35)])
def test_both_spreads_count(better, bad):
    def lost(then, now):
        return check.lost(figure(1.0, better, then), figure(bad, better, now))

    assert lost(0.0, 0.0)
    assert lost(0.02, 0.02)
    assert not lost(0.0, 0.2)
    assert not lost(0.2, 0.0)


def test_missing_fails_and_absent_is_said():
    committed = {"a": figure(1.0), "b: torchsde": figure(1.0), "c": figure(1.0)}
    today = {"c": figure(1.0), "d": figure(1.0)}
    rows = check.compare(committed, today, ["a", "b: torchsde", "c", "d"], {"b:": "no torchsde"})
    assert [row["verdict"] for row in rows] == ["MISSING", "absent: no torchsde", "ok", "NEW"]
    assert check.failed(rows) == ["a"]


@pytest.fixture
def fake(monkeypatch, tmp_path):
    """A benchmark "fake" with results in a folder of its own; its attributes are the test's."""
    module = types.ModuleType("benchmarks.fake")
    monkeypatch.setitem(sys.modules, "benchmarks.fake", module)
    monkeypatch.setattr(check, "discover", lambda: ["fake"])
    monkeypatch.setattr(bench, "discover", lambda: ["fake"])
    monkeypatch.setattr(check.check, "__defaults__", (tmp_path,))
    monkeypatch.setattr(bench, "RESULTS", tmp_path)
    monkeypatch.setattr(bench, "draw", lambda folder: None)
    return module


def commit(folder, ratios):
    (folder / "fake.json").write_text(json.dumps({"stamp": {}, "result": {"ratios": ratios}}))


def test_check_reads_the_committed_part(fake, tmp_path, capsys):
    commit(tmp_path, {"quick a": figure(1.0), "quick b": figure(2.0), "slow": figure(1.0)})
    assert check.main([]) == 0
    assert "## fake: no quick part" in capsys.readouterr().out
    fake.QUICK = ("quick",)
    fake.quick = lambda: {"ratios": {"quick a": figure(0.95), "quick b": figure(1.7)}}
    assert check.main([]) == 0
    fake.quick = lambda: {"ratios": {"quick a": figure(0.95), "quick b": figure(1.5)}}
    assert check.main(["fake"]) == 1
    assert "Lost: fake: quick b" in capsys.readouterr().out
    fake.quick = lambda: {"ratios": {"quick a": figure(1.0)}}
    assert check.main([]) == 1
    fake.quick = lambda: {"ratios": {}, "absent": "no such library"}
    assert check.main([]) == 0
    assert "absent: no such library" in capsys.readouterr().out


def test_a_result_stays_where_its_library_is_absent(fake, tmp_path, capsys):
    commit(tmp_path, {})
    kept = (tmp_path / "fake.json").read_text()

    def needs():
        raise ModuleNotFoundError("no", name="library")

    fake.run = needs
    bench.main([])
    fake.run = lambda: {"absent": "no CUDA device"}
    bench.main([])
    assert (tmp_path / "fake.json").read_text() == kept
    out = capsys.readouterr().out
    assert "absent: library is not installed" in out
    assert "absent: no CUDA device" in out
    fake.run = lambda: {"ratios": {"a": figure(1.0, wanted=2.0)}}
    bench.main([])
    assert json.loads((tmp_path / "fake.json").read_text())["result"]["ratios"]["a"]["median"] == 1.0
    assert "**not met**" in capsys.readouterr().out


def test_a_failing_benchmark_is_reported_and_the_others_go_on(fake, tmp_path, monkeypatch, capsys):
    commit(tmp_path, {"a": figure(1.0)})
    kept = (tmp_path / "fake.json").read_text()
    other = types.ModuleType("benchmarks.other")
    other.run = lambda: {"ratios": {"b": figure(3.0)}}
    monkeypatch.setitem(sys.modules, "benchmarks.other", other)
    monkeypatch.setattr(bench, "discover", lambda: ["fake", "other"])

    def broken():
        raise ModuleNotFoundError("no", name="sdekit.gone")  # of this package: no absent library

    fake.run = broken
    assert bench.main([]) == 1
    assert (tmp_path / "fake.json").read_text() == kept
    assert json.loads((tmp_path / "other.json").read_text())["result"]["ratios"]["b"]["median"] == 3.0
    said = capsys.readouterr()
    assert "## fake (1 of 2, " in said.out
    assert "## other (2 of 2, " in said.out
    assert said.out.rstrip().endswith("FAILED: fake, ModuleNotFoundError: no")
    assert "in broken" in said.err
    assert bench.main(["other"]) == 0
    with pytest.raises(SystemExit):
        bench.main(["another"])
    assert "no benchmark named another; there are fake, other" in capsys.readouterr().err


def test_results_and_pictures_go_to_the_folder_given(fake, tmp_path, monkeypatch):
    monkeypatch.setattr(fake, "PICTURE", tmp_path / "fake.png", raising=False)
    monkeypatch.setattr(fake, "FILE", tmp_path / "docs" / "table.json", raising=False)
    monkeypatch.setattr(_cache, "CACHE", tmp_path / "cache")
    (_cache.folder("cells") / "one.json").write_text("{}")
    _cache.folder("exact")

    def run():
        assert fake.PICTURE.parent == fake.FILE.parent == tmp_path / "there"
        return {"table": [{"a": 1}], "ratios": {}, "absent": {"b": "no library"}}

    fake.run = run
    assert bench.main(["--folder", str(tmp_path / "there")]) == 0
    record = json.loads((tmp_path / "there" / "fake.json").read_text())
    assert record["kept"] == {"cells": 1}
    assert not (tmp_path / "fake.json").exists()
    assert fake.PICTURE.name == "fake.png"
    fake.FILE = tmp_path / "docs" / "table.json"
    fake.run = lambda: {"ratios": {}} if fake.FILE.parent == tmp_path / "docs" else {}
    assert bench.main([]) == 0
    assert json.loads((tmp_path / "fake.json").read_text())["result"] == {"ratios": {}}


def test_a_check_that_fails_leaves_the_others(fake, tmp_path, monkeypatch, capsys):
    commit(tmp_path, {"a": figure(1.0)})
    other = types.ModuleType("benchmarks.other")
    other.quick = lambda: {"ratios": {}, "absent": "no card"}
    monkeypatch.setitem(sys.modules, "benchmarks.other", other)
    monkeypatch.setattr(check, "discover", lambda: ["fake", "other", "third"])
    monkeypatch.setitem(sys.modules, "benchmarks.third", None)
    (tmp_path / "other.json").write_text(json.dumps({"result": {}}))
    fake.quick = lambda: 1 / 0
    with pytest.raises(ModuleNotFoundError):
        check.check("third")  # of this package, hence no absent library
    assert check.main([]) == 1
    said = capsys.readouterr()
    assert "## fake: FAILED: ZeroDivisionError" in said.out
    assert "## other: absent: no card" in said.out
    assert "Lost: fake, which failed; third, which failed" in said.out
    assert "1 / 0" in said.err
    (tmp_path / "fake.json").unlink()
    assert check.check("fake") == "nothing committed"


@pytest.mark.parametrize(
    ("benchmark", "ratio", "expected"),
    [
        ("ensembles", "ou 10000x200: C, Philox", "C, Philox"),
        ("ensembles", "memory of 200 MB: ou", "memory of 200 MB"),
        ("solve", "geometric Brownian 4096x1: times by hand", "times by hand"),
        ("noise", "fill float64 1e6", "fill float64"),
        ("steps", "bound float32 64x3x32x32 2 terms", "bound"),
        ("steps", "overhead 1x16 sde-dpmpp-2m", "overhead 1x16"),
        ("steps", "executor 1x16, us a step: ddim", "executor 1x16, us a step"),
        ("likelihood", "33 cases, error 1e-06", "cases"),
        ("overhead", "import over torch's", "import over torch's"),
    ],
)
def test_figures_of_one_kind_share_a_line(benchmark, ratio, expected):
    assert _summary.kind({"benchmark": benchmark, "ratio": ratio}) == f"{benchmark}: {expected}"


def test_a_report_says_how_it_was_made_and_what_is_absent(tmp_path):
    stamp = {"processor": "P", "cores": 2, "torch": "1", "numba": "2", "date": "d", "load": [0.5]}
    result = {"ratios": {"a": figure(0.5, wanted=1.0)}, "absent": {"b": "no library"}}
    (tmp_path / "x.json").write_text(json.dumps({"stamp": stamp, "seconds": 12.4, "result": result}))
    text = _summary.report("x", tmp_path)
    assert text.startswith(
        "`python -m benchmarks.run x`, 12 s on 2 cores of P, torch 1, numba 2, d, load 0.5"
    )
    assert "| a | 0.5 |  | ≥ 1 | **not met** |" in text
    assert text.endswith("Absent: b, no library.")
    assert _summary.absences({"absent": "no card"}) == ["no card"]
    assert "Not measured yet" in _summary.report("y", tmp_path)


def test_committed_results_are_uniform(tmp_path):
    rows = _summary.collect()
    assert len({row["benchmark"] for row in rows}) >= 7
    for row in rows:
        assert row["low"] <= row["median"] <= row["high"], row
        assert row["better"] in ("lower", "higher")
        assert row["wanted"] is None or row["wanted"] > 0
    assert any(row["wanted"] is not None for row in rows)
    pytest.importorskip("matplotlib")
    _summary.draw(rows, tmp_path / "all.png")
    assert (tmp_path / "all.png").stat().st_size > 5000
    _summary.draw([row | {"wanted": None} for row in rows], tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()


def test_margin_is_in_units_of_what_is_wanted():
    assert _summary.margin(figure(3.0, "higher", wanted=2.0)) == 1.5
    assert _summary.margin(figure(3.0, "lower", wanted=6.0)) == 2.0
    assert not _summary.met(figure(3.0, "lower", wanted=2.0))


def test_spread_gives_quartiles():
    got = _timing.spread([5.0, 1.0, 3.0, 2.0, 4.0], better="lower", wanted=2.5)
    assert got == {"median": 3.0, "low": 2.0, "high": 4.0, "better": "lower", "wanted": 2.5}
    assert _timing.spread(2, better="higher")["low"] == 2.0
    with pytest.raises(ValueError, match="better must be"):
        _timing.spread([1.0], better="up")
    row = {"ratio": 0.5, "ratio_low": 0.4, "ratio_high": 0.8}
    inverse = _timing.quartiles(row, better="higher", inverse=True)
    assert (inverse["low"], inverse["median"], inverse["high"]) == (1.25, 2.0, 2.5)


def test_race_takes_turns():
    order = []
    ticks = iter(range(100))
    times = _timing.race(
        {"a": lambda: order.append("a"), "b": lambda: order.append("b")},
        {"a": 3, "b": 1},
        clock=lambda: next(ticks),
    )
    assert order == ["a", "b", "a", "b", "a", "a"]  # one call each to see how long it takes
    assert times == {"a": [1, 1, 1], "b": [1]}


def test_race_repeats_what_is_short_on_caches_of_its_own():
    now, order = [0.0], []

    def work(name, seconds):
        def run():
            order.append(name)
            now[0] += seconds

        return run

    times = _timing.race(
        {"short": work("s", 0.005), "long": work("l", 1.0)}, {"short": 2, "long": 1}, clock=lambda: now[0]
    )
    assert "".join(order) == "ss" + "l" + "s" + "ssss" + "l" + "s" + "ssss"
    assert times["short"] == pytest.approx([0.005, 0.005])
    assert times["long"] == pytest.approx([1.0])


@pytest.mark.skipif(shutil.which("gcc") is None, reason="no gcc")
def test_the_reference_leaves_small_numbers_alone():
    _rivals.build(True)
    assert np.float64(5e-324) * np.float64(1.0) > 0.0
    assert float(torch.tensor(1e-40) * 1.0) > 0.0


def test_memory_is_that_of_the_work():
    found = _memory.above_import("import numpy", "numpy.ones(8_000_000)")
    assert 60 < found < 80
    assert _memory.above_import("import a_module_that_is_not", "") is None
    with pytest.raises(RuntimeError, match="ZeroDivisionError"):
        _memory.above_import("pass", "1 / 0")


RIVALS = ["numpy", "sdekit"]
NATIVE = ["C", "C, Philox", "C, path by path", "C, double", "C, Philox, double", "C, path by path, double"]
needs_gcc = pytest.mark.skipif(shutil.which("gcc") is None, reason="no gcc")


@pytest.mark.parametrize("rival", [*RIVALS, *(pytest.param(n, marks=needs_gcc) for n in NATIVE)])
@pytest.mark.parametrize("name", ["ou", "gbm", "heston"])
def test_rivals_solve_the_equation(name, rival):
    """Six standard errors, two or three moments each of about normal law: 2e-8 for all 24 cases."""
    problem = _rivals.PROBLEMS[name]
    x = _rivals.RIVALS[rival](problem, 400_000, 20)()
    assert x.shape == (400_000, problem.dim)
    assert ensembles.deviation(x, ensembles.moments(problem, 20)) < 6.0


@needs_gcc
@pytest.mark.parametrize("rival", NATIVE)
def test_numbers_of_the_c_program_are_normal(rival):
    """One step of dX = -X dt + 0.5 dW over a unit of time leaves 0.5 z. False alarms: 1e-6 each."""
    x = _rivals.RIVALS[rival](_rivals.PROBLEMS["ou"], 100_000, 1)()
    z = 2.0 * x[:, 0].astype(np.float64)
    assert scipy.stats.kstest(z, "norm").pvalue > 1e-6
    assert (
        scipy.stats.binomtest(int((np.abs(z) > 3.5).sum()), 100_000, 2 * scipy.stats.norm.sf(3.5)).pvalue
        > 1e-6
    )
    assert abs(np.corrcoef(z[:-1], z[1:])[0, 1]) < 6 / np.sqrt(1e5)


@needs_gcc
@pytest.mark.parametrize("rival", ["numpy", "sdekit", *NATIVE])
def test_rivals_agree_on_lorenz(rival):
    """One step of a unit of time from (1, 1, 1): mean x + f, variance 1, within 6 s.e. (1e-8 each)."""
    x = _rivals.RIVALS[rival](_rivals.PROBLEMS["lorenz"], 20_000, 1)()
    expected = [(k, "mean", m, 0.0) for k, m in enumerate([1.0, 27.0, -2.0 / 3.0])]
    expected += [(k, "variance", 1.0, 0.0) for k in range(3)]
    assert ensembles.deviation(x, expected) < 6.0


def test_a_rival_that_solves_another_equation_is_found():
    problem = _rivals.PROBLEMS["gbm"]
    x = _rivals.RIVALS["numpy"](problem, 20_000, 20)()
    expected = ensembles.moments(problem, 20)
    assert ensembles.deviation(x, expected) < 6.0
    assert ensembles.deviation(x + 0.05, expected) > 6.0
    assert ensembles.deviation(np.full_like(x, np.nan), expected) == np.inf


def test_ratios_take_the_fastest_c():
    seconds = {
        "sdekit": [2.0, 2.0, 2.0],
        "sdekit, double": [4.0, 4.0, 4.0],
        "C": [1.0, 1.0, 1.0],
        "C, path by path": [0.5, 0.5, 0.5],
        "C, double": [2.0, 2.0, 2.0],
        "torchsde": [100.0],
    }
    found = ensembles.ratios("ou", seconds)
    assert set(found) == {"ou: C", "ou: C, double", "ou: torchsde"}
    assert found["ou: C"]["median"] == 0.25
    assert found["ou: C, double"]["median"] == 0.5
    assert found["ou: torchsde"] == {
        "median": 50.0,
        "low": 50.0,
        "high": 50.0,
        "better": "higher",
        "wanted": 30.0,
    }
    assert ensembles.ratios("ou", {"C": [1.0]}) == {}


@needs_gcc
@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float32, 4e-6), (np.float64, 1e-13)])
def test_pairs_of_the_c_program_are_box_mullers(dtype, tolerance):
    rng = np.random.default_rng(0)
    w, v = (rng.integers(0, 2**32, 4096, dtype=np.uint32) for _ in range(2))
    z = np.empty(8192, dtype)
    single = dtype is np.float32
    arrays = [ctypes.c_void_p(a.ctypes.data) for a in (w, v, z)]
    _rivals.build(single).pairs(*arrays, ctypes.c_long(4096))
    u = ((w >> 8).astype(float) + 1) / 2**24 if single else (w.astype(float) + 0.5) / 2**32
    radius, angle = np.sqrt(-2 * np.log(u)), 2 * np.pi * v.astype(float) / 2**32
    expected = np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])
    np.testing.assert_allclose(z, expected, rtol=0, atol=tolerance)


@needs_gcc
def test_words_of_the_c_program_are_those_of_the_definitions():
    out = np.empty(64, np.uint64)
    library = _rivals.build(True)
    library.xoshiro_words(ctypes.c_uint64(7), ctypes.c_void_p(out.ctypes.data), ctypes.c_long(8))
    mask, state, seeds = 2**64 - 1, 7, []
    for _ in range(32):  # splitmix64
        state = (state + 0x9E3779B97F4A7C15) & mask
        z = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & mask
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
        seeds.append(z ^ (z >> 31))
    for lane in range(8):
        s = [seeds[lane + 8 * k] for k in range(4)]
        for turn in range(8):
            assert int(out[8 * turn + lane]) == (s[0] + s[3]) & mask
            t = (s[1] << 17) & mask
            s[2] ^= s[0]
            s[3] ^= s[1]
            s[1] ^= s[2]
            s[0] ^= s[3]
            s[2] ^= t
            s[3] = ((s[3] << 45) | (s[3] >> 19)) & mask
    # Random123's vectors of philox4x32-10
    words = np.empty(4, np.uint32)
    for counter, key, expected in (
        ([0] * 4, [0] * 2, [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            [0xA4093822, 0x299F31D0],
            [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
        ),
    ):
        given = [np.array(a, np.uint32) for a in (counter, key)]
        library.philox_block(*(ctypes.c_void_p(a.ctypes.data) for a in (*given, words)))
        assert words.tolist() == expected
