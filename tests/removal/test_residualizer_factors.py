"""Residualizer on factors of many levels."""

import numpy as np
import pandas as pd
import pytest

import residmix as rm
from residmix import Residualizer
from residmix.errors import CollinearityWarning, EntangledEffectsWarning


def table(n=3000, subjects=400, days=250, seed=0):
    rng = np.random.default_rng(seed)
    subject = np.r_[np.arange(subjects).repeat(3), rng.integers(0, subjects, n - 3 * subjects)]
    day = rng.permutation(np.r_[np.arange(days).repeat(3), rng.integers(0, days, n - 3 * days)])
    age = rng.normal(size=n)
    x = rng.normal(size=(n, 2)) + rng.normal(size=(subjects, 2))[subject] + rng.normal(size=(days, 2))[day]
    return pd.DataFrame(
        {
            "subject": [f"s{k:03d}" for k in subject],
            "day": [f"d{k:03d}" for k in day],
            "age": age,
            "x": x[:, 0] + age,
            "y": x[:, 1],
        }
    )


def written_out(data, names):
    Z = np.hstack([data[["age"]], *(pd.get_dummies(data[name]) for name in names)]).astype(float)
    X = data[["x", "y"]].to_numpy()
    beta = np.linalg.lstsq(Z, X, rcond=None)[0]
    return beta, X - Z @ beta


@pytest.mark.parametrize("names", [["subject"], ["subject", "day"]])
def test_absorbed_factors_equal_written_out_columns(names):
    data = table()
    model = Residualizer(" + ".join(["age", *names]), features=["x", "y"])
    residual = model.fit_transform(data)
    beta, expected = written_out(data, names)
    np.testing.assert_allclose(residual, expected, atol=1e-10)
    np.testing.assert_allclose(model.coef_, beta[:1], atol=1e-11)
    assert list(model.effects_) == names
    assert model.effects_["subject"].shape == (400, 2)
    np.testing.assert_allclose(model.transform(data), residual, atol=1e-12)
    np.testing.assert_allclose(model.inverse_transform(residual, metadata=data), data[["x", "y"]], atol=1e-11)
    assert list(model.tidy()["term"]) == ["age", "Intercept"] * 2


def test_a_nested_factor_is_named_with_its_levels_and_the_factor_that_determines_it():
    data = table()
    data["family"] = [f"f{int(s[1:]) // 2:03d}" for s in data["subject"]]  # 200 levels: columns; one more: absorbed
    data.loc[data["subject"] == "s000", "family"] = "f999"
    told = (
        r"^200 levels of 'family' \('f\d+', 'f\d+', 'f\d+', 'f\d+' and 196 more\) are determined by 'subject', each "
        r"level of which occurs with one level of 'family' only \(nested\): residuals aren't affected, but effects "
        r"of 'family' can't be separated from those of 'subject'$"
    )
    with pytest.warns(CollinearityWarning, match=told):
        residual = Residualizer("subject + family", features=["x", "y"]).fit_transform(data)
    alone = Residualizer("subject", features=["x", "y"]).fit_transform(data)
    np.testing.assert_allclose(residual, alone, atol=1e-11)
    # each feature by itself, too
    data.loc[data.index[::50], "x"] = np.nan
    with pytest.warns(CollinearityWarning, match=told):
        Residualizer("subject + family", features=["x", "y"]).fit(data)


def test_columns_that_an_absorbed_factor_determines_are_told_with_its_name(capsys):
    data = table()
    data["site"] = data["subject"].str[:2]
    told = "'site\\[T.s1\\]' is determined by the levels of 'subject'"
    with pytest.warns(CollinearityWarning, match=f"3 of 4 design columns are aliased: {told}; "):
        model = Residualizer("subject + site + age", features=["x", "y"]).fit(data)
    print(model.summary())
    assert "aliased: 'site[T.s1]' is determined by the levels of 'subject'\n" in capsys.readouterr().out
    # through another column: neither the levels nor it alone
    data["copy"] = 2.0 * data["age"] + data["site"].map({"s0": 0.0, "s1": 1.0, "s2": 5.0, "s3": 7.0})
    with pytest.warns(CollinearityWarning, match="is determined by the levels of 'subject' and other columns"):
        Residualizer("subject + age + copy", features=["x", "y"]).fit(data)


def test_blocks_that_no_row_connects_are_told_by_their_levels():
    data = table()
    first = data["subject"] < "s005"
    data.loc[first, "day"] = np.resize(["e1", "e2"], first.sum())  # at most 249 days are left, of more than 200
    with pytest.warns(
        CollinearityWarning,
        match=r"^'day' and 'subject' fall into 2 disconnected parts: 'e1', 'e2' of 'day' only occur with "
        r"'s000', 's001', 's002', 's003' and 1 more of 'subject'\. Residuals aren't affected, but effects in "
        r"different parts can't be compared$",
    ):
        residual = Residualizer("subject + day", features=["x", "y"]).fit_transform(data)
    _, expected = written_out(data.assign(age=0.0), ["subject", "day"])
    np.testing.assert_allclose(residual, expected, atol=1e-10)


def test_of_three_factors_the_two_are_named_that_belong_together():
    data = table(n=6000)
    rng = np.random.default_rng(3)
    data["room"] = [f"r{k:03d}" for k in rng.integers(0, 230, len(data))]
    data["desk"] = data["room"] + np.array([".a", ".b"])[rng.integers(0, 2, len(data))]
    with pytest.warns(CollinearityWarning, match=r"229 levels of 'room' .*determined by 'desk', each level of which"):
        Residualizer("subject + room + desk", features=["x", "y"]).fit(data)
    # no pair is aliased, but all three are: desks of the third kind are those of odd subjects on odd days
    kind = data["subject"].str[1:].astype(int) % 2 + data["day"].str[1:].astype(int) % 2
    data["desk"] = [f"k{k}.{i:03d}" for k, i in zip(kind, rng.integers(0, 70, len(data)), strict=True)]
    told = r"1 level of '\w+' \('\S+'\) is determined by '\w+' and '\w+' together"
    with pytest.warns(CollinearityWarning, match=told):
        Residualizer("subject + day + desk", features=["x", "y"]).fit(data)


def test_preserved_effects_that_subjects_nearly_hold_are_warned_of_with_the_canonical_correlation():
    data = table()
    rng = np.random.default_rng(4)
    data["sick"] = data["subject"].isin([f"s{k:03d}" for k in range(100)]) * 1.0
    data["drug"] = rng.normal(size=len(data))
    moved = rng.permutation(len(data))[:40]
    data.loc[moved, "sick"] = 1.0 - data.loc[moved, "sick"]
    model = Residualizer("subject + age", preserve="sick + drug", features=["x", "y"])
    with pytest.warns(EntangledEffectsWarning, match=r"nearly collinear \(canonical correlation 0\.9686"):
        model.fit(data)
    spaces = []
    for columns in ([data[["age"]], pd.get_dummies(data["subject"])], [data[["sick", "drug"]]]):
        centred = np.hstack(columns).astype(float)
        spaces.append(np.linalg.svd(centred - centred.mean(axis=0), full_matrices=False))
    bases = [u[:, s > 1e-9 * s[0]] for u, s, _ in spaces]
    expected = np.linalg.svd(bases[0].T @ bases[1], compute_uv=False)
    np.testing.assert_allclose(model.canonical_correlations_, expected, atol=1e-10)
    # a group that no subject leaves can't be told from the subjects at all
    data["sick"] = data["subject"].isin([f"s{k:03d}" for k in range(100)]) * 1.0
    with (
        pytest.warns(CollinearityWarning, match="'sick' is determined by the levels of 'subject'"),
        pytest.warns(EntangledEffectsWarning, match=r"canonical correlation 1\.0000"),
    ):
        model.fit(data)


def test_streams_and_merges_work_with_absorbed_factors():
    data = table()
    parts = [data.iloc[:1800], data.iloc[1800:]]  # the first part shows every subject
    whole = Residualizer("subject + age", features=["x", "y"]).fit(data)
    stream = Residualizer("subject + age", features=["x", "y"])
    for part in parts:
        stream.partial_fit(part)
    np.testing.assert_allclose(stream.transform(data), whole.transform(data), atol=1e-11)


def test_a_lone_feature_with_gaps_is_fitted_on_the_rows_that_it_has_and_moments_are_not_merged_with_gaps():
    data = table()
    data.loc[data.index[::50], "x"] = np.nan
    for formula in ("subject", "subject + age", "subject + day + age"):
        alone = Residualizer(formula, features=["x"]).fit_transform(data)
        np.testing.assert_array_equal(np.isnan(alone[:, 0]), data["x"].isna())
        both = Residualizer(formula, features=["x", "y"]).fit_transform(data)
        np.testing.assert_allclose(alone[:, 0], both[:, 0], atol=1e-11)
    model = Residualizer("subject", features=["x", "y"]).fit(data)
    before = model.transform(data)
    told = r"missing values in features \('x'\) beside a factor with as many levels as 'subject' \(400\); fit all"
    with pytest.raises(ValueError, match=told):
        model.partial_fit(data)
    with pytest.raises(ValueError, match=told):
        Residualizer("subject", features=["x", "y"]).fit(table()).merge(model)
    np.testing.assert_array_equal(model.transform(data), before)


def test_a_saved_model_residualizes_alike(tmp_path):
    data = table()
    model = Residualizer("subject + day", features=["x", "y"]).fit(data)
    rm.save(model, tmp_path / "m.safetensors")
    np.testing.assert_array_equal(rm.load(tmp_path / "m.safetensors").transform(data), model.transform(data))


def test_an_unseen_subject_gets_the_average_effect():
    data = table()
    model = Residualizer("subject", features=["x", "y"], on_unknown="mean").fit(data)
    stranger = data.iloc[:1].assign(subject="new")
    expected = stranger[["x", "y"]].to_numpy() - model.intercept_ - model.effects_["subject"].mean(axis=0)
    np.testing.assert_allclose(model.transform(stranger), expected, atol=1e-12)


@pytest.mark.parametrize("change", [{"alpha": 1.0}, {"residuals": "loo"}, {"scale": True}])
def test_what_needs_columns_is_refused_by_name(change):
    with pytest.raises(ValueError, match="subject"):
        Residualizer("subject", features=["x", "y"], **change).fit(table())


def test_a_missing_level_needs_a_policy_that_fits():
    data = table()
    data.loc[5, "subject"] = None
    with pytest.raises(ValueError, match="missing='indicator'"):
        Residualizer("subject", features=["x", "y"], missing="mean").fit(data)
