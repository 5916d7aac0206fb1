"""Certificates: what a sampler's output is worth, exactly."""

from sdekit.certify.exact import Certificate, Component, Law, certify
from sdekit.certify.monte_carlo import MonteCarloCertificate, certify_monte_carlo

__all__ = [
    "Certificate",
    "Component",
    "Law",
    "MonteCarloCertificate",
    "certify",
    "certify_monte_carlo",
]
