"""Splitting methods for underdamped Langevin dynamics: drift, kick and heat bath, each solved exactly."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sdekit.errors import CapabilityError
from sdekit.sde.langevin import UnderdampedLangevin
from sdekit.sde.phase import join, split
from sdekit.solvers.base import Carry, Interval, Solver, register

__all__ = ["ABOBA", "BAOAB", "OABAO", "OBABO", "Splitting"]


@dataclass(frozen=True)
class Splitting(Solver):
    r"""A palindrome of the three parts of `UnderdampedLangevin`, each with its exact flow:

        A:  q' = q + a v,    B:  v' = v + a T grad log p(q),
        O:  v' = e^(-gamma a) v + sqrt(T (1 - e^(-2 gamma a))) xi,

    a = h over the number of times that the letter occurs. Weak order 2: a palindrome is its own adjoint. A
    and B are area-preserving and O leaves N(0, T) as it is, so that the stationary law is off by O(h^2) only.

    letters: such as "BAOAB"; A and B at least once, O once or twice. One O takes one normal a step, two
    take two. Force (the score) is evaluated as often as B follows A, and kept to the next step where that
    begins with it: once for "BAOAB", "OBABO", "ABOBA", "OABAO". States are (B, 2, *event).

    Leimkuhler and Matthews 2013 (Applied Mathematics Research eXpress 2013, 34).

    Raises ValueError for other letters; CapabilityError for any other system.
    """

    letters: str = "BAOAB"

    name = "splitting"
    kind = "sde"
    noise_types = ("additive",)
    sde_types = ("ito",)
    weak_order = 2.0
    strong_order = 1.0
    normals = 2
    reference = "Leimkuhler and Matthews 2013"

    def __post_init__(self) -> None:
        word = self.letters
        counts = [str(word).count(c) for c in "ABO"]
        mirrored = isinstance(word, str) and word == word[::-1] and sum(counts) == len(word)
        if not mirrored or min(counts) == 0 or counts[2] > 2:
            raise ValueError(
                f"letters must be a palindrome of A (drift), B (kick) and O (heat bath), each at least once "
                f"and O at most twice, such as 'BAOAB', got {word!r}. Likely cause: a word that does not "
                f"read the same backwards has weak order 1."
            )
        object.__setattr__(self, "normals", counts[2])

    @property
    def _keeps_force(self) -> bool:
        """B before any A, hence after all of them: the last force of a step is the first of the next."""
        return self.letters.index("B") < self.letters.index("A")

    def init(self, system: Any, x: Tensor, t: Tensor) -> Carry:
        law = _law(system, self.name)
        split(x)
        return (_force(system, law, x[:, 0], t),) if self._keeps_force else ()

    def step(self, system: Any, x: Tensor, interval: Interval, carry: Carry) -> tuple[Tensor, Carry]:
        law, (t,) = _law(system, self.name), interval.times
        (q, v), force = split(x), carry[0] if carry else None
        baths = _normals(interval, self.letters.count("O"))
        for letter in self.letters:
            a = _beside(interval.h, q) / self.letters.count(letter)
            if letter == "A":
                q, force = q + a * v, None
            elif letter == "B":
                force = _force(system, law, q, t) if force is None else force
                v = v + a * force
            else:
                keep, spread = _bath(law, a)
                v = keep * v + spread * baths.pop()
        return join(q, v), (force,) if self._keeps_force and force is not None else ()


def _law(system: Any, name: str) -> UnderdampedLangevin:
    found = getattr(system, "system", system)
    if not isinstance(found, UnderdampedLangevin):
        raise CapabilityError(
            f"solver {name!r} is for underdamped Langevin dynamics, got {type(found).__name__}. Next: "
            f"sdekit.UnderdampedLangevin(score), or 'euler-maruyama' for any SDE."
        )
    return found


def _force(system: Any, law: UnderdampedLangevin, q: Tensor, t: Tensor) -> Tensor:
    """T grad log p(q): the drift of the velocities at rest, which counts as one call."""
    return split(system.drift(join(q, torch.zeros_like(q)), t))[1]


def _beside(h: Any, q: Tensor) -> Any:
    return h.reshape(-1, *(1,) * (q.ndim - 1)) if isinstance(h, Tensor) else h


def _bath(law: UnderdampedLangevin, a: Any) -> tuple[Any, Any]:
    """(e^(-gamma a), sqrt(T (1 - e^(-2 gamma a))))."""
    gamma, heat = law.friction, law.temperature
    if isinstance(a, Tensor):
        return torch.exp(-gamma * a), torch.sqrt(-heat * torch.expm1(-2.0 * gamma * a))
    return math.exp(-gamma * a), math.sqrt(-heat * math.expm1(-2.0 * gamma * a))


def _normals(interval: Interval, count: int) -> list[Tensor]:
    """Independent normals for the velocities, last used first: of the whole step, or of its two halves.

    W over the halves is (W +- c H)/2 with c = 3 up to what W and H leave open; (W +- sqrt(12) H)/sqrt 2 has
    the right law and the same sign.
    """
    assert interval.W is not None
    width = _beside(interval.h, interval.W[:, 1]) ** 0.5
    first = interval.W[:, 1] / width
    if count == 1:
        return [first]
    assert interval.H is not None
    second = interval.H[:, 1] * (math.sqrt(12.0) / width)
    return [(first - second) * math.sqrt(0.5), (first + second) * math.sqrt(0.5)]


@register
@dataclass(frozen=True)
class BAOAB(Splitting):
    """`Splitting` "BAOAB": the one to sample positions with.

    On p = N(0, T/omega^2) its positions have exactly that variance at any stable step, omega h < 2, and its
    velocities T (1 - (omega h)^2/4). In general the bias of positions is O(h^4) in the limit of high
    friction, O(h^2) else. Leimkuhler and Matthews 2013.
    """

    letters: str = "BAOAB"
    name = "baoab"


@register
@dataclass(frozen=True)
class ABOBA(Splitting):
    """`Splitting` "ABOBA". Stationary on p = N(0, T/omega^2): Var q = T/omega^2, exactly, and
    Var v = T/(1 - (omega h)^2/4). Leimkuhler and Matthews 2013."""

    letters: str = "ABOBA"
    name = "aboba"


@register
@dataclass(frozen=True)
class OBABO(Splitting):
    """`Splitting` "OBABO": velocity Verlet between two half heat baths. Stationary on p = N(0, T/omega^2):
    Var q = T/(omega^2 (1 - (omega h)^2/4)), Var v = T. Bussi and Parrinello 2007 (arXiv:0803.4083)."""

    letters: str = "OBABO"
    name = "obabo"
    reference = "Bussi and Parrinello 2007"


@register
@dataclass(frozen=True)
class OABAO(Splitting):
    """`Splitting` "OABAO": position Verlet between two half heat baths. Stationary on p = N(0, T/omega^2):
    Var q = T (1 - (omega h)^2/4)/omega^2, Var v = T. Leimkuhler and Matthews 2013."""

    letters: str = "OABAO"
    name = "oabao"
