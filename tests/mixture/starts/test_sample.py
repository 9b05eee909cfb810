"""The rows that starts are found on."""

import numpy as np
import pytest

from residmix.mixture.starts.sample import Sample, quantiles
from residmix.rows.block import Block


@pytest.mark.parametrize("n", [1, 2, 7, 100, 101])
def test_quantiles_of_rows_are_those_of_rows_with_equal_weights(n):
    rng = np.random.default_rng(n)
    values, shares = np.round(rng.normal(size=n), 1), np.array([0.0, 0.02, 0.1, 0.25, 0.5, 0.75, 1.0])
    found = quantiles(values, np.ones(n), shares)
    np.testing.assert_array_equal(found, quantiles(values, np.full(n, 2.0), shares))
    np.testing.assert_array_equal(found, np.quantile(values, shares, method="inverted_cdf"))


def test_a_sample_of_rows_is_that_of_rows_with_equal_weights():
    rng = np.random.default_rng(0)
    X = np.round(rng.normal(size=(300, 3)), 1)
    alone, weighted = Sample.of(Block(0, X), "full"), Sample.of(Block(0, X, weight=np.full(300, 2.0)), "full")
    np.testing.assert_allclose(alone.y, weighted.y, atol=1e-12)
