"""Networks: a layer that residualizes an intermediate tensor on metadata, and a mixture density head on it.

Needs torch (``pip install 'residmix[nn]'``); the names below load on first use. Two literatures abbreviate to
"MDN": Metadata Normalization (what `Residualize` does) and Mixture Density Network (what `MixtureDensityHead` is).
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from residmix.errors import require_extra

_HOMES = {
    "Audit": "auditing",
    "MDNRegressor": "regressor",
    "MetadataSequential": "sequential",
    "MixtureDensityHead": "head",
    "MixtureDensityNetwork": "network",
    "Residualize": "layers",
    "attach": "sequential",
    "audit": "auditing",
    "density_report": "report",
    "finalize": "finalization",
}
_ROOMS = ("compat",)

__all__ = [
    "Audit",
    "MDNRegressor",
    "MetadataSequential",
    "MixtureDensityHead",
    "MixtureDensityNetwork",
    "Residualize",
    "attach",
    "audit",
    "compat",
    "density_report",
    "finalize",
]

if TYPE_CHECKING:
    from residmix.nn import compat
    from residmix.nn.auditing import Audit, audit
    from residmix.nn.finalization import finalize
    from residmix.nn.head import MixtureDensityHead
    from residmix.nn.layers import Residualize
    from residmix.nn.network import MixtureDensityNetwork
    from residmix.nn.regressor import MDNRegressor
    from residmix.nn.report import density_report
    from residmix.nn.sequential import MetadataSequential, attach


def __getattr__(name: str) -> Any:
    if name not in _HOMES and name not in _ROOMS:
        raise AttributeError(f"module 'residmix.nn' has no attribute {name!r}")
    try:
        importlib.import_module("torch")
    except ModuleNotFoundError as absent:
        raise require_extra("torch", "nn", f"residmix.nn.{name}") from absent
    if name in _ROOMS:
        return importlib.import_module(f"residmix.nn.{name}")
    value = getattr(importlib.import_module(f"residmix.nn.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
