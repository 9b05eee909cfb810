"""Levels that fit didn't see: what their effects are expected to be, before and after a few of their rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from residmix.design.design import Design
from residmix.effects.later_batches import LaterBatches, LevelTotals, with_known_and_unseen
from residmix.effects.level_priors import LevelPrior, SpreadPrior, log_variance, removed_factors
from residmix.effects.scale import Scale
from residmix.moments.affine import Affine, WithEffects
from residmix.rows.block import Block
from residmix.rows.rows import Rows, fold
from residmix.sources.table import Table

__all__ = ["NewLevelSums", "NewLevels", "adapted", "merge_sums", "refuse_new_levels", "with_new_levels"]

Array = NDArray[np.float64]


@dataclass(frozen=True)
class NewLevels:
    r"""Effects of unseen levels of one factor.

    A level with n rows whose mean, less everything else that was fitted, lies :math:`\bar r` from the average level has
    the effect

    .. math:: \hat u = \mu + \frac{n}{n + \sigma^2/\tau^2} (\bar r - \mu),

    its expectation given the rows (Robinson, Statistical Science 6, 1991); without rows it is :math:`\mu`.

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
        Of levels that rows were seen of since.
    spread : SpreadPrior or None
    """

    prior: LevelPrior
    totals: LevelTotals
    spread: SpreadPrior | None = None

    @classmethod
    def none(cls, prior: LevelPrior, spread: SpreadPrior | None = None) -> NewLevels:
        """Return what is known before any rows."""
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

    def seen(self, labels: tuple[Any, ...], sums: Array) -> NewLevels:
        """Return these levels after further rows."""
        return replace(self, totals=self.totals.seen(labels, sums))


def _expected(prior: LevelPrior, weight: Array, estimate: Array, shrink: bool) -> Array:
    # an infinite ratio gives a share of 0, as does a weight of 0 beside a ratio of 0
    share = weight / np.where(weight > 0, weight + prior.ratio, 1.0)
    own = prior.mean + share * (estimate - prior.mean)
    return with_known_and_unseen(own, prior.mean if shrink else np.zeros_like(prior.mean))


@dataclass(frozen=True)
class NewLevelSums:
    """``block -> sums of residuals by new level``, (5, L, d) for each factor; see :class:`LevelTotals`.

    Attributes
    ----------
    residual : Affine
        What takes everything else out.
    sizes : tuple of int
        Numbers of new levels of the factors, whose codes are the last ones of a block.
    scale : Scale or None
        The known effects on the spread.
    """

    residual: Affine
    sizes: tuple[int, ...]
    scale: Scale | None = None

    def __call__(self, block: Block) -> list[Array]:
        own = block.codes[len(block.codes) - len(self.sizes) :]
        new = [(codes >= 0) & (codes < size) for codes, size in zip(own, self.sizes, strict=True)]
        twice = np.sum(new, axis=0) > 1
        if twice.any():
            raise ValueError(
                f"row {block.start + int(np.argmax(twice))} has new levels of two factors, whose effects can't be told "
                "apart by it; adapt to one factor after the other, with rows whose other levels are known"
            )
        before = replace(block, codes=block.codes[: len(block.codes) - len(self.sizes)])
        out = np.asarray(self.residual(before), dtype=np.float64)
        w = np.ones(len(out)) if block.weight is None else block.weight
        precision = np.ones((1, 1))
        if self.scale is not None and block.design is not None:
            precision = self.scale.factor(block.design) ** -2.0
        precision = np.broadcast_to(precision, out.shape)
        found = []
        for codes, mine, size in zip(own, new, self.sizes, strict=True):
            indicator = (codes[mine][:, None] == np.arange(size)) * w[mine][:, None]
            have, sharp = np.isfinite(out[mine]), precision[mine]
            r = np.where(have, out[mine], 0.0)
            values = (have.astype(np.float64), r, have * sharp, r * sharp, r**2 * sharp)
            found.append(np.stack([indicator.T @ value for value in values]))
        return found


def merge_sums(one: list[Array], two: list[Array]) -> list[Array]:
    """Add the sums of other rows."""
    return [a + b for a, b in zip(one, two, strict=True)]


def with_new_levels(affine: Affine, effects: list[Array]) -> Affine:
    """Return the map for rows that have codes of unseen levels behind those of absorbed factors."""
    before = affine.effects if isinstance(affine, WithEffects) else ()
    return WithEffects(affine.origin_x, affine.origin_a, affine.coef, affine.constant, affine.sign, (*before, *effects))


def refuse_new_levels(estimator: Any, what: str) -> None:
    """Raise where levels have no effects."""
    if estimator is not None:
        raise ValueError(
            f"{what} belongs to least squares, which has effects of levels; with estimator= there are none"
        )


def adapted(
    design: Design | None,
    priors: Callable[[], dict[str, NewLevels | LaterBatches]],
    before: dict[str, NewLevels | LaterBatches],
    table: Table,
    rows: Callable[[Design], Rows],
    residual: Affine,
    scale: Scale | None,
) -> dict[str, NewLevels | LaterBatches]:
    """Return the new levels of all factors after the rows of a table.

    Parameters
    ----------
    design : Design or None
        As fitted.
    priors : callable
        What is expected of unseen levels, for factors that no rows of new levels were seen of before.
    before : dict
        New levels so far.
    rows : callable
        The rows of the table with another design.
    residual : Affine
        What takes out every effect, preserved ones too.
    scale : Scale or None
        Known effects on the spread.
    """
    terms = () if design is None else tuple(removed_factors(design))
    if design is None or not terms:
        raise ValueError("adapt learns new levels of factors, but no factor is removed")
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
        raise ValueError(f"adapt learns levels that fit didn't see, but all levels of {known} here are known")
    step = NewLevelSums(residual, tuple(len(new) for new in labels.values()), scale)
    sums = fold(rows(design.following(labels, on_unknown="mean")), step, merge_sums)
    after = {**priors(), **before}
    for (name, new), total in zip(labels.items(), sums, strict=True):
        after[name] = after[name].seen(new, total)
    return after
