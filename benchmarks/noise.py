"""Normal numbers a second, one thread: the compiled Philox against torch's own generator.

Three comparisons, each with torch on the other side in the same repetition: filling memory that is there
(against `Tensor.normal_`), `Philox.normal`, which also allocates (against `torch.randn`), and the plain call
on a small state. Fresh memory of many megabytes costs both sides the same page faults, which hides a fast
generator: so the speed of the generator is the first comparison, of the object the second.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

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
    filled = compare({"torch": theirs.normal_, "sdekit": lambda: fill(ours, key, next(draw), ids, event)})
    made = compare(
        {
            "torch": lambda: torch.randn(shape, dtype=dtype),
            "sdekit": lambda: noise.normal(next(draw), ours, ids),
        }
    )
    return {
        "fill": filled["sdekit"],
        "torch normal_": filled["torch"],
        "Philox.normal": made["sdekit"],
        "torch randn": made["torch"],
        "million_per_second": {
            name: round(numbers / row["best_us"])
            for name, row in {"sdekit": filled["sdekit"], "torch": filled["torch"]}.items()
        },
    }


def ratios(cases: Mapping[str, Any]) -> dict[str, Any]:
    """Times the speed of torch, {"fill float32 1e6": ..., "Philox.normal float32 1e6": ...}."""
    found = {
        f"fill {name}": quartiles(case["fill"], better="higher", wanted=WANTED[name.split()[0]])
        for name, case in cases.items()
    }
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
        small = compare({"torch": lambda: torch.randn(SMALL), "sdekit": lambda: noise.normal(3, like, ids)})
    finally:
        torch.set_num_threads(before)
    return {
        "table": [
            {
                "case": name,
                "sdekit M/s": case["million_per_second"]["sdekit"],
                "torch M/s": case["million_per_second"]["torch"],
                "fill / normal_": case["fill"]["ratio"],
                "quartiles": f"{case['fill']['ratio_low']} to {case['fill']['ratio_high']}",
                "Philox.normal / randn": case["Philox.normal"]["ratio"],
            }
            for name, case in cases.items()
        ],
        "call_1x16_us": {"sdekit": small["sdekit"]["best_us"], "torch randn": small["torch"]["best_us"]},
        "ratios": ratios(cases),
        "cases": cases,
    }
