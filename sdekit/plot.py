"""Pictures: each function takes a matplotlib Axes, or makes one, draws on it and returns it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sdekit.certify import Certificate, MonteCarloCertificate
from sdekit.errors import OptionalDependencyError, ShapeError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from sdekit.matching import FitResult

__all__ = ["certificate", "image_grid", "losses", "spectrum", "split"]

#: Okabe and Ito 2008, without yellow: distinct to every kind of colour vision, and in print.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">")
GREY = "#666666"


def missing() -> OptionalDependencyError:
    """The error where matplotlib is not installed."""
    return OptionalDependencyError(
        "plots need matplotlib, which is not installed. Next: pip install 'sdekit[demo]', or pip install "
        "matplotlib."
    )


def _axes(ax: Axes | None, size: tuple[float, float]) -> Axes:
    if ax is not None:
        return ax
    try:
        from matplotlib import pyplot
    except ImportError as error:
        raise missing() from error
    return pyplot.subplots(figsize=size, layout="constrained")[1]


def image_grid(
    images: Any,
    ax: Axes | None = None,
    *,
    columns: int | None = None,
    value_range: tuple[float, float] = (-1.0, 1.0),
    gap: int = 1,
    background: float = 0.0,
    title: str | None = None,
) -> Axes:
    """Images as one mosaic, row by row.

    images: (N, H, W), (N, 1, H, W) or (N, 3, H, W), tensor or array; values beyond ``value_range`` are
    clipped. columns: ceil(sqrt(N)) unless given. gap: pixels between images, of grey level ``background``,
    0 black to 1 white. Raises ShapeError for other shapes.
    """
    x = torch.as_tensor(images).detach().to(device="cpu", dtype=torch.float32)
    x = x[:, None] if x.ndim == 3 else x
    if x.ndim != 4 or x.shape[1] not in (1, 3) or x.shape[0] == 0:
        raise ShapeError(
            f"images must have shape (N, H, W), (N, 1, H, W) or (N, 3, H, W) with N >= 1, got "
            f"{tuple(x.shape)}. Next: channels first; x[:, :1] shows the first channel."
        )
    low, high = value_range
    n, channels, height, width = x.shape
    across = min(columns or math.ceil(math.sqrt(n)), n)
    down = -(-n // across)
    tall, wide = height + gap, width + gap
    canvas = torch.full((channels, down * tall + gap, across * wide + gap), background)
    for i, image in enumerate(((x - low) / (high - low)).clamp(0, 1)):
        top, left = i // across * tall + gap, i % across * wide + gap
        canvas[:, top : top + height, left : left + width] = image
    ax = _axes(ax, (5.0, 5.0 * down * tall / (across * wide)))
    picture = canvas[0] if channels == 1 else canvas.permute(1, 2, 0)
    ax.imshow(picture.numpy(), cmap="gray", vmin=0.0, vmax=1.0, interpolation="nearest")
    ax.set_axis_off()
    if title is not None:
        ax.set_title(title)
    return ax


def certificate(
    certificates: Iterable[Certificate | MonteCarloCertificate],
    ax: Axes | None = None,
    *,
    highlight: str | None = "kernel-quadrature",
    floor: bool = True,
) -> Axes:
    """W2 to the data law against network evaluations, both logarithmic, one line a sampler.

    certificates: from `sdekit.certify`, and `sdekit.certify_monte_carlo` (drawn with their intervals), of one
    target and process, in any order. Dashed lines: samplers that inject noise. The legend follows the order
    of the lines' right ends. floor: draw the W2 of the exact law at t_min, which comes from stopping there.
    highlight: a sampler to draw bold. Raises ValueError for no certificates.
    """
    given = list(certificates)
    if not given:
        raise ValueError("no certificates to plot. Next: [sdekit.certify(name, target, process, nfe=n) ...].")
    lines: dict[str, list[Certificate | MonteCarloCertificate]] = {}
    for item in given:
        lines.setdefault(item.name, []).append(item)
    ax = _axes(ax, (8.0, 5.0))
    used = {True: 0, False: 0}
    ends: dict[str, tuple[float, Any]] = {}
    for name, items in lines.items():
        items.sort(key=lambda c: c.nfe or 0)
        noisy = items[0].stochastic
        k, used[noisy] = used[noisy], used[noisy] + 1
        style: dict[str, Any] = {
            "color": COLOURS[k % len(COLOURS)],
            "marker": MARKERS[(k + 4 * noisy) % len(MARKERS)],
            "linestyle": "--" if noisy else "-",
            "linewidth": 2.6 if name == highlight else 1.3,
            "markersize": 6.5 if name == highlight else 4.5,
            "zorder": 3 if name == highlight else 2,
        }
        nfe, w2 = [c.nfe or 0 for c in items], [c.w2 for c in items]
        if isinstance(items[0], MonteCarloCertificate):
            bars = [[c.w2 - c.low for c in items], [c.high - c.w2 for c in items]]  # type: ignore[union-attr]
            handle: Any = ax.errorbar(nfe, w2, yerr=bars, capsize=2, label=f"{name} (Monte Carlo)", **style)
        else:
            (handle,) = ax.plot(nfe, w2, label=name, **style)
        ends[name] = (w2[-1], handle)
    handles = [handle for _, handle in sorted(ends.values(), key=lambda end: -end[0])]
    exact = next((c for c in given if isinstance(c, Certificate)), None)
    if floor and exact is not None and exact.truncation.norm > 0:
        handles.append(
            ax.axhline(
                exact.truncation.norm,
                color=GREY,
                linewidth=1.2,
                linestyle=":",
                label="exact law at $t_{min}$",
            )
        )
    _log_axes(ax, [c.nfe or 0 for c in given], [c.w2 for c in given])
    ax.set_xlabel("network evaluations per sample (NFE)")
    ax.set_ylabel("$W_2$ to the data law (data units)")
    ax.legend(handles=handles, loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, fontsize="small")
    return ax


def spectrum(certificates: Iterable[Certificate], ax: Axes | None = None) -> Axes:
    """Error along each eigendirection of the data, most variance first, both axes logarithmic:

        sqrt((mean difference)^2 + (std difference)^2),

    whose squares add up to W2^2. One line a certificate; of one target. Raises ValueError for none.
    """
    given = list(certificates)
    if not given:
        raise ValueError("no certificates to plot. Next: [sdekit.certify(name, target, process, nfe=20)].")
    ax = _axes(ax, (8.0, 5.0))
    for k, c in enumerate(given):
        order = c.target.eigenvalues.argsort(descending=True)
        error = (c.error.mean.square() + c.error.std.square()).sqrt()[order].detach()
        ax.plot(
            range(1, len(error) + 1),
            error.numpy(),
            color=COLOURS[k % len(COLOURS)],
            linestyle="--" if c.stochastic else "-",
            marker="." if len(error) <= 100 else None,
            linewidth=1.2,
            label=c.name if c.nfe is None else f"{c.name}, {c.nfe}",
        )
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.set_xlabel("rank of the direction, by variance of the data")
    ax.set_ylabel("error along it (data units)")
    ax.grid(True, which="major", alpha=0.3)
    ax.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, fontsize="small")
    return ax


def split(certificates: Iterable[Certificate], ax: Axes | None = None) -> Axes:
    """The parts of each error as dots on a logarithmic axis, one row a certificate, W2 as a bar.

    Each dot is the W2 that its part alone would make; the parts add up by direction, these norms need not.
    Raises ValueError for no certificates.
    """
    given = list(certificates)
    if not given:
        raise ValueError("no certificates to plot. Next: [sdekit.certify(name, target, process, nfe=20)].")
    ax = _axes(ax, (8.0, 1.5 + 0.3 * len(given)))
    rows = range(len(given))
    ax.plot([c.w2 for c in given], rows, "|", color=GREY, markersize=14, markeredgewidth=2.5, label="W2")
    for k, part in enumerate(("initial", "discretization", "score_error", "truncation")):
        norms = [getattr(c, part).norm for c in given]
        if any(norms):
            at = [row for row, norm in zip(rows, norms, strict=True) if norm > 0]
            ax.plot(
                [norms[row] for row in at],
                at,
                linestyle="",
                color=COLOURS[k],
                marker=MARKERS[k],
                label=part.replace("_", " "),
            )
    ax.set_xscale("log")
    ax.set_yticks(list(rows), [c.name if c.nfe is None else f"{c.name}, {c.nfe}" for c in given])
    ax.invert_yaxis()
    ax.set_xlabel("W2 that each part alone would make (data units)")
    ax.grid(True, axis="x", alpha=0.3)
    ax.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, fontsize="small")
    return ax


def _log_axes(ax: Axes, nfe: Sequence[int], w2: Sequence[float]) -> None:
    from matplotlib.ticker import FixedLocator, NullFormatter, ScalarFormatter

    ax.set_xscale("log")
    ax.set_yscale("log")
    ticks = [n for n in (1, 2, 3, 5, 10, 20, 30, 50, 100, 200, 500, 1000) if min(nfe) <= n <= max(nfe)]
    ax.xaxis.set_major_locator(FixedLocator(ticks or sorted(set(nfe))))
    ax.xaxis.set_major_formatter(ScalarFormatter())
    ax.xaxis.set_minor_formatter(NullFormatter())
    finite = sorted(v for v in w2 if v > 0 and math.isfinite(v))
    if finite:  # an unstable sampler must not squeeze the others
        ax.set_ylim(top=min(finite[-1], 40.0 * finite[len(finite) // 2]) * 1.5)
    ax.grid(True, which="major", alpha=0.3)
    ax.grid(True, which="minor", axis="y", alpha=0.1)


def losses(result: FitResult, ax: Axes | None = None) -> Axes:
    """Training loss (every step, and its running mean) and held-out loss of a `sdekit.fit` against steps."""
    ax = _axes(ax, (6.0, 4.0))
    values = result.losses.double()
    window = max(len(values) // 50, 1)
    steps = torch.arange(1, len(values) + 1)
    mean: Tensor = values.unfold(0, window, 1).mean(dim=1)
    ax.plot(steps.numpy(), values.numpy(), color=COLOURS[5], linewidth=0.5, alpha=0.5)
    ax.plot(steps[window - 1 :].numpy(), mean.numpy(), color=COLOURS[0], label="training, running mean")
    if len(result.held_out):
        at, held = result.held_out_steps.numpy(), result.held_out.numpy()
        ax.plot(at, held, color=COLOURS[1], marker="o", markersize=4, label="held out, averaged weights")
    ax.set_yscale("log")
    ax.set_xlabel("optimiser steps")
    ax.set_ylabel("denoising loss per element")
    ax.grid(True, which="both", alpha=0.2)
    ax.legend(frameon=False)
    return ax
