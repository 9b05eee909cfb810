"""MDNRegressor in any unit, on grids in single precision, and with features that are constant."""

from __future__ import annotations

import numpy as np
import pytest

from residmix.errors import DiscreteTargetWarning
from residmix.nn import MDNRegressor
from residmix.nn.regressor.targets import grid_step, standard_scaling

SMALL = {"n_members": 2, "max_epochs": 20, "hidden": (8,), "random_state": 0}
pytestmark = pytest.mark.filterwarnings(
    "ignore::residmix.errors.CollapsedScaleWarning",
    "ignore::residmix.errors.DeadComponentWarning",
    "ignore::sklearn.exceptions.ConvergenceWarning",
)


def table(n: int = 150) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    X = rng.normal(size=(n, 2))
    return X, X[:, 0] + 0.3 * rng.normal(size=n)


@pytest.mark.parametrize("unit", [1e-300, 1e-170, 1e160, 1e300])
def test_units_whose_squares_overflow_or_vanish_change_nothing_else(unit: float) -> None:
    X, y = table()
    model = MDNRegressor(**SMALL).fit(X, y)
    of_y, of_x = MDNRegressor(**SMALL).fit(X, unit * y), MDNRegressor(**SMALL).fit(unit * X, y)
    np.testing.assert_allclose(of_y.predict(X) / unit, model.predict(X), rtol=1e-9)
    np.testing.assert_allclose(of_x.predict(unit * X), model.predict(X), rtol=1e-9)
    assert of_y.score(X, unit * y) == pytest.approx(model.score(X, y) - np.log(unit), abs=1e-9)


def test_scaling_is_that_of_the_textbook() -> None:
    X, weight = np.random.default_rng(1).normal(5.0, 3.0, (50, 3)), np.random.default_rng(2).uniform(1, 2, 50)
    found, mean = standard_scaling(X, weight), np.average(X, axis=0, weights=weight)
    np.testing.assert_allclose(found.mean, mean, rtol=1e-14)
    np.testing.assert_allclose(found.scale, np.sqrt(np.average((X - mean) ** 2, axis=0, weights=weight)), rtol=1e-14)


@pytest.mark.parametrize("value", [0.0, 3.0])
def test_a_feature_that_was_constant_changes_no_prediction_later(value: float) -> None:
    X, y = table()
    X[:, 1] = value
    model, other = MDNRegressor(**SMALL).fit(X, y), X + [0.0, 50.0]
    np.testing.assert_array_equal(model.predict(other), model.predict(X))
    (told,) = [each for each in model.notes_ if each["kind"] == "constant"]
    assert told["figures"]["features"] == ["1"]


def test_a_grid_is_found_in_single_precision_and_where_features_are_constant() -> None:
    rng = np.random.default_rng(0)
    X, warm = rng.normal(size=(300, 1)), np.round(rng.normal(36.6, 0.4, 300), 1)
    for values in (warm, warm.astype(np.float32)):
        with pytest.warns(DiscreteTargetWarning, match=r"grid of step 0.1 "):
            model = MDNRegressor(**SMALL).fit(X, values)
        assert model.likelihood_ == "interval" and model.cell_width_ == pytest.approx([0.1], rel=1e-6)
    counts = rng.poisson(2.0, 300).astype(float)
    with pytest.warns(DiscreteTargetWarning, match=r"grid of step 1 "):
        assert MDNRegressor(**SMALL).fit(np.zeros((300, 1)), counts).likelihood_ == "interval"


def test_what_is_no_grid_stays_none_in_single_precision() -> None:
    rng = np.random.default_rng(0)
    assert grid_step(np.repeat(rng.normal(size=40).astype(np.float32).astype(float), 3)) is None
    # More than a hundredth of a step of 0.1 is lost.
    assert grid_step(np.repeat((1e5 + 0.1 * np.arange(40)).astype(np.float32).astype(float), 3)) is None
    assert grid_step(np.repeat(1e6 + np.arange(40.0), 3)) == 1.0
