"""What is mutated, what is left out and why, and the tests that judge, in the order in which they do."""

from __future__ import annotations

from pathlib import Path

__all__ = ["CHECKS", "MODULES", "NOT_FORMULAS", "ROOT", "check_of", "judging_files", "path_of"]

ROOT = Path(__file__).resolve().parents[2]

#: Every module with a sampler's recipe or a solver's step.
MODULES = tuple(
    f"sdekit.{name}"
    for name in (
        *(
            f"samplers.{name}"
            for name in (
                *("adams", "annealed", "base", "churn", "correctors", "ddim", "dpmpp", "encoder", "er_sde"),
                *("exponential", "flow", "gaussian_split", "multistep", "operations", "pndm", "restart"),
                *("reverse_sde", "sa", "score_sde", "seeds", "single_step", "stages", "trigonometric"),
                *("unipc", "weights"),
            )
        ),
        *(
            f"solvers.{name}"
            for name in ("adaptive", "control", "euler", "fixed", "langevin", "runge_kutta", "tableaus")
        ),
    )
)

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
    "solvers/test_tableaus.py": "equations of a tableau",
    "solvers/test_details.py": "solver details",
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
    "solvers/test_ode.py": "ODE order and control",
    "solvers/test_sde.py": "SDE order and moments",
    "solvers/test_flows.py": "exact flows",
    "solvers/test_solve.py": "solve",
    "solvers/test_door.py": "solve",
    "solvers/test_failures.py": "failures",
    "solvers/test_gradients.py": "gradients",
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
