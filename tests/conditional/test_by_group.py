"""Covariances by level: the density is the formula's, the fit a maximum, levels without rows enough are named."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from numpy.testing import assert_allclose
from scipy.stats import multivariate_normal

import residmix as rm
from residmix.conditional.by_group import groups_for
from residmix.conditional.given import components_given
from residmix.mixture.given.by_group import averaged
from residmix.mixture.iteration.groups import with_groups
from residmix.mixture.iteration.step import MixtureEM
from residmix.mixture.iteration.vector import pack, unpack
from residmix.mixture.params import make_params, params_as
from residmix.rows.rows import ArrayRows

D = 2


def sites(seed=0, n=600, levels=3):
    """Two clusters at each site, of which each has a covariance of its own."""
    rng = np.random.default_rng(seed)
    site, cluster = rng.integers(0, levels, n), (rng.random(n) < 0.4).astype(int)
    roots = 0.6 * rng.normal(size=(levels, 2, D, D)) + np.eye(D)
    shift = rng.normal(size=(levels, D))
    X = np.array([[0.0, 0.0], [6.0, 4.0]])[cluster] + shift[site]
    X += np.einsum("nij,nj->ni", roots[site, cluster], rng.normal(size=(n, D)))
    return pd.DataFrame(X, columns=["x", "y"]).assign(site=np.array(list("abcdef"))[site]), cluster, roots


def by_site(K=2, **options):
    options = {"formula": "C(site)", "covariance_by": "site", "random_state": 0, "estimation": "joint"} | options
    return rm.ResidualMixture(K, **options)


def log_density(model, table):
    """Return log p(x | m) by scipy, from the public attributes."""
    given = components_given(model, table)
    X, terms = table[["x", "y"]].to_numpy(), np.empty((len(table), 2))
    for g, k in np.ndindex(*given.covariances.shape[:2]):
        own = given.group == g
        terms[own, k] = multivariate_normal(np.zeros(2), given.covariances[g, k]).logpdf(X[own] - given.means[own, k])
    return np.logaddexp.reduce(terms + given.log_weights, axis=1)


@pytest.mark.filterwarnings("ignore:labels can't be matched")
@pytest.mark.parametrize(
    "options", [{}, {"gating": "metadata"}, {"effects": "by-component"}, {"covariance_type": "diag"}]
)
def test_the_density_is_the_formulas(options):
    table, _, _ = sites(n=150)
    model = by_site(**options).fit(table)
    assert model.groups_ == [["a"], ["b"], ["c"]]
    assert_allclose(model.score_samples(table), log_density(model, table), rtol=1e-9)
    for row in (table[:1], table[table.site == "c"][:1]):
        assert_allclose(model.at(row).score_samples(row[["x", "y"]]), model.score_samples(row), rtol=1e-9)


def test_one_component_is_a_normal_at_each_level():
    table, _, _ = sites()
    model = by_site(1).fit(table)
    for (level, rows), own in zip(table.groupby("site"), model.group_covariances_, strict=True):
        X = rows[["x", "y"]]
        assert_allclose(own[0], np.cov(X.T, bias=True) + 1e-6 * np.eye(D), rtol=1e-9)
        assert_allclose(model.at(pd.DataFrame({"site": [level]})).means_[0], X.mean(), rtol=1e-9)
    # means and covariances of three normals
    total = model._n_parameters()
    assert total == 3 * (2 + 3)


@pytest.mark.parametrize("effects", ["shared", "by-component"])
@pytest.mark.parametrize("kind", ["full", "tied", "VEE", "spherical"])
def test_em_never_falls_and_ends_at_a_maximum(effects, kind):
    table, _, _ = sites(3)
    design = np.column_stack([table.site == "b", table.site == "c"]) - 1 / 3
    rows = ArrayRows(table[["x", "y"]].to_numpy(), design.astype(float), (pd.factorize(table.site, sort=True)[0],))
    start = make_params(
        np.array([0.5, 0.5]), np.array([[0.0, 1.0], [4.0, 4.0]]), np.tile(4 * np.eye(D), (2, 1, 1)), "full"
    )
    start = params_as(start, kind)
    coef = np.zeros((2, D)) if effects == "shared" else np.zeros((2, 2, D))
    params = with_groups(replace(start, coef=coef), np.full((3, 2), 1 / 6), np.arange(3))
    em, values = MixtureEM(rows, 0.0), []
    for _ in range(150):
        value, params = em(params)
        values.append(value)
    assert np.diff(values).min() > -1e-12 and values[-1] - values[0] > 0.1
    at = pack(params, params)
    again = unpack(at, params)
    assert_allclose(again.by_group.covariances, params.by_group.covariances, rtol=1e-9)
    assert_allclose(em.evaluate(again), em.evaluate(params), rtol=1e-12)
    # weights have one direction too many; a line of the family's vectors is one of its parameters, if not curved
    slopes = []
    for j in range(len(at)):
        step = np.zeros(len(at))
        step[j] = 1e-4
        slopes.append((em.evaluate(unpack(at + step, params)) - em.evaluate(unpack(at - step, params))) / 2e-4)
    assert np.abs(slopes).max() < 1e-5


@pytest.mark.slow
def test_it_finds_covariances_that_one_of_all_levels_averages_away():
    table, _, roots = sites(1, n=2500)
    model, alike = by_site().fit(table), by_site(covariance_by=None).fit(table)
    order = np.argsort(-model.weights_)
    true = roots @ np.swapaxes(roots, -1, -2)

    def off(found):
        return (np.linalg.norm(found - true, axis=(2, 3)) / np.linalg.norm(true, axis=(2, 3))).max()

    assert off(model.group_covariances_[:, order]) < 0.2
    assert off(alike.covariances_[np.argsort(-alike.weights_)]) > 0.8
    assert model.bic(table) < alike.bic(table) - 500
    assert_allclose(
        model.covariances_, averaged(model.group_covariances_, model._params.by_group.share, ("K", "d", "d"))
    )
    # p values, scores and draws are those of each level's own mixture
    assert abs((model.outlier_pvalues(table) < 0.05).mean() - 0.05) < 0.012
    for level, rows in table.groupby("site"):
        assert_allclose(model.z_scores(rows).std(axis=0), 1.0, atol=0.05)
        drawn, _ = model.sample(metadata=rows)
        assert_allclose(np.cov(drawn.T), np.cov(rows[["x", "y"]].T), atol=2.0, err_msg=level)


def test_equal_covariances_lose_nothing_but_parameters():
    rng = np.random.default_rng(0)
    site = rng.integers(0, 3, 900)
    X = rng.normal(size=(900, 2)) + 5 * (rng.random((900, 1)) < 0.5)
    table = pd.DataFrame(X, columns=["x", "y"]).assign(site=np.array(list("abc"))[site])
    model, alike = by_site().fit(table), by_site(covariance_by=None).fit(table)
    assert model.lower_bound_ >= alike.lower_bound_
    assert model.bic(table) > alike.bic(table) + 50


@pytest.mark.slow
def test_levels_with_few_rows_of_a_component_share_and_are_named():
    table, _, _ = sites(2, n=900)
    table.loc[table.index[:20], "site"] = "d"
    table.loc[table.index[20:40], "site"] = "e"
    model = by_site().fit(table)
    assert model.groups_ == [["a"], ["b"], ["c"], ["d", "e"]]
    (told,) = [note for note in model.notes_ if note["kind"] == "covariances-pooled"]
    assert told["figures"] == {"levels": ["d", "e"], "rows_needed": 6.0}
    assert by_site().fit(table[table.site < "d"]).notes_ == []


def test_groups_are_made_of_the_smallest_levels_until_they_have_rows():
    held = np.array([[50.0, 40.0], [3.0, 30.0], [0.0, 9.0], [60.0, 8.0]])
    # together 3 rows of the first component: the next smallest joins
    assert groups_for(held, 6.0).tolist() == [0, 1, 1, 1]
    assert groups_for(held[:1], 100.0).tolist() == [0]
    assert groups_for(held, 1e9).tolist() == [0, 0, 0, 0]


@pytest.mark.slow
def test_choice_counts_the_covariances_of_all_groups():
    table, _, _ = sites(n=400)
    model = by_site([1, 2], covariance_type=["VVV", "EEE"]).fit(table)
    found = model.selection_
    assert model.n_components_ == 2 and model.covariance_type_ == "VVV"
    for i, (kind, K) in enumerate(zip(found["covariance_type"], found["n_components"], strict=True)):
        covariances = {"VVV": 3 * K, "EEE": 3}[kind]
        assert found["n_parameters"][i] == 3 * covariances + 2 * K + K - 1 + 2 * 2
    assert_allclose(model.bic(table), min(found["bic"]), rtol=1e-9)


def test_models_are_kept_in_files(tmp_path):
    table, _, _ = sites(n=300)
    model = by_site().fit(table)
    rm.save(model, tmp_path / "model.safetensors")
    again = rm.load(tmp_path / "model.safetensors")
    assert_allclose(again.predict_proba(table), model.predict_proba(table))
    assert again.groups_ == model.groups_


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"noise": True}, "noise=True"),
        ({"distribution": "t"}, 'distribution="t"'),
        ({"covariance_by": "x"}, "covariance_by"),
        ({"formula": None}, "formula=None"),
        ({"on_unknown": "mean"}, "on_unknown"),
        ({"covariance_type": "factor"}, "factor"),
        ({"formula": "C(site) + age", "covariance_by": "age"}, "numeric"),
    ],
)
def test_what_does_not_go_together_is_refused(options, said):
    table, _, _ = sites(n=60)
    table["age"] = np.arange(60.0) ** 2
    with pytest.raises(ValueError, match=said):
        by_site(**options).fit(table)


@pytest.mark.slow
def test_standard_errors_are_refused():
    table, _, _ = sites(n=200)
    model = by_site().fit(table)
    with pytest.raises(ValueError, match="bootstrap"):
        model.standard_errors(table)
    with pytest.raises(AttributeError, match="bootstrap"):
        model.standard_errors_  # noqa: B018
