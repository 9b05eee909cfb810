"""Labels that levels leave open are told of, and those that a weight, a covariance or an effect fixes aren't."""

import warnings
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

import residmix as rm
from residmix.conditional.own.permuted import swap_costs
from residmix.errors import DesignWarning


def two_sites(seed=0, n=600, weights=(0.5, 0.5), spreads=(1.0, 1.0), slopes=(0.0, 0.0)):
    """Two clusters at two sites, shifted at the second each in its own way."""
    rng = np.random.default_rng(seed)
    site, cluster, age = rng.integers(0, 2, n), (rng.random(n) < weights[1]).astype(int), rng.normal(size=n)
    means = np.array([[[0.0, 0.0], [8.0, 0.0]], [[3.0, 5.0], [4.0, -5.0]]])
    X = means[site, cluster] + np.array(spreads)[cluster, None] * rng.normal(size=(n, 2))
    X += np.array(slopes)[cluster, None] * age[:, None]
    return pd.DataFrame(X, columns=["x", "y"]).assign(site=np.array(["a", "b"])[site], age=age), cluster


def fitted(table, cluster, **options):
    options = {"formula": "C(site)", "features": ["x", "y"], "effects": "by-component", "estimation": "joint"} | options
    return rm.ResidualMixture(2, labels_init=cluster, **options).fit(table)


def test_alike_components_might_trade_places_at_a_site():
    table, cluster = two_sites()
    with pytest.warns(DesignWarning, match=r"components 0 and 1 at [ab]") as told:
        model = fitted(table, cluster, gating="metadata", covariance_type="tied")
    assert len(told) == 1
    (kept,) = [note for note in model.notes_ if note["kind"] == "labels-not-matched"]
    swaps = {swap[2]: swap[3] for swap in kept["figures"]["swaps"]}
    assert set(swaps) == {"a", "b"} and max(swaps.values()) < 1e-6


@pytest.mark.parametrize(
    ("data", "options"),
    [
        ({"weights": (0.8, 0.2)}, {"covariance_type": "tied"}),
        ({"spreads": (1.0, 2.0)}, {"gating": "metadata"}),
        ({"slopes": (0.0, 1.0)}, {"gating": "metadata", "covariance_type": "tied", "formula": "C(site) + age"}),
    ],
)
def test_a_weight_a_covariance_or_an_effect_says_which_is_which(data, options):
    table, cluster = two_sites(**data)
    with warnings.catch_warnings():
        warnings.simplefilter("error", DesignWarning)
        fitted(table, cluster, **options)
    # without what differs the same fit leaves it open
    plain, same = two_sites()
    with pytest.warns(DesignWarning, match="matched"):
        fitted(plain, same, **options | {"covariance_type": "tied", "gating": "metadata", "formula": "C(site)"})


def test_the_cost_of_trading_places_is_what_the_likelihood_loses():
    table, cluster = two_sites(1, weights=(0.65, 0.35))
    model = fitted(table, cluster, covariance_type="tied")
    # the other labels at site b, for a start: the same components but for their weights
    swapped = np.where(table.site == "b", 1 - cluster, cluster)
    with pytest.warns(DesignWarning, match="matched"):  # whose weights are as good as one half
        other = fitted(table, swapped, covariance_type="tied")
    lost = (model.lower_bound_ - other.lower_bound_) * len(table)
    design = model.residualizer_.design_
    coded = design.level_rows(design.terms[0])
    raw = model._feature_rows(table, None)
    rows = raw.mapped(replace(model._to_residual, levels=(0, coded)))
    costs = {level: cost for level, _, _, cost in swap_costs(rows, model._params, 2, own=False)}
    # weights find a compromise afterwards, so the cost is a bound
    assert 0 < lost <= costs[1] and costs[1] < 3 * lost + 5


@pytest.mark.slow
def test_the_cost_of_another_slope_is_what_rows_of_known_components_lose_by_it():
    table, cluster = two_sites(2, n=6000, slopes=(0.0, 1.0))
    model = fitted(table, cluster, covariance_type="tied", gating="metadata", formula="C(site) + age")
    design = model.residualizer_.design_
    coded = design.level_rows(design.terms[0])
    rows = model._feature_rows(table, None).mapped(replace(model._to_residual, levels=(0, coded)))
    costs = {level: cost for level, _, _, cost in swap_costs(rows, model._params, 2, own=False)}
    X, age, precision = table[["x", "y"]].to_numpy(), table["age"].to_numpy(), np.linalg.inv(model.covariances_)
    for level, site in enumerate("ab"):
        lost = 0.0
        for k in (0, 1):
            here = (table.site == site) & (cluster == k)
            # each with the mean that suits it best
            own, other = (np.cov((X - age[:, None] * model.coef_[one, 1])[here].T, ddof=0) for one in (k, 1 - k))
            lost += 0.5 * here.sum() * np.trace(precision @ (other - own))
        assert costs[level] == pytest.approx(lost, rel=0.05)
