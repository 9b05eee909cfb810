"""Held-out probes: how well a model predicts a metadata variable from features, on held-out rows."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn import config_context

from residmix.diagnostics.dependence import Variable
from residmix.diagnostics.forest import Forest
from residmix.removal.probing import Errors, Ranks, learner_of
from residmix.rows.threads import one_blas_thread

__all__ = ["ProbeResult", "probe"]

Array = NDArray[np.float64]
Features = Callable[[int], Array]


@dataclass(frozen=True)
class ProbeResult:
    """A held-out score and its chance level.

    Attributes
    ----------
    score : float
        Area under the ROC curve for a factor (mean over levels, one against the rest; 0.5 by chance); for a number
        the share of variance predicted.
    chance : float
        Mean score of the same predictions for permuted labels.
    low, high : float
        2.5 and 97.5 % points of those.
    p_value : float
        Share of permutations that score as well.
    excess : float
        (score - chance) in standard deviations of the permuted scores.
    """

    score: float
    chance: float
    low: float
    high: float
    p_value: float
    excess: float


@one_blas_thread()
def probe(
    kind: str,
    features: Features,
    variable: Variable,
    folds: NDArray[np.int8],
    n_permutations: int,
    rng: np.random.Generator,
    seed: int,
    seen: Callable[[float], None] | None = None,
) -> ProbeResult:
    """Return the cross-fitted score of a probe.

    Parameters
    ----------
    kind : {"linear", "nonlinear"}
        Logistic or ridge regression, or a random forest (:class:`~residmix.diagnostics.forest.Forest`).
    features : callable
        Function from a fold to the features (n, d) of all rows, for a model tested on that fold: if the features come
        from a fit, then from one without the fold.
    variable : Variable
        On the same n rows.
    folds : ndarray (n,)
    n_permutations : int
        Permutations of the labels within folds, with fixed predictions.
    seed : int
        Of the forest.
    seen : callable, optional
        Called with 1 after each fold.
    """
    known = variable.known
    scorers: list[_Scorer] = []
    for fold in np.unique(folds):
        train, test = known & (folds != fold), known & (folds == fold)
        target = variable.values.astype(np.intp) if variable.levels else variable.values
        if test.sum() < 2 or len(np.unique(target[train])) < 2 or len(np.unique(target[test])) < 2:
            continue
        X = features(int(fold))
        X = _filled(X, X[train])
        classifies = bool(variable.levels)
        learner = (
            Forest(classifies=classifies, seed=seed) if kind == "nonlinear" else learner_of(kind, classifies, seed)
        )
        with warnings.catch_warnings(), config_context(assume_finite=True, skip_parameter_validation=True):
            # a factor of nearly a level a row is one still
            warnings.filterwarnings("ignore", message="The number of unique classes is greater than")
            learner.fit(X[train], target[train])
        if variable.levels:
            scorers.append(Ranks(learner.predict_proba(X[test]), learner.classes_, target[test]))
        else:
            scorers.append(Errors(learner.predict(X[test]), target[test], float(target[train].mean())))
        if seen is not None:
            seen(1)
    if not scorers:
        return ProbeResult(*[np.nan] * 6)
    # The rows as they are come first, and are scored as all others.
    scores = _scores(scorers, n_permutations, rng)
    score, chances = float(scores[0]), scores[1:]
    low, high = np.quantile(chances, [0.025, 0.975])
    spread = float(chances.std())
    return ProbeResult(
        score=score,
        chance=float(chances.mean()),
        low=float(low),
        high=float(high),
        p_value=float((1 + np.sum(chances >= score - 1e-12)) / (1 + n_permutations)),
        # A learner that predicts a constant scores alike for all labels, up to rounding.
        excess=(score - float(chances.mean())) / spread if spread > 1e-9 else 0.0,
    )


def _filled(X: Array, train: Array) -> Array:
    """Put the training mean where a feature is missing."""
    gaps = np.isnan(X)
    if not gaps.any():
        return X
    have = ~np.isnan(train)
    means = np.where(have, train, 0.0).sum(axis=0) / np.maximum(have.sum(axis=0), 1)
    return np.where(gaps, means, X)


def _scores(scorers: Sequence[_Scorer], n_permutations: int, rng: np.random.Generator) -> Array:
    """Return the mean over folds of the scores of the labels, and of permutations of these within folds."""
    total = np.zeros(1 + n_permutations)
    for scorer in scorers:
        targets: NDArray[Any] = np.tile(scorer.target, (1 + n_permutations, 1))
        targets[1:] = rng.permuted(targets[1:], axis=1)
        total += len(scorer.target) * scorer.scores(targets)
    return np.asarray(total / sum(len(scorer.target) for scorer in scorers))


_Scorer = Ranks | Errors
