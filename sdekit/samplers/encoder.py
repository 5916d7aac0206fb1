r"""Plans from data to noise: a sampler's recipe on its grid backwards.

A deterministic recipe integrates the probability flow over steps of either sign. Where alpha(t_max) = 0
most recipes have no formula for the last step. There the recipe goes to alpha = 1e-3 and the limit closes
the gap: with the denoiser D held fixed the flow is x' = (sigma'/sigma) x + (alpha' - alpha sigma'/sigma) D,
at alpha' = 0

    x' = sigma' (x - alpha D) / sigma = sigma' eps,

whose relative error for data of variance c is alpha^2 c / (2 sigma^2).
"""

from __future__ import annotations

import torch

from sdekit.errors import CapabilityError
from sdekit.samplers.base import Path, Sampler, nodes_at
from sdekit.samplers.grids import Grid
from sdekit.samplers.layout import Known, check_finite, first_time, grid_times, jump
from sdekit.samplers.plan import Instruction, Plan
from sdekit.sde.gaussian import GaussianDiffusion

__all__ = ["check_direction", "encoder"]


def encoder(
    method: Sampler,
    process: GaussianDiffusion,
    layout: Grid,
    n: int,
    known: Known,
    there: Plan,
    finite: bool,
) -> Plan:
    """The plan of ``method`` on the grid backwards; there: the one of the same n intervals to t_min."""
    check_direction(method, there)
    start = first_time(process, finite or method.needs_finite_drift)
    near = float(process.finite_t_max)
    if layout.intervals is not None:
        times = grid_times(process, layout, n, known, start)
        limit = float(process.alpha(float(times[0]))) == 0
        inner = times[1:] if limit else times
        if limit and float(inner[0]) < near:
            inner = torch.cat([inner.new_tensor([near]), inner])
    else:
        limit = float(process.alpha(start)) == 0
        inner = grid_times(process, layout, n - limit, known, near if limit else start)
        if len(inner) == 1:
            inner = inner.new_tensor([float(process.t_min)])
        times = torch.cat([inner.new_tensor([start]), inner]) if limit else inner
    nodes = nodes_at(process, inner.flip(0))
    path = Path(tuple(nodes), known.data_std, known.data_spread, process, predicts=known.predicts)
    try:
        instructions: list[Instruction] = list(method.recipe(path)) if len(nodes) > 1 else []
    except (ArithmeticError, ValueError) as error:
        raise CapabilityError(
            f"{method.name!r} has no formula for steps from t = {nodes[0].t:g} towards noise ({error}). "
            f"Next: 'kernel-quadrature', 'ddim' or 'heun', on a grid that ends at t_min."
        ) from error
    check_finite(method, path, instructions)
    if limit:
        nodes += nodes_at(process, times[:1])
        i = len(nodes) - 2
        instructions += jump(path, i, f"noise[{i}]", "eps", float(nodes[-1].sigma))
    return Plan(
        instructions=tuple(instructions),
        nodes=tuple(nodes),
        prior_std=float(path.norm(0, known.data_std)),
        sampler=method.name,
        process=repr(process),
        end="t_max",
        data_std=known.data_std,
        data_spread=known.data_spread,
    )


def check_direction(method: Sampler, there: Plan) -> None:
    """Refuse to walk a grid backwards with noise or with steps that are not affine."""
    cause = None
    if there.stochastic:
        cause = "it injects noise, and noise cannot be taken back"
    elif not there.affine:
        cause = "it has steps that are not affine (see Plan.affine), which hold in one direction only"
    elif method.stochastic:
        cause = "it is a scheme of the reverse SDE, whose formula holds for decreasing noise only"
    if cause is not None:
        raise CapabilityError(
            f"{method.name!r} cannot encode: {cause}. Next: a deterministic sampler ('kernel-quadrature', "
            f"'trig-adams', 'ddim', 'heun'), eta = 0 where it has one, or 'rk45'."
        )
