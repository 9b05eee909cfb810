"""Batches from a callable or an iterable."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from residmix.sources import as_table


def matrix(table, **options):
    return np.concatenate(list(table.rows(**options).map(lambda block: block.X)))


@pytest.fixture
def X(rng):
    return rng.normal(size=(100, 3))


def test_batches_may_be_arrays_frames_or_pairs(X):
    names = list("abc")
    sources = {
        "callable": lambda: iter([X[:30], X[30:]]),
        "generator function": lambda: (X[low : low + 7] for low in range(0, 100, 7)),
        "frames": lambda: iter([pd.DataFrame(X[:30], columns=names), pd.DataFrame(X[30:], columns=names)]),
        "pairs": lambda: iter([(X[:30], X[:30, :1]), (X[30:], X[30:, :1])]),
        "list of pairs": [(X[:30], X[:30, :1]), (X[30:], X[30:, :1])],
    }
    for source in sources.values():
        table = as_table(source)
        assert np.array_equal(matrix(table, block_rows=16), X)
        assert table.n_rows == 100
        assert table.has_metadata == ("pair" in str(table.metadata_columns) or table.metadata_columns == ("m0",))
        assert sum(batch.n_rows for batch in table.batches()) == 100


def test_an_iterator_that_can_be_read_once_serves_partial_fit_only(X):
    table = as_table(iter([X[:30], X[30:]]))
    assert table.one_pass
    for use in (
        table.rows,
        table.feature_names,
        lambda: list(table.chunks()),
        lambda: table.n_rows,
    ):
        with pytest.raises(TypeError, match=r"can be read only once.*callable.*partial_fit"):
            use()
    assert [batch.n_rows for batch in table.batches()] == [30, 70]


def test_a_source_that_gives_other_rows_each_time_is_refused(X):
    lengths = iter([100, 100, 100, 90])

    def batches():
        yield X[: next(lengths)]

    rows = as_table(batches).rows()
    list(rows.map(lambda block: None))
    with pytest.raises(ValueError, match="gave 100 rows in the first pass, but 90 in a later one"):
        list(rows.map(lambda block: None))


def test_batches_that_differ_are_refused(X):
    frames = [pd.DataFrame(X, columns=list("abc")), pd.DataFrame(X, columns=list("abd"))]
    with pytest.raises(ValueError, match="the columns of batch 1 differ from those of the first batch: 'c' is missing"):
        as_table(lambda: iter(frames)).n_rows  # noqa: B018 - the pass is what is tested
    with pytest.raises(ValueError, match="the first rows have dtype float32, later ones float64"):
        matrix(as_table(lambda: iter([X.astype(np.float32), X])))
    with pytest.raises(ValueError, match="is empty"):
        as_table(lambda: iter([]))
    with pytest.raises(TypeError, match="metadata= doesn't work with batches"):
        as_table(lambda: iter([X]), metadata=X)


def test_an_error_in_the_source_arrives_as_it_is(X):
    calls = []

    def batches():
        calls.append(1)
        yield X
        if len(calls) > 2:
            raise RuntimeError("the instrument is off")

    rows = as_table(batches).rows()
    with pytest.raises(RuntimeError, match="the instrument is off"):
        list(rows.map(lambda block: None))


def test_metadata_in_memory_goes_beside_a_stream(X, rng):
    metadata = pd.DataFrame({"age": rng.normal(size=100)})
    stream = as_table(lambda: (X[low : low + 7] for low in range(0, 100, 7)))
    table = as_table(stream, metadata=metadata)
    assert table.metadata_columns == ("age",)
    assert np.array_equal(np.concatenate([chunk["age"] for chunk in table.chunks(("age",))]), metadata["age"])
    assert np.array_equal(matrix(table, weight="age" if (metadata > 0).all(axis=None) else None), X)
    with pytest.raises(ValueError, match="X has 100 rows but metadata has 99"):
        as_table(stream, metadata=metadata[:99])
    with pytest.raises(ValueError, match="already has metadata"):
        as_table(table, metadata=metadata)
