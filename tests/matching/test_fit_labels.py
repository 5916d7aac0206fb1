"""fit with class labels: one model for each class, and one without."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import sdekit as sk
from sdekit.errors import ShapeError
from sdekit.matching import ClassDenoiser, fit, load, nets
from sdekit.matching.labels import dropped


class Constant(nn.Module):
    """x0-prediction: one vector for each class and one for none. Its best value is the mean of the rows."""

    def __init__(self, classes=3):
        super().__init__()
        self.classes = classes
        self.table = nn.Embedding(classes + 1, 2)
        nn.init.zeros_(self.table.weight)

    def forward(self, x, t, label=None):
        if label is None:
            label = torch.full(x.shape[:1], self.classes)
        return self.table(label)


MEANS = torch.tensor([[0.0, 1.0], [2.0, 0.0], [-1.0, -3.0]])


def data(n=300):
    labels = torch.arange(n) % 3
    x = MEANS[labels] + 0.1 * torch.randn(n, 2, generator=torch.Generator().manual_seed(0))
    return x, labels


def test_every_class_and_no_class_learn_their_means():
    """SGD with a rate that falls to 0: each vector is the mean of its rows, "no class" that of all."""
    x, labels = data()
    result = fit(
        Constant(), x, sk.VP(), predicts="x0", labels=labels.numpy().astype(np.int32), drop_labels=0.3,
        optimiser=lambda p: torch.optim.SGD(p, lr=5.0), steps=600, batch_size=150, warmup=0, clip=None,
        held_out=0, progress=False,
    )  # fmt: skip
    model = result.model
    assert isinstance(model, ClassDenoiser)
    at = torch.zeros(1, 2)
    for k in range(3):
        torch.testing.assert_close(model.given(k).x0(at, 0.5)[0], x[labels == k].mean(0), atol=0.02, rtol=0)
    torch.testing.assert_close(model.x0(at, 0.5)[0], x.mean(0), atol=0.1, rtol=0)


def test_without_dropping_no_class_is_not_trained():
    x, labels = data()
    options = {"predicts": "x0", "steps": 5, "progress": False}
    model = fit(Constant(), x, sk.VP(), labels=labels, drop_labels=0, **options).model
    assert not model.net.table.weight[3].any()
    assert model.net.table.weight[:3].all()
    model = fit(Constant(), x, sk.VP(), labels=labels, drop_labels=1, **options).model
    assert model.net.table.weight[3].all()
    assert not model.net.table.weight[:3].any()


def test_labels_are_dropped_at_the_rate_asked_for_and_from_the_seed():
    """60,000 labels at 0.2: five standard deviations, false alarm 6e-7."""
    labels = torch.arange(60_000) % 7
    out = dropped(labels, 0.2, 7, seed=1, draw=4)
    gone = out == 7
    assert abs(float(gone.double().mean()) - 0.2) < 5 * math.sqrt(0.2 * 0.8 / 60_000)
    assert torch.equal(out[~gone], labels[~gone])
    assert torch.equal(out, dropped(labels, 0.2, 7, seed=1, draw=4))
    assert not torch.equal(out, dropped(labels, 0.2, 7, seed=1, draw=5))
    assert not torch.equal(out, dropped(labels, 0.2, 7, seed=2, draw=4))
    counts = torch.bincount(labels[gone], minlength=7).double()
    assert float((counts / counts.mean() - 1).abs().max()) < 0.13  # 5 sd of 1,714: no class is spared


def test_held_out_data_keep_their_labels():
    """The held-out loss is that of each row's own class: 0 for a network that knows the rows by class."""
    x, labels = MEANS.repeat(20, 1), torch.arange(60) % 3
    net = Constant()
    with torch.no_grad():
        net.table.weight[:3] = MEANS
    options = {
        "predicts": "x0", "optimiser": lambda p: torch.optim.SGD(p, lr=0.0), "steps": 1, "progress": False,
    }  # fmt: skip
    for held in (0.3, (MEANS[[2, 0]], [2, 0])):
        assert float(fit(net, x, sk.VP(), labels=labels, held_out=held, **options).held_out) == 0
    assert (
        float(fit(net, x, sk.VP(), labels=labels, held_out=(MEANS[[2, 0]], [0, 2]), **options).held_out) > 1
    )


def test_a_model_of_a_class_samples_it_and_tells_its_likelihood(tmp_path):
    """Two far clusters: samples of a class lie at its own, and log p(x | class) tells them apart."""
    n = 200
    labels = torch.arange(n) % 2
    x = torch.where(labels == 0, -1.0, 1.0)[:, None] + 0.2 * torch.randn(
        n, 1, generator=torch.Generator().manual_seed(0)
    )
    path = tmp_path / "m.safetensors"
    net = nets.MLP(1, width=16, depth=1, classes=2, seed=0)
    result = fit(net, x, sk.VP(), labels=labels, steps=150, lr=1e-2, progress=False, checkpoint=path)
    back = load(path)
    for model in (result.model, back):
        for k, mean in ((0, -1.0), (1, 1.0)):
            samples = sk.sample(model.given(k), (64, 1), steps=10).x
            assert float((samples * mean > 0).float().mean()) > 0.95
    values = torch.stack([sk.log_prob(back.given(k), x[:8], trace="exact").value for k in range(2)])
    assert torch.equal(values.argmax(dim=0), labels[:8])


@pytest.mark.parametrize("pairs", [True, False])
def test_labels_come_with_the_batches(pairs):
    x, labels = data()
    options = {"predicts": "x0", "steps": 6, "progress": False, "drop_labels": 0}
    whole = TensorDataset(x, labels) if pairs else DataLoader(TensorDataset(x, labels), batch_size=100)
    model = fit(Constant(), whole, sk.VP(), **options).model
    assert model.net.table.weight[:3].all()
    assert not model.net.table.weight[3].any()


def test_labels_that_do_not_fit_are_named():
    x, labels = data(30)

    def run(net=None, data=x, process=None, **options):
        net = Constant() if net is None else net
        fit(net, data, process or sk.VP(), predicts="x0", steps=1, progress=False, **options)

    with pytest.raises(TypeError, match=r"network has 3 classes, and no labels were given"):
        run()
    with pytest.raises(TypeError, match=r"labels were given to a network without classes"):
        run(nets.MLP(2, width=4), labels=labels)
    with pytest.raises(ShapeError, match=r"labels must have shape \(30,\).*got \(29,\)"):
        run(labels=labels[1:])
    with pytest.raises(ShapeError, match=r"labels must be whole numbers, got dtype torch.float32.*one-hot"):
        run(labels=torch.eye(3)[labels])
    with pytest.raises(ShapeError, match=r"labels must be whole numbers of shape \(30,\), got str"):
        run(labels="cats")
    with pytest.raises(ValueError, match=r"got 3 at sample 2 \(10 of 30 outside\).*counted from 1"):
        run(labels=labels + 1)
    with pytest.raises(ValueError, match=r"got -1 at sample 0"):
        run(labels=labels - 1)
    with pytest.raises(TypeError, match=r"held_out came without labels.*held_out=\(x, labels\)"):
        run(labels=labels, held_out=x[:4])
    with pytest.raises(ShapeError, match=r"held-out labels must have shape \(4,\)"):
        run(labels=labels, held_out=(x[:4], labels[:3]))
    with pytest.raises(ValueError, match=r"drop_labels must be a probability"):
        run(labels=labels, drop_labels=1.5)
    with pytest.raises(TypeError, match=r"labels go with data in memory, and data is DataLoader"):
        run(data=DataLoader(x, batch_size=10), labels=labels)
    with pytest.raises(ShapeError, match=r"a batch must be \(x, labels\) for a network of 3 classes"):
        run(data=DataLoader(x, batch_size=10))
    with pytest.raises(TypeError, match=r"classes need a process with alpha\(t\) and sigma\(t\)"):
        fit(Constant(), x, loss="implicit", labels=labels, steps=1)
