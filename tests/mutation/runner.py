"""Mutants against tests, each in a process of its own.

A session imports the library and collects the tests once. For each mutant it forks; the child gives the
mutated function its new code in place (`install`), empties the caches and runs the tests that cover the
changed lines, most specific first, until one fails. A mutant that acts at import (a constant of a module or
class, a default, code that runs on import) gets a process that has not imported the library
yet and an import hook. The work tree is never touched.
"""

from __future__ import annotations

import ast
import gc
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from types import CodeType, FunctionType
from typing import Any, TypeAlias

import pytest

from tests.mutation.coverage import Coverage, Tracer, caches
from tests.mutation.mutants import Mutant, Source
from tests.mutation.processes import ImportInstead, Send, bound, forked, split
from tests.mutation.scope import MODULES, ROOT, check_of, judging_files, path_of

__all__ = [
    "Outcome",
    "Session",
    "acts_at_import",
    "collect",
    "functions",
    "install",
    "judge_at_import",
    "judge_by",
    "measure",
    "select",
    "users",
]

OPTIONS = ("-p", "no:cacheprovider", "-q", "-s", "--no-header", "-m", "not slow")
Functions: TypeAlias = "dict[tuple[str, str, int], list[FunctionType]]"


@dataclass(frozen=True)
class Outcome:
    """killer: the test that failed, "timeout", "crash" or "import"; "" for a survivor of ``tests`` tests."""

    killer: str
    tests: int


Note: TypeAlias = "Callable[[Mutant, Outcome], None]"


def functions() -> Functions:
    """Live functions by (file, qualified name, first line)."""
    found: Functions = {}
    for item in gc.get_objects():
        if type(item) is FunctionType:  # isinstance would ask the item
            code = item.__code__
            key = (code.co_filename, code.co_qualname, code.co_firstlineno)
            found.setdefault(key, []).append(item)
    return found


def _codes(code: CodeType) -> Iterator[CodeType]:
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield constant
            yield from _codes(constant)


def install(source: Source, mutant: Mutant, live: Functions) -> None:
    """Give the live function around ``mutant`` its mutated code, in this process.

    Raises LookupError where no such function lives.
    """
    path = str(source.path)
    module = compile(source.tree(mutant), path, "exec", dont_inherit=True)
    count = 0
    for code in _codes(module):
        if code.co_qualname == mutant.function and code.co_firstlineno <= mutant.line:
            for function in live.get((path, code.co_qualname, code.co_firstlineno), ()):
                function.__code__ = code
                count += 1
    if not count:
        raise LookupError(f"no function {mutant.function!r} lives in {path}")


def acts_at_import(source: Source, mutant: Mutant, coverage: Coverage) -> bool:
    """Whether a mutant needs its own import of the library."""
    if not mutant.function:
        return True
    first, last = source.spans[mutant.function]
    return any(first <= line <= last for line in coverage.early.get(mutant.module, ()))


@cache
def users(module: str) -> tuple[str, ...]:
    """The modules in scope that import from a module."""
    line = f"from {module} import "
    return tuple(name for name in MODULES if name != module and line in path_of(name).read_text())


def select(mutant: Mutant, coverage: Coverage, cases: int, whole: bool) -> list[str]:
    """The tests that judge a mutant, in order: check by check, those that run the fewest lines first.

    Of one parametrised test at most ``cases`` cases, evenly spread. whole: by module, not by line; also the
    tests of the modules that import it, which may read nothing but its data.
    """
    found = coverage.covering(mutant.module, None if whole else mutant.lines)
    for user in users(mutant.module) if whole else ():
        found += coverage.covering(user, None)
    families: dict[str, list[str]] = {}
    for test in sorted({*found}):
        families.setdefault(test.split("[")[0], []).append(test)
    chosen = []
    for tests in families.values():
        n = min(cases, len(tests))
        chosen += [tests[(2 * k + 1) * len(tests) // (2 * n)] for k in range(n)]
    return sorted(chosen, key=lambda test: (check_of(test)[0], coverage.breadth[test], test))


class _Judge:
    """A pytest plugin: runs chosen items in order until one fails."""

    def __init__(self) -> None:
        self.failed = ""

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed and not self.failed:
            self.failed = report.nodeid


def _no_words(error: Any, style: Any = None) -> str:
    """In place of the report of a failure, which takes longer than most tests."""
    return "failed"


def _limit(seconds: float) -> float:
    """Processor time of a test that takes so much on the original: a loop that does not end is caught."""
    return 30.0 + 20.0 * seconds


def _warm_up() -> None:
    """Load the compiled kernels, which every child would do else. Too few numbers for a pool of threads."""
    import torch

    import sdekit

    for dtype in (torch.float32, torch.float64):
        x = torch.zeros(3, 2, dtype=dtype)
        sdekit.Philox(0).normal(0, x, torch.arange(3))
        sdekit.Philox(0).normal(0, torch.zeros(3, 140, dtype=dtype), torch.arange(3))


class Session:
    """The library imported, the tests collected: what every fork starts from."""

    def __init__(
        self, session: pytest.Session, coverage: Coverage, cases: int, most: int | None = None
    ) -> None:
        self.config, self.coverage, self.cases, self.most = session.config, coverage, cases, most
        self.items = {item.nodeid: item for item in session.items}
        self.functions, self.caches = functions(), caches()
        _warm_up()
        gc.collect()
        gc.freeze()  # forks then share these pages

    def judge(self, source: Source, mutant: Mutant) -> Outcome:
        """Run the covering tests on a mutant of a function, in a fork of this process."""
        chosen = select(mutant, self.coverage, self.cases, whole=False)[: self.most]
        tests = [test for test in chosen if test in self.items]
        if not tests:
            return Outcome("", 0)

        def work(send: Send) -> None:
            watch = _Judge()
            self.config.pluginmanager.register(watch)
            install(source, mutant, self.functions)
            for kept in self.caches:
                kept.cache_clear()
            for test in tests:
                bound(_limit(self.coverage.seconds.get(test, 0.0)))
                item = self.items[test]
                item.repr_failure = _no_words  # type: ignore[assignment,method-assign]
                item.config.hook.pytest_runtest_protocol(item=item, nextitem=None)
                if watch.failed:
                    break
            send(watch.failed)

        killer, end = forked(work, 60.0)
        return Outcome(killer if end == "ok" else end, len(tests))


class _Chosen(_Judge):
    """The same for a whole run of pytest: keeps and orders the chosen tests, and new ones."""

    def __init__(self, tests: Sequence[str], coverage: Coverage) -> None:
        super().__init__()
        self.rank = {test: k for k, test in enumerate(tests)}
        self.known, self.seconds = set(coverage.tests), coverage.seconds
        self.ran = 0

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        kept = [item for item in items if item.nodeid in self.rank or item.nodeid not in self.known]
        kept.sort(key=lambda item: self.rank.get(item.nodeid, len(self.rank)))
        items[:] = [item for item in kept if item.get_closest_marker("slow") is None]

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self.ran += 1
        bound(_limit(self.seconds.get(nodeid, 1.0)))


def judge_at_import(
    source: Source, mutants: Sequence[Mutant], coverage: Coverage, cases: int, note: Note
) -> None:
    """Run the tests that cover a module on mutants that act at import; note(mutant, outcome) of each.

    The library must not be imported in this process. Check by check, in their order, on those still alive.
    """
    if not mutants:
        return
    files: dict[str, list[str]] = {}
    for test in select(mutants[0], coverage, cases, whole=True):
        files.setdefault(test.split("::")[0], []).append(test)
    groups: dict[str, list[str]] = {}
    for file in files:
        groups.setdefault(check_of(file)[1], []).append(file)
    alive, asked = list(mutants), 0
    for group in groups.values():
        if not alive:
            return
        tests = [test for file in group for test in files[file]]
        alive = judge_by(source, alive, group, tests, coverage, note)
        asked += len(tests)
    for mutant in alive:
        note(mutant, Outcome("", asked))


def judge_by(
    source: Source,
    mutants: Sequence[Mutant],
    files: Sequence[str],
    tests: Sequence[str],
    coverage: Coverage,
    note: Note,
) -> list[Mutant]:
    """Run test files on any mutants of a module, each imported with it; those that survive.

    One process starts pytest and imports the library up to the module; there one for each mutant leaves.
    tests: in this order; those that ``coverage`` does not know come after. note: is told of those that fall.
    """
    assert "sdekit" not in sys.modules, "the library is imported already"

    def work(send: Send) -> None:
        mine: list[Send] = []

        def tree() -> ast.Module:
            alive = []
            for mutant in mutants:
                found = split(120.0)
                if callable(found):
                    mine.append(found)
                    return source.tree(mutant)
                outcome = _fallen(*found)
                if outcome is None:
                    alive.append(mutant.id)
                else:
                    note(mutant, outcome)
            send(alive)
            os._exit(0)

        plugin = _Chosen(tests, coverage)
        sys.meta_path.insert(0, ImportInstead(source.module, tree))
        code = pytest.main([*OPTIONS, "-x", *files], plugins=[plugin])
        if mine:
            mine[0]([int(code), plugin.failed, plugin.ran])
            os._exit(0)
        send([mutant.id for mutant in mutants])  # no test imports the module

    alive, end = forked(work, quiet=False)
    if end != "ok":
        raise RuntimeError(f"the run itself ended by {end}. Next: run {[*files]} without mutants.")
    return [mutant for mutant in mutants if mutant.id in alive]


def _fallen(found: Any, end: str) -> Outcome | None:
    """What became of a process of `judge_by`; None where every test passed."""
    if end != "ok":
        return Outcome(end, 0)
    code, failed, ran = found
    return None if code in (0, 5) else Outcome(failed or "import", ran)


def collect(
    work: Callable[[pytest.Session], None], files: Sequence[str] = (), plugins: Iterable[Any] = ()
) -> int:
    """Collect the tests of ``files`` and hand the session to ``work`` instead of running them."""

    class Hand:
        @pytest.hookimpl(tryfirst=True)
        def pytest_runtestloop(self, session: pytest.Session) -> bool:
            work(session)
            return True

    return int(pytest.main([*OPTIONS, *(files or judging_files())], plugins=[Hand(), *plugins]))


def measure(files: list[str]) -> Coverage:
    """The coverage of test files, in a forked process; minutes for all of them."""

    def work(send: Send) -> None:
        tracer = Tracer()
        pytest.main([*OPTIONS, *files], plugins=[tracer])
        send(tracer.coverage.__dict__)

    began = time.perf_counter()
    found, end = forked(work)
    if end != "ok":
        raise RuntimeError(f"the coverage run ended by {end}. Next: run the tests without mutants.")
    coverage = Coverage(**found)
    print(
        f"coverage of {len(coverage.tests)} tests in {time.perf_counter() - began:.0f} s, "
        f"{len(coverage.failed)} of them skipped or failing"
    )
    return coverage


os.chdir(ROOT)
