"""Residuals on a few columns against `numpy.linalg.lstsq`, answers compared first.

Run it with ``python benchmarks/residualize_lstsq.py``; ``--rows 100000`` for a small one. The peer's way is
``X - A @ lstsq(A, X)[0]`` with a column of ones in A, at numpy's own number of BLAS threads.
"""

from __future__ import annotations

import argparse
import time

import numpy as np

from residmix import Residualizer


def best(function, runs):
    times, result = [], None
    for _ in range(runs):
        began = time.perf_counter()
        result = function()
        times.append(time.perf_counter() - began)
    return min(times), result


def plain(X, M):
    A = np.column_stack([M, np.ones(len(M))])
    return X - A @ np.linalg.lstsq(A, X, rcond=None)[0]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--features", type=int, default=64)
    parser.add_argument("--columns", type=int, default=10)
    parser.add_argument("--runs", type=int, default=3)
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    M = rng.normal(size=(options.rows, options.columns))
    X = rng.normal(size=(options.rows, options.features)) + M @ rng.normal(size=(options.columns, options.features))
    Residualizer().fit_transform(X[:5000], metadata=M[:5000])
    ours, residual = best(lambda: Residualizer().fit_transform(X, metadata=M), options.runs)
    theirs, expected = best(lambda: plain(X, M), options.runs)
    print(f"{options.rows} x {options.features} on {options.columns} columns")
    print(f"largest difference: {np.abs(residual - expected).max():.1e}")
    print(f"numpy.linalg.lstsq {theirs:.3f} s, residmix {ours:.3f} s: {theirs / ours:.1f} x")


if __name__ == "__main__":
    main()
