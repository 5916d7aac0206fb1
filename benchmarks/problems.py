"""The problems of the accuracy benchmark: a model, starts at t_max, and where its flow takes them at t_min.

closed-form   laws with an exact denoiser, at least two of each kind: Gaussians, mixtures in 2-D and in many
              dimensions, real data with a small bandwidth, curves, trees; on VP and EDM, some on the
              rectified flow.
learned       the networks of `benchmarks.networks`, each against its own flow.

The probability flow is solved in y = z/S, S = sqrt(s^2 + rho^2), phi = arctan(rho/s), dy/dphi = -F, with
F = (D - (s/S)^2 z) S/(rho s); z = x/alpha, rho = sigma/alpha, D the x0-prediction, s the data's standard
deviation. y is of order one from pure noise, where rho may be infinite, down to the data. For Gaussians the
map is in closed form.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

import sdekit as sk
from benchmarks import networks
from benchmarks._cache import digest, folder, keep_tensor
from benchmarks._laws import LAWS
from sdekit.score.model import ExactDenoiser
from sdekit.sde.gaussian import GaussianDiffusion
from sdekit.sde.rows import over_event
from sdekit.solvers.runge_kutta import DormandPrince

__all__ = ["CLOSED_FORM", "LAWS", "LEARNED", "Problem", "closed_form", "flow_map", "learned", "problem"]

SAMPLES = {"closed-form": 128, "vectors": 128, "images": 64}
TOLERANCE = {"closed-form": 1e-10, "learned": 1e-8}
"""rtol and atol of the reference, in units of y."""


@dataclass(frozen=True)
class NearlyRectified(sk.RectifiedFlow):
    """The rectified flow from t = 0.999, since the libraries compared with need a finite sigma/alpha."""

    t_max = 0.999


PROCESSES: dict[str, Callable[[], GaussianDiffusion]] = {
    "VP": sk.VP,
    "EDM": sk.EDM,
    "RectifiedFlow": NearlyRectified,
}


@dataclass(frozen=True)
class Problem:
    """A model, start (n, *event) at its t_max and exact (n, *event) at its t_min, both float64."""

    name: str
    kind: str
    model: sk.Denoiser
    start: Tensor
    exact: Tensor

    @property
    def suite(self) -> str:
        """ "closed-form" or "learned"."""
        return "learned" if self.kind == "learned" else "closed-form"

    def distance(self, x: Tensor) -> Tensor:
        """RMS distance over the elements of each sample to the exact end, (n,)."""
        return (x - self.exact).square().flatten(1).mean(1).sqrt()


CLOSED_FORM = tuple(f"{law}, {process}" for law, (_, _, where) in LAWS.items() for process in where)
LEARNED = tuple(networks.NETWORKS)


class Spherical(ExactDenoiser):
    """E[x0 | x_t] of sum_k w_k N(m_k, v_k I) in plain matrix products, ten times faster than the law's own.

        D = sum_k r_k (m_k + (alpha v_k/u_k) (x - alpha m_k)),  u_k = alpha^2 v_k + sigma^2,
        r_k ~ w_k u_k^(-d/2) exp(-|x - alpha m_k|^2 / (2 u_k)).

    The law's own keeps a row's bits whatever the batch; here they may differ in the last place.
    """

    row_invariant = False

    def __init__(self, law: sk.GaussianMixture | sk.Empirical, process: GaussianDiffusion) -> None:
        if isinstance(law, sk.Empirical):
            means = law.data.double()
            log_w = torch.zeros(len(means), dtype=torch.float64)
            v = torch.full((len(means),), law.bandwidth**2, dtype=torch.float64)
        else:
            means, log_w, v = law.means, law.weights.log(), law.eigenvalues[:, 0]
        half = 0.5 * means.square().sum(1)
        transposed = means.mT.contiguous()

        def denoise(x: Tensor, alpha: float, sigma: float) -> Tensor:
            u = alpha**2 * v + sigma**2
            squares = 0.5 * x.square().sum(1, keepdim=True)
            logits = (alpha * (x @ transposed) - alpha**2 * half - squares) / u
            logits += log_w - 0.5 * x.shape[1] * u.log()
            r = logits.softmax(1)
            gain = alpha * v / u
            return r @ ((1 - alpha * gain)[:, None] * means) + (r @ gain)[:, None] * x

        known = {"data_std": law.data_std, "data_spread": law.data_spread}
        super().__init__(denoise, process, event_shape=law.event_shape, target=law, **known)


def problem(name: str) -> Problem:
    """The problem of that name, of CLOSED_FORM or LEARNED; its reference is solved once and kept."""
    if name in LEARNED:
        return _learned(name)
    label, _, process = name.rpartition(", ")
    kind, make, _ = LAWS[label]
    law = make()
    exactly = law.denoiser(PROCESSES[process]())
    model = exactly if isinstance(law, sk.Gaussian) else Spherical(law, exactly.process)
    start = model.process.prior((SAMPLES["closed-form"], *law.event_shape), seed=1, dtype=torch.float64)
    if isinstance(law, sk.Gaussian):
        return Problem(name, kind, model, start, gaussian_map(law, model.process, start))
    tolerance = TOLERANCE["closed-form"]
    # a denoiser at one point tells one law from another
    key = digest(name, start, exactly.x0(start, 0.5 * model.process.t_max), tolerance)
    exact = keep_tensor(folder("exact") / f"{key}.pt", lambda: flow_map(exactly, start, tolerance))
    return Problem(name, kind, model, start, exact)


def closed_form(names: Iterable[str] = CLOSED_FORM) -> list[Problem]:
    """The closed-form suite, or those of it that are named."""
    return [problem(name) for name in names]


def learned(names: Iterable[str] = LEARNED) -> list[Problem]:
    """The learned suite, or those of it that are named; networks that are missing are trained first."""
    return [problem(name) for name in names]


class Single(nn.Module):
    """A float32 network behind a float64 state: half the time, rounding far below the errors."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        out: Tensor = self.net(x.float(), t.float())
        return out.to(x.dtype)


def _learned(name: str) -> Problem:
    recipe, trained = networks.NETWORKS[name], networks.network(name)
    net = trained.net
    assert isinstance(net, nn.Module)
    if recipe.guided:
        assert isinstance(net, networks.LabelledMLP)
        net = networks.Guided(net)
    net.requires_grad_(False)

    def model(net: nn.Module) -> sk.Denoiser:
        known = trained.data_std, trained.data_spread
        return sk.Denoiser(net, trained.process, trained.predicts, trained.time, *known)

    event = recipe.data()[0].shape[1:]
    count = SAMPLES["images" if len(event) == 3 else "vectors"]
    start = trained.process.prior((count, *event), seed=1, dtype=torch.float64)
    tolerance = TOLERANCE["learned"]
    key = digest(name, start, tolerance, *trained.net.state_dict().values())

    def solve() -> Tensor:
        return flow_map(model(copy.deepcopy(net).double()), start, tolerance)

    exact = keep_tensor(folder("exact") / f"{key}.pt", solve)
    return Problem(name, "learned", model(Single(net)), start, exact)


def gaussian_map(law: sk.Gaussian, process: GaussianDiffusion, x: Tensor) -> Tensor:
    """x sqrt((alpha^2 v + sigma^2)_{t_min} / (alpha^2 v + sigma^2)_{t_max}) for zero mean and variances v."""
    v = law.cov.diagonal()
    ends = [float(process.alpha(t)) ** 2 * v + float(process.sigma(t)) ** 2 for t in _ends(process)]
    return x * torch.sqrt(ends[1] / ends[0])


def flow_map(model: sk.Denoiser, start: Tensor, tolerance: float) -> Tensor:
    """start (n, *event) at t_max, carried to t_min by the model's probability flow, float64.

    Dormand-Prince with control per sample in y and phi (see the top), rtol = atol = ``tolerance``.
    """
    process, s = model.process, float(model.data_std or 1.0)

    def place(t: float) -> tuple[float, float]:
        """phi, and N = alpha S, with which x = N y."""
        alpha, sigma = float(process.alpha(t)), float(process.sigma(t))
        return math.atan2(sigma, alpha * s), math.hypot(alpha * s, sigma)

    def velocity(y: Tensor, phi: Tensor) -> Tensor:
        t = process.t_of_rho((s * torch.tan(phi)).clamp(lowest, highest))
        alpha, sigma = process.alpha(t), process.sigma(t)
        norm = torch.sqrt((alpha * s) ** 2 + sigma**2)
        denoised = model.x0(over_event(norm, y) * y, t)
        return -(denoised - over_event(s * torch.cos(phi), y) * y) / over_event(s * torch.sin(phi), y)

    highest, lowest = (float(process.rho(t)) for t in _ends(process))
    (first, norm), (last, end) = (place(t) for t in _ends(process))
    solver = DormandPrince(compact=model.row_invariant)
    with torch.no_grad():
        run = sk.solve(
            sk.ODE(velocity), start / norm, (first, last), solver=solver, rtol=tolerance, atol=tolerance
        )
    return end * run.x


def _ends(process: GaussianDiffusion) -> tuple[float, float]:
    return float(process.t_max), float(process.t_min)
