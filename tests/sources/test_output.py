"""Results gathered or written as they come."""

from __future__ import annotations

import re

import numpy as np
import pandas as pd
import pytest
from pyarrow import parquet

import residmix as rm
from residmix.sources import as_table
from residmix.sources.output import collect, write_parquet


def doubled(block):
    return 2 * block.X


@pytest.fixture
def frame(rng):
    n = 1000
    return pd.DataFrame({"a": rng.normal(size=n), "b": rng.normal(size=n), "site": rng.choice(["u", "v"], size=n)})


@pytest.mark.parametrize("threads", ["1", "3"])
def test_results_are_gathered_in_their_place(frame, threads, monkeypatch):
    monkeypatch.setenv("RESIDMIX_NUM_THREADS", threads)
    X = frame[["a", "b"]].to_numpy()
    for table in (as_table(frame), as_table(lambda: (frame[low : low + 90] for low in range(0, 1000, 90)))):
        rows = table.rows(("a", "b"), block_rows=64)
        assert np.array_equal(collect(rows, doubled), 2 * X)
        assert np.array_equal(collect(rows, lambda block: block.X.argmax(axis=1)), X.argmax(axis=1))
        moved = rows.mapped(lambda block: block.select(slice(0, None)))
        assert np.array_equal(collect(moved, doubled), 2 * X)


def test_parquet_is_written_in_row_groups_while_results_come(frame, tmp_path, monkeypatch):
    monkeypatch.setattr("residmix.sources.output._GROUP_BYTES", 2000)
    frame.to_parquet(tmp_path / "in.parquet", row_group_size=77)
    for table in (as_table(frame), rm.scan(tmp_path / "in.parquet", batch_rows=50)):
        rows = table.rows(("a", "b"), block_rows=64)
        path = write_parquet(rows, doubled, ["a", "b"], tmp_path / "out.parquet")
        pd.testing.assert_frame_equal(pd.read_parquet(path), 2 * frame[["a", "b"]])
        assert parquet.ParquetFile(path).num_row_groups > 5


def test_a_failed_write_leaves_the_old_file_and_nothing_else(frame, tmp_path):
    path = tmp_path / "out.parquet"
    rows = as_table(frame).rows(("a", "b"), block_rows=64)
    write_parquet(rows, doubled, ["a", "b"], path)
    before = path.read_bytes()

    def fails(block):
        if block.start > 500:
            raise RuntimeError("the disk is on fire")
        return block.X

    with pytest.raises(RuntimeError, match="the disk is on fire"):
        write_parquet(rows, fails, ["a", "b"], path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["out.parquet"]


def test_what_cannot_be_written_is_refused_before_work_begins(frame, tmp_path):
    table = as_table(frame)
    rows = table.rows(("a", "b"))
    with pytest.raises(ValueError, match=r"must end in \.parquet"):
        write_parquet(rows, doubled, ["a", "b"], tmp_path / "out.csv")
    with pytest.raises(FileNotFoundError, match="doesn't exist"):
        write_parquet(rows, doubled, ["a", "b"], tmp_path / "no" / "out.parquet")


@pytest.mark.parametrize("kind", ["eraser", "mixture"])
def test_whatever_gives_features_back_writes_them_to_a_file(kind, frame, tmp_path):
    frame.to_parquet(tmp_path / "in.parquet", row_group_size=77)
    table = rm.scan(tmp_path / "in.parquet", batch_rows=50)
    if kind == "eraser":
        method = rm.Eraser("site").fit(table).transform
    else:
        method = rm.ResidualMixture(1, formula="site", random_state=0).fit(table).residuals
    path = method(table, out=tmp_path / "out.parquet")
    assert path == tmp_path / "out.parquet"
    written = pd.read_parquet(path)
    assert list(written.columns) == ["a", "b"]
    assert np.array_equal(written.to_numpy(), method(frame))
    with pytest.raises(ValueError, match="must end in"):
        method(frame, out=tmp_path / "out.csv")


def test_a_path_cannot_become_a_frame(frame, tmp_path):
    for model in (rm.Eraser("site"), rm.Residualizer("site")):
        model.fit(frame).set_output(transform="pandas")
        with pytest.raises(ValueError, match="set_output"):
            model.transform(frame, out=tmp_path / "out.parquet")


def test_residuals_go_to_a_file_as_they_would_go_to_an_array(frame, tmp_path):
    frame.to_parquet(tmp_path / "in.parquet", row_group_size=77)
    model = rm.Residualizer("site").fit(frame)
    expected = model.transform(frame)
    path = model.transform(rm.scan(tmp_path / "in.parquet"), out=tmp_path / "out.parquet")
    assert path == tmp_path / "out.parquet"
    written = pd.read_parquet(path)
    assert list(written.columns) == ["a", "b"]
    assert np.array_equal(written.to_numpy(), expected)
    with pytest.raises(ValueError, match="must end in"):
        model.transform(frame, out=tmp_path / "out.csv")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["in.parquet", "out.parquet"]


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("kind", ["Residualizer", "scale", "many columns", "factor", "Eraser", "ResidualMixture"])
def test_results_go_into_the_array_that_is_given_also_in_place(kind, dtype, rng):
    n = 1500
    X = rng.normal(size=(n, 4)).astype(dtype)
    M = rng.normal(size=(n, 20 if kind == "many columns" else 2))
    if kind == "factor":
        M = pd.DataFrame({"subject": pd.Categorical(np.repeat([f"s{i}" for i in range(300)], 5))})
        model = rm.Residualizer().fit(X, metadata=M)
        assert model.effects_
    elif kind == "Eraser":
        model = rm.Eraser().fit(X, metadata=M)
    elif kind == "ResidualMixture":
        model = rm.ResidualMixture(2, random_state=0).fit(X, metadata=M)
    else:
        model = rm.Residualizer(scale=kind == "scale").fit(X, metadata=M)
    apply = model.residuals if kind == "ResidualMixture" else model.transform
    given = {} if kind == "Eraser" else {"metadata": M}
    expected = apply(X, **given)
    into = np.full_like(X, np.nan)
    assert apply(X, **given, out=into) is into
    assert np.array_equal(into, expected)
    apply(X, **given, out=X)
    assert np.array_equal(X, expected)


def test_an_array_that_cannot_take_the_results_is_refused(rng):
    X, M = rng.normal(size=(50, 3)), rng.normal(size=50)
    model = rm.Residualizer().fit(X, metadata=M)
    for out in (np.empty((50, 2)), np.empty((50, 3), np.float32), np.empty((50, 3), order="F"), np.empty((49, 3))):
        with pytest.raises(ValueError, match=r"out must be .*shape \(50, 3\) and dtype float64; got"):
            model.transform(X, metadata=M, out=out)


@pytest.mark.parametrize("model", [rm.Residualizer("site"), rm.Eraser("site"), rm.ResidualMixture(1, formula="site")])
@pytest.mark.parametrize("progress", ["0", "1"])
def test_an_output_never_overwrites_what_is_read(frame, model, progress, tmp_path, monkeypatch):
    monkeypatch.setenv("RESIDMIX_PROGRESS", progress)
    paths = [tmp_path / f"{k}.parquet" for k in range(2)]
    for k, path in enumerate(paths):
        frame[500 * k : 500 * k + 500].to_parquet(path)
    before = paths[1].read_bytes()
    source = rm.scan(tmp_path)
    model.fit(source)
    write = model.residuals if isinstance(model, rm.ResidualMixture) else model.transform
    with pytest.raises(ValueError, match=r"1\.parquet' is one of the input files; use another name"):
        write(source, out=tmp_path / ".." / tmp_path.name / "1.parquet")
    assert paths[1].read_bytes() == before
    write(source, out=tmp_path / "other.parquet")


RESULTS = {
    "score_samples": ["log_density"],
    "predict": ["component"],
    "predict_proba": ["probability_0", "probability_1", "probability_2"],
}


@pytest.mark.parametrize("method", RESULTS)
@pytest.mark.parametrize("kind", ["GaussianMixture", "ResidualMixture"])
def test_what_a_mixture_tells_of_rows_goes_to_a_file_or_into_an_array(kind, method, frame, tmp_path, monkeypatch):
    monkeypatch.setattr("residmix.sources.output._GROUP_BYTES", 2000)
    if kind == "GaussianMixture":
        model, frame = rm.GaussianMixture(3, random_state=0, tol=0.01), frame[["a", "b"]]
    else:
        model = rm.ResidualMixture(3, formula="site", random_state=0, tol=0.01)
    model.fit(frame)
    apply = getattr(model, method)
    expected = apply(frame)
    frame.to_parquet(tmp_path / "in.parquet", row_group_size=77)
    source = rm.scan(tmp_path / "in.parquet", batch_rows=50)
    for given in (frame, source):
        path = apply(given, out=tmp_path / "out.parquet")
        assert path == tmp_path / "out.parquet"
        written = pd.read_parquet(path)
        assert list(written.columns) == RESULTS[method]
        assert np.array_equal(written.to_numpy().reshape(expected.shape), expected)
        into = np.zeros_like(expected)
        assert apply(given, out=into) is into
        assert np.array_equal(into, expected)
        wanted = rf"shape {re.escape(str(expected.shape))} and dtype {expected.dtype}; got"
        for wrong in (expected.astype(np.float32), expected[1:], expected[:, None]):
            with pytest.raises(ValueError, match=wanted):
                apply(given, out=wrong)
    with pytest.raises(ValueError, match=r"'.*in\.parquet' is one of the input files"):
        apply(source, out=tmp_path / "in.parquet")
    with pytest.raises(ValueError, match=r"must end in \.parquet"):
        apply(frame, out=tmp_path / "out.csv")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["in.parquet", "out.parquet"]
