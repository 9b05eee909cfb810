"""The table of a mixture's parameters: every number once, beside its standard error."""

import numpy as np
import pandas as pd
import pytest
from numpy.testing import assert_allclose

import residmix as rm

RANDOM = np.random.default_rng(0)
X = np.vstack([RANDOM.normal(size=(150, 3)), RANDOM.normal(size=(150, 3)) * [1, 2, 1] + [8, 0, 4]])


@pytest.mark.parametrize(
    ("covariance_type", "rows"),
    [("full", 12), ("tied", 6), ("diag", 6), ("spherical", 2), ("EEE", 6), ("VVI", 6), ("EEV", 12)],
)
def test_every_parameter_stands_once_with_its_error(covariance_type, rows):
    model = rm.GaussianMixture(2, covariance_type=covariance_type, random_state=0).fit(X)
    table = model.tidy()
    assert table["parameter"].value_counts().to_dict() == {"weight": 2, "mean": 6, "covariance": rows}
    means = table[table["parameter"] == "mean"]
    assert_allclose(means["estimate"].to_numpy().reshape(2, 3), model.means_)
    assert_allclose(means["std_error"].to_numpy().reshape(2, 3), model.standard_errors_.means)
    assert list(means["feature"]) == ["x0", "x1", "x2"] * 2
    spread = table[table["parameter"] == "covariance"]
    assert spread["component"].isna().all() == (covariance_type in ("tied", "EEE"))
    full = rm.GaussianMixture.from_parameters(model.weights_, model.means_, model.covariances_, covariance_type)
    full = full._model().full_covariances()
    for _, row in spread.dropna(subset=["feature"]).iterrows():
        k, i, j = 0 if row["component"] is pd.NA else row["component"], row["feature"], row["feature_2"]
        assert_allclose(row["estimate"], full[k, int(i[1:]), int(j[1:])])
    assert np.isfinite(table["std_error"]).all()


def test_where_errors_need_the_rows_they_are_missing_and_the_estimates_are_there():
    frame = pd.DataFrame(X, columns=["a", "b", "c"]).assign(site=np.tile(["u", "v"], 150))
    model = rm.ResidualMixture(
        2, formula="C(site)", estimation="joint", gating="metadata", features=["a", "b", "c"], random_state=0
    ).fit(frame)
    table = model.tidy()
    assert table["std_error"].isna().all()
    assert set(table["feature"].dropna()) == {"a", "b", "c"}


def test_noise_and_tails_have_rows_of_their_own():
    noisy = np.vstack([X, RANDOM.uniform(-30, 30, size=(30, 3))])
    model = rm.GaussianMixture(2, noise=True, random_state=0).fit(noisy)
    assert_allclose(model.tidy().set_index("parameter").loc["noise_weight", "estimate"], model.noise_weight_)
    heavy = RANDOM.standard_t(3, size=(400, 2))
    model = rm.GaussianMixture(distribution="t", random_state=0).fit(heavy)
    assert_allclose(model.tidy().set_index("parameter").loc["dof", "estimate"], model.dof_[0])


def test_a_model_that_is_not_fitted_is_refused():
    with pytest.raises(ValueError, match="not fitted"):
        rm.GaussianMixture().tidy()
