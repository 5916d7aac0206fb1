"""Peak memory of a piece of work in a fresh interpreter, above that of its imports."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

__all__ = ["above_import", "peak_mb"]

ROOT = Path(__file__).parents[1]


def peak_mb() -> float:
    """The most memory this process has held so far, MB (10^6 bytes).

    Linux: VmHWM, which a new program starts at zero; `ru_maxrss` would keep what its parent held.
    """
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024 / 1e6
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def above_import(imports: str, work: str) -> float | None:
    """MB that the statements `work` need at most beyond what the statement `imports` has.

    None where `imports` raises ImportError. One thread, by OMP_NUM_THREADS. What is
    compiled on the way counts.
    """
    program = f"""
from benchmarks._memory import peak_mb
try:
    {imports}
except ImportError:
    raise SystemExit(3)
before = peak_mb()
{work}
print(peak_mb() - before)
"""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    if done.returncode == 3:
        return None
    if done.returncode:
        raise RuntimeError(f"the work failed: {done.stderr.strip()[-2000:]}")
    return round(float(done.stdout.split()[-1]), 1)
