"""Odd tables, thousands of them: a fit, or one error of our own with nothing of another library's in it.

``RESIDMIX_FUZZ=20 pytest -m "" tests/sources/test_fuzz.py`` tries twenty times as many.
"""

from __future__ import annotations

import datetime
import decimal
import io
import os
import traceback

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from pyarrow import parquet

import residmix as rm

MORE = int(os.environ.get("RESIDMIX_FUZZ", "1"))
N = 40

CELLS = [
    *("1", "2.5", "-3e5", "", "NA", "nan", "inf", "-inf", "1e400", "<LOD", "3,272.3", '"3,272.3"', "true", "False"),
    *("2020-01-01", "12:30", "x", "é", '"a""b"', '"', "0x1F", "1_000", "\u0663", "007", "  4 ", "'", "#", "=1+1"),
    *("NULL", "\0", "\r", "\t", ";", "1.2.3", "9" * 25, "1" * 400),
]
HEADS = [
    *("a", "b", "site", "age", "a b", "", "x[0]", "a", "é", '"q""r"', "1", "nan", "C(site)", "\ufeffz", "very" * 50),
    *("$x", "`t`", "a.b", "index", "__index_level_0__"),
]


def told_by_us(fit):
    """Return whether it worked; fail if an error is neither ours nor of a kind that callers expect."""
    try:
        fit()
    except (OSError, ValueError, TypeError) as error:
        last = traceback.extract_tb(error.__traceback__)[-1].filename
        if "residmix" not in last or not str(error):
            pytest.fail(f"{error!r} comes from {last}")
        return False
    return True


def text(rng):
    """Return the bytes of a CSV file, and its separator."""
    width = int(rng.integers(1, 6))
    names = [str(rng.choice(HEADS)) for _ in range(width)]
    if rng.random() < 0.5:
        names = [*rng.choice(["a", "b", "site", "age", "c", "d"], size=width, replace=False)]
    sep, end = str(rng.choice([",", ",", ",", ";", "\t"])), str(rng.choice(["\n", "\r\n", "\r"]))
    pool = [*rng.choice(CELLS, size=int(rng.integers(1, 6))), "1", "2", "3"]
    share = rng.choice([0.0, 0.02, 0.3])

    def row():
        n = width if rng.random() < 0.99 else width + int(rng.choice([-1, 1]))
        cells = [str(rng.choice(list("uvw"))), *(f"{value:.2f}" for value in rng.normal(size=max(n - 1, 0)))]
        return sep.join(str(rng.choice(pool)) if rng.random() < share else cell for cell in cells[:n])

    lines = [sep.join(names), *(row() for _ in range(int(rng.choice([0, 1, 2, 5, N]))))]
    encoding = str(rng.choice(["utf-8"] * 8 + ["utf-16", "latin-1"]))
    return (end.join(lines) + (end if rng.random() < 0.8 else "")).encode(encoding, "replace"), sep, names


@pytest.mark.filterwarnings("ignore")
def test_odd_text_is_read_or_refused_in_our_words(tmp_path):
    rng = np.random.default_rng(0)
    worked = 0
    for _ in range(200 * MORE):
        content, sep, names = text(rng)
        (tmp_path / "t.csv").write_bytes(content)
        options = {"sep": sep if rng.random() < 0.7 else None, "cache_bytes": int(rng.choice([0, 10**8]))}
        formula = str(rng.choice(["site", f"`{names[0]}`", names[0] or "site"]))
        worked += told_by_us(lambda o=options, f=formula: rm.Residualizer(f).fit(rm.scan(tmp_path / "t.csv", **o)))
    assert worked > 10


def columns(rng):
    """Return columns of every type that files have and this pyarrow can write."""
    return {name: column for name, column in every_column(rng).items() if name not in UNWRITABLE}


def unwritable():
    """Return the columns that this pyarrow can't write: old ones know no views in Parquet."""
    lacking = set()
    for name, column in every_column(np.random.default_rng(0)).items():
        try:
            parquet.write_table(pa.table({name: column}), io.BytesIO())
        except pa.ArrowNotImplementedError:
            lacking.add(name)
    return lacking


def every_column(rng):
    x = rng.normal(size=N)
    return {
        "double": pa.array(x),
        "float": pa.array(x.astype(np.float32)),
        "half": pa.array(x.astype(np.float16)),
        "u64": pa.array([2**63 + i for i in range(N)], pa.uint64()),
        "i8": pa.array(range(N), pa.int8()),
        "decimal": pa.array([decimal.Decimal(i) / 8 for i in range(N)], pa.decimal128(30, 10)),
        "duration": pa.array([datetime.timedelta(i) for i in range(N)]),
        "time": pa.array([datetime.datetime(2020, 1, 1)] * N),
        "date": pa.array([datetime.date(2020, 1, 1)] * N),
        "struct": pa.array([{"p": 1.0, "q": 2.0}] * N),
        "texts": pa.array([["a", "b"]] * N),
        "map": pa.array([[("k", 1.0)]] * N, pa.map_(pa.string(), pa.float64())),
        "bytes": pa.array([b"\xff"] * N),
        "dictionary": pa.array(["u", "v"] * (N // 2)).dictionary_encode(),
        "numbers": pa.array([1.0, 2.0] * (N // 2)).dictionary_encode(),
        "null": pa.nulls(N),
        "bool": pa.array([True, False] * (N // 2)),
        "text": pa.array(["u", "v"] * (N // 2)),
        "large": pa.array(["u", "v"] * (N // 2), pa.large_string()),
        "view": pa.array(["u", "v"] * (N // 2), pa.string_view()),
        "empty lists": pa.array([[]] * N, pa.list_(pa.float64())),
        "lists": pa.array([[1.0, 2.0, float(i)] for i in range(N)]),
        "gaps": pa.array([[1.0, None, float(i)] for i in range(N)]),
        "nested": pa.array([[[1.0]]] * N),
        "fixed": pa.FixedSizeListArray.from_arrays(pa.array(np.arange(2.0 * N).astype(np.float16)), 2),
        "inf": pa.array([float("inf")] * N),
        "huge": pa.array([1e308 * (-1) ** i for i in range(N)]),
    }


UNWRITABLE = unwritable()


def test_only_what_an_old_pyarrow_lacks_is_not_tried():
    assert {"view"} >= UNWRITABLE


@pytest.mark.filterwarnings("ignore")
@pytest.mark.slow
def test_odd_types_are_read_or_refused_in_our_words(tmp_path):
    rng = np.random.default_rng(1)
    worked = 0
    for _ in range(150 * MORE):
        every = columns(rng)
        some = {name: every[name] for name in rng.choice(list(every), size=int(rng.integers(1, 5)), replace=False)}
        for name, column in some.items():
            if rng.random() < 0.3:
                cells = [None if i % 7 == 0 else value for i, value in enumerate(column.to_pylist())]
                some[name] = pa.array(cells, column.type)
        table = pa.table({**some, "site": ["u", "v"] * (N // 2), "a": rng.normal(size=N)})
        first = table.column_names[0]
        formula = str(rng.choice(["site", f"`{first}`", f"site + `{first}`"]))
        sources = {"table": lambda t=table: t, "pandas": table.to_pandas}
        if not set(some) & {"map", "half", "fixed", "nested", "duration", "numbers"}:
            sources["polars"] = lambda t=table: pl.from_arrow(t)
        parquet.write_table(table, tmp_path / "t.parquet", row_group_size=17)
        sources["parquet"] = lambda: rm.scan(tmp_path / "t.parquet", cache_bytes=int(rng.choice([0, 10**8])))
        data = sources[str(rng.choice(list(sources)))]()
        worked += told_by_us(lambda d=data, f=formula: rm.Residualizer(f).fit(d))
    assert worked > 30


@pytest.mark.skipif("view" in UNWRITABLE, reason="this pyarrow writes no views, so that no file has any")
def test_text_in_views_is_text(tmp_path):
    cells = ["u", "v", None, "u"] * 10
    table = pa.table({"site": pa.array(cells, pa.string_view()), "a": np.arange(40.0)})
    parquet.write_table(table, tmp_path / "view.parquet")
    parquet.write_table(table.set_column(0, "site", pa.array(cells)), tmp_path / "text.parquet")
    view, plain = (
        rm.Residualizer("site", missing="indicator").fit(rm.scan(tmp_path / f"{name}.parquet"))
        for name in ("view", "text")
    )
    assert np.array_equal(view.coef_, plain.coef_)
    assert view.transform(rm.scan(tmp_path / "view.parquet")).shape == (40, 1)
