"""Covariances by level, brought to the pooled one after means and spreads: CovBat."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from residmix.design.design import Design
from residmix.design.terms import Term, find_term
from residmix.effects.covariance.shrinkage import divergence, of_scores, root, shrunk, weights
from residmix.effects.covariance.sums import Standard, by_moments, by_rows
from residmix.effects.covariance.transport import Covariances, along_axes
from residmix.effects.effect import Effect, need_dense
from residmix.effects.removal import LinearRemoval
from residmix.moments.by_level import ByLevel, Grouping
from residmix.moments.equations import Equations
from residmix.rows.rows import Rows
from residmix.rows.threads import by_worker

__all__ = ["Covariance"]

Array = NDArray[np.float64]

# Directions that hold this share of the pooled variance are looked at: Chen et al.'s, and nearly all.
_SHARE = {"scores": 0.95, "shrunk": 0.99}


@dataclass(frozen=True)
class Covariance:
    r"""Bring the covariances of a factor's levels to the pooled one, after effects on mean and spread are removed.

    "scores" is CovBat: in the leading principal directions of the pooled covariance, which hold 95 % of the variance,
    the scores of each level get the mean and the variances of the scores of all rows.

    "shrunk" brings the whole covariance there, in the directions that hold 99 % of the pooled variance, from an
    estimate that is shrunk towards the pooled one (:func:`residmix.effects.covariance.shrinkage.shrunk`): with
    :math:`\tilde Z_k` in coordinates in which the pooled one is the identity, the map is :math:`\tilde Z_k^{-1/2}`, the
    map that changes rows least. A level with few rows is shrunk so much that its rows hardly change.

    Attributes
    ----------
    inner : Effect
        How effects on mean and spread are estimated.
    kind : {"shrunk", "scores"}
    factor : str, optional
        The term whose levels are meant. Default: the only factor that is removed.

    References
    ----------
    Chen, Beer, Tustison, Cook, Shinohara and Shou, "Mitigating site effects in covariance for machine learning in
    neuroimaging data", Human Brain Mapping 43 (2022).
    """

    inner: Effect
    kind: str = "shrunk"
    factor: str | None = None

    exact_loo: ClassVar[bool] = False

    @property
    def columns_up_to(self) -> int:
        return self.inner.columns_up_to

    def check(self, design: Design) -> None:
        self.inner.check(design)
        need_dense(design)
        self._term(design)

    def merges(self, design: Design) -> bool:
        return self.inner.merges(design) and self._grouped(design) is not None

    def equations(self, design: Design) -> Equations:
        grouped = self._grouped(design)
        if grouped is None:
            return self.inner.equations(design)
        return replace(grouped, scatter_of=(self._term(design).name,))

    def estimate(
        self, moments: Any, design: Design, features: Sequence[Any], rows: Rows | None = None
    ) -> LinearRemoval:
        found, term = self.inner.estimate(moments, design, features, rows), self._term(design)
        _refuse_gaps(moments, features)
        grouping = Grouping(term.name, term.columns, design.level_rows(term))
        within = self.kind == "shrunk"
        if self._grouped(design) is not None and getattr(moments, "scatter", {}).get(term.name):
            known = by_moments(moments, grouping, found, within=within)
        elif rows is None:
            raise ValueError(
                f"covariance= with {len(features)} features can't be updated by partial_fit or merge, since it would "
                "keep too many products; call fit on all rows, or use fewer features"
            )
        else:
            known = by_rows(rows, grouping, found, within=within)
        return replace(found, covariance=self._covariances(known, term.columns, grouping.coded))

    def _grouped(self, design: Design) -> ByLevel | None:
        """Return the equations with moments by level of the factor, if the spreads depend on no other term."""
        ways = self.inner.equations(design)
        if not self.inner.merges(design) or not isinstance(ways, ByLevel):
            return None
        return ways if [group.name for group in ways.groupings] == [self._term(design).name] else None

    def _term(self, design: Design) -> Term:
        removed = [term for term in design.terms if not term.preserved and term.kind == "factor"]
        if self.factor is not None:
            term = find_term(design.terms, self.factor, "covariance")
            if term not in removed:
                what = "preserved" if term.preserved else term.kind
                raise ValueError(f"covariance= must name a factor that is removed, but {term.name!r} is {what}")
            return term
        if len(removed) != 1:
            names = ", ".join(repr(term.name) for term in removed) or "none"
            raise ValueError(
                f"covariance=True needs exactly one removed factor, but {len(removed)} are removed ({names}); name "
                "the factor, as in covariance={'site': 'shrunk'}"
            )
        return removed[0]

    def _covariances(self, known: Standard, columns: slice, coded: Array) -> Covariances:
        share = np.cumsum(known.variances) / max(known.variances.sum(), 1e-300)
        size = min(int(np.searchsorted(share, _SHARE[self.kind], side="right")) + 1, len(share))
        size = int(np.count_nonzero(known.variances[:size] > 1e-12 * known.variances.max(initial=0.0)))
        axes, pooled = known.axes[:, :size], known.variances[:size] / known.degrees
        turn = np.sqrt(pooled)
        products = known.products(axes / turn)
        of_level = _shrunk_map if self.kind == "shrunk" else partial(_scores_map, _within(known, products))
        degrees = np.asarray(known.weight, dtype=np.float64) - 1.0
        found = by_worker(partial(_level, of_level), list(zip(products, degrees.tolist(), strict=True)))
        means, maps, shifts = known.means @ axes, [], []
        for mean, (change, _) in zip(means, found, strict=True):
            maps.append(change * turn[:, None] / turn)
            shifts.append((mean if self.kind == "shrunk" else known.mean @ axes) - maps[-1] @ mean)
        distances = np.array([own for _, own in found])
        return Covariances(columns, coded, known.sd, axes, np.array(maps), np.array(shifts), distances)


def _level(of_level: Callable[..., Array], own: tuple[Array, float]) -> tuple[Array, tuple[float, float]]:
    """Return the map of a level, and distances, in coordinates in which the pooled covariance is the identity."""
    products, degrees = own
    change = of_level(products, degrees)
    return change, _distances(products, change, degrees)


def _within(known: Standard, products: Sequence[Array]) -> Array:
    """Return the variances of scores within levels, over all rows."""
    return np.asarray(np.sum([np.diagonal(own) for own in products], axis=0) / max(known.weight.sum(), 1e-300))


def _shrunk_map(products: Array, degrees: float) -> Array:
    estimate = shrunk(products / max(degrees, 1.0), degrees)
    if _pooled(estimate):  # as of most small levels: nothing to do
        return estimate
    return root(estimate, -0.5)


def _pooled(estimate: Array) -> bool:
    """Tell whether an estimate is the pooled covariance itself, the identity."""
    return bool(np.all(np.diagonal(estimate) == 1.0)) and np.count_nonzero(estimate) == len(estimate)


def _scores_map(within: Array, products: Array, degrees: float) -> Array:
    return np.diag(of_scores(products / max(degrees, 1.0), within, degrees))


def _distances(products: Array, change: Array, degrees: float) -> tuple[float, float]:
    """Return the distance of the shrunk covariance of each level from the pooled one, before and after."""

    def far(own: Array) -> float:
        estimate = shrunk(own / max(degrees, 1.0), degrees)
        return 0.0 if _pooled(estimate) else divergence(estimate)

    before = far(products)
    if _pooled(change):
        return before, before
    stretch = along_axes(change)
    changed = _even(products, change, degrees) if stretch is None else products * stretch[:, None] * stretch
    return before, far(changed)


def _even(products: Array, change: Array, degrees: float) -> Array:
    r"""Return the products of scores to which the inverse root A of their shrunk covariance is applied, A Z A.

    Of that covariance, :math:`\operatorname{diag}(\delta) + (1 - w_O) Z`, A makes the identity: one product is enough.
    """
    sample = np.diagonal(products) / degrees
    w_d, w_o = weights(products / degrees, degrees)
    half = change * np.sqrt(w_d + (w_o - w_d) * sample)
    return np.asarray((np.eye(len(change)) - half @ half.T) * (degrees / (1.0 - w_o)))


def _refuse_gaps(moments: Any, features: Sequence[Any]) -> None:
    linear = moments.linear
    if len(linear.s_aa) == 1:
        return
    lacking = linear.count < linear.count.max()
    some = ", ".join(repr(str(features[j])) for j in np.flatnonzero(lacking)[:5])
    raise ValueError(
        f"covariance= allows no missing values, but {lacking.sum()} of {len(lacking)} features have some ({some}); "
        "fill them, as with GaussianMixture(missing='em').impute, or leave these features out"
    )
