"""Processes for mutants: what is imported before any fork, a fork with its answer, an import from a tree."""

from __future__ import annotations

import ast
import importlib.abc
import importlib.machinery
import importlib.util
import json
import os
import resource
import signal
import traceback
from collections.abc import Callable
from typing import Any

from tests.mutation.scope import path_of

__all__ = ["ImportInstead", "Send", "bound", "forked", "preload", "split"]

Send = Callable[[Any], None]

PATIENCE = 3600.0
"""Seconds by the clock after which a process is ended, even one that only waits."""

ALARMS = (signal.SIGPROF, signal.SIGALRM)

MEMORY = 6 << 30
"""Bytes that a mutant may allocate beyond what its process holds."""


def preload() -> None:
    """Import what tests need beside the library, before any fork."""
    import numba  # noqa: F401
    import scipy.integrate
    import scipy.linalg
    import scipy.special
    import scipy.stats  # noqa: F401
    import torch
    import torch.func
    import torch.utils.checkpoint
    import torchdiffeq  # noqa: F401

    torch.set_num_threads(1)
    torch.testing.assert_close(torch.ones(1), torch.ones(1))  # imports much at its first call


def bound(seconds: float) -> None:
    """End this process when it has used so many more seconds of processor time, however busy the machine."""
    signal.setitimer(signal.ITIMER_PROF, seconds)
    signal.setitimer(signal.ITIMER_REAL, PATIENCE)


def forked(work: Callable[[Send], None], seconds: float | None = None, quiet: bool = True) -> tuple[Any, str]:
    """(what ``work`` sent, how its process ended) of a forked process: "ok", "timeout" or "crash".

    work(send): runs in the child and sends one JSON value. seconds: of processor time; work may set a new
    `bound`. quiet: no output, and bounded memory.
    """
    found = split(seconds, quiet)
    if not callable(found):
        return found
    status = 1
    try:
        try:
            work(found)
        except Exception:
            found({"error": traceback.format_exc()})
        status = 0
    finally:
        os._exit(status)


def split(seconds: float | None = None, quiet: bool = True) -> Send | tuple[Any, str]:
    """Fork here: the parent waits and gets what `forked` returns, the child goes on.

    It gets the function by which it sends, and must leave by `os._exit`.
    """
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reader)
        for alarm in ALARMS:
            signal.signal(alarm, signal.SIG_DFL)
        if seconds is not None:
            bound(seconds)
        if quiet:
            _quiet()

        def send(value: Any) -> None:
            data = json.dumps(value).encode()
            while data:
                data = data[os.write(writer, data) :]

        return send
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        data = pipe.read()
    _, status = os.waitpid(pid, 0)
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) in ALARMS:
        return None, "timeout"
    if not data:
        return None, "crash"
    found = json.loads(data)
    if isinstance(found, dict) and "error" in found:
        raise RuntimeError(f"the run itself failed, not a test:\n{found['error']}")
    return found, "ok"


def _quiet() -> None:
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    with open("/proc/self/statm") as file:
        used = int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, resource.RLIM_INFINITY))


class ImportInstead(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Imports one module from the tree that ``tree()`` gives, not from its file.

    ``tree`` is called when the module is imported, and may fork: what was imported before is shared.
    """

    def __init__(self, name: str, tree: Callable[[], ast.Module]) -> None:
        self.name, self.tree, self.path = name, tree, str(path_of(name))

    def find_spec(self, name: str, path: Any, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        if name != self.name:
            return None
        return importlib.util.spec_from_file_location(name, self.path, loader=self)

    def create_module(self, spec: Any) -> None:
        return None

    def exec_module(self, module: Any) -> None:
        exec(compile(self.tree(), self.path, "exec", dont_inherit=True), module.__dict__)
