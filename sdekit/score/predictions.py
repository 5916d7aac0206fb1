"""Conversions between what networks predict: one linear formula for all of them.

Every prediction is a fixed combination of clean data and noise, and so is the state:

    x = alpha x0 + sigma eps,      k = k0 x0 + k1 eps.

    x0        (1, 0)
    eps       (0, 1)
    score     (0, -1/sigma)                                 score = -eps / sigma
    v         (-sigma, alpha)                               Salimans and Ho 2022, section 4
    velocity  (dalpha/dt, dsigma/dt)                        eps - x0 on the rectified flow
    F         (sigma / (s N), -alpha s / N), N = sqrt(alpha^2 s^2 + sigma^2)
                                                            Karras et al. 2022, equation 7

So kind b is a combination of the state and kind a, b = p x + q a, with

    det = alpha a1 - sigma a0,   p = (b0 a1 - b1 a0) / det,   q = (alpha b1 - sigma b0) / det.

Zeros are exact (eps to score has p = 0), endpoints are exact limits, and det = 0 says that kind a
carries no information on kind b there (eps where alpha = 0, x0 where sigma = 0).
"""

from __future__ import annotations

import math
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from sdekit._math import sqrt
from sdekit._typing import Number
from sdekit.errors import EndpointError, unknown_name
from sdekit.sde.coefficients import can_read

__all__ = ["KINDS", "Node", "Pair", "conversion"]

Pair: TypeAlias = "tuple[Number, Number]"

KINDS = ("x0", "eps", "v", "F", "score", "velocity")


class Node(NamedTuple):
    """One time of a process: t, alpha, sigma and their time derivatives, floats or float64 tensors."""

    t: Number
    alpha: Number
    sigma: Number
    dalpha: Number = float("nan")
    dsigma: Number = float("nan")


def components(kind: str, node: Node, data_std: Number | None = None) -> Pair:
    """(k0, k1) of ``kind`` = k0 x0 + k1 eps at ``node``.

    Raises EndpointError for the score at sigma = 0, where it is infinite.
    """
    _, alpha, sigma, dalpha, dsigma = node
    match kind:
        case "x0":
            return 1.0, 0.0
        case "eps":
            return 0.0, 1.0
        case "v":
            return -sigma, alpha
        case "velocity":
            if not isinstance(dsigma, Tensor) and not math.isfinite(dsigma):
                raise EndpointError(
                    f"the velocity is infinite at t = {float(node.t):g}, where dsigma/dt is. Next: ask for "
                    f"x0 or v there, or stop at t_min."
                )
            return dalpha, dsigma
        case "score":
            if not isinstance(sigma, Tensor) and sigma == 0:
                raise EndpointError(
                    "the score is infinite where sigma = 0 (clean data). Next: ask for x0 or v there, "
                    "or stop at t_min."
                )
            return 0.0, -1.0 / sigma
        case "F":
            if data_std is None:
                raise ValueError(
                    "the F prediction is scaled by data_std, and none was given. Next: pass data_std."
                )
            norm = sqrt(alpha * alpha * data_std * data_std + sigma * sigma)
            return sigma / (data_std * norm), -alpha * data_std / norm
        case _:
            raise unknown_name("prediction", kind, KINDS)


def conversion(
    source: str,
    wanted: str,
    node: Node,
    source_std: Number | None = None,
    wanted_std: Number | None = None,
) -> Pair:
    """(p, q) with ``wanted = p x + q source`` at ``node``.

    Shapes: floats give floats, tensors broadcast. source_std and wanted_std: the s of an F prediction
    (wanted_std is source_std unless given). Raises EndpointError where ``source`` does not determine
    ``wanted`` (see the module's last paragraph).
    """
    wanted_std = source_std if wanted_std is None else wanted_std
    a0, a1 = components(source, node, source_std)
    if source == wanted and (source != "F" or source_std == wanted_std):
        return 0.0, 1.0
    b0, b1 = components(wanted, node, wanted_std)
    if {source, wanted} == {"eps", "score"}:  # multiples of each other, at alpha = 0 too
        return 0.0, b1 / a1
    det = node.alpha * a1 - node.sigma * a0
    if not isinstance(det, Tensor) and det == 0:
        raise _undetermined(source, wanted, float(node.t), bool(node.alpha == 0))
    p, q = (b0 * a1 - b1 * a0) / det, (node.alpha * b1 - node.sigma * b0) / det
    if isinstance(det, Tensor) and can_read(det):
        bad = ~(torch.isfinite(torch.as_tensor(p)) & torch.isfinite(torch.as_tensor(q))).expand(det.shape)
        if bool(bad.any()):
            alpha, t = (torch.as_tensor(value).expand(det.shape)[bad] for value in (node.alpha, node.t))
            raise _undetermined(source, wanted, float(t[0]), bool(alpha[0] == 0))
    return p, q


def _undetermined(source: str, wanted: str, t: float, pure_noise: bool) -> EndpointError:
    if pure_noise:
        end, cause = "alpha = 0 (pure noise)", "a start at pure noise with a network that predicts it"
        hint = (
            "use a network that predicts x0, v or flow, or a grid that keeps clear of this end (`sample` "
            "does so by itself for such networks)"
        )
    else:
        end, cause = "sigma = 0 (clean data)", "a grid that ends at clean data"
        hint = "stop at t_min; end='clean' adds the clean node"
    return EndpointError(
        f"{source!r} does not determine {wanted!r} at t = {t:g}, where {end}. Likely cause: {cause}. Next: "
        f"{hint}."
    )
