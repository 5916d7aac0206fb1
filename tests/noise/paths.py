"""Exact second moments of (W, H, K) over any intervals, by quadrature; the tree written a second time."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import numpy as np
import torch

from tests.noise import reference

NODES, WEIGHTS = np.polynomial.legendre.leggauss(4)


def kernels(s: float, t: float, u: np.ndarray) -> np.ndarray:
    """phi with int phi dW = W, H, K over [s, t], from their definitions as integrals of the path.

    H = 1/h int (W_u - W_s) du - W/2 weighs dW at u by (t - u)/h - 1/2; K by the integral from u to t of
    (h/2 - (v - s))/h^2, which is -(x - x^2)/2 with x = (u - s)/h, plus the chord's 1/12.
    """
    x = (u - s) / (t - s)
    return np.where((u > s) & (u < t), np.stack([np.ones_like(x), 0.5 - x, (x * x - x) / 2 + 1 / 12]), 0.0)


def covariance(intervals: list[tuple[float, float]]) -> np.ndarray:
    """Cov of (W, H, K) over each of the intervals s < t: (3 n, 3 n)."""
    cuts = np.unique(intervals)
    total = 0.0
    for a, b in itertools.pairwise(cuts):
        u = a + (b - a) * (NODES + 1) / 2
        phi = np.concatenate([kernels(s, t, u) for s, t in intervals])
        total = total + (phi * (WEIGHTS * (b - a) / 2)) @ phi.T
    return total


def columns(found: list) -> torch.Tensor:
    """Increments of (N, 1) over n intervals as (N, 3 n)."""
    return torch.cat([x for inc in found for x in (inc.W, inc.H, inc.K)], dim=1)


JOINT = covariance([(0.0, 0.5), (0.5, 1.0), (0.0, 1.0)])
CONDITIONAL_MEAN = JOINT[:6, 6:] @ np.linalg.inv(JOINT[6:, 6:])
"""E[W, H, K of both halves | W, H, K of the whole]: the same matrix at any length."""


class Tree:
    """The path of one sample and element in plain Python numbers: cells are dyadic fractions of a root."""

    def __init__(self, seed: int, sample: int, element: int) -> None:
        self.seed, self.sample, self.element = seed, sample, element

    @staticmethod
    def tick(t: Fraction) -> int:
        if t < 0:
            return -Tree.tick(-t)
        if t <= 1:
            return int(t * 2**52)
        r = math.frexp(float(t))[1]
        return (r << 52) + int((t / Fraction(2) ** (r - 1) - 1) * 2**52)

    def normals(self, t: Fraction) -> tuple[float, float, float]:
        k0, k1 = reference.key(self.seed, 2)
        node = self.tick(t) % 2**64
        counter = (self.element, 0, self.sample % 2**32, self.sample % 2**64 // 2**32)
        w = reference.philox(counter, (k0 ^ node % 2**32, k1 ^ node // 2**32))
        a, b = (2 * math.pi * w[i] / 2**32 for i in (1, 3))
        r, q = reference.radius(w[0]), reference.radius(w[2])
        return r * math.cos(a), r * math.sin(a), q * math.cos(b)

    def root(self, a: Fraction, b: Fraction) -> tuple[float, float, float]:
        """W, H, K of a root."""
        x, y, z = self.normals(a)
        h = float(b - a)
        return math.sqrt(h) * x, -math.sqrt(h / 12) * y, math.sqrt(h / 720) * z

    def halves(self, a: Fraction, b: Fraction, known: tuple[float, float, float]) -> list:
        """W, H, K of both halves: the conditional mean, from the covariance, and three orthogonal normals."""
        h = float(b - a)
        mean = CONDITIONAL_MEAN @ np.array(known)
        x, y, z = self.normals((a + b) / 2)
        # g_1 moves the middle by -g_1/2, g_2 the sum of the areas; both keep W, H and K of the whole.
        g1, g2, g3 = math.sqrt(h / 4) * x, math.sqrt(h / 48) * y, math.sqrt(h / 5) * z
        left = np.array([-g1 / 2, (g1 + g2) / 4, (-3 * g2 - g3) / 24])
        right = np.array([g1 / 2, (g1 - g2) / 4, (-3 * g2 + g3) / 24])
        return [tuple(mean[:3] + left), tuple(mean[3:] + right)]

    def over(self, s: Fraction, t: Fraction, a: Fraction, b: Fraction, cell: tuple) -> tuple | None:
        """W, H, K over the part of [s, t] within the cell [a, b]; None where there is none."""
        if s <= a and b <= t:
            return cell
        if t <= a or b <= s:
            return None
        m = (a + b) / 2
        left, right = self.halves(a, b, cell)
        p, q = self.over(s, t, a, m, left), self.over(s, t, m, b, right)
        if p is None or q is None:
            return p or q
        return self.chain(p, q, float(min(m, t) - max(a, s)), float(min(b, t) - max(m, s)))

    @staticmethod
    def chain(p: tuple, q: tuple, h: float, k: float) -> tuple:
        """From the definitions: areas under the path and their first moments add up."""
        n = h + k
        area = [w * d / 2 + d * a for (w, a, _), d in ((p, h), (q, k))]
        W = p[0] + q[0]
        H = (area[0] + area[1] + p[0] * k) / n - W / 2

        def moment(w: float, a: float, c: float, d: float) -> float:
            """int_0^d W_v v dv with W_0 = 0: the chord w d^2/3, and d/2 d a - d^2 c of the bridge."""
            return w * d * d / 3 + d * d * (a / 2 - c)

        first = moment(*p, h) + moment(*q, k) + h * area[1] + p[0] * (n * n - h * h) / 2
        return W, H, (W / 3 + H / 2) - first / (n * n)
