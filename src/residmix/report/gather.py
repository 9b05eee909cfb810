"""Data of a report: a fitted model, a sample of rows before and after, and measurements on them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from residmix.errors import unnoted
from residmix.plots.rows import (
    Rows,
    family_of,
    features_of,
    means_of,
    metadata_of,
    residual_of,
    rows_of,
    transformer_of,
)

__all__ = ["Evidence", "gather"]

PROBED_FEATURES = 64  # the ones that the metadata explain most; a forest on thousands takes minutes
PERMUTATIONS = 49
FOLDS = 5
SWAPPED = 199  # permutations of a confounder test
FEW_VALUES = 12  # of a number whose values are levels

Floats = NDArray[np.float64]


@dataclass
class Evidence:
    """Data of a report. Unknown entries are None or empty, and their sections are left out.

    Attributes
    ----------
    model : estimator
    features : tuple of str
    removed, preserved : tuple of str
        Metadata columns.
    rows : Rows or None
    residual : ndarray (n, d) or None
    labels : ndarray (n,) or None
    association : Association or None
    held_out : float or None
        Cross-validated log-likelihood per row.
    confounding : list of dict
        Tests whether the components depend on the metadata given the reference, and on the reference given the
        metadata.
    reference : str or None
        A column to compare the components with.
    notes : list of dict
    command : str or None
    model_checksum : str or None
        Checksum of the model file, which identifies it.
    """

    model: Any
    features: tuple[str, ...]
    removed: tuple[str, ...]
    preserved: tuple[str, ...]
    rows: Rows | None = None
    residual: Floats | None = None
    labels: NDArray[np.integer[Any]] | None = None
    association: Any = None
    held_out: float | None = None
    confounding: list[dict[str, Any]] = field(default_factory=list)
    reference: str | None = None
    notes: list[dict[str, Any]] = field(default_factory=list)
    command: str | None = None
    model_checksum: str | None = None


def gather(
    model: Any,
    X: Any = None,
    *,
    metadata: Any = None,
    reference: str | None = None,
    probes: bool = True,
    notes: list[dict[str, Any]] | None = None,
    command: str | None = None,
    begun: Callable[[str], Any] = lambda stage: None,
) -> Evidence:
    """Collect the data of a report.

    Parameters
    ----------
    model : Residualizer, ResidualMixture, GaussianMixture or Eraser
        Fitted.
    X, metadata
        Rows to evaluate it on, as for its `fit`. Default: none; then the report has only what the model stores.
    reference : str, optional
        A column of X, or of the metadata, to compare the components with.
    probes : bool
        Whether to measure on held-out rows how well the metadata can be predicted, and the log-likelihood.
    notes : list of dict, optional
        Default: the model's own.
    command : str, optional
        The command that makes the report.
    begun : callable
        Called with "sampling", "measuring" and "drawing" when that begins.
    """
    found = Evidence(
        model,
        features_of(model),
        *metadata_of(model),
        reference=reference,
        notes=list(getattr(model, "notes_", []) if notes is None else notes),
        command=command,
    )
    if X is None:
        return found
    begun("sampling")
    found.rows = rows_of(model, X, metadata, () if reference is None else (reference,))
    with unnoted():
        found.residual = residual_of(model, found.rows)
        if hasattr(model, "predict"):
            found.labels = np.asarray(found.rows.call(model.predict))
        begun("measuring")
        if probes:
            found.association = _association(found)
            begun("drawing")  # what follows is as short
            found.held_out = _held_out(found)
            found.confounding = _confounding(found)
    begun("drawing")
    return found


def _association(found: Evidence) -> Any:
    """Measure the metadata in features and residuals; what makes these is fitted anew in each fold."""
    from residmix.diagnostics.association import association

    rows, linear = found.rows, transformer_of(found.model)
    if hasattr(found.model, "certificate_"):  # whose probes are held out already, and whose fit takes its time
        return None
    if linear is None or not found.removed or rows is None or rows.frame is None or linear.formula is None:
        return None
    if len(rows.X) < 4 * FOLDS or getattr(linear, "estimator", None) is not None:
        return None
    told = np.nan_to_num(getattr(linear, "r2_", np.zeros(len(found.features))))
    order = np.argsort(-told, kind="stable")[:PROBED_FEATURES]
    features = [found.features[j] for j in sorted(order)]
    fresh = _unfitted(found.model, linear, [found.features.index(name) for name in features])
    try:
        return association(
            rows.frame,
            formula=linear.formula,
            features=features,
            after=fresh,
            components=None if found.labels is None or (found.labels < 0).any() else found.labels,
            missing=linear.missing,
            n_splits=FOLDS,
            n_permutations=PERMUTATIONS,
        )
    except ValueError as error:
        found.notes.append(
            {
                "kind": "not-measured",
                "message": f"the association with metadata was not measured: {error}",
                "figures": {},
            }
        )
        return None


def _unfitted(model: Any, linear: Any, features: list[int]) -> Any:
    """Return an unfitted copy of what makes the residuals: the joint model where there is one, begun at its end."""
    names = [linear.features_[j] for j in features]
    if getattr(model, "estimation", None) != "joint":
        return _fresh(linear, features=names, **_lenient(linear))
    start: dict[str, Any] = {"weights_init": model.weights_, "means_init": model.means_[:, features]}
    chosen = {"n_components": len(model.weights_), "covariance_type": family_of(model), "n_init": 1}
    once = {"checkpoint": None, "warm_start": False, "labels_init": None, "precisions_init": None}
    return _fresh(model, features=names, **_lenient(model), **start, **chosen, **once)


def _lenient(model: Any) -> dict[str, Any]:
    """Return what lets a copy take rows of levels that its own rows lack, where that can be."""
    apart = getattr(model, "covariance_by", None) is not None or not hasattr(model, "on_unknown")
    return {} if apart else {"on_unknown": "mean"}


def _fresh(estimator: Any, **changed: Any) -> Any:
    """Return an unfitted copy of an estimator, also of one that was read from a file."""
    parameters = {**estimator.get_params(deep=False), **changed}
    return type(estimator)(**parameters)


def _confounding(found: Evidence) -> list[dict[str, Any]]:
    """Test whether the components still depend on the metadata, beyond what the reference explains."""
    from residmix.diagnostics.confounding.confounder_test import confounder_test

    rows, name = found.rows, found.reference
    if rows is None or found.labels is None or name is None or not found.removed or name in found.removed:
        return []
    table = rows.metadata[[*found.removed, name]]
    kept = np.asarray(table.notna().all(axis=1)) & (found.labels >= 0)  # noise is no component
    # few values are levels, as in the tables of components
    texts = {own: table[own].dtype.kind not in "fiu" or table[own].nunique() <= FEW_VALUES for own in table}
    told = table[kept].assign(**{own: table[own][kept].astype(str) for own, text in texts.items() if text})
    labels = found.labels[kept].astype(str)
    try:
        return [
            confounder_test(labels, told[name], told[list(found.removed)], kind, n_permutations=SWAPPED).to_dict()
            for kind in ("partial", "full")
        ]
    except ValueError:
        return []  # one component, or one level, is left: nothing can depend on it


def _held_out(found: Evidence) -> float | None:
    """Return the log-likelihood per row of rows that the model, fitted anew, hasn't seen; 3 folds of the sample."""
    model, rows = found.model, found.rows
    if rows is None or not hasattr(model, "means_") or len(rows.X) < 30 * len(model.weights_):
        return None
    folds = np.random.default_rng(0).permutation(len(rows.X)) % 3
    scores = np.empty(len(rows.X))
    changed: dict[str, Any] = {"checkpoint": None, "warm_start": False, "n_init": 1}
    changed |= _lenient(model)
    chosen = {"n_components": len(model.weights_), "covariance_type": family_of(model)}
    start = {"weights_init": model.weights_, "means_init": means_of(model), **chosen}
    try:
        for fold in range(3):
            copy = _fresh(model, **changed, **start)
            rows.part(folds != fold).call(copy.fit)
            scores[folds == fold] = rows.part(folds == fold).call(copy.score_samples)
    except (ValueError, TypeError):
        return None  # a fold without a level, or with too few rows for a component: nothing to say
    return float(scores.mean())
