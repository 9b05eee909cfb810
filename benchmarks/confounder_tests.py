"""Confounder tests: false positives on simulations where the null hypothesis holds, and what a million rows take.

One confounder: c normal, y = 0.6 c + noise, and predictions of y alone (partial test) or of c alone (full test), by the
default statistic, which is mlconfound's, and by the one of the predictions' residuals.

    python benchmarks/confounder_tests.py [simulations]
"""

from __future__ import annotations

import sys
import time
from itertools import product

import numpy as np
import pandas as pd

import residmix as rm


def under_the_null(kind: str, n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return predictions, targets and confounders."""
    c = rng.normal(size=n)
    y = 0.6 * c + rng.normal(size=n)
    return (y if kind == "partial" else c) + rng.normal(size=n), y, c


def main(simulations: int) -> None:
    """Print shares of p values below 0.05, and processor and wall time."""
    for kind, statistic in product(("partial", "full"), ("r2", "partial-r2")):
        rng, options = np.random.default_rng(0), {"statistic": statistic, "n_permutations": 199}
        p = np.array(
            [
                rm.confounder_test(*under_the_null(kind, 300, rng), kind, random_state=k, **options).p_value
                for k in range(simulations)
            ]
        )
        share, error = np.mean(p <= 0.05), np.sqrt(0.05 * 0.95 / simulations)
        what = f"{kind}, {statistic}"
        print(f"{what:<19} {simulations} times 300 rows: {share:.1%} with p <= 0.05 (standard error {error:.1%})")
    rng = np.random.default_rng(1)
    n = 1_000_000
    frame = pd.DataFrame({"age": rng.normal(50, 10, n), "site": rng.choice(list("abc"), n)})
    y = frame["age"].to_numpy() / 10 + (frame["site"] == "a").to_numpy() + rng.normal(size=n)
    prediction = y + rng.normal(size=n)
    for kind in ("partial", "full"):
        processor, wall = time.process_time(), time.perf_counter()
        found = rm.confounder_test(prediction, y, frame, kind)
        processor, wall = time.process_time() - processor, time.perf_counter() - wall
        print(f"{kind:<19} {n:,} rows, age and site: p = {found.p_value}, {processor:.1f} s of processor, {wall:.1f} s")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1000)
