"""python -m benchmarks.networks: trains the networks of the accuracy benchmark, those not yet trained.

Nine small networks, weights in benchmarks/.cache/networks. "edm" is the training of Karras et al. 2022
(arXiv:2206.00364): F-prediction, ln sigma ~ N(-1.2, 1.2^2) clipped to [0.002, 80]. "eps" is that of Ho et al.
2020 (arXiv:2006.11239): eps-prediction on VP, t uniform, unit weight. Seeds are fixed: on one machine with
one thread the weights are the same bit for bit.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import sdekit as sk
from benchmarks._cache import digest, folder
from sdekit.matching import load, save
from sdekit.matching.checkpoint import read_header
from sdekit.matching.data import Batches, scales
from sdekit.matching.nets import MLP, UNet
from sdekit.sde.gaussian import GaussianDiffusion

__all__ = ["NETWORKS", "Guided", "LabelledMLP", "Network", "kept", "network"]

CLASSES = 10
PUBLISHED_EDM = (-1.2, 1.2)
"""Mean and standard deviation of ln sigma in training."""


def moons() -> tuple[Tensor, None]:
    """Two moons with noise 0.05, (4096, 2), scaled to data_std 1/2."""
    from sklearn.datasets import make_moons

    x = torch.tensor(make_moons(4096, noise=0.05, random_state=0)[0], dtype=torch.float32)
    return 0.5 * (x - x.mean(0)) / x.var(0).mean().sqrt(), None


def digits(image: bool = False) -> tuple[Tensor, Tensor]:
    """scikit-learn's digits in [-1, 1], (1797, 64) or (1797, 1, 8, 8), and their classes."""
    from sklearn.datasets import load_digits

    data = load_digits()
    x = torch.tensor(data.data, dtype=torch.float32) / 8 - 1
    return (x.reshape(-1, 1, 8, 8) if image else x), torch.tensor(data.target)


def patches() -> tuple[Tensor, None]:
    """Grey 16 x 16 patches of scikit-learn's two photographs, every 8 pixels, in [-1, 1]: (N, 1, 16, 16)."""
    from sklearn.datasets import load_sample_images

    photographs = [torch.tensor(image, dtype=torch.float32) for image in load_sample_images().images]
    cut = [p.mean(2).unfold(0, 16, 8).unfold(1, 16, 8).reshape(-1, 1, 16, 16) for p in photographs]
    return torch.cat(cut) / 127.5 - 1, None


class Positional(nn.Module):
    """sin(w_k t) and cos(w_k t), w_k from 1,000 to 0.1: the features of Ho et al. 2020, (B,) -> (B, count).

    The fastest turn 160 times over t in [0, 1], which makes the learned flow rough in time.
    """

    def __init__(self, count: int) -> None:
        super().__init__()
        scales = 1000.0 * torch.logspace(0, -4, count // 2)
        self.register_buffer("scales", scales, persistent=False)

    def forward(self, t: Tensor) -> Tensor:
        phase = t[..., None] * self.scales
        return torch.cat([phase.sin(), phase.cos()], dim=-1)


class RoughUNet(UNet):
    """A UNet whose time features are `Positional`."""

    def __init__(self, channels: int = 1, **options: Any) -> None:
        super().__init__(channels, **options)
        self.embed[0] = Positional(self.embed[0].count)


class LabelledTime(nn.Module):
    """An embedding of the class added to that of time; ``labels`` (B,), CLASSES or None for no class."""

    def __init__(self, time: nn.Sequential) -> None:
        super().__init__()
        self.time = time
        self.classes = nn.Embedding(CLASSES + 1, time[1].out_features)
        nn.init.zeros_(self.classes.weight)
        self.labels: Tensor | None = None

    def forward(self, t: Tensor) -> Tensor:
        none = torch.full(t.shape, CLASSES, device=t.device)
        out: Tensor = self.time(t) + self.classes(none if self.labels is None else self.labels)
        return out


class LabelledMLP(MLP):
    """An MLP given a class beside the time."""

    def __init__(self, event_shape: int, **options: Any) -> None:
        super().__init__(event_shape, **options)
        self.embed = LabelledTime(self.embed)


class Guided(nn.Module):
    """Classifier-free guidance: F_u + w (F_c - F_u), which for D is D_u + w (D_c - D_u).

    Row i has class i mod 10, so the rows must come all together and in order. Ho and Salimans 2022
    (arXiv:2207.12598), equation 6, in Karras et al.'s convention for w.
    """

    def __init__(self, net: LabelledMLP, weight: float = 2.0) -> None:
        super().__init__()
        self.net, self.weight = net, weight

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        given = torch.arange(len(x), device=x.device) % CLASSES
        self.net.embed.labels = torch.cat([torch.full_like(given, CLASSES), given])
        free, conditional = self.net(torch.cat([x, x]), torch.cat([t, t])).chunk(2)
        return free + self.weight * (conditional - free)


@dataclass(frozen=True)
class Network:
    """One training: data, architecture and options. ``kind`` is "edm" or "eps", see above."""

    name: str
    kind: str
    data: Callable[[], tuple[Tensor, Tensor | None]]
    architecture: type[nn.Module]
    arguments: tuple[Any, ...]
    steps: int
    batch: int
    options: dict[str, Any] = field(default_factory=dict)
    version: int = 1

    @property
    def path(self) -> Path:
        """Where the weights are kept; the name changes with whatever enters the training."""
        made_of = (self.kind, self.architecture.__name__, self.arguments, self.options)
        key = digest(self.name, *made_of, self.steps, self.batch, self.version)
        return folder("networks") / f"{self.name.replace(' ', '-')}-{key}.safetensors"

    @property
    def guided(self) -> bool:
        """Whether it is trained with classes and used under guidance."""
        return self.architecture is LabelledMLP

    def make(self) -> nn.Module:
        """The untrained network."""
        features = "real" if self.kind == "edm" else "log"
        return self.architecture(*self.arguments, **self.options, features=features, seed=0)


_MLP2 = {"width": 64, "depth": 3}
_MLP64 = {"width": 160, "depth": 3}
_UNET = {"width": 8, "multipliers": (1, 2, 4)}
_LEVEL = _UNET | {"groups": 1}  # norms over all channels keep a patch's grey level, which eps needs


def _images() -> tuple[Tensor, Tensor]:
    return digits(image=True)


NETWORKS: dict[str, Network] = {
    n.name: n
    for n in (
        Network("moons mlp edm", "edm", moons, MLP, (2,), 6000, 256, _MLP2),
        Network("moons mlp eps", "eps", moons, MLP, (2,), 6000, 256, _MLP2),
        Network("digits mlp edm", "edm", digits, MLP, (64,), 6000, 128, _MLP64),
        Network("digits mlp eps", "eps", digits, MLP, (64,), 6000, 128, _MLP64),
        Network("digits mlp guided", "edm", digits, LabelledMLP, (64,), 6000, 128, _MLP64),
        Network("digits unet edm", "edm", _images, UNet, (1,), 4000, 64, _UNET),
        Network("digits unet rough", "eps", _images, RoughUNet, (1,), 4000, 64, _UNET),
        Network("patches unet edm", "edm", patches, UNet, (1,), 3000, 64, _UNET),
        Network("patches unet eps", "eps", patches, UNet, (1,), 4000, 64, _LEVEL),
    )
}


def network(name: str) -> sk.Denoiser:
    """The trained model of that name, trained first if it is not there."""
    recipe = NETWORKS[name]
    if not recipe.path.exists():
        train(recipe)
    return load(recipe.path, recipe.make())


def kept() -> dict[str, dict[str, float]]:
    """What `train` reported of the networks that are there."""
    return {name: read_header(n.path)["extra"] for name, n in NETWORKS.items() if n.path.exists()}


def train(recipe: Network) -> dict[str, float]:
    """Train, save, and report {"parameters", "loss" (mean of the last tenth), "seconds"}."""
    x, labels = recipe.data()
    process: GaussianDiffusion = sk.EDM() if recipe.kind == "edm" else sk.VP()
    predicts, times = ("edm", published_edm) if recipe.kind == "edm" else ("eps", "uniform")
    started = time.perf_counter()
    if recipe.guided:
        assert labels is not None
        std, spread = scales(x)
        model = sk.Denoiser(recipe.make(), process, predicts, data_std=std, data_spread=spread)
        losses = _fit_labelled(model, x, labels, recipe)
    else:
        std, spread = scales(x)
        model = sk.Denoiser(recipe.make(), process, predicts, data_std=std, data_spread=spread)
        options = {"steps": recipe.steps, "batch_size": recipe.batch, "progress": False, "held_out": 0.0}
        result = sk.fit(model, x, times=times, lr=2e-3, **options)
        model, losses = result.model, result.losses
    report = {
        "parameters": sum(p.numel() for p in model.net.parameters()),
        "loss": float(losses[-len(losses) // 10 :].mean()),
        "seconds": time.perf_counter() - started,
    }
    save(model, recipe.path, extra=report)
    return report


def published_edm(u: Tensor) -> Tensor:
    """Quantiles of EDM's training law of sigma, (B,) in (0, 1) -> (B,)."""
    mean, std = PUBLISHED_EDM
    log_sigma = mean + std * math.sqrt(2) * torch.erfinv(2 * u - 1)
    process = sk.EDM()
    return log_sigma.exp().clamp(process.t_min, process.t_max)


def _fit_labelled(model: sk.Denoiser, x: Tensor, labels: Tensor, recipe: Network) -> Tensor:
    """Denoising with classes, each dropped with probability 0.1, the last fifth of the weights averaged."""
    net = model.net
    assert isinstance(net, LabelledMLP)
    embed = net.embed
    assert isinstance(embed, LabelledTime)
    rows = Batches(torch.arange(len(x), dtype=torch.float32)[:, None], recipe.batch, 0)
    optimiser = torch.optim.Adam(net.parameters(), lr=2e-3, betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, recipe.steps)
    averaged = torch.optim.swa_utils.AveragedModel(net)
    generator = torch.Generator().manual_seed(0)
    net.train()
    losses = torch.zeros(recipe.steps)
    for n in range(recipe.steps):
        row = rows[n][:, 0].long()
        dropped = torch.rand(len(row), generator=generator) < 0.1
        embed.labels = torch.where(dropped, CLASSES, labels[row])
        t = published_edm(torch.rand(len(row), generator=generator, dtype=torch.float64))
        loss = sk.losses.denoising(model, x[row], t=t, draw=n).mean() / x.shape[1]
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        losses[n] = loss.detach()
        if n >= 4 * recipe.steps // 5:
            averaged.update_parameters(net)
    net.load_state_dict(averaged.module.state_dict())
    embed.labels = None
    net.eval()
    return losses


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.networks", description=__doc__)
    parser.add_argument("--fresh", action="store_true", help="train again what is there")
    fresh = parser.parse_args(arguments).fresh
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for recipe in NETWORKS.values():
            if fresh or not recipe.path.exists():
                train(recipe)
            about = read_header(recipe.path)["extra"]
            print(f"{recipe.name}: " + ", ".join(f"{k} {v:.4g}" for k, v in about.items()), flush=True)
    finally:
        torch.set_num_threads(before)


if __name__ == "__main__":
    main()
