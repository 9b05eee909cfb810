"""search="nearest" beside all components: distance evaluations, log-likelihood per row, seconds.

    python benchmarks/em_nearest.py [--size small|large] [--max-iter 50]

Both fits begin at the same parameters and stop by the same rule. `small`: 200 full covariances, 200,000 rows of 32
features. `large`: 1,000 diagonal ones, 1,000,000 rows of 128 features in single precision; of the fit with all
components one iteration is timed there. An evaluation is the density of a row in a component; those of the search for
sets count as well. Log-likelihoods are those of all components, whatever a fit looked at; `bound` is what the one over
near components maximises. Seconds are processor time of all threads, and of the clock.
"""

from __future__ import annotations

import argparse
import time
import warnings

import numpy as np

import residmix as rm
from residmix.mixture.iteration import near, refreshed, step
from residmix.mixture.starts.many import many_start
from residmix.rows.rows import ArrayRows

SIZES = {"small": (200_000, 32, 200, "full", 0.7), "large": (1_000_000, 128, 1_000, "diag", 0.3)}


def clusters(n: int, d: int, K: int, kind: str, apart: float) -> np.ndarray:
    """Return rows of K clusters of unequal sizes that overlap, each with a covariance of its own."""
    rng = np.random.default_rng(0)
    label = rng.choice(K, n, p=rng.dirichlet(np.full(K, 5.0)))
    means = apart * rng.normal(size=(K, d))
    X = rng.standard_normal((n, d), dtype=np.float32 if kind == "diag" else np.float64)
    for k in range(K):
        own = label == k
        if kind == "full":
            X[own] = X[own] @ (np.eye(d) + 0.5 * rng.normal(size=(d, d)) / np.sqrt(d))
        else:
            X[own] *= rng.uniform(0.5, 1.5, d).astype(X.dtype)
        X[own] += means[k].astype(X.dtype)
    return X


class Counter:
    """Counts evaluations of densities while a fit runs."""

    def __init__(self) -> None:
        self.count = 0
        blocks, joint, pairs = step.mixture_block, refreshed.block_log_joint, near.near_joint

        def of_block(X, problem, *given, **more):
            self.count += len(X) * len(problem.means)
            return blocks(X, problem, *given, **more)

        def of_all(problem, block, *given):
            self.count += block.n_rows * len(problem.means)
            return joint(problem, block, *given)

        def of_pairs(X, own, sets, *given):
            self.count += int((sets >= 0).sum())
            return pairs(X, own, sets, *given)

        step.mixture_block, refreshed.block_log_joint, near.near_joint = of_block, of_all, of_pairs


def fitted(X: np.ndarray, K: int, kind: str, search: str, start, counter: Counter, **how) -> rm.GaussianMixture:
    """Fit, and print what it took."""
    given = {"weights_init": start.weights, "means_init": start.means, "precisions_init": start.precisions()}
    model = rm.GaussianMixture(K, covariance_type=kind, search=search, random_state=0, **given, **how)
    counter.count = 0
    began, clock = time.process_time(), time.perf_counter()
    model.fit(X)
    took, waited = time.process_time() - began, time.perf_counter() - clock
    each = counter.count / len(X)
    print(
        f"  {search:8} {model.n_iter_:4} iterations  {each:8.0f} evaluations a row  {took:7.1f} s processor time  "
        f"{waited:7.1f} s  bound {model.lower_bound_:.4f}",
        flush=True,
    )
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--max-iter", type=int, default=50)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    n, d, K, kind, apart = SIZES[arguments.size]
    X, counter = clusters(n, d, K, kind, apart), Counter()
    print(f"{n:,} rows of {d} features, {K} {kind} components")
    began = time.process_time()
    start = many_start(ArrayRows(X), K, kind, 1e-6, np.random.RandomState(0))
    print(f"  start    {time.process_time() - began:.1f} s processor time", flush=True)
    some = fitted(X, K, kind, "nearest", start, counter, tol=1e-4, max_iter=arguments.max_iter)
    few = X[:: max(1, n // 200_000)]
    print(
        f"  log-likelihood per row {some.score(few):.4f}; notes: {[note['kind'] for note in some.notes_]}", flush=True
    )
    iterations = arguments.max_iter if arguments.size == "small" else 1
    every = fitted(X, K, kind, "all", start, counter, tol=1e-4, max_iter=iterations)
    print(f"  log-likelihood per row {every.score(few):.4f}")


if __name__ == "__main__":
    main()
