"""How good are samples of the digits: distance to held-out data, legibility, and no copies."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sdekit.certify.metrics import energy_distance

__all__ = ["Quality", "judge"]


@dataclass(frozen=True)
class Quality:
    """Figures of a set of samples, each beside the same figure of real data.

    energy: energy distance to the held-out data, 2 E|X - Y| - E|X - X'| - E|Y - Y'| (Szekely and Rizzo
    2013), unbiased, so around 0 for exact samples; energy_floor: what 95 % of random sets of as many
    training digits stay below. legible: share of samples whose 5 nearest training digits carry one label;
    legible_real: of the held-out digits. nearest: median distance to the nearest training digit;
    nearest_real: of the held-out digits; a model that copies has nearest near 0. closest: the smallest
    such distance; closest_real. labels: samples by digit, 0 to 9.
    """

    energy: float
    energy_floor: float
    legible: float
    legible_real: float
    nearest: float
    nearest_real: float
    closest: float
    closest_real: float
    labels: list[int]


def judge(
    samples: Tensor, train: Tensor, labels: Tensor, held: Tensor, *, repeats: int = 200, seed: int = 0
) -> Quality:
    """Quality of samples (n, *event) against training data, their labels (N,) and held-out data."""
    x, a, b = (v.reshape(len(v), -1).double() for v in (samples, train, held))
    generator = torch.Generator().manual_seed(seed)
    draws = [a[torch.randperm(len(a), generator=generator)[: len(x)]] for _ in range(repeats)]
    floor = torch.tensor([energy_distance(d, b, repeats=0).value for d in draws])

    def neighbours(rows: Tensor) -> tuple[Tensor, Tensor]:
        distance, index = torch.cdist(rows, a).topk(5, largest=False)
        return distance[:, 0], labels[index]

    (near, votes), (near_real, votes_real) = neighbours(x), neighbours(b)
    return Quality(
        energy=energy_distance(x, b, repeats=0).value,
        energy_floor=float(floor.quantile(0.95)),
        legible=float((votes == votes[:, :1]).all(dim=1).double().mean()),
        legible_real=float((votes_real == votes_real[:, :1]).all(dim=1).double().mean()),
        nearest=float(near.median()),
        nearest_real=float(near_real.median()),
        closest=float(near.min()),
        closest_real=float(near_real.min()),
        labels=torch.bincount(votes.mode(dim=1).values, minlength=10).tolist(),
    )
