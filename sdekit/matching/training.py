"""The loop of `fit`: steps, held-out losses, reports, and a state from which it goes on exactly."""

from __future__ import annotations

import time as clock
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sdekit.errors import NonFiniteError, SdekitError
from sdekit.matching import resume
from sdekit.matching.average import averaged
from sdekit.matching.checkpoint import save
from sdekit.matching.data import permutation
from sdekit.matching.interrupt import patient
from sdekit.matching.labels import ClassDenoiser, Labelled, dropped, with_net
from sdekit.matching.logs import StepReport, progress_bar
from sdekit.matching.objectives import Objective
from sdekit.matching.rates import Schedule, rate
from sdekit.matching.sources import Source
from sdekit.matching.stream import Batch

__all__ = ["Training"]

HELD_OUT_SEED = 2**63 + 1
"""Times and noise of the held-out loss: the same in every run, so that runs can be compared."""
HELD_OUT_PAIRS, HELD_OUT_BATCH = 1024, 256


@dataclass
class Training:
    """One run. model: a Denoiser of the network, or the network itself; the rest as in `fit`."""

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

    # -- one step ----------------------------------------------------------------------------------------

    def advance(self) -> Tensor:
        """One step of the optimiser and of the average; returns the gradient's norm before clipping."""
        n = self.step
        factor = rate(n, self.steps, self.warmup, self.schedule)
        for group, base in zip(self.optimiser.param_groups, self.base, strict=True):
            group["lr"] = base * factor
        loss = self.loss(*self.source.next(), n)
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        norm = torch.zeros(())
        if self.clip is not None or self.callback is not None:
            bound = float("inf") if self.clip is None else self.clip
            norm = nn.utils.clip_grad_norm_(self.module.parameters(), bound)
        self.whole = False
        self.optimiser.step()
        self.average.update_parameters(self.module)
        self.losses[n] = loss.detach()
        self.step = n + 1
        self._mark()
        return norm

    def loss(self, x: Tensor, labels: Tensor | None, draw: int) -> Tensor:
        """The training loss of one batch, a mean over samples and elements."""
        net: Any = self.module if self.compiled is None else self.compiled
        if labels is not None:
            assert isinstance(self.model, ClassDenoiser)
            labels = dropped(labels, self.drop_labels, self.model.classes, self.seed, draw)
            net = Labelled(net, labels)
        with torch.autocast(self.device.type, dtype=self.autocast, enabled=self.autocast is not None):
            values = self.objective(with_net(self.model, net), x, self.seed, draw)
        loss = values.mean() / self.objective.elements(x)
        if not loss.requires_grad:
            raise ValueError(
                "the loss does not depend on the network's parameters. Likely cause: torch.no_grad or "
                "detach inside the network. Next: remove it; fit switches gradients off by itself where it "
                "needs none."
            )
        return loss

    # -- the run -----------------------------------------------------------------------------------------

    def run(self, progress: bool) -> None:
        """All remaining steps. With a checkpoint, what has been done is kept where the run is stopped."""
        bar = progress_bar(self.steps, progress, self.step)
        self.module.train()
        try:
            with torch.random.fork_rng(devices=self.cuda), patient(self.path is not None) as asked:
                if self.step == 0:
                    torch.manual_seed(self.seed)
                else:
                    self._random(self.random)
                self._mark()
                first = self.step
                while self.step < self.steps:
                    norm = self._compiling(first)
                    self._after(norm, bar)
                    if asked():
                        raise KeyboardInterrupt
        except (Exception, KeyboardInterrupt) as error:
            if self.path is not None and not isinstance(error, NonFiniteError) and self._consistent():
                self.keep()
            raise
        finally:
            if bar is not None:
                bar.close()
        self.module.eval()

    def _compiling(self, first: int) -> Tensor:
        """A step; in the first one torch.compile may fail, and the error says so."""
        if self.compiled is None or self.step > first:
            return self.advance()
        try:
            return self.advance()
        except SdekitError:
            raise
        except Exception as error:
            line = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise RuntimeError(
                f"torch.compile failed on {type(self.module).__name__}: {line} Likely cause: no C++ compiler "
                f"here, or a loss that differentiates the network twice, as the sliced ones and those of an "
                f"Energy do. Next: compile=False."
            ) from error

    def _after(self, norm: Tensor, bar: Any) -> None:
        """What follows a step: checks, report, progress, and the state on disk."""
        n = self.step
        due = n % self.every == 0 or n == self.steps
        if n == 1 or due:
            self._finite(0 if n == 1 else max(n - self.every, 0), n)
        if due and not self._sound(n):
            raise NonFiniteError(
                f"the weights are not finite after step {n - 1}, and the losses are. Likely cause: a "
                f"gradient that is not, as of a square root at 0. Next: a small number added under it."
            )
        if due and len(self.held[0]):
            self.checks.append((n, self.held_out()))
        if bar is not None:
            bar.update()
            if due or n % max(self.every // 20, 1) == 0:
                bar.set_postfix(self._shown(), refresh=due)
        if self.callback is not None:
            measured = self.checks[-1][1] if self.checks and self.checks[-1][0] == n else None
            lr = float(self.optimiser.param_groups[0]["lr"])
            report = StepReport(n, self.steps, float(self.losses[n - 1]), measured, lr, float(norm))
            with torch.random.fork_rng(devices=self.cuda):
                self.callback(n, report)
        if due and self.path is not None:
            self.keep()

    def held_out(self) -> float:
        """Mean over at least 1,024 fixed pairs of held-out sample and noise level; averaged weights."""
        x, labels = self.held
        copies = max(1, -(-HELD_OUT_PAIRS // len(x)))
        order = permutation(len(x) * copies, HELD_OUT_SEED).to(x.device) % len(x)
        total = 0.0
        net: Any = self.average.module.eval()
        with torch.no_grad(), torch.random.fork_rng(devices=self.cuda):
            torch.manual_seed(self.seed)
            for k, rows in enumerate(torch.split(order, HELD_OUT_BATCH)):
                bound = net if labels is None else Labelled(net, labels[rows])
                values = self.objective(with_net(self.model, bound), x[rows], HELD_OUT_SEED, k)
                total += float(values.double().sum())
        return total / (len(order) * self.objective.elements(x))

    def result(self) -> Any:
        """The model with the averaged weights, in evaluation mode."""
        return with_net(self.model, self.average.module.eval())

    def elapsed(self) -> float:
        """Seconds of this run, those before it was resumed included."""
        return self.seconds + clock.perf_counter() - self.started

    def _finite(self, low: int, high: int) -> None:
        bad = (~torch.isfinite(self.losses[low:high])).nonzero()
        if len(bad) == 0:
            return
        step = low + int(bad[0])
        lr = max(self.base)
        cause, hint = f"a learning rate too large (lr = {lr:g})", "a smaller lr, and clip=1.0"
        if step == 0:
            cause = "the network returns NaN as it is: 'log' time features, say, given a negative level"
            hint = "check net(x, t); features='real' for an 'edm' network or a half log-SNR"
        raise NonFiniteError(
            f"the training loss is {float(self.losses[step]):g} at step {step}. Likely cause: {cause}. "
            f"Next: {hint}."
        )

    def _shown(self) -> dict[str, str]:
        recent = self.losses[max(self.step - max(self.every, 20), 0) : self.step]
        shown = {"loss": f"{float(recent.mean()):.4f}"}
        return shown | ({"held-out": f"{self.checks[-1][1]:.4f}"} if self.checks else {})

    # -- the state ---------------------------------------------------------------------------------------

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
