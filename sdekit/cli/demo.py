"""The demo: real digits, a network, samples, certificates and pictures. `run` is a script to copy from."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from sdekit.certify import certify, certify_monte_carlo
from sdekit.cli.quality import judge
from sdekit.cli.report import Curves, certificate_table, draw_certificates, draw_digits, sample_table, summary
from sdekit.errors import NotAffineError, OptionalDependencyError
from sdekit.matching import fit, load, nets
from sdekit.samplers import plan, sample, samplers
from sdekit.sde import VP
from sdekit.targets import Gaussian

__all__ = ["FULL", "QUICK", "Scale", "digits", "run"]


@dataclass(frozen=True)
class Scale:
    """How much the demo does.

    threads: one, so that the digits are the same on any number of cores, and a busy core delays nothing: a
    small convolution on two threads waits for the slower one hundreds of times a step.
    """

    width: int
    multipliers: tuple[int, ...]
    steps: int
    batch_size: int
    samples: int
    table: tuple[int, ...]
    curve: tuple[int, ...]
    monte_carlo: int
    threads: int = 1


BUDGETS = (4, 5, 6, 8, 10, 12, 15, 20, 30, 40, 50, 70, 100)
FULL = Scale(16, (1, 3), 1800, 64, 100, (5, 10, 20, 50, 100), BUDGETS, 2000)
QUICK = Scale(8, (1, 2), 40, 32, 16, (5, 10), (5, 10), 200)
"""The same line at a scale for tests; its digits are not yet digits."""


def digits(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """scikit-learn's 1,797 handwritten digits: train (1617, 1, 8, 8), labels (1617,), held (180, 1, 8, 8).

    Grey levels 0 to 16 are scaled to [-1, 1]. The seed chooses which 180 are held out.
    """
    from sklearn.datasets import load_digits

    data = load_digits()
    images = torch.from_numpy(data.images / 8.0 - 1.0).float()[:, None]
    labels = torch.from_numpy(data.target).long()
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    held, train = order[:180], order[180:]
    return images[train], labels[train], images[held]


def run(out: Path, *, quick: bool = False, seed: int = 0, console: Console | None = None) -> dict[str, Any]:
    """Train, sample, certify, draw; write everything under ``out`` and return the summary.

    Raises OptionalDependencyError, before any work, when a package of the extra "demo" is missing.
    """
    _require("matplotlib", "sklearn", "safetensors")
    started = time.perf_counter()
    console = console or Console()
    say = partial(console.print, soft_wrap=True)
    scale = QUICK if quick else FULL
    with _threads(scale.threads):
        say("[bold]1. Real data[/]")
        train, labels, held = digits(seed)
        say(f"   {len(train)} handwritten digits of 8 x 8 pixels to train on, {len(held)} held out")

        say("[bold]2. A network that predicts the noise, trained by denoising score matching[/]")
        process = VP()
        result = fit(
            nets.UNet(channels=1, width=scale.width, multipliers=scale.multipliers, seed=seed),
            train,
            process,
            predicts="eps",
            steps=scale.steps,
            batch_size=scale.batch_size,
            lr=3e-3,
            ema=0.999,
            held_out=held,
            seed=seed,
            checkpoint=out / "digits.safetensors",
        )
        say(f"   {result}")

        say("[bold]3. New digits, at fixed and at adaptive cost[/]")
        model = load(out / "digits.safetensors")  # as any later session finds it
        shape = (scale.samples, 1, 8, 8)
        runs = {
            "kernel-quadrature, 10": sample(model, shape, nfe=10, seed=seed, progress=True),
            "kernel-quadrature, 20": sample(model, shape, nfe=20, seed=seed, progress=True),
            "rk45, adaptive": sample(model, shape, sampler="rk45", seed=seed),
        }
        quality = {name: judge(s.x, train, labels, held, seed=seed) for name, s in runs.items()}
        console.print(sample_table(runs, quality))

        say("[bold]4. Certificates: every sampler on the Gaussian with the digits' own covariance[/]")
        target = Gaussian.from_data(torch.cat([train, held]))
        curves = certificates(target, process, scale, seed)
        console.print(certificate_table(curves, scale.table))

        say("[bold]5. Pictures and figures[/]")
        draw_digits(out / "digits.png", held, runs)
        draw_certificates(out / "certificate.png", curves)
        figures = summary(result, model, runs, quality, target, curves)
        figures |= {"seed": seed, "quick": quick, "seconds": time.perf_counter() - started}
        (out / "summary.json").write_text(json.dumps(figures, indent=2) + "\n")
        for name in ("digits.png", "certificate.png", "digits.safetensors", "summary.json"):
            say(f"   {out / name}", markup=False)
    say(f"Done in {figures['seconds']:.0f} s. Try next, in Python, on the network just trained:")
    say("   import sdekit as sk")
    say("   from sdekit.matching import load")
    say(f"   sk.sample(load({str(out / 'digits.safetensors')!r}), (16, 1, 8, 8), nfe=15)", markup=False)
    say("or [cyan]sdekit list[/] for every sampler and solver by name.")
    return figures


def certificates(target: Gaussian, process: VP, scale: Scale, seed: int) -> Curves:
    """By sampler and budget of evaluations: exact, or by Monte Carlo where a sampler is not affine.

    A budget below what one interval of a sampler needs is left out.
    """
    curves: Curves = {}
    for row in samplers():
        if row.name == "rk45":  # adaptive: no plan to certify
            continue
        least = plan(row.name, process, steps=1).nfe
        try:
            curves[row.name] = {
                n: certify(row.name, target, process, nfe=n) for n in scale.curve if n >= least
            }
        except NotAffineError:
            curves[row.name] = {
                n: certify_monte_carlo(row.name, target, process, nfe=n, samples=scale.monte_carlo, seed=seed)
                for n in scale.table
                if n >= least
            }
    return curves


def _require(*packages: str) -> None:
    missing = [name for name in packages if find_spec(name) is None]
    if missing:
        raise OptionalDependencyError(
            f"the demo needs {', '.join(missing)}, not installed here. Next: pip install 'sdekit[demo]'."
        )


@contextlib.contextmanager
def _threads(count: int) -> Iterator[None]:
    """torch on ``count`` threads for a while."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
