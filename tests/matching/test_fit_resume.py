"""Runs that are stopped and resumed: equal to one that was not, bit for bit; other runs are refused."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import sdekit as sk
from sdekit.errors import NonFiniteError
from sdekit.matching import CSVLog, fit, load, nets
from sdekit.matching.resume import read_state, state_path

STEPS = 24


def images(n=40):
    return torch.randn(n, 1, 4, 4, generator=torch.Generator().manual_seed(0))


def unet(seed=0):
    """With dropout, whose masks come from torch's generator."""
    return nets.UNet(1, width=4, multipliers=(1,), dropout=0.3, classes=3, seed=seed)


def mlp(seed=0):
    return nets.MLP((1, 4, 4), width=8, depth=1, classes=3, seed=seed)


def train(path=None, net=None, **options):
    """Every random number of a run: order, times, noise, dropout, dropped labels, held-out loss."""
    given = {"labels": torch.arange(40) % 3, "check_every": 7, "batch_size": 12, "steps": STEPS}
    net = unet() if net is None else net
    result = fit(net, images(), sk.VP(), progress=False, checkpoint=path, **given | options)
    return result, net


def equal(one, other):
    (a, raw_a), (b, raw_b) = one, other
    for x, y in ((a.model.net, b.model.net), (raw_a, raw_b)):
        x, y = x.state_dict(), y.state_dict()
        assert all(torch.equal(x[k], y[k]) for k in x)
    assert torch.equal(a.losses, b.losses)
    assert torch.equal(a.held_out, b.held_out)
    assert torch.equal(a.held_out_steps, b.held_out_steps)


class Stop(Exception):
    pass


def stopper(step, error=Stop):
    def callback(n, report):
        if n == step:
            raise error

    return callback


@pytest.mark.parametrize("kills", [(17,), pytest.param((9, 14, 15, 23), marks=pytest.mark.slow)])
def test_a_run_killed_at_any_moment_resumes_to_the_same_weights(kills, tmp_path):
    """SIGKILL comes from outside once so many steps have been told of, at whatever the run then does."""
    path = tmp_path / "m.safetensors"
    script = """
import sys
from tests.matching.test_fit_resume import train
train(sys.argv[1], resume="auto", callback=lambda n, report: print(n, flush=True))
"""
    for kill in kills:
        child = subprocess.Popen(
            [sys.executable, "-c", script, str(path)], stdout=subprocess.PIPE, text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        for line in child.stdout:
            if int(line) >= kill:
                child.kill()
                break
        child.stdout.close()
        assert child.wait() == -signal.SIGKILL
        done = read_state(state_path(path))[1]["step"]
        assert 0 < done <= STEPS
    assert done >= (kills[-1] - 1) // 7 * 7
    equal(train(path, net=unet(seed=5), resume=True), train())


@pytest.mark.parametrize("error", [Stop, KeyboardInterrupt])
def test_an_error_or_ctrl_c_loses_no_step(error, tmp_path):
    path = tmp_path / "m.safetensors"
    with pytest.raises(error):
        train(path, callback=stopper(17, error))
    assert read_state(state_path(path))[1]["step"] == 17  # the check before was at 14
    equal(train(path, net=unet(seed=5), resume=True), train())


@pytest.fixture
def interruptible():
    """Python's handler of Ctrl-C, also where the shell that started the tests has it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_ctrl_c_waits_for_the_end_of_the_step(tmp_path):
    path = tmp_path / "m.safetensors"
    before = signal.getsignal(signal.SIGINT)

    class Impatient(nn.Module):
        """Ctrl-C in the midst of step 5."""

        def __init__(self):
            super().__init__()
            self.net, self.calls, self.at = nets.MLP(2, width=8, depth=1, seed=0), 0, None

        def forward(self, x, t):
            self.calls += 1
            if self.calls == self.at:
                signal.raise_signal(signal.SIGINT)
            return self.net(x, t)

    x = images().reshape(-1, 2)
    options = {"steps": 9, "held_out": 0, "progress": False}
    net = Impatient()
    net.at = 5
    with pytest.raises(KeyboardInterrupt):
        fit(net, x, sk.VP(), checkpoint=path, **options)
    assert signal.getsignal(signal.SIGINT) is before
    assert read_state(state_path(path))[1]["step"] == 5
    again = fit(Impatient(), x, sk.VP(), checkpoint=path, resume=True, **options)
    straight = fit(Impatient(), x, sk.VP(), **options)
    assert torch.equal(again.losses, straight.losses)


@pytest.mark.parametrize(
    "optimiser",
    [
        lambda p: torch.optim.AdamW(p, lr=2e-3, weight_decay=0.1),
        lambda p: torch.optim.SGD(p, lr=1e-3, momentum=0.9),
        lambda p: torch.optim.NAdam(p, lr=1e-3),
    ],
)
def test_any_optimiser_resumes(optimiser, tmp_path):
    path = tmp_path / "m.safetensors"
    options = {"optimiser": optimiser, "steps": 12, "schedule": lambda n: 1 / (1 + n)}
    with pytest.raises(Stop):
        train(path, mlp(), callback=stopper(8), **options)
    equal(train(path, mlp(5), resume=True, **options), train(net=mlp(), **options))


class Shuffled(torch.utils.data.Dataset):
    """Items with an augmentation drawn from torch's generator."""

    def __len__(self):
        return 40

    def __getitem__(self, i):
        x = images()[i]
        return (x.flip(-1) if torch.rand(()) < 0.5 else x) + 0.1 * torch.randn(x.shape), i % 3


@pytest.mark.parametrize(
    "data",
    [
        lambda: Shuffled(),
        lambda: DataLoader(Shuffled(), batch_size=12, shuffle=True),
        lambda: DataLoader(
            Shuffled(), batch_size=12, shuffle=True, generator=torch.Generator().manual_seed(4)
        ),
    ],
    ids=["dataset", "loader", "loader with a generator"],
)
def test_data_sets_and_loaders_resume_in_the_midst_of_a_pass(data, tmp_path):
    """40 samples are 4 batches of at most 12: step 10 is the second of the third pass."""
    path = tmp_path / "m.safetensors"
    options = {"steps": 15, "check_every": 4, "progress": False}
    options["held_out"] = (images(6), torch.arange(6) % 3)
    straight, resumed = unet(), unet(seed=5)
    torch.manual_seed(1)
    a = fit(straight, data(), sk.VP(), **options)
    torch.manual_seed(2)
    with pytest.raises(Stop):
        fit(unet(), data(), sk.VP(), checkpoint=path, callback=stopper(10), **options)
    b = fit(resumed, data(), sk.VP(), checkpoint=path, resume=True, **options)
    equal((a, straight), (b, resumed))
    assert a.model.data_std == b.model.data_std


def test_an_order_that_does_not_come_back_is_refused(tmp_path):
    path = tmp_path / "m.safetensors"
    orders = iter(range(100))

    class Unsteady:
        """Batches in an order that nothing seeds."""

        def __iter__(self):
            return iter(torch.roll(images(), next(orders), 0).split(10))

    options = {"steps": 6, "progress": False}
    net = nets.UNet(1, width=4, seed=0)
    with pytest.raises(Stop):
        fit(net, Unsteady(), sk.VP(), checkpoint=path, callback=stopper(3), **options)
    with pytest.raises(ValueError, match=r"Unsteady came in another order than before.*resume=False"):
        fit(net, Unsteady(), sk.VP(), checkpoint=path, resume=True, **options)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 1}, "seed was 0, is 1"),
        ({"lr": 2e-3}, "optimiser was 'Adam .*0.002"),
        ({"steps": STEPS + 1}, "steps was 24, is 25.*cosine is made for its number of steps"),
        ({"labels": torch.arange(1, 41) % 3}, "data was .*the same data"),
        ({"drop_labels": 0.2}, "drop_labels was 0.1, is 0.2"),
        ({"weighting": "noise"}, "options was {}, is {'weighting': 'noise'}"),
        ({"loss": "likelihood_weighted"}, "loss was 'denoising', is 'likelihood_weighted'"),
        ({"ema": 0.9, "clip": None}, "clip was 1.0, is None; ema was 0.999, is 0.9"),
        ({"held_out": 0.2}, "held_out was"),
        ({"net": nets.UNet(1, width=8, classes=3)}, "network was"),
    ],
)
def test_another_run_is_refused_and_the_difference_named(change, message, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "one.safetensors"
    if not path.exists():
        with pytest.raises(Stop):
            train(path, callback=stopper(2))
    with pytest.raises(ValueError, match=rf"one.state.safetensors belongs to another run: .*{message}"):
        train(path, resume=True, **change)


def test_more_steps_where_the_schedule_does_not_depend_on_them(tmp_path):
    path = tmp_path / "m.safetensors"
    options = {"schedule": "constant", "warmup": 4, "held_out": 0}
    train(path, steps=15, net=mlp(), **options)
    equal(train(path, mlp(5), steps=25, resume=True, **options), train(net=mlp(), steps=25, **options))
    with pytest.raises(ValueError, match=r"steps was 25, is 20"):
        train(path, mlp(), steps=20, resume=True, **options)


def test_a_finished_run_is_not_run_again(tmp_path):
    path = tmp_path / "m.safetensors"
    one = train(path, mlp())
    before = path.read_bytes()
    told = []
    equal(train(path, mlp(5), resume="auto", callback=lambda n, r: told.append(n)), one)
    assert told == []
    assert path.read_bytes() == before


def test_resume_needs_a_state_unless_auto(tmp_path):
    path = tmp_path / "m.safetensors"
    with pytest.raises(FileNotFoundError, match=r"m.state.safetensors"):
        train(path, resume=True, steps=2)
    with pytest.raises(ValueError, match=r"resume needs the checkpoint"):
        train(resume=True, steps=2)
    with pytest.raises(ValueError, match=r"resume must be True, False or 'auto', got 'yes'"):
        train(path, resume="yes", steps=2)
    train(path, resume="auto", steps=2)
    state_path(path).write_bytes(path.read_bytes())
    with pytest.raises(ValueError, match=r"is not the state of a training run"):
        train(path, resume="auto", steps=2)
    train(path, steps=2)  # anew


def test_the_state_is_kept_from_a_loss_that_is_not_finite(tmp_path):
    """The last state before the weights were spoilt stays."""
    path = tmp_path / "m.safetensors"

    class Fragile(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Parameter(torch.zeros(()))
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x, t):
            if self.training:
                self.calls += 1
            return self.a * x * (torch.inf if self.calls > 10 else 1)

    with pytest.raises(NonFiniteError, match="at step 10"):
        fit(Fragile(), images(), sk.VP(), steps=20, check_every=4, progress=False, checkpoint=path)
    assert read_state(state_path(path))[1]["step"] == 8
    assert torch.isfinite(load(path, Fragile()).net.a)


def test_a_step_that_fails_half_way_leaves_the_last_whole_state(tmp_path):
    """A buffer that the failing step has changed already is not written over the one before."""
    path = tmp_path / "m.safetensors"

    class Counting(nn.Module):
        def __init__(self, fail_at=None):
            super().__init__()
            self.a, self.fail_at = nn.Parameter(torch.zeros(())), fail_at
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x, t):
            if self.training:
                self.calls += 1
            if self.calls == self.fail_at:
                raise Stop
            return self.a * x * (1 + self.calls)

    options = {"steps": 12, "check_every": 5, "progress": False}
    with pytest.raises(Stop):
        fit(Counting(8), images(), sk.VP(), checkpoint=path, **options)
    tensors, header = read_state(state_path(path))
    assert (header["step"], float(tensors["net/calls"])) == (5, 5)
    again = fit(Counting(), images(), sk.VP(), checkpoint=path, resume=True, **options)
    assert torch.equal(again.losses, fit(Counting(), images(), sk.VP(), **options).losses)


def test_a_log_goes_on_where_the_run_does(tmp_path):
    path, log = tmp_path / "m.safetensors", tmp_path / "log.csv"
    whole = tmp_path / "whole.csv"
    logged = CSVLog(log)

    def both(n, report):
        logged(n, report)
        if n == 17:
            raise NonFiniteError("no state is kept now, as when a run is killed: the last is of step 14")

    with pytest.raises(NonFiniteError):
        train(path, mlp(), callback=both)
    assert read_state(state_path(path))[1]["step"] == 14
    assert len(log.read_text().splitlines()) == 18
    train(path, mlp(5), resume=True, callback=CSVLog(log))
    train(net=mlp(), callback=CSVLog(whole))
    assert log.read_text() == whole.read_text()


def test_optimisers_whose_state_cannot_be_kept_are_named(tmp_path):
    class Odd(torch.optim.SGD):
        def step(self, closure=None):
            super().step()
            self.state[self.param_groups[0]["params"][0]]["history"] = [1, 2]

    with pytest.raises(TypeError, match=r"the state 'history' of Odd is list, which"):
        train(tmp_path / "m.safetensors", optimiser=lambda p: Odd(p, lr=1e-3), steps=2)


def test_a_loader_of_plain_tensors_and_its_pairs_agree():
    """The same batches, without a network of classes: the labels of the pairs are left aside."""
    x = images()
    options = {"steps": 5, "progress": False}

    def run(data):
        return fit(nets.UNet(1, width=4, seed=0), data, sk.VP(), **options).losses

    plain, pairs = DataLoader(x, batch_size=10), DataLoader(TensorDataset(x, torch.arange(40)), batch_size=10)
    assert torch.equal(run(plain), run(pairs))
    assert torch.equal(run(plain), run(list(x.split(10))))
