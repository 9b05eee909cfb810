"""Rows kept aside while something else is computed."""

import operator
import re
import warnings

import numpy as np
import pandas as pd
import pytest

import residmix as rm
from residmix.errors import LeakageWarning
from residmix.sources.rows import ArrayRows
from residmix.sources.sampled import SampledRows


def total(block):
    return block.X.sum()


def test_the_first_fold_keeps_the_rows_and_changes_no_sum():
    X = np.random.default_rng(0).normal(size=(5000, 3))
    rows, index = ArrayRows(X, block_rows=64), np.arange(3, 5000, 17)
    sampled = SampledRows(rows, index)
    assert sampled.fold(total, operator.add) == rows.fold(total, operator.add)
    assert np.array_equal(sampled.sample().X, X[index])
    assert sampled.with_block_rows(100).fold(total, operator.add) == rows.with_block_rows(100).fold(total, operator.add)
    assert np.array_equal(sampled.sample().X, X[index])
    assert np.array_equal(SampledRows(rows, index).sample().X, X[index])  # without a fold


@pytest.fixture
def counts():
    rng = np.random.default_rng(0)
    site = rng.choice(["a", "b", "c"], 6000)
    x = rng.poisson(3.0, 6000) + (site == "b")
    return pd.DataFrame({"x": x.astype(float), "site": site})


def told(fit):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit()
    return [str(w.message) for w in caught if issubclass(w.category, LeakageWarning)]


def test_files_and_clusters_are_warned_of_leakage_as_memory_is_without_a_pass_of_its_own(counts, tmp_path):
    dd = pytest.importorskip("dask.dataframe")
    expected = told(lambda: rm.Residualizer("site").fit(counts))
    assert len(expected) == 1 and re.search(r"'x'.*let a decision tree read", expected[0])
    counts.to_parquet(tmp_path / "x.parquet")
    source = rm.scan(tmp_path / "x.parquet", batch_rows=500)
    passes = []
    pieces = type(source).pieces
    source.pieces = lambda *arguments: passes.append(arguments) or pieces(source, *arguments)
    assert told(lambda: rm.Residualizer("site").fit(source)) == expected
    features = [columns for columns, _ in passes if columns is None or "x" in columns]
    assert len(features) == 1  # the moments' own
    frame = dd.from_pandas(counts, npartitions=4, sort=False)
    assert told(lambda: rm.Residualizer("site").fit(frame)) == expected
