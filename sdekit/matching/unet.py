"""UNet: a small convolutional network for images."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sdekit._typing import State
from sdekit.errors import ShapeError, check_count
from sdekit.matching.layers import condition, embedding, label_table, seeded, zero

__all__ = ["UNet"]


class _Residual(nn.Module):
    """Two 3x3 convolutions with GroupNorm, modulated by time between them, and a skip."""

    def __init__(self, inner: int, outer: int, time: int, groups: int, dropout: float) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(math.gcd(groups, inner), inner)
        self.conv1 = nn.Conv2d(inner, outer, 3, padding=1)
        self.modulate = nn.Linear(time, 2 * outer)
        self.norm2 = nn.GroupNorm(math.gcd(groups, outer), outer)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = zero(nn.Conv2d(outer, outer, 3, padding=1))
        self.skip = nn.Conv2d(inner, outer, 1) if inner != outer else nn.Identity()

    def forward(self, x: Tensor, e: Tensor) -> Tensor:
        scale, shift = self.modulate(e)[:, :, None, None].chunk(2, dim=1)
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(self.dropout(F.silu(self.norm2(h) * (1 + scale) + shift)))
        out: Tensor = self.skip(x) + h
        return out


class _Attention(nn.Module):
    """x + W softmax(q k / sqrt(c)) v over the pixels, heads of 32 channels."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.heads = max(channels // 32, 1) if channels % 32 == 0 else 1
        self.norm = nn.GroupNorm(math.gcd(groups, channels), channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.project = zero(nn.Conv2d(channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        qkv = self.qkv(self.norm(x)).reshape(b, 3, self.heads, c // self.heads, h * w).transpose(3, 4)
        mixed = F.scaled_dot_product_attention(*qkv.unbind(1))
        out: Tensor = x + self.project(mixed.transpose(2, 3).reshape(b, c, h, w))
        return out


class _Attended(nn.Module):
    """A residual block and self-attention after it."""

    def __init__(self, block: nn.Module, attention: nn.Module) -> None:
        super().__init__()
        self.block, self.attention = block, attention

    def forward(self, x: Tensor, e: Tensor) -> Tensor:
        out: Tensor = self.attention(self.block(x, e))
        return out


class _Down(nn.Module):
    """Residual blocks of one level, then half the pixels unless it is the lowest; every result is a skip."""

    def __init__(self, blocks: Sequence[nn.Module], shrink: nn.Module | None) -> None:
        super().__init__()
        self.blocks, self.shrink = nn.ModuleList(blocks), shrink

    def forward(self, h: Tensor, e: Tensor) -> list[Tensor]:
        skips = []
        for block in self.blocks:
            h = block(h, e)
            skips.append(h)
        if self.shrink is not None:
            skips.append(self.shrink(h))
        return skips


class _Up(nn.Module):
    """Residual blocks that take up the skips, last in first out, then twice the pixels unless at the top."""

    def __init__(self, blocks: Sequence[nn.Module], grow: nn.Module | None) -> None:
        super().__init__()
        self.blocks, self.grow = nn.ModuleList(blocks), grow

    def forward(self, h: Tensor, e: Tensor, skips: list[Tensor]) -> Tensor:
        for block in self.blocks:
            h = block(torch.cat([h, skips.pop()], dim=1), e)
        if self.grow is not None:
            h = F.interpolate(self.grow(h), scale_factor=2.0, mode="nearest")
        return h


class UNet(nn.Module):
    """Small U-Net for images: residual blocks with GroupNorm, halved and doubled between levels.

    Ho, Jain and Abbeel 2020 (arXiv:2006.11239), appendix B, with the scale-shift modulation by time of
    Dhariwal and Nichol 2021 (arXiv:2105.05233).

    Parameters
    ----------
    channels
        Of the image.
    width
        Channels of the first level; level l has width * multipliers[l].
    multipliers
        One number a level; height and width must be divisible by 2^(levels - 1).
    blocks
        Residual blocks a level on the way down (one more on the way up).
    attention
        True adds self-attention over the pixels between the two blocks in the middle; level numbers, such as
        (1, 2), add it there and after every block of those levels, 0 being the full resolution.
    groups, dropout
        Of GroupNorm (their greatest common divisor with the channels), and within the blocks.
    features, classes, seed
        As in `MLP`.

    forward: x (B, channels, H, W), t (B,) or (), label int64 (B,) or None -> (B, channels, H, W). Raises
    ShapeError for sizes that do not fit.
    """

    def __init__(
        self,
        channels: int = 1,
        *,
        width: int = 32,
        multipliers: Sequence[int] = (1, 2),
        blocks: int = 1,
        attention: bool | Sequence[int] = False,
        groups: int = 8,
        dropout: float = 0.0,
        features: str = "log",
        classes: int | None = None,
        seed: int | None = None,
    ) -> None:
        super().__init__()
        self.classes = classes
        self.channels, width = check_count(channels, "channels"), check_count(width, "width")
        if not isinstance(multipliers, Sequence):
            raise TypeError(
                f"multipliers must be numbers, one for each level, got {multipliers}. Next: (1, 2)."
            )
        levels = [width * check_count(m, "multipliers") for m in multipliers]
        if not levels:
            raise ValueError("multipliers must name at least one level, got none. Next: (1, 2).")
        blocks, groups = check_count(blocks, "blocks"), check_count(groups, "groups")
        self.config = {
            "channels": self.channels, "width": width, "multipliers": list(multipliers), "blocks": blocks,
            "attention": attention if isinstance(attention, bool) else list(attention), "groups": groups,
            "dropout": dropout, "features": features,
            "classes": classes,
        }  # fmt: skip

        attended = _levels(attention, len(levels))

        def residual(inner: int, outer: int, level: int | None = None) -> nn.Module:
            block = _Residual(inner, outer, 2 * width, groups, dropout)
            return _Attended(block, _Attention(outer, groups)) if level in attended else block

        with seeded(seed):
            self.embed = embedding(2 * width, features)
            self.enter = nn.Conv2d(self.channels, now := levels[0], 3, padding=1)
            skips = [now]
            down, up = [], []
            for k, size in enumerate(levels):
                chain = []
                for _ in range(blocks):
                    chain.append(residual(now, size, k))
                    skips.append(now := size)
                last = k + 1 == len(levels)
                down.append(_Down(chain, None if last else nn.Conv2d(now, now, 3, stride=2, padding=1)))
                skips += [] if last else [now]
            self.middle = nn.ModuleList([residual(now, now), residual(now, now)])
            self.attention = _Attention(now, groups) if attention else nn.Identity()
            for k, size in reversed(list(enumerate(levels))):
                chain = []
                for _ in range(blocks + 1):
                    chain.append(residual(now + skips.pop(), size, k))
                    now = size
                up.append(_Up(chain, nn.Conv2d(now, now, 3, padding=1) if k else None))
            self.down, self.up = nn.ModuleList(down), nn.ModuleList(up)
            self.norm = nn.GroupNorm(math.gcd(groups, now), now)
            self.leave = zero(nn.Conv2d(now, self.channels, 3, padding=1))
            self.table = label_table(classes, 2 * width)

    def forward(self, x: State, t: Tensor, label: Tensor | None = None) -> State:
        self._check(x)
        e = condition(self.embed, self.table, t.expand(x.shape[0]), label)
        skips = [self.enter(x)]
        for level in self.down:
            skips += level(skips[-1], e)
        h = self.middle[1](self.attention(self.middle[0](skips[-1], e)), e)
        for level in self.up:
            h = level(h, e, skips)
        out: Tensor = self.leave(F.silu(self.norm(h)))
        return out

    def _check(self, x: Tensor) -> None:
        unit = 2 ** (len(self.down) - 1)
        if x.ndim == 4 and x.shape[1] == self.channels and x.shape[2] % unit == 0 and x.shape[3] % unit == 0:
            return
        hint = "x[:, None] adds the channel axis" if x.ndim == 3 else "UNet(channels=..., multipliers=...)"
        raise ShapeError(
            f"x must have shape (B, {self.channels}, H, W) with H and W divisible by {unit} "
            f"({len(self.down)} levels), got {tuple(x.shape)}. Next: {hint}."
        )


def _levels(attention: bool | Sequence[int], count: int) -> set[int]:
    """Levels with attention of their own. Raises ValueError for one that does not exist."""
    if isinstance(attention, bool):
        return set()
    levels = {check_count(level, "attention", 0) for level in attention}
    if levels and max(levels) >= count:
        raise ValueError(
            f"attention must name levels among 0, ..., {count - 1}, one for each multiplier, got "
            f"{max(levels)}. Next: attention=({count - 1},), the lowest."
        )
    return levels
