"""Targets and processes as words of the command line."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sdekit import sde
from sdekit.errors import OptionalDependencyError, SdekitError, ShapeError, unknown_name
from sdekit.targets import Gaussian

__all__ = ["PROCESSES", "TARGETS", "WordError", "parse_process", "parse_target"]

#: Processes by name.
PROCESSES = {
    "vp": sde.VP,
    "subvp": sde.SubVP,
    "ve": sde.VE,
    "cosine": sde.Cosine,
    "edm": sde.EDM,
    "rectified-flow": sde.RectifiedFlow,
}
#: Targets by name; a path to a file is a target too.
TARGETS = ("gaussian", "digits", "texture")
#: Of the dimensions of a target by name.
LARGEST = 10_000_000
SUFFIXES = (".pt", ".npy", ".npz", ".safetensors")


class WordError(SdekitError, ValueError):
    """A word of the command line says nothing that can be built."""


def parse_process(word: str) -> sde.GaussianDiffusion:
    """A process from ``name`` or ``name:key=value,...``, its keyword arguments as numbers.

    Raises UnknownNameError for the name, WordError for its settings.
    """
    name, settings = _split(word)
    if name not in PROCESSES:
        raise unknown_name("process", name, PROCESSES)
    known = list(inspect.signature(PROCESSES[name]).parameters)
    for key in settings:
        if key not in known:
            raise WordError(
                f"process {name!r} takes {', '.join(known) or 'no settings'}, got {key!r} in {word!r}. Next: "
                f"for example vp:beta_max=20."
            )
    made: sde.GaussianDiffusion = PROCESSES[name](**{k: _number(v, word) for k, v in settings.items()})
    return made


def parse_target(word: str) -> Gaussian:
    """A Gaussian from a word.

        gaussian:d=64,spectrum=1/k^2,scale=1,mean=0    variances scale^2 k^-2 (or flat), mean in all elements
        digits                                          scikit-learn's digits in [-1, 1], mean and covariance
        texture:photo=china.jpg,size=64                 stationary texture of a photograph of scikit-learn's
        FILE.pt | .npy | .npz | .safetensors            data (N, *event); or a mean and a cov of these names

    Raises UnknownNameError for the name, WordError for its settings, OptionalDependencyError where a package
    is missing.
    """
    if Path(word).suffix in SUFFIXES:
        return _from_file(Path(word))
    name, settings = _split(word)
    if name not in TARGETS:
        raise unknown_name("target", name, [*TARGETS, *(f"FILE{suffix}" for suffix in SUFFIXES)])
    return {"gaussian": _gaussian, "digits": _digits, "texture": _texture}[name](settings, word)


def _split(word: str) -> tuple[str, dict[str, str]]:
    name, _, rest = word.partition(":")
    parts = [part for part in rest.split(",") if part]
    if any("=" not in part for part in parts):
        raise WordError(f"settings are key=value, separated by commas, got {word!r}.")
    return name, dict(part.split("=", 1) for part in parts)


def _number(text: str, word: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise WordError(f"expected a number, got {text!r} in {word!r}.") from None


def _only(settings: dict[str, str], known: tuple[str, ...], word: str) -> None:
    for key in settings:
        if key not in known:
            raise WordError(f"{word!r}: unknown setting {key!r}. Known: {', '.join(known) or 'none'}.")


def _whole(settings: dict[str, str], key: str, default: int, word: str) -> int:
    number = _number(settings.get(key, str(default)), word)
    if not number.is_integer() or number < 1:
        raise WordError(f"{key} must be a whole number >= 1, got {settings[key]!r} in {word!r}.")
    if number > LARGEST:
        raise WordError(f"{key} must be at most {LARGEST:,}, got {settings[key]!r} in {word!r}.")
    return int(number)


def _gaussian(settings: dict[str, str], word: str) -> Gaussian:
    _only(settings, ("d", "spectrum", "scale", "mean"), word)
    d = _whole(settings, "d", 64, word)
    spectrum = settings.get("spectrum", "1/k")
    k = torch.arange(1, d + 1, dtype=torch.float64)
    if spectrum == "flat":
        variance = torch.ones_like(k)
    elif spectrum == "1/k" or spectrum.startswith("1/k^"):
        variance = k ** -_number(spectrum[4:] or "1", word)
    else:
        raise WordError(f"spectrum must be flat, 1/k or 1/k^p, got {spectrum!r} in {word!r}.")
    scale, mean = (
        _number(settings.get(key, default), word) for key, default in (("scale", "1"), ("mean", "0"))
    )
    return Gaussian(torch.full((d,), mean, dtype=torch.float64), variance=scale**2 * variance)


def _digits(settings: dict[str, str], word: str) -> Gaussian:
    _only(settings, (), word)
    images = _sklearn().load_digits().images
    return Gaussian.from_data(torch.from_numpy(images / 8.0 - 1.0)[:, None])


def _texture(settings: dict[str, str], word: str) -> Gaussian:
    _only(settings, ("photo", "size"), word)
    size = _whole(settings, "size", 64, word)
    photo = settings.get("photo", "china.jpg")
    if photo not in (known := ("china.jpg", "flower.jpg")):
        raise unknown_name("photo", photo, known)
    pixels = torch.from_numpy(_sklearn().load_sample_image(photo).copy()).permute(2, 0, 1)
    top, left = (pixels.shape[1] - size) // 2, (pixels.shape[2] - size) // 2
    if min(top, left) < 0:
        raise WordError(f"size must be at most {min(pixels.shape[1:])}, got {size} in {word!r}.")
    crop = pixels[:, top : top + size, left : left + size]
    return Gaussian.texture(crop.double() / 127.5 - 1)


def _sklearn() -> Any:
    try:
        from sklearn import datasets
    except ImportError as error:
        raise OptionalDependencyError(
            "this target needs scikit-learn, which is not installed. Next: pip install 'sdekit[demo]'."
        ) from error
    return datasets


def _from_file(path: Path) -> Gaussian:
    if not path.is_file():
        raise WordError(
            f"no file {str(path)!r}. Next: check the path, or a target by name: {', '.join(TARGETS)}."
        )
    held = _load(path)
    if "cov" in held:
        return Gaussian(held.get("mean", 0.0), held["cov"])
    if len(held) != 1:
        raise WordError(
            f"{str(path)!r} must hold one array of data, or arrays named mean and cov, got {sorted(held)}."
        )
    (data,) = held.values()
    if data.ndim < 2:
        raise ShapeError(f"data in {str(path)!r} must have shape (N, *event), got {tuple(data.shape)}.")
    return Gaussian.from_data(data)


def _load(path: Path) -> dict[str, Tensor]:
    """Arrays by name; a single one is "data"."""
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return dict(load_file(path))
        if path.suffix == ".pt":
            held = torch.load(path, map_location="cpu", weights_only=True)
        else:
            import numpy as np

            held = np.load(path, allow_pickle=False)
        if hasattr(held, "keys"):
            return {key: torch.as_tensor(held[key]) for key in held.keys()}  # noqa: SIM118
        return {"data": torch.as_tensor(held)}
    except Exception as error:
        raise WordError(
            f"cannot read {str(path)!r} as arrays of numbers: {type(error).__name__}. Likely cause: a "
            f"damaged file, another format under this name, or pickled objects. Next: write it by torch.save "
            f"or numpy.save of one array."
        ) from error
