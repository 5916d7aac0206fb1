"""The memory of a run: a buffer is written again only while nobody else holds it.

A network that returns its input or a view of it, or keeps it, a callback that keeps the state, a state that
is saved: each holds a reference to the tensor or shares its storage. Both are counted before a buffer is
overwritten; if anybody else is found, the step goes to another buffer. So the rule needs no promise from
anybody, and costs two look-ups a step.
"""

from __future__ import annotations

import itertools
import sys
from array import array
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["OUT", "PLACES", "Memory", "references", "sharers"]

references = sys.getrefcount
_never = itertools.count(1)
#: How many tensors share a storage; never the same number twice where torch does not tell.
sharers: Callable[[int], int] = getattr(torch._C, "_storage_Use_Count", lambda _: next(_never))


def _cdata(x: Tensor) -> int:
    return int(x.untyped_storage()._cdata)


#: Where the storage of a tensor is. `untyped_storage` makes an object that shares it, and stays.
_storage: Callable[[Tensor], int] = getattr(torch._C, "_storage_address", _cdata)

#: Before the places in the table of addresses: key, ids, and the output of the step that runs.
OUT = 3
PLACES = 4
SPARES = 8
"""Buffers that others hold and that the run remembers, to write to again once they are let go."""


def _counts() -> tuple[int, int]:
    """References to a tensor in a list, and sharers of its storage, when nobody else has it."""
    held = [torch.empty(1)]
    return references(held[0]), sharers(_storage(held[0]))


ALONE, SHARED = _counts()


class Memory:
    """What lies in each place, and whether a buffer is the run's alone.

    addresses: key, address of the ids, that of the running step's output, then those of the places.
    """

    def __init__(self, places: int, x: Tensor) -> None:
        self.like = x.detach()  # others may make x another tensor
        self.held: list[Any] = [None] * places
        self.addresses = array("q", [0]) * (PLACES + places)
        self.base, _ = self.addresses.buffer_info()
        # References and sharers of a buffer while nobody else holds it; -1 where it may not be written.
        self.alone, self.shared, self.storage = ([-1] * places for _ in range(3))
        self.spares: list[Tensor] = []
        self.held[0] = x
        self.addresses[PLACES] = x.data_ptr()

    def adopt(self, place: int) -> None:
        """From now on the tensor in ``place`` is the run's: count who holds it, so that whoever comes later
        is seen. The caller's own names count."""
        self.alone[place] = references(self.held[place])
        self.storage[place] = _storage(self.held[place])
        self.shared[place] = sharers(self.storage[place])

    def put(self, place: int, tensor: Tensor) -> None:
        """A tensor that others made."""
        self.held[place] = tensor
        self.addresses[PLACES + place] = tensor.data_ptr()

    def renew(self, place: int) -> None:
        """Another buffer in ``place``: a spare one that nobody holds any more, else a new one."""
        if self.alone[place] >= 0:
            self.spares.append(self.held[place])
            del self.spares[:-SPARES]
        self.held[place] = None
        for i in range(len(self.spares)):
            # A spare in its list has the references that a buffer in its place has.
            count = sharers(_storage(self.spares[i]))
            if references(self.spares[i]) == ALONE and count == SHARED:
                self.held[place] = self.spares.pop(i)
                break
        else:
            self.held[place] = torch.empty_like(self.like)
        self.adopt(place)

    def writable(self, place: int, freed: Sequence[int]) -> bool:
        """Whether a buffer is the run's alone, but for places in ``freed``, let go after this step."""
        extra = sum(self.held[other] is self.held[place] for other in freed)
        return (
            references(self.held[place]) == self.alone[place] + extra
            and sharers(self.storage[place]) == self.shared[place]
        )

    def altered(self, place: int) -> bool:
        """Whether others have made another thing of a tensor: a leaf with gradients, one with attributes, or
        one that lies elsewhere."""
        tensor = self.held[place]
        return (
            tensor.requires_grad
            or bool(tensor.__dict__)
            or tensor.data_ptr() != self.addresses[PLACES + place]
        )

    def disown(self, place: int, tensor: Tensor) -> None:
        """Go on with ``tensor`` in ``place``, and never write to it."""
        self.alone[place] = -1
        self.put(place, tensor)
