"""Score matching for SDEs whose transition density is not known: simulate, then match slices."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from sdekit._typing import State
from sdekit.errors import check_count, check_state
from sdekit.matching.losses.direct import sliced
from sdekit.matching.losses.fields import Score
from sdekit.matching.losses.times import uniform
from sdekit.sde.base import SDE
from sdekit.solvers import solve
from sdekit.solvers.base import Solver

__all__ = ["sliced_sde"]


def sliced_sde(
    score: Score,
    sde: SDE,
    x0: State,
    span: tuple[float, float],
    *,
    times: int = 16,
    steps: int = 200,
    solver: str | Solver = "euler-maruyama",
    probes: int = 1,
    law: str = "rademacher",
    variance_reduced: bool = True,
    seed: int = 0,
    draw: int = 0,
) -> Float[Tensor, " B"]:
    r"""Sliced score matching along any SDE, with or without a closed transition density:

        v^T grad s(X_t, t) v + 1/2 ||s(X_t, t)||^2,   X_t from the SDE started at x0,

    whose minimiser at each t is the score of the law of X_t. Denoising score matching would need the score
    of X_t given x0.

    Parameters
    ----------
    score
        s(x, t), t (B,).
    sde
        Any `SDE`, simulated by ``solver`` with ``steps`` steps; the law matched is that of the simulation.
    x0
        Data (B, *event) at the first time.
    span
        (t0, t1), t0 < t1: times lie in (t0, t1].
    times
        K: the paths are kept at K times for the batch, t0 + (k + U)/K (t1 - t0) with one U for all,
        and sample i takes one of them, evenly spread over the batch. More times cost no more steps.
    probes, law, variance_reduced
        As in `sliced`.
    seed, draw
        The path of row i is that of sample ``draw B + i``; times and probes come from them too.

    Returns
    -------
    (B,), at least float32.

    Raises
    ------
    As `sdekit.solve` and `sliced`.

    References
    ----------
    Song et al. 2021 (arXiv:2011.13456), section 3.3.
    """
    x0 = check_state(x0, "x0")
    count, kept = len(x0), check_count(times, "times")
    t0, t1 = float(span[0]), float(span[1])
    offset = uniform(1, seed=seed, draw=2 * draw + 1, device=x0.device)
    at = t0 + (torch.arange(kept, device=x0.device) + offset) / kept * (t1 - t0)
    with torch.no_grad():
        paths = solve(
            sde, x0, (t0, t1), solver=solver, steps=steps, save_at=at, seed=seed, first_id=draw * count
        )
    u = uniform(count, seed=seed, draw=2 * draw, device=x0.device)
    assert paths.xs is not None
    chosen = (u * kept).long().clamp(max=kept - 1)
    x = paths.xs[chosen, torch.arange(count, device=x0.device)]
    return sliced(
        score, x, t=at[chosen].to(x0.dtype), probes=probes, law=law, variance_reduced=variance_reduced,
        seed=seed, draw=draw,
    )  # fmt: skip
