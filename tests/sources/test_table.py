"""Tables in memory: one view of arrays and frames."""

from __future__ import annotations

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import scipy.sparse as sp

from residmix.errors import DesignWarning
from residmix.sources import as_table
from residmix.sources.array import MemoryTable
from residmix.sources.frames import require_columns

KINDS = {"pandas": pd.DataFrame, "polars": pl.DataFrame, "pyarrow": lambda columns: pa.table(dict(columns))}


@pytest.fixture(params=sorted(KINDS))
def frame_of(request):
    return KINDS[request.param]


def matrix(table, features=None, **options):
    return np.concatenate(list(table.rows(features, **options).map(lambda block: block.X)))


def test_one_table_gives_its_numeric_columns_that_are_not_metadata(frame_of, rng):
    columns = {
        "a": rng.normal(size=6),
        "site": ["u", "v"] * 3,
        "b": np.arange(6),
        "age": rng.normal(size=6),
        "flag": np.array([True, False] * 3),
    }
    table = as_table(frame_of(columns))
    names = table.feature_names(exclude=("site", "age"))
    assert names == ("a", "b")
    assert table.metadata_columns == table.columns == tuple(columns)
    assert np.array_equal(matrix(table, names), np.column_stack([columns["a"], columns["b"]]))
    (metadata,) = table.chunks(("age", "site"))
    assert type(metadata) is type(frame_of(columns))
    assert list(metadata["site"].to_pylist() if isinstance(metadata, pa.Table) else metadata["site"]) == columns["site"]


def test_float32_stays_and_anything_else_becomes_float64(frame_of):
    single, double = np.float32([1, 2, 3]), np.array([1.0, 2.0, 3.0])
    assert matrix(as_table(frame_of({"a": single, "b": single}))).dtype == np.float32
    for other in (double, np.arange(3), np.arange(3, dtype=np.uint8)):
        assert matrix(as_table(frame_of({"a": single, "b": other}))).dtype == np.float64
    assert matrix(as_table(frame_of({"a": np.arange(3), "t": [True, False, True]})), ("a", "t")).tolist() == [
        [0.0, 1.0],
        [1.0, 0.0],
        [2.0, 1.0],
    ]


def test_nullable_columns_hold_nan_where_a_value_is_missing():
    frame = pd.DataFrame(
        {
            "i": pd.array([1, None, 3], dtype="Int64"),
            "f": pd.array([1.5, None, 3.5], dtype="Float64"),
            "t": pd.array([True, None, False], dtype="boolean"),
            "p": pd.array([1.0, None, 2.0], dtype="float64[pyarrow]"),
        }
    )
    expected = [[1, 1.5, 1, 1], [np.nan] * 4, [3, 3.5, 0, 2]]
    assert np.array_equal(matrix(as_table(frame), list("iftp"), allow_nan=True), expected, equal_nan=True)
    with pytest.raises(ValueError, match="NaN: row 1, column 'i'"):
        matrix(as_table(frame), list("iftp"))


def test_a_block_of_floats_in_pandas_is_not_copied(rng):
    X = rng.normal(size=(50, 3))
    table = as_table(pd.DataFrame(X, columns=list("abc")))
    assert np.shares_memory(table.matrix()[0], X)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_arrays_are_not_copied(rng, dtype):
    X = rng.normal(size=(50, 3)).astype(dtype)
    X.setflags(write=False)
    for same in (X, np.asfortranarray(X), X[:, ::-1]):
        assert np.shares_memory(as_table(same).matrix()[0], same)


def test_plain_arrays_have_numbered_columns(rng):
    X = rng.normal(size=(5, 3))
    table = as_table(X)
    assert not table.named
    assert table.columns == ("x0", "x1", "x2")
    assert table.feature_names([2, 0]) == ("x2", "x0")
    assert table.feature_names(exclude=("x1",)) == ("x0", "x2")
    assert np.array_equal(matrix(table, ("x2", "x0")), X[:, [2, 0]])
    (chunk,) = table.chunks(("x1",))
    assert np.array_equal(chunk["x1"], X[:, 1])
    with pytest.raises(ValueError, match="pass metadata="):
        list(table.chunks())


def test_metadata_may_come_apart_in_any_kind(rng, frame_of):
    X = rng.normal(size=(4, 2))
    table = as_table(X, metadata=frame_of({"age": [1.0, 2.0, 3.0, 4.0], "site": list("uvuv")}))
    assert table.has_metadata
    assert table.metadata_columns == ("age", "site")
    assert table.feature_names(exclude=("age",)) == ("x0", "x1")
    assert np.array_equal(table.weight("age"), [1.0, 2.0, 3.0, 4.0])


def test_metadata_arrays_of_numbers_stay_and_of_texts_become_a_frame(rng):
    X = rng.normal(size=(3, 2))
    (chunk,) = as_table(X, metadata=[1, 2, 3]).chunks()
    assert np.array_equal(chunk, [[1], [2], [3]])
    assert as_table(X, metadata=np.zeros((3, 2))).metadata_columns == ("m0", "m1")
    (named,) = as_table(X, metadata=[1, 2, 3]).chunks(("m0",))
    assert np.array_equal(named, [[1], [2], [3]])
    mixed = np.array([["u", 1.5], ["v", 2.5], [np.nan, 3.5]], dtype=object)
    (chunk,) = as_table(X, metadata=mixed).chunks()
    assert chunk.to_pydict() == {"m0": ["u", "v", None], "m1": [1.5, 2.5, 3.5]}
    (chunk,) = as_table(X, metadata=np.array(["u", "v", "u"])).chunks()
    assert chunk.to_pydict() == {"m0": ["u", "v", "u"]}
    (chunk,) = as_table(X, metadata=pd.Series([1, 2, 3], name="age")).chunks(("age",))
    assert list(chunk["age"]) == [1, 2, 3]


def test_pandas_without_names_is_a_plain_array(rng):
    X = rng.normal(size=(5, 3))
    table = as_table(pd.DataFrame(X), metadata=pd.DataFrame(X[:, :1]))
    assert not table.named
    assert table.metadata_columns == ("m0",)
    assert np.array_equal(matrix(table), X)


def test_slices_are_views(rng):
    X = rng.normal(size=(10, 2))
    part = MemoryTable(X, X[:, :1])[3:7]
    assert part.n_rows == 4
    assert np.shares_memory(part.matrix()[0], X)


@pytest.mark.parametrize(
    ("X", "error", "text"),
    [
        (np.arange(3.0), ValueError, "Expected 2D array, got 1D array instead"),
        (np.zeros((0, 2)), ValueError, "0 sample"),
        (np.zeros((2, 0)), ValueError, "0 feature"),
        (pd.DataFrame({"a": []}), ValueError, "X has no rows"),
        (pd.DataFrame(index=range(3)), ValueError, "0 feature"),
        (np.zeros((2, 2), dtype=complex), ValueError, "Complex data not supported"),
        (sp.csr_array(np.eye(3)), TypeError, "[Ss]parse"),
        (pl.LazyFrame({"a": [1.0]}), TypeError, "residmix.scan"),
        (pd.DataFrame([[1.0, 2.0]], columns=["a", "a"]), ValueError, "two columns named 'a'"),
        (pd.DataFrame([[1.0, 2.0]], columns=["a", 3]), TypeError, "got 3 of type int"),
        ("data.parquet", TypeError, r"residmix.scan\('data.parquet'\)"),
    ],
)
def test_what_is_no_table_is_refused_with_one_clear_error(X, error, text):
    with pytest.raises(error, match=text):
        as_table(X)


@pytest.mark.parametrize(
    ("metadata", "error", "text"),
    [
        (np.zeros((2, 1)), ValueError, "X has 3 rows but metadata has 2"),
        (np.zeros((3, 1, 1)), ValueError, r"got shape \(3, 1, 1\)"),
        (sp.csr_array(np.eye(3)), TypeError, "metadata is a sparse matrix"),
        (np.zeros(3, dtype=complex), ValueError, "metadata is complex"),
    ],
)
def test_metadata_that_does_not_fit_is_refused(metadata, error, text):
    with pytest.raises(error, match=text):
        as_table(np.eye(3), metadata=metadata)


def test_unknown_names_are_refused_with_the_closest_one(frame_of):
    table = as_table(frame_of({"bill_length": [1.0, 2.0], "site": ["u", "v"]}))
    with pytest.raises(ValueError, match="unknown column 'bill_lenth' in features - did you mean 'bill_length'"):
        table.feature_names(["bill_lenth"])
    with pytest.raises(ValueError, match="unknown column 'sight' in the table - did you mean 'site'"):
        list(table.chunks(("sight",)))
    with pytest.raises(ValueError, match="unknown column 'zzz' in the table; there are: bill_length, site"):
        list(table.chunks(("zzz",)))
    with pytest.raises(ValueError, match="twice"):
        table.feature_names(["bill_length", "bill_length"])
    with pytest.raises(ValueError, match="both a feature and metadata"):
        table.feature_names(["bill_length"], exclude=("bill_length",))
    with pytest.raises(ValueError, match="no numeric column is left"):
        table.feature_names(exclude=("bill_length",))
    with pytest.raises(TypeError, match="must be a list"):
        table.feature_names("bill_length")
    with pytest.raises(ValueError, match="column 'site' of X doesn't hold numbers"):
        table.rows(("site",))


def test_positions_serve_plain_arrays_only(rng):
    with pytest.raises(ValueError, match="features has index 3, but the array has 2"):
        as_table(np.eye(2)).feature_names([3])
    with pytest.raises(TypeError, match="got True"):
        as_table(np.eye(2)).feature_names([True])
    with pytest.raises(TypeError, match="got 0"):
        as_table(pd.DataFrame({"a": [1.0]})).feature_names([0])


def test_an_input_is_never_changed(rng):
    X = rng.normal(size=(20, 3))
    frame = pd.DataFrame(X.copy(), columns=list("abc"))
    before = frame.copy()
    for block in as_table(frame).rows().map(lambda block: block):
        assert np.array_equal(block.X, X)
    pd.testing.assert_frame_equal(frame, before)


def pair(n=6):
    frame = pd.DataFrame({"x": np.arange(n) ** 2.0, "y": np.arange(n) % 3}, index=[f"s{i}" for i in range(n)])
    return frame, pd.DataFrame({"age": np.arange(n) + 40.0}, index=frame.index)


@pytest.mark.parametrize("change", [lambda m: m[::-1], lambda m: m["age"].sort_index(ascending=False)])
def test_the_same_rows_in_another_order_are_refused(change):
    X, metadata = pair()
    with pytest.raises(ValueError, match=r"row 0 is 's0' in X and 's5' in metadata.*\(metadata\.loc\[X\.index\]\)"):
        as_table(X, metadata=change(metadata))
    with pytest.raises(ValueError, match="row 0 is 's0' in X and 's5' in metadata"):
        as_table(as_table(X), metadata=change(metadata))
    with pytest.raises(ValueError, match="row 0 is 's0' in X and 's5' in sample_weight"):
        as_table(X).rows(weight=metadata["age"][::-1])
    right = as_table(X, metadata=change(metadata).loc[X.index])
    assert right.n_rows == 6


def test_rows_that_are_only_partly_the_same_are_refused():
    X, metadata = pair()
    with pytest.raises(ValueError, match="row 2 is 's2' in X and 's3' in metadata"):
        as_table(X[:5], metadata=metadata.drop(index="s2"))


@pytest.mark.parametrize(
    "index",
    [range(6), [f"subject {i}" for i in range(6)], [f"s{i}" for i in range(6)]],
    ids=["never set", "labels of another kind", "the same"],
)
def test_an_index_that_says_nothing_of_the_order_is_ignored(index):
    X, metadata = pair()
    table = as_table(X, metadata=metadata.set_axis(index))
    assert next(table.chunks())["age"].tolist() == metadata["age"].tolist()
    assert as_table(X.reset_index(drop=True)[1:], metadata=metadata[1:].reset_index(drop=True)).n_rows == 5


def test_masked_values_are_missing_and_never_what_is_behind_the_mask():
    X = np.ma.array([[1.0, 2.0], [3.0, 999.0]], mask=[[0, 0], [0, 1]])
    assert np.array_equal(matrix(as_table(X), allow_nan=True), [[1, 2], [3, np.nan]], equal_nan=True)
    with pytest.raises(ValueError, match="X contains NaN: row 1, column 'x1'"):
        matrix(as_table(X))
    age = np.ma.array([40, 999], mask=[0, 1])
    assert np.array_equal(next(as_table(X, metadata=age).chunks())[:, 0], [40, np.nan], equal_nan=True)
    assert next(as_table(X, metadata=np.ma.array([40, 50])).chunks()).tolist() == [[40], [50]]
    site = np.ma.array(["a", "b"], mask=[0, 1])
    assert next(as_table(X, metadata=site).chunks())["m0"].to_pylist() == ["a", None]
    with pytest.raises(ValueError, match="sample_weight has masked values"):
        as_table(X).rows(weight=age)


def test_numbers_held_as_objects_are_not_left_out_without_a_word():
    frame = pd.DataFrame({"a": [1.5, 2.5, None], "b": [1, 2, 3], "name": ["u", "v", "w"]}).astype({"a": object})
    frame["s"] = pd.arrays.SparseArray([0.0, 0.0, 1.0])
    with pytest.warns(DesignWarning, match=r"numbers as Python objects or in sparse form: 'a', 's'\. To use them"):
        assert as_table(frame).feature_names() == ("b",)
    assert as_table(frame).feature_names(["b"]) == ("b",)
    with pytest.raises(ValueError, match=r"'a' of X doesn't hold numbers \(Object\).*astype\(float\)"):
        matrix(as_table(frame), ["a"])
    assert as_table(frame.astype({"a": float, "s": float})).feature_names() == ("a", "b", "s")


class Counted(str):
    """A name that counts how often it is compared with another one."""

    __slots__ = ()
    comparisons = 0

    def __eq__(self, other):
        Counted.comparisons += 1
        return str.__eq__(self, other)

    __hash__ = str.__hash__


@pytest.mark.slow
def test_many_columns_are_looked_up_without_comparing_each_with_each():
    names = [Counted(f"gene{j}") for j in range(3_000)]
    as_table(pd.DataFrame(np.zeros((2, 3_000)), columns=pd.Index(names, dtype=object)))
    require_columns([Counted(name) for name in names], tuple(names), "X")
    assert Counted.comparisons < 100 * len(names)
    before = Counted.comparisons
    assert all(name in names for name in map(Counted, names))
    assert Counted.comparisons - before > 1_000 * len(names)  # the control: a search through all of them
