"""New batches with effects pooled over features: ComBat with the fit held fixed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from residmix.effects.pooled.free import free_posterior
from residmix.effects.pooled.posterior import posterior, posterior_shift

__all__ = ["Frozen", "LaterBatches", "LevelTotals", "merged_totals", "with_known_and_unseen"]

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Frozen:
    """The fitted values that new batches are compared with.

    Attributes
    ----------
    pooled : ndarray (d,)
        Standard deviation within the fitted batches; 0 for features that were not pooled.
    shift : ndarray (d,)
        Effect of the average batch, relative to the mean of all rows.
    log_sd : ndarray (d,) or None
        The same for the log standard deviation, where effects on the spread are removed.
    one_row : bool
        Whether each batch counts as a single row.
    left : ndarray of bool (d,) or None
        Features that aren't adjusted in any batch, since they are constant within one.
    kind : str
        Of the pooling: "eb", "eb-nonparametric" or "eb-robust".
    """

    pooled: Array
    shift: Array
    log_sd: Array | None
    one_row: bool = False
    left: NDArray[np.bool_] | None = None
    kind: str = "eb"


@dataclass(frozen=True)
class LaterBatches:
    r"""Effects of new batches: ComBat's posterior means of a batch, with the fit held fixed.

    For a batch of n rows with mean :math:`\bar r_j` and variance :math:`s_{nj}^2` after the other effects are removed,
    and the frozen pooled variance :math:`s_j^2`, :math:`\hat\gamma_j = \bar r_j / s_j` and :math:`\hat\delta_j^2 =
    s_{nj}^2 / s_j^2`. The priors N and InverseGamma of this batch have their parameters from the moments of these over
    its own features, and shift and spread solve

    .. math::
        \gamma_j^* = \frac{n \bar\tau^2 \hat\gamma_j + \delta_j^{*2} \bar\gamma}{n \bar\tau^2 + \delta_j^{*2}},
        \quad
        \delta_j^{*2} = \frac{\bar\theta + \frac12 \sum_i (z_{ij} - \gamma_j^*)^2}{\frac n2 + \bar\lambda - 1},

    as in the fit (:func:`residmix.effects.pooled.posterior.posterior`). So a new batch gets the effects of a fit of all
    batches, except that it doesn't change the mean and the pooled variance.

    Attributes
    ----------
    frozen : Frozen
    totals : LevelTotals

    References
    ----------
    Johnson, Li and Rabinovic, Biostatistics 8 (2007), eq. 3.1. Adjusting further batches to a fixed reference: Zhang,
    Jenkins, Johnson and Parmigiani, "Alternative empirical Bayes models for adjusting for batch effects in genomic
    studies", BMC Bioinformatics 19 (2018).
    """

    frozen: Frozen
    totals: LevelTotals

    @property
    def labels(self) -> tuple[Any, ...]:
        return self.totals.labels

    def seen(self, labels: tuple[Any, ...], totals: Array) -> LaterBatches:
        """Return the batches after further rows."""
        return LaterBatches(self.frozen, self.totals.seen(labels, totals))

    def effects(self, *, shrink: bool = False) -> Array:
        """Return effects (L + 2, d) beyond the average batch's: of each batch, of an unseen one, of known ones."""
        own = [self._posterior(k)[0] for k in range(len(self.labels))]
        nothing = np.zeros_like(self.frozen.shift)
        return with_known_and_unseen(np.reshape(own, (-1, len(nothing))), nothing)

    def spreads(self, *, shrink: bool = False) -> Array | None:
        """Return changes (L + 2, d) of the log standard deviation, as `effects`; None if no spread is removed."""
        if self.frozen.log_sd is None:
            return None
        own = [self._posterior(k)[1] for k in range(len(self.labels))]
        nothing = np.zeros_like(self.frozen.shift)
        return with_known_and_unseen(np.reshape(own, (-1, len(nothing))), nothing)

    def _posterior(self, k: int) -> tuple[Array, Array]:
        """Return effect and change of the log standard deviation (d,) of one batch."""
        frozen, n, mean, within = self.frozen, self.totals.weight[k], self.totals.mean[k], self.totals.within[k]
        # as in the fit, features that don't vary lose their plain mean
        usable = (frozen.pooled > 0) & (n > 0) & ((n < 2) | (within > 1e-20 * frozen.pooled**2))
        effect, log_sd = mean.copy(), np.zeros_like(mean)
        if frozen.left is not None:
            effect[frozen.left] = 0.0
        if usable.sum() >= 2:
            pooled, rows = frozen.pooled[usable], n[None, usable]
            gamma = ((mean + frozen.shift)[usable] / pooled)[None]
            free = frozen.kind == "eb-nonparametric"
            if frozen.log_sd is None and free:
                gamma, _ = free_posterior(gamma, np.ones_like(gamma), rows)
            elif frozen.log_sd is None:
                gamma = posterior_shift(gamma, np.ones_like(gamma), np.sign(rows) if frozen.one_row else rows)
            else:
                delta = within[None, usable] / np.maximum(rows - 1, 1) / pooled**2
                gamma, delta = (free_posterior if free else posterior)(gamma, delta, rows)
                log_sd[usable] = 0.5 * np.log(delta[0])
            effect[usable] = gamma[0] * pooled - frozen.shift[usable]
        return effect, log_sd if frozen.log_sd is None else log_sd - frozen.log_sd


@dataclass(frozen=True)
class LevelTotals:
    r"""Weights, means and centred sums of squares of each level, which are merged by Chan's formula.

    Attributes
    ----------
    labels : tuple
        The levels.
    centred : ndarray (5, L, d)
        With r a row's residual after all other effects, relative to the average level, and f the known part of its
        spread: :math:`n = \sum w`, :math:`\bar r = \sum w r / n`, and of :math:`w / f^2`, :math:`w (r - \bar r) / f^2`
        and :math:`w (r - \bar r)^2 / f^2` the sums.
    """

    labels: tuple[Any, ...]
    centred: Array

    @classmethod
    def none(cls, n_features: int) -> LevelTotals:
        """Return the totals without any rows."""
        return cls((), np.empty((5, 0, n_features)))

    def seen(self, labels: tuple[Any, ...], centred: Array) -> LevelTotals:
        """Return the totals after further rows."""
        known = (*self.labels, *(label for label in labels if label not in self.labels))
        whole = np.zeros((2, 5, len(known), self.centred.shape[2]))
        whole[0, :, : len(self.labels)] = self.centred
        whole[1, :, [known.index(label) for label in labels]] = np.moveaxis(centred, 1, 0)
        return LevelTotals(known, merged_totals(*whole))

    @property
    def weight(self) -> Array:
        """Rows of each level, (L, d)."""
        return np.asarray(self.centred[0])

    @property
    def mean(self) -> Array:
        r"""Mean of r, :math:`\bar r`; 0 without rows, (L, d)."""
        return np.asarray(self.centred[1])

    @property
    def within(self) -> Array:
        r"""Sum of :math:`w (r - \bar r)^2 / f^2`, (L, d)."""
        _, mean, sharp, _, squares = self.centred
        # what subtracting leaves of equal values is no spread
        return np.where(squares > 1e-20 * sharp * mean**2, squares, 0.0)

    @staticmethod
    def _from_older(attributes: dict[str, Any]) -> dict[str, Any]:
        """Return what files hold today of what earlier ones hold: sums that weren't centred."""
        if "sums" not in attributes:
            return attributes
        n, first, sharp, sharp_first, second = attributes["sums"]
        mean = first / np.where(n > 0, n, 1.0)
        squares = second - 2.0 * mean * sharp_first + mean**2 * sharp
        squares = np.where(squares > 1e-13 * second, squares, 0.0)
        centred = np.stack([n, mean, sharp, sharp_first - sharp * mean, squares])
        return {"labels": attributes["labels"], "centred": centred}


def merged_totals(one: Array, two: Array) -> Array:
    """Return the (5, L, d) of :class:`LevelTotals` for the rows of both."""
    weight = one[0] + two[0]
    mean = one[1] + two[0] / np.where(weight > 0, weight, 1.0) * (two[1] - one[1])
    out = np.stack([weight, mean, one[2] + two[2], np.zeros_like(mean), np.zeros_like(mean)])
    for part in (one, two):
        step = part[1] - mean
        out[3] += part[3] + step * part[2]
        out[4] += part[4] + 2.0 * step * part[3] + step**2 * part[2]
    return out


def with_known_and_unseen(own: Array, unseen: Array) -> Array:
    """Return rows by code of new levels (L + 2, d): of each of them, of any other unseen level, of known ones."""
    return np.vstack([own, unseen, np.zeros_like(unseen)])
