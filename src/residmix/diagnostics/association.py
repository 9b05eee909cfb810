"""Association of features with metadata: before and after a removal, in sample and held out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial, reduce
from numbers import Integral, Real
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.utils._param_validation import Interval

from residmix.design.columns import open_metadata
from residmix.design.fit import Design, fit_design
from residmix.design.formula.parser import formula_columns
from residmix.diagnostics.costs import REFIT, distance_seconds, measuring_seconds, one_by_one, probe_seconds
from residmix.diagnostics.dependence import (
    Variable,
    counts_dependence,
    fold_moments,
    variance_shares,
)
from residmix.diagnostics.distances import distance_dependence
from residmix.diagnostics.probes import ProbeResult, probe
from residmix.diagnostics.refits import given, held_out, predicted, refitted
from residmix.diagnostics.table import COLUMNS, Association
from residmix.errors import BelowChanceWarning, CollinearityWarning, LeakageWarning, check_arguments, warn
from residmix.moments.linear import merge_moments
from residmix.moments.scatter import check_design_moments
from residmix.rows.block import Block
from residmix.rows.progress import RowProgress
from residmix.rows.rows import ArrayRows, Rows
from residmix.rows.sampled import at_random
from residmix.sources.open import as_table
from residmix.sources.table import Table

__all__ = ["Association", "association"]

Array = NDArray[np.float64]

MOST_LEVELS = 2000  # of a factor whose columns are written out
DISTANCE_ROWS = 700  # distances are held between all pairs of them
FEW_VALUES = 0.1  # distinct values per row below which a feature counts as few-valued


def association(
    X: Any,
    metadata: Any = None,
    *,
    formula: str | None = None,
    features: Sequence[str] | None = None,
    after: Any = None,
    components: Any = None,
    missing: str = "error",
    n_splits: int = 5,
    n_permutations: int = 199,
    confidence: float = 0.95,
    max_rows: int = 1500,
    random_state: int | None = 0,
) -> Association:
    r"""Measure the association of features with metadata, before and after a removal.

    There are four kinds of measure, which detect different forms of dependence:

    - ``r2``: partial :math:`R^2` per feature and term of the formula, and of the whole formula; linear in the design.
    - ``distance_correlation``: bias-corrected and squared, per metadata column; detects dependence of any form.
    - ``linear_probe``, ``nonlinear_probe``: how well a model predicts a metadata column from all features together,
      on held-out rows.
    - ``component_information`` (adjusted mutual information) and ``component_v`` (Cramér's V, per component): how
      strongly the components of a mixture depend on a metadata column.

    Parameters
    ----------
    X : array (n, d), table, or anything that an estimator takes
    metadata : array or table, optional
        As in :class:`~residmix.Residualizer`; without it, `formula` names columns of X.
    formula : str, optional
        The terms to report. Default: every metadata column.
    features : list of str, optional
    after : array or table (n, d), or estimator, optional
        Residuals of the same rows, or the estimator that computes them. Only with an estimator are held-out values
        "after" unbiased: clones of it are fitted to the training rows of each fold. It needs data in memory.
    components : array (n,) of int, optional
        The component of each row. Default: the predictions of `after`, if it has `predict`.
    missing : {"error", "mean", "indicator"}
        Treatment of missing metadata in R2; the other measures leave out rows where their column is missing.
    n_splits : int
        Folds.
    n_permutations : int
    confidence : float
        Of the intervals of R2.
    max_rows : int
        Probes use a random sample of at most this many rows, distance correlations 700 of these. R2 and components use
        every row. By chance, an AUC on 1,500 rows then varies by .015 for two equal groups and by .009 for five
        (standard deviations), a distance correlation of two columns on 700 rows by .002: what is weaker than twice
        that may go unseen. Four times the rows halve it, at about four times the cost of the probes.
    random_state : int

    Returns
    -------
    Association
        A table with separate columns for in-sample and held-out values.

    Warns
    -----
    BelowChanceWarning
        If a probe scores below chance. In-sample residuals are exactly orthogonal to the metadata, so a model trained
        on some of them is biased on the others. This is an artefact, not a sign of removal.
    CollinearityWarning
        If a term is determined by the others; its share is 0, without a p-value.
    LeakageWarning
        If a column is easier to predict after than before.

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> age = rng.normal(50, 10, 300)
    >>> found = association(np.column_stack([age, rng.normal(size=300)]), age)
    >>> [round(share, 2) for share in found.where(measure="r2", metadata="(all)")["in_sample"]]
    [1.0, 0.0]
    """
    check_arguments(
        "association",
        n_splits=([Interval(Integral, 2, 100, closed="both")], n_splits),
        n_permutations=([Interval(Integral, 19, None, closed="left")], n_permutations),
        confidence=([Interval(Real, 0.5, 0.9999, closed="both")], confidence),
        max_rows=([Interval(Integral, 50, None, closed="left")], max_rows),
    )
    table = as_table(X, metadata=metadata)
    design = _design(table, formula, missing)
    names = table.feature_names(features, exclude=() if formula is None else formula_columns(formula))
    n = _enough(table.n_rows, n_splits)
    rng = np.random.default_rng(random_state)
    folds = (rng.permutation(n) % n_splits).astype(np.int8)
    sample = at_random(n, max_rows, rng)
    rows = table.rows(names, design=design, allow_nan=True)
    variables = _variables(table, design)
    stages, distances = (1, 1) if after is None else (2, 3 if hasattr(after, "fit") else 2)
    work = measuring_seconds(
        len(sample), len(names), [len(variable.levels) for variable in variables], groups=1 + one_by_one(len(names)),
        n_splits=n_splits, n_permutations=n_permutations, stages=stages, distances=distances,
    )  # fmt: skip
    with RowProgress(work, unit="%") as seen:
        report = _Report(design, names, variables, folds, sample, n_permutations, confidence, random_state or 0, seen)
        before = np.asarray(rows.take(sample).X, dtype=np.float64)
        matrices = {"before": [before]}
        if after is not None:
            if hasattr(after, "fit"):
                whole, by_fold = refitted(after, X, metadata, table, folds, n_splits, partial(seen, REFIT))
                components = predicted(after, X, metadata) if components is None else components
            else:
                whole, by_fold = given(after, n), None
            held = whole if by_fold is None else held_out(by_fold, folds)
            matrices["after"] = [whole[sample]] if by_fold is None else [whole[sample], held[sample]]
        report.pair(matrices)
        scores = _before(report, rows, before, n_splits)
        if after is not None:
            scores |= _after(report, rows, whole, held, by_fold, n_splits)
            _warn_of_leakage(scores, _few_valued(before, names))
    _warn_below_chance(scores)
    if components is not None:
        report.components("after" if after is not None else "before", np.asarray(components))
    return Association(report.columns)


def _enough(n: int, n_splits: int) -> int:
    if n < 4 * n_splits:
        raise ValueError(
            f"{n} rows are too few for {n_splits} folds, which need at least {4 * n_splits}; use a smaller n_splits"
        )
    return n


def _design(table: Table, formula: str | None, missing: str) -> Design:
    if formula is None and not table.has_metadata:
        raise ValueError("association needs metadata: pass metadata=, or a formula that names columns of X")
    wanted = None if formula is None else formula_columns(formula)
    design = fit_design(
        lambda: table.chunks(wanted), formula=formula, missing=missing, on_unknown="mean", absorb_above=MOST_LEVELS
    )
    if design.factors:
        raise ValueError(
            f"{design.factors[0].name} has {len(design.factors[0].levels)} levels, but association "
            f"allows {MOST_LEVELS}; leave it out, or merge levels"
        )
    if not design.columns:
        raise ValueError("the formula names no metadata column; name one, as in formula='site'")
    return design


_Scores = dict[tuple[str, str, str], ProbeResult]


def _before(report: _Report, rows: Rows, sampled: Array, n_splits: int) -> _Scores:
    """Measure the original features; return the scores of the probes by stage, column and kind."""
    moments = fold_moments(rows, report.folds, n_splits)
    check_design_moments(report.design.column_names, reduce(merge_moments, moments))
    report.shares("before", [moments] * 2)
    report.distances("before")
    return {("before", *key): value for key, value in report.probes("before", lambda fold: sampled).items()}


def _after(
    report: _Report, rows: Rows, whole: Array, held: Array, by_fold: list[Array] | None, n_splits: int
) -> _Scores:
    """Measure the residuals of all rows: `whole`, and `held` and `by_fold` of fits without each fold, if there are."""
    folds, sample = report.folds, report.sample
    design_rows = np.concatenate(list(rows.map(_design_of)))
    moments = fold_moments(ArrayRows(whole, design_rows), folds, n_splits)
    honest = moments if by_fold is None else fold_moments(ArrayRows(held, design_rows), folds, n_splits)
    if whole.shape[1] != len(report.names):
        report.names = tuple(f"x{j}" for j in range(whole.shape[1]))
    report.shares("after", [moments, honest])
    report.distances("after")
    visible: Callable[[int], Array] = lambda fold: (whole if by_fold is None else by_fold[fold])[sample]  # noqa: E731
    return {("after", *key): value for key, value in report.probes("after", visible).items()}


class _Report:
    """The table of measurements while it is filled."""

    def __init__(
        self,
        design: Design,
        names: Sequence[str],
        variables: list[Variable],
        folds: NDArray[np.int8],
        sample: NDArray[np.integer[Any]],
        n_permutations: int,
        confidence: float,
        seed: int,
        seen: Callable[[float], None],
    ) -> None:
        self.design, self.names, self.variables = design, tuple(names), variables
        self.folds, self.sample = folds, sample
        self.n_permutations, self.confidence, self.seed, self.seen = n_permutations, confidence, seed, seen
        self.rng = np.random.default_rng(seed + 1)
        self.columns: dict[str, list[Any]] = {name: [] for name in COLUMNS}
        self.paired: dict[str, list[Array]] = {}  # of a stage: (groups, statistic and p-value, variables)

    def add(self, stage: str, measure: str, metadata: str, feature: str, n: int, **values: float) -> None:
        row = {"stage": stage, "measure": measure, "metadata": metadata, "feature": feature, "n": int(n)}
        for name in COLUMNS:
            self.columns[name].append(row[name] if name in row else float(values.get(name, np.nan)))

    def shares(self, stage: str, moments: Sequence[Any]) -> None:
        """R2 of every term, in sample from ``moments[0]`` and held out from ``moments[1]``."""
        terms: list[tuple[str, slice | None]] = [("(all)", None)]
        if len(self.design.terms) > 1:
            terms += [(term.name, term.columns) for term in self.design.terms]
        where = [columns for _, columns in terms]
        inside = variance_shares(moments[0], where, self.confidence)
        outside = inside if moments[1] is moments[0] else variance_shares(moments[1], where, self.confidence)
        for (name, _), one, two in zip(terms, inside, outside, strict=True):
            if stage == "before" and not one.degrees.any():
                warn(
                    f"{name!r} is determined by the other terms, so its R2 is 0 and has no test. Leave it out of the "
                    "formula",
                    CollinearityWarning,
                )
            for j, feature in enumerate(self.names):
                self.add(
                    stage, "r2", name, feature, len(self.folds),
                    in_sample=one.share[j], in_sample_low=one.low[j], in_sample_high=one.high[j],
                    in_sample_p=one.p_value[j], held_out=two.held_out[j],
                )  # fmt: skip

    def pair(self, stages: dict[str, list[Array]]) -> None:
        """Compute the distance correlations of all stages, in sample and held out, on the same rows."""
        variables = [variable.take(self.sample) for variable in self.variables]
        matrices = [matrix for stage in stages.values() for matrix in stage]
        known = [variable.known for variable in variables] + [~np.isnan(matrix).any(axis=1) for matrix in matrices]
        rows = np.flatnonzero(np.logical_and.reduce(known))
        if len(rows) > DISTANCE_ROWS:
            rows = rows[at_random(len(rows), DISTANCE_ROWS, np.random.default_rng(self.seed))]
        if len(rows) < 10:
            return
        groups, ends = [], []
        for matrix in matrices:
            columns = [matrix[rows][:, [j]] for j in range(one_by_one(matrix.shape[1]))]
            groups += [matrix[rows], *columns]
            ends.append(len(groups))
        variables = [variable.take(rows) for variable in variables]
        found = zip(*distance_dependence(groups, variables, self.n_permutations, self.rng), strict=True)
        by_matrix = np.split(np.array(list(found)), ends[:-1])
        self.paired = {stage: [by_matrix.pop(0) for _ in of_stage] for stage, of_stage in stages.items()}
        self.n_paired = len(rows)
        self.seen(distance_seconds(len(rows), len(groups), len(variables), self.n_permutations))

    def distances(self, stage: str) -> None:
        found = self.paired.get(stage, [])
        for v, variable in enumerate(self.variables):
            for g, feature in enumerate(("(all)", *self.names)[: len(found[0]) if found else 0]):
                values = dict(zip(("in_sample", "in_sample_p"), found[0][g, :, v], strict=True))
                if len(found) > 1:
                    values |= zip(("held_out", "held_out_p"), found[1][g, :, v], strict=True)
                self.add(stage, "distance_correlation", variable.name, feature, self.n_paired, **values)

    def probes(self, stage: str, features: Callable[[int], Array]) -> dict[tuple[str, str], ProbeResult]:
        results = {}
        folds = self.folds[self.sample]
        for variable in self.variables:
            own = variable.take(self.sample)
            for kind in ("linear", "nonlinear"):
                work = probe_seconds(kind, len(self.sample), len(self.names), len(variable.levels))
                seen = partial(self._seen, work)
                result = probe(kind, features, own, folds, self.n_permutations, self.rng, self.seed, seen)
                results[variable.name, kind] = result
                self.add(
                    stage, f"{kind}_probe", variable.name, "(all)", own.known.sum(),
                    held_out=result.score, held_out_chance=result.chance, held_out_chance_low=result.low,
                    held_out_chance_high=result.high, held_out_p=result.p_value,
                )  # fmt: skip
        return results

    def _seen(self, work: float, n_folds: float) -> None:
        self.seen(work * n_folds)

    def components(self, stage: str, components: NDArray[Any]) -> None:
        if components.shape != (len(self.folds),) or components.dtype.kind not in "iu" or components.min() < 0:
            raise ValueError(
                f"components must be {len(self.folds)} non-negative integers, not an array of shape "
                f"{components.shape} and dtype {components.dtype}"
            )
        for variable in self.variables:
            values, p = counts_dependence(components, variable, self.n_permutations, self.rng)
            for k, (value, chance) in enumerate(zip(values, p, strict=True)):
                measure, feature = (
                    ("component_information", "(all)") if k == 0 else ("component_v", f"component {k - 1}")
                )
                self.add(
                    stage, measure, variable.name, feature, variable.known.sum(), in_sample=value, in_sample_p=chance
                )  # fmt: skip


def _design_of(block: Block) -> Array:
    return block.design


def _variables(table: Table, design: Design) -> list[Variable]:
    """Return the metadata columns of every row, as numbers or level indices."""
    wanted = None if not table.named and table.has_metadata else design.columns
    sources = [open_metadata(chunk) for chunk in table.chunks(wanted)]
    variables = []
    for name in design.columns:
        levels = design.levels_of(name)
        if levels is None:
            values = np.concatenate([source.numbers(name)[0] for source in sources])
            variables.append(Variable(name, values))
        else:
            codes = [levels.codes(source.labels(name), on_unknown="mean", missing="mean")[0] for source in sources]
            whole = np.concatenate(codes).astype(np.float64)
            variables.append(Variable(name, np.where(whole < len(levels.levels), whole, -1.0), levels.labels))
    return variables


def _few_valued(X: Array, names: Sequence[str]) -> list[str]:
    return [name for name, column in zip(names, X.T, strict=True) if len(np.unique(column)) < FEW_VALUES * len(X)]


def _warn_of_leakage(scores: dict[tuple[str, str, str], ProbeResult], few: Sequence[str]) -> None:
    for (stage, name, kind), after in scores.items():
        before = scores["before", name, kind]
        if stage == "after" and after.excess > 4 and after.score > before.score + 0.05:
            why = f"; features with repeated values: {', '.join(few[:8])}" if few else ""
            warn(
                f"{name!r} is easier to predict after than before: held-out {kind} probe {after.score:.3f}, before "
                f"{before.score:.3f}, chance {after.chance:.3f}{why}",
                LeakageWarning,
            )


def _warn_below_chance(scores: dict[tuple[str, str, str], ProbeResult]) -> None:
    for (stage, name, kind), result in scores.items():
        if result.excess < -4:
            warn(
                f"the {kind} probe predicts {name!r} {stage} with {result.score:.3f}, below chance "
                f"({result.chance:.3f}, {result.low:.3f} to {result.high:.3f}), an artefact of in-sample residuals. "
                "For held-out residuals pass the estimator as after=",
                BelowChanceWarning,
            )
