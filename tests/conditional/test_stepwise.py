"""The metadata that matter are chosen, and the way they matter; all fits stand in the selection."""

import numpy as np
import pandas as pd
import pytest
from numpy.testing import assert_allclose

import residmix as rm


def table(seed=0, n=250, gate=0.0, own=0.0):
    """Two clusters, an effect of a on both, of b on their proportions or on one of them; c does nothing."""
    rng = np.random.default_rng(seed)
    a, b, c = rng.normal(size=(3, n))
    cluster = (rng.random(n) < 1 / (1 + np.exp(-gate * b))).astype(int)
    X = np.array([[0.0, 0.0], [6.0, 2.0]])[cluster] + a[:, None] + own * (cluster * b)[:, None]
    return pd.DataFrame(X + rng.normal(size=(n, 2)), columns=["x", "y"]).assign(a=a, b=b, c=c), cluster


def full(**options):
    options = {"formula": "a + b + c", "estimation": "joint", "covariance_type": "EII", "random_state": 0} | options
    return rm.ResidualMixture(2, **options)


def test_terms_without_effect_go_and_the_others_stay():
    data, cluster = table()
    model = full(labels_init=cluster)
    chosen = rm.stepwise(model, data, gating=["constant"], effects=["shared"])
    assert chosen.formula == "a" and model.formula == "a + b + c" and not hasattr(model, "means_")
    found = chosen.selection_
    assert len(set(found["formula"])) == len(found["bic"]) >= 6
    alone = full(formula="a", features=["x", "y"], labels_init=cluster).fit(data)
    assert_allclose(chosen.bic(data), alone.bic(data), rtol=1e-9)
    assert_allclose(min(found["bic"]), alone.bic(data), rtol=1e-9)
    assert chosen.n_components == 2 and chosen.residualizer_.features_.tolist() == ["x", "y"]
    assert rm.plot_selection(chosen).get_xlabel() == "components"


@pytest.mark.parametrize(
    ("world", "gating", "effects"), [("gate", "metadata", "shared"), ("own", "constant", "by-component")]
)
def test_the_way_in_which_they_matter_is_chosen(world, gating, effects):
    data, cluster = table(1, **{world: 2.0})
    if world == "gate":  # the shared effect and the gate have the same terms
        data[["x", "y"]] -= data[["a"]].to_numpy()
    formula = "b + c" if world == "gate" else "a + b + c"
    chosen = rm.stepwise(
        full(formula=formula, labels_init=cluster, gating="metadata" if world == "own" else "constant"), data
    )
    assert (chosen.gating, chosen.effects) == (gating, effects)
    assert "c" not in chosen.formula and "b" in chosen.formula


def test_where_nothing_matters_no_term_is_left():
    rng = np.random.default_rng(3)
    X, M = rng.normal(size=(200, 2)), pd.DataFrame(rng.normal(size=(200, 2)), columns=["a", "b"])
    chosen = rm.stepwise(full(formula="a * b").set_params(n_components=1), X, metadata=M, effects=["shared"])
    assert chosen.formula == "1" and chosen.gating == "constant"
    # an interaction goes first, and with its parts only comes back
    assert "a:b" not in set(chosen.selection_["formula"]) and "a + a:b" not in set(chosen.selection_["formula"])


def test_what_can_not_be_chosen_is_refused():
    data, _ = table(n=60)
    with pytest.raises(ValueError, match="formula"):
        rm.stepwise(rm.ResidualMixture(2), data)
    with pytest.raises(ValueError, match="cv"):
        rm.stepwise(full(criterion="cv"), data)
    with pytest.raises(ValueError, match="gating"):
        rm.stepwise(full(), data, gating=["site"])


def test_a_model_that_cannot_be_fitted_is_passed_over():
    rng = np.random.default_rng(1)
    site, age = np.array(list("abc"))[rng.integers(3, size=300)], rng.uniform(20, 80, 300)
    cluster = (rng.random(300) < 1 / (1 + np.exp(-(age - 50) / 8))).astype(int)
    X = np.array([[0.0, 0.0], [3.0, 3.0]])[cluster] + (site == "b")[:, None] * [2.0, -1.0]
    data = pd.DataFrame(X + rng.normal(size=(300, 2)), columns=["x", "y"]).assign(site=site, age=age)
    model = rm.ResidualMixture(2, formula="age + site", features=["x", "y"], estimation="joint", random_state=0)
    chosen = rm.stepwise(model, data, gating=["constant"], effects=["shared"])
    found = dict(zip(chosen.selection_["formula"], chosen.selection_["bic"], strict=True))
    # with both terms a component sits on a few nearly equal rows
    assert found["age + site"] == np.inf and chosen.formula == "site" and found["site"] == min(found.values())
    data[["x", "y"]] = 0.0
    with pytest.raises(ValueError, match="none of the 1 candidates"):
        rm.stepwise(model, data, gating=["constant"], effects=["shared"])


def test_effects_stay_shared_where_values_are_set_aside():
    data, cluster = table(n=150)
    data.loc[:9, "x"] = 60.0
    chosen = rm.stepwise(full(formula="a", cells=0.2, labels_init=cluster), data)
    assert set(chosen.selection_["effects"]) == {"shared"} and chosen.formula == "a"
    with pytest.raises(ValueError, match=r"cells=0\.2 doesn't work with effects="):
        rm.stepwise(full(formula="a", cells=0.2), data, effects=["by-component"])
