"""Learned models of real images: bits per pixel, samples, weightings of the loss, and a classifier.

Digits (8 x 8 pixels, 17 levels, 180 held out) and grey patches of photographs (16 x 16 pixels, 256 levels,
held out by blocks), noised by the VP process. All images have uniform noise of one level. One UNet and one
number of steps for every row of the table.

    model       what the network predicts, EDM's F, and the weighting of its loss: EDM's own weights and
                levels, sigma^2 at uniform times, or likelihood weights (times uniform in log-SNR); and the
                noise, as `sdekit.fit` does unless told otherwise;
    bits        held-out bits per pixel of the probability flow, with the standard error over images;
    bound       the same from the variational bound of the reverse SDE, `sdekit.likelihood.elbo`;
    energy      energy distance of new samples to the images held out; 95 % of exact sets are below the floor;
    legible     share of new digits whose 5 nearest training digits have one label.

Then the classifier argmax_k log p(x | k) of digits, from one small network of classes. Trainings and figures
are kept in benchmarks/.cache.

    python -m benchmarks.run learning
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import sdekit as sk
from benchmarks._cache import digest, folder, read_json, write_json
from benchmarks._real_data import Images, digits, draw, gaussian_bits, mixture_bits, patches
from sdekit.cli.quality import judge
from sdekit.matching import ClassDenoiser, load
from sdekit.matching.checkpoint import read_header
from sdekit.score.model import Denoiser

__all__ = ["CLASSIFIERS", "DIGITS", "PATCHES", "Training", "class_log_prob", "classify", "run", "train"]

PICTURE = Path(__file__).parent / "results" / "learning.png"
SIDE = 8
"""Images in a row and in a column of the picture."""
VERSION = 1
"""Raised when figures change for equal trainings: what is kept of an older one is not used."""


@dataclass(frozen=True)
class Training:
    """One network and how it is trained. data: "digits" or "patches"; others as in `sdekit.fit`."""

    name: str
    data: str
    predicts: str
    weighting: str
    times: str
    steps: int
    batch: int
    lr: float = 3e-3
    network: str = "UNet"
    copies: int = 64

    def make(self) -> torch.nn.Module:
        """The untrained network; the MLP takes classes."""
        features = "real" if self.predicts == "edm" else "log"
        if self.network == "MLP":
            return sk.nets.MLP((1, 8, 8), width=256, depth=3, classes=10, features=features, seed=0)
        return sk.nets.UNet(1, width=16, multipliers=(1, 2), features=features, seed=0)


_EDM = Training("F, EDM", "digits", "edm", "edm", "edm", 2000, 64)
_LIKELIHOOD = replace(_EDM, name="F, likelihood", weighting="sigma^2", times="log-snr")
"""Under times uniform in log-SNR the likelihood weighting g^2 is that of sigma^2."""
DIGITS = (
    _EDM,
    _LIKELIHOOD,
    replace(_EDM, name="F, sigma^2", weighting="sigma^2", times="uniform"),
    replace(_EDM, name="eps, defaults of fit", predicts="eps", weighting="native", times="uniform"),
)
PATCHES = tuple(replace(t, data="patches", steps=1200, batch=32, copies=4) for t in (_LIKELIHOOD, _EDM))
CLASSIFIERS = tuple(replace(t, network="MLP", batch=128, lr=2e-3) for t in (_EDM, _LIKELIHOOD))

Density = Callable[[Denoiser, Tensor], Any]


def flow(probes: int, tol: float, **options: Any) -> Density:
    """log p along the probability flow; ``probes`` = 0 for exact traces."""
    trace = {"trace": "hutchinson", "probes": probes} if probes else {"trace": "exact"}
    return lambda model, x: sk.log_prob(model, x, rtol=tol, atol=tol, **trace, **options)


def bound(strata: int) -> Density:
    """The variational bound from 2 strata + 2 calls."""

    def value(model: Denoiser, x: Tensor) -> Any:
        with torch.no_grad():
            return sk.likelihood.elbo(model, x, strata=strata)

    return value


METHODS: dict[str, Density] = {
    "flow, 4 probes": flow(4, 1e-2),
    "flow, 1 probe": flow(1, 1e-2),
    "bound, 64 strata": bound(64),
    "bound, 16 strata": bound(16),
    "bound, 4 strata": bound(4),
}


@lru_cache
def images(name: str) -> Images:
    """The data of that name."""
    return digits() if name == "digits" else patches()


def train(recipe: Training) -> Denoiser:
    """The trained model, trained first, or to the end, if it is not kept."""
    path = folder("learning") / f"{digest(asdict(recipe))}.safetensors"
    if not path.exists() or read_header(path)["extra"]["steps"] < recipe.steps:
        data = images(recipe.data)
        labels = (data.train_labels, data.held_labels)
        classes: dict[str, Any] = {}
        held: Any = data.test(180)
        if recipe.network == "MLP" and labels[0] is not None:
            classes = {"labels": labels[0].repeat(recipe.copies), "drop_labels": 0.0}
            held = (held, labels[1])
        options = {"weighting": recipe.weighting, "times": recipe.times, "progress": False}
        sk.fit(
            recipe.make(), data.training(recipe.copies), sk.VP(), predicts=recipe.predicts,
            steps=recipe.steps, batch_size=recipe.batch, lr=recipe.lr, held_out=held, checkpoint=path,
            resume="auto", **classes, **options,
        )  # fmt: skip
    model: Denoiser = load(path)
    return model


def kept(make: Callable[..., dict[str, Any]], recipe: Training, *rest: Any) -> dict[str, Any]:
    """make(recipe, *rest), or what is kept of it."""
    path = folder("learning") / f"{digest(make.__name__, asdict(recipe), rest, VERSION)}.json"
    found = read_json(path)
    if not found:
        found = make(recipe, *rest)
        write_json(path, found)
    print(found, flush=True)
    return found


def figures(recipe: Training, rows: int, samples: int, probes: int = 4) -> dict[str, Any]:
    """A row of the table: bits of the first ``rows`` images held out, their bound, and new samples."""
    model, data = train(recipe), images(recipe.data)
    x = data.test(rows)
    along, below = flow(probes, 1e-3)(model, x), bound(64)(model, x)
    new = sk.sample(model, (samples, *data.event), seed=0, throw=False).x
    distance = sk.metrics.energy_distance(new, data.test())
    row = {
        "data": recipe.data,
        "model": recipe.name,
        **_bits("bits", data.bits(along.value)),
        **_bits("bound", data.bits(below.value)),
        "energy": distance.value,
        "floor": distance.floor,
    }
    if data.train_labels is not None:
        row["legible"] = judge(new, data.training(1), data.train_labels, data.test(), repeats=1).legible
    return row


def baselines(data: Images) -> list[dict[str, Any]]:
    """Rows of laws with closed forms, fitted to the same training images."""
    laws = {"equal levels": torch.full((2,), math.log2(data.levels)), "Gaussian": gaussian_bits(data)}
    # full covariances of 256 pixels are slow to fit: few, and to one copy of the images
    mixtures = mixture_bits(data) if data.levels == 17 else mixture_bits(data, (5,), copies=1)
    laws |= {f"{n} Gaussians": bits for n, bits in mixtures.items()}
    return [{"data": data.name, "model": name, **_bits("bits", bits)} for name, bits in laws.items()]


def class_log_prob(model: ClassDenoiser, x: Tensor, density: Density) -> tuple[Tensor, int]:
    """log p(x | k) (B, classes), and the calls of one class; every class has the same probes or draws."""
    found = [density(model.given(k), x) for k in range(model.classes)]
    return torch.stack([f.value for f in found], dim=1), sum(f.nfe for f in found) // len(found)


def classify(recipe: Training, rows: int, method: str) -> dict[str, Any]:
    """Accuracy of argmax_k log p(x | k), and bits of p(x) = mean_k p(x | k): classes equally likely."""
    model, data = train(recipe), images(recipe.data)
    assert isinstance(model, ClassDenoiser)
    assert data.held_labels is not None
    start = time.process_time()
    values, calls = class_log_prob(model, data.test(rows), METHODS[method])
    seconds = time.process_time() - start
    right = values.argmax(dim=1) == data.held_labels[:rows]
    return {
        "training": recipe.name,
        "density": method,
        "accuracy": float(right.double().mean()),
        "wrong": int((~right).sum()),
        "of": len(right),
        "calls of a class": calls,
        "processor seconds": round(seconds, 1),
        **_bits("bits", data.bits(values.logsumexp(dim=1) - math.log(model.classes))),
    }


def traces(recipe: Training, rows: int) -> dict[str, Any]:
    """Bits of the same images by exact traces and by 4 probes, and the error that the probes leave."""
    data, model = images(recipe.data), train(recipe)
    x = data.test(rows)
    exact, probed = flow(0, 1e-2)(model, x), flow(4, 1e-2)(model, x)
    gap = data.bits(probed.value) - data.bits(exact.value)
    return {
        "rows": rows,
        **_bits("bits, exact trace", data.bits(exact.value)),
        **_bits("4 probes less exact", gap),
    }


def _bits(name: str, bits: Tensor) -> dict[str, float]:
    return {name: float(bits.mean()), f"{name} error": float(bits.std() / math.sqrt(len(bits)))}


def run(
    trainings: tuple[Training, ...] = (*DIGITS, *PATCHES),
    classifiers: tuple[Training, ...] = CLASSIFIERS,
    *,
    rows: int = 180,
    patch_rows: int = 96,
    samples: int = 400,
) -> dict[str, Any]:
    """{"table", "classifier", "exact"}; see the top. Draws benchmarks/results/learning.png."""
    torch.set_num_threads(1)
    table = []
    for recipe in trainings:
        count = rows if recipe.data == "digits" else patch_rows
        table.append(kept(figures, recipe, count, samples))
    for name in dict.fromkeys(recipe.data for recipe in trainings):
        table += baselines(images(name))
    classes = [kept(classify, recipe, rows, method) for recipe in classifiers for method in METHODS]
    exact = kept(traces, trainings[0], min(rows, 20))
    pairs = {}
    for recipe in {recipe.data: recipe for recipe in reversed(trainings)}.values():
        new = sk.sample(train(recipe), (SIDE**2, *images(recipe.data).event), seed=1, throw=False).x
        pairs[f"{recipe.data}, held out"] = images(recipe.data).test(SIDE**2)
        pairs[f"{recipe.data}, sampled"] = new
    draw(PICTURE, pairs, SIDE)
    return {"table": table, "classifier": classes, "exact": exact}


def shown(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows as the documentation shows them: three digits, errors beside their values."""

    def cell(row: dict[str, Any], key: str) -> Any:
        value = row[key]
        if not isinstance(value, float):
            return value
        error = f" ± {row[key + ' error']:.2g}" if f"{key} error" in row else ""
        return f"{value:.3g}{error}"

    return [{key: cell(row, key) for key in row if not key.endswith(" error")} for row in rows]
