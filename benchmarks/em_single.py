"""One EM iteration on float32 rows against the same numbers as float64, and against oneDAL in single precision.

Run it with ``python benchmarks/em_single.py``. The same start and twenty iterations for all; log-likelihoods per row
are compared first, at an offset, too. Everybody takes turns, and the best processor time of ten iterations counts,
which other work on the machine touches less. oneDAL comes with ``pip install scikit-learn-intelex``.
"""

from __future__ import annotations

import argparse
import time
import warnings

import numpy as np

from residmix import GaussianMixture

try:
    import daal4py
except ImportError:
    daal4py = None

SHAPES = ["100000x8x8", "100000x32x16", "20000x128x8", "1000000x4x5"]
OFFSET = 1e5


def problem(n, d, K, offset):
    """Return rows of float32, and equal weights, some rows and the pooled covariance to start from."""
    rng = np.random.default_rng(0)
    X = (offset + rng.normal(size=(n, d)) + rng.normal(size=(K, d))[rng.integers(0, K, n)]).astype(np.float32)
    return X, np.full(K, 1 / K), X[:K].astype(np.float64), np.cov(X.T, dtype=np.float64).reshape(d, d)


def ours(X, weights, means, covariance, iterations):
    start = {"weights_init": weights, "means_init": means}
    start["precisions_init"] = np.stack([np.linalg.inv(covariance)] * len(weights))
    return GaussianMixture(len(weights), tol=0, reg_covar=0.0, max_iter=iterations, **start).fit(X)


def onedal(X, weights, means, covariance, iterations):
    kind = {"fptype": "float", "nComponents": len(weights), "maxIterations": iterations, "accuracyThreshold": 0.0}
    given = (weights.reshape(1, -1), means, *[covariance] * len(weights))
    weights, means, *covariances = (array.astype(np.float32) for array in given)
    return daal4py.em_gmm(**kind).compute(X, weights, means, covariances)


def compare(n, d, K, rounds):
    apart = []
    for offset in (0.0, OFFSET):
        X, *start = problem(n, d, K, offset)
        single, double = (ours(each, *start, 20).lower_bound_ for each in (X, X.astype(np.float64)))
        apart.append(abs(single - double))
    X, *start = problem(n, d, K, 0.0)
    X64 = X.astype(np.float64)
    runs = {"float64": lambda: ours(X64, *start, 10), "float32": lambda: ours(X, *start, 10)}
    if daal4py is not None:
        runs["oneDAL"] = lambda: onedal(X, *start, 10)
    best = dict.fromkeys(runs, np.inf)
    for _ in range(rounds):
        for name, run in runs.items():
            began = time.process_time()
            run()
            best[name] = min(best[name], time.process_time() - began)
    line = f"{n:>9,} x {d:<3} K={K:<2}  float32 {best['float32'] * 100:6.2f} ms/iteration  float64"
    line += (
        f" {best['float64'] / best['float32']:4.2f}x  (log-likelihoods differ by {apart[0]:.0e}, offset {apart[1]:.0e})"
    )
    if daal4py is not None:
        line += f"  oneDAL's float32 {best['oneDAL'] / best['float32']:4.2f}x"
    print(line, flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shapes", nargs="+", default=SHAPES, help="rows x columns x components")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    if daal4py is not None:
        daal4py.daalinit(2)
    for shape in arguments.shapes:
        compare(*map(int, shape.split("x")), arguments.rounds)


if __name__ == "__main__":
    main()
