"""Remove one factor of 10,000 levels: against pyfixest's demeaning (pip install pyfixest). Prints ratios of one run."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from residmix.moments.absorbed.fit import fit_factors
from residmix.rows.rows import ArrayRows
from residmix.sources.output import collect


def best(function: Callable[[], Any], runs: int = 7) -> float:
    """Return the shortest of some wall times, in seconds."""
    times = []
    for _ in range(runs):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return min(times)


def main(n: int = 1_000_000, d: int = 16, levels: int = 10_000) -> None:
    """Compare answers, then times."""
    rng = np.random.default_rng(0)
    codes = rng.integers(0, levels, n).astype(np.int32)
    X = rng.normal(size=(n, d)) + rng.normal(size=(levels, d))[codes]

    def ours() -> Any:
        rows = ArrayRows(X, codes=(codes,))
        fit, _ = fit_factors(rows, (levels,))
        return collect(rows, fit.affine())

    residual = ours()
    print(f"{n} x {d}, one factor of {levels} levels: residmix {best(ours):.3f} s")
    sums = np.bincount(codes, residual[:, 0], levels) / np.bincount(codes, minlength=levels)
    print(f"largest mean of a level left: {np.abs(sums).max():.1e}")
    try:
        from pyfixest.estimation import demean
    except ImportError:
        print("pyfixest is not installed: no comparison")
        return
    flist, weights = codes[:, None].astype(np.uint64), np.ones(n)

    def peer() -> Any:
        return demean(X, flist, weights, 1e-8)[0]

    print(f"largest difference: {np.abs(peer() - residual).max():.1e}")
    theirs, mine = best(peer), best(ours)
    print(f"pyfixest {theirs:.3f} s, residmix {mine:.3f} s: {theirs / mine:.1f} x")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
