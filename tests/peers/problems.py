"""One problem for two libraries: what each evaluates and where it ends, on the same grid and noise."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

import sdekit as sk
from benchmarks.peers import MODULES, available
from benchmarks.peers.base import Method, Peer
from benchmarks.peers.law import Draws
from tests.samplers.problems import mixture

PROCESSES = {"EDM": sk.EDM(), "VP": sk.VP(), "VE": sk.VE()}


def smooth(process, n: int) -> Tensor:
    """n unequal intervals of lambda in [-2, 3], dense at both ends."""
    u = torch.arange(n + 1, dtype=torch.float64) / n
    return process.t_of_half_log_snr(-2.0 + 5.0 * u * u * (3 - 2 * u))


def uniform(process, n: int) -> Tensor:
    """n equal intervals of lambda in [-2, 3]."""
    return process.t_of_half_log_snr(torch.linspace(-2.0, 3.0, n + 1, dtype=torch.float64))


def even_t(process, n: int) -> Tensor:
    """n equal intervals of t over the same levels."""
    ends = uniform(process, 1)
    return torch.linspace(float(ends[0]), float(ends[1]), n + 1, dtype=torch.float64)


def needs(library: str) -> None:
    if library not in available():
        pytest.skip(f"{library} is not installed: make peers-env")


def method(library: str, label: str) -> Method:
    """The library's sampler of that label."""
    module = MODULES[library]
    found = [m for m in [*module.deterministic(), *module.stochastic()] if m.sampler == label]
    assert len(found) == 1, f"{library} has {len(found)} samplers called {label!r}"
    return found[0]


@dataclass
class Track:
    """What a run evaluated, [(t, x)], and x at its end."""

    calls: list[tuple[float, Tensor]]
    end: Tensor


def _recording(process) -> tuple[sk.Denoiser, list[tuple[float, Tensor]]]:
    exact, calls = mixture().denoiser(process), []

    def net(x, t):
        calls.append((float(t[0]), x.clone()))
        return exact.x0(x, float(t[0]))

    return sk.Denoiser(net, process, predicts="x0", data_std=exact.data_std), calls


def theirs(peer: Method, process, layout, n: int, start: Tensor, xi: Tensor | None = None) -> Track:
    """A run of the peer; xi: (K, B, *event), its normal draws in their order."""
    model, calls = _recording(process)
    runner = Peer("", peer, "", layout)
    if xi is None:
        return Track(calls, runner.solve(model, start, n)[0])
    with Draws(len(start), lambda k, noise: noise.copy_(xi[k])):
        end, _ = runner.solve(model, start, n)
    return Track(calls, end)


def ours(sampler, process, layout, n: int, start: Tensor, xi: Tensor | None = None) -> Track:
    """A run of this package on the same problem."""
    model, calls = _recording(process)
    noise = {} if xi is None else {"noise": sk.Recorded(xi)}
    run = sk.sample(model, start.shape, sampler=sampler, grid=layout(process, n), x_init=start, **noise)
    return Track(calls, run.x)


def distance(a: Track, b: Track) -> float:
    """Largest difference over all evaluations and the end, of states in units of their RMS and of times."""
    assert len(a.calls) == len(b.calls), f"{len(a.calls)} and {len(b.calls)} evaluations"
    pairs = [*((x, y) for (_, x), (_, y) in zip(a.calls, b.calls, strict=True)), (a.end, b.end)]
    states = [float((x - y).abs().max() / y.square().mean().sqrt()) for x, y in pairs]
    times = [abs(s - t) / abs(t) for (s, _), (t, _) in zip(a.calls, b.calls, strict=True)]
    worst = max(states + times)
    assert math.isfinite(worst)
    return worst
