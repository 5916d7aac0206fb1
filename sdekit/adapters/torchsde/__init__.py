"""Equations written for torchsde: `sdeint` solves them unchanged, `from_torchsde` makes an `SDE` of them.

    f(t, y) -> (B, d), g(t, y) -> (B, d) for "diagonal" noise, (B, d, m) for "additive", "scalar" (m = 1) and
    "general"; or f_and_g, g_prod(t, y, v), f_and_g_prod; attributes noise_type and sde_type.

`to_torchsde` and `BrownianForTorchsde` go the other way. torchsde itself is not needed for any of it.
"""

from sdekit.adapters.torchsde.brownian import BrownianForTorchsde
from sdekit.adapters.torchsde.integrate import sdeint
from sdekit.adapters.torchsde.system import TorchSDE, from_torchsde, to_torchsde

__all__ = ["BrownianForTorchsde", "TorchSDE", "from_torchsde", "sdeint", "to_torchsde"]
