"""One EM iteration of each covariance family: tied against full, ours; diag and spherical against scikit-learn.

Run it with ``python benchmarks/em_families.py``. Same start for all, answers compared first; we and scikit-learn have
one thread. Everybody takes turns, and the best processor time counts, which other work on the machine touches less.
"""

from __future__ import annotations

import argparse
import os
import time
import warnings

import numpy as np
from sklearn.mixture import GaussianMixture as Reference
from threadpoolctl import threadpool_limits

from residmix import GaussianMixture

SHAPES = ["100000x8x8", "100000x32x16", "1000000x4x5"]
FAMILIES = ("full", "tied", "diag", "spherical")


def problem(n, d, K):
    """Return rows, and the start of each family: equal weights, some rows as means, the pooled covariance."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(n, d)) + rng.normal(size=(K, d))[rng.integers(0, K, n)]
    covariance = np.cov(X.T).reshape(d, d)
    precision = np.linalg.inv(covariance)
    precisions = {"full": np.stack([precision] * K), "tied": precision}
    precisions |= {"diag": np.tile(1 / np.diag(covariance), (K, 1)), "spherical": np.full(K, d / np.trace(covariance))}
    return X, {"n_components": K, "weights_init": np.full(K, 1 / K), "means_init": X[:K].copy()}, precisions


def compare(n, d, K, arguments):
    X, setting, precisions = problem(n, d, K)
    setting |= {"tol": 0, "max_iter": arguments.iterations}
    times, models = {}, {}
    for turn in range(arguments.rounds):
        for family in FAMILIES:
            given = {**setting, "covariance_type": family, "precisions_init": precisions[family]}
            for name, estimator in (("ours", GaussianMixture), ("scikit-learn", Reference)):
                if name == "scikit-learn" and turn >= arguments.reference_rounds:
                    continue
                with threadpool_limits(1):
                    began = time.process_time()
                    models[name, family] = estimator(**given).fit(X)
                    times.setdefault((name, family), []).append(time.process_time() - began)
    best = {key: min(values) / arguments.iterations * 1e3 for key, values in times.items()}
    print(f"{n:>9,} x {d:<2} K={K:<2} tied {best['ours', 'full'] / best['ours', 'tied']:5.2f}x as fast as full")
    for family in FAMILIES:
        difference = np.abs(models["ours", family].means_ - models["scikit-learn", family].means_).max()
        ours, theirs = best["ours", family], best["scikit-learn", family]
        print(f"{family:>24}  {ours:7.2f} ms, scikit-learn {theirs / ours:5.1f}x ({difference:.0e})", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shapes", nargs="+", default=SHAPES, help="rows x columns x components")
    parser.add_argument("--iterations", type=int, default=5)
    parser.add_argument("--reference-rounds", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=4)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    os.environ["RESIDMIX_NUM_THREADS"] = "1"
    for shape in arguments.shapes:
        compare(*map(int, shape.split("x")), arguments)


if __name__ == "__main__":
    main()
