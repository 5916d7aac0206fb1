"""Where the time of a sampler step and of an ensemble step goes.

A sampler step: `sample` with a plan, 50 steps, under cProfile, one thread; the time spent in each function
itself, summed by the part of the library it belongs to. cProfile adds a constant to each call, and so makes
Python look dearer than it is: shares, not times, are reported, and those of the small state are the less
exact. What a torch operation or a compiled kernel takes counts for torch, or for the module that calls the
kernel.

An ensemble step: the compiled back end on 10^5 paths of 100 steps of Euler-Maruyama, float32, against as many
normal numbers alone, filled into 400 kB of memory, in turn; what is left is the equation, the loads and the
stores. And the cost of one call, from a run of 64 paths.
"""

from __future__ import annotations

import cProfile
import pstats
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import sdekit as sk
from benchmarks._rivals import PROBLEMS, RIVALS
from benchmarks._timing import race
from sdekit.noise import philox
from sdekit.noise.cpu import fill

STEPS = 50
SHAPES = ((1, 16), (64, 3, 32, 32))
SAMPLERS = ("ddim", "kernel-quadrature", "euler-maruyama")
PATHS, TIMES, FEW = 100_000, 100, 64
PARTS = ("samplers", "kernels", "noise", "score", "sde")


def _network(x: Tensor, t: Tensor) -> Tensor:
    return x


def _part(where: tuple[str, int, str]) -> str:
    file, _, function = where
    if "/sdekit/" in file:
        folder = file.rsplit("/sdekit/", 1)[1].partition("/")[0]
        return folder if folder in PARTS else "other sdekit"
    if file.endswith("breakdown.py"):
        return "network"
    if "/torch/" in file or "torch" in function or "Tensor" in function:
        return "torch"
    return "Python"


def shares(call: Callable[[], Any], calls: int) -> dict[str, float]:
    """Part -> its share of the time of `call`, cProfile's own bookkeeping included."""
    call()
    profile = cProfile.Profile()
    profile.enable()
    for _ in range(calls):
        call()
    profile.disable()
    found: dict[str, float] = {}
    for where, (_, _, own, _, _) in pstats.Stats(profile).stats.items():  # type: ignore[attr-defined]
        part = _part(where)
        found[part] = found.get(part, 0.0) + own
    total = sum(found.values())
    return {part: round(found[part] / total, 3) for part in sorted(found, key=lambda p: -found[p])}


def sampler_steps() -> list[dict[str, Any]]:
    """A row for each sampler and state: shares in percent."""
    process = sk.VP()
    model = sk.Denoiser(_network, process, predicts="eps", data_std=1.0)
    rows = []
    for shape in SHAPES:
        for name in SAMPLERS:
            plan = sk.plan(name, process, steps=STEPS)
            found = shares(lambda plan=plan, shape=shape: sk.sample(model, shape, sampler=plan), 20)
            rows.append(
                {
                    "sampler": name,
                    "state": "x".join(map(str, shape)),
                    **{part: f"{100 * share:.0f} %" for part, share in found.items()},
                }
            )
    return rows


def ensemble_steps() -> list[dict[str, Any]]:
    """A row for each equation: ns a path and step, the normal numbers in them, the call in ms."""
    out, ids, draw = torch.empty(100, PATHS // 100), torch.arange(100), iter(range(10**6))
    key = philox.derive_key(0, 1)
    rows = []
    for problem in PROBLEMS.values():
        runs: dict[str, Callable[[], Any]] = {
            "all": RIVALS["sdekit"](problem, PATHS, TIMES),
            "few": RIVALS["sdekit"](problem, FEW, TIMES),
            "normal": lambda: [fill(out, key, next(draw), ids, out.shape[1]) for _ in range(10)],
        }
        for run in runs.values():
            run()
        best = {name: min(own) for name, own in race(runs, dict.fromkeys(runs, 9)).items()}
        step = (best["all"] - best["few"]) / ((PATHS - FEW) * TIMES)
        normal = problem.dim * best["normal"] / (10 * PATHS)
        rows.append(
            {
                "equation": problem.name,
                "ns a path and step": round(1e9 * step, 2),
                "normal numbers, ns": round(1e9 * normal, 2),
                "their share": f"{100 * normal / step:.0f} %",
                "a call, ms": round(1e3 * (best["few"] - FEW * TIMES * step), 2),
            }
        )
    return rows


def run() -> dict[str, Any]:
    """{"sampler step": rows, "ensemble step": rows}."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return {"sampler step": sampler_steps(), "ensemble step": ensemble_steps()}
    finally:
        torch.set_num_threads(before)
