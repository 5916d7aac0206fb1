r"""How many samples go through the network at once: ``batch_size="auto"``.

The memory of a network call grows by a fixed amount a row. Two calls of r and 2 r rows give

    peak(r) = a + b r,

the plan says how many states of a row it holds beside, and the largest power of two whose a + b r fits
the share `USABLE` of what is free becomes the tile. A power of two, because the tile decides the last bits of
what a network returns: it stays the same when a little more or less memory is free.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod

import torch

from sdekit.errors import CapabilityError
from sdekit.samplers.execute import Program
from sdekit.samplers.plan import Evaluate, Plan
from sdekit.score.model import Denoiser
from sdekit.score.predictions import Node

__all__ = ["Meter", "automatic_batch", "cuda_meter", "states_held"]

USABLE = 0.8
PROBE = 8
"""Rows of the smaller probe."""


@dataclass(frozen=True)
class Meter:
    """Memory of a device. free(): bytes that can be had; peak(work): bytes that work() took at its height."""

    free: Callable[[], int]
    peak: Callable[[Callable[[], object]], int]


def cuda_meter(device: torch.device) -> Meter:
    """Of a CUDA device, from its driver and torch's allocator; waits for the device."""

    def free() -> int:
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + cached

    def peak(work: Callable[[], object]) -> int:
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        work()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before

    return Meter(free, peak)


def states_held(plan: Plan) -> int:
    """The most registers that a run of the plan holds at a time, outputs of the network included."""
    last = {name: k for k, ins in enumerate(plan.instructions) for name in (*ins.inputs, ins.out)}
    last[plan.output] = len(plan.instructions)
    held: set[str] = {plan.instructions[0].inputs[0]} if plan.instructions else set()
    most = 1
    for k, ins in enumerate(plan.instructions):
        held |= {*ins.inputs, ins.out}
        most = max(most, len(held))
        held = {name for name in held if last[name] > k}
    return most


def automatic_batch(
    model: Denoiser,
    program: Program,
    shape: Sequence[int],
    dtype: torch.dtype,
    device: torch.device,
    *,
    saved: int = 0,
    meter: Meter | None = None,
) -> int | None:
    """Rows of a tile for samples of ``shape`` (n, *event); None, all at once, where they fit or on a CPU.

    saved: states of every sample that the run keeps beside its output. meter: `cuda_meter` of the device
    unless given. Raises CapabilityError where one row does not fit.
    """
    if meter is None:
        if device.type != "cuda":
            return None
        meter = cuda_meter(device)
    n, event = shape[0], tuple(shape[1:])
    evaluation = next((ins for ins in program.plan.instructions if isinstance(ins, Evaluate)), None)
    if n == 0 or evaluation is None or evaluation.node is None:
        return None
    node = Node(*(float(value) for value in evaluation.node))

    def call(rows: int) -> Callable[[], object]:
        x = torch.zeros(rows, *event, dtype=dtype, device=device)
        return lambda: model.evaluate(evaluation.predicts, x, node)

    row = prod(event) * dtype.itemsize
    small = min(PROBE, n)
    with torch.no_grad():
        call(small)()  # libraries allocate their workspaces at the first call
        first, second = meter.peak(call(small)), meter.peak(call(2 * small))
    slope = max(second - first, 0) / small
    fixed = max(first - slope * small, 0.0)
    each = slope + states_held(program.plan) * row
    room = USABLE * meter.free() - (1 + saved) * n * row - fixed
    if room < each:
        needs, states, free = (v / 2**20 for v in (fixed + each, (1 + saved) * n * row, meter.free()))
        raise CapabilityError(
            f"one row does not fit the memory of {device}: it takes {needs:.3g} MiB, the states of all {n} "
            f"samples {states:.3g} MiB, and {free:.3g} MiB are free. Likely cause: other tensors on the "
            f"device, or save='all'. Next: fewer samples a run (first_id= continues them), save=None, or "
            f"network_dtype=torch.bfloat16."
        )
    rows = n if each == 0 else int(room / each)
    return None if rows >= n else 1 << (rows.bit_length() - 1)
