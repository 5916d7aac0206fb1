"""Euler-Maruyama on the ensembles of `benchmarks._equations` by jax and diffrax; see `benchmarks._rivals`."""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks._equations import End, Parts, Problem

__all__ = ["diffrax", "diffrax_batch", "scan"]


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

        first = tuple(jnp.full(paths, value, jnp.float32) for value in problem.x0)
        return jnp.stack(jax.lax.scan(step, first, jax.random.split(key, steps))[0], axis=1)

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
