"""Score models of classes: a network that takes a label, and the model of one class that it holds."""

from __future__ import annotations

import copy
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

from sdekit.errors import ShapeError, check_call, check_count
from sdekit.noise import Philox, Purpose
from sdekit.score.model import Denoiser

__all__ = ["ClassDenoiser", "Labelled", "as_labels", "classes_of", "dropped", "with_net"]

DROP_ID = -(2**40) - 2
"""Philox sample id of the labels that are dropped, apart from those of rows, times, orders and splits."""


class Labelled(nn.Module):
    """A network of classes with its labels bound: (x, t) -> net(x, t, label).

    label: a number, the class of every row; or int64 (B,), the class of each row of one fixed batch.
    """

    def __init__(self, net: nn.Module, label: int | Tensor) -> None:
        super().__init__()
        self.net, self.label = net, label

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        label = self.label
        if isinstance(label, int):
            label = torch.full(x.shape[:1], label, dtype=torch.int64, device=x.device)
        out: Tensor = self.net(x, t, label)
        return out


class ClassDenoiser(Denoiser):
    r"""A score model for every class y, and one without a class, in one network net(x, t, label=None):

        given(y):  E[x0 | x_t, y],      the model itself:  E[x0 | x_t], the label left out.

    net has an attribute ``classes``, the number K of classes; label is int64 (B,), classes 0, ..., K - 1,
    with K for "no class", or None for no class in any row (see `sdekit.nets.MLP`). Other parameters as in
    `sdekit.Denoiser`. `sdekit.fit` returns one where it is given labels; the model itself has learnt its
    part where labels were dropped in training.

    Raises TypeError for a net without ``classes``, and, where it is called without a class, for one whose
    label has no default. Ho and Salimans 2022 (arXiv:2207.12598), algorithm 1.
    """

    #: Whether the net is known to do without a label.
    complete: bool = False

    def __init__(self, net: Any, *args: Any, **kwargs: Any) -> None:
        if classes_of(net) is None:
            raise TypeError(
                f"the network of a ClassDenoiser has an attribute classes, the number of its classes, and "
                f"{type(net).__name__} has none. Next: sdekit.nets.MLP(..., classes=10), or net.classes = 10."
            )
        super().__init__(net, *args, **kwargs)

    @property
    def network(self) -> Any:
        """As of a `Denoiser`. Raises TypeError for a net that cannot be called without a label."""
        if not self.complete:
            cause = "a network of classes called without one, as the model itself is"
            action = "the model of one class, model.given(0); or label=None in its forward, for no class"
            check_call(self.net, ("x", "t"), "net", cause, action)
            self.complete = True
        return super().network

    def _check_signature(self, net: Any) -> None:
        check_call(net, ("x", "t", "label"), "net", "a network without a label", "forward(x, t, label=None)")

    @property
    def classes(self) -> int:
        """How many classes there are."""
        count = classes_of(self.net)
        assert count is not None
        return count

    def __repr__(self) -> str:
        return f"Class{super().__repr__()[:-1]}, classes={self.classes})"

    def given(self, label: Any) -> Denoiser:
        """The score model of one class, for `sdekit.sample`, `sdekit.log_prob` and everything else.

        label: 0, ..., classes - 1, the same for all rows. Raises TypeError for anything but a whole number,
        ValueError for one out of range.
        """
        if not _whole(label):
            got = f"shape {tuple(label.shape)}" if isinstance(label, Tensor) else repr(label)
            raise TypeError(
                f"label must be one whole number, the class of all rows, got {got}. Likely cause: a label "
                f"for each row; rows are evaluated in batches of any size and order. Next: one call of "
                f"given(label) for each class."
            )
        label = int(label)
        if not 0 <= label < self.classes:
            raise ValueError(
                f"label must lie in 0, ..., {self.classes - 1}, got {label}. Next: the model itself is the "
                f"one without a class."
            )
        return Denoiser(
            Labelled(self.net, label),  # type: ignore[arg-type]
            self.process,
            self.predicts,
            self.time,
            self.data_std,
            self.data_spread,
            self.network_dtype,
        )


def classes_of(net: object) -> int | None:
    """The number of classes that a network takes labels of; None for a network without labels."""
    classes = getattr(net, "classes", None)
    return None if classes is None else check_count(classes, "net.classes")


def as_labels(labels: object, count: int, classes: int, name: str = "labels") -> Int[Tensor, " N"]:
    """labels (N,) as int64 on the host. Raises ShapeError for floats or another length, ValueError for a
    label outside 0, ..., classes - 1."""
    short = name.split()[-1]
    try:
        y = torch.as_tensor(labels)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ShapeError(
            f"{name} must be whole numbers of shape ({count},), got {type(labels).__name__}. Next: a number "
            f"for each class, 0, ..., {classes - 1}."
        ) from error
    if y.is_floating_point() or y.is_complex() or y.dtype == torch.bool:
        raise ShapeError(
            f"{name} must be whole numbers, got dtype {y.dtype}. Likely cause: one-hot vectors or targets "
            f"of a regression. Next: {short}.argmax(dim=1), or {short}.long()."
        )
    if tuple(y.shape) != (count,):
        raise ShapeError(
            f"{name} must have shape ({count},), one for each sample, got {tuple(y.shape)}. Next: check that "
            f"data and {name} come from the same rows."
        )
    y = y.detach().to("cpu", torch.int64)
    bad = ((y < 0) | (y >= classes)).nonzero().flatten().tolist()
    if bad:
        raise ValueError(
            f"{name} must lie in 0, ..., {classes - 1}, got {int(y[bad[0]])} at sample {bad[0]} ({len(bad)} "
            f"of {count} outside). Likely cause: classes counted from 1, or a network made for fewer. Next: "
            f"classes={int(y.max()) + 1} in the network, or {short} - 1."
        )
    return y


def dropped(labels: Tensor, probability: float, classes: int, seed: int, draw: int) -> Tensor:
    """labels (B,), each replaced by "no class" with this probability, a pure function of (seed, draw)."""
    if probability == 0:
        return labels
    like = torch.empty((1, len(labels)), dtype=torch.float64, device=labels.device)
    ids = torch.tensor([DROP_ID], device=labels.device)
    z = Philox(seed).normal(draw, like, ids, Purpose.TRAINING)[0]
    return torch.where(torch.special.ndtr(z) < probability, classes, labels)


def with_net(model: Any, net: Any) -> Any:
    """The same model with another network; a network alone gives way to it."""
    if not isinstance(model, Denoiser):
        return net
    other = copy.copy(model)
    if isinstance(model, ClassDenoiser) and isinstance(net, Labelled):
        other = Denoiser.__new__(Denoiser)
        other.__dict__.update(model.__dict__)
    other.net, other.measured = net, {}
    return other


def _whole(label: Any) -> bool:
    """Whether this is a whole number, Python's, numpy's or a 0-d tensor's."""
    if isinstance(label, Tensor):
        return label.ndim == 0 and not label.is_floating_point() and label.dtype != torch.bool
    return hasattr(label, "__index__") and getattr(label, "ndim", 0) == 0 and not isinstance(label, bool)
