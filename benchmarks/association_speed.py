"""What `association` costs beside one random forest of 100 trees, and what its forest reads beside scikit-learn's.

python benchmarks/association_speed.py
python benchmarks/association_speed.py --reads

Site and age, before and after least squares: four probes in five folds each, distance correlations and shares of
variance. Times are of the processor, in turns, the least of each. ``reads`` compares AUC and R2 of the two forests, of
50 trees both, in five folds of 1,500 rows: data of `erasure_probes` as they are and after least squares, and others.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pandas as pd
from erasure_probes import GENERATORS
from numpy.typing import NDArray
from sklearn.ensemble import RandomForestClassifier, RandomForestRegressor

import residmix as rm
from residmix.diagnostics.forest import Forest
from residmix.removal.probing import Errors, Ranks

Floats = NDArray[np.float64]


def rows(n: int, d: int) -> tuple[Floats, pd.DataFrame]:
    """Five sites, one of which shifts a feature and one of which stretches another; age shifts a third."""
    rng = np.random.default_rng(0)
    site, age = rng.choice(list("ABCDE"), n), rng.normal(50, 10, n)
    x = rng.normal(size=(n, d))
    x[:, 0] += site == "B"
    x[:, 1] += age / 20
    x[:, 2] *= np.where(site == "C", 2, 1)
    return x, pd.DataFrame({"site": site, "age": age})


def processor(function: Callable[[], Any]) -> float:
    began = time.process_time()
    function()
    return time.process_time() - began


def speed(rounds: int) -> None:
    x, metadata = rows(5_000, 10)

    def ours() -> None:
        rm.association(x, metadata, after=rm.Residualizer("site + age"))

    def forest() -> None:
        RandomForestClassifier(100, random_state=0).fit(x, metadata["site"])

    first = processor(ours)
    times = np.array([(processor(ours), processor(forest)) for _ in range(rounds)]).min(axis=0)
    print(f"5,000 x 10: association {times[0]:.2f} s of processor time ({first:.2f} s the first time), one forest of "
          f"100 trees {times[1]:.2f} s: {times[1] / times[0]:.2f}x", flush=True)  # fmt: skip
    x, metadata = rows(50_000, 50)
    print(f"50,000 x 50: association {min(processor(ours) for _ in range(2)):.2f} s")


def problems(rng: np.random.Generator, n: int) -> Iterator[tuple[str, Floats, NDArray[Any]]]:
    """Yield features and what is to be read."""
    for name, draw in GENERATORS.items():
        drawn = draw(rng, n)
        yield name, drawn.x, drawn.target
        left = rm.Residualizer(drawn.formula).fit_transform(drawn.x, metadata=drawn.metadata)
        yield f"{name}, residuals", np.asarray(left), drawn.target
    site, x = rng.integers(2, size=n), rng.normal(size=(n, 10))
    yield "spread x 1.3", x[:, :3] * np.where(site == 1, 1.3, 1)[:, None], site
    yield "two features' signs", x, (x[:, 0] > 0) ^ (x[:, 1] > 0) ^ (rng.random(n) < 0.2)
    yield "correlation .45", np.column_stack([x[:, 0], 0.5 * site * x[:, 0] + x[:, 1], x[:, 2:6]]), site
    yield "curve and product", x, np.sin(3 * x[:, 0]) + x[:, 1] * x[:, 2] + rng.normal(size=n)
    eight = rng.integers(8, size=n)
    yield "8 sites' spreads", x * np.where(np.arange(10) < 5, 1 + 0.1 * eight[:, None], 1), eight
    yield "nothing", x, site


def read(learner: Any, x: Floats, target: NDArray[Any], folds: NDArray[Any]) -> float:
    scores = []
    for fold in range(5):
        train, test = folds != fold, folds == fold
        learner.fit(x[train], target[train])
        if target.dtype.kind == "f":
            judge: Any = Errors(learner.predict(x[test]), target[test], float(target[train].mean()))
        else:
            judge = Ranks(learner.predict_proba(x[test]), learner.classes_, target[test])
        scores.append(judge.score(target[test]))
    return float(np.mean(scores))


def reads(seeds: int, n: int = 1500) -> None:
    found: dict[str, list[tuple[float, float]]] = {}
    for seed in range(seeds):
        rng = np.random.default_rng(seed)
        for name, x, target in problems(rng, n):
            numbers, folds = target.dtype.kind == "f", rng.permutation(n) % 5
            target = target if numbers else target.astype(int)
            options: dict[str, Any] = {"min_samples_leaf": 5, "random_state": seed}
            theirs = (RandomForestRegressor(50, max_features=1 / 3, **options) if numbers
                      else RandomForestClassifier(50, **options))  # fmt: skip
            ours = Forest(classifies=not numbers, seed=seed)
            both = read(ours, x, target, folds), read(theirs, x, target, folds)
            found.setdefault(f"{name} ({'R2' if numbers else 'AUC'})", []).append(both)
    print(f"{'':28}{'ours':>8}{'theirs':>8}{'error of the difference':>26}")
    for name, pairs in found.items():
        ours, theirs = np.array(pairs).T
        print(f"{name:28}{ours.mean():8.3f}{theirs.mean():8.3f}{(ours - theirs).std(ddof=1) / np.sqrt(seeds):26.3f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--reads", action="store_true", help="what the forests read, instead of times")
    parser.add_argument("--seeds", type=int, default=4)
    asked = parser.parse_args()
    if asked.reads:
        reads(asked.seeds)
        return
    speed(asked.rounds)


if __name__ == "__main__":
    main()
