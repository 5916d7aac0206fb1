r"""Parallel in time: a plan run by Picard sweeps.

A plan's Combines are affine, so its states are prefix sums of the network's outputs E_0, E_1, ... at
inputs X_0, X_1, ...: X_j = sum_{i<j} a_ji E_i + b_j, with the plan's own coefficients and noise. Picard
iteration guesses a window of W inputs, evaluates them in one call, and recomputes them:

    E_j = net(X_j, t_j)  for all j in the window at once,     X'_j = sum_{i<j} a_ji E_i + b_j.

The first input of the window is exact, so each sweep settles at least one evaluation, and W sweeps settle
the window whatever the network. An evaluation is settled early when its input, and all before it, changed
by less than the tolerance:

    RMS(X'_j - X_j) <= tolerance sqrt(alpha_j^2 s^2 + sigma_j^2),     s = data_std,

sample by sample. That bounds the last change, not the error at the end, which later steps enlarge where the
flow is sensitive; tolerance 0 gives the result of a run without sweeps, to the network's rounding. Each
sample has its own window, which slides by what that sample has settled: nothing of it depends on the others.
New inputs are guessed with the denoiser held at the window's last value.

Shih et al. 2023 (ParaDiGMS), algorithm 1, for the Euler step and DDIM; here for any affine plan.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sdekit.errors import CapabilityError, EndpointError
from sdekit.kernels import Draws, combine
from sdekit.noise import Noise
from sdekit.samplers.execute import Program, Watch
from sdekit.samplers.plan import Combine, Evaluate, state
from sdekit.score.model import Denoiser
from sdekit.score.predictions import Node, conversion
from sdekit.solvers.rows import rms

__all__ = ["Swept", "picard"]


@dataclass(frozen=True)
class Swept:
    """What a run by sweeps gave: the state, the states asked for, its calls, and the rows evaluated."""

    x: Tensor
    states: dict[int, Tensor]
    sweeps: int
    evaluations: int


def picard(
    program: Program,
    model: Denoiser,
    x: Tensor,
    noise: Noise,
    ids: Tensor,
    *,
    window: int,
    tolerance: float,
    saved: Sequence[int] = (),
    watch: Watch | None = None,
) -> Swept:
    """Run a program from x (B, *event) of the samples ``ids`` (B,), ``window`` >= 1 evaluations at once.

    saved, watch: as in `execute`; a node is reached once every sample has settled what precedes it.
    Raises CapabilityError for a plan with `Apply`.
    """
    if not program.plan.affine:
        raise CapabilityError(
            f"{program.plan.sampler!r} has steps that are not affine (see Plan.affine), which have no prefix "
            f"sums: it cannot run in parallel. Next: leave parallel out, or a sampler without such steps."
        )
    run = _Picard(program, model, x, noise, ids, saved, watch)
    calls, rows = len(run.calls), x.shape[0]
    settled = torch.zeros(rows, dtype=torch.int64)  # evaluations of each sample that will not change
    seen = torch.zeros(rows, dtype=torch.int64)  # evaluations of each sample that have been made
    low = sweeps = evaluations = 0
    inputs = run.inputs(0, min(window, calls), seen)
    while low < calls:
        ahead = (settled + window).clamp(max=calls)
        high = int(ahead.max())
        evaluations += run.evaluate(inputs, low, high, settled, ahead)
        sweeps += 1
        seen = ahead
        # A window that was settled whole slides by its own length.
        fresh = run.inputs(low, min(high + window, calls), seen)
        settled = settled + _prefix(inputs, fresh, low, high, settled, ahead, run.scales, tolerance)
        run.settle(low, int(settled.min()))
        inputs, low = fresh, int(settled.min())
    return Swept(run.registers[program.plan.output], run.states, sweeps, evaluations)


def _prefix(
    old: dict[int, Tensor],
    new: dict[int, Tensor],
    low: int,
    high: int,
    settled: Tensor,
    ahead: Tensor,
    scales: Sequence[float],
    tolerance: float,
) -> Tensor:
    """(B,) evaluations at the head of each sample's window whose inputs are settled, at least one."""
    index = torch.arange(low, high)[:, None]
    changes = [rms(_wide(new[j].detach() - old[j].detach())) / scales[j] for j in range(low, high)]
    still = torch.stack(changes).cpu() <= tolerance
    still = (still | (index <= settled)) & (index < ahead)
    return (still.cumprod(0) * (index >= settled)).sum(0)


def _wide(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


class _Picard:
    """The registers that no sweep changes any more, and the outputs of the window's evaluations."""

    def __init__(
        self,
        program: Program,
        model: Denoiser,
        x: Tensor,
        noise: Noise,
        ids: Tensor,
        saved: Sequence[int],
        watch: Watch | None,
    ) -> None:
        self.program, self.model, self.x, self.noise, self.ids = program, model, x, noise, ids
        self.saved, self.watch = saved, watch
        self.weights = program.weights(x.dtype)
        self.registers = {state(0): x}
        self.states = {0: x} if 0 in saved else {}
        self.drawn: dict[int, Tensor] = {}
        self.outputs: dict[int, Tensor] = {}
        self.denoised = torch.zeros_like(x)  # of each sample's last evaluation
        # blocks[j]: the lines from evaluation j - 1 up to, not including, evaluation j.
        self.blocks: list[list[int]] = [[]]
        self.calls: list[int] = []
        self.combination: dict[int, int] = {}
        for k, line in enumerate(program.lines):
            if isinstance(line.ins, Evaluate):
                self.calls.append(k)
                self.blocks.append([])
            else:
                self.combination[k] = len(self.combination)
                self.blocks[-1].append(k)
        self.nodes: list[Node] = [program.lines[k].fields[0] for k in self.calls]
        self.times = torch.tensor(program.evaluation_times, dtype=x.dtype, device=x.device)
        self.table = torch.tensor([list(node) for node in self.nodes], dtype=torch.float64, device=x.device)
        s = program.plan.data_std
        self.scales = [math.hypot(float(node.alpha) * s, float(node.sigma)) for node in self.nodes]
        self._advance(self.registers, 0, keep=True)

    def _call(self, j: int) -> Evaluate:
        ins = self.program.lines[self.calls[j]].ins
        assert isinstance(ins, Evaluate)
        return ins

    def _normal(self, draw: int) -> Tensor:
        if draw not in self.drawn:
            self.drawn[draw] = self.noise.normal(draw, self.x, self.ids)
        return self.drawn[draw]

    def _advance(self, registers: dict[str, Tensor], block: int, keep: bool = False) -> None:
        """Compute the Combines of a block; keep: for good, so that what nobody reads again is dropped."""
        for k in self.blocks[block]:
            line = self.program.lines[k]
            assert isinstance(line.ins, Combine)
            names, _, draws = line.fields
            terms = [registers[name] for name in names]
            noise = Draws(tuple(draws), self.ids, None, self._normal)
            registers[line.ins.out], _ = combine(None, terms, self.weights[self.combination[k]], noise)
            if not keep:
                continue
            self._reached(line.node, registers[line.ins.out])
            for name in line.dead:
                del registers[name]
            for draw in (*line.dead_draws, *(d for d in draws if d not in self.program.reused)):
                self.drawn.pop(draw, None)

    def inputs(self, low: int, high: int, seen: Tensor) -> dict[int, Tensor]:
        """X_j, low <= j < high, from the outputs; where a sample has none, from its last denoised value."""
        registers, found = dict(self.registers), {}
        for j in range(low, high):
            ins = self._call(j)
            x = found[j] = registers[ins.x]
            if j + 1 == high:
                break
            made = seen > j
            if bool(made.all()):
                registers[ins.out] = self.outputs[j]
            else:
                guess = self._guess(j, x)
                rows = _over(made, x)
                registers[ins.out] = torch.where(rows, self.outputs[j], guess) if bool(made.any()) else guess
            self._advance(registers, j + 1)
        return found

    def evaluate(self, inputs: dict[int, Tensor], low: int, high: int, settled: Tensor, ahead: Tensor) -> int:
        """One call of the network on every sample's window; returns its rows."""
        rows = {j: ((settled <= j) & (j < ahead)).nonzero()[:, 0].to(self.x.device) for j in range(low, high)}
        rows = {j: index for j, index in rows.items() if index.numel()}
        whole = {j: index.numel() == self.x.shape[0] for j, index in rows.items()}
        batch = torch.cat([inputs[j] if whole[j] else inputs[j][index] for j, index in rows.items()])
        counts = [index.numel() for index in rows.values()]
        first = next(iter(rows))
        ins = self._call(first)
        if len(rows) == 1:  # the very call of a run without sweeps
            node, t = self.nodes[first], self.times[first]
        else:
            at = torch.repeat_interleave(torch.tensor(list(rows)), torch.tensor(counts)).to(self.x.device)
            node, t = Node(*self.table[at].unbind(1)), self.times[at]
        parts = torch.split(self.model.evaluate(ins.predicts, batch, node, t, ins.data_std), counts)
        for (j, index), out in zip(rows.items(), parts, strict=True):
            if not whole[j]:
                out = self.outputs.get(j, torch.zeros_like(self.x)).index_copy(0, index, out)
            self.outputs[j] = out
            last = ahead == j + 1
            to_x0 = self._coefficients(j, towards_x0=True)
            if to_x0 is not None and bool(last.any()):
                denoised = to_x0[0] * inputs[j] + to_x0[1] * out
                self.denoised = torch.where(_over(last, out), denoised, self.denoised)
        return len(batch)

    def settle(self, low: int, high: int) -> None:
        """Make the evaluations low, ..., high - 1 final, and what follows from them."""
        for j in range(low, high):
            line = self.program.lines[self.calls[j]]
            out = self.registers[line.ins.out] = self.outputs.pop(j)
            self._reached(line.node, out)
            for name in line.dead:
                del self.registers[name]
            self._advance(self.registers, j + 1, keep=True)

    def _reached(self, node: int | None, x: Tensor) -> None:
        if node is None:
            return
        if node in self.saved:
            self.states[node] = x
        if self.watch is not None:
            self.watch(node, x)

    def _guess(self, j: int, x: Tensor) -> Tensor:
        """The output of evaluation j at x were the denoiser what it was at the sample's last evaluation."""
        pair = self._coefficients(j, towards_x0=False)
        return torch.zeros_like(x) if pair is None else pair[0] * x + pair[1] * self.denoised

    def _coefficients(self, j: int, towards_x0: bool) -> tuple[float, float] | None:
        """(p, q) of x0 = p x + q output, or of output = p x + q x0; None where there is none."""
        ins = self._call(j)
        ends = (ins.predicts, "x0") if towards_x0 else ("x0", ins.predicts)
        stds = (ins.data_std, None) if towards_x0 else (None, ins.data_std)
        try:
            p, q = conversion(*ends, self.nodes[j], *stds)
        except EndpointError:
            return None
        return float(p), float(q)


def _over(rows: Tensor, x: Tensor) -> Tensor:
    """(B,) bool, shaped to broadcast over the events of x."""
    return rows.to(x.device).reshape(-1, *(1,) * (x.ndim - 1))
