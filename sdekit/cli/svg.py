"""Charts as inline SVG: colours come from the page's CSS, numbers stay readable as text.

A chart is drawn in a box of fixed units; `Scale` maps data to it. Classes ``c0`` to ``c7`` colour series,
``axis``, ``grid`` and ``label`` the rest.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

__all__ = ["COLOURS", "Series", "dots", "lines"]

#: Colours of series, classes c0, c1, ...
COLOURS = 8
#: Units of a drawing: width, height, and margins left, right, top, bottom.
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 760, 400, 62, 172, 12, 46
#: Units between the baselines of neighbouring labels.
LEADING = 13.5


@dataclass(frozen=True)
class Series:
    """Points of one line. low, high: an interval at each, where there is one. dashed: drawn so."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None
    dashed: bool = False


@dataclass(frozen=True)
class Scale:
    """From [low, high] in logarithms to [start, end] in units."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        share = math.log(max(value, 1e-300) / self.low) / math.log(self.high / self.low)
        return self.start + min(max(share, -0.5), 1.5) * (self.end - self.start)

    def ticks(self) -> list[float]:
        """Powers of ten; with numbers between, where they are few."""
        decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        reach = math.log10(self.high / self.low)
        steps: tuple[float, ...] = (
            (1,) if reach > 2 else (1, 2, 5) if reach > 0.9 else (1, 1.5, 2, 3, 4, 5, 7)
        )
        values = [step * 10.0**k for k in decades for step in steps]
        values = [v for v in values if self.low * (1 - 1e-9) <= v <= self.high * (1 + 1e-9)]
        return values[:: math.ceil(len(values) / 9)]


def span(values: Sequence[float], cap: float = math.inf) -> tuple[float, float]:
    """Limits around the positive finite values: top at most ``cap`` times their median."""
    kept = sorted(v for v in values if v > 0 and math.isfinite(v))
    if not kept:
        return 0.1, 1.0
    low, high = kept[0], min(kept[-1], cap * kept[len(kept) // 2])
    pad = 1.12 if high > 1.5 * low else 1.5
    return low / pad, high * pad


def lines(
    series: Sequence[Series], x_label: str, y_label: str, title: str, ticks: Sequence[float] = ()
) -> str:
    """y against x, both logarithmic, every line labelled at its right end. ticks: of x."""
    x_low, x_high = span([v for s in series for v in s.x])
    x = Scale(x_low, x_high, LEFT, WIDTH - RIGHT)
    y = Scale(*span([v for s in series for v in s.y], cap=40.0), HEIGHT - BOTTOM, TOP)
    out = [_frame(x, y, x_label, y_label, list(ticks) or x.ticks(), plain)]
    labels = []
    for k, s in enumerate(series):
        points = [(x(a), y(b), a, b) for a, b in zip(s.x, s.y, strict=True) if b > 0 and math.isfinite(b)]
        if not points:
            continue
        style = f'class="line c{k % COLOURS}"' + (' stroke-dasharray="5 4"' if s.dashed else "")
        dot = "dot" if k < COLOURS else "line ring"  # colours return after the eighth
        path = " ".join(f"{px:.1f},{py:.1f}" for px, py, _, _ in points)
        out.append(f'<g clip-path="url(#box)"><polyline {style} points="{path}"/>')
        if s.low is not None and s.high is not None:
            out += [
                f'<line class="line c{k % COLOURS}" x1="{x(a):.1f}" x2="{x(a):.1f}" y1="{y(lo):.1f}" '
                f'y2="{y(hi):.1f}"/>'
                for a, lo, hi in zip(s.x, s.low, s.high, strict=True)
            ]
        if len(points) <= 40:
            out += [
                f'<circle class="{dot} c{k % COLOURS}" cx="{px:.1f}" cy="{py:.1f}" r="3">'
                f"<title>{escape(s.name)}: {plain(a)}, {b:.4g}</title></circle>"
                for px, py, a, b in points
            ]
        out.append("</g>")
        labels.append((points[-1][1], k, s.name))
    out += _labels(labels)
    return _drawing("".join(out), title, HEIGHT)


def dots(rows: Sequence[tuple[str, dict[str, float]]], x_label: str, title: str) -> str:
    """One row a name, one dot a part, on a logarithmic axis; the legend below names the parts."""
    parts = list(dict.fromkeys(part for _, values in rows for part in values))
    height, left = 72 + 22 * len(rows), 168
    base = height - 56
    x = Scale(*span([v for _, values in rows for v in values.values()], cap=1e3), left, WIDTH - 24)
    out = [_x_axis(x, x.ticks(), power, TOP, base, x_label)]
    for r, (name, values) in enumerate(rows):
        py = TOP + 11 + 22 * r
        out.append(f'<line class="grid" x1="{left}" x2="{WIDTH - 24}" y1="{py}" y2="{py}"/>')
        out.append(
            f'<text class="label" x="{left - 10}" y="{py + 4}" text-anchor="end">{escape(name)}</text>'
        )
        for part, value in values.items():
            if value > 0 and math.isfinite(value):
                out.append(
                    f'<g transform="translate({x(value):.1f} {py})">{_mark(parts.index(part))}'
                    f"<title>{escape(name)}, {escape(part)}: {value:.4g}</title></g>"
                )
    at = float(left)
    for k, part in enumerate(parts):
        out.append(f'<g transform="translate({at:.0f} {height - 10})">{_mark(k)}</g>')
        out.append(f'<text class="label" x="{at + 9:.0f}" y="{height - 6}">{escape(part)}</text>')
        at += 28 + 6.6 * len(part)
    return _drawing("".join(out), title, height)


def _mark(k: int) -> str:
    """A shape for each part, so that colour is not needed to tell them; a bar for the first."""
    shapes = (
        '<path d="M-1.5-8H1.5V8H-1.5Z"/>',
        '<circle r="4.2"/>',
        '<path d="M0-5 5 0 0 5-5 0Z"/>',
        '<path d="M-4-4H4V4H-4Z"/>',
        '<path d="M0-5 5 4H-5Z"/>',
        '<path d="M-5-4H5L0 5Z"/>',
    )
    colour = f"c{k - 1}" if k else "total"
    head, rest = shapes[k % len(shapes)].split(" ", 1)
    return f'{head} class="dot {colour}" {rest}'


def plain(value: float) -> str:
    """A number in full."""
    return f"{value:g}"


def power(value: float) -> str:
    """1, 2, 5 times a power of ten, short."""
    if 0.99e-4 < value < 1e5:
        return f"{value:g}"
    mantissa, exponent = f"{value:.0e}".split("e")
    shift = f'<tspan dy="-4" font-size="8.5">{int(exponent)}</tspan>'
    return f"10{shift}" if mantissa == "1" else f"{mantissa}·10{shift}"


def _frame(
    x: Scale, y: Scale, x_label: str, y_label: str, ticks: list[float], words: Callable[[float], str]
) -> str:
    left, right, top, bottom = LEFT, WIDTH - RIGHT, TOP, HEIGHT - BOTTOM
    out = [
        f'<clipPath id="box"><rect x="{left - 4}" y="{top - 4}" width="{right - left + 8}" '
        f'height="{bottom - top + 8}"/></clipPath>'
    ]
    for tick in y.ticks():
        at = y(tick)
        out.append(f'<line class="grid" x1="{left}" x2="{right}" y1="{at:.1f}" y2="{at:.1f}"/>')
        out.append(
            f'<text class="tick" x="{left - 7}" y="{at + 3.5:.1f}" text-anchor="end">{power(tick)}</text>'
        )
    middle = (top + bottom) / 2
    out.append(
        f'<text class="label" transform="translate(14 {middle:.0f}) rotate(-90)" text-anchor="middle">'
        f"{escape(y_label)}</text>"
    )
    out.append(_x_axis(x, ticks, words, top, bottom, x_label))
    return "".join(out)


def _x_axis(
    x: Scale, ticks: Sequence[float], words: Callable[[float], str], top: float, bottom: float, label: str
) -> str:
    out, last = [], -math.inf
    for tick in ticks:
        at = x(tick)
        if at - last < 22:
            continue
        last = at
        out.append(f'<line class="grid" x1="{at:.1f}" x2="{at:.1f}" y1="{top}" y2="{bottom}"/>')
        out.append(
            f'<text class="tick" x="{at:.1f}" y="{bottom + 15}" text-anchor="middle">{words(tick)}</text>'
        )
    out.append(f'<line class="axis" x1="{x.start}" x2="{x.end}" y1="{bottom}" y2="{bottom}"/>')
    middle = (x.start + x.end) / 2
    out.append(
        f'<text class="label" x="{middle:.0f}" y="{bottom + 33}" text-anchor="middle">{escape(label)}</text>'
    )
    return "".join(out)


def _labels(ends: list[tuple[float, int, str]]) -> list[str]:
    """Names at the right, moved apart where lines end together."""
    ends = sorted(ends)
    at = [min(max(y, TOP + 4), HEIGHT - BOTTOM) for y, _, _ in ends]
    for k in range(1, len(at)):
        at[k] = max(at[k], at[k - 1] + LEADING)
    if at:
        at[-1] = min(at[-1], max(HEIGHT - BOTTOM + 4, TOP + LEADING * (len(at) - 1)))
    for k in reversed(range(len(at) - 1)):
        at[k] = min(at[k], at[k + 1] - LEADING)
    edge = WIDTH - RIGHT
    return [
        f'<path class="leader" d="M{edge + 4} {min(max(y, TOP), HEIGHT - BOTTOM):.1f}L{edge + 14} {a:.1f}"/>'
        f'<text class="name c{k % COLOURS}" x="{edge + 18}" y="{a + 4:.1f}">{escape(name)}</text>'
        for a, (y, k, name) in zip(at, ends, strict=True)
    ]


def _drawing(body: str, title: str, height: float) -> str:
    return (
        f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(title)}" '
        f'xmlns="http://www.w3.org/2000/svg">{body}</svg>'
    )
