"""Networks, callbacks and numbers that do not fit are named at the door, and nothing is trained."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

import sdekit as sk
from sdekit.errors import ShapeError, UnknownNameError
from sdekit.matching import ClassDenoiser, CSVLog

X = torch.randn(40, 2, generator=torch.Generator().manual_seed(0))
Y = torch.arange(40) % 3
FEW = {"steps": 2, "batch_size": 16, "progress": False}


class Strict(nn.Module):
    """A network of classes whose label has no default."""

    classes = 3

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 2)

    def forward(self, x, t, label):
        return self.layer(x) + 0.1 * label[:, None] * t[:, None]


class Bowl(nn.Module):
    def __init__(self):
        super().__init__()
        self.rate = nn.Parameter(torch.tensor(1.0))

    def forward(self, x):
        return self.rate * x.square().sum(dim=1) / 2


def mlp():
    return sk.nets.MLP(2, width=8, depth=1, seed=0)


def test_a_network_that_needs_a_label_is_a_model_of_each_class_and_of_none():
    model = sk.fit(Strict(), X, sk.VP(), labels=Y, **FEW).model
    assert model.given(1).score(X, 0.5).shape == X.shape
    assert sk.sample(model.given(2), (2, 2), steps=2).ok
    for use in (
        lambda: model.score(X, 0.5),
        lambda: sk.sample(model, (2, 2), steps=2),
        lambda: sk.log_prob(model, X[:2]),
    ):
        message = r"net\(x, t\), and Strict cannot be: missing.*'label'.*called without one.*model.given\(0\)"
        with pytest.raises(TypeError, match=message):
            use()
    with pytest.raises(TypeError, match=r"label has no default. Next: sdekit.matching.ClassDenoiser"):
        sk.Denoiser(Strict(), sk.VP())


def test_networks_of_other_arguments():
    with pytest.raises(TypeError, match=r"net is called as net\(x, t\), and Linear cannot be.*lambda x, t"):
        sk.Denoiser(nn.Linear(2, 2), sk.VP())
    with pytest.raises(TypeError, match="and a lambda cannot be"):
        sk.Denoiser(lambda x: x, sk.VP())
    unlabelled = mlp()
    unlabelled.forward = lambda x, t: x
    unlabelled.classes = 3
    with pytest.raises(TypeError, match=r"called as net\(x, t, label\)"):
        ClassDenoiser(unlabelled, sk.VP())
    assert sk.Denoiser(lambda *both: both[0], sk.VP()).net is not None
    assert sk.Denoiser(lambda x, t, y=None: x, sk.VP()).net is not None


def test_energies_and_scores_with_a_time_and_without():
    with pytest.raises(TypeError, match=r"net\(x\), and MLP cannot be.*no time given. Next: energy\(x, t\)"):
        sk.Energy(mlp())(X)
    with pytest.raises(TypeError, match=r"net\(x, t\), and Bowl cannot be.*without a time"):
        sk.Energy(Bowl())(X, torch.tensor(0.5))
    for net in (mlp(), sk.Energy(mlp())):
        with pytest.raises(TypeError, match=r"\(x\), and MLP cannot be: missing.*'t'"):
            sk.fit_energy(net, X, **FEW)
        with pytest.raises(
            TypeError, match=r"\(x\), and MLP cannot be: missing.*'t'.*Next: (t=|energy\(x, t)"
        ):
            sk.fit(net, X, loss="implicit", **FEW)
    with pytest.raises(TypeError, match=r"score\(x, t\), and Linear cannot be.*Next: lambda x, t"):
        sk.losses.implicit(nn.Linear(2, 2), X, t=0.5)


def test_an_error_inside_a_network_stays_what_it_is():
    def fails(x, t=None):
        raise TypeError("inside")

    for use in (
        lambda: sk.Energy(fails)(X),
        lambda: sk.losses.implicit(fails, X),
        lambda: sk.losses.contrastive_divergence(fails, X, X),
    ):
        with pytest.raises(TypeError, match="^inside$"):
            use()


@pytest.mark.parametrize("value", ["x", [1], math.nan, 1.0, -0.1, True, torch.tensor([0.9, 0.9])])
def test_an_average_that_is_no_rate(value):
    for train in (lambda: sk.fit(mlp(), X, sk.VP(), ema=value, **FEW), lambda: energy(ema=value)):
        with pytest.raises(ValueError, match=r"ema must lie in \[0, 1\), got .* Next: 0.999"):
            train()


def energy(**options):
    return sk.fit_energy(Bowl(), X, **({"chain_steps": 1} | FEW | options))


def test_both_kinds_of_training_average_alike():
    """None and 0 keep the last weights; the default is one and the same."""
    assert torch.equal(energy(ema=None).energy.rate, energy(ema=0).energy.rate)
    assert not torch.equal(energy().energy.rate, energy(ema=0).energy.rate)
    assert torch.equal(energy().energy.rate, energy(ema=0.999).energy.rate)


@pytest.mark.parametrize("value", ["x", [1], math.nan, 2, -0.1, True])
def test_dropped_labels_are_a_probability(value):
    with pytest.raises(ValueError, match=r"drop_labels must be a probability in \[0, 1\], got"):
        sk.fit(Strict(), X, sk.VP(), labels=Y, drop_labels=value, **FEW)


def test_energies_are_trained_with_gradients_and_numbers_that_are_some():
    for clip in ("x", -1.0, 0.0):
        with pytest.raises(ValueError, match="clip must be finite and > 0"):
            energy(clip=clip)
    with pytest.raises(TypeError, match=r"fit_energy trains an nn.Module, got function. Next: a network \(B"):
        sk.fit_energy(lambda x: x.sum(1), X, **FEW)
    with torch.no_grad(), pytest.raises(RuntimeError, match="fit_energy needs gradients"):
        energy()


@pytest.mark.parametrize(
    ("callback", "message"),
    [
        (lambda step: None, r"callback\(step, report\), and a lambda cannot be: too many"),
        (lambda a, b, c: None, r"and a lambda cannot be: missing.*'c'.*three arguments"),
        (CSVLog, r"got the class CSVLog. Next: one of it, CSVLog\(...\)"),
        ([print], "must be a function .*, got list"),
    ],
)
def test_callbacks_are_refused_before_the_first_step(callback, message):
    net = mlp()
    before = [p.clone() for p in net.parameters()]
    with pytest.raises(TypeError, match=message):
        sk.fit(net, X, sk.VP(), callback=callback, **FEW)
    assert all(torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))


@pytest.mark.parametrize("schedule", [lambda: 1.0, lambda n: "a", lambda n: None])
def test_schedules_return_a_number(schedule):
    with pytest.raises(TypeError, match=r"schedule\(0\) failed.*scheduler of torch.optim"):
        sk.fit(mlp(), X, sk.VP(), schedule=schedule, **FEW)


@pytest.mark.parametrize("backend", ["nunba", 3])
def test_a_back_end_is_a_name(backend):
    model = sk.Gaussian([0.0, 0.0], variance=1.0).denoiser(sk.VP())
    hint = "Nearest: 'numba'. " if backend == "nunba" else ""
    for run in (
        lambda: sk.sample(model, (2, 2), steps=2, backend=backend),
        lambda: sk.solve(sk.OrnsteinUhlenbeck(1.0, 0.0, 1.0), X, (0, 1), steps=2, backend=backend),
    ):
        with pytest.raises(UnknownNameError, match=f"backend {backend!r}. {hint}Known: auto, eager, numba"):
            run()


def test_hints_are_code():
    """What comes after "Next:" can be typed: batch.float(), not a batch.float()."""
    with pytest.raises(ShapeError, match=r"^a batch must be floating.*Next: batch\.float\(\)"):
        sk.fit(mlp(), [X.long()], sk.VP(), held_out=0, **FEW)
    with pytest.raises(ShapeError, match=r"no event axis. Next: batch\[:, None\]"):
        sk.fit(mlp(), DataLoader(X[:, 0], 10), sk.VP(), held_out=0, **FEW)
    with pytest.raises(ShapeError, match=r"^held-out labels must.*Next: labels\.argmax\(dim=1\)"):
        sk.fit(Strict(), X, sk.VP(), labels=Y, held_out=(X, Y.float()), **FEW)
