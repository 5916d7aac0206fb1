"""What is mutated, what is left out and why, and the tests that judge, in the order in which they do."""

from __future__ import annotations

from pathlib import Path

__all__ = ["CHECKS", "MODULES", "NOT_FORMULAS", "ROOT", "check_of", "judging_files", "path_of"]

ROOT = Path(__file__).resolve().parents[2]

#: Modules of formulas, by package.
_SCOPE = {
    "samplers": (
        *("adams", "annealed", "base", "churn", "correctors", "ddim", "dpmpp", "encoder", "er_sde"),
        *("exponential", "flow", "gaussian_split", "multistep", "operations", "pndm", "restart"),
        *("reverse_sde", "sa", "score_sde", "seeds", "single_step", "stages", "trigonometric"),
        *("unipc", "weights"),
    ),
    "solvers": (
        *("adaptive", "adjoint_equation", "control", "euler", "events", "exponential", "fixed", "implicit"),
        *("kvaerno", "langevin", "milstein", "multistep", "newton", "reversible", "reversible_adjoint"),
        *("rows", "runge_kutta", "shark", "splitting", "srk", "srk_tableaus", "stratonovich", "tableaus"),
        *("tableaus_high", "tamed", "times", "weak"),
    ),
    "sde": ("calculus", "diffusion", "gaussian", "kinetic", "langevin", "linear", "preserving", "reverse"),
    "matching.losses": (
        *("between", "contrastive", "direct", "fields", "noised", "simulated", "times", "weights"),
    ),
    "likelihood": ("adams", "bound", "flow", "pixels", "trace"),
    "score": ("energy", "model", "predictions"),
    "noise": ("levy",),
    "kernels": ("eager",),
}
MODULES = tuple(f"sdekit.{package}.{name}" for package, names in _SCOPE.items() for name in names)

#: Functions that compute no state: they check input or word an error.
NOT_FORMULAS = {
    "sdekit.samplers.base": {"Sampler.with_eta"},
    "sdekit.samplers.ddim": {"DDIM._too_much"},
    "sdekit.samplers.encoder": {"check_direction"},
    "sdekit.samplers.operations": {"operation", "register"},
    "sdekit.samplers.single_step": {"check_fraction"},
    "sdekit.solvers.adaptive": {"_Clocks.cause"},
    "sdekit.solvers.fixed": {"_check_first", "_diagnose"},
    "sdekit.solvers.langevin": {"_law"},
}

#: Test file -> what it checks, most specific first: the order in which a mutant meets them.
CHECKS = {
    "samplers/test_published.py": "published formula",
    "samplers/test_published_single.py": "published formula",
    "samplers/test_published_multi.py": "published formula",
    "samplers/test_weights.py": "quadrature weights",
    "samplers/test_formulas.py": "formula in closed form",
    "solvers/test_formulas.py": "formula in closed form",
    "solvers/test_steps_by_hand.py": "formula in closed form",
    "solvers/test_tableaus.py": "equations of a tableau",
    "solvers/test_srk.py": "equations of a tableau",
    "solvers/test_details.py": "solver details",
    "solvers/test_milstein.py": "Milstein term by term",
    "solvers/test_tamed.py": "tamed Euler",
    "solvers/test_exponential.py": "exponential Euler",
    "solvers/test_exponential_paths.py": "exponential Euler",
    "solvers/test_reversible.py": "reversible Heun",
    "solvers/test_splitting.py": "Langevin splitting",
    "sde/test_coefficients.py": "coefficients in closed form",
    "sde/test_calculus.py": "derivatives of diffusions",
    "sde/test_gaussian_laws.py": "laws of a process",
    "sde/test_kinetic.py": "laws of a process",
    "sde/test_linear.py": "laws of a process",
    "sde/test_reverse.py": "time reversal",
    "score/test_predictions.py": "predictions of a network",
    "score/test_denoiser.py": "predictions of a network",
    "score/test_energy.py": "energies",
    "noise/test_levy.py": "Levy area",
    "kernels/test_combine.py": "kernels",
    "matching/test_losses.py": "losses in closed form",
    "matching/test_losses_direct.py": "losses in closed form",
    "matching/test_losses_noised.py": "losses in closed form",
    "matching/test_losses_proofs.py": "losses in closed form",
    "likelihood/test_formulas.py": "likelihood by hand",
    "likelihood/test_adams.py": "likelihood by hand",
    "likelihood/test_pixels.py": "likelihood by hand",
    "likelihood/test_bound.py": "likelihood in closed form",
    "likelihood/test_response.py": "likelihood in closed form",
    "samplers/test_gaussian_split.py": "Gaussian-split by hand",
    "samplers/test_correctors.py": "correctors by hand",
    "samplers/test_annealed.py": "annealed Langevin variance",
    "samplers/test_edges.py": "edges of the grid",
    "samplers/test_coefficients.py": "coefficients of steps",
    "samplers/test_properties.py": "exactness and symmetry",
    "samplers/test_order.py": "order",
    "samplers/test_weak_order.py": "weak order",
    "samplers/test_agreement.py": "sample equals solve",
    "certify/test_exact.py": "exact certificate",
    "certify/test_monte_carlo.py": "certificate against Monte Carlo",
    "test_encode.py": "encoding",
    "samplers/test_plan.py": "plan",
    "samplers/test_sample.py": "sample",
    "samplers/test_errors.py": "errors",
    "samplers/test_grids.py": "grids",
    "samplers/test_invariance.py": "invariance",
    "samplers/test_langevin_failures.py": "Langevin failures",
    "samplers/test_loop.py": "loop",
    "samplers/test_picard.py": "Picard sweeps",
    "solvers/test_langevin.py": "Langevin law",
    "solvers/test_weak.py": "weak order by enumeration",
    "solvers/test_stiff.py": "stiff problems",
    "solvers/test_implicit.py": "stiff problems",
    "solvers/test_strong.py": "strong order, path by path",
    "solvers/test_ode_methods.py": "ODE methods and their oracles",
    "solvers/test_ode.py": "ODE order and control",
    "solvers/test_sde.py": "SDE order and moments",
    "solvers/test_flows.py": "exact flows",
    "solvers/test_solve.py": "solve",
    "solvers/test_door.py": "solve",
    "solvers/test_failures.py": "failures",
    "solvers/test_gradients.py": "gradients",
    "solvers/test_adjoint.py": "adjoint gradients",
    "solvers/test_events.py": "first crossings",
    "solvers/test_output.py": "saved states",
    "solvers/test_adaptive_sde.py": "adaptive SDE steps",
    "certify/test_order.py": "certified orders",
    "sde/test_reversal.py": "reversal in law",
    "sde/test_errors.py": "bad input of processes",
    "sde/test_spec.py": "processes as values",
    "matching/test_losses_bad_input.py": "bad input of losses",
    "likelihood/test_log_prob.py": "densities in closed form",
    "likelihood/test_networks.py": "densities of networks",
}


def path_of(module: str) -> Path:
    """The source file of a module."""
    return ROOT / (module.replace(".", "/") + ".py")


def judging_files() -> list[str]:
    """The test files that judge, relative to the root; those not written yet are left out."""
    return [f"tests/{name}" for name in CHECKS if (ROOT / "tests" / name).exists()]


def check_of(test: str) -> tuple[int, str]:
    """(rank, name) of the check that a test belongs to."""
    file = test.split("::")[0].removeprefix("tests/")
    return list(CHECKS).index(file), CHECKS[file]
