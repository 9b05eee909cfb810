"""Levels that fit didn't see: their expected effects, before and after a few of their rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from residmix.design.design import Design
from residmix.effects.removal import LinearRemoval
from residmix.effects.spread.scale import Scale
from residmix.effects.unseen.batches import LaterBatches, LevelTotals, merged_totals, with_known_and_unseen
from residmix.effects.unseen.priors import (
    LevelPrior,
    SpreadPrior,
    log_variance,
    removed_factors,
    spread_prior,
    term_prior,
)
from residmix.moments.affine import Affine
from residmix.rows.block import Block
from residmix.rows.rows import Rows, fold
from residmix.sources.table import Table

__all__ = ["NewLevels", "adapted", "priors"]

Array = NDArray[np.float64]


@dataclass(frozen=True)
class NewLevels:
    r"""Effects of unseen levels of one factor.

    A level with n rows, whose mean after all other fitted effects differs by :math:`\bar r` from the average level, has
    the effect

    .. math:: \hat u = \mu + \frac{n}{n + \sigma^2/\tau^2} (\bar r - \mu),

    its expectation given the rows (Robinson, Statistical Science 6, 1991). Without rows it is :math:`\mu`.

    Of the spread, :math:`v = \log f` has the estimate

    .. math:: \hat v = \tfrac12 \left(\log \frac{s^2}{\sigma^2} - \psi(\nu/2) + \log(\nu/2)\right), \quad
        \operatorname{Var} \hat v = \tfrac14 \psi'(\nu/2),

    with the variance :math:`s^2` of the rows about their mean, on :math:`\nu = n - 1` degrees of freedom, after the
    other effects on the spread; these are the mean and the variance of the logarithm of a :math:`\chi^2_\nu` (Smyth,
    Stat. Appl. Genet. Mol. Biol. 3, 2004, section 6.2). It is shrunk in the same way, by the variance :math:`\tau^2`
    of v over the known levels.

    Attributes
    ----------
    prior : LevelPrior
    totals : LevelTotals
        Sums of the rows of new levels.
    spread : SpreadPrior or None
    """

    prior: LevelPrior
    totals: LevelTotals
    spread: SpreadPrior | None = None

    @classmethod
    def none(cls, prior: LevelPrior, spread: SpreadPrior | None = None) -> NewLevels:
        """Return the prior of new levels, without any rows."""
        return cls(prior, LevelTotals.none(len(prior.mean)), spread)

    @property
    def labels(self) -> tuple[Any, ...]:
        return self.totals.labels

    @property
    def weight(self) -> Array:
        return self.totals.weight

    @property
    def mean(self) -> Array:
        return self.totals.mean

    def effects(self, *, shrink: bool) -> Array:
        """Return effects (L + 2, d) beyond the average level's: of each level, of any other unseen one, of known ones.

        `shrink` says whether a level without rows gets the prior's mean or the average level's effect.
        """
        return _expected(self.prior, self.weight, self.mean, shrink)

    def spreads(self, *, shrink: bool) -> Array | None:
        """Return changes (L + 2, d) of the log standard deviation, as `effects`; None if no spread is removed."""
        if self.spread is None:
            return None
        degrees, within, variance = self.weight - 1.0, self.totals.within, self.spread.variance
        known = (degrees > 0) & (within > 0) & (variance > 0)
        ratio = np.where(known, within, 1.0) / np.where(known, degrees * variance, 1.0)
        bias, weight = log_variance(np.where(known, degrees, 1.0))
        return _expected(self.spread.prior, np.where(known, weight, 0.0), 0.5 * np.log(ratio) - bias, shrink)

    def seen(self, labels: tuple[Any, ...], totals: Array) -> NewLevels:
        """Return these levels after further rows."""
        return replace(self, totals=self.totals.seen(labels, totals))


def _expected(prior: LevelPrior, weight: Array, estimate: Array, shrink: bool) -> Array:
    # an infinite ratio gives a share of 0, as does a weight of 0 beside a ratio of 0
    share = weight / np.where(weight > 0, weight + prior.ratio, 1.0)
    own = prior.mean + share * (estimate - prior.mean)
    return with_known_and_unseen(own, prior.mean if shrink else np.zeros_like(prior.mean))


def _level_totals(
    residual: Affine,
    sizes: tuple[int, ...],
    scale: Scale | None,
    units: dict[int, tuple[Array, Scale]],
    block: Block,
) -> list[Array]:
    """Return the (5, L, d) of :class:`LevelTotals` by factor; the codes of new levels are the last ones of a block.

    `units` have, by factor, the average level's shift and the spread at which it is taken.
    """
    own = block.codes[len(block.codes) - len(sizes) :]
    new = [(codes >= 0) & (codes < size) for codes, size in zip(own, sizes, strict=True)]
    twice = np.sum(new, axis=0) > 1
    if twice.any():
        raise ValueError(
            f"row {block.start + int(np.argmax(twice))} has new levels of two factors, so their effects can't be "
            "separated; adapt to one factor at a time, with rows whose other levels are known"
        )
    before = replace(block, codes=block.codes[: len(block.codes) - len(sizes)])
    out = np.asarray(residual(before), dtype=np.float64)
    w = np.ones(len(out)) if block.weight is None else block.weight
    precision = np.ones((1, 1))
    if scale is not None:
        precision = scale.factor(block.design) ** -2.0
    precision = np.broadcast_to(precision, out.shape)
    found, plain = [], out
    for f, (codes, mine, size) in enumerate(zip(own, new, sizes, strict=True)):
        at, out = codes[mine], plain
        if f in units:
            shift, spread = units[f]
            out = (plain + shift) / spread.factor(block.design) - shift
        indicator = (at[:, None] == np.arange(size)) * w[mine][:, None]
        have, r = np.isfinite(out[mine]), np.where(np.isfinite(out[mine]), out[mine], 0.0)
        sharp = have * precision[mine]
        total = indicator.T @ have.astype(np.float64)
        mean = indicator.T @ r / np.where(total > 0, total, 1.0)
        step = r - mean[at]
        found.append(np.stack([total, mean, *(indicator.T @ (sharp * step**k) for k in (0, 1, 2))]))
    return found


def _merge(one: list[Array], two: list[Array]) -> list[Array]:
    return [merged_totals(a, b) for a, b in zip(one, two, strict=True)]


def priors(removal: LinearRemoval, design: Design) -> dict[str, NewLevels | LaterBatches]:
    """Return the priors for unseen levels of every removed factor."""
    found: dict[str, NewLevels | LaterBatches] = {}
    for term in removed_factors(design):
        if term.name in removal.pooled:
            frozen = removal.pooled[term.name]
            found[term.name] = LaterBatches(frozen, LevelTotals.none(len(frozen.shift)))
            continue
        prior = term_prior(design, term, removal.fit, removal.moments, removal.random.get(term.name))
        spread = None
        if removal.scale is not None and not removal.pooled:
            spread = spread_prior(design, term, removal.fit, removal.moments, removal.scale)
        found[term.name] = NewLevels.none(prior, spread)
    return found


def adapted(
    removal: LinearRemoval,
    design: Design,
    before: dict[str, NewLevels | LaterBatches],
    table: Table,
    rows: Callable[[Design], Rows],
) -> dict[str, NewLevels | LaterBatches]:
    """Return the new levels of all factors after the rows of a table.

    Parameters
    ----------
    removal, design
        As fitted.
    before : dict
        New levels so far.
    rows : callable
        The rows of the table with another design.
    """
    terms = removed_factors(design)
    if not terms:
        raise ValueError("adapt learns new levels of factors, but no factor is removed; use transform")
    open_design = design.following({}, on_unknown="mean")
    found: dict[str, dict[Any, None]] = {}
    for chunk in table.chunks((*design.columns, *design.preserved_columns)):
        for column, strange in open_design.matrix(chunk, preserved=True).unknown_levels.items():
            found.setdefault(column, {}).update(dict.fromkeys(strange))
    labels = {
        term.name: tuple(sorted(found[design.column_of(term)], key=str))
        for term in terms
        if found.get(design.column_of(term))
    }
    if not labels:
        known = ", ".join(repr(term.name) for term in terms)
        raise ValueError(
            f"adapt learns levels that fit didn't see, but fit saw all levels of {known} in these rows; use transform"
        )
    if removal.scale is not None and len(removal.pooled) > 1:
        raise ValueError(
            "with scale=True, adapt works with one factor pooled by shrinkage='eb', but here "
            f"{' and '.join(map(repr, removal.pooled))} are pooled; call fit on all rows"
        )
    if any(frozen.kind == "eb-robust" for frozen in removal.pooled.values()):
        raise ValueError("adapt doesn't work with shrinkage='eb-robust', which needs medians; call fit on all rows")
    # pooled effects are compared with the frozen spread, not with that of a level
    scale = None if removal.pooled else removal.scale
    units = {}
    if removal.stretched is not None:
        spread = removal.stretched.spread
        units = {f: (removal.pooled[n].shift, spread) for f, n in enumerate(labels) if n in removal.pooled}
    step = partial(_level_totals, removal.everything(), tuple(len(new) for new in labels.values()), scale, units)
    totals = fold(rows(design.following(labels, on_unknown="mean")), step, _merge)
    after = {**priors(removal, design), **before}
    for (name, new), total in zip(labels.items(), totals, strict=True):
        after[name] = after[name].seen(new, total)
    return after
