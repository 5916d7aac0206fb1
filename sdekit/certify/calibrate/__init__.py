"""Plans fitted to one model: reference trajectories, a scheme with free coefficients, a fit, a choice."""

from sdekit.certify.calibrate.choose import calibrate

__all__ = ["calibrate"]
