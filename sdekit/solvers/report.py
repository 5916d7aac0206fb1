"""Progress bar and callback of a run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

__all__ = ["Report"]


class Report:
    """Called as report(step, t, x) after each step; a context, so that the bar closes.

    The bar counts percent of the span, of the slowest sample.
    """

    def __init__(
        self, progress: bool, callback: Callable[[int, Any, Tensor], object] | None, t0: float, t1: float
    ) -> None:
        self.progress, self.callback, self.t0, self.t1 = progress, callback, t0, t1
        self.bar: Any = None

    def __enter__(self) -> Report:
        if self.progress:
            from tqdm.auto import tqdm

            self.bar = tqdm(total=100, unit="%", bar_format="{l_bar}{bar}| {elapsed}<{remaining}{postfix}")
        return self

    def __call__(self, step: int, t: float | Tensor, x: Tensor) -> None:
        if self.bar is not None:
            done = (t - self.t0) / (self.t1 - self.t0)
            percent = int(100 * (float(done.min()) if isinstance(done, Tensor) else done))
            if percent > self.bar.n:
                self.bar.update(percent - self.bar.n)
        if self.callback is not None:
            self.callback(step, t, x.detach())

    def __exit__(self, *exception: object) -> None:
        if self.bar is not None:
            self.bar.close()
