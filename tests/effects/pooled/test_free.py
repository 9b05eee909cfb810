"""Non-parametric priors: parity with sva, and the sum over features written out."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from numpy.testing import assert_allclose

from residmix import Residualizer
from residmix.effects.pooled import free
from residmix.effects.pooled.free import free_posterior

FIXTURES = Path(__file__).parents[2] / "fixtures"
GENES = 80


@pytest.fixture(scope="module")
def bladder():
    return pd.read_csv(FIXTURES / "bladderbatch.csv.gz"), pd.read_csv(FIXTURES / "bladderbatch_nonparametric.csv.gz")


def matrix(frame, name):
    return frame[[f"{name}.{j}" for j in range(1, GENES + 1)]].to_numpy()


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("combat", {"scale": True}),
        ("cancer", {"scale": True, "preserve": "cancer"}),
        ("cancer_reference", {"scale": True, "preserve": "cancer", "reference": 3}),
        ("cancer_location", {"preserve": "cancer"}),
    ],
)
def test_it_is_svas_combat_without_parametric_priors(bladder, name, options):
    known, expected = bladder
    X, metadata = matrix(known, "x"), known[["batch", "cancer"]]
    found = {}
    for shrinkage in ("eb-nonparametric", "eb"):
        model = Residualizer("C(batch)", shrinkage=shrinkage, **options)
        residual = model.fit_transform(X, metadata=metadata)
        if "reference" in options:
            found[shrinkage] = model.inverse_transform(residual, metadata=metadata.assign(batch=3))
        else:
            found[shrinkage] = residual + X.mean(axis=0)
    assert_allclose(found["eb-nonparametric"], matrix(expected, name), atol=1e-10)
    assert np.abs(found["eb"] - matrix(expected, name)).max() > 0.01


def plain(gamma, delta, n, within):
    """The sums written out, feature by feature."""
    shifts, ratios = [], []
    for j in range(len(gamma)):
        others = np.arange(len(gamma)) != j
        g, v = gamma[others], delta[others]
        weight = v ** (-n[j] / 2) * np.exp(-(n[j] * (gamma[j] - g) ** 2 + (n[j] - 1) * within[j]) / (2 * v))
        shifts.append(weight @ g / weight.sum())
        ratios.append(weight @ v / weight.sum())
    return shifts, ratios


def test_it_is_the_sum_over_the_other_features_in_parts_of_any_size(monkeypatch):
    rng = np.random.default_rng(0)
    gamma, delta = rng.normal(5.0, 1.0, (2, 40)), rng.gamma(5.0, 0.2, (2, 40))
    n = np.array([np.full(40, 7.0), np.full(40, 20.0)])
    whole = free_posterior(gamma, delta, n)
    for k in range(2):
        shifts, ratios = plain(gamma[k], delta[k], n[k], delta[k])
        assert_allclose(whole[0][k], shifts, rtol=1e-11)
        assert_allclose(whole[1][k], ratios, rtol=1e-11)
    monkeypatch.setattr(free, "_WEIGHTS", 120)
    for part, expected in zip(free_posterior(gamma, delta, n), whole, strict=True):
        assert_allclose(part, expected, rtol=1e-12)


def test_a_feature_far_from_all_others_gets_the_nearest_ones_effect_and_no_nan():
    gamma = np.r_[np.zeros(9), 1000.0][None] + np.linspace(0, 0.1, 10)
    shifts, ratios = free_posterior(gamma, np.ones((1, 10)), np.full((1, 10), 50.0))
    assert np.isfinite(shifts).all()
    assert np.isfinite(ratios).all()
    assert shifts[0, -1] == pytest.approx(gamma[0, 8])


def test_parts_merge_and_later_batches_get_what_a_fit_with_them_gives():
    rng = np.random.default_rng(1)
    site = np.repeat(list("abc"), [60, 50, 40])
    X = rng.normal(size=(150, 30)) * np.array([1.0, 1.5, 0.7])[np.searchsorted(list("abc"), site)][:, None]
    X += rng.normal(size=(3, 30))[np.searchsorted(list("abc"), site)]
    metadata = pd.DataFrame({"site": site})
    options = {"scale": True, "shrinkage": "eb-nonparametric", "check_leakage": False}
    whole = Residualizer("C(site, levels=['a', 'b', 'c'])", **options).fit(X, metadata=metadata)
    parts = [
        Residualizer("C(site, levels=['a', 'b', 'c'])", **options).fit(X[site == s], metadata=metadata[site == s])
        for s in "abc"
    ]
    parts[0].merge(parts[1]).merge(parts[2])
    expected = whole.transform(X, metadata=metadata)
    assert_allclose(parts[0].transform(X, metadata=metadata), expected, atol=1e-11)
    # a later batch whose rows are those of a known one gets what that one has
    b, found = (site == "b"), {}
    for shrinkage in ("eb-nonparametric", "eb"):
        later = Residualizer("site", **{**options, "shrinkage": shrinkage}, on_unknown="mean")
        later.fit(X, metadata=metadata).adapt(X[b], metadata=pd.DataFrame({"site": ["d"] * 50}))
        found[shrinkage] = later.transform(X[b], metadata=pd.DataFrame({"site": ["d"] * 50}))
        assert_allclose(found[shrinkage], later.transform(X[b], metadata=metadata[b]), atol=1e-10)
    assert np.abs(found["eb"] - found["eb-nonparametric"]).max() > 0.01
