"""Cost of a fixed step: `sdekit.solve` against a loop written by hand and against torchsde, one thread.

Euler-Maruyama, 4,096 paths, 1,000 steps, float32. All three are given the same drift and diffusion as plain
callables. The loop by hand keeps one buffer for its noise and updates in place:

    z.normal_(0, sqrt(h));  f, g = drift(x, t), diffusion(x, t);  x.add_(f, alpha=h).addcmul_(g, z)

It counts nothing, checks nothing and depends on the batch around each path. Its noise is torch's own
generator, torchsde's is its `BrownianInterval`, sdekit's is Philox. Timed in CPU seconds of the one thread,
which on an idle machine is wall time. Wanted: at most 1.3 times the loop by hand, and at least 5 times faster
than torchsde.
"""

from __future__ import annotations

import importlib.util
import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

import sdekit as sk
from benchmarks._timing import compare, quartiles

BATCH, STEPS = 4096, 1000
WIDTHS = (1, 8)
QUICK = (f"geometric Brownian {BATCH}x1",)
WANTED = {"times_by_hand": 1.3, "faster_than_torchsde": 5.0}
SIGMA = torch.tensor(1.4)

Field = Callable[[Tensor, Tensor], Tensor]
PROBLEMS: dict[str, tuple[str, Field, Field]] = {
    "geometric Brownian": ("diagonal", lambda x, t: 0.1 * x, lambda x, t: 0.5 * x),
    "Ornstein-Uhlenbeck": ("additive", lambda x, t: -x, lambda x, t: SIGMA),
}


def by_hand(drift: Field, diffusion: Field, x0: Tensor, steps: int) -> Tensor:
    """Euler-Maruyama over (0, 1), in place."""
    x, z, h = x0.clone(), torch.empty_like(x0), 1.0 / steps
    with torch.no_grad():
        for t in torch.linspace(0.0, 1.0, steps + 1)[:-1].unbind():
            z.normal_(0.0, math.sqrt(h))
            f, g = drift(x, t), diffusion(x, t)
            x.add_(f, alpha=h).addcmul_(g, z)
    return x


class _TorchSDE(torch.nn.Module):
    sde_type = "ito"

    def __init__(self, noise_type: str, drift: Field, diffusion: Field) -> None:
        super().__init__()
        self.noise_type = noise_type
        self.f: Callable[[Tensor, Tensor], Tensor] = lambda t, x: drift(x, t)
        # It takes additive noise as a matrix only; elementwise it is "diagonal", of the full shape.
        self.g: Callable[[Tensor, Tensor], Tensor] = lambda t, x: diffusion(x, t).expand(x.shape)


def candidates(name: str, width: int, batch: int = BATCH, steps: int = STEPS) -> dict[str, Callable[[], Any]]:
    """The three runs of one problem, from x0 = 1 over (0, 1); two where torchsde is not installed."""
    noise_type, drift, diffusion = PROBLEMS[name]
    x0 = torch.ones(batch, width)
    system = sk.SDE(drift, diffusion, noise_type=noise_type)
    theirs = _TorchSDE("diagonal", drift, diffusion)
    ends = torch.tensor([0.0, 1.0])

    runs: dict[str, Callable[[], Any]] = {
        "sdekit": lambda: sk.solve(system, x0, (0.0, 1.0), steps=steps).x,
        "by hand": lambda: by_hand(drift, diffusion, x0, steps),
    }
    if importlib.util.find_spec("torchsde") is None:
        return runs
    import torchsde

    def peer() -> Tensor:
        with torch.no_grad():
            return torchsde.sdeint(theirs, x0, ends, method="euler", dt=1.0 / steps)[-1]

    return runs | {"torchsde": peer}


def case(name: str, width: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """(row of the table, ratios) of one problem."""
    given = candidates(name, width)
    own = {"sdekit": given["sdekit"]}
    times = compare(own | {"by hand": given["by hand"]}, repetitions=31, clock=time.thread_time)
    hand = times["by hand"]
    row: dict[str, Any] = {
        "problem": name,
        "state": f"{BATCH} x {width}",
        "sdekit us/step": round(times["sdekit"]["best_us"] / STEPS, 1),
        "by hand us/step": round(hand["best_us"] / STEPS, 1),
        "times by hand": hand["ratio"],
    }
    label = f"{name} {BATCH}x{width}"
    ratios = {f"{label}: times by hand": quartiles(hand, better="lower", wanted=WANTED["times_by_hand"])}
    if "torchsde" in given:
        peers = compare(own | {"torchsde": given["torchsde"]}, repetitions=3, clock=time.thread_time)
        wanted = WANTED["faster_than_torchsde"]
        faster = quartiles(peers["torchsde"], better="higher", wanted=wanted, inverse=True)
        ratios[f"{label}: faster than torchsde"] = faster
        row["torchsde us/step"] = round(peers["torchsde"]["best_us"] / STEPS, 1)
        row["faster than torchsde"] = faster["median"]
    return row, ratios


def measure(cases: Sequence[tuple[str, int]]) -> dict[str, Any]:
    """{"table", "ratios", "absent"} of these problems and widths."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        found = [case(*which) for which in cases]
    finally:
        torch.set_num_threads(before)
    absent: dict[str, str] = {}
    if importlib.util.find_spec("torchsde") is None:
        why = "torchsde is not installed"
        absent = {f"{name} {BATCH}x{width}: faster than torchsde": why for name, width in cases}
    ratios = {name: figure for _, own in found for name, figure in own.items()}
    return {"table": [row for row, _ in found], "ratios": ratios, "absent": absent}


def run() -> dict[str, Any]:
    """{"table": a row for each problem and width, "ratios", "absent"}."""
    return measure([(name, width) for name in PROBLEMS for width in WIDTHS])


def quick() -> dict[str, Any]:
    """The first problem, one number a path."""
    return measure([("geometric Brownian", 1)])
