"""diffusers' schedulers: which ones, with which options (`diffusers_runner` says how they run)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.peers.base import Method, Problem, every
from benchmarks.peers.diffusers_runner import (
    DATA_STD,
    Scheduler,
    at_angles,
    at_down,
    at_flow,
    at_flow_pairs,
    at_full_table,
    at_half_table,
    at_levels,
    at_log_pairs,
    at_middle,
    at_pairs,
    at_table,
)

__all__ = ["deterministic", "stochastic"]

_TABLE = {"prediction_type": "sample", "clip_sample": False}


def _vp(cls: str, predicts: str = "sample", **options: Any) -> Scheduler:
    """A scheduler in "vp" coordinates driven by its ``sigmas``, which end at rho_min."""
    kind = {"prediction_type": predicts}
    return Scheduler(cls, {**kind, **options}, predicts=predicts)


def _dpm(**options: Any) -> Scheduler:
    return _vp("DPMSolverMultistepScheduler", final_sigmas_type="sigma_min", **options)


def _single(**options: Any) -> Scheduler:
    return _vp("DPMSolverSinglestepScheduler", final_sigmas_type="sigma_min", **options)


def _unipc(**options: Any) -> Scheduler:
    return _vp("UniPCMultistepScheduler", final_sigmas_type="sigma_min", **options)


def _edm_dpm(**options: Any) -> Scheduler:
    options = {"final_sigmas_type": "sigma_min", "prediction_type": "epsilon", **options}
    cls = "EDMDPMSolverMultistepScheduler"
    return Scheduler(cls, {**options, "sigma_data": DATA_STD}, coordinates="edm", predicts="edm")


def _edm(
    cls: str,
    layout: Callable[[Any, Problem], Tensor] = at_levels,
    predicts: str = "sample",
    **more: Any,
) -> Scheduler:
    return Scheduler(cls, {"prediction_type": predicts}, layout, "edm", predicts, table=_next, **more)


def _sa(tau: float) -> list[Method]:
    """SA-Solver at its default orders and its highest.

    tau is constant: the default switches it at two entries of a training table, which a process has not.
    """
    methods = []
    for predictor, corrector in ((2, 2), (3, 4)):
        for lower in (True, False):
            solve = _vp(
                "SASolverScheduler",
                tau_func=lambda t: torch.tensor(tau),
                predictor_order=predictor,
                corrector_order=corrector,
                lower_order_final=lower,
            )
            label = f"SA-Solver tau={tau:g} orders {predictor}, {corrector}{'' if lower else ' full'}"
            methods.append(Method(label, solve))
    return methods


def deterministic() -> list[Method]:
    """Schedulers without noise at their defaults, the orders and solver types that they offer.

    lower_order_final is True by default (lower orders at the end below 15 steps); "full" sets it to False.
    Flow-matching Euler, EDM Euler and Euler take the step of DDIM. Consistency and distillation schedulers
    (LCM, TCD, SCM, piFlow, ...) need a network of their own, and are no solvers of the flow.
    """
    methods = [
        Method("DDIM", Scheduler("DDIMScheduler", _TABLE, at_table, predicts="sample", table=_same)),
        Method(
            "PNDM",
            Scheduler(
                "PNDMScheduler",
                {"prediction_type": "epsilon", "skip_prk_steps": True},
                at_table,
                predicts="epsilon",
                table=_same,
            ),
            lambda nfe: nfe - 1,
            fewest=2,
        ),
        Method(
            "PNDM with Runge-Kutta start",
            Scheduler(
                "PNDMScheduler",
                {"prediction_type": "epsilon"},
                at_half_table,
                predicts="epsilon",
                table=lambda n: 2 * n,
            ),
            lambda nfe: nfe - 9,
            fewest=4,
        ),
        Method("IPNDM", Scheduler("IPNDMScheduler", {}, at_angles, predicts="v")),
        Method("Euler", _edm("EulerDiscreteScheduler")),
        Method(
            "EDM Euler", Scheduler("EDMEulerScheduler", {"sigma_data": DATA_STD}, at_levels, "edm", "edm")
        ),
        Method("FlowMatch Euler", Scheduler("FlowMatchEulerDiscreteScheduler", {}, at_flow, "flow", "flow")),
        Method("Heun", _edm("HeunDiscreteScheduler", at_pairs), every(2)),
        Method(
            "FlowMatch Heun",
            Scheduler("FlowMatchHeunDiscreteScheduler", {}, at_flow_pairs, "flow", "flow"),
            every(2),
        ),
        Method("KDPM2", _edm("KDPM2DiscreteScheduler", at_middle, "epsilon"), every(2)),
        Method("LMS", _edm("LMSDiscreteScheduler")),
        Method("LMS order 3", _edm("LMSDiscreteScheduler", step={"order": 3})),
        *_sa(0.0),
    ]
    for order in (2, 3):
        methods.append(Method(f"DEIS-{order}", _vp("DEISMultistepScheduler", solver_order=order)))
        full = _vp("DEISMultistepScheduler", solver_order=order, lower_order_final=False)
        methods.append(Method(f"DEIS-{order} full", full))
        for solver in ("midpoint", "heun"):
            methods.append(
                Method(f"EDM DPM++ {order}M {solver}", _edm_dpm(solver_order=order, solver_type=solver))
            )
        for kind in ("dpmsolver", "dpmsolver++"):
            for solver in ("midpoint", "heun"):
                options = {"solver_order": order, "algorithm_type": kind, "solver_type": solver}
                label = f"{kind} {{}} order {order} {solver}"
                methods.append(Method(label.format("singlestep"), _single(**options)))
                methods.append(Method(label.format("multistep"), _dpm(**options)))
                full = _dpm(lower_order_final=False, **options)
                methods.append(Method(label.format("multistep") + " full", full))
    for order in (2, 3, 4):
        # From order 3 the scale B(h), bh1 or bh2, cancels from every coefficient but the last step's.
        for solver in ("bh1", "bh2") if order < 4 else ("bh2",):
            for x0 in (True, False):
                options = {"solver_order": order, "solver_type": solver, "predict_x0": x0}
                label = f"UniPC-{order} {solver} {'x0' if x0 else 'eps'}"
                methods.append(Method(label, _unipc(**options)))
                methods.append(Method(f"{label} full", _unipc(lower_order_final=False, **options)))
    return methods


def stochastic() -> list[Method]:
    """Schedulers with noise whose steps are affine, at their defaults."""
    sde = "DPMSolverSDEScheduler"
    cosine = {"prediction_type": "epsilon", "sigma_data": DATA_STD, "final_sigmas_type": "sigma_min"}
    methods = [
        Method("DDPM", Scheduler("DDPMScheduler", _TABLE, at_full_table, predicts="sample", table=_next)),
        Method(
            "DDIM eta=1",
            Scheduler("DDIMScheduler", _TABLE, at_table, predicts="sample", table=_same, step={"eta": 1.0}),
        ),
        Method("Euler ancestral", _edm("EulerAncestralDiscreteScheduler", predicts="epsilon")),
        Method("KDPM2 ancestral", _edm("KDPM2AncestralDiscreteScheduler", at_down, "epsilon"), every(2)),
        Method("DPM-Solver SDE", _edm(sde, at_log_pairs, "epsilon", brownian=True), every(2)),
        Method(
            "Cosine DPM++ 2M SDE",
            Scheduler("CosineDPMSolverMultistepScheduler", cosine, at_levels, "edm", "edm", brownian=True),
        ),
        Method("EDM DPM++ 2M SDE", _edm_dpm(algorithm_type="sde-dpmsolver++")),
        *_sa(1.0),
        *_sa(0.4),
    ]
    for order in (1, 2, 3):
        for solver in ("midpoint", "heun")[: 1 + (order == 2)]:
            options = {"solver_order": order, "algorithm_type": "sde-dpmsolver++", "solver_type": solver}
            methods.append(Method(f"sde-dpmsolver++ {order}M {solver}", _dpm(**options)))
    return methods


def _same(n: int) -> int:
    return n


def _next(n: int) -> int:
    return n + 1
