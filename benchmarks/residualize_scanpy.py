"""Residualize 50k x 2k on numeric keys and on one category: against scanpy's regress_out (pip install scanpy).

scanpy overwrites its data, so ours is timed in place too (``out=``), and into a new array. Prints ratios of one run:

    python benchmarks/residualize_scanpy.py
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from scanpy.pp import regress_out

from residmix import Residualizer


def timed(function: Callable[[], Any], runs: int) -> tuple[float, Any]:
    """Return the shortest of some wall times, in seconds, and the last result."""
    times = []
    for _ in range(runs):
        start = time.perf_counter()
        result = function()
        times.append(time.perf_counter() - start)
    return min(times), result


def compare(X: np.ndarray, table: pd.DataFrame, keys: list[str], runs: int) -> None:
    """Compare answers, then times; the copy of the data that scanpy overwrites isn't counted."""
    model = Residualizer()
    residual = model.fit_transform(X, metadata=table[keys])
    theirs, answer = np.inf, X
    for _ in range(runs):
        data = AnnData(X.copy(), obs=table)
        took, _ = timed(lambda held=data: regress_out(held, keys), 1)
        theirs, answer = min(theirs, took), data.X
    print(f"{X.shape[0]} x {X.shape[1]} on {keys}: largest difference {np.abs(answer - residual).max():.1e}")
    del residual, answer
    placed, data = np.inf, X.copy()
    for _ in range(max(runs, 3)):
        data[...] = X
        took, _ = timed(
            lambda held=data: model.fit(held, metadata=table[keys]).transform(held, metadata=table[keys], out=held), 1
        )
        placed = min(placed, took)
    del data
    mine, _ = timed(lambda: model.fit_transform(X, metadata=table[keys]), max(runs, 3))
    print(
        f"scanpy {theirs:.3f} s; residmix in place {placed:.3f} s: {theirs / placed:.1f} x; "
        f"to a new array {mine:.3f} s: {theirs / mine:.1f} x"
    )


def main(n: int = 50_000, d: int = 2000, runs: int = 2) -> None:
    """Numeric keys, then a category."""
    rng = np.random.default_rng(0)
    numbers = rng.normal(size=(n, 2))
    codes = rng.integers(0, 8, n)
    X = rng.normal(size=(n, d)) + numbers @ rng.normal(size=(2, d)) + rng.normal(size=(8, d))[codes]
    table = pd.DataFrame(numbers, columns=["counts", "share"], index=[str(i) for i in range(n)])
    table["batch"] = pd.Categorical([f"b{code}" for code in codes])
    read, copied = timed(X.sum, 5)[0], timed(X.copy, 5)[0]
    print(f"reading the data takes {read:.3f} s, copying them to new memory {copied:.3f} s")
    compare(X, table, ["counts", "share"], max(runs, 5))
    compare(X, table, ["batch"], 1)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
