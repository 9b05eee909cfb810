"""The summary of a fit, its aliased columns, and its warnings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from residmix.design.terms import Term
from residmix.effects.mean.bands import Test
from residmix.effects.unmeasured.combinations import Empty
from residmix.effects.unmeasured.levels import Unmeasured
from residmix.errors import CollinearityWarning, DesignWarning, EntangledEffectsWarning, ManyColumnsWarning, note, warn
from residmix.moments.inference import explained, term_shares
from residmix.moments.solving.solve import LinearFit

__all__ = [
    "aliases",
    "combinations_told",
    "least_squares_tests",
    "note_of_absent",
    "refuse_entangled",
    "summary_text",
    "warn_of_combinations",
    "warn_of_fit",
    "warn_of_unmeasured",
]

# Above this canonical correlation, what is removed and what is preserved share more than 9/10 of their variance.
_ENTANGLED = 0.95


# Residuals of this size relative to the feature's spread are what subtracting leaves of nothing.
_ROUNDING = 1e-10


def summary_text(
    fit: LinearFit,
    tests: Sequence[Test],
    columns: Sequence[str],
    features: Sequence[str],
    doubts: Sequence[str] = (),
) -> str:
    """Return a page of text: sizes, what each term explains, the most affected features, and warnings.

    For a curve, "columns" is the median of its effective degrees of freedom.
    """
    r2 = explained(fit)
    rows = int(fit.count.max(initial=0))
    beside = " and the levels of absorbed factors" if any(test.statistic is None for test in tests) else ""
    lines = [
        f"{len(features)} features on {len(columns)} design columns, {rows} rows",
        f"rank {fit.rank} of {len(columns)}{beside}, condition number {fit.condition_number:.3g}, "
        f"residual degrees of freedom {fit.residual_degrees[fit.count > 0].min(initial=np.inf):g}",
        f"R2: median {np.median(r2):.3f}, from {r2.min():.3f} to {r2.max():.3f}",
    ]
    if tests:
        width = max(len("term"), *(len(test.name) for test in tests))
        lines += ["", f"{'term':<{width}}  columns  partial R2 (median, max)  features with p < 0.05"]
        for test in tests:
            kept = "  (preserved)" if test.preserved else ""
            if test.statistic is None:
                lines.append(f"{test.name:<{width}}  absorbed")
                continue
            count = f"{np.median(test.edf):.3g}"
            if not test.reference.any():
                lines.append(f"{test.name:<{width}}  {count:>7}  can't be separated from the other terms{kept}")
                continue
            lines.append(
                f"{test.name:<{width}}  {count:>7}  {np.median(test.share):>11.3f}, {test.share.max():<11.3f}"
                f"  {np.count_nonzero(test.p_value < 0.05):>10}{kept}"
            )
        width = max(len("feature"), *(len(name) for name in features))
        lines += ["", f"{'feature':<{width}}     R2"]
        order = np.argsort(-r2, kind="stable")[:10]
        lines += [f"{features[j]:<{width}}  {r2[j]:.3f}" for j in order]
    return "\n".join([*lines, *doubts])


def least_squares_tests(fit: LinearFit, terms: Sequence[Term]) -> list[Test]:
    """Return the F tests of the terms of a fit by least squares; without statistic where levels are absorbed."""
    tests = []
    for term in terms:
        width = np.full(len(fit.rss), float(term.columns.stop - term.columns.start))
        if not width.any():
            tests.append(Test(term.name, term.preserved, None, width, width, width, width))
            continue
        share, p, degrees = term_shares(fit, term.columns)
        tests.append(Test(term.name, term.preserved, share, p, share, width, degrees))
    return tests


def aliases(fit: LinearFit, columns: Sequence[str], owners: Mapping[int, str]) -> list[str]:
    """Return "'scanner[T.s2]' is determined by 'site[T.b]'" for each aliased column.

    Parameters
    ----------
    owners : mapping of int to str
        The factors that determine a column, where no other columns do: :func:`residmix.removal.telling.nesting.owners`.
    """

    def named(partners: tuple[int, ...]) -> str:
        return " and ".join("the intercept" if k < 0 else repr(columns[k]) for k in partners)

    return [
        f"{columns[column]!r} is determined by {named(partners) if partners else owners.get(column, 'the intercept')}"
        for column, partners in fit.aliased.items()
    ]


def warn_of_fit(
    fit: LinearFit,
    names: Sequence[str],
    features: NDArray[Any],
    correlations: NDArray[np.float64],
    *,
    penalised: bool,
    owners: Mapping[int, str] | None = None,
    nested: Sequence[str] = (),
) -> None:
    """Warn of aliased columns, nearly collinear effects, features without values, and too many columns.

    Parameters
    ----------
    correlations : ndarray
        Canonical correlations between removed and preserved columns.
    penalised : bool
        Whether a penalty determines the coefficients of collinear columns.
    owners : mapping of int to str
        As in :func:`aliases`.
    nested : sequence of str
        Sentences about absorbed factors, from :func:`residmix.removal.telling.nesting.nested_factors`.
    """
    if fit.aliased and not penalised:
        told = "; ".join(aliases(fit, names, owners or {})[:8])
        more = "" if len(fit.aliased) <= 8 else f"; and {len(fit.aliased) - 8} more"
        warn(
            f"{len(fit.aliased)} of {len(names)} design columns are aliased: {told}{more}. Effects shared by a "
            "removed and a preserved term are removed, and tidy() has NaN for coefficients that can't be estimated",
            CollinearityWarning,
        )
    if len(correlations) and correlations[0] > _ENTANGLED:
        warn(
            f"removed and preserved effects are nearly collinear (canonical correlation {correlations[0]:.4f}), so "
            "the residuals depend on a few rows. Remove or preserve fewer terms",
            EntangledEffectsWarning,
        )
    for told in nested:
        warn(told, CollinearityWarning)
    known = fit.count > 0
    if not known.all():
        absent = ", ".join(str(name) for name in np.asarray(features)[~known][:8])
        warn(f"features without any value are left unchanged: {absent}", DesignWarning)
    exact = known & (fit.tss > 0) & (fit.rss <= _ROUNDING**2 * fit.tss) & (fit.residual_degrees > 0)
    if exact.any():
        some = ", ".join(repr(str(name)) for name in np.asarray(features)[exact][:8])
        warn(
            f"{exact.sum()} of {len(exact)} features are determined exactly by the design ({some}), so their "
            "residuals are rounding errors. Leave these features out",
            DesignWarning,
        )
    count = float(fit.count[known].min(initial=np.inf))
    columns = float(fit.degrees.max(initial=0.0))
    if columns > 0 and columns + 1 > count / 2:
        left = max(count - 1 - columns, 0.0) / max(count, 1.0)
        warn(
            f"{columns:.4g} design columns for {count:.0f} rows: in-sample residuals keep only {left:.0%} of the "
            "noise variance. Use fewer columns, or a penalty (alpha=)",
            ManyColumnsWarning,
        )


def refuse_entangled(correlations: NDArray[np.float64]) -> None:
    """Raise if removed and preserved effects are nearly collinear.

    Parameters
    ----------
    correlations : ndarray
        Canonical correlations between removed and preserved columns, largest first.

    Raises
    ------
    ValueError
        If the largest one is above the limit of :class:`EntangledEffectsWarning`.
    """
    if len(correlations) and correlations[0] > _ENTANGLED:
        raise ValueError(
            f"removed and preserved effects are nearly collinear (canonical correlation {correlations[0]:.4f}, more "
            f"than {_ENTANGLED}), as with a site that has only cases; leave such levels out, or set "
            "on_entangled='warn' to continue"
        )


def note_of_absent(one: Unmeasured, absent: NDArray[np.bool_]) -> None:
    """Note levels (L,) of a factor without rows, as when sites agree on levels and each fits its own rows."""
    names = [str(name) for name, none in zip(one.term.levels, absent, strict=True) if none]
    if names:
        note(
            "levels-without-rows",
            f"no row has the level {_some(names)} of {one.term.name!r}, so its effect is unknown until rows are added",
            term=one.term.name,
            levels=names,
        )


def warn_of_unmeasured(one: Unmeasured, lacking: NDArray[np.bool_], features: NDArray[Any], on_unknown: str) -> None:
    """Warn of levels of a factor at which features (L, d) have no values."""
    for level, own in zip(one.term.levels, lacking, strict=False):
        names = [str(name) for name in np.asarray(features)[own]]
        if not names:
            continue
        then = (
            "new rows get NaN there; set on_unknown='mean' to use the average of the other levels"
            if on_unknown == "error"
            else "new rows get the average effect of the other levels"
        )
        warn(
            f"no values of {_some(names)} where {one.term.name!r} is {level!r}, so this effect can't be estimated: "
            f"{then}",
            DesignWarning,
            kind="unmeasured-level",
            term=one.term.name,
            level=level,
            features=names,
        )


def combinations_told(one: Empty, features: NDArray[Any], n_values: int) -> tuple[str, dict[str, Any]] | None:
    """Return "no rows where 'site' is 'a' and 'scanner' is 's2'" for such combinations, and their figures.

    `n_values` is the number of features that have values at all.
    """
    lacking = one.alone()
    cells, own = np.flatnonzero(lacking.any(axis=1)), lacking.any(axis=0)
    if not len(cells):
        return None
    levels = [len(names) for names in one.among.levels]
    at = np.array(np.unravel_index(cells, levels)).T
    named = [
        {factor: names[k] for factor, names, k in zip(one.among.factors, one.among.levels, place, strict=True)}
        for place in at
    ]
    told = [" and ".join(f"{factor!r} is {level!r}" for factor, level in cell.items()) for cell in named[:4]]
    more = f" (and {len(cells) - 4} more combinations)" if len(cells) > 4 else ""
    names = [str(name) for name in np.asarray(features)[own]]
    whose = "no rows" if len(names) == n_values else f"no values of {_some(names)}"
    figures = {"term": one.term.name, "combinations": named, "features": names}
    return f"{whose} where {', or where '.join(told)}{more}", figures


def warn_of_combinations(one: Empty, features: NDArray[Any], n_values: int, on_unknown: str) -> None:
    """Warn of combinations of levels without rows, though each of their levels has rows."""
    found = combinations_told(one, features, n_values)
    if found is None:
        return
    then = (
        "new rows get NaN there; set on_unknown='mean' to use the sum of the effects of the levels"
        if on_unknown == "error"
        else "new rows get the sum of the effects of the levels"
    )
    warn(
        f"{found[0]}, so this effect of {one.term.name!r} can't be estimated: {then}",
        DesignWarning,
        kind="unmeasured-combination",
        **found[1],
    )


def _some(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names[:8])) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
