"""``residmix confounders``: the tests of predictions, as a check."""

import json

import numpy as np
import pandas as pd
import pytest

import residmix as rm


@pytest.fixture
def table(tmp_path):
    rng = np.random.default_rng(0)
    age, site = rng.normal(size=200), rng.choice(list("abc"), 200)
    y = age + rng.normal(size=200)
    frame = pd.DataFrame({"y": y, "age": age, "site": site, "clean": y + rng.normal(size=200), "lean": y + 2 * age})
    frame.to_csv(tmp_path / "p.csv", index=False)
    return tmp_path / "p.csv"


def test_it_says_what_confounder_test_says(run, table):
    told = run("confounders", table, "--prediction", "lean", "--target", "y", "--confounders", "age,site", "--json")
    frame = pd.read_csv(table)
    for kind, found in json.loads(told.stdout).items():
        expected = rm.confounder_test(frame["lean"], frame["y"], frame[["age", "site"]], kind)
        assert found["p_value"] == expected.p_value


def test_it_is_a_check(run, table):
    options = ("--target", "y", "--confounders", "age", "--fail-below", "0.01")
    assert "partial" in run("confounders", table, "--prediction", "clean", *options).stdout
    told = run("confounders", table, "--prediction", "lean", *options, code=1)
    assert "partial" in told.stdout
    assert "lean depends on age given y" in told.stderr
    assert (
        "unknown column 'agee'"
        in run("confounders", table, "--prediction", "lean", "--target", "y", "--confounders", "agee", code=1).stderr
    )
