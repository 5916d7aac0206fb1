"""Results that are dear to compute, kept in benchmarks/.cache, which git ignores."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

__all__ = ["census", "digest", "folder", "keep_tensor", "read_json", "write_json"]

CACHE = Path(__file__).parent / ".cache"


def folder(name: str) -> Path:
    """benchmarks/.cache/name, made with a .gitignore of its own."""
    path = CACHE / name
    path.mkdir(parents=True, exist_ok=True)
    ignore = CACHE / ".gitignore"
    if not ignore.exists():
        ignore.write_text("*\n")
    return path


def census() -> dict[str, int]:
    """Folder of the cache -> files in it."""
    if not CACHE.exists():
        return {}
    counts = {
        path.name: sum(f.is_file() for f in path.iterdir()) for path in CACHE.iterdir() if path.is_dir()
    }
    return dict(sorted((name, count) for name, count in counts.items() if count))


def digest(*parts: Any) -> str:
    """A key of 16 hex digits from tensors (dtype, shape and bits) and anything with a stable repr."""
    key = hashlib.sha256()
    for part in parts:
        if isinstance(part, Tensor):
            key.update(f"{part.dtype} {tuple(part.shape)}".encode())
            key.update(part.detach().cpu().contiguous().numpy().tobytes())
        else:
            key.update(repr(part).encode())
    return key.hexdigest()[:16]


def keep_tensor(path: Path, make: Callable[[], Tensor]) -> Tensor:
    """The tensor saved at ``path``, made and saved if it is not there."""
    if path.exists():
        kept: Tensor = torch.load(path, weights_only=True)
        return kept
    made = make()
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    torch.save(made, part)
    os.replace(part, path)
    return made


def read_json(path: Path) -> dict[str, Any]:
    """The object saved at ``path``, empty if there is none."""
    return json.loads(path.read_text()) if path.exists() else {}


def write_json(path: Path, value: Any) -> None:
    """Write so that the file appears whole or not at all."""
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    part.write_text(json.dumps(value, indent=1) + "\n")
    os.replace(part, path)
