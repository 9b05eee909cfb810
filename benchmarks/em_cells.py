"""Mixtures of rows in which single values are wrong: cells set aside, beside plain, trimmed, noise and t mixtures.

    python benchmarks/em_cells.py

Three clusters in five features, 600 rows; a share of all values is replaced (anywhere in a wide range; shifted; by one
code), the same for all. Prints, for each, the adjusted Rand index of all rows with the clusters that they come from,
the error of the means on average over features (at best 0.07 or so), and processor time; medians over five tables.
"""

import time
import warnings
from itertools import permutations

import numpy as np
from sklearn.metrics import adjusted_rand_score

import residmix as rm

SHARES = (0.0, 0.05, 0.1, 0.2)
TABLES = 5
FITS = {
    "plain": {},
    "trim=.3": {"trim": 0.3},
    "noise": {"noise": True},
    "t": {"distribution": "t"},
    "cells=.3": {"cells": 0.3},
}


def table(seed, kind, share, n=600, d=5):
    """Rows, their clusters and the clusters' means."""
    random = np.random.default_rng(seed)
    roots = random.normal(size=(3, d, d))
    covariances = roots @ roots.swapaxes(1, 2) / d + 0.3 * np.eye(d)
    means = 3 * random.normal(size=(3, d))
    labels = random.choice(3, n, p=[0.5, 0.3, 0.2])
    X = np.stack([random.multivariate_normal(means[k], covariances[k]) for k in labels])
    wrong = random.uniform(size=X.shape) < share
    other = {
        "anywhere": random.uniform(-20, 20, X.shape),
        "shifted": X + 8 * random.choice([-1, 1], X.shape),
        "a code": np.full(X.shape, 30.0),
    }[kind]
    return np.where(wrong, other, X), labels, means


def main():
    print("wrong values      of all   " + "".join(f"{name:>22}" for name in FITS))
    for kind in ("anywhere", "shifted", "a code"):
        for share in SHARES[kind != "anywhere" :]:
            told = []
            for settings in FITS.values():
                found = []
                for seed in range(TABLES):
                    X, labels, means = table(seed, kind, share)
                    start = time.process_time()
                    with warnings.catch_warnings():
                        warnings.simplefilter("ignore")
                        model = rm.GaussianMixture(3, random_state=0, **settings).fit(X)
                    spent = time.process_time() - start
                    error = min(np.abs(model.means_[list(order)] - means).mean() for order in permutations(range(3)))
                    found.append((adjusted_rand_score(labels, model.predict(X)), error, spent))
                told.append("{:8.2f} {:6.2f} {:5.1f}s".format(*np.median(found, axis=0)))
            print(f"{kind:16} {share:7.0%}   " + "".join(told))


if __name__ == "__main__":
    main()
