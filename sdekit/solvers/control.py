r"""Step control, one controller per sample: pure functions of float64 arrays (B,) on the host.

Arithmetic is elementwise, so that the steps of a sample do not depend on the batch around it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from sdekit.sde.rows import fold, over_event
from sdekit.solvers.rows import rms

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats: TypeAlias = NDArray[np.float64]

__all__ = ["Controller", "error_norm", "first_noisy_step", "first_step"]


def error_norm(error: Tensor, x0: Tensor, x1: Tensor, rtol: float, atol: float) -> Tensor:
    r"""Per-sample norm of the error of a step from x0 to x1 (B, *event): (B,) float64.

        RMS of error_i / (atol + rtol max(|x0_i|, |x1_i|)); the step is good when <= 1.

    Infinite where x1 is not finite. Hairer, Norsett and Wanner 1993, II.4, equations 4.10 and 4.11.
    """
    scale = torch.maximum(x0.abs(), x1.abs()) * rtol + atol
    ratio = error / scale.clamp_min(torch.finfo(scale.dtype).tiny)
    norm = rms(torch.where(torch.isfinite(x1), ratio, torch.inf))
    return torch.where(torch.isnan(norm), torch.inf, norm)


def first_step(
    system: Any, x: Tensor, f0: Tensor, t0: Tensor, span: float, order: float, rtol: float, atol: float
) -> Floats:
    r"""Starting steps (B,), signed like ``span`` = t1 - t0, from one evaluation beyond f0 = f(x, t0).

    h0 = 0.01 |x| / |f0|; one Euler step of h0 measures f''; h1 = (0.01 / max(|f0|, |f'|))^(1/order);
    h = min(100 h0, h1, |span|), with |.| the RMS of components over atol + rtol |x|. Per sample.
    Hairer, Norsett and Wanner 1993, II.4, the algorithm "Starting step size".
    """
    scale = (x.abs() * rtol + atol).clamp_min(torch.finfo(x.dtype).tiny)
    d0, d1 = (rms(v / scale).cpu().numpy() for v in (x, f0))
    small = (d0 < 1e-5) | (d1 < 1e-5) | ~np.isfinite(d1)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        h0 = np.minimum(np.where(small, 1e-6, 0.01 * (d0 / d1)), abs(span))
    step = np.copysign(h0, span)
    h = torch.as_tensor(step, dtype=torch.float64).to(dtype=x.dtype, device=x.device)
    f1 = system.drift(x + f0 * over_event(h, x), t0 + h)
    change = rms((f1 - f0) / scale).cpu().numpy()
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        top = np.maximum(d1, change / h0)
        h1 = np.where(top <= 1e-15, np.maximum(1e-6, h0 * 1e-3), (0.01 / top) ** (1.0 / order))
        h1 = np.where(np.isfinite(top), h1, h0)
        bounded = np.minimum(np.minimum(100 * h0, h1), abs(span))
    signed: Floats = np.copysign(bounded, span)
    return signed


def first_noisy_step(
    system: Any, x: Tensor, t0: Tensor, span: float, order: float, rtol: float, atol: float
) -> Floats:
    r"""Starting steps (B,) of an SDE, signed like ``span``: min((0.01/max(|f|, |G|))^(1/order), |span|).

    |f| and |G| are the RMS over components of the drift and of (sum_k G_ik^2)^(1/2), each over
    atol + rtol |x|. One call of the drift. A step that is too long is rejected, as any other.
    """
    scale = (x.abs() * rtol + atol).clamp_min(torch.finfo(x.dtype).tiny)
    g = system.system.noise_field(x, t0)
    spread = g if g.ndim == x.ndim else fold(g * g).sqrt()
    size = [rms(v / scale).cpu().numpy() for v in (system.drift(x, t0), spread)]
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        h = (0.01 / np.maximum(*size)) ** (1.0 / order)
    signed: Floats = np.copysign(np.where(h > 0, np.minimum(h, abs(span)), 1e-6 * abs(span)), span)
    return signed


@dataclass(frozen=True)
class Controller:
    r"""Proportional-integral control: h' = h clip(safety err^(-a) err_before^b, least, most).

    With err the norm of the step just tried, err_before that of the last good one, a = 1/q - 0.75 b and
    q the order of the error estimate plus one. After a rejection h' <= h, and err_before is not used.
    b = 0 is the integral controller. Growth is bounded at 3: the estimate of a single sample in few
    dimensions can vanish by accident, and the step after it must not be ten times longer.
    Gustafsson 1991; Hairer and Wanner 1996, IV.2, equation 2.43c.
    """

    safety: float = 0.9
    b: float = 0.04
    least: float = 0.2
    most: float = 3.0

    def factor(self, error: Floats, before: Floats, rejected_before: Any, order: float) -> Floats:
        """h'/h (B,), from the norms (B,), whether the step before was rejected (B,) and q = ``order``."""
        a = 1.0 / order - 0.75 * self.b
        err = np.clip(error, 1e-10, 1e10)
        good = error <= 1
        memory = np.where(good, np.clip(before, 1e-4, None) ** self.b, 1.0)
        factor = np.clip(self.safety * err**-a * memory, self.least, self.most)
        chosen: Floats = np.where(good & ~rejected_before, factor, np.minimum(factor, 1.0))
        return chosen
