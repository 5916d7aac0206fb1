"""What the networks share: time features, reproducible initial weights, branches that start as zero."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from sdekit.errors import ShapeError, check_count, unknown_name

__all__ = ["TimeFeatures", "condition", "embedding", "label_table", "seeded", "zero"]

FEATURES = ("log", "real")


@contextlib.contextmanager
def seeded(seed: int | None) -> Iterator[None]:
    """Initial weights from ``seed``, torch's global generator untouched; None draws from that one."""
    if seed is None:
        yield
        return
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


class TimeFeatures(nn.Module):
    r"""Smooth features of a noise level t (B,) -> (B, count).

        "log":   (t - tau_k)/(t + tau_k) = tanh(ln(t/tau_k)/2),   t >= 0, tau_k from 1e-3 to 1e3,
        "real":  sin(w_k t), cos(w_k t),                          any t, w_k from 1/8 to 4.

    "log" resolves every decade of t, whatever its unit, with slope at most 1/2 in ln t, and is exact at
    t = 0; it serves time="t", "index" and "sigma". "real" serves levels that change sign: c_noise of an
    "edm" network, a half log-SNR. Both vary slowly, so that the learned flow is as smooth as the data
    make it: features like sin(1000 t) bend it on scales that no sampler's steps resolve.

    A negative t under "log" gives NaN, never a silent fold.
    """

    scales: Tensor

    def __init__(self, count: int = 32, kind: str = "log") -> None:
        super().__init__()
        if kind not in FEATURES:
            raise unknown_name("kind of time features", kind, FEATURES)
        self.kind, self.count = kind, 2 * (check_count(count, "count", 2) // 2)
        scales = (
            torch.logspace(-3, 3, self.count) if kind == "log" else 2.0 ** torch.linspace(-3, 2, count // 2)
        )
        self.register_buffer("scales", scales, persistent=False)

    def forward(self, t: Tensor) -> Tensor:
        level = t[..., None]
        if self.kind == "log":
            steps = (level - self.scales) / (level + self.scales)
            return torch.where(level >= 0, steps, math.nan)
        phase = level * self.scales
        return torch.cat([torch.sin(phase), torch.cos(phase)], dim=-1)


def embedding(width: int, kind: str) -> nn.Sequential:
    """Time features through two layers, (B,) -> (B, width)."""
    features = TimeFeatures(kind=kind)
    return nn.Sequential(
        features, nn.Linear(features.count, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU()
    )


def label_table(classes: int | None, width: int) -> nn.Embedding | None:
    """A vector for each class and, last, one for no class; None for a network without labels."""
    return None if classes is None else nn.Embedding(check_count(classes, "classes") + 1, width)


def condition(embed: nn.Sequential, table: nn.Embedding | None, t: Tensor, label: Tensor | None) -> Tensor:
    """e = silu(time features + vector of the label), (B, width); label int64 (B,), or None for no class.

    Raises TypeError for a label where the network has no classes, ShapeError for floats or another shape,
    ValueError for a label out of range.
    """
    out: Tensor
    if table is None:
        if label is not None:
            raise TypeError("the network was made without classes, and got a label. Next: classes=... in it.")
        out = embed(t)
        return out
    out = embed[-1](embed[:-1](t) + _vectors(table, t, label))
    return out


def _vectors(table: nn.Embedding, t: Tensor, label: Tensor | None) -> Tensor:
    nothing = table.num_embeddings - 1
    if label is None:
        return table.weight[nothing]
    if label.dtype != torch.int64 or label.shape != t.shape:
        raise ShapeError(
            f"label must be int64 of shape {tuple(t.shape)}, a class for each row, got {label.dtype} of "
            f"shape {tuple(label.shape)}. Next: label.long()."
        )
    outside = (label < 0) | (label > nothing)
    if not torch.compiler.is_compiling() and not label.is_cuda and bool(outside.any()):
        raise ValueError(
            f"label must lie in 0, ..., {nothing - 1}, or be {nothing} for no class, got "
            f"{int(label[outside][0])}."
        )
    out: Tensor = table(label)
    return out


def zero(layer: Any) -> Any:
    """The layer with zero weights: a residual branch that starts as nothing, an output that starts at 0."""
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer
