"""Penalised splines whose smoothness is estimated: mgcv's answers, from moments alone."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import residmix as rm
from residmix.effects.mean.bands import term_tests
from residmix.effects.mean.reml import variance_ratios

FIXTURES = Path(__file__).parents[2] / "fixtures"
FORMULAS = {
    "one": "s(age)",
    "two": "site + sex + s(age) + s(dose, k=6)",
    "by": "sex + s(age, by=sex)",
    "weighted": "site + s(age)",
}


@pytest.fixture(scope="module")
def mgcv():
    return json.loads((FIXTURES / "mgcv.json").read_text())


@pytest.fixture(scope="module")
def rows(mgcv):
    table = pd.DataFrame({name: mgcv[name] for name in ("age", "dose", "sex", "site")})
    return pd.DataFrame(mgcv["X"]), table


def fitted(mgcv, rows, which):
    weight = np.array(mgcv["weight"]) if which == "weighted" else None
    return rm.Residualizer(FORMULAS[which]).fit(rows[0], metadata=rows[1], sample_weight=weight)


def simulated(n=400, d=6, seed=0):
    rng = np.random.default_rng(seed)
    table = pd.DataFrame(
        {"age": rng.uniform(8, 90, n), "sex": rng.choice(["F", "M"], n), "site": rng.choice(["a", "b", "c"], n)}
    )
    X = np.sin(table["age"] / 12).to_numpy()[:, None] * np.linspace(0, 3, d) + rng.normal(size=(n, d))
    return X + (table["site"] == "b").to_numpy()[:, None], table


@pytest.mark.parametrize("which", FORMULAS)
def test_curves_and_their_smoothness_are_those_of_mgcv(mgcv, rows, which):
    model = fitted(mgcv, rows, which)
    explained = rows[0].to_numpy() - model.transform(rows[0], metadata=rows[1])
    for j, name in enumerate(rows[0]):
        found = mgcv[which][name]
        # asked for are 1e-3 of the curve and 5 % of the smoothness; the optimum is one and the same
        np.testing.assert_allclose(explained[:, j], found["fitted"], atol=1e-6 * np.std(found["fitted"]))
        np.testing.assert_allclose(model.edf_.to_numpy()[j], found["edf"], atol=1e-5)
        bent = np.array(found["edf"]) > 1.01  # of a straight line the smoothness is anything large
        np.testing.assert_allclose(
            model.smoothness_.to_numpy()[j][bent], np.array(found["smoothness"], float)[bent], rtol=1e-3
        )
    # a control: twice the knots aren't mgcv's curves
    other = rm.Residualizer(FORMULAS[which].replace("s(age", "s(age, k=20")).fit(rows[0], metadata=rows[1])
    assert np.abs(other.edf_.to_numpy()[0, 0] - mgcv[which]["sine"]["edf"][0]) > 0.01


@pytest.mark.parametrize("which", ["one", "two", "by"])
def test_bands_and_tests_are_those_of_mgcv(mgcv, rows, which):
    model = fitted(mgcv, rows, which)
    tests = {test.name: test for test in term_tests(model._found, model.design_)}
    table = model.tidy()
    for j, name in enumerate(rows[0]):
        found = mgcv[which][name]
        own = [tests[curve] for curve in model.edf_.columns]
        assert model._found.smooth.residual_degrees[j] == pytest.approx(found["residual_df"], abs=1e-5)
        np.testing.assert_allclose([test.reference[j] for test in own], found["edf1"], atol=1e-5)
        # mgcv splits the last direction in another way, and its p-values come from a sum of chi-squares
        p, theirs = np.array([test.p_value[j] for test in own]), np.array(found["p"], float)
        np.testing.assert_allclose(p[theirs > 1e-4], theirs[theirs > 1e-4], rtol=0.06)
        assert (p[theirs <= 1e-4] < 2e-4).all()
        mine = table[(table["feature"] == name) & table["estimate"].notna() & (table["term"] != "Intercept")]
        np.testing.assert_allclose(mine["p_value"], np.atleast_1d(np.array(found["p_table"], float)), rtol=1e-3)


def test_the_band_of_a_curve_is_that_of_mgcv(mgcv, rows):
    model = fitted(mgcv, rows, "one")
    values = np.array(mgcv["new_age"])
    effect = model.effect("age", at=values)
    width = (effect["upper"] - effect["lower"]).to_numpy().reshape(len(values), -1) / 2
    half = width / 1.968  # of Student's t
    mean = model.moments_.mean_x
    for j, name in enumerate(rows[0]):
        found = mgcv["one"][name]
        estimate = effect["estimate"].to_numpy().reshape(len(values), -1)[:, j]
        np.testing.assert_allclose(estimate + mean[j], found["new"], atol=1e-6 * np.std(found["fitted"]))
        sigma2 = model._found.smooth.rss[j] / model._found.smooth.residual_degrees[j]
        # theirs is of the prediction, so that it has the variance of the mean as well
        np.testing.assert_allclose(half[:, j], np.sqrt(np.array(found["se"]) ** 2 - sigma2 / 300), rtol=2e-3)


@pytest.mark.slow
def test_several_smoothnesses_maximise_the_restricted_likelihood():
    rng = np.random.default_rng(1)
    Z = rng.normal(size=(200, 12))
    X = Z @ (rng.normal(size=(12, 5)) * np.array([0, 0.1, 0.3, 1, 3])) + rng.normal(size=(200, 5))
    parts = [slice(0, 4), slice(4, 7), slice(7, 12)]
    G, c, total = Z.T @ Z, Z.T @ X, np.sum(X**2, axis=0)

    def deviance(j, gains):
        V = np.eye(200) + (Z * np.repeat(gains, [4, 3, 5])) @ Z.T
        return 200 * np.log(X[:, j] @ np.linalg.solve(V, X[:, j])) + np.linalg.slogdet(V)[1]

    found = variance_ratios(G[None], c, total, np.full(5, 200.0), parts)
    for j in range(5):
        best = deviance(j, found[:, j])
        for t in range(3):
            for factor in (0.7, 1.4):
                moved = found[:, j] * np.where(np.arange(3) == t, factor, 1.0)
                assert deviance(j, moved) >= best - 1e-9
                assert deviance(j, moved + (np.arange(3) == t) * 1e-3) >= best - 1e-9


@pytest.mark.parametrize(
    ("formula", "options"),
    [
        ("site + sex + s(age, lower=0, upper=100)", {}),
        ("site + sex + s(age, by=sex, lower=0, upper=100)", {}),
        ("site", {"preserve": "sex + s(age, lower=0, upper=100)", "scale": True, "shrinkage": "eb"}),
        ("site + s(age, lower=0, upper=100)", {"shrinkage": {"site": "blup"}}),
    ],
)
def test_merged_fits_are_those_of_all_rows(formula, options):
    X, table = simulated()
    whole = rm.Residualizer(formula, **options).fit(X, metadata=table)
    first = rm.Residualizer(formula, **options).fit(X[:250], metadata=table[:250])
    parts = first.merge(rm.Residualizer(formula, **options).fit(X[250:], metadata=table[250:]))
    later = rm.Residualizer(formula, **options).partial_fit(X[:100], metadata=table[:100])
    later.partial_fit(X[100:], metadata=table[100:])
    ours = whole.transform(X, metadata=table)
    for model in (parts, later):
        assert np.abs(model.transform(X, metadata=table) - ours).max() < 1e-12 * np.abs(X).max()
        np.testing.assert_allclose(model.edf_, whole.edf_, rtol=1e-9)


def test_fits_whose_knots_came_from_their_rows_refuse_to_merge():
    X, table = simulated()
    one, two = (rm.Residualizer("s(age)").fit(X[half], metadata=table[half]) for half in (slice(200), slice(200, 400)))
    with pytest.raises(ValueError, match="the designs differ"):
        one.merge(two)


def test_features_with_gaps_are_fitted_on_their_own_rows():
    X, table = simulated()
    X[::7, 1] = X[100:120, 3] = np.nan
    formula = "site + sex + s(age, by=sex, k=6, lower=0, upper=100)"
    found = rm.Residualizer(formula).fit_transform(X, metadata=table)
    for j in range(X.shape[1]):
        have = np.isfinite(X[:, j])
        alone = rm.Residualizer(formula).fit_transform(X[have, j : j + 1], metadata=table[have])
        np.testing.assert_allclose(found[have, j], alone[:, 0], atol=1e-10)


def test_units_and_origins_move_nothing():
    X, table = simulated()
    ours = rm.Residualizer("site + sex + s(age, by=sex)").fit(X, metadata=table)
    moved = table.assign(age=1e3 + 1e-3 * table["age"], sex=table["sex"].map({"F": "z", "M": "y"}))
    theirs = rm.Residualizer("site + sex + s(age, by=sex)").fit(1e5 + X, metadata=moved)
    np.testing.assert_allclose(theirs.transform(1e5 + X, metadata=moved), ours.transform(X, metadata=table), atol=1e-8)
    np.testing.assert_allclose(np.sort(theirs.edf_, axis=1), np.sort(ours.edf_, axis=1), rtol=1e-5)


def test_a_preserved_curve_stays_and_comes_back():
    X, table = simulated()
    model = rm.Residualizer("site", preserve="sex + s(age)", scale=True, shrinkage="eb").fit(X, metadata=table)
    kept = model.transform(X, metadata=table)
    curve = np.sin(table["age"] / 12)
    assert np.corrcoef(kept[:, -1], curve)[0, 1] > 0.85
    np.testing.assert_allclose(model.inverse_transform(kept, metadata=table), X, atol=1e-10)
    gone = rm.Residualizer("site + s(age)").fit_transform(X, metadata=table)
    assert np.abs(np.corrcoef(gone[:, -1], curve)[0, 1]) < 0.1


def test_random_subjects_beside_a_curve():
    """The random effects are those of a fit by 'blup' whose curve has the same columns, where nothing is penalised."""
    X, table = simulated()
    table["subject"] = [f"s{i % 40}" for i in range(len(table))]
    X = X + np.random.default_rng(5).normal(size=(40, 1))[np.arange(len(table)) % 40]
    straight = X - np.sin(table["age"] / 12).to_numpy()[:, None] * np.linspace(0, 3, 6)
    curved = rm.Residualizer("sex + s(age)", preserve="subject", shrinkage={"subject": "blup"})
    linear = rm.Residualizer("sex + age", preserve="subject", shrinkage={"subject": "blup"})
    curved.fit(straight, metadata=table), linear.fit(straight, metadata=table)
    line = curved.edf_.to_numpy()[:, 0] < 1 + 1e-6
    assert line.any()
    np.testing.assert_allclose(
        curved.random_effects_["subject"].effects[:, line],
        linear.random_effects_["subject"].effects[:, line],
        atol=1e-5,
    )
    np.testing.assert_allclose(
        curved.random_effects_["subject"].noise[line], linear.random_effects_["subject"].noise[line], rtol=1e-5
    )


def test_what_a_mixture_counts_is_the_effective_number():
    X, table = simulated(d=2)
    curve = rm.ResidualMixture(1, formula="site + s(age)").fit(X, metadata=table)
    plain = rm.ResidualMixture(1, formula="site").fit(X, metadata=table)
    more = (curve.bic(X, metadata=table) + 2 * curve.score_samples(X, metadata=table).sum()) / np.log(len(X))
    less = (plain.bic(X, metadata=table) + 2 * plain.score_samples(X, metadata=table).sum()) / np.log(len(X))
    assert more - less == pytest.approx(curve.residualizer_.edf_.to_numpy().sum())
    with pytest.raises(ValueError, match="joint estimation and gating don't work with"):
        rm.ResidualMixture(2, formula="s(age)", estimation="joint").fit(X, metadata=table)


def test_shares_of_the_variance_add_up():
    X, table = simulated()
    model = rm.Residualizer("site + sex + s(age)").fit(X, metadata=table)
    shares = model.variance_shares().pivot(index="feature", columns="term", values="share")
    np.testing.assert_allclose(shares.sum(axis=1), 1.0)
    assert shares["s(age)"].iloc[-1] > 0.7 > 0.1 > shares["sex"].iloc[-1]


def test_curves_by_level_have_tables_of_their_own():
    X, table = simulated()
    model = rm.Residualizer("sex + s(age, by=sex)").fit(X, metadata=table)
    both = model.effect("age", at=[20.0, 50.0])
    assert both["curve"].unique().tolist() == ["F", "M"]
    one = model.effect("s(age, by=sex)[M]", at=[20.0, 50.0])
    pd.testing.assert_frame_equal(one, both[both["curve"] == "M"].reset_index(drop=True))
    assert len(model.effect("age")) == 2 * 50 * X.shape[1]


def test_the_model_file_holds_the_curves(tmp_path):
    X, table = simulated()
    model = rm.Residualizer("site + sex + s(age, by=sex)").fit(X, metadata=table)
    rm.save(model, tmp_path / "model.rmx")
    again = rm.load(tmp_path / "model.rmx")
    assert (again.transform(X, metadata=table) == model.transform(X, metadata=table)).all()
    pd.testing.assert_frame_equal(again.tidy(), model.tidy())


@pytest.mark.parametrize("options", [{"alpha": 1.0}, {"residuals": "loo"}])
def test_what_does_not_go_together_is_refused(options):
    X, table = simulated(100)
    with pytest.raises(ValueError, match=r"s\(\)"):
        rm.Residualizer("s(age)", **options).fit(X, metadata=table)


def test_later_rows_go_on_straight_and_held_out_ones_have_their_own_fit():
    X, table = simulated()
    model = rm.Residualizer("s(age, lower=10, upper=80)").fit(X, metadata=table)
    far = model.effect("age", at=[90.0, 100.0, 110.0])["estimate"].to_numpy().reshape(3, -1)
    np.testing.assert_allclose(far[2] - far[1], far[1] - far[0], atol=1e-10)
    held = rm.Residualizer("s(age)", residuals="cross-fitted", cv=4).fit_transform(X, metadata=table)
    assert (held.std(axis=0) > rm.Residualizer("s(age)").fit_transform(X, metadata=table).std(axis=0)).all()
