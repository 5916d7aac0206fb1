r"""A run as one CUDA graph: every kernel of the loop, the network's included, launched by one call.

At small batches the host launches kernels more slowly than the device runs them. A graph records the
kernels of a run once, with the addresses of its tensors, and replays them. What may differ between replays is
read from tensors that the graph holds: the state at the start, the sample ids, and the Philox key, which
stands for the seed. Coefficients, times and draw numbers belong to the plan and are recorded.

The network is recorded as it is called: changes of its weights in place count at the next replay; control
flow in Python happened once. Weights that are moved or replaced need a new Denoiser.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from sdekit.errors import CapabilityError
from sdekit.noise import Noise, Philox, Purpose, philox
from sdekit.samplers.execute import Program, execute
from sdekit.score.model import Denoiser

__all__ = ["Captured", "DeviceKey", "captured", "check_capture", "record"]

KEPT = 4
"""Graphs kept for each model; the oldest goes first, with the memory it holds."""

Recorder = Callable[[Callable[[], Any], torch.device], tuple[Callable[[], None], Any]]


class DeviceKey(Noise):
    """Philox whose key is int64 (2,) on the device of the states: a graph then serves every seed."""

    def __init__(self, device: torch.device) -> None:
        self.key = torch.zeros(2, dtype=torch.int64, device=device)

    def seed(self, seed: int) -> None:
        """Take the injected noise of a seed, without waiting for the device."""
        for place, word in zip(self.key, philox.derive_key(seed, Purpose.INJECTED), strict=True):
            place.fill_(word)

    def normal(self, draw: int, like: Tensor, ids: Tensor) -> Tensor:
        """What `Philox.normal` returns."""
        event = like.numel() // max(like.shape[0], 1)
        if like.is_cuda:
            from sdekit.noise.source import _cuda_fill

            fill = _cuda_fill(like.dtype, like.device)
            if fill is not None:
                out = torch.empty_like(like, memory_format=torch.contiguous_format)
                fill(out, self.key, draw, ids, event)
                return out
        key: Any = (self.key[0], self.key[1])
        return philox.normal(key, draw, ids, event, like.dtype).view(like.shape)


def record(work: Callable[[], Any], device: torch.device) -> tuple[Callable[[], None], Any]:
    """(replay, what work returned): the kernels of work() on a CUDA device, after two runs that warm it up.

    Raises CapabilityError where work waits for the device or allocates in ways that a graph cannot hold.
    """
    with torch.cuda.device(device):
        side: Any = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(side):
            for _ in range(2):
                work()
        torch.cuda.current_stream(device).wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):
                out = work()
        except RuntimeError as error:
            raise CapabilityError(
                f"the run cannot be captured as a CUDA graph ({str(error).splitlines()[0]}). Likely cause: "
                f"the network reads a number back from the device (.item(), .cpu(), if on a tensor, "
                f"nonzero) or copies one to it. Next: remove that, or compile=False."
            ) from error
    return graph.replay, out


@dataclass
class Captured:
    """A graph and the tensors it reads and writes."""

    program: Program
    x: Tensor
    ids: Tensor
    noise: DeviceKey
    replay: Callable[[], None]
    out: Tensor
    kept: dict[int, Tensor]
    lock: threading.Lock = field(default_factory=threading.Lock)

    def __call__(self, x: Tensor, ids: Tensor, seed: int) -> tuple[Tensor, dict[int, Tensor]]:
        """The run from x (B, *event) for samples ids (B,): (x, states), as `execute`."""
        with self.lock:  # threads share the tensors
            self.x.copy_(x)
            self.ids.copy_(ids)
            self.noise.seed(seed)
            self.replay()
            return self.out.clone(), {i: state.clone() for i, state in self.kept.items()}


_recording = threading.RLock()
_graphs: weakref.WeakKeyDictionary[Denoiser, dict[Any, Captured]] = weakref.WeakKeyDictionary()


def captured(
    program: Program,
    model: Denoiser,
    x: Tensor,
    ids: Tensor,
    *,
    saved: Sequence[int] = (),
    record: Recorder = record,
    **options: Any,
) -> Captured:
    """The graph of a program for states like x, made at the first call and kept with the model.

    saved: as in `execute`, to which ``options`` go as well. record: how work becomes a replay.
    """
    with _recording:
        return _captured(program, model, x, ids, saved, record, options)


def _captured(
    program: Program,
    model: Denoiser,
    x: Tensor,
    ids: Tensor,
    saved: Sequence[int],
    record: Recorder,
    options: dict[str, Any],
) -> Captured:
    graphs = _graphs.setdefault(model, {})
    key = (id(program), x.shape, x.dtype, x.device, tuple(saved), tuple(sorted(options.items())))
    if key not in graphs:
        held = torch.empty_like(x, memory_format=torch.contiguous_format).copy_(x)
        numbers, noise = ids.clone(), DeviceKey(x.device)

        def work() -> tuple[Tensor, dict[int, Tensor]]:
            return execute(program, model, held, noise, numbers, saved=saved, **options)

        replay, (out, kept) = record(work, x.device)
        while len(graphs) >= KEPT:
            del graphs[next(iter(graphs))]
        graphs[key] = Captured(program, held, numbers, noise, replay, out, kept)
    return graphs[key]


def check_capture(
    program: Program,
    noise: Noise,
    device: torch.device,
    *,
    keep_graph: bool = False,
    watched: bool = False,
    window: int | None = None,
) -> None:
    """Raise CapabilityError where ``compile=True`` cannot serve a run, with the reason and what to do."""
    reason = None
    if device.type != "cuda":
        reason = (
            f"the state lives on {device}. Next: device='cuda', or compile the network itself: "
            f"Denoiser(torch.compile(net), ...)"
        )
    elif keep_graph:
        reason = "gradients flow through the run. Next: compile=False"
    elif watched:
        reason = "a callback or progress bar follows it step by step. Next: drop it, or compile=False"
    elif window is not None:
        reason = "parallel= decides on the host how often to repeat. Next: drop one of the two"
    elif program.plan.stochastic and not isinstance(noise, Philox):
        reason = f"{type(noise).__name__} makes numbers on the host. Next: seed=, or noise=Philox(seed)"
    if reason is not None:
        raise CapabilityError(f"compile=True records the run as a CUDA graph, and {reason}.")
