"""Exact laws of black boxes, from their response to impulses of noise."""

from sdekit.certify.response.measure import ResidualError, ResponseCertificate, certify_response

__all__ = ["ResidualError", "ResponseCertificate", "certify_response"]
