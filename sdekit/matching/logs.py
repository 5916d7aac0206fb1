"""What a training run tells while it runs: a bar, reports to callbacks, CSV files, TensorBoard."""

from __future__ import annotations

import csv
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdekit.errors import OptionalDependencyError, check_count

__all__ = ["CSVLog", "StepReport", "TensorBoardLog", "progress_bar"]

WATCHED, LOGGED = 0.2, 10.0
"""Seconds between two states of the bar, on a screen and in a file."""

COLUMNS = ("step", "loss", "held_out", "lr", "gradient_norm")


@dataclass(frozen=True)
class StepReport:
    """One step of `sdekit.fit`, as its callback gets it.

    step: steps done, this one included. steps: of the run. loss: of this step's batch. held_out: None except
    where the held-out loss has just been measured. lr: the rate of the step (of the first parameter group).
    gradient_norm: before clipping.
    """

    step: int
    steps: int
    loss: float
    held_out: float | None
    lr: float
    gradient_norm: float


class CSVLog:
    """A callback of `sdekit.fit` that writes a row every ``every`` steps, and at each held-out loss.

    path: the file, with columns step, loss, held_out, lr, gradient_norm. A run that starts at step 1 writes
    it anew; one that resumes drops the rows it repeats and goes on. Each row is on disk when it is written.
    """

    def __init__(self, path: str | os.PathLike[str], every: int = 1) -> None:
        self.path, self.every = Path(path), check_count(every, "every")
        self.begun = False

    def __call__(self, step: int, report: StepReport) -> None:
        """Write the row, where one is due."""
        if not self.begun or step == 1:
            self._begin(step)
        if step % self.every and report.held_out is None and step != report.steps:
            return
        held = "" if report.held_out is None else repr(report.held_out)
        row = (step, repr(report.loss), held, repr(report.lr), repr(report.gradient_norm))
        with self.path.open("a", newline="") as file:
            csv.writer(file).writerow(row)

    def _begin(self, step: int) -> None:
        rows: list[list[str]] = []
        if step > 1 and self.path.exists():
            with self.path.open(newline="") as file:
                rows = [r for r in csv.reader(file) if len(r) == len(COLUMNS) and r[0].isdigit()]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("w", newline="") as file:
            csv.writer(file).writerows([COLUMNS, *(r for r in rows if int(r[0]) < step)])
        self.begun = True


class TensorBoardLog:
    """A callback of `sdekit.fit` that writes scalars for TensorBoard, every ``every`` steps.

    directory: of the event files, shown by ``tensorboard --logdir``. Scalars: loss, held_out, lr,
    gradient_norm. Raises OptionalDependencyError without the package tensorboard.
    """

    def __init__(self, directory: str | os.PathLike[str], every: int = 1) -> None:
        self.every = check_count(every, "every")
        self.directory = os.fspath(directory)
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise OptionalDependencyError(
                "TensorBoardLog needs the package tensorboard, which is not installed. Next: pip install "
                "tensorboard, or sdekit.matching.CSVLog(path)."
            ) from error
        self.make: Any = SummaryWriter
        self.writer: Any = None

    def __call__(self, step: int, report: StepReport) -> None:
        """Write the scalars, where they are due; the last step closes the file."""
        if self.writer is None:
            # what a killed run wrote past the point where this one resumes is hidden
            self.writer = self.make(self.directory, purge_step=step)
        due = step % self.every == 0 or step == report.steps
        for name in COLUMNS[1:]:
            value = getattr(report, name)
            if value is not None and (due or name == "held_out"):
                self.writer.add_scalar(name, value, step)
        if report.held_out is not None:
            self.writer.flush()
        if step == report.steps:
            self.writer.close()
            self.writer = None


def progress_bar(steps: int, progress: bool, done: int = 0) -> Any:
    """tqdm's bar of a training run, or None."""
    if not progress:
        return None
    from tqdm.auto import tqdm

    seen = "ipykernel" in sys.modules or getattr(sys.stderr, "isatty", bool)()
    every = WATCHED if seen else LOGGED
    return tqdm(total=steps, initial=done, desc="training", unit="step", mininterval=every)
