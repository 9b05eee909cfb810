"""A warning points at the line that called the package, whichever way it came from there."""

import warnings

import numpy as np
import pandas as pd
import pytest
from sklearn.pipeline import make_pipeline

import residmix as rm
from residmix.errors import ResidmixWarning

N = 200
RNG = np.random.default_rng(0)
X = RNG.normal(size=(N, 2))
AGE = RNG.normal(size=N)
TWICE = np.column_stack([AGE, AGE])
TABLE = pd.DataFrame(X, columns=["x", "y"]).assign(run=np.tile([1, 2, 3, 4], N // 4), site=["a"] * (N - 1) + ["b"])
TABLE["as objects"] = pd.Series(X[:, 0]).astype(object)
ROUNDED = np.round(X) + (AGE > 0)[:, None] * 0.3
FEATURES = ["x", "y"]


def residualizer(formula=None, **options):
    return rm.Residualizer(formula, features=None if formula is None else FEATURES, **options)


CALLS = {
    "fit": lambda: residualizer("site").fit(TABLE),
    "fit, few integers": lambda: residualizer("run").fit(TABLE),
    "fit, objects": lambda: rm.Residualizer("run + site").fit(TABLE),
    "fit_transform": lambda: residualizer("site").fit_transform(TABLE),
    "fit_transform, aliased": lambda: residualizer().fit_transform(X, metadata=TWICE),
    "fit_transform, leakage": lambda: residualizer().fit_transform(ROUNDED, metadata=(AGE > 0).astype(float)),
    "cross-fitted": lambda: residualizer("site", residuals="cross-fitted").fit_transform(TABLE),
    "partial_fit": lambda: residualizer("site").partial_fit(TABLE),
    "partial_fit, aliased": lambda: residualizer().partial_fit(X, metadata=TWICE),
    "scale": lambda: residualizer(scale=True).fit(np.where(AGE > 0, X.T, 1.0).T, metadata=np.where(AGE > 0, "a", "b")),
    "frames out": lambda: residualizer("site").set_output(transform="pandas").fit_transform(TABLE),
    "pipeline": lambda: make_pipeline(residualizer("site"), rm.GaussianMixture(1)).fit(TABLE),
    "eraser": lambda: rm.Eraser("run", features=FEATURES).fit_transform(TABLE),
    "eraser, nothing": lambda: rm.Eraser().fit_transform(X),
    "mixture": lambda: rm.GaussianMixture(3, max_iter=1).fit_predict(X),
    "residual mixture": lambda: rm.ResidualMixture(1).fit_predict(X, metadata=TWICE),
    "one call": lambda: rm.mdn_residualize(X, TWICE, 1),
    "association": lambda: rm.association(X, TWICE, after=rm.Residualizer(), n_permutations=19),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
@pytest.mark.slow
def test_a_warning_points_at_the_line_that_called_us(call):
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        call()
    assert told
    assert {item.filename for item in told} == {__file__}


def test_merging_warns_at_its_own_line_too():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResidmixWarning)
        one, two = (rm.Residualizer().fit(X, metadata=TWICE) for _ in range(2))
    with pytest.warns(ResidmixWarning, match="aliased") as told:
        one.merge(two)
    assert told[0].filename == __file__
