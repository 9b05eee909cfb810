"""Odd tables through the command: it ends with 0, 1 or 2, and never with a traceback.

``RESIDMIX_FUZZ=5 pytest tests/cli/test_odd_tables.py`` tries 300 tables, and so on.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from click.testing import CliRunner
from pyarrow import feather, parquet

from residmix.cli import main

MORE = int(os.environ.get("RESIDMIX_FUZZ", "1"))

# the same odd cells, headings and types that the library is tried with
_found = importlib.util.spec_from_file_location("odd", Path(__file__).parents[1] / "sources" / "test_fuzz.py")
odd = importlib.util.module_from_spec(_found)
_found.loader.exec_module(odd)


def odd_table(rng, folder):
    """Write an odd table; return its file, a name in it, and options that may fit it."""
    if rng.random() < 0.5:
        content, sep, names = odd.text(rng)
        path = folder / str(rng.choice(["t.csv", "t.csv", "t.tsv"]))
        path.write_bytes(content)
        return path, names[0], ["--sep", sep] if rng.random() < 0.5 else []
    every = odd.columns(rng)
    some = {name: every[name] for name in rng.choice(list(every), size=int(rng.integers(1, 5)), replace=False)}
    table = pa.table({**some, "site": ["u", "v"] * (odd.N // 2), "a": rng.normal(size=odd.N)})
    table = table.slice(0, int(rng.choice([0, 1, 3, odd.N])))
    if rng.random() < 0.7:
        parquet.write_table(table, folder / "t.parquet")
        return folder / "t.parquet", table.column_names[0], []
    with contextlib.suppress(
        pa.ArrowException, ValueError
    ):  # types that the format lacks: then a damaged file is tried
        feather.write_feather(table, folder / "t.arrow", compression="uncompressed")
    return folder / "t.arrow", table.column_names[0], []


@pytest.mark.filterwarnings("ignore")
def test_the_command_ends_in_order_on_odd_tables(tmp_path):
    rng = np.random.default_rng(2)
    ends = {0: 0, 1: 0, 2: 0}
    for _ in range(60 * MORE):
        path, name, options = odd_table(rng, tmp_path)
        formula = str(rng.choice(["site", f"`{name}`", f"C(site) + `{name}`", "1"]))
        options += ["--drop-missing"] if rng.random() < 0.3 else []
        command = ["fit", str(path), "--formula", formula, "-k", str(rng.integers(0, 3)), "-q", *options]
        done = CliRunner().invoke(main, command)
        assert done.exit_code in ends, (command, done.output, done.exception)
        assert done.exception is None or isinstance(done.exception, SystemExit), (command, done.exception)
        assert "Traceback" not in done.output
        assert done.exit_code == 0 or done.stderr.strip(), command
        ends[done.exit_code] += 1
    assert min(ends[0], ends[1]) > 5, ends  # odd enough to be refused, and not so odd that all are
