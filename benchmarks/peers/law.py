"""Exact law of a peer's output on Gaussian data, by `sdekit.certify_response` on its unmodified code.

The denoiser is that of the data in their eigenbasis, where every direction is an element of the state.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

import sdekit as sk
from benchmarks.peers.base import Peer
from sdekit.certify.response import ResponseCertificate
from sdekit.certify.response.impulses import Normals
from sdekit.errors import NotAffineError

__all__ = ["Draws", "certificate", "exact_law", "exact_w2"]


class Draws(Normals):
    """Hands every normal draw of ``rows`` rows to ``fill(k, draw)``, k its number in the run."""

    def __init__(self, rows: int, fill: Callable[[int, Tensor], object]) -> None:
        def standard(key: object, shape: torch.Size) -> Tensor:
            draw = torch.zeros(shape, dtype=torch.float64)
            if shape[:1] == (rows,):
                fill(self.count, draw)
                self.count += 1
            return draw

        super().__init__(standard)
        self.count = 0


def certificate(
    peer: Peer,
    gaussian: sk.Gaussian,
    process: sk.GaussianDiffusion,
    nfe: int,
    *,
    against: str = "data",
    initial_std: float | Tensor | None = None,
) -> ResponseCertificate | None:
    """The certificate of a peer's run; None where it has no run of so few evaluations.

    initial_std: of the start N(0, initial_std^2), a number or (D,); the prior's unless given.
    Raises NotAffineError where the peer is not affine.
    """
    steps = peer.method.steps(nfe)
    if steps < max(peer.method.fewest, 1):
        return None
    mean = gaussian.to_basis(gaussian.mean[None])[0].double()
    diagonal = sk.Gaussian(mean, variance=gaussian.eigenvalues)
    model = diagonal.denoiser(process)
    std = process.prior_std() if initial_std is None else initial_std

    def run(n: int) -> Tensor:
        x = peer.run(model, std * torch.randn(n, mean.numel(), dtype=torch.float64), nfe)
        assert x is not None
        return x

    return sk.certify_response(
        run,
        diagonal,
        process,
        against=against,
        start_std=std,
        name=peer.name,
        nfe=nfe,
    )


def exact_law(
    peer: Peer,
    gaussian: sk.Gaussian,
    process: sk.GaussianDiffusion,
    nfe: int,
    initial_std: float | Tensor | None = None,
) -> tuple[Tensor, Tensor] | None:
    """(mean, std), (D,) each in the eigenbasis of ``gaussian``, of the output; else as `exact_w2`."""
    found = _found(peer, gaussian, process, nfe, initial_std=initial_std)
    return None if found is None else (found.law.mean, found.law.std)


def exact_w2(
    peer: Peer,
    gaussian: sk.Gaussian,
    process: sk.GaussianDiffusion,
    nfe: int,
    *,
    against: str = "data",
) -> float | None:
    """W2 distance of the output's exact law to the data, or ``against="t_min"`` to the marginal there.

    None where the peer has no run of so few evaluations, ValueError where it is not affine.
    """
    found = _found(peer, gaussian, process, nfe, against=against)
    return None if found is None else found.w2


def _found(
    peer: Peer,
    gaussian: sk.Gaussian,
    process: sk.GaussianDiffusion,
    nfe: int,
    *,
    against: str = "data",
    initial_std: float | Tensor | None = None,
) -> ResponseCertificate | None:
    try:
        return certificate(peer, gaussian, process, nfe, against=against, initial_std=initial_std)
    except NotAffineError as error:
        raise ValueError(f"{peer.name} is not affine: {error}") from error
