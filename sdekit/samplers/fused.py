"""The executor's loop over compiled steps: one call of the network, one of the kernel, nothing else.

Everything that does not depend on the state is made before the loop: a table of addresses, one of weights,
and for each `Combine` a record that points into both (see `sdekit.kernels.cpu`). The loop writes the
addresses of what the network returns, and runs the records.

A buffer is written again only while nobody else holds it (see `sdekit.samplers.buffers`).
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sdekit.errors import changed_in_place
from sdekit.kernels import Draws
from sdekit.kernels.contract import module
from sdekit.noise import Noise, Philox, Purpose, philox
from sdekit.samplers.buffers import OUT, PLACES, Memory, references, sharers
from sdekit.samplers.liveness import Layout, Step, layout
from sdekit.samplers.network import Outputs, beside, network_times, settle
from sdekit.samplers.operations import operation
from sdekit.samplers.plan import Apply, Evaluate
from sdekit.score.model import _check_dtype

if TYPE_CHECKING:
    from sdekit.samplers.execute import Program, Watch
    from sdekit.score.model import Denoiser

__all__ = ["Fused", "fused"]

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


def fused(
    program: Program,
    model: Denoiser,
    x: Tensor,
    noise: Noise,
    ids: Tensor,
    *,
    backend: str,
    saved: Sequence[int] = (),
    watch: Watch | None = None,
    donate: bool = False,
) -> tuple[Tensor, dict[int, Tensor]]:
    """`execute` by the back end "numba" or "triton". x: contiguous, and not empty; no gradients.

    donate: x may be overwritten. Raises as `execute`.
    """
    device_key = getattr(noise, "key", None) if backend == "triton" else None  # see `sdekit.samplers.graphs`
    philox_noise = type(noise) is Philox or device_key is not None
    bound = bind(program, model, philox_noise, x)
    _, own = program.network(model)
    memory = Memory(bound.layout.places, x)
    if donate:
        memory.adopt(0)
    held, addresses, alone, shared = memory.held, memory.addresses, memory.alone, memory.shared
    storage, base, altered = memory.storage, memory.base, memory.altered
    ids = ids.contiguous()
    key = (0, 0)
    if isinstance(noise, Philox) and bound.draws:
        for draw in (min(bound.draws), max(bound.draws)):
            if not 0 <= draw < philox.DRAWS or ids.shape != x.shape[:1] or ids.dtype is not torch.int64:
                noise.normal(draw, x, ids)  # raises, and says why
        key = philox.derive_key(noise.seed, Purpose.INJECTED)
    addresses[0], addresses[1], addresses[2] = *key, ids.data_ptr()
    rows, shape, dtype, device = x.shape[0], x.shape, x.dtype, x.device
    tiles = x.numel() // rows // 128
    kernel = module("numba").kernel(x) if backend == "numba" else None
    nodes = program.nodes
    if own:
        net, times = model.network, network_times(model, nodes, x)
    else:
        net, times = None, list(beside(program.evaluation_times, x).unbind())
    versioned = not (torch.is_inference_mode_enabled() or x.is_inference())
    kept: dict[int, Tensor] = {0: x} if 0 in saved else {}
    cache: dict[int, Tensor] = {}
    observed = watch is not None or len(saved) > 0
    value: Any

    def normal(draw: int) -> Tensor:
        xi: Tensor = cache[draw] if draw in cache else noise.normal(draw, x, ids)
        if draw in program.reused:
            cache[draw] = xi
        return xi

    outputs = Outputs()
    for kind, first, second, third, out, freed, node, dead_draws, lasts in bound.operations:
        if kind == COMBINE:
            for place, draw in second.drawn:
                memory.put(place, settle(normal(draw), x, "the noise"))
            alone_now = references(held[out]) == alone[out] and sharers(storage[out]) == shared[out]
            if not alone_now:
                alone_now = memory.writable(out, freed)
            if kernel is None:
                _launch(
                    memory,
                    backend,
                    second,
                    third,
                    out,
                    alone_now,
                    Draws(second.draws, ids, device_key if device_key is not None else key, normal),
                )
            else:
                if second.second >= 0:
                    if not memory.writable(second.second, ()):
                        memory.renew(second.second)
                    addresses[PLACES + second.second] = held[second.second].data_ptr()
                if alone_now:
                    addresses[OUT] = addresses[PLACES + out]
                    kernel(first, base, 0, rows, 0, tiles)
                else:
                    old = held[out]  # perhaps an input of this step: alive until it is done
                    memory.renew(out)
                    addresses[OUT] = held[out].data_ptr()
                    kernel(first, base, 0, rows, 0, tiles)
                    addresses[PLACES + out] = addresses[OUT]
                    del old
        elif kind == EVALUATE:
            try:
                if net is None:
                    value = model.evaluate(
                        third.predicts, held[first], nodes[second], times[second], third.data_std
                    )
                elif versioned:
                    version = held[first]._version
                    value = net(held[first], times[second])
                    if held[first]._version != version:
                        raise changed_in_place("net")
                else:
                    value = net(held[first], times[second])
            except RuntimeError as error:
                _check_dtype(model.net, held[first], error)
                raise
            if altered(first):
                memory.disown(first, settle(held[first], x, "net's input"))
            if (
                type(value) is not Tensor
                or value.shape != shape
                or value.dtype is not dtype
                or value.device != device
                or not value.is_contiguous()
                or value.is_neg()
            ):
                value = settle(value, x, "net")
            if outputs.kept:
                outputs.check(value)
            if lasts:
                outputs.keep(out, value)
            held[out] = value
            addresses[PLACES + out] = value.data_ptr()
            value = None
        else:
            value = second([held[place] for place in first], third, normal)
            memory.put(out, settle(value, x, "an operation"))
            value = None
        if observed and node is not None:
            if node in saved:
                kept[node] = held[out]
            if watch is not None:
                watch(node, held[out])
                if altered(out):
                    memory.disown(out, settle(held[out], x, "the callback's input"))
        for place in freed:
            held[place] = None
            if outputs.kept:
                outputs.kept.pop(place, None)
        for draw in dead_draws:
            cache.pop(draw, None)
    result: Tensor = held[bound.layout.output]
    return result, kept


def _launch(
    memory: Memory, backend: str, step: Step, weights: Tensor, out: int, alone: bool, draws: Draws
) -> None:
    """One `combine` of a back end that takes tensors."""
    held = memory.held
    registers = [held[place] for place in step.inputs]
    scale = weights[-1] if step.second >= 0 else None
    if step.second >= 0:
        weights = weights[:-1]
    target, second = module(backend).combine(
        held[out] if alone else None, registers, weights, draws if draws.numbers else None, scale
    )
    if not alone:
        held[out] = target
        del target, registers
        memory.adopt(out)
    if second is not None:
        held[step.second] = second
