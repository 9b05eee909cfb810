"""A sample of rows to draw or report a model on, and their residuals."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from residmix.rows.progress import RowProgress, observed
from residmix.rows.sampled import every, regularly
from residmix.sources.open import as_table

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "SHOWN_ROWS",
    "Rows",
    "covariances_of",
    "family_of",
    "features_of",
    "group_spreads_of",
    "means_of",
    "metadata_of",
    "residual_of",
    "residualizer_of",
    "rows_of",
    "sampled",
    "telling_plane",
    "transformer_of",
    "variances_of",
]  # fmt: skip

SHOWN_ROWS = 5000
MOST_PAIRED = 12

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Rows:
    """Some rows, evenly spaced, of those that a model is described on.

    Attributes
    ----------
    X : ndarray (n, d)
    metadata : DataFrame (n, p)
        Removed, preserved and further columns.
    n_rows : int
        How many rows there are, of which these are some.
    apart : DataFrame, ndarray or None
        Metadata as the model needs them, if they are separate from X.
    frame : DataFrame or None
        X and metadata in one table if they don't.
    """

    X: NDArray[Any]
    metadata: pd.DataFrame
    n_rows: int
    apart: Any = None
    frame: Any = None

    def call(self, function: Callable[..., Any]) -> Any:
        """Return ``function(X)`` or ``function(X, metadata=...)``, as the model was fitted."""
        if self.apart is not None:
            return function(self.X, metadata=self.apart)
        return function(self.X if self.frame is None else self.frame)

    def part(self, keep: NDArray[np.bool_]) -> Rows:
        """Return some of these rows."""
        return Rows(
            self.X[keep],
            self.metadata[keep],
            int(keep.sum()),
            None if self.apart is None else self.apart[keep],
            None if self.frame is None else self.frame[keep].reset_index(drop=True),
        )


def residualizer_of(model: Any) -> Any:
    """Return the linear part of a model: itself, its residualizer, or None for a plain mixture."""
    return getattr(model, "residualizer_", model if hasattr(model, "r2_") else None)


def transformer_of(model: Any) -> Any:
    """Return what takes metadata out: the linear part of a model, or an eraser; None for a plain mixture."""
    return residualizer_of(model) or (model if hasattr(model, "design_") and hasattr(model, "features_") else None)


def features_of(model: Any) -> tuple[str, ...]:
    """Return the names of a model's features: x0, x1, ... for those of an array."""
    linear = transformer_of(model)
    if linear is not None:
        return tuple(map(str, linear.features_))
    return tuple(map(str, getattr(model, "feature_names_in_", [f"x{j}" for j in range(model.n_features_in_)])))


def metadata_of(model: Any) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the metadata columns that a model removes, and those that it uses but doesn't remove."""
    linear = transformer_of(model)
    if linear is None:
        return (), ()
    design = linear.design_
    removed = tuple(design.columns)
    others = dict.fromkeys([*design.preserved_columns, *getattr(model, "_design", design).columns])
    return removed, tuple(name for name in others if name not in removed)


def rows_of(model: Any, X: Any, metadata: Any = None, beside: Sequence[str] = (), most: int = SHOWN_ROWS) -> Rows:
    """Return at most `most` evenly spaced rows for a fitted model, with its metadata and further columns."""
    if isinstance(X, Rows):
        return X
    columns = list(dict.fromkeys([*sum(metadata_of(model), ()), *beside]))
    apart = bool(getattr(transformer_of(model), "_apart", False))
    rows = sampled(X, metadata, features_of(model), columns, apart=apart, most=most)
    if transformer_of(model) is None and rows.frame is not None:
        return replace(
            rows, frame=rows.frame[list(rows.frame)[: rows.X.shape[1]]]
        )  # such a model knows no other column
    return rows


def sampled(
    X: Any,
    metadata: Any,
    features: Sequence[str],
    beside: Sequence[str],
    *,
    apart: bool = False,
    most: int = SHOWN_ROWS,
) -> Rows:
    """Return at most `most` evenly spaced rows, with the columns that matter."""
    import narwhals.stable.v2 as nw
    import pandas as pd

    table = as_table(X, metadata=metadata)
    n_rows = table.n_rows
    step = every(n_rows, most)
    names = tuple(features) if set(features) <= set(table.columns) else table.columns[: len(features)]
    parts, seen = [], 0
    with RowProgress(n_rows * (len(names) + len(beside)), unit="%") as read:
        values = observed(table.rows(names, allow_nan=True), read, len(names)).take(regularly(n_rows, most)).X
        for chunk in table.chunks(None if apart else list(beside)) if beside else ():
            index = np.arange(-seen % step, len(chunk), step)
            if isinstance(chunk, np.ndarray):
                parts.append(pd.DataFrame(chunk[index], columns=list(table.metadata_columns)))
            else:
                parts.append(nw.from_native(chunk, eager_only=True)[index.tolist()].to_pandas())
            seen += len(chunk)
            read(len(chunk) * len(beside))
    told = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(index=range(len(values)))
    if apart:
        given = told.to_numpy() if isinstance(metadata, np.ndarray) else told
        return Rows(values, told, n_rows, apart=given)
    if not table.named:
        return Rows(values, told, n_rows)
    measured = pd.DataFrame(values, columns=list(names))
    frame = pd.concat([measured, told[[name for name in told if name not in names]]], axis=1)
    return Rows(values, told, n_rows, frame=frame)


def residual_of(model: Any, rows: Rows) -> Floats:
    """Return what a model leaves of rows; of a plain mixture, the rows themselves."""
    if transformer_of(model) is None:
        return np.asarray(rows.X, dtype=np.float64)
    return np.asarray(rows.call(model.residuals if hasattr(model, "means_") else model.transform), dtype=np.float64)


def means_of(model: Any) -> Floats:
    """Return where components lie among what a model leaves of rows, (K, d)."""
    return np.asarray(getattr(model, "residual_means_", model.means_))


def covariances_of(model: Any) -> Floats:
    """Return the covariances (K, d, d) of any family."""
    from residmix.mixture.families.family import family

    return family(family_of(model)).full(np.asarray(model.covariances_), *model.means_.shape)


def variances_of(model: Any) -> Floats:
    """Return the diagonals (K, d) of the covariances, without making these where there are many features."""
    from residmix.mixture.families.family import family

    found = family(family_of(model)).diagonals(np.asarray(model.covariances_))
    return np.broadcast_to(found, model.means_.shape)


def group_spreads_of(model: Any) -> Floats:
    """Return the standard deviations (G, K, d) of components in groups with covariances of their own, over those of
    the components on average.
    """
    from residmix.mixture.families.family import family

    of, shape = family(family_of(model)), model.means_.shape
    each = [np.broadcast_to(of.diagonals(own), shape) for own in np.asarray(model.group_covariances_)]
    return np.sqrt(np.stack(each) / variances_of(model))


def family_of(model: Any) -> str:
    """Return the name of a mixture's family: of several, the one that was chosen."""
    return str(getattr(model, "covariance_type_", model.covariance_type))


def telling_plane(means: Floats, covariances: Floats) -> tuple[int, int | None]:
    """Return the two features in whose plane the two closest components lie farthest apart (Mahalanobis)."""
    from itertools import combinations

    K, d = means.shape
    if d == 1:
        return 0, None
    within = np.mean(covariances, axis=0)
    sd = np.sqrt(np.where(np.diag(within) > 0, np.diag(within), 1))
    promising = np.sort(np.argsort(-means.std(axis=0) / sd, kind="stable")[:MOST_PAIRED])
    apart = means[:, None] - means[None]
    pairs = [(int(i), int(j)) for i, j in combinations(promising, 2)]

    def separation(pair: tuple[int, int]) -> float:
        plane = within[np.ix_(pair, pair)] + 1e-9 * np.diag(sd[list(pair)] ** 2)
        squared = np.einsum("abi,ij,abj->ab", apart[..., pair], np.linalg.inv(plane), apart[..., pair])
        return float(squared[~np.eye(K, dtype=bool)].min()) if K > 1 else 0.0

    return max(pairs, key=separation)
