"""The moving average of a network's weights."""

from __future__ import annotations

from typing import Any

from torch import nn

__all__ = ["averaged"]


def averaged(module: nn.Module, ema: float) -> Any:
    """torch's AveragedModel, W <- m_n W + (1 - m_n) w, with the warm-up m_n = min(ema, (1 + n)/(10 + n))."""
    from torch.optim.swa_utils import AveragedModel

    def update(averages: Any, current: Any, count: Any) -> None:
        n = int(count)
        keep = min(ema, (1 + n) / (10 + n))
        for a, c in zip(averages, current, strict=True):
            a.lerp_(c, 1 - keep)

    return AveragedModel(module, multi_avg_fn=update)
