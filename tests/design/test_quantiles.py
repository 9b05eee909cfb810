"""Quantiles of columns that don't fit in memory."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from residmix.design import quantiles


@settings(max_examples=40, deadline=None)
@given(
    values=st.lists(st.floats(-1e300, 1e300, allow_nan=False, allow_infinity=False), min_size=1, max_size=60),
    cut=st.integers(0, 60),
    repeats=st.integers(1, 3),
)
def test_quantiles_selected_in_passes_are_those_of_sorting(values, cut, repeats):
    column = np.array(values * repeats) + 0.0
    places = [0.0, 0.1, 1 / 3, 0.5, 0.9, 1.0]

    def blocks():
        return iter([column[:cut], column[cut:]])

    by_sorting = quantiles.order_statistics(blocks, places)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(quantiles, "IN_MEMORY", 0)
        by_passes = quantiles.order_statistics(blocks, places)
    assert by_passes == by_sorting
    with np.errstate(over="ignore", invalid="ignore"):
        numpys = np.quantile(column, places)
    close = np.isfinite(numpys)  # numpy's interpolation overflows near the largest doubles
    np.testing.assert_allclose(np.array(by_sorting)[close], numpys[close], rtol=1e-12, atol=0)
