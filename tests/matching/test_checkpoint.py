"""Trained models on disk: exact round trips, nothing executed, clear refusals."""

from __future__ import annotations

import sys

import pytest
import safetensors.torch
import torch
from torch import nn

import sdekit as sk
from sdekit.errors import OptionalDependencyError
from sdekit.matching import load, nets, save
from sdekit.matching.checkpoint import read_header
from sdekit.score import Denoiser


class Custom(nn.Module):
    def __init__(self, width=3):
        super().__init__()
        self.layer = nn.Linear(2, width)
        self.back = nn.Linear(width, 2)
        self.register_buffer("count", torch.tensor(7))

    def forward(self, x, t):
        return self.back(torch.tanh(self.layer(x))) * t[:, None]


@pytest.mark.parametrize(
    ("net", "process", "options"),
    [
        (nets.MLP((2, 3), width=8, depth=1, seed=1), sk.VP(0.2, 15.0, t_min=1e-4), {"predicts": "v"}),
        (nets.UNet(2, width=4, attention=True, seed=2), sk.VE(0.02, 9.0), {"time": "sigma"}),
        (
            nets.MLP(3, width=8, depth=1, features="real", seed=1).double(),
            sk.EDM(),
            {"predicts": "edm", "data_std": 0.4, "data_spread": 0.9},
        ),
        (nets.MLP(3, width=8, seed=1), sk.DiscreteVP([0.9, 0.5, 0.1]), {"time": "index", "predicts": "x0"}),
    ],
)
def test_a_model_comes_back_exactly(net, process, options, tmp_path):
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.1)
    model = Denoiser(net, process, **options)
    path = save(model, tmp_path / "model.safetensors", extra={"note": "hello"})
    back = load(path)
    assert type(back.net) is type(net)
    assert back.net.config == net.config
    assert not back.net.training
    assert back.process == process
    for name in ("predicts", "time", "data_std", "data_spread"):
        assert getattr(back, name) == getattr(model, name)
    event = (2, 4, 4) if isinstance(net, nets.UNet) else net.event_shape
    dtype = next(net.parameters()).dtype
    x = torch.randn(5, *event, dtype=dtype, generator=torch.Generator().manual_seed(0))
    t = 0.7 * process.t_max
    assert torch.equal(back.x0(x, t), model.x0(x, t))
    assert read_header(path)["extra"] == {"note": "hello"}


def test_another_network_is_filled_in_place(tmp_path):
    path = save(Denoiser(Custom(), sk.VP()), tmp_path / "custom.safetensors")
    with pytest.raises(ValueError, match=r"the network is a Custom.*load\(path, net\)"):
        load(path)
    net = Custom()
    assert load(path, net).net is net
    with pytest.raises(ValueError, match="do not fit this Custom: 3 tensors differ"):
        load(path, Custom(width=4))


def test_functions_are_not_saved(tmp_path):
    path = save(Denoiser(Custom(), sk.VP(), time=lambda t: 2 * t), tmp_path / "m.safetensors")
    with pytest.raises(ValueError, match="saved with a callable `time`"):
        load(path, Custom())
    assert load(path, Custom(), time=lambda t: 2 * t).time(3) == 6


def test_other_files_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "absent.safetensors")
    text = tmp_path / "text.safetensors"
    text.write_text("no weights here")
    with pytest.raises(ValueError, match="is not a safetensors file"):
        load(text)
    foreign = tmp_path / "foreign.safetensors"
    safetensors.torch.save_file({"w": torch.ones(2)}, foreign)
    with pytest.raises(ValueError, match="has no sdekit header"):
        load(foreign)
    with pytest.raises(TypeError, match=r"only an nn.Module has weights"):
        save(Denoiser(lambda x, t: x, sk.VP()), tmp_path / "f.safetensors")


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = save(Denoiser(nets.MLP(2, width=4), sk.VP()), tmp_path / "m.safetensors")
    before = path.read_bytes()

    def fail(*args, **kwargs):
        raise OSError("disk full")

    monkeypatch.setattr(safetensors.torch, "save_file", fail)
    with pytest.raises(OSError, match="disk full"):
        save(Denoiser(nets.MLP(2, width=8), sk.VP()), path)
    assert path.read_bytes() == before


def test_without_safetensors_the_error_says_how_to_install_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    with pytest.raises(OptionalDependencyError, match="pip install 'sdekit"):
        save(Denoiser(nets.MLP(2, width=4), sk.VP()), tmp_path / "m.safetensors")
