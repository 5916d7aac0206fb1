"""The loop of `fit`: steps, held-out losses and reports."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sdekit.errors import NonFiniteError, SdekitError
from sdekit.matching.data import permutation
from sdekit.matching.interrupt import patient
from sdekit.matching.labels import ClassDenoiser, Labelled, dropped, with_net
from sdekit.matching.logs import StepReport, progress_bar
from sdekit.matching.rates import rate
from sdekit.matching.state import RunState

__all__ = ["Training"]

HELD_OUT_SEED = 2**63 + 1
"""Times and noise of the held-out loss: the same in every run, so that runs can be compared."""
HELD_OUT_PAIRS, HELD_OUT_BATCH = 1024, 256


@dataclass
class Training(RunState):
    """One run: its steps, from the first that is left to the last."""

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
