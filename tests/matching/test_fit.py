"""fit: the closed-form optimum, the average of the weights, reproducibility, and errors at the door."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import sdekit as sk
from sdekit.errors import ArgumentOrderError, NonFiniteError, ShapeError
from sdekit.matching import fit, load, losses, nets
from sdekit.matching.data import Batches
from sdekit.score import Denoiser


class Linear(nn.Module):
    """a x + b, whatever the time."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Parameter(torch.zeros(())), nn.Parameter(torch.zeros(()))

    def forward(self, x, t):
        return self.a * x + self.b


def moons(n=400):
    """Two noisy half circles in the plane, (n, 2) float64."""
    generator = torch.Generator().manual_seed(3)
    u = torch.pi * torch.rand(n, generator=generator, dtype=torch.float64)
    side = (torch.arange(n) % 2).double()
    x = torch.stack([torch.cos(u) * (1 - 2 * side) + side, torch.sin(u) * (1 - 2 * side) + 0.5 * side], dim=1)
    return x + 0.05 * torch.randn(n, 2, generator=generator, dtype=torch.float64)


def small(seed=0):
    return nets.MLP(2, width=16, depth=1, seed=seed)


def same(a, b):
    a, b = a.state_dict(), b.state_dict()
    return all(torch.equal(a[k], b[k]) for k in a)


def test_a_linear_network_finds_the_closed_form_optimum():
    """On N points eps = sigma (x - alpha m)/(alpha^2 v + sigma^2), m and v (1/N) of the sample itself.

    SGD with a rate that falls to 0: 1 % of the slope; twelve other seeds stayed within 0.5 %.
    """
    data = 0.5 + 0.8 * sk.Philox(1).normal(0, torch.zeros(1, 256, dtype=torch.float64), torch.tensor([0])).T
    process, at = sk.VP(), 0.3
    result = fit(
        Linear().double(), data, process, times=lambda u: 0 * u + at, steps=1500, batch_size=256, lr=0.02,
        held_out=0, progress=False,
    )  # fmt: skip
    alpha, sigma = float(process.alpha(at)), float(process.sigma(at))
    m, v = float(data.mean()), float(data.var(correction=0))
    slope = sigma / (alpha**2 * v + sigma**2)
    assert result.model.net.a.item() == pytest.approx(slope, rel=0.01)
    assert result.model.net.b.item() == pytest.approx(-slope * alpha * m, abs=0.01)


@pytest.mark.parametrize("predicts", ["eps", pytest.param("v", marks=pytest.mark.slow)])
def test_it_learns_the_score_of_a_mixture(predicts):
    """Held-out loss within 4 % of the Bayes risk, that of the exact denoiser on the same draws."""
    target = sk.GaussianMixture([0.4, 0.6], [[-1.0, 0.0], [0.7, 0.5]], 0.04)
    data, held = target.sample(4000, seed=1), target.sample(1000, seed=2)
    process = sk.VP()
    result = fit(
        nets.MLP(2, width=64, depth=2, seed=0), data, process, predicts=predicts, steps=800, batch_size=256,
        lr=3e-3, held_out=held, progress=False,
    )  # fmt: skip
    exact = target.denoiser(process)
    perfect = Denoiser(lambda x, t: exact.predict(predicts, x, t), process, predicts=predicts)
    learned, best = (
        float(losses.denoising(model, held, weighting="noise", seed=9).mean().detach())
        for model in (result.model, perfect)
    )
    assert best < learned < 1.04 * best
    assert float(result.held_out[-1]) < float(result.held_out[0])


def test_equal_seeds_give_equal_weights_bit_for_bit_and_torch_s_generator_is_left_alone():
    x = torch.randn(48, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    options = {"steps": 12, "batch_size": 20, "progress": False, "held_out": 0.25, "check_every": 6}

    def train(seed, noise_around):
        torch.manual_seed(noise_around)
        before = torch.random.get_rng_state()
        net = nets.UNet(1, width=4, dropout=0.3, seed=0)
        result = fit(net, x, sk.VP(), seed=seed, **options)
        assert torch.equal(torch.random.get_rng_state(), before)
        return result, net

    (a, net_a), (b, net_b), (c, _) = train(0, 1), train(0, 2), train(1, 1)
    assert same(a.model.net, b.model.net)
    assert same(net_a, net_b)
    assert torch.equal(a.losses, b.losses)
    assert torch.equal(a.held_out, b.held_out)
    assert not same(a.model.net, c.model.net)
    assert not same(a.model.net, net_a)  # the average is not the last weight


@pytest.mark.parametrize("ema", [0.999, 0.5, 0.0])
def test_the_average_follows_its_recursion(ema):
    """W <- m_n W + (1 - m_n) w with m_n = min(ema, (1 + n)/(10 + n)), from the first trained weights on."""
    seen = []

    class Spy(Linear):
        def forward(self, x, t):
            if self.training:
                seen.append((float(self.a.detach()), float(self.b.detach())))
            return super().forward(x, t)

    net = Spy().double()
    result = fit(net, moons()[:, :1], sk.VP(), steps=30, lr=0.1, ema=ema, progress=False, held_out=0)
    weights = [*seen[1:], (net.a.item(), net.b.item())]
    average = np.array(weights[0])
    for n, w in enumerate(weights[1:], start=1):
        m = min(ema, (1 + n) / (10 + n))
        average = m * average + (1 - m) * np.array(w)
    got = [result.model.net.a.item(), result.model.net.b.item()]
    assert got == pytest.approx(average.tolist(), rel=1e-10)
    assert np.ptp([a for a, _ in weights]) > 0.1


def test_every_pass_shows_every_row_once_in_a_new_order():
    data = torch.arange(10.0)[:, None]
    batches = Batches(data, 4, seed=0)
    rows = torch.cat([batches[n] for n in range(5)]).flatten().tolist()
    assert sorted(rows[:10]) == sorted(rows[10:]) == list(range(10))
    assert rows[:10] != rows[10:]
    again = Batches(data, 4, seed=0)
    assert torch.equal(again[3], batches[3])  # a function of n, not of what came before


def test_training_sees_every_row_but_none_that_is_held_out():
    """Almost without noise the network's input shows which rows it is given."""
    trained, checked = set(), set()

    class Spy(Linear):
        def forward(self, x, t):
            (trained if self.training else checked).update(x.round().flatten().int().tolist())
            return super().forward(x, t)

    data = torch.arange(40.0)[:, None]
    fit(Spy(), data, sk.VP(), times=lambda u: 0 * u + 1e-5, steps=8, batch_size=8, progress=False)
    assert len(checked) == 4
    assert trained | checked == set(range(40))
    assert not trained & checked


def test_the_model_knows_the_spread_of_the_data():
    """s = sqrt(tr C/D), s2 = sqrt(tr C^2/tr C), C the (1/N) covariance of the rows trained on."""
    x = moons() * torch.tensor([2.0, 0.3])
    model = fit(small(), x.numpy(), sk.VP(), steps=2, progress=False, held_out=0).model
    c = np.cov(x.numpy().T, bias=True)
    assert model.data_std == pytest.approx(np.sqrt(np.trace(c) / 2), rel=1e-5)
    assert model.data_spread == pytest.approx(np.sqrt(np.trace(c @ c) / np.trace(c)), rel=1e-5)


def test_the_split_is_chosen_by_the_seed_and_data_may_be_held_out_by_hand():
    x = moons(50)
    options = {"steps": 3, "progress": False}
    a, b = (fit(small(), x, sk.VP(), held_out=0.2, seed=s, **options) for s in (0, 1))
    assert float(a.held_out[-1]) != float(b.held_out[-1])
    c = fit(small(), x[:40], sk.VP(), held_out=x[40:], check_every=1, **options)
    assert c.held_out_steps.tolist() == [1, 2, 3]
    assert len(fit(small(), x, sk.VP(), held_out=0, **options).held_out) == 0


def test_a_denoiser_brings_its_own_process_and_statistics():
    net = nets.MLP(2, width=8, depth=1, features="real")
    model = Denoiser(net, sk.EDM(), predicts="edm", data_std=0.9)
    result = fit(model, moons(), steps=4, progress=False)
    assert (result.model.predicts, result.model.data_std) == ("edm", 0.9)
    assert isinstance(result.model.process, sk.EDM)
    assert torch.isfinite(sk.sample(result.model, (4, 2), steps=4).x).all()


def test_a_checkpoint_holds_the_averaged_weights(tmp_path):
    path = tmp_path / "deep" / "model.safetensors"
    result = fit(small(), moons(), sk.VP(), steps=4, progress=False, checkpoint=path)
    assert same(load(path).net, result.model.net)


def test_progress_reports_both_losses(capsys):
    fit(small(), moons(), sk.VP(), steps=4, progress=True)
    shown = capsys.readouterr().err
    assert "training" in shown
    assert "held-out" in shown


def test_the_result_prints_what_matters():
    text = repr(fit(small(), moons(), sk.VP(), steps=4, progress=False))
    assert text.startswith("FitResult(")
    assert "4 steps" in text
    assert "held-out" in text


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        (torch.zeros(0, 2), ShapeError, r"got \(0, 2\), which is empty"),
        (torch.zeros(9), ShapeError, r"data\[:, None\] for scalar samples"),
        (torch.zeros(9, 2, dtype=torch.uint8), ShapeError, r"data must be floating.*8-bit"),
        (torch.tensor([[0.0, 1.0], [float("nan"), 0.0]]), NonFiniteError, r"data holds NaN.*first: sample 1"),
        (torch.ones(9, 2), ValueError, "training samples are equal"),
        (torch.zeros(9, 3), ShapeError, r"x must have shape \(B, 2\)"),
        ("digits", ShapeError, "data must be a tensor or array"),
    ],
)
def test_bad_data_are_named(data, error, message):
    if isinstance(data, torch.Tensor) and data.shape == (9, 3):
        data = torch.randn(9, 3)
    with pytest.raises(error, match=message):
        fit(small(), data, sk.VP(), steps=1, progress=False, held_out=0)


def test_bad_arguments_are_named():
    x = moons(20)

    def run(net=None, data=x, process=None, **options):
        return fit(
            small() if net is None else net, data, process or sk.VP(), progress=False, steps=1, **options
        )

    with pytest.raises(TypeError, match="needs the process"):
        fit(small(), x, steps=1)
    with pytest.raises(TypeError, match="Denoiser holds its own process"):
        run(Denoiser(small(), sk.VP()))
    with pytest.raises(TypeError, match=r"fit trains an nn.Module, got function"):
        run(lambda x, t: x)
    with pytest.raises(ValueError, match="no trainable parameters"):
        run(nn.Identity())
    with pytest.raises(ValueError, match=r"ema must lie in \[0, 1\)"):
        run(ema=1.0)
    with pytest.raises(ValueError, match="held_out must be a fraction"):
        run(held_out=1.5)
    with pytest.raises(ValueError, match="leaves none to train on"):
        run(held_out=0.99)
    with pytest.raises(ShapeError, match="held_out must have the data's event shape"):
        run(held_out=torch.zeros(3, 5))
    with pytest.raises(ValueError, match="lr must be finite and > 0"):
        run(lr=-1.0)

    class Swapped(Linear):
        def forward(self, t, x):
            return x

    with pytest.raises(ArgumentOrderError, match=r"net must take \(x, t\)"):
        run(Swapped())

    class Wrong(Linear):
        def forward(self, x, t):
            return self.a * x.sum(dim=1)

    with pytest.raises(ShapeError, match="net must return shape"):
        run(Wrong())


def test_a_loss_that_is_not_finite_stops_the_run():
    with pytest.raises(NonFiniteError, match=r"at step 0.*features='real'"):
        fit(small(), moons(), sk.VP(), predicts="edm", steps=5, progress=False)

    class Fragile(Linear):
        def forward(self, x, t):
            return (self.a + 1e-3) ** 0.5 * x

    with pytest.raises(NonFiniteError, match=r"training loss is nan at step [1-9].*learning rate too large"):
        fit(Fragile(), moons(), sk.VP(), lr=50.0, warmup=0, steps=20, progress=False)
