"""The fused step of `sdekit.kernels.cpu`, and what a sampler costs beside its network, one thread.

- Noise-free: the time of out = sum_i w_i register_i, in place, over the bound of memory: its reads and writes
  at the speed of `Tensor.copy_`, measured on as much memory as the step touches. Wanted: at most 1.2 with two
  terms or more.
- Noisy: out = a x + b e + c xi in place, against x.mul_(a).add_(e, alpha=b).add_(randn_like(x), alpha=c).
  Wanted: at least 4 times faster.
- Executor, 1 x 16: microseconds a step beyond the network's calls of a plan with one evaluation and one
  Combine a step, without noise (DDIM) and with (Euler-Maruyama). A time, no ratio. Wanted: under 5.
- Overhead: time a step beyond the network's calls of `sdekit.sample` with a plan, against loops over
  diffusers' schedulers (`set_timesteps` not counted), k-diffusion's samplers and azula's: identity network,
  float32, 50 steps. Noise where there is any: torch.randn on their side. Wanted: 3 times below the best.

Timed in CPU seconds of the thread, candidates in turn.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from torch import Tensor

import sdekit as sk
from benchmarks._step_rivals import LIBRARIES, STEPS, rivals
from benchmarks._timing import compare, quartiles, spread
from sdekit.kernels import cpu
from sdekit.noise import philox
from sdekit.samplers.execute import execute, prepare

SHAPES = {"64x3x32x32": (64, 3, 32, 32), "256x3x32x32": (256, 3, 32, 32)}
SMALL = (1, 16)
DTYPES = (torch.float32, torch.float64)
WANTED = {"bound": 1.2, "noisy": 4.0, "step_us": 5.0, "overhead": 3.0}
QUICK = ("bound float32 64x3x32x32 2 terms", "noisy float32 64x3x32x32", "overhead 1x16 ddim")


def _kernel(registers: list[Tensor], draws: int) -> Callable[[], None]:
    """One step into the first register, by its record, as the executor calls it."""
    x = registers[0]
    event, terms = x[0].numel(), len(registers)
    ids = torch.arange(len(x))
    weights = torch.full((terms + draws,), 0.3, dtype=x.dtype)
    places = range(4, 4 + terms)
    program = np.array(cpu.record(places, range(draws), event, 3, -1, weights.data_ptr()), dtype=np.int64)
    addresses = [ids.data_ptr(), x.data_ptr(), *(r.data_ptr() for r in registers)]
    slots = np.array([*philox.derive_key(0, 1), *addresses], dtype=np.int64)
    kernel, at, table = cpu.kernel(x), program.ctypes.data, slots.ctypes.data
    rows, tiles = len(x), event // 128
    keep = (registers, ids, weights, program, slots)

    def step() -> None:
        kernel(at, table, 0, rows, 0, tiles)

    step.__dict__["keep"] = keep
    return step


def _fused(shape: tuple[int, ...], dtype: torch.dtype, terms: tuple[int, ...]) -> dict[str, Any]:
    states = [torch.randn(shape, dtype=dtype) for _ in range(max(terms))]
    x, e = torch.randn(shape, dtype=dtype), states[1]
    bounds = {n: _bound(states[:n]) for n in terms}
    noisy = compare(
        {
            "torch": lambda: x.mul_(0.3).add_(e, alpha=0.3).add_(torch.randn_like(x), alpha=0.3),
            "fused": _kernel(states[:2], 1),
        },
        clock=time.thread_time,
    )
    return {"bounds": bounds, "noisy": noisy["fused"]}


def _bound(states: list[Tensor]) -> dict[str, float]:
    """The bound over the time of a step in place, which touches n states: n are read, one is written.

    The copy from one half of n states to the other reads n/2 and writes n/2, hence (n + 1)/n.
    """
    n = len(states)
    half = max(1, n * states[0].numel() // 2)
    here, there = torch.zeros(half, dtype=states[0].dtype), torch.zeros(half, dtype=states[0].dtype)
    row = compare({"copy": lambda: there.copy_(here), "step": _kernel(states, 0)}, clock=time.thread_time)[
        "step"
    ]
    return {key: row[key] * (n + 1) / n for key in ("ratio", "ratio_low", "ratio_high")} | {
        "step_us": row["best_us"]
    }


def _step_us(name: str) -> list[float]:
    """The executor at 1 x 16: microseconds a step beyond the network, the least of 10 runs, 30 times."""
    fixed, times = torch.zeros(SMALL), []
    model = sk.Denoiser(lambda x, t: fixed, sk.VP(), predicts="eps", data_std=1.0)
    program = prepare(sk.plan(name, sk.VP(), steps=STEPS), "eps", 1.0)
    x, ids, t = torch.randn(SMALL), torch.arange(SMALL[0]), torch.zeros(SMALL[0])
    with torch.no_grad():
        for _ in range(300):
            start = time.thread_time()
            execute(program, model, x, sk.Philox(0), ids, backend="numba")
            middle = time.thread_time()
            for _ in range(STEPS):
                model.net(x, t)
            times.append((middle - start) - (time.thread_time() - middle))
    return [1e6 * min(times[i : i + 10]) / STEPS for i in range(0, len(times), 10)]


def _overhead(shape: tuple[int, ...], families: tuple[str, ...] = ()) -> dict[str, dict[str, Any]]:
    """Family -> {"us": {name: microseconds a step}, "best rival", "ratio": figure of the best rival}."""
    found = {}
    for family, candidates in rivals(shape).items():
        if families and family not in families:
            continue
        calls = {n: f[0] if isinstance(f, tuple) else f for n, f in candidates.items()}
        settings = {f"{n}: set_timesteps": f[1] for n, f in candidates.items() if isinstance(f, tuple)}
        rows = compare(calls | settings, repetitions=15, slice_seconds=0.01, clock=time.thread_time)
        best = {
            n: rows[n]["best_us"]
            - (
                rows[f"{n}: set_timesteps"]["best_us"]
                if n in candidates and f"{n}: set_timesteps" in rows
                else 0.0
            )
            for n in calls
        }
        entry: dict[str, Any] = {"us": {n: float(f"{us / STEPS:.3g}") for n, us in best.items()}}
        others = {n: us for n, us in best.items() if n != "sdekit"}
        if others:
            rival = min(others, key=others.__getitem__)
            # Of the repetitions' quartiles, less what set_timesteps took.
            part = best[rival] / rows[rival]["best_us"]
            row = rows[rival]
            times = {key: part / row[key] for key in ("ratio", "ratio_low", "ratio_high")}
            entry |= {
                "best rival": rival,
                "ratio": {
                    "median": float(f"{times['ratio']:.4g}"),
                    "low": float(f"{times['ratio_high']:.4g}"),
                    "high": float(f"{times['ratio_low']:.4g}"),
                    "better": "higher",
                    "wanted": WANTED["overhead"],
                },
            }
        found[family] = entry
    return found


def _absent() -> dict[str, str]:
    missing = [name for name in LIBRARIES if find_spec(name) is None]
    return {"overhead": "no peer is installed"} if len(missing) == len(LIBRARIES) else {}


def _alone(measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return measure()
    finally:
        torch.set_num_threads(before)


def _figures(fused: dict[str, Any]) -> dict[str, Any]:
    ratios: dict[str, Any] = {}
    for name, case in fused.items():
        for n, row in case["bounds"].items():
            wanted = WANTED["bound"] if n >= 2 else None
            ratios[f"bound {name} {n} terms"] = quartiles(row, better="lower", wanted=wanted, inverse=True)
        ratios[f"noisy {name}"] = quartiles(case["noisy"], better="higher", wanted=WANTED["noisy"])
    return ratios


def quick() -> dict[str, Any]:
    """float32 at 64 x 3 x 32 x 32, and DDIM at 1 x 16."""

    def measure() -> dict[str, Any]:
        ratios = _figures({"float32 64x3x32x32": _fused(SHAPES["64x3x32x32"], torch.float32, (2,))})
        entry = _overhead(SMALL, ("ddim",))["ddim"]
        if "ratio" in entry:
            ratios["overhead 1x16 ddim"] = entry["ratio"]
        return {"ratios": ratios, "absent": _absent()}

    return _alone(measure)


def run() -> dict[str, Any]:
    """{"table": the fused step, "overhead": by family, "ratios", "wanted", "absent"}."""

    def measure() -> dict[str, Any]:
        fused = {
            f"{str(dtype).removeprefix('torch.')} {name}": _fused(shape, dtype, (1, 2, 3, 4))
            for dtype in DTYPES
            for name, shape in SHAPES.items()
        }
        ratios = _figures(fused)
        overhead = {
            name: _overhead(shape)
            for name, shape in {"1x16": SMALL, "64x3x32x32": SHAPES["64x3x32x32"]}.items()
        }
        for name, families in overhead.items():
            ratios |= {f"overhead {name} {f}": e["ratio"] for f, e in families.items() if "ratio" in e}
        table = [
            {
                "case": name,
                "2 terms us": case["bounds"][2]["step_us"],
                **{f"{n} terms / bound": ratios[f"bound {name} {n} terms"]["median"] for n in case["bounds"]},
                "noisy / torch": case["noisy"]["ratio"],
                "quartiles": f"{case['noisy']['ratio_low']} to {case['noisy']['ratio_high']}",
            }
            for name, case in fused.items()
        ]
        for name in ("ddim", "euler-maruyama"):
            figure = spread(_step_us(name), better="lower", wanted=WANTED["step_us"])
            ratios[f"executor 1x16, us a step: {name}"] = figure
        return {
            "table": table,
            "overhead": overhead,
            "ratios": ratios,
            "wanted": WANTED,
            "absent": _absent(),
        }

    return _alone(measure)
