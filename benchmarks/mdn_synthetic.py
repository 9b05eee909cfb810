"""Conditional densities whose truth is known: gap of the held-out log-likelihood to the oracle's, n = 1000.

python benchmarks/mdn_synthetic.py --seeds 3
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable

import numpy as np
import torch

from residmix.nn import MDNRegressor

Draw = tuple[np.ndarray, np.ndarray, np.ndarray]


def log_normal(gap: np.ndarray, sd: np.ndarray | float) -> np.ndarray:
    return -0.5 * (gap / sd) ** 2 - np.log(sd) - 0.5 * np.log(2 * np.pi)


def inverse(
    forward: Callable[[np.ndarray], np.ndarray], low: float, high: float, sd: float, n: int, rng: np.random.Generator
) -> Draw:
    """y uniform, x = forward(y) + noise; the oracle density of y given x by a sum over a fine grid of y."""
    y = rng.uniform(low, high, n)
    x = forward(y) + sd * rng.normal(size=n)
    grid = np.linspace(low, high, 20_001)
    centre, step = forward(grid), grid[1] - grid[0]
    evidence = np.array([np.exp(log_normal(value - centre, sd)).sum() * step for value in x])
    return x[:, None], y, log_normal(x - forward(y), sd) - np.log(evidence)


def bishop(n: int, rng: np.random.Generator) -> Draw:
    return inverse(lambda t: t + 0.3 * np.sin(2 * np.pi * t), 0.0, 1.0, 0.05, n, rng)


def otoro(n: int, rng: np.random.Generator) -> Draw:
    return inverse(lambda t: 7 * np.sin(0.75 * t) + 0.5 * t, -10.5, 10.5, 1.0, n, rng)


def econ(n: int, rng: np.random.Generator) -> Draw:
    x = np.abs(rng.normal(size=n))
    y = x**2 + (1 + x) * rng.normal(size=n)
    return x[:, None], y, log_normal(y - x**2, 1 + x)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rows", type=int, default=1000)
    parser.add_argument("--components", type=int, default=5)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    for draw in (bishop, otoro, econ):
        gaps = []
        for seed in range(options.seeds):
            rng = np.random.default_rng(9000 + seed)
            X, y, _ = draw(options.rows, rng)
            X_test, y_test, oracle = draw(4000, rng)
            model = MDNRegressor(n_components=options.components, random_state=seed).fit(X, y)
            gaps.append(float(oracle.mean()) - model.score(X_test, y_test))
        print(f"{draw.__name__:8s} gap to the oracle {np.mean(gaps):.3f}  per seed {np.round(gaps, 3)}", flush=True)


if __name__ == "__main__":
    main()
