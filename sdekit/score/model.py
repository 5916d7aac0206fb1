"""Denoiser: any network, with what it predicts and the time it expects, as a score model of a process."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from sdekit._typing import Field, Number
from sdekit.errors import (
    ShapeError,
    changed_in_place,
    check_argument_order,
    check_call,
    check_output,
    check_positive,
    check_state_time,
    unknown_name,
)
from sdekit.score.predictions import KINDS, Node, conversion
from sdekit.sde.gaussian import GaussianDiffusion
from sdekit.sde.preserving import DiscreteVP
from sdekit.sde.rows import over_event

__all__ = ["Denoiser", "ExactDenoiser"]

#: What a network may be said to predict -> the canonical kind (see `sdekit.score.predictions`).
PREDICTS = {
    "eps": "eps",
    "x0": "x0",
    "v": "v",
    "score": "score",
    "flow": "velocity",
    "velocity": "velocity",
    "edm": "F",
}
TIMES = ("t", "index", "sigma")


class Denoiser:
    r"""A network as a score model: every prediction of $x_t = \alpha_t x_0 + \sigma_t \varepsilon$ from one.

        score = -eps / sigma,   x0 = (x + sigma^2 score) / alpha,   v = alpha eps - sigma x0,
        velocity = (dalpha/dt) x0 + (dsigma/dt) eps      (eps - x0 on the rectified flow).

    Parameters
    ----------
    net
        Callable ``net(x, time)`` with x (B, *event) and time (B,), both of x's dtype and device; it
        returns the shape of x.
    process
        The `GaussianDiffusion` on which the network was trained.
    predicts
        "eps", "x0", "v", "score", "flow" (the velocity above) or "edm": the network gets c_in x and
        c_noise = ln(sigma/alpha)/4 and returns F of Karras et al. 2022, equation 7.
    time
        What the network is given as time: "t", "index" (999 t, or t - 1 for `DiscreteVP`, the
        position in the table), "sigma" (sigma(t); sigma/alpha for "edm" is built in), or a callable
        of the (B,) tensor t.
    data_std
        s = sqrt(tr C / D), EDM's sigma_data, C the data's covariance. Unknown: `sdekit.pilot`
        measures it at the first use that needs it. Required for "edm".
    data_spread
        sqrt(tr C^2 / tr C), at least s; equal to s when s alone is given.
    network_dtype
        torch.bfloat16 or torch.float16: the network gets x in it and runs under `torch.autocast`, whatever
        the dtype of its weights; its output is cast back, so that the state keeps float32. Time is never
        rounded: bfloat16 cannot tell index 999 from 1000. None: x as it is.

    Raises
    ------
    ArgumentOrderError: ``net(t, x)``. UnknownNameError: ``predicts`` or ``time`` unknown.
    ShapeError: the network's output has not the shape of x. ValueError: the network changes x in place.
    EndpointError: the network's prediction carries no information on the one asked for (eps at alpha = 0).

    References
    ----------
    Salimans and Ho 2022 (v); Karras et al. 2022, equation 7 (F); Lipman et al. 2023 (flow).
    """

    #: True for closed-form laws: rows never influence each other's bits.
    row_invariant: ClassVar[bool] = False

    def __init__(
        self,
        net: Field,
        process: GaussianDiffusion,
        predicts: str = "eps",
        time: str | Callable[[Tensor], Tensor] = "t",
        data_std: float | None = None,
        data_spread: float | None = None,
        network_dtype: torch.dtype | None = None,
    ) -> None:
        if not callable(net):
            raise TypeError(f"net must be callable as net(x, t), got {type(net).__name__}.")
        check_argument_order(net, "net")
        self._check_signature(net)
        if not isinstance(process, GaussianDiffusion):
            raise TypeError(
                f"process must be a GaussianDiffusion (VP, SubVP, VE, Cosine, EDM, RectifiedFlow, "
                f"DiscreteVP or your own alpha(t), sigma(t)), got {type(process).__name__}. "
                f"Next: for a score on another SDE pass it to sdekit.reverse directly."
            )
        if predicts not in PREDICTS:
            raise unknown_name("prediction", predicts, PREDICTS)
        if isinstance(time, str) and time not in TIMES:
            raise unknown_name("time convention", time, TIMES)
        if time == "index" and process.t_max != 1.0 and not isinstance(process, DiscreteVP):
            raise ValueError(
                f"time='index' is 999 t on processes of unit time and the position in the table on "
                f"DiscreteVP; {process!r} is neither. Next: time='t', 'sigma', or a callable of t."
            )
        if data_std is None and data_spread is not None:
            raise ValueError("data_spread was given without data_std. Next: pass both, or neither.")
        if predicts == "edm" and data_std is None:
            raise ValueError(
                "predicts='edm' needs data_std (EDM's sigma_data): c_skip, c_out and c_in depend on it."
            )
        if network_dtype not in (None, torch.bfloat16, torch.float16):
            raise ValueError(
                f"network_dtype must be torch.bfloat16, torch.float16 or None, got {network_dtype!r}. Next: "
                f"for a network and a state of another dtype pass dtype= to sdekit.sample and cast the net."
            )
        self.net = net
        self.network_dtype = network_dtype
        self.process = process
        self.predicts = predicts
        self.time = time
        self.data_std = None if data_std is None else check_positive(data_std, "data_std")
        self.data_spread = (
            self.data_std if data_spread is None else check_positive(data_spread, "data_spread")
        )
        #: (data_std, data_spread) per event shape, found by a pilot run where data_std is unknown.
        self.measured: dict[tuple[int, ...], tuple[float, float]] = {}

    def _check_signature(self, net: Field) -> None:
        cause = "a network without a time, or of more than x and t"
        action = "lambda x, t: net(x), or net(x, t, what else it takes)"
        if getattr(net, "classes", None) is not None:
            cause = "a network of classes, whose label has no default"
            action = "sdekit.matching.ClassDenoiser(net, process).given(0), the model of one class"
        check_call(net, ("x", "t"), "net", cause, action)

    @property
    def network(self) -> Field:
        """What is called with (x, t): ``net`` itself, or ``net`` in ``network_dtype``."""
        return self.net if self.network_dtype is None else _in_dtype(self.net, self.network_dtype)

    @property
    def kind(self) -> str:
        """The canonical name of what the network predicts, one of `sdekit.score.predictions.KINDS`."""
        return PREDICTS[self.predicts]

    @property
    def defined_at_pure_noise(self) -> bool:
        """False where alpha = 0 leaves x0 undetermined: eps and score networks, and c_noise of edm."""
        return self.predicts not in ("eps", "score", "edm")

    def node(self, t: Number) -> Node:
        """alpha, sigma and their derivatives at t, float64."""
        t = torch.as_tensor(t, dtype=torch.float64)
        p = self.process
        return Node(t, p.alpha(t), p.sigma(t), p.dalpha(t), p.dsigma(t))

    def native(self, x: Tensor, node: Node, t: Tensor | None = None) -> Tensor:
        """The network's own prediction at x (B, *event); node holds floats or (B,) float64 tensors.

        ``t``: the node's time on x's device and dtype, where the caller has it already.
        """
        if t is None:
            t = torch.as_tensor(node.t, dtype=x.dtype, device=x.device)
        batch_t = t.expand(x.shape[0])
        if self.predicts == "edm":
            assert self.data_std is not None
            rho = torch.as_tensor(node.sigma, dtype=torch.float64) / node.alpha
            norm = torch.sqrt(
                torch.as_tensor(node.alpha, dtype=torch.float64) ** 2 * self.data_std**2
                + torch.as_tensor(node.sigma, dtype=torch.float64) ** 2
            )
            noise_level = _beside(rho.log() / 4, x).expand(x.shape[0])
            return _call(self.network, x * over_event(_beside(1 / norm, x), x), noise_level)
        if callable(self.time):
            batch_t = self.time(batch_t)
        elif self.time == "index":
            batch_t = batch_t - 1 if isinstance(self.process, DiscreteVP) else batch_t * 999
        elif self.time == "sigma":
            batch_t = _beside(torch.as_tensor(node.sigma, dtype=torch.float64), x).expand(x.shape[0])
        return _call(self.network, x, batch_t)

    def evaluate(
        self, kind: str, x: Tensor, node: Node, t: Tensor | None = None, data_std: float | None = None
    ) -> Tensor:
        """``kind`` (x0, eps, v, F, score or velocity) at x: the native prediction, converted once.

        ``data_std``: the s of the F asked for, the model's own unless given.
        """
        if kind == self.kind and kind not in ("score", "F"):  # what a lowered plan asks for at every step
            return self.native(x, node, t)
        if kind not in KINDS:
            raise unknown_name("prediction", kind, KINDS)
        p, q = conversion(self.kind, kind, node, self.data_std, data_std)
        return _affine(p, x, q, self.native(x, node, t))

    def predict(self, kind: str, x: Tensor, t: Number) -> Tensor:
        """``kind`` at x (B, *event) and t: a float, shape () or (B,)."""
        x = check_state_time(x, t, kind)
        node = self.node(t)
        if isinstance(node.t, Tensor) and node.t.ndim == 0:
            node = Node(*(float(value) for value in node))
        return self.evaluate(kind, x, node)

    def x0(self, x: Tensor, t: Number) -> Tensor:
        """E[x0 | x_t = x], shape of x."""
        return self.predict("x0", x, t)

    def eps(self, x: Tensor, t: Number) -> Tensor:
        """E[eps | x_t = x] = -sigma score, shape of x."""
        return self.predict("eps", x, t)

    def score(self, x: Tensor, t: Number) -> Tensor:
        """grad log p_t(x), shape of x."""
        return self.predict("score", x, t)

    def v(self, x: Tensor, t: Number) -> Tensor:
        """E[alpha eps - sigma x0 | x_t = x], shape of x."""
        return self.predict("v", x, t)

    def velocity(self, x: Tensor, t: Number) -> Tensor:
        """The probability flow's dx/dt = (dalpha/dt) x0 + (dsigma/dt) eps, shape of x."""
        return self.predict("velocity", x, t)

    def __repr__(self) -> str:
        name = type(self.net).__name__ if isinstance(self.net, torch.nn.Module) else "net"
        return f"Denoiser({name}, {self.process!r}, predicts={self.predicts!r}, data_std={self.data_std})"


def _beside(value: Tensor, x: Tensor) -> Tensor:
    """A coefficient in x's dtype on x's device; a number of the host is filled in there, not copied."""
    if value.ndim == 0 and value.is_cpu and not value.requires_grad:
        return x.new_full((), float(value))
    return value.to(dtype=x.dtype, device=x.device)


def _in_dtype(net: Field, dtype: torch.dtype) -> Field:
    """``net`` given x in ``dtype``, its matrix products in ``dtype``; norms and time as autocast has them."""

    def call(x: Tensor, t: Tensor) -> Tensor:
        with torch.autocast(x.device.type, dtype, cache_enabled=False):
            return net(x.to(dtype), t)

    return call


def _call(net: Field, x: Tensor, t: Tensor) -> Tensor:
    """net(x, t), of the shape of x, in the dtype of x (mixed precision returns another), x untouched."""
    before = None if x.is_inference() else x._version
    try:
        value = net(x, t)
    except RuntimeError as error:
        _check_dtype(net, x, error)
        raise
    out = check_output(value, x, "net")
    if before is not None and x._version != before:
        raise changed_in_place("net")
    if not out.is_floating_point():
        raise ShapeError(
            f"net must return a floating tensor, got dtype {out.dtype}. Likely cause: labels or indices in "
            f"place of a prediction. Next: return one number for each element of x."
        )
    return out if out.dtype is x.dtype else out.to(x.dtype)


def _check_dtype(net: Field, x: Tensor, error: Exception) -> None:
    """Raises ShapeError where the failed net has weights of another dtype than x."""
    weights = net.parameters() if isinstance(net, torch.nn.Module) else ()
    own = next((w.dtype for w in weights if w.is_floating_point()), x.dtype)
    if own != x.dtype:
        name = str(own).removeprefix("torch.")
        raise ShapeError(
            f"net has {name} weights and failed on x of dtype {x.dtype}: {error}. Likely cause: numpy's "
            f"float64 data. Next: x.to({own}), or net.to(x.dtype)."
        ) from error


def _affine(p: Any, x: Tensor, q: Any, out: Tensor) -> Tensor:
    """p x + q out: coefficients float or (B,) float64; no fused multiply-add, so rows keep their bits."""
    parts = []
    for coefficient, value in ((p, x), (q, out)):
        if isinstance(coefficient, Tensor):
            parts.append(value * over_event(coefficient.to(x.device), x))
        elif coefficient == 1.0:
            parts.append(value)
        elif coefficient != 0.0:
            parts.append(value * coefficient)
    return parts[0] if len(parts) == 1 else parts[0] + parts[1]


class ExactDenoiser(Denoiser):
    """E[x0 | x_t] of a closed-form law: ``fn(x, alpha, sigma)``, with alpha and sigma exact in float64.

    Made by ``target.denoiser(process)``. fn gets floats, or float64 tensors (B,) for a time per row,
    and returns the shape of x. score_fn, of the same form, is the score; without it the score and eps come
    from fn as (alpha fn - x)/sigma^2, which loses digits where sigma is small.
    """

    row_invariant: ClassVar[bool] = True

    def __init__(
        self,
        fn: Callable[[Tensor, Any, Any], Tensor],
        process: GaussianDiffusion,
        *,
        data_std: float,
        data_spread: float | None = None,
        event_shape: Sequence[int] | None = None,
        target: object = None,
        score_fn: Callable[[Tensor, Any, Any], Tensor] | None = None,
    ) -> None:
        super().__init__(lambda x, t: x, process, predicts="x0", data_std=data_std, data_spread=data_spread)
        self.fn = fn
        self.event_shape = None if event_shape is None else tuple(event_shape)
        self.target = target
        self.score_fn = score_fn

    def evaluate(
        self, kind: str, x: Tensor, node: Node, t: Tensor | None = None, data_std: float | None = None
    ) -> Tensor:
        """As `Denoiser.evaluate`; the score and eps = -sigma score straight from ``score_fn``."""
        sigma = node.sigma
        clean = not isinstance(sigma, Tensor) and sigma == 0
        if self.score_fn is None or kind not in ("score", "eps") or clean:
            return super().evaluate(kind, x, node, t, data_std)
        self._check_event(x)
        score = check_output(self.score_fn(x, node.alpha, sigma), x, "the closed-form score")
        return score if kind == "score" else _affine(0.0, x, -sigma, score)

    def _check_event(self, x: Tensor) -> None:
        if self.event_shape is not None and tuple(x.shape[1:]) != self.event_shape:
            raise ShapeError(
                f"x must have shape (B, {', '.join(map(str, self.event_shape))}), the event shape of "
                f"{self.target!r}, got {tuple(x.shape)}. Next: pass shape=(n, *target.event_shape)."
            )

    def native(self, x: Tensor, node: Node, t: Tensor | None = None) -> Tensor:
        """E[x0 | x_t = x] at the node's own alpha and sigma."""
        self._check_event(x)
        return check_output(self.fn(x, node.alpha, node.sigma), x, "the closed-form denoiser")

    def __repr__(self) -> str:
        return f"ExactDenoiser({self.target!r}, {self.process!r})"
