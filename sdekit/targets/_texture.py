r"""Spectra of stationary fields: from numbers, and from photographs.

A law on images (C, H, W) is stationary on the torus when Cov(x_c(p), x_c'(q)) = r_cc'(p - q), differences
modulo (H, W). Its Fourier coefficients are then uncorrelated between frequencies, and

    S_cc'(f) = sum_p r_cc'(p) exp(-2 pi i f.p) = Cov(X_c(f), X_c'(f)),

X the unitary transform: a Hermitian C x C matrix for each frequency, with S(-f) = conj S(f).

Galerne, Gousseau and Morel 2011, Random phase textures: theory and synthesis, IEEE Trans. Image Process. 20,
257-267: a texture without structure is told by its spectrum, S(f) = X(f) X(f)^H of one photograph.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sdekit.errors import ShapeError
from sdekit.targets._basis import Hartley, minus
from sdekit.targets._linear import as_float64

__all__ = ["decompose", "parse", "periodic_part", "photograph"]


def parse(spectrum: Any) -> tuple[torch.Size, Tensor]:
    """(event shape, S) of what a user gives: S is (C, H, W) real, or (C, C, H, W) complex.

    spectrum: (L,), (H, W) or (C, H, W) real, uncoupled channels; (C, C, H, W), cross-spectra.
    """
    s = torch.as_tensor(spectrum)
    if s.ndim == 4:
        if s.shape[0] != s.shape[1]:
            raise ShapeError(f"cross-spectra must have shape (C, C, H, W), got {tuple(s.shape)}.")
        s = s.to(torch.complex128).detach().cpu()
        if not bool(torch.isfinite(torch.view_as_real(s)).all()):
            raise ValueError("spectrum holds NaN or infinity. Next: repair it before building the law.")
        adjoint, mirrored = s.transpose(0, 1).conj(), minus(minus(s, -2), -1).conj()
        for other, words in ((adjoint, "S(f)^H = S(f)"), (mirrored, "S(-f) = conj S(f)")):
            _symmetric(s, other, words)
        return s.shape[1:], (s + adjoint) / 2
    if not 1 <= s.ndim <= 3 or s.numel() == 0:
        raise ShapeError(
            f"spectrum must have shape (L,), (H, W), (C, H, W) or (C, C, H, W), got {tuple(s.shape)}."
        )
    power = as_float64(s, "spectrum")
    event = power.shape
    power = power.reshape(*[1] * (3 - power.ndim), *power.shape)
    _symmetric(power, minus(minus(power, -2), -1), "S(-f) = S(f)")
    return event, power


def _symmetric(s: Tensor, other: Tensor, words: str) -> None:
    gap, largest = float((s - other).abs().max()), float(s.abs().max())
    if gap > 1e-6 * largest:
        raise ValueError(
            f"spectrum must have {words}, in the order of torch.fft.fft2, but is off by {gap:.3g} where the "
            f"largest entry is {largest:.3g}. Likely cause: frequencies shifted to the centre, or half of "
            f"them. Next: torch.fft.ifftshift, or the whole transform of a real covariance."
        )


def decompose(s: Tensor) -> tuple[Tensor, Hartley]:
    """Eigenvalues (D,) and basis of a spectrum (C, H, W) real or (C, C, H, W) complex."""
    if not s.is_complex():
        c, h, w = s.shape
        return ((s + minus(minus(s, -2), -1)) / 2).reshape(-1), Hartley((c, h, w))
    _, c, h, w = s.shape
    index = torch.arange(h * w).reshape(h, w)
    mirror = minus(minus(index, -2), -1)
    blocks = s.permute(2, 3, 0, 1).reshape(h * w, c, c)
    own = torch.minimum(index, mirror).flatten()  # the frequency that speaks for the pair f, -f
    real = (index == mirror).flatten()
    values = torch.empty(h * w, c, dtype=torch.float64)
    vectors = torch.empty_like(blocks)
    values[real], alone = torch.linalg.eigh(blocks[real].real)
    vectors[real] = alone.to(vectors.dtype)
    values[~real], vectors[~real] = torch.linalg.eigh(blocks[~real])
    values, vectors = values[own], vectors[own]
    other = own != index.flatten()
    vectors[other] = vectors[other].conj()
    mix = vectors.reshape(h, w, c, c).permute(2, 3, 0, 1).contiguous()
    return values.T.reshape(-1).contiguous(), Hartley((c, h, w), mix)


def photograph(images: Any, couple: bool, periodic: bool) -> tuple[Tensor, Tensor]:
    """(mean (*event,), S) of photographs (H, W), (C, H, W) or (N, C, H, W): the mean of X X^H over them."""
    x = as_float64(images, "images")
    if not 2 <= x.ndim <= 4 or x.numel() == 0:
        raise ShapeError(
            f"images must be one photograph, (H, W) or (C, H, W), or several, (N, C, H, W), got "
            f"{tuple(x.shape)}. Next: channels first, image.permute(2, 0, 1)."
        )
    event = x.shape[-3:] if x.ndim == 4 else x.shape
    x = x.reshape(-1, *[1] * (3 - len(event)), *event)
    mean = x.mean(dim=(0, 2, 3))
    x = x - mean[:, None, None]
    transform = torch.fft.fft2(periodic_part(x) if periodic else x, norm="ortho")
    transform[..., 0, 0] = 0.0
    means = mean[:, None, None].expand(x.shape[1:]).reshape(event)
    if couple and x.shape[1] > 1:
        return means, torch.einsum("nahw,nbhw->abhw", transform, transform.conj()) / len(x)
    return means, transform.abs().square().mean(0)


def periodic_part(x: Tensor) -> Tensor:
    """x (..., H, W) without its jumps across the border: x - s, s the smooth image with

        (2 cos(2 pi q/H) + 2 cos(2 pi r/W) - 4) S(q, r) = V(q, r),   S(0, 0) = 0,

    V the transform of the jumps, which live on the border.

    Moisan 2011, Periodic plus smooth image decomposition, J. Math. Imaging Vision 39, 161-179.
    """
    h, w = x.shape[-2:]
    v = torch.zeros_like(x)
    for dim in (-2, -1):
        jump = x.select(dim, -1) - x.select(dim, 0)
        v.select(dim, 0).add_(jump)
        v.select(dim, -1).sub_(jump)
    q, r = (2 * torch.cos(2 * torch.pi * torch.arange(n, dtype=x.dtype) / n) for n in (h, w))
    factor = q[:, None] + r - 4
    factor[0, 0] = 1.0
    smooth = torch.fft.fft2(v) / factor
    smooth[..., 0, 0] = 0.0
    rough: Tensor = x - torch.fft.ifft2(smooth).real
    return rough
