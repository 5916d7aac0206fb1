"""Mutants of a module: what `changes` finds, with names for them and the tree of each."""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from tests.mutation.changes import Change, changes
from tests.mutation.scope import NOT_FORMULAS, path_of

__all__ = ["Mutant", "Source", "digest"]


def digest(text: str) -> str:
    """The first 16 hex digits of SHA-256."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Mutant:
    """One change of one module.

    ``before`` and ``after``: the changed expression; ``lines``: of the statement around it, on which tests
    are chosen; ``function``: qualified name of the outermost function or method around it, "" outside of
    any, where a mutant acts at import.
    """

    module: str
    line: int
    column: int
    end: int
    operator: str
    before: str
    after: str
    lines: tuple[int, int]
    function: str
    number: int
    """Position among the module's mutants."""

    @property
    def id(self) -> str:
        """module:line:column-end:operator:after, the same in every run."""
        short = self.module.removeprefix("sdekit.")
        return f"{short}:{self.line}:{self.column}-{self.end}:{self.operator}:{self.after}"


class Source:
    """A module's text, its mutants, and the tree of each."""

    def __init__(self, module: str, text: str | None = None) -> None:
        self.module = module
        self.path = path_of(module)
        self.text = self.path.read_text() if text is None else text
        self.mutants = self._mutants()

    @property
    def digest(self) -> str:
        return digest(self.text)

    @cached_property
    def spans(self) -> dict[str, tuple[int, int]]:
        """First and last line of every function, by its qualified name."""
        found: dict[str, tuple[int, int]] = {}

        def visit(body: list[ast.stmt], scope: str) -> None:
            for s in body:
                if isinstance(s, ast.FunctionDef | ast.ClassDef):
                    if isinstance(s, ast.FunctionDef):
                        found[scope + s.name] = (s.lineno, s.end_lineno or s.lineno)
                    visit(s.body, f"{scope}{s.name}.")

        visit(ast.parse(self.text).body, "")
        return found

    @cached_property
    def classes(self) -> dict[str, tuple[int, int]]:
        """First and last line of every class of the module, by its name."""
        body = ast.parse(self.text).body
        return {s.name: (s.lineno, s.end_lineno or s.lineno) for s in body if isinstance(s, ast.ClassDef)}

    def line(self, mutant: Mutant) -> str:
        """The text of the line that a mutant changes."""
        return self.text.splitlines()[mutant.line - 1].strip()

    def key(self, mutant: Mutant) -> str:
        """A name that holds while the outermost function around a mutant, or its statement, is as it is."""
        first, last = self.spans[mutant.function] if mutant.function else mutant.lines
        text = "\n".join(self.text.splitlines()[first - 1 : last])
        inside = (name for name, (a, b) in self.classes.items() if a <= mutant.line <= b)
        where = mutant.function or ".".join(inside)
        place = f"{where}:{digest(text)}:{mutant.line - first}:{mutant.column}-{mutant.end}"
        return f"{self.module.removeprefix('sdekit.')}:{place}:{mutant.operator}:{mutant.after}"

    def tree(self, mutant: Mutant) -> ast.Module:
        """The module with that change, line numbers as they were."""
        tree = ast.parse(self.text)
        for k, change in enumerate(self._changes(tree)):
            if k == mutant.number:
                if change.position is None:
                    setattr(change.parent, change.field, change.new)
                else:
                    getattr(change.parent, change.field)[change.position] = change.new
                return ast.fix_missing_locations(tree)
        raise LookupError(mutant.id)

    def _mutants(self) -> list[Mutant]:
        found: list[Mutant] = []
        seen: set[tuple[Any, ...]] = set()
        for k, change in enumerate(self._changes(ast.parse(self.text))):
            old = getattr(change.parent, change.field)
            old = old if change.position is None else old[change.position]
            before, after, at = _words(old), _words(change.new), change.at
            place = (at.lineno, at.col_offset, at.end_lineno, at.end_col_offset, after)
            if before == after or place in seen:
                continue
            seen.add(place)
            found.append(
                Mutant(
                    self.module,
                    *(at.lineno, at.col_offset, at.end_col_offset),
                    *(change.operator, before, after),
                    *(change.around.lines, change.around.function, k),
                )
            )
        return found

    def _changes(self, tree: ast.Module) -> Iterator[Change]:
        return changes(tree, NOT_FORMULAS.get(self.module, set()))


def _words(node: Any) -> str:
    if isinstance(node, list):
        return ", ".join(map(ast.unparse, node))
    if isinstance(node, ast.cmpop | ast.operator):
        return type(node).__name__
    return node if isinstance(node, str) else ast.unparse(node)
