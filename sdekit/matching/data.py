"""Training data: checked at the door, split and shuffled as a pure function of the seed."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sdekit.errors import ShapeError, check_state
from sdekit.noise import Philox, Purpose
from sdekit.targets._moments import data_moments

__all__ = ["Batches", "Order", "as_data", "check_event", "permutation", "scales", "split"]

ORDER_ID, SPLIT_ID = -(2**40), -(2**40) - 1
"""Philox sample ids of orders and splits, apart from those of rows (>= 0) and of times."""


def as_data(data: Any, like: Tensor, name: str = "data") -> Tensor:
    """data (N, *event) in the dtype and on the device of ``like``.

    Raises ShapeError for integer, empty or event-less data, NonFiniteError for NaN.
    """
    x = check_state(data, name)
    if x.ndim < 2 or x.numel() == 0:
        what = "is empty" if x.numel() == 0 else "has no event axis"
        hint = "check the loading" if x.numel() == 0 else f"{name.split()[-1]}[:, None] for scalar samples"
        raise ShapeError(
            f"{name} must have shape (N, *event), N samples of at least one element, got {tuple(x.shape)}, "
            f"which {what}. Next: {hint}."
        )
    return x.detach().to(dtype=like.dtype, device=like.device)


def check_event(held: Tensor, event: tuple[int, ...]) -> Tensor:
    """Held-out data of this event shape. Raises ShapeError for another."""
    if tuple(held.shape[1:]) != event:
        raise ShapeError(f"held_out must have the data's event shape {event}, got {tuple(held.shape[1:])}.")
    return held


def split(count: int, held_out: float, seed: int) -> tuple[Tensor, Tensor]:
    """(rows to train on, rows held out): a fraction of 0..count - 1 chosen by the seed.

    Raises ValueError for a fraction outside [0, 1) or one that leaves nothing to train on.
    """
    if isinstance(held_out, bool) or not 0 <= held_out < 1:
        hint = (
            f", {held_out:g}/{count} for so many samples"
            if held_out is not True and 1 <= held_out < count
            else ""
        )
        raise ValueError(
            f"held_out must be a fraction in [0, 1) or data, got {held_out}. Next: 0.1, say{hint}."
        )
    held = round(held_out * count)
    if held >= count:
        raise ValueError(f"held_out = {held_out} of {count} samples leaves none to train on.")
    order = permutation(count, seed)
    return order[held:], order[:held]


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
        self.data, self.order = data, Order(len(data), size, seed)

    def __getitem__(self, n: int) -> Tensor:
        return self.data[self.order[n].to(self.data.device)]


class Order:
    """Rows of batch n: a fresh random order of 0..count - 1 in every pass, a function of n and the seed."""

    def __init__(self, count: int, size: int, seed: int) -> None:
        self.count, self.size, self.seed = count, size, seed
        self.passes: dict[int, Tensor] = {}

    def _order(self, epoch: int) -> Tensor:
        if epoch not in self.passes:
            if len(self.passes) > 1:
                self.passes.pop(min(self.passes))
            self.passes[epoch] = permutation(self.count, self.seed, epoch, ORDER_ID)
        return self.passes[epoch]

    def __getitem__(self, n: int) -> Tensor:
        first, last = n * self.size, (n + 1) * self.size
        a, b = divmod(first, self.count)
        rows = self._order(a)[b : b + self.size]
        if len(rows) < self.size:
            rows = torch.cat([rows, self._order(a + 1)[: last - (a + 1) * self.count]])
        return rows
