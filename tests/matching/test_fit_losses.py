"""fit with every loss: the loss that was named, on the batch of the step, and minimisers in closed form."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import sdekit as sk
from sdekit.errors import ShapeError, UnknownNameError
from sdekit.matching import fit, load, losses, nets
from sdekit.matching.data import Batches, permutation
from sdekit.score import Denoiser

V, M = 0.8, 0.5


class Line(nn.Module):
    """a x + b, whatever the time."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Parameter(torch.tensor(-0.3)), nn.Parameter(torch.tensor(0.1))

    def forward(self, x, t=None):
        return self.a * x + self.b


def data(n=256):
    """(n, 1) float64 with mean M and (1/n) variance V, exactly."""
    z = sk.Philox(1).normal(0, torch.zeros(1, n, dtype=torch.float64), torch.tensor([0])).T
    return M + V**0.5 * (z - z.mean()) / z.std(correction=0)


def first(n=64, seed=0):
    """The batch of step 0, as fit takes it without held-out data."""
    x = data()
    return Batches(x[permutation(len(x), seed)], n, seed)[0]


def one_step(loss, process=None, net=None, x=None, **options):
    net = Line().double() if net is None else net
    return fit(
        net, data() if x is None else x, process, loss=loss, steps=1, batch_size=64, held_out=0, seed=3,
        progress=False, **options,
    )  # fmt: skip


def model(process, predicts="eps", time="t"):
    return Denoiser(Line().double(), process, predicts, time)


def at_noised(loss, process, weighting=None, **options):
    """w(t) loss(model, x_t, t) by hand."""
    x = first(seed=3)
    m = model(process, "score")
    t = losses.training_times(process, 64, seed=3)
    eps = sk.Philox(3).normal(0, x, torch.arange(64), losses.noised.Purpose.TRAINING)
    alpha, sigma = process.alpha(t)[:, None], process.sigma(t)[:, None]
    w = sigma[:, 0] ** 2 if weighting is None else weighting(t)
    return w * loss(m, alpha * x + sigma * eps, t=t, **options)


SIGMAS = torch.tensor([0.1, 0.5])
PATH = sk.BrownianMotion()


@pytest.mark.parametrize(
    ("loss", "process", "options", "expected"),
    [
        ("likelihood_weighted", sk.VP(), {}, lambda x: losses.likelihood_weighted(model(sk.VP()), x, seed=3)),
        (
            "denoising",
            sk.VP(),
            {"weighting": "noise", "times": "log-snr"},
            lambda x: losses.denoising(model(sk.VP()), x, weighting="noise", times="log-snr", seed=3),
        ),
        (
            "flow_matching",
            sk.RectifiedFlow(),
            {"predicts": "flow"},
            lambda x: losses.flow_matching(Line().double(), x, seed=3),
        ),
        ("flow_matching", None, {}, lambda x: losses.flow_matching(Line().double(), x, seed=3)),
        (
            "multi_noise",
            sk.VE(),
            {"sigmas": SIGMAS, "predicts": "score", "time": "sigma"},
            lambda x: losses.multi_noise(Line().double(), x, SIGMAS, seed=3),
        ),
        (
            "multi_noise",
            None,
            {"sigmas": SIGMAS},
            lambda x: losses.multi_noise(Line().double(), x, SIGMAS, seed=3),
        ),
        ("one_noise", None, {"sigma": 0.4}, lambda x: losses.one_noise(Line().double(), x, 0.4, seed=3)),
        ("implicit", None, {}, lambda x: losses.implicit(Line().double(), x, seed=3)),
        (
            "sliced",
            None,
            {"t": 0.2, "probes": 3, "law": "normal"},
            lambda x: losses.sliced(Line().double(), x, t=0.2, probes=3, law="normal", seed=3),
        ),
        ("finite_difference", None, {}, lambda x: losses.finite_difference(Line().double(), x, seed=3)),
        ("explicit", None, {"exact": torch.sin}, lambda x: losses.explicit(Line().double(), x, torch.sin)),
        (
            "implicit",
            sk.VP(),
            {"predicts": "score"},
            lambda x: at_noised(losses.implicit, sk.VP(), seed=3),
        ),
        (
            "sliced",
            sk.SubVP(),
            {"predicts": "score", "weighting": "none", "probes": 2},
            lambda x: at_noised(losses.sliced, sk.SubVP(), lambda t: 1.0, probes=2, seed=3),
        ),
        (
            "explicit",
            sk.VP(),
            {"predicts": "score", "exact": lambda x, t: -x, "weighting": torch.sqrt},
            lambda x: at_noised(losses.explicit, sk.VP(), torch.sqrt, exact=lambda x, t: -x),
        ),
        (
            "sliced_sde",
            PATH,
            {"span": (0.0, 1.0), "path_steps": 20},
            lambda x: losses.sliced_sde(Line().double(), PATH, x, (0.0, 1.0), steps=20, seed=3),
        ),
    ],
)
def test_the_loss_is_the_named_one_on_the_batch_of_the_step(loss, process, options, expected):
    result = one_step(loss, process, **options)
    torch.testing.assert_close(
        result.losses[0].double(), expected(first(seed=3)).mean().detach().double(), rtol=1e-6, atol=0
    )


def test_multi_noise_gives_the_network_its_noise_levels():
    """The times of VE are other numbers than its noise levels."""
    seen = set()

    class Spy(Line):
        def forward(self, x, t=None):
            seen.update(t.tolist())
            return super().forward(x, t)

    fit(
        Spy().double(), data(), sk.VE(), loss="multi_noise", sigmas=torch.tensor([0.25, 0.5]), held_out=0,
        predicts="score", time="sigma", steps=1, progress=False,
    )  # fmt: skip
    assert seen == {0.25, 0.5}


def test_interpolants_take_pairs():
    x = data()
    pairs = torch.stack([x, x + 3], dim=1)
    result = one_step("interpolant", x=pairs, path="trigonometric", predicts="noise")
    a, b = first(seed=3), first(seed=3) + 3
    value = losses.interpolant(Line().double(), a, b, "trigonometric", predicts="noise", seed=3)
    torch.testing.assert_close(result.losses[0].double(), value.mean().detach(), rtol=1e-6, atol=0)
    with pytest.raises(ShapeError, match=r"takes pairs: data of shape \(N, 2, \*event\)"):
        one_step("interpolant", x=data())


@pytest.mark.parametrize(
    ("loss", "process", "options", "slope"),
    [
        ("implicit", None, {}, -1 / V),
        ("sliced", None, {"variance_reduced": False}, -1 / V),
        ("finite_difference", None, {}, -1 / V),
        ("explicit", None, {"exact": lambda x: (M - x) / V}, -1 / V),
    ],
)
def test_scores_of_the_data_themselves(loss, process, options, slope):
    """s(x) = -(x - m)/v for the sample's own m and v: the minimiser over lines, 1 %."""
    result = fit(
        Line().double(), data(), process, loss=loss, steps=600, batch_size=256, lr=0.03, held_out=0,
        progress=False, **options,
    )  # fmt: skip
    assert isinstance(result.model, Line)
    assert result.model.a.item() == pytest.approx(slope, rel=0.01)
    assert result.model.b.item() == pytest.approx(-slope * M, rel=0.01)


def test_sliced_matching_at_noised_data_finds_their_score():
    """At one time s(x) = -(x - alpha m)/(alpha^2 v + sigma^2); 3 % for 256 noises in each of 600 steps."""
    process, at = sk.VP(), 0.3
    result = fit(
        Line().double(), data(), process, predicts="score", loss="sliced", times=lambda u: 0 * u + at,
        steps=600, batch_size=256, lr=0.03, held_out=0, progress=False,
    )  # fmt: skip
    alpha, sigma = float(process.alpha(at)), float(process.sigma(at))
    slope = -1 / (alpha**2 * V + sigma**2)
    assert result.model.net.a.item() == pytest.approx(slope, rel=0.03)
    assert result.model.net.b.item() == pytest.approx(-slope * alpha * M, rel=0.1)


def test_a_callable_gets_the_model_the_batch_the_step_and_the_options():
    seen = []

    def loss(model, x, *, seed, draw, factor=1.0):
        seen.append((type(model), seed, draw, factor))
        return factor * losses.denoising(model, x, seed=seed, draw=draw)

    options = {"steps": 3, "batch_size": 64, "held_out": 0.1, "seed": 5, "progress": False}
    a = fit(Line().double(), data(), sk.VP(), loss=loss, factor=2.0, **options)
    b = fit(Line().double(), data(), sk.VP(), **options)
    assert seen[0] == (Denoiser, 5, 0, 2.0)
    assert [draw for _, seed, draw, _ in seen if seed == 5] == [0, 1, 2]
    assert float(a.losses[0]) == pytest.approx(2 * float(b.losses[0]))
    assert float(a.held_out[0]) == pytest.approx(2 * float(b.held_out[0]), rel=1e-3)


@pytest.mark.parametrize("loss", ["denoising", "sliced", "implicit"])
def test_the_gradient_of_an_energy_is_trained_as_a_score(loss):
    """E = a x^2/2 - b x at one time: 1/a = alpha^2 v + sigma^2, the minimiser as of a line; 3 %."""

    class Quadratic(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Parameter(torch.ones(())), nn.Parameter(torch.zeros(()))

        def forward(self, x, t):
            return (0.5 * self.a * x**2 - self.b * x).sum(dim=1)

    process, at = sk.VP(), 0.3
    result = fit(
        sk.Energy(Quadratic()).double(), data(), process, predicts="score", loss=loss, steps=400,
        times=lambda u: 0 * u + at, batch_size=256, lr=0.03, held_out=0, progress=False,
    )  # fmt: skip
    energy = result.model.net
    assert isinstance(energy, sk.Energy)
    alpha, sigma = float(process.alpha(at)), float(process.sigma(at))
    slope = 1 / (alpha**2 * V + sigma**2)
    assert energy.net.a.item() == pytest.approx(slope, rel=0.03)
    assert energy.net.b.item() == pytest.approx(slope * alpha * M, rel=0.1)


def test_scores_of_other_processes_reverse_them(tmp_path):
    """Brownian motion by slices: the result is the score, ready for sk.reverse, and comes back from disk."""
    path = tmp_path / "score.safetensors"
    result = fit(
        nets.MLP(1, width=8, depth=1, seed=0), data().float(), PATH, loss="sliced_sde", span=(0.0, 1.0),
        steps=3, progress=False, checkpoint=path,
    )  # fmt: skip
    assert isinstance(result.model, nets.MLP)
    x = torch.zeros(4, 1)
    back = sk.solve(sk.reverse(PATH, load(path)), x, (1.0, 0.1), steps=4).x
    assert torch.equal(back, sk.solve(sk.reverse(PATH, result.model), x, (1.0, 0.1), steps=4).x)


def test_losses_that_do_not_fit_are_named():
    with pytest.raises(UnknownNameError, match="unknown loss 'sliced_score'"):
        one_step("sliced_score", sk.VP())
    with pytest.raises(TypeError, match="sdekit.fit_energy"):
        one_step("contrastive_divergence")
    with pytest.raises(TypeError, match=r"fit needs the process.*one of explicit, implicit"):
        one_step("likelihood_weighted")
    with pytest.raises(TypeError, match=r"needs the SDE"):
        one_step("sliced_sde")
    with pytest.raises(TypeError, match=r"alpha\(t\) and sigma\(t\), got BrownianMotion.*sliced_sde"):
        one_step("denoising", PATH)
    with pytest.raises(TypeError, match="'one_noise' adds its own noise"):
        one_step("one_noise", sk.VP(), sigma=1.0)
    with pytest.raises(ValueError, match="paths of RectifiedFlow, got VP"):
        one_step("flow_matching", sk.VP())
    with pytest.raises(ValueError, match=r"trains a score of the noise level, got predicts='eps', time='t'"):
        one_step("multi_noise", sk.VE(), sigmas=SIGMAS)
    with pytest.raises(TypeError, match=r"'learning_rate' is neither an argument of fit nor an option"):
        one_step("denoising", sk.VP(), learning_rate=1)
    with pytest.raises(TypeError, match="'weight' is neither"):
        one_step("sliced", sk.VP(), predicts="score", weight="none")
    with pytest.raises(UnknownNameError, match="weighting of a loss at points 'edm'"):
        one_step("sliced", sk.VP(), predicts="score", weighting="edm")
    with pytest.raises(ShapeError, match=r"loss must return shape \(64,\).*mean over the batch"):
        one_step(lambda model, x, *, seed, draw: losses.denoising(model, x).mean(), sk.VP())
    with pytest.raises(ValueError, match="does not depend on the network's parameters"):
        one_step(lambda model, x, *, seed, draw: x.sum(dim=1), sk.VP())
