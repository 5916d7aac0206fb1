"""Where batches come from: arrays, data sets and loaders, with labels or without, and each can be resumed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset

from sdekit.errors import ShapeError
from sdekit.matching.data import Order, as_data, check_event, split
from sdekit.matching.labels import as_labels
from sdekit.matching.stream import MEASURED, Batch, Stream, as_batch, checksum

__all__ = ["Source", "open_data"]


class Source(Protocol):
    """Batches in an order that is a function of the seed, and the place that has been reached."""

    event: tuple[int, ...]
    sample: Tensor

    def next(self) -> Batch:
        """The next batch (B, *event) and its labels (B,), on the network's device."""

    def place(self) -> Any:
        """Where the batches have got to."""

    def note(self, place: Any) -> dict[str, Any]:
        """A place as JSON."""

    def resume(self, note: dict[str, Any]) -> None:
        """Go to a place that `note` told of."""

    def fingerprint(self) -> str:
        """What tells these data from others."""


class Arrays:
    """Data in memory. sample: all of it."""

    def __init__(self, data: Tensor, labels: Tensor | None, size: int, seed: int, whole: str) -> None:
        self.sample, self.labels, self.whole = data, labels, whole
        self.event = tuple(data.shape[1:])
        self.order, self.n = Order(len(data), min(size, len(data)), seed), 0

    def next(self) -> Batch:
        rows = self.order[self.n].to(self.sample.device)
        self.n += 1
        return self.sample[rows], None if self.labels is None else self.labels[rows]

    def place(self) -> int:
        return self.n

    def note(self, place: int) -> dict[str, Any]:
        return {"batch": place}

    def resume(self, note: dict[str, Any]) -> None:
        self.n = int(note["batch"])

    def fingerprint(self) -> str:
        return self.whole


class Items(Arrays):
    """A data set read item by item; its rows are those of an array, in the same order."""

    def __init__(
        self, data: Dataset[Any], rows: Tensor, size: int, seed: int, like: Tensor, classes: int | None
    ) -> None:
        self.data, self.rows, self.like, self.classes = data, rows, like, classes
        self.sample = self.read(rows[:MEASURED])[0]
        self.event = tuple(self.sample.shape[1:])
        self.order, self.n = Order(len(rows), min(size, len(rows)), seed), 0

    def read(self, rows: Tensor) -> Batch:
        """These rows as one batch."""
        items = [self.data[i] for i in rows.tolist()]
        if not items:
            return self.like.new_empty((0, *self.event)), None
        if isinstance(items[0], Tensor):
            return as_batch(torch.stack(items), self.like, self.classes)
        columns = list(zip(*items, strict=True))
        x = torch.stack([torch.as_tensor(v) for v in columns[0]])
        labels = torch.as_tensor(columns[1]) if len(columns) > 1 and self.classes is not None else None
        return as_batch((x,) if labels is None else (x, labels), self.like, self.classes)

    def next(self) -> Batch:
        rows = self.rows[self.order[self.n]]
        self.n += 1
        return self.read(rows)

    def fingerprint(self) -> str:
        return f"{type(self.data).__name__} of {len(self.rows)}, {checksum(self.sample)}"


def open_data(
    data: Any,
    labels: Any,
    held_out: Any,
    *,
    size: int,
    seed: int,
    like: Tensor,
    classes: int | None,
) -> tuple[Source, Batch]:
    """(batches to train on, held-out data and their labels), from any kind of data.

    Raises TypeError for labels beside data that bring their own, ValueError for a fraction held out of a
    loader, and what `as_data` and `as_labels` raise.
    """
    data = _of_one_kind(data)
    loads = not _is_array(data)
    if labels is not None and loads:
        raise TypeError(
            f"labels go with data in memory, and data is {type(data).__name__}. Next: batches (x, label)."
        )
    fraction = held_out if held_out is None or isinstance(held_out, int | float) else 0.0
    if loads and not (isinstance(data, Dataset) and not isinstance(data, IterableDataset)):
        if fraction:
            raise ValueError(
                f"a fraction cannot be held out of {type(data).__name__}, whose size is not known. Next: "
                f"held_out=data of their own, or held_out=0."
            )
        source: Source = Stream(data, seed, like, classes)
        held: Batch = source.sample[:0], None
    else:
        fraction = 0.1 if fraction is None else fraction
        if loads:
            count = len(data)
            if count == 0:
                raise ShapeError(f"{type(data).__name__} is empty. Next: check the loading.")
        else:
            x = as_data(data, like)
            count = len(x)
        rows, rest = split(count, fraction, seed)
        if held_out is not None and not isinstance(held_out, int | float):
            rows = torch.arange(count)
        if loads:
            with torch.random.fork_rng(devices=[]):  # transforms draw from torch's generator
                torch.manual_seed(seed)
                source = items = Items(data, rows, size, seed, like, classes)
                held = items.read(rest)
        else:
            y = _labels(labels, len(x), classes, like.device)
            source = Arrays(*_take(x, y, rows), size, seed, checksum(x, y))
            held = _take(x, y, rest)
    if held_out is not None and not isinstance(held_out, int | float):
        held = _given(held_out, like, classes)
        check_event(held[0], source.event)
    return source, held


def _of_one_kind(data: Any) -> Any:
    """data, a list of arrays as one; refuses what is taken for something else: a dict, (x, labels), a list of
    tensors, one a sample."""
    if isinstance(data, Mapping):
        raise TypeError(
            f"data is a {type(data).__name__}. Next: the array in it, data[{next(iter(data), 'x')!r}]."
        )
    if not isinstance(data, tuple | list) or not all(hasattr(part, "shape") for part in data):
        return data
    shapes = [tuple(part.shape) for part in data]
    if isinstance(data, tuple) and len(shapes) == 2 and len(shapes[1]) == 1 < len(shapes[0]):
        raise TypeError("data is a pair (x, labels). Next: fit(net, x, process, labels=labels).")
    if data and all(isinstance(part, Tensor) and part.ndim == 1 for part in data):
        raise ShapeError(
            f"data is a list of {len(data)} tensors of shape {shapes[0]}, and a list is of batches (B, "
            f"*event). Next: torch.stack(data), if each is a sample."
        )
    if len(set(shapes)) == 1 and not any(isinstance(part, Tensor) for part in data):
        return torch.stack([torch.as_tensor(part) for part in data])
    return data


def _is_array(data: Any) -> bool:
    """Whether data are one array, not batches or items."""
    if isinstance(data, Tensor | str) or hasattr(data, "__array__"):
        return True
    if isinstance(data, Dataset | DataLoader):
        return False
    if isinstance(data, list | tuple):
        first = data[0] if data else 0.0
        return not (isinstance(first, Tensor) or (isinstance(first, list | tuple) and _is_batch(first)))
    return not hasattr(data, "__iter__")


def _is_batch(pair: Any) -> bool:
    return len(pair) > 0 and isinstance(pair[0], Tensor) and pair[0].ndim > 0


def _take(x: Tensor, y: Tensor | None, rows: Tensor) -> Batch:
    rows = rows.to(x.device)
    return x[rows], None if y is None else y[rows]


def _labels(labels: Any, count: int, classes: int | None, device: torch.device) -> Tensor | None:
    if classes is None and labels is None:
        return None
    if classes is None:
        raise TypeError(
            "labels were given to a network without classes. Next: sdekit.nets.MLP(..., classes=10), or, in "
            "a network of your own, forward(x, t, label=None) and an attribute classes."
        )
    if labels is None:
        raise TypeError(
            f"the network has {classes} classes, and no labels were given. Next: fit(..., labels=labels), "
            f"(N,) whole numbers, or a network without classes."
        )
    return as_labels(labels, count, classes).to(device)


def _given(held_out: Any, like: Tensor, classes: int | None) -> Batch:
    """Held-out data that were given: x, or (x, labels) for a network of classes."""
    pair = isinstance(held_out, tuple | list) and len(held_out) == 2
    if classes is None and pair and all(hasattr(part, "shape") for part in held_out):
        raise TypeError("held_out came with labels, and the network has no classes. Next: held_out=x.")
    if classes is None:
        return as_data(held_out, like, "held_out"), None
    if not pair:
        raise TypeError(
            f"the network has {classes} classes, and held_out came without labels. Next: held_out=(x, "
            f"labels)."
        )
    x = as_data(held_out[0], like, "held_out")
    return x, as_labels(held_out[1], len(x), classes, "held-out labels").to(like.device)
