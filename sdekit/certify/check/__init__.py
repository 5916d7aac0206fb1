"""Samples against a law: a verdict at a stated false-alarm rate."""

from sdekit.certify.check.finding import Finding
from sdekit.certify.check.verdict import CheckError, Verdict, check

__all__ = ["CheckError", "Finding", "Verdict", "check"]
