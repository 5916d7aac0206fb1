"""What the network of a `Denoiser` is given, tabulated before the loop: times and scales of the state.

The numbers of `Denoiser.native`, bit for bit.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sdekit.errors import EndpointError, ShapeError, check_output, overwritten
from sdekit.samplers.plan import Evaluate
from sdekit.score.model import Denoiser
from sdekit.score.predictions import Node, conversion
from sdekit.sde.preserving import DiscreteVP

__all__ = ["Outputs", "beside", "direct", "input_scales", "network_times", "settle"]


def direct(model: object, evaluations: Sequence[Evaluate]) -> bool:
    """Whether each evaluation is one call of the network's own prediction, nothing before or after it."""
    if not isinstance(model, Denoiser):
        return False
    cls = type(model)
    if cls.evaluate is not Denoiser.evaluate or cls.native is not Denoiser.native:
        return False
    return all(_own(model, ins) for ins in evaluations)


def _own(model: Denoiser, ins: Evaluate) -> bool:
    if ins.predicts != model.kind:
        return False
    if ins.predicts not in ("score", "F"):
        return True
    assert ins.node is not None
    try:
        p, q = conversion(model.kind, ins.predicts, _floats(ins.node), model.data_std, ins.data_std)
    except EndpointError:  # `Denoiser.evaluate` raises it where it is reached
        return False
    return (p, q) == (0.0, 1.0)


def _floats(node: Node) -> Node:
    return Node(*(float(value) for value in node))


def _preconditioning(model: Denoiser, node: Node) -> tuple[float, float]:
    """(c_in, c_noise) of Karras et al. 2022, table 1, float64."""
    assert model.data_std is not None
    alpha, sigma = (torch.as_tensor(value, dtype=torch.float64) for value in (node.alpha, node.sigma))
    norm = torch.sqrt(alpha**2 * model.data_std**2 + sigma**2)
    return float(1 / norm), float((sigma / float(node.alpha)).log() / 4)


def input_scales(model: Denoiser, nodes: Sequence[Node]) -> list[float] | None:
    """The factor of the state at each node that the network is given, None where it is given the state."""
    if model.predicts != "edm":
        return None
    return [_preconditioning(model, node)[0] for node in nodes]


def beside(values: Sequence[float], x: Tensor) -> Tensor:
    """Numbers of the host as a tensor like x; filled in, not copied, while a CUDA graph is recorded."""
    if values and x.is_cuda and torch.cuda.is_current_stream_capturing():
        return torch.stack([x.new_full((), value) for value in values])
    return torch.tensor(values, dtype=x.dtype, device=x.device)


def network_times(model: Denoiser, nodes: Sequence[Node], x: Tensor) -> list[Tensor]:
    """The (B,) time of each evaluation, in x's dtype on its device."""
    rows = x.shape[0]
    if model.predicts == "edm":
        times = beside([_preconditioning(model, node)[1] for node in nodes], x)
    elif model.time == "sigma" and not callable(model.time):
        times = beside([float(node.sigma) for node in nodes], x)
    else:
        times = beside([float(node.t) for node in nodes], x)
        if model.time == "index":
            times = times - 1 if isinstance(model.process, DiscreteVP) else times * 999
    batches = list(times.unsqueeze(1).expand(-1, rows).unbind())
    if model.predicts != "edm" and callable(model.time):
        return [model.time(batch) for batch in batches]
    return batches


def settle(out: object, x: Tensor, role: str) -> Tensor:
    """A function's output as a contiguous tensor like x. Raises ShapeError for what cannot be one."""
    checked = check_output(out, x, role)
    if not checked.is_floating_point():
        raise ShapeError(
            f"{role} must return a floating tensor, got dtype {checked.dtype}. Likely cause: labels or "
            f"indices in place of a prediction. Next: return one number for each element of x."
        )
    if checked.device != x.device:
        raise ShapeError(
            f"{role} must return a tensor on {x.device}, the device of x, got one on {checked.device}. "
            f"Likely cause: a module or a table that was not moved. Next: .to({str(x.device)!r})."
        )
    return checked.to(x.dtype).resolve_neg().contiguous()


class Outputs:
    """The network's outputs that later steps still read.

    A network may return one tensor at every call; one that also writes to it takes from a multistep method
    the history that it holds.
    """

    def __init__(self) -> None:
        self.kept: dict[object, tuple[Tensor, int]] = {}

    def keep(self, name: object, out: Tensor) -> None:
        """Remember an output as it is now."""
        if type(out) is Tensor and not out.is_inference():
            self.kept[name] = out, out._version

    def check(self, out: Tensor) -> None:
        """Raise ValueError where ``out`` lies in the memory of an output kept, which has changed since."""
        for old, version in self.kept.values():
            if old._version != version and old.data_ptr() == out.data_ptr():
                raise overwritten("net")
