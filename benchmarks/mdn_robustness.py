"""A thousand random configurations of MDNRegressor: nothing but finite numbers, whatever the table.

python benchmarks/mdn_robustness.py --configurations 1000
"""

from __future__ import annotations

import argparse
import warnings
from typing import Any

import numpy as np
import torch

from residmix.nn import MDNRegressor

KINDS = ("spherical", "diagonal", "full", "low-rank")


def configuration(seed: int) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
    """Rows 2..60, features 1..6, targets 1..5, scales 1e-6..1e6, constants, copies, outliers, grids, missing."""
    rng = np.random.default_rng(seed)
    n, d, D = int(rng.integers(2, 60)), int(rng.integers(1, 7)), int(rng.integers(1, 6))
    X = rng.normal(size=(n, d)) * 10.0 ** rng.uniform(-6, 6, d) + rng.choice([0.0, 1e3], d)
    Y = rng.normal(size=(n, D)) * 10.0 ** rng.uniform(-6, 6, D) + rng.choice([0.0, 1e3], D)
    trouble = rng.random(6) < 0.3
    if trouble[0]:
        Y[:, 0] = rng.choice([0.0, 3.0, 1e6])
    if trouble[1]:
        X[:, 0] = 1.0
    if trouble[2]:
        X[n // 2 :], Y[n // 2 :] = X[: n - n // 2], Y[: n - n // 2]
    if trouble[3]:
        Y[0] *= 1e6
    if trouble[4]:
        Y[:, -1] = np.round(3 * rng.normal(size=n))
    if trouble[5] and D > 1:
        Y[rng.random(Y.shape) < 0.3] = np.nan
        Y[:2] = np.nan_to_num(Y[:2])
    options = {
        "n_components": int(rng.integers(1, 7)),
        "covariance": str(rng.choice(KINDS)),
        "hidden": tuple(int(w) for w in rng.integers(1, 20, rng.integers(0, 3))),
        "n_members": int(rng.integers(1, 4)),
        "max_epochs": 4,
        "learning_rate": float(10.0 ** rng.uniform(-3, 0)),
        "random_state": seed,
    }
    return X, Y if D > 1 else Y[:, 0], options


def finite(seed: int) -> bool:
    """Whether fit, predictions and scores are finite, also for a target a million spreads away."""
    X, Y, options = configuration(seed)
    model = MDNRegressor(**options).fit(X, Y)
    far = np.nan_to_num(Y) + 1e6 * (np.nanstd(Y, axis=0) + 1)
    values = [model.predict(X), model.predict_interval(X), model.score_samples(X, Y), model.score_samples(X, far)]
    values += [model.crps(X, np.nan_to_num(Y)), model.sample(X, 2, random_state=0)]
    return all(np.isfinite(v).all() for v in values)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--configurations", type=int, default=1000)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    bad = [seed for seed in range(options.configurations) if not finite(seed)]
    print(f"{options.configurations} configurations, {len(bad)} with a value that is not finite: {bad[:20]}")


if __name__ == "__main__":
    main()
