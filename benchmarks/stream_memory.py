"""Peak memory of a fit over a folder of Parquet files that is larger than it: residualize, then 8 components, 10 steps.

Run it with ``python benchmarks/stream_memory.py``; ``--rows 1000000`` for a small one. The files are written into a new
folder inside `--folder` (default: the system's place for temporary files) and removed afterwards. The fit runs in a
process of its own, whose peak of resident memory is what Linux counts for it (VmHWM), imports and all. Its time is set
beside what pyarrow alone takes to read the same columns as often, batch by batch, without looking at them, and beside
what the same fit takes for rows in memory (those of the first file, times the number of files): each keeps all cores
busy, so their sum is what a fit of files takes at least.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
from pyarrow.parquet import ParquetFile, ParquetWriter

FEATURES, COMPONENTS, ITERATIONS, FILES, SITES = 16, 8, 10, 8, 6
BATCH = 250_000
TARGET_MB = 600


def write(folder: Path, n_rows: int) -> None:
    """Write `n_rows` of a mixture, shifted by site and age, as files of equal length."""
    rng = np.random.default_rng(0)
    centres = rng.normal(scale=4.0, size=(COMPONENTS, FEATURES))
    shifts, slope = rng.normal(size=(SITES, FEATURES)), rng.normal(scale=0.1, size=FEATURES)
    names = np.array([f"site{i}" for i in range(SITES)])
    for file, part in enumerate(np.array_split(np.arange(n_rows), FILES)):
        writer = None
        for low in range(0, len(part), BATCH):
            n = min(BATCH, len(part) - low)
            site, age = rng.integers(SITES, size=n), rng.uniform(18, 90, size=n)
            X = rng.normal(size=(n, FEATURES)) + centres[rng.integers(COMPONENTS, size=n)]
            X += shifts[site] + age[:, None] * slope
            columns = {f"x{j}": X[:, j] for j in range(FEATURES)}
            table = pa.table({**columns, "site": names[site], "age": age})
            if writer is None:
                writer = ParquetWriter(
                    folder / f"part{file}.parquet", table.schema, compression="none", use_dictionary=["site"]
                )
            writer.write_table(table)
        if writer is not None:
            writer.close()


def peak_mb() -> float:
    """Return the most resident memory that this process has had, in MB (10^6 bytes)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) * 1024 / 1e6
    raise RuntimeError("/proc/self/status has no VmHWM; this benchmark needs Linux")


def read(folder: Path) -> float:
    """Return the seconds that pyarrow takes to read everything once."""
    began = time.perf_counter()
    for path in sorted(folder.iterdir()):
        with ParquetFile(path, pre_buffer=False, buffer_size=1 << 18) as file:
            for _ in file.iter_batches(1 << 14):
                pass
    return time.perf_counter() - began


def model():
    import residmix as rm

    return rm.ResidualMixture(COMPONENTS, formula="C(site) + age", tol=0, max_iter=ITERATIONS, random_state=0)


def computing(folder: Path) -> float:
    """Return the seconds that the fit takes for rows in memory, as many as in all files."""
    import warnings

    import pandas as pd

    warnings.simplefilter("ignore")
    table = pd.read_parquet(sorted(folder.iterdir())[0])
    model().fit(table[:50_000])
    began = time.perf_counter()
    model().fit(table)
    return FILES * (time.perf_counter() - began)


def fit(folder: str, once: float, alone: float) -> None:
    """Fit in this process, and print time and memory."""
    import warnings

    import residmix as rm
    from residmix.sources.files import FileTable

    passes, pieces = [0], FileTable.pieces

    def counted(*arguments, **options):
        passes[0] += 1
        return pieces(*arguments, **options)

    FileTable.pieces = counted

    warnings.simplefilter("ignore")  # ten iterations needn't converge
    estimator = model()
    imported, began = peak_mb(), time.perf_counter()
    table = rm.scan(folder)
    estimator.fit(table)
    seconds, peak = time.perf_counter() - began, peak_mb()
    print(f"{table.n_rows} rows, {len(estimator.residualizer_.features_)} features, {COMPONENTS} components")
    print(f"{estimator.n_iter_} iterations, log-likelihood per row {estimator.lower_bound_:.6f}, {seconds:.1f} s")
    print(f"{passes[0]} passes: {passes[0] * table.n_rows / seconds:,.0f} rows/s")
    reading = passes[0] * once
    print(f"pyarrow alone reads so often in {reading:.1f} s: the fit takes {seconds / reading:.1f} x")
    both = reading + alone
    print(f"with the {alone:.1f} s that it takes in memory that is {both:.1f} s: {seconds / both:.1f} x")
    verdict = "under" if peak < TARGET_MB else "NOT under"
    print(f"peak resident memory {peak:.0f} MB ({imported:.0f} MB of it before the fit): {verdict} {TARGET_MB} MB")


def main() -> None:
    """Write the files, fit in another process, remove them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=20_000_000)
    parser.add_argument("--folder", help="where the files may lie meanwhile")
    parser.add_argument("--fit", help=argparse.SUPPRESS)
    parser.add_argument("--once", type=float, help=argparse.SUPPRESS)
    parser.add_argument("--alone", type=float, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.fit:
        fit(options.fit, options.once, options.alone)
        return
    with tempfile.TemporaryDirectory(prefix="stream_memory_", dir=options.folder) as name:
        need, free = options.rows * (FEATURES + 2) * 8 * 1.1, shutil.disk_usage(name).free
        if free < need:
            parser.error(f"{need / 1e9:.1f} GB are needed in {name}, {free / 1e9:.1f} GB are free; give --folder")
        write(Path(name), options.rows)
        size = sum(path.stat().st_size for path in Path(name).iterdir())
        print(f"{size / 1e9:.2f} GB of Parquet in {FILES} files", flush=True)
        once = min(read(Path(name)) for _ in range(2))
        given = {"--fit": name, "--once": str(once), "--alone": str(computing(Path(name)))}
        words = [word for pair in given.items() for word in pair]
        subprocess.run([sys.executable, __file__, *words], check=True)


if __name__ == "__main__":
    main()
