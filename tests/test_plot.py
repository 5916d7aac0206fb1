"""Pictures: what is drawn, on which Axes, with which words; no window is opened, no warning raised."""

from __future__ import annotations

import sys
from dataclasses import replace

import matplotlib as mpl
import numpy as np
import pytest
import torch

import sdekit as sk
from sdekit import plot
from sdekit.certify import certify, certify_monte_carlo
from sdekit.errors import OptionalDependencyError, ShapeError
from sdekit.matching import FitResult
from sdekit.score import Denoiser

mpl.use("Agg")
from matplotlib import pyplot


@pytest.fixture(autouse=True)
def closed():
    yield
    pyplot.close("all")


@pytest.fixture
def ax():
    return pyplot.subplots()[1]


@pytest.fixture(scope="module")
def certificates():
    target = sk.Gaussian(torch.zeros(4, dtype=torch.float64), variance=0.25)
    exact = [certify(name, target, sk.VP(), nfe=n) for n in (20, 5, 10) for name in ("ddim", "ancestral")]
    return [*exact, certify_monte_carlo("pc", target, sk.VP(), nfe=10, samples=200)]


def test_image_grid_puts_every_pixel_in_its_place(ax):
    images = torch.linspace(-1, 1, 5 * 6).reshape(5, 2, 3)
    assert plot.image_grid(images, ax, columns=3, title="five") is ax
    picture = ax.images[0].get_array()
    assert picture.shape == (2 * 3 + 1, 3 * 4 + 1)
    for i, image in enumerate(images):
        top, left = i // 3 * 3 + 1, i % 3 * 4 + 1
        np.testing.assert_allclose(picture[top : top + 2, left : left + 3], (image + 1) / 2, atol=1e-6)
    assert (picture[0] == 0).all()
    assert (plot.image_grid(images, background=1.0, gap=2).images[0].get_array()[:2] == 1).all()
    assert ax.get_title() == "five"
    assert not ax.axison


def test_image_grid_takes_colours_arrays_and_ranges():
    red = np.zeros((2, 3, 4, 4))
    red[:, 0] = 255.0
    picture = plot.image_grid(red, value_range=(0, 255)).images[0].get_array()
    assert picture.shape == (6, 11, 3)
    assert picture[1, 1].tolist() == [1.0, 0.0, 0.0]
    assert plot.image_grid(torch.full((1, 1, 2, 2), 9.0)).images[0].get_array().max() == 1.0  # clipped


@pytest.mark.parametrize("shape", [(4, 4), (2, 2, 4, 4), (0, 1, 4, 4), (1, 1, 1, 4, 4)])
def test_image_grid_names_a_wrong_shape(shape):
    with pytest.raises(ShapeError, match=r"images must have shape \(N, H, W\)"):
        plot.image_grid(torch.zeros(shape))


def test_certificate_draws_one_sorted_line_a_sampler(ax, certificates):
    assert plot.certificate(certificates, ax, highlight="ddim") is ax
    lines = {line.get_label(): line for line in ax.get_lines()}
    for name in ("ddim", "ancestral"):
        own = sorted((c.nfe, c.w2) for c in certificates if c.plan.sampler == name)
        assert list(zip(*lines[name].get_data(), strict=True)) == own
    assert lines["ddim"].get_linestyle() == "-"
    assert lines["ancestral"].get_linestyle() == "--"
    assert lines["ddim"].get_linewidth() > lines["ancestral"].get_linewidth()
    assert (ax.get_xscale(), ax.get_yscale()) == ("log", "log")
    assert "NFE" in ax.get_xlabel()
    assert "data units" in ax.get_ylabel()
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    ends = {"pc (Monte Carlo)": certificates[-1].w2}
    ends |= {c.plan.sampler: c.w2 for c in certificates if c.plan.nfe == 20}
    assert labels[:3] == sorted(ends, key=lambda name: -ends[name])
    assert labels[3].startswith("exact law at")
    level = float(lines["exact law at $t_{min}$"].get_ydata()[0])
    assert level == pytest.approx(certificates[0].truncation.norm)
    ax.figure.canvas.draw()


def test_certificate_gives_every_sampler_its_own_look(certificates):
    base = certificates[0]
    many = [replace(base, name=f"s{k}", nfe=c.nfe) for k in range(14) for c in certificates[:2]]
    ax = plot.certificate(many, floor=False)
    looks = {(line.get_color(), line.get_marker(), line.get_linestyle()) for line in ax.get_lines()}
    assert len(looks) == len(ax.get_lines()) == 14


def test_one_unstable_sampler_does_not_squeeze_the_others(ax, certificates):
    class Wild:
        name, nfe, stochastic, w2 = "wild", 20, False, 1e30

    values = [c.w2 for c in certificates]
    plot.certificate([*certificates[2:], Wild()], ax, floor=False)
    assert max(values) < ax.get_ylim()[1] < 1e4


def test_certificate_refuses_nothing():
    with pytest.raises(ValueError, match="no certificates"):
        plot.certificate([])


def test_spectrum_draws_the_errors_that_add_up_to_w2(ax):
    target = sk.Gaussian(torch.ones(5), variance=torch.tensor([0.1, 2.0, 0.5, 1.0, 0.3]))
    given = [certify(name, target, sk.VP(), nfe=8) for name in ("ddim", "ancestral")]
    assert plot.spectrum(given, ax) is ax
    for line, c in zip(ax.get_lines(), given, strict=True):
        x, y = line.get_data()
        assert list(x) == [1, 2, 3, 4, 5]
        assert float(np.sum(np.square(y))) == pytest.approx(c.frechet)
        order = [1, 3, 2, 4, 0]  # most variance first
        expected = torch.hypot(c.error.mean, c.error.std)[order]
        np.testing.assert_allclose(y, expected, rtol=1e-12)
    assert [line.get_linestyle() for line in ax.get_lines()] == ["-", "--"]
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["ddim, 8", "ancestral, 8"]
    ax.figure.canvas.draw()


def test_split_draws_the_norm_of_every_part(ax, certificates):
    given = [c for c in certificates[:-1] if c.nfe == 10]
    assert plot.split(given, ax) is ax
    lines = {line.get_label(): list(line.get_xdata()) for line in ax.get_lines()}
    assert lines["W2"] == [c.w2 for c in given]
    for part in ("initial", "discretization", "truncation"):
        assert lines[part] == [getattr(c, part).norm for c in given]
    assert "score error" not in lines
    assert [text.get_text() for text in ax.get_yticklabels()] == [f"{c.name}, 10" for c in given]
    ax.figure.canvas.draw()


@pytest.mark.parametrize("draw", [plot.spectrum, plot.split])
def test_parts_and_spectra_refuse_nothing(draw):
    with pytest.raises(ValueError, match="no certificates"):
        draw([])


@pytest.mark.parametrize("steps", [1, 100])
def test_losses_draws_both_curves(steps):
    result = FitResult(
        model=Denoiser(lambda x, t: x, sk.VP()),
        losses=torch.linspace(1, 0.1, steps),
        held_out=torch.tensor([0.5, 0.3]),
        held_out_steps=torch.tensor([steps // 2, steps]),
        seconds=1.0,
    )
    ax = plot.losses(result)
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    assert labels == ["training, running mean", "held out, averaged weights"]
    assert "steps" in ax.get_xlabel()
    ax.figure.canvas.draw()


def test_without_matplotlib_the_error_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(OptionalDependencyError, match="pip install 'sdekit"):
        plot.image_grid(torch.zeros(1, 2, 2))
