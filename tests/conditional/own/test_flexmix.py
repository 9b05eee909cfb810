"""Effects by component against flexmix, from the same partition; `flexmix.R` is the recipe of its numbers."""

import json
from pathlib import Path

import numpy as np
import pytest

import residmix as rm

FLEXMIX = json.loads((Path(__file__).parents[2] / "fixtures" / "flexmix.json").read_text())


@pytest.mark.parametrize("run", FLEXMIX["runs"], ids=lambda run: f"{run['responses']}-{run['gate']}")
def test_the_likelihood_is_flexmixs_or_higher(run):
    X = np.column_stack([FLEXMIX[f"y{j + 1}"] for j in range(run["responses"])])
    metadata = np.column_stack([FLEXMIX["age"], FLEXMIX["site"]])
    model = rm.ResidualMixture(
        2,
        estimation="joint",
        effects="by-component",
        gating="metadata" if run["gate"] else "constant",
        covariance_type="diag",  # flexmix's responses are independent within a component
        labels_init=FLEXMIX["start"],
        reg_covar=0.0,
        tol=1e-12,
        max_iter=5000,
    ).fit(X, metadata=metadata)
    found = len(X) * model.lower_bound_
    assert found >= run["ml"] - 1e-6
    assert found == pytest.approx(run["ml"], abs=1e-4)  # and the maximum is the same one
    assert found >= run["own"] - 1e-6
