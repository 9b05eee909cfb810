"""One EM iteration against scikit-learn and oneDAL: same start, same iterations, answers compared first.

Run it with ``python benchmarks/em_speed.py [--shapes 100000x8x8 ...]``, shapes being rows x columns x components.
oneDAL comes with ``pip install scikit-learn-intelex`` and is left out without it; it adds no `reg_covar`, so
here neither do we. Everybody takes turns, round after round, and the best time counts: a busy moment of the machine
hits them alike. Two threads for us and for oneDAL, scikit-learn at the better of one and two BLAS threads.
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

try:
    import daal4py
except ImportError:
    daal4py = None

SHAPES = ["100000x8x8", "100000x32x16", "20000x128x8", "1000000x4x5"]


def timed(function):
    began = time.perf_counter()
    result = function()
    return time.perf_counter() - began, result


def onedal(X, weights, means, covariances, iterations):
    algorithm = daal4py.em_gmm(nComponents=len(weights), maxIterations=iterations, accuracyThreshold=0.0)
    return algorithm.compute(X, weights.reshape(1, -1), means, covariances)


def limited(threads, function):
    with threadpool_limits(threads):
        return function()


def compare(n, d, K, arguments, rate):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(n, d)) + rng.normal(size=(K, d))[rng.integers(0, K, n)]
    weights, means, covariance = np.full(K, 1 / K), X[:K].copy(), np.cov(X.T).reshape(d, d)
    precisions = np.stack([np.linalg.inv(covariance)] * K)
    start = {"weights_init": weights, "means_init": means, "precisions_init": precisions}
    setting = {"n_components": K, "tol": 0, "reg_covar": 0.0, "max_iter": arguments.iterations, **start}
    GaussianMixture(**{**setting, "max_iter": 1}).fit(X)
    peers = {"ours": lambda: GaussianMixture(**setting).fit(X)}
    for threads in (1, arguments.threads):
        peers[f"scikit-learn, {threads}"] = lambda t=threads: limited(t, lambda: Reference(**setting).fit(X))
    if daal4py is not None:
        peers["oneDAL"] = lambda: onedal(X, weights, means, [covariance] * K, arguments.iterations)
    times, results = {name: [] for name in peers}, {}
    for turn in range(arguments.rounds):
        for name, function in peers.items():
            # scikit-learn differs by factors, not percents: one turn at each thread count will do
            if turn < arguments.reference_rounds or not name.startswith("scikit-learn"):
                seconds, results[name] = timed(function)
                times[name].append(seconds)
    ours, model = min(times["ours"]), results["ours"]
    references = {name: min(values) for name, values in times.items() if name.startswith("scikit-learn")}
    reference = min(references, key=references.get)
    difference = np.abs(model.means_ - results[reference].means_).max()
    line = f"{n:>9,} x {d:<3} K={K:<2}  ours {ours / arguments.iterations * 1e3:7.2f} ms/iteration"
    line += f"  scikit-learn {references[reference] / ours:5.1f}x (means differ by {difference:.0e})"
    if daal4py is not None:
        difference = np.abs(model.means_ - results["oneDAL"].means).max()
        line += f"  oneDAL {min(times['oneDAL']) / ours:4.2f}x ({difference:.0e})"
    flops = 2 * n * K * d**2 * arguments.iterations / ours
    print(f"{line}  {flops / rate:.0%} of dgemm", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shapes", nargs="+", default=SHAPES, help="rows x columns x components")
    parser.add_argument("--iterations", type=int, default=5)
    parser.add_argument("--reference-rounds", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    os.environ["RESIDMIX_NUM_THREADS"] = str(arguments.threads)
    if daal4py is not None:
        daal4py.daalinit(arguments.threads)
    gemm = np.random.default_rng(0).normal(size=(1500, 1500))
    rate = 2 * 1500**3 / min(timed(lambda: limited(arguments.threads, lambda: gemm @ gemm))[0] for _ in range(5))
    print(f"{arguments.iterations} iterations, {arguments.threads} threads, dgemm {rate / 1e9:.0f} GFLOPS", flush=True)
    for shape in arguments.shapes:
        compare(*map(int, shape.split("x")), arguments, rate)


if __name__ == "__main__":
    main()
