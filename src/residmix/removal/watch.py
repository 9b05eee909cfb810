"""The checks of a fit on a sample of its rows: leakage, tested from time to time, and codes for missing values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from residmix.design.design import Design
from residmix.design.doubts.codes import tell_of_codes
from residmix.effects.removal import LinearRemoval
from residmix.errors import LeakageWarning, note, warn
from residmix.removal.lattices import counts, raw_counts
from residmix.removal.leakage import effect_leakage, leakage
from residmix.rows.rows import Rows
from residmix.rows.sampled import Sample, SampledRows, evenly
from residmix.rows.threads import one_blas_thread

__all__ = ["Watch", "look_at_predictions", "warn_of_leakage"]

Array = NDArray[np.float64]

# The check costs three small trees, up to three times: enough rows to see a lattice, few enough not to be felt.
_ROWS = 1000
_FEATURES = 256
# As a number of rows: a model that leaks is told of once.
_NEVER_AGAIN = 1 << 62


@dataclass(frozen=True)
class Watch:
    """A sample of the rows of a fit, and when it was last tested.

    Attributes
    ----------
    sample : Sample
    looked : int
        Number of rows at the last test.
    active : bool
        Whether the check is on.
    """

    sample: Sample = field(default_factory=Sample)
    looked: int = 0
    active: bool = True

    def over(self, rows: Rows) -> Rows:
        """Return `rows`; the first pass over them keeps a sample, so that files aren't read again for it."""
        if not self.active:
            return rows
        return SampledRows(rows, evenly(rows.n_rows, _ROWS), evenly(rows.n_features, _FEATURES))

    def seen(self, rows: Rows) -> Watch:
        """Return the check after these rows, as `over` returned them."""
        if not isinstance(rows, SampledRows):
            return self
        own = Sample.of(rows.sample(), rows.n_rows, seed=self.sample.n_rows)
        return replace(self, sample=self.sample.merged(own, _ROWS))

    def merged(self, other: Watch) -> Watch:
        """Return the check on the rows of both."""
        return replace(self, sample=self.sample.merged(other.sample, _ROWS))

    def tell_of_codes(self, features: Sequence[Any]) -> None:
        """Warn of values in the sample that repeat far outside all others."""
        block = self.sample.block
        if block is None:
            return
        x = np.asarray(block.X if block.weight is None else block.X[block.weight > 0], dtype=np.float64)
        names = [str(features[j]) for j in evenly(len(features), _FEATURES)]
        tell_of_codes(x, names, self.sample.n_rows / block.n_rows)

    @one_blas_thread()  # of so few rows: others would only wait for it
    def look(self, removal: LinearRemoval, design: Design, features: Sequence[Any]) -> Watch:
        """Warn if residuals of the sample leak metadata; repeat the test only when the number of rows has doubled."""
        block = self.sample.block
        if block is None or self.sample.n_rows < 2 * self.looked:
            return self
        looked_at = evenly(len(features), _FEATURES)
        kept = np.flatnonzero(~removal.left[looked_at])  # of what stays as it is there's nothing to tell
        block, some = replace(block, X=block.X[:, kept]), looked_at[kept]
        remove = removal.by_feature().select(some)
        names = [factor.name for factor in design.factors]
        effects = {}
        if design.factors:
            removed = removal.applied.affine(removal.n_removed).select(some).effects
            effects = {name: own[at] for name, own, at in zip(names, removed, block.codes, strict=True)}
        columns = design.column_names[: design.n_removed]
        told = warn_of_leakage(
            block.X, remove(block), block.design, columns, [features[j] for j in some], effects=effects
        )
        if not told and not self.looked:
            _tell_of_raw_counts(block.X, [features[j] for j in some])
        return replace(self, looked=_NEVER_AGAIN if told else self.sample.n_rows)


def _tell_of_raw_counts(X: NDArray[Any], features: Sequence[Any]) -> None:
    """Note that features look like raw counts, of which no residual is right."""
    found = np.flatnonzero(raw_counts(X))
    if found.size:
        names = ", ".join(repr(str(features[int(j)])) for j in found[:5]) + (", ..." if len(found) > 5 else "")
        note(
            "raw-counts",
            f"{len(found)} of {len(features)} features look like raw counts ({names}): their spread follows their "
            "mean, so residuals keep the metadata in the spread, and some are negative. Take logarithms of normalised "
            "counts first, or use a model of counts such as ComBat-seq or a negative binomial regression",
            count=len(found),
            features=[str(features[int(j)]) for j in found],
        )


def look_at_predictions(rows: Rows, residual: NDArray[Any], design: Design, features: Sequence[Any]) -> None:
    """Warn if residuals (n, d) of a regressor leak metadata, in a sample of the rows."""
    index, some = evenly(rows.n_rows, _ROWS), evenly(rows.n_features, _FEATURES)
    sample = rows.take(index)
    warn_of_leakage(
        sample.X[:, some],
        residual[index][:, some],
        sample.design,
        design.column_names[: design.n_removed],
        [features[j] for j in some],
        least_squares=False,
    )


def warn_of_leakage(
    X: NDArray[Any],
    residual: NDArray[Any],
    design: Array,
    columns: Sequence[str],
    features: Sequence[Any],
    *,
    effects: Mapping[str, Array] | None = None,
    least_squares: bool = True,
) -> bool:
    """Warn if a tree predicts metadata better from residuals than from features; return whether it does.

    For counts, which nearly always leak, there is a note instead of a warning.

    Parameters
    ----------
    X, residual, design
        As in :func:`leakage`; further columns of the design are ignored.
    columns : sequence of str
        Names of the design columns that are removed.
    features : sequence
        Names of the features.
    effects : mapping of str to ndarray (n, d), optional
        The removed effects of each factor without columns (:func:`effect_leakage`).
    least_squares : bool
        Whether the residuals are those of least squares, so that means are removed exactly.

    Warns
    -----
    LeakageWarning
        With the column or effect that is predicted best, how well, a comparison, and what to do.
    """
    found = leakage(X, residual, design[:, : len(columns)], least_squares=least_squares)
    read = "" if found is None else repr(columns[found.column])
    for factor, removed in (effects or {}).items():
        if found is None and (found := effect_leakage(X, residual, removed)) is not None:
            read = f"the effect of {factor!r} on {str(features[found.column])!r}"
    if found is None:
        return False
    which = found.few if found.from_values else found.features
    names = ", ".join(repr(str(features[j])) for j in which[:5]) + (", ..." if len(which) > 5 else "")
    figures: dict[str, Any] = {"read": read, "found": found.found, "otherwise": found.smooth}
    figures["features"] = [str(features[j]) for j in which]
    if counts(X[:, which]).all():
        note(
            "leakage",
            f"a decision tree predicts {read} from residuals of counts ({names}): squared correlation "
            f"{found.found:.2f} in cross-validation. Linear models aren't affected; for others take logarithms "
            "first, or use a model for counts such as ComBat-seq",
            **figures,
        )
        return True
    safe = (
        "Linear models aren't affected; for trees, forests and neighbours"
        if least_squares
        else "Before using other models,"
    )
    if found.from_values:
        kind, otherwise = "features with repeated values", "with the values spread out"
        remedy = "add noise as large as the gap between values to these features, or use an Eraser"
    else:
        kind, otherwise = "features", "from the original features"
        remedy = "transform skewed, heavy-tailed or clustered features (logarithms or ranks), or use an Eraser"
        if not least_squares:
            remedy = f"check whether the estimator fits the metadata's effects; {remedy}"
    warn(
        f"a decision tree predicts {read} from residuals of {kind} ({names}): squared correlation {found.found:.2f} "
        f"in cross-validation, and {found.smooth:.2f} {otherwise}. {safe} {remedy}",
        LeakageWarning,
        **figures,
    )
    return True
