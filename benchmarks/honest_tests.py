"""False positives of tests after clustering, and of confounder tests; and the time of the latter.

    python benchmarks/honest_tests.py [data sets] [rows]

prints, for data sets without clusters, the share of p values below .05 of the naive test and of
`residmix.cluster_differences`; for predictions that don't lean on a confounder that of `residmix.confounder_test`; and
the seconds that a test of so many rows takes.
"""

import sys
import time

import numpy as np
import pandas as pd
from scipy import stats
from sklearn.cluster import KMeans

import residmix as rm


def clusters(n_sets: int, ways: tuple[str, ...] = ("total", "within")) -> None:
    rng, halves = np.random.default_rng(0), KMeans(2, n_init=1, random_state=0)
    found: dict[str, list[float]] = {name: [] for name in ("naive", *ways)}
    for seed in range(n_sets):
        X = rng.normal(size=(100, 2)) @ (np.eye(2) + 0.5 * rng.normal(size=(2, 2)))
        labels = halves.fit_predict(X)
        found["naive"] += stats.ttest_ind(X[labels == 0], X[labels == 1], equal_var=False).pvalue.tolist()
        for covariance in ways:
            table = rm.cluster_differences(X, halves, covariance=covariance, random_state=seed)
            found[covariance] += table["p_value"].tolist()
    for name, p in found.items():
        print(f"clusters, {name:8} {np.mean(np.array(p) < 0.05):.3f} of {len(p)} p values are below .05")


def clusters_given_metadata(n_sets: int, ways: tuple[str, ...] = ("total", "within")) -> None:
    """The same of rows that follow a site and an age, which are taken out before clusters are looked for."""
    rng, halves = np.random.default_rng(0), KMeans(2, n_init=1, random_state=0)
    found: dict[str, list[float]] = {name: [] for name in ("naive", *ways)}
    for seed in range(n_sets):
        site, age = rng.integers(0, 3, 100), rng.normal(50, 10, 100)
        X = rng.normal(size=(100, 2)) @ (np.eye(2) + 0.5 * rng.normal(size=(2, 2)))
        X += 2 * rng.normal(size=(3, 2))[site] + np.outer(age - 50, 0.1 * rng.normal(size=2))
        given = {"metadata": pd.DataFrame({"site": site.astype(str), "age": age})}
        residual = rm.Residualizer("C(site) + age").fit_transform(X, **given)
        labels = halves.fit_predict(residual)
        first, second = residual[labels == 0], residual[labels == 1]
        found["naive"] += stats.ttest_ind(first, second, equal_var=False).pvalue.tolist()
        given["formula"] = "C(site) + age"
        for covariance in ways:
            table = rm.cluster_differences(X, halves, covariance=covariance, random_state=seed, **given)
            found[covariance] += table["p_value"].tolist()
    for name, p in found.items():
        print(f"given metadata, {name:8} {np.mean(np.array(p) < 0.05):.3f} of {len(p)} p values are below .05")


def confounders(n_sets: int) -> None:
    rng = np.random.default_rng(0)
    for statistic in ("partial-r2", "r2"):
        for kind in ("partial", "full"):
            p = []
            for seed in range(n_sets):
                y = rng.normal(size=100)
                c = 0.6 * y + rng.normal(size=100)
                prediction = 0.6 * (y if kind == "partial" else c) + rng.normal(size=100)
                options = {"statistic": statistic, "n_permutations": 99, "random_state": seed}
                p.append(rm.confounder_test(prediction, y, c, kind, **options).p_value)
            print(f"{kind} confounder test, {statistic:10} {np.mean(np.array(p) <= 0.05):.3f} are at most .05")


def speed(n: int) -> None:
    rng = np.random.default_rng(0)
    c = rng.normal(size=n)
    y = 0.6 * c + rng.normal(size=n)
    begun = time.perf_counter()
    rm.confounder_test(y + rng.normal(size=n), y, c)
    print(f"confounder test of {n:,} rows: {time.perf_counter() - begun:.1f} s")


if __name__ == "__main__":
    sets = int(sys.argv[1]) if len(sys.argv) > 1 else 2000
    clusters(sets)
    clusters_given_metadata(sets)
    confounders(sets)
    speed(int(sys.argv[2]) if len(sys.argv) > 2 else 1_000_000)
