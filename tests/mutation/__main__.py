"""``python -m tests.mutation``: judge every mutant and write ``docs/reference/mutations.json``.

Exits with 1 if a mutant is not judged, fewer than 98 % are killed, or a survivor has no proof in
``equivalent.toml``.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.mutation import runner, table
from tests.mutation.mutants import Mutant, Source
from tests.mutation.processes import Send, forked, preload
from tests.mutation.results import Results
from tests.mutation.scope import MODULES, judging_files

Job = tuple[Source, Mutant]


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.mutation", description=__doc__)
    parser.add_argument("--workers", type=int, default=1, help="processes at a time (default 1)")
    parser.add_argument("--module", action="append", default=[], help="only this one, e.g. samplers.dpmpp")
    parser.add_argument(
        "--only", default="", help="only mutants whose id starts with this, say samplers.ddim:36:"
    )
    parser.add_argument("--every", type=int, default=1, help="only every n-th mutant")
    parser.add_argument(
        "--cases", type=int, default=12, help="of one parametrised test, at most (default 12)"
    )
    parser.add_argument(
        "--most", type=int, help="tests of a mutant, at most; survivors are then not recorded"
    )
    parser.add_argument(
        "--tests", default="", help="only test files whose name starts with this, say solvers/; as --most"
    )
    parser.add_argument(
        "--measured", action="store_true", help="only test files whose coverage is known; as --most"
    )
    parser.add_argument("--fresh", action="store_true", help="forget earlier outcomes")
    parser.add_argument(
        "--table", action="store_true", help="judge nothing, write the table of what is known"
    )
    parser.add_argument("--cache", type=Path, default=Path(__file__).parent / ".cache")
    return parser.parse_args()


def _work(jobs: list[Job], results: Results, share: int, most: int | None, partial: bool) -> None:
    """Judge a worker's share: first the mutants of functions, in one session, then those of imports."""
    coverage = results.coverage
    late = [job for job in jobs if runner.acts_at_import(*job, coverage)]
    soon = [job for job in jobs if job not in late]
    began, done = time.perf_counter(), 0

    def note(job: Job, outcome: runner.Outcome) -> None:
        nonlocal done
        if outcome.killer or not partial:
            results.put(*job, outcome)
        done += 1
        if not outcome.killer:
            print(f"[{share}] survives {outcome.tests} tests: {job[1].id}  ({job[1].before})", flush=True)
        if done % 50 == 0:
            print(f"[{share}] {done} of {len(jobs)}, {time.perf_counter() - began:.0f} s", flush=True)

    def session(send: Send) -> None:
        def judge_all(session: Any) -> None:
            ready = runner.Session(session, coverage, results.cases, most)
            for job in soon:
                note(job, ready.judge(*job))

        runner.collect(judge_all, results.files)
        send(done)

    if soon:
        done = forked(session, quiet=False)[0] or done
    for source in dict.fromkeys(source for source, _ in late) if most is None else ():
        mutants = [mutant for other, mutant in late if other is source]
        runner.judge_at_import(
            source, mutants, coverage, results.cases, lambda mutant, found, s=source: note((s, mutant), found)
        )


def _known(results: Results, source: Source, mutant: Mutant) -> runner.Outcome | None:
    return results.get(source, mutant, equivalent=mutant.id in table.proved(source))


def main() -> int:
    options = _arguments()
    preload()
    files = [file for file in judging_files() if file.startswith(f"tests/{options.tests}")]
    results = Results(options.cache, options.cases, files)
    if options.fresh:
        results.forget()
    if options.measured:
        results.files = results.measured
    sources = {module: Source(module) for module in MODULES}
    chosen = {f"sdekit.{name}" for name in options.module} or set(MODULES)
    if unknown := chosen - set(MODULES):
        raise SystemExit(f"no such module: {sorted(unknown)}. Next: one of {[m[7:] for m in MODULES]}.")
    jobs = [
        (source, mutant)
        for source in sources.values()
        if source.module in chosen
        for mutant in table.counted(source)[:: options.every]
        if mutant.id.startswith(options.only)
    ]
    todo = [job for job in jobs if _known(results, *job) is None]
    print(f"{len(jobs)} mutants, {len(todo)} to judge", flush=True)
    if todo and not options.table:
        assert results.coverage.tests
        partial = options.most is not None or bool(options.tests) or options.measured
        children = []
        for share in range(options.workers):
            mine = todo[share :: options.workers]
            children.append(
                _spawn(lambda mine=mine, share=share: _work(mine, results, share, options.most, partial))  # type: ignore[misc]
            )
        for child in children:
            child()
        results = Results(options.cache, options.cases)
    outcomes = {
        mutant.id: outcome
        for source in sources.values()
        for mutant in source.mutants
        if (outcome := _known(results, source, mutant)) is not None
    }
    data = table.compose(sources, outcomes)
    table.FILE.write_text(json.dumps(data, indent=0, sort_keys=True) + "\n")
    counts = table.summary(data)
    print("\n\n".join(table.markdown(data).values()))
    print(f"\nwrote {table.FILE}")
    left = sum(len(table.counted(source)) for source in sources.values()) - counts["judged"]
    enough = counts["killed"] >= table.LEAST * counts["judged"] and not counts["open"]
    if left:
        print(f"{left} mutants are not judged. Next: run again.")
    return 0 if enough and not left else 1


def _spawn(work: Callable[[], None]) -> Callable[[], None]:
    """Run ``work`` in a forked process; call the result to wait for it."""
    import os

    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            work()
            status = 0
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            sys.stdout.flush()
            os._exit(status)
    return lambda: (os.waitpid(pid, 0), None)[1]


if __name__ == "__main__":
    sys.exit(main())
