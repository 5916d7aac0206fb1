"""The model that a network is trained as, and the digest by which a run knows it again."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from sdekit.matching.arguments import check_agreement, check_network
from sdekit.matching.data import scales
from sdekit.matching.labels import ClassDenoiser, classes_of
from sdekit.matching.stream import checksum
from sdekit.score.model import Denoiser
from sdekit.sde.base import SDE
from sdekit.sde.gaussian import GaussianDiffusion

__all__ = ["architecture", "as_model"]


def as_model(
    net: nn.Module | Denoiser,
    module: nn.Module,
    data: Tensor,
    process: SDE | None,
    predicts: str | None,
    time: str | Callable[[Tensor], Tensor] | None,
) -> Any:
    """The Denoiser to train, with data_std and data_spread measured where they are not given; or the network
    itself, where the process has no alpha(t) and sigma(t)."""
    kind = Denoiser if classes_of(module) is None else ClassDenoiser
    if isinstance(net, Denoiser):
        check_agreement(net, process, predicts, time)
        if net.data_std is None:
            std, spread = scales(data)
        else:
            std, spread = net.data_std, net.data_spread or net.data_std
        return kind(module, net.process, net.predicts, net.time, std, spread, net.network_dtype)
    if isinstance(process, GaussianDiffusion):
        check_network(module, classes_of(module))
        return kind(module, process, predicts or "eps", time or "t", *scales(data))
    if kind is ClassDenoiser:
        raise TypeError(
            "classes need a process with alpha(t) and sigma(t). Next: fit(net, data, sdekit.VP(), "
            "labels=labels)."
        )
    return module


def architecture(module: nn.Module) -> str:
    """A digest of the layers and of names and shapes of the state."""
    layers = re.sub(r" at 0x[0-9a-fA-F]+", "", repr(module))
    shapes = [(k, tuple(v.shape), str(v.dtype)) for k, v in module.state_dict().items()]
    return checksum(torch.tensor(list(f"{layers} {shapes}".encode()), dtype=torch.uint8))[:8]
