"""What of the metadata is left in a predictive density, where it is calibrated, and what removing it cost."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from residmix import scores
from residmix.nn.predictive import PredictiveDensity, check_targets

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


def _strata(columns: Array, strata: ArrayLike | None) -> NDArray[Any]:
    """Given labels, or thirds of the first metadata column (its values, where there are at most ten)."""
    if strata is not None:
        return np.asarray(strata)
    first = columns[:, 0]
    if len(np.unique(first)) <= 10:
        return first
    return np.searchsorted(np.quantile(first, [1 / 3, 2 / 3]), first)


def density_report(
    model: PredictiveDensity,
    X: Any,
    y: ArrayLike,
    metadata: ArrayLike,
    *,
    model_metadata: Any = None,
    reference: PredictiveDensity | None = None,
    strata: ArrayLike | None = None,
    random_state: int = 0,
) -> dict[str, Any]:
    r"""Hold metadata against every part of a predictive density, not only its mean.

    A residualized representation has no linear trace of the metadata, but spread, weights and shape of a density are
    nonlinear functions of it. Call this on rows that the model was not fitted to.

    Parameters
    ----------
    model : MDNRegressor
        Of one target.
    X, y : array_like
    metadata : array_like (n, p)
        Numbers to look for in the density.
    model_metadata : optional
        What `model` needs as ``metadata=`` to predict.
    reference : MDNRegressor, optional
        The same model without deconfounding, predicting from `X` alone: for the cost.
    strata : array_like (n,), optional
        Groups within which the density should be calibrated. Default: values or thirds of the first column.

    Returns
    -------
    dict
        ``explained``: R2 of a linear model from the metadata to mean, spread, entropy, quantiles, and the largest over
        the component weights of the members; in a sample of n, p/n of it is chance (``by_chance``).
        ``strata``: per group its rows, PIT distance from uniform (``uniformity``), coverage of the central 90 %
        interval, CRPS and mean log score.
        ``cost``: mean CRPS of `model` minus that of `reference`, with the standard error of the paired difference.

    Raises
    ------
    ValueError
        For models of several targets.

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
    if model.n_targets_ != 1:
        raise ValueError(f"density_report takes models of one target, not of {model.n_targets_}; report one at a time")
    columns = np.asarray(metadata, float)
    columns = columns[:, None] if columns.ndim == 1 else columns
    value = check_targets(y, 1)[:, 0]
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
    groups = _strata(columns, strata)
    within = {}
    for label in np.unique(groups).tolist():
        own = groups == label
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
        gap = crps - np.ravel(reference.crps(X, y))
        error = float(gap.std(ddof=1) / np.sqrt(len(gap)))
        report["cost"] = {"crps": float(gap.mean()), "std_error": error}
    return report
