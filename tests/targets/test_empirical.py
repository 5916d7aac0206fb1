"""Empirical laws: accuracy at small noise, pieces of data and of states, memory, moments of many data."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import Tensor

import sdekit as sk
from sdekit.targets import Empirical, _moments, _rows, base, empirical


def data(n: int, d: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def direct(y: Tensor, x: Tensor, alpha: float, sigma: float, h: float = 0.0) -> tuple[Tensor, Tensor]:
    """(score, E[x0 | x]) from the differences x - alpha y_i, in float64."""
    x, y = x.double(), y.double()
    v = alpha**2 * h**2 + sigma**2
    w = torch.softmax(-(x[:, None] - alpha * y).square().sum(-1) / (2 * v), 1)
    m = w @ y
    return (alpha * m - x) / v, m + alpha * h**2 / v * (x - alpha * m)


@pytest.mark.parametrize("offset", [0.0, 1000.0])
@pytest.mark.parametrize("h", [0.0, 1e-3])
@pytest.mark.parametrize("sigma", [1e-4, 1e-3, 0.03, 1.0, 30.0])
def test_accuracy_against_the_direct_formula(sigma: float, h: float, offset: float) -> None:
    """States between two data a few sigma apart, where the weights decide; data far from zero too."""
    y = data(300, 20)
    y[1] = y[0] + 2 * sigma / 20**0.5
    y = y + offset
    half = (y[0] + y[1]) / 2 + sigma * data(6, 20, 1) / 3
    law = Empirical(y, h)
    for x in (half, half.float().double()):
        score, mean = direct(y, x, 1.0, sigma, h)
        got = law.denoiser(sk.VE()).fn(x, 1.0, sigma)
        scale = max(sigma, 1e-3) + 1e-9 * offset
        assert float((got - mean).abs().max()) < 1e-7 * scale + 1e-12 * offset
        own = law._field(law._score_at, x, 1.0, sigma)
        assert float((own - score).abs().max()) < 1e-6 * float(score.abs().max())


@pytest.mark.parametrize("sigma", [0.03, 0.3, 3.0])
def test_accuracy_in_float32(sigma: float) -> None:
    """float32 states of float32 data: within a few float32 roundings of the float64 result."""
    y = data(500, 64, dtype=torch.float32)
    x = (y[:20].double() + sigma * data(20, 64, 3)).float()
    law = Empirical(y, 0.02)
    single, double = (law.denoiser(sk.VE()).fn(z, 1.0, sigma) for z in (x, x.double()))
    assert single.dtype == torch.float32
    assert float((single - direct(y, x, 1.0, sigma, 0.02)[1]).abs().max()) < 2e-6
    assert float((double - direct(y, x, 1.0, sigma, 0.02)[1]).abs().max()) < 1e-10


def test_pieces_change_nothing_that_matters(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of data, blocks of states, slices kept or made anew."""
    y, x = data(1000, 30), data(50, 30, 1)

    def results() -> list[Tensor]:
        law = Empirical(y, 0.3)
        model = law.denoiser(sk.VP())
        return [model.x0(x, 0.3), model.x0(x.float(), 0.3), model.score(x, 0.3), law.log_prob(x)]

    whole = results()
    small = (7000, 7000) if isinstance(empirical.BLOCK, tuple) else 7000
    monkeypatch.setattr(empirical, "HELD", 0)
    assert all(torch.equal(a, b) for a, b in zip(results(), whole, strict=True))
    monkeypatch.setattr(empirical, "BLOCK", small)
    assert all(torch.equal(a, b) for a, b in zip(results(), whole, strict=True))
    monkeypatch.setattr(empirical, "CHUNK", 3000)
    for a, b in zip(results(), whole, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6 if a.dtype == torch.float32 else 1e-12, atol=1e-12)


def test_without_a_bandwidth_clean_states_go_to_the_nearest_datum() -> None:
    y = data(40, 3)
    x = y[[3, 5]] + 1e-3
    law = Empirical(y)
    nearest = law.denoiser(sk.RectifiedFlow()).fn(x, 1.0, 0.0)
    torch.testing.assert_close(nearest, y[[3, 5]], rtol=1e-14, atol=1e-14)
    twins = Empirical(torch.tensor([[1.0], [1.0], [5.0]], dtype=torch.float64), weights=[1.0, 2.0, 9.0])
    assert twins.denoiser(sk.VE()).fn(torch.ones(1, 1, dtype=torch.float64), 1.0, 0.0).item() == 1.0


def test_one_datum_is_a_point_mass() -> None:
    law = Empirical(torch.full((1, 2), 3.0))
    x = data(4, 2)
    torch.testing.assert_close(law.denoiser(sk.VP()).x0(x, 0.5), torch.full((4, 2), 3.0, dtype=torch.float64))
    assert law.data_std == 3.0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_data_and_states(dtype: torch.dtype) -> None:
    y = data(30, 4, dtype=dtype)
    law = Empirical(y, 0.1)
    assert law.data.dtype == torch.float32
    out = law.score(sk.VP())(data(5, 4, 1).to(dtype), 0.5)
    assert out.dtype == dtype
    assert bool(torch.isfinite(out).all())


def test_moments_of_many_data_are_estimated(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond COST tr C^2 comes from some of the data: a few per cent here, data_std exact."""
    y = data(3000, 40) * torch.linspace(0.1, 2, 40, dtype=torch.float64)
    exact = Empirical(y)
    before = exact.data_spread
    monkeypatch.setattr(_moments, "COST", 40 * 300**2)
    some = Empirical(y)
    assert some.data_std == exact.data_std
    assert some.data_spread == pytest.approx(before, rel=0.1)
    assert some.data_spread != before


def test_more_dimensions_than_data() -> None:
    y = data(7, 90)
    cov = torch.cov(y.T, correction=0)
    law = Empirical(y)
    assert law.data_spread == pytest.approx(float(((cov @ cov).trace() / cov.trace()).sqrt()), rel=1e-10)


MEMORY = """
import torch, sdekit as sk
from pathlib import Path
torch.set_num_threads(2)
y = torch.rand(50_000, 3, 32, 32).mul_(2).sub_(1)  # in place: no peak before the start
x = torch.rand(64, 3, 32, 32)
def peak():  # of this program alone: ru_maxrss would start at what the parent held
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 2**20
start = peak()
law = sk.Empirical(y, 0.1)
model = law.denoiser(sk.VP())
assert bool(torch.isfinite(model.x0(x, 0.5)).all())
assert bool(torch.isfinite(model.score(x[:8].double(), 0.01)).all())
assert bool(torch.isfinite(law.log_prob(x[:8])).all())
law.sample(64)
print(peak() - start)
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/proc tells the peak")
def test_fifty_thousand_images_take_under_two_gigabytes() -> None:
    """Peak resident memory above that of the data (50,000 x 3,072 float32)."""
    run = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert 0.0 < float(run.stdout) < 2.0


def test_constants_move_once() -> None:
    held = base.PerDevice(torch.ones(2))
    assert held.on(torch.device("meta"))[0].device.type == "meta"
    assert held.on(torch.device("meta"))[0] is held.on(torch.device("meta"))[0]
    assert _rows.ceil_log2(1) == 0
    assert [_rows.ceil_log2(n) for n in (2, 3, 4, 5)] == [1, 2, 2, 3]
