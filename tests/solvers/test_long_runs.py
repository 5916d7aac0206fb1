"""Long runs: memory that does not grow, states saved once, and failures that stay where they happen."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import sdekit as sk
from sdekit.errors import SolveError
from sdekit.solution import Status
from sdekit.solvers.base import _REGISTRY, Solver

F64 = torch.float64
MEGABYTE = 2**20

#: Methods that ask for more than a drift and a diffusion: a Langevin equation, or the linear part.
OTHERS = ("mala", "ula", "baoab", "aboba", "oabao", "obabo", "exponential-euler")
METHODS = sorted(name for name, kind in _REGISTRY if kind == "sde" and name not in OTHERS)


def resident() -> int:
    """Bytes of this process in memory now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("noise", [sk.Philox(0), sk.BrownianTree(0, bits=26)], ids=["Philox", "tree"])
def test_a_million_steps_do_not_grow(noise: sk.Noise) -> None:
    """A tenth of the run to warm up; then less than a byte for each step. The path of a tree is slower, and
    runs a tenth of the steps. All times of the grid are known beforehand, 8 bytes for each."""
    steps = 1_000_000 if isinstance(noise, sk.Philox) else 100_000
    seen: list[int] = []

    def watch(step: int, t: float, x: Tensor) -> None:
        if step % (steps // 10) == 0:
            seen.append(resident())

    x0 = torch.ones(4, 1)
    out = sk.solve(sk.OrnsteinUhlenbeck(), x0, (0.0, 100.0), steps=steps, noise=noise, callback=watch)
    assert out.stats.steps == steps
    assert len(seen) == 10
    assert max(seen[1:]) - seen[0] < steps
    assert out.ok


class _Large(TorchDispatchMode):
    """Counts the storages of at least ``size`` bytes that operations return, and the largest of the rest."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size, self.storages, self.rest = size, set[int](), 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (list, tuple)) else (out,):
            if isinstance(tensor, Tensor):
                if (bytes_ := tensor.untyped_storage().nbytes()) >= self.size:
                    self.storages.add(tensor.untyped_storage().data_ptr())
                else:
                    self.rest = max(self.rest, bytes_)
        return out


@pytest.mark.parametrize("noise", [sk.Philox(0), sk.BrownianTree(0)], ids=["Philox", "tree"])
def test_a_thousand_saved_times_are_written_once(noise: sk.Noise) -> None:
    """One tensor holds them all; nothing else on the way is half as large."""
    x0, times = torch.ones(64, 8, dtype=F64), torch.linspace(0.001, 1.0, 1000, dtype=F64)
    with _Large(1000 * x0.nbytes) as found:
        out = sk.solve(sk.OrnsteinUhlenbeck(), x0, (0.0, 1.0), steps=1000, save_at=times, noise=noise)
    assert out.xs is not None
    assert out.xs.shape == (1000, 64, 8)
    assert found.storages == {out.xs.untyped_storage().data_ptr()}
    assert found.rest < out.xs.nbytes / 2
    assert torch.equal(out.xs[-1], out.x)


def wall(kind: str, value: float) -> sk.SDE:
    """Drift NaN from t = 0.5 on for the sample whose second element is ``value``."""

    def drift(x: Tensor, t: Tensor) -> Tensor:
        bad = (x[:, 1:] == value) & (t >= 0.5).reshape(-1, 1)
        return torch.where(bad, torch.nan, -x * torch.tensor([1.0, 0.0], dtype=x.dtype))

    noise = torch.tensor([0.3, 0.0], dtype=F64)
    return sk.SDE(drift, lambda x, t: noise, noise_type="additive", sde_type=kind)


@pytest.mark.parametrize("name", METHODS)
def test_nan_stays_in_its_path_whatever_the_method(name: str) -> None:
    """The other paths are bit for bit what they are beside a healthy one; the failure has a step and time."""
    solver: Solver = _REGISTRY[name, "sde"]()
    kind = "ito" if "ito" in solver.sde_types else "stratonovich"
    x0 = torch.tensor([[1.0, 0.0], [1.0, 2.0], [1.5, 3.0]], dtype=F64)
    out = sk.solve(wall(kind, 2.0), x0, (0.0, 1.0), solver=solver, steps=10, throw=False)
    well = sk.solve(wall(kind, 99.0), x0, (0.0, 1.0), solver=solver, steps=10)
    assert (out.status != Status.OK).tolist() == [False, True, False]
    assert torch.equal(out.x[[0, 2]], well.x[[0, 2]])
    first = 5 - max(1, math.ceil(max(solver.nodes)))  # a stage reaches t = 0.5 that many steps before
    assert first <= int(out.failed_step[1]) <= 5
    assert float(out.failed_at[1]) == pytest.approx(0.1 * (int(out.failed_step[1]) + 1))
    with pytest.raises(SolveError, match=r"1 of 3 samples failed.*sample 1 .*at step [1-5] of 10, t = 0"):
        sk.solve(wall(kind, 2.0), x0, (0.0, 1.0), solver=solver, steps=10)


@pytest.mark.parametrize("solver", ["rk45", "rk23", "tsit5", "dop853"])
def test_nan_stays_in_its_path_with_adaptive_steps(solver: str) -> None:
    x0 = torch.tensor([[1.0, 0.0], [1.0, 2.0], [1.5, 3.0]], dtype=F64)
    ends = (0.0, 1.0)
    out = sk.solve(sk.ODE(wall("ito", 2.0).drift), x0, ends, solver=solver, throw=False)
    well = sk.solve(sk.ODE(wall("ito", 99.0).drift), x0, ends, solver=solver)
    assert (out.status != Status.OK).tolist() == [False, True, False]
    assert torch.equal(out.x[[0, 2]], well.x[[0, 2]])
    assert 0.4 < float(out.failed_at[1]) <= 0.5001
