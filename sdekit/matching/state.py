"""The state of a training run: what is written to disk, and how a run goes on from it exactly."""

from __future__ import annotations

import time as clock
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sdekit.matching import resume
from sdekit.matching.average import averaged
from sdekit.matching.checkpoint import save
from sdekit.matching.labels import with_net
from sdekit.matching.logs import StepReport
from sdekit.matching.objectives import Objective
from sdekit.matching.rates import Schedule
from sdekit.matching.sources import Source
from sdekit.matching.stream import Batch

__all__ = ["RunState"]


@dataclass
class RunState:
    """What one run keeps. model: a Denoiser of the network, or the network itself; the rest as in `fit`."""

    module: nn.Module
    model: Any
    objective: Objective
    source: Source
    held: Batch
    optimiser: torch.optim.Optimizer
    steps: int
    every: int
    seed: int
    ema: float
    schedule: Schedule
    warmup: int
    clip: float | None
    drop_labels: float
    autocast: torch.dtype | None
    compiled: Callable[..., Tensor] | None
    path: Path | None
    identity: Mapping[str, Any]
    callback: Callable[[int, StepReport], object] | None
    step: int = 0
    seconds: float = 0.0
    checks: list[tuple[int, float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.device = next(self.module.parameters()).device
        self.cuda = [self.device] if self.device.type == "cuda" else []
        self.base = [float(group["lr"]) for group in self.optimiser.param_groups]
        self.average = averaged(self.module, self.ema)
        self.losses = torch.zeros(self.steps, dtype=torch.float32, device=self.device)
        self.kept, self.whole, self.started = 0, True, clock.perf_counter()

    def result(self) -> Any:
        """The model with the averaged weights, in evaluation mode."""
        return with_net(self.model, self.average.module.eval())

    def elapsed(self) -> float:
        """Seconds of this run, those before it was resumed included."""
        return self.seconds + clock.perf_counter() - self.started

    def keep(self) -> None:
        """Write the averaged model and, after it, the state to go on from."""
        assert self.path is not None
        if self.step == self.kept:
            return
        self._save()
        tensors, numbers = resume.pack(self.optimiser)
        tensors |= {f"net/{k}": v for k, v in self.module.state_dict().items()}
        tensors |= {f"average/{k}": v for k, v in self.average.state_dict().items()}
        tensors |= {f"random/{k}": v for k, v in enumerate(self.random)}
        tensors |= {
            "losses": self.losses[: self.step],
            "held_out": torch.tensor([v for _, v in self.checks], dtype=torch.float64),
            "held_out_steps": torch.tensor([n for n, _ in self.checks], dtype=torch.int64),
        }
        header = {"step": self.step, "seconds": self.elapsed(), "place": self.source.note(self.place)}
        header |= {"identity": dict(self.identity), "optimiser": numbers}
        resume.write_state(resume.state_path(self.path), tensors, header)
        self.kept = self.step

    def _save(self) -> None:
        assert self.path is not None
        save(self.result(), self.path, extra={"steps": self.step, "seed": self.seed})

    def go_on(self) -> None:
        """Take up the state on disk. Raises FileNotFoundError without one, ValueError for another run's."""
        assert self.path is not None
        path = resume.state_path(self.path)
        tensors, header = resume.read_state(path)
        resume.check_same(path, header["identity"], self.identity, self.schedule)

        def part(name: str) -> dict[str, Tensor]:
            return {k.removeprefix(name): v for k, v in tensors.items() if k.startswith(name)}

        self.module.load_state_dict(part("net/"))
        self.average.load_state_dict(part("average/"))
        moments = {k: v for k, v in tensors.items() if k.startswith("optimiser/")}
        resume.unpack(self.optimiser, moments, header["optimiser"])
        self.random = [tensors[f"random/{k}"] for k in range(len(part("random/")))]
        self.step = self.kept = int(header["step"])
        self.losses[: self.step] = tensors["losses"].to(self.device)
        steps, values = tensors["held_out_steps"].tolist(), tensors["held_out"].tolist()
        self.checks = list(zip(steps, values, strict=True))
        self.seconds = float(header["seconds"])
        self.source.resume(header["place"])
        if not self.path.exists():
            self._save()

    def _mark(self) -> None:
        """The end of a step: random numbers, place in the data and buffers as the next step finds them."""
        if self.path is not None:
            self.random = [torch.get_rng_state(), *(torch.cuda.get_rng_state(d) for d in self.cuda)]
            self.place = self.source.place()
            self.versions = [b._version for b in self.module.buffers()]
        self.whole = True

    def _consistent(self) -> bool:
        """Whether the weights are those of the last `_mark`, with something done since the last state."""
        done = self.whole and self.step > self.kept and self._sound(self.kept)
        return done and self.versions == [b._version for b in self.module.buffers()]

    def _sound(self, since: int) -> bool:
        """Whether the losses since a step, and the weights, are finite."""
        weights = [*self.average.parameters(), *self.module.parameters()]
        values = [self.losses[since : self.step], *(w.detach() for w in weights if w.requires_grad)]
        return all(bool(torch.isfinite(v).all()) for v in values)

    def _random(self, states: list[Tensor]) -> None:
        torch.set_rng_state(states[0])
        for device, state in zip(self.cuda, states[1:], strict=True):
            torch.cuda.set_rng_state(state, device)
