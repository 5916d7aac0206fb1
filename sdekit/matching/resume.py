"""The state of an unfinished training run on disk, as safetensors and a JSON header: it goes on exactly."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sdekit.matching.checkpoint import read_metadata, require_safetensors, write
from sdekit.matching.rates import Schedule
from sdekit.matching.stream import checksum
from sdekit.sde.base import SDE

__all__ = [
    "about_optimiser",
    "check_same",
    "describe",
    "pack",
    "read_state",
    "state_path",
    "unpack",
    "write_state",
]

KEY = "sdekit-training"
FORMAT = 1


def state_path(path: str | os.PathLike[str]) -> Path:
    """The state file beside a checkpoint: model.safetensors -> model.state.safetensors."""
    target = Path(path)
    return target.with_name(f"{target.stem}.state{target.suffix or '.safetensors'}")


def write_state(path: Path, tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> None:
    """Write a state; the file appears whole or not at all."""
    write(path, tensors, {KEY: json.dumps({"format": FORMAT, **header})})


def read_state(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """(tensors, header) of a file that `write_state` wrote. Raises FileNotFoundError, and ValueError for any
    other file."""
    if not path.exists():
        raise FileNotFoundError(
            f"there is no {path} to go on from. Likely cause: a run that was stopped before its first check, "
            f"or a file that was moved. Next: resume='auto', which starts anew where there is none."
        )
    metadata = read_metadata(path)
    header = json.loads(metadata.get(KEY, "{}"))
    if header.get("format") != FORMAT:
        raise ValueError(
            f"{path} is not the state of a training run that this version reads. Next: resume=False starts "
            f"anew and replaces it."
        )
    return require_safetensors().torch.load_file(os.fspath(path), device="cpu"), header


def pack(optimiser: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """(tensors, the rest as JSON) of an optimiser's state. Raises TypeError for state of another kind."""
    tensors: dict[str, Tensor] = {}
    numbers: dict[str, Any] = {}
    for index, entries in optimiser.state_dict()["state"].items():
        for name, value in entries.items():
            if isinstance(value, Tensor):
                tensors[f"optimiser/{index}/{name}"] = value
            elif value is None or isinstance(value, bool | int | float | str):
                numbers[f"{index}/{name}"] = value
            else:
                raise TypeError(
                    f"the state {name!r} of {type(optimiser).__name__} is {type(value).__name__}, which a "
                    f"checkpoint cannot hold. Next: an optimiser whose state is tensors and numbers, as "
                    f"torch.optim.AdamW, or checkpoint=None."
                )
    return tensors, numbers


def unpack(
    optimiser: torch.optim.Optimizer, tensors: Mapping[str, Tensor], numbers: Mapping[str, Any]
) -> None:
    """Give an optimiser the state that `pack` took."""
    state: dict[int, dict[str, Any]] = {}
    for key, value in (*((k.split("/", 1)[1], v) for k, v in tensors.items()), *numbers.items()):
        index, name = key.split("/", 1)
        state.setdefault(int(index), {})[name] = value
    optimiser.load_state_dict({"state": state, "param_groups": optimiser.state_dict()["param_groups"]})


def describe(value: Any) -> Any:
    """An argument as JSON that tells equal from different; functions go by their name."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Mapping):
        return {str(k): describe(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [describe(v) for v in value]
    if isinstance(value, torch.dtype):
        return str(value)
    if isinstance(value, Tensor) or hasattr(value, "__array__"):
        return f"array {checksum(torch.as_tensor(value))}"
    if isinstance(value, SDE):
        return value.spec() if hasattr(value, "spec") else type(value).__name__
    return f"{getattr(value, '__qualname__', type(value).__name__)} (by name)"


def about_optimiser(optimiser: torch.optim.Optimizer) -> str:
    """Name and numbers of an optimiser, with the rates it starts with."""
    groups = [{k: describe(v) for k, v in g.items() if k != "params"} for g in optimiser.param_groups]
    same = all(g == groups[0] for g in groups)
    return f"{type(optimiser).__name__} {json.dumps(groups[0] if same else groups, sort_keys=True)}"


def check_same(path: Path, saved: Mapping[str, Any], now: Mapping[str, Any], schedule: Schedule) -> None:
    """Refuse to go on with other arguments, naming each; more steps are allowed where the schedule is not
    made for a number of steps. Raises ValueError."""
    now = json.loads(json.dumps(dict(now)))
    different = [k for k in now if saved.get(k) != now[k]]
    if "steps" in different and schedule != "cosine" and now["steps"] >= saved["steps"]:
        different.remove("steps")
    if not different:
        return
    shown = "; ".join(f"{k} was {saved.get(k)!r}, is {now[k]!r}" for k in different)
    hints = {
        "steps": "the cosine is made for its number of steps, and schedule='constant' can go on for more",
        "warmup": "warmup= itself, as its default depends on steps",
        "data": "the same data, in the same order",
        "network": "a network of the same layers, made with the same arguments",
    }
    hint = "; ".join(hints[k] for k in different if k in hints) or "the arguments of the first run"
    raise ValueError(
        f"{path} belongs to another run: {shown}. Next: {hint}; or resume=False, which starts anew and "
        f"replaces it."
    )
