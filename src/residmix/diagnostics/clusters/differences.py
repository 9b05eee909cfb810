"""Differences between clusters, with p-values that are valid although the clusters come from the same data."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from numbers import Real
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats
from sklearn.base import clone
from sklearn.utils._param_validation import Interval

from residmix.design.fit import fit_design
from residmix.design.formula.parser import formula_columns
from residmix.diagnostics.clusters.thinning import noise_stream, plausible, thinned, units, within_covariance
from residmix.errors import ResidmixWarning, check_arguments, unnoted, warn
from residmix.mixture.gaussian import GaussianMixture
from residmix.sources.open import as_table

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["cluster_differences"]

Floats = NDArray[np.float64]

COLUMNS = ("feature", "clusters", "difference", "std_error", "statistic", "p_value")
# Of a factor, whose columns are written out.
MOST_LEVELS = 2000
# Directions of the design below this share of the largest are aliased.
ALIASED = 1e-9


def cluster_differences(
    X: Any,
    clusterer: Any = None,
    *,
    metadata: Any = None,
    formula: str | None = None,
    features: Sequence[str] | None = None,
    covariance: str | ArrayLike = "within",
    share: float = 0.5,
    random_state: int = 0,
    return_labels: bool = False,
) -> pd.DataFrame | tuple[pd.DataFrame, NDArray[Any]]:
    r"""Test which features differ between clusters, with p-values that are valid after clustering.

    .. math:: X_1 = X + \sqrt{(1 - s) / s}\, Z, \qquad X_2 = X - \sqrt{s / (1 - s)}\, Z, \qquad Z \sim N(0, \Sigma)

    Given the clusters' means, the two parts are independent. Clusters are found on the first part; the second is tested
    for differences between them, with Welch's t test, adjusted for metadata if there are any. A test on the same rows
    that were clustered would find differences even without any clusters.

    Parameters
    ----------
    X : array (n, d) or table
    clusterer : int or estimator, optional
        A number of components of a :class:`~residmix.GaussianMixture`; or an estimator with ``fit_predict``, which is
        cloned. Default: a mixture with the number of components chosen by the BIC.
    metadata, formula, features : optional
        As in :class:`~residmix.Residualizer`: clusters are found in residuals, and the test is a regression on clusters
        and metadata, whose degrees of freedom count both.
    covariance : {"within", "total"} or array (d, d), default="within"
        The covariance within clusters, :math:`\Sigma`. "within": that of a mixture with a common covariance and the
        number of components chosen by the BIC. "total": that of all rows, which is always valid but has less power. Or
        a known one. If it is estimated, the covariance of the noise is drawn from its sampling distribution, since
        the tests would be too conservative else.
    share : float, default=0.5
        s: share of the information that is used to find clusters.
    random_state : int
        Seed of the noise. Results depend on it, as with a random split of the rows.
    return_labels : bool, default=False
        Whether to return the cluster of each row as well, as found on the first part.

    Returns
    -------
    DataFrame
        A row for each pair of clusters and feature: feature, clusters (a pair), difference (mean of the second cluster
        minus that of the first), std_error, statistic (t), p_value. Empty if one cluster was found. NaN where a
        difference can't be estimated.
    labels : ndarray (n,)
        Only with `return_labels`.

    Warns
    -----
    ResidmixWarning
        If there's one cluster only, or clusters of a single row.

    References
    ----------
    Rasines and Young (2023), Biometrika 110:597; Neufeld, Dharamshi, Gao and Witten (2024), J. Mach. Learn. Res. 25;
    see `residmix.diagnostics.clusters.thinning` for the role of the covariance.

    Examples
    --------
    >>> import numpy as np
    >>> import residmix as rm
    >>> X = np.random.default_rng(0).normal(size=(200, 2))
    >>> X[:100, 0] += 6
    >>> found = rm.cluster_differences(X, 2)
    >>> (found["p_value"] < 0.01).tolist()
    [True, False]
    """
    check_arguments("cluster_differences", share=([Interval(Real, 0.05, 0.95, closed="both")], share))
    names, x, a = _read(X, metadata, formula, features)
    residual = x - a @ (a.T @ x) - x.mean(axis=0)
    noise = noise_stream(random_state)
    first, second = thinned(x, _covariance(covariance, residual, a.shape[1], random_state, noise), share, noise)
    labels = _clustered(clusterer, first - a @ (a.T @ first), random_state)
    table = _table(names, second, a, labels)
    return (table, labels) if return_labels else table


def _read(
    X: Any, metadata: Any, formula: str | None, features: Sequence[str] | None
) -> tuple[tuple[str, ...], Floats, Floats]:
    """Return the features' names, their values, and an orthonormal basis of the centred design."""
    table = as_table(X, metadata=metadata)
    wanted = None if formula is None else formula_columns(formula)
    names = table.feature_names(features, exclude=wanted or ())
    if formula is None and not table.has_metadata:
        parts = list(table.rows(names).map(lambda block: np.asarray(block.X, dtype=np.float64)))
        x = np.concatenate(parts)
        return tuple(map(str, names)), x, np.empty((len(x), 0))
    design = fit_design(lambda: table.chunks(wanted), formula=formula, on_unknown="mean", absorb_above=MOST_LEVELS)
    blocks = list(table.rows(names, design=design).map(lambda block: (np.array(block.X, dtype=float), block.design)))
    x, a = np.concatenate([one for one, _ in blocks]), np.concatenate([two for _, two in blocks])
    left, size, _ = np.linalg.svd(_standard(a), full_matrices=False)
    return tuple(map(str, names)), x, left[:, size > ALIASED * max(size.max(initial=0.0), 1e-300)]


def _standard(a: Floats) -> Floats:
    a = a - a.mean(axis=0)
    size = np.linalg.norm(a, axis=0)
    return a / np.where(size > 0, size, 1.0)


def _covariance(
    covariance: Any, residual: Floats, n_design: int, random_state: int, noise: np.random.Generator
) -> Floats:
    n, d = residual.shape
    if isinstance(covariance, str):
        if covariance == "within":
            found, K = within_covariance(residual, random_state)
            return plausible(found * (n - 1) / max(n - 1 - n_design, 1), n - K - n_design, noise)
        if covariance == "total":
            degrees = n - 1 - n_design
            return plausible(residual.T @ residual / max(degrees, 1), degrees, noise)
        raise ValueError(f"covariance must be 'within', 'total' or an array ({d}, {d}), not {covariance!r}")
    given = np.asarray(covariance, dtype=np.float64)
    if given.shape != (d, d) or not np.allclose(given, given.T):
        raise ValueError(f"covariance must be a symmetric array ({d}, {d}), not one of shape {given.shape}")
    return given


def _clustered(clusterer: Any, x: Floats, random_state: int) -> NDArray[Any]:
    if clusterer is None or isinstance(clusterer, int | np.integer):
        K: Any = "auto" if clusterer is None else int(clusterer)
        clusterer, x = GaussianMixture(K, random_state=random_state), x / units(x)
    if not hasattr(clusterer, "fit_predict"):
        raise TypeError(
            f"clusterer must be a number of clusters or an estimator with fit_predict, not {type(clusterer).__name__}"
        )
    with unnoted():
        return np.asarray(clone(clusterer).fit_predict(x))


def _table(names: Sequence[str], x: Floats, a: Floats, labels: NDArray[Any]) -> pd.DataFrame:
    import pandas as pd

    clusters, counts = np.unique(labels, return_counts=True)
    noise = (clusters == -1) if clusters.dtype.kind in "iu" else np.zeros(len(clusters), dtype=bool)
    single = clusters[(counts < 2) & ~noise]
    if single.size:
        warn(
            f"clusters {single.tolist()} have one row each, so they aren't tested. Use fewer clusters",
            ResidmixWarning,
            kind="single-rows",
            clusters=single.tolist(),
        )
    clusters = clusters[(counts >= 2) & ~noise]
    if len(clusters) < 2:
        warn(
            "one cluster was found, so there is nothing to compare. Pass a number of clusters as clusterer",
            ResidmixWarning,
            kind="one-cluster",
        )
        return pd.DataFrame({name: [] for name in COLUMNS})
    kept = np.isin(labels, clusters)
    x, a, member = x[kept], a[kept], labels[kept, None] == clusters
    z = np.hstack([member, a])
    left, size, right = np.linalg.svd(z, full_matrices=False)
    known = size > ALIASED * size[0]
    left, right = left[:, known], right[known]
    leverage = np.minimum((left**2).sum(axis=1), 1 - 1e-9)
    squares = (x - left @ (left.T @ x)) ** 2 / (1 - leverage)[:, None]
    free = max(len(x) - known.sum(), 0) / max(len(x) - len(clusters), 1)
    rows = []
    for one, two in combinations(range(len(clusters)), 2):
        contrast = np.zeros(z.shape[1])
        contrast[one], contrast[two] = -1.0, 1.0
        estimable = np.allclose(right.T @ (right @ contrast), contrast, atol=1e-6)
        g = left @ ((right @ contrast) / size[known])
        parts = (member.T * g**2) @ squares
        with np.errstate(divide="ignore", invalid="ignore"):
            error = np.sqrt(parts.sum(axis=0))
            dof = free * parts.sum(axis=0) ** 2 / (parts**2 / (member.sum(axis=0) - 1)[:, None]).sum(axis=0)
            difference = g @ x if estimable else np.full(x.shape[1], np.nan)
            statistic = difference / error
        p = 2 * stats.t.sf(np.abs(statistic), dof)
        pair = (clusters[one].item(), clusters[two].item())
        rows += [(name, pair, *values) for name, *values in zip(names, difference, error, statistic, p, strict=True)]
    return pd.DataFrame(rows, columns=list(COLUMNS))
