"""Remove the effects of metadata from features; model the residuals as a mixture of Gaussians.

Public names load on first use (Scientific Python SPEC 1), so that ``import residmix`` is quick.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOMES = {
    "Eraser": "erasure.eraser",
    "GaussianMixture": "mixture.gaussian",
    "ResidualMixture": "conditional.residual_mixture",
    "Residualizer": "removal.residualizer",
    "association": "diagnostics.association",
    "bootstrap": "mixture.after.resampling.bootstrap",
    "bootstrap_lrt": "mixture.after.resampling.ratio_test",
    "cluster_differences": "diagnostics.clusters.differences",
    "confounder_test": "diagnostics.confounding.confounder_test",
    "design_audit": "diagnostics.design_audit",
    "load": "persistence",
    "match_components": "mixture.after.matching",
    "mdn_residualize": "functional",
    "plot_association": "plots.association",
    "plot_certificate": "plots.certificate",
    "plot_components": "plots.components",
    "plot_convergence": "plots.convergence",
    "plot_effect": "plots.effects",
    "plot_levels": "plots.levels",
    "plot_pit": "plots.pit",
    "plot_residuals_vs_metadata": "plots.residuals",
    "plot_selection": "plots.selection",
    "save": "persistence",
    "scan": "sources.open",
    "show_versions": "persistence.versions",
    "stepwise": "conditional.stepwise",
}
_ROOMS = ("errors", "nn")

__all__ = [
    "Eraser",
    "GaussianMixture",
    "ResidualMixture",
    "Residualizer",
    "__version__",
    "association",
    "bootstrap",
    "bootstrap_lrt",
    "cluster_differences",
    "confounder_test",
    "design_audit",
    "load",
    "match_components",
    "mdn_residualize",
    "nn",
    "plot_association",
    "plot_certificate",
    "plot_components",
    "plot_convergence",
    "plot_effect",
    "plot_levels",
    "plot_pit",
    "plot_residuals_vs_metadata",
    "plot_selection",
    "save",
    "scan",
    "show_versions",
    "stepwise",
]

if TYPE_CHECKING:
    from residmix import nn
    from residmix.conditional.residual_mixture import ResidualMixture
    from residmix.conditional.stepwise import stepwise
    from residmix.diagnostics.association import association
    from residmix.diagnostics.clusters.differences import cluster_differences
    from residmix.diagnostics.confounding.confounder_test import confounder_test
    from residmix.diagnostics.design_audit import design_audit
    from residmix.erasure.eraser import Eraser
    from residmix.functional import mdn_residualize
    from residmix.mixture.after.matching import match_components
    from residmix.mixture.after.resampling.bootstrap import bootstrap
    from residmix.mixture.after.resampling.ratio_test import bootstrap_lrt
    from residmix.mixture.gaussian import GaussianMixture
    from residmix.persistence import load, save
    from residmix.persistence.versions import show_versions
    from residmix.plots.association import plot_association
    from residmix.plots.certificate import plot_certificate
    from residmix.plots.components import plot_components
    from residmix.plots.convergence import plot_convergence
    from residmix.plots.effects import plot_effect
    from residmix.plots.levels import plot_levels
    from residmix.plots.pit import plot_pit
    from residmix.plots.residuals import plot_residuals_vs_metadata
    from residmix.plots.selection import plot_selection
    from residmix.removal.residualizer import Residualizer
    from residmix.sources.open import scan


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        value = getattr(importlib.import_module(f"residmix.{_HOMES[name]}"), name)
        globals()[name] = value
        return value
    if name in _ROOMS:
        return importlib.import_module(f"residmix.{name}")
    raise AttributeError(f"module 'residmix' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
