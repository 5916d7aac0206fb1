"""What people get wrong at the first try: each error says what to do."""

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset

import sdekit as sk
from sdekit.errors import ShapeError

X = torch.randn(60, 2, generator=torch.Generator().manual_seed(0))
FEW = {"steps": 2, "batch_size": 16, "progress": False}


class Bowl(nn.Module):
    def __init__(self):
        super().__init__()
        self.rate = nn.Parameter(torch.tensor(1.0))

    def forward(self, x, t=None):
        return self.rate * x.square().sum(dim=1) / 2


def network():
    return sk.nets.MLP(2, width=8, depth=1, seed=0)


@pytest.mark.parametrize(
    ("loss", "process", "missing"),
    [
        ("one_noise", None, "sigma"),
        ("multi_noise", None, "sigmas"),
        ("explicit", None, "exact"),
        ("sliced_sde", sk.OrnsteinUhlenbeck(1.0, 0.0, 1.0), "span"),
    ],
)
def test_an_option_that_a_loss_needs(loss, process, missing):
    with pytest.raises(TypeError, match=rf"loss '{loss}' needs {missing}, which was not given. Next: fit"):
        sk.fit(network(), X, process, loss=loss, **FEW)


def test_triples_are_no_pairs():
    with pytest.raises(ShapeError, match=r"takes pairs.*got \(16, 3, 2\)"):
        sk.fit(network(), torch.stack([X, X, X], dim=1), loss="interpolant", **FEW)


def test_a_loss_of_the_library_by_its_function():
    by_name, by_function = (
        sk.fit(network(), X, sk.VP(), loss=loss, **FEW).losses for loss in ("sliced", sk.losses.sliced)
    )
    assert torch.equal(by_name, by_function)


def test_an_energy_predicts_a_score():
    model = sk.fit(sk.Energy(Bowl()), X, sk.VP(), **FEW).model
    assert model.predicts == "score"
    assert torch.equal(model.score(X, 0.5), model.net(X))


def test_losses_of_denoisers_refuse_networks():
    for loss in (sk.losses.denoising, sk.losses.likelihood_weighted):
        with pytest.raises(TypeError, match=r"takes a Denoiser, got MLP. Next: sdekit.Denoiser"):
            loss(network(), X)


def test_float64_data_and_float32_weights():
    model = sk.Denoiser(network(), sk.VP())
    for call in (lambda x: model.score(x, 0.5), lambda x: sk.losses.denoising(model, x)):
        with pytest.raises(
            ShapeError, match=r"float32 weights and failed on x of dtype torch.float64.*Next: x.to"
        ):
            call(X.double())


def test_a_loader_of_a_stream_has_no_length():
    class Numbers(IterableDataset):
        def __iter__(self):
            return iter(X)

    result = sk.fit(network(), DataLoader(Numbers(), batch_size=16), sk.VP(), **FEW)
    assert torch.isfinite(result.losses).all()


def test_one_level_is_a_sequence_of_one():
    with pytest.raises(TypeError, match=r"one for each level, got 2. Next: \(1, 2\)"):
        sk.nets.UNet(1, width=8, multipliers=2)
