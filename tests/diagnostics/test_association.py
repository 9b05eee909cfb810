"""association(): each measure against an independent reference; in-sample and held-out numbers stay apart."""

import warnings

import numpy as np
import pandas as pd
import pytest
import statsmodels.formula.api as smf
from sklearn.metrics import roc_auc_score

import residmix as rm
from residmix.diagnostics import probes
from residmix.diagnostics.association import association
from residmix.diagnostics.dependence import (
    Variable,
    counts_dependence,
    share_interval,
)
from residmix.diagnostics.distances import distance_correlation, distance_dependence
from residmix.errors import BelowChanceWarning, LeakageWarning, RareLevelWarning

FAST = {"n_permutations": 39, "max_rows": 400, "n_splits": 3}


def sites(n=400, seed=0):
    rng = np.random.default_rng(seed)
    metadata = pd.DataFrame({"site": rng.choice(["a", "b", "c"], n), "age": rng.normal(50, 10, n)})
    X = rng.normal(size=(n, 4))
    X[:, 0] += 1.5 * (metadata.site == "b")
    X[:, 1] += metadata.age / 10
    return X, metadata


def test_shares_of_variance_are_those_of_nested_regressions():
    X, metadata = sites()
    found = association(X, metadata, **FAST)
    table = metadata.assign(x0=X[:, 0])
    full = smf.ols("x0 ~ site + age", table).fit()
    assert found.where(measure="r2", metadata="(all)", feature="x0")["in_sample"][0] == pytest.approx(full.rsquared)
    for term, rest in (("site", "age"), ("age", "site")):
        without = smf.ols(f"x0 ~ {rest}", table).fit()
        row = found.where(measure="r2", metadata=term, feature="x0")
        assert row["in_sample"][0] == pytest.approx((without.ssr - full.ssr) / without.ssr, rel=1e-9)
        assert row["in_sample_p"][0] == pytest.approx(full.compare_f_test(without)[1], rel=1e-6, abs=1e-300)


def test_held_out_shares_are_those_of_predicting_each_fold_from_the_others():
    X, metadata = sites()
    found = association(X, metadata, **FAST, random_state=3)
    rng = np.random.default_rng(3)
    folds = rng.permutation(len(X)) % 3
    design = np.column_stack([np.ones(len(X)), pd.get_dummies(metadata.site).iloc[:, 1:], metadata.age]).astype(float)
    wrong, spread = np.zeros(4), np.zeros(4)
    for fold in range(3):
        train, test = folds != fold, folds == fold
        coef = np.linalg.lstsq(design[train], X[train], rcond=None)[0]
        wrong += np.square(X[test] - design[test] @ coef).sum(axis=0)
        spread += np.square(X[test] - X[train].mean(axis=0)).sum(axis=0)
    np.testing.assert_allclose(found.where(measure="r2", metadata="(all)")["held_out"], 1 - wrong / spread, atol=1e-9)


def test_intervals_of_r2_cover_the_truth_as_often_as_they_say():
    rng = np.random.default_rng(0)
    n, truth = 60, 0.3
    z = rng.normal(size=n)
    z = (z - z.mean()) / z.std()
    noise = rng.normal(size=(n, 2000))
    x = np.sqrt(truth / (1 - truth)) * z[:, None] + noise
    x -= x.mean(axis=0)
    share = (z @ x) ** 2 / n / np.square(x).sum(axis=0)
    low, high = share_interval(share, np.ones(2000), np.full(2000, n - 2.0), 0.9)
    # 2000 draws: the standard error of the coverage is 0.007; the scale's n is a convention, worth another 0.01.
    assert np.mean((low <= truth) & (truth <= high)) == pytest.approx(0.9, abs=0.03)
    assert np.mean(high < truth) == pytest.approx(0.05, abs=0.03)


def written_out(x, y):
    """The same statistic without U-centring: Huo and Szekely (2016), Technometrics 58:435, as sums of distances."""
    a, b = (np.linalg.norm(v[:, None] - v[None], axis=2) for v in (x.reshape(len(x), -1), y.reshape(len(y), -1)))
    n = len(a)

    def covariance(a, b):
        rows = a.sum(axis=0) @ b.sum(axis=0)
        return (a * b).sum() - 2 * rows / (n - 2) + a.sum() * b.sum() / ((n - 1) * (n - 2))

    return covariance(a, b) / np.sqrt(covariance(a, a) * covariance(b, b))


def test_distance_correlation_is_the_published_one_and_sees_what_r2_does_not():
    rng = np.random.default_rng(0)
    z = rng.normal(size=150)
    x = np.column_stack([z**2 + 0.1 * rng.normal(size=150), rng.normal(size=150)])
    codes = rng.integers(0, 3, 150)
    variables = [Variable("z", z), Variable("code", codes.astype(float), ("a", "b", "c"))]
    found, p = distance_dependence([x, x[:, :1], x[:, 1:]], variables, 99, rng)
    scaled = (x - x.mean(axis=0)) / x.std(axis=0)
    onehot = np.eye(3)[codes]  # distances between corners are 0 or sqrt 2: the discrete metric but for a factor
    for g, group in enumerate((scaled, scaled[:, :1], scaled[:, 1:])):
        assert found[g, 0] == pytest.approx(written_out(group, z), abs=1e-10)
        assert found[g, 1] == pytest.approx(written_out(group, onehot), abs=1e-10)
    assert distance_correlation(x, z[:, None]) == pytest.approx(written_out(x, z), abs=1e-10)
    assert distance_correlation(x, np.ones((150, 1))) == 0
    assert abs(np.corrcoef(x[:, 0], z)[0, 1]) < 0.2 and found[1, 0] > 0.2
    assert p[1, 0] == 0.01 and p[2, 0] > 0.05 and p[2, 1] > 0.05


def test_permutation_p_values_are_uniform_without_dependence():
    rng = np.random.default_rng(1)
    p = []
    for _ in range(60):
        z = Variable("z", rng.normal(size=40))
        p.append(distance_dependence([rng.normal(size=(40, 1))], [z], 39, rng)[1][0, 0])
    # Under the null P(p <= 0.25) = 0.25; 60 draws have a standard error of 0.056.
    assert abs(np.mean(np.array(p) <= 0.25) - 0.25) < 0.17


def test_a_probes_area_under_the_curve_is_scikit_learns():
    rng = np.random.default_rng(0)
    target = rng.integers(0, 3, 200)
    scores = rng.normal(size=(200, 3)) + np.eye(3)[target]
    scores = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    ours = probes.Ranks(scores, np.arange(3), target).score(target)
    assert ours == pytest.approx(roc_auc_score(target, scores, multi_class="ovr"), rel=1e-12)


def test_what_only_changes_the_spread_is_seen_by_the_nonlinear_probe_only():
    rng = np.random.default_rng(0)
    site = np.repeat(["a", "b"], 300)
    X = rng.normal(size=(600, 3)) * np.where(site == "a", 1, 3)[:, None]
    found = association(X, pd.DataFrame({"site": site}), n_splits=3, n_permutations=99, max_rows=600)
    linear, forest = found.where(measure="linear_probe"), found.where(measure="nonlinear_probe")
    assert abs(linear["held_out"][0] - 0.5) < 0.08
    assert forest["held_out"][0] > 0.8 and forest["held_out_p"][0] == 0.01
    low, high = forest["held_out_chance_low"][0], forest["held_out_chance_high"][0]
    assert low < 0.5 < high < 0.6


@pytest.mark.slow
def test_after_an_estimator_nothing_linear_is_left_held_out():
    X, metadata = sites()
    found = association(X, metadata, after=rm.Residualizer("site + age"), **FAST)
    before, after = (found.where(stage=stage, measure="r2", metadata="(all)") for stage in ("before", "after"))
    assert max(before["in_sample"]) > 0.3 and max(before["held_out"]) > 0.3
    assert max(after["in_sample"]) < 1e-12 and max(after["held_out"]) < 0.03
    for name in ("site", "age"):
        probe = found.where(stage="after", measure="linear_probe", metadata=name)
        assert found.where(stage="before", measure="linear_probe", metadata=name)["held_out_p"][0] == 1 / 40
        assert probe["held_out_p"][0] > 1 / 40


@pytest.mark.slow
def test_in_sample_residuals_that_score_below_chance_are_warned_of_and_an_estimator_is_not():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(90, 40))
    metadata = pd.DataFrame({"site": np.tile(["a", "b", "c"], 30)})
    residual = rm.Residualizer("site").fit_transform(X, metadata=metadata)
    with pytest.warns(BelowChanceWarning, match=r"linear probe predicts 'site' after with 0\.\d+, below chance"):
        association(X, metadata, after=residual, n_permutations=99, max_rows=90)
    with warnings.catch_warnings():
        warnings.simplefilter("error", BelowChanceWarning)
        association(X, metadata, after=rm.Residualizer("site"), n_permutations=99, max_rows=90)


def test_metadata_that_residuals_of_rounded_features_give_back_are_warned_of():
    rng = np.random.default_rng(0)
    metadata = pd.DataFrame({"age": rng.normal(size=600)})
    X = np.round(rng.normal(size=(600, 3)) * 2) / 2 + 0.0
    metadata["group"] = rng.choice(["f", "m"], 600)
    residual = X - np.where(metadata.group == "f", 0.11, -0.11)[:, None]
    with pytest.warns(
        LeakageWarning,
        match=r"'group' is easier to predict after than before.*features with repeated values: x0, x1, x2",
    ):
        association(X, metadata, formula="group", after=residual, n_permutations=99, max_rows=600, n_splits=3)


def test_components_that_encode_a_site_are_told_from_those_that_do_not():
    X, metadata = sites()
    code = metadata.site.map({"a": 0, "b": 1, "c": 2}).to_numpy()
    encoding = association(X, metadata, components=code, **FAST)
    information = encoding.where(measure="component_information", metadata="site")
    assert information["in_sample"][0] == pytest.approx(1) and information["in_sample_p"][0] == 1 / 40
    single = encoding.where(measure="component_v", metadata="site")
    assert single["feature"] == ["component 0", "component 1", "component 2"]
    np.testing.assert_allclose(single["in_sample"], 1)
    chance = association(X, metadata, components=np.random.default_rng(5).integers(0, 3, len(X)), **FAST)
    row = chance.where(measure="component_information", metadata="site")
    assert abs(row["in_sample"][0]) < 0.02 and row["in_sample_p"][0] > 0.05


def test_cramers_v_is_that_of_the_table_of_counts():
    from scipy.stats.contingency import association as of_table

    rng = np.random.default_rng(0)
    components, codes = rng.integers(0, 3, 200), rng.integers(0, 4, 200)
    values, _ = counts_dependence(components, Variable("v", codes.astype(float), tuple("abcd")), 19, rng)
    for k in range(3):
        table = np.array([[np.sum((components == k) == own) for own in (True, False)]])
        table = np.array(
            [[np.sum(((components == k) == own) & (codes == level)) for level in range(4)] for own in (1, 0)]
        )
        assert values[1 + k] == pytest.approx(of_table(table, method="cramer"), rel=1e-10)


def test_a_mixture_as_after_brings_its_components():
    X, metadata = sites(200)
    model = rm.ResidualMixture(2, formula="site + age", random_state=0).fit(X, metadata=metadata)
    found = association(X, metadata, after=model, **FAST)
    assert {"component 0", "component 1"} == set(found.where(measure="component_v")["feature"])


def test_in_sample_and_held_out_numbers_never_share_a_column():
    X, metadata = sites(200)
    found = association(
        X, metadata, after=rm.Residualizer("site + age"), components=np.arange(200) % 2, **FAST
    ).to_frame()
    probes_only = found[found.measure.str.contains("probe")]
    assert probes_only.filter(like="in_sample").isna().all(axis=None) and probes_only.held_out.notna().all()
    counted = found[found.measure.str.contains("component")]
    assert counted.filter(like="held_out").isna().all(axis=None) and counted.in_sample.notna().all()
    shares = found[found.measure == "r2"]
    assert shares.in_sample.notna().all() and shares.held_out.notna().all()


def test_one_table_gives_what_arrays_give():
    X, metadata = sites(200)
    table = metadata.assign(**{f"x{j}": X[:, j] for j in range(4)})
    apart = association(X, metadata, formula="site + age", **FAST)
    joined = association(table, formula="site + age", **FAST)
    assert joined.to_frame().equals(apart.to_frame())


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.slow
def test_a_pipeline_gets_the_metadata_that_its_steps_ask_for(named):
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    X, metadata = sites(200)
    given = metadata if named else metadata[["age"]].to_numpy()
    alone = association(X, given, after=rm.Residualizer("site + age" if named else None), **FAST)
    for steps in ([rm.Residualizer("site + age" if named else None)], [StandardScaler(), rm.Residualizer()]):
        joined = association(X, given, after=make_pipeline(*steps), **FAST)
        # scaling changes no share of variance, but folds have scales of their own
        for column in ("in_sample", "held_out")[: 3 - len(steps)]:
            found, right = (t.where(stage="after", measure="r2")[column] for t in (joined, alone))
            np.testing.assert_allclose(found, right, atol=1e-9)
    # steps that ask for none get none
    association(X, given, after=make_pipeline(StandardScaler()), **FAST)


def test_gaps_of_probes_are_filled_from_rows_that_the_learner_may_see(monkeypatch):
    seen = []

    class Learner:
        def fit(self, X, y):
            seen.append(X)
            return self

        def predict(self, X):
            seen.append(X)
            return np.zeros(len(X))

    monkeypatch.setattr(probes, "learner_of", lambda *settings: Learner())
    rng = np.random.default_rng(0)
    folds = np.arange(40) % 2
    X = rng.normal(size=(40, 3)) + 100 * folds[:, None]  # a mean over all rows would tell of the other fold
    X[rng.random(X.shape) < 0.2] = np.nan
    probes.probe("linear", lambda fold: X, Variable("age", rng.normal(size=40)), folds, 19, rng, 0)
    for fold, (train, test) in enumerate(zip(seen[::2], seen[1::2], strict=True)):
        fill = np.nanmean(X[folds != fold], axis=0)
        for found, rows in ((train, X[folds != fold]), (test, X[folds == fold])):
            np.testing.assert_allclose(found, np.where(np.isnan(rows), fill, rows), rtol=1e-12)


def test_gaps_are_left_out_where_they_are():
    X, metadata = sites(200)
    X[5, 0] = np.nan
    metadata.loc[7, "site"] = None
    with pytest.raises(ValueError, match="'site' has 1 missing value"):
        association(X, metadata, **FAST)
    found = association(X, metadata, missing="mean", **FAST)
    assert found.where(measure="linear_probe", metadata="site")["n"] == [199]
    assert np.isfinite(found.where(measure="r2")["in_sample"]).all()


def test_the_same_seed_gives_the_same_table_and_the_table_prints():
    X, metadata = sites(150)
    one, two = (association(X, metadata, **FAST) for _ in range(2))
    assert str(one) == str(two) and one.to_frame().equals(two.to_frame())
    assert str(one).startswith("r2\n") and "nonlinear_probe\n" in str(one)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"metadata": None}, "association needs metadata"),
        ({"after": np.zeros((3, 4))}, "after has 3 rows, but X has 40"),
        ({"components": np.zeros(3, int)}, "components must be 40 non-negative integers"),
        ({"n_splits": 1}, r"'n_splits' parameter of association must be an int in the range \[2, 100\]"),
        ({"formula": "1"}, "names no metadata column"),
        ({"formula": "sight"}, "did you mean 'site'"),
        ({"n_splits": 30}, "40 rows are too few for 30 folds"),
    ],
)  # fmt: skip
def test_what_cannot_be_measured_is_one_clear_error(options, message):
    X, metadata = sites(40)
    with pytest.raises(ValueError, match=message):
        association(X, **{"metadata": metadata, **FAST, **options})


def test_a_label_for_each_row_is_measured_without_a_flood_of_warnings():
    rng = np.random.default_rng(0)
    labels = np.array([f"s{i}" for i in range(60)])
    with pytest.warns(RareLevelWarning) as told:
        association(rng.normal(size=(60, 1)), labels, n_permutations=19)
    assert len(told) == 1
