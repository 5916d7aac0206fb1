r"""Trajectories of the probability flow: starts, their ends, and a count of what they cost.

A set has N starts x_m at t_max, fixed by (seed, set), and the ends of their exact trajectories, from the
default sampler on ever finer grids: intervals double until

    gm_m |x_m^(2n) - x_m^(n)|_rms  <=  tolerance,        gm the geometric mean over trajectories,

which bounds the error of the coarser one; the finer one is kept. Rough networks stop at 512 intervals.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from sdekit.errors import NonFiniteError
from sdekit.noise import Philox
from sdekit.noise.source import Purpose
from sdekit.samplers.build import plan
from sdekit.samplers.execute import execute, prepare
from sdekit.samplers.plan import Plan
from sdekit.score.model import Denoiser, ExactDenoiser
from sdekit.score.predictions import Node

__all__ = ["Probe", "Trajectories", "error", "geometric_mean", "own_precision", "trajectories"]

FIRST, LAST = 64, 512


@dataclass
class Probe:
    """A model seen by calibration: called on N rows at a time, counted, in its own precision.

    States are float64. Every call has the same ``rows``, row m being trajectory m, so that a closure that
    holds a label or a condition for each row keeps them.
    """

    model: Denoiser
    rows: int
    event: tuple[int, ...]
    data_std: float
    data_spread: float
    dtype: torch.dtype
    device: torch.device
    seen: Callable[[], object] = lambda: None
    calls: int = field(default=0, init=False)

    @property
    def predicts(self) -> str:
        """What the model predicts."""
        return self.model.predicts

    @property
    def finite(self) -> bool:
        """Whether a run must start where alpha > 0."""
        return not self.model.defined_at_pure_noise

    def evaluate(
        self, kind: str, x: Tensor, node: Node, t: Tensor | None = None, data_std: float | None = None
    ) -> Tensor:
        """``kind`` at x (N, *event) float64; as `Denoiser.evaluate`."""
        self.calls += 1
        self.seen()
        with torch.no_grad():
            out = self.model.evaluate(kind, x.to(self.dtype), node, None, data_std)
        return out.to(torch.float64)

    def run(self, made: Plan, start: Tensor) -> Tensor:
        """The plan's output (N, *event) from start, which is given at t_max or at alpha = 1e-3."""
        ids = torch.arange(self.rows, device=self.device)
        program = prepare(made, self.predicts, self.model.data_std)
        out, _ = execute(program, self, start, Philox(0), ids)  # type: ignore[arg-type]
        return out

    def plan(self, sampler: object, **options: object) -> Plan:
        """A plan with all that is known of data and model."""
        return plan(
            sampler,  # type: ignore[arg-type]
            self.model.process,
            data_std=self.data_std,
            data_spread=self.data_spread,
            predicts=self.predicts,
            finite=self.finite,
            **options,  # type: ignore[arg-type]
        )


@dataclass(frozen=True)
class Trajectories:
    """start, end: (N, *event) float64, at the first time and at t_min. floor: what `trajectories` reached."""

    start: Tensor
    end: Tensor
    floor: float
    intervals: int


def error(x: Tensor, exact: Tensor) -> Tensor:
    """(N,) RMS distance over the elements of each sample; inf where x is not finite."""
    distance = (x - exact).square().flatten(1).mean(1).sqrt()
    return torch.where(torch.isfinite(distance), distance, torch.inf)


def geometric_mean(values: Tensor) -> float:
    """exp(mean ln values); a robust mean of errors, whatever a few trajectories do."""
    return float(values.clamp_min(1e-300).log().mean().exp())


def trajectories(
    probe: Probe, seed: int, which: int, tolerance: Callable[[Tensor, Tensor], float]
) -> Trajectories:
    """Set number ``which`` of a seed. tolerance(start, end): what the reference must reach.

    The starts are normal numbers of (seed, `Purpose.PROBES`, m, which): `sample` never draws these.

    Raises NonFiniteError naming the time at which the model first fails.
    """
    like = torch.empty((probe.rows, *probe.event), dtype=torch.float64, device=probe.device)
    ids = torch.arange(probe.rows, dtype=torch.int64, device=probe.device)
    made = probe.plan("kernel-quadrature", steps=FIRST)
    start = Philox(seed).normal(which, like, ids, Purpose.PROBES) * made.prior_std
    n, coarse = FIRST, _checked(probe, made, start)
    while True:
        n *= 2
        fine = _checked(probe, probe.plan("kernel-quadrature", steps=n), start)
        floor = geometric_mean(error(coarse, fine))
        if n >= LAST or floor <= tolerance(start, fine):
            return Trajectories(start, fine, floor, n)
        coarse = fine


def _checked(probe: Probe, made: Plan, start: Tensor) -> Tensor:
    """The end of a reference run, every evaluation of it finite."""
    watched = _Watched(probe)
    ids = torch.arange(probe.rows, device=probe.device)
    program = prepare(made, probe.predicts, probe.model.data_std)
    out, _ = execute(program, watched, start, Philox(0), ids)  # type: ignore[arg-type]
    return out


@dataclass
class _Watched:
    probe: Probe

    def evaluate(
        self, kind: str, x: Tensor, node: Node, t: Tensor | None = None, data_std: float | None = None
    ) -> Tensor:
        out = self.probe.evaluate(kind, x, node, t, data_std)
        finite = torch.isfinite(out.flatten(1)).all(1)
        if not bool(finite.all()):
            row = int((~finite).nonzero()[0])
            raise NonFiniteError(
                f"expected finite predictions on the reference trajectories, got NaN or infinity on "
                f"trajectory {row} at t = {float(node.t):.6g} (alpha = {float(node.alpha):.6g}, sigma = "
                f"{float(node.sigma):.6g}). Likely cause: the network returns NaN there, or `predicts`, "
                f"`time` or the process does not match its training. Next: evaluate the model at this time."
            )
        return out


def own_precision(model: Denoiser) -> tuple[torch.dtype, torch.device]:
    """Of the network's parameters; else float64 for a closed-form law, float32 for any other callable."""
    if isinstance(model.net, torch.nn.Module):
        for p in model.net.parameters():
            if p.is_floating_point():
                return p.dtype, p.device
    dtype = torch.float64 if isinstance(model, ExactDenoiser) else torch.float32
    return dtype, torch.device("cpu")
