"""One run of a program over many samples: tiles, progress, and where a sample failed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from sdekit.errors import NonFiniteError, check_count
from sdekit.noise import Noise, Philox, Recorded
from sdekit.samplers.execute import Program, Watch, execute
from sdekit.samplers.graphs import captured
from sdekit.samplers.picard import picard
from sdekit.samplers.plan import Evaluate, Instruction
from sdekit.score.model import Denoiser
from sdekit.solution import Solution

__all__ = ["Run", "Tile", "finite_rows"]


@dataclass(frozen=True)
class Tile:
    """Rows low..high - 1 of the run go through the network together; first..last - 1 of them are kept."""

    low: int
    high: int
    first: int
    last: int


def tiles(n: int, first_id: int, batch_size: int | None) -> Iterator[Tile]:
    """Tiles of ``batch_size`` rows aligned to absolute ids: tile = id // batch_size. None: one tile."""
    if n == 0:
        return
    if batch_size is None:
        yield Tile(0, n, 0, n)
        return
    size = check_count(batch_size, "batch_size")
    for tile in range(first_id // size, (first_id + n - 1) // size + 1):
        low = tile * size - first_id
        yield Tile(low, low + size, max(0, -low), min(size, n - low))


@dataclass
class Run:
    """A program, a model and the noise, ready for the samples first_id, first_id + 1, ..."""

    model: Denoiser
    program: Program
    noise: Noise
    shape: tuple[int, ...]
    first_id: int
    dtype: torch.dtype
    device: torch.device
    x_init: Tensor | None = None
    batch_size: int | None = None
    saved: Sequence[int] = ()
    callback: Callable[[int, float, Tensor], None] | None = None
    progress: bool = False
    window: int | None = None
    tolerance: float = 0.0
    backend: str = "auto"
    compile: bool = False
    sweeps: int = field(default=0, init=False)
    evaluations: int = field(default=0, init=False)
    cause: str = field(default="too few steps, or a network that returns NaN", init=False)

    def start(self, tile: Tile) -> tuple[Tensor, Tensor]:
        """State (rows, *event) and ids (rows,) of a tile; rows outside the run pad it."""
        rows = tile.high - tile.low
        first = self.first_id + tile.low
        ids = torch.arange(first, first + rows, dtype=torch.int64, device=self.device)
        if isinstance(self.noise, Recorded):  # holds no rows for the padding
            ids = ids.clamp(first + tile.first, first + tile.last - 1)
        like = torch.empty((rows, *self.shape[1:]), dtype=self.dtype, device=self.device)
        if self.x_init is None:
            return self.noise.initial(like, ids) * self.program.plan.prior_std, ids
        given = self.x_init[tile.low + tile.first : tile.low + tile.last]
        given = given.to(dtype=self.dtype, device=self.device)
        if given.shape[0] == rows:
            return given, ids
        x = torch.zeros_like(like)
        x[tile.first : tile.last] = given
        return x, ids

    def __call__(self) -> tuple[Tensor, Tensor | None]:
        """Run every tile and put the rows together: (x, xs or None)."""
        nodes = self.program.plan.nodes
        work = list(tiles(self.shape[0], self.first_id, self.batch_size))
        bar: Any = None
        if self.progress:
            from tqdm.auto import tqdm

            bar = tqdm(total=len(work) * (len(nodes) - 1), desc=self.program.plan.sampler, unit="step")

        def watch(i: int, x: Tensor) -> None:
            if bar is not None:
                bar.update()
            if self.callback is not None:
                before = None if x.is_inference() else x._version
                self.callback(i, float(nodes[i].t), x)
                if before is not None and x._version != before:
                    raise ValueError(
                        f"the callback changed x in place at node {i}, and x is the state of the run. Next: "
                        f"work on x.clone()."
                    )

        seen = watch if bar is not None or self.callback is not None else None
        x_parts: list[Tensor] = []
        xs_parts: list[Tensor] = []
        try:
            for tile in work:
                kept_rows = slice(tile.first, tile.last)
                x, ids = self.start(tile)
                if self.compile:
                    x, kept = self.replay(x, ids)
                elif self.window is None:
                    x, kept = execute(
                        self.program,
                        self.model,
                        x,
                        self.noise,
                        ids,
                        saved=self.saved,
                        watch=seen,
                        backend=self.backend,
                        donate=self.x_init is None,
                    )
                else:  # rows that pad the tile would only cost evaluations
                    x, kept = self.iterate(x[kept_rows], ids[kept_rows], seen)
                    kept_rows = slice(None)
                if self.window is None:
                    self.evaluations += len(self.program.evaluation_times) * x.shape[0]
                x_parts.append(x[kept_rows])
                if self.saved:
                    xs_parts.append(torch.stack([kept[i][kept_rows] for i in self.saved]))
        finally:
            if bar is not None:
                bar.close()
        if not x_parts:
            empty = torch.empty(self.shape, dtype=self.dtype, device=self.device)
            return empty, empty.expand(len(nodes), *self.shape) if self.saved else None
        x = x_parts[0] if len(x_parts) == 1 else torch.cat(x_parts)
        return x, torch.cat(xs_parts, dim=1) if xs_parts else None

    def replay(self, x: Tensor, ids: Tensor) -> tuple[Tensor, dict[int, Tensor]]:
        """One tile as a CUDA graph."""
        graph = captured(self.program, self.model, x, ids, saved=self.saved, backend=self.backend)
        return graph(x, ids, self.noise.seed if isinstance(self.noise, Philox) else 0)

    def iterate(self, x: Tensor, ids: Tensor, watch: Watch | None) -> tuple[Tensor, dict[int, Tensor]]:
        """One tile by Picard sweeps; ``sweeps`` counts those of the tile that took most."""
        assert self.window is not None
        found = picard(
            self.program,
            self.model,
            x,
            self.noise,
            ids,
            window=self.window,
            tolerance=self.tolerance,
            saved=self.saved,
            watch=watch,
        )
        self.sweeps = max(self.sweeps, found.sweeps)
        self.evaluations += found.evaluations
        return found.x, found.states

    def locate(self) -> Tensor:
        """Replay to find the step at which each sample failed, (n,) int64, -1 for none; sets ``cause``."""
        step = torch.full((self.shape[0],), -1, dtype=torch.int64)
        self.cause = "the state left the floating-point range: too few steps for this sampler and process"
        for tile in tiles(self.shape[0], self.first_id, self.batch_size):
            kept = slice(tile.first, tile.last)
            steps = step[tile.low + tile.first : tile.low + tile.last]

            def inspect(
                reached: int,
                ins: Instruction,
                given: Tensor,
                out: Tensor,
                kept: slice = kept,
                steps: Tensor = steps,
            ) -> None:
                fresh = ~finite_rows(out[kept]) & (steps < 0)
                if not bool(fresh.any()):
                    return
                if isinstance(ins, Evaluate) and bool(finite_rows(given[kept])[fresh].all()):
                    self.cause = (
                        f"the network returned NaN or infinity at a finite state, t = {float(ins.t):g}"
                    )
                steps[fresh] = reached + 1

            x, ids = self.start(tile)
            execute(self.program, self.model, x, self.noise, ids, inspect=inspect, backend="eager")
        return step

    def failure(self, solution: Solution) -> NonFiniteError:
        """The error that names the first failed sample, its step and time, and the likely cause."""
        bad = solution.status.nonzero().flatten()
        i = int(bad[0])
        where = ""
        if solution.failed_step is not None and solution.failed_at is not None:
            step = int(solution.failed_step[i])
            where = f" at step {step}, t = {float(solution.failed_at[i]):g}" if step >= 0 else ""
        return NonFiniteError(
            f"{bad.numel()} of {solution.status.numel()} samples are not finite; first: sample "
            f"{self.first_id + i}{where} of {self.program.plan.sampler!r}. Likely cause: {self.cause}. Next: "
            f"more steps, another grid, or check the network there; throw=False returns the other samples, "
            f"and so does the error's .solution.",
            solution,
        )


def finite_rows(x: Tensor) -> Tensor:
    """(B,) on the host: which rows are finite."""
    return torch.isfinite(x.detach()).reshape(x.shape[0], -1).all(dim=1).cpu()
