"""Mixtures of rows with missing values: time of an iteration where almost every row lacks other features.

    python benchmarks/em_gaps.py

Prints, for each shape, the rows' patterns of gaps, the time of an iteration of ours, and that of the E-step alone by
scipy, a pattern and a component at a time, which must find the same likelihood.
"""

import time
import warnings

import numpy as np
from scipy.special import logsumexp
from scipy.stats import multivariate_normal

import residmix as rm

SHAPES = [(400, 8, 3), (4_000, 8, 5), (20_000, 16, 4), (100_000, 6, 4)]
SHARE = 0.15
ITERATIONS = 5


def one_iteration(model, X):
    """Log-likelihood of a row on average, a pattern and a component at a time."""
    there, which = np.unique(~np.isnan(X), axis=0, return_inverse=True)
    joint = np.zeros((len(X), model.n_components))
    for number, seen in enumerate(there):
        rows = np.flatnonzero(which.ravel() == number)
        for k in range(model.n_components if seen.any() else 0):
            normal = multivariate_normal(model.means_[k, seen], model.covariances_[k][np.ix_(seen, seen)])
            joint[rows, k] = normal.logpdf(X[np.ix_(rows, seen)])
    return logsumexp(joint + np.log(model.weights_), axis=1).mean()


def seconds(call):
    start = time.perf_counter()
    found = call()
    return time.perf_counter() - start, found


def main():
    print("    rows   d   K  patterns   ours ms   a pattern at a time ms (E-step alone)")
    for n, d, K in SHAPES:
        random = np.random.default_rng(0)
        centres = random.normal(0, 4, (K, d))
        X = centres[random.integers(0, K, n)] + random.normal(size=(n, d))
        gaps = np.where(random.random(X.shape) < SHARE, np.nan, X)
        runs = []
        for iterations in (1, 1 + ITERATIONS):
            model = rm.GaussianMixture(K, means_init=centres, tol=0.0, max_iter=iterations, missing="em")
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                runs.append(min(seconds(lambda model=model, gaps=gaps: model.fit(gaps))[0] for _ in range(3)))
            if model.n_iter_ != iterations:
                raise RuntimeError(f"the fit ended after {model.n_iter_} iterations, not {iterations}")
        ours, fitted = (runs[1] - runs[0]) / ITERATIONS, model
        peer, found = seconds(lambda fitted=fitted, gaps=gaps: one_iteration(fitted, gaps))
        np.testing.assert_allclose(fitted.score(gaps), found, rtol=1e-10)
        patterns = len(np.unique(np.isnan(gaps), axis=0))
        print(f"{n:8} {d:3} {K:3} {patterns:9} {ours * 1e3:9.1f} {peer * 1e3:12.0f}")


if __name__ == "__main__":
    main()
