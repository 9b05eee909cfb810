"""Association of a predictive density with metadata, its calibration by group, and the cost of removing metadata."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.utils.validation import check_is_fitted

from residmix.design.fit import fit_design
from residmix.errors import ResidmixWarning
from residmix.nn.density import scores
from residmix.nn.regressor.predictive import PredictiveDensity, check_targets
from residmix.nn.regressor.targets import advising, read_rows
from residmix.sources.open import as_table

__all__ = ["density_report"]

Array = NDArray[np.float64]

QUANTILES = (0.05, 0.5, 0.95)


def _explained(columns: Array, value: Array) -> float:
    """Share of the variance of `value` that is linear in `columns`; 0 for a constant."""
    gap = value - value.mean()
    total = float(gap @ gap)
    # What is left of a constant after rounding explains nothing.
    if total <= len(gap) * (1e-12 * max(1.0, float(np.abs(value).max()))) ** 2:
        return 0.0
    centred = columns - columns.mean(0)
    fitted = centred @ np.linalg.lstsq(centred, gap, rcond=None)[0]
    return float(fitted @ fitted) / total


def _design_columns(metadata: Any, value: Array) -> Array:
    """Numbers as they are; text, categories and truth values as indicators."""
    table = as_table(value[:, None], metadata=metadata)
    with warnings.catch_warnings():
        # Advice on what to remove; here nothing is removed.
        warnings.simplefilter("ignore", ResidmixWarning)
        with advising("leave such rows out of X, y and metadata, or fill the missing values"):
            design = fit_design(table.chunks, absorb_above=10**9)
            names = table.feature_names(None, exclude=design.columns)
            return read_rows(table, names, design, preserved=False)[1]


def _strata(metadata: Any, strata: ArrayLike | None, n_rows: int) -> dict[Any, NDArray[np.bool_]]:
    """Rows of the given labels, or of the first metadata column: its values, if at most ten, or its thirds."""
    given = np.asarray(metadata if strata is None else strata)
    first = given if given.ndim == 1 else given[:, 0]
    if len(first) != n_rows:
        raise ValueError(f"strata must have one label for each of the {n_rows} rows, got {len(first)}")
    if absent := sum(label is None or label != label for label in first.tolist()):
        raise ValueError(f"strata has {absent} missing values; give such rows a label, or leave them out")
    labels = np.unique(first)
    if strata is not None or len(labels) <= 10 or not np.issubdtype(np.asarray(first.tolist()).dtype, np.number):
        return {label: first == label for label in labels.tolist()}
    low, high = np.quantile(first.astype(float), [1 / 3, 2 / 3])
    return {
        f"up to {low:g}": first <= low,
        f"{low:g} to {high:g}": (first > low) & (first <= high),
        f"above {high:g}": first > high,
    }


def _needed(model: Any, X: Any, metadata: Any) -> Any:
    """What `model` takes as ``metadata=`` to predict from `X`: `metadata`, or None where it needs none or has it."""
    design = getattr(model, "design_", None)
    if design is None or model.space == "feature":
        return None
    inside = model.formula is not None and set(design.columns) <= set(getattr(X, "columns", ()))
    return None if inside else metadata


def _own_features(model: Any, X: Any) -> Any:
    """The columns of a frame that `model` was fitted to."""
    names = list(getattr(model, "feature_names_in_", ()))
    return X[names] if names and set(names) <= set(getattr(X, "columns", ())) else X


def density_report(
    model: PredictiveDensity,
    X: Any,
    y: ArrayLike,
    metadata: Any,
    *,
    model_metadata: Any = None,
    reference: PredictiveDensity | None = None,
    strata: ArrayLike | None = None,
    random_state: int = 0,
) -> dict[str, Any]:
    r"""Measure the association of metadata with all parts of a predictive density, not only its mean.

    A residualized representation has no linear association with the metadata, but spread, weights and shape of a
    density are nonlinear functions of it. Call this on held-out rows.

    Parameters
    ----------
    model : MDNRegressor
        A fitted model with one target.
    X, y : array_like
    metadata : array (n,) or (n, p), series or data frame
        Metadata to test; text, categories and booleans become indicators of their levels.
    model_metadata : optional
        The ``metadata=`` that `model` needs to predict. Default: `metadata`, unless it needs none or `X` has it.
    reference : MDNRegressor, optional
        The same model fitted without metadata, to measure the cost; it predicts from `X` alone (from its own features,
        if X is a frame).
    strata : array_like (n,), optional
        Groups within which the density should be calibrated. Default: the values of the first column of metadata, or
        its thirds where it is a number of more than ten values.

    Returns
    -------
    dict
        ``explained``: R2 of a linear model that predicts the mean, spread, entropy and quantiles of the density from
        the metadata, and the largest R2 of the component weights. By chance, R2 is about p/n with n rows
        (``by_chance``). ``strata``: per group its rows, PIT distance from uniform (``uniformity``), coverage of the
        central 90 % interval, CRPS and mean log score. ``cost``: mean CRPS of `model` minus that of `reference`, with
        the standard error of the paired difference.

    Raises
    ------
    ValueError
        For models with several targets, missing values in metadata, or different numbers of rows.

    Examples
    --------
    >>> import numpy as np
    >>> from residmix.nn import MDNRegressor
    >>> rng = np.random.default_rng(0)
    >>> age, X = rng.normal(size=(200, 1)), rng.normal(size=(200, 2))
    >>> y = X[:, 0] + rng.normal(size=200)
    >>> model = MDNRegressor(n_components=1, n_members=1, max_epochs=60, random_state=0).fit(X, y)
    >>> report = density_report(model, X, y, age)
    >>> sorted(report["explained"])
    ['entropy', 'mean', 'quantile_0.05', 'quantile_0.5', 'quantile_0.95', 'spread', 'weights']
    """
    for each in (model, reference):
        if each is not None and not isinstance(each, PredictiveDensity):
            raise TypeError(f"density_report needs an MDNRegressor; got {each!r}")
    check_is_fitted(model)
    if model.n_targets_ != 1:
        raise ValueError(
            f"density_report needs a model with one target, not {model.n_targets_}; fit one model per target"
        )
    value = check_targets(y, 1)[:, 0]
    columns = _design_columns(metadata, value)
    if model_metadata is None:
        model_metadata = _needed(model, X, metadata)
    density = model.predict_distribution(X, metadata=model_metadata)
    weights, means, scales = (part[:, 0] for part in density.marginal_arrays())
    parts = {
        "mean": density.mean[:, 0].numpy(),
        "spread": np.log(density.variance[:, 0].numpy()),
        "entropy": scores.mixture_entropy(weights, means, scales),
    }
    for level in QUANTILES:
        parts[f"quantile_{level:g}"] = scores.mixture_quantile(level, weights, means, scales)
    explained = {name: _explained(columns, part) for name, part in parts.items()}
    explained["weights"] = max(_explained(columns, column) for column in weights.T)

    crps = scores.crps_mixture(value, weights, means, scales)
    log = model.score_samples(X, y, metadata=model_metadata)
    pit = np.ravel(model.pit(X, y, metadata=model_metadata, random_state=random_state))
    within = {}
    for label, own in _strata(metadata, strata, len(value)).items():
        within[label] = {
            "rows": int(own.sum()),
            "uniformity": scores.uniformity(pit[own]),
            "coverage_90": float(np.mean((pit[own] > 0.05) & (pit[own] < 0.95))),
            "crps": float(crps[own].mean()),
            "log_score": float(log[own].mean()),
        }
    report: dict[str, Any] = {
        "rows": len(value),
        "by_chance": columns.shape[1] / max(len(value) - 1, 1),
        "explained": explained,
        "strata": within,
        "crps": float(crps.mean()),
    }
    if reference is not None:
        gap = crps - np.ravel(reference.crps(_own_features(reference, X), y))
        error = float(gap.std(ddof=1) / np.sqrt(len(gap)))
        report["cost"] = {"crps": float(gap.mean()), "std_error": error}
    return report
