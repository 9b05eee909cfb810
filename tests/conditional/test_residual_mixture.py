"""ResidualMixture: what two stages lose and joint estimation finds; invariances, scikit-learn, judging."""

import pickle
import warnings

import numpy as np
import pandas as pd
import pytest
from numpy.testing import assert_allclose
from sklearn.base import clone
from sklearn.linear_model import LinearRegression
from sklearn.metrics import adjusted_rand_score
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.utils.estimator_checks import parametrize_with_checks

import residmix as rm
from residmix.data import penguins
from residmix.errors import DesignWarning

SHIFT = np.array([3.0, -3.0, 2.0])


def two_sites(share, seed, n=2000):
    """Two clusters, two sites, one shift; `share` of cluster 1 at site 1, mirrored at site 0."""
    rng = np.random.default_rng(seed)
    site = rng.integers(0, 2, n)
    cluster = (rng.random(n) < np.where(site == 1, share, 1 - share)).astype(int)
    X = cluster[:, None] * np.array([3.0, 3.0, 0.0]) + site[:, None] * SHIFT + rng.standard_normal((n, 3))
    return X, site.astype(float), cluster


def joint(K=2, **options):
    return rm.ResidualMixture(K, estimation="joint", gating="metadata", random_state=0, **options)


@pytest.mark.filterwarnings("ignore:there is no metadata, so only the means")  # the checks give a target
@pytest.mark.filterwarnings("ignore::residmix.errors.DegenerateComponentWarning")  # of a handful of rows
@parametrize_with_checks(
    [
        rm.ResidualMixture(2, random_state=0),
        rm.ResidualMixture(2, estimation="joint", gating="metadata", random_state=0),
    ]
)
def test_scikit_learn_checks(estimator, check):
    check(estimator)


@pytest.mark.parametrize("share", [0.9, 0.97])
@pytest.mark.parametrize("seed", range(5))
def test_joint_finds_clusters_that_two_stages_lose(share, seed):
    X, site, cluster = two_sites(share, seed)
    model = rm.ResidualMixture(2, estimation="joint", gating="metadata", random_state=seed).fit(X, metadata=site)
    assert adjusted_rand_score(cluster, model.predict(X, metadata=site)) >= 0.9
    # sd of the shift is about 0.06 when a site has 1000 rows, 0.2 with the 30 rows of a cluster at 0.97
    assert np.abs(model.coef_[0] - SHIFT).max() < 0.5
    if seed == 0:  # control: two stages take the difference in proportions for a shift
        two = rm.ResidualMixture(2, random_state=seed).fit(X, metadata=site)
        assert adjusted_rand_score(cluster, two.predict(X, metadata=site)) < 0.2
        assert np.abs(two.coef_[0] - SHIFT).max() > 2


@pytest.mark.parametrize(("clusters", "sites", "seed"), [(2, 5, 0), (3, 2, 1), (3, 5, 2)])
@pytest.mark.slow
def test_nearly_pure_sites_are_told_apart_from_shifts(clusters, sites, seed):
    # each site has 99% of one cluster: a few rows of the others tell where it lies
    rng = np.random.default_rng(seed)
    site = rng.integers(0, sites, 2500)
    cluster = np.where(rng.random(2500) < 0.99, site % clusters, rng.integers(0, clusters, 2500))
    shift = 3 * rng.normal(size=(sites, 3))
    X = 4.24 * np.eye(clusters, 3)[cluster] + shift[site] + rng.normal(size=(2500, 3))
    metadata = np.array([f"site {s}" for s in site])
    model = joint(clusters).fit(X, metadata=metadata)
    assert adjusted_rand_score(cluster, model.predict(X, metadata=metadata)) > 0.95


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.slow
def test_islands_that_share_their_smaller_cluster_are_told_apart_from_species(seed):
    # two of three islands have a species of their own, and it's the larger one there
    table = penguins()
    features = ["bill_length_mm", "bill_depth_mm", "flipper_length_mm", "body_mass_g"]
    model = rm.ResidualMixture(
        3, formula="C(island)", features=features, estimation="joint", gating="metadata", random_state=seed
    ).fit(table)
    assert model.lower_bound_ > -14.5586  # the likeliest maximum known; the next ones have -14.5689 and -14.5887
    assert adjusted_rand_score(table["species"], model.predict(table)) > 0.95


@pytest.mark.filterwarnings("ignore::residmix.errors.EntangledEffectsWarning")  # of 300 rows, one component does
@pytest.mark.parametrize("kind", ["full", "tied", "diag", "spherical"])
@pytest.mark.parametrize("gating", ["constant", "metadata"])
def test_joint_is_never_less_likely_than_two_stages_from_the_same_start(kind, gating):
    for seed in range(3):
        X, site, _ = two_sites(0.8, seed, n=300)
        options = {
            "covariance_type": kind,
            "gating": gating,
            "reg_covar": 0.0,
            "means_init": np.array([[0.0, 0.0, 0.0], [3.0, 3.0, 0.0]]) - X.mean(axis=0),
            "random_state": seed,
        }
        two = rm.ResidualMixture(2, estimation="two-stage", **options).fit(X, metadata=site)
        one = rm.ResidualMixture(2, estimation="joint", **options).fit(X, metadata=site)
        assert one.lower_bound_ >= two.lower_bound_ - 1e-9
        assert np.diff(one.lower_bounds_).min(initial=0) >= -1e-12


def test_without_metadata_it_is_a_gaussian_mixture():
    X, _, _ = two_sites(0.5, 0, n=400)
    start = {"means_init": [[0, 0, 0], [3.0, 3, 0]], "tol": 0, "max_iter": 20}
    mean = X.mean(axis=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        plain = rm.GaussianMixture(2, **start).fit(X)
        start["means_init"] = np.array(start["means_init"]) - mean
        model = rm.ResidualMixture(2, **start).fit(X)
    assert_allclose(model.intercept_, mean, rtol=1e-12)
    assert_allclose(model.means_ + model.intercept_, plain.means_, rtol=1e-7)
    assert_allclose(model.covariances_, plain.covariances_, rtol=1e-6)
    assert_allclose(model.score_samples(X), plain.score_samples(X), rtol=1e-7)
    assert_allclose(model.bic(X), plain.bic(X), rtol=1e-9)


@pytest.mark.parametrize("estimation", ["two-stage", "joint"])
@pytest.mark.slow
def test_attributes_agree_with_the_density_and_with_each_other(estimation):
    X, site, _ = two_sites(0.8, 1, n=500)
    M = np.column_stack([site, np.random.default_rng(0).normal(size=500)])
    model = rm.ResidualMixture(2, estimation=estimation, gating="metadata", random_state=0).fit(X, metadata=M)
    residual = model.residuals(X, metadata=M)
    assert_allclose(residual, X - model.intercept_ - M @ model.coef_, atol=1e-10)
    logits = M @ model.gate_coef_.T + model.gate_intercept_
    prior = np.exp(logits - np.logaddexp.reduce(logits, axis=1, keepdims=True))
    gap = residual[:, None] - model.means_
    squared = np.einsum("nki,kij,nkj->nk", gap, model.precisions_, gap)
    gauss = -0.5 * (squared + 3 * np.log(2 * np.pi) - np.linalg.slogdet(model.precisions_)[1])
    log_joint = np.log(prior) + gauss
    density = np.logaddexp.reduce(log_joint, axis=1)
    assert_allclose(model.score_samples(X, metadata=M), density, rtol=1e-9)
    assert_allclose(model.score(X, metadata=M), model.lower_bound_, rtol=1e-9)
    proba = model.predict_proba(X, metadata=M)
    assert_allclose(proba, np.exp(log_joint - density[:, None]), atol=1e-9)
    assert (model.predict(X, metadata=M) == proba.argmax(axis=1)).all()
    assert_allclose(residual.mean(axis=0), 0, atol=1e-9)
    assert_allclose(model.weights_ @ model.means_, 0, atol=1e-9)
    # 12 covariances, 6 means (the intercept among them), 6 coefficients, 1 + 2 gate parameters
    parameters = 12 + 6 + 6 + 3
    assert_allclose(model.aic(X, metadata=M), -2 * density.sum() + 2 * parameters, rtol=1e-12)
    assert_allclose(model.bic(X, metadata=M), -2 * density.sum() + parameters * np.log(500), rtol=1e-12)
    assert model.icl(X, metadata=M) > model.bic(X, metadata=M)


def test_levels_without_columns_count_as_parameters():
    X, _, _ = two_sites(0.8, 1, n=1500)
    site = pd.DataFrame({"site": [f"s{k:03d}" for k in np.arange(1500) % 250]})
    model = rm.ResidualMixture(2, formula="site", random_state=0).fit(X, metadata=site)
    assert not model.coef_.size  # absorbed
    # weights, means (the intercept among them), covariances, and 249 contrasts of each feature
    K, d = 2, X.shape[1]
    parameters = (K - 1) + K * d + K * d * (d + 1) // 2 + 249 * d
    density = model.score_samples(X, metadata=site)
    assert_allclose(model.bic(X, metadata=site), -2 * density.sum() + parameters * np.log(1500), rtol=1e-12)
    assert_allclose(model.aic(X, metadata=site), -2 * density.sum() + 2 * parameters, rtol=1e-12)


@pytest.mark.filterwarnings("ignore::residmix.errors.ResidmixWarning")
@pytest.mark.parametrize("preserve", [None, "age", "age + tesla"])
def test_levels_that_others_determine_count_no_parameters(preserve):
    rng = np.random.default_rng(2)
    n, d = 1500, 2
    subject = np.r_[np.arange(420), rng.integers(0, 420, n - 420)]
    site = subject % 210  # subjects are nested in sites, sites in field strengths
    frame = pd.DataFrame({"subject": subject, "site": site}).astype(str)
    frame = frame.assign(age=rng.normal(size=n), tesla=site % 2 + 1.5)
    X = rng.normal(size=(n, d))
    model = rm.ResidualMixture(1, formula="site + subject", preserve=preserve).fit(X, metadata=frame)
    removed = pd.get_dummies(frame[["subject", "site"]]).to_numpy(float)
    rank = np.linalg.matrix_rank(removed) - 1  # the intercept is a mean
    assert rank == 419  # where levels less one would be 628
    parameters = d + d * (d + 1) // 2 + rank * d
    density = model.score_samples(X, metadata=frame)
    assert_allclose(model.bic(X, metadata=frame), -2 * density.sum() + parameters * np.log(n), rtol=1e-12)


def test_units_and_origins_dont_matter():
    X, site, _ = two_sites(0.9, 2, n=800)
    model = joint(reg_covar=0.0).fit(X, metadata=site)
    scale, offset = np.array([1e-3, 1.0, 1e3]), np.array([5.0, -1e4, 1e6])
    other = joint(reg_covar=0.0).fit(X * scale + offset, metadata=1e6 + 1e4 * site)
    assert (
        other.predict(X * scale + offset, metadata=1e6 + 1e4 * site) == model.predict(X, metadata=site)
    ).mean() > 0.99
    # two runs stop at slightly different points, within tol of the maximum
    assert_allclose(other.coef_ * 1e4, model.coef_ * scale, rtol=2e-3)


def test_samples_have_the_moments_of_the_model():
    X, site, _ = two_sites(0.9, 3)
    model = joint().fit(X, metadata=site)
    M = np.repeat([0.0, 1.0], 20_000)
    drawn, labels = model.sample(metadata=M)
    assert drawn.shape == (40_000, 3)
    for value in (0.0, 1.0):
        at = site == value
        # the training mean at a site has standard error 2 / sqrt(1000)
        assert_allclose(drawn[value == M].mean(axis=0), X[at].mean(axis=0), atol=0.25)
        prior = np.mean(labels[value == M] == 1)
        assert_allclose(prior, model.predict_proba(X, metadata=site)[at, 1].mean(), atol=0.02)


@pytest.mark.slow
def test_one_table_in_every_scikit_learn_tool():
    X, site, cluster = two_sites(0.9, 4, n=600)
    table = pd.DataFrame(X, columns=["a", "b", "c"]).assign(site=np.where(site == 1, "north", "south"))
    model = joint(formula="C(site)").fit(table)
    arrays = joint().fit(X, metadata=1 - site)  # "south" is the later level
    assert_allclose(model.lower_bound_, arrays.lower_bound_, rtol=1e-6)
    assert adjusted_rand_score(cluster, model.predict(table)) > 0.9
    scores = cross_val_score(joint(formula="C(site)"), table, cv=2)
    assert np.isfinite(scores).all()
    search = GridSearchCV(joint(formula="C(site)"), {"n_components": [1, 2]}, cv=2).fit(table)
    assert search.best_params_ == {"n_components": 2}
    again = pickle.loads(pickle.dumps(model))
    assert (again.score_samples(table) == model.score_samples(table)).all()
    assert clone(model).get_params() == model.get_params()


def test_saved_and_loaded_it_predicts_the_same_bits(tmp_path):
    X, site, _ = two_sites(0.9, 5, n=400)
    model = joint().fit(X, metadata=site)
    rm.save(model, tmp_path / "model.safetensors")
    again = rm.load(tmp_path / "model.safetensors")
    assert (again.score_samples(X, metadata=site) == model.score_samples(X, metadata=site)).all()
    assert (again.residuals(X, metadata=site) == model.residuals(X, metadata=site)).all()


@pytest.mark.slow
def test_threads_and_repetition_give_the_same_bits(monkeypatch):
    X, site, _ = two_sites(0.9, 6)
    found = []
    for threads in ("1", "2"):
        monkeypatch.setenv("RESIDMIX_NUM_THREADS", threads)
        found.append(joint().fit(X, metadata=site).coef_)
    assert (found[0] == found[1]).all()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"n_components": 3}, "means of shape"),
        ({"covariance_type": "diag"}, "covariances of shape"),
        ({"gating": "metadata"}, "no gate"),
    ],
    ids=str,
)
def test_a_warm_start_of_another_model_is_refused(changed, message):
    X, site, _ = two_sites(0.7, 0, n=300)
    model = rm.ResidualMixture(2, warm_start=True, random_state=0).fit(X, metadata=site)
    with pytest.raises(ValueError, match=f"warm_start continues .*{message}.*clone"):
        model.set_params(**changed).fit(X, metadata=site)


def test_two_stages_that_go_on_from_a_joint_fit_have_the_coefficients_of_least_squares():
    X, site, _ = two_sites(0.8, 0, n=300)
    model = rm.ResidualMixture(2, estimation="joint", warm_start=True, random_state=0).fit(X, metadata=site)
    model.set_params(estimation="two-stage").fit(X, metadata=site)
    assert_allclose(model.coef_, rm.Residualizer().fit(X, metadata=site).coef_, rtol=1e-12)


def test_collinear_metadata_is_no_obstacle():
    X, site, cluster = two_sites(0.9, 7, n=800)
    with pytest.warns(rm.errors.CollinearityWarning):
        model = joint().fit(X, metadata=np.column_stack([site, 1 - site]))
    labels = model.predict(X, metadata=np.column_stack([site, 1 - site]))
    assert adjusted_rand_score(cluster, labels) > 0.9
    assert model._n_parameters() == joint().fit(X, metadata=site)._n_parameters()


def test_weights_count_rows():
    X, site, _ = two_sites(0.9, 8, n=300)
    weight = np.where(np.arange(300) % 3, 1.0, 2.0)
    index = np.repeat(np.arange(300), weight.astype(int))
    options = {"means_init": [[-1.5, -1.5, 0], [1.5, 1.5, 0]], "reg_covar": 0.0, "tol": 1e-9}
    one = joint(**options).fit(X, metadata=site, sample_weight=weight)
    two = joint(**options).fit(X[index], metadata=site[index])
    # both stop within 1e-9 of the same maximum
    assert_allclose(one.lower_bound_, two.lower_bound_, rtol=1e-7)
    assert_allclose(one.coef_, two.coef_, atol=1e-3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"estimation": "jont"}, "'estimation' parameter of ResidualMixture must be a str among .*'joint'"),
        ({"gating": 3}, "'gating' parameter .* must be an instance of 'str'"),
        ({"n_components": 0}, "'n_components' parameter .* range \\[1, inf\\)"),
        ({"tol": -1.0}, "'tol' parameter .* range \\[0.0, inf\\)"),
        ({"means_init": np.zeros((3, 3))}, "means"),
    ],
)
def test_wrong_options_are_one_clear_error(change, message):
    X, site, _ = two_sites(0.5, 0, n=50)
    with pytest.raises(ValueError, match=message):
        rm.ResidualMixture(2).set_params(**change).fit(X, metadata=site)


def test_wrong_data_is_one_clear_error():
    X, site, _ = two_sites(0.5, 0, n=50)
    with pytest.raises(ValueError, match="NaN"):
        rm.ResidualMixture(2).fit(np.where(X > 3, np.nan, X), metadata=site)
    with pytest.raises(ValueError, match="rows"):
        rm.ResidualMixture(2).fit(X, metadata=site[:-1])
    model = rm.ResidualMixture(2, random_state=0).fit(X, metadata=site)
    with pytest.raises(ValueError, match="metadata is needed"):
        model.predict(X)
    with pytest.raises(ValueError, match="metadata"):
        model.sample()
    with pytest.warns(DesignWarning), pytest.raises(ValueError, match="n_components"):
        rm.ResidualMixture(60).fit(X, metadata=np.random.default_rng(0).normal(size=(50, 30)))


def test_preserved_effects_stay_in_two_stages_and_are_refused_by_joint_estimation():
    rng = np.random.default_rng(0)
    age = rng.normal(size=500)
    site = (age + rng.normal(size=500) > 0).astype(float)
    X = np.column_stack([2 * site + 3 * age, site - age]) + 0.1 * rng.normal(size=(500, 2))
    table = pd.DataFrame(X, columns=["a", "b"]).assign(site=site, age=age)
    options = {"formula": "site", "preserve": "age", "features": ["a", "b"], "random_state": 0}
    model = rm.ResidualMixture(2, **options).fit(table)
    # standard error of an effect of site: 0.1 * 2.4 / sqrt(500) = 0.011
    assert_allclose(model.coef_, [[2, 1]], atol=0.05)
    assert_allclose(np.polyfit(age, model.residuals(table), 1)[0], [3, -1], atol=0.05)
    # control: without preserve the age's share goes to the site
    assert model.set_params(preserve=None).fit(table).coef_[0, 0] > 3
    with pytest.raises(ValueError, match="preserve='age' needs estimation='two-stage'"):
        rm.ResidualMixture(2, estimation="joint", **options).fit(table)


def test_as_many_rows_are_drawn_as_there_are_metadata():
    X, site, _ = two_sites(0.9, 3, n=100)
    model = rm.ResidualMixture(2, random_state=0).fit(X, metadata=site)
    assert model.sample(5, metadata=site[:5])[0].shape == (5, 3)
    with pytest.raises(ValueError, match="n_samples=7, but one row is drawn for each of the 5 rows"):
        model.sample(7, metadata=site[:5])


@pytest.mark.parametrize("gating", ["constant", "metadata"])
@pytest.mark.parametrize("estimation", ["two-stage", "joint"])
@pytest.mark.slow
def test_acceleration_takes_fewer_steps_to_the_same_maximum(estimation, gating):
    rng = np.random.default_rng(2)
    n = 1500
    site = rng.integers(0, 2, n)
    cluster = (rng.random(n) < 0.3 + 0.4 * site).astype(int)
    X = 2.0 * cluster[:, None] + site[:, None] * [1.0, -1.0] + rng.standard_normal((n, 2))  # overlapping: EM is slow
    options = {
        "estimation": estimation,
        "gating": gating,
        "means_init": [[-1.0, -1.0], [1.0, 1.0]],
        "reg_covar": 0.0,
        "tol": 1e-9,
        "max_iter": 5000,
    }
    plain, quick = (
        rm.ResidualMixture(2, accelerate=accelerate, **options).fit(X, metadata=site.astype(float))
        for accelerate in (False, True)
    )
    # each stops where all further iterations would gain less than 100 tol
    assert abs(plain.lower_bound_ - quick.lower_bound_) < 1e-7
    assert np.diff(quick.lower_bounds_).min() >= 0
    assert quick.n_iter_ < 0.6 * plain.n_iter_
    assert_allclose(quick.means_, plain.means_, atol=0.01)
    assert_allclose(quick.coef_, plain.coef_, atol=0.01)


def test_zero_tolerance_stands_for_textbook_iterations():
    X, site, _ = two_sites(0.8, 1, n=300)
    options = {"tol": 0, "max_iter": 12, "means_init": [[-1.5, -1.5, 0], [1.5, 1.5, 0]]}
    one, two = (joint(accelerate=value, **options).fit(X, metadata=site) for value in (True, False))
    assert one.lower_bounds_ == two.lower_bounds_


def test_verbose_tells_each_run(capsys):
    X, site, _ = two_sites(0.9, 3, n=200)
    options = {"means_init": [[-1.5, -1.5, 0], [1.5, 1.5, 0]]}
    model = joint(verbose=2, verbose_interval=1, **options).fit(X, metadata=site)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "Initialization 0" and lines[-1].startswith("Initialization converged")
    assert f"lower bound {model.lower_bound_:.5f}" in lines[-1]
    assert "  Iteration 1\t time lapse" in lines[1]
    joint(**options).fit(X, metadata=site)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("missing", [slice(None), slice(0, 1), 5], ids=["all", "a feature", "a row of weight 0"])
@pytest.mark.parametrize("options", [{}, {"estimation": "joint", "gating": "metadata"}], ids=str)
def test_missing_features_are_refused_before_anything_is_computed_from_them(missing, options, tmp_path):
    rng = np.random.default_rng(0)
    X, m = rng.normal(size=(300, 2)), rng.normal(size=300)
    weight = np.ones(300)
    weight[5] = 0
    if missing == 5:
        X[5, 1] = np.nan
    else:
        X[:, missing] = np.nan
    table = pd.DataFrame(X, columns=["x0", "x1"]).assign(m=m, w=weight)
    table.to_parquet(tmp_path / "x.parquet")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ValueError, match=r"X contains NaN: row \d, column 'x\d'"):
            rm.ResidualMixture(2, **options).fit(X, metadata=m, sample_weight=weight)
        for source in (table, rm.scan(tmp_path / "x.parquet")):
            with pytest.raises(ValueError, match=r"X contains NaN: row \d, column 'x\d'"):
                rm.ResidualMixture(2, formula="m", features=["x0", "x1"], **options).fit(source, sample_weight="w")


def test_as_a_step_of_a_pipeline_it_hands_on_its_residuals():
    table, features = penguins(), ["bill_length_mm", "body_mass_g"]
    model = rm.ResidualMixture(2, formula="C(sex)", features=features, random_state=0)
    left = model.fit_transform(table)
    np.testing.assert_array_equal(left, model.residuals(table))
    np.testing.assert_array_equal(left, model.transform(table))
    male = (table["sex"] == "male").to_numpy()
    assert np.abs(left[male].mean(axis=0) - left[~male].mean(axis=0)).max() < 1e-9 * table[features].std().max()
    step = make_pipeline(clone(model), LinearRegression())
    step.fit(table, male)
    assert step.score(table, male) < 1e-9  # nothing linear is left of sex; the control sees it
    assert LinearRegression().fit(table[features], male).score(table[features], male) > 0.15
    framed = model.set_output(transform="pandas").transform(table)
    assert list(framed) == features and list(framed.index) == list(table.index)
    with pytest.raises(ValueError, match="set_output"):
        model.transform(table, out=np.empty_like(left))


def test_transform_takes_metadata_apart_and_arrays_to_write_to():
    X, site, _ = two_sites(0.7, 0, n=300)
    model = rm.ResidualMixture(2, random_state=0)
    left = model.fit_transform(X.astype(np.float32), metadata=site)
    assert left.dtype == np.float32
    out = np.empty_like(X)
    assert model.fit(X, metadata=site).transform(X, metadata=site, out=out) is out
    np.testing.assert_array_equal(out, model.residuals(X, metadata=site))
    np.testing.assert_allclose(left, out, atol=1e-4)
