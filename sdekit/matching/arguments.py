"""Arguments of `fit`, checked before anything is trained."""

from __future__ import annotations

import math
import numbers
import os
from operator import index
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sdekit.errors import check_call
from sdekit.matching.checkpoint import require_safetensors
from sdekit.noise import Philox
from sdekit.score.model import Denoiser
from sdekit.sde.base import SDE

__all__ = [
    "check_agreement",
    "check_callback",
    "check_gradients",
    "check_network",
    "check_process",
    "check_seed",
    "check_share",
    "fraction",
    "run_path",
]


def check_gradients(role: str = "fit") -> None:
    """Raises RuntimeError where gradients are switched off."""
    if not torch.is_grad_enabled():
        raise RuntimeError(
            f"{role} needs gradients, and they are switched off here. Likely cause: a call within "
            "torch.no_grad() or torch.inference_mode(). Next: call it outside of that block."
        )


def check_process(process: object) -> None:
    """Raises TypeError for anything but an SDE or None."""
    if process is not None and not isinstance(process, SDE):
        got = f"the class {process.__name__}" if isinstance(process, type) else type(process).__name__
        raise TypeError(f"process must be a process of sdekit, as sdekit.VP(), got {got}.")


def check_agreement(model: Denoiser, process: SDE | None, predicts: str | None, time: object) -> None:
    """Raises TypeError for arguments beside a `Denoiser` that say something else than it does."""
    if process is not None:
        raise TypeError("a Denoiser holds its own process. Next: fit(denoiser, data) without process.")
    for name, given, own in (("predicts", predicts, model.predicts), ("time", time, model.time)):
        if given is not None and given != own:
            raise TypeError(
                f"a Denoiser holds its own {name}, here {own!r}, and got {name}={given!r}. Next: leave it "
                f"out, or fit(denoiser.net, data, process, {name}=...)."
            )


def check_network(module: nn.Module, classes: int | None) -> None:
    """Raises TypeError for a network that cannot be called as net(x, t), with classes net(x, t, label)."""
    call: tuple[str, ...] = ("x", "t")
    cause = "a network without a time, or of a label without an attribute classes"
    if classes is not None:
        call, cause = (*call, "label"), "a network that has an attribute classes and takes no label"
    action = "a forward of these arguments; sdekit.nets.MLP and UNet have one"
    check_call(module, call, "net", cause, action)


def check_callback(callback: object) -> None:
    """Raises TypeError for a callback that cannot be called as callback(step, report)."""
    if callback is None:
        return
    if isinstance(callback, type):
        name = callback.__name__
        raise TypeError(
            f"callback must be a function (step, report), got the class {name}. Next: one of it, {name}(...)."
        )
    if not callable(callback):
        raise TypeError(
            f"callback must be a function (step, report), got {type(callback).__name__}. Next: one function "
            f"that calls all of a list."
        )
    cause = "a callback of another library, or of `sample` and `solve`, which have three arguments"
    check_call(
        callback, ("step", "report"), "callback", cause, "def callback(step, report); report.loss and so on"
    )


def check_share(value: Any, name: str, below: bool = False) -> float:
    """A number in [0, 1], or in [0, 1) if ``below``; 0 for None. Raises ValueError."""
    if value is None or value is False:
        return 0.0
    try:
        number = math.nan if isinstance(value, str | bool) else float(value)
    except (TypeError, ValueError, RuntimeError):
        number = math.nan
    if not (0 <= number < 1 or (number == 1 and not below)):
        what, hint = "be a probability in [0, 1]", "0.1, or 0 for none"
        if below:
            what, hint = "lie in [0, 1)", "0.999, or 0 for the last weights"
        raise ValueError(f"{name} must {what}, got {value!r}. Next: {hint}.")
    return number


def check_seed(seed: Any) -> int:
    """seed as Python's int. Raises TypeError and ValueError as `sdekit.noise.Philox` does."""
    Philox(seed)
    return index(seed)


def fraction(held_out: Any) -> Any:
    """held_out as Python's number where it is one number, numpy's or a 0-d tensor's; else as it is."""
    if isinstance(held_out, Tensor) and held_out.ndim == 0:
        held_out = held_out.item()
    if isinstance(held_out, bool) or not isinstance(held_out, numbers.Real):
        return held_out
    return float(held_out)


def run_path(checkpoint: str | os.PathLike[str] | None, resume: bool | str) -> Path | None:
    """Where the run is kept, None for nowhere; its folder is made. Raises ValueError for a folder instead of
    a file, and for ``resume`` without a checkpoint or with another word; OptionalDependencyError."""
    if not isinstance(resume, bool) and resume != "auto":
        raise ValueError(f"resume must be True, False or 'auto', got {resume!r}.")
    if checkpoint is None:
        if resume is not False:
            raise ValueError(
                "resume needs the checkpoint it goes on from. Next: fit(..., checkpoint='model.safetensors')."
            )
        return None
    require_safetensors()
    path = Path(checkpoint)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise ValueError(
            f"checkpoint = {path} lies in {path.parent}, which is a file. Next: a folder."
        ) from error
    if path.is_dir():
        raise ValueError(
            f"checkpoint must name a file, and {path} is a folder. Next: {path / 'model.safetensors'}."
        )
    return path
