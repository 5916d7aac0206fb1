"""The benchmark on real images: its data, baselines and classifier on known laws; digits told apart."""

from __future__ import annotations

import dataclasses
import inspect
import json
import math
from pathlib import Path

import pytest
import torch

import sdekit as sk

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")
pytest.importorskip("safetensors")

from benchmarks import _cache, _real_data, learning
from benchmarks.run import RESULTS, render
from sdekit.cli.demo import digits as demo_digits
from sdekit.matching import ClassDenoiser

PAGE = Path(__file__).parents[1] / "docs" / "tutorials" / "real-data.md"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(_cache, "CACHE", tmp_path)
    monkeypatch.setattr(learning, "PICTURE", tmp_path / "learning.png")
    return tmp_path


def test_no_pixel_held_out_is_in_a_training_patch():
    photograph = torch.arange(200 * 330).reshape(200, 330)  # every pixel has its own number
    train, held = _real_data.blocks(photograph)
    seen, kept = set(train.flatten().tolist()), set(held.flatten().tolist())
    assert not seen & kept
    assert len(kept) == held.numel() == 3 * 64 * 64  # blocks (0, 0), (1, 2) and (2, 4) of 3 x 5
    assert kept == {
        330 * (64 * i + r) + 64 * j + c
        for i, j in ((0, 0), (1, 2), (2, 4))
        for r in range(64)
        for c in range(64)
    }
    assert train.shape[1:] == held.shape[1:] == (1, 16, 16)
    assert len(train) > 500
    assert (train[:, 0, 1:, 0] - train[:, 0, :-1, 0] == 330).all()  # windows, row by row


def test_patches_are_levels_of_both_photographs():
    data = _real_data.patches()
    assert (data.levels, data.event) == (256, (1, 16, 16))
    for part in (data.train, data.held):
        assert not part.is_floating_point()
        assert 0 <= int(part.min()) < 20
        assert 230 < int(part.max()) <= 255
    assert len(data.held) == 24 * 16  # 12 blocks of a photograph


def test_digits_are_those_of_the_demo_and_keep_their_labels():
    data = _real_data.digits()
    train, labels, held = demo_digits()
    assert torch.equal(data.train / 8 - 1, train)
    assert torch.equal(data.held / 8 - 1, held)
    assert torch.equal(data.train_labels, labels)
    # one nearest neighbour knows the held-out labels, which it would not if they were out of order
    near = torch.cdist(held.flatten(1), train.flatten(1)).argmin(dim=1)
    assert (labels[near] == data.held_labels).double().mean() > 0.95


@pytest.mark.parametrize("make", [_real_data.digits, _real_data.patches])
def test_scale_centres_the_levels_and_bits_count_them(make):
    data = make()
    x, k = data.test(5), data.held[:5]
    width = 2 / (data.levels - 1)
    assert float((x - (k * width - 1)).abs().max()) <= 0.5 * width * (1 + 1e-5)
    assert float((x - (k * width - 1)).abs().max()) > 0.45 * width
    span = data.scale["high"] - data.scale["low"]
    even = torch.tensor(-k[0].numel() * math.log(span))  # the uniform density over the range
    assert float(data.bits(even)) == pytest.approx(math.log2(data.levels))
    once, again = data.training(2).chunk(2)
    assert once.shape == data.train.shape
    assert 0 < float((once - again).abs().max()) < width  # one image, another noise


def gaussian_images(count=4000):
    """Two pixels: rounded normals about 8, so that a Gaussian has close to their entropy."""
    z = sk.Philox(3).normal(0, torch.zeros(count, 2, dtype=torch.float64), torch.arange(count))
    k = (8 + 2.5 * z).round().clamp(0, 16).long().reshape(-1, 1, 1, 2)
    return _real_data.Images("normal", 17, k[200:], k[:200])


def test_baselines_count_the_bits_of_a_normal_law():
    """log2(2.5 sqrt(2 pi e)) = 3.369 bits a pixel; 400 pixels held out have standard error 0.036."""
    data = gaussian_images()
    expected = math.log2(2.5 * math.sqrt(2 * math.pi * math.e))
    bits = _real_data.gaussian_bits(data).mean()
    assert float(bits) == pytest.approx(expected, abs=0.1)
    one = _real_data.mixture_bits(data, (1,))[1].mean()
    assert float(one) == pytest.approx(float(bits), abs=0.01)  # its ridge is 1 % of the variance


class Known(ClassDenoiser):
    """Classes with a law in closed form, N(mean_k, v I): the network is not used."""

    def __init__(self, means, variance=0.04):
        self.laws = [sk.Gaussian(mean, variance=torch.full_like(mean, variance)) for mean in means]

    @property
    def classes(self):
        return len(self.laws)

    def given(self, label):
        return self.laws[label].denoiser(sk.VP())


@pytest.mark.parametrize("method", learning.METHODS)
def test_class_densities_are_those_of_the_laws(method):
    means = torch.tensor([[-0.6, 0.0], [0.6, 0.0], [0.0, 0.8]], dtype=torch.float64)
    model = Known(means)
    x = torch.cat([law.sample(6, seed=k, dtype=torch.float64) for k, law in enumerate(model.laws)])
    values, calls = learning.class_log_prob(model, x, learning.METHODS[method])
    exact = torch.stack([law.log_prob(x) for law in model.laws], dim=1)
    assert values.shape == (18, 3)
    assert calls > 1
    right = values.argmax(dim=1) == exact.argmax(dim=1)
    if "4 strata" in method and "64" not in method:
        assert right.double().mean() > 0.8  # ten draws leave a standard error of about a nat
    else:
        assert right.all()
    if method.startswith("flow"):  # its tolerance is 0.01; a diagonal Jacobian leaves probes no error
        assert float((values - exact).abs().max()) < 0.3


class Closed(Known):
    """The laws themselves, whose density `sk.log_prob` asks for."""

    def given(self, label):
        return self.laws[label]


def test_flow_takes_exact_traces_or_probes():
    model = sk.Gaussian(torch.zeros(2), cov=torch.tensor([[0.5, 0.3], [0.3, 0.4]])).denoiser(sk.VP())
    x = torch.zeros(2, 2, dtype=torch.float64)
    assert learning.flow(0, 1e-3)(model, x).probes == 0
    assert learning.flow(3, 1e-3)(model, x).probes == 3


def test_classifier_counts_errors_and_the_bits_of_the_mixture(monkeypatch):
    centres = torch.tensor([[3, 3], [12, 4], [8, 14]])
    held = (centres[:, None] + torch.tensor([[0, 0], [1, 0], [-1, 1], [0, -1]])).reshape(12, 1, 1, 2)
    labels = torch.arange(3).repeat_interleave(4)
    labels[0] = 1  # a mislabelled image: one error
    data = _real_data.Images("three", 17, held, held, labels, labels)
    model = Closed((centres.double() / 8 - 1).reshape(3, 1, 1, 2), 0.2)
    monkeypatch.setattr(learning, "train", lambda recipe: model)
    monkeypatch.setattr(learning, "images", lambda name: data)
    found = learning.classify(learning.CLASSIFIERS[0], 12, "flow, 1 probe")
    assert (found["wrong"], found["of"], found["accuracy"]) == (1, 12, pytest.approx(11 / 12))
    exact = torch.stack([law.log_prob(data.test().double()) for law in model.laws]).exp().mean(0).log()
    bits = -exact / 2 / math.log(2) - math.log2(1 / 8)  # a level is 1/8 wide
    assert found["bits"] == pytest.approx(float(bits.mean()))
    assert found["bits error"] == pytest.approx(float(bits.std()) / math.sqrt(12))


def test_errors_are_shown_beside_their_values():
    row = {"model": "a", "bits": 2.34567, "bits error": 0.0123, "energy": 0.5, "of": 180}
    expected = {"model": "a", "bits": "2.35 ± 0.012", "energy": "0.5", "of": 180}
    assert learning.shown([row]) == [expected]


def tiny(training, **changes):
    return dataclasses.replace(training, steps=2, batch=8, copies=1, **changes)


def test_run_reports_every_part_and_keeps_it(cache, monkeypatch, capsys):
    few = {name: learning.METHODS[name] for name in ("flow, 1 probe", "bound, 4 strata")}
    monkeypatch.setattr(learning, "METHODS", few)
    monkeypatch.setattr(learning, "mixture_bits", lambda data: {1: torch.zeros(4)})
    small = tiny(learning.CLASSIFIERS[0])
    result = learning.run((small,), (small,), rows=6, samples=8)
    assert [row["model"] for row in result["table"]] == ["F, EDM", "equal levels", "Gaussian", "1 Gaussians"]
    untrained = result["table"][0]
    assert 4 < untrained["bits"] < 6  # a network that returns 0: the Gaussian N(0, s^2), 4.6 bits
    assert untrained["bits"] < untrained["bound"] < 6
    assert result["table"][1]["bits"] == pytest.approx(math.log2(17))
    assert [row["density"] for row in result["classifier"]] == list(learning.METHODS)
    assert all(
        row["of"] == 6 and row["wrong"] == round(6 * (1 - row["accuracy"])) for row in result["classifier"]
    )
    assert abs(result["exact"]["4 probes less exact"]) < 0.1
    assert (cache / "learning.png").stat().st_size > 5000
    for name in ("fit", "log_prob"):
        monkeypatch.setattr(sk, name, lambda *_, **__: pytest.fail("computed what is kept"))
    assert learning.run((small,), (small,), rows=6, samples=8) == result


def test_the_default_network_has_a_row(cache):
    recipe = learning.DIGITS[-1]
    model = learning.train(tiny(recipe, network="MLP"))
    assert model.predicts == "eps"
    options = inspect.signature(sk.losses.denoising).parameters
    assert recipe.weighting == options["weighting"].default


def test_images_of_many_levels_have_a_mixture_as_baseline():
    """Pixels of two normal laws: five Gaussians know more than one, which equals the Gaussian."""
    few = gaussian_images(1000)
    sign = torch.where(torch.arange(1000) % 2 == 0, 60, -60)[:, None, None, None]
    levels = torch.cat([few.held, few.train]) + 120 + sign
    rows = learning.baselines(_real_data.Images("two", 256, levels[200:], levels[:200]))
    bits = {row["model"]: row["bits"] for row in rows}
    assert list(bits) == ["equal levels", "Gaussian", "5 Gaussians"]
    assert bits["5 Gaussians"] < bits["Gaussian"] - 1


def test_the_page_shows_the_committed_figures():
    result = json.loads((RESULTS / "learning.json").read_text())["result"]
    text = PAGE.read_text()
    for rows in (learning.shown(result["table"]), learning.shown(result["classifier"])):
        assert render(rows) in text
    best = max(row["accuracy"] for row in result["classifier"])
    assert best > 0.95


@pytest.mark.slow
def test_densities_of_classes_tell_digits_apart(cache):
    """A small network of classes, 2,000 steps, one probe: at least 172 of 180 digits never seen."""
    found = learning.classify(learning.CLASSIFIERS[0], 180, "flow, 1 probe")
    assert found["accuracy"] > 0.95
    assert found["bits"] < 2.93  # the Gaussian of all digits
