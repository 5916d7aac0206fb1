"""The programs that run Euler-Maruyama on ensembles of the equations of `benchmarks._equations`.

`RIVALS[name](problem, paths, steps)` returns a function without arguments that runs the ensemble from the
equation's one state over (0, 1), with other noise at each call, and returns the end states as a numpy array
(paths, dim), or raises ImportError where the library is not installed.
"""

from __future__ import annotations

import ctypes
import itertools
import math
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import sdekit as sk
from benchmarks._equations import PROBLEMS, End, Parts, Problem, sde, start
from benchmarks._jax_rivals import diffrax, diffrax_batch, scan

__all__ = ["FLAGS", "PROBLEMS", "RIVALS", "Problem", "build"]

SOURCE = Path(__file__).parent / "reference" / "ensembles.c"
FLAGS = {"C": ("-O3", "-march=native", "-ffast-math"), "C strict": ("-O3", "-march=native")}


def sdekit_torch(problem: Problem, paths: int, steps: int) -> End:
    """`sk.solve`, its torch back end."""
    system, x0, seeds = sde(problem), start(problem, paths), itertools.count()
    return lambda: sk.solve(system, x0, (0.0, 1.0), steps=steps, seed=next(seeds)).x.numpy()


def sdekit_compiled(dtype: torch.dtype) -> Callable[[Problem, int, int], End]:
    """`sk.solve` with backend="numba"."""

    def make(problem: Problem, paths: int, steps: int) -> End:
        from sdekit.solvers import compiled as functions

        one = problem.dim == 1

        def drift(x: Any, t: Any) -> Any:
            return problem.drift(functions, (x,))[0] if one else problem.drift(functions, x)

        def diffusion(x: Any, t: Any) -> Any:
            return problem.diffusion(functions, (x,))[0] if one else problem.diffusion(functions, x)

        matrix = {"noise_dim": problem.dim} if problem.noise_type == "general" else {}
        system = sk.compiled(drift, diffusion, dim=problem.dim, noise_type=problem.noise_type, **matrix)
        x0, seeds = start(problem, paths, dtype), itertools.count()

        def end() -> Any:
            solution = sk.solve(system, x0, (0.0, 1.0), steps=steps, seed=next(seeds), backend="numba")
            return solution.x.numpy()

        return end

    return make


@cache
def build(single: bool, flags: tuple[str, ...] = FLAGS["C"]) -> ctypes.CDLL:
    """reference/ensembles.c compiled on the spot. Raises ImportError where there is no gcc.

    Linked without ``flags``: a library linked with -ffast-math makes every subnormal number of the process 0.
    """
    compiler = shutil.which("gcc")
    if compiler is None:
        raise ImportError("no gcc")
    extra = ("-DSINGLE",) if single else ()
    with tempfile.TemporaryDirectory() as folder:
        part, target = (str(Path(folder) / name) for name in ("ensembles.o", "ensembles.so"))
        subprocess.run([compiler, *flags, "-c", "-fPIC", *extra, str(SOURCE), "-o", part], check=True)
        subprocess.run([compiler, "-shared", part, "-o", target, "-lm"], check=True)
        return ctypes.CDLL(target)


def compiled(variant: str, flags: str = "C", dtype: type = np.float32) -> Callable[[Problem, int, int], End]:
    """The C program: `variant` is "xoshiro", "philox" or "plain"."""

    def make(problem: Problem, paths: int, steps: int) -> End:
        function = getattr(build(dtype is np.float32, FLAGS[flags]), f"{problem.name}_{variant}")
        function.argtypes = [
            ctypes.c_void_p,
            ctypes.c_long,
            ctypes.c_long,
            ctypes.c_double,
            ctypes.c_uint64,
        ]
        function.restype = None
        seeds = itertools.count(1)

        def end() -> Any:
            x = np.tile(np.array(problem.x0, dtype), (paths, 1))
            function(x.ctypes.data, paths, steps, 1.0 / steps, next(seeds))
            return x

        return end

    return make


def numpy(problem: Problem, paths: int, steps: int) -> End:
    """Arrays of paths, a loop over time; SFC64, numpy's fastest generator."""
    random, h = np.random.Generator(np.random.SFC64(1)), np.float32(1.0 / steps)
    root = np.float32(math.sqrt(1.0 / steps))

    def end() -> Any:
        x: Parts = tuple(np.full(paths, value, np.float32) for value in problem.x0)
        z = np.empty((problem.dim, paths), np.float32)
        for _ in range(steps):
            random.standard_normal(dtype=np.float32, out=z)
            z *= root
            drift, kick = problem.drift(np, x), problem.kick(np, x, tuple(z))
            x = tuple(a + h * f + g for a, f, g in zip(x, drift, kick, strict=True))
        return np.stack(x, axis=1)

    return end


def torchsde(problem: Problem, paths: int, steps: int) -> End:
    """`torchsde.sdeint`, method "euler"."""
    import torchsde as library

    ours, x0, ends = sde(problem), start(problem, paths), torch.tensor([0.0, 1.0])

    class Theirs(torch.nn.Module):
        noise_type = "general" if problem.noise_type == "general" else "diagonal"
        sde_type = "ito"

        def f(self, t: Tensor, x: Tensor) -> Tensor:
            return ours.drift(x, t)

        def g(self, t: Tensor, x: Tensor) -> Tensor:
            g = ours.diffusion(x, t)
            return g if self.noise_type == "general" else g.expand(x.shape)

    theirs = Theirs()

    def end() -> Any:
        with torch.no_grad():
            return library.sdeint(theirs, x0, ends, method="euler", dt=1.0 / steps)[-1].numpy()

    return end


RIVALS: dict[str, Callable[[Problem, int, int], End]] = {
    "sdekit": sdekit_compiled(torch.float32),
    "sdekit, double": sdekit_compiled(torch.float64),
    "C": compiled("xoshiro"),
    "C, Philox": compiled("philox"),
    "C, path by path": compiled("plain"),
    "C, path by path, strict": compiled("plain", "C strict"),
    "C, double": compiled("xoshiro", dtype=np.float64),
    "C, Philox, double": compiled("philox", dtype=np.float64),
    "C, path by path, double": compiled("plain", dtype=np.float64),
    "sdekit, torch": sdekit_torch,
    "numpy": numpy,
    "jax scan": scan,
    "diffrax, tree": diffrax("tree"),
    "diffrax": diffrax("unsafe"),
    "diffrax, one state": diffrax_batch,
    "torchsde": torchsde,
}
