"""The command line: the whole demo at a small scale, the tables, and what a missing package leads to."""

from __future__ import annotations

import json
import sys

import pytest
import torch
from typer.testing import CliRunner

import sdekit as sk
from sdekit.certify import certify
from sdekit.certify.metrics import energy_distance
from sdekit.cli import demo as demo_module
from sdekit.cli.app import app
from sdekit.cli.main import main
from sdekit.cli.quality import judge
from sdekit.matching import load
from sdekit.samplers import samplers
from sdekit.solvers import solvers

FILES = ("digits.png", "certificate.png", "digits.safetensors", "summary.json")


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    """One run of `sdekit demo --quick`: (folder, what was printed, the summary)."""
    out = tmp_path_factory.mktemp("demo") / "deep"
    result = CliRunner().invoke(
        app, ["demo", "--quick", "--out", str(out), "--seed", "3"], catch_exceptions=False
    )
    assert result.exit_code == 0, result.output
    return out, result.output, json.loads((out / "summary.json").read_text())


def test_the_demo_writes_its_files_and_says_what_to_try_next(quick):
    out, printed, _ = quick
    for name in FILES:
        assert (out / name).stat().st_size > 1000
        assert name in printed.replace("\n", "")
    for name in FILES[:2]:
        assert (out / name).read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert "Try next" in printed
    assert "kernel-quadrature" in printed


def test_the_summary_holds_every_figure(quick):
    _, _, figures = quick
    assert (figures["seed"], figures["quick"]) == (3, True)
    training = figures["training"]
    assert training["process"]["name"] == "VP"
    assert training["predicts"] == "eps"
    assert training["held_out"][-1] < training["held_out"][0]
    assert 0.5 < training["data_std"] < 0.6
    assert 1.1 < training["data_spread"] < 1.3
    runs = figures["samples"]
    assert [run["nfe"] for run in runs.values()][:2] == [10, 20]
    for run in runs.values():
        assert run["seconds"] > 0
        assert sum(run["labels"]) == demo_module.QUICK.samples
        assert run["legible_real"] > 0.8
        assert run["closest_real"] > 0.3
    assert set(figures["certificates"]) == {row.name for row in samplers()} - {"rk45"}
    assert "low" in figures["certificates"]["pc"][0]
    at_five = {name for name, found in figures["certificates"].items() if len(found) == 2}
    for name, found in figures["certificates"].items():  # 5 and 10 evaluations, where one interval costs less
        least = sk.plan(name, sk.VP(), steps=1).nfe
        assert (name in at_five) == (least <= 5)
        assert found[-1]["nfe"] <= 10


def test_the_summary_s_certificates_are_those_of_the_library(quick):
    _, _, figures = quick
    train, _, held = demo_module.digits(3)
    target = sk.Gaussian.from_data(torch.cat([train, held]))
    for name in ("kernel-quadrature", "ancestral"):
        for found in figures["certificates"][name]:
            exact = certify(name, target, sk.VP(), nfe=found["nfe"])
            assert found["w2"] == pytest.approx(exact.w2, rel=1e-6)
            assert found["kl"] == pytest.approx(exact.kl, rel=1e-6)


def test_the_saved_network_samples_again(quick):
    out, _, _ = quick
    model = load(out / "digits.safetensors")
    x = sk.sample(model, (3, 1, 8, 8), nfe=5).x
    assert x.shape == (3, 1, 8, 8)
    assert torch.isfinite(x).all()


def test_the_data_are_the_real_digits():
    train, labels, held = demo_module.digits(0)
    assert (train.shape, held.shape) == ((1617, 1, 8, 8), (180, 1, 8, 8))
    assert (float(train.min()), float(train.max())) == (-1.0, 1.0)
    assert torch.bincount(labels).min() > 140
    everything = torch.cat([train, held]).flatten(1)
    assert len(torch.unique(everything, dim=0)) == 1797  # nothing is in both
    other, _, _ = demo_module.digits(1)
    assert not torch.equal(train, other)


def test_quality_tells_real_digits_noise_and_copies_apart():
    """Real digits stay below the 95 % line (fixed split), noise lies far above, copies have distance 0."""
    train, labels, held = demo_module.digits(0)
    real = judge(held[:90], train, labels, held[90:], repeats=50)
    noise = judge(torch.randn(90, 1, 8, 8), train, labels, held, repeats=50)
    copies = judge(train[:90], train, labels, held, repeats=50)
    assert abs(real.energy) < real.energy_floor < 0.2 * noise.energy
    assert real.legible > 0.85 > 0.6 > noise.legible
    assert real.closest > 0.3
    assert copies.nearest < 1e-4
    assert sum(real.labels) == 90


def test_the_energy_distance_of_two_gaussians():
    """Unit normals a apart on the line: E|X - Y| = 2 phi(a/s) s + a (2 Phi(a/s) - 1), s = sqrt(2).

    50,000 points would hold 1 %; 4,000 hold 4 % (fixed seed, 4 standard errors).
    """
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, 4000, 1, generator=generator, dtype=torch.float64)
    s, a = 2**0.5, torch.tensor(1.5, dtype=torch.float64)
    normal = torch.distributions.Normal(torch.tensor(0.0).double(), 1.0)
    between = 2 * s * normal.log_prob(a / s).exp() + a * (2 * normal.cdf(a / s) - 1)
    within = 2 * s * normal.log_prob(torch.tensor(0.0).double()).exp()
    assert energy_distance(x, y + a, repeats=0).value == pytest.approx(
        float(2 * between - 2 * within), rel=0.04
    )


def test_list_shows_every_sampler_and_solver(monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    result = CliRunner().invoke(app, ["list"])
    assert result.exit_code == 0
    for row in [*samplers(), *solvers()]:
        assert row.name in result.output


def test_list_is_readable_in_eighty_columns(monkeypatch):
    """Names whole, references broken between words only, and no row taller than four lines."""
    monkeypatch.setenv("COLUMNS", "80")
    lines = CliRunner().invoke(app, ["list"]).output.splitlines()
    assert max(map(len, lines)) <= 80
    words = {word for line in lines for word in line.split()}
    starts = {line.split()[0]: k for k, line in enumerate(lines) if line.strip()}
    for row in [*samplers(), *solvers()]:
        assert row.name in starts
        assert set(row.reference.split()) <= words
    assert "class" not in words
    tallest = max(b - a for a, b in zip(sorted(starts.values()), sorted(starts.values())[1:], strict=False))
    assert tallest <= 4
    monkeypatch.setenv("COLUMNS", "200")
    assert "KernelQuadrature" in CliRunner().invoke(app, ["list"]).output


def test_version_and_help():
    result = CliRunner().invoke(app, ["version"])
    assert result.output.startswith("sdekit ")
    assert torch.__version__ in result.output
    assert "demo" in CliRunner().invoke(app, ["--help"]).output


def test_a_missing_package_stops_the_demo_before_any_work(monkeypatch, tmp_path):
    monkeypatch.setattr(demo_module, "find_spec", lambda name: None if name == "sklearn" else object())
    result = CliRunner().invoke(app, ["demo", "--quick", "--out", str(tmp_path / "no")])
    assert result.exit_code == 1
    assert "pip install 'sdekit[demo]'" in " ".join(result.stderr.split())
    assert not (tmp_path / "no").exists()


def test_without_typer_the_command_says_how_to_install_it(monkeypatch, capsys):
    monkeypatch.delitem(sys.modules, "sdekit.cli.app")
    monkeypatch.setitem(sys.modules, "typer", None)
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 1
    assert "pip install 'sdekit[demo]'" in capsys.readouterr().err


@pytest.mark.slow
def test_the_full_demo_makes_digits(tmp_path):
    """The demo as people run it: samples at chance level or near it, legible, and no copies."""
    figures = demo_module.run(tmp_path)
    assert figures["training"]["held_out"][-1] < 0.09
    for run in figures["samples"].values():
        assert run["energy"] < 2 * run["energy_floor"]
        assert run["legible"] > 0.6
        assert run["nearest"] > 0.8 * run["nearest_real"]
        assert min(run["labels"]) > 0
