"""Rows that belong together stay in one fold, and nobody influences the own correction, by any variant."""

import numpy as np
import pandas as pd
import polars as pl
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.linear_model import LinearRegression
from sklearn.model_selection import GroupKFold, GroupShuffleSplit, KFold, LeaveOneGroupOut, StratifiedKFold

from residmix import Residualizer

FEATURES = [f"x{j}" for j in range(6)]


def visits(n_subjects=40, seed=0):
    """Three visits of each subject, at sites that subjects don't leave, in mixed order."""
    rng = np.random.default_rng(seed)
    subject = np.repeat(np.arange(n_subjects), 3)
    site = (np.arange(n_subjects) % 3)[subject]
    X = rng.normal(size=(n_subjects, 6))[subject] + rng.normal(size=(3, 6))[site]
    X += np.array([1.0, 2.0, 0.6])[site][:, None] * rng.normal(size=X.shape)
    table = pd.DataFrame(X, columns=FEATURES).assign(
        site=np.array(list("abc"))[site], age=rng.uniform(20, 60, len(X)), subject=subject
    )
    return table.sample(frac=1.0, random_state=0).reset_index(drop=True)


VARIANTS = {
    "least squares": {},
    "ridge": {"alpha": 2.0},
    "spread": {"scale": True},
    "combat": {"scale": True, "shrinkage": "eb"},
    "means alone": {"shrinkage": "eb-one-row"},
    "non-parametric": {"scale": True, "shrinkage": "eb-nonparametric"},
    "robust": {"scale": True, "shrinkage": "eb-robust"},
    "random sites": {"shrinkage": {"site": "blup"}},
    "covariances": {"scale": True, "shrinkage": "eb", "covariance": True},
    "covbat": {"scale": True, "shrinkage": "eb", "covariance": "scores"},
    "regressor": {"estimator": LinearRegression()},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_held_out_subject_never_influences_its_own_correction(variant):
    table = visits()
    options = {"features": FEATURES, "groups": "subject", "check_leakage": False, **VARIANTS[variant]}
    formula = "site" if variant == "spread" else "site + age"  # of spread by age, every row has its own
    model = Residualizer(formula, residuals="cross-fitted", cv=GroupKFold(4), **options)
    one = (table["subject"] == 7).to_numpy()
    moved = table.copy()
    moved.loc[one, FEATURES] += np.linspace(1.0, 6.0, 6)
    before, after = model.fit_transform(table), model.fit_transform(moved)
    # what was added comes through as it is, but where spread or covariance of the others' fit turns it: the same for
    # every row of the subject's site
    change = (after - before)[one]
    assert_allclose(change, np.broadcast_to(change[0], change.shape), atol=1e-9)
    if not options.get("scale"):
        assert_allclose(change[0], np.linspace(1.0, 6.0, 6), atol=1e-9)
    # control: without groups visits of the subject tell of each other
    torn = Residualizer(formula, residuals="cross-fitted", cv=4, **{**options, "groups": None})
    change = (torn.fit_transform(moved) - torn.fit_transform(table))[one]
    assert np.ptp(change, axis=0).max() > 1e-3


@pytest.mark.parametrize("variant", [name for name in VARIANTS if name != "regressor"])
def test_a_held_out_site_is_corrected_by_the_others_alone(variant):
    table = visits()
    options = {"features": FEATURES, "groups": "site", "check_leakage": False, **VARIANTS[variant]}
    formula = "site" if variant == "spread" else "site + age"
    model = Residualizer(formula, residuals="cross-fitted", cv=LeaveOneGroupOut(), on_unknown="mean", **options)
    own = (table["site"] == "b").to_numpy()
    moved = table.copy()
    moved.loc[own, FEATURES] += np.linspace(1.0, 6.0, 6)
    change = (model.fit_transform(moved) - model.fit_transform(table))[own]
    assert_allclose(change, np.broadcast_to(change[0], change.shape), atol=1e-9)
    assert np.abs(change[0]).min() > 0.3  # nothing of the shift is taken out
    plain = Residualizer(formula, on_unknown="mean", **{**options, "groups": None})
    change = (plain.fit_transform(moved) - plain.fit_transform(table))[own]
    assert np.abs(change).max() < 6.0 - 1.0  # in-sample, most of it is


EB = {"scale": True, "shrinkage": "eb"}
LINES = "age + who + age:who"
LATER = {
    "curves": ("site", {"preserve": "s(age)"}),
    "combat with curves": ("site", {"preserve": "s(age)", **EB}),
    "combatls": ("site", {"preserve": "age", **EB, "scale": "site + age"}),
    "combatls with curves": ("site", {"preserve": "s(age)", **EB, "scale": "site + s(age)"}),
    "combatls of what is removed": ("site + age", {**EB, "scale": "site + age"}),
    "combatls, robust": ("site", {"preserve": "age", "scale": "site + age", "shrinkage": "eb-robust"}),
    "combatls, free": ("site", {"preserve": "age", "scale": "site + age", "shrinkage": "eb-nonparametric"}),
    "curves that are removed": ("site + s(age)", {"scale": True}),
    "curves by site": ("site + s(age, by=site)", {}),
    "covariances with curves": ("site", {"preserve": "s(age)", **EB, "covariance": True}),
    "covbat beside combatls": ("site", {"preserve": "age", **EB, "scale": "site + age", "covariance": "scores"}),
    "covariances without pooling": ("site + age", {"scale": True, "covariance": True}),
    "reference": ("site", {"preserve": "age", **EB, "reference": "a"}),
    "pooled means": ("site + age", {"shrinkage": "eb"}),
    "random sites and spread": ("site + age", {"scale": True, "shrinkage": {"site": "blup"}}),
    "ridge by term": ("site + age", {"alpha": {"site": 3.0}}),
    "nested factors": ("site + device", {"scale": True, "shrinkage": {"site": "eb", "device": "eb"}}),
    "two factors": ("site + scanner", {"scale": True, "shrinkage": {"site": "eb", "scanner": "eb"}}),
    "pooled and random": ("site + scanner", {"scale": True, "shrinkage": {"site": "eb", "scanner": "blup"}}),
    "longitudinal": ("site", {"preserve": "age + who", "scale": True, "shrinkage": {"site": "eb", "who": "blup"}}),
    "lines": (
        "site",
        {"preserve": LINES, "scale": True, "shrinkage": {"site": "eb", "who": "blup", "age:who": "blup"}},
    ),
}


# a reference site must be there
HELD_OUT = [(own, group) for own in LATER for group in ("subject", "site") if (own, group) != ("reference", "site")]


@pytest.mark.parametrize(("variant", "group"), HELD_OUT)
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::residmix.errors.ResidmixWarning")  # of many columns, and levels in one fold
def test_whoever_is_held_out_is_corrected_as_by_a_fit_that_never_saw_them(variant, group):
    table = visits().assign(who=lambda t: "w" + t["subject"].astype(str))
    table["scanner"] = np.where(np.random.default_rng(3).uniform(size=len(table)) < 0.5, "s", "t")
    table["device"] = table["site"] + table["scanner"]
    formula, options = LATER[variant]
    options = {"features": FEATURES, "check_leakage": False, "on_unknown": "mean", **options}
    own = ((table["site"] == "b") if group == "site" else table["subject"] == 7).to_numpy()
    folds = GroupKFold(5) if group == "subject" else LeaveOneGroupOut()
    (beside,) = (test for _, test in folds.split(table, groups=table[group]) if own[test].any())
    rest = table.drop(index=beside)
    alone = Residualizer(formula, **options).fit(rest).transform(table[own])
    held = Residualizer(formula, residuals="cross-fitted", cv=folds, groups=group, **options)
    assert_allclose(held.fit_transform(table)[own], alone, atol=1e-12)
    # control: a fit of all rows takes something of theirs out
    whole = Residualizer(formula, **options).fit(table).transform(table[own])
    assert np.abs(whole - alone).max() > 1e-3


def test_groups_are_no_features_and_not_removed():
    table = visits()
    names = FEATURES[:3]
    options = {"residuals": "cross-fitted", "groups": "subject", "check_leakage": False}
    one = Residualizer("site + age", **options).fit(table)
    assert list(one.features_) == FEATURES
    frame = table[FEATURES].to_numpy(), table[["site", "age", "subject"]]
    apart = Residualizer(**options)
    residual = apart.fit_transform(frame[0], metadata=frame[1])
    assert apart.design_columns_ == ["site[T.b]", "site[T.c]", "age"]
    assert_array_equal(residual, Residualizer("site + age", **options).fit_transform(table))
    assert_array_equal(residual, Residualizer("site + age", **options).fit_transform(pl.DataFrame(table)))
    # a gene subset gives the genes' columns of the whole
    some = Residualizer("site + age", features=names, **options).fit_transform(table)
    assert_allclose(some, residual[:, :3], atol=1e-12)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cv": KFold(4), "groups": "subject"}, r"cv puts rows of \d+ groups \(\d+\) into several folds"),
        ({"cv": GroupKFold(4)}, "cv=GroupKFold needs groups; set groups="),
        ({"cv": StratifiedKFold(4)}, "cv=StratifiedKFold needs a target"),
        ({"cv": GroupShuffleSplit(2), "groups": "subject"}, "every row in exactly one test set"),
        ({"groups": "subjct"}, r"groups='subjct' is not a metadata column.*did you mean"),
        ({"groups": "subject", "residuals": "in-sample"}, "groups= needs residuals="),
    ],
)
def test_folds_that_cannot_be_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Residualizer("site + age", features=FEATURES, **{"residuals": "cross-fitted", **options}).fit_transform(
            visits()
        )


def test_missing_groups_are_refused():
    table = visits().astype({"subject": float})
    table.loc[3, "subject"] = np.nan
    with pytest.raises(ValueError, match="groups='subject' has 1 missing values"):
        Residualizer("site", features=FEATURES, residuals="cross-fitted", groups="subject").fit_transform(table)
