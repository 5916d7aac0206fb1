"""Exact output densities on one-dimensional mixtures; the module is the function too."""

from sdekit._callable import callable_module
from sdekit.certify.density.law import DensityCertificate, density

__all__ = ["DensityCertificate", "density"]

callable_module(__name__, density)
