"""What the library costs beside the network, a certificate, its import, and the memory of typical runs.

- `sample` at 1 x 16, eager, one thread: time a step beyond the network's own calls, 50 steps: with a plan,
  by name, and by name for the first time, when the plan is made. Wanted: under 60 us with a plan and by name.
- `certify` of a 64-dimensional Gaussian, 50 steps, the plan made anew: milliseconds, and over a product of
  two matrices, 512 x 512 in float64. Wanted: under 50 ms.
- A step of `sample` with a plan, over a step written by hand: x.mul_(a).add_(prediction, alpha=b).
- `import sdekit` against `import torch`, fresh interpreters in turn. Wanted: under 1.5 times.
- Peak memory in units of the state, beyond a small run that has imported and compiled what is needed:
  `sample` of 256 x 3 x 64 x 64, 20 steps, a network that returns its input, and `solve` of 10^7 paths.

The first three run on one thread and are timed in CPU seconds of that thread, which on an idle machine is
wall time, and on a shared one does not count the others' turns. Best and median over interleaved repetitions.
"""

from __future__ import annotations

import gc
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

import sdekit as sk
from benchmarks._memory import above_import
from benchmarks._timing import compare, quartiles, spread
from sdekit.samplers.build import _cached_build
from sdekit.samplers.registry import SAMPLERS

SHAPE = (1, 16)
STEPS = 50
QUICK = ("step over", "import", "certificate over")
GATED = ("kernel-quadrature", "ddim", "euler-maruyama")
WANTED = {"step_us": 60.0, "certificate_ms": 50.0, "import_ratio": 1.5}


def _cpu_us(candidates: Mapping[str, Callable[[], Any]], repetitions: int) -> dict[str, dict[str, float]]:
    """name -> {"best", "median"} CPU microseconds of a call on this thread, slices of 20 ms in turn."""
    calls: dict[str, int] = {}
    for name, fn in candidates.items():
        fn()
        start = time.thread_time()
        fn()
        calls[name] = max(1, round(0.02 / max(time.thread_time() - start, 1e-7)))
    times: dict[str, list[float]] = {name: [] for name in candidates}
    gc.disable()
    try:
        for _ in range(repetitions):
            for name, fn in candidates.items():
                fn()  # the one before may have emptied the caches
                start = time.thread_time()
                for _ in range(calls[name]):
                    fn()
                times[name].append(1e6 * (time.thread_time() - start) / calls[name])
    finally:
        gc.enable()
    return {name: {"best": min(own), "median": statistics.median(own)} for name, own in times.items()}


def _anew(fn: Callable[[], Any]) -> Callable[[], Any]:
    """fn without the plans kept from earlier calls."""

    def call() -> Any:
        _cached_build.cache_clear()
        return fn()

    return call


def _network(x: Tensor, t: Tensor) -> Tensor:
    return x


def _steps() -> list[dict[str, Any]]:
    """For each sampler the microseconds a step beyond the network."""
    process = sk.VP()
    model = sk.Denoiser(_network, process, predicts="eps", data_std=1.0)
    x, t = torch.zeros(SHAPE), torch.zeros(SHAPE[0])
    candidates: dict[str, Any] = {"network": lambda: _network(x, t)}
    plans = {name: sk.plan(name, process, steps=STEPS) for name in SAMPLERS}
    for name, plan in plans.items():
        candidates[f"{name}, planned"] = lambda plan=plan: sk.sample(model, SHAPE, sampler=plan)
        candidates[f"{name}, by name"] = lambda name=name: sk.sample(model, SHAPE, sampler=name, steps=STEPS)
        candidates[f"{name}, first"] = _anew(candidates[f"{name}, by name"])
    times = _cpu_us(candidates, 15)
    rows = []
    for name, plan in plans.items():
        row: dict[str, Any] = {"sampler": name, "evaluations": plan.nfe}
        for how in ("planned", "by name", "first"):
            for which in ("best", "median"):
                total = times[f"{name}, {how}"][which] - plan.nfe * times["network"][which]
                row[f"{how}, {which} us/step"] = round(total / STEPS, 1)
        rows.append(row)
    return rows


def _against_hand() -> dict[str, Any]:
    """Time a step, the network included, over that of a loop written by hand with the same network."""
    process, t = sk.VP(), torch.zeros(SHAPE[0])
    model = sk.Denoiser(_network, process, predicts="eps", data_std=1.0)

    def by_hand() -> Tensor:
        x = torch.zeros(SHAPE)
        with torch.inference_mode():
            for _ in range(STEPS):
                x.mul_(0.99).add_(_network(x, t), alpha=0.01)
        return x

    found = {}
    for name in GATED:
        plan = sk.plan(name, process, steps=STEPS)
        ours = {"sdekit": lambda plan=plan: sk.sample(model, SHAPE, sampler=plan)}
        row = compare(ours | {"by hand": by_hand}, repetitions=15, clock=time.thread_time)["by hand"]
        found[f"step over one by hand: {name}"] = quartiles(row, better="lower")
    return found


def _memory() -> dict[str, Any]:
    """Peak memory beyond a small run, in units of the state."""
    process = "sk.VP(), predicts='eps', data_std=1.0"
    model = f"import torch, sdekit as sk; model = sk.Denoiser(lambda x, t: x, {process})"
    run = "sk.sample(model, {shape}, sampler={name!r}, steps=20)"
    shape = (256, 3, 64, 64)
    found = {}
    for name in (*GATED, "gaussian-split"):
        small = f"{model}; {run.format(shape=(2, 3, 64, 64), name=name)}"
        peak = above_import(small, run.format(shape=shape, name=name))
        found[f"states held: sample, {name}"] = (peak, 4e-6 * math.prod(shape))
    system = "import torch, sdekit as sk; p = sk.OrnsteinUhlenbeck(1.0, 0.0, 0.5)"
    solve = "sk.solve(p, torch.ones({paths}, 1), (0.0, 1.0), steps=10)"
    peak = above_import(f"{system}; {solve.format(paths=8)}", solve.format(paths=10**7))
    found["states held: solve"] = (peak, 40.0)
    return {name: spread(mb / state, better="lower") for name, (mb, state) in found.items() if mb is not None}


def quick() -> dict[str, Any]:
    """A step against one by hand, a certificate against a product of matrices, and the import."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        ratios = _against_hand() | _against_a_product()
    finally:
        torch.set_num_threads(before)
    return {"ratios": ratios | _import_ratio(_imports(5))}


def _import_ratio(imports: Mapping[str, float]) -> dict[str, Any]:
    return {"import over torch's": quartiles(imports, better="lower", wanted=WANTED["import_ratio"])}


def _certificates() -> dict[str, dict[str, float]]:
    """Milliseconds a certificate, D = 64, 50 steps."""
    variance = torch.logspace(0, -3, 64, dtype=torch.float64)
    target, process = sk.Gaussian(torch.zeros(64, dtype=torch.float64), variance=variance), sk.VP()
    names = [name for name in SAMPLERS if sk.plan(name, process, steps=1).affine]
    times = _cpu_us(
        {name: _anew(lambda name=name: sk.certify(name, target, process, steps=STEPS)) for name in names}, 9
    )
    return {name: {f"{which}_ms": round(row[which] / 1e3, 2) for which in row} for name, row in times.items()}


def _against_a_product() -> dict[str, Any]:
    """Time of a certificate over that of a product of two 512 x 512 matrices in float64."""
    target = sk.Gaussian(torch.zeros(64, dtype=torch.float64), variance=torch.logspace(0, -3, 64).double())
    a, process = torch.randn(512, 512, dtype=torch.float64), sk.VP()
    works = {name: _anew(lambda name=name: sk.certify(name, target, process, steps=STEPS)) for name in GATED}
    rows = compare({"product": lambda: a @ a, **works}, repetitions=15, clock=time.thread_time)
    return {
        f"certificate over a product of matrices: {name}": quartiles(rows[name], better="lower", inverse=True)
        for name in works
    }


def _imports(pairs: int = 9) -> dict[str, float]:
    """Wall seconds of fresh interpreters that import torch, and sdekit, in turn."""

    def seconds(module: str) -> float:
        start = time.perf_counter()
        subprocess.run([sys.executable, "-c", f"import {module}"], check=True)
        return time.perf_counter() - start

    for module in ("torch", "sdekit"):
        seconds(module)  # byte code, file cache
    base, own = zip(*((seconds("torch"), seconds("sdekit")) for _ in range(pairs)), strict=True)
    low, middle, high = statistics.quantiles([b / a for a, b in zip(base, own, strict=True)], n=4)
    figures = {
        "torch_s": min(base),
        "sdekit_s": min(own),
        "ratio": middle,
        "ratio_low": low,
        "ratio_high": high,
        "ratio_best": min(own) / min(base),
    }
    return {key: float(f"{value:.4g}") for key, value in figures.items()}


def run() -> dict[str, Any]:
    """{"table": microseconds a step, "certificates": milliseconds, "import", "ratios", "wanted", "met"}."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        steps, certificates = _steps(), _certificates()
        ratios = _against_hand() | _against_a_product()
    finally:
        torch.set_num_threads(before)
    imports = _imports()
    worst = {row["sampler"]: max(row["planned, best us/step"], row["by name, best us/step"]) for row in steps}
    return {
        "table": steps,
        "certificates": certificates,
        "import": imports,
        "ratios": ratios | _import_ratio(imports) | _memory(),
        "wanted": WANTED,
        "met": {
            "step": {name: worst[name] < WANTED["step_us"] for name in GATED},
            "certificate": all(c["best_ms"] < WANTED["certificate_ms"] for c in certificates.values()),
            "import": imports["ratio"] < WANTED["import_ratio"],
        },
    }
