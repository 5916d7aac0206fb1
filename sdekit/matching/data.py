"""Training data: checked at the door, split and shuffled as a pure function of the seed."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sdekit.errors import ShapeError, check_state
from sdekit.noise import Philox, Purpose
from sdekit.targets._moments import data_moments

__all__ = ["Batches", "as_data", "permutation", "scales", "split"]

ORDER_ID, SPLIT_ID = -(2**40), -(2**40) - 1
"""Philox sample ids of orders and splits, apart from those of rows (>= 0) and of times."""


def as_data(data: Any, like: Tensor, name: str = "data") -> Tensor:
    """data (N, *event) in the dtype and on the device of ``like``.

    Raises ShapeError for integer, empty or event-less data, NonFiniteError for NaN.
    """
    x = check_state(data, name)
    if x.ndim < 2 or x.numel() == 0:
        what = "is empty" if x.numel() == 0 else "has no event axis"
        hint = "check the loading" if x.numel() == 0 else f"{name}[:, None] for scalar samples"
        raise ShapeError(
            f"{name} must have shape (N, *event), N samples of at least one element, got {tuple(x.shape)}, "
            f"which {what}. Next: {hint}."
        )
    return x.detach().to(dtype=like.dtype, device=like.device)


def split(x: Tensor, held_out: Any, seed: int) -> tuple[Tensor, Tensor]:
    """(training data, held-out data): a fraction of x chosen by the seed, or data that are given."""
    if not isinstance(held_out, int | float):
        held = as_data(held_out, x, "held_out")
        if held.shape[1:] != x.shape[1:]:
            raise ShapeError(
                f"held_out must have the data's event shape {tuple(x.shape[1:])}, got "
                f"{tuple(held.shape[1:])}."
            )
        return x, held
    if not 0 <= held_out < 1:
        raise ValueError(f"held_out must be a fraction in [0, 1) or data, got {held_out}.")
    count = round(held_out * len(x))
    if count >= len(x):
        raise ValueError(f"held_out = {held_out} of {len(x)} samples leaves none to train on.")
    order = permutation(len(x), seed).to(x.device)
    return x[order[count:]], x[order[:count]]


def scales(data: Tensor) -> tuple[float, float]:
    """(data_std, data_spread) of data (N, *event): sqrt(tr C/D), sqrt(tr C^2/tr C), see `Denoiser`.

    Raises ValueError when all samples are equal.
    """
    flat = data.reshape(len(data), -1)
    uniform = torch.full((len(flat),), 1.0 / len(flat), dtype=torch.float64, device=flat.device)
    moments = data_moments(flat, uniform, 4096)
    if bool((flat == flat[:1]).all()):
        raise ValueError(
            f"all {len(flat)} training samples are equal, so there is no law to learn. Likely cause: a "
            f"repeated row, or data scaled by 0. Next: check the loading."
        )
    return moments.scales()


def permutation(count: int, seed: int, draw: int = 0, row: int = SPLIT_ID) -> Tensor:
    """A random order of 0..count - 1, a pure function of its arguments, on the host."""
    like = torch.empty((1, count), dtype=torch.float64)
    keys = Philox(seed).normal(draw, like, torch.tensor([row]), Purpose.TRAINING)[0]
    return torch.argsort(keys, stable=True)


class Batches:
    """Batch n: rows of a fresh random order in every pass through the data."""

    def __init__(self, data: Tensor, size: int, seed: int) -> None:
        self.data, self.size, self.seed = data, size, seed
        self.passes: dict[int, Tensor] = {}

    def _order(self, epoch: int) -> Tensor:
        if epoch not in self.passes:
            if len(self.passes) > 1:
                self.passes.pop(min(self.passes))
            order = permutation(len(self.data), self.seed, epoch, ORDER_ID)
            self.passes[epoch] = order.to(self.data.device)
        return self.passes[epoch]

    def __getitem__(self, n: int) -> Tensor:
        count = len(self.data)
        first, last = n * self.size, (n + 1) * self.size
        a, b = divmod(first, count)
        rows = self._order(a)[b : b + self.size]
        if len(rows) < self.size:
            rows = torch.cat([rows, self._order(a + 1)[: last - (a + 1) * count]])
        return self.data[rows]
