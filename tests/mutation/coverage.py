"""Which tests run which lines of the mutated modules, and how long each test takes."""

from __future__ import annotations

import functools
import gc
import importlib
import sys
import time
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

import pytest

from tests.mutation.scope import MODULES, path_of

__all__ = ["Coverage", "Tracer", "caches"]

OPTIMIZED = 1
"""co_flags of functions; modules and class bodies lack it."""


def caches() -> list[Any]:
    """Every `functools` cache of the library and its tests: a plan in a cache runs no recipe."""
    # type(item) and not isinstance, which would ask the item.
    found: list[Any] = [item for item in gc.get_objects() if type(item) is functools._lru_cache_wrapper]
    return [item for item in found if (item.__module__ or "").startswith(("sdekit", "tests"))]


@dataclass
class Coverage:
    """tests: test -> module -> lines it runs. seconds: test -> processor time. failed: tests that fail as
    they are. early: module -> lines of functions that run when the library is imported. scope: modules
    watched.
    """

    tests: dict[str, dict[str, list[int]]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    failed: list[str] = field(default_factory=list)
    early: dict[str, list[int]] = field(default_factory=dict)
    scope: list[str] = field(default_factory=lambda: list(MODULES))

    def add(self, other: Coverage) -> None:
        """Take in the coverage of other test files."""
        self.tests.update(other.tests)
        self.seconds.update(other.seconds)
        self.failed += other.failed
        for module, lines in other.early.items():
            self.early[module] = sorted({*lines, *self.early.get(module, ())})

    @property
    def modules(self) -> set[str]:
        """The modules of which something runs."""
        return {*self.early, *(module for modules in self.tests.values() for module in modules)}

    @functools.cached_property
    def breadth(self) -> dict[str, int]:
        """How many lines a test runs."""
        return {test: sum(map(len, modules.values())) for test, modules in self.tests.items()}

    @functools.cached_property
    def _by_line(self) -> dict[str, dict[int, list[str]]]:
        """module -> line -> tests that pass as they are."""
        bad = set(self.failed)
        found: dict[str, dict[int, list[str]]] = {module: {} for module in MODULES}
        for test, modules in self.tests.items():
            if test not in bad:
                for module, lines in modules.items():
                    for line in lines if module in found else ():
                        found[module].setdefault(line, []).append(test)
        return found

    def covering(self, module: str, lines: tuple[int, int] | None) -> list[str]:
        """Tests that run one of the lines, or any line of the module for None, in a fixed order."""
        by_line = self._by_line[module]
        chosen = by_line if lines is None else range(lines[0], lines[1] + 1)
        found = {test for line in chosen for test in by_line.get(line, ())}
        return sorted(found)


class Tracer:
    """A pytest plugin that fills a `Coverage`."""

    def __init__(self) -> None:
        self.files = {str(path_of(module)): module for module in MODULES}
        self.hits: dict[str, set[int]] = {}
        self.coverage = Coverage()
        self.caches: list[Any] = []

    def _call(self, frame: FrameType, event: str, argument: Any) -> Any:
        code = frame.f_code
        module = self.files.get(code.co_filename)
        if module is None or not code.co_flags & OPTIMIZED:
            return None
        lines = self.hits.setdefault(module, set())
        lines.add(frame.f_lineno)

        def line(frame: FrameType, event: str, argument: Any) -> Any:
            lines.add(frame.f_lineno)
            return line

        return line

    def _take(self) -> dict[str, list[int]]:
        found = {module: sorted(lines) for module, lines in self.hits.items()}
        self.hits = {}
        return found

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection(self) -> None:
        """Import the library before any test does, and note the functions that run already then."""
        sys.settrace(self._call)
        importlib.import_module("sdekit")
        sys.settrace(None)
        self.coverage.early = self._take()

    def pytest_collection_finish(self) -> None:
        self.caches = caches()

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Any:
        for cache in self.caches:
            cache.cache_clear()
        began = time.process_time()
        sys.settrace(self._call)
        yield
        sys.settrace(None)
        self.coverage.seconds[item.nodeid] = time.process_time() - began
        self.coverage.tests[item.nodeid] = self._take()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed or report.skipped:
            self.coverage.failed.append(report.nodeid)
