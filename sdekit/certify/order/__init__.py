"""Exact orders of solvers and samplers, on linear problems."""

from sdekit.certify.order.measure import OrderCertificate, certify_order
from sdekit.certify.order.slopes import OrderRow

__all__ = ["OrderCertificate", "OrderRow", "certify_order"]
