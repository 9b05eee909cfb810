"""Seconds that a transport takes, and what it buys: beside an eraser that is linear, ours and concept-erasure's.

python benchmarks/transport_speed.py --rows 1000000
python benchmarks/transport_speed.py --rows 1000000 --memory  # peak memory of fit and transform of a file, in MB

concept-erasure (LEACE) runs if it's installed.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

import residmix as rm


def sites(n: int, d: int, levels: int, K: int, seed: int = 0) -> pd.DataFrame:
    """Return rows of K components whose places, spreads, correlations and weights differ between sites."""
    rng = np.random.default_rng(seed)
    site = rng.integers(levels, size=n)
    weights = rng.dirichlet(5.0 * np.ones(K), levels)
    component = (rng.random((n, 1)) > weights[site].cumsum(axis=1)).sum(axis=1).clip(max=K - 1)
    means = 2.0 * rng.normal(size=(K, d)) + 0.4 * rng.normal(size=(levels, K, d))
    factors = np.eye(d) + 0.15 * rng.normal(size=(levels, d, d)) + 0.15 * rng.normal(size=(levels, K, 1, d))[:, 0]
    x = rng.normal(size=(n, d))
    for level in range(levels):
        here = site == level
        x[here] = x[here] @ factors[level] + means[level, component[here]]
    table = pd.DataFrame(x, columns=[f"x{j}" for j in range(d)])
    return table.assign(site=pd.Categorical([f"s{level:02}" for level in site]))


def timed(function: Callable[[], Any], clock: Callable[[], float] = time.perf_counter) -> tuple[float, Any]:
    began = clock()
    made = function()
    return clock() - began, made


def reads(x: Any, site: Any, kind: str) -> float:
    """Return the AUC with which a probe that learned on half of 20,000 rows reads the site on the other half."""
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score

    x, site = np.asarray(x)[:20_000], np.asarray(site)[:20_000]
    half = len(x) // 2
    forest = RandomForestClassifier(50, min_samples_leaf=5, random_state=0, n_jobs=-1)
    model = forest if kind == "forest" else LogisticRegression(max_iter=500)
    fitted = model.fit(x[:half], site[:half])
    return float(roc_auc_score(site[half:], fitted.predict_proba(x[half:]), multi_class="ovr"))


def leace(x: Any, site: Any) -> Any:
    """Return concept-erasure's map of x, fitted on x.

    Without its shrinkage of covariances, which ours doesn't have, and with all directions whose correlation isn't
    rounding: by default it keeps those below a hundredth, which ours erases.
    """
    import torch
    from concept_erasure import LeaceEraser

    one_hot = torch.nn.functional.one_hot(torch.as_tensor(site.codes.astype(np.int64))).double()
    X = torch.as_tensor(x)
    return LeaceEraser.fit(X, one_hot, shrinkage=False, svd_tol=1e-6)(X).numpy()


def memory(table: pd.DataFrame, K: int) -> None:
    """Print the peak memory of a process that fits and transforms a file, above that of one that imports."""
    import subprocess
    import sys

    script = (
        "import resource, sys, residmix as rm\n"
        "from sklearn.ensemble import RandomForestClassifier\n"
        "import pandas, pyarrow.parquet, scipy.stats\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "t = rm.scan(sys.argv[1])\n"
        f"e = rm.Eraser('C(site)', method='full', n_components={K}).fit(t)\n"
        "fit = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "e.transform(t, out=sys.argv[2])\n"
        "print(before // 1024, fit // 1024, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)\n"
    )
    with tempfile.TemporaryDirectory() as folder:
        source, moved = Path(folder) / "rows.parquet", Path(folder) / "moved.parquet"
        table.to_parquet(source)
        bytes_ = table.shape[0] * (table.shape[1] - 1) * 8 / 2**20
        done = subprocess.run(
            [sys.executable, "-c", script, str(source), str(moved)], check=True, capture_output=True, text=True
        )
    before, fit, after = done.stdout.split()
    print(f"rows {bytes_:.0f} MB as numbers; peak after import {before} MB, after fit {fit}, after transform {after}")


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("rows", 1_000_000), ("features", 16), ("sites", 20), ("components", 4)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--no-probes", action="store_true")
    parser.add_argument("--processor", action="store_true", help="seconds of processor time, where others run, too")
    asked = parser.parse_args()
    table = sites(asked.rows, asked.features, asked.sites, asked.components)
    if asked.memory:
        memory(table, asked.components)
        return
    clock = time.process_time if asked.processor else time.perf_counter
    features, site = table.drop(columns="site").to_numpy(), table["site"]
    print(f"{asked.rows:,} x {asked.features}, {asked.sites} sites, {asked.components} components")
    print(f"{'':24}{'fit':>8}{'transform':>11}{'inverse':>9}{'linear':>9}{'forest':>8}")

    def line(name: str, seconds: tuple[float, ...], moved: Any) -> None:
        times = "".join(f"{s:>{w}.2f}" if s == s else " " * w for s, w in zip(seconds, (8, 11, 9), strict=True))
        probed = "" if asked.no_probes else "".join(f"{reads(moved, site, k):9.3f}" for k in ("linear", "forest"))
        print(f"{name:24}{times}{probed}", flush=True)

    line("nothing", (np.nan,) * 3, features)
    fit, eraser = timed(lambda: rm.Eraser("C(site)").fit(table), clock)
    seconds, ours = timed(lambda: eraser.transform(table), clock)
    line("linear", (fit, seconds, np.nan), ours)
    try:
        leace(features[:2000], site.array[:2000])  # torch is loaded
        seconds, theirs = timed(lambda: leace(features, site.array), clock)
    except ImportError:
        print("concept-erasure isn't installed")
    else:
        line("concept-erasure", (np.nan, seconds, np.nan), theirs)
        print(f"  farthest from ours: {np.abs(theirs - ours).max():.1e}")
    for method in ("component", "full"):
        fit, eraser = timed(
            lambda method=method: rm.Eraser("C(site)", method=method, n_components=asked.components).fit(table), clock
        )
        seconds, moved = timed(lambda eraser=eraser: eraser.transform(table), clock)
        back, x = timed(
            lambda eraser=eraser, moved=moved: eraser.inverse_transform(moved, metadata=table[["site"]]), clock
        )
        line(method, (fit, seconds, back), moved)
        print(f"  inverse of transform, farthest from the rows: {np.abs(x - features).max():.1e}; "
              f"certificate {'passed' if eraser.certificate_.passed else eraser.certificate_.failures}")  # fmt: skip


if __name__ == "__main__":
    main()
