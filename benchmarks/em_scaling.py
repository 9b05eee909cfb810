"""Time of an EM iteration over two decades of n, and over K.

Run it with ``python benchmarks/em_scaling.py [--svg em_scaling.svg]``. An iteration's time is the difference between
two fits of different length from the same start, so what a fit costs once doesn't count; each is the best of several
runs. The exponents are slopes of log time over log n or log K: 1 is linear.
"""

from __future__ import annotations

import argparse
import time
import warnings

import numpy as np

from residmix import GaussianMixture

ROWS, COMPONENTS = (10_000, 30_000, 100_000, 300_000, 1_000_000), (2, 4, 8, 16, 32)
COLUMNS, SHORT = 8, 1


def iteration_time(X, K, rounds):
    setting = {
        "n_components": K,
        "tol": 0,
        "weights_init": np.full(K, 1 / K),
        "means_init": X[:K],
        "precisions_init": np.stack([np.linalg.inv(np.cov(X.T))] * K),
    }
    long = SHORT + int(np.clip(3e6 / len(X), 4, 40))
    times = {}
    for _ in range(rounds):
        for iterations in (SHORT, long):
            began = time.perf_counter()
            GaussianMixture(**setting, max_iter=iterations).fit(X)
            times.setdefault(iterations, []).append(time.perf_counter() - began)
    return (min(times[long]) - min(times[SHORT])) / (long - SHORT)


def slope(x, y):
    return np.polyfit(np.log(x), np.log(y), 1)[0]


def draw(path, by_rows, by_components, fixed):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.2), layout="constrained")
    axes = figure.subplots(1, 2)
    panels = zip(axes, (ROWS, COMPONENTS), (by_rows, by_components), ("rows n", "components K"), fixed, strict=True)
    for axis, x, seconds, label, title in panels:
        milliseconds = 1e3 * np.array(seconds)
        axis.loglog(x, milliseconds, "o-", label="measured")
        axis.loglog(x, milliseconds[-1] * np.array(x) / x[-1], ":", color="gray", label="linear")
        axis.set(xlabel=label, ylabel="ms per iteration", title=title)
        axis.set_xticks(x, [f"{value:,}" for value in x])
        axis.minorticks_off()
        axis.legend(frameon=False)
    figure.savefig(path)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--svg", help="where to draw the plot")
    parser.add_argument("--rounds", type=int, default=4)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    rng = np.random.default_rng(0)
    X = rng.normal(size=(max(ROWS), COLUMNS)) + rng.normal(size=(8, COLUMNS))[rng.integers(0, 8, max(ROWS))]
    by_rows, by_components = [], []
    print(f"d={COLUMNS}, full covariances; K=8 over n")
    for n in ROWS:
        by_rows.append(iteration_time(X[:n], 8, arguments.rounds))
        print(f"n={n:>9,}  {by_rows[-1] * 1e3:8.2f} ms  {by_rows[-1] / n * 1e9:6.1f} ns/row", flush=True)
    print(f"exponent of n {slope(ROWS, by_rows):.2f}; n=100,000 over K")
    for K in COMPONENTS:
        by_components.append(iteration_time(X[:100_000], K, arguments.rounds))
        print(
            f"K={K:>3}  {by_components[-1] * 1e3:8.2f} ms  {by_components[-1] / K * 1e3:6.2f} ms/component", flush=True
        )
    print(f"exponent of K {slope(COMPONENTS, by_components):.2f}")
    if arguments.svg:
        draw(arguments.svg, by_rows, by_components, (f"d={COLUMNS}, K=8", f"d={COLUMNS}, n=100,000"))


if __name__ == "__main__":
    main()
