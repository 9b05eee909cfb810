"""One EM iteration against scikit-learn and oneDAL: same start, same iterations, answers compared first.

Run it with ``python benchmarks/em_speed.py``; oneDAL comes with ``pip install scikit-learn-intelex`` and is left out
without it. Times are the best of several runs, two threads for us and for oneDAL, scikit-learn at the better of one and
two BLAS threads. oneDAL adds no `reg_covar`, so here neither do we.
"""

from __future__ import annotations

import os
import time
import warnings

import numpy as np
from sklearn.mixture import GaussianMixture as Reference
from threadpoolctl import threadpool_limits

from residmix import GaussianMixture

try:
    import daal4py
except ImportError:
    daal4py = None

SHAPES = [(100_000, 8, 8), (100_000, 32, 16), (20_000, 128, 8), (1_000_000, 4, 5)]
ITERATIONS, THREADS, RUNS = 10, 2, 3


def best(function):
    times = []
    for _ in range(RUNS):
        began = time.perf_counter()
        result = function()
        times.append(time.perf_counter() - began)
    return min(times), result


def onedal(X, weights, means, covariances):
    algorithm = daal4py.em_gmm(nComponents=len(weights), maxIterations=ITERATIONS, accuracyThreshold=0.0)
    return algorithm.compute(X, weights.reshape(1, -1), means, covariances)


def main():
    warnings.simplefilter("ignore")
    os.environ["RESIDMIX_NUM_THREADS"] = str(THREADS)
    if daal4py is not None:
        daal4py.daalinit(THREADS)
    gemm = np.random.default_rng(0).normal(size=(1500, 1500))
    with threadpool_limits(THREADS):
        rate = 2 * 1500**3 / best(lambda: gemm @ gemm)[0]
    print(f"{ITERATIONS} iterations, {THREADS} threads, dgemm {rate / 1e9:.0f} GFLOPS")
    for n, d, K in SHAPES:
        rng = np.random.default_rng(0)
        X = rng.normal(size=(n, d)) + rng.normal(size=(K, d))[rng.integers(0, K, n)]
        weights, means, covariance = np.full(K, 1 / K), X[:K].copy(), np.cov(X.T).reshape(d, d)
        setting = {
            "n_components": K,
            "tol": 0,
            "reg_covar": 0.0,
            "max_iter": ITERATIONS,
            "weights_init": weights,
            "means_init": means,
            "precisions_init": np.stack([np.linalg.inv(covariance)] * K),
        }
        GaussianMixture(**{**setting, "max_iter": 1}).fit(X)
        ours, model = best(lambda setting=setting, X=X: GaussianMixture(**setting).fit(X))
        theirs = []
        for threads in (1, THREADS):
            with threadpool_limits(threads):
                seconds, reference = best(lambda setting=setting, X=X: Reference(**setting).fit(X))
            theirs.append(seconds)
        difference = np.abs(model.means_ - reference.means_).max()
        line = f"{n:>9,} x {d:<3} K={K:<2}  ours {ours / ITERATIONS * 1e3:7.2f} ms/iteration"
        line += f"  scikit-learn {min(theirs) / ours:5.1f}x (means differ by {difference:.0e})"
        if daal4py is not None:
            seconds, result = best(lambda X=X, a=(weights, means, [covariance] * K): onedal(X, *a))
            difference = np.abs(model.means_ - result.means).max()
            line += f"  oneDAL {seconds / ours:4.2f}x ({difference:.0e})"
        flops = 2 * n * K * d**2 * ITERATIONS / ours
        print(f"{line}  {flops / rate:.0%} of dgemm", flush=True)


if __name__ == "__main__":
    main()
