"""A sampler is a plan: a list of instructions over named registers.

    Evaluate(out, x, t, predicts)     out = the model's prediction at register x and time t
    Combine(out, terms, noise)        out = sum_i w_i register_i + sum_j c_j xi_j
    Apply(out, inputs, name, params)  out = a registered function that is not affine (see `operations`)

Each register is written once, so that folding, memory planning and certificates need no bookkeeping;
the state at node i of the grid is ``x[i]``. All coefficients are float64 and known before the first
network call. Draws are integers; the same integer is the same normal number wherever it appears.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

from torch import Tensor

from sdekit._typing import Number
from sdekit.score.predictions import Node, conversion

__all__ = ["Apply", "Combine", "Evaluate", "Instruction", "Plan", "state"]


def state(i: int) -> str:
    """The register of the state at node i."""
    return f"x[{i}]"


@dataclass(frozen=True, slots=True)
class Evaluate:
    """``out = predicts(x, t)``, one call of the model. ``data_std`` scales F and nothing else."""

    out: str
    x: str
    t: Number
    predicts: str = "x0"
    node: Node | None = None
    data_std: float | None = None

    @property
    def inputs(self) -> tuple[str, ...]:
        return (self.x,)


@dataclass(frozen=True, slots=True)
class Combine:
    """``out = sum w_i register_i + sum c_j xi_j``; terms are (w, register), noise is (c, draw)."""

    out: str
    terms: tuple[tuple[Number, str], ...]
    noise: tuple[tuple[Number, int], ...] = ()

    @property
    def inputs(self) -> tuple[str, ...]:
        return tuple(name for _, name in self.terms)


@dataclass(frozen=True, slots=True)
class Apply:
    """``out = name(inputs, **params)``; params are JSON values, draws among them as integers."""

    out: str
    inputs: tuple[str, ...]
    name: str
    params: Mapping[str, Any] = field(default_factory=dict, hash=False)


Instruction: TypeAlias = "Evaluate | Combine | Apply"


@dataclass(frozen=True)
class Plan:
    """A sampler's whole computation, ready to run, print, certify, or save.

    instructions: in order of execution. nodes: the grid in the order walked, noise first, its last node with
    sigma = 0 when ``end`` is "clean"; data first when ``end`` is "t_max". prior_std: the initial state x[0]
    is drawn from N(0, prior_std^2 I); when ``end`` is "t_max" x[0] is given, and this is only its expected
    size sqrt(alpha^2 data_std^2 + sigma^2). sampler and process: how it was made (for printing; nothing is
    looked up in them). provenance: what a fitted plan was fitted with, JSON values (see `sdekit.calibrate`),
    empty for all others. prepared: the executor's own notes, not part of the plan.
    """

    instructions: tuple[Instruction, ...]
    nodes: tuple[Node, ...]
    prior_std: float
    sampler: str = "custom"
    process: str = ""
    end: str = "t_min"
    data_std: float = 1.0
    data_spread: float = 1.0
    provenance: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)
    prepared: dict[Any, Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        written = {state(0)}
        for k, ins in enumerate(self.instructions):
            for name in ins.inputs:
                if name not in written:
                    raise ValueError(
                        f"instruction {k} ({ins.out} = ...) reads register {name!r} before it is written. "
                        f"Likely cause: a recipe names a history value that does not exist yet."
                    )
            if ins.out in written:
                raise ValueError(
                    f"instruction {k} writes register {ins.out!r} a second time; registers are written "
                    f"once. Next: number it by its node."
                )
            if isinstance(ins, Evaluate) and ins.node is None:
                raise ValueError(
                    f"instruction {k} evaluates the model at t = {ins.t} without its node. Next: pass "
                    f"node=Node(t, alpha, sigma, dalpha, dsigma)."
                )
            written.add(ins.out)
        if self.output not in written:
            raise ValueError(f"the recipe of {self.sampler!r} never writes its last state {self.output!r}")

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "prepared": {}}

    # -- what it costs, what it gives ---------------------------------------------------------------

    @property
    def steps(self) -> int:
        """Intervals of the grid."""
        return len(self.nodes) - 1

    @property
    def nfe(self) -> int:
        """Network evaluations for one sample."""
        return sum(isinstance(ins, Evaluate) for ins in self.instructions)

    @property
    def output(self) -> str:
        """The register that holds the result."""
        return state(self.steps)

    @property
    def times(self) -> tuple[float, ...]:
        """The grid, from start to end; the clean node counts as t = 0."""
        return tuple(float(node.t) for node in self.nodes)

    @property
    def draws(self) -> tuple[int, ...]:
        """Every draw of noise that the plan uses, ascending."""
        used: set[int] = set()
        for ins in self.instructions:
            if isinstance(ins, Combine):
                used.update(draw for _, draw in ins.noise)
            elif isinstance(ins, Apply) and "draw" in ins.params:
                used.add(ins.params["draw"])
        return tuple(sorted(used))

    @property
    def stochastic(self) -> bool:
        """True when noise is injected after the initial state."""
        return bool(self.draws)

    @property
    def affine(self) -> bool:
        """True when the plan is affine in its noise given an affine model: what `certify` needs."""
        return not any(isinstance(ins, Apply) for ins in self.instructions)

    # -- folding ------------------------------------------------------------------------------------

    def lower(self, predicts: str, data_std: float | None = None) -> Plan:
        """The same plan with the model asked for its own prediction.

        With ``k = p x + q native`` (see `sdekit.score.predictions`) each use ``w k`` becomes
        ``(w p) x + (w q) native``, where that reads and writes fewer states than forming k once by a
        Combine, and keeps x no longer than to the next network call. A Combine that only one other reads,
        before the next call, becomes part of that one. The result is equal to rounding.

        predicts: what the network returns, as in `Denoiser`; data_std: its sigma_data (for "edm").
        Raises EndpointError where the prediction does not determine what the plan asks for.
        """
        from sdekit.score.model import PREDICTS

        native = PREDICTS.get(predicts, predicts)
        std = self.data_std if data_std is None else data_std
        states = {state(i) for i in range(len(self.nodes))}
        readers: dict[str, list[tuple[int, Instruction]]] = {}
        calls = 0
        for ins in self.instructions:
            calls += isinstance(ins, Evaluate)
            for name in ins.inputs:
                readers.setdefault(name, []).append((calls, ins))
        calls = 0
        folded: dict[str, tuple[Number, str, Number, str]] = {}
        lowered: list[Instruction] = []
        for ins in self.instructions:
            if isinstance(ins, Evaluate):
                assert ins.node is not None
                calls += 1
                p, q = conversion(native, ins.predicts, ins.node, std, ins.data_std)
                scale = std if native == "F" else None
                if _is(p, 0.0) and _is(q, 1.0):
                    lowered.append(replace(ins, predicts=native, data_std=scale))
                    continue
                raw = f"{native}:{ins.out}"
                lowered.append(replace(ins, out=raw, predicts=native, data_std=scale))
                users = readers.get(ins.out, [])
                affine = ins.out not in states and all(isinstance(user, Combine) for _, user in users)
                # k formed: x and native read, k written, k read by each; folded: native and x read by each.
                without_x = [at for at, user in users if ins.x not in user.inputs]
                near = all(at <= calls + 1 for at in without_x) and len(without_x) <= 2
                if affine and (_is(p, 0.0) or near):
                    folded[ins.out] = (p, ins.x, q, raw)
                else:
                    lowered.append(combine(ins.out, ((p, ins.x), (q, raw))))
            elif isinstance(ins, Combine) and any(name in folded for _, name in ins.terms):
                terms: list[tuple[Number, str]] = []
                for w, name in ins.terms:
                    if name in folded:
                        p, x, q, raw = folded[name]
                        terms += [(w * p, x), (w * q, raw)]
                    else:
                        terms.append((w, name))
                lowered.append(combine(ins.out, terms, ins.noise))
            else:
                lowered.append(ins)
        return replace(self, instructions=tuple(_absorbed(lowered, states)))

    # -- words and files ----------------------------------------------------------------------------

    def __str__(self) -> str:
        end = "clean" if self.end == "clean" else f"{self.times[-1]:g}"
        start = "data" if self.end == "t_max" else f"N(0, {self.prior_std:g}^2 I)"
        head = (
            f"plan of {self.sampler!r}: {self.steps} intervals, {self.nfe} evaluations, "
            f"{len(self.draws)} draws of noise\n{self.process}, t {self.times[0]:g} -> {end}, x[0] ~ {start}"
        )
        return "\n".join([head, *(f"  {_line(ins)}" for ins in self.instructions)])

    def __repr__(self) -> str:
        return f"Plan({self.sampler!r}, steps={self.steps}, nfe={self.nfe}, {self.process}, end={self.end!r})"

    def to_json(self) -> str:
        """The plan as JSON text; floats keep every bit. `from_json` is its inverse."""
        saved = {
            "format": "sdekit-plan",
            "version": 1,
            "sampler": self.sampler,
            "process": self.process,
            "end": self.end,
            "prior_std": float(self.prior_std),
            "data_std": float(self.data_std),
            "data_spread": float(self.data_spread),
            "nodes": [[float(value) for value in node] for node in self.nodes],
            "instructions": [_to_dict(ins) for ins in self.instructions],
        }
        return json.dumps(saved | ({"provenance": dict(self.provenance)} if self.provenance else {}))

    @staticmethod
    def from_json(text: str) -> Plan:
        """A plan from the text that `to_json` wrote. Raises ValueError on anything else."""
        try:
            data = json.loads(text)
            if data["format"] != "sdekit-plan" or data["version"] != 1:
                raise KeyError("format")
            return Plan(
                instructions=tuple(_from_dict(item) for item in data["instructions"]),
                nodes=tuple(Node(*map(_number, values)) for values in data["nodes"]),
                prior_std=_number(data["prior_std"]),
                sampler=data["sampler"],
                process=data["process"],
                end=data["end"],
                data_std=_number(data["data_std"]),
                data_spread=_number(data["data_spread"]),
                provenance=dict(data.get("provenance", {})),
            )
        except (KeyError, TypeError, json.JSONDecodeError) as error:
            raise ValueError(
                f"not a plan: expected the JSON text of Plan.to_json (format 'sdekit-plan', version 1), "
                f"got {str(text)[:60]!r}... ({type(error).__name__}: {error})."
            ) from error


def combine(
    out: str, terms: Iterable[tuple[Number, str]], noise: Iterable[tuple[Number, int]] = ()
) -> Combine:
    """A Combine with repeated registers summed and exact zeros dropped (0 x infinity is no number)."""
    weights: dict[str, Number] = {}
    for w, name in terms:
        weights[name] = weights[name] + w if name in weights else w
    draws: dict[int, Number] = {}
    for c, draw in noise:
        draws[draw] = draws[draw] + c if draw in draws else c
    kept = tuple((w, name) for name, w in weights.items() if not _is(w, 0.0))
    first = next(iter(weights))
    return Combine(
        out, kept or ((0.0, first),), tuple((c, draw) for draw, c in draws.items() if not _is(c, 0.0))
    )


def _absorbed(instructions: Sequence[Instruction], states: AbstractSet[str]) -> Iterator[Instruction]:
    """The instructions with each Combine that only one other reads, before the next call, in that one."""
    readers: dict[str, list[int]] = {}
    calls, at = 0, []
    for k, ins in enumerate(instructions):
        calls += not isinstance(ins, Combine)
        at.append(calls)
        for name in ins.inputs:
            readers.setdefault(name, []).append(k)
    parts: dict[str, Combine] = {}
    for k, ins in enumerate(instructions):
        if not isinstance(ins, Combine):
            yield ins
            continue
        if any(name in parts for name in ins.inputs):
            terms = [
                (w * v, inner)
                for w, name in ins.terms
                for v, inner in (parts[name].terms if name in parts else ((1.0, name),))
            ]
            ins = combine(ins.out, terms, ins.noise)
        users = readers.get(ins.out, [])
        if len(users) == 1 and at[users[0]] == at[k] and not ins.noise and ins.out not in states:
            parts[ins.out] = ins
        else:
            yield ins


def _is(value: Number, number: float) -> bool:
    return not isinstance(value, Tensor) and value == number


def _line(ins: Instruction) -> str:
    match ins:
        case Evaluate():
            return f"{ins.out} = {ins.predicts}({ins.x}, t={float(ins.t):.6g})"
        case Combine():
            parts = [f"{float(w):+.6g} {name}" for w, name in ins.terms]
            parts += [f"{float(c):+.6g} xi[{draw}]" for c, draw in ins.noise]
            return f"{ins.out} = {' '.join(parts).removeprefix('+')}"
        case Apply():
            params = ", ".join(f"{key}={value}" for key, value in ins.params.items())
            return f"{ins.out} = {ins.name}({', '.join(ins.inputs)}; {params})"


def _to_dict(ins: Instruction) -> dict[str, Any]:
    match ins:
        case Evaluate():
            assert ins.node is not None
            return {
                "evaluate": ins.out,
                "x": ins.x,
                "predicts": ins.predicts,
                "node": [float(value) for value in ins.node],
                "data_std": ins.data_std,
            }
        case Combine():
            return {
                "combine": ins.out,
                "terms": [[float(w), name] for w, name in ins.terms],
                "noise": [[float(c), draw] for c, draw in ins.noise],
            }
        case Apply():
            return {
                "apply": ins.out,
                "inputs": list(ins.inputs),
                "name": ins.name,
                "params": dict(ins.params),
            }


def _number(entry: object) -> float:
    """A JSON number. Raises TypeError for anything else."""
    if isinstance(entry, bool) or not isinstance(entry, int | float):
        raise TypeError(f"expected a number, got {entry!r}")
    return float(entry)


def _from_dict(item: Mapping[str, Any]) -> Instruction:
    if "evaluate" in item:
        node = Node(*map(_number, item["node"]))
        return Evaluate(item["evaluate"], item["x"], node.t, item["predicts"], node, item["data_std"])
    if "combine" in item:
        return Combine(
            item["combine"],
            tuple((_number(w), name) for w, name in item["terms"]),
            tuple((_number(c), draw) for c, draw in item["noise"]),
        )
    return Apply(item["apply"], tuple(item["inputs"]), item["name"], item["params"])
