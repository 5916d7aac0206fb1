"""What is kept between runs: coverage by test file, and the outcome of each mutant."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from tests.mutation.coverage import Coverage
from tests.mutation.mutants import Mutant, Source, digest
from tests.mutation.runner import Outcome, measure
from tests.mutation.scope import MODULES, ROOT, judging_files, path_of

__all__ = ["Results"]


class Results:
    """A folder with ``coverage.json`` and ``outcomes.jsonl``.

    A kill holds while the function around the change and the test file that killed are as they were; a
    survivor while the function and every test file are, and no more cases of a test are asked; a survivor
    that is proved equivalent while the function is. (None looks at the rest: `--fresh` forgets all.)
    """

    def __init__(self, folder: Path, cases: int, files: Sequence[str] | None = None) -> None:
        """files: the test files that judge, all unless given."""
        folder.mkdir(parents=True, exist_ok=True)
        self.coverage_file, self.outcome_file = folder / "coverage.json", folder / "outcomes.jsonl"
        self.texts = {file: digest((ROOT / file).read_text()) for file in judging_files()}
        self.files = list(self.texts) if files is None else list(files)
        self.all_tests = digest(json.dumps(self.texts))
        self.cases = cases
        self.outcomes: dict[str, Outcome] = {}
        self.survived: dict[str, Outcome] = {}
        if self.outcome_file.exists():
            for line in self.outcome_file.read_text().splitlines():
                key, killer, tests, made_with, with_cases = json.loads(line)
                if made_with == self._depends(killer) and (killer or with_cases >= cases):
                    self.outcomes[key] = Outcome(killer, tests)
                elif not killer:
                    self.survived[key] = Outcome(killer, tests)

    def forget(self) -> None:
        """Start anew."""
        self.outcome_file.unlink(missing_ok=True)
        self.coverage_file.unlink(missing_ok=True)
        self.outcomes, self.survived = {}, {}

    def _depends(self, killer: str) -> str:
        if killer in ("timeout", "crash", "import"):
            return killer
        return self.texts.get(killer.split("::")[0], "") if killer else self.all_tests

    def get(self, source: Source, mutant: Mutant, equivalent: bool = False) -> Outcome | None:
        """What is known of a mutant. equivalent: no test can kill it, so that newer tests change nothing."""
        key = source.key(mutant)
        return self.outcomes.get(key) or (self.survived.get(key) if equivalent else None)

    def put(self, source: Source, mutant: Mutant, outcome: Outcome) -> None:
        """Remember; one line, appended at once, so that several processes may write."""
        key = source.key(mutant)
        self.outcomes[key] = outcome
        made_with = self._depends(outcome.killer)
        line = json.dumps([key, outcome.killer, outcome.tests, made_with, self.cases]) + "\n"
        handle = os.open(self.outcome_file, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.write(handle, line.encode())
        os.close(handle)

    @cached_property
    def _known(self) -> dict[str, Any]:
        return json.loads(self.coverage_file.read_text()) if self.coverage_file.exists() else {}

    @property
    def measured(self) -> list[str]:
        """The test files whose coverage is known."""
        return [file for file in self.files if self._covered(file) is not None]

    @cached_property
    def coverage(self) -> Coverage:
        """The coverage of the test files, measured again where a file or a module that it runs changed."""
        known = self._known
        found = {file: self._covered(file) for file in self.files}
        stale = [file for file in self.files if found[file] is None]
        for file in stale:
            fresh = found[file] = measure([file])
            known[file] = [self._state(file, fresh.modules), vars(fresh)]
            self.coverage_file.write_text(json.dumps(known))
        return _joined(part for part in found.values() if part is not None)

    def _covered(self, file: str) -> Coverage | None:
        """What is known of a file's coverage, None where that is of other texts."""
        if file not in self._known:
            return None
        known = self._known[file]
        coverage = Coverage(**{"scope": [], **known[1]})
        same = known[0] == self._state(file, coverage.modules)
        return coverage if same and {*MODULES} <= {*coverage.scope} else None

    def _state(self, file: str, modules: set[str]) -> str:
        """Of what a file's coverage depends on: its text and those of the modules that it runs."""
        return digest("".join([self.texts[file], *map(_module, sorted(modules & {*MODULES}))]))


@cache
def _module(name: str) -> str:
    return digest(path_of(name).read_text())


def _joined(parts: Iterable[Coverage]) -> Coverage:
    found = Coverage()
    for part in parts:
        found.add(part)
    return found
