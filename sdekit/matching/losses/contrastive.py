"""Contrastive divergence: the likelihood's gradient for an energy, from samples of the model."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from sdekit._typing import State
from sdekit.errors import ShapeError, check_call, check_not_negative, check_state, out_of_place
from sdekit.score.energy import Energy

__all__ = ["EnergyFn", "contrastive_divergence", "energies"]

EnergyFn: TypeAlias = Callable[[Tensor], Tensor]


def contrastive_divergence(
    energy: EnergyFn, x: State, negative: State, *, regularisation: float = 0.0
) -> Float[Tensor, " B"]:
    r"""Contrastive divergence, one value a pair of datum x and sample x' of the model:

        E(x) - E(x') + a (E(x)^2 + E(x')^2).

    With x' ~ exp(-E)/Z the gradient of the mean, at a = 0, is that of -log-likelihood. The values themselves
    estimate nothing; near 0 they say that both sets have the same energy. a = ``regularisation`` >= 0 keeps
    energies near 0, which the first two terms leave free up to a constant, and smooth.

    energy: (B, *event) -> (B,), in nats, or a `sdekit.Energy`; it gets gradients. x, negative: (B, *event),
    of one shape; ``negative`` is a constant (see `sdekit.matching.negatives`). Returns (B,).

    Raises ShapeError for shapes that differ or energies that are not (B,), NonFiniteError for NaN.
    Du and Mordatch 2019 (arXiv:1903.08689), algorithm 1; Hinton 2002 (doi:10.1162/089976602760128018).
    """
    a = check_not_negative(regularisation, "regularisation")
    x, negative = check_state(x, "x"), check_state(negative, "negative").detach()
    if x.shape != negative.shape:
        raise ShapeError(
            f"x and negative must have one shape, got {tuple(x.shape)} and {tuple(negative.shape)}. Next: as "
            f"many samples of the model as data, sdekit.matching.negatives(energy, start) from such a start."
        )
    both = energies(energy, torch.cat([x, negative]))
    high, low = both[: len(x)], both[len(x) :]
    value = high - low
    return value if a == 0 else value + a * (high.square() + low.square())


def energies(energy: EnergyFn, x: Tensor) -> Tensor:
    """E(x), (B,). Raises ShapeError for any other shape, TypeError for what cannot be called, ValueError for
    an energy that changes x in place."""
    if not callable(energy):
        raise TypeError(f"energy must be callable as energy(x), got {type(energy).__name__}.")
    try:
        out = energy.energy(x) if isinstance(energy, Energy) else out_of_place(energy, x, "energy")
    except TypeError:
        cause, action = "a score, or a network with a time", "an energy of x alone, (B, *event) -> (B,)"
        check_call(energy, ("x",), "energy", cause, action)
        raise
    if not isinstance(out, Tensor) or out.shape != x.shape[:1] or not out.is_floating_point():
        got = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
        raise ShapeError(
            f"energy must return shape {tuple(x.shape[:1])}, one floating number a sample, got {got}. Likely "
            f"cause: a last layer of one unit, (B, 1), or a vector in place of a potential. Next: "
            f"net(x)[:, 0], or a sum over the event."
        )
    return out
