"""Diagnostics and warnings of a fit of a mixture density network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor

from residmix.errors import CollapsedScaleWarning, DeadComponentWarning, warn
from residmix.nn.density.distribution import MixtureOfGaussians
from residmix.nn.regressor.training import History

__all__ = ["diagnose", "warn_of"]

# A component with a smaller mean weight is dead; scales within 1 % of the floor sit on it; so many are too many.
_DEAD, _AT_FLOOR, _MANY = 0.01, 1.01, 0.05


def diagnose(
    density: MixtureOfGaussians, share: Tensor, floor: Tensor, stages: Sequence[History], shift: float
) -> dict[str, Any]:
    """Summarise the densities (M, n) of the members on the training rows, whose weights `share` sum to 1.

    `shift` is what turns a loss in standard units into one in the units of y.

    Returns
    -------
    dict
        ``component_weights`` (M, K); ``dead``, pairs (member, component) of mean weight below 1 %; ``at_floor``, the
        share of scales within 1 % of `floor`; ``best_epoch``, ``best_loss``, ``n_epochs`` and ``validation_loss``
        (epochs, M) of the first stage, and under ``head`` the same four of the second, if there was one.
    """
    weights = torch.einsum("mnk,n->mk", density.weights, share).cpu().numpy()
    described = [
        {
            "best_epoch": stage.best_epoch,
            "best_loss": [loss + shift for loss in stage.best_loss],
            "n_epochs": stage.n_epochs,
            "validation_loss": np.asarray(stage.validation, float).reshape(-1, len(weights)) + shift,
        }
        for stage in stages
    ]
    out = {
        "component_weights": weights,
        "dead": [(int(m), int(k)) for m, k in np.argwhere(weights < _DEAD)],
        "at_floor": float((density.component_scales <= _AT_FLOOR * floor).double().mean()),
        **described[0],
    }
    if len(described) > 1:
        out["head"] = described[1]
    return out


def warn_of(diagnostics: dict[str, Any], *, max_epochs: int) -> None:
    """Warn of dead components (in more than half of the members), collapsed scales, and training that was cut off."""
    weights, dead = diagnostics["component_weights"], diagnostics["dead"]
    if 2 * len({m for m, _ in dead}) > len(weights):
        warn(
            f"{len(dead)} of {weights.size} components have a mean weight below {_DEAD:.0%}. Use fewer than "
            f"n_components={weights.shape[1]}",
            DeadComponentWarning,
        )
    if diagnostics["at_floor"] > _MANY:
        warn(
            f"{diagnostics['at_floor']:.0%} of the predicted scales are at their lower bound: the target is "
            "constant, has repeated values, or is nearly a function of the features. In the last case, lower "
            "min_scale",
            CollapsedScaleWarning,
        )
    for what, stage in (("a member", diagnostics), ("the head of a member", diagnostics.get("head"))):
        if stage and 0 < stage["n_epochs"] == max_epochs == max(stage["best_epoch"]):
            warn(
                f"{what} was best in the last of max_epochs={max_epochs} epochs. Increase max_epochs",
                ConvergenceWarning,
            )
