"""Four equations, and the programs that run Euler-Maruyama on ensembles of them, each in its own way.

    ou       dX = -X dt + 0.5 dW                       gbm      dX = 0.1 X dt + 0.5 X dW
    lorenz   Lorenz 1963 at (10, 28, 8/3), noise 1     heston   mu 0.05, kappa 2, theta 0.04, xi 0.2, rho -0.7

from one state over (0, 1). `RIVALS[name](problem, paths, steps)` returns a function without arguments that
runs the ensemble with other noise at each call and returns the end states as a numpy array (paths, dim), or
raises ImportError where the library is not installed.
"""

from __future__ import annotations

import ctypes
import itertools
import math
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import sdekit as sk

__all__ = ["PROBLEMS", "RIVALS", "Problem", "build"]

SOURCE = Path(__file__).parent / "reference" / "ensembles.c"
FLAGS = {"C": ("-O3", "-march=native", "-ffast-math"), "C strict": ("-O3", "-march=native")}

Parts = tuple[Any, ...]
End = Callable[[], Any]


@dataclass(frozen=True)
class Problem:
    """An equation by components: drift(xp, x) and diffusion(xp, x) of tuples of arrays of the module `xp`.

    `diffusion` returns as many values as x has, or rows where the noise is "general".
    """

    name: str
    x0: tuple[float, ...]
    drift: Callable[[Any, Parts], Parts]
    diffusion: Callable[[Any, Parts], Parts]
    noise_type: str = "diagonal"

    @property
    def dim(self) -> int:
        return len(self.x0)

    def kick(self, xp: Any, x: Parts, z: Parts) -> Parts:
        """G z."""
        g = self.diffusion(xp, x)
        if self.noise_type != "general":
            return tuple(a * b for a, b in zip(g, z, strict=True))
        return tuple(sum(a * b for a, b in zip(row, z, strict=True) if a is not ZERO) for row in g)


ZERO = 0.0
"""An entry of a matrix that is none."""


def _lorenz(xp: Any, x: Parts) -> Parts:
    a, b, c = x
    return 10.0 * (b - a), a * (28.0 - c) - b, a * b - (8.0 / 3.0) * c


def _heston(xp: Any, x: Parts) -> Parts:
    s, v = x
    root = xp.sqrt(xp.maximum(v, 0.0))
    return (root * s, ZERO), (-0.14 * root, (0.2 * math.sqrt(0.51)) * root)


PROBLEMS = {
    p.name: p
    for p in (
        Problem("ou", (1.0,), lambda xp, x: (-x[0],), lambda xp, x: (0.5,), "additive"),
        Problem("gbm", (1.0,), lambda xp, x: (0.1 * x[0],), lambda xp, x: (0.5 * x[0],)),
        Problem("lorenz", (1.0, 1.0, 1.0), _lorenz, lambda xp, x: (1.0, 1.0, 1.0), "additive"),
        Problem(
            "heston",
            (1.0, 0.04),
            lambda xp, x: (0.05 * x[0], 2.0 * (0.04 - x[1])),
            _heston,
            "general",
        ),
    )
}


def sde(problem: Problem) -> sk.SDE:
    """The same equation for sdekit's torch back end."""
    if problem.name == "lorenz":
        return sk.Lorenz63()
    if problem.name == "heston":
        return sk.Heston(mu=0.05, xi=0.2)
    if problem.name == "ou":
        half = torch.tensor(0.5)
        return sk.SDE(lambda x, t: -x, lambda x, t: half, noise_type="additive")
    return sk.SDE(lambda x, t: 0.1 * x, lambda x, t: 0.5 * x, noise_type="diagonal")


def _start(problem: Problem, paths: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.tensor(problem.x0, dtype=dtype).expand(paths, -1).contiguous()


def sdekit_torch(problem: Problem, paths: int, steps: int) -> End:
    """`sk.solve`, its torch back end."""
    system, x0, seeds = sde(problem), _start(problem, paths), itertools.count()
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
        x0, seeds = _start(problem, paths, dtype), itertools.count()

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

    ours, x0, ends = sde(problem), _start(problem, paths), torch.tensor([0.0, 1.0])

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


def _jax() -> Any:
    """jax, told to use one thread: heeded only before its first use in a process."""
    flags = os.environ.get("XLA_FLAGS", "")
    if "xla_cpu_multi_thread_eigen" not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} --xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    import jax

    return jax


def scan(problem: Problem, paths: int, steps: int) -> End:
    """`jax.lax.scan` over time under jit, all paths a step; jax's own generator, Threefry."""
    jax = _jax()
    jnp, h = jax.numpy, 1.0 / steps

    @jax.jit
    def run(key: Any) -> Any:
        def step(x: Parts, key: Any) -> tuple[Parts, None]:
            z = math.sqrt(h) * jax.random.normal(key, (problem.dim, paths), jnp.float32)
            drift, kick = problem.drift(jnp, x), problem.kick(jnp, x, tuple(z))
            return tuple(a + h * f + g for a, f, g in zip(x, drift, kick, strict=True)), None

        start = tuple(jnp.full(paths, value, jnp.float32) for value in problem.x0)
        return jnp.stack(jax.lax.scan(step, start, jax.random.split(key, steps))[0], axis=1)

    seeds = itertools.count()
    return lambda: np.asarray(run(jax.random.key(next(seeds))).block_until_ready())


def diffrax_batch(problem: Problem, paths: int, steps: int) -> End:
    """One `diffrax.diffeqsolve` whose state is the whole ensemble, (dim, paths), its path "unsafe"."""
    jax = _jax()
    import diffrax as library

    jnp = jax.numpy
    shape = (problem.dim, paths)

    class Noise(library.ControlTerm):
        """G dW by components: no operator is formed."""

        def prod(self, vf: Any, control: Any) -> Any:
            return jnp.stack(problem.kick(jnp, tuple(vf), tuple(control)))

        def vf_prod(self, t: Any, y: Any, args: Any, control: Any) -> Any:
            return self.prod(y, control)

    @jax.jit
    def run(key: Any) -> Any:
        motion = library.UnsafeBrownianPath(shape=shape, key=key)
        drift = library.ODETerm(lambda t, y, args: jnp.stack(problem.drift(jnp, tuple(y))))
        terms = library.MultiTerm(drift, Noise(lambda t, y, args: y, motion))
        y0 = jnp.broadcast_to(jnp.array(problem.x0, jnp.float32)[:, None], shape)
        found = library.diffeqsolve(
            terms,
            library.Euler(),
            0.0,
            1.0,
            dt0=1.0 / steps,
            y0=y0,
            adjoint=library.DirectAdjoint(),
            max_steps=None,
            throw=False,
        )
        return found.ys[-1].T

    seeds = itertools.count()
    return lambda: np.asarray(run(jax.random.key(next(seeds))).block_until_ready())


def diffrax(path: str) -> Callable[[Problem, int, int], End]:
    """`diffrax.diffeqsolve` for one path under vmap and jit, as documented; `path` is "tree" or "unsafe"."""

    def make(problem: Problem, paths: int, steps: int) -> End:
        jax = _jax()
        import diffrax as library
        import lineax

        jnp, h = jax.numpy, 1.0 / steps
        shape = (problem.dim,)

        def drift(t: Any, y: Any, args: Any) -> Any:
            return jnp.stack(problem.drift(jnp, tuple(y)))

        def diffusion(t: Any, y: Any, args: Any) -> Any:
            g = problem.diffusion(jnp, tuple(y))
            if problem.noise_type == "general":
                return lineax.MatrixLinearOperator(jnp.stack([jnp.stack(row) for row in g]))
            return lineax.DiagonalLinearOperator(jnp.stack(g))

        def one(key: Any) -> Any:
            motion = (
                library.VirtualBrownianTree(0.0, 1.0, tol=h / 2, shape=shape, key=key)
                if path == "tree"
                else library.UnsafeBrownianPath(shape=shape, key=key)
            )
            terms = library.MultiTerm(library.ODETerm(drift), library.ControlTerm(diffusion, motion))
            found = library.diffeqsolve(
                terms,
                library.Euler(),
                0.0,
                1.0,
                dt0=h,
                y0=jnp.array(problem.x0, jnp.float32),
                adjoint=library.DirectAdjoint() if path == "unsafe" else library.RecursiveCheckpointAdjoint(),
                max_steps=None if path == "unsafe" else steps + 2,
                throw=False,
            )
            return found.ys[-1]

        run, seeds = jax.jit(jax.vmap(one)), itertools.count()
        keys = jax.jit(lambda key: jax.random.split(key, paths))

        def end() -> Any:
            return np.asarray(run(keys(jax.random.key(next(seeds)))).block_until_ready())

        return end

    return make


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
