"""Losses as `fit` calls them: every name of `sdekit.losses`, and any callable, behind one signature.

    objective(model, x, seed, draw) -> (B,)

model is a `Denoiser` where the process has alpha(t) and sigma(t), the network itself where it has not.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from sdekit.errors import ShapeError, unknown_name
from sdekit.matching import losses
from sdekit.matching.losses.fields import normals, rows
from sdekit.matching.losses.times import P_MEAN, P_STD
from sdekit.noise import Purpose
from sdekit.score.model import Denoiser
from sdekit.sde.base import SDE
from sdekit.sde.diffusion import RectifiedFlow
from sdekit.sde.gaussian import GaussianDiffusion

__all__ = ["LOSSES", "Objective", "objective"]

#: Losses of a process with alpha(t) and sigma(t).
NOISED = ("denoising", "likelihood_weighted", "flow_matching", "multi_noise")
#: Losses at points, which are data (no process) or noised data at times of training.
POINTS = ("explicit", "implicit", "sliced", "finite_difference")
#: Losses of a network alone.
ALONE = ("one_noise", "multi_noise", "interpolant", "flow_matching")
LOSSES = tuple(dict.fromkeys((*NOISED, *POINTS, *ALONE, "sliced_sde")))

OWN = ("model", "net", "score", "x", "x0", "x1", "sde", "seed", "draw", "noise")
"""What `fit` gives to a loss itself."""
OTHERWISE = {
    "optimizer": "optimiser=", "learning_rate": "lr=", "epochs": "steps=", "num_steps": "steps=",
    "scheduler": "schedule=", "grad_clip": "clip=", "ema_decay": "ema=",
    "callbacks": "callback=, one function",
}  # fmt: skip
"""What others call the arguments of `fit`."""
AT_TIMES = ("weighting", "times", "stratified")
"""Options that `noised` adds to the losses at points."""
POINT_WEIGHTINGS = ("sigma^2", "none")
UNBOUNDED = ("eps", "score", "x0")
"""Predictions whose velocity on straight lines is infinite where alpha = 0 or sigma = 0."""


@dataclass(frozen=True)
class Objective:
    """A loss with its options and the process it belongs to."""

    name: str
    function: Callable[..., Tensor]
    process: SDE | None
    options: Mapping[str, Any] = field(default_factory=dict)

    def __call__(self, model: Any, x: Tensor, seed: int, draw: int) -> Tensor:
        """One value a sample, (B,). Raises ShapeError for a loss of another shape."""
        keep = {"seed": seed, "draw": draw, **self.options}
        if self.name in POINTS:
            return at_points(self.function, model, x, keep)
        if self.name == "sliced_sde":
            return self.function(model, self.process, x, **keep)
        if self.name == "interpolant":
            if x.shape[1] != 2:
                raise ShapeError(
                    f"loss 'interpolant' takes pairs: data of shape (N, 2, *event), got {tuple(x.shape)}. "
                    f"Next: torch.stack([x0, x1], dim=1)."
                )
            return self.function(model, x[:, 0], x[:, 1], **keep)
        if self.name == "multi_noise" and isinstance(model, Denoiser):
            return self.function(model.net, x, **keep)
        values = self.function(model, x, **keep)
        if not isinstance(values, Tensor) or values.shape != x.shape[:1]:
            got = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
            raise ShapeError(
                f"loss must return shape ({len(x)},), one value for each sample, got {got}. Likely cause: a "
                f"mean over the batch. Next: values.flatten(1).sum(dim=1)."
            )
        return values

    def elements(self, x: Tensor) -> int:
        """D, the elements of one prediction for x: half of those of a pair."""
        return x[0].numel() // (2 if self.name == "interpolant" else 1)


def objective(
    loss: str | Callable[..., Tensor], model: Any, process: SDE | None, options: Mapping[str, Any], event: int
) -> Objective:
    """The objective of a run, checked: its name, its process, its options.

    event: axes of one sample. Raises UnknownNameError; TypeError for an option the loss does not take, or a
    process it has no use for; ValueError for a process on which the loss means nothing.
    """
    if callable(loss) and loss is getattr(losses, getattr(loss, "__name__", ""), None):
        loss = str(loss.__name__)  # one of sdekit.losses itself
    if callable(loss):
        _check_call(loss, options)
        name = getattr(loss, "__qualname__", type(loss).__name__)
        return Objective(name if name not in LOSSES else f"{name} (given)", loss, process, dict(options))
    if loss == "contrastive_divergence":
        raise TypeError("contrastive divergence needs samples of the model. Next: sdekit.fit_energy.")
    if loss not in LOSSES:
        raise unknown_name("loss", loss, LOSSES)
    function = getattr(losses, loss)
    _check_process(loss, model, process, event)
    _check_options(loss, function, options)
    given = dict(options)
    if loss == "denoising" and given.get("times") is None and isinstance(model, Denoiser):
        law = _edm_law(model)
        given |= {} if law is None else {"times": law}
    if loss == "sliced_sde" and isinstance(process, GaussianDiffusion):
        given.setdefault("span", (losses.first_training_time(process), process.finite_t_max))
    _check_complete(loss, function, given)
    if "path_steps" in given:
        given["steps"] = given.pop("path_steps")
    return Objective(loss, function, process, given)


def at_points(loss: Callable[..., Tensor], model: Any, x: Tensor, options: Mapping[str, Any]) -> Tensor:
    r"""A loss at points, at the data themselves or, of a `Denoiser`, at w(t) loss(model, x_t, t),

    x_t = alpha_t x + sigma_t eps,   w = sigma^2 unless ``weighting`` is "none" or a function of t (B,).
    """
    own = dict(options)
    seed, draw = own["seed"], own["draw"]
    if loss is losses.explicit:
        del own["seed"], own["draw"]
    weighting, law, stratified = (
        own.pop(key, default) for key, default in zip(AT_TIMES, ("sigma^2", None, True), strict=True)
    )
    if not isinstance(model, Denoiser):
        return loss(model, x, **own)
    if not callable(weighting) and weighting not in POINT_WEIGHTINGS:
        raise unknown_name("weighting of a loss at points", weighting, POINT_WEIGHTINGS)
    t = losses.training_times(
        model.process, len(x), law=law, stratified=stratified, seed=seed, draw=draw, device=x.device
    )
    node = model.node(t)
    eps = normals(x, seed, draw, None, Purpose.TRAINING)
    value = loss(model, rows(node.alpha, x) * x + rows(node.sigma, x) * eps, t=t, **own)
    if callable(weighting):
        factor: Tensor = weighting(t)
        return value * factor.to(value)
    return value if weighting == "none" else value * torch.as_tensor(node.sigma).square().to(value)


def _edm_law(model: Denoiser) -> Callable[[Tensor], Tensor] | None:
    """EDM's law of noise levels, ln(sigma/alpha) ~ N(-1.2 + ln(s/0.5), 1.2^2), for EDM's network."""
    if model.predicts != "edm" or model.data_std is None:
        return None
    mean = P_MEAN + float(torch.tensor(model.data_std / 0.5, dtype=torch.float64).log())
    return losses.log_normal_times(model.process, mean, P_STD)


def _check_call(loss: Callable[..., Tensor], options: Mapping[str, Any]) -> None:
    """Whether a loss of one's own takes what it will be given."""
    try:
        inspect.signature(loss, follow_wrapped=False).bind("model", "x", seed=0, draw=0, **options)
    except TypeError as error:
        given = ", ".join(("model, x, seed=, draw=", *(f"{k}=" for k in options)))
        raise TypeError(
            f"the loss is called as loss({given}), and cannot be: {error}. Next: def loss(model, x, *, seed, "
            f"draw), with the options that are given to fit."
        ) from None
    except ValueError:  # no signature to be had
        return


def _check_process(loss: str, model: Any, process: SDE | None, event: int) -> None:
    """Whether this loss means something on this process."""
    gaussian = isinstance(process, GaussianDiffusion)
    if loss == "sliced_sde":
        if process is None:
            raise TypeError("loss 'sliced_sde' needs the SDE. Next: fit(net, data, sde, loss='sliced_sde').")
        return
    if process is None and loss not in (*POINTS, *ALONE):
        raise TypeError(
            "fit needs the process that adds the noise. Next: fit(net, data, sdekit.VP()); without one, "
            f"loss=... is one of {', '.join((*POINTS, *ALONE))}."
        )
    if process is None:
        if loss == "interpolant" and event < 2:
            raise ShapeError(
                "loss 'interpolant' takes pairs: data of shape (N, 2, *event), the samples at t = 0 and at "
                "t = 1. Next: torch.stack([x0, x1], dim=1)."
            )
        return
    if not gaussian:
        raise TypeError(
            f"loss {loss!r} needs a process with alpha(t) and sigma(t), got {type(process).__name__}. Next: "
            f"loss='sliced_sde', which takes any SDE."
        )
    if loss in ("one_noise", "interpolant"):
        raise TypeError(f"loss {loss!r} adds its own noise. Next: fit(net, data, loss={loss!r}), no process.")
    if loss == "flow_matching" and not isinstance(process, RectifiedFlow):
        raise ValueError(
            f"flow matching is on straight lines, the paths of RectifiedFlow, got {process!r}. Next: "
            f"process=sdekit.RectifiedFlow(); the velocity of another process is learnt by loss='denoising', "
            f"predicts='flow'."
        )
    if loss == "flow_matching" and model.predicts in UNBOUNDED:
        raise ValueError(
            f"flow matching compares velocities, and one made of {model.predicts!r} is infinite at an end of "
            f"the line, so that the loss has no mean. Next: predicts='flow', or loss='denoising'."
        )
    assert isinstance(process, GaussianDiffusion)
    if loss == "multi_noise" and float(process.alpha(process.t_max)) != 1.0:
        raise ValueError(
            f"loss 'multi_noise' adds noise to data that are not scaled, alpha = 1, got {process!r}. Next: "
            f"sdekit.VE() or sdekit.EDM(), or loss='denoising'."
        )
    if loss == "multi_noise" and not (model.predicts == "score" and model.time == "sigma"):
        raise ValueError(
            f"loss 'multi_noise' trains a score of the noise level, got predicts={model.predicts!r}, "
            f"time={model.time!r}. Next: predicts='score', time='sigma' on sdekit.VE(), or loss='denoising'."
        )


def _check_complete(loss: str, function: Callable[..., Tensor], given: Mapping[str, Any]) -> None:
    parameters = inspect.signature(function).parameters.values()
    needed = [p.name for p in parameters if p.default is p.empty and p.name not in (*OWN, *given)]
    if needed:
        raise TypeError(
            f"loss {loss!r} needs {', '.join(needed)}, which was not given. Next: fit(..., loss={loss!r}, "
            f"{needed[0]}=...), see sdekit.losses.{loss}."
        )


def _check_options(loss: str, function: Callable[..., Tensor], options: Mapping[str, Any]) -> None:
    known = [name for name in inspect.signature(function).parameters if name not in OWN]
    known += AT_TIMES if loss in POINTS else ()
    if loss == "sliced_sde":
        known[known.index("steps")] = "path_steps"  # fit has steps of its own
    for name in options:
        if name not in known:
            raise TypeError(
                f"{name!r} is neither an argument of fit nor an option of loss {loss!r}, which takes "
                f"{', '.join(known)}. Next: {OTHERWISE.get(name, 'check the spelling')}."
            )
