"""Learners that try to read a metadata variable from features, and how well their predictions say it."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from residmix.rows.threads import n_threads

__all__ = ["Errors", "Ranks", "learner_of"]

Array = NDArray[np.float64]


def learner_of(kind: str, classifies: bool, seed: int) -> Any:
    """Return a learner that isn't fitted yet.

    Parameters
    ----------
    kind : {"linear", "nonlinear", "network"}
        Logistic or ridge regression; a random forest; two layers of 64.
    classifies : bool
    seed : int
        Of forest and network.
    """
    # each kind takes a while to import
    if kind == "nonlinear":
        from sklearn.ensemble import RandomForestClassifier, RandomForestRegressor

        options = {"n_estimators": 50, "min_samples_leaf": 5, "random_state": seed, "n_jobs": n_threads()}
        if classifies:
            return RandomForestClassifier(**options)
        return RandomForestRegressor(max_features=1 / 3, **options)
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    if kind == "linear":
        from sklearn.linear_model import LogisticRegression, RidgeCV

        model = LogisticRegression(max_iter=1000) if classifies else RidgeCV(np.logspace(-3, 5, 9))
        return make_pipeline(StandardScaler(), model)
    from sklearn.neural_network import MLPClassifier, MLPRegressor

    layers = {"hidden_layer_sizes": (64, 64), "max_iter": 100, "early_stopping": True, "random_state": seed}
    return make_pipeline(StandardScaler(), MLPClassifier(**layers) if classifies else MLPRegressor(**layers))


class Ranks:
    """Area under the ROC curve from ranks, averaged over the levels that the fold has."""

    def __init__(self, probabilities: Array, classes: NDArray[np.intp], target: NDArray[np.intp]) -> None:
        from scipy.stats import rankdata

        self.target = target
        self._classes = [(k, level) for k, level in enumerate(classes) if 0 < np.sum(target == level) < len(target)]
        # Where nothing can be learned, predictions differ by rounding only, whose order means nothing.
        self._ranks = rankdata(np.round(probabilities, 9), axis=0)

    def score(self, target: NDArray[np.intp]) -> float:
        return float(self.scores(target[None])[0])

    def scores(self, targets: NDArray[np.intp]) -> Array:
        """Return the areas for each row of `targets`, which have the fold's levels in other orders."""
        total = np.zeros(len(targets))
        for k, level in self._classes:
            m = int(np.sum(self.target == level))
            total += ((targets == level) @ self._ranks[:, k] - m * (m + 1) / 2) / (m * (targets.shape[1] - m))
        return total / len(self._classes) if self._classes else np.full(len(targets), 0.5)


class Errors:
    """Share of the variance about the training mean that predictions take away."""

    def __init__(self, predicted: Array, target: Array, mean: float) -> None:
        self.target = target
        self._predicted, self._mean = predicted - mean, mean

    def score(self, target: Array) -> float:
        return float(self.scores(target[None])[0])

    def scores(self, targets: Array) -> Array:
        """Return the share for each row of `targets`, which have the fold's values in other orders."""
        spread = targets - self._mean
        total = np.square(self.target - self._mean).sum()
        return np.asarray((2 * spread @ self._predicted - np.square(self._predicted).sum()) / total)
