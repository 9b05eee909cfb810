"""What each way to harmonize costs beside plain ComBat, in turns: 5,000 rows, 400 features, 25 sites. Prints ratios."""

from __future__ import annotations

import sys
import time
import warnings
from typing import Any

import numpy as np
import pandas as pd

from residmix import Residualizer
from residmix.errors import ResidmixWarning

COMBAT: dict[str, Any] = {"scale": True, "shrinkage": "eb", "preserve": "age"}
WAYS: dict[str, tuple[str, dict[str, Any]]] = {
    "means only, least squares": ("site", {"preserve": "age"}),
    "ComBat, means only": ("site", {"shrinkage": "eb-one-row", "preserve": "age"}),
    "ComBat, non-parametric": ("site", COMBAT | {"shrinkage": "eb-nonparametric"}),
    "ComBat, medians": ("site", COMBAT | {"shrinkage": "eb-robust"}),
    "ComBat, a reference": ("site", COMBAT | {"reference": "s00"}),
    "ComBat-GAM": ("site", COMBAT | {"preserve": "s(age)"}),
    "random sites": ("site", {"shrinkage": {"site": "blup"}, "preserve": "age"}),
    "CovBat": ("site", COMBAT | {"covariance": "scores"}),
    "shrunk covariances": ("site", COMBAT | {"covariance": True}),
    "ComBatLS": ("site", COMBAT | {"scale": "site + age"}),
    "site and scanner": ("site + scanner", COMBAT | {"shrinkage": {"site": "eb", "scanner": "eb"}}),
}


def table(n: int, d: int, sites: int, seed: int = 0) -> tuple[np.ndarray, pd.DataFrame]:
    """Features of 40 common factors, with a shift, a spread and two directions of its own at each site."""
    rng = np.random.default_rng(seed)
    site, age = rng.integers(0, sites, n), rng.uniform(20, 80, n)
    X = rng.normal(size=(n, 40)) @ rng.normal(size=(40, d)) / 6 + 0.5 * rng.normal(size=(n, d)) + 0.01 * age[:, None]
    turn = rng.normal(size=(sites, 2, d))
    X += np.einsum("nr,nrd->nd", rng.normal(size=(n, 2)), turn[site]) / 4
    X *= np.exp(0.2 * rng.normal(size=(sites, d)))[site]
    X += rng.normal(size=(sites, d))[site]
    metadata = {"site": [f"s{k:02d}" for k in site], "age": age, "scanner": rng.choice(["p", "q", "r"], n)}
    return X, pd.DataFrame(metadata)


def seconds(formula: str, options: dict[str, Any], X: np.ndarray, metadata: pd.DataFrame) -> tuple[float, float]:
    """Return processor and wall time of a fit with its residuals."""
    processor, wall = time.process_time(), time.perf_counter()
    Residualizer(formula, **options).fit_transform(X, metadata=metadata)
    return time.process_time() - processor, time.perf_counter() - wall


def main(n: int = 5_000, d: int = 400, sites: int = 25, rounds: int = 5) -> None:
    """Time every way and ComBat in turns; the least times count."""
    X, metadata = table(n, d, sites)
    warnings.simplefilter("ignore", ResidmixWarning)
    print(f"{n:,} x {d} features, {sites} sites: processor time, and wall time on the cores there are")
    base = [seconds("site", COMBAT, X, metadata) for _ in range(3)]
    found = {}
    for name, (formula, options) in WAYS.items():
        times = []
        for _ in range(rounds):
            base.append(seconds("site", COMBAT, X, metadata))
            times.append(seconds(formula, options, X, metadata))
        found[name] = np.min(times, axis=0)
    plain = np.min(base, axis=0)
    print(f"{'ComBat':<28} {plain[0]:6.3f} s {plain[1]:6.3f} s")
    for name, own in found.items():
        print(f"{name:<28} {own[0]:6.3f} s {own[1]:6.3f} s   {own[0] / plain[0]:5.1f} x {own[1] / plain[1]:5.1f} x")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
