"""Ensembles of paths: `solve(..., backend="numba")` against C, other libraries, and the torch back end.

Euler-Maruyama on the four equations of `benchmarks._equations`, 10^4 paths of 200 steps and 10^6 of 100, end
states only. float32, and for C and the compiled back end float64 too; all on one core, timed in CPU seconds
of the whole process, the rivals in turn within each repetition. What compiles has compiled before; what the
first call takes beyond a later one is stated apart. Every rival's mean and variance at the end are compared
with those of the scheme, exact where they have a closed form (not for Lorenz 1963: there with 10^5 paths of
the torch back end in float64); one further than 6 standard errors off is left out, and said.

Ratios are times the speed: the rival's time over that of the compiled back end. Wanted: at least 0.4 of C
(gcc -O3 -march=native -ffast-math, xoshiro256+, the faster of blocks of paths and path by path), 0.6 of C
with Philox-4x32-10, 10 times diffrax (one path under vmap and jit), 30 times torchsde; 10^6 paths in less
than 200 MB above the import. "diffrax, one state" is diffrax with the ensemble as one state and a term of its
own.
"""

from __future__ import annotations

import math
import os
import statistics
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

import sdekit as sk
from benchmarks._equations import PROBLEMS, Problem, sde
from benchmarks._memory import above_import
from benchmarks._rivals import FLAGS, RIVALS, build
from benchmarks._timing import race, spread

SIZES = ((10_000, 200), (1_000_000, 100))
WANTED = {"C": 0.4, "C, Philox": 0.6, "diffrax": 10.0, "torchsde": 30.0}
MEMORY_MB = 200.0
FAST = ("sdekit", "sdekit, double", "C", "C, Philox", "C, double", "C, Philox, double")
"""Timed in every repetition, the others in three at most."""
SMALL_ONLY = ("diffrax, tree",)
QUICK = tuple(f"{name} 10000x200: C" for name in PROBLEMS)


def moments(problem: Problem, steps: int) -> list[tuple[int, str, float, float]]:
    """(component, "mean" | "variance", value, its standard error) of the scheme after `steps` steps to 1."""
    h = 1.0 / steps
    if problem.name == "ou":
        a = 1.0 - h
        variance = 0.25 * h * (1.0 - a ** (2 * steps)) / (1.0 - a * a)
        return [(0, "mean", a**steps, 0.0), (0, "variance", variance, 0.0)]
    if problem.name == "gbm":
        mean, second = (1.0 + 0.1 * h) ** steps, ((1.0 + 0.1 * h) ** 2 + 0.25 * h) ** steps
        return [(0, "mean", mean, 0.0), (0, "variance", second - mean * mean, 0.0)]
    if problem.name == "heston":  # while v stays positive, which all but about 1e-6 of the paths do
        m, v = problem.x0[1], 0.0
        for _ in range(steps):
            m, v = m + 2.0 * h * (0.04 - m), (1.0 - 2.0 * h) ** 2 * v + 0.04 * h * m
        return [(0, "mean", (1.0 + 0.05 * h) ** steps, 0.0), (1, "mean", m, 0.0), (1, "variance", v, 0.0)]
    x0 = torch.tensor(problem.x0, dtype=torch.float64).expand(100_000, -1)
    x = sk.solve(sde(problem), x0, (0.0, 1.0), steps=steps, seed=1).x.numpy()
    return [(k, what, *_sample(x[:, k], what)) for k in range(problem.dim) for what in ("mean", "variance")]


def _sample(x: Any, what: str) -> tuple[float, float]:
    """Estimate and its standard error."""
    x = np.asarray(x, np.float64)
    values = x if what == "mean" else (x - x.mean()) ** 2
    return float(values.mean()), float(values.std() / math.sqrt(len(values)))


def deviation(x: Any, expected: Sequence[tuple[int, str, float, float]]) -> float:
    """The largest distance of the moments of x (paths, dim) from those expected, in standard errors."""
    found = []
    for component, what, value, error in expected:
        estimate, own = _sample(x[:, component], what)
        found.append(abs(estimate - value) / math.hypot(own, error))
    return max(found) if np.isfinite(x).all() else math.inf


def case(problem: Problem, paths: int, steps: int, names: Sequence[str], repetitions: int) -> dict[str, Any]:
    """{"seconds": {rival: [...]}, "first", "deviation", "absent"} of one ensemble."""
    expected = moments(problem, steps)
    runs: dict[str, Any] = {}
    first: dict[str, float] = {}
    absent: dict[str, str] = {}
    off: dict[str, float] = {}
    for name in names:
        try:
            start = time.process_time()
            run = RIVALS[name](problem, paths, steps)
            x = run()
            first[name] = time.process_time() - start
        except ImportError as error:
            absent[name] = str(error)
            continue
        off[name] = round(deviation(x, expected), 2)
        if off[name] > 6.0:
            absent[name] = f"{off[name]} standard errors off"
        else:
            runs[name] = run
    counts = {name: repetitions if name in FAST else min(3, repetitions) for name in runs}
    seconds = race(runs, counts)
    first = {name: round(first[name] - min(own), 3) for name, own in seconds.items()}
    return {"seconds": seconds, "first": first, "deviation": off, "absent": absent}


def ratios(name: str, seconds: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    """The figures of one ensemble, each named "PROBLEM PATHSxSTEPS: RIVAL"."""
    found = {}
    for suffix in ("", ", double"):
        ours = seconds.get(f"sdekit{suffix}")
        rivals = [
            n for n in seconds if n.endswith(", double") == bool(suffix) and not n.startswith("C, path")
        ]
        for rival in rivals if ours else ():
            theirs = seconds[rival]
            if rival == f"C{suffix}":
                c = [s for n, s in seconds.items() if n in _xoshiro(suffix)]
                theirs = min(c, key=statistics.median)
            if theirs is ours:
                continue
            values = [a / b for a, b in zip(theirs, ours, strict=False)]
            found[f"{name}: {rival}"] = spread(
                values, better="higher", wanted=WANTED.get(rival.removesuffix(suffix))
            )
    return found


def _xoshiro(suffix: str) -> tuple[str, ...]:
    return (f"C{suffix}", f"C, path by path{suffix}", "C, path by path, strict")


def memory() -> dict[str, float | None]:
    """MB above the import for 10^6 paths of 100 steps, compiling included; None where a library is absent."""
    found = {}
    for rival in ("sdekit", "sdekit, torch", "C", "numpy", "jax scan", "diffrax", "torchsde"):
        for name in PROBLEMS if rival == "sdekit" else ("gbm",):
            given = f"PROBLEMS[{name!r}], 1_000_000, 100"
            imports = f"from benchmarks._rivals import *; run = RIVALS[{rival!r}]({given})"
            found[f"{rival}, {name}"] = above_import(imports, "run()")
    return found


def _one_core() -> Any:
    """Pin this process to one core, so that no library makes threads; returns what undoes it."""
    if not hasattr(os, "sched_setaffinity"):
        return lambda: None
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(before)})
    return lambda: os.sched_setaffinity(0, before)


def measure(sizes: Sequence[tuple[int, int]], names: Sequence[str], repetitions: int) -> dict[str, Any]:
    """{"table", "ratios", "first_call_s", "deviation", "absent"}."""
    before, undo = torch.get_num_threads(), _one_core()
    torch.set_num_threads(1)
    out: dict[str, Any] = {"table": [], "ratios": {}, "first_call_s": {}, "deviation": {}, "absent": {}}
    try:
        for paths, steps in sizes:
            for problem in PROBLEMS.values():
                name = f"{problem.name} {paths}x{steps}"
                chosen = [n for n in names if n not in SMALL_ONLY or paths <= 10_000]
                found = case(problem, paths, steps, chosen, repetitions if paths <= 10_000 else 5)
                best = {n: f"{1e9 * min(s) / (paths * steps):.3g}" for n, s in found["seconds"].items()}
                out["table"].append({"ns a path and step": name, **best})
                out["ratios"] |= ratios(name, found["seconds"])
                out["first_call_s"][name] = found["first"]
                out["deviation"][name] = found["deviation"]
                out["absent"] |= {f"{name}: {n}": why for n, why in found["absent"].items()}
                print(out["table"][-1], flush=True)
    finally:
        torch.set_num_threads(before)
        undo()
    return out


def run() -> dict[str, Any]:
    """{"table": ns a path and step, "ratios", "memory_mb", "first_call_s", ...}; see the module."""
    out = measure(SIZES, list(RIVALS), 11)
    used = memory()
    for name, mb in used.items():
        if name.startswith("sdekit,") and name != "sdekit, torch, gbm" and mb is not None:
            figure = spread(mb / MEMORY_MB, better="lower", wanted=1.0)
            out["ratios"][f"memory of 200 MB: {name.removeprefix('sdekit, ')}"] = figure
    compiling = {}
    for single in (True, False):
        build.cache_clear()
        start = time.perf_counter()
        try:
            build(single)
        except ImportError:
            continue
        compiling["float" if single else "double"] = round(time.perf_counter() - start, 2)
    return out | {"memory_mb": used, "gcc_s": compiling, "flags": {k: " ".join(v) for k, v in FLAGS.items()}}


def quick() -> dict[str, Any]:
    """The small ensembles against C."""
    return measure(SIZES[:1], ["sdekit", "sdekit, double", *[n for n in RIVALS if n.startswith("C")]], 11)
