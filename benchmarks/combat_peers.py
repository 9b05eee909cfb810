"""ComBat beside neuroCombat and neuroHarmonize: the same answer, then time in turns. Prints ratios of one run.

Run it with ``python benchmarks/combat_peers.py`` where ``pip install neuroCombat neuroHarmonize`` was possible; they
ask for older numpy than we need, so give them an environment of their own. A peer that isn't there is left out. 5,000
rows, 400 features, 25 sites, age kept; peers at the better of one and two BLAS threads, and as they come. neuroCombat
stops when no estimate moves by more than 1e-4 of itself; answers are compared with 1e-12 in its place, on values that
single precision holds, since neuroCombat rounds to it.
"""

from __future__ import annotations

import contextlib
import io
import sys
import time
import warnings
from collections.abc import Callable
from importlib import import_module
from typing import Any

import numpy as np
import pandas as pd
from threadpoolctl import threadpool_limits

from residmix import Residualizer

ROUNDS = 5


def table(n: int, d: int, sites: int) -> tuple[np.ndarray, pd.DataFrame]:
    rng = np.random.default_rng(0)
    site, age = rng.integers(sites, size=n), rng.integers(20, 80, n).astype(float)
    X = rng.normal(size=(sites, d))[site] + 0.02 * age[:, None] * rng.normal(size=d)
    X += rng.uniform(0.5, 2, (sites, d))[site] * rng.normal(size=(n, d)) + 5
    X = X.astype(np.float32).astype(float)
    return X, pd.DataFrame({"SITE": [f"s{i:02d}" for i in site], "age": age})


def peers(X: np.ndarray, metadata: pd.DataFrame) -> tuple[dict[str, Callable[[], Any]], Callable[[float], None]]:
    """Return what there is of the peers, and how neuroCombat is told when to stop."""
    found: dict[str, Callable[[], Any]] = {}

    def silently(function: Callable[[], Any]) -> Callable[[], Any]:
        def run() -> Any:
            with contextlib.redirect_stdout(io.StringIO()):
                return function()

        return run

    def tell(tol: float) -> None:
        module.it_sol.__defaults__ = (tol,)  # neuroHarmonize calls it, too

    with contextlib.suppress(ImportError):
        module = import_module("neuroCombat.neuroCombat")

        features, how = X.T.copy(), {"batch_col": "SITE", "continuous_cols": ["age"]}
        found["neuroCombat"] = silently(lambda: module.neuroCombat(features, metadata, **how)["data"].T)
    with contextlib.suppress(ImportError):
        from neuroHarmonize import harmonizationLearn

        found["neuroHarmonize"] = silently(lambda: harmonizationLearn(X, metadata.copy())[1])
    return found, tell


def best(function: Callable[[], Any]) -> float:
    began = time.perf_counter()
    function()
    return time.perf_counter() - began


def main(n: int = 5000, d: int = 400, sites: int = 25) -> None:
    """Compare answers, then times."""
    warnings.simplefilter("ignore")
    X, metadata = table(n, d, sites)

    def ours() -> np.ndarray:
        return Residualizer("SITE", preserve="age", scale=True, shrinkage="eb").fit_transform(X, metadata=metadata)

    others, tell = peers(X, metadata)
    print(f"{n:,} x {d} features, {sites} sites")
    residual = ours()
    if others:
        tell(1e-12)
    for name, function in others.items():
        theirs = np.asarray(function())
        print(
            f"{name:16} differs by {np.abs(theirs - theirs.mean(axis=0) - residual + residual.mean(axis=0)).max():.0e}"
        )
    if others:
        tell(1e-4)
    times: dict[str, list[float]] = {"ours": []}
    for _ in range(ROUNDS):
        times["ours"].append(best(ours))
        for name, function in others.items():
            for threads in (None, 1, 2):
                label = f"{name}, {'as it comes' if threads is None else f'{threads} BLAS threads'}"
                with threadpool_limits(threads):
                    times.setdefault(label, []).append(best(function))
    for label, values in times.items():
        print(f"{label:34} {min(values):7.3f} s  {min(values) / min(times['ours']):5.1f} x")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
