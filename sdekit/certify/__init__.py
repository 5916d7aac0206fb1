"""Certificates: what a sampler's output is worth, exactly."""

from sdekit.certify.calibrate import calibrate
from sdekit.certify.density import DensityCertificate
from sdekit.certify.exact import Certificate, Component, Law, certify
from sdekit.certify.monte_carlo import MonteCarloCertificate, certify_monte_carlo
from sdekit.certify.optimize import optimize_grid
from sdekit.certify.order import OrderCertificate, certify_order
from sdekit.certify.order.slopes import OrderRow
from sdekit.certify.response import ResidualError, ResponseCertificate, certify_response

__all__ = [
    "Certificate",
    "Component",
    "DensityCertificate",
    "Law",
    "MonteCarloCertificate",
    "OrderCertificate",
    "OrderRow",
    "ResidualError",
    "ResponseCertificate",
    "calibrate",
    "certify",
    "certify_monte_carlo",
    "certify_order",
    "certify_response",
    "optimize_grid",
]
