"""What two Dask worker processes cost or gain on one machine, against the threads of this process, over the same files.

Run it with ``python benchmarks/dask_overhead.py``; it needs ``dask[distributed]``. The answers are compared first: they
must be the same bits. Tasks carry only where the rows are; Dask adds the scheduler's round trips and the transport of
partial sums, and workers each read and decode their own rows on the same cores.
"""

from __future__ import annotations

import argparse
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

import residmix as rm
from residmix import GaussianMixture

ITERATIONS, FILES, RUNS = 10, 8, 3


def write(folder: Path, n_rows: int, d: int, K: int) -> None:
    """Write a mixture of K components as Parquet files."""
    rng = np.random.default_rng(0)
    centres = rng.normal(scale=3.0, size=(K, d))
    for file, part in enumerate(np.array_split(np.arange(n_rows), FILES)):
        X = rng.normal(size=(len(part), d)) + centres[rng.integers(K, size=len(part))]
        table = pa.table({f"x{j}": X[:, j] for j in range(d)})
        pq.write_table(table, folder / f"part{file}.parquet", compression="none", use_dictionary=False)


def timed(table: Any, K: int) -> tuple[float, GaussianMixture]:
    """Return the best wall time of some fits, and the last model."""
    best, model = float("inf"), None
    for _ in range(RUNS):
        model = GaussianMixture(K, tol=0, max_iter=ITERATIONS, init_params="random_from_data", random_state=0)
        began = time.perf_counter()
        model.fit(table)
        best = min(best, time.perf_counter() - began)
    assert model is not None
    return best, model


def main() -> None:
    """Compare bits, then times."""
    from dask.distributed import Client, LocalCluster

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, nargs="*", default=[20_000, 200_000, 2_000_000])
    parser.add_argument("--features", type=int, default=16)
    parser.add_argument("--components", type=int, default=8)
    options = parser.parse_args()
    warnings.simplefilter("ignore")  # ten iterations needn't converge
    d, K = options.features, options.components
    print(f"d = {d}, K = {K}, {ITERATIONS} iterations, best of {RUNS}")
    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster, Client(cluster) as client:
        for n_rows in options.rows:
            with tempfile.TemporaryDirectory(prefix="dask_overhead_") as name:
                write(Path(name), n_rows, d, K)
                here, local = timed(rm.scan(name), K)
                there, remote = timed(rm.scan(name, client=client), K)
                same = all(
                    np.array_equal(getattr(local, a), getattr(remote, a))
                    for a in ("weights_", "means_", "covariances_")
                )
                print(
                    f"{n_rows:>9} rows: same bits {same}; threads here {here:.2f} s, 2 workers {there:.2f} s: "
                    f"{there / here:.2f} x, {(there - here) / (ITERATIONS + 1) * 1e3:+.0f} ms an iteration",
                    flush=True,
                )


if __name__ == "__main__":
    main()
