"""Batches from a DataLoader or any other iterable, as a function of the seed."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator
from typing import Any, TypeAlias

import torch
from torch import Tensor

from sdekit.errors import ShapeError
from sdekit.matching.data import as_data, check_event
from sdekit.matching.labels import as_labels

__all__ = ["MEASURED", "Batch", "Stream", "as_batch", "checksum"]

Batch: TypeAlias = "tuple[Tensor, Tensor | None]"

MEASURED = 4096
"""Samples from which data_std is measured where the data are not in memory."""


class Stream:
    """A DataLoader, or any iterable of batches that can be gone through again.

    Pass p draws from torch's generator as it stands after manual_seed(seed, p), and from the loader's own
    generators seeded the same way; torch's generator is left as it was. That makes shuffling, and transforms
    that draw through torch, a function of the seed.
    """

    def __init__(self, loader: Any, seed: int, like: Tensor, classes: int | None) -> None:
        if hasattr(loader, "__next__"):
            raise TypeError(
                f"data is {type(loader).__name__}, an iterator, which ends after one pass. Next: a "
                f"DataLoader, a list of batches, or an object with __iter__."
            )
        self.loader, self.seed, self.like, self.classes = loader, seed, like, classes
        self.passes, self.count, self.last = -1, 0, torch.empty(0)
        self.batches: Iterator[Any] | None = None
        parts: list[Tensor] = []
        self._open(0)
        while sum(map(len, parts)) < MEASURED and (raw := self._raw()) is not None:
            parts.append(as_batch(raw, like, classes)[0])
            check_event(parts[-1], tuple(parts[0].shape[1:]))
        if not parts:
            raise ShapeError(
                f"{type(loader).__name__} gives no batch. Likely cause: an empty data set, or drop_last=True "
                f"with fewer samples than a batch. Next: a smaller batch_size in the loader."
            )
        self.sample, self.event = torch.cat(parts), tuple(parts[0].shape[1:])
        self.passes, self.batches = -1, None

    def next(self) -> Batch:
        raw = None if self.batches is None else self._raw()
        if raw is None:
            self._open(self.passes + 1)
            raw = self._raw()
        if raw is None:
            raise ShapeError(
                f"{type(self.loader).__name__} gave no batch in pass {self.passes}. Likely cause: it can be "
                f"gone through only once. Next: an object whose __iter__ starts anew."
            )
        x, labels = as_batch(raw, self.like, self.classes)
        self.count, self.last = self.count + 1, check_event(x, self.event)
        return x, labels

    def place(self) -> tuple[int, int, Tensor]:
        return self.passes, self.count, self.last

    def note(self, place: tuple[int, int, Tensor]) -> dict[str, Any]:
        return {"pass": place[0], "batch": place[1], "last": checksum(place[2])}

    def resume(self, note: dict[str, Any]) -> None:
        """Go through the pass again up to the place. Raises ValueError if it comes in another order."""
        if note["pass"] < 0:
            return
        self._open(int(note["pass"]))
        for _ in range(int(note["batch"])):
            self.next()
        if checksum(self.last) != note["last"]:
            raise ValueError(
                f"the batches of {type(self.loader).__name__} came in another order than before, so the run "
                f"cannot be resumed exactly. Likely cause: other data, or an order drawn from numpy's or "
                f"Python's generator. Next: draw it from torch's, or start anew with resume=False."
            )

    def fingerprint(self) -> str:
        try:
            size = len(self.loader)
        except TypeError:  # a loader of a stream has __len__ and no length
            size = None
        return f"{type(self.loader).__name__} of {size}, samples {self.event}"

    def _open(self, number: int) -> None:
        self.passes, self.count = number, 0
        seed = (self.seed * 0x9E3779B1 + number) % 2**62
        for owner in _holders(self.loader):
            if isinstance(own := getattr(owner, "generator", None), torch.Generator):
                own.manual_seed(seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.batches = iter(self.loader)
            self.random = torch.get_rng_state()

    def _raw(self) -> Any:
        """The next item under the pass's own random numbers; None at the end."""
        assert self.batches is not None
        with torch.random.fork_rng(devices=[]):
            torch.set_rng_state(self.random)
            item = next(self.batches, None)
            self.random = torch.get_rng_state()
        return item


def as_batch(batch: Any, like: Tensor, classes: int | None) -> Batch:
    """A loader's batch, x or (x, labels, ...): checked, in the network's dtype and on its device."""
    parts = tuple(batch) if isinstance(batch, tuple | list) else (batch,)
    x = as_data(parts[0], like, "a batch")
    if classes is None:
        return x, None
    if len(parts) < 2:
        raise ShapeError(
            f"a batch must be (x, labels) for a network of {classes} classes, got x alone. Next: a data set "
            f"that returns (x, label), or a network without classes."
        )
    return x, as_labels(parts[1], len(x), classes).to(like.device)


def checksum(*tensors: Tensor | None) -> str:
    """A short digest of the shapes, dtypes and bits of tensors."""
    digest = hashlib.blake2b(digest_size=16)
    for x in tensors:
        if x is not None:
            digest.update(f"{x.dtype} {tuple(x.shape)}".encode())
            digest.update(x.detach().cpu().reshape(-1).contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _holders(loader: Any) -> Iterator[Any]:
    """The loader and its samplers, any of which may hold a generator."""
    for path in ((), ("sampler",), ("batch_sampler",), ("batch_sampler", "sampler")):
        owner = loader
        with contextlib.suppress(AttributeError):
            for name in path:
                owner = getattr(owner, name)
            yield owner
