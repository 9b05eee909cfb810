"""A mixture with every setting left alone, starts included, against scikit-learn: seconds and log-likelihood reached.

Run it with ``python benchmarks/em_defaults.py``. The two stop at different places by default (ours at a gain of 1e-6
per row and little more to come, scikit-learn at a gain of 1e-3), so the held log-likelihoods are printed beside the
times. scikit-learn is timed as it comes, and with BLAS limited to one thread, where it is quicker on small data; up to
2,000 rows with ten starts as well (``n_init=10``), whose likelihood our default is held to (see ``starts.py``).
Clusters overlap (means one standard deviation from their centre) or lie apart (four).
"""

from __future__ import annotations

import time
import warnings

import numpy as np
from sklearn.mixture import GaussianMixture as Reference
from threadpoolctl import threadpool_limits

from residmix import GaussianMixture

SHAPES = [(300, 4, 3), (2_000, 5, 4), (20_000, 8, 8), (100_000, 8, 8), (500_000, 10, 10)]


def fitted(estimator, X, rounds):
    """Return the best time of some fits, and the log-likelihood per row (everybody's the same at a given seed)."""
    times = []
    for _ in range(rounds):
        began = time.perf_counter()
        model = estimator(random_state=0).fit(X)
        times.append(time.perf_counter() - began)
    return min(times), model.score(X)


def main():
    warnings.simplefilter("ignore")
    GaussianMixture(2).fit(np.random.default_rng(0).normal(size=(100, 2)))
    for n, d, K in SHAPES:
        for apart in (1.0, 4.0):
            rng = np.random.default_rng(0)
            X = rng.normal(size=(n, d)) + apart * rng.normal(size=(K, d))[rng.integers(0, K, n)]
            ours, reached = fitted(lambda K=K, **seed: GaussianMixture(K, **seed), X, 5)
            rounds = 1 if n > 50_000 else 5
            theirs, reference = fitted(lambda K=K, **seed: Reference(K, **seed), X, rounds)
            with threadpool_limits(1):
                alone, _ = fitted(lambda K=K, **seed: Reference(K, **seed), X, rounds)
                ten = ""
                if n <= 2_000:
                    long, best = fitted(lambda K=K, **seed: Reference(K, n_init=10, **seed), X, rounds)
                    ten = f",  ten starts {long:7.3f} s ({best:.5f}) {long / ours:5.1f}x"
            print(
                f"{n:>7,} x {d:<2} K={K:<2} {apart:.0f} sd  ours {ours:6.3f} s ({reached:.5f})  scikit-learn "
                f"{theirs:7.3f} s ({reference:.5f}) {theirs / ours:5.1f}x,  "
                f"one thread {alone:7.3f} s {alone / ours:5.1f}x{ten}",
                flush=True,
            )


if __name__ == "__main__":
    main()
