"""Tables of a fit: the levels of a factor, an effect along its variable, shares of variance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from residmix.design.design import Design
from residmix.design.terms import find_term
from residmix.design.transforms.curves import Curve
from residmix.effects.covariance.distances import level_distances
from residmix.effects.marginal import beside_all, marginal, marginal_moments, recoded
from residmix.effects.mean.bands import Posterior, residual_variance
from residmix.effects.removal import LinearRemoval
from residmix.effects.unseen.priors import level_estimates
from residmix.moments.by_level import Grouping, LevelMoments, residual_sums

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["effect_table", "level_table", "moments_table", "share_table"]

Array = NDArray[np.float64]

# Beyond so many robust standard deviations from the other levels a level is odd (Iglewicz and Hoaglin 1993).
_ODD = 3.5
# Values along a curve.
_POINTS = 50
# Of the median absolute deviation: what makes it a standard deviation of normal ones.
_NORMAL = 1.4826


def level_table(found: LinearRemoval, design: Design, term: str) -> pd.DataFrame:
    r"""Return a table with a row for each level of a removed factor; :meth:`residmix.Residualizer.level_table`.

    With :math:`\hat\gamma_{kj}` the effect of level k on feature j beyond the mean of the rows, in residual standard
    deviations, and :math:`\hat\delta_{kj}` its residual variance over the pooled one,

    .. math::
        \text{shift}_k = \sqrt{\operatorname{mean}_j \hat\gamma_{kj}^2}, \quad
        \text{spread}_k = \exp \operatorname{mean}_j \tfrac12 \log \hat\delta_{kj}, \quad
        \text{distance}_k = \operatorname{mean}_j \tfrac12
        (\hat\delta_{kj} + \hat\gamma_{kj}^2 - 1 - \log \hat\delta_{kj}),

    the last one the Kullback-Leibler divergence of the level's normal distributions from the pooled ones, in nats per
    feature.
    """
    import pandas as pd

    own = find_term(design.terms, term, "level_table")
    if own.preserved or own.kind not in ("factor", "absorbed"):
        what = "preserved" if own.preserved else own.kind
        raise ValueError(f"level_table needs a factor that is removed, but {own.name!r} is {what}")
    # beside interactions: their average over the rows, not what they are at a reference level
    changed = None if design.factors else marginal(design, found.moments.linear, [own])
    fit = found.fit if changed is None else replace(found.fit, coef=recoded(found.fit.coef, changed))
    effects, weight = level_estimates(design, own, fit, found.moments)
    known = own.levels[: len(effects)]
    degrees = np.where(found.fit.residual_degrees > 0, found.fit.residual_degrees, 1.0)
    sd = np.sqrt(found.fit.rss / degrees)
    usable = (sd > 0) & (found.fit.count > 0)
    share = weight / np.maximum(weight.sum(axis=0), 1e-300)
    effects = np.where(weight > 0, effects, 0.0)
    gamma = ((effects - np.sum(share * effects, axis=0)) / np.where(sd > 0, sd, 1.0))[:, usable]
    log_delta = _log_ratios(found, design, own.name, len(known), sd, changed)
    rows = weight.max(axis=1)
    shift = np.sqrt(np.mean(gamma**2, axis=1)) if usable.any() else np.full(len(known), np.nan)
    spread = distance = np.full(len(known), np.nan)
    if log_delta is not None:
        delta = log_delta[:, usable]
        spread = np.exp(0.5 * np.mean(delta, axis=1))
        distance = 0.5 * np.mean(np.exp(delta) + gamma**2 - 1.0 - delta, axis=1)
    odd = _far_out(shift, rows, usable.sum(), upwards=True) | _far_out(np.log(spread), rows, usable.sum())
    table = {"level": known, "rows": rows, "shift": shift, "spread": spread, "distance": distance, "odd": odd}
    if found.covariance is not None and found.covariance.columns == own.columns:
        grouping = Grouping(own.name, own.columns, design.level_rows(own))
        before, after = level_distances(found, grouping)[: len(known)].T
        table |= {"covariance": before, "covariance_after": after}
    return pd.DataFrame(table).sort_values("level", kind="stable", ignore_index=True)


def _log_ratios(
    found: LinearRemoval, design: Design, name: str, n_levels: int, sd: Array, changed: Array | None
) -> Array | None:
    """Return log variances of the levels (K, d) less that of all rows; None where nothing is known of them."""
    (term,) = (own for own in design.terms if own.name == name)
    if isinstance(found.moments, LevelMoments) and name in found.moments.levels:
        grouping = Grouping(name, term.columns, design.level_rows(term))
        n, _, squares, _ = residual_sums(found.moments, grouping, found.fit)
        known = (n >= 2) & (squares > 0)
        ratio = np.where(known, squares, 1.0) / np.where(known, n - 1, 1.0) / np.where(sd > 0, sd, 1.0) ** 2
        return np.where(known, np.log(ratio), 0.0)[:n_levels]
    if found.scale is None:
        return None
    scale, width = found.scale, len(found.scale.coef)
    coef = (scale.coef if changed is None else recoded(scale.coef, changed[:, :width, :width]))[term.columns]
    return 2.0 * ((design.known_level_rows(term) - scale.origin[term.columns]) @ coef + scale.intercept)


def _far_out(values: Array, rows: Array, n_features: int, upwards: bool = False) -> NDArray[np.bool_]:
    """Return a mask of the levels that lie far from the others; none of three or fewer."""
    seen = np.isfinite(values) & (rows > 0)
    if seen.sum() < 4:
        return np.zeros(len(values), dtype=bool)
    step = np.where(seen, values, 0.0) - np.median(values[seen])
    error = 1.0 / np.sqrt(2.0 * np.maximum(rows, 1.0) * max(n_features, 1))
    scale = np.maximum(_NORMAL * np.median(np.abs(step[seen])), error)
    return np.asarray(seen & ((step if upwards else np.abs(step)) > _ODD * scale))


def moments_table(found: LinearRemoval, design: Design) -> pd.DataFrame:
    """Return a table of the sums that moments hold; :meth:`residmix.Residualizer.what_leaves`."""
    import pandas as pd

    moments, called = found.moments, {term.name: " and ".join(term.variables) for term in design.terms}
    linear = moments.linear
    rows = [
        ("rows, and their weight", [linear.count, linear.weight]),
        ("means of design columns", [linear.offset_a]),
        ("means of features", [linear.offset_x]),
        ("products of design columns with each other", [linear.s_aa]),
        ("products of design columns with features", [linear.s_ax]),
        ("squares of features", [linear.s_xx]),
    ]
    if isinstance(moments, LevelMoments):
        for name, levels in moments.levels.items():
            parts = [getattr(own, field.name) for own in levels for field in fields(own) if "origin" not in field.name]
            rows.append((f"all these by level of {called.get(name, name)}", parts))
        for name, products in moments.scatter.items():
            what = f"products of features with each other by level of {called.get(name, name)}"
            rows.append((what, [own for own in products if own is not None]))
    rows += [("sums of features by level of a large factor", [sums.x]) for sums in getattr(moments, "sums", ())]
    shapes = [{" x ".join(map(str, part.shape)) for part in parts} for _, parts in rows]
    return pd.DataFrame(
        {
            "what": [what for what, _ in rows],
            "arrays": [len(parts) for _, parts in rows],
            "shape": [shape.pop() if len(shape) == 1 else "" for shape in shapes],
            "numbers": [sum(part.size for part in parts) for _, parts in rows],
        }
    )


def effect_table(
    found: LinearRemoval, design: Design, features: Sequence[Any], name: str, at: Any = None
) -> pd.DataFrame:
    r"""Return the effect of a metadata column at some of its values; :meth:`residmix.Residualizer.effect`.

    With v the columns of its terms at a value, less their mean over the rows, the effect is v'B, and its band
    :math:`v'B \pm t_{0.975} \hat\sigma_j \sqrt{v'Cv}`. For a curve by the levels of a factor, v isn't centred: such
    curves already have mean zero over all rows (over the knots, where the formula gives both bounds).
    """
    curves = _curves_of(design, name)
    if curves:
        return _table_of_curves(found, design, features, curves, at)
    levels = design.levels_of(name)
    if at is None:
        at = _range_of(design, name) if levels is None else list(levels.levels)
    values = list(at)
    columns, rows = design.rows_along(name, values)
    fit = found.fit
    mean = (fit.origin_a + fit.offset_a)[:, columns]  # (g, k)
    estimate, band = _estimates(found, design, columns, rows[:, None, :] - mean)
    at = np.repeat(np.asarray(values, dtype=None if levels is None else object), len(features))
    return _effects(at, features, estimate, band)


def _estimates(found: LinearRemoval, design: Design, columns: NDArray[np.intp], steps: Array) -> tuple[Array, Array]:
    """Return effects (v, d) of steps (v, g, k) along some columns, and half the width of their bands."""
    from scipy.special import stdtrit

    fit = found.fit
    estimate = np.einsum(
        "vdk,kd->vd",
        np.broadcast_to(steps[:, fit.group], (len(steps), len(fit.group), len(columns))),
        found.applied.coef[columns],
    )
    if found.smooth is None:
        degrees = np.where(fit.residual_degrees > 0, fit.residual_degrees, np.nan)
        C, sigma2 = fit.covariance[:, columns][:, :, columns], fit.rss / degrees
        variance = np.einsum("vgk,gkl,vgl->vg", steps, C, steps)[:, fit.group]
    else:
        degrees, sigma2 = found.smooth.residual_degrees, residual_variance(found)
        full = np.zeros((*steps.shape[:2], len(design.column_names)))
        full[:, :, columns] = steps
        variance = Posterior.of(found, design).variance(full)
    return estimate, np.sqrt(np.maximum(variance, 0.0) * sigma2) * stdtrit(degrees, 0.975)


def _effects(at: NDArray[Any], features: Sequence[Any], estimate: Array, band: Array) -> pd.DataFrame:
    import pandas as pd

    return pd.DataFrame(
        {
            "at": at,
            "feature": np.tile(np.asarray([str(f) for f in features], dtype=object), len(estimate)),
            "estimate": estimate.ravel(),
            "lower": (estimate - band).ravel(),
            "upper": (estimate + band).ravel(),
        }
    )


def _range_of(design: Design, name: str) -> Sequence[float]:
    """Return values along the range of a curve of a metadata column.

    Raises
    ------
    ValueError
        If there is none.
    """
    for curve in design.curves:
        if curve.atom.argument.text == name or getattr(curve.atom.argument, "name", None) == name:
            points: list[float] = np.linspace(*curve.bounds, _POINTS).tolist()
            return points
    raise ValueError(f"effect({name!r}) needs at=, the values of {name!r} to evaluate the effect at")


def _curves_of(design: Design, name: str) -> list[Curve]:
    """Return the curves called `name`, or the curves of that metadata column by another one."""
    named = [curve for curve in design.curves if name in (curve.name, curve.term)]
    return named or [curve for curve in design.curves if curve.by is not None and curve.variables == (name,)]


def _table_of_curves(
    found: LinearRemoval, design: Design, features: Sequence[Any], curves: list[Curve], at: Any
) -> pd.DataFrame:
    import pandas as pd

    tables = []
    for curve in curves:
        values = list(_range_of(design, curve.variables[0]) if at is None else at)
        steps = np.broadcast_to(curve.rows(values)[:, None], (len(values), len(found.fit.offset_a), len(curve.columns)))
        if curve.by is None:
            steps = steps - (found.fit.origin_a + found.fit.offset_a)[:, curve.columns]
        table = _effects(np.repeat(values, len(features)), features, *_estimates(found, design, curve.columns, steps))
        if curve.by is not None:
            table.insert(1, "curve", curve.by if curve.level is None else curve.level)
        tables.append(table)
    return pd.concat(tables, ignore_index=True)


def share_table(found: LinearRemoval, design: Design, features: Sequence[Any]) -> pd.DataFrame:
    r"""Return the shares of the variance of each feature; :meth:`residmix.Residualizer.variance_shares`.

    With :math:`f_t` the fitted values of term t,

    .. math:: \text{share}_t = \operatorname{Cov}(f_t, x) / \operatorname{Var}(x),

    which add up to the share that all terms explain (Pratt 1987). The common part of correlated terms is divided among
    them. A share is negative where a term only corrects for another one. What terms explain of an interaction that
    holds them is theirs.
    """
    import pandas as pd

    moments, coef = found.moments.linear, found.applied.coef
    if (changed := beside_all(design, moments)) is not None:
        moments, coef = marginal_moments(moments, changed), recoded(coef, changed)
    total = np.where(found.fit.tss > 0, found.fit.tss, np.nan)
    shares = [np.einsum("kd,kd->d", coef[t.columns], moments.s_ax[t.columns]) / total for t in design.terms]
    left = 1.0 - np.sum(shares, axis=0) if shares else np.ones(len(total))
    names = [*(term.name for term in design.terms), "(residual)"]
    return pd.DataFrame(
        {
            "feature": np.repeat(np.asarray([str(f) for f in features], dtype=object), len(names)),
            "term": np.tile(np.asarray(names, dtype=object), len(total)),
            "share": np.vstack([*shares, left]).T.ravel(),
        }
    )
