"""`sdekit certify` and `sdekit compare`: figures equal the library's; the page holds up in a real browser."""

from __future__ import annotations

import itertools
import json
import re
import shlex
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import sdekit as sk
from sdekit.certify import certify
from sdekit.cli import svg
from sdekit.cli.app import app
from sdekit.cli.problem import WordError, parse_process, parse_target
from sdekit.errors import UnknownNameError

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
TARGET = "gaussian:d=16,spectrum=1/k^2,scale=0.7,mean=0.2"


def call(*words, width="160", code=0):
    result = CliRunner(env={"COLUMNS": width}).invoke(app, list(words))
    assert result.exit_code == code, result.output + result.stderr
    return result


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A comparison with every kind of result: (folder, printed, figures, page)."""
    out = tmp_path_factory.mktemp("report") / "new"
    files = [str(out / f"r.{kind}") for kind in ("json", "png", "html")]
    printed = call(
        "compare", "heun", "kernel-quadrature", "ancestral", "pc", "--target", TARGET, "--nfe", "1,8,5,20",
        "--monte-carlo", "400", "--json", files[0], "--png", files[1], "--html", files[2],
    ).output  # fmt: skip
    return out, printed, json.loads((out / "r.json").read_text()), (out / "r.html").read_text()


# Figures.


def target():
    k = torch.arange(1, 17, dtype=torch.float64)
    return sk.Gaussian(torch.full((16,), 0.2, dtype=torch.float64), variance=0.7**2 * k**-2.0)


def test_every_figure_is_the_library_s(made):
    _, _, figures, _ = made
    exact = [r for r in figures["results"] if r["kind"] == "exact"]
    assert len(exact) == 11  # heun from 2 evaluations on, two samplers at all four, pc by Monte Carlo
    for r in exact:
        c = certify(r["sampler"], target(), sk.VP(), nfe=r["nfe"])
        assert (r["evaluations"], r["w2"], r["kl"], r["frechet"]) == (c.nfe, c.w2, c.kl, c.frechet)
        for part in ("initial", "discretization", "score_error", "truncation"):
            assert r[part] == getattr(c, part).norm
    sampled = [r for r in figures["results"] if r["kind"] == "monte-carlo"]
    for r in sampled:
        c = sk.certify_monte_carlo("pc", target(), sk.VP(), nfe=r["nfe"], samples=400, seed=0)
        assert (r["w2"], r["low"], r["high"], r["samples"]) == (c.w2, c.low, c.high, c.samples)
    assert figures["budgets"] == [1, 5, 8, 20]
    assert figures["process"] == sk.VP().spec()
    assert figures["target"]["dimension"] == 16
    assert figures["versions"]["torch"] == torch.__version__


def test_one_sampler_with_every_direction_and_setting(tmp_path):
    file = tmp_path / "c.json"
    call("certify", "ancestral", "--target", TARGET, "--process", "vp:beta_max=15", "--steps", "6", "--grid",
         "karras", "--end", "clean", "--against", "t_min", "--json", str(file))  # fmt: skip
    figures = json.loads(file.read_text())
    c = certify(
        "ancestral", target(), sk.VP(beta_max=15), steps=6, grid="karras", end="clean", against="t_min"
    )
    (r,) = figures["results"]
    assert (r["w2"], r["steps"], r["truncation"]) == (c.w2, 6, 0.0)
    assert r["mean_error"] == c.error.mean.tolist()
    assert r["std_error"] == c.error.std.tolist()
    assert figures["target"]["eigenvalues"] == target().eigenvalues.tolist()


def test_the_table_shows_the_figures_and_the_best_first(made):
    _, printed, figures, _ = made
    rows = {line.split()[0]: line for line in printed.splitlines() if line.strip()}
    for r in figures["results"]:
        if r["kind"] == "exact":
            assert f"{r['w2']:.4g}" in rows[r["sampler"]]
    w2 = {r["sampler"]: r["w2"] for r in figures["results"] if r["nfe"] == 20}
    order = [name for name in rows if name in w2]
    assert order == sorted(w2, key=w2.get)
    assert "±" in rows["pc"]
    assert " - " in rows["heun"]
    assert "too few evaluations" in printed


def test_certify_prints_the_parts():
    printed = call("certify", "heun", "--target", TARGET, "--nfe", "20").output
    c = certify("heun", target(), sk.VP(), nfe=20)
    for value in (f"{c.w2:.6g}", f"{c.discretization.norm:.4g}", f"{c.truncation.norm:.4g}", f"{c.kl:.6g}"):
        assert value in printed
    assert "score error" not in printed


def test_refused_samplers_stay_in_the_table_with_their_reason(tmp_path):
    file = tmp_path / "r.html"
    printed = call("compare", "pc", "heun", "--target", TARGET, "--nfe", "10", "--html", str(file)).output
    assert re.search(r"pc +refused", printed)
    assert "pc: refused. 'pc' applies 'langevin-norm'" in printed
    assert "--monte-carlo" in printed
    assert "refused" in file.read_text()


def test_a_sampler_that_cannot_do_the_process_does_not_stop_the_others(monkeypatch):
    printed = call("compare", "er-sde", "heun", "--process", "rectified-flow", "--nfe", "10").output
    assert "heun" in printed
    everything = call("compare", "--process", "edm", "--target", TARGET, "--nfe", "10").output
    for name in ("kernel-quadrature", "pc", "ddim"):
        assert name in everything


# Errors: one paragraph, exit status 1.


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("compare", "huen"), "unknown sampler 'huen'. Nearest: 'heun'"),
        (("certify", "rk45"), "'rk45' is adaptive"),
        (("certify", "heun", "--process", "vpp"), "unknown process 'vpp'. Nearest: 'vp'"),
        (("certify", "heun", "--process", "vp:beta=3"), "takes beta_min, beta_max"),
        (("certify", "heun", "--process", "vp:beta_max=x"), "expected a number, got 'x'"),
        (("certify", "heun", "--target", "gausian"), "unknown target 'gausian'. Nearest: 'gaussian'"),
        (("certify", "heun", "--target", "gaussian:d=2.5"), "d must be a whole number"),
        (("certify", "heun", "--target", "gaussian:dim=2"), "unknown setting 'dim'"),
        (("certify", "heun", "--target", "gaussian:64"), "settings are key=value"),
        (("certify", "heun", "--target", "gaussian:spectrum=k"), "spectrum must be flat, 1/k"),
        (("certify", "heun", "--target", "texture:photo=cat"), "unknown photo 'cat'"),
        (("certify", "heun", "--target", "texture:size=9999"), "size must be at most"),
        (("certify", "heun", "--target", "no.pt"), "no file 'no.pt'"),
        (("certify", "heun", "--grid", "karas"), "unknown grid 'karas'. Nearest: 'karras'"),
        (("certify", "heun", "--nfe", "ten"), "--nfe must be whole numbers"),
        (("certify", "heun", "--steps", "0"), "--steps must be whole numbers"),
        (("certify", "heun", "--nfe", "4", "--steps", "2"), "two ways to say one thing"),
        (("certify", "heun", "--nfe", "1"), "needs 2 evaluations"),
        (("certify", "heun", "--end", "t_max"), "--end must be t_min or clean"),
        (("certify", "heun", "--against", "truth"), "against must be 'data' or 't_min'"),
        (("certify", "heun", "--json", "/dev/null/x.json"), "cannot write"),
        (("certify", "pc", "--png", "x.png"), "no figures to draw"),
    ],
    ids=lambda v: v if isinstance(v, str) else None,
)  # fmt: skip
def test_errors_are_one_paragraph(words, said):
    result = call(*words, code=1)
    assert result.stderr.startswith("error ")
    assert said in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


def test_without_matplotlib_the_picture_says_how_to_install_it(monkeypatch, tmp_path):
    for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    result = call("certify", "heun", "--target", TARGET, "--png", str(tmp_path / "x.png"), code=1)
    assert "pip install 'sdekit[demo]'" in result.stderr


# Words.


def test_targets_by_word(tmp_path):
    torch.testing.assert_close(parse_target(TARGET).eigenvalues, target().eigenvalues)
    assert float(parse_target("gaussian:d=3,spectrum=flat").eigenvalues.sum()) == 3.0
    assert parse_target("gaussian").dimension == 64
    digits = parse_target("digits")
    assert tuple(digits.event_shape) == (1, 8, 8)
    texture = parse_target("texture:photo=flower.jpg,size=16")
    assert tuple(texture.event_shape) == (3, 16, 16)
    data = torch.randn(50, 2, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    torch.save(data, tmp_path / "data.pt")
    np.save(tmp_path / "data.npy", data.numpy())
    for name in ("data.pt", "data.npy"):
        torch.testing.assert_close(parse_target(str(tmp_path / name)).cov, sk.Gaussian.from_data(data).cov)
    law = {"mean": np.ones(2), "cov": np.diag([1.0, 2.0])}
    np.savez(tmp_path / "law.npz", **law)
    torch.save({k: torch.as_tensor(v) for k, v in law.items()}, tmp_path / "law.pt")
    for name in ("law.npz", "law.pt"):
        made = parse_target(str(tmp_path / name))
        assert (made.mean.tolist(), made.cov.tolist()) == ([1.0, 1.0], [[1.0, 0.0], [0.0, 2.0]])
    np.savez(tmp_path / "two.npz", a=np.ones(2), b=np.ones(2))
    with pytest.raises(WordError, match=r"one array of data, or arrays named mean and cov, got \['a', 'b'\]"):
        parse_target(str(tmp_path / "two.npz"))
    np.save(tmp_path / "line.npy", np.ones(3))
    with pytest.raises(ValueError, match=r"shape \(N, \*event\)"):
        parse_target(str(tmp_path / "line.npy"))


def test_processes_by_word():
    assert parse_process("vp:beta_min=0.2,beta_max=10").spec() == sk.VP(0.2, 10.0).spec()
    assert parse_process("edm").spec() == sk.EDM().spec()
    with pytest.raises(UnknownNameError, match="rectified-flow"):
        parse_process("flow")


# The page.


def test_the_page_is_self_contained(made):
    _, _, _, page = made
    assert page.startswith("<!doctype html>")
    for attribute in re.findall(r'(?:src|href|action|data|poster)\s*=\s*["\']?([^"\'\s>]+)', page):
        assert not attribute.startswith(("http", "//")), attribute
    assert not re.findall(r"url\((?!#)|@import|<link|<iframe|<img", page)
    for address in re.findall(r"https?://[^\s\"'<]+", page):
        assert address == "http://www.w3.org/2000/svg"  # a name, never fetched


def test_the_page_shows_the_figures(made):
    _, _, figures, page = made
    for r in figures["results"]:
        if r["kind"] in ("exact", "monte-carlo"):
            assert f'data-v="{r["w2"]!r}"' in page
        if r["kind"] == "exact" and r["nfe"] == 20:
            assert f'data-v="{r["discretization"]!r}"' in page
            assert f'data-v="{r["kl"]!r}"' in page
    assert shlex.split(figures["command"])[0] == "sdekit"
    for word in ("Method", "torch " + torch.__version__, "400 samples", "prefers-color-scheme: dark"):
        assert word in page
    best = min(r["w2"] for r in figures["results"] if r["kind"] == "exact" and r["nfe"] == 20)
    assert f"<b>{best:.4g}</b>" in page


def test_the_page_of_one_sampler_splits_every_budget(tmp_path):
    out = tmp_path / "x.html"
    call("certify", "ddim", "--target", TARGET, "--nfe", "5,10", "--html", str(out))
    page = out.read_text()
    for n in (5, 10):
        c = certify("ddim", target(), sk.VP(), nfe=n)
        assert f"<th scope=row>ddim, {n}</th>" in page
        assert f'data-v="{c.initial.norm!r}"' in page
    assert "<title>Certificate: ddim</title>" in page


def test_words_from_the_user_are_escaped(tmp_path):
    path, out = tmp_path / "<b>&.npy", tmp_path / "x.html"
    np.save(path, np.random.default_rng(0).normal(size=(20, 2)))
    call("certify", "ddim", "--target", str(path), "--html", str(out))
    assert "&lt;b&gt;&amp;.npy" in out.read_text()
    assert "<b>&.npy" not in out.read_text()


def browser():
    found = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip(f"needs a browser: none of {', '.join(BROWSERS)} is installed")
    return found


def browse(tmp_path, *options):
    """Run the browser headless, without a network: (stdout, its log)."""
    done = subprocess.run(
        [browser(), "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
         f"--user-data-dir={tmp_path / 'profile'}", "--hide-scrollbars", "--enable-logging=stderr", "--v=0",
         "--host-resolver-rules=MAP * ~NOTFOUND", *options],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    return done.stdout, done.stderr


def test_a_real_browser_renders_the_tables_and_figures(made, tmp_path):
    """The script runs: after a click on a heading the rows are in its order. The console stays silent."""
    out, _, figures, page = made
    probe = tmp_path / "probe.html"
    click = (
        "<script>const t = document.querySelector('#errors table');"
        "const h = t.tHead.rows[0].cells, rows = () => [...t.tBodies[0].rows];"
        "h[0].click(); const up = rows().map(r => r.cells[0].textContent);"
        "h[4].click(); const by = rows().map(r => r.cells[4].dataset.v);"
        "const box = s => { const b = document.querySelector(s).getBoundingClientRect();"
        " return b.width > 300 && b.height > 80; };"
        "document.body.dataset.probe = JSON.stringify({up, by,"
        " seen: ['#figure-error svg', '#figure-spectrum svg', '#figure-split svg', '#errors table'].map(box),"
        " requests: performance.getEntriesByType('resource').length,"
        " wide: document.documentElement.scrollWidth > innerWidth});</script>"
    )
    probe.write_text(page.replace("</body>", click + "</body>"))
    dom, log = browse(tmp_path, "--dump-dom", "--window-size=1000,1400", probe.as_uri())
    text = re.search(r'data-probe="([^"]*)"', dom).group(1).replace("&quot;", '"')
    seen = json.loads(text)
    names = {r["sampler"] for r in figures["results"]}
    assert seen["up"] == sorted(names)
    values = [float(v) for v in seen["by"]]
    assert values == sorted(values)
    assert len(values) == 4
    assert seen["seen"] == [True] * 4
    assert (seen["requests"], seen["wide"]) == (0, False)
    assert "CONSOLE" not in log
    assert dom.count("<polyline") >= 6
    assert out.exists()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_is_drawn_in_light_and_in_dark(made, tmp_path, scheme):
    from PIL import Image

    out, _, _, _ = made
    shot = tmp_path / "shot.png"
    setting = f"--blink-settings=preferredColorScheme={int(scheme == 'light')}"
    browse(tmp_path, setting, f"--screenshot={shot}", "--window-size=900,1200", (out / "r.html").as_uri())
    pixels = np.asarray(Image.open(shot).convert("RGB")).astype(float)
    assert pixels.shape == (1200, 900, 3)
    paper = np.median(pixels.reshape(-1, 3), axis=0)
    assert (paper.mean() > 240) == (scheme == "light")
    assert (paper.mean() < 40) == (scheme == "dark")
    ink = np.abs(pixels - paper).sum(-1) > 150
    assert ink.mean() > 0.01  # text and lines
    colour = pixels.max(-1) - pixels.min(-1) > 60
    assert colour[300:].any()  # the figure's lines


# Charts.


def test_scales_map_decades_evenly_and_stay_in_range():
    scale = svg.Scale(1.0, 100.0, 0.0, 200.0)
    assert [scale(v) for v in (1.0, 10.0, 100.0)] == pytest.approx([0.0, 100.0, 200.0])
    assert scale(1e30) == 300.0
    assert scale.ticks() == [1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0]
    assert svg.Scale(0.6, 2.0, 0, 1).ticks() == pytest.approx([0.7, 1.0, 1.5, 2.0])
    assert len(svg.Scale(1e-12, 1e3, 0, 1).ticks()) <= 9
    assert svg.span([float("nan"), 0.0, 2.0, 8.0, 1e30], cap=40.0)[1] < 1e3
    assert svg.span([]) == (0.1, 1.0)


def test_a_chart_of_unstable_samplers_is_still_drawn():
    wild = svg.Series("wild", [5.0, 10.0], [float("inf"), 1e30])
    calm = svg.Series("calm", [5.0, 10.0], [0.1, 0.01])
    drawn = svg.lines([wild, calm, svg.Series("none", [], [])], "x", "y", "title")
    assert drawn.count("<polyline") == 2
    assert "NaN" not in drawn
    assert "inf," not in drawn


def test_labels_do_not_overlap():
    ends = [svg.Series(f"s{k}", [1.0, 2.0], [1.0, 1.0 + 1e-3 * k]) for k in range(12)]
    drawn = svg.lines([*ends, svg.Series("low", [1.0, 2.0], [0.01, 0.01])], "x", "y", "title")
    at = sorted(float(y) for y in re.findall(r'class="name c\d" x="[\d.]+" y="([\d.]+)"', drawn))
    assert len(at) == 13
    assert min(b - a for a, b in itertools.pairwise(at)) >= svg.LEADING - 0.2
    assert max(at) <= svg.HEIGHT


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".pt", ".safetensors"])
def test_a_damaged_file_is_named(suffix, tmp_path):
    path = tmp_path / f"data{suffix}"
    path.write_text("no numbers")
    with pytest.raises(WordError, match="cannot read"):
        parse_target(str(path))


@pytest.mark.parametrize("d", ["1e9", "nan", "2.5"])
def test_dimensions_out_of_range(d):
    with pytest.raises(WordError, match="d must be"):
        parse_target(f"gaussian:d={d}")
