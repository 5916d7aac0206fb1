"""Small networks for small data: net(x, t) with x (B, *event), t (B,), output of the shape of x.

With ``classes`` they take net(x, t, label) too, label int64 (B,), and are the network of a
`sdekit.matching.ClassDenoiser`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from sdekit._typing import State
from sdekit.errors import ShapeError, check_count
from sdekit.matching.layers import TimeFeatures, condition, embedding, label_table, seeded, zero
from sdekit.matching.unet import UNet

__all__ = ["MLP", "NETS", "TimeFeatures", "UNet"]


class _Dense(nn.Module):
    """h + W2 silu((1 + a(t)) W1 norm(h) + b(t))."""

    def __init__(self, width: int, time: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.first = nn.Linear(width, width)
        self.modulate = nn.Linear(time, 2 * width)
        self.second = zero(nn.Linear(width, width))

    def forward(self, h: Tensor, e: Tensor) -> Tensor:
        scale, shift = self.modulate(e).chunk(2, dim=1)
        out: Tensor = h + self.second(F.silu(self.first(self.norm(h)) * (1 + scale) + shift))
        return out


class MLP(nn.Module):
    """Residual multilayer perceptron on the flattened event, modulated by time in every block.

    Parameters
    ----------
    event_shape
        Shape of one sample: a number of elements or a tuple.
    width, depth
        Units of a layer, residual blocks of two layers.
    features
        "log" for t >= 0, "real" for levels of either sign (see `TimeFeatures`).
    classes
        Number K of classes, for labels 0, ..., K - 1 and K for no class; None for a network without labels.
    seed
        Of the initial weights; None takes torch's global generator.

    forward: x (B, *event_shape), t (B,) or (), label int64 (B,) or None for no class -> (B, *event_shape).
    Raises ShapeError for another event or a label that is not int64 (B,), ValueError for one out of range.
    """

    def __init__(
        self,
        event_shape: int | Sequence[int],
        *,
        width: int = 256,
        depth: int = 3,
        features: str = "log",
        classes: int | None = None,
        seed: int | None = None,
    ) -> None:
        super().__init__()
        self.classes = classes
        event = (event_shape,) if isinstance(event_shape, int) else tuple(event_shape)
        self.event_shape = tuple(check_count(n, "event_shape") for n in event)
        width, depth = check_count(width, "width"), check_count(depth, "depth")
        self.config = {
            "event_shape": list(self.event_shape), "width": width, "depth": depth, "features": features,
            "classes": classes,
        }  # fmt: skip
        size = math.prod(self.event_shape)
        with seeded(seed):
            self.embed = embedding(width // 2 or 1, features)
            self.enter = nn.Linear(size, width)
            self.blocks = nn.ModuleList(_Dense(width, width // 2 or 1) for _ in range(depth))
            self.norm = nn.LayerNorm(width)
            self.leave = zero(nn.Linear(width, size))
            self.table = label_table(classes, width // 2 or 1)

    def forward(self, x: State, t: Tensor, label: Tensor | None = None) -> State:
        if tuple(x.shape[1:]) != self.event_shape:
            raise ShapeError(
                f"x must have shape (B, {', '.join(map(str, self.event_shape))}), the event this MLP was "
                f"made for, got {tuple(x.shape)}. Next: MLP(event_shape={tuple(x.shape[1:])})."
            )
        e = condition(self.embed, self.table, t.expand(x.shape[0]), label)
        h = self.enter(x.flatten(1))
        for block in self.blocks:
            h = block(h, e)
        out: Tensor = self.leave(F.silu(self.norm(h)))
        return out.reshape(x.shape)


#: Networks that a checkpoint can rebuild by itself.
NETS: dict[str, type[MLP] | type[UNet]] = {"MLP": MLP, "UNet": UNet}
