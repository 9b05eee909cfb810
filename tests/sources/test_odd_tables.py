"""Tables as files and other programs leave them: row numbers, foreign byte orders, labels that aren't names."""

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

import residmix as rm
from residmix.errors import DesignWarning

RNG = np.random.default_rng(0)
TABLE = pd.DataFrame({"x": RNG.normal(size=60), "y": RNG.normal(size=60), "age": RNG.normal(size=60)})
TABLE["site"] = np.tile(["a", "b", "c"], 20)


@pytest.mark.parametrize("read", [rm.scan, pl.read_csv, pd.read_csv], ids=["scan", "polars", "pandas"])
def test_row_numbers_that_were_written_along_are_no_feature(read, tmp_path):
    TABLE.to_csv(tmp_path / "t.csv")  # as R's write.csv does, with row names under an empty heading
    with pytest.warns(DesignWarning, match="looks like row numbers that were written"):
        model = rm.Residualizer("site + age").fit(read(tmp_path / "t.csv"))
    assert list(model.features_) == ["x", "y"]
    # pandas reads text to the last bit but one
    np.testing.assert_allclose(model.coef_, rm.Residualizer("site + age").fit(TABLE).coef_, rtol=1e-12)


def test_row_numbers_that_are_named_are_a_feature(tmp_path):
    TABLE.to_csv(tmp_path / "t.csv")
    assert list(rm.Residualizer("site", features=["", "x"]).fit(rm.scan(tmp_path / "t.csv")).features_) == ["", "x"]


@pytest.mark.parametrize("dtype", [">f8", ">f4", ">i4", np.longdouble])
def test_numbers_in_another_byte_order_or_size_are_numbers(dtype):
    whole = TABLE.assign(x=np.arange(60) % 7, age=(TABLE.age * 10).round())
    there = whole.astype({"x": dtype, "age": dtype})
    model = rm.Residualizer("age + site").fit(there)
    assert list(model.features_) == ["x", "y"]
    expected = rm.Residualizer("age + site").fit(whole).transform(whole)
    np.testing.assert_array_equal(model.transform(there), expected)
    metadata = whole[["age", "site"]].astype({"age": dtype})
    apart = rm.Residualizer().fit_transform(whole[["x", "y"]].astype({"x": dtype}), metadata=metadata)
    np.testing.assert_array_equal(apart, expected)


@pytest.mark.parametrize("columns", [range(4), pd.MultiIndex.from_product([["f", "m"], ["x", "y"]])])
def test_text_under_labels_that_are_no_strings_is_told_what_it_needs(columns):
    with pytest.raises(ValueError, match=r"could not convert .*aren't strings.*rename the columns to strings"):
        rm.Residualizer("site").fit(TABLE.set_axis(columns, axis=1))


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        (TABLE[["age"]].to_records(index=False), "metadata is a structured array; pass a data frame"),
        ({"age": TABLE.age}, "metadata is a dict; pass a data frame"),
        (np.datetime64("2020-01-01") + np.arange(60), r"metadata holds datetime64\[D\], which is neither a number nor"),
    ],
)
def test_metadata_of_other_kinds_are_refused_with_what_to_do(metadata, message):
    with pytest.raises(TypeError, match=message):
        rm.Residualizer().fit(TABLE[["x", "y"]].to_numpy(), metadata=metadata)


def test_an_anndata_object_is_told_where_to_go():
    anndata = pytest.importorskip("anndata", reason="AnnData needs the extra anndata")
    with pytest.raises(TypeError, match=r"X is an AnnData object; .*residmix\.anndata\.from_anndata"):
        rm.Residualizer("site").fit(anndata.AnnData(TABLE[["x", "y"]].to_numpy()))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x;site\n1;a\n", "its columns are separated by ';', not by ','"),
        ("x\tsite\n1\ta\n", r"its columns are separated by '\\t', not by ','"),
        ("x,site,x\n1,a,2\n", "it has two columns named 'x'; rename or drop one"),
        ('"x, y",site,"x, y"\n1,a,2\n', "it has two columns named 'x, y'"),
    ],
)
def test_a_csv_file_with_another_heading_is_told_so(text, message, tmp_path):
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(OSError, match=message):
        rm.scan(tmp_path / "t.csv")


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16"])
def test_a_heading_that_is_not_utf8_is_told_with_its_file(encoding, tmp_path):
    (tmp_path / "t.csv").write_bytes("x,Köln\n1,2\n".encode(encoding))
    with pytest.raises(OSError, match=r"t\.csv': its header isn't UTF-8 text; save it as UTF-8"):
        rm.scan(tmp_path / "t.csv")


def test_separators_inside_quoted_names_are_part_of_them(tmp_path):
    (tmp_path / "t.csv").write_text('"x; y","a, b"\n1,2\n')
    assert rm.scan(tmp_path / "t.csv").columns == ("x; y", "a, b")


def test_text_that_is_not_utf8_is_told_so(tmp_path):
    (tmp_path / "t.csv").write_bytes("x,site\n1,Köln\n2,Ulm\n".encode("latin-1"))
    with pytest.raises(TypeError, match="'site' holds bytes instead of text; decode it, or save its file as UTF-8"):
        rm.Residualizer("site").fit(rm.scan(tmp_path / "t.csv"))


@pytest.mark.parametrize("rows", [slice(None, -1), slice(-1, None, -1)], ids=["shifted", "reversed"])
def test_results_are_not_put_where_rows_are_still_to_be_read(rows):
    X = RNG.normal(size=(100, 2))
    age = RNG.normal(size=len(X))[: len(X[rows])]
    before = X.copy()
    model = rm.Residualizer().fit(X[rows], metadata=age)
    with pytest.raises(ValueError, match="out overlaps X but isn't the same array"):
        model.transform(X[rows], metadata=age, out=X[-len(age) :])
    np.testing.assert_array_equal(X, before)


@pytest.mark.parametrize("offset", [2**53, 2**63])
@pytest.mark.filterwarnings("ignore::residmix.errors.ResidmixWarning")
def test_whole_numbers_too_long_for_a_float_are_rounded_whoever_holds_them(offset):
    numbers = [offset + 4096 * i for i in range(60)]
    columns = {"x": TABLE["x"], "count": np.array(numbers, np.uint64), "site": TABLE["site"]}
    pandas = pd.DataFrame(columns)
    expected = rm.Residualizer("site").fit(pandas)
    assert list(expected.features_) == ["x", "count"]
    for data in (pa.table(columns), pl.DataFrame({name: np.asarray(values) for name, values in columns.items()})):
        assert np.array_equal(rm.Residualizer("site").fit(data).coef_, expected.coef_)
        assert rm.Residualizer("site + count").fit(data).rank_ == rm.Residualizer("site + count").fit(pandas).rank_
