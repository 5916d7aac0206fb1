"""Trained models on disk: safetensors for the weights, JSON in its header for all the rest."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sdekit.errors import OptionalDependencyError
from sdekit.matching.labels import ClassDenoiser, Labelled, classes_of
from sdekit.matching.nets import NETS
from sdekit.score.model import Denoiser
from sdekit.sde import from_spec

__all__ = ["load", "read_header", "read_metadata", "require_safetensors", "save", "write"]

KEY = "sdekit"
FORMAT = 1


def require_safetensors() -> Any:
    """The package, imported; OptionalDependencyError with the install command without it."""
    try:
        import safetensors.torch
    except ImportError as error:
        raise OptionalDependencyError(
            "checkpoints need the package safetensors, which is not installed. Next: pip install "
            "'sdekit[demo]', or pip install safetensors."
        ) from error
    return safetensors


def save(
    model: Denoiser | nn.Module, path: str | os.PathLike[str], *, extra: dict[str, Any] | None = None
) -> Path:
    """Write a model whose net is an nn.Module, or a network alone; no pickle, nothing is executed on loading.

    The header holds, as JSON, the process's spec, predicts, time, data_std, data_spread, network_dtype, the
    arguments of the network if it is one of `sdekit.nets`, and ``extra``. The file appears whole or not at
    all.

    Returns the path. Raises TypeError for a net that is no nn.Module or has a label bound,
    OptionalDependencyError without safetensors.
    """
    net = model.net if isinstance(model, Denoiser) else model
    if not isinstance(net, nn.Module):
        raise TypeError(
            f"only an nn.Module has weights to save, got {type(net).__name__}. Next: a closed-form law "
            f"is saved by the code that makes it."
        )
    if isinstance(net, Labelled):
        raise TypeError(
            "a model of one class holds the network of all. Next: save the ClassDenoiser it came from, and "
            "call given(label) after loading."
        )
    name = type(net).__name__
    own = NETS.get(name) is type(net)
    header = {
        "format": FORMAT,
        **(_about(model) if isinstance(model, Denoiser) else {"process": None}),
        "net": {"name": name, "arguments": net.config if own else None},
        "extra": extra or {},
    }
    return write(path, net.state_dict(), {KEY: json.dumps(header)})


def _about(model: Denoiser) -> dict[str, Any]:
    return {
        "process": model.process.spec(),
        "predicts": model.predicts,
        "time": None if callable(model.time) else model.time,
        "data_std": model.data_std,
        "data_spread": model.data_spread,
        "network_dtype": None if model.network_dtype is None else str(model.network_dtype).split(".")[-1],
    }


def write(path: str | os.PathLike[str], tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> Path:
    """Write tensors and header; the file appears whole or not at all. Returns its path."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(target.name + ".part")
    # tensors that share memory are written each by itself
    whole = {k: v.detach().to("cpu", copy=True).contiguous() for k, v in tensors.items()}
    require_safetensors().torch.save_file(whole, part, metadata=metadata)
    os.replace(part, target)
    return target


def read_metadata(path: str | os.PathLike[str]) -> dict[str, str]:
    """The header of a safetensors file. Raises FileNotFoundError, and ValueError for any other file."""
    try:
        with require_safetensors().safe_open(os.fspath(path), framework="pt") as file:
            return dict(file.metadata() or {})
    except FileNotFoundError:
        raise
    except Exception as error:
        raise ValueError(
            f"{os.fspath(path)} is not a safetensors file: {error}. Likely cause: a copy that was cut off. "
            f"Next: the file as it was written; a run whose state is lost starts anew with resume=False."
        ) from error


def read_header(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The JSON header of a file that `save` wrote. Raises ValueError for any other file."""
    metadata = read_metadata(path)
    if KEY not in metadata:
        raise ValueError(
            f"{os.fspath(path)} has no sdekit header. Likely cause: weights of another program. Next: load "
            f"them into a network yourself and wrap it: sdekit.Denoiser(net, process, predicts=...)."
        )
    header: dict[str, Any] = json.loads(metadata[KEY])
    if header.get("format") != FORMAT:
        raise ValueError(
            f"{os.fspath(path)} has format {header.get('format')}, this version reads {FORMAT}. Next: update "
            f"sdekit."
        )
    return header


def load(
    path: str | os.PathLike[str],
    net: nn.Module | None = None,
    *,
    time: Any = None,
    device: torch.device | str = "cpu",
) -> Any:
    """What `save` wrote, on ``device``, in evaluation mode: a `Denoiser`, a `ClassDenoiser` for a network
    of classes, or the network where it was saved alone.

    net: a network of the saved architecture, filled in place; not needed for those of `sdekit.nets`.
    time: the callable, where the model had one (functions are not saved).

    Raises FileNotFoundError. ValueError: not such a file, a network is needed, or its weights do not fit.
    """
    header = read_header(path)
    name, arguments = header["net"]["name"], header["net"]["arguments"]
    if net is None:
        if arguments is None:
            raise ValueError(
                f"the network is a {name}, which is not part of sdekit. Next: load(path, net) with a "
                f"{name} of the same architecture."
            )
        net = NETS[name](**arguments)
    alone = header["process"] is None
    if not alone and header["time"] is None and time is None:
        raise ValueError("the model was saved with a callable `time`. Next: load(path, time=that_function).")
    weights = require_safetensors().torch.load_file(os.fspath(path), device="cpu")
    own = net.state_dict()
    wrong = sorted(
        (weights.keys() | own.keys())
        - {k for k in weights.keys() & own.keys() if weights[k].shape == own[k].shape}
    )
    if wrong:
        raise ValueError(
            f"the weights of {os.fspath(path)}, a {name}, do not fit this {type(net).__name__}: "
            f"{len(wrong)} tensors differ in name or shape, first {wrong[0]!r}. Next: make the network with "
            f"the arguments it was trained with{f': {arguments}' if arguments else ''}."
        )
    floating = [w.dtype for w in weights.values() if w.is_floating_point()]
    net.to(device=device, dtype=floating[0] if floating else None).load_state_dict(weights)
    net.eval()
    if alone:
        return net
    kind = Denoiser if classes_of(net) is None else ClassDenoiser
    return kind(
        net,
        from_spec(header["process"]),
        predicts=header["predicts"],
        time=header["time"] if time is None else time,
        data_std=header["data_std"],
        data_spread=header["data_spread"],
        network_dtype=getattr(torch, header.get("network_dtype") or "", None),
    )
