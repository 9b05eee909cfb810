"""Fits of files against the same fits of rows in memory: CSV, Parquet that is kept, Parquet that isn't.

Prints ratios of one run. ``python benchmarks/files_speed.py`` takes 200,000 rows of 50 features, ``--rows 20000
--features 10`` is a small one. Answers are compared first: they must be the same bits. Beside the times stand what
pyarrow alone takes to parse the CSV file, and to read the Parquet file as often as a fit that keeps nothing does.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import csv, parquet

import residmix as rm
from residmix.sources.files import FileTable

COMPONENTS = 5


def timed(function: Callable[[], Any], rounds: int) -> tuple[float, Any]:
    """Return the shortest of some times, and the last answer."""
    times = []
    for _ in range(rounds):
        began = time.perf_counter()
        answer = function()
        times.append(time.perf_counter() - began)
    return min(times), answer


def read(path: Path) -> None:
    """Read a Parquet file batch by batch, and look at nothing."""
    with parquet.ParquetFile(path, pre_buffer=False, buffer_size=1 << 18) as file:
        for _ in file.iter_batches(1 << 14):
            pass


def passes(function: Callable[[], Any]) -> int:
    """Return how often a fit goes over rows of files."""
    count, pieces = [0], FileTable.pieces

    def counted(*arguments: Any, **options: Any) -> Any:
        count[0] += 1
        return pieces(*arguments, **options)

    FileTable.pieces = counted  # type: ignore[method-assign]
    try:
        function()
    finally:
        FileTable.pieces = pieces  # type: ignore[method-assign]
    return count[0]


def main() -> None:
    """Write the files, compare answers, then times."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--features", type=int, default=50)
    parser.add_argument("--iterations", type=int, default=74)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    warnings.simplefilter("ignore")  # a fixed number of iterations needn't converge
    rng = np.random.default_rng(0)
    centres = rng.normal(scale=3.0, size=(COMPONENTS, options.features))
    X = rng.normal(size=(options.rows, options.features)) + centres[rng.integers(COMPONENTS, size=options.rows)]
    table = pa.table({f"x{j}": X[:, j] for j in range(options.features)})
    model = rm.GaussianMixture(COMPONENTS, tol=0, max_iter=options.iterations, random_state=0)
    with tempfile.TemporaryDirectory(prefix="files_speed_") as name:
        folder = Path(name)
        csv.write_csv(table, folder / "x.csv")
        parquet.write_table(table, folder / "x.parquet")
        model.fit(X[:1000])  # compiled
        ways = {
            "memory": lambda: model.fit(X),
            "parquet": lambda: model.fit(rm.scan(folder / "x.parquet")),
            "csv": lambda: model.fit(rm.scan(folder / "x.csv")),
            "parquet, nothing kept": lambda: model.fit(rm.scan(folder / "x.parquet", cache_bytes=0)),
            "csv, in a temporary file": lambda: model.fit(rm.scan(folder / "x.csv", cache_bytes=0)),
        }
        seconds = {}
        bits = set()
        for way, fit in ways.items():
            seconds[way], fitted = timed(fit, options.rounds)
            bits.add(fitted.means_.tobytes() + fitted.covariances_.tobytes())
        assert len(bits) == 1, "the answers differ"
        parse, _ = timed(lambda: csv.read_csv(folder / "x.csv"), options.rounds)
        once, _ = timed(lambda: read(folder / "x.parquet"), options.rounds)
        n_passes = passes(ways["parquet, nothing kept"])
    size = f"{options.rows} x {options.features}, K = {COMPONENTS}, {options.iterations} iterations"
    print(f"{size}; all answers are the same bits")
    for way, each in seconds.items():
        print(f"{way:26} {each:8.2f} s   {each / seconds['memory']:.2f} x memory")
    over = (seconds["csv"] - seconds["parquet"]) / parse
    print(f"csv takes as long as parquet plus {over:.2f} parses by pyarrow of {parse:.2f} s (at most 1.5 are wanted)")
    alone = n_passes * once
    print(f"pyarrow alone reads {n_passes} times in {alone:.2f} s: {seconds['parquet, nothing kept'] / alone:.1f} x")
    print(json.dumps({"size": size, "seconds": seconds, "parse": parse, "passes": n_passes, "read_once": once}))


if __name__ == "__main__":
    main()
