"""One self-contained page of a study: no network, no libraries; readable in light, in dark and on paper."""

from __future__ import annotations

import math
from html import escape
from pathlib import Path

from sdekit.certify import Certificate, MonteCarloCertificate
from sdekit.cli.study import PARTS, Line, Result, Study, versions
from sdekit.cli.svg import Series, dots, lines

__all__ = ["page"]

#: Lines of the first and of the second figure: more than these are hard to tell apart.
LINES, SPECTRA = 16, 6
#: Points along a spectrum.
POINTS = 200
ASSETS = Path(__file__).parent


def page(study: Study) -> str:
    """The report as HTML."""
    style = (ASSETS / "report.css").read_text()
    script = (ASSETS / "report.js").read_text()
    title = "Certificate" if len(study.lines) == 1 else "Comparison of samplers"
    names = ", ".join(line.sampler for line in study.lines[:4])
    more = len(study.lines) - 4
    heading = names + (f" and {more} more" if more > 0 else "")
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta name="color-scheme" content="light dark"><title>{title}: {escape(heading)}</title>'
        f"<style>{style}</style></head><body><main>\n"
        f'<header><p class="kicker">sdekit report</p><h1>{title}</h1>{_summary(study)}</header>\n'
        + "\n".join([_errors(study), _figures(study), _split(study), _method(study), _colophon(study)])
        + f"\n</main><script>{script}</script></body></html>\n"
    )


def _summary(study: Study) -> str:
    """What was asked, in a list of terms."""
    target, spec = study.target, study.process.spec()
    settings = ", ".join(
        f"{key} = {value:g}" for key, value in spec.items() if isinstance(value, int | float)
    )
    reference = "the data law" if study.against == "data" else "the exact marginal at the end time"
    terms = {
        "Data": f"Gaussian of <code>{escape(study.target_word)}</code>, {target.dimension:,} dimensions, "
        f"standard deviation {target.data_std:.4g} a coordinate",
        "Process": f"{escape(str(spec['name']))}" + (f" ({escape(settings)})" if settings else ""),
        "Measured": f"2-Wasserstein distance to {reference}, in data units; sampling ends at "
        f"<code>{escape(study.end)}</code>",
        "Grid": f"<code>{escape(study.grid)}</code>" if study.grid else "each sampler’s own",
    }
    body = "".join(f"<dt>{term}</dt><dd>{text}</dd>" for term, text in terms.items())
    return f'<dl class="terms">{body}</dl>'


def _errors(study: Study) -> str:
    unit = "evaluations" if study.unit == "nfe" else "steps"
    head = "<th>sampler</th>" + "".join(f'<th class="num">{b} {unit}</th>' for b in study.budgets)
    best = [_best(study, k) for k in range(len(study.budgets))]
    body = "".join(
        f"<tr><th scope=row>{escape(line.sampler)}</th>"
        + "".join(_cell(r, study, k, best[k]) for k, r in enumerate(line.results))
        + "</tr>"
        for line in study.lines
    )
    notes = ["Smaller is better; bold, the smallest of a column. A heading sorts."] * (len(study.lines) > 1)
    flat = [(r, b) for line in study.lines for r, b in zip(line.results, study.budgets, strict=True)]
    if any(isinstance(r, MonteCarloCertificate) for r, _ in flat):
        notes.append("±: Monte Carlo, half of the 95 % interval; all others are exact to rounding.")
    if study.unit == "nfe" and any(not isinstance(r, str | None) and r.nfe != b for r, b in flat):
        notes.append("(n): evaluations used, where whole steps take fewer.")
    if any(r is None for r, _ in flat):
        notes.append("–: fewer evaluations than one step costs.")
    reasons = {line.sampler: r for line in study.lines for r in line.results if isinstance(r, str)}
    refused = "".join(
        f"<p class=note><b>{escape(k)}</b>, refused: {escape(v)}</p>" for k, v in reasons.items()
    )
    return (
        f"<section id=errors><h2>Error by cost</h2>{_table(head, body)}<p class=note>{' '.join(notes)}</p>"
        f"{refused}</section>"
    )


def _best(study: Study, k: int) -> float:
    found = [r.w2 for line in study.lines if isinstance(r := line.results[k], Certificate)]
    return min(found, default=math.nan)


def _cell(result: Result, study: Study, k: int, best: float) -> str:
    if result is None:
        return '<td class="num none" data-v="inf">–</td>'
    if isinstance(result, str):
        return '<td class="num none" data-v="inf">refused</td>'
    used = f" <small>({result.nfe})</small>" if study.unit == "nfe" and result.nfe != study.budgets[k] else ""
    text = f"{result.w2:.4g}"
    if isinstance(result, MonteCarloCertificate):
        text = f"{result.w2:.2g} <small>± {(result.high - result.low) / 2:.1g}</small>"
    elif result.w2 == best and len(study.lines) > 1:
        text = f"<b>{text}</b>"
    return f'<td class="num" data-v="{result.w2!r}">{text}{used}</td>'


def _figures(study: Study) -> str:
    out = []
    shown = study.lines[:LINES]
    curves = [s for line in shown if (s := _curve(line, study.budgets)) is not None]
    unit = "network evaluations per sample" if study.unit == "nfe" else "steps"
    if curves and len(study.budgets) > 1:
        ticks = sorted({v for s in curves for v in s.x})
        chart = lines(curves, unit, "W2, data units", "Error against evaluations", ticks)
        rest = f" The {LINES} best of {len(study.lines)}." if len(study.lines) > LINES else ""
        out.append(
            _figure("error", chart, f"Error against cost, both logarithmic. Dashed: noise is injected.{rest}")
        )
    exact = [(line, c) for line in study.lines if (c := _last(line)) is not None][:SPECTRA]
    if exact and study.target.dimension > 1:
        chart = lines(
            [_spectrum(line.sampler, c) for line, c in exact],
            "rank of the direction, by variance of the data",
            "error along it",
            "Error along each eigendirection",
        )
        caption = (
            "Error along each eigendirection of the data’s covariance, sqrt(mean² + std²) of the "
            f"differences; W2² is the sum of their squares. {_budget(study)}"
            + (f"; the {SPECTRA} best." if len(study.lines) > SPECTRA else ".")
        )
        out.append(_figure("spectrum", chart, caption))
    return f"<section id=figures><h2>Figures</h2>{''.join(out)}</section>" if out else ""


def _figure(name: str, chart: str, caption: str) -> str:
    chart = chart.replace('id="box"', f'id="{name}-box"').replace("url(#box)", f"url(#{name}-box)")
    return f'<figure id="figure-{name}">{chart}<figcaption>{caption}</figcaption></figure>'


def _curve(line: Line, budgets: tuple[int, ...]) -> Series | None:
    found = [r for r in line.results if isinstance(r, Certificate | MonteCarloCertificate)]
    found = list({r.nfe: r for r in found}.values())
    if not found:
        return None
    sampled = [r for r in found if isinstance(r, MonteCarloCertificate)]
    return Series(
        line.sampler,
        [float(r.nfe or 0) for r in found],
        [r.w2 for r in found],
        [r.low for r in sampled] if sampled else None,
        [r.high for r in sampled] if sampled else None,
        found[-1].stochastic,
    )


def _last(line: Line) -> Certificate | None:
    result = line.results[-1]
    return result if isinstance(result, Certificate) else None


def _spectrum(name: str, c: Certificate) -> Series:
    order = c.target.eigenvalues.argsort(descending=True)
    error = (c.error.mean.square() + c.error.std.square()).sqrt()[order].tolist()
    n = len(error)
    ranks = (
        sorted({round(math.exp(math.log(n) * i / (POINTS - 1))) for i in range(POINTS)})
        if n > POINTS
        else None
    )
    chosen = ranks or range(1, n + 1)
    return Series(name, [float(k) for k in chosen], [error[k - 1] for k in chosen])


def _split(study: Study) -> str:
    alone = len(study.lines) == 1
    exact = [(line.sampler, c) for line in study.lines if (c := _last(line)) is not None]
    if alone:  # one sampler at every budget, instead of every sampler at the largest
        exact = [(f"{study.lines[0].sampler}, {c.nfe}", c) for c in study.exact]
    if not exact:
        return ""
    used = [p for p in PARTS if any(getattr(c, p).norm > 0 for _, c in exact)]
    words = {p: p.replace("_", " ") for p in used}
    rows = [(name, {"W2": c.w2, **{words[p]: getattr(c, p).norm for p in used}}) for name, c in exact]
    head = "<th>sampler</th>" + "".join(
        f'<th class="num">{h}</th>' for h in ("evaluations", "W2", *words.values(), "KL, nats")
    )
    body = "".join(
        f'<tr><th scope=row>{escape(name)}</th><td class="num" data-v="{c.nfe}">{c.nfe}</td>'
        + "".join(f'<td class="num" data-v="{v!r}">{v:.4g}</td>' for v in (*values.values(), c.kl))
        + "</tr>"
        for (name, values), (_, c) in zip(rows, exact, strict=True)
    )
    chart = dots(rows[:LINES], "W2 that each part alone would make", "Parts of the error")
    caption = (
        "Parts of the error. They add up direction by direction, with their signs; these norms need not."
    )
    at = "" if alone else f"{_budget(study)}. "
    return (
        f"<section id=split><h2>Where the error comes from</h2><p>{at}Initial: the run starts at the "
        "process’s prior, not at the true marginal. Discretization: the steps. Truncation: the run "
        f"ends before the data.</p>{_figure('split', chart, caption)}{_table(head, body)}</section>"
    )


def _budget(study: Study) -> str:
    return f"{study.budgets[-1]} {'evaluations' if study.unit == 'nfe' else 'steps'}"


def _table(head: str, body: str) -> str:
    return (
        f"<div class=scroll><table class=sortable><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
        "</div>"
    )


def _method(study: Study) -> str:
    sampled = [r for line in study.lines for r in line.results if isinstance(r, MonteCarloCertificate)]
    text = (
        "On Gaussian data N(m, C) the best denoiser is affine, E[x₀ | x] = m + α C (α² C + σ²)⁻¹ (x − α m). "
        "In the eigenbasis of C a sampler with fixed steps maps its initial state and its noise to the "
        "output direction by direction, r = b + g x + Σ Gₖ ξₖ, with numbers that follow from the "
        "coefficients it would run with. The output is Gaussian with known mean and variance, and W2² = Σ "
        "(difference of means)² + (difference of standard deviations)². No random numbers, in float64; the "
        "noise of the last step is kept."
    )
    extra = ""
    if sampled:
        r = sampled[0]
        extra = (
            f"<p>Samplers that are not affine in their noise were run: {r.samples:,} samples, W2 of their "
            f"mean and standard deviations along the eigendirections, debiased, with a {r.confidence:.0%} "
            f"interval by the jackknife. Exact samples would reach {r.floor:.2g} by chance without debiasing."
            "</p>"
        )
    return f"<section id=method><h2>Method</h2><p>{text}</p>{extra}</section>"


def _colophon(study: Study) -> str:
    held = ", ".join(f"{name} {number}" for name, number in versions().items())
    return (
        f"<footer><p>Made by</p><pre><code>{escape(study.command)}</code></pre><p>{escape(held)}</p></footer>"
    )
