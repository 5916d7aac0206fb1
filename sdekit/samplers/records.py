"""A program bound to its tables: what `sdekit.samplers.fused` runs, made once for each kind of state.

A table of weights, and for each `Combine` a record that points into it and into the table of addresses that
the run fills (see `sdekit.kernels.cpu` and `sdekit.samplers.buffers`).
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sdekit.kernels.contract import module
from sdekit.samplers.buffers import OUT, PLACES
from sdekit.samplers.liveness import Layout, Step, layout
from sdekit.samplers.operations import operation
from sdekit.samplers.plan import Apply, Evaluate

if TYPE_CHECKING:
    from sdekit.samplers.execute import Program

__all__ = ["APPLY", "COMBINE", "EVALUATE", "Fused", "bind"]

COMBINE, EVALUATE, APPLY = range(3)
KEPT = 16
"""Shapes of which a program keeps the records."""


@dataclass(frozen=True)
class Fused:
    """A program bound to a kind of network and of state: operations, and the tables they point into."""

    layout: Layout
    operations: tuple[tuple[Any, ...], ...]
    weights: Tensor
    records: array[int]

    @cached_property
    def draws(self) -> tuple[int, ...]:
        """Every draw that is made in the passes."""
        return tuple(draw for step in self.layout.steps for draw in step.draws)


def bind(program: Program, model: object, in_pass: bool, x: Tensor) -> Fused:
    """The program's `Fused` for such a model and states like x, made once for each kind of state."""
    scales, _ = program.network(model)
    event = x.numel() // x.shape[0]
    key = (tuple(scales.values()), in_pass, x.dtype, x.device, event)
    kept = program.bound
    found: Fused | None = kept.get(key)  # other threads may clear it at any time
    if found is None:
        if len(kept) >= KEPT:
            kept.clear()
        found = kept[key] = _bind(program, scales, in_pass, x, event)
    return found


def _bind(program: Program, scales: Mapping[int, float], in_pass: bool, x: Tensor, event: int) -> Fused:
    plan = layout(program.lines, program.plan.output, scales=scales, in_pass=in_pass, reused=program.reused)
    combines = [step for step in plan.steps if step.weights]
    wide = torch.float32 if x.dtype in (torch.bfloat16, torch.float16) else x.dtype
    with torch.inference_mode(False):
        weights = torch.tensor(
            [w for s in combines for w in _rounded(program, s, wide)], dtype=wide, device=x.device
        )
    rows = list(torch.split(weights, [len(step.weights) for step in combines])) if combines else []
    numbers: list[int] = []
    starts: list[int] = []
    if x.is_cpu:
        record = module("numba").record
        for step, row in zip(combines, rows, strict=True):
            starts.append(len(numbers))
            second = PLACES + step.second if step.second >= 0 else -1
            terms = [PLACES + place for place in step.inputs]
            numbers += record(terms, step.draws, event, OUT, second, row.data_ptr())
    records = array("q", numbers)
    base, _ = records.buffer_info()
    addresses = iter([base + start * records.itemsize for start in starts] or [0] * len(combines))
    left = iter(rows)
    operations: list[tuple[Any, ...]] = []
    evaluation = 0
    lasting = _lasting(plan.steps)
    for i, step in enumerate(plan.steps):
        if isinstance(step.ins, Evaluate):
            what: tuple[Any, ...] = (EVALUATE, step.inputs[0], evaluation, step.ins)
            evaluation += 1
        elif isinstance(step.ins, Apply):
            what = (APPLY, step.inputs, operation(step.ins.name), step.ins.params)
        else:
            what = (COMBINE, next(addresses), step, next(left))
        dead = program.lines[step.line].dead_draws if step.ins is not None else ()
        operations.append((*what, step.out, step.freed, step.node, dead, i in lasting))
    return Fused(plan, tuple(operations), weights, records)


def _rounded(program: Program, step: Step, wide: torch.dtype) -> Sequence[float]:
    return step.weights if step.ins is None else program.rounded(program.lines[step.line], step.weights, wide)


def _lasting(steps: Sequence[Step]) -> set[int]:
    """The evaluations whose outputs are held when the network is called again."""
    found: set[int] = set()
    held: dict[int, int] = {}
    for i, step in enumerate(steps):
        if isinstance(step.ins, Evaluate):
            found.update(held.values())
            held[step.out] = i
        for place in step.freed:
            held.pop(place, None)
    return found
