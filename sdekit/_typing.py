"""Shapes and callables in one vocabulary.

Dimension names: ``B`` samples, ``*event`` the shape of one sample, ``D`` its number of elements,
``m`` the number of Brownian motions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias

from jaxtyping import Float
from torch import Tensor

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Array: TypeAlias = NDArray[np.floating[Any]]

State: TypeAlias = Float[Tensor, "B *event"]
Number: TypeAlias = "float | Tensor"
Field: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""A function of (x, t): a drift, a diffusion, a score or a network."""
