"""MDNRegressor on rows that repeat, and on rows of very different weights: densities are those of the data."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from residmix.errors import DiscreteTargetWarning
from residmix.nn import MDNRegressor
from residmix.nn.regressor.targets import distinct_rows

SMALL = {"n_members": 5, "hidden": (16,), "random_state": 0}


@pytest.mark.parametrize("levels", [2, 20])
def test_counts_at_few_places_get_the_shares_that_they_have(levels: int) -> None:
    rng = np.random.default_rng(levels)
    x, y = rng.integers(0, levels, 3000).astype(float), rng.negative_binomial(0.3, 0.1, 3000).astype(float)
    with pytest.warns(DiscreteTargetWarning):
        model = MDNRegressor(**SMALL, max_epochs=100).fit(x[:, None], y)
    density = model.predict_distribution(x[:, None])
    ends = [density.cdf(torch.full((3000, 1), end).double()).mean() for end in (-0.5, 0.5)]
    # Half of the rows are 0. Merged to one row for each x and y, zeros were one row in twenty, and got .15 to .3.
    assert float(ends[1] - ends[0]) == pytest.approx((y == 0).mean(), abs=0.05)
    assert model.predict(x[:, None]).mean() == pytest.approx(y.mean(), rel=0.1)


def test_a_few_heavy_rows_have_their_weight_in_the_mean() -> None:
    rng = np.random.default_rng(0)
    x, heavy = rng.normal(size=(600, 1)), rng.random(600) < 0.03
    y, weight = rng.normal(size=600) + 2 * heavy, np.where(heavy, 300.0, 1.0)
    model = MDNRegressor(**SMALL, n_components=1).fit(x, y, sample_weight=weight)
    # Each batch counted alike, whatever it weighs, and most have none of these rows.
    assert np.average(model.predict(x), weights=weight) == pytest.approx(np.average(y, weights=weight), abs=0.1)


def test_rows_are_divided_where_one_outweighs_others_and_stay_where_most_repeat() -> None:
    column = np.array([3.0, 1.0, 1.0, 2.0])
    rows, weight = distinct_rows([column[:, None]], np.array([1.0, 1.0, 9.0, 1.0]))
    assert column[rows].tolist() == [1.0, 1.0, 2.0, 3.0] and weight.tolist() == [5.0, 5.0, 1.0, 1.0]
    # Repeated less often, they are one row each: copies must not be on both sides of a validation split.
    for times, left in ((3, 4), (4, 16)):
        rows, weight = distinct_rows([np.tile(np.arange(4.0), times)[:, None]], np.ones(4 * times))
        assert len(rows) == left and weight.sum() == 4 * times
