"""What a model file may hold: short names that last, and where the classes live today."""

from __future__ import annotations

import importlib
from typing import Any

__all__ = ["FORMAT_1", "HOMES", "name_of", "type_of"]

# What a file may hold, and where it lives today. Names are for ever; homes follow the code.
HOMES = {
    "Eraser": "residmix.erasure.eraser:Eraser",
    "GaussianMixture": "residmix.mixture.gaussian:GaussianMixture",
    "MDNRegressor": "residmix.nn.regressor.estimator:MDNRegressor",
    "ResidualMixture": "residmix.conditional.residual_mixture:ResidualMixture",
    "Residualizer": "residmix.removal.residualizer:Residualizer",
    "conditional.Gate": "residmix.mixture.given.gate:Gate",
    "conditional.Params": "residmix.mixture.params:ConditionalParams",
    "conditional.ToResidual": "residmix.conditional.coordinates:ToResidual",
    "design.Design": "residmix.design.design:Design",
    "effects.Covariances": "residmix.effects.covariance.transport:Covariances",
    "effects.Frozen": "residmix.effects.unseen.batches:Frozen",
    "effects.LaterBatches": "residmix.effects.unseen.batches:LaterBatches",
    "effects.LevelPrior": "residmix.effects.unseen.priors:LevelPrior",
    "effects.LevelTotals": "residmix.effects.unseen.batches:LevelTotals",
    "effects.LinearRemoval": "residmix.effects.removal:LinearRemoval",
    "effects.NewLevels": "residmix.effects.unseen.levels:NewLevels",
    "effects.RandomEffects": "residmix.effects.random.predicted:RandomEffects",
    "effects.RegressorRemoval": "residmix.effects.mean.regressor:RegressorRemoval",
    "effects.Scale": "residmix.effects.spread.scale:Scale",
    "effects.Smooths": "residmix.effects.removal:Smooths",
    "effects.SpreadPrior": "residmix.effects.unseen.priors:SpreadPrior",
    "effects.Still": "residmix.effects.pooled.by_level:Still",
    "effects.Stretched": "residmix.effects.spread.rescale:Stretched",
    "em.Journal": "residmix.em.runs:Journal",
    "em.Memory": "residmix.em.loop:Memory",
    "em.State": "residmix.em.loop:EMState",
    "mixture.ByGroup": "residmix.mixture.given.by_group:ByGroup",
    "mixture.Prior": "residmix.mixture.families.restraint:Prior",
    "mixture.Restraint": "residmix.mixture.families.restraint:Restraint",
    "mixture.Params": "residmix.mixture.params:MixtureParams",
    "erasure.Aligned": "residmix.erasure.transport.aligned:Aligned",
    "erasure.Along": "residmix.erasure.transport.along:Along",
    "erasure.ByGroup": "residmix.erasure.transport.groups:ByGroup",
    "erasure.Certificate": "residmix.erasure.transport.certificate:Certificate",
    "erasure.Transport": "residmix.erasure.transport.transport:Transport",
    "moments.Affine": "residmix.moments.affine:Affine",
    "moments.Cells": "residmix.moments.absorbed.sums:Cells",
    "moments.FactorFit": "residmix.moments.absorbed.fit:FactorFit",
    "moments.FactorMoments": "residmix.moments.absorbed.sums:FactorMoments",
    "moments.LevelMoments": "residmix.moments.by_level:LevelMoments",
    "moments.LevelSums": "residmix.moments.absorbed.sums:LevelSums",
    "moments.LinearFit": "residmix.moments.fit:LinearFit",
    "moments.LinearMoments": "residmix.moments.linear:LinearMoments",
    "moments.Scatter": "residmix.moments.scatter:Scatter",
    "moments.WithEffects": "residmix.moments.affine:WithEffects",
    "nn.Plan": "residmix.nn.regressor.fitting:Plan",
    "nn.Removal": "residmix.nn.regressor.fitting:Removal",
    "nn.Scaling": "residmix.nn.regressor.targets:Scaling",
    "removal.Nuisance": "residmix.effects.mean.regressor:Nuisance",
    "removal.Watch": "residmix.removal.watch:Watch",
    "rows.Sample": "residmix.rows.sampled:Sample",
}
_NAMES = {home: name for name, home in HOMES.items()}

# What files of format 1 call them: where they lived when it was written. Nothing here ever changes.
FORMAT_1 = {
    "residmix.checkpoint:Journal": "em.Journal",
    "residmix.conditional:ResidualMixture": "ResidualMixture",
    "residmix.crossed_blup:RandomEffects": "effects.RandomEffects",
    "residmix.design:Design": "design.Design",
    "residmix.em:EMState": "em.State",
    "residmix.em:Memory": "em.Memory",
    "residmix.eraser:Eraser": "Eraser",
    "residmix.families:MixtureParams": "mixture.Params",
    "residmix.gating:Gate": "conditional.Gate",
    "residmix.joint:ConditionalParams": "conditional.Params",
    "residmix.joint:ToResidual": "conditional.ToResidual",
    "residmix.later_batches:Frozen": "effects.Frozen",
    "residmix.later_batches:LaterBatches": "effects.LaterBatches",
    "residmix.level_totals:LevelTotals": "effects.LevelTotals",
    "residmix.mixture:GaussianMixture": "GaussianMixture",
    "residmix.moments.factor:FactorFit": "moments.FactorFit",
    "residmix.moments.levels:Cells": "moments.Cells",
    "residmix.moments.levels:FactorMoments": "moments.FactorMoments",
    "residmix.moments.levels:LevelSums": "moments.LevelSums",
    "residmix.moments.levels:WithEffects": "moments.WithEffects",
    "residmix.moments.linear:Affine": "moments.Affine",
    "residmix.moments.linear:LinearMoments": "moments.LinearMoments",
    "residmix.moments.scatter:Scatter": "moments.Scatter",
    "residmix.moments.solve:LinearFit": "moments.LinearFit",
    "residmix.new_levels:LevelPrior": "effects.LevelPrior",
    "residmix.new_levels:NewLevels": "effects.NewLevels",
    "residmix.new_levels:SpreadPrior": "effects.SpreadPrior",
    "residmix.nn.fitting:Plan": "nn.Plan",
    "residmix.nn.fitting:Removal": "nn.Removal",
    "residmix.nn.regressor:MDNRegressor": "MDNRegressor",
    "residmix.nn.targets:Scaling": "nn.Scaling",
    "residmix.nuisance:Nuisance": "removal.Nuisance",
    "residmix.residualizer:Residualizer": "Residualizer",
    "residmix.scale:Scale": "effects.Scale",
    "residmix.sources.sampled:Sample": "rows.Sample",
}


def name_of(cls: type) -> str | None:
    """Return what files call `cls`; None if they don't hold such things."""
    return _NAMES.get(f"{cls.__module__}:{cls.__qualname__}")


def type_of(name: Any) -> Any:
    """Return the class that a file calls `name`, which is looked up and never imported as it stands.

    Raises
    ------
    ValueError
        If the table doesn't have it.
    """
    home = HOMES.get(FORMAT_1.get(name, name)) if isinstance(name, str) else None
    if home is None:
        raise ValueError(
            f"it contains a {name!r}, which this version doesn't know as part of a model, so it is refused"
        )
    module, _, attribute = home.partition(":")
    return getattr(importlib.import_module(module), attribute)
