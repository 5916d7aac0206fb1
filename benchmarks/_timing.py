"""Paired timings on machines that are shared, and the stamp that goes with every figure.

Candidates are timed in turn within each repetition, so that a busy spell hits all of them; ratios are
formed within repetitions. Reported: the minimum, the time nearest to an idle machine, and median and
quartiles of the ratios, which say how far to trust it.
"""

from __future__ import annotations

import gc
import importlib.metadata
import math
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

__all__ = ["compare", "geometric", "quartiles", "race", "spread", "stamp"]


def _seconds(fn: Callable[[], Any], calls: int, clock: Callable[[], float] = time.perf_counter) -> float:
    start = clock()
    for _ in range(calls):
        fn()
    return (clock() - start) / calls


def compare(
    candidates: Mapping[str, Callable[[], Any]],
    *,
    repetitions: int = 31,
    slice_seconds: float = 0.02,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, dict[str, float]]:
    """Time the candidates against the first of them.

    Returns name -> {"best_us", "median_us"} and, for all but the first, "ratio" (median over repetitions of
    the time of the first over its own: how many times faster it is), "ratio_low" and "ratio_high"
    (quartiles), "ratio_best" (of the minima). Each candidate runs for about ``slice_seconds`` per repetition.
    clock: ``time.thread_time`` counts the CPU seconds of this thread alone, for work on one thread where
    others take turns on the cores.
    """
    calls: dict[str, int] = {}
    for name, fn in candidates.items():
        fn()  # compiles, allocates
        once = min(_seconds(fn, 1, clock) for _ in range(3))
        calls[name] = max(1, round(slice_seconds / max(once, 1e-7)))
    times: dict[str, list[float]] = {name: [] for name in candidates}
    names = list(candidates)
    collecting = gc.isenabled()
    gc.disable()
    try:
        for repetition in range(repetitions):
            for name in names if repetition % 2 else reversed(names):
                times[name].append(_seconds(candidates[name], calls[name], clock))
    finally:
        if collecting:
            gc.enable()
    first = times[names[0]]
    out: dict[str, dict[str, float]] = {}
    for name, own in times.items():
        row = {"best_us": 1e6 * min(own), "median_us": 1e6 * statistics.median(own)}
        if name != names[0]:
            ratios = [a / b for a, b in zip(first, own, strict=True)]
            low, middle, high = statistics.quantiles(ratios, n=4)
            row |= {
                "ratio": middle,
                "ratio_low": low,
                "ratio_high": high,
                "ratio_best": min(first) / min(own),
            }
        out[name] = {key: float(f"{value:.4g}") for key, value in row.items()}
    return out


def race(
    candidates: Mapping[str, Callable[[], Any]],
    repetitions: Mapping[str, int],
    *,
    slice_seconds: float = 0.02,
    clock: Callable[[], float] = time.process_time,
) -> dict[str, list[float]]:
    """Seconds of a call, the candidates in turn: round k times those with more than k repetitions.

    A call shorter than ``slice_seconds`` is repeated in its turn until they are filled, after one that is not
    timed, because the candidate before has emptied the caches; longer ones are timed once a turn. What a
    first call compiles is the caller's to have done. The default clock counts the CPU seconds of all threads
    of the process.
    """
    calls: dict[str, int] = {}
    for name, fn in candidates.items():
        once = _seconds(fn, 1, clock)
        if once < slice_seconds:
            once = min(once, _seconds(fn, 1, clock))
        calls[name] = max(1, round(slice_seconds / max(once, 1e-7)))
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for turn in range(max(repetitions.values())):
        for name, fn in candidates.items():
            if turn < repetitions[name]:
                if calls[name] > 1:
                    fn()
                times[name].append(_seconds(fn, calls[name], clock))
    return times


def spread(
    values: Sequence[float] | float, *, better: str, wanted: float | None = None
) -> dict[str, float | str | None]:
    """A figure as `benchmarks.check` reads it: {"median", "low", "high", "better", "wanted"}.

    values: the ratio in each repetition; low and high are their quartiles. A single number, of what is
    computed and not timed, is all three. better: "lower" or "higher".
    """
    if better not in ("lower", "higher"):
        raise ValueError(f'better must be "lower" or "higher", got {better!r}.')
    found = [values] if isinstance(values, int | float) else list(values)
    quartiles = statistics.quantiles(found, n=4, method="inclusive") if len(found) > 1 else 3 * found
    low, median, high = (float(f"{x:.4g}") for x in quartiles)
    return {"median": median, "low": low, "high": high, "better": better, "wanted": wanted}


def quartiles(
    row: Mapping[str, float], *, better: str, wanted: float | None = None, inverse: bool = False
) -> dict[str, float | str | None]:
    """`spread` of a row of `compare`; ``inverse``: of how many times longer it takes, not faster it is."""
    low, median, high = row["ratio_low"], row["ratio"], row["ratio_high"]
    if inverse:
        low, median, high = (float(f"{1.0 / x:.4g}") for x in (high, median, low))
    return {"median": median, "low": low, "high": high, "better": better, "wanted": wanted}


def geometric(values: Iterable[float]) -> float:
    """Geometric mean; 0 if a value is."""
    own = list(values)
    return 0.0 if 0.0 in own else math.exp(sum(math.log(v) for v in own) / len(own))


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def stamp() -> dict[str, Any]:
    """Where and when: processor, cores, instruction set, load, versions, date."""
    packages = ("sdekit", "torch", "numba", "numpy", "scipy")
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "system": platform.platform(),
        "load": [round(x, 2) for x in os.getloadavg()] if hasattr(os, "getloadavg") else None,
        "python": platform.python_version(),
        **{package: _version(package) for package in packages},
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
    }
