"""The accuracy benchmark's picture and the compact form of its figures."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

__all__ = ["draw", "lines"]


def lines(
    means: Mapping[str, Mapping[str, Mapping[int, float]]],
    tables: Mapping[str, Mapping[str, Mapping[str, Any]]],
    own: Sequence[str],
) -> dict[str, Any]:
    """Every figure, a line of text for each row: "evaluations: value", "-" where not finite.

    "geometric means" of the medians by suite and configuration; "errors" by problem and configuration,
    mean, median and RMSE for ours, the median for the others that were run on the whole suite.
    """

    def text(row: Mapping[int, float | None]) -> str:
        return ", ".join(f"{n}: {'-' if v is None or math.isinf(v) else f'{v:.2e}'}" for n, v in row.items())

    measured: dict[str, Any] = {}
    for suite, problems in tables.items():
        for name, table in problems.items():
            for c, row in table.items():
                if not any(row.values()) or not (c in own or means[suite].get(c)):
                    continue
                kinds = ("mean", "median", "RMSE") if c in own else ("median",)
                place = ("mean", "median", "RMSE").index
                measured.setdefault(name, {})[c] = {
                    kind: text({n: None if v is None else v[place(kind)] for n, v in row.items()})
                    for kind in kinds
                }
    return {
        "geometric means": {s: {c: text(row) for c, row in rows.items() if row} for s, rows in means.items()},
        "errors": measured,
    }


def draw(
    means: Mapping[str, Mapping[str, Mapping[int, float]]],
    own: Sequence[str],
    default: str,
    path: Path,
) -> None:
    """One panel a suite: geometric mean of the median error against evaluations, every configuration."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, len(means), figsize=(5.5 * len(means), 4.4), squeeze=False)
    for panel, (suite, rows) in zip(panels[0], means.items(), strict=True):
        others = [c for c in rows if c not in own]
        for c in others:
            panel.plot(*_finite(rows[c]), color="0.8", lw=0.5, zorder=1)
        best = {
            n: min(rows[c][n] for c in others if n in rows[c])
            for n in sorted({n for c in others for n in rows[c]})
        }
        panel.plot(*_finite(best), "k--", lw=1.5, label="best of the libraries at each", zorder=3)
        for c in own:
            if c != default:
                panel.plot(*_finite(rows[c]), color="tab:blue", lw=0.6, alpha=0.6, zorder=2)
        panel.plot(*_finite(rows[default]), "o-", color="tab:red", ms=3.5, label=default, zorder=4)
        panel.plot([], [], color="0.8", label="the libraries' configurations")
        panel.plot([], [], color="tab:blue", label="our other samplers")
        panel.set(xscale="log", yscale="log", xlabel="evaluations", title=f"{suite} problems")
        panel.set_xticks(ticks := sorted(rows[default]), labels=[str(n) for n in ticks])
        panel.minorticks_off()
        if best:
            panel.set_ylim(0.3 * min([*best.values(), *rows[default].values()]), 2.0)
    panels[0][0].set_ylabel("median error, geometric mean")
    panels[0][0].legend(fontsize=8)
    figure.tight_layout()
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def _finite(row: Mapping[int, float]) -> tuple[list[int], list[float]]:
    kept = [(n, v) for n, v in row.items() if math.isfinite(v) and v > 0]
    return [n for n, _ in kept], [v for _, v in kept]
