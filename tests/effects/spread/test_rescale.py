"""What is removed once for each profile of a design is what is removed row by row."""

import numpy as np
import pandas as pd
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from residmix import Residualizer
from residmix.effects.spread import rescale
from residmix.effects.spread.profiles import profiles


def table(n=3000, d=9, seed=0):
    rng = np.random.default_rng(seed)
    metadata = pd.DataFrame({"site": rng.choice(list("abcde"), n), "sex": rng.choice(list("mf"), n)})
    metadata["age"], metadata["group"] = rng.uniform(20, 80, n), rng.integers(0, 20, n).astype(str)
    scale = 1.0 + np.unique(metadata["site"], return_inverse=True)[1][:, None]
    return rng.normal(size=(n, d)) * scale + 3.0 * scale + 0.1 * metadata[["age"]].to_numpy(), metadata


@pytest.mark.parametrize("shrinkage", [None, "eb"])
@pytest.mark.parametrize("preserve", [None, "age", "age + group"])
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_by_profile_and_row_by_row_are_the_same(shrinkage, preserve, dtype, monkeypatch):
    X, metadata = table()
    X, own = X.astype(dtype), {"shrinkage": {"site": "eb"}} if shrinkage else {}
    model = Residualizer("site + sex", preserve=preserve, scale="site", **own).fit(X, metadata=metadata)
    seen = []
    monkeypatch.setattr(rescale, "profiles", lambda design: seen.append(profiles(design)) or seen[-1])
    fast = model.transform(X, metadata=metadata)
    back = model.inverse_transform(fast, metadata=metadata)
    assert seen
    assert all(found is not None and len(found[1]) == 10 for found in seen)
    monkeypatch.setattr(rescale, "profiles", lambda design: None)
    rtol = 1e-12 if dtype is np.float64 else 1e-6
    assert_allclose(fast, model.transform(X, metadata=metadata), rtol=rtol, atol=10 * rtol)
    assert_allclose(back, model.inverse_transform(fast, metadata=metadata), rtol=rtol, atol=10 * rtol)
    assert fast.dtype == back.dtype == dtype


def test_rows_may_be_rescaled_in_place():
    X, metadata = table()
    model = Residualizer("site", preserve="age", scale=True).fit(X, metadata=metadata)
    expected = model.transform(X, metadata=metadata)
    assert model.transform(X, metadata=metadata, out=X) is X
    assert_array_equal(X, expected)


def test_profiles_are_told_only_where_there_are_few():
    rng = np.random.default_rng(0)
    few = rng.normal(size=(40, 3))[rng.integers(0, 40, 1000)]
    codes, found = profiles(few)
    assert_array_equal(found[codes], few)
    assert len(found) == 40
    assert profiles(rng.normal(size=(1000, 3))) is None
    assert profiles(np.repeat(rng.normal(size=(500, 3)), 2, axis=0)) is None
    # rows that a sum of their numbers can't tell apart
    turn = np.cos([1.0, 2.0])
    unlike = np.array([[turn[1], 0.0], [0.0, turn[0]]])
    assert profiles(unlike[rng.integers(0, 2, 100)]) is None
