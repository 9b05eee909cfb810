"""Residualize 1M x 64 on 10 columns: against scikit-learn, and against copying the matrix. Prints ratios of one run."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from sklearn.linear_model import LinearRegression

from residmix import Residualizer


def best(function: Callable[[], Any], runs: int = 5) -> float:
    """Return the shortest of some wall times, in seconds."""
    times = []
    for _ in range(runs):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return min(times)


def main(n: int = 1_000_000, d: int = 64, p: int = 10) -> None:
    """Compare answers, then times."""
    rng = np.random.default_rng(0)
    M, X = rng.normal(size=(n, p)), rng.normal(size=(n, d))
    X += M @ rng.normal(size=(p, d))

    def peer() -> Any:
        return X - LinearRegression().fit(M, X).predict(M)

    def copy() -> Any:
        out = np.empty_like(X)
        np.copyto(out, X)
        return out

    model = Residualizer()
    difference = np.abs(peer() - model.fit_transform(X, metadata=M)).max()
    print(f"{n} x {d} on {p} columns; largest difference: {difference:.1e}")
    theirs, read, copied = best(peer, 3), best(X.sum), best(copy)
    fit = best(lambda: model.fit(X, metadata=M))
    transform = best(lambda: model.transform(X, metadata=M))
    both = best(lambda: model.fit_transform(X, metadata=M))
    print(f"scikit-learn fit + predict + subtract {theirs:.3f} s")
    print(f"residmix fit {fit:.3f} s, transform {transform:.3f} s, fit_transform {both:.3f} s: {theirs / both:.1f} x")
    print(f"read {read:.3f} s (fit is {fit / read:.1f} of it), copy to new memory {copied:.3f} s")
    print(
        f"transform is {transform / copied:.1f} of the copy, fit_transform {both / (read + copied):.1f} of read + copy"
    )


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
