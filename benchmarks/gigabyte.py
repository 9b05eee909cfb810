"""A gigabyte of CSV and of Parquet through ``fit --report``, ``transform`` and ``report``: memory and time left.

Run it with ``python benchmarks/gigabyte.py``; ``--megabytes 50`` for a small one. Each command runs in a process of its
own, whose peak of resident memory is what Linux counts for it, imports and all. Whatever the line of progress would
have said is recorded with its time. What it first told of the time left of the whole command, a tenth of the command or
later, is set beside what was truly left then; of each step that told only of its own time and lasted `--least`
seconds, what it told after a tenth of that step. `--apart` is how far the clusters are from each other, in standard
deviations: the closer they are, the more iterations.

``--processor`` measures all of this, what is told included, in seconds of one processor, to which the commands are
tied: other work on the machine doesn't count then.
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


def command(log: Path, arguments: list[str], *, processor: bool) -> None:
    """Run the command in this process; write what its line of progress said, and when, to a file."""
    clock = time.process_time if processor else time.perf_counter
    if processor:
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    from residmix.cli import main as residmix
    from residmix.em.observers import FitProgress
    from residmix.rows import course, progress

    told: list[list[object]] = []
    stopped: list[float] = []
    for function in (course.Course.__init__, progress.RowProgress.__init__, FitProgress.__init__):
        function.__kwdefaults__["clock"] = clock

    def begun(line: progress.Line, *, quiet: bool = False, **options: object) -> None:
        made(line, quiet=quiet, **options)
        line.shown = not quiet

    def show(line: progress.Line, text: object, now: float) -> None:
        told.append([clock(), text()])  # type: ignore[operator]

    def stop(line: progress.Line) -> None:
        if line.shown:
            stopped.append(clock())

    made = progress.Line.__init__
    progress.Line.__init__, progress.Line.show, progress.Line.stop = begun, show, stop  # type: ignore[assignment, method-assign]
    began = clock() - time.process_time() if processor else clock()
    try:
        residmix(arguments, standalone_mode=False)
    finally:
        peak = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith("VmHWM"))
        found = {"began": began, "ended": clock(), "told": told, "stopped": stopped}
        log.write_text(json.dumps({**found, "peak": int(peak.split()[1]) * 1024 / 1e6}))


def judged(log: dict[str, object], least: float) -> list[str]:
    """Return what was told after a tenth, and what was true, of the whole command and of steps that told of no more."""
    began, ended, told = log["began"], log["ended"], log["told"]
    whole = [one for one in told if one[1].endswith(" left") and ", about " in one[1]]  # not what's only a bound
    found = [_beside("the whole", began, ended, whole)]
    for start, stop in zip([began, *log["stopped"]], log["stopped"], strict=False):
        own = [one for one in told if start <= one[0] <= stop]
        step = [one for one in own if one[1].endswith(" of this step")]
        if step and len(step) > len(own) / 2 and stop - own[0][0] >= least:
            found.append(_beside("this step", own[0][0], stop, step))
    return found


def _beside(what: str, began: float, ended: float, timed: list[list[object]]) -> str:
    later = [one for one in timed if one[0] - began >= 0.1 * (ended - began)]
    if not later:
        return f"    {what}, {ended - began:.1f} s: nothing was told of the time left"
    when, text = later[0]
    said = [float(number) * UNITS[unit] for number, unit in re.findall(r"([\d.]+) (s|min|h)\b", text.split(", ")[-1])]
    true = ended - when
    away = " to ".join(f"{one / true - 1:+.0%}" for one in said)
    return (
        f"    {what}, {ended - began:.1f} s; after {(when - began) / (ended - began):.0%}: {text.split(', ')[-1]}, "
        f"true {true:.1f} s ({away}): {text.split(', ')[0]}"
    )


def turn(folder: Path, words: str, options: argparse.Namespace) -> float:
    """Run a command once, print what it took and told; return its peak of memory in MB."""
    before, began = os.times(), time.perf_counter()
    how = ["--processor"] if options.processor else []
    subprocess.run(
        [sys.executable, str(Path(__file__).resolve()), "--log", "log.json", *how, *words.split()],
        cwd=folder, check=True, capture_output=True,
    )  # fmt: skip
    after, seconds = os.times(), time.perf_counter() - began
    spent = sum(after[2:4]) - sum(before[2:4])
    log = json.loads((folder / "log.json").read_text())
    print(f"  {words.split()[0]:10} {seconds:6.1f} s, {spent:6.1f} s of processors, peak {log['peak']:.0f} MB")
    for line in judged(log, options.least):
        print(line, flush=True)
    return float(log["peak"])


def main() -> None:
    """Write the files, run the commands, print what they took."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--megabytes", type=float, default=1000.0)
    parser.add_argument("--apart", type=float, default=4.0)
    parser.add_argument("--least", type=float, default=4.0, help="seconds that a line must last to be judged")
    parser.add_argument("--processor", action="store_true", help="count seconds of one processor")
    parser.add_argument("--turns", type=int, default=1)
    parser.add_argument("--folder", help="where the files may lie meanwhile")
    parser.add_argument("--log", help=argparse.SUPPRESS)
    options, rest = parser.parse_known_args()
    if options.log:
        command(Path(options.log), rest, processor=options.processor)
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
                for _ in range(options.turns):
                    worst = max(worst, turn(folder, words, options))
        print(
            f"largest peak of resident memory {worst:.0f} MB: {'' if worst < TARGET_MB else 'NOT '}under {TARGET_MB} MB"
        )


if __name__ == "__main__":
    main()
