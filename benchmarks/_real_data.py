"""Real images as levels, digits and patches of photographs, some held out; and closed-form baselines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

import sdekit as sk

__all__ = ["Images", "blocks", "digits", "draw", "gaussian_bits", "mixture_bits", "patches"]

BLOCK, PATCH = 64, 16
"""Pixels of a side: of the blocks that are held out of a photograph, and of a patch."""
HELD_SEED = 1
"""Seed of the uniform noise on the images held out."""


@dataclass(frozen=True)
class Images:
    """Images (N, 1, H, W) of whole levels k in {0, ..., L - 1}; a model sees 2 (k + u - 1/2)/(L - 1) - 1."""

    name: str
    levels: int
    train: Tensor
    held: Tensor
    train_labels: Tensor | None = None
    held_labels: Tensor | None = None

    @property
    def event(self) -> tuple[int, ...]:
        """Shape of one image."""
        return tuple(self.train.shape[1:])

    @property
    def scale(self) -> dict[str, float]:
        """Arguments of `sk.likelihood.dequantize`: level 0 is centred at -1, level L - 1 at 1."""
        margin = 1 / (self.levels - 1)
        return {"levels": self.levels, "low": -1 - margin, "high": 1 + margin}

    def training(self, copies: int) -> Tensor:
        """The training images with uniform noise, ``copies`` times anew: (copies N, 1, H, W)."""
        return torch.cat([sk.likelihood.dequantize(self.train, draw=j, **self.scale) for j in range(copies)])

    def test(self, count: int | None = None) -> Tensor:
        """The first ``count`` images held out, with uniform noise."""
        return sk.likelihood.dequantize(self.held[:count], seed=HELD_SEED, **self.scale)

    def bits(self, log_prob: Tensor) -> Tensor:
        """Bits per pixel of log-densities in nats; log2 L where all levels are equally likely."""
        return sk.likelihood.bits_per_dimension(log_prob, self.train[0].numel(), **self.scale)


def digits(seed: int = 0) -> Images:
    """scikit-learn's 1,797 digits of 8 x 8 pixels and 17 levels, 180 held out as in the demo."""
    from sklearn.datasets import load_digits

    data = load_digits()
    k, labels = torch.tensor(data.images).long()[:, None], torch.tensor(data.target).long()
    order = torch.randperm(len(k), generator=torch.Generator().manual_seed(seed))
    held, train = order[:180], order[180:]
    return Images("digits", 17, k[train], k[held], labels[train], labels[held])


def patches() -> Images:
    """Grey 16 x 16 patches of scikit-learn's two photographs, 256 levels; held-out blocks share no pixel."""
    from sklearn.datasets import load_sample_images

    parts = [
        blocks(torch.tensor(p, dtype=torch.float64).mean(2).round().long())
        for p in load_sample_images().images
    ]
    train, held = (torch.cat(side) for side in zip(*parts, strict=True))
    mixed = torch.randperm(len(held), generator=torch.Generator().manual_seed(0))
    return Images("patches", 256, train, held[mixed])


def blocks(photograph: Tensor, stride: int = 6) -> tuple[Tensor, Tensor]:
    """(training, held-out) patches (N, 1, 16, 16) of a photograph (H, W).

    One block of 64 x 64 pixels in five is held out, on a diagonal lattice, and cut into 16 patches that do
    not overlap. Training patches lie every ``stride`` pixels and share no pixel with a held-out block.
    """
    rows, columns = (n // BLOCK for n in photograph.shape)
    held = torch.zeros(photograph.shape, dtype=torch.bool)
    test = []
    for i in range(rows):
        for j in range(columns):
            if (i + 2 * j) % 5 == 0:
                area = (slice(BLOCK * i, BLOCK * (i + 1)), slice(BLOCK * j, BLOCK * (j + 1)))
                held[area] = True
                test.append(_cut(photograph[area], PATCH))
    taken = _cut(held, stride).flatten(1).any(dim=1)
    return _cut(photograph, stride)[~taken], torch.cat(test)


def _cut(image: Tensor, stride: int) -> Tensor:
    return image.unfold(0, PATCH, stride).unfold(1, PATCH, stride).reshape(-1, 1, PATCH, PATCH)


def gaussian_bits(data: Images, copies: int = 4) -> Tensor:
    """Bits per pixel of each image held out under the Gaussian with the training images' moments."""
    x = data.training(copies).double().flatten(1)
    law = torch.distributions.MultivariateNormal(x.mean(0), torch.cov(x.T))
    return data.bits(law.log_prob(data.test().double().flatten(1)))


def mixture_bits(data: Images, components: Sequence[int] = (5, 10, 20), copies: int = 4) -> dict[int, Tensor]:
    """The same under scikit-learn's Gaussian mixtures with full covariances, by number of components."""
    from sklearn.mixture import GaussianMixture

    x, y = (v.double().flatten(1).numpy() for v in (data.training(copies), data.test()))
    fits = {
        n: GaussianMixture(n, reg_covar=1e-3 if data.levels == 17 else 1e-5, random_state=0)
        for n in components
    }
    return {n: data.bits(torch.tensor(law.fit(x).score_samples(y))) for n, law in fits.items()}


def draw(path: Path, sets: Mapping[str, Tensor], side: int) -> None:
    """The first side^2 images of every set, (N, 1, H, W) in [-1, 1], two panels in a row."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    height = -(-len(sets) // 2)
    figure, panels = pyplot.subplots(height, 2, figsize=(7, 3.6 * height), squeeze=False)
    for panel, (title, x) in zip(panels.flat, sets.items(), strict=True):
        margin = torch.nn.functional.pad(x[: side * side, 0].clamp(-1, 1), (1, 1, 1, 1), value=0.0)
        rows = margin.unflatten(0, (side, side)).transpose(1, 2).flatten(0, 1).flatten(1)
        panel.imshow(rows.numpy(), cmap="gray", vmin=-1, vmax=1)
        panel.set_title(title, fontsize=10)
        panel.axis("off")
    figure.tight_layout()
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=130)
    pyplot.close(figure)
