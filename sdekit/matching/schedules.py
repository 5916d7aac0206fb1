"""Step sizes that shrink, and the two conditions under which averages over them are exact."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from sdekit.errors import as_number, check_count, check_positive

__all__ = ["PolynomialDecay", "RobbinsMonro", "require", "robbins_monro"]

FAR, FARTHER = 2**30, 2**40
"""Steps between which the decay of a schedule given as a function is measured."""


@dataclass(frozen=True)
class PolynomialDecay:
    r"""eps_k = a (b + k)^(-gamma), k = 0, 1, ...: the schedule of Welling and Teh 2011.

    sum eps_k is infinite for gamma <= 1, sum eps_k^2 finite for gamma > 1/2; other gamma are refused, by the
    name of the condition they break. a, b > 0. ``PolynomialDecay.between(first, last, steps)`` finds a and b.
    """

    a: float
    b: float = 1.0
    gamma: float = 0.55

    def __post_init__(self) -> None:
        for name in ("a", "b", "gamma"):
            object.__setattr__(self, name, check_positive(getattr(self, name), name))
        require(RobbinsMonro(self.gamma), biased=False)

    @classmethod
    def between(cls, first: float, last: float, steps: int, gamma: float = 0.55) -> PolynomialDecay:
        """The schedule with eps_0 = first and eps_steps = last < first. Raises ValueError otherwise."""
        first, last = check_positive(first, "first"), check_positive(last, "last")
        if last >= first:
            raise ValueError(f"last must be less than first, got first = {first}, last = {last}.")
        b = check_count(steps, "steps") / ((first / last) ** (1 / check_positive(gamma, "gamma")) - 1)
        return cls(first * b**gamma, b, gamma)

    def __call__(self, k: int) -> float:
        return self.a * math.pow(self.b + k, -self.gamma)


class RobbinsMonro(NamedTuple):
    """Decay k^(-decay) of a schedule, and whether it meets the two conditions of Robbins and Monro 1951."""

    decay: float

    @property
    def sum_diverges(self) -> bool:
        """The first, sum eps_k = infinity: the chain can go anywhere."""
        return self.decay <= 1.0 + 1e-9

    @property
    def squares_converge(self) -> bool:
        """The second, sum eps_k^2 < infinity: the errors of mini-batches and of the steps die out."""
        return self.decay > 0.5 + 1e-9


def robbins_monro(schedule: float | Callable[[int], float]) -> RobbinsMonro:
    """The decay of a schedule: 0 for a number, gamma of `PolynomialDecay`; of any other function the one
    measured from k = 2^30 to 2^40, -log(eps_k'/eps_k)/log(k'/k), which slower factors (logarithms) shift a
    little.

    Raises ValueError for steps that are not finite and > 0, TypeError for what is not callable.
    """
    if isinstance(schedule, PolynomialDecay):
        return RobbinsMonro(schedule.gamma)
    if not callable(schedule):
        check_positive(schedule, "schedule")
        return RobbinsMonro(0.0)
    near, far = schedule(FAR), schedule(FARTHER)
    if as_number(far) == 0.0 and as_number(near) >= 0.0:
        return RobbinsMonro(math.inf)
    near, far = check_positive(near, f"schedule({FAR})"), check_positive(far, f"schedule({FARTHER})")
    return RobbinsMonro(math.log(near / far) / math.log(FARTHER / FAR))


def require(found: RobbinsMonro, biased: bool) -> None:
    """Raises ValueError, by name, where the first condition fails, or the second and not ``biased``."""
    if not found.sum_diverges:
        raise ValueError(
            f"the first Robbins-Monro condition, sum eps_k = infinity, does not hold: the steps fall as "
            f"k^-{found.decay:.3g}, so the chain stops before it has forgotten its start. Next: a decay of "
            f"at most 1, such as PolynomialDecay(a, b, gamma=0.55)."
        )
    if not found.squares_converge and not biased:
        raise ValueError(
            f"the second Robbins-Monro condition, sum eps_k^2 < infinity, does not hold: the steps fall as "
            f"k^-{found.decay:.3g}, so the error of steps and mini-batches remains. Next: a decay above 1/2, "
            f"such as PolynomialDecay(a, b, gamma=0.55), or biased=True to accept that error."
        )
