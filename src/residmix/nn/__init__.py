"""Networks: a layer that residualizes an intermediate tensor on metadata, and a mixture density head on it.

Needs torch (``pip install 'residmix[nn]'``); the names below load on first use. Two literatures abbreviate to
"MDN": Metadata Normalization (what `Residualize` does) and Mixture Density Network (what `MixtureDensityHead` is).
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from residmix.errors import require_extra

_HOMES = {
    "Audit": "layer.auditing",
    "MDNRegressor": "regressor.estimator",
    "MetadataSequential": "layer.sequential",
    "MixtureDensityHead": "density.head",
    "MixtureDensityNetwork": "density.network",
    "MixtureOfGaussians": "density.distribution",
    "Residualize": "layer.residualize",
    "attach": "layer.sequential",
    "audit": "layer.auditing",
    "density_report": "regressor.report",
    "finalize": "layer.finalization",
}

__all__ = [
    "Audit",
    "MDNRegressor",
    "MetadataSequential",
    "MixtureDensityHead",
    "MixtureDensityNetwork",
    "MixtureOfGaussians",
    "Residualize",
    "attach",
    "audit",
    "density_report",
    "finalize",
]

if TYPE_CHECKING:
    from residmix.nn.density.distribution import MixtureOfGaussians
    from residmix.nn.density.head import MixtureDensityHead
    from residmix.nn.density.network import MixtureDensityNetwork
    from residmix.nn.layer.auditing import Audit, audit
    from residmix.nn.layer.finalization import finalize
    from residmix.nn.layer.residualize import Residualize
    from residmix.nn.layer.sequential import MetadataSequential, attach
    from residmix.nn.regressor.estimator import MDNRegressor
    from residmix.nn.regressor.report import density_report


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'residmix.nn' has no attribute {name!r}")
    try:
        importlib.import_module("torch")
    except ModuleNotFoundError as absent:
        raise require_extra("torch", "nn", f"residmix.nn.{name}") from absent
    value = getattr(importlib.import_module(f"residmix.nn.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
