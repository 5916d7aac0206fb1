r"""Exact law of a stochastic peer on Gaussian data, from its response to unit impulses.

With the denoiser diagonal in the data's eigenbasis and steps affine in state and noise, a run gives
direction by direction

    x = b + g x_start + sum_k G_k xi_k,   k = 1..K the normal draws of the run,

so that one batch of K + 2 rows tells the law: row 0 with all noise zero gives b, a row that starts at the
prior's standard deviation g, and the row with ones at draw k alone G_k. No random number enters. The output
is N(b, g^2 prior_std^2 + sum_k G_k^2).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import sdekit as sk
from benchmarks.peers.base import Peer

__all__ = ["Draws", "exact_law", "exact_w2"]

NORMAL = {torch.ops.aten.randn, torch.ops.aten.randn_like, torch.ops.aten.normal_}
AFFINE_TOLERANCE = 1e-4
"""Relative: some peers step in float32."""


class Draws(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Hands every normal draw of ``rows`` rows to ``fill(k, draw)``, k its number in the run."""

    def __init__(self, rows: int, fill: Callable[[int, Tensor], object]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.rows, self.fill, self.count = rows, fill, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func.overloadpacket in NORMAL and out.ndim and out.shape[0] == self.rows:
            self.fill(self.count, out)
            self.count += 1
        return out


def exact_law(
    peer: Peer,
    gaussian: sk.Gaussian,
    process: sk.GaussianDiffusion,
    nfe: int,
    initial_std: float | Tensor | None = None,
) -> tuple[Tensor, Tensor] | None:
    """(mean, std), (D,) each in the eigenbasis of ``gaussian``, of the output.

    initial_std: of the start N(0, initial_std^2), a number or (D,); the prior's unless given.

    None where the peer has no run of so few evaluations. Raises ValueError where the peer is not affine:
    then a run with random noise differs from what its impulses predict.
    """
    mean = gaussian.to_basis(gaussian.mean[None])[0].double()
    diagonal = sk.Gaussian(mean, variance=gaussian.eigenvalues)
    model = diagonal.denoiser(process)
    std = process.prior_std() if initial_std is None else initial_std

    def run(start: Tensor, fill: Callable[[int, Tensor], object]) -> tuple[Tensor | None, int]:
        with Draws(len(start), fill) as draws:
            x = peer.run(model, start, nfe)
        return x, draws.count

    first, draws = run(torch.zeros(3, mean.numel(), dtype=torch.float64), lambda k, noise: noise.zero_())
    if first is None:
        return None
    start = torch.zeros(draws + 3, mean.numel(), dtype=torch.float64)
    start[1] = std
    generator = torch.Generator().manual_seed(0)
    xi = torch.randn(draws + 1, mean.numel(), generator=generator, dtype=torch.float64)
    start[-1] = std * xi[-1]

    def impulse(k: int, noise: Tensor) -> None:
        noise.zero_()
        noise[k + 2] = 1.0
        noise[-1] = xi[k]

    x, _ = run(start, impulse)
    assert x is not None
    base, response, mixed = x[0], x[1:-1] - x[0], x[-1]
    predicted = base + xi[-1] * response[0] + (xi[:-1] * response[1:]).sum(0)
    scale = response.abs().sum(0) + base.abs()
    if bool(((mixed - predicted).abs() > AFFINE_TOLERANCE * scale).any()):
        raise ValueError(
            f"{peer.name} is not affine: a random run differs from its impulses' prediction by "
            f"{float((mixed - predicted).abs().max()):.3g}. Next: compare it by Monte Carlo."
        )
    return base, response.square().sum(0).sqrt()


def exact_w2(
    peer: Peer,
    gaussian: sk.Gaussian,
    process: sk.GaussianDiffusion,
    nfe: int,
    *,
    against: str = "data",
) -> float | None:
    """W2 distance of the output's exact law to the data, or ``against="t_min"`` to the marginal there.

    As `sdekit.certify(...).w2` for samplers of this package. None, or ValueError, as in `exact_law`.
    """
    law = exact_law(peer, gaussian, process, nfe)
    if law is None:
        return None
    alpha, sigma = (1.0, 0.0)
    if against == "t_min":
        alpha, sigma = float(process.alpha(process.t_min)), float(process.sigma(process.t_min))
    elif against != "data":
        raise ValueError(f"against must be 'data' or 't_min', got {against!r}.")
    mean = alpha * gaussian.to_basis(gaussian.mean[None])[0].double()
    std = torch.sqrt(alpha**2 * gaussian.eigenvalues.double() + sigma**2)
    return float(torch.sqrt((law[0] - mean).square().sum() + (law[1] - std).square().sum()))
