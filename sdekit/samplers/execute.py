"""The one executor of plans."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias

import torch
from torch import Tensor

from sdekit.kernels import Draws, choose, combine
from sdekit.noise import Noise
from sdekit.noise.transforms import transformed
from sdekit.samplers.fused import fused
from sdekit.samplers.network import Outputs, beside, direct, input_scales
from sdekit.samplers.operations import operation
from sdekit.samplers.plan import Apply, Combine, Evaluate, Instruction, Plan, state
from sdekit.samplers.rounding import balanced, sizes
from sdekit.score.model import Denoiser
from sdekit.score.predictions import Node

__all__ = ["Line", "Program", "Watch", "execute", "prepare"]

Watch: TypeAlias = Callable[[int, Tensor], None]


@dataclass(frozen=True)
class Line:
    """An instruction with what the executor needs beside it; node: whose state its output is."""

    ins: Evaluate | Combine | Apply
    fields: tuple[Any, ...]
    dead: tuple[str, ...]
    dead_draws: tuple[int, ...]
    node: int | None

    @property
    def weights(self) -> tuple[float, ...]:
        """Of a Combine: w, then c."""
        return tuple(self.fields[1])


class Program:
    """A plan made ready to run: coefficients as floats, the time of each evaluation, and lifetimes.

    A register is dropped after its last reader, so the memory held is the state and the history that
    the method needs. A program is made once and run on any number of batches.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self._weights: dict[torch.dtype, list[list[Tensor]]] = {}
        self._sizes = sizes(plan)
        self._networks: dict[Any, tuple[dict[int, float], bool]] = {}
        #: What `sdekit.samplers.records` has made of the program, by kind of state.
        self.bound: dict[Any, Any] = {}
        last: dict[str, int] = {}
        last_draw: dict[int, int] = {}
        self.reused: set[int] = set()
        for k, ins in enumerate(plan.instructions):
            last.update(dict.fromkeys((*ins.inputs, ins.out), k))
            draws = _draws(ins)
            self.reused.update(draw for draw in draws if draw in last_draw)
            last_draw.update(dict.fromkeys(draws, k))
        last.pop(plan.output, None)
        dead: dict[int, list[str]] = {}
        for name, k in last.items():
            dead.setdefault(k, []).append(name)
        dead_draws: dict[int, list[int]] = {}
        for draw in self.reused:
            dead_draws.setdefault(last_draw[draw], []).append(draw)
        states = {state(i): i for i in range(1, len(plan.nodes))}
        self.evaluation_times = [float(i.t) for i in plan.instructions if isinstance(i, Evaluate)]
        self.lines: list[Line] = [
            Line(
                ins,
                _fields(ins),
                tuple(dead.get(k, ())),
                tuple(dead_draws.get(k, ())),
                states.get(ins.out),
            )
            for k, ins in enumerate(plan.instructions)
        ]

    def weights(self, dtype: torch.dtype) -> list[list[Tensor]]:
        """The weights of each Combine, `rounded` to the arithmetic dtype of a state of ``dtype``.

        0-d tensors on the host: a float in their place costs three times as much a product, and they
        serve states on any device without a transfer.
        """
        wide = torch.float32 if dtype in (torch.bfloat16, torch.float16) else dtype
        if wide not in self._weights:
            combines = [line for line in self.lines if isinstance(line.ins, Combine)]
            rows = [self.rounded(line, line.weights, wide) for line in combines]
            with torch.inference_mode(False):  # kept for later runs, which may want gradients
                flat = iter(torch.tensor([w for row in rows for w in row], dtype=wide).unbind())
            self._weights[wide] = [[next(flat) for _ in row] for row in rows]
        return self._weights[wide]

    def rounded(self, line: Line, weights: Sequence[float], wide: torch.dtype) -> Sequence[float]:
        """Weights of a Combine, the terms' first: in float32 `balanced`."""
        return balanced(line.fields[0], weights, self._sizes) if wide == torch.float32 else weights

    @cached_property
    def nodes(self) -> list[Node]:
        """The node of each evaluation, floats."""
        return [line.fields[0] for line in self.lines if isinstance(line.ins, Evaluate)]

    def network(self, model: object) -> tuple[dict[int, float], bool]:
        """({line of an Evaluate: factor of the network's input}, whether evaluations are `direct` calls)."""
        if not isinstance(model, Denoiser):
            return {}, False
        key = (type(model), model.predicts, model.data_std)
        if key not in self._networks:
            calls = {k: line.ins for k, line in enumerate(self.lines) if isinstance(line.ins, Evaluate)}
            own = direct(model, tuple(calls.values()))
            scales = input_scales(model, self.nodes) if own else None
            self._networks[key] = dict(zip(calls, scales or (), strict=scales is not None)), own
        return self._networks[key]


def prepare(plan: Plan, predicts: str, data_std: float | None) -> Program:
    """The program of a plan lowered to a model's prediction, made once for each plan."""
    key = (predicts, data_std)
    if key not in plan.prepared:
        plan.prepared[key] = Program(plan.lower(predicts, data_std))
    program: Program = plan.prepared[key]
    return program


def _draws(ins: Evaluate | Combine | Apply) -> tuple[int, ...]:
    if isinstance(ins, Combine):
        return tuple(draw for _, draw in ins.noise)
    if isinstance(ins, Apply) and "draw" in ins.params:
        return (ins.params["draw"],)
    return ()


def _fields(ins: Evaluate | Combine | Apply) -> tuple[Any, ...]:
    match ins:
        case Evaluate():
            assert ins.node is not None
            return (Node(*(float(value) for value in ins.node)),)
        case Combine():
            return (
                [name for _, name in ins.terms],
                [float(w) for w, _ in (*ins.terms, *ins.noise)],
                [draw for _, draw in ins.noise],
            )
        case Apply():
            return (operation(ins.name),)


def execute(
    program: Program,
    model: Denoiser,
    x: Tensor,
    noise: Noise,
    ids: Tensor,
    *,
    saved: Sequence[int] = (),
    watch: Watch | None = None,
    inspect: Callable[[int, Instruction, Tensor, Tensor], None] | None = None,
    backend: str = "auto",
    donate: bool = False,
) -> tuple[Tensor, dict[int, Tensor]]:
    """Run a program from the state x (B, *event) of the samples ``ids`` (B,).

    saved: nodes whose states are kept and returned. watch(i, x_i) is called at each new node;
    inspect(i, instruction, input, output) after each, i the last node reached. backend: as in `sample`; every
    back end on CPU gives the same bits. donate: x may be overwritten. Returns (x, states).

    Raises CapabilityError for a back end by name that cannot serve.
    """
    if x.numel() and (name := choose(backend, x, _uncompilable(inspect))) != "eager":
        return fused(program, model, x, noise, ids, backend=name, saved=saved, watch=watch, donate=donate)
    return _reference(program, model, x, noise, ids, saved, watch, inspect)


def _uncompilable(inspect: object) -> str | None:
    """Why this run needs plain torch; None where compiled steps give the same."""
    if torch.is_grad_enabled():
        return "gradients are recorded, and compiled steps have none"
    if transformed():
        return "it runs inside a torch.func transform"
    return None if inspect is None else "every instruction is inspected"


def _reference(
    program: Program,
    model: Denoiser,
    x: Tensor,
    noise: Noise,
    ids: Tensor,
    saved: Sequence[int],
    watch: Watch | None,
    inspect: Callable[[int, Instruction, Tensor, Tensor], None] | None,
) -> tuple[Tensor, dict[int, Tensor]]:
    """The loop in plain torch: registers by name, each state a new tensor."""
    registers: dict[str, Tensor] = {state(0): x}
    times = beside(program.evaluation_times, x).unbind()
    kept: dict[int, Tensor] = {0: x} if 0 in saved else {}
    cache: dict[int, Tensor] = {}
    weights = program.weights(x.dtype)
    evaluation = reached = combination = 0
    outputs = None if torch.is_grad_enabled() or transformed() else Outputs()

    def normal(draw: int) -> Tensor:
        if draw not in program.reused:
            return noise.normal(draw, x, ids)
        if draw not in cache:
            cache[draw] = noise.normal(draw, x, ids)
        return cache[draw]

    for line in program.lines:
        ins = line.ins
        if isinstance(ins, Combine):
            names, _, draws = line.fields
            terms = [registers[name] for name in names]
            out, _ = combine(None, terms, weights[combination], Draws(tuple(draws), ids, None, normal))
            combination += 1
        elif isinstance(ins, Evaluate):
            (node,) = line.fields
            out = model.evaluate(ins.predicts, registers[ins.x], node, times[evaluation], ins.data_std)
            evaluation += 1
            if outputs is not None:
                outputs.check(out)
                outputs.keep(ins.out, out)
        else:
            (fn,) = line.fields
            out = fn([registers[name] for name in ins.inputs], ins.params, normal)
        registers[ins.out] = out
        if inspect is not None:
            inspect(reached, ins, registers[ins.inputs[0]], out)
        if line.node is not None:
            reached = line.node
            if reached in saved:
                kept[reached] = out
            if watch is not None:
                watch(reached, out)
        for name in line.dead:
            del registers[name]
            if outputs is not None:
                outputs.kept.pop(name, None)
        for draw in line.dead_draws:
            cache.pop(draw, None)
    return registers[program.plan.output], kept
