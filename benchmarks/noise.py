"""Normal numbers a second, one thread: the compiled Philox against torch's own generator and numpy's fastest.

Three comparisons, the others in the same repetition: filling memory that is there, against `Tensor.normal_`
and against `Generator(SFC64).standard_normal(out=...)`, numpy's Ziggurat; `Philox.normal`, which also
allocates, against `torch.randn`; and the plain call on a small state. Fresh memory of many megabytes costs
all sides the same page faults, which hides a fast generator: so the speed of the generator is the first
comparison, of the object the second. Timed in CPU seconds of the thread.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from benchmarks._timing import compare, quartiles
from sdekit.noise import Philox, philox
from sdekit.noise.cpu import fill

SHAPES = {"1e4": (10, 1_000), "1e6": (1_000, 1_000), "1e7": (1_000, 10_000)}
DTYPES = (torch.float32, torch.float64)
WANTED = {"float32": 3.0, "float64": 6.0}
"""Times torch, in memory that is there."""
SMALL = (1, 16)
QUICK = ("fill float32 1e6", "fill float64 1e6")


def _case(shape: tuple[int, int], dtype: torch.dtype) -> dict[str, Any]:
    noise, key = Philox(0), philox.derive_key(0, 1)
    ids, event = torch.arange(shape[0]), shape[1]
    ours, theirs = torch.empty(shape, dtype=dtype), torch.empty(shape, dtype=dtype)
    draw = iter(range(philox.DRAWS))
    numbers = shape[0] * shape[1]
    random, third = (
        np.random.Generator(np.random.SFC64(1)),
        np.empty(shape, str(dtype).removeprefix("torch.")),
    )
    filled = compare(
        {
            "sdekit": lambda: fill(ours, key, next(draw), ids, event),
            "torch": theirs.normal_,
            "numpy": lambda: random.standard_normal(dtype=third.dtype, out=third),
        },
        clock=time.thread_time,
    )
    made = compare(
        {
            "torch": lambda: torch.randn(shape, dtype=dtype),
            "sdekit": lambda: noise.normal(next(draw), ours, ids),
        },
        clock=time.thread_time,
    )
    return {
        "fill": {name: filled[name] for name in ("torch", "numpy")},
        "Philox.normal": made["sdekit"],
        "torch randn": made["torch"],
        "million_per_second": {name: round(numbers / row["best_us"]) for name, row in filled.items()},
    }


def ratios(cases: Mapping[str, Any]) -> dict[str, Any]:
    """Times the speed of torch, "fill float32 1e6", of numpy, "fill float32 1e6: numpy", of `torch.randn`."""
    found = {}
    for name, case in cases.items():
        for rival, row in case["fill"].items():
            wanted = WANTED[name.split()[0]] if rival == "torch" else None
            suffix = "" if rival == "torch" else f": {rival}"
            found[f"fill {name}{suffix}"] = quartiles(row, better="higher", wanted=wanted, inverse=True)
    return found | {
        f"Philox.normal {name}": quartiles(case["Philox.normal"], better="higher")
        for name, case in cases.items()
    }


def quick() -> dict[str, Any]:
    """The fills of 10^6 numbers."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        cases = {f"{str(t).removeprefix('torch.')} 1e6": _case(SHAPES["1e6"], t) for t in DTYPES}
    finally:
        torch.set_num_threads(before)
    return {"ratios": {name: row for name, row in ratios(cases).items() if name.startswith(QUICK)}}


def run() -> dict[str, Any]:
    """{"cases": {"float32 1e6": ...}, "call_1x16_us": ..., "ratios": times the speed of torch}."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        cases = {
            f"{str(dtype).removeprefix('torch.')} {name}": _case(shape, dtype)
            for dtype in DTYPES
            for name, shape in SHAPES.items()
        }
        like, ids = torch.empty(SMALL), torch.arange(SMALL[0])
        noise = Philox(0)
        small = compare(
            {"torch": lambda: torch.randn(SMALL), "sdekit": lambda: noise.normal(3, like, ids)},
            clock=time.thread_time,
        )
    finally:
        torch.set_num_threads(before)
    found = ratios(cases)
    return {
        "table": [
            {
                "case": name,
                "sdekit M/s": case["million_per_second"]["sdekit"],
                "torch M/s": case["million_per_second"]["torch"],
                "numpy M/s": case["million_per_second"]["numpy"],
                "fill / normal_": found[f"fill {name}"]["median"],
                "fill / numpy": found[f"fill {name}: numpy"]["median"],
                "Philox.normal / randn": case["Philox.normal"]["ratio"],
            }
            for name, case in cases.items()
        ],
        "call_1x16_us": {"sdekit": small["sdekit"]["best_us"], "torch randn": small["torch"]["best_us"]},
        "ratios": found,
        "cases": cases,
    }
