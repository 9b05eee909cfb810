"""Tables of very many columns: the numbers that each column holds, without a look at each of them."""

from __future__ import annotations

import numpy as np
import pandas as pd
import polars as pl
import pytest

import residmix as rm
from residmix.sources import as_table
from residmix.sources.array import MemoryTable
from residmix.sources.columns.blocks import WIDE

D = 2 * WIDE + 3  # two whole blocks and a rest


def columns(kind, rng, n=4):
    """Return D columns of one kind of numbers, or of several, each beside the next."""
    if kind == "float32":
        return {f"x{j}": rng.normal(size=n).astype(np.float32) for j in range(D)}
    if kind == "float64":
        return {f"x{j}": rng.normal(size=n) for j in range(D)}
    makers = (
        lambda: rng.normal(size=n),
        lambda: rng.integers(-(2**60), 2**60, n),
        lambda: rng.integers(0, 2**63, n, dtype=np.uint64),
        lambda: rng.normal(size=n).astype(np.float32),
        lambda: rng.integers(-5, 5, n).astype(np.int8),
    )
    return {f"x{j}": makers[j % len(makers)]() for j in range(D)}


@pytest.mark.parametrize("frame_of", [pd.DataFrame, pl.DataFrame], ids=["pandas", "polars"])
@pytest.mark.parametrize("kind", ["float32", "float64", "several"])
def test_columns_read_in_blocks_are_those_read_one_by_one(frame_of, kind, rng):
    held = columns(kind, rng)
    table = as_table(frame_of({"site": list("abab"), **held}))
    names = tuple(rng.permutation(sorted(held)))
    whole, _ = table.matrix(names)
    one_by_one = np.column_stack([table.matrix((name,))[0][:, 0] for name in names])
    assert whole.dtype == one_by_one.dtype == (np.float32 if kind == "float32" else np.float64)
    np.testing.assert_array_equal(whole, one_by_one)
    np.testing.assert_array_equal(np.column_stack(table.feature_columns(names)), one_by_one)
    np.testing.assert_array_equal(whole[:, 0], held[names[0]].astype(whole.dtype))


@pytest.mark.parametrize("frame_of", [pd.DataFrame, pl.DataFrame], ids=["pandas", "polars"])
def test_gaps_in_wide_frames_are_nan_and_text_is_named(frame_of, rng):
    held = columns("float64", rng)
    held["x7"] = np.array([1.0, np.nan, 3.0, 4.0])
    frame = frame_of(held)
    if frame_of is pl.DataFrame:
        frame = frame.with_columns(pl.Series("x9", [None, 2, 3, 4]))
    else:
        frame["x9"] = pd.array([None, 2, 3, 4], dtype="Int64")
    found, _ = as_table(frame).matrix()
    assert np.argwhere(np.isnan(found)).tolist() == [[0, 9], [1, 7]]
    with pytest.raises(ValueError, match="column 'x5' of X doesn't hold numbers"):
        as_table(frame_of({**held, "x5": list("abab")})).matrix()


def count_looks(monkeypatch):
    """Count how often a pandas or polars frame is asked for one column."""
    looks = []
    for kind in (pd.DataFrame, pl.DataFrame):
        for name in ("__getitem__", "get_column"):
            if hasattr(kind, name):
                original = getattr(kind, name)

                def counted(self, key, *more, original=original):
                    looks.append(key)
                    return original(self, key, *more)

                monkeypatch.setattr(kind, name, counted)
    return looks


@pytest.mark.parametrize("frame_of", [pd.DataFrame, pl.DataFrame], ids=["pandas", "polars"])
def test_a_fit_of_a_wide_frame_does_not_ask_for_each_column(frame_of, rng, monkeypatch):
    measured = columns("float64", rng, 12)
    frame, alone = frame_of({"site": list("aabb") * 3, **measured}), frame_of(measured)
    looks = count_looks(monkeypatch)
    model = rm.Residualizer("C(site)").fit(frame)
    residual = model.transform(frame)
    rm.GaussianMixture(1, covariance_type="diag").fit(alone)
    assert len(looks) < D / 20
    np.testing.assert_allclose(residual.reshape(3, 2, 2, D).mean(axis=(0, 2)), 0, atol=1e-12)
    before = len(looks)
    MemoryTable(as_table(frame).X).matrix(tuple(f"x{j}" for j in range(WIDE - 1)))
    assert len(looks) - before >= WIDE - 1  # the control: few columns are asked for one by one
