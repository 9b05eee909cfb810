"""A gigabyte of CSV and of Parquet through ``fit --report``, ``transform`` and ``report``: memory and time left.

Run it with ``python benchmarks/gigabyte.py``; ``--megabytes 50`` for a small one. Each command runs in a process of its
own, whose peak of resident memory is what Linux counts for it, imports and all. Whatever a line of progress would have
said is recorded with its time. Of each line that lasted `--least` seconds, the time left that it told after a tenth is
set beside what was truly left then. `--apart` is how far the clusters are from each other, in standard deviations: the
closer they are, the more iterations.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
from pyarrow import csv, parquet

FEATURES, COMPONENTS, SITES, BATCH = 20, 3, 6, 100_000
TARGET_MB = 600
UNITS = {"s": 1.0, "min": 60.0, "h": 3600.0}


def write(folder: Path, n_bytes: float, apart: float) -> None:
    """Write a CSV and a Parquet file of about so many bytes each, of clusters shifted by site and age."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(COMPONENTS, FEATURES))
    centres *= apart / min(np.linalg.norm(centres[j] - centres[k]) for j in range(COMPONENTS) for k in range(j))
    shifts, slope = rng.normal(size=(SITES, FEATURES)), rng.normal(scale=0.02, size=FEATURES)
    names = np.array([f"site{i}" for i in range(SITES)])

    def some() -> pa.Table:
        site, age = rng.integers(SITES, size=BATCH), rng.uniform(18, 90, size=BATCH).round(1)
        X = rng.normal(size=(BATCH, FEATURES)) + centres[rng.integers(COMPONENTS, size=BATCH)]
        X += shifts[site] + age[:, None] * slope
        return pa.table({**{f"x{j:02d}": X[:, j] for j in range(FEATURES)}, "site": names[site], "age": age})

    table = some()
    with csv.CSVWriter(folder / "data.csv", table.schema) as text:
        while (folder / "data.csv").stat().st_size < n_bytes:
            text.write_table(some())
    with parquet.ParquetWriter(folder / "data.parquet", table.schema, compression="none") as writer:
        for _ in range(max(1, round(n_bytes / table.nbytes))):
            writer.write_table(some())


def command(log: Path, arguments: list[str]) -> None:
    """Run the command in this process; write what lines of progress said, and when, to a file."""
    from residmix.cli import main as residmix
    from residmix.rows import progress

    lines: list[dict[str, object]] = []
    numbers: dict[int, int] = {}

    def begun(line: progress.Line, **options: object) -> None:
        made(line, **options)
        line.shown = True
        numbers[id(line)] = len(lines)
        lines.append({"began": time.perf_counter(), "told": []})

    def show(line: progress.Line, text: object, now: float) -> None:
        lines[numbers[id(line)]]["told"].append([time.perf_counter(), text()])  # type: ignore[operator, attr-defined]

    def stop(line: progress.Line) -> None:
        lines[numbers[id(line)]]["ended"] = time.perf_counter()

    made = progress.Line.__init__
    progress.Line.__init__, progress.Line.show, progress.Line.stop = begun, show, stop  # type: ignore[assignment, method-assign]
    try:
        residmix(arguments, standalone_mode=False)
    finally:
        peak = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith("VmHWM"))
        log.write_text(json.dumps({"lines": lines, "peak": int(peak.split()[1]) * 1024 / 1e6}))


def judged(line: dict[str, object], least: float) -> str | None:
    """Return what a line told after a tenth of its time, and what was true."""
    began, ended, told = line["began"], line["ended"], line["told"]
    if ended - began < least or not told:
        return None
    timed = [(when, text) for when, text in told if " left" in text]
    if not timed:
        return f"    {ended - began:6.1f} s, nothing was told of the time left: {told[-1][1]}"
    when, text = next(((when, text) for when, text in timed if when - began >= 0.1 * (ended - began)), timed[-1])
    said = [float(number) * UNITS[unit] for number, unit in re.findall(r"([\d.]+) (s|min|h)\b", text.split(", ")[-1])]
    true = ended - when
    away = " to ".join(f"{one / true - 1:+.0%}" for one in said)
    return (
        f"    {ended - began:6.1f} s; after {(when - began) / (ended - began):.0%}: {text.split(', ')[-1]}, "
        f"true {true:.1f} s ({away}): {text.split(', ')[0]}"
    )


def main() -> None:
    """Write the files, run the commands, print what they took."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--megabytes", type=float, default=1000.0)
    parser.add_argument("--apart", type=float, default=4.0)
    parser.add_argument("--least", type=float, default=4.0, help="seconds that a line must last to be judged")
    parser.add_argument("--folder", help="where the files may lie meanwhile")
    parser.add_argument("--log", help=argparse.SUPPRESS)
    options, rest = parser.parse_known_args()
    if options.log:
        command(Path(options.log), rest)
        return
    with tempfile.TemporaryDirectory(prefix="gigabyte_", dir=options.folder) as name:
        folder, worst = Path(name), 0.0
        write(folder, options.megabytes * 1e6, options.apart)
        for data in ("data.csv", "data.parquet"):
            print(f"{data}: {(folder / data).stat().st_size / 1e9:.2f} GB", flush=True)
            for words in (
                f"fit {data} --formula C(site)+age -k {COMPONENTS} -o m.safetensors --report fit.html --force",
                f"transform m.safetensors {data} -o out.parquet --force",
                f"report m.safetensors {data} -o rows.html --force",
            ):
                before, began = os.times(), time.perf_counter()
                subprocess.run(
                    [sys.executable, str(Path(__file__).resolve()), "--log", "log.json", *words.split()],
                    cwd=folder, check=True, capture_output=True,
                )  # fmt: skip
                after, seconds = os.times(), time.perf_counter() - began
                spent = sum(after[2:4]) - sum(before[2:4])
                log = json.loads((folder / "log.json").read_text())
                worst = max(worst, log["peak"])
                what = words.split()[0]
                print(f"  {what:10} {seconds:6.1f} s, {spent:6.1f} s of processors, peak {log['peak']:.0f} MB")
                for told in filter(None, (judged(line, options.least) for line in log["lines"])):
                    print(told, flush=True)
        print(
            f"largest peak of resident memory {worst:.0f} MB: {'' if worst < TARGET_MB else 'NOT '}under {TARGET_MB} MB"
        )


if __name__ == "__main__":
    main()
