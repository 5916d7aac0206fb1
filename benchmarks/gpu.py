"""On a GPU: the fused step against a copy, the solver's share, graphs, compaction, agreement with the CPU.

- Fused step: bytes a second of `combine` (x and the network's output read, x written) over those of a copy,
  at states of 256 MB, float32, without and with noise. Wanted: 0.8.
- Solver share: what a run of 20 steps takes beyond its 20 network calls, over the run; a U-Net of 10 M
  parameters in bfloat16 at 64 x 3 x 32 x 32, states in float32, launched and as a graph. Wanted: 2 %.
- Graph: the run as it is launched over the run as one CUDA graph, at 1 and 64 samples.
- Compaction: adaptive Dormand-Prince on a batch whose samples need very different numbers of steps, all rows
  at every evaluation over the unfinished rows alone.
- Agreement: the largest difference between samples of a closed-form law on the CPU and on the GPU, float64
  and float32, 20 steps with noise; and the fraction of normals that are the same bit for bit.

Times are those of the device between two events around a number of calls, candidates in turn; ratios are
formed within each repetition. Without a CUDA device: {"absent": reason}.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import sdekit as sk
from benchmarks._timing import spread
from sdekit import kernels
from sdekit.kernels.contract import module
from sdekit.noise import Purpose, philox
from sdekit.solvers import DormandPrince

__all__ = ["Sizes", "measure", "quick", "run"]

QUICK = ("step over", "noisy step over")
WANTED = {"bandwidth": 0.8, "share": 0.02}


@dataclass(frozen=True)
class Sizes:
    """How much of everything."""

    state: tuple[int, ...] = (5456, 3, 64, 64)  # 256 MB
    image: tuple[int, ...] = (64, 3, 32, 32)
    width: int = 64
    steps: int = 20
    paths: int = 2**16
    samples: int = 1024
    repetitions: int = 21


def seconds(work: Callable[[], Any], device: torch.device, calls: int) -> float:
    """Of one call, the mean of ``calls`` in a row."""
    if device.type != "cuda":
        start = time.perf_counter()
        for _ in range(calls):
            work()
        return (time.perf_counter() - start) / calls
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    for _ in range(calls):
        work()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) * 1e-3 / calls


def race(
    works: Mapping[str, Callable[[], Any]], device: torch.device, repetitions: int, calls: int = 1
) -> dict[str, list[float]]:
    """Seconds of each in each repetition, in turn."""
    for work in works.values():
        for _ in range(3):  # compiles, allocates, chooses algorithms
            work()
    times: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(repetitions):
        for name, work in works.items():
            times[name].append(seconds(work, device, calls))
    return times


def bandwidth(device: torch.device, sizes: Sizes) -> dict[str, list[float]]:
    """Bytes a second of a step over those of a copy."""
    x, d, out = (torch.randn(sizes.state, device=device) for _ in range(3))
    ids = torch.arange(len(x), device=device)
    key = philox.derive_key(0, Purpose.INJECTED)
    weights = torch.tensor([0.9, 0.1, 0.3], device=device)
    back_end = module(kernels.choose("auto", x))
    draws = kernels.Draws((7,), ids, key, lambda draw: sk.Philox(0).normal(draw, x, ids))
    works: dict[str, Callable[[], Any]] = {
        "copy": lambda: out.copy_(x),
        "step": lambda: back_end.combine(out, [x, d], weights[:2]),
        "noisy step": lambda: back_end.combine(out, [x, d], weights, draws),
    }
    times = race(works, device, sizes.repetitions, 10)
    moved = {"step": 1.5, "noisy step": 1.5}  # three states to the copy's two
    return {
        name: [copy / own * factor for copy, own in zip(times["copy"], times[name], strict=True)]
        for name, factor in moved.items()
    } | {"copy GB/s": [2e-9 * x.nbytes / t for t in times["copy"]]}


def network(device: torch.device, sizes: Sizes) -> sk.Denoiser:
    """A U-Net, 10 M parameters at the full width, its last layer not zero."""
    net = sk.nets.UNet(
        sizes.image[1], width=sizes.width, multipliers=(1, 2, 4), blocks=1, attention=True, seed=0
    )
    g = torch.Generator().manual_seed(0)
    for p in net.parameters():
        p.data.add_(torch.randn(p.shape, generator=g), alpha=0.02)
    net = net.to(device).eval()
    return sk.Denoiser(net, sk.VP(), "eps", data_std=0.5, network_dtype=torch.bfloat16)


def share(device: torch.device, sizes: Sizes) -> dict[str, list[float]]:
    """Solver share as launched and as a graph, and the graph's gain, by batch."""
    model, found = network(device, sizes), {}
    for rows in (1, sizes.image[0]):
        shape = (rows, *sizes.image[1:])
        plan = sk.plan("dpmpp-2m", model.process, steps=sizes.steps, data_std=0.5)
        x, t = torch.randn(shape, device=device), torch.full((rows,), 0.5, device=device)

        def calls(x: Tensor = x, t: Tensor = t, nfe: int = plan.nfe) -> None:
            with torch.no_grad():
                for _ in range(nfe):
                    model.network(x, t)

        def whole(shape: Any = shape, plan: sk.Plan = plan, **options: Any) -> None:
            sk.sample(model, shape, sampler=plan, device=device, **options)

        works: dict[str, Callable[[], Any]] = {"calls": calls, "run": whole}
        if device.type == "cuda":
            works |= {"graph of calls": _graph(calls), "graph": lambda whole=whole: whole(compile=True)}
        times = race(works, device, sizes.repetitions)
        pairs = {"launched": ("calls", "run"), "graph": ("graph of calls", "graph")}
        for name, (inner, outer) in pairs.items():
            if outer in times:
                both = zip(times[inner], times[outer], strict=True)
                found[f"solver share, {name}, {rows}"] = [1 - a / b for a, b in both]
        if "graph" in times:
            both = zip(times["run"], times["graph"], strict=True)
            found[f"graph over launched, {rows}"] = [a / b for a, b in both]
    return found


def _graph(work: Callable[[], Any]) -> Callable[[], None]:
    from sdekit.samplers.graphs import record

    replay, _ = record(work, torch.device("cuda", torch.cuda.current_device()))
    return replay


def compaction(device: torch.device, sizes: Sizes) -> list[float]:
    """All rows at every evaluation over the unfinished ones alone: y' = k (cos t - y), k from 1 to 300."""
    k = torch.logspace(0, 2.5, sizes.paths, device=device)[:, None]
    x0 = torch.cat([k, torch.zeros(sizes.paths, 7, device=device)], dim=1)

    def drift(x: Tensor, t: Tensor) -> Tensor:
        rate, y = x[:, :1], x[:, 1:]
        return torch.cat([torch.zeros_like(rate), rate * (t.cos()[:, None] - y)], dim=1)

    def solve(compact: bool) -> Any:
        return sk.solve(sk.ODE(drift), x0, (0.0, 2.0), solver=DormandPrince(compact=compact), rtol=1e-4)

    works = {"all": lambda: solve(False), "unfinished": lambda: solve(True)}
    times = race(works, device, max(3, sizes.repetitions // 4))
    return [a / b for a, b in zip(times["all"], times["unfinished"], strict=True)]


def agreement(device: torch.device, sizes: Sizes) -> dict[str, float]:
    """CPU and device: largest difference of samples, fraction of equal normals."""
    law = sk.GaussianMixture([0.3, 0.7], [[-1.5, 0.0, 0.3, 1.0], [1.0, 1.0, -0.2, 0.0]], 0.05)
    found = {}
    for dtype in (torch.float64, torch.float32):
        name = str(dtype).removeprefix("torch.")
        options = {"sampler": "sde-dpmpp-2m", "steps": sizes.steps, "seed": 3, "dtype": dtype}
        model = law.denoiser(sk.VP())
        here, there = (
            sk.sample(model, (sizes.samples, 4), device=d, **options).x.cpu() for d in ("cpu", device)
        )
        found[f"largest difference, {name}"] = float((here - there).abs().max())
        like, ids = torch.empty(sizes.samples, 1000, dtype=dtype), torch.arange(sizes.samples)
        a = sk.Philox(5).normal(2, like, ids)
        b = sk.Philox(5).normal(2, like.to(device), ids.to(device)).cpu()
        found[f"equal normals, {name}"] = float((a == b).double().mean())
    return found


def measure(device: torch.device, sizes: Sizes) -> dict[str, Any]:
    """{"ratios", "agreement", "copy GB/s", "parameters"}."""
    speed, cost = bandwidth(device, sizes), share(device, sizes)
    rate = sorted(speed.pop("copy GB/s"))[sizes.repetitions // 2]
    ratios = _over_copy(speed)
    for name, values in cost.items():
        gain = name.startswith("graph")
        wanted = WANTED["share"] if name.endswith(f", {sizes.image[0]}") and not gain else None
        ratios[name] = spread(values, better="higher" if gain else "lower", wanted=wanted)
    ratios["compaction"] = spread(compaction(device, sizes), better="higher")
    return {
        "ratios": ratios,
        "agreement": agreement(device, sizes),
        "copy GB/s": float(f"{rate:.4g}"),
        "parameters": sum(p.numel() for p in network(torch.device("cpu"), sizes).net.parameters()),
    }


def _over_copy(speed: Mapping[str, list[float]]) -> dict[str, Any]:
    return {
        f"{name} over copy bandwidth": spread(values, better="higher", wanted=WANTED["bandwidth"])
        for name, values in speed.items()
        if name != "copy GB/s"
    }


def quick() -> dict[str, Any]:
    """The fused step on this machine's CUDA device."""
    if not torch.cuda.is_available():
        return {"ratios": {}, "absent": "no CUDA device"}
    return {"ratios": _over_copy(bandwidth(torch.device("cuda"), Sizes()))}


def run() -> dict[str, Any]:
    """The figures of this machine's CUDA device; see the top."""
    if not torch.cuda.is_available():
        return {"absent": "no CUDA device"}
    return measure(torch.device("cuda"), Sizes())
