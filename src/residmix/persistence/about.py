"""Description of a model in its file: number of rows of the fit, and settings."""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = ["about", "settings_of"]


def about(model: Any) -> dict[str, Any]:
    """Return ``{"rows": ..., "settings": ...}`` of an estimator; an empty dict for other objects."""
    if not hasattr(model, "get_params"):
        return {}
    return {"rows": _rows(model), "settings": settings_of(model)}


def settings_of(model: Any) -> dict[str, Any]:
    """Return the parameters of an estimator that are plain values."""
    told = {}
    for name, value in model.get_params(deep=False).items():
        value = value.item() if isinstance(value, np.generic) else value
        if value is None or isinstance(value, str | int | float | bool | list | tuple | dict):
            told[name] = list(value) if isinstance(value, tuple) else value
    return told


def _rows(model: Any) -> int | None:
    """Return how many rows an estimator was fitted on, where it knows."""
    seen = getattr(model, "n_samples_seen_", None)
    if seen is None:
        linear = getattr(model, "residualizer_", model)
        count = getattr(getattr(linear, "fit_", None), "count", None)
        seen = None if count is None else np.max(count, initial=0)
    return None if seen is None else int(seen)
