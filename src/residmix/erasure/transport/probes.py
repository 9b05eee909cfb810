"""What a probe that learned on some held-out rows reads on others, and what it would read by chance."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning

from residmix.removal.probing import Errors, Ranks, learner_of

__all__ = ["FEWEST", "PROBES", "Reading", "measure_of", "probed"]

Floats = NDArray[np.float64]

PROBES = {"linear": "linear", "forest": "nonlinear", "network": "network"}
MOST_GROUPS, FEWEST = 20, 30
# Permutations of the target that say what a probe reads by chance.
PERMUTED = 200


@dataclass(frozen=True)
class Reading:
    """An AUC or R2, and mean and standard deviation of what the same predictions read of a permuted target."""

    score: float
    chance: float
    error: float


def measure_of(values: NDArray[Any]) -> str:
    return "AUC" if values.dtype.kind in "iub" else "R2"


def probed(kind: str, features: Floats, target: NDArray[Any], first: NDArray[np.bool_]) -> Reading | None:
    """Return what a probe reads that learns on one half of the rows, each in turn; None if it can't learn."""
    groups = measure_of(target) == "AUC"
    if groups:
        values, counts = np.unique(target, return_counts=True)
        most = values[np.argsort(-counts, kind="stable")[:MOST_GROUPS]]
        enough = np.isin(target, most[[min((target[half] == v).sum() for half in (first, ~first)) >= FEWEST // 3
                                       for v in most]])  # fmt: skip
        features, target, first = features[enough], target[enough], first[enough]
        if len(np.unique(target)) < 2:
            return None
    elif target.std() == 0:
        return None
    else:
        target = target / target.std()
    halves = [_half(kind, features, target, half, groups) for half in (first, ~first)]
    return Reading(
        float(np.mean([one.score for one in halves])),
        float(np.mean([one.chance for one in halves])),
        float(np.sqrt(np.sum([one.error**2 for one in halves])) / len(halves)),
    )


def _half(kind: str, features: Floats, target: NDArray[Any], known: NDArray[np.bool_], groups: bool) -> Reading:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # a probe that stops early reads what it reads
        fitted = learner_of(kind, groups, 0).fit(features[known], target[known])
    if kind == "nonlinear":
        fitted.set_params(n_jobs=1)  # threads add the trees' votes in the order in which they finish
    held, rest = target[~known], features[~known]
    judge: Ranks | Errors
    if groups:
        judge = Ranks(fitted.predict_proba(rest), fitted.classes_, held)
    else:
        judge = Errors(fitted.predict(rest), held, float(held.mean()))
    random = np.random.default_rng(0)
    by_chance = judge.scores(np.array([random.permutation(held) for _ in range(PERMUTED)]))
    return Reading(judge.score(held), float(np.mean(by_chance)), float(np.std(by_chance)))
