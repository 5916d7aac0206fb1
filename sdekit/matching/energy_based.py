r"""Energy-based models p(x) = exp(-E(x))/Z, trained by contrastive divergence on chains that are kept.

The gradient of the likelihood needs no Z, but samples of the model (Hinton 2002):

    -grad log p(x) = grad E(x) - E_{x' ~ p} grad E(x').

Du and Mordatch 2019 (arXiv:1903.08689, algorithm 1) take x' from short runs of Langevin dynamics that go on
where earlier ones ended: those are kept in a `ReplayBuffer`, and a few begin anew.
"""

from __future__ import annotations

import time as clock
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sdekit._typing import State
from sdekit.errors import (
    NonFiniteError,
    ShapeError,
    check_count,
    check_positive,
)
from sdekit.matching.arguments import check_gradients, check_seed, check_share
from sdekit.matching.average import averaged as _averaged
from sdekit.matching.data import Batches, as_data, permutation
from sdekit.matching.logs import progress_bar
from sdekit.matching.losses.contrastive import EnergyFn, contrastive_divergence, energies
from sdekit.matching.optimisers import trainable
from sdekit.matching.rates import rate
from sdekit.noise import Philox, Purpose
from sdekit.sde.langevin import Langevin
from sdekit.solvers import solve

__all__ = ["EnergyFit", "ReplayBuffer", "fit_energy", "negatives"]

BUFFER_ID = -(2**40) - 2
"""Philox sample id of the order in which the buffer is visited, apart from those of data."""


def negatives(
    energy: EnergyFn,
    start: State,
    *,
    steps: int = 60,
    step_size: float = 0.01,
    seed: int = 0,
    first_id: int = 0,
) -> State:
    r"""Samples of about exp(-E)/Z: "ula" of `solve`, x <- x - h grad E(x) + sqrt(2 h) xi, from ``start``.

    start: (B, *event). steps: how many; step_size: h > 0, in the units of x squared. Row i has the noise of
    sample first_id + i of Philox(seed). Returns (B, *event), without gradients. The law has ULA's bias,
    of order h.

    Raises ShapeError for energies that are not (B,), SolveError or NonFiniteError where a chain diverges.
    """
    law = Langevin(log_prob=lambda x: -energies(energy, x))
    count = check_count(steps, "steps")
    end = count * check_positive(step_size, "step_size")
    return solve(
        law, start.detach(), (0.0, end), steps=count, solver="ula", seed=seed, first_id=first_id, probe=False
    ).x.detach()


class ReplayBuffer:
    r"""Ends of earlier chains, from which later ones go on (Du and Mordatch 2019, algorithm 1).

    Visit n takes ``count`` different rows in an order fixed by (seed, n); each begins anew, from
    N(mean, diag(std^2)), with probability ``reinit``, as all do at first.

    Parameters
    ----------
    capacity
        Chains kept; at least the batch.
    mean, std
        (*event) each, of the law in which chains begin: wide enough to cover the data.
    reinit
        In [0, 1]; 1 keeps nothing from one visit to the next.

    Raises ValueError for numbers out of range, ShapeError for a mean and std of different shapes.
    """

    def __init__(
        self, capacity: int, mean: Tensor, std: Tensor, *, reinit: float = 0.05, seed: int = 0
    ) -> None:
        if mean.shape != std.shape or mean.numel() == 0:
            raise ShapeError(
                f"mean and std must have one shape (*event), got {tuple(mean.shape)} and {tuple(std.shape)}."
            )
        if not 0 <= reinit <= 1:
            raise ValueError(f"reinit must be a probability in [0, 1], got {reinit}. Next: 0.05.")
        self.reinit, self.seed = float(reinit), seed
        self.mean, self.std = mean.detach(), std.detach()
        ids = torch.arange(check_count(capacity, "capacity"), dtype=torch.int64, device=mean.device)
        like = self.mean.expand(len(ids), *mean.shape)
        self.samples = self.mean + self.std * Philox(seed).normal(0, like, ids, Purpose.INITIAL)

    def __len__(self) -> int:
        return len(self.samples)

    def start(self, n: int, count: int) -> tuple[Tensor, State]:
        """(rows (count,), states (count, *event)) of visit n >= 0. Raises ValueError: count > capacity."""
        if check_count(count, "count") > len(self):
            raise ValueError(
                f"{count} chains do not fit a buffer of capacity {len(self)}. Next: a capacity of some ten "
                f"thousand, or a smaller batch."
            )
        rows = permutation(len(self), self.seed, n, BUFFER_ID)[:count].to(self.samples.device)
        kept = self.samples[rows]
        ids = torch.arange(count, dtype=torch.int64, device=kept.device)
        drawn = Philox(self.seed).normal(
            n + 1, kept.new_empty(count, 1 + kept[0].numel()), ids, Purpose.INITIAL
        )
        uniform = torch.special.ndtr(drawn[:, 0].double())
        anew = (uniform < self.reinit).reshape(-1, *[1] * (kept.ndim - 1))
        return rows, torch.where(anew, self.mean + self.std * drawn[:, 1:].reshape(kept.shape), kept)

    def store(self, rows: Tensor, x: State) -> None:
        """Keep x (count, *event) as the ends of the chains ``rows``."""
        self.samples = self.samples.index_copy(0, rows, x.detach().to(self.samples.dtype))


@dataclass(frozen=True)
class EnergyFit:
    """What `fit_energy` returns.

    energy: the module with averaged weights, in evaluation mode. losses: (steps,) mean of
    `sdekit.losses.contrastive_divergence` at each step; without regularisation around 0 when data and chains
    have the same energies. buffer: the `ReplayBuffer` after the last step. seconds: wall time.
    """

    energy: nn.Module
    losses: Tensor
    buffer: ReplayBuffer
    seconds: float

    def __repr__(self) -> str:
        count = sum(p.numel() for p in self.energy.parameters())
        tail = float(self.losses[-max(len(self.losses) // 10, 1) :].mean())
        steps = len(self.losses)
        return f"EnergyFit({count:,} parameters, {steps} steps, loss {tail:.4g}, {self.seconds:.3g} s)"


def fit_energy(
    net: nn.Module,
    data: Any,
    *,
    steps: int = 1000,
    batch_size: int = 128,
    lr: float = 1e-3,
    warmup: int | None = None,
    clip: float | None = 1.0,
    ema: float | None = 0.999,
    chain_steps: int = 40,
    step_size: float = 0.01,
    capacity: int = 10_000,
    reinit: float = 0.05,
    regularisation: float = 0.0,
    seed: int = 0,
    progress: bool = True,
) -> EnergyFit:
    r"""Train an energy E: `sdekit.losses.contrastive_divergence` against chains of a `ReplayBuffer`, by Adam.

    Every step takes a batch of data, goes on with as many chains by ``chain_steps`` of `negatives`, and
    puts them back. The rate rises over ``warmup`` steps (steps/20, at most 500) and falls to 0 by a cosine.
    Equal arguments give equal weights on one CPU with one number of threads.

    Parameters
    ----------
    net
        E, or an `Energy` of it: (B, *event) -> (B,), smooth (SiLU or softplus, not ReLU); trained in place.
    data
        (N, *event) floating, converted to the network's dtype and device; of about unit scale.
    chain_steps, step_size
        Of ULA. What is learned is the energy whose *chains* look like the data, hence with a bias of order
        step_size: on data N(0, v) it is v (1 - h/(2 v)) + O(h^2) that the energy has for its variance.
    capacity, reinit
        Of the buffer, which begins in a normal law of the data's mean and twice its standard deviations.
    regularisation
        a in `sdekit.losses.contrastive_divergence`.
    lr, clip, ema
        As in `fit`.

    Raises
    ------
    ShapeError: energies that are not (B,), data that are empty or integer. NonFiniteError: NaN in the data, a
    chain or the loss. ValueError: numbers out of range, an element that is constant over the data. TypeError:
    a network that takes more than x. RuntimeError: gradients are switched off.
    """
    started = clock.perf_counter()
    check_gradients("fit_energy")
    like = trainable(net, "fit_energy", "a network (B, *event) -> (B,)")
    steps, batch_size = check_count(steps, "steps"), check_count(batch_size, "batch_size")
    chain_steps = check_count(chain_steps, "chain_steps")
    lr, step_size = check_positive(lr, "lr"), check_positive(step_size, "step_size")
    clip = None if clip is None else check_positive(clip, "clip")
    ema, seed = check_share(ema, "ema", below=True), check_seed(seed)
    warmup = min(500, steps // 20) if warmup is None else check_count(warmup, "warmup", 0)
    x = as_data(data, like)
    std = x.double().std(dim=0, correction=0).to(x)
    if not bool((std > 0).all()):
        raise ValueError(
            f"{int((std <= 0).sum())} of {std.numel()} elements are constant over the data, where the energy "
            f"would have to be infinitely deep. Next: drop them, or add noise."
        )
    batch_size = min(batch_size, len(x))
    buffer = ReplayBuffer(capacity, x.double().mean(dim=0).to(x), 2 * std, reinit=reinit, seed=seed)
    optimiser = torch.optim.Adam(net.parameters(), lr=lr, betas=(0.9, 0.99))
    averaged, batches, bar = _averaged(net, ema), Batches(x, batch_size, seed), progress_bar(steps, progress)
    history = torch.zeros(steps, dtype=torch.float32)
    net.train()
    for n in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = lr * rate(n, steps, warmup, "cosine")
        batch = batches[n]
        rows, start = buffer.start(n, batch_size)
        ends = negatives(
            net, start, steps=chain_steps, step_size=step_size, seed=seed, first_id=n * batch_size
        )
        buffer.store(rows, ends)
        values = contrastive_divergence(net, batch, ends, regularisation=regularisation)
        optimiser.zero_grad(set_to_none=True)
        loss = values.mean()
        if not bool(torch.isfinite(loss.detach())):
            raise NonFiniteError(
                f"the loss is {float(loss.detach()):g} at step {n}. Likely cause: lr = {lr:g} too large, or "
                f"an energy without lower bound. Next: a smaller lr, regularisation=0.1, or net(x) + |x|^2/2."
            )
        loss.backward()  # type: ignore[no-untyped-call]
        if clip is not None:
            nn.utils.clip_grad_norm_(net.parameters(), clip)
        optimiser.step()
        averaged.update_parameters(net)
        history[n] = loss.detach()
        if bar is not None:
            bar.update()
    if bar is not None:
        bar.close()
    return EnergyFit(averaged.module.eval(), history, buffer, clock.perf_counter() - started)
