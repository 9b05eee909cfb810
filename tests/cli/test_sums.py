"""Sites that share sums only: --moments-only, merge, what leaves, and the least count of a cell."""

import warnings

import numpy as np
import pandas as pd
import pytest
from numpy.testing import assert_allclose

import residmix as rm

FORMULA = "C(site, levels=['a', 'b', 'c'])"
PRESERVE = "age + C(sex, levels=['f', 'm'])"
FEATURES = [f"x{j}" for j in range(5)]


def table(n=(80, 60, 12), seed=0):
    rng = np.random.default_rng(seed)
    site = np.repeat(list("abc"), n)
    shift = rng.normal(size=(3, 5))[np.searchsorted(list("abc"), site)]
    X = shift + rng.normal(size=(len(site), 5)) * (1 + np.abs(shift[:, :1]))
    return pd.DataFrame(X, columns=FEATURES).assign(
        site=site, age=rng.uniform(20, 60, len(site)), sex=rng.permuted(np.resize(["f", "m"], len(site)))
    )


@pytest.mark.parametrize("more", [(), ("--covariances", "shrunk")], ids=["combat", "covariances"])
def test_merged_sums_of_sites_are_the_fit_of_all_rows(run, tmp_path, more):
    data = table()
    options = ("--formula", FORMULA, "--preserve", PRESERVE, "--scale", "--shrinkage", "eb", *more)
    for site, own in data.groupby("site"):
        own.to_csv(tmp_path / f"{site}.csv", index=False)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            told = run(
                "fit", tmp_path / f"{site}.csv", *options, "--moments-only", "--min-count", 3, "-o", tmp_path / site
            )
        assert "sums of the data in this file:" in told.stderr
        assert "aliased" not in told.stderr
        assert "too few" not in told.stderr
    run("merge", *(tmp_path / site for site in "abc"), "-o", tmp_path / "all")
    merged = rm.load(tmp_path / "all")
    whole = rm.Residualizer(
        FORMULA,
        preserve=PRESERVE,
        features=FEATURES,
        scale=True,
        shrinkage="eb",
        covariance=bool(more),
    ).fit(data)
    assert_allclose(merged.transform(data), whole.transform(data), atol=1e-12)
    alone = rm.load(tmp_path / "a").transform(data[data["site"] == "a"])
    assert np.abs(alone - whole.transform(data)[:80]).max() > 0.1
    told = run("inspect", tmp_path / "a").stdout
    assert "holds" in told
    assert "the smallest cell has" in told


def test_cells_of_few_rows_do_not_leave_the_site(run, tmp_path):
    data = table()
    own = data[data["site"] == "c"].copy()
    own["sex"] = ["m"] * 3 + ["f"] * 9
    own.to_csv(tmp_path / "c.csv", index=False)
    options = ("--formula", FORMULA, "--preserve", PRESERVE, "--moments-only", "-o", tmp_path / "c")
    told = run("fit", tmp_path / "c.csv", *options, code=1).stderr
    assert "3 rows of sex=m" in told
    assert not (tmp_path / "c").exists()
    run("fit", tmp_path / "c.csv", *options, "--min-count", 3)


def test_the_smallest_cell_is_counted_from_the_sums_of_pairs_of_levels():
    data = table()
    model = rm.Residualizer("C(site) + C(sex)", features=FEATURES).fit(data)
    assert model.smallest_cell().rows == data.groupby(["site", "sex"]).size().min()
    few = data.drop(index=np.flatnonzero((data["site"] == "b") & (data["sex"] == "m"))[2:])
    cell = rm.Residualizer("C(site) + C(sex, contr.sum)", features=FEATURES).fit(few).smallest_cell()
    assert (cell.name, cell.rows) == ("site=b, sex=m", 2)


def test_what_leaves_is_all_that_the_moments_hold():
    data = table()
    model = rm.Residualizer(FORMULA, features=FEATURES, scale=True, shrinkage="eb", covariance=True).fit(data)
    left = model.what_leaves().set_index("what")
    assert left.loc["products of features with each other by level of site", "numbers"] == 3 * 25
    assert left.loc["means of features", "numbers"] == 5


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--moments-only",), "set -o"),
        (("--moments-only", "-o", "m", "--residuals", "r.csv"), "leave out --residuals"),
        (("--moments-only", "-o", "m", "-k", "2"), "leave -k out"),
    ],
)
def test_options_that_make_no_sense_beside_sums_are_refused(run, tmp_path, options, told):
    table().to_csv(tmp_path / "d.csv", index=False)
    assert told in run("fit", tmp_path / "d.csv", "--formula", FORMULA, *options, code=2).stderr


def test_what_does_not_add_up_is_refused(run, tmp_path):
    table().to_csv(tmp_path / "d.csv", index=False)
    options = ("--formula", FORMULA, "--scale", "--shrinkage", "eb-robust", "--moments-only", "-o", tmp_path / "m")
    assert "partial_fit and merge don't work with" in run("fit", tmp_path / "d.csv", *options, code=1).stderr
