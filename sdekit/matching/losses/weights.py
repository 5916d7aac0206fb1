"""Weightings of denoising score matching, for every prediction type.

An error of one prediction is a multiple of the error of any other: on the line alpha dx0 + sigma deps = 0 of
a given state, k = k0 x0 + k1 eps changes by

    dk = (det_k / alpha) deps,   det_k = alpha k1 - sigma k0,

so a weight w_b on the squared error of b is the weight w_b (det_b / det_k)^2 on that of k.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor

from sdekit.errors import check_positive, unknown_name
from sdekit.score.model import Denoiser
from sdekit.score.predictions import Node, components
from sdekit.sde.gaussian import GaussianDiffusion

__all__ = ["WEIGHTINGS", "Weighting", "min_snr", "weight"]

OfTime: TypeAlias = Callable[[Tensor], Tensor]
Weighting: TypeAlias = "str | OfTime | tuple[str, OfTime]"

WEIGHTINGS = ("native", "noise", "sigma^2", "likelihood", "edm", "min-snr")
GAMMA = 5.0  # Hang et al. 2023


def min_snr(process: GaussianDiffusion, gamma: float = GAMMA) -> tuple[str, OfTime]:
    """min(SNR, gamma) on the error of x0, SNR = (alpha/sigma)^2, as a ``weighting``.

    Hang et al. 2023 (arXiv:2303.09556). Raises ValueError for gamma <= 0.
    """
    bound = check_positive(gamma, "gamma")
    return "x0", lambda t: (process.alpha(t) / process.sigma(t)).square().clamp(max=bound)


def weight(weighting: Weighting, model: Denoiser, node: Node) -> Tensor | None:
    """w(t) on the squared error of what the network predicts, (B,) float64; None for 1.

    Raises UnknownNameError for an unknown name or base, ValueError for "edm" without data_std.
    """
    alpha, sigma = (torch.as_tensor(value) for value in (node.alpha, node.sigma))
    if callable(weighting):
        return weighting(torch.as_tensor(node.t))
    if isinstance(weighting, tuple):
        kind, of_time = weighting
        factor = of_time(torch.as_tensor(node.t))
        return factor if kind == model.kind else factor * _ratio(kind, model, node)
    if weighting not in WEIGHTINGS:
        raise unknown_name("weighting", weighting, WEIGHTINGS)
    if weighting == "native":
        return sigma.square() if model.kind == "score" else None
    if weighting in ("noise", "sigma^2"):
        return None if model.kind == "eps" else _ratio("eps", model, node)
    if weighting == "likelihood":
        # g^2 = 2 (sigma/alpha) det_velocity and det_score = -alpha/sigma: the quotients by alpha cancel
        velocity = _det("velocity", model, node)
        if model.kind == "score":
            return 2.0 * sigma * velocity / alpha
        return 2.0 * alpha * velocity / (sigma * _det(model.kind, model, node).square())
    if weighting == "edm":
        if model.data_std is None:
            raise ValueError(
                "weighting 'edm' needs data_std (EDM's sigma_data). Next: Denoiser(data_std=...)."
            )
        return None if model.kind == "F" else _ratio("F", model, node)
    if model.kind in ("eps", "score"):  # min(1, 5/SNR), at alpha = 0 too
        bounded = (GAMMA * (sigma / alpha).square()).clamp(max=1.0)
        return bounded if model.kind == "eps" else bounded * sigma.square()
    return weight(min_snr(model.process), model, node)


def _det(kind: str, model: Denoiser, node: Node) -> Tensor:
    k0, k1 = components(kind, node, model.data_std)
    return torch.as_tensor(node.alpha * k1 - node.sigma * k0)


def _ratio(kind: str, model: Denoiser, node: Node) -> Tensor:
    """(det_kind / det_native)^2; sigma^{+-2} between eps and score, at alpha = 0 too."""
    sigma = torch.as_tensor(node.sigma)
    if (kind, model.kind) == ("eps", "score"):
        return sigma.square()
    if (kind, model.kind) == ("score", "eps"):
        return 1.0 / sigma.square()
    return (_det(kind, model, node) / _det(model.kind, model, node)).square()
