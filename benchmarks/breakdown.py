"""Where the time goes of a sampler step, a step of `solve`, a call of `log_prob` and an ensemble step.

The first three run under cProfile, one thread; the time spent in each function itself is summed by the part
of the library that the function belongs to. What the caller gave, the network or the equation, is a part of
its own, with the torch functions that it calls; "derivatives" are those that autograd takes through it. A
torch function that the library calls counts for torch, but an operation written as an operator, x + y, and a
compiled kernel count for the module where they stand. cProfile adds a constant to each call, and so makes
Python look dearer than it is, most of all on small states: shares are reported from it, and the time of a
step is the least of some runs without it, CPU microseconds of the thread.

    sample     a plan of 50 steps and a network that returns its input;
    solve      Euler-Maruyama, 100 steps of dX = 0.1 X dt + 0.5 X dW, torch back end;
    log_prob   64 points in 16 dimensions, a network of two layers, width 256; exact traces and one probe.

An ensemble step: the compiled back end on 10^5 paths of 100 steps of Euler-Maruyama, float32, in turn with
paths of no drift and unit diffusion, and with as many normal numbers alone, filled into 400 kB of memory.
What the paths without an equation take beyond their numbers is update and stores; the rest is the equation.
These are differences of times: a few percent either way mean nothing. And the cost of one call, from a run
of 64 paths.
"""

from __future__ import annotations

import cProfile
import pstats
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

import sdekit as sk
from benchmarks._equations import PROBLEMS, Problem
from benchmarks._rivals import RIVALS
from benchmarks._timing import race, spread
from sdekit.noise import philox
from sdekit.noise.cpu import fill

STEPS = 50
SHAPES = ((1, 16), (64, 3, 32, 32))
SAMPLERS = ("ddim", "kernel-quadrature", "euler-maruyama")
SOLVED = ((1, 16), (4096, 8))
POINTS, DIMENSION, WIDTH = 64, 16, 256
PATHS, TIMES, FEW = 100_000, 100, 64
QUICK = ("ou:",)

Where = tuple[str, int, str]
"""File, line and name of a function, as `pstats` has them."""


def _network(x: Tensor, t: Tensor) -> Tensor:
    return x


def _part(where: Where, caller: Where | None, given: str) -> str:
    file, _, function = where
    if "run_backward" in function:
        return "derivatives"
    if "/sdekit/" in file:
        rest = file.rsplit("/sdekit/", 1)[1]
        return rest.partition("/")[0].removesuffix(".py") if "/" in rest else "other sdekit"
    if __file__ in (file, caller and caller[0]):
        return given
    if "/torch/" in file or "torch" in function or "Tensor" in function:
        return "torch"
    return "Python"


def shares(call: Callable[[], Any], calls: int, given: str = "network") -> dict[str, float]:
    """Part -> its share of the time of `call`, cProfile's own bookkeeping included.

    given: the name for functions of this file, and for what they call.
    """
    call()
    profile = cProfile.Profile()
    profile.enable()
    for _ in range(calls):
        call()
    profile.disable()
    found: dict[str, float] = {}
    for where, (_, _, own, _, callers) in pstats.Stats(profile).stats.items():  # type: ignore[attr-defined]
        by_caller = {caller: times[2] for caller, times in callers.items()} or {None: own}
        for caller, seconds in by_caller.items():
            part = _part(where, caller, given)
            found[part] = found.get(part, 0.0) + seconds
    total = sum(found.values())
    return {part: found[part] / total for part in sorted(found, key=lambda p: -found[p])}


def _least_us(call: Callable[[], Any], units: int, runs: int = 20) -> float:
    """CPU microseconds of this thread for each of ``units`` parts of a call, the least of some calls."""
    seconds = []
    for _ in range(runs):
        start = time.thread_time()
        call()
        seconds.append(time.thread_time() - start)
    return float(f"{1e6 * min(seconds) / units:.3g}")


def _percent(found: dict[str, float]) -> dict[str, str]:
    """Parts of at least half a percent."""
    return {part: f"{100 * share:.0f} %" for part, share in found.items() if share >= 0.005}


def _size(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))


def sampler_steps() -> list[dict[str, Any]]:
    """A row for each sampler and state: shares in percent."""
    process = sk.VP()
    model = sk.Denoiser(_network, process, predicts="eps", data_std=1.0)
    rows = []
    for shape in SHAPES:
        for name in SAMPLERS:
            plan = sk.plan(name, process, steps=STEPS)

            def call(plan: sk.Plan = plan, shape: tuple[int, ...] = shape) -> Any:
                return sk.sample(model, shape, sampler=plan)

            found = {"sampler": name, "state": _size(shape), "us a step": _least_us(call, STEPS)}
            rows.append(found | _percent(shares(call, 20)))
    return rows


def solve_steps() -> list[dict[str, Any]]:
    """A row for each state: shares in percent of a run of Euler-Maruyama by torch's operations."""
    system = sk.SDE(lambda x, t: 0.1 * x, lambda x, t: 0.5 * x, noise_type="diagonal")
    rows = []
    for shape in SOLVED:
        x0 = torch.ones(shape)

        def call(x0: Tensor = x0) -> Any:
            return sk.solve(system, x0, (0.0, 1.0), steps=TIMES)

        found = {"solver": "euler-maruyama", "state": _size(shape), "us a step": _least_us(call, TIMES)}
        rows.append(found | _percent(shares(call, 5, "equation")))
    return rows


def log_probs() -> list[dict[str, Any]]:
    """A row for each way of taking the trace: shares in percent of a call of `log_prob`."""
    g = torch.Generator().manual_seed(0)
    first, second = torch.randn(DIMENSION, WIDTH, generator=g), torch.randn(WIDTH, DIMENSION, generator=g)

    def network(x: Tensor, t: Tensor) -> Tensor:
        scale = torch.unsqueeze(t, 1)
        return torch.add(torch.mul(x, 0.9), torch.matmul(torch.tanh(torch.matmul(x, first) * scale), second),
                         alpha=0.02)  # fmt: skip

    model = sk.Denoiser(network, sk.VP(), predicts="eps", data_std=1.0)
    x = torch.randn(POINTS, DIMENSION, generator=g)
    ways: dict[str, dict[str, Any]] = {
        "exact": {"trace": "exact"},
        "one probe": {"trace": "hutchinson", "probes": 1},
    }
    rows = []
    for name, way in ways.items():

        def call(way: dict[str, Any] = way) -> Any:
            return sk.log_prob(model, x, **way)

        nfe = call().nfe
        found = {"trace": name, "calls of the network": nfe, "us a call": _least_us(call, nfe, 3)}
        rows.append(found | _percent(shares(call, 2)))
    return rows


def _walk(dim: int) -> Problem:
    """No drift and unit diffusion: the paths of an ensemble without an equation."""
    return Problem("walk", (0.0,) * dim, lambda xp, x: (0.0,) * dim, lambda xp, x: (1.0,) * dim, "additive")


def ensemble_steps(names: Sequence[str] = tuple(PROBLEMS)) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """A row for each equation: ns a path and step, and where they go; the ratios to the numbers alone."""
    out, ids, draw = torch.empty(100, PATHS // 100), torch.arange(100), iter(range(10**6))
    key = philox.derive_key(0, 1)
    rows, ratios = [], {}
    for name in names:
        problem = PROBLEMS[name]
        runs: dict[str, Callable[[], Any]] = {
            "all": RIVALS["sdekit"](problem, PATHS, TIMES),
            "walk": RIVALS["sdekit"](_walk(problem.dim), PATHS, TIMES),
            "few": RIVALS["sdekit"](problem, FEW, TIMES),
            "normal": lambda: [fill(out, key, next(draw), ids, out.shape[1]) for _ in range(10)],
        }
        for run in runs.values():
            run()
        seconds = race(runs, dict.fromkeys(runs, 9))
        best = {what: min(own) for what, own in seconds.items()}

        def step(total: float, few: float = best["few"]) -> float:
            return (total - few) / ((PATHS - FEW) * TIMES)

        def numbers(total: float, dim: int = problem.dim) -> float:
            return dim * total / (10 * PATHS)

        whole, walk, normal = step(best["all"]), step(best["walk"]), numbers(best["normal"])
        parts = {"normal numbers": normal, "update and stores": walk - normal, "equation": whole - walk}
        rows.append(
            {
                "paths of": name,
                "ns a path and step": round(1e9 * whole, 2),
                **{part: f"{100 * own / whole:.0f} %" for part, own in parts.items()},
                "a call, ms": round(1e3 * (best["few"] - FEW * TIMES * whole), 2),
            }
        )
        pairs = zip(seconds["all"], seconds["normal"], strict=True)
        over = [step(a) / numbers(b) for a, b in pairs]
        ratios[f"{name}: step over its normal numbers"] = spread(over, better="lower")
    return rows, ratios


def _alone(measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return measure()
    finally:
        torch.set_num_threads(before)


def quick() -> dict[str, Any]:
    """The ensemble of Ornstein-Uhlenbeck paths."""
    return _alone(lambda: {"ratios": ensemble_steps(("ou",))[1]})


def run() -> dict[str, Any]:
    """{"sampler step", "solve step", "log_prob", "ensemble step": rows, "ratios"}."""

    def measure() -> dict[str, Any]:
        found = {"sampler step": sampler_steps(), "solve step": solve_steps(), "log_prob": log_probs()}
        rows, ratios = ensemble_steps()
        return found | {"ensemble step": rows, "ratios": ratios}

    return _alone(measure)
