"""Distances made of pairs: energy distance and maximum mean discrepancy, with relabelling tests."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sdekit.certify.metrics.result import Metric, against_null, pair, reference
from sdekit.errors import check_count, check_positive

__all__ = ["energy_distance", "mmd", "pair_statistic"]

#: Rows and columns of the tile of pairs held at a time: 32 MB.
TILE = (1024, 4096)
#: Rows of each set that are compared with each other; larger sets are cut into blocks.
ROWS = 5000
#: Rows that the median heuristic looks at.
MEDIAN_ROWS = 2000


def energy_distance(
    samples: Any, against: Any, *, repeats: int = 199, size: int | None = None, seed: int = 0
) -> Metric:
    r"""Energy distance, unbiased, so around 0 (and at times below) for exact samples; in data units:

        E = 2 E|X - Y| - E|X - X'| - E|Y - Y'|,

    each mean over pairs of different rows. It is 0 only for equal laws with finite mean. Sets of more than
    5,000 rows are cut into blocks of at most as many, every k-th row, and the value is the mean of theirs.

    samples: (n, *event). against: samples (m, *event), or a target, of which ``size`` samples are drawn (n
    unless given). stderr: delete-one jackknife over both sets. floor, pvalue: ``repeats`` random relabellings
    of the pooled rows, within blocks, an exact test; 0 for none. Time (n + m)^2 (D + repeats) up to 5,000
    rows, then linear; memory 50 MB beyond the data.

    Raises
    ------
    ShapeError: shapes do not fit, or fewer than three rows. NonFiniteError: NaN or infinity in samples.

    References
    ----------
    Szekely and Rizzo 2013 (J. Statist. Plann. Inference 143, 1249-1272).
    """
    given = pair(samples, against, seed, minimum=3)
    y = reference(given, size)
    return pair_statistic("energy distance", given.x, y, lambda r: r, repeats, given.key)


def mmd(
    samples: Any,
    against: Any,
    *,
    bandwidth: float | None = None,
    repeats: int = 199,
    size: int | None = None,
    seed: int = 0,
) -> Metric:
    r"""Squared maximum mean discrepancy with a Gaussian kernel, unbiased:

        MMD^2 = E k(X, X') + E k(Y, Y') - 2 E k(X, Y),    k(x, y) = exp(-|x - y|^2 / (2 h^2)),

    each mean over pairs of different rows (of one block, as in `energy_distance`); no units, around 0 for
    exact samples.

    bandwidth: h; None for the median distance of two of 2,000 pooled rows. The other arguments, stderr, floor
    and pvalue are those of `energy_distance`.

    Raises
    ------
    ShapeError: shapes do not fit, or fewer than three rows. NonFiniteError: NaN or infinity in samples.
    ValueError: the bandwidth is not positive.

    References
    ----------
    Gretton, Borgwardt, Rasch, Schoelkopf and Smola 2012 (J. Mach. Learn. Res. 13, 723-773), lemma 6.
    """
    given = pair(samples, against, seed, minimum=3)
    y = reference(given, size)
    h = _median(given.x, y, given.key) if bandwidth is None else check_positive(bandwidth, "bandwidth")
    return pair_statistic("MMD^2", given.x, y, lambda r: -torch.exp(-0.5 * (r / h) ** 2), repeats, given.key)


def _median(x: Tensor, y: Tensor, seed: int) -> float:
    """Median distance of pooled rows, chosen without regard to the labels."""
    pool = torch.cat([x, y])
    generator = torch.Generator().manual_seed(seed)
    some = pool[torch.randperm(len(pool), generator=generator)[:MEDIAN_ROWS]]
    middle = float(torch.pdist(some).median())
    if not middle > 0:
        raise ValueError(
            "the median distance is 0, so it gives no bandwidth. Likely cause: most rows are equal. Next: "
            "bandwidth=..., in data units."
        )
    return middle


def pair_statistic(
    name: str, x: Tensor, y: Tensor, h: Callable[[Tensor], Tensor], repeats: int, seed: int
) -> Metric:
    """2 mean h(|x - y|) - mean h(|x - x'|) - mean h(|y - y'|), its jackknife and its relabellings.

    Means of those of blocks of at most `ROWS` rows of each set.
    """
    n, m = len(x), len(y)
    repeats = check_count(repeats, "repeats", minimum=0)
    blocks = max(1, min(-(-max(n, m) // ROWS), min(n, m) // 3))
    parts = [_block(x[b::blocks], y[b::blocks], h, repeats, seed + b) for b in range(blocks)]
    values = torch.stack([values for values, _ in parts]).mean(0)
    stderr = math.sqrt(sum(variance for _, variance in parts)) / blocks
    value = float(values[0])
    floor, pvalue = against_null(value, values[1:])
    return Metric(name, value, stderr, floor, pvalue, n, m)


def _block(
    x: Tensor, y: Tensor, h: Callable[[Tensor], Tensor], repeats: int, seed: int
) -> tuple[Tensor, float]:
    """The statistic and its values for relabelled rows, (1 + repeats,); its jackknife variance."""
    n, m = len(x), len(y)
    pool = torch.cat([x, y])
    pool = pool - pool.mean(0)  # distances stay, the products behind them lose fewer digits
    labels = _relabellings(n, m, repeats, seed)
    own, every, within, to_all = _sums(pool, h, labels)
    total = every.sum()
    values = _statistic(within, to_all - within, total - 2 * to_all + within, n, m)

    to_x, to_y = own, every - own  # sums over the rows of x and of y, for each row of the pool
    xx, yy = to_x[:n].sum(), to_y[n:].sum()
    xy = to_y[:n].sum()
    without_x = _statistic(xx - 2 * to_x[:n], xy - to_y[:n], yy, n - 1, m)
    without_y = _statistic(xx, xy - to_x[n:], yy - 2 * to_y[n:], n, m - 1)
    variance = sum(float((v - v.mean()).square().sum()) * (1 - 1 / len(v)) for v in (without_x, without_y))
    return values, variance


def _statistic(xx: Tensor, xy: Tensor, yy: Tensor, n: int, m: int) -> Tensor:
    """From sums over ordered pairs of different rows."""
    return 2 * xy / (n * m) - xx / (n * (n - 1)) - yy / (m * (m - 1))


def _relabellings(n: int, m: int, repeats: int, seed: int) -> Tensor:
    """(n + m, 1 + repeats) booleans: which rows count as x; column 0 as they came."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.zeros(n + m, 1 + repeats, dtype=torch.bool)
    labels[:n, 0] = True
    for k in range(1, 1 + repeats):
        labels[torch.randperm(n + m, generator=generator)[:n], k] = True
    return labels


def _sums(
    pool: Tensor, h: Callable[[Tensor], Tensor], labels: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Over the table h(|z_i - z_j|), i != j, tile by tile: row sums over x and over all; then, for each
    labelling, sums within x and from x to all.
    """
    size, columns = len(pool), labels.shape[1]
    own, every = pool.new_zeros(size), pool.new_zeros(size)
    within, to_all = pool.new_zeros(columns), pool.new_zeros(columns)
    for a in range(0, size, TILE[0]):
        left = pool[a : a + TILE[0]]
        products = pool.new_zeros(len(left), columns)
        for b in range(0, size, TILE[1]):
            right = pool[b : b + TILE[1]]
            table = h(torch.cdist(left, right, compute_mode="use_mm_for_euclid_dist"))
            first, last = max(a, b), min(a + len(left), b + len(right))
            if first < last:
                i = torch.arange(first, last)
                table[i - a, i - b] = 0.0
            every[a : a + len(left)] += table.sum(1)
            products += table @ labels[b : b + len(right)].double()
        chosen = labels[a : a + len(left)].double()
        own[a : a + len(left)] = products[:, 0]
        within += (products * chosen).sum(0)
        to_all += chosen.T @ every[a : a + len(left)]
    return own, every, within, to_all
