"""fit in the hands of a newcomer: what is nearly right works or says what to do."""

from __future__ import annotations

import sys
from collections import Counter

import numpy as np
import pytest
import torch
from torch import nn

import sdekit as sk
from sdekit.errors import NonFiniteError, ShapeError
from sdekit.matching import fit, load, logs, nets
from sdekit.matching.resume import read_state, state_path
from tests.matching.test_fit import same

X = torch.randn(40, 2, generator=torch.Generator().manual_seed(0))
Y = [n % 3 for n in range(40)]


def small(**options):
    return nets.MLP(2, width=8, depth=1, seed=0, **options)


def run(net=None, data=X, process=None, **options):
    given = {"steps": 4, "batch_size": 16, "progress": False}
    return fit(small() if net is None else net, data, process or sk.VP(), **given | options)


class Layers(nn.Module):
    def __init__(self, activation):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(3, 4), activation, nn.Linear(4, 2))

    def forward(self, x, t):
        return self.layers(torch.cat([x, t[:, None]], dim=1))


# -- what works ------------------------------------------------------------------------------------------


def test_numbers_and_arrays_of_any_kind_are_the_same_run(tmp_path):
    one = run(small(classes=3), labels=Y, held_out=0.25, seed=7, checkpoint=tmp_path / "a" / "b" / "m")
    same_data = [
        (X.double().numpy(), np.array(Y, dtype=np.uint16), np.float32(0.25)),
        (X.tolist(), torch.tensor(Y), torch.tensor(0.25)),
        (list(X.numpy()), [torch.tensor(y) for y in Y], 0.25),
    ]
    for k, (x, y, held_out) in enumerate(same_data):
        other = run(
            small(classes=3), x, labels=y, held_out=held_out, seed=np.int64(7), clip=np.float32(1.0),
            drop_labels=np.float64(0.1), steps=np.int64(4), checkpoint=tmp_path / f"{k}.safetensors",
        )  # fmt: skip
        assert torch.equal(other.losses, one.losses)
        assert torch.equal(other.held_out, one.held_out)
        assert same(other.model.net, one.model.net)
    assert run(held_out=np.int64(0)).held_out.shape == (0,)
    assert same(load(tmp_path / "a" / "b" / "m").net, one.model.net)


def test_the_loss_is_a_mean_over_batch_and_elements():
    """The given values sum over the two elements: the loss of the whole batch is the mean square."""
    result = run(
        loss=lambda model, x, seed, draw: x.square().sum(dim=1) + 0 * model.net.enter.weight.sum(),
        batch_size=40, held_out=0,
    )  # fmt: skip
    assert result.losses.tolist() == pytest.approx([float(X.square().mean())] * 4)


def test_the_held_out_loss_is_always_on_the_same_times_and_noise():
    """Weights that stand still have one held-out loss."""
    result = run(schedule=lambda n: 0.0, check_every=1)
    assert len(result.held_out) == 4
    assert len(set(result.held_out.tolist())) == 1


def test_a_bar_in_a_file_is_rare_and_on_a_screen_it_is_not(monkeypatch):
    monkeypatch.delitem(sys.modules, "ipykernel", raising=False)
    for screen, seconds in ((True, logs.WATCHED), (False, logs.LOGGED)):
        monkeypatch.setattr(sys.stderr, "isatty", lambda screen=screen: screen)
        bar = logs.progress_bar(3, True)
        assert bar.mininterval == seconds
        bar.close()
    assert logs.progress_bar(3, False) is None


# -- what is refused -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        ((X, torch.tensor(Y)), TypeError, r"a pair \(x, labels\).*labels=labels"),
        ((X.numpy(), np.array(Y)), TypeError, r"a pair \(x, labels\)"),
        (list(X), ShapeError, r"a list of 40 tensors of shape \(2,\).*torch.stack\(data\)"),
        ({"image": X}, TypeError, r"data is a dict.*data\['image'\]"),
        (None, ShapeError, "data must be a tensor or array"),
    ],
)
def test_data_of_another_kind_are_named(data, error, message):
    with pytest.raises(error, match=message):
        run(data=data)


def test_networks_that_do_not_fit_are_named():
    with pytest.raises(TypeError, match=r"called as net\(x, t\), and Linear cannot be"):
        run(nn.Linear(2, 2))
    with pytest.raises(TypeError, match=r"got the class MLP. Next: MLP\(...\)"):
        run(nets.MLP)
    with pytest.raises(TypeError, match=r"got FitResult. Next: its model"):
        run(run())
    with pytest.raises(ValueError, match=r"bfloat16 weights.*autocast=torch.bfloat16"):
        run(small().bfloat16())
    lazy = Layers(nn.SiLU())
    lazy.layers[0] = nn.LazyLinear(4)
    with pytest.raises(ValueError, match="lazy layers.*call it once"):
        run(lazy)
    labelled = Layers(nn.SiLU())
    labelled.classes = 3
    with pytest.raises(TypeError, match=r"called as net\(x, t, label\), and Layers cannot be"):
        run(labelled, labels=Y)


def test_arguments_that_do_not_fit_are_named():
    model = sk.Denoiser(small(), sk.VP())
    with pytest.raises(TypeError, match=r"holds its own predicts, here 'eps', and got predicts='x0'"):
        fit(model, X, predicts="x0", steps=1)
    with pytest.raises(TypeError, match="holds its own time, here 't'"):
        fit(model, X, time="sigma", steps=1)
    with pytest.raises(TypeError, match=r"as sdekit.VP\(\), got the class VP"):
        run(process=sk.VP)
    with pytest.raises(TypeError, match="got str"):
        run(process="vp")
    with pytest.raises(TypeError, match=r"loss\(model, x, seed=, draw=\), and cannot be.*'seed'"):
        run(loss=lambda model, x: x)
    with pytest.raises(TypeError, match=r"called as loss\(model, x, seed=, draw=, factor=\)"):
        run(loss=lambda model, x, seed, draw: x, factor=2.0)
    with pytest.raises(TypeError, match="callback must be a function"):
        run(callback=[print])
    with pytest.raises(TypeError, match="seed must be an integer"):
        run(seed=None)
    with pytest.raises(TypeError, match=r"'optimizer' is neither.*Next: optimiser="):
        run(optimizer=torch.optim.Adam)
    with pytest.raises(ValueError, match=r"fraction.*got 8.*8/40 for so many samples"):
        run(held_out=8)
    with pytest.raises(TypeError, match=r"the network has no classes. Next: held_out=x"):
        run(held_out=(X, torch.tensor(Y)))
    for block in (torch.no_grad(), torch.inference_mode()):
        with block, pytest.raises(RuntimeError, match="gradients, and they are switched off here"):
            run()


def test_checkpoints_where_none_can_be_are_named_before_training(tmp_path):
    steps = Counter()
    count = {"callback": lambda n, report: steps.update([n])}
    with pytest.raises(ValueError, match="must name a file.*model.safetensors"):
        run(checkpoint=tmp_path, **count)
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="lies in a file|which is a file"):
        run(checkpoint=tmp_path / "file" / "m.safetensors", **count)
    assert not steps


# -- runs that go on -------------------------------------------------------------------------------------


def test_a_finished_run_brings_its_model_back(tmp_path):
    path = tmp_path / "m.safetensors"
    net = run(checkpoint=path).model.net
    path.unlink()
    run(checkpoint=path, resume=True)
    assert same(load(path).net, net)


def test_a_lost_or_broken_state_is_named(tmp_path):
    path = tmp_path / "m.safetensors"
    run(checkpoint=path)
    state = state_path(path)
    state.write_bytes(state.read_bytes()[:400])
    with pytest.raises(ValueError, match=r"not a safetensors file.*cut off.*resume=False"):
        run(checkpoint=path, resume="auto")
    state.unlink()
    with pytest.raises(FileNotFoundError, match=r"m.state.safetensors to go on from.*resume='auto'"):
        run(checkpoint=path, resume=True)


def test_layers_of_equal_shapes_are_not_the_same_network(tmp_path):
    path = tmp_path / "m.safetensors"
    run(Layers(nn.SiLU()), checkpoint=path)
    with pytest.raises(ValueError, match=r"network was 'Layers.*a network of the same layers"):
        run(Layers(nn.ReLU()), checkpoint=path, resume=True)
    run(Layers(nn.SiLU()), checkpoint=path, resume=True)


class Root(nn.Module):
    """A gradient that is not finite, of a loss that is, at the call ``at``."""

    def __init__(self, at):
        super().__init__()
        self.a, self.calls, self.at = nn.Parameter(torch.ones(())), 0, at

    def forward(self, x, t):
        self.calls += self.training
        root = (0 * self.a).sqrt() if self.calls == self.at and self.training else 0
        return self.a * x + root


def test_weights_that_a_gradient_has_spoilt_are_not_kept(tmp_path):
    path = tmp_path / "m.safetensors"
    options = {"steps": 8, "check_every": 3, "held_out": 0, "checkpoint": path}
    with pytest.raises(NonFiniteError, match=r"weights are not finite after step 5.*square root"):
        run(Root(at=6), **options)
    assert read_state(state_path(path))[1]["step"] == 3
    assert torch.isfinite(load(path, Root(0)).net.a)

    def stop(n, report):
        if n == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(Root(at=5), callback=stop, **options)
    assert read_state(state_path(path))[1]["step"] == 3
