"""The same rows give the same bits, whatever kind of table, file or encoding they come in."""

from __future__ import annotations

import itertools

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from pyarrow import csv, feather, parquet

import residmix as rm

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*converge"),
    # truth values and counts among the features: a tree may read metadata back, which isn't what is tested here
    pytest.mark.filterwarnings("ignore::residmix.errors.LeakageWarning"),
]
N, FEATURES = 900, ["x0", "x1", "count", "flag"]
ROW_GROUPS = (97, 50, 61, 10_000)


@pytest.fixture(scope="module")
def frame():
    rng = np.random.default_rng(5)
    group = rng.integers(0, 2, N)
    site = rng.choice(["a", "b", "c"], N)
    return pd.DataFrame(
        {
            "x0": rng.normal(size=N) + 4 * group,
            "x1": rng.normal(size=N) + (site == "b"),
            "count": rng.integers(0, 1000, N),
            "flag": rng.random(N) < 0.5,
            "site": site,
            "age": rng.uniform(20, 80, N),
        }
    )


def write_stream(table, path):
    with pa.ipc.new_stream(path, table.schema) as writer:
        writer.write_table(table, max_chunksize=23)


WRITERS = {
    "parquet": lambda table, path, i: parquet.write_table(table, path, row_group_size=ROW_GROUPS[i]),
    "feather": lambda table, path, i: feather.write_feather(table, path),
    "arrow": lambda table, path, i: write_stream(table, path),
    "csv": lambda table, path, i: csv.write_csv(table, path),
}


def parts(table, folder, ending):
    """Write files of different lengths: one is empty, one has its columns in another order."""
    folder.mkdir()
    cuts = [0, 200, 200, 611, N]
    for i, (low, high) in enumerate(itertools.pairwise(cuts)):
        part = table.slice(low, high - low)
        WRITERS[ending](part.select(part.column_names[::-1]) if i == 2 else part, folder / f"{i}.{ending}", i)
    return rm.scan(folder, batch_rows=90)


def encoded(table):
    return table.set_column(4, "site", table["site"].dictionary_encode())


def decimal(table):
    return table.set_column(2, "count", table["count"].cast(pa.decimal128(30, 2)))


KINDS = {
    "categorical": lambda frame, _: frame.assign(site=frame["site"].astype("category")),
    "nullable": lambda frame, _: frame.convert_dtypes(),
    "polars": lambda frame, _: pl.from_pandas(frame),
    "polars categorical": lambda frame, _: pl.from_pandas(frame).with_columns(pl.col("site").cast(pl.Categorical)),
    "arrow": lambda frame, _: pa.Table.from_pandas(frame),
    "arrow dictionary": lambda frame, _: encoded(pa.Table.from_pandas(frame)),
    "arrow decimal": lambda frame, _: decimal(pa.Table.from_pandas(frame)),
    "batches": lambda frame, _: lambda: (frame[low : low + 111] for low in range(0, N, 111)),
    "parquet": lambda frame, where: parts(pa.Table.from_pandas(frame), where / "p", "parquet"),
    "parquet dictionary": lambda frame, where: parts(encoded(pa.Table.from_pandas(frame)), where / "d", "parquet"),
    "feather": lambda frame, where: parts(pa.Table.from_pandas(frame), where / "f", "feather"),
    "arrow stream": lambda frame, where: parts(encoded(pa.Table.from_pandas(frame)), where / "s", "arrow"),
    "csv": lambda frame, where: parts(pa.Table.from_pandas(frame), where / "c", "csv"),
    "dask": lambda frame, _: dask_frame(frame),
}


def dask_frame(frame):
    dd = pytest.importorskip("dask.dataframe", reason="Dask's data frames need the extra dask")
    return dd.from_pandas(frame, npartitions=4, sort=False)


def answers(table):
    """Return what every estimator makes of a table."""
    residualizer = rm.Residualizer("C(site) + age", features=FEATURES).fit(table)
    eraser = rm.Eraser("C(site) + age", features=FEATURES).fit(table)
    model = rm.ResidualMixture(2, formula="C(site) + age", features=FEATURES, max_iter=3, random_state=0).fit(table)
    return {
        "coef": residualizer.coef_,
        "residual": residualizer.transform(table),
        "erased": eraser.transform(table),
        "means": model.means_,
        "density": model.score_samples(table),
        "label": model.predict(table),
        "share": model.predict_proba(table),
    }


@pytest.fixture(scope="module")
def expected(frame):
    return answers(frame)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.slow
def test_every_kind_of_table_gives_the_bits_of_a_pandas_frame(kind, frame, expected, tmp_path):
    for name, value in answers(KINDS[kind](frame, tmp_path)).items():
        assert np.array_equal(value, expected[name]), name


@pytest.mark.parametrize("kind", ["polars", "arrow", "parquet", "csv", "dask"])
def test_missing_values_are_the_same_in_every_kind(kind, frame, tmp_path):
    holed = frame.drop(columns="flag").astype({"count": float})
    holed.loc[::7, "site"], holed.loc[::11, "age"], holed.loc[::13, "x1"] = None, np.nan, np.nan
    holed.loc[5, "count"] = np.nan
    if kind == "csv":
        table = parts(pa.Table.from_pandas(holed, preserve_index=False), tmp_path / "h", "csv")
    else:
        table = KINDS[kind](holed, tmp_path)
    one, other = (
        rm.Residualizer("C(site) + age", features=["x0", "x1", "count"], missing="indicator").fit(t)
        for t in (holed, table)
    )
    assert np.array_equal(one.coef_, other.coef_)
    assert np.array_equal(one.transform(holed), other.transform(table), equal_nan=True)
    with pytest.raises(ValueError, match=r"missing value.*missing='mean'"):
        rm.Residualizer("C(site) + age", features=["x0"]).fit(table)


def test_csv_parts_of_whole_numbers_and_of_none_take_the_type_of_the_others(tmp_path):
    (tmp_path / "1.csv").write_text("a,b\n")
    (tmp_path / "2.csv").write_text("a,b\n1,x\n2,y\n")
    (tmp_path / "3.csv").write_text("b,a\nz,0.5\n")
    table = rm.scan(tmp_path, batch_rows=1)
    assert table.numeric_columns == ("a",)
    assert np.concatenate([piece.matrix(("a",))[0] for piece in table.pieces(None, 1)])[:, 0].tolist() == [1, 2, 0.5]
    (tmp_path / "4.csv").write_text("a,b\nx,y\n")
    with pytest.raises(ValueError, match=r"column 'a' holds String in .*4\.csv' but .* in .*1\.csv'"):
        rm.scan(tmp_path)


def test_a_missing_metadata_column_is_named_beside_all_there_are(frame, tmp_path):
    model = rm.Residualizer("site + age", features=["x0"]).fit(frame)
    frame.rename(columns={"age": "agee"}).to_parquet(tmp_path / "x.parquet")
    with pytest.raises(ValueError, match="unknown column 'age' in the table - did you mean 'agee'"):
        model.transform(rm.scan(tmp_path / "x.parquet"))


def test_metadata_may_be_a_file_beside_features_in_files(frame, tmp_path):
    features, metadata = frame[["x0", "x1"]], frame[["site", "age"]]
    features.to_parquet(tmp_path / "x.parquet", row_group_size=70)
    metadata.to_parquet(tmp_path / "m.parquet", row_group_size=111)
    np.save(tmp_path / "m.npy", metadata[["age"]].to_numpy())
    X = rm.scan(tmp_path / "x.parquet", batch_rows=50)
    expected = rm.Residualizer("site + age").fit_transform(features, metadata=metadata)
    assert np.array_equal(
        expected, rm.Residualizer("site + age").fit_transform(X, metadata=rm.scan(tmp_path / "m.parquet"))
    )
    expected = rm.Residualizer().fit_transform(features, metadata=metadata[["age"]].to_numpy())
    assert np.array_equal(expected, rm.Residualizer().fit_transform(X, metadata=rm.scan(tmp_path / "m.npy")))
    for path in (tmp_path / "m.npy", str(tmp_path / "m.npy")):
        with pytest.raises(TypeError, match=r"metadata is a path; read it with residmix\.scan"):
            rm.Residualizer().fit(X, metadata=path)
        with pytest.raises(TypeError, match=r"X is a path; read it with residmix\.scan"):
            rm.GaussianMixture().fit(path)


def test_nan_in_a_mixture_of_residuals_is_named_by_its_row(frame, tmp_path):
    holed = frame.astype({"count": float})
    holed.loc[612, "x1"] = np.nan
    table = parts(pa.Table.from_pandas(holed), tmp_path / "h", "parquet")
    for weight in (None, np.ones(N), "count"):
        with pytest.raises(ValueError, match="NaN: row 612, column 'x1'"):
            rm.ResidualMixture(2, formula="site", features=["x0", "x1"]).fit(table, sample_weight=weight)
