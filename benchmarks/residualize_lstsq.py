"""Residuals on a few columns against numpy: `numpy.linalg.lstsq`, and four lines of normal equations.

Run it with ``python benchmarks/residualize_lstsq.py``; ``--rows 100000`` for a small one. The peers' ways are
``X - A @ lstsq(A, X)[0]`` and ``X - A @ solve(A.T @ A, A.T @ X)`` with a column of ones in A, at numpy's own number of
BLAS threads. Answers are compared first; all take turns, and the least time of each counts.
"""

from __future__ import annotations

import argparse
import time

import numpy as np

from residmix import Residualizer


def lstsq(X, M):
    A = np.column_stack([M, np.ones(len(M))])
    return X - A @ np.linalg.lstsq(A, X, rcond=None)[0]


def normal_equations(X, M):
    A = np.column_stack([M, np.ones(len(M))])
    return X - A @ np.linalg.solve(A.T @ A, A.T @ X)


def ours(X, M):
    return Residualizer().fit_transform(X, metadata=M)


def seconds(function, X, M):
    began = time.perf_counter()
    function(X, M)
    return time.perf_counter() - began


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
    ours(X[:5000], M[:5000])
    ways = {"numpy.linalg.lstsq": lstsq, "normal equations": normal_equations}
    print(f"{options.rows} x {options.features} on {options.columns} columns")
    residual = ours(X, M)
    far = [np.abs(residual - way(X, M)).max() for way in ways.values()]
    print(f"largest difference: {max(far):.1e}")
    del residual
    rounds = [[seconds(way, X, M) for way in (ours, *ways.values())] for _ in range(options.runs)]
    own, *theirs = np.min(rounds, axis=0)
    for name, took in zip(ways, theirs, strict=True):
        print(f"{name} {took:.3f} s, residmix {own:.3f} s: {took / own:.1f} x")


if __name__ == "__main__":
    main()
