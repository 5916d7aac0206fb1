"""Arguments of `fit`, checked before anything is trained."""

from __future__ import annotations

import inspect
import numbers
import os
from operator import index
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sdekit.matching.checkpoint import require_safetensors
from sdekit.noise import Philox
from sdekit.score.model import Denoiser
from sdekit.sde.base import SDE

__all__ = [
    "check_agreement",
    "check_call",
    "check_gradients",
    "check_process",
    "check_seed",
    "fraction",
    "run_path",
]


def check_gradients() -> None:
    """Raises RuntimeError where gradients are switched off."""
    if not torch.is_grad_enabled():
        raise RuntimeError(
            "fit needs gradients, and they are switched off here. Likely cause: a call within "
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


def check_call(module: nn.Module, classes: int | None) -> None:
    """Raises TypeError for a network that cannot be called as net(x, t), with classes net(x, t, label)."""
    call = ("x", "t") if classes is None else ("x", "t", "label")
    try:
        inspect.signature(module.forward).bind(*call)
    except TypeError as error:
        raise TypeError(
            f"the network is called as net({', '.join(call)}), and {type(module).__name__} cannot be: "
            f"{error}. Next: a forward of these arguments; sdekit.nets.MLP and UNet have one."
        ) from None
    except ValueError:  # no signature to be had, as of compiled modules
        return


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
