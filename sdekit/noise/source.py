"""Noise objects: where `sample` and `solve` take their normal numbers from.

The contract is one call, normal(draw, like, ids) -> (B, *event): draw number ``draw`` of the samples whose
absolute ids are ``ids``, in the shape and dtype and on the device of ``like``. Row i must depend on ids[i]
alone, never on the rows around it: that is what makes a sample the same alone and in any batch.
"""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import cache
from operator import index
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor

from sdekit._typing import State
from sdekit.errors import ShapeError, check_count
from sdekit.noise import philox
from sdekit.noise.transforms import made_outside, transformed

__all__ = ["Noise", "Philox", "Purpose", "Recorded", "TorchNoise", "as_noise"]


TOGETHER = 2**18
"""The largest state, in elements, of which several draws are taken at once."""


class Purpose(IntEnum):
    """What numbers are for. Each purpose has a key, so that streams of one seed never meet."""

    INITIAL = 0
    INJECTED = 1
    BROWNIAN = 2
    PROBES = 3
    TRAINING = 4
    DATA = 5
    LEVY = 6
    EVENT = 7


class Noise(ABC):
    """A source of standard normal numbers."""

    @abstractmethod
    def normal(self, draw: int, like: State, ids: Int64[Tensor, " B"]) -> State:
        """xi ~ N(0, I), shape (B, *event): draw ``draw`` in [0, 2^32) of samples ``ids``."""

    def initial(self, like: State, ids: Int64[Tensor, " B"]) -> State:
        """The normal from which the initial state is made: here the last draw, which no run reaches."""
        return self.normal(philox.DRAWS - 1, like, ids)


@dataclass(frozen=True)
class Philox(Noise):
    """xi = f(seed, purpose, id, draw, element): a pure function, the same on every device, in every batch.

    Philox-4x32-10 (Salmon, Moraes, Dror and Shaw 2011) and the Box-Muller transform, as written down in
    `sdekit.noise.philox`. float32 and float64 agree within 2e-6; bfloat16 and float16 are float32 rounded.

    seed: any 64-bit integer, mod 2^64. Raises TypeError for a seed that is no integer, ValueError for one
    outside 64 bits.
    """

    seed: int = 0

    def __post_init__(self) -> None:
        try:
            seed = index(self.seed)
        except TypeError:
            raise TypeError(
                f"seed must be an integer, got {self.seed!r}. Next: pass an int; to use a torch.Generator, "
                f"pass noise=TorchNoise(generator)."
            ) from None
        if not -(2**63) <= seed < 2**64:
            raise ValueError(f"seed must fit 64 bits, got {seed}. Next: take it mod 2**64.")
        object.__setattr__(self, "seed", seed % 2**64)

    def normal(
        self, draw: int, like: State, ids: Int64[Tensor, " B"], purpose: Purpose = Purpose.INJECTED
    ) -> State:
        """Draw ``draw`` of samples ``ids`` (int64, absolute), in the key of ``purpose``.

        Raises ShapeError for ``like`` that is not (B, *event) and floating, or ids that are not (B,) int64 on
        its device; ValueError for a draw outside [0, 2^32).
        """
        draw = index(draw)
        rows = _check(draw, like, ids)
        if transformed():
            return made_outside(lambda like, ids: self.normal(draw, like, ids, purpose), like, ids)
        key = philox.derive_key(self.seed, purpose)
        event = like.numel() // rows if rows else 0
        dtype = like.dtype
        if like.is_cpu:
            working = dtype if dtype is torch.float64 else torch.float32
            fill = _cpu_fill(working)
            if fill is not None:
                out = torch.empty_like(like, dtype=working, memory_format=torch.contiguous_format)
                fill(out, key, draw, ids.contiguous(), event)
                return out if working is dtype else out.to(dtype)
        elif like.is_cuda:
            fill = _cuda_fill(dtype, like.device)
            if fill is not None:
                out = torch.empty_like(like, memory_format=torch.contiguous_format)
                fill(out, key, draw, ids.contiguous(), event)
                return out
        return philox.normal(key, draw, ids, event, dtype).view(like.shape)

    def normals(self, first: int, count: int, like: State, ids: Int64[Tensor, " B"]) -> Tensor:
        """Draws first, ..., first + count - 1 at once, (count, B, *event): the bits of `normal`.

        On CPU for less where an event has one or two elements, since four or two draws then share a block.
        Raises as `normal`.
        """
        first, count = index(first), check_count(count, "count")
        rows = _check(first, like, ids)
        _check(first + count - 1, like, ids)
        if transformed() or not self.cheaper_together(like) or _cpu_fill(like.dtype) is None:
            return torch.stack([self.normal(first + k, like, ids) for k in range(count)])
        from sdekit.noise.cpu import fill_blocks

        event = like.numel() // rows
        each = 4 // event
        start, end = first // each, (first + count - 1) // each + 1
        out = torch.empty(each * (end - start), *like.shape, dtype=like.dtype)
        fill_blocks(out, philox.derive_key(self.seed, Purpose.INJECTED), start, ids.contiguous(), event)
        return out[first - each * start :][:count]

    def cheaper_together(self, like: State) -> bool:
        """Whether `normals` costs less than its draws one by one: on CPU, events of one or two elements.

        False for large batches, whose draws are shared out among threads.
        """
        event = like.numel() // like.shape[0] if like.shape[0] else 0
        fits = like.is_cpu and like.dtype in (torch.float32, torch.float64) and like.numel() <= TOGETHER
        return event in (1, 2) and fits

    def initial(self, like: State, ids: Int64[Tensor, " B"]) -> State:
        """Draw 0 in the key of ``Purpose.INITIAL``."""
        return self.normal(0, like, ids, Purpose.INITIAL)


@cache
def _cpu_fill(dtype: torch.dtype) -> Callable[[Tensor, philox.Key, int, Tensor, int], None] | None:
    """The compiled fill; None, told once, where numba is missing, fails or differs from the specification."""
    try:
        from sdekit.noise import cpu

        return cpu.checked(dtype)
    except Exception as error:
        warnings.warn(
            f"the compiled noise is not available for {dtype} ({error}); plain torch gives the same numbers, "
            f"up to 50 times slower. Next: install a numba that works with this numpy and Python.",
            RuntimeWarning,
            stacklevel=3,
        )
        return None


@cache
def _cuda_fill(dtype: torch.dtype, device: torch.device) -> Callable[..., None] | None:
    """The fill by Triton; None where Triton is missing, and, told once, where it differs or fails."""
    try:
        from sdekit.noise import cuda
    except ImportError:  # an optional package: plain torch gives the same numbers
        return None
    try:
        return cuda.checked(dtype, device)
    except Exception as error:
        warnings.warn(
            f"the noise compiled for {device} is not available for {dtype} ({error}); plain torch gives the "
            f"same numbers, more slowly. Next: a triton that fits this torch and this card.",
            RuntimeWarning,
            stacklevel=3,
        )
        return None


def _check(draw: int, like: Tensor, ids: Tensor) -> int:
    if not 0 <= draw < philox.DRAWS:
        raise ValueError(
            f"draw must be in [0, 2**32), got {draw}. Likely cause: a negative step index, or a counter that "
            f"was not reset. Next: number draws from 0."
        )
    if not like.is_floating_point() or like.ndim == 0:
        raise ShapeError(
            f"like must be a floating tensor (B, *event), got {like.dtype} of shape {tuple(like.shape)}. "
            f"Next: pass the state itself."
        )
    rows = like.shape[0]
    if ids.dtype is not torch.int64 or ids.shape != (rows,) or ids.device != like.device:
        raise ShapeError(
            f"ids must be int64 of shape ({rows},) on {like.device}, one for each row of like, got "
            f"{ids.dtype} of shape {tuple(ids.shape)} on {ids.device}. Likely cause: ids of another batch. "
            f"Next: first_id + torch.arange({rows}, device={str(like.device)!r})."
        )
    return rows


@dataclass(frozen=True, eq=True)
class TorchNoise(Noise):
    """xi from torch.randn in the order of the calls; ``draw`` and ``ids`` are ignored.

    For comparison with codes that draw through torch. Samples depend on the batch around them.

    generator: a torch.Generator on the device of the states; None is torch's global one. Raises TypeError for
    anything else.
    """

    generator: torch.Generator | None = None

    def __post_init__(self) -> None:
        if self.generator is not None and not isinstance(self.generator, torch.Generator):
            raise TypeError(
                f"TorchNoise takes a torch.Generator, got {type(self.generator).__name__}. Next: "
                f"TorchNoise(torch.Generator().manual_seed(0)), or Philox(seed)."
            )

    def normal(self, draw: int, like: State, ids: Int64[Tensor, " B"]) -> State:
        """The next torch.randn of the shape of ``like``. Raises ValueError when the devices differ."""
        if self.generator is not None and self.generator.device.type != like.device.type:
            raise ValueError(
                f"the generator lives on {self.generator.device}, the state on {like.device}. "
                f"Next: torch.Generator({like.device.type!r})."
            )
        return torch.randn(like.shape, generator=self.generator, dtype=like.dtype, device=like.device)

    def initial(self, like: State, ids: Int64[Tensor, " B"]) -> State:
        """The next torch.randn."""
        return self.normal(0, like, ids)


class Recorded(Noise):
    """xi = draws[draw][id]: numbers that are given, not drawn.

    draws: K tensors or arrays (N, *event), or one (K, N, *event); row i of each belongs to sample id i.
    initial: (N, *event), the normal of the initial state, where a run asks for one.
    """

    def __init__(self, draws: Sequence[Any] | Tensor, initial: Any = None) -> None:
        self.draws = tuple(torch.as_tensor(d) for d in draws)
        self.start = None if initial is None else torch.as_tensor(initial)

    def normal(self, draw: int, like: State, ids: Int64[Tensor, " B"]) -> State:
        """Rows ``ids`` of draw ``draw``.

        Raises IndexError for a draw or an id that was not recorded, ShapeError for another event shape.
        """
        draw = index(draw)
        _check(draw, like, ids)
        if draw >= len(self.draws):
            raise IndexError(
                f"draw {draw} was asked for, but only {len(self.draws)} were recorded, from 0. "
                f"Likely cause: more steps, or a sampler with more draws a step. Next: record more draws."
            )
        return _rows(self.draws[draw], f"draw {draw}", like, ids)

    def initial(self, like: State, ids: Int64[Tensor, " B"]) -> State:
        """Rows ``ids`` of the initial normal. Raises IndexError when none was recorded."""
        _check(0, like, ids)
        if self.start is None:
            raise IndexError(
                "the run asks for an initial normal and none was recorded. "
                "Next: Recorded(draws, initial=...), or pass the initial state itself."
            )
        return _rows(self.start, "the initial normal", like, ids)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Recorded) or len(self.draws) != len(other.draws):
            return False
        pairs = [*zip(self.draws, other.draws, strict=True), (self.start, other.start)]
        return all(a is b or (a is not None and b is not None and torch.equal(a, b)) for a, b in pairs)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        shape = tuple(self.draws[0].shape) if self.draws else ()
        start = None if self.start is None else tuple(self.start.shape)
        return f"Recorded({len(self.draws)} draws of {shape}, initial={start})"


def _rows(table: Tensor, name: str, like: Tensor, ids: Tensor) -> Tensor:
    if table.ndim != like.ndim or table.shape[1:] != like.shape[1:]:
        raise ShapeError(
            f"{name} must have shape (N, *event), event {tuple(like.shape[1:])}, got {tuple(table.shape)}. "
            f"Likely cause: recorded for another state. Next: record draws of the shape of the state."
        )
    ids = ids.to(table.device)
    outside = (ids < 0) | (ids >= len(table))
    if bool(outside.any()):
        raise IndexError(
            f"sample id {int(ids[outside][0])} was asked for, but {name} holds ids 0 to {len(table) - 1}. "
            f"Likely cause: a larger batch or a first_id. Next: record a row for every id."
        )
    return table.index_select(0, ids).to(like)


def as_noise(seed: int = 0, noise: Noise | None = None) -> Noise:
    """``noise`` where one is given, Philox(seed) otherwise. Raises TypeError for what is not a `Noise`."""
    given: object = Philox(seed) if noise is None else noise
    if not isinstance(given, Noise):
        raise TypeError(
            f"noise must be a Noise (Philox, BrownianTree, TorchNoise, Recorded), got {type(given).__name__}."
            f" Next: for an integer pass seed=, for a torch.Generator TorchNoise(generator), for tensors "
            f"Recorded(draws)."
        )
    return given
