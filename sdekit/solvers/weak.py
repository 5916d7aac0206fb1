"""Weak order 2 for any noise: means of functions of the state at order 2, without derivatives or Levy areas.

What W leaves open of the double integrals int int dW_k dW_l needs only the right variance: signs s_k = +-1,
independent of W, stand for it. They are those of the space-time Levy area that a step is given.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sdekit.solvers.base import NOISE_TYPES, Carry, Interval, Solver, register

__all__ = ["DRI1", "Platen"]


def _root(h: Any) -> Any:
    """sqrt |h|, of a number or of one per sample."""
    return abs(h) ** 0.5


def _beside(h: Any, noise: Tensor) -> Any:
    """h against a noise shape: a number, or (B, 1, ..., 1) with the axes of ``noise``."""
    return h.reshape(-1, *(1,) * (noise.ndim - 1)) if isinstance(h, Tensor) else h


def _signs(levy: Tensor) -> Tensor:
    return torch.where(levy >= 0, 1.0, -1.0).to(levy.dtype)


def _is_matrix(system: Any) -> bool:
    return system.system.noise_type in ("commutative", "general")


def _own(system: Any, states: list[Tensor], t: Tensor) -> Tensor:
    """Column k of the diffusion at state k, (B, *event, m)."""
    return torch.stack([system.diffusion(y, t)[..., k] for k, y in enumerate(states)], dim=-1)


@register
@dataclass(frozen=True)
class Platen(Solver):
    r"""Platen's explicit method of weak order 2, Ito, any noise.

        x' = x + (f(y, t + h) + f) h/2 + (b_k(u_k+) + b_k(u_k-) + 2 b_k) W_k/4
               + (b_k(u_k+) - b_k(u_k-)) (W_k^2 - h)/(4 sqrt h)
               + sum_(r != k) ((b_k(v_r+) + b_k(v_r-) - 2 b_k) W_k
                               + (b_k(v_r+) - b_k(v_r-)) (W_k W_r + V_rk)/sqrt h)/4,  summed over k,

    y = x + f h + b_k W_k,  u_k+- = x + f h +- b_k sqrt h at t + h,  v_r+- = x +- b_r sqrt h at t, and
    V_rk = +-h with even chances, V_kr = -V_rk, of which V_rk = s_r s_k h (k < r) is enough: these are
    uncorrelated, and the method's local error asks no more. The last line is absent for additive, diagonal
    and scalar noise. Two drifts a step; 1 + 4 m diffusions for m channels of matrix noise, else 3.

    Kloeden and Platen 1992, equations 15.1.1 and 15.1.3.
    """

    name = "platen"
    kind = "sde"
    noise_types = NOISE_TYPES
    sde_types = ("ito",)
    weak_order = 2.0
    nodes = (0.0, 1.0)
    normals = 2
    laws = ("normal", "two-point")
    reference = "Kloeden and Platen 1992, section 15.1"

    def step(self, system: Any, x: Tensor, interval: Interval, carry: Carry) -> tuple[Tensor, Carry]:
        (t, end), h, w = interval.times, interval.h, interval.W
        assert w is not None
        assert interval.H is not None
        root, size, small = _root(h), _beside(abs(h), w), _beside(_root(h), w)
        drift, b = system.drift(x, t), system.diffusion(x, t)
        ahead = x + drift * h
        after = system.drift(ahead + system.apply_noise(b, w), end)
        out = x + 0.5 * (drift + after) * h
        if _is_matrix(system):
            shifts = [c * root for c in b.unbind(-1)]
            up = _own(system, [ahead + s for s in shifts], end)
            down = _own(system, [ahead - s for s in shifts], end)
        else:
            up, down = system.diffusion(ahead + b * root, end), system.diffusion(ahead - b * root, end)
        out = out + 0.25 * system.apply_noise(up + down + 2.0 * b, w)
        out = out + 0.25 * system.apply_noise(up - down, (w * w - size) / small)
        if not _is_matrix(system):
            return out, ()
        signs = _signs(interval.H)
        channel = torch.arange(w.shape[1], device=w.device)
        for r, shift in enumerate(shifts):
            up, down = system.diffusion(x + shift, t), system.diffusion(x - shift, t)
            order = torch.sign(r - channel).to(w.dtype)  # V_rk = -V_kr, and 0 leaves k = r out
            mixed = (w * w[:, r : r + 1]) * order.abs() + signs * signs[:, r : r + 1] * size * order
            out = out + 0.25 * system.apply_noise(up + down - 2.0 * b, w * order.abs())
            out = out + 0.25 * system.apply_noise(up - down, mixed / small)
        return out, ()


RATIO = 342.0 / 491.0
EARLY, LATE = (6.0 - math.sqrt(6.0)) / 10.0, (3.0 + 2.0 * math.sqrt(6.0)) / 5.0
"""B^(0): the noise in the second and third argument of the drift."""
OUT = 3.0 * math.sqrt(38.0 / 491.0)
"""B^(1): how far the arguments of b_k lie along b_k itself."""
ACROSS = (214.0 / 513.0 * math.sqrt(1105.0 / 991.0), 491.0 / 513.0 * math.sqrt(221.0 / 4955.0))
"""B^(2): how far they lie along the other columns, at the first and at the two other arguments of those."""


@register
@dataclass(frozen=True)
class DRI1(Solver):
    r"""DRI1 of Debrabant and Roessler: weak order 2, and order 3 where there is no noise; Ito, any noise.

        x' = x + (f_1 + 4 f_2 + f_3) h/6
               + (193/684 b_k + 491/1368 (b_k(u_k+) + b_k(u_k-))) W_k
               + sqrt(491/38)/6 (b_k(u_k+) - b_k(u_k-)) (W_k^2 - h)/(2 sqrt h)
               + 4955/14144 (b_k(v_k+) + b_k(v_k-) - 2 b_k) W_k
               + sqrt(4955/221)/8 (b_k(v_k+) - b_k(v_k-)) sqrt h,      summed over k,

    f_1, f_2, f_3 at t, t + h/2, t + h with the noise (0, (6 - sqrt 6)/10, (3 + 2 sqrt 6)/5) b_k W_k;
    u_k+- = x + c f_1 h +- 3 sqrt(38/491) b_k sqrt h at t + c h, c = 342/491;
    v_k+- = x +- sum_(l != k) (p b_l + q (b_l(u_l+) + b_l(u_l-))) I_kl/sqrt h at t, p and q in `ACROSS`;
    I_kl = (W_k W_l - s_k s_l h)/2 for k < l and (W_k W_l + s_k s_l h)/2 for k > l, s_k = +-1 with even
    chances: the sign of one pair is uncorrelated with that of any other. The last two lines of x' are absent
    for additive, diagonal and scalar noise. Three drifts a step; 1 + 4 m diffusions for m channels of
    matrix noise, else 3.

    Debrabant and Roessler 2009, Applied Numerical Mathematics 59, 582; the class of methods is that of
    Roessler 2009, SIAM Journal on Numerical Analysis 47, 1713.
    """

    name = "dri1"
    kind = "sde"
    noise_types = NOISE_TYPES
    sde_types = ("ito",)
    weak_order = 2.0
    nodes = (0.0, 0.5, 1.0, RATIO)
    normals = 2
    laws = ("normal", "two-point")
    reference = "Debrabant and Roessler 2009"

    def step(self, system: Any, x: Tensor, interval: Interval, carry: Carry) -> tuple[Tensor, Carry]:
        (t, half, end, inside), h, w = interval.times, interval.h, interval.W
        assert w is not None
        assert interval.H is not None
        root, size, small = _root(h), _beside(abs(h), w), _beside(_root(h), w)
        b = system.diffusion(x, t)
        noise = system.apply_noise(b, w)
        f1 = system.drift(x, t)
        f2 = system.drift(x + 0.5 * f1 * h + EARLY * noise, half)
        f3 = system.drift(x + (2.0 * f2 - f1) * h + LATE * noise, end)
        out = x + (f1 + 4.0 * f2 + f3) * (h / 6.0)
        ahead = x + RATIO * f1 * h
        if _is_matrix(system):
            shifts = [(OUT * root) * c for c in b.unbind(-1)]
            up = _own(system, [ahead + s for s in shifts], inside)
            down = _own(system, [ahead - s for s in shifts], inside)
        else:
            shift = (OUT * root) * b
            up, down = system.diffusion(ahead + shift, inside), system.diffusion(ahead - shift, inside)
        own = 193.0 / 684.0 * b + 491.0 / 1368.0 * (up + down)
        out = out + system.apply_noise(own, w)
        out = out + system.apply_noise(up - down, (w * w - size) * (math.sqrt(491.0 / 38.0) / 12.0) / small)
        if not _is_matrix(system):
            return out, ()
        across = ACROSS[0] * b + ACROSS[1] * (up + down)
        doubles = _doubles(w, _signs(interval.H), size)
        shifts = [system.apply_noise(across, row / small) for row in doubles]
        up = _own(system, [x + s for s in shifts], t)
        down = _own(system, [x - s for s in shifts], t)
        out = out + system.apply_noise(up + down - 2.0 * b, w * (4955.0 / 14144.0))
        side = torch.full_like(w, math.sqrt(4955.0 / 221.0) / 8.0)
        return out + system.apply_noise(up - down, side * small), ()


def _doubles(w: Tensor, signs: Tensor, size: Any) -> list[Tensor]:
    """I_kl for l = 1..m, (B, m), of each k; 0 for l = k."""
    channel, rows = torch.arange(w.shape[1], device=w.device), []
    for k in range(w.shape[1]):
        order = torch.sign(k - channel).to(w.dtype)
        sign = signs * signs[:, k : k + 1]
        rows.append(0.5 * (w * w[:, k : k + 1] * order.abs() + order * sign * size))
    return rows
