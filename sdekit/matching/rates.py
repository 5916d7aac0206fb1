"""Learning rates over the steps of a run, and the rate of the average of the weights."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeAlias

from sdekit.errors import check_count, check_positive, unknown_name

__all__ = ["SCHEDULES", "Schedule", "ema_rate", "rate"]

Schedule: TypeAlias = "str | Callable[[int], float]"

SCHEDULES = ("cosine", "constant")


def rate(n: int, steps: int, warmup: int, schedule: Schedule) -> float:
    """Factor of the peak learning rate at step n: a linear rise over ``warmup`` steps, then the schedule.

    "cosine": (1 + cos(pi (n - warmup)/(steps - warmup)))/2; "constant": 1; a callable: its value at n, and
    the rise multiplies it. Raises UnknownNameError; for a callable TypeError where its value is no number,
    ValueError where it is below 0 or not finite.
    """
    rise = min(1.0, (n + 1) / (warmup + 1))
    if callable(schedule):
        try:
            factor = float(schedule(n))
        except (TypeError, ValueError) as error:
            raise TypeError(
                f"schedule must be a function of the step that returns one number, a factor of the rate, and "
                f"schedule({n}) failed: {error}. Likely cause: a scheduler of torch.optim. Next: lambda n: "
                f"1.0, say."
            ) from error
        if not 0 <= factor < math.inf:
            raise ValueError(f"schedule({n}) must be finite and >= 0, a factor of the rate, got {factor}.")
        return rise * factor
    if schedule not in SCHEDULES:
        raise unknown_name("schedule", schedule, SCHEDULES)
    if schedule == "constant" or n < warmup:
        return rise
    return 0.5 * (1 + math.cos(math.pi * (n - warmup) / max(steps - warmup, 1)))


def ema_rate(half_life: float, batch_size: int) -> float:
    """m = 2^(-batch_size/half_life): the weight of an update halves while so many samples are seen.

    ``fit(ema=ema_rate(50_000, batch_size=128), batch_size=128)``. Karras et al. 2022 (arXiv:2206.00364),
    appendix F, give half-lives in samples. Raises ValueError for numbers that are not positive.
    """
    return float(0.5 ** (check_count(batch_size, "batch_size") / check_positive(half_life, "half_life")))
