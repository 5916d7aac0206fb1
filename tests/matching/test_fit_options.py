"""fit: precision, compilation, optimisers, schedules, logs, loaders, EDM, and data that do not fit."""

from __future__ import annotations

import csv
import math
import sys
import types

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

import sdekit as sk
from sdekit.errors import NonFiniteError, OptionalDependencyError, ShapeError, UnknownNameError
from sdekit.matching import CSVLog, StepReport, TensorBoardLog, ema_rate, fit, layers, losses, nets
from sdekit.matching.data import Batches, permutation
from sdekit.matching.rates import rate
from tests.matching.test_fit import Linear, moons, same, small

X = moons().float()


def run(net=None, data=X, process=None, **options):
    given = {"steps": 6, "progress": False}
    return fit(small() if net is None else net, data, process or sk.VP(), **given | options)


# -- precision, compilation, optimisers ------------------------------------------------------------------


def test_autocast_runs_the_network_in_bfloat16_and_keeps_the_rest():
    seen = set()

    class Spy(nn.Module):
        def __init__(self):
            super().__init__()
            with layers.seeded(0):
                self.layer = nn.Linear(2, 2)

        def forward(self, x, t):
            out = self.layer(x)
            seen.add((self.training, out.dtype))
            return out

    result = run(Spy(), autocast=torch.bfloat16)
    assert seen == {(True, torch.bfloat16), (False, torch.float32)}
    assert result.losses.dtype == torch.float32
    assert all(p.dtype == torch.float32 for p in result.model.net.parameters())
    exact = run(Spy())
    torch.testing.assert_close(result.losses, exact.losses, rtol=0.02, atol=0)
    assert not torch.equal(result.losses, exact.losses)
    with pytest.raises(ValueError, match=r"autocast must be torch.bfloat16 or None, got torch.float16"):
        run(autocast=torch.float16)


def test_compile_trains_through_torch_compile(monkeypatch):
    """torch.compile itself is replaced: it is called on the network, and what it returns is trained."""
    calls = []

    def compile(module):
        def compiled(x, t):
            calls.append(len(x))
            return module(x, t)

        return compiled

    monkeypatch.setattr(torch, "compile", compile)
    net = small()
    a, b = run(net, compile=True, held_out=0, batch_size=50), run(held_out=0, batch_size=50)
    assert calls == [50] * 6
    assert same(a.model.net, b.model.net)
    assert a.model.net is not net


def test_a_compilation_that_fails_is_named(monkeypatch):
    def compile(module):
        def compiled(x, t):
            raise RuntimeError("no compiler was found\nand more")

        return compiled

    monkeypatch.setattr(torch, "compile", compile)
    with pytest.raises(RuntimeError, match=r"failed on MLP: no compiler was found Likely.*False"):
        run(compile=True)


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_a_compiled_run_agrees_with_one_that_is_not():
    a, b = run(compile=True), run()
    torch.testing.assert_close(a.losses, b.losses, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(a.held_out, b.held_out, rtol=1e-4, atol=1e-6)
    with pytest.raises(RuntimeError, match=r"torch.compile failed on MLP.*differentiates the network twice"):
        run(predicts="score", loss="sliced", compile=True)


@pytest.mark.parametrize("clip", [0.01, None])
def test_an_optimiser_of_ones_own_does_its_own_steps(clip):
    """One step of plain gradient descent by hand, gradient clipped or not."""
    net, by_hand = Linear(), Linear()
    reports = []
    run(
        net, X, optimiser=lambda p: torch.optim.SGD(p, lr=0.3), steps=1, warmup=0, held_out=0, clip=clip,
        callback=lambda n, r: reports.append(r), batch_size=100,
    )  # fmt: skip
    batch = Batches(X[permutation(len(X), 0)], 100, 0)[0]
    model = sk.Denoiser(by_hand, sk.VP())
    (losses.denoising(model, batch).mean() / 2).backward()
    gradient = torch.stack([by_hand.a.grad, by_hand.b.grad])
    norm = float(gradient.norm())
    factor = 1.0 if clip is None else min(1.0, clip / norm)
    torch.testing.assert_close(
        torch.stack([net.a, net.b]).detach(), -0.3 * factor * gradient, rtol=1e-4, atol=0
    )
    assert reports[0].gradient_norm == pytest.approx(norm, rel=1e-5)
    assert reports[0].lr == 0.3


def test_the_optimiser_is_adam_with_its_betas():
    """Its own sums differ by rounding, other betas by far more."""

    def adam(*betas):
        return lambda p: torch.optim.Adam(p, lr=1e-2, betas=betas)

    options = {"steps": 30, "held_out": 0}
    ours = run(lr=1e-2, **options).losses
    torch.testing.assert_close(ours, run(optimiser=adam(0.9, 0.99), **options).losses, rtol=1e-4, atol=0)
    for betas in ((0.9, 0.999), (0.8, 0.99)):
        other = run(optimiser=adam(*betas), **options).losses
        assert float((ours / other - 1).abs().max()) > 1e-3


def test_optimisers_that_do_not_fit_are_named():
    with pytest.raises(TypeError, match="lr belongs to Adam"):
        run(optimiser=lambda p: torch.optim.SGD(p, lr=1.0), lr=1e-3)
    with pytest.raises(TypeError, match=r"optimiser must be a function of the parameters, got str"):
        run(optimiser="adam")
    with pytest.raises(TypeError, match=r"got LBFGS"):
        run(optimiser=lambda p: torch.optim.LBFGS(p))
    other = nn.Linear(2, 2)
    with pytest.raises(TypeError, match=r"not the network's"):
        run(optimiser=lambda p: torch.optim.SGD(other.parameters(), lr=1.0))


def test_rates_follow_their_schedule():
    assert [rate(n, 10, 4, "constant") for n in range(6)] == [0.2, 0.4, 0.6, 0.8, 1, 1]
    assert rate(2, 8, 0, "cosine") == pytest.approx(0.5 * (1 + 0.5**0.5))
    assert [rate(n, 8, 0, "cosine") for n in (0, 8)] == [1.0, 0.0]
    assert rate(7, 10, 4, "cosine") == pytest.approx(0.5)
    assert rate(1, 10, 3, lambda n: 3.0 + n) == pytest.approx(0.5 * 4)
    seen = []
    run(steps=4, warmup=1, lr=0.01, schedule=lambda n: 1 / (1 + n), callback=lambda n, r: seen.append(r.lr))
    assert seen == pytest.approx([0.005, 0.005, 0.01 / 3, 0.0025])
    with pytest.raises(UnknownNameError, match="unknown schedule 'linear'"):
        run(schedule="linear")
    with pytest.raises(ValueError, match=r"schedule\(0\) must be finite and >= 0.*got -1"):
        run(schedule=lambda n: -1)


def test_none_keeps_the_last_weights_and_half_lives_are_in_samples():
    net = small()
    assert same(run(net, ema=None).model.net, net)
    m = ema_rate(5000, batch_size=100)
    assert m**50 == pytest.approx(0.5)
    with pytest.raises(ValueError, match="half_life must be finite and > 0"):
        ema_rate(0, batch_size=8)


# -- reports ---------------------------------------------------------------------------------------------


def test_a_callback_gets_every_step():
    seen = []
    result = run(steps=5, check_every=2, callback=lambda n, report: seen.append((n, report)))
    assert [n for n, _ in seen] == [r.step for _, r in seen] == [1, 2, 3, 4, 5]
    assert all(isinstance(r, StepReport) and r.steps == 5 for _, r in seen)
    assert [r.loss for _, r in seen] == result.losses.tolist()
    assert [n for n, r in seen if r.held_out is not None] == result.held_out_steps.tolist() == [2, 4, 5]
    held = [r.held_out for _, r in seen if r.held_out is not None]
    assert held == pytest.approx(result.held_out.tolist())


def test_a_callback_that_draws_does_not_change_the_run():
    plain = run(nets.UNet(1, width=4, dropout=0.5, seed=0), torch.randn(20, 1, 4, 4), held_out=0)
    torch.manual_seed(3)
    x = torch.randn(20, 1, 4, 4)
    a, b = (
        run(nets.UNet(1, width=4, dropout=0.5, seed=0), x, callback=call, held_out=0)
        for call in (None, lambda n, r: torch.randn(7))
    )
    assert torch.equal(a.losses, b.losses)
    assert not torch.equal(a.losses, plain.losses)


def test_csv_holds_what_was_reported(tmp_path):
    path = tmp_path / "logs" / "run.csv"
    seen = []
    log = CSVLog(path, every=2)
    run(steps=5, check_every=3, callback=lambda n, r: (log(n, r), seen.append(r)))
    with path.open() as file:
        rows = list(csv.DictReader(file))
    assert [int(r["step"]) for r in rows] == [2, 3, 4, 5]
    for row in rows:
        report = seen[int(row["step"]) - 1]
        for name in ("loss", "lr", "gradient_norm"):
            assert float(row[name]) == getattr(report, name)
        assert row["held_out"] == ("" if report.held_out is None else repr(report.held_out))
    run(steps=2, callback=CSVLog(path))
    assert len(path.read_text().splitlines()) == 3  # a new run, a new file


def test_tensorboard_gets_the_same_scalars(monkeypatch):
    written, state = [], {}

    class SummaryWriter:
        def __init__(self, directory, purge_step):
            state.update(directory=directory, purge_step=purge_step, closed=False)

        def add_scalar(self, name, value, step):
            written.append((name, value, step))

        def flush(self):
            pass

        def close(self):
            state["closed"] = True

    module = types.ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = SummaryWriter
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    result = run(steps=4, check_every=3, callback=TensorBoardLog("logs", every=2))
    assert state == {"directory": "logs", "purge_step": 1, "closed": True}
    assert [(v, n) for name, v, n in written if name == "loss"] == [
        (float(result.losses[n - 1]), n) for n in (2, 4)
    ]
    assert [n for name, _, n in written if name == "held_out"] == [3, 4]
    assert {name for name, _, _ in written} == {"loss", "held_out", "lr", "gradient_norm"}


def test_without_tensorboard_the_error_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(OptionalDependencyError, match=r"pip install tensorboard, or sdekit.matching.CSVLog"):
        TensorBoardLog("logs")


# -- loaders ---------------------------------------------------------------------------------------------


class Squares(Dataset):
    def __len__(self):
        return 30

    def __getitem__(self, i):
        return X[i]


def test_a_data_set_is_trained_as_its_array_is():
    a, b = run(data=Squares()), run(data=X[:30])
    assert torch.equal(a.losses, b.losses)
    assert torch.equal(a.held_out, b.held_out)
    assert (a.model.data_std, a.model.data_spread) == (b.model.data_std, b.model.data_spread)


def test_a_loader_gives_the_batches_and_starts_again():
    batches = []

    def loss(model, x, *, seed, draw):
        batches.append(x)
        return losses.denoising(model, x, seed=seed, draw=draw)

    loader = DataLoader(X[:25], batch_size=10)
    result = run(data=loader, loss=loss, steps=7)
    parts = [X[:10], X[10:20], X[20:25]]
    assert all(torch.equal(b, parts[n % 3]) for n, b in enumerate(batches))
    assert len(result.held_out) == 0
    std, spread = result.model.data_std, result.model.data_spread
    whole = run(data=X[:25], held_out=0).model
    assert (std, spread) == pytest.approx((whole.data_std, whole.data_spread))
    held = run(data=loader, held_out=X[25:40])
    assert len(held.held_out) > 0


def test_a_shuffling_loader_is_a_function_of_the_seed_and_new_in_every_pass():
    orders = {}

    def train(seed):
        batches = []

        def loss(model, x, *, seed, draw):
            batches.append(x)
            return losses.denoising(model, x, seed=seed, draw=draw)

        torch.manual_seed(len(orders))
        before = torch.get_rng_state()
        run(data=DataLoader(X[:20], batch_size=20, shuffle=True), loss=loss, steps=2, seed=seed)
        assert torch.equal(torch.get_rng_state(), before)
        return batches

    a, b, c = train(0), train(0), train(1)
    assert torch.equal(a[0], b[0])
    assert torch.equal(a[1], b[1])
    assert not torch.equal(a[0], a[1])
    assert not torch.equal(a[0], c[0])
    assert torch.equal(a[0].sort(0).values, X[:20].sort(0).values)


class Endless(IterableDataset):
    def __iter__(self):
        n = 0
        while True:
            yield X[n % 100 : n % 100 + 8].numpy()
            n += 8


def test_batches_may_be_arrays_and_never_end():
    assert torch.isfinite(run(data=Endless()).losses).all()


def test_loaders_that_do_not_fit_are_named():
    with pytest.raises(TypeError, match=r"an iterator, which ends after one pass"):
        run(data=iter([X, X]))
    with pytest.raises(ShapeError, match=r"DataLoader gives no batch.*drop_last=True"):
        run(data=DataLoader(X[:5], batch_size=10, drop_last=True))
    with pytest.raises(ShapeError, match=r"list|gives no batch|empty"):
        run(data=[])
    with pytest.raises(ValueError, match=r"a fraction cannot be held out of DataLoader"):
        run(data=DataLoader(X, batch_size=10), held_out=0.1)
    with pytest.raises(ShapeError, match=r"TensorDataset is empty"):
        run(data=TensorDataset(X[:0]))
    with pytest.raises(NonFiniteError, match=r"a batch holds NaN"):
        run(data=DataLoader(torch.full((4, 2), math.nan), batch_size=2))
    with pytest.raises(ShapeError, match=r"a batch must be floating.*8-bit"):
        run(data=[torch.zeros(4, 2, dtype=torch.uint8)])

    class Once:
        def __init__(self):
            self.batches = [X[:8]] * 3

        def __iter__(self):
            while self.batches:
                yield self.batches.pop()

    with pytest.raises(ShapeError, match=r"Once gave no batch in pass 0.*only once"):
        run(data=Once())


# -- EDM -------------------------------------------------------------------------------------------------


def test_an_edm_network_is_trained_at_edm_s_noise_levels():
    """ln(sigma) ~ N(-1.2 + ln(s/0.5), 1.2^2) in units of the data, weight 1 on F; or the law named."""
    x, process = 3.0 * X, sk.EDM()
    batch = Batches(x[permutation(len(x), 0)], 100, 0)[0]

    def net():
        return nets.MLP(2, width=16, depth=1, features="real", seed=0)

    def first(times):
        options = {"predicts": "edm", "times": times, "held_out": 0, "steps": 1, "batch_size": 100}
        result = run(net(), x, process, **options)
        return result.losses[0], result.model.data_std

    std = first(None)[1]
    model = sk.Denoiser(net(), process, "edm", data_std=std)
    law = losses.log_normal_times(process, -1.2 + math.log(std / 0.5), 1.2)
    for times, expected in ((None, law), ("edm", "edm"), ("log-snr", "log-snr")):
        value = losses.denoising(model, batch, times=expected).mean().detach() / 2
        torch.testing.assert_close(first(times)[0], value)


@pytest.mark.slow
def test_edm_s_samples_follow_the_data():
    target = sk.GaussianMixture([0.5, 0.5], [[-1.0], [1.0]], 0.04)
    net = nets.MLP(1, width=48, depth=2, features="real", seed=0)
    data = target.sample(2000, seed=1).float()
    result = run(net, data, sk.EDM(), predicts="edm", steps=300, lr=5e-3, batch_size=256)
    x = sk.sample(result.model, (400, 1), steps=12).x
    assert sk.metrics.energy_distance(x, target.sample(4000, seed=2).float()).value < 0.05


# -- data ------------------------------------------------------------------------------------------------


def test_a_constant_feature_is_learnt_like_any_other():
    """A pixel that is always 0: no division by its spread, finite samples, and it stays near 0."""
    x = torch.cat([X, torch.zeros(len(X), 1)], dim=1)
    result = run(nets.MLP(3, width=32, depth=1, seed=0), x, steps=200, lr=1e-2)
    c = np.cov(x[:, :2].numpy().T, bias=True)
    assert result.model.data_std == pytest.approx(math.sqrt(np.trace(c) / 3), rel=0.05)
    samples = sk.sample(result.model, (200, 3), steps=10).x
    assert torch.isfinite(samples).all()
    assert float(samples[:, 2].abs().median()) < 0.1 < float(samples[:, 0].abs().median())


def test_a_network_that_changes_its_input_is_named():
    class InPlace(Linear):
        def forward(self, x, t):
            x += 1
            return self.a * x

    with pytest.raises(ValueError, match="net changed its input x in place"):
        run(InPlace(), X)
