"""Docstrings of sdekit as reStructuredText.

A docstring is prose that opens with its equation. Indented blocks are equations or tables, shown as they
stand; ``Parameters`` is a list of names with indented descriptions; other underlined headings hold prose.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

__all__ = ["to_rst"]

_SPANS = re.compile(
    r"``(?P<code>[^`]+)``|`(?P<name>[^`]+)`|\$(?P<math>[^$]+)\$|(?P<link>\barXiv:\d{4}\.\d{4,5}|\bdoi:[^\s,;)]+)"
)
_UNDERLINE = re.compile(r"-{3,}$")


def _escape(text: str) -> str:
    """Plain words: nothing in them is markup."""
    return re.sub(r"[\\*|]|_(?!\w)", r"\\\g<0>", text)


def inline(text: str, resolve: Callable[[str], str | None]) -> str:
    """One line or paragraph of prose. ``resolve`` maps a name in backticks to its documented path."""

    def span(match: re.Match[str]) -> str:
        if match["code"]:
            return f"``{match['code']}``"
        if match["name"]:
            target = resolve(match["name"])
            return f":py:obj:`{match['name']} <{target}>`" if target else f"``{match['name']}``"
        if match["math"]:
            return f":math:`{match['math']}`"
        kind, _, number = match["link"].partition(":")
        base = "https://arxiv.org/abs/" if kind == "arXiv" else "https://doi.org/"
        return f"`{match['link']} <{base}{number}>`__"

    out, at = [], 0
    for match in _SPANS.finditer(text):
        # A backslash and a blank end the markup where a letter follows, as in `Gaussian`s.
        follows = text[match.end() : match.end() + 1]
        out += [_escape(text[at : match.start()]), span(match), "\\ " if follows.isalnum() else ""]
        at = match.end()
    return "".join([*out, _escape(text[at:])])


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())


def _blocks(lines: list[str]) -> Iterator[list[str]]:
    """Runs of lines between blank ones."""
    block: list[str] = []
    for line in [*lines, ""]:
        if line.strip():
            block.append(line)
        elif block:
            yield block
            block = []


def _prose(lines: list[str], resolve: Callable[[str], str | None], margin: int = 0) -> list[str]:
    """Paragraphs at ``margin``; blocks indented further are literal, and neighbours of that kind join."""
    out: list[str] = []
    literal = False
    for block in _blocks(lines):
        if all(_indent(line) > margin for line in block):
            out += [*([] if literal else [" " * margin + "::", ""]), *block, ""]
            literal = True
            continue
        literal = False
        at = next((k for k, line in enumerate(block) if _indent(line) > margin and not _is_list(block)), None)
        text, rest = (block, []) if at is None else (block[:at], block[at:])
        if not text:  # an equation on top of a paragraph
            split = next(k for k, line in enumerate(block) if _indent(line) <= margin)
            out += [" " * margin + "::", "", *block[:split], ""]
            text, rest = block[split:], []
        out += [*inline("\n".join(text), resolve).split("\n"), ""]
        if rest:
            out += [" " * margin + "::", "", *rest, ""]
    return out


def _is_list(block: list[str]) -> bool:
    return bool(re.match(r"\s*(- |\d+\. )", block[0]))


def _parameters(lines: list[str], resolve: Callable[[str], str | None]) -> list[str]:
    """A definition list: names at the margin, descriptions below them."""
    out: list[str] = []
    entry: list[str] = []

    def flush() -> None:
        if entry:
            out.extend(_prose(entry, resolve, margin=4))
            entry.clear()

    for line in lines:
        if line and not line.startswith(" "):
            flush()
            out.append(", ".join(f"``{name.strip()}``" for name in line.split(",")))
        elif line or entry:
            entry.append(line)
    flush()
    return out


def to_rst(lines: list[str], resolve: Callable[[str], str | None] = lambda _: None) -> list[str]:
    """The lines of one docstring, margin removed, as lines of reStructuredText."""
    sections: list[tuple[str, list[str]]] = [("", [])]
    k = 0
    while k < len(lines):
        if k + 1 < len(lines) and lines[k].strip() and _UNDERLINE.match(lines[k + 1].rstrip()):
            sections.append((lines[k].strip(), []))
            k += 2
            continue
        sections[-1][1].append(lines[k].rstrip())
        k += 1
    out: list[str] = []
    for title, body in sections:
        if title:
            out += [f".. rubric:: {title}", ""]
        out += (_parameters if title == "Parameters" else _prose)(body, resolve)
    return out
