"""Metric: a number measured from samples, beside what chance alone would give."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sdekit.errors import ShapeError, check_count, check_state
from sdekit.solution import Solution
from sdekit.targets import Target

__all__ = ["LEVEL", "Metric", "Pair", "judge", "pair"]

#: A floor is this quantile of the values of exact samples.
LEVEL = 0.95
#: Ids of reference samples start here, so that ``target.sample(n, seed)`` never meets them.
FIRST_ID = 1 << 56
#: Blocks of the jackknife.
BLOCKS = 20


@dataclass(frozen=True)
class Metric:
    """A value measured from samples.

    value: the distance, in the units that its function states. stderr: its standard error over new samples
    of the same size. floor: the value that exact samples of the same size stay below with probability
    95 %; nan where it was not asked for. pvalue: the probability of a value at least as large from exact
    samples; None where there is no test. samples, reference: sizes of the two sets, reference None for a
    closed form.
    """

    name: str
    value: float
    stderr: float
    floor: float
    pvalue: float | None
    samples: int | None
    reference: int | None

    def __float__(self) -> float:
        return self.value

    def __repr__(self) -> str:
        parts = [f"{self.name} = {self.value:.4g} ± {self.stderr:.2g}"]
        if self.samples is not None and not math.isnan(self.floor):
            parts.append(f"exact samples stay below {self.floor:.4g} ({LEVEL:.0%})")
        if self.pvalue is not None:
            parts.append(f"p = {self.pvalue:.3g}")
        return f"Metric({', '.join(parts)})"


@dataclass(frozen=True)
class Pair:
    """What a metric compares: rows x (n, D), and rows y (m, D) of the reference or its law.

    key: of everything random but directions: a digest of seed and samples, so that each set of samples
    meets numbers of its own. One fixed reference set for all would make p-values right on average over
    seeds only.
    """

    x: Tensor
    y: Tensor | None
    target: Target | None
    event: torch.Size
    seed: int
    key: int

    def exact(self, k: int) -> Tensor:
        """The k-th set of exact samples, as many as x, (n, D)."""
        return self.draw(len(self.x), k + 1)

    def draw(self, n: int, k: int = 0) -> Tensor:
        """n exact samples (n, D), with ids far from those that users draw."""
        assert self.target is not None
        drawn = self.target.sample(n, seed=self.key, first_id=FIRST_ID + (k << 32), dtype=torch.float64)
        return drawn.reshape(n, -1)


def pair(samples: object, against: object, seed: int, minimum: int = 2) -> Pair:
    """Samples and reference as float64 rows on the host.

    Raises ShapeError where the shapes do not fit or there are fewer than ``minimum`` rows, NonFiniteError
    for NaN or infinity.
    """
    x, event = rows(samples, "samples", minimum)
    seed = int(seed)
    if isinstance(against, Target):
        if event != against.event_shape and not (len(event) == 1 and event.numel() == against.dimension):
            raise ShapeError(
                f"samples must have shape (n, {', '.join(map(str, against.event_shape))}), the target's "
                f"event shape, got (n, {', '.join(map(str, event))}). Likely cause: samples of another "
                f"model, or a missing reshape. Next: samples.reshape(-1, *target.event_shape)."
            )
        return Pair(x, None, against, against.event_shape, seed, _digest(seed, x))
    y, other = rows(against, "against", minimum)
    if other.numel() != event.numel():
        raise ShapeError(
            f"both sets must have samples of one shape, got {tuple(event)} and {tuple(other)}. Likely "
            f"cause: the arguments are of different data. Next: compare like with like."
        )
    return Pair(x, y, None, event, seed, _digest(seed, x, y))


def _digest(seed: int, *tensors: Tensor) -> int:
    """62 bits of BLAKE2 of everything."""
    digest = hashlib.blake2b(str(seed).encode(), digest_size=8)
    for tensor in tensors:
        digest.update(np.ascontiguousarray(tensor.numpy()).data)
    return int.from_bytes(digest.digest(), "little") >> 2


def rows(samples: object, name: str, minimum: int) -> tuple[Tensor, torch.Size]:
    """(n, D) float64 on the host, and the event shape; (n,) is n numbers; of a `Solution` its samples."""
    samples = samples.x if isinstance(samples, Solution) else samples
    x = check_state(samples, name).detach()
    x = x[:, None] if x.ndim == 1 else x
    if len(x) < minimum or x[0].numel() == 0:
        raise ShapeError(
            f"{name} must have shape (n, *event) with n >= {minimum}, got {tuple(x.shape)}. Next: more "
            f"samples."
        )
    return x.reshape(len(x), -1).to(device="cpu", dtype=torch.float64), x.shape[1:]


def reference(given: Pair, size: int | None) -> Tensor:
    """The rows to compare with; for a target ``size`` exact samples, as many as x unless given."""
    if given.y is not None:
        return given.y
    return given.draw(len(given.x) if size is None else check_count(size, "size", minimum=3))


def judge(
    name: str,
    statistic: Callable[[Tensor, Tensor | None], float],
    given: Pair,
    y: Tensor | None,
    repeats: int,
) -> Metric:
    """Value, jackknife error, floor and p-value of ``statistic(x, y)``; y None: x against a closed form.

    Against a target the null values are those of ``repeats`` fresh sets of exact samples; against samples,
    of as many random relabellings of the pooled rows. Both give an exact test: p = (1 + #{null >= value})
    / (1 + repeats) (Besag and Clifford 1989).
    """
    repeats = check_count(repeats, "repeats", minimum=0)
    x = given.x
    value = statistic(x, y)
    if given.target is not None:
        null = [statistic(given.exact(k), y) for k in range(repeats)]
    else:
        assert y is not None
        pool, generator = torch.cat([x, y]), torch.Generator().manual_seed(given.key)
        orders = (torch.randperm(len(pool), generator=generator) for _ in range(repeats))
        null = [statistic(pool[order[: len(x)]], pool[order[len(x) :]]) for order in orders]
    variance = _jackknife(lambda keep: statistic(x[keep], y), len(x))
    if y is not None:
        variance += _jackknife(lambda keep: statistic(x, y[keep]), len(y))
    floor, pvalue = against_null(value, null)
    return Metric(name, value, math.sqrt(variance), floor, pvalue, len(x), None if y is None else len(y))


def against_null(value: float, null: Sequence[float] | Tensor) -> tuple[float, float | None]:
    """(95 % quantile of the null values, p-value of ``value``); (nan, None) for none."""
    values = torch.as_tensor(null, dtype=torch.float64)
    if not len(values):
        return math.nan, None
    pvalue = (1 + int((values >= value).sum())) / (1 + len(values))
    return float(values.quantile(LEVEL)), pvalue


def _jackknife(statistic: Callable[[Tensor], float], n: int) -> float:
    """Variance by the delete-one-block jackknife, blocks of every BLOCKS-th row."""
    blocks = min(BLOCKS, n)
    block = torch.arange(n) % blocks
    if n - n // blocks < 2 or n < 3:
        return math.nan
    values = torch.tensor([statistic(block != b) for b in range(blocks)], dtype=torch.float64)
    return float((values - values.mean()).square().sum()) * (blocks - 1) / blocks
